"""Compressed clips for training and evaluation: T groups of pictures of every file, drawn or placed.

Which groups a file has is found once for the whole corpus, in parallel and without decoding, and kept beside the
corpus' other caches. A file whose groups cannot serve is left out with its reason; one that turns out damaged while it
is read is replaced in the open, exactly as in :class:`~avssl_core.data.dataset.WindowDataset`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from avssl_core import media
from avssl_core.data.corpus import Corpus
from avssl_core.data.dataset import Item, WindowDataset
from avssl_core.data.errors import CorpusError, NoUsableClipsError
from avssl_core.data.locations import cache_home, digest
from avssl_core.media.gops import Gop, Structure
from avssl_core.media.mpeg4 import Layer
from avssl_core.transforms import fixed_crop, generator_for

_VERSION = 1  # of the stored form
_STREAMS = ("iframes", "motion", "residual", "intra", "every_motion", "waveform")
_MANY = 1000  # files from which on a progress bar is worth its line

ClipMemory = dict[tuple[str, int, media.GopSpec, int | None], dict[str, Any]]
"""Clips that were read: file, first group, what was asked for, side of the square; streams and start."""


def find_structures(
    corpus: Corpus, *, workers: int | None = None, progress: bool = True
) -> list[Structure | media.MediaError]:
    """The groups of every clip of a corpus, or why they cannot be found; remembered as long as the file is the same.

    Args:
        corpus: the clips.
        workers: threads; by default 8 (demuxing waits for the disk and releases the interpreter).
        progress: show a bar.
    """
    home = cache_home() / "structures"
    home.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(workers or 8) as pool:
        found = pool.map(lambda row: _structure(corpus, row, home), range(len(corpus)))
        return list(tqdm(found, total=len(corpus), desc="groups of pictures", unit="clip", disable=not progress))


def _structure(corpus: Corpus, row: int, home: Path) -> Structure | media.MediaError:
    source = corpus.source(row)
    try:
        stored = home / f"{_identity(source)}.json"
    except OSError as error:
        return media.NotMediaError(str(source), f"cannot be read ({error.strerror}); index the folder again")
    if stored.is_file():
        try:
            return _from_json(stored.read_text(encoding="utf-8"))
        except (ValueError, TypeError, KeyError):
            stored.unlink(missing_ok=True)  # written half, or by another version
    try:
        with media.CompressedReader(source) as reader:
            structure = reader.structure
    except media.MediaError as error:
        return error
    part = stored.with_suffix(f".{os.getpid()}-{row}.part")
    part.write_text(json.dumps({"version": _VERSION, "structure": asdict(structure)}), encoding="utf-8")
    part.replace(stored)
    return structure


def _identity(source: Path | media.TarMember) -> str:
    """Changes when the file does."""
    path = Path(source.path) if isinstance(source, media.TarMember) else source
    status = path.stat()
    place = (source.offset, source.length) if isinstance(source, media.TarMember) else ()
    return digest(f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{place}|{_VERSION}")


def _from_json(text: str) -> Structure:
    """The inverse of ``asdict``."""
    held: dict[str, Any] = json.loads(text)["structure"]
    layer = Layer(**held.pop("layer")) if held["layer"] is not None else held.pop("layer")
    return Structure(**held | {"gops": tuple(Gop(**gop) for gop in held["gops"])}, layer=layer)


class _Groups:
    """Reads groups of the clips of a corpus; what ``WindowDataset`` asks of its windows."""

    def __init__(
        self,
        corpus: Corpus,
        spec: media.GopSpec,
        structures: Sequence[Structure | media.MediaError],
        size: int | None,
        memory: ClipMemory | None,
    ) -> None:
        self.corpus, self.spec, self.structures, self.size = corpus, spec, structures, size
        self._groups, self.group_names = corpus.codes("group")
        self._memory = memory

    def duration_s(self, row: int) -> float:
        """Seconds of the pictures."""
        structure = self.structures[row]
        return structure.num_pictures / structure.fps if isinstance(structure, Structure) else 0.0

    def starts(self, row: int) -> list[int]:
        """Groups at which a clip can begin."""
        structure, spec = self.structures[row], self.spec
        return structure.starts(spec.gops, spec.gop_size, spec.last) if isinstance(structure, Structure) else []

    def read(self, row: int, starts: Tensor) -> Item:
        """The clip at group ``starts`` ``(1,)``."""
        key = (str(self.corpus.source(row)), int(starts[0]), self.spec, self.size)
        known = None if self._memory is None else self._memory.get(key)
        item = self._clip(row, key[1]) if known is None else known
        if self._memory is not None:
            self._memory[key] = item
        return item | {"row": row, "group": int(self._groups[row]), "bad": []}  # type: ignore[return-value]

    def _clip(self, row: int, first: int) -> dict[str, Any]:
        """Streams and start of the clip at group ``first``."""
        structure = self.structures[row]
        found = structure if isinstance(structure, Structure) else None
        with media.CompressedReader(self.corpus.source(row), structure=found) as reader:
            clip = reader.clip(first, self.spec)
        parts = {name: getattr(clip, name) for name in _STREAMS}
        item = {name: value for name, value in parts.items() if value is not None}
        if self.size is not None:
            item |= _square(item, self.size)
        return item | {"start_s": torch.tensor([clip.start_s], dtype=torch.float64)}

    def refusal(self, row: int) -> str | None:
        """Why a clip cannot serve; ``None`` if it can."""
        structure = self.structures[row]
        if not isinstance(structure, Structure):
            return structure.reason
        needs_p = self.spec.motion is not None or self.spec.residual is not None
        if needs_p and structure.obstacle is not None:
            return f"has {structure.obstacle}: transcode it with `avssl data compress`"
        if self.spec.residual == "coded" and structure.coded_obstacle is not None:
            return f"coded residuals cannot be read from {structure.coded_obstacle}"
        if not self.starts(row):
            wanted = f"{self.spec.gops} groups of {self.spec.gop_size} pictures in a row"
            return f"has no {wanted}, only {structure.lengths()} (length: how many)"
        silent = self.spec.sample_rate is not None and self.corpus.index["audio_codec"].iat[row] == ""
        return "has no sound" if silent else None


def _square(item: dict[str, Any], size: int) -> dict[str, Tensor]:
    """The middle square of all streams; pictures and residuals resized to ``size``, vectors at the resolution they
    have (they go on counting pixels of the file)."""
    iframes: Tensor = item["iframes"]
    crop = fixed_crop(1, (iframes.shape[-2], iframes.shape[-1]), scale=1.0)
    out = {"iframes": crop.cut(iframes[None], size)[0].round().to(torch.uint8)}
    if "residual" in item:
        out["residual"] = crop.cut(item["residual"][None], size)[0].round().to(item["residual"].dtype)
    for name in ("motion", "every_motion"):
        if name in item:
            out[name] = crop.cut_motion(item[name][None], min(item[name].shape[-2:]))[0]
    if "intra" in item:
        out["intra"] = crop.cut(item["intra"][None, None], min(item["intra"].shape[-2:]))[0, 0] > 0.5
    return out


class GopDataset(WindowDataset):
    """Compressed clips drawn for training: item ``(epoch, index)`` is a function of (seed, epoch, index).

    An item holds ``iframes`` uint8 ``(3, T, H, W)`` and, as the spec asks, ``motion``, ``residual``, ``intra``,
    ``every_motion``, ``waveform`` (see :class:`~avssl_core.media.CompressedClip`), with ``start_s``, ``row``, ``group``
    and ``bad``. Files of different sizes fit one batch with ``size``.

    Args:
        corpus: the clips.
        spec: how many groups, which positions, which streams.
        seed: of all draws.
        structures: of :func:`find_structures`; found here by default.
        size: cut the middle square out and resize pictures and residuals to this side, so that files of any size fit
            one batch; ``None`` leaves them as they are.
        memory: a dictionary that keeps every clip that is read, and that data sets may share: for corpora that fit this
            process's memory, without workers.
        max_bad_share: share of the clips that may fail before the run stops.

    Attributes:
        rows: row of the corpus for every index of the data set.
        refused: ``(uri, reason)`` of the clips that cannot serve.
        groups: group of every index ``(len(self),)``.

    Raises:
        NoUsableClipsError: if no clip can serve; it lists reasons.
        CorpusError: structures of another number of clips.
    """

    def __init__(
        self,
        corpus: Corpus,
        spec: media.GopSpec,
        *,
        seed: int,
        structures: Sequence[Structure | media.MediaError] | None = None,
        size: int | None = None,
        memory: ClipMemory | None = None,
        max_bad_share: float = 0.01,
    ) -> None:
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"max_bad_share is a share between 0 and 1, got {max_bad_share}")
        structures = find_structures(corpus, progress=len(corpus) > _MANY) if structures is None else structures
        if len(structures) != len(corpus):
            raise CorpusError(f"{len(structures)} structures for {len(corpus)} clips: find them for this corpus")
        self.corpus, self.seed, self.max_bad_share, self.gop_spec = corpus, seed, max_bad_share, spec
        self._windows: Any = _Groups(corpus, spec, structures, size, memory)
        reasons = [self._windows.refusal(row) for row in range(len(corpus))]
        uris = corpus.index["uri"].astype(str).tolist()
        self.refused = [(uri, reason) for uri, reason in zip(uris, reasons, strict=True) if reason is not None]
        self.rows = np.flatnonzero([reason is None for reason in reasons])
        if len(self.rows) == 0:
            raise NoUsableClipsError(f"none of the {len(corpus)} clips of {corpus.root} serves {spec}", self.refused)
        self.groups = self._windows._groups[self.rows]

    def _starts(self, row: int, seconds: float, epoch: int, index: int) -> Tensor:
        """One of the admissible groups, ``(1,)``."""
        admissible = self._windows.starts(row)
        drawn = torch.randint(len(admissible), (1,), generator=generator_for(self.seed, epoch, index))
        return torch.tensor([admissible[int(drawn)]])


class PlacedGopDataset(GopDataset):
    """The same clips for evaluation, each at one place, and no replacement of damaged ones.

    Args:
        args: as :class:`GopDataset`.
        at: number of the admissible start; by default the one nearest to the middle of the file.
        options: as :class:`GopDataset`.

    Raises:
        ValueError: a clip does not have that many starts.
    """

    def __init__(self, *args: Any, at: int | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._at = at
        most = min(len(self._windows.starts(int(row))) for row in self.rows)
        if at is not None and not 0 <= at < most:
            raise ValueError(f"at={at}, but there is a clip with {most} admissible starts: expected 0 to {most - 1}")

    def __getitem__(self, key: Any) -> Item:
        """Item ``index``.

        Raises:
            MediaError: the file is damaged.
        """
        row = int(self.rows[int(key)])
        admissible = self._windows.starts(row)
        start = admissible[len(admissible) // 2 if self._at is None else self._at]
        item: Item = self._windows.read(row, torch.tensor([start]))
        return item
