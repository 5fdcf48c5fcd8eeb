"""Any folder of videos as a corpus: find the files, probe them in parallel, remember the result.

The index lies next to the media as ``index.parquet``; where the folder cannot be written to, in the user's cache
under a name made from the folder. It records size and time of change of every file, so that the next call probes what
is new or changed and nothing else. What was refused is remembered in ``refused.parquet`` beside it, with the reason.

Names say what a folder says: clips in subfolders get the top subfolder as ``group`` and as ``label_folder``; top
folders called train, val, test are splits, and the names below them the groups. Clips without a split get one by the
CRC-32 of their file name.
"""

from __future__ import annotations

import os
import stat as stat_module
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from avssl_core import media
from avssl_core.data.corpus import INDEX_COLUMNS, INDEX_FILE, Corpus, is_shard, split_of, write_table
from avssl_core.data.errors import NoUsableClipsError
from avssl_core.data.locations import cache_home, digest

REFUSED_FILE = "refused.parquet"
VIDEO_SUFFIXES = frozenset(
    [
        ".3gp",
        ".avi",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
    ]
)
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
# Columns that only an index made here has; by them open_corpus knows that it may bring it up to date.
_IDENTITY = ("file_size", "file_mtime_ns")
_REFUSED_COLUMNS = ("uri", "reason", "file", *_IDENTITY)


# clip, reason, file, its size, its time of change
_Refusal = tuple[str, str, str, int, int]


@dataclass(frozen=True)
class _Found:
    """A file that could hold clips."""

    uri: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class _Clip:
    """A clip to be probed: a whole file, or a member of a shard."""

    file: _Found
    name: str  # path that splits and groups are read from
    offset: int | None = None
    length: int | None = None

    @property
    def clip_id(self) -> str:
        """The path of a loose file, ``shard.tar#member`` for a clip in a shard."""
        return self.file.uri if self.offset is None else f"{self.file.uri}#{self.name}"


def index_folder(
    root: str | Path,
    *,
    workers: int | None = None,
    progress: bool = True,
    verify: bool = True,
    index_dir: str | Path | None = None,
) -> tuple[Corpus, pd.DataFrame]:
    """Index the videos of a folder, or bring its index up to date.

    Args:
        root: folder with videos in it or below it, loose or in uncompressed tar shards. Hidden files and folders are
            passed over, symbolic links are followed, loops are noticed.
        workers: probing threads (the prober releases the interpreter); by default four a core, up to 32.
        progress: show a progress bar.
        verify: decode a little of each file, so that headers which lie are found out.
        index_dir: folder for the index instead of ``root`` or the user's cache.

    Returns:
        The corpus, and a table ``(uri, reason)`` of the files that were refused.

    Raises:
        NotADirectoryError: if ``root`` is not a folder.
        NoUsableClipsError: if there is no usable video; it lists the reasons.
    """
    root = Path(root)
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a folder; give the folder that holds the videos")
    home = _index_home(root, index_dir)
    old, old_refused = _previous(home)
    files, others = _scan(root)
    kept, kept_refused, changed = _unchanged(files, old, old_refused)
    clips, refused = _expand(root, changed)
    rows, refused_clips = _probe_all(root, clips, workers=workers, progress=progress, verify=verify)
    refusals = pd.concat([kept_refused, pd.DataFrame([*refused, *refused_clips], columns=list(_REFUSED_COLUMNS))])
    refusals = refusals.sort_values("uri", ignore_index=True)
    table = pd.concat([part for part in (kept, pd.DataFrame(rows)) if len(part)] or [pd.DataFrame()])
    if table.empty:
        raise NoUsableClipsError(
            _nothing_found(root, files, others), list(zip(refusals["uri"], refusals["reason"], strict=True))
        )
    corpus = Corpus(root, _named(table).sort_values("clip_id", ignore_index=True))
    if changed or len(kept) != len(old) or len(kept_refused) != len(old_refused):
        _remember(corpus, refusals, home)
    return corpus, refusals[["uri", "reason"]].copy()


def open_corpus(path: str | Path, *, workers: int | None = None, progress: bool = True) -> Corpus:
    """Open any corpus: a folder with ``index.parquet``, or any folder of videos, which is indexed at first use.

    An index that was made by ``index_folder`` is brought up to date with the files; one that came with the corpus is
    taken as it is. Prints what was refused, with reasons.
    """
    path = Path(path)
    if (path / INDEX_FILE).is_file():
        corpus = Corpus.load(path)
        if not set(_IDENTITY) <= set(corpus.index.columns):
            return corpus
    corpus, refused = index_folder(path, workers=workers, progress=progress)
    if len(refused) and progress:
        print(refusal_report(refused))
    return corpus


