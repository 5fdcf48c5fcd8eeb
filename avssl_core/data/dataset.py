"""Clip data sets: windows drawn for training, windows placed for evaluation.

Training items are addressed by ``(epoch, index)`` and are pure functions of (seed, epoch, index). A clip that fails
to decode is replaced by one that is such a function as well, and the failure travels with the item (``"bad"``) to the
process that counts: the release of GDT, like most loaders, catches the exception in the worker and silently returns
another clip.

Evaluation never replaces anything: there a failure is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from avssl_core import media
from avssl_core.data.cache import DecodedCache
from avssl_core.data.corpus import Corpus
from avssl_core.data.errors import ClipError, CorpusError, TooManyBadClipsError, listed
from avssl_core.data.windows import WindowSpec, draw_starts, fitting_rows, uniform_starts, usable_seconds
from avssl_core.transforms import mix

# What a clip can do wrong while it is read.
_CLIP_ERRORS = (media.MediaError, ClipError, OSError)
# Replacements tried for one place in a batch. At a bad share of 1 % four in a row happen once in 10^8 draws.
_ATTEMPTS = 8


class Item(TypedDict, total=False):
    """One clip. ``waveform`` is missing without sound, ``label`` without labels.

    Keys: ``frames`` uint8 ``(K, T, 3, H, W)`` · ``waveform`` float32 ``(K, L)`` · ``start_s`` float64 ``(K,)`` ·
        ``row`` of the corpus ·
    ``group`` as an integer · ``label`` as an integer · ``bad``: ``(row, uri, reason)`` of the clips that had to be
    replaced.
    """

    frames: Tensor
    waveform: Tensor
    start_s: Tensor
    row: int
    group: int
    label: int
    bad: list[tuple[int, str, str]]


class _Windows:
    """Reads windows of the clips of a corpus, from the files or from a cache."""

    def __init__(self, corpus: Corpus, spec: WindowSpec, cache: DecodedCache | None) -> None:
        if cache is not None and len(cache) != len(corpus):
            raise ValueError(f"the cache holds {len(cache)} clips, the corpus {len(corpus)}: build it from this corpus")
        self.corpus, self.spec, self.cache = corpus, spec, cache
        self._seconds = usable_seconds(corpus, spec)
        self._groups, self.group_names = corpus.codes("group")

    def duration_s(self, row: int) -> float:
        """Seconds that windows may use; those of the index, unless the cache knows that there are fewer."""
        seconds = float(self._seconds[row])
        return seconds if self.cache is None else min(seconds, self.cache.duration_s(row))

    def read(self, row: int, starts: Tensor) -> Item:
        """Windows of one clip at ``starts`` ``(K,)``."""
        frames, sounds = (
            self._from_file(row, starts) if self.cache is None else self._from_cache(self.cache, row, starts)
        )
        stacked = _middle_square(torch.stack(frames)) if self.spec.square else torch.stack(frames)
        item = Item(frames=stacked, start_s=starts, row=row, group=int(self._groups[row]), bad=[])
        if sounds:
            item["waveform"] = torch.stack(sounds)
        return item

    def _from_cache(self, cache: DecodedCache, row: int, starts: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        spec, times = self.spec, starts.tolist()
        frames = [cache.frames(row, time, spec.num_frames, spec.fps) for time in times]
        if spec.sample_rate is None:
            return frames, []
        return frames, [cache.samples(row, time, spec.num_samples, spec.sample_rate) for time in times]

    def _from_file(self, row: int, starts: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        spec = self.spec
        with media.MediaReader(self.corpus.source(row)) as reader:
            frames, sounds = [], []
            for time in starts.tolist():
                frames.append(reader.frames(time, num_frames=spec.num_frames, fps=spec.fps, size=spec.size).frames)
                if spec.sample_rate is not None:
                    sound = reader.samples(time, num_samples=spec.num_samples, sample_rate=spec.sample_rate)
                    # Lossy codecs overshoot full scale; the cache, like any 16-bit file, cuts that off.
                    sounds.append(sound.clamp(-1.0, 1.0))
        return frames, sounds


class WindowDataset(Dataset[Item]):
    """Random windows of the clips of a corpus, for training.

    Args:
        corpus: the clips.
        spec: what a window is, and how many an item holds.
        seed: of all draws.
        cache: read windows from here instead of from the files.
        max_bad_share: share of the clips that may fail to decode before the run stops (counted by the loader, in the
            main process).

    Attributes:
        rows: row of the corpus for every index of the data set.
        refused: ``(uri, reason)`` of the clips that cannot hold the windows.
        groups: group of every index, as integers ``(len(self),)``.

    Raises:
        NoUsableClipsError: at construction, if no clip can hold the windows.
    """

    def __init__(
        self,
        corpus: Corpus,
        spec: WindowSpec,
        *,
        seed: int,
        cache: DecodedCache | None = None,
        max_bad_share: float = 0.01,
    ) -> None:
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"max_bad_share is a share between 0 and 1, got {max_bad_share}")
        self.corpus, self.spec, self.seed, self.max_bad_share = corpus, spec, seed, max_bad_share
        self._windows = _Windows(corpus, spec, cache)
        self.rows, self.refused = fitting_rows(corpus, spec)
        self.groups = self._windows._groups[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """The item of ``(epoch, index)``, or its replacement.

        Raises:
            TooManyBadClipsError: if the clip and all its replacements fail.
        """
        epoch, index = key
        bad: list[tuple[int, str, str]] = []
        for attempt in range(_ATTEMPTS):
            # A replacement must not depend on what else failed, when, or in which worker.
            index_now = index if attempt == 0 else mix(self.seed, epoch, index, attempt) % len(self)
            row = int(self.rows[index_now])
            try:
                seconds = self._windows.duration_s(row)
                starts = self._starts(row, seconds, epoch, index_now)
                item = self._windows.read(row, starts)
            except _CLIP_ERRORS as error:
                bad.append((row, str(self.corpus.index["uri"].iat[row]), f"{type(error).__name__}: {error}"))
                continue
            item["bad"] = bad
            return item
        raise TooManyBadClipsError(
            f"the clip of epoch {epoch}, index {index} and its {_ATTEMPTS - 1} replacements all failed; is the folder "
            f"{self.corpus.root} still there?\n{listed((uri, reason) for _, uri, reason in bad)}"
        )

    def _starts(self, row: int, seconds: float, epoch: int, index: int) -> Tensor:
        try:
            return draw_starts(self.spec, seconds, seed=self.seed, epoch=epoch, index=index)
        except ValueError as error:  # the cache found the clip shorter than its index says
            raise ClipError(str(self.corpus.index["uri"].iat[row]), str(error)) from error


class TimedDataset(Dataset[Item]):
    """One window centred on every timed label of a kind, for probes of what happens at an instant.

    Items have the keys of :class:`Item` with K = 1 and ``label``. A window that would leave the clip is moved inside
    it.

    Args:
        corpus: the clips, with timed labels.
        spec: what a window is; ``windows`` is ignored.
        kind: which labels, e.g. ``"digit"``.
        split: restrict the clips to this split; ``None`` takes all.
        cache: read windows from here instead of from the files.

    Attributes:
        classes: sorted names of the labels of this kind in the *whole* corpus, so that integers agree between splits.
        labels: integer label of every item, ``(len(self),)``.
        refused: ``(uri, reason)`` of the clips that cannot hold the window; their labels are left out.

    Raises:
        CorpusError: if there are no timed labels of this kind (in this split).
        NoUsableClipsError: if no clip can hold the window.
    """

    def __init__(
        self,
        corpus: Corpus,
        spec: WindowSpec,
        *,
        kind: str,
        split: str | None = None,
        cache: DecodedCache | None = None,
    ) -> None:
        self._windows = _Windows(corpus, spec, cache)
        self.corpus, self.spec, self.kind = corpus, spec, kind
        timed = _of_kind(corpus, kind)
        self.classes = sorted(timed["label"].unique())
        usable, self.refused = fitting_rows(corpus, _one_window(spec))
        if split is not None:
            usable = usable[(corpus.index["split"].to_numpy()[usable] == split)]
        row_of = {corpus.index["clip_id"].iat[row]: int(row) for row in usable}
        timed = timed[timed["clip_id"].isin(row_of)]
        if timed.empty:
            raise CorpusError(f"no usable clip of {corpus.root} with split {split!r} has labels of kind {kind!r}")
        self.rows = np.array([row_of[clip_id] for clip_id in timed["clip_id"]], dtype=np.int64)
        self.centres = ((timed["start_s"] + timed["end_s"]) / 2).to_numpy(dtype=np.float64)
        number = {name: code for code, name in enumerate(self.classes)}
        self.labels = np.array([number[label] for label in timed["label"]], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        row = int(self.rows[index])
        latest = max(0.0, self._windows.duration_s(row) - self.spec.span_s)
        start = min(max(float(self.centres[index]) - self.spec.clip_s / 2, 0.0), latest)
        item = self._windows.read(row, torch.tensor([start], dtype=torch.float64))
        item["label"] = int(self.labels[index])
        return item


class UniformDataset(Dataset[Item]):
    """``spec.windows`` evenly spaced windows of every clip, for protocols that average over a clip ("10 uniform
    clips").

    Args:
        corpus: the clips.
        spec: what a window is, and how many.
        label: column of the index to give as integer labels, e.g. ``"label_motion"``.
        split: restrict the clips to this split; ``None`` takes all.
        cache: read windows from here instead of from the files.

    Attributes:
        classes: sorted names of the labels in the whole corpus; empty without ``label``.
        labels: integer label of every item, or ``None``.
        refused: ``(uri, reason)`` of the clips that cannot hold the window.
    """

    def __init__(
        self,
        corpus: Corpus,
        spec: WindowSpec,
        *,
        label: str | None = None,
        split: str | None = None,
        cache: DecodedCache | None = None,
    ) -> None:
        self._windows = _Windows(corpus, spec, cache)
        self.corpus, self.spec = corpus, spec
        self.rows, self.refused = fitting_rows(corpus, _one_window(spec))
        if split is not None:
            self.rows = self.rows[corpus.index["split"].to_numpy()[self.rows] == split]
            if len(self.rows) == 0:
                raise CorpusError(f"no usable clip of {corpus.root} has split {split!r}")
        self.classes: list[str] = []
        self.labels: NDArray[np.int64] | None = None
        if label is not None:
            codes, self.classes = corpus.codes(label)
            self.labels = codes[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        row = int(self.rows[index])
        item = self._windows.read(row, uniform_starts(self.spec, self._windows.duration_s(row)))
        if self.labels is not None:
            item["label"] = int(self.labels[index])
        return item


def collate(items: Sequence[Item]) -> dict[str, Any]:
    """Stack items to a batch: tensors ``(B, …)``, integers as int64 ``(B,)``, ``bad`` as one list.

    Raises:
        ValueError: if clips differ in size, which happens when ``WindowSpec.size`` is not ``(height, width)``.
    """
    batch: dict[str, Any] = {}
    for name, first in items[0].items():
        values: list[Any] = [item[name] for item in items]  # type: ignore[literal-required]
        if isinstance(first, Tensor):
            shapes = {tuple(value.shape) for value in values}
            if len(shapes) > 1:
                raise ValueError(
                    f"{name} of different shapes {sorted(shapes)} in one batch; "
                    "set square=True or size=(height, width) in the WindowSpec"
                )
            batch[name] = torch.stack(values)
        elif name == "bad":
            batch[name] = [entry for value in values for entry in value]
        else:
            batch[name] = torch.tensor(values, dtype=torch.int64)
    return batch


def _middle_square(frames: Tensor) -> Tensor:
    """``(..., H, W)`` to ``(..., S, S)`` with ``S = min(H, W)``, cut from the middle."""
    height, width = frames.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return frames[..., top : top + side, left : left + side]


def _one_window(spec: WindowSpec) -> WindowSpec:
    """Placed windows may overlap: a clip fits if it holds one of them."""
    return replace(spec, windows=1, min_gap_s=0.0)


def _of_kind(corpus: Corpus, kind: str) -> Any:
    if corpus.timed is None or corpus.timed.empty:
        raise CorpusError(f"{corpus.root} has no timed labels ({Path(corpus.root) / 'timed.parquet'})")
    timed = corpus.timed[corpus.timed["kind"] == kind]
    if timed.empty:
        raise CorpusError(
            f"{corpus.root} has no timed labels of kind {kind!r}; kinds are {sorted(corpus.timed['kind'].unique())}"
        )
    return timed
