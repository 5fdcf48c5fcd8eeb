"""Running statistics of batch norm before the first clustering.

Labels are assigned with the network in evaluation mode, where batch norm uses the statistics it has collected. Before
the first step it has collected none: it normalises with mean 0 and variance 1, activations differ by orders of
magnitude between layers, and the first labels are made of that. SeLaVi's release (https://arxiv.org/abs/2006.13662)
runs 20 training batches through the network first, without gradients, since its bug fix of January 2021; the text does
not mention it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn

RELEASED_BATCHES = 20

Forward = Callable[[Any], object]


@torch.no_grad()
def warmup_batchnorm(
    model: nn.Module, batches: Iterable[Any], forward: Forward, *, count: int = RELEASED_BATCHES
) -> int:
    """Let batch norm collect statistics of ``count`` batches; nothing else of the model changes.

    Args:
        model: whose normalisation layers are meant; in training mode during the passes, and then again as it was.
        batches: as the network is trained on, augmentation included.
        forward: runs a batch through the model; what it returns is thrown away.
        count: batches at most. With fewer than ten or so and the usual momentum of 0.1, statistics are still near
            their initial values.

    Returns:
        How many batches there were.

    Raises:
        ValueError: for fewer than one batch asked for, or none given.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}; leave the call out for no warm-up")
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    seen = 0
    for batch in islice(batches, count):
        forward(batch)
        seen += 1
    for module, mode in modes:
        module.training = mode
    if not seen:
        raise ValueError("there are no batches to warm batch norm up with")
    return seen
