"""Sanity check by randomised weights (Adebayo et al. 2018, figure 7 of the paper): a map that explains a network must
change when the network does."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import nn

from avssl_core.attribution.networks import find_layer


def layers_from_the_top(model: nn.Module) -> list[str]:
    """Modules that own parameters, the last first, as they were registered."""
    owners = [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    return owners[::-1]


def randomised(
    model: nn.Module,
    order: Sequence[str] | None = None,
    *,
    mode: Literal["cascading", "independent"] = "cascading",
    seed: int = 0,
) -> Iterator[tuple[str, nn.Module]]:
    """Copies of a network with more and more, or single, layers initialised anew; the model itself is not touched.

    Args:
        model: whose modules with parameters have ``reset_parameters``.
        order: names of modules, each with all it contains; from the top if ``None``.
        mode: ``"cascading"``: every copy keeps what the copies before lost; ``"independent"``: one layer each.
        seed: of the new weights. Batch normalisation forgets its statistics as well.

    Yields:
        The layer's name and a copy of the network.

    Raises:
        ValueError: for an unknown mode or layer, or parameters nobody knows how to initialise.
    """
    if mode not in ("cascading", "independent"):
        raise ValueError(f"unknown mode {mode!r}; use 'cascading' or 'independent'")
    current = copy.deepcopy(model)
    for i, name in enumerate(layers_from_the_top(model) if order is None else order):
        if mode == "independent":
            current = copy.deepcopy(model)
        _initialise(find_layer(current, name), name, seed + i)
        yield name, copy.deepcopy(current)


def _initialise(layer: nn.Module, name: str, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for inner, module in layer.named_modules():
            if not any(True for _ in module.parameters(recurse=False)):
                continue
            if not callable(getattr(module, "reset_parameters", None)):
                raise ValueError(
                    f"{type(module).__name__} {'.'.join(filter(None, (name, inner)))!r} has parameters but no "
                    "reset_parameters: give it one, or leave it out of the order"
                )
            module.reset_parameters()
