"""Running averages of weights: for evaluation (EMA), and for encoders that follow another one (momentum encoders).

Mean teacher, https://arxiv.org/abs/1703.01780; MoCo, https://arxiv.org/abs/1911.05722, eq. 2.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def momentum_update(target: nn.Module, source: nn.Module, *, momentum: float) -> None:
    """Move ``target`` towards ``source`` in place: ``target ← momentum · target + (1 − momentum) · source``.

    Parameters are averaged; buffers (running statistics, counters) are copied, as averaging an average of a batch-norm
    layer would lag twice.

    Raises:
        ValueError: momentum outside [0, 1], or modules whose parameters differ in name or number.
    """
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"momentum={momentum} must lie in [0, 1]")
    theirs = dict(source.named_parameters())
    ours = dict(target.named_parameters())
    if theirs.keys() != ours.keys():
        odd = sorted(theirs.keys() ^ ours.keys())
        raise ValueError(f"the two modules differ in {len(odd)} parameters, the first is {odd[0]!r}")
    for name, parameter in ours.items():
        parameter.lerp_(theirs[name].detach().to(parameter.dtype), 1.0 - momentum)
    for mine, other in zip(target.buffers(), source.buffers(), strict=True):
        mine.copy_(other)


class Ema:
    """A copy of a model whose weights are the exponential average of the trained ones.

    Args:
        model: what is trained (unwrapped); the copy starts equal to it.
        decay: share of the old average kept at each step; 0.999 averages over about the last thousand steps.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(model).eval().requires_grad_(False)

    def update(self, model: nn.Module) -> None:
        """Take one step of ``model`` into the average."""
        momentum_update(self.module, model, momentum=self.decay)

    def state_dict(self) -> dict[str, Any]:
        """Weights of the average."""
        return self.module.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the average; strict."""
        self.module.load_state_dict(state)
