"""One film: does it have the form already, is the written one what was asked for, and the way between the two."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from avssl_core.media import (
    CompressedReader,
    GopSpec,
    MediaError,
    MediaInfo,
    MediaReader,
    Source,
    Structure,
    TarMember,
)
from avssl_core.media.convert import target_size
from avssl_core.media.gops import MPEG4
from avssl_core.media.survey import Survey, quantisers, survey
from avssl_core.media.transcode import require_settings, transcode
from data_prep.compress.records import WORKSHOP, Film

# What ends a run rather than condemning one film: nothing can be written any more.
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# A written sound track may end this much later or earlier than what was put in: the encoder's last block, rounding.
_SOUND_S = 0.2
_COPIED = 1 << 20  # bytes at a time


@dataclass(frozen=True)
class Settings:
    """What films are made into.

    Attributes:
        size: ``None`` (as they are), the short side, or ``(height, width)``, in pixels.
        gop: pictures of each group but the last.
        quantiser: constant, 1 (best) to 31.
        fps: pictures a second; each film's own average rate where ``None``.
        keep: whether films that have the form already stay as they are (their quantiser is not asked for).

    Raises:
        ValueError: out of range.
    """

    size: int | tuple[int, int] | None = None
    gop: int = 12
    quantiser: int = 3
    fps: float | None = None
    keep: bool = True

    def __post_init__(self) -> None:
        require_settings(size=self.size, gop=self.gop, quantiser=self.quantiser, fps=self.fps)


@dataclass(frozen=True)
class Job:
    """One film to be done, as a worker is told.

    Attributes:
        clip_id: of the source's corpus.
        source: the film.
        source_bytes: its size.
        source_mtime_ns: when it was changed.
        own: where it goes if it is kept, relative to ``out``.
        target: where it goes if it is transcoded.
        out: the folder.
        settings: what to make.
        limit_s: seconds that it may take.
    """

    clip_id: str
    source: Path | TarMember
    source_bytes: int
    source_mtime_ns: int
    own: str
    target: str
    out: Path
    settings: Settings
    limit_s: float


def convert(job: Job) -> Film | str:
    """Do one film; the reason where that is impossible.

    Raises:
        OSError: the disk is full or cannot be written to.
    """
    settings = job.settings
    try:
        seen = survey(job.source)
        kept = settings.keep and misfit(job.source, seen, settings) is None
        with tempfile.TemporaryDirectory(dir=job.out / WORKSHOP) as bench:
            path = Path(bench) / PurePosixPath(job.own if kept else job.target).name
            sound_s = _copy(job.source, path) if kept else _transcode(job.source, path, settings)
            fault = verify(path, seen, settings, quantiser=None if kept else settings.quantiser, sound_s=sound_s)
            if fault is not None:
                return f"what was written does not verify: {fault}"
            return _placed(path, job, kept=kept)
    except Exception as error:  # whatever it is, it concerns this film alone
        if isinstance(error, OSError) and error.errno in _FATAL:
            raise
        return f"{type(error).__name__}: {error.reason if isinstance(error, MediaError) else error}"


def misfit(source: Source, seen: Survey, settings: Settings) -> str | None:
    """Why a film has to be transcoded; ``None`` where it has the form already.

    Args:
        source: the film.
        seen: its survey.
        settings: what is wanted.
    """
    if seen.codec != MPEG4:
        return f"the codec is {seen.codec}"
    if seen.turned:
        return "a display matrix turns its pictures, which motion vectors do not know"
    try:
        with CompressedReader(source) as reader:
            return _structure_fault(reader.structure, seen, settings)
    except MediaError as error:
        return error.reason


def verify(
    path: Path, seen: Survey, settings: Settings, *, quantiser: int | None = None, sound_s: float | None = None
) -> str | None:
    """What is wrong with a finished film; ``None`` where it can be read by groups as its source could by time.

    Args:
        path: the film.
        seen: the survey of its source.
        settings: what it should be.
        quantiser: of every picture; ``None`` for any.
        sound_s: end of the sound that was written in seconds; ``None`` where that is not known.

    Raises:
        MediaError: the film cannot be read at all.
    """
    with CompressedReader(path) as reader:
        structure = reader.structure
        fault = _structure_fault(structure, seen, settings)
        if fault is not None:
            return fault
        for number in sorted({0, len(structure.gops) - 1}):  # taken apart: the first group and the last
            length = len(structure.gops[number])
            if length > 1:
                reader.clip(number, GopSpec(gops=1, gop_size=length, stride=1))
            else:
                reader.iframes([number])
    found = quantisers(path)
    if quantiser is not None and found != {quantiser}:
        return f"its quantisers are {sorted(found)}, expected {quantiser} alone"
    return _sound_fault(path, seen, sound_s)


def _structure_fault(structure: Structure, seen: Survey, settings: Settings) -> str | None:
    """What about the groups, the size, or the number and times of the pictures is not as it should be."""
    lengths = [len(gop) for gop in structure.gops]
    if structure.coded_obstacle is not None:
        return f"it has {structure.coded_obstacle}"
    if structure.gops[0].headless or set(lengths[:-1]) - {settings.gop} or lengths[-1] > settings.gop:
        return f"its groups have {sorted(set(lengths))} pictures, expected {settings.gop} each but in the last"
    wanted = target_size(seen.height, seen.width, settings.size)
    if (structure.height, structure.width) != wanted:
        return f"its size is {structure.height}×{structure.width}, expected {wanted[0]}×{wanted[1]} (height×width)"
    expected = seen.length_s * (settings.fps or float(seen.rate))
    if abs(structure.num_pictures - expected) > 1:
        return f"it has {structure.num_pictures} pictures, expected {expected:.0f}"
    return _pace_fault(structure, settings.fps)


def _pace_fault(structure: Structure, fps: float | None) -> str | None:
    if fps is not None and abs(structure.fps / fps - 1) > 1e-3:
        return f"it has {structure.fps:.3f} pictures a second, expected {fps:.3f}"
    number = 0
    for gop in structure.gops:
        if abs(gop.start_s - number / structure.fps) > 0.5 / structure.fps:
            return f"its pictures are not evenly spaced: number {number} is shown at {gop.start_s:.3f} s"
        number += len(gop)
    return None


def _sound_fault(path: Path, seen: Survey, sound_s: float | None) -> str | None:
    with MediaReader(path) as reader:
        info = reader.info
        if not seen.sound:
            return None if info.audio is None else "it has sound, its source has none"
        if info.audio is None:
            return "it has no sound, its source has"
        if sound_s is not None and abs(info.audio.duration_s - sound_s) > _SOUND_S:
            return f"its sound ends at {info.audio.duration_s:.2f} s, expected {sound_s:.2f} s"
        length_s = min(0.5, info.duration_s - info.start_s)
        if length_s > 0:
            reader.samples(info.start_s, num_samples=max(1, int(length_s * 8000)), sample_rate=8000)
    return None


def _transcode(source: Source, path: Path, settings: Settings) -> float | None:
    """Write a film anew; the end of its sound."""
    made = transcode(source, path, size=settings.size, gop=settings.gop, quantiser=settings.quantiser, fps=settings.fps)
    return made.sound_s


def _copy(source: Path | TarMember, path: Path) -> None:
    """A film as it is, out of its shard where it lies in one. No link: the copy must outlive changes of the source."""
    if not isinstance(source, TarMember):
        shutil.copyfile(source, path)
        return
    with open(source.path, "rb") as shard, open(path, "wb") as file:
        shard.seek(source.offset)
        for left in range(source.length, 0, -_COPIED):
            file.write(shard.read(min(left, _COPIED)))


def _placed(path: Path, job: Job, *, kept: bool) -> Film:
    """Put a verified film in its place, by one rename."""
    file, other = (job.own, job.target) if kept else (job.target, job.own)
    with MediaReader(path) as reader:
        facts = _facts(reader.info)
    size = path.stat().st_size
    (job.out / file).parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, job.out / file)
    if other != file:
        (job.out / other).unlink(missing_ok=True)  # from before its source was changed
    return Film(job.clip_id, job.source_bytes, job.source_mtime_ns, file, size, kept, facts)


def _facts(info: MediaInfo) -> dict[str, Any]:
    """What an index says about a film."""
    video, audio = info.video, info.audio
    assert video is not None  # it was taken apart
    return {
        "duration_s": video.duration_s,
        "audio_duration_s": audio.duration_s if audio is not None else None,
        "fps": video.fps,
        "width": video.width,
        "height": video.height,
        "video_codec": video.codec,
        "audio_codec": audio.codec if audio is not None else "",
        "sample_rate": audio.sample_rate if audio is not None else None,
    }
