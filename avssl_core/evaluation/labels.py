"""Checks that all protocols share: features are finite matrices, labels go with them, no class is unknown."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

Labels = Tensor | npt.NDArray[Any] | Sequence[int] | Sequence[str]
"""One class an item: integers or strings, in a tensor, array, list or pandas column."""


def as_labels(labels: Labels, count: int, *, name: str) -> npt.NDArray[Any]:
    """Labels as a one-dimensional array of ``count`` integers or strings.

    Raises:
        ValueError: if the number is wrong, a label is missing (None, NaN), or the labels are not integers or strings.
    """
    array = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if array.shape != (count,):
        raise ValueError(f"{name} must hold one label for each of {count} items, got shape {array.shape}")
    missing = np.flatnonzero(pd.isna(array))
    if len(missing):
        raise ValueError(f"{name} has {len(missing)} missing values (first at {missing[0]}): drop those items")
    if array.dtype.kind == "O":
        array = array.astype(str)
    if array.dtype.kind not in "iubUS":
        raise ValueError(f"{name} must be integers or strings, got {array.dtype}")
    return array


def as_features(features: Tensor, *, name: str, ndim: int = 2) -> Tensor:
    """Features as finite float64 on the CPU (comparisons and fits should not depend on rounding).

    Raises:
        ValueError: if the number of axes is wrong, there are no items, or a value is not finite.
    """
    if features.ndim != ndim or 0 in features.shape:
        raise ValueError(f"{name} must have {ndim} axes and at least one item, got shape {tuple(features.shape)}")
    values = features.detach().to("cpu", torch.float64)
    bad = ~values.flatten(1).isfinite().all(dim=1)
    if bad.any():
        raise ValueError(f"{name} has {int(bad.sum())} items with NaN or infinity (first at {int(bad.nonzero()[0])})")
    return values


def require_known(test: npt.NDArray[Any], train: npt.NDArray[Any], *, where: str) -> None:
    """Raise a ``ValueError`` naming the classes of ``test`` that never occur in ``train``: no answer could be right."""
    unknown = sorted(set(test.tolist()) - set(train.tolist()))
    if unknown:
        raise ValueError(f"classes missing from {where}: {shown(unknown)}. Split so that every class is there")


def shown(items: Collection[Any], limit: int = 10) -> str:
    """At most ``limit`` items, and how many more."""
    listed = ", ".join(str(item) for item in list(items)[:limit])
    return listed + (f" and {len(items) - limit} more" if len(items) > limit else "")


def cosine_ready(features: Tensor) -> Tensor:
    """Rows of unit length along the last axis; an exactly zero row stays zero and is similar to nothing."""
    return F.normalize(features, dim=-1, eps=1e-12)
