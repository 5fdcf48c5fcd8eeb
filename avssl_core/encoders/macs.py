"""How much arithmetic a forward pass costs, in multiply-accumulates.

Papers print "GFLOPs" and mean either operations or multiply-accumulates, half as many; IMRNet's table 2.3 counts the
latter, and divides by the number of frames. Here a number is always multiply-accumulates of the whole call: of
convolutions and matrix products. Normalisation, activations and pooling are left out, as in the papers' tools.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


def count_macs(module: nn.Module, *inputs: Tensor) -> int:
    """Multiply-accumulates of ``module(*inputs)`` in evaluation mode.

    On inputs of the ``meta`` device only shapes are computed, so that a full-size network costs milliseconds; the
    module may lie on any device, its parameters are replaced for the call. A module that looks at values (a mask, a
    length) needs real inputs on its own device.

    Args:
        module: anything whose forward pass takes these tensors. Parameters, buffers and the training flags of all
            submodules are afterwards as before.
        inputs: e.g. ``torch.empty(1, 3, 5, 224, 224, device="meta")``. The count grows in proportion to the batch.

    Returns:
        The number for the whole batch.

    Raises:
        ValueError: without inputs, or for inputs of which some are on ``meta`` and others are not.
    """
    on_meta = {x.is_meta for x in inputs}
    if len(on_meta) != 1:
        found = [str(x.device) for x in inputs]
        raise ValueError(f"expected inputs that are all real or all on the meta device, got devices {found}")
    flags = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            if on_meta.pop():
                functional_call(module, _meta_state(module), inputs)
            else:
                module(*inputs)
    finally:
        for each, training in flags:
            each.training = training
    return counter.get_total_flops() // 2  # the counter knows one multiply-accumulate as two operations


def _meta_state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers without values: the shapes are all that counting needs."""
    return {name: x.detach().to("meta") for name, x in chain(module.named_parameters(), module.named_buffers())}
