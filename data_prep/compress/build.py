"""A folder of videos to a corpus that can be read by groups of pictures: in parallel, resumable, verified."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import pandas as pd
from tqdm.auto import tqdm

from avssl_core.data import Corpus, index_folder
from avssl_core.data.corpus import INDEX_FILE, TIMED_FILE, is_shard
from avssl_core.data.indexing import VIDEO_SUFFIXES
from avssl_core.media import TarMember
from data_prep.compress.films import Job, Settings, convert
from data_prep.compress.pool import outcomes
from data_prep.compress.records import (
    QUARANTINE_FILE,
    WORKSHOP,
    CompressError,
    Film,
    add_film,
    agree,
    exclusive,
    read_films,
    write_films,
    write_quarantine,
)

_SOURCE_INDEX = ".source"
# Columns that only an index made by index_folder has.
_IDENTITY = ["file_size", "file_mtime_ns"]
# What a film may take: so many times its length, and this besides. Two hours of 4K take a core two to three times that.
PATIENCE, PATIENCE_S = 30.0, 600.0


@dataclass(frozen=True)
class Report:
    """What came of a folder.

    Attributes:
        out: the corpus that was written.
        transcoded: films transcoded by this run.
        kept: films that this run found to have the form already.
        earlier: films that an earlier run had finished.
        refused: ``(uri, reason)`` of every film that is not usable; the same as ``quarantine.csv``.
        bytes_before: size of the sources of all films that are there now.
        bytes_after: size of these films.
    """

    out: Path
    transcoded: int
    kept: int
    earlier: int
    refused: tuple[tuple[str, str], ...]
    bytes_before: int
    bytes_after: int


def compress_folder(
    source: str | Path,
    out: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    gop: int = 12,
    quantiser: int = 3,
    fps: float | None = None,
    keep: bool = True,
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Make every film of a folder readable by groups of pictures.

    Films become MPEG-4 Part 2 with groups of exactly ``gop`` pictures, no B pictures and a constant quantiser, and mono
    AAC where the source has sound. One file a source, at the same place below ``out``, ``.mp4``; a film in a tar shard
    goes to a folder named after the shard. Films that have the form already keep their bytes and their name. Clip ids,
    labels, splits, groups and timed labels of the source's index go over to the new one.

    A run that was stopped goes on where it was; a film whose source has changed is done again, one whose source is gone
    stays in the folder but not in the index. What cannot be used is listed in ``quarantine.csv`` with its reason, and
    tried again by the next run. A film that takes ten minutes and thirty times its own length is given up.

    Args:
        source: folder of videos, or a corpus.
        out: folder to write, outside ``source``.
        size: ``None`` (as they are), the short side, or ``(height, width)``, of the upright picture in pixels.
        gop: pictures of each group; only a film's last may be shorter.
        quantiser: constant quantiser, 1 (best) to 31.
        fps: pictures a second; each film's own average rate by default.
        keep: copy films as they are that have the form already; their quantiser is not looked at. Otherwise all are
            transcoded.
        workers: processes; by default one a core that this process may use. Never changes the result. With 0, films are
            done in this process, which a crash of a decoder then ends.
        progress: show a bar.

    Returns:
        What came of it.

    Raises:
        NotADirectoryError: ``source`` is not a folder.
        CompressError: ``out`` was made with other settings or holds other things; not one film is usable.
        CorpusError: the source's index cannot be used, or there is no video in it.
        OSError: the disk is full or cannot be written to.
        ValueError: settings out of range.
    """
    settings = Settings(size=size, gop=gop, quantiser=quantiser, fps=fps, keep=keep)
    source, out = Path(source).expanduser(), Path(out).expanduser()
    _require_apart(source, out)
    out.mkdir(parents=True, exist_ok=True)
    with exclusive(out):
        agree(out, source.resolve(), asdict(settings))
        corpus, refused = opened(source, out / _SOURCE_INDEX, progress=progress)
        jobs, odd = _jobs(corpus, out, settings)
        earlier = _finished_earlier(jobs, out)
        waiting = [job for job in jobs if job.clip_id not in earlier]
        done, failed = _convert_all(waiting, out, cores() if workers is None else workers, progress)
        films, refused = {**earlier, **done}, sorted([*refused, *odd, *failed])
        write_quarantine(out, refused)
        if not films:
            first = ": ".join(refused[0])
            raise CompressError(f"no film of {source} is usable, see {out / QUARANTINE_FILE}; the first: {first}")
        write_films(out, (read_films(out) | films).values())
        _write_index(out, corpus, films)
    return Report(
        out=out,
        transcoded=sum(not film.kept for film in done.values()),
        kept=sum(film.kept for film in done.values()),
        earlier=len(earlier),
        refused=tuple(refused),
        bytes_before=sum(film.source_bytes for film in films.values()),
        bytes_after=sum(film.bytes for film in films.values()),
    )


def _require_apart(source: Path, out: Path) -> None:
    if not source.is_dir():
        raise NotADirectoryError(f"{source} is not a folder; give the folder that holds the videos")
    inner, outer = out.resolve(), source.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise CompressError(
            f"{out} and {source} lie one in the other, so that one would be taken for part of the other; give a folder "
            "to write that is elsewhere"
        )
    if out.exists() and not out.is_dir():
        raise CompressError(f"{out} is a file; give a folder")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def opened(source: Path, index_dir: Path, *, progress: bool) -> tuple[Corpus, list[tuple[str, str]]]:
    """The source as a corpus, and ``(uri, reason)`` of what its index refused.

    Args:
        source: folder of videos, or a corpus.
        index_dir: where an index is made that the source does not have.
        progress: show a bar.
    """
    indexed = (source / INDEX_FILE).is_file()
    if indexed:
        corpus = Corpus.load(source)
        if not set(_IDENTITY) <= set(corpus.index.columns):  # it came with the corpus
            return corpus, []
    corpus, refused = index_folder(source, progress=progress, index_dir=None if indexed else index_dir)
    return corpus, list(zip(refused["uri"], refused["reason"], strict=True))


