"""Which pairs of transformations attract, which repel, which take part; and whether a batch can teach anything.

Two samples have to be told apart if and only if a distinctive factor of their transformations differs (GDT,
https://arxiv.org/abs/2003.04298, Lemmas 4 and 5): the contrast is a product over factors. The weight says which pairs
count at all. Both are functions of integer transformation codes ``(|T|, M)``, which
:mod:`avssl_core.losses.hierarchical_sampler` provides.

The release has neither: it hard-codes the pairs of nine hypotheses (``pairwise_variants``). Here the degenerate cases,
which cost a training run when met unawares, raise and are named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from avssl_core.losses.hierarchical_sampler import KINDS, Kind

WeightMode = Literal["not_self", "cross_modal"]


def contrast_matrix(codes: Tensor, kinds: Sequence[Kind], *, others: Tensor | None = None) -> Tensor:
    """Contrast ``c(T, T')``: true where all distinctive factors agree (Lemma 5); an equivalence relation.

    Args:
        codes: int64, shape ``(B, M)``.
        kinds: kind of each factor.
        others: codes of the columns, shape ``(N, M)``, e.g. gathered from all processes; ``codes`` by default.

    Returns:
        Bool, shape ``(B, N)``. All true if no factor is distinctive.

    Raises:
        ValueError: for codes that are not integers or do not match ``kinds``.
    """
    others = codes if others is None else others
    _check_codes(codes, others)
    if len(kinds) != codes.shape[1] or any(kind not in KINDS for kind in kinds):
        raise ValueError(f"{codes.shape[1]} code columns need as many kinds out of {KINDS}, got {tuple(kinds)}")
    distinctive = [m for m, kind in enumerate(kinds) if kind == "distinctive"]
    return _agree(codes, others, distinctive)


def weight_matrix(
    codes: Tensor, mode: WeightMode, *, modality: int | None = None, others: Tensor | None = None
) -> Tensor:
    """Weight ``w(T, T')``: which pairs take part, as positives, negatives and in the denominator.

    ``"not_self"`` drops ``T = T'``; ``"cross_modal"`` keeps pairs of different modalities (which drops ``T = T'`` too).
    The paper's printed weight also asks for different videos, which would remove every positive: a misprint.

    Args:
        codes: int64, shape ``(B, M)``.
        mode: see above.
        modality: column of the modality, for ``"cross_modal"``.
        others: codes of the columns, shape ``(N, M)``; ``codes`` by default.

    Returns:
        Bool, shape ``(B, N)``.

    Raises:
        ValueError: for an unknown mode, or a cross-modal weight without its column.
    """
    others = codes if others is None else others
    _check_codes(codes, others)
    if mode == "not_self":
        return ~_agree(codes, others, range(codes.shape[1]))
    if mode != "cross_modal":
        raise ValueError(f"unknown weight mode {mode!r}; use 'not_self' or 'cross_modal'")
    if modality is None or not 0 <= modality < codes.shape[1]:
        raise ValueError(
            f"weight mode 'cross_modal' needs modality=, the column (0 .. {codes.shape[1] - 1}); got {modality}"
        )
    return codes[:, modality, None] != others[None, :, modality]


@dataclass(frozen=True)
class BatchCounts:
    """Partners of each anchor inside the support of the weight, int64 ``(B,)`` each; ``T`` itself is never counted."""

    positives: Tensor
    negatives: Tensor


def validate_batch(contrast: Tensor, weight: Tensor, *, offset: int = 0) -> BatchCounts:
    """Count positives and negatives of every anchor, and raise where the batch cannot teach anything.

    Requirements (GDT section 3.2), inside the support of ``weight``: (i) some pairs have ``c = 1``; (ii) for some of
    them ``T != T'``; (iii) every anchor that has a positive has a negative.

    Args:
        contrast: bool, ``(B, N)``; ``N = B``, or the gathered batch.
        weight: bool, ``(B, N)``.
        offset: column of the first anchor: ``rank * B`` on process ``rank``.

    Returns:
        The counts.

    Raises:
        ValueError: naming the requirement that fails and the composition that causes it.
    """
    check_matrices(contrast, weight)
    trivial = torch.zeros_like(contrast)
    trivial.diagonal(offset).fill_(True)
    positive, negative = contrast & weight, ~contrast & weight
    if not positive.any():
        raise ValueError(
            "requirement (i) fails, no pair has c = 1 and w = 1: " + _why_no_positives(contrast, weight, trivial)
        )
    nontrivial = positive & ~trivial
    if not nontrivial.any():
        raise ValueError(
            "requirement (ii) fails, the only positives are T = T': no invariant factor has two values (K_m >= 2); "
            "add a second augmentation, start time or modality"
        )
    counts = BatchCounts(nontrivial.sum(dim=1), negative.sum(dim=1))
    starved = (counts.positives > 0) & (counts.negatives == 0)
    if starved.any():
        raise ValueError(
            f"requirement (iii) fails, {int(starved.sum())} of {len(starved)} anchors (first: "
            f"{int(starved.nonzero()[0])}) have positives but no negatives, so that a constant embedding is optimal "
            "(collapse): either all factors are invariant, or no distinctive factor has two values (K_m >= 2); add "
            "videos to the batch"
        )
    return counts


def check_matrices(contrast: Tensor, weight: Tensor) -> None:
    """Raise ``ValueError`` unless both are bool matrices of the same shape."""
    if contrast.ndim != 2 or contrast.shape != weight.shape or not contrast.dtype == weight.dtype == torch.bool:
        raise ValueError(
            f"contrast and weight must be bool (B, N), got {tuple(contrast.shape)} {contrast.dtype} and "
            f"{tuple(weight.shape)} {weight.dtype}"
        )


def _why_no_positives(contrast: Tensor, weight: Tensor, trivial: Tensor) -> str:
    if not weight.any():
        return (
            "the weight keeps no pair at all; with a cross-modal weight both modalities must be in the batch (K_m = 2)"
        )
    if not (contrast & ~trivial).any():
        return (
            "no two transformations agree in all distinctive factors, because no invariant factor has two values "
            "(K_m >= 2), and the weight drops T = T'; the loss would be an empty sum without gradient"
        )
    return (
        "the weight removes every positive; is the modality declared distinctive beside a cross-modal weight, or "
        "does the weight also ask for different videos (the misprint in the paper)?"
    )


def _agree(codes: Tensor, others: Tensor, columns: Sequence[int]) -> Tensor:
    """Whether all named columns are equal, one ``(B, N)`` pass a column instead of a ``(B, N, M)`` tensor."""
    same = torch.ones(len(codes), len(others), dtype=torch.bool, device=codes.device)
    for m in columns:
        same &= codes[:, m, None] == others[None, :, m]
    return same


def _check_codes(codes: Tensor, others: Tensor) -> None:
    if codes.ndim != 2 or others.ndim != 2 or codes.shape[1] != others.shape[1] or codes.is_floating_point():
        raise ValueError(
            f"codes must be integer tensors (B, M) and (N, M), got {tuple(codes.shape)} {codes.dtype} and "
            f"{tuple(others.shape)}"
        )
