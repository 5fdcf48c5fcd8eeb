"""Decoded clips in memory maps: what the ordinary reader gave, kept.

Decoding is most of the work of a training on two cores. The cache holds whole clips as uint8 frames and int16
samples, at one frame rate, size and sample rate, as ``media.read_all`` returned them; windows are slices of them. A
clip is known by its file (path, size, time of last change, place in a shard) and by the reader's settings, so that a
changed file is decoded anew.

On disk: a folder per settings, in it *packs* of some clips each: ``NAME.frames``, ``NAME.samples`` (raw) and
``NAME.parquet`` (what lies where, or why a clip could not be decoded). The table is renamed into place last, so that
a pack is either finished or not there: an interrupted build goes on where it stopped, and builds side by side do not
disturb each other.
"""

from __future__ import annotations

import math
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from avssl_core import media
from avssl_core.data.corpus import Corpus, write_table
from avssl_core.data.errors import ClipError, NoUsableClipsError
from avssl_core.data.locations import cache_home, digest
from avssl_core.data.windows import WindowSpec

# Raised when the layout on disk, or what the reader makes of a file, changes.
_VERSION = 1
_PACK_CLIPS = 32
_TABLE_COLUMNS = ("key", "frames_at", "num_frames", "height", "width", "samples_at", "num_samples", "reason")


@dataclass(frozen=True)
class _Place:
    """Where a decoded clip lies, or why it does not."""

    pack: str
    frames_at: int
    num_frames: int
    height: int
    width: int
    samples_at: int
    num_samples: int
    reason: str | None


