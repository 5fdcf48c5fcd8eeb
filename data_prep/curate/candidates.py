"""The candidate list: films of a folder or corpus, and why each of the others cannot be one.

ACAV100M (https://arxiv.org/abs/2101.10803) finds its candidates by searching the web, filters them by what is known
before a download (duration from 30 to 600 s, categories, title words, the language of descriptions), and so comes to
140 million videos. A folder has files: what is known before decoding is their length and their tracks. Titles and
languages are not looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from avssl_core.data import Corpus
from avssl_core.media import Source, TarMember
from data_prep.compress.build import PATIENCE, PATIENCE_S, identity, opened

REFUSED_COLUMNS = ("clip_id", "uri", "stage", "reason")
Refusal = tuple[str, str, str, str]


@dataclass(frozen=True)
class Film:
    """A film that may give clips.

    Attributes:
        film_id: its clip id in the source's index.
        uri: its file, relative to the source.
        source: what the readers take.
        usable_s: seconds that have both pictures and sound.
        size: bytes.
        mtime_ns: time of change.
        codec: of its pictures, where the index names it.
    """

    film_id: str
    uri: str
    source: Path | TarMember
    usable_s: float
    size: int
    mtime_ns: int
    codec: str | None = None

    @property
    def key(self) -> str:
        return self.film_id

    @property
    def identity(self) -> tuple[Any, ...]:
        return self.film_id, self.size, self.mtime_ns, round(self.usable_s, 3)

    @property
    def limit_s(self) -> float:
        return PATIENCE_S + PATIENCE * self.usable_s


@dataclass(frozen=True)
class Candidates:
    """Films, and what was refused.

    Attributes:
        films: in the order of their ids.
        refused: ``(id, uri, stage, reason)``.
    """

    films: tuple[Film, ...]
    refused: tuple[Refusal, ...]


def list_candidates(
    source: Path, index_dir: Path, *, min_s: float, max_s: float = math.inf, progress: bool = True
) -> Candidates:
    """List the films of a folder or corpus that have sound and a fitting length.

    Args:
        source: folder of videos, or a corpus.
        index_dir: where an index is made that the source does not have; nothing is written into the source then.
        min_s: shortest film in seconds.
        max_s: longest film in seconds.
        progress: show a bar.

    Raises:
        NoUsableClipsError: there is no usable video at all.
        CorpusError, NotADirectoryError: the source cannot be read.
    """
    corpus, unreadable = opened(source, index_dir, progress=progress)
    refused: list[Refusal] = [(uri, uri, "index", reason) for uri, reason in unreadable]
    films = []
    for row, usable_s in enumerate(_usable_seconds(corpus)):
        film_id, uri = corpus.index["clip_id"].iat[row], corpus.index["uri"].iat[row]
        reason = _unfit(corpus.index["audio_codec"].iat[row], usable_s, min_s, max_s)
        try:
            size, mtime_ns = identity(corpus.source(row))
        except OSError as error:
            reason = f"cannot be read ({error.strerror}); index the source again"
        if reason is not None:
            refused.append((film_id, uri, "candidates", reason))
        else:
            codec = corpus.index["video_codec"].iat[row]
            films.append(Film(film_id, uri, corpus.source(row), float(usable_s), size, mtime_ns, codec))
    return Candidates(tuple(sorted(films, key=lambda film: film.film_id)), tuple(sorted(refused)))


def as_reason(error: Exception) -> str:
    """Why a film or clip cannot be used, from what its readers raised."""
    return f"{type(error).__name__}: {getattr(error, 'reason', None) or error}"


def place_in_shard(source: Source) -> tuple[int | None, int | None]:
    """Byte offset and length of a film inside a tar shard; ``None`` for a loose file."""
    return (source.offset, source.length) if isinstance(source, TarMember) else (None, None)


def _usable_seconds(corpus: Corpus) -> np.ndarray:
    seconds = corpus.index["duration_s"].to_numpy(dtype=np.float64)
    if "audio_duration_s" in corpus.index:
        sound = corpus.index["audio_duration_s"].to_numpy(dtype=np.float64)
        seconds = np.where(np.isnan(sound), seconds, np.minimum(seconds, sound))
    return seconds


def _unfit(audio_codec: str | None, usable_s: float, min_s: float, max_s: float) -> str | None:
    if audio_codec == "" and not pd.isna(audio_codec):
        return "has no sound"
    if usable_s < min_s:
        return f"lasts {usable_s:.2f} s, less than {min_s:g} s"
    if usable_s > max_s:
        return f"lasts {usable_s:.2f} s, more than {max_s:g} s"
    return None
