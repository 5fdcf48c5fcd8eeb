"""Published GRID videos to small clips of the lower face: a fixed window, transcoded in parallel, resumable."""

from __future__ import annotations

import csv
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch.nn import functional
from tqdm.auto import tqdm

from avssl_core.data import Corpus
from avssl_core.data.corpus import INDEX_FILE
from avssl_core.media import MediaError, MediaReader, probe, read_all, write_clip
from data_prep.grid.archives import Found, Key, Place, checksum, read_checksums, scan, verify
from data_prep.grid.corpus import WORDS_FILE, corpus_of, is_grid
from data_prep.grid.words import FPS, GridError, Sentence, parse_alignment, read_words, write_words

RECIPE_FILE = "recipe.json"
SOURCES_FILE = "sources.json"
QUARANTINE_FILE = "quarantine.csv"
SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Window:
    """The square of the picture that is kept, in pixels of a 360×288 picture (larger pictures scale it)."""

    top: int
    left: int
    side: int


# Speaker 1 at scale one. Other heads sit elsewhere and at other sizes; the default is wide enough for most, and
# preview_windows shows each speaker's before hours are spent.
SPEAKER_WINDOWS: Mapping[str, Window] = {"s1": Window(top=138, left=99, side=112)}
DEFAULT_WINDOW = Window(top=128, left=106, side=144)
_PUBLISHED = (288, 360)  # height, width of the standard-quality videos


@dataclass(frozen=True)
class _Job:
    """One sentence to transcode, as its process is told."""

    place: Place
    output: str
    window: Window
    size: int
    quantiser: int
    last_word_s: float