def _jobs(corpus: Corpus, out: Path, settings: Settings) -> tuple[list[Job], list[tuple[str, str]]]:
    """What is to be there in the end, in the order of the index; and what has no file, or no name of its own."""
    jobs, refused, taken = [], [], dict[str, str]()
    pairs = list(zip(corpus.index["clip_id"], corpus.index["uri"], strict=True))
    places = [_place(clip_id, uri) for clip_id, uri in pairs]
    stems = Counter(place.with_suffix("") for place in places)
    for row, ((clip_id, uri), place) in enumerate(zip(pairs, places, strict=True)):
        alone = stems[place.with_suffix("")] == 1
        target = str(place.with_suffix(".mp4") if alone else place.with_name(f"{place.name}.mp4"))
        own = str(place) if place.suffix.lower() in VIDEO_SUFFIXES else target
        other = taken.get(own) or taken.get(target)
        try:
            size, mtime_ns = identity(corpus.source(row))
        except OSError as error:
            refused.append((uri, f"cannot be read ({error.strerror}); index the source again"))
            continue
        if other is not None:
            refused.append((clip_id, f"would get the same name as {other}; rename one of the two"))
            continue
        taken[own] = taken[target] = clip_id
        limit_s = PATIENCE_S + PATIENCE * float(corpus.index["duration_s"].iat[row])
        jobs.append(Job(clip_id, corpus.source(row), size, mtime_ns, own, target, out, settings, limit_s))
    return jobs, refused


def _place(clip_id: str, uri: str) -> PurePosixPath:
    """Where a film goes, with its own suffix: the same place as before, or a folder named after its shard."""
    if not is_shard(uri):
        return PurePosixPath(uri)
    inside = PurePosixPath(clip_id.removeprefix(f"{uri}#"))
    # a shard may come from anywhere, and its names must not lead out of the folder
    return PurePosixPath(uri).with_suffix("").joinpath(*(part for part in inside.parts if part not in ("/", "..")))


def identity(source: Path | TarMember) -> tuple[int, int]:
    """Size and time of change of a film's source."""
    if isinstance(source, TarMember):
        return source.length, os.stat(source.path).st_mtime_ns
    status = source.stat()
    return status.st_size, status.st_mtime_ns


def _finished_earlier(jobs: list[Job], out: Path) -> dict[str, Film]:
    """Films that an earlier run finished and that are still what their jobs ask for; others are forgotten."""
    recorded, wanted = read_films(out), {job.clip_id: job for job in jobs}
    stale = {clip_id for clip_id, film in recorded.items() if clip_id in wanted and not _holds(film, wanted[clip_id])}
    for clip_id in stale:
        (out / recorded[clip_id].file).unlink(missing_ok=True)
    kept = {clip_id: film for clip_id, film in recorded.items() if clip_id not in stale}
    write_films(out, kept.values())  # also without the line that a killed run left incomplete
    return {clip_id: film for clip_id, film in kept.items() if clip_id in wanted}


def _holds(film: Film, job: Job) -> bool:
    path = job.out / film.file
    same_source = (film.source_bytes, film.source_mtime_ns) == (job.source_bytes, job.source_mtime_ns)
    there = film.file in (job.own, job.target) and path.is_file()
    return same_source and there and path.stat().st_size == film.bytes


def _convert_all(
    jobs: list[Job], out: Path, workers: int, progress: bool
) -> tuple[dict[str, Film], list[tuple[str, str]]]:
    """Do the films; each one that is finished is on record at once."""
    done, refused = {}, []
    bar = tqdm(total=len(jobs), desc="compressing", unit="film", disable=not progress or not jobs)
    with _workshop(out), bar:
        for job, outcome in outcomes(convert, jobs, workers, lambda job: job.limit_s):
            bar.update()
            if isinstance(outcome, Film):
                add_film(out, outcome)
                done[job.clip_id] = outcome
            else:
                refused.append((job.clip_id, str(outcome)))
    return done, refused


@contextmanager
def _workshop(out: Path) -> Iterator[None]:
    """A folder for what is not finished, without what a killed run has left in it."""
    shutil.rmtree(out / WORKSHOP, ignore_errors=True)
    (out / WORKSHOP).mkdir()
    try:
        yield
    finally:
        shutil.rmtree(out / WORKSHOP, ignore_errors=True)


def _write_index(out: Path, corpus: Corpus, films: Mapping[str, Film]) -> None:
    """The source's index for the films that are there, with what is now true of their files."""
    part = corpus.select(rows=corpus.index["clip_id"].isin(films).to_numpy())
    rows = [{"uri": films[clip_id].file, **films[clip_id].facts} for clip_id in part.index["clip_id"]]
    facts = pd.DataFrame(rows)
    old = part.index.drop(columns=[*facts.columns, "offset", "length", *_IDENTITY], errors="ignore")
    Corpus(out, pd.concat([old, facts], axis=1), part.timed).save()
    if part.timed is None:
        (out / TIMED_FILE).unlink(missing_ok=True)
