"""How often two clusterings put a clip into the same pair of clusters: integer counts, added to clip by clip.

ACAV100M (https://arxiv.org/abs/2101.10803) clusters every layer of frozen networks once, over the whole pool. Which
clips are selected then changes nothing but counts: one table for every pair of layers, one row sum for every layer. A
clip lies in one cell of each, so that adding it increments ``D + P`` integers (``D`` layers, ``P`` pairs), whatever the
number of clusters or of clips.

The release starts its float32 tables at 2.2e-16 instead of 0, to be safe from ``log 0``, and adds floats; here counts
are integers, and ``0 log 0 = 0`` is left to whoever takes the logarithm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ROW_CHUNK = 1 << 16  # clips whose cells are held at once

Cells = npt.NDArray[np.intp]
Integers = npt.NDArray[np.integer]

_MOST_CLIPS = 2**31 - 1  # of an int32 count


def contingency_table(a: Tensor, b: Tensor, *, rows: int | None = None, columns: int | None = None) -> Tensor:
    """Count the items of every pair of clusters.

    Args:
        a: cluster of each item, integers ``(N,)`` in ``[0, rows)``.
        b: cluster of each item in another clustering, ``(N,)`` in ``[0, columns)``.
        rows: number of clusters of ``a``; the largest label plus one if None.
        columns: the same of ``b``.

    Returns:
        int64 ``(rows, columns)``, with sum ``N``.

    Raises:
        ValueError: for shapes that differ, labels that are not integers, or labels outside the stated range.
    """
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"expected two clusterings (N,) of the same items, got {tuple(a.shape)} and {tuple(b.shape)}")
    sizes = []
    for name, labels, size in (("a", a, rows), ("b", b, columns)):
        (found,) = cluster_counts(labels[:, None], None if size is None else [size], name=name)
        sizes.append(found)
    cells = a.long() * sizes[1] + b.long()
    return torch.bincount(cells, minlength=sizes[0] * sizes[1]).view(sizes[0], sizes[1])


def cluster_counts(labels: Tensor, clusters: Sequence[int] | None = None, *, name: str = "labels") -> tuple[int, ...]:
    """Check cluster labels and say how many clusters each clustering has.

    Args:
        labels: cluster of each clip in each clustering, integers ``(N, D)``.
        clusters: the number of clusters a column; the largest label plus one if None.
        name: of the argument, for messages.

    Returns:
        ``D`` numbers, each at least 1.

    Raises:
        ValueError: for a shape other than ``(N, D)``, labels that are not integers, negative or beyond ``clusters``.
    """
    if labels.ndim != 2:
        raise ValueError(f"{name} must be (N, D): a row a clip, a column a clustering; got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, got {labels.dtype}; pass the assignment, not the distances")
    if clusters is not None and (len(clusters) != labels.shape[1] or min(clusters, default=1) < 1):
        raise ValueError(
            f"clusters must state a positive number for each of the {labels.shape[1]} columns of {name}, got "
            f"{tuple(clusters)}"
        )
    if not len(labels):
        return tuple(clusters) if clusters is not None else (1,) * labels.shape[1]
    array = labels.cpu().numpy()  # torch has no minimum of some unsigned types
    low, high = array.min(axis=0).tolist(), array.max(axis=0).tolist()
    if min(low, default=0) < 0:
        raise ValueError(
            f"{name} must not be negative, got {min(low)} in column {low.index(min(low))}; leave out clips that were "
            "not clustered"
        )
    if clusters is None:
        return tuple(top + 1 for top in high)
    for column, (top, size) in enumerate(zip(high, clusters, strict=True)):
        if top >= size:
            raise ValueError(f"{name} holds cluster {top} in column {column}, which was said to have {size} clusters")
    return tuple(clusters)


class ContingencyTables:
    """Counts of a growing set of clips: the sizes of all clusters, and the table of every pair of clusterings.

    All counts lie in one flat array: first the ``D`` lists of cluster sizes, then the ``P`` tables, row by row. What a
    clip touches is therefore ``D + P`` positions, and one gather or scatter serves all tables. The memory is ``4 *
    (sum C_d + sum C_p C_q)`` bytes: 180 MB for 45 pairs of 1000 clusters.

    Args:
        clusters: number of clusters of each clustering, ``D`` integers.
        pairs: columns that are compared, int64 ``(P, 2)``.

    Attributes:
        clusters: as given.
        pairs: as given, an array.
        counts: int32, flat; see above.
        offsets: where each of the ``D + P`` parts begins in ``counts``.
        total: number of clips counted.

    Raises:
        ValueError: for pairs that are not ``(P, 2)`` different columns, or repeat each other.
    """

    def __init__(self, clusters: Sequence[int], pairs: Tensor) -> None:
        check_pairs(pairs, len(clusters))
        self.clusters = tuple(clusters)
        self.pairs: npt.NDArray[np.int64] = pairs.cpu().numpy().astype(np.int64)
        sizes = np.asarray(self.clusters, dtype=np.int64)
        self._strides = sizes[self.pairs[:, 1]]
        lengths = np.concatenate([sizes, sizes[self.pairs[:, 0]] * self._strides])
        self.offsets: Cells = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.intp)
        self.counts: npt.NDArray[np.int32] = np.zeros(int(lengths.sum()), dtype=np.int32)
        self.total = 0

    def cells(self, labels: Integers) -> Cells:
        """Positions in ``counts`` that clips touch: labels ``(B, D)`` to ``(D + P, B)``."""
        by_layer = np.ascontiguousarray(labels.T, dtype=np.intp)  # (D, B)
        layers = len(by_layer)
        found = np.empty((layers + len(self.pairs), by_layer.shape[1]), dtype=np.intp)
        np.add(by_layer, self.offsets[:layers, None], out=found[:layers])
        np.multiply(by_layer[self.pairs[:, 0]], self._strides[:, None], out=found[layers:])
        found[layers:] += by_layer[self.pairs[:, 1]] + self.offsets[layers:, None]
        return found

    def add(self, labels: Integers) -> None:
        """Count the clips with these labels, ``(B, D)``, in chunks of :data:`ROW_CHUNK`.

        Raises:
            OverflowError: beyond 2^31 - 1 clips; count shards apart then.
        """
        self._count(len(labels))
        for begin in range(0, len(labels), ROW_CHUNK):
            np.add.at(self.counts, self.cells(labels[begin : begin + ROW_CHUNK]).ravel(), 1)

    def merge(self, other: ContingencyTables) -> None:
        """Add the counts of other clips, as if they had been counted here: shards may be counted apart.

        Raises:
            ValueError: if the other tables compare other clusterings.
        """
        if self.clusters != other.clusters or not np.array_equal(self.pairs, other.pairs):
            raise ValueError(
                f"cannot merge tables of {len(other.pairs)} pairs over clusters {other.clusters} into tables of "
                f"{len(self.pairs)} pairs over clusters {self.clusters}; count both with the same clusters and pairs"
            )
        self._count(other.total)
        self.counts += other.counts

    def table(self, pair: int) -> Tensor:
        """Counts of one pair of clusterings, int64 ``(C_a, C_b)``: a copy."""
        first, second = self.pairs[pair].tolist()
        shape = (self.clusters[first], self.clusters[second])
        begin = self.offsets[len(self.clusters) + pair]
        flat = self.counts[begin : begin + shape[0] * shape[1]].astype(np.int64)
        return torch.from_numpy(flat.reshape(shape))

    def sizes(self, column: int) -> Tensor:
        """Cluster sizes of one clustering, int64 ``(C,)``: a copy."""
        begin = self.offsets[column]
        return torch.from_numpy(self.counts[begin : begin + self.clusters[column]].astype(np.int64))

    def _count(self, more: int) -> None:
        if self.total + more > _MOST_CLIPS:
            raise OverflowError(f"{self.total} + {more} clips do not fit 32-bit counts; count shards apart")
        self.total += more


def check_pairs(pairs: Tensor, columns: int) -> None:
    """Raise ``ValueError`` unless ``pairs`` are different unordered pairs of different columns, integers ``(P, 2)``."""
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs) or pairs.is_floating_point():
        raise ValueError(
            f"pairs must be integers (P, 2) with P >= 1, got {tuple(pairs.shape)} {pairs.dtype}; see pairing()"
        )
    if int(pairs.min()) < 0 or int(pairs.max()) >= columns:
        raise ValueError(
            f"pairs name columns {int(pairs.min())} to {int(pairs.max())}, but there are {columns} of them"
        )
    as_sets = [frozenset(pair) for pair in pairs.tolist()]
    if any(len(pair) == 1 for pair in as_sets):
        raise ValueError(f"a clustering cannot be paired with itself (that is its entropy), got {pairs.tolist()}")
    if len(set(as_sets)) < len(as_sets):
        raise ValueError(f"every pair of columns may stand in pairs once, got {pairs.tolist()}; use weights instead")