class DecodedCache:
    """Windows of decoded clips, addressed by the row of the corpus that the cache was built for.

    Make one with :meth:`build`. It can be sent to worker processes; memory maps are opened where they are first used.

    Attributes:
        bad: reason for every row that could not be decoded; using such a row raises ``ClipError``.
    """

    def __init__(self, folder: Path, corpus: Corpus, spec: WindowSpec, keys: Sequence[str]) -> None:
        self.folder, self.fps, self.sample_rate = folder, spec.fps, spec.sample_rate
        self._uris = [str(uri) for uri in corpus.index["uri"]]
        known = _read_tables(folder)
        missing = [uri for uri, key in zip(self._uris, keys, strict=True) if key not in known]
        if missing:
            raise ValueError(
                f"{len(missing)} clips are not in the cache {folder}, e.g. {missing[0]}; use DecodedCache.build"
            )
        self._places = [known[key] for key in keys]
        self.bad = {row: place.reason for row, place in enumerate(self._places) if place.reason is not None}
        self._maps: dict[str, NDArray[Any]] = {}

    @classmethod
    def build(
        cls,
        corpus: Corpus,
        spec: WindowSpec,
        root: str | Path | None = None,
        *,
        workers: int | None = None,
        progress: bool = True,
    ) -> DecodedCache:
        """Decode what is not there yet and open the cache.

        Args:
            corpus: the clips.
            spec: its ``fps``, ``size`` and ``sample_rate`` are the reader's settings; windows do not matter here.
            root: folder of the cache; by default in the user's cache (``$AVSSL_CACHE`` or ``~/.cache/avssl``).
            workers: decoding threads (the decoder releases the interpreter); by default the number of cores.
            progress: show a progress bar.

        Raises:
            OSError: if the disk cannot hold the decoded clips.
            NoUsableClipsError: if no clip at all could be decoded.
        """
        settings = digest(_VERSION, float(spec.fps), spec.size, spec.sample_rate)
        folder = (Path(root) if root is not None else cache_home()) / "decoded" / settings
        folder.mkdir(parents=True, exist_ok=True)
        keys = [_key(corpus, row) for row in range(len(corpus))]
        known = _read_tables(folder)
        todo = [row for row, key in enumerate(keys) if key not in known]
        if todo:
            _require_space(corpus, spec, todo, folder)
            _decode_all(corpus, spec, folder, keys, todo, workers=workers or os.cpu_count() or 1, progress=progress)
        cache = cls(folder, corpus, spec, keys)
        if len(cache.bad) == len(corpus):
            reasons = [(cache._uris[row], reason) for row, reason in cache.bad.items()]
            raise NoUsableClipsError(f"none of the {len(corpus)} clips of {corpus.root} could be decoded", reasons)
        return cache

    def __len__(self) -> int:
        return len(self._places)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def duration_s(self, row: int) -> float:
        """Seconds of decoded video of a clip, and of sound if the cache holds sound and it is shorter."""
        place = self._place(row)
        seconds = place.num_frames / self.fps
        return seconds if self.sample_rate is None else min(seconds, place.num_samples / self.sample_rate)

    def frames(self, row: int, start_s: float, num_frames: int, fps: float) -> Tensor:
        """Frames of a window, by nearest time.

        Args:
            row: of the corpus.
            start_s: in the clip's time.
            num_frames: T.
            fps: at most that of the cache.

        Returns:
            uint8 ``(T, 3, H, W)``, a copy.

        Raises:
            ClipError: if the clip could not be decoded, or the window lies more than half a frame outside it.
            ValueError: if ``fps`` exceeds that of the cache, which would repeat frames.
        """
        place = self._place(row)
        if fps > self.fps * (1 + 1e-9):
            raise ValueError(
                f"the cache holds {self.fps:g} frames a second and cannot give {fps:g}; build one with that fps"
            )
        first = start_s * self.fps
        step = self.fps / fps
        last = first + (num_frames - 1) * step
        # Allow half a frame of the clip beyond its first and last, as the reader does.
        if first < -0.5 - 1e-6 or last > place.num_frames - 0.5 + 1e-6:
            raise ClipError(
                self._uris[row],
                f"window of {num_frames} frames at {start_s:.3f} s lies outside the clip's "
                f"{place.num_frames / self.fps:.3f} s",
            )
        clip = self._map(place.pack, "frames")[place.frames_at :][: place.num_frames * 3 * place.height * place.width]
        clip = clip.reshape(place.num_frames, 3, place.height, place.width)
        start = min(max(math.ceil(first - 0.5 - 1e-6), 0), place.num_frames - 1)  # ties go to the earlier frame
        if step == 1.0 and start + num_frames <= place.num_frames:
            return torch.from_numpy(clip[start : start + num_frames].copy())
        chosen = np.ceil(first + step * np.arange(num_frames) - 0.5 - 1e-6).astype(np.int64)
        return torch.from_numpy(clip[chosen.clip(0, place.num_frames - 1)])

    def samples(self, row: int, start_s: float, num_samples: int, sample_rate: int) -> Tensor:
        """Sound of a window: float32 in [-1, 1], ``(num_samples,)``.

        A window that ends at most half a video frame after the sound is taken that much earlier; nothing is filled in.

        Raises:
            ClipError: if the clip could not be decoded, or the window lies further outside its sound.
            ValueError: if the cache holds another sample rate, or no sound.
        """
        place = self._place(row)
        if sample_rate != self.sample_rate:
            raise ValueError(
                f"the cache holds sound at {self.sample_rate} Hz, not {sample_rate}; build one with that sample_rate"
            )
        start = round(start_s * sample_rate)
        excess = max(0, start + num_samples - place.num_samples, -start)
        if excess > sample_rate / self.fps / 2 + 1 or num_samples > place.num_samples:
            raise ClipError(
                self._uris[row],
                f"{num_samples} samples at {start_s:.3f} s lie outside the sound's "
                f"{place.num_samples / sample_rate:.3f} s",
            )
        start = min(max(start, 0), place.num_samples - num_samples)
        begin = place.samples_at + start
        sound = self._map(place.pack, "samples")[begin : begin + num_samples]
        return torch.from_numpy(sound.astype(np.float32) * np.float32(1 / 32768))

    def _place(self, row: int) -> _Place:
        place = self._places[row]
        if place.reason is not None:
            raise ClipError(self._uris[row], place.reason)
        return place

    def _map(self, pack: str, kind: str) -> NDArray[Any]:
        name = f"{pack}.{kind}"
        if name not in self._maps:
            dtype = np.uint8 if kind == "frames" else np.int16
            # A plain array view of the map: slicing np.memmap itself costs several microseconds more.
            self._maps[name] = np.asarray(np.memmap(self.folder / name, dtype=dtype, mode="r"))
        return self._maps[name]


def _key(corpus: Corpus, row: int) -> str:
    """Identity of the file behind a row; a file that is gone has one too, so that its reason is recorded."""
    path = corpus.root / corpus.index["uri"].iat[row]
    offset, length = corpus.index["offset"].iat[row], corpus.index["length"].iat[row]
    place = (None, None) if np.isnan(offset) else (int(offset), int(length))
    try:
        stat = path.stat()
        # The path is resolved as a folder plus a name: resolving every file would double the cost of opening a large
        # cache.
        return digest(os.path.realpath(path.parent), path.name, stat.st_size, stat.st_mtime_ns, *place)
    except OSError:
        return digest(str(path), "missing", uuid.uuid4().hex)  # never found again: looked for at every build


