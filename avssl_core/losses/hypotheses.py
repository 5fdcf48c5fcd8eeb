"""The thirteen settings of GDT's Table 1, as data: what each declares invariant or distinctive, and what the paper
measured.

One definition for the sampler, for eq. (1), for the released pairwise loss and for the chapter's table. The release
knows the nine audio-visual ones under other numbers (``release_id``); the four within-modal ones (a)-(d) are not in its
code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from avssl_core.losses.compositions import WeightMode, contrast_matrix, weight_matrix
from avssl_core.losses.hierarchical_sampler import Factor, Kind, Space, path_codes

Treatment = Literal["single", "invariant", "distinctive"]

FACTOR_NAMES = ("video", "time_shift", "modality", "reversal", "augmentation")
_SYMBOLS = ("i", "τ", "m", "r", "g")
_MODALITY = FACTOR_NAMES.index("modality")


@dataclass(frozen=True)
class Hypothesis:
    """One row of Table 1. A transformation is ``T = (i, τ, m, r, g)``: video, clip start, modality, direction,
    augmentation.

    Videos are always distinctive, modality and augmentation always invariant.

    Attributes:
        row: letter in the paper's table.
        time_shift: ``"single"`` (the table's "·": one value a video, not contrasted), ``"invariant"`` or
            ``"distinctive"``.
        time_reversal: the same for the playback direction; ``"single"`` is forward.
        cross_modal: whether sound takes part; else two augmentations of the frames are contrasted.
        release_id: number in the released code, or ``None``.
        hmdb_accuracy: the paper's fine-tuning accuracy on HMDB-51 split 1, per cent (one run).
        hmdb_recall: the paper's R@1 of frozen features, per cent (one run).
    """

    row: str
    time_shift: Treatment
    time_reversal: Treatment
    cross_modal: bool
    release_id: int | None
    hmdb_accuracy: float
    hmdb_recall: float

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kind of each of the five factors; a single value is invariant."""
        shift: Kind = "distinctive" if self.time_shift == "distinctive" else "invariant"
        reversal: Kind = "distinctive" if self.time_reversal == "distinctive" else "invariant"
        return ("distinctive", shift, "invariant", reversal, "invariant")

    @property
    def branches(self) -> tuple[int, int, int, int]:
        """``(K_τ, K_m, K_r, K_g)``."""
        shifts = 1 if self.time_shift == "single" else 2
        directions = 1 if self.time_reversal == "single" else 2
        return (shifts, 2, directions, 1) if self.cross_modal else (shifts, 1, directions, 2)

    @property
    def weight_mode(self) -> WeightMode:
        """Which pairs take part."""
        return "cross_modal" if self.cross_modal else "not_self"

    @property
    def modality(self) -> int | None:
        """Column of the modality in the codes where the weight needs it."""
        return _MODALITY if self.cross_modal else None

    @property
    def contrast_rule(self) -> str:
        """``c(T, T')`` in symbols, e.g. ``"δ(i=i′) δ(τ=τ′)"``."""
        return " ".join(f"δ({s}={s}′)" for s, kind in zip(_SYMBOLS, self.kinds, strict=True) if kind == "distinctive")

    @property
    def variants(self) -> tuple[str, ...]:
        """The release's names of the clips it needs: A (shift 1), B (shift 2), C (A reversed), D (B reversed)."""
        if self.time_shift == "single":
            return ("A",) if self.time_reversal == "single" else ("A", "C")
        return ("A", "B") if self.time_reversal == "single" else ("A", "B", "C", "D")

    def counts(self, videos: int) -> tuple[int, int, int, int, int]:
        """``(K_i, K_τ, K_m, K_r, K_g)`` for a batch of so many videos: the layout of its embeddings."""
        return (videos, *self.branches)

    def codes(self, videos: int, *, rank: int = 0) -> Tensor:
        """Path codes, int64 ``(|T|, 5)``, of embeddings laid out ``(K_i, K_τ, K_m, K_r, K_g, d)`` and flattened."""
        return path_codes(self.counts(videos), rank=rank)

    def matrices(self, videos: int) -> tuple[Tensor, Tensor]:
        """Contrast and weight of a batch on one process, bool ``(|T|, |T|)`` each."""
        codes = self.codes(videos)
        return contrast_matrix(codes, self.kinds), weight_matrix(codes, self.weight_mode, modality=self.modality)

    def factors(self, corpus: Space, videos: int) -> tuple[Factor, ...]:
        """Factors for a :class:`~avssl_core.losses.hierarchical_sampler.HierarchicalSampler`.

        Args:
            corpus: the videos: their number, or their ids.
            videos: ``K_i``, how many of them a batch gets.

        Returns:
            The five factors in sampling order. A time shift is a float in ``[0, 1)``, the start's place between the
            first and the last possible; an augmentation is an integer to seed it with.
        """
        shifts, modalities, directions, augmentations = self.branches
        spaces: tuple[Space, ...] = (
            corpus,
            _draw_shift,
            ("video", "audio")[:modalities],
            ("forward", "reversed")[:directions],
            _draw_seed,
        )
        counts = (videos, shifts, modalities, directions, augmentations)
        rows = zip(FACTOR_NAMES, spaces, counts, self.kinds, strict=True)
        return tuple(Factor(name, space, count, kind) for name, space, count, kind in rows)


def _draw_shift(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def _draw_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))


# Table 1 of the paper; columns TS, TR, cross-modal, id in the release, HMDB-51 accuracy, HMDB-51 R@1.
_ROWS: tuple[Hypothesis, ...] = (
    Hypothesis("a", "single", "single", False, None, 44.6, 11.8),
    Hypothesis("b", "single", "invariant", False, None, 36.9, 13.3),
    Hypothesis("c", "invariant", "single", False, None, 35.9, 15.3),
    Hypothesis("d", "invariant", "invariant", False, None, 37.8, 13.9),
    Hypothesis("e", "single", "single", True, 1, 52.4, 21.8),
    Hypothesis("f", "single", "invariant", True, 3, 58.8, 22.6),
    Hypothesis("g", "invariant", "single", True, 5, 57.4, 23.5),
    Hypothesis("h", "invariant", "invariant", True, 9, 59.9, 24.8),
    Hypothesis("i", "single", "distinctive", True, 2, 57.8, 26.1),
    Hypothesis("j", "distinctive", "single", True, 4, 58.7, 22.1),
    Hypothesis("k", "invariant", "distinctive", True, 8, 61.1, 25.4),
    Hypothesis("l", "distinctive", "invariant", True, 7, 61.4, 27.1),
    Hypothesis("m", "distinctive", "distinctive", True, 6, 57.2, 20.5),
)

HYPOTHESES: Mapping[str, Hypothesis] = MappingProxyType({h.row: h for h in _ROWS})


def find_hypothesis(key: str | int | Hypothesis) -> Hypothesis:
    """A row of Table 1 by its letter, or by its number in the release.

    Raises:
        ValueError: for a letter or number that does not exist.
    """
    if isinstance(key, Hypothesis):
        return key
    found = [h for h in _ROWS if key in (h.row, h.release_id)]
    if not found:
        raise ValueError(f"no hypothesis {key!r}; use a letter 'a' to 'm' (Table 1) or a release id 1 to 9")
    return found[0]