def refusal_report(refused: pd.DataFrame, *, shown: int = 10) -> str:
    """A few lines on what an index left out, and why."""
    lines = [f"{len(refused)} files were left out:"]
    lines += [f"  {row.uri}: {row.reason}" for row in refused.head(shown).itertuples()]
    if len(refused) > shown:
        lines.append(f"  … and {len(refused) - shown} more")
    return "\n".join(lines)


def _index_home(root: Path, index_dir: str | Path | None) -> Path:
    if index_dir is not None:
        return Path(index_dir)
    # os.access believes root on a read-only mount, but not on a folder without the write bit: look at both.
    writable = os.access(root, os.W_OK) and bool(root.stat().st_mode & 0o222)
    return root if writable else cache_home() / "indices" / digest(str(root.resolve()))


def _remember(corpus: Corpus, refusals: pd.DataFrame, home: Path) -> None:
    """Save the index; where even that is forbidden, in the user's cache."""
    try:
        _save(corpus, refusals, home)
    except OSError:
        fallback = cache_home() / "indices" / digest(str(corpus.root.resolve()))
        if fallback == home:
            raise
        _save(corpus, refusals, fallback)


def _save(corpus: Corpus, refusals: pd.DataFrame, home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    write_table(refusals, home / REFUSED_FILE)
    corpus.save(home)


def _previous(home: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The index and the refusals of an earlier call, empty if there was none or it cannot be read."""
    empty = pd.DataFrame(columns=[*INDEX_COLUMNS, *_IDENTITY]), pd.DataFrame(columns=list(_REFUSED_COLUMNS))
    try:
        index, refused = pd.read_parquet(home / INDEX_FILE), pd.read_parquet(home / REFUSED_FILE)
    except Exception:  # pyarrow raises a different class for each kind of damage; all mean: look again
        return empty
    known = set(_IDENTITY) <= set(index.columns) and set(_REFUSED_COLUMNS) <= set(refused.columns)
    return (index, refused) if known else empty


def _scan(root: Path) -> tuple[list[_Found], Counter[str]]:
    """Files that could hold clips, sorted; and the suffixes of all others, counted."""
    found, others = [], Counter[str]()
    for path in _walk(root):
        suffix = path.suffix.lower()
        if suffix not in VIDEO_SUFFIXES and suffix != ".tar":
            others[suffix or "(no suffix)"] += 1
            continue
        try:
            stat = path.stat()
        except OSError:  # a dangling link, or gone already: probing will say so
            found.append(_Found(path.relative_to(root).as_posix(), -1, -1))
            continue
        if stat_module.S_ISREG(stat.st_mode):  # opening a pipe would wait for ever
            found.append(_Found(path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns))
    return sorted(found, key=lambda file: file.uri), others


def _walk(root: Path) -> Iterator[Path]:
    """All files below ``root`` that are not hidden; every real folder is entered once, however many links lead to
    it."""
    seen = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _unchanged(
    files: list[_Found], old: pd.DataFrame, old_refused: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, list[_Found]]:
    """What of the earlier index still holds, and the files that have to be looked at."""
    now = {file.uri: (file.size, file.mtime_ns) for file in files}

    def holds(table: pd.DataFrame, files: str) -> pd.DataFrame:
        identities = zip(table[files], table["file_size"], table["file_mtime_ns"], strict=True)
        return table[np.array([now.get(name) == (size, mtime) for name, size, mtime in identities], dtype=bool)]

    kept, kept_refused = holds(old, "uri"), holds(old_refused, "file")
    done = {*kept["uri"], *kept_refused["file"]}
    return kept, kept_refused, [file for file in files if file.uri not in done]


def _expand(root: Path, files: list[_Found]) -> tuple[list[_Clip], list[_Refusal]]:
    """Clips of the files: each loose file is one, a shard has its members; and what was refused on sight."""
    clips: list[_Clip] = []
    refused = []
    for file in files:
        try:
            file.uri.encode()
            clips += _members(root, file) if is_shard(file.uri) else [_Clip(file, file.uri)]
        except UnicodeEncodeError:
            readable = file.uri.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            # Parquet cannot hold the name itself: the file is looked at again every time.
            refused.append(
                (readable, "the file name is not valid UTF-8; rename the file", readable, file.size, file.mtime_ns)
            )
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            reason = f"not a readable uncompressed tar shard: {error}"
            refused.append((file.uri, reason, file.uri, file.size, file.mtime_ns))
    return clips, refused


def _members(root: Path, file: _Found) -> list[_Clip]:
    """Videos inside a shard, in its order. ``r:`` refuses compressed archives, which cannot be read by offset."""
    clips = []
    with tarfile.open(root / file.uri, "r:") as shard:
        for member in shard:
            suffix = PurePosixPath(member.name).suffix.lower()
            if member.isreg() and not member.issparse() and suffix in VIDEO_SUFFIXES:
                clips.append(_Clip(file, member.name, member.offset_data, member.size))
    if not clips:
        raise ValueError("there is no video in it")
    return clips


def _probe_all(
    root: Path, clips: list[_Clip], *, workers: int | None, progress: bool, verify: bool
) -> tuple[list[dict[str, Any]], list[_Refusal]]:
    """Probe clips in parallel: index rows, and refusals."""
    rows, refused = [], []
    threads = workers or min(32, 4 * (os.cpu_count() or 1))
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(clips), desc="indexing", unit="clip", disable=not progress or not clips, leave=False) as bar,
    ):
        try:
            for clip, outcome in zip(
                clips, pool.map(lambda clip: _probe(root, clip, verify=verify), clips), strict=True
            ):
                bar.update()
                if isinstance(outcome, str):
                    refused.append((clip.clip_id, outcome, clip.file.uri, clip.file.size, clip.file.mtime_ns))
                else:
                    rows.append(outcome)
        finally:
            pool.shutdown(cancel_futures=True)
    return rows, refused


def _probe(root: Path, clip: _Clip, *, verify: bool) -> dict[str, Any] | str:
    """An index row, or the reason for a refusal."""
    path = root / clip.file.uri
    source = path if clip.offset is None else media.TarMember(str(path), clip.offset, clip.length or 0)
    try:
        info = media.probe(source, verify=verify)
    except (media.MediaError, OSError) as error:
        return str(getattr(error, "reason", None) or error)
    if info.video is None:
        return "has no video"
    duration = info.video.duration_s or info.duration_s
    if not duration or duration <= 0:
        return f"has no duration that makes sense ({duration} s)"
    return {
        "clip_id": clip.clip_id,
        "uri": clip.file.uri,
        "offset": clip.offset,
        "length": clip.length,
        "duration_s": duration,
        "audio_duration_s": info.audio.duration_s if info.audio else np.nan,
        "fps": info.video.fps,
        "width": info.video.width,
        "height": info.video.height,
        "video_codec": info.video.codec,
        "audio_codec": info.audio.codec if info.audio else "",
        "sample_rate": info.audio.sample_rate if info.audio else np.nan,
        "file_size": clip.file.size,
        "file_mtime_ns": clip.file.mtime_ns,
    }


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """Add split, group and label as the folders suggest; rows that have them keep them."""
    names = [
        PurePosixPath(clip_id[len(uri) + 1 :] if is_shard(uri) else clip_id)
        for clip_id, uri in zip(table["clip_id"], table["uri"], strict=True)
    ]
    tops = {name.parts[0].lower() for name in names if len(name.parts) > 1}
    by_split = bool(tops) and tops <= set(_SPLITS) and all(len(name.parts) > 1 for name in names)
    splits = [_SPLITS[name.parts[0].lower()] if by_split else split_of(name.name) for name in names]
    folders = [PurePosixPath(*name.parts[1:]) if by_split else name for name in names]
    tops_below = [folder.parts[0] if len(folder.parts) > 1 else None for folder in folders]
    proposals: dict[str, list[Any]] = {
        "split": splits,
        "group": [top or str(i) for top, i in zip(tops_below, table["clip_id"], strict=True)],
    }
    if any(tops_below):
        proposals["label_folder"] = tops_below
    for column, values in proposals.items():
        proposed = pd.Series(values, index=table.index, dtype=object)
        known = table[column] if column in table else pd.Series(None, index=table.index, dtype=object)
        table[column] = known.astype(object).where(known.notna(), proposed)
    return table


def _nothing_found(root: Path, files: list[_Found], others: Counter[str]) -> str:
    if files:
        return f"none of the {len(files)} files in {root} is a usable video"
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        suffixes = " ".join(sorted(VIDEO_SUFFIXES))
        return f"no video files in {root}, only {kinds}; videos are known by their suffix: {suffixes}"
    return f"no files in {root}"