def build_grid(
    sources: Iterable[str | Path],
    out: str | Path,
    *,
    speakers: Iterable[str] | None = None,
    windows: Mapping[str, Window] | None = None,
    size: int = 112,
    quantiser: int = 3,
    checksums: Mapping[str, str] | str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Make the GRID lips corpus from archives already downloaded (or folders already unpacked).

    Each clip is cropped to its speaker's window, scaled to ``size`` and written as MPEG-4 Part 2 with an I picture
    every 12 and no B pictures, and AAC, 16 kHz, mono. Finished clips are not made again: a build that was stopped
    goes on where it was, and a later call adds speakers. What cannot be used is listed in ``quarantine.csv`` with its
    reason, and tried again by the next call.

    Args:
        sources: video and alignment archives, or folders that hold them or their content.
        out: folder to write; its name becomes part of the file names in ``words.csv``.
        speakers: only these (``"s1"``); all that are there by default.
        windows: what to keep of the picture, by speaker, instead of the defaults.
        size: side of the written pictures.
        quantiser: constant quantiser of the video, 1 (best) to 31.
        checksums: digests by archive name, or a file as ``sha256sum`` writes it; what is given is verified, and the
            digest of every archive is recorded in ``sources.json``.
        workers: processes; as many as cores by default.
        progress: show a bar.

    Returns:
        ``out``, which :func:`open_grid` and ``Corpus.load`` open.

    Raises:
        FileNotFoundError: a source does not exist.
        GridError: a checksum differs, there is no usable sentence, or ``out`` was made with other settings.
    """
    out = Path(out)
    found = scan(sources)
    if checksums is not None:
        verify(found.archives, checksums if isinstance(checksums, Mapping) else read_checksums(checksums))
    keys = sorted(key for key in found.videos if speakers is None or key[0] in set(speakers))
    if not keys:
        there = sorted({speaker for speaker, _ in found.videos})
        raise GridError(
            f"no videos to use in {[str(s) for s in sources]}; speakers found: {', '.join(there) or 'none'}"
        )
    out.mkdir(parents=True, exist_ok=True)
    chosen = {speaker: window_of(speaker, windows) for speaker, _ in keys}
    _agree_on_recipe(out, {"size": size, "quantiser": quantiser}, chosen)
    _record_sources(out, found)
    sentences, bad = _sentences(found, keys)
    jobs = [
        _Job(
            found.videos[s.speaker, _name(s)], str(out / s.file), chosen[s.speaker], size, quantiser, s.words[-1].end_s
        )
        for s in sentences
    ]
    rows = []
    for job, outcome in _transcode_all(jobs, workers, progress):
        if isinstance(outcome, str):
            bad.append((str(job.place), outcome))
        else:
            rows.append(outcome)
    _write_tables(out, sentences, rows, bad)
    return out


def window_of(speaker: str, windows: Mapping[str, Window] | None = None) -> Window:
    """The window of a speaker: yours, else the measured one, else the default."""
    return (windows or {}).get(speaker, SPEAKER_WINDOWS.get(speaker, DEFAULT_WINDOW))


def preview_windows(sources: Iterable[str | Path], *, windows: Mapping[str, Window] | None = None) -> Figure:
    """One picture a speaker as it would be cut out, to be looked at before a build."""
    from avssl_core.figures import contact_sheet  # not above: each worker would import seaborn

    first: dict[str, Place] = {}
    for (speaker, _), place in sorted(scan(sources).videos.items()):
        first.setdefault(speaker, place)
    if not first:
        raise GridError("there are no videos in these sources")
    clips = []
    for speaker, place in first.items():
        with MediaReader(place.source()) as reader:
            frames = reader.frames(1.0, num_frames=1, fps=FPS).frames
        clips.append(crop(frames, window_of(speaker, windows), size=112))
    return contact_sheet(clips, titles=list(first), columns=6, count=1)


def crop(frames: torch.Tensor, window: Window, *, size: int) -> torch.Tensor:
    """Cut the window out and scale it.

    Args:
        frames: uint8 ``(T, 3, H, W)``, the whole picture.
        window: in pixels of a 360×288 picture.
        size: side of the result.

    Returns:
        uint8 ``(T, 3, size, size)``.

    Raises:
        GridError: the window is not inside the picture.
    """
    height, width = frames.shape[-2:]
    down, across = height / _PUBLISHED[0], width / _PUBLISHED[1]
    top, left = round(window.top * down), round(window.left * across)
    rows, columns = round(window.side * down), round(window.side * across)
    if min(top, left) < 0 or top + rows > height or left + columns > width or min(rows, columns) < 1:
        raise GridError(f"{window} is not inside a picture of {width}×{height}")
    cut = frames[..., top : top + rows, left : left + columns]
    if (rows, columns) == (size, size):
        return cut
    scaled = functional.interpolate(cut.float(), (size, size), mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8)


def _sentences(found: Found, keys: Iterable[Key]) -> tuple[list[Sentence], list[tuple[str, str]]]:
    """Sentences with valid words, and the videos without, each with its reason."""
    sentences, bad = [], []
    for speaker, name in keys:
        text = found.alignment((speaker, name))
        try:
            if text is None:
                raise GridError("has no alignment file among the sources")
            sentences.append(Sentence(f"{speaker}_{name}.mp4", speaker, parse_alignment(text, name)))
        except GridError as error:
            bad.append((str(found.videos[speaker, name]), str(error)))
    return sentences, bad


def _transcode_all(
    jobs: list[_Job], workers: int | None, progress: bool
) -> Iterator[tuple[_Job, dict[str, Any] | str]]:
    """Outcome of every job: first the clips that are there already (a look at the header), then those to be made."""
    there = [job for job in jobs if Path(job.output).is_file()]
    yield from ((job, _transcode(job)) for job in there)
    waiting = sorted(set(jobs) - set(there), key=lambda job: job.output)
    count = min(workers or os.cpu_count() or 1, len(waiting))
    bar = partial(tqdm, total=len(waiting), desc="GRID", unit="clip", disable=not progress or not waiting)
    if count <= 1:
        yield from zip(waiting, bar(map(_transcode, waiting)), strict=True)
        return
    # spawned, not forked: decoders and torch hold threads, which do not survive a fork
    context = get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield from zip(waiting, bar(pool.map(_transcode, waiting, chunksize=4)), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


def _transcode(job: _Job) -> dict[str, Any] | str:
    """Make one clip unless it is there; its index row, or the reason why it is not usable."""
    output = Path(job.output)
    try:
        if not output.is_file():
            clip = read_all(job.place.source(), fps=FPS, size=None, sample_rate=SAMPLE_RATE)
            seconds = len(clip.frames) / FPS
            if clip.waveform is None or seconds < job.last_word_s:
                return f"its pictures end at {seconds:.2f} s, before the last word ({job.last_word_s:.2f} s)"
            length = round(seconds * SAMPLE_RATE)
            # the published sound ends up to 50 ms before the pictures: silence to the end, as in the published lips
            sound = functional.pad(clip.waveform[:length], (0, max(0, length - len(clip.waveform))))
            frames = crop(clip.frames, job.window, size=job.size)
            write_clip(
                output, frames, sound, fps=FPS, sample_rate=SAMPLE_RATE, gop=12, b_frames=0, quantiser=job.quantiser
            )
        return _row(output)
    except (MediaError, GridError, OSError, zipfile.BadZipFile, zlib.error) as error:
        return f"{type(error).__name__}: {error}"


def _row(path: Path) -> dict[str, Any]:
    info = probe(path)
    if info.video is None or info.audio is None:
        raise GridError(f"{path} lacks pictures or sound; delete it to have it made again")
    return {
        "clip_id": path.name,
        "uri": path.name,
        "duration_s": info.video.duration_s or info.duration_s,
        "audio_duration_s": info.audio.duration_s,
        "fps": info.video.fps,
        "width": info.video.width,
        "height": info.video.height,
        "video_codec": info.video.codec,
        "audio_codec": info.audio.codec,
        "sample_rate": info.audio.sample_rate,
    }


def _agree_on_recipe(out: Path, settings: Mapping[str, Any], windows: Mapping[str, Window]) -> None:
    """Refuse to mix clips of different settings in one folder; remember the settings of each speaker."""
    path = out / RECIPE_FILE
    old = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"settings": dict(settings), "windows": {}}
    )
    new = {speaker: asdict(window) for speaker, window in windows.items()}
    clashes = [s for s, window in new.items() if old["windows"].get(s, window) != window]
    if old["settings"] != settings or clashes:
        raise GridError(f"{out} was made with other settings {old}; use another folder, or delete this one")
    _write_json(path, {"settings": dict(settings), "windows": {**old["windows"], **new}})


def _record_sources(out: Path, found: Found) -> None:
    """Names, sizes and SHA-256 of the archives, added to what earlier calls used."""
    path = out / SOURCES_FILE
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for archive in found.archives:
        stat = archive.stat()
        entry = known.get(archive.name, {})
        if (entry.get("bytes"), entry.get("modified_ns")) != (stat.st_size, stat.st_mtime_ns):  # hashing takes minutes
            known[archive.name] = {"bytes": stat.st_size, "modified_ns": stat.st_mtime_ns, "sha256": checksum(archive)}
    _write_json(path, known)


def _write_tables(out: Path, sentences: list[Sentence], rows: list[dict[str, Any]], bad: list[tuple[str, str]]) -> None:
    """Tables of everything in the folder: this call's clips and those of earlier calls."""
    probed = pd.DataFrame(rows)
    usable = {row["uri"] for row in rows}
    kept = [sentence for sentence in sentences if sentence.file in usable]
    if is_grid(out) and (out / INDEX_FILE).is_file():
        earlier = [s for s in read_words(out / WORDS_FILE) if s.file not in {each.file for each in sentences}]
        old = Corpus.load(out).index
        columns = [name for name in old.columns if not name.startswith("label_")]
        probed = pd.concat([old.loc[old["uri"].isin([s.file for s in earlier]), columns], probed], ignore_index=True)
        kept = [*earlier, *kept]
    _write_quarantine(out / QUARANTINE_FILE, bad)
    if not kept:
        raise GridError(f"none of the {len(bad)} videos is usable, see {out / QUARANTINE_FILE}; the first: {bad[0]}")
    kept.sort(key=lambda sentence: sentence.file)
    write_words(out / WORDS_FILE, kept, out.resolve().name)
    corpus_of(out, probed, read_words(out / WORDS_FILE)).save()


def _write_quarantine(path: Path, bad: Iterable[tuple[str, str]]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("file", "reason"), *bad])
    os.replace(temporary, path)


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _name(sentence: Sentence) -> str:
    """``s1_bbaf2n.mp4`` → ``bbaf2n``."""
    return Path(sentence.file).stem.partition("_")[2]
