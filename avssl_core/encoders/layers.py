"""Layers that all encoders share: normalisation by name, Kaiming initialisation, construction under a seed.

The releases write ``nn.BatchNorm3d`` into every block. Here the kind of normalisation is a parameter, because a batch
of a few clips on a small machine may be better off with group normalisation, which looks at one clip at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

NormKind = Literal["bn", "gn"]

MAX_GROUPS = 32  # Wu & He 2018, table 3: 32 groups, few enough that a group holds several channels


def make_norm(kind: NormKind, channels: int, *, axes: Literal[1, 2, 3]) -> nn.Module:
    """Batch or group normalisation for activations with ``axes`` axes beside batch and channels.

    Args:
        kind: ``"bn"`` or ``"gn"``.
        channels: number of channels, at least 1.
        axes: 1 for ``(B, C, T)``, 2 for ``(B, C, H, W)``, 3 for ``(B, C, T, H, W)``.

    Returns:
        The layer, weight 1 and bias 0. Group normalisation takes the largest number of groups up to 32 that divides
        ``channels`` (the odd widths of R(2+1)D, 45 or 921, leave 15 and 3).

    Raises:
        ValueError: if ``kind`` is unknown.
    """
    if kind == "bn":
        return {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[axes](channels)
    if kind == "gn":
        groups = max(g for g in range(1, min(MAX_GROUPS, channels) + 1) if channels % g == 0)
        return nn.GroupNorm(groups, channels)
    raise ValueError(f"unknown normalisation {kind!r}: use 'bn' (batch) or 'gn' (group)")


def kaiming_fan_out_(module: nn.Module) -> None:
    """Initialise every convolution of ``module`` in place: Kaiming normal, fan-out, for ReLU (He et al. 2015).

    Normalisation layers keep weight 1 and bias 0, convolution biases become 0; linear layers keep torch's default.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@contextmanager
def seeded_init(seed: int) -> Iterator[None]:
    """Build modules inside this block, and their initial weights are a function of ``seed`` alone.

    torch's constructors draw from the global CPU generator; its state is put back afterwards, so that building a model
    neither depends on nor disturbs what was drawn before.
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        yield


def check_input(x: Tensor, *, ndim: int, channels: int, expected: str) -> None:
    """Raise a ``ValueError`` that shows the shape found unless ``x`` is a float tensor with ``channels`` on axis 1."""
    if x.ndim != ndim or x.shape[1] != channels:
        raise ValueError(f"expected {expected} with {channels} channel(s), got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"expected floating-point {expected}, got {x.dtype}; convert (and normalise) it first")
