"""Mutual information of contingency tables, in nats: the plug-in estimate of ACAV100M, and its corrections for chance.

The paper (https://arxiv.org/abs/2101.10803, eq. 4.2) and its release use the plug-in estimate as it is. Two things to
know: it never exceeds the smaller of the two entropies, so that it rewards balanced clusters as well as agreement; and
for independent labels it is not 0 but about ``(C - 1)^2 / 2n``, so that values of different ``n`` or ``C`` must not be
compared (:func:`independence_bias`, :func:`miller_madow_information`, :func:`adjusted_mutual_information`).

The release also carries a normalised variant that is twice the usual one, and an "adjusted" one that puts the observed
counts where the expectation over all counts belongs. The functions here are the usual ones.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import gammaln
from torch import Tensor

Mean = Literal["arithmetic", "max", "min"]
MEANS = ("arithmetic", "max", "min")


def mutual_information(table: Tensor) -> Tensor:
    """Mutual information of two clusterings (eq. 4.2), with ``0 log 0 = 0``.

    Args:
        table: counts, ``(..., C_a, C_b)``, not negative.

    Returns:
        float64 ``(...)`` in nats, at least 0 and at most either entropy; 0 for an empty table.

    Raises:
        ValueError: for fewer than two dimensions or negative counts.
    """
    counts = _as_counts(table, 2)
    total = counts.sum(dim=(-2, -1))
    joint = _sum_x_log_x(counts.flatten(-2))
    separate = _sum_x_log_x(counts.sum(dim=-1)) + _sum_x_log_x(counts.sum(dim=-2))
    some = total.clamp(min=1)
    return ((joint - separate) / some + some.log()).clamp(min=0)  # rounding may leave -1e-16


def entropy(sizes: Tensor) -> Tensor:
    """Entropy of cluster sizes ``(..., C)``: float64 ``(...)`` in nats, at most ``log C``; 0 for an empty set.

    Raises:
        ValueError: for a scalar or negative sizes.
    """
    counts = _as_counts(sizes, 1)
    some = counts.sum(dim=-1).clamp(min=1)
    return (some.log() - _sum_x_log_x(counts) / some).clamp(min=0)


def normalised_mutual_information(table: Tensor, *, mean: Mean = "arithmetic") -> Tensor:
    """Mutual information as a share of a mean of both entropies, in [0, 1].

    Args:
        table: counts, ``(..., C_a, C_b)``.
        mean: ``"arithmetic"``, ``"max"`` or ``"min"`` of the two entropies.

    Returns:
        float64 ``(...)``; 0 where the mean is 0, as of a single clip: there is nothing to share.

    Raises:
        ValueError: as :func:`mutual_information`, or for an unknown mean.
    """
    ceiling = _mean_entropy(table, mean)
    return _ratio(mutual_information(table), ceiling)


def adjusted_mutual_information(table: Tensor, *, mean: Mean = "arithmetic") -> Tensor:
    """Mutual information above what shuffled labels of the same cluster sizes give (Vinh et al., 2010).

    ``(MI - E[MI]) / (mean of the entropies - E[MI])``: about 0 for independent labels whatever ``n`` and ``C``, 1 for
    equal partitions.

    Args:
        table: counts of one pair, integers ``(C_a, C_b)``.
        mean: of the two entropies.

    Returns:
        A float64 scalar; 0 where the denominator is 0.

    Raises:
        ValueError: as :func:`mutual_information` and :func:`expected_mutual_information`.
    """
    expected = expected_mutual_information(table)
    return _ratio(mutual_information(table) - expected, _mean_entropy(table, mean) - expected)


def expected_mutual_information(table: Tensor) -> Tensor:
    """Mean mutual information over all relabellings that keep both lists of cluster sizes (hypergeometric model).

    Every count that a cell *could* have is weighted with its probability. Cost: ``sum_ij min(a_i, b_j)``.

    Args:
        table: counts of one pair, integers ``(C_a, C_b)``; only its margins are used.

    Returns:
        A float64 scalar in nats; 0 for an empty table.

    Raises:
        ValueError: unless the table has two dimensions and non-negative entries.
    """
    if table.ndim != 2:
        raise ValueError(f"expected one table (C_a, C_b), got {tuple(table.shape)}")
    counts = _as_counts(table, 2)
    rows, columns = counts.sum(dim=1), counts.sum(dim=0)
    n = int(rows.sum())
    expected = 0.0
    for a, repeats_a in _distinct(rows):
        for b, repeats_b in _distinct(columns):
            k = np.arange(max(1, a + b - n), min(a, b) + 1)
            log_p = _log_choose(a, k) + _log_choose(n - a, b - k) - _log_choose(n, b)
            terms = np.exp(log_p) * k / n * (np.log(k) + np.log(n) - np.log(a) - np.log(b))
            expected += repeats_a * repeats_b * float(terms.sum())
    return torch.tensor(max(expected, 0.0), dtype=torch.float64)


def independence_bias(rows: int, columns: int, clips: int) -> float:
    """What the plug-in estimate shows for independent labels, to first order: ``(C_a - 1)(C_b - 1) / 2n`` nats.

    Raises:
        ValueError: for numbers below 1.
    """
    if min(rows, columns, clips) < 1:
        raise ValueError(f"need at least one row, column and clip, got {rows}, {columns} and {clips}")
    return (rows - 1) * (columns - 1) / (2 * clips)


def miller_madow_information(table: Tensor) -> Tensor:
    """Mutual information with the first-order bias of each entropy removed (Miller, 1955).

    Only clusters and cells that occur are counted, so that the correction is milder than
    :func:`independence_bias`; the result may be negative.

    Args:
        table: counts, ``(..., C_a, C_b)``.

    Returns:
        float64 ``(...)`` in nats; 0 for an empty table.

    Raises:
        ValueError: as :func:`mutual_information`.
    """
    counts = _as_counts(table, 2)
    total = counts.sum(dim=(-2, -1))
    rows = (counts.sum(dim=-1) > 0).sum(dim=-1)
    columns = (counts.sum(dim=-2) > 0).sum(dim=-1)
    cells = (counts > 0).sum(dim=(-2, -1))
    correction = (rows + columns - cells - 1) / (2 * total.clamp(min=1))
    return torch.where(total > 0, mutual_information(table) + correction, 0)


def _as_counts(table: Tensor, dimensions: int) -> Tensor:
    if table.ndim < dimensions:
        raise ValueError(f"expected counts with at least {dimensions} dimension(s), got {tuple(table.shape)}")
    if table.numel() and not bool((table >= 0).all()):
        raise ValueError(f"counts must not be negative, got {table.min().item()}; pass counts, not logits")
    return table.double()


def _sum_x_log_x(x: Tensor) -> Tensor:
    return torch.special.xlogy(x, x).sum(dim=-1)


def _mean_entropy(table: Tensor, mean: Mean) -> Tensor:
    first, second = entropy(table.sum(dim=-1)), entropy(table.sum(dim=-2))
    if mean == "arithmetic":
        return (first + second) / 2
    if mean == "max":
        return torch.maximum(first, second)
    if mean == "min":
        return torch.minimum(first, second)
    raise ValueError(f"unknown mean {mean!r}; use one of {MEANS}")


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    # A denominator of rounding errors (one clip: E[MI] equals the entropy) would give anything.
    some = whole > 1e-12
    return torch.where(some, part / torch.where(some, whole, 1), 0)


def _distinct(sizes: Tensor) -> list[tuple[int, int]]:
    """Positive cluster sizes, each with the number of its clusters."""
    values, repeats = torch.unique(sizes[sizes > 0].long(), return_counts=True)
    return list(zip(values.tolist(), repeats.tolist(), strict=True))


def _log_choose(n: int, k: npt.NDArray[np.int64] | int) -> npt.NDArray[np.float64]:
    return gammaln(n + 1) - gammaln(np.asarray(k) + 1) - gammaln(n - np.asarray(k) + 1)
