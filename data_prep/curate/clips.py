"""From films to clips: every candidate is decoded once, small, for its shots, its signatures and its faults."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from avssl_core.data.corpus import write_table
from avssl_core.media import MediaReader, Source, TarMember
from data_prep.compress.build import PATIENCE, PATIENCE_S
from data_prep.curate.candidates import Film, Refusal, as_reason, place_in_shard
from data_prep.curate.shots import (
    Stretch,
    histogram_jumps,
    least_alike,
    picture_signature,
    place_stretches,
    sound_signature,
)
from data_prep.curate.stages import ShardJob

SCAN_FPS = 4.0
SCAN_SIZE = (32, 32)
SCAN_RATE = 8000  # Hz
_READ = 1 << 20
# What ends a run rather than condemning one clip: nothing can be written any more.
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Cutting:
    """How films become clips.

    Attributes:
        length_s: of a clip; a film that is no longer is one clip.
        most: clips of a film.
        threshold: of the histograms' difference at a shot boundary, in (0, 1).
    """

    length_s: float = 10.0
    most: int = 3
    threshold: float = 0.3


@dataclass(frozen=True)
class Clip:
    """A stretch of a film that may be kept.

    Attributes:
        clip_id: the film's id, with ``@start-end`` behind it where the film is longer than the clip.
        film: where it is from.
        start_s: in the film.
        length_s: seconds.
        digest: of the film's bytes.
        picture: signature, hexadecimal.
        sound: signature, hexadecimal.
    """

    clip_id: str
    film: Film
    start_s: float
    length_s: float
    digest: str
    picture: str
    sound: str

    @property
    def key(self) -> str:
        return self.clip_id

    @property
    def identity(self) -> tuple[Any, ...]:
        return self.clip_id, self.film.size, self.film.mtime_ns, self.start_s, self.length_s

    @property
    def limit_s(self) -> float:
        return PATIENCE_S + PATIENCE * self.length_s

    @property
    def row(self) -> dict[str, Any]:
        """What a manifest says of it."""
        offset, length = place_in_shard(self.film.source)
        return {
            "clip_id": self.clip_id,
            "uri": self.film.uri,
            "offset": offset,
            "length": length,
            "start_s": self.start_s,
            "end_s": self.start_s + self.length_s,
        }


def cut_films(job: ShardJob) -> None:
    """Do a shard of films: a table of their clips, with a reason in the place of a film's clips where it has none."""
    rows: list[dict[str, Any]] = []
    for film in job.items:
        if film.key in job.skip:
            rows.append({"film_id": film.film_id, "reason": job.skip[film.key]})
            continue
        try:
            rows += _clips_of(film, job.spec)
        except Exception as error:  # whatever it is, it concerns this film alone
            if fatal(error):
                raise
            rows.append({"film_id": film.film_id, "reason": as_reason(error)})
    columns = ["film_id", "clip_id", "start_s", "length_s", "digest", "picture", "sound", "reason"]
    write_table(pd.DataFrame(rows, columns=columns), job.path)


def read_clips(films: Iterable[Film], files: Iterable[Path]) -> tuple[list[Clip], list[Refusal]]:
    """Clips of all shards in the order of their ids, and the films that were refused."""
    by_id = {film.film_id: film for film in films}
    clips, refused = [], []
    for table in (pd.read_parquet(file) for file in files):
        for row in table.itertuples(index=False):
            film = by_id[row.film_id]
            if isinstance(row.reason, str):
                refused.append((film.film_id, film.uri, "clips", row.reason))
            else:
                clips.append(Clip(row.clip_id, film, row.start_s, row.length_s, row.digest, row.picture, row.sound))
    return sorted(clips, key=lambda clip: clip.clip_id), refused


def fatal(error: Exception) -> bool:
    """Whether an error ends the run: the disk is full, or cannot be written to."""
    return isinstance(error, OSError) and error.errno in _FATAL


def as_hex(bits: Tensor) -> str:
    """Bits as text."""
    return np.packbits(bits.numpy()).tobytes().hex()


def _clips_of(film: Film, cutting: Cutting) -> list[dict[str, Any]]:
    with MediaReader(film.source) as reader:
        frames = reader.whole(fps=SCAN_FPS, size=SCAN_SIZE, sample_rate=None).frames
        begin_s, end_s = reader.info.start_s, min(film.usable_s, reader.info.duration_s)
        stretches = place_stretches(
            histogram_jumps(frames),
            fps=SCAN_FPS,
            begin_s=begin_s,
            end_s=end_s,
            length_s=cutting.length_s,
            wanted=cutting.most,
            threshold=cutting.threshold,
        )
        pictures = [picture_signature(_shown(frames, stretch)) for stretch in stretches]
        kept = least_alike(_resemblance(pictures), cutting.most)
        sounds = {k: _heard(reader, stretches[k]) for k in kept}
    whole = _digest(film.source)
    return [
        {
            "film_id": film.film_id,
            "clip_id": _clip_id(film, stretches[k], end_s - begin_s),
            "start_s": stretches[k].start_s,
            "length_s": stretches[k].length_s,
            "digest": whole,
            "picture": as_hex(pictures[k]),
            "sound": as_hex(sounds[k]),
        }
        for k in kept
    ]


def _shown(frames: Tensor, stretch: Stretch) -> Tensor:
    """The scanned pictures of a stretch, at least one."""
    first = min(int(stretch.start_s * SCAN_FPS + 0.5), len(frames) - 1)
    return frames[first : max(first + 1, int((stretch.start_s + stretch.length_s) * SCAN_FPS + 0.5))]


def _heard(reader: MediaReader, stretch: Stretch) -> Tensor:
    samples = max(1, int(stretch.length_s * SCAN_RATE))
    return sound_signature(reader.samples(stretch.start_s, num_samples=samples, sample_rate=SCAN_RATE))


def _resemblance(signatures: list[Tensor]) -> np.ndarray:
    bits = torch.stack(signatures).float()  # (n, 256)
    return 1 - torch.cdist(bits, bits, p=1).numpy() / bits.shape[1]


def _clip_id(film: Film, stretch: Stretch, whole_s: float) -> str:
    if stretch.length_s >= whole_s:
        return film.film_id
    return f"{film.film_id}@{stretch.start_s:.2f}-{stretch.start_s + stretch.length_s:.2f}"


def _digest(source: Source) -> str:
    """Of the bytes of a film, wherever they lie."""
    path, offset, left = (
        (source.path, source.offset, source.length) if isinstance(source, TarMember) else (source, 0, None)
    )
    found = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        file.seek(offset)
        while block := file.read(_READ if left is None else min(_READ, left)):
            found.update(block)
            left = None if left is None else left - len(block)
    return found.hexdigest()
