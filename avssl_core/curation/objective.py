"""The set function that curation maximises: the mean mutual information of pairs of clusterings of the chosen clips.

ACAV100M (https://arxiv.org/abs/2101.10803, eqs. 4.2-4.3). With ``phi(m) = m log m`` and counts inside the set ``X`` of
``n`` clips,

    n (MI - log n) = sum_ab phi(n_ab) - sum_a phi(n_a) - sum_b phi(n_b),

so that a further clip changes one term of each sum: by ``phi(m + 1) - phi(m)``, called a *step* here. Scoring a
candidate is a sum of ``D + P`` steps looked up in a table (``D`` layers, ``P`` pairs), adding it ``D + P`` increments.

**Ties are ties.** Early in a selection most candidates are equally good, and in floating point the order of summation
decides. Steps are therefore rounded to multiples of 2^-40 nats, which float64 adds exactly (with weights of 1, or other
small integers, up to 8192 nats in all): equal candidates have equal scores on every machine, in every chunking, after
any history. The rounding moves no value by more than 2^-39 nats. Fractional weights round as usual.

The function is neither monotone nor submodular: no guarantee of greedy maximisation applies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avssl_core.curation.contingency import ROW_CHUNK, Cells, ContingencyTables, Integers, check_pairs, cluster_counts

GRID = 2.0**-40  # nats

Floats = npt.NDArray[np.float64]
_Number = TypeVar("_Number", float, npt.NDArray[np.float64])

_FIRST_TABLE = 1 << 12
_LARGEST_TABLE = 1 << 22  # 32 MiB; steps of larger counts are computed


class PairwiseInformation:
    """``F(X)``: mean over pairs of weight times mutual information, for any set ``X`` of clips (eq. 4.3).

    Args:
        labels: cluster of every clip of the pool in every clustering, integers ``(N, D)`` of any width. A tensor over a
            memory-mapped file stays there: only the rows that are asked for are read. Work is done on the CPU.
        pairs: columns to compare, int64 ``(P, 2)``; see :func:`~avssl_core.curation.pairings.pairing`.
        weights: of the pairs, ``(P,)``, not negative. As released, the sum is divided by ``P``, not by their sum.
        clusters: number of clusters of each column; the largest label plus one if None. State it where the counts of
            shards of one pool shall be merged.

    Raises:
        ValueError: for labels, pairs or weights of the wrong shape or range.
    """

    def __init__(
        self,
        labels: Tensor,
        pairs: Tensor,
        *,
        weights: Tensor | None = None,
        clusters: Sequence[int] | None = None,
    ) -> None:
        self.clusters = cluster_counts(labels, clusters)
        check_pairs(pairs, len(self.clusters))
        self.labels: Integers = labels.cpu().numpy()
        self.pairs = pairs
        self.weights: Floats = _as_weights(weights, len(pairs))
        both = pairs.cpu().numpy()
        layers = np.zeros(len(self.clusters))
        np.add.at(layers, both.ravel(), np.repeat(self.weights, 2))
        self.coefficients: Floats = np.concatenate([-layers, self.weights])  # (D + P,), in the order of the cells

    def __len__(self) -> int:
        return len(self.labels)

    def __call__(self, ids: Tensor) -> float:
        """``F`` of the clips ``ids``, int64 ``(n,)``, in nats; 0 for fewer than two clips."""
        return self.running(ids).value

    def pair_values(self, ids: Tensor) -> Tensor:
        """Mutual information of each pair among the clips ``ids``, unweighted, float64 ``(P,)`` in nats."""
        return self.running(ids).pair_values()

    def running(self, ids: Tensor | None = None) -> RunningInformation:
        """The function at the set ``ids`` (empty if None), ready to grow.

        Raises:
            ValueError: for ids outside the pool.
        """
        return RunningInformation(self, ids)

    def rows(self, ids: Tensor) -> Integers:
        """Labels of the clips ``ids``, ``(len(ids), D)``.

        Raises:
            ValueError: unless ids are integers ``(B,)`` of clips of the pool.
        """
        if ids.ndim != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(f"ids must be integers (B,), got {tuple(ids.shape)} {ids.dtype}; use nonzero() on a mask")
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= len(self)):
            raise ValueError(f"ids run from {int(ids.min())} to {int(ids.max())}, the pool has {len(self)} clips")
        return self.labels[ids.cpu().numpy()]


class RunningInformation:
    """``F`` at a set of clips that grows; made by :meth:`PairwiseInformation.running`.

    The clips themselves are not remembered, and one that is added twice counts twice: who selects keeps the list.

    Attributes:
        objective: the function.
        tables: the counts of the set.
    """

    def __init__(self, objective: PairwiseInformation, ids: Tensor | None = None) -> None:
        self.objective = objective
        self.tables = ContingencyTables(objective.clusters, objective.pairs)
        self._steps = StepTable()
        self._sum = 0.0  # sum over cells of coefficient * phi(count)
        self._layers = len(objective.clusters)
        self._weight = float(objective.weights.sum())
        if ids is not None:
            self.add(ids)

    @property
    def size(self) -> int:
        """Number of clips in the set."""
        return self.tables.total

    @property
    def value(self) -> float:
        """``F`` of the set, in nats."""
        return self._value_at(0.0, self.size)

    def scores(self, ids: Tensor) -> Tensor:
        """``F`` of the set with one further clip, for each of ``ids``, int64 ``(B,)``: float64 ``(B,)`` in nats."""
        return self.values_with(self.increments(ids))

    def increments(self, ids: Tensor) -> Floats:
        """What each candidate would add to the sum over cells, ``(B,)``: the same order as :meth:`scores`.

        Processed in chunks, so that memory does not grow with ``B`` beyond the result.
        """
        found = np.empty(len(ids))
        for begin in range(0, len(ids), ROW_CHUNK):
            rows = slice(begin, begin + ROW_CHUNK)
            found[rows] = self._increments_of(self.objective.rows(ids[rows]))
        return found

    def add(self, ids: Tensor) -> None:
        """Add clips, int64 ``(B,)``; only the cells that they touch are read or written while they are few.

        Raises:
            ValueError: for ids outside the pool.
        """
        for begin in range(0, len(ids), ROW_CHUNK):
            labels = self.objective.rows(ids[begin : begin + ROW_CHUNK])
            few = len(labels) * len(self.tables.offsets) < len(self.tables.counts)
            touched = np.unique(self.tables.cells(labels)) if few else None
            before = self._sum_over(touched)
            self.tables.add(labels)
            self._sum += self._sum_over(touched) - before

    def add_one(self, clip: int) -> Floats:
        """Add one clip, and say how the increments of others change.

        Args:
            clip: of the pool; not checked, as this is the inside of a loop.

        Returns:
            ``E``, float64 ``(D, D)``: with ``m`` the 0/1 vector of layers whose cluster a candidate shares with the
            clip, its increment changes by ``m' E m``.
        """
        tables, layers = self.tables, self._layers
        cells = tables.cells(self.objective.labels[clip][None])[:, 0]
        before = self._steps(tables.counts[cells])
        self._sum += float(self.objective.coefficients @ before)
        tables.counts[cells] += 1
        tables.total += 1
        change = self.objective.coefficients * (self._steps(tables.counts[cells]) - before)
        shared = np.zeros((layers, layers))
        shared[np.arange(layers), np.arange(layers)] = change[:layers]
        shared[tables.pairs[:, 0], tables.pairs[:, 1]] = change[layers:]
        return shared

    def value_with(self, increment: float) -> float:
        """``F`` of the set with one further clip of this increment, in nats."""
        return self._value_at(increment, self.size + 1)

    def values_with(self, increments: Floats) -> Tensor:
        """``F`` of the set with one further clip of each of these increments, in nats."""
        return torch.from_numpy(self._value_at(increments, self.size + 1))

    def pair_values(self) -> Tensor:
        """Mutual information of each pair in the set, unweighted, float64 ``(P,)`` in nats."""
        terms = self._phi_of_parts()
        first, second = self.tables.pairs.T
        n = max(self.size, 1)
        joint = terms[self._layers :] - terms[first] - terms[second]
        return torch.from_numpy(np.maximum(joint / n + np.log(n), 0.0))

    def _value_at(self, increment: _Number, n: int) -> _Number:
        if n < 2:
            return increment * 0.0
        return ((self._sum + increment) / n + self._weight * math.log(n)) / len(self.objective.weights)

    def _increments_of(self, labels: Integers) -> Floats:
        steps = self._steps(self.tables.counts[self.tables.cells(labels)])  # (D + P, B)
        return self.objective.coefficients @ steps

    def _sum_over(self, cells: Cells | None) -> float:
        """Sum of coefficient * phi(count) over distinct cells; over all of them for None."""
        if cells is None:
            return float(self.objective.coefficients @ self._phi_of_parts())
        part = np.searchsorted(self.tables.offsets, cells, side="right") - 1
        return float((self.objective.coefficients[part] * _phi(self.tables.counts[cells])).sum())

    def _phi_of_parts(self) -> Floats:
        """Sum of phi over each list of sizes and each table, ``(D + P,)``."""
        ends = np.append(self.tables.offsets[1:], len(self.tables.counts))
        pieces = zip(self.tables.offsets.tolist(), ends.tolist(), strict=True)
        return np.array([_phi(self.tables.counts[begin:end]).sum() for begin, end in pieces])


class StepTable:
    """``phi(m + 1) - phi(m)`` on the grid, looked up for counts ``m``; the table doubles when larger counts appear."""

    def __init__(self) -> None:
        self._table = _steps_on_grid(np.arange(_FIRST_TABLE))

    def __call__(self, counts: npt.NDArray[np.int32]) -> Floats:
        """Steps of integer counts of any shape, float64 of the same shape."""
        largest = int(counts.max(initial=0))
        if largest >= len(self._table) and len(self._table) < _LARGEST_TABLE:
            size = min(_LARGEST_TABLE, 1 << (largest + 1).bit_length())
            self._table = _steps_on_grid(np.arange(size))
        if largest < len(self._table):
            return self._table.take(counts)
        steps = self._table.take(np.minimum(counts, len(self._table) - 1))
        beyond = counts >= len(self._table)
        steps[beyond] = _steps_on_grid(counts[beyond])
        return steps


def _steps_on_grid(counts: npt.NDArray[np.integer]) -> Floats:
    m = counts.astype(np.float64)
    # The difference of two values of phi would lose all digits for large m.
    steps = np.log(m + 1) + m * np.log1p(1 / np.maximum(m, 1))
    return np.rint(np.where(m > 0, steps, 0) / GRID) * GRID


def _phi(counts: npt.NDArray[np.integer]) -> Floats:
    m = counts.astype(np.float64)
    return m * np.log(np.maximum(m, 1))


def _as_weights(weights: Tensor | None, pairs: int) -> Floats:
    if weights is None:
        return np.ones(pairs)
    if weights.shape != (pairs,) or not bool((weights >= 0).all()) or not bool(weights.isfinite().all()):
        raise ValueError(f"weights must be {pairs} finite, non-negative numbers, one a pair, got {weights.tolist()}")
    return weights.double().cpu().numpy()
