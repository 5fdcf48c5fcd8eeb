"""Ranking clips by how alike the features of their modalities are, without training; and the precision of any choice.

The untrained baselines of ACAV100M's correspondence retrieval (https://arxiv.org/abs/2101.10803, Tables 4.1-4.3): PCA
to a common dimension, a similarity of the two modalities averaged over pairs of layers, the best half. Axes of separate
PCAs have nothing to do with each other, and arbitrary signs: what these scores measure across modalities is an accident
unless both sides come from one space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Likeness = Literal["inner_product", "cosine_similarity", "euclidean_diff_l1", "euclidean_diff_l2"]
LIKENESSES = ("inner_product", "cosine_similarity", "euclidean_diff_l1", "euclidean_diff_l2")


def principal_components(features: Tensor, dim: int) -> Tensor:
    """Project features onto their first principal components.

    Args:
        features: ``(N, d)``.
        dim: number of components, at most ``d``; 64 in the paper, the width of the smallest layer in the release.

    Returns:
        ``(N, dim)``, centred, of falling variance. The largest loading of each axis is positive, so that the result is
        a function of the features.

    Raises:
        ValueError: for features that are not ``(N, d)``, or a dimension outside ``[1, d]``.
    """
    if features.ndim != 2 or not 1 <= dim <= features.shape[1]:
        raise ValueError(f"expected features (N, d) and 1 <= dim <= d, got {tuple(features.shape)} and {dim}")
    centred = features - features.mean(dim=0)
    axes = torch.linalg.eigh(centred.T.double() @ centred.double()).eigenvectors.flip(1)[:, :dim]  # (d, dim)
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    return centred @ (axes * largest.sign()).to(centred)


def rank_scores(features: Sequence[Tensor] | Tensor, pairs: Tensor, likeness: Likeness) -> Tensor:
    """How alike the paired columns of each clip are, mean over pairs.

    Args:
        features: of each column, ``(N, d)``; paired ones of equal ``d``. Or one tensor ``(D, N, d)``.
        pairs: int64 ``(P, 2)``.
        likeness: ``"inner_product"``, ``"cosine_similarity"``, ``"euclidean_diff_l1"`` (minus the summed absolute
            differences) or ``"euclidean_diff_l2"`` (minus the *squared* distance, as released).

    Returns:
        ``(N,)``; larger is more alike.

    Raises:
        ValueError: for an unknown likeness, or paired columns of different shapes.
    """
    if likeness not in LIKENESSES:
        raise ValueError(f"unknown likeness {likeness!r}; use one of {LIKENESSES}")
    scores = []
    for first, second in pairs.tolist():
        a, b = features[first], features[second]
        if a.ndim != 2 or a.shape != b.shape:
            raise ValueError(
                f"columns {first} and {second} have shapes {tuple(a.shape)} and {tuple(b.shape)}; project both to one "
                "dimension first, see principal_components()"
            )
        scores.append(_likeness(a, b, likeness))
    return torch.stack(scores).mean(dim=0)


def whole_share(count: int, share: float) -> int:
    """How many of ``count`` a share in [0, 1] is, rounded down, as released; 0.29 of 100 are 29, not 28."""
    return math.floor(count * share + 1e-9)


def top_share(scores: Tensor, share: float = 0.5) -> Tensor:
    """Clips with the best scores, int64, best first; the earlier clip first among equal ones.

    Args:
        scores: ``(N,)``.
        share: how many to keep, rounded down to a whole number; half in the paper.

    Raises:
        ValueError: for a share outside [0, 1] or scores that are not ``(N,)``.
    """
    if scores.ndim != 1 or not 0 <= share <= 1:
        raise ValueError(f"expected scores (N,) and a share in [0, 1], got {tuple(scores.shape)} and {share}")
    return scores.argsort(descending=True, stable=True)[: whole_share(len(scores), share)]


def precision_curve(ids: Tensor, is_positive: Tensor) -> Tensor:
    """Share of positives among the first ``1, 2, .., M`` of the selected clips, float64 ``(M,)``.

    Args:
        ids: the selected clips in order, int64 ``(M,)``, each once.
        is_positive: which clips of the pool are, bool ``(N,)``.

    Raises:
        ValueError: for a selection that is empty or repeats a clip, or a mask that is not bool.
    """
    if is_positive.dtype != torch.bool or is_positive.ndim != 1:
        raise ValueError(f"is_positive must be bool (N,), got {tuple(is_positive.shape)} {is_positive.dtype}")
    if not len(ids) or len(torch.unique(ids)) < len(ids):
        raise ValueError(f"a selection must name at least one clip and each once, got {ids.tolist()[:20]}")
    hits = is_positive[ids].double().cumsum(dim=0)
    return hits / torch.arange(1, len(ids) + 1, dtype=torch.float64)


def precision(ids: Tensor, is_positive: Tensor) -> float:
    """Share of positives among the selected clips; see :func:`precision_curve`."""
    return precision_curve(ids, is_positive)[-1].item()


def _likeness(a: Tensor, b: Tensor, likeness: Likeness) -> Tensor:
    if likeness == "inner_product":
        return (a * b).sum(dim=1)
    if likeness == "cosine_similarity":
        return F.cosine_similarity(a, b, dim=1)
    if likeness == "euclidean_diff_l1":
        return -(a - b).abs().sum(dim=1)
    return -(a - b).square().sum(dim=1)
