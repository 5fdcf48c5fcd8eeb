"""The area of a mask as a constraint that optimisation cannot bargain with (section 3.1, eqs. 2 to 4).

A mask of area ``a`` sorted by value should be ``(1 - a) n`` zeros followed by ``a n`` ones. The squared distance to
that vector drives masks to the right area and to binary values at once. The paper prints a sum of squares, the release
takes the mean; and it measures on the canvas with its margin, so that the visible share is larger (1.35 times at 224
pixels).

No sort is needed: only which values belong to the larger part matters, and that takes the value at the border alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Reduction = Literal["mean", "sum"]


def reference_zeros(pixels: int, area: float) -> int:
    """Zeros of the reference vector, ``int(n (1 - a))`` as in the release."""
    return int(pixels * (1 - area))


def ones_of_areas(pixels: int, areas: Sequence[float]) -> list[int]:
    """Ones of the reference vector for each area.

    Raises:
        ValueError: for areas outside [0, 1].
    """
    if any(not 0 <= area <= 1 for area in areas):
        raise ValueError(
            f"areas are shares in [0, 1], got {list(areas)}; for numbers of channels use count_regulariser"
        )
    return [pixels - reference_zeros(pixels, area) for area in areas]


def area_regulariser(masks: Tensor, areas: Sequence[float], *, reduction: Reduction = "mean") -> Tensor:
    """Squared distance of sorted masks to zeros followed by ones (``R_a`` of eq. 4).

    Args:
        masks: ``(N, ...)``.
        areas: one for each mask, in [0, 1].
        reduction: over the pixels of a mask: ``"mean"`` as released, ``"sum"`` as printed.

    Returns:
        ``(N,)``, differentiable; see :class:`CountRegulariser` for equal values.

    Raises:
        ValueError: for areas outside [0, 1], another number of areas than masks, or an unknown reduction.
    """
    return count_regulariser(masks, ones_of_areas(masks[:1].numel(), areas), reduction=reduction)


def count_regulariser(masks: Tensor, counts: Sequence[int], *, reduction: Reduction = "sum") -> Tensor:
    """As :func:`area_regulariser` with the number of ones given, e.g. the channels to keep (eq. 9, a sum).

    Args:
        masks: ``(N, ...)``.
        counts: ones of each mask, from 0 to its number of elements.
        reduction: ``"sum"`` or ``"mean"``.

    Raises:
        ValueError: for counts out of range or of another number, or an unknown reduction.
    """
    return CountRegulariser(counts, reduction=reduction).to(masks.device)(masks)


class CountRegulariser(nn.Module):
    """:func:`count_regulariser` for the same counts many times over; a call moves nothing between devices.

    Among equal values at the border the ones are shared out evenly, so that the gradient does not depend on an order
    that rounding decides.

    Args:
        counts: ones of each mask.
        reduction: ``"sum"`` or ``"mean"``.

    Raises:
        ValueError: for an unknown reduction.
    """

    wanted: Tensor
    rows: Tensor

    def __init__(self, counts: Sequence[int], *, reduction: Reduction = "sum") -> None:
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise ValueError(f"unknown reduction {reduction!r}; use 'mean' or 'sum'")
        self.counts, self.reduction = list(counts), reduction
        self.groups = [(n, self.counts.count(n)) for n in sorted(set(self.counts))]
        rows = sorted(range(len(self.counts)), key=self.counts.__getitem__)  # masks of one count beside each other
        self.register_buffer("rows", torch.tensor(rows, dtype=torch.long), persistent=False)
        self.register_buffer("wanted", torch.tensor(self.counts, dtype=torch.long)[:, None], persistent=False)

    def forward(self, masks: Tensor) -> Tensor:
        """``(N, ...)`` to ``(N,)``.

        Raises:
            ValueError: for another number of masks, or with fewer elements than a count.
        """
        size = masks[:1].numel()
        if len(self.counts) != len(masks) or any(not 0 <= count <= size for count in self.counts):
            raise ValueError(f"need a count in [0, {size}] for each of {len(masks)} masks, got {self.counts}")
        flat = masks.flatten(1)
        ones = self._share_of_ones(flat.detach())
        # m^2 where the reference is 0, (1 - m)^2 where it is 1; the gradient is 2 (m - ones) for shares as well.
        squares = (1 - ones) * flat.square() + ones * (1 - flat).square()
        return squares.sum(1) if self.reduction == "sum" else squares.mean(1)

    def _share_of_ones(self, flat: Tensor) -> Tensor:
        """How much of a one each element of ``(N, n)`` is compared with: 1 for the largest, shared among equal ones."""
        grouped = flat if len(self.groups) == 1 else flat[self.rows]
        borders, start = [], 0  # the largest value that is compared with 0
        for count, number in self.groups:
            own, start = grouped[start : start + number], start + number
            below_all = count == flat.shape[1]
            borders.append(own.amin(1, True) - 1 if below_all else _kth_smallest(own, flat.shape[1] - count))
        border = torch.cat(borders)
        if len(self.groups) > 1:
            border = torch.empty_like(border).index_copy(0, self.rows, border)
        above, equal = flat > border, flat == border
        left = (self.wanted - above.sum(1, keepdim=True)).to(flat.dtype)
        return above + equal * (left / equal.sum(1, keepdim=True).clamp(min=1))


def _kth_smallest(rows: Tensor, k: int) -> Tensor:
    """``(N, n)`` to ``(N, 1)``: selection is several times as fast as a sort."""
    return rows.kthvalue(k, dim=1, keepdim=True).values


def optimal_area(scores: Tensor, areas: Sequence[float], threshold: float) -> float | None:
    """Smallest area whose mask reaches the threshold (eq. 3), or ``None`` where none does.

    Args:
        scores: ``Phi(m_a (x) x)``, shape ``(A,)``.
        areas: in any order; numbers of channels work as well.
        threshold: ``Phi_0``, in the paper the score of the whole picture.

    Raises:
        ValueError: if numbers differ.
    """
    if scores.shape != (len(areas),):
        raise ValueError(f"need one score for each of {len(areas)} areas, got shape {tuple(scores.shape)}")
    reached = [area for area, score in zip(areas, scores.tolist(), strict=True) if score >= threshold]
    return min(reached, default=None)


def is_monotone(scores: Tensor, areas: Sequence[float], threshold: float) -> bool:
    """Whether larger areas never score less, among those up to the optimal one (eq. 8).

    All areas count where none reaches the threshold. The share of pictures for which this holds is the paper's 98.45 %.

    Args:
        scores: ``(A,)``.
        areas: in any order, all different.
        threshold: ``Phi_0``.
    """
    best = optimal_area(scores, areas, threshold)
    ordered = sorted(zip(areas, scores.tolist(), strict=True))
    below = [score for area, score in ordered if best is None or area <= best]
    return all(a <= b for a, b in itertools.pairwise(below))