def _read_tables(folder: Path) -> dict[str, _Place]:
    places = {}
    for path in sorted(folder.glob("*.parquet")):
        for row in pd.read_parquet(path).to_dict("records"):
            numbers = {name: int(row[name]) for name in _TABLE_COLUMNS[1:-1]}
            reason = None if pd.isna(row["reason"]) else str(row["reason"])
            places[str(row["key"])] = _Place(pack=path.stem, **numbers, reason=reason)
    return places


def _require_space(corpus: Corpus, spec: WindowSpec, rows: Sequence[int], folder: Path) -> None:
    """Refuse to fill the disk: a decoded clip is hundreds of times larger than its file."""
    part = corpus.index.iloc[list(rows)]
    if isinstance(spec.size, tuple):
        pixels: Any = spec.size[0] * spec.size[1]
    else:
        width, height = part["width"].fillna(320), part["height"].fillna(240)
        shrink = 1 if spec.size is None else spec.size / np.minimum(width, height)
        pixels = width * height * shrink**2
    needed = float((part["duration_s"] * (3 * pixels * spec.fps + 2 * (spec.sample_rate or 0))).sum())
    free = shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        raise OSError(
            f"decoding {len(rows)} clips takes about {needed / 2**30:.1f} GiB, {folder} has {free / 2**30:.1f} GiB "
            "free; choose a smaller "
            f"size or fps, fewer clips, or another folder (AVSSL_CACHE)"
        )


def _decode_all(
    corpus: Corpus,
    spec: WindowSpec,
    folder: Path,
    keys: Sequence[str],
    rows: Sequence[int],
    *,
    workers: int,
    progress: bool,
) -> None:
    # Small packs when there is little to do, so that all workers have some.
    size = max(1, min(_PACK_CLIPS, -(-len(rows) // (4 * workers))))
    packs = [rows[start : start + size] for start in range(0, len(rows), size)]
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(rows), desc="decoding", unit="clip", disable=not progress, leave=False) as bar,
    ):
        futures = {pool.submit(_write_pack, corpus, spec, folder, keys, pack): len(pack) for pack in packs}
        try:
            for future in as_completed(futures):
                future.result()
                bar.update(futures[future])
        finally:
            pool.shutdown(cancel_futures=True)


def _write_pack(corpus: Corpus, spec: WindowSpec, folder: Path, keys: Sequence[str], rows: Iterable[int]) -> None:
    name = uuid.uuid4().hex
    table = []
    try:
        with (folder / f"{name}.frames").open("xb") as frames, (folder / f"{name}.samples").open("xb") as samples:
            for row in rows:
                table.append({"key": keys[row], **_write_clip(corpus, spec, row, frames, samples)})
        write_table(pd.DataFrame(table, columns=list(_TABLE_COLUMNS)), folder / f"{name}.parquet")
    except BaseException:
        for kind in ("frames", "samples"):
            (folder / f"{name}.{kind}").unlink(missing_ok=True)
        raise


def _write_clip(corpus: Corpus, spec: WindowSpec, row: int, frames: Any, samples: Any) -> dict[str, Any]:
    """Decode one clip and append it to the open files; returns its line of the table."""
    line = dict.fromkeys(_TABLE_COLUMNS[1:-1], 0) | {"reason": None}
    try:
        clip = media.read_all(corpus.source(row), fps=spec.fps, size=spec.size, sample_rate=spec.sample_rate)
    except (media.MediaError, OSError) as error:
        return line | {"reason": f"{type(error).__name__}: {error}"}
    T, _, H, W = clip.frames.shape
    line |= {"frames_at": frames.tell(), "num_frames": T, "height": H, "width": W, "samples_at": samples.tell() // 2}
    frames.write(np.ascontiguousarray(clip.frames.numpy()).data)
    if clip.waveform is not None:
        sound = (clip.waveform * 32768).round_().clamp_(-32768, 32767).to(torch.int16).numpy()
        samples.write(np.ascontiguousarray(sound).data)
        line["num_samples"] = len(sound)
    return line
