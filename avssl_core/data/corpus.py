"""A corpus: media files, loose or inside plain tar shards, and one Parquet table with a row a clip.

``index.parquet`` names each clip by a path relative to the folder of the corpus; a clip inside a tar shard has the
byte offset and length of the member as well, so that shards are read in place. ``timed.parquet``, where present,
holds labels with a time: words, events. Both are ordinary tables: write them with pandas for a corpus of your own.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from avssl_core.data.errors import CorpusError
from avssl_core.media import TarMember

INDEX_FILE = "index.parquet"
TIMED_FILE = "timed.parquet"

REQUIRED = ("clip_id", "uri", "duration_s")
_TEXT = ("clip_id", "uri", "video_codec", "audio_codec", "split", "group")
_NUMBERS = ("offset", "length", "duration_s", "fps", "width", "height", "sample_rate")
INDEX_COLUMNS = (
    "clip_id", "uri", "offset", "length", "duration_s", "fps", "width", "height",
    "video_codec", "audio_codec", "sample_rate", "split", "group",
)  # fmt: skip
TIMED_COLUMNS = ("clip_id", "start_s", "end_s", "kind", "label")


@dataclass
class Corpus:
    """Clips and what is known about them.

    Attributes:
        root: folder that uris are relative to.
        index: one row a clip, columns ``INDEX_COLUMNS`` and any number of label columns named ``label_…``.
            ``audio_codec`` is empty for a clip known to be silent, null where nobody looked.
        timed: one row a label with a time (``TIMED_COLUMNS``), or ``None``.
    """

    root: Path
    index: pd.DataFrame
    timed: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        self.root = Path(self.root)
        where = str(self.root / INDEX_FILE)
        self.index = _checked_index(self.index, where)
        if self.timed is not None:
            self.timed = _checked_timed(self.timed, self.index, str(self.root / TIMED_FILE))

    @classmethod
    def load(cls, root: str | Path, *, media_root: str | Path | None = None) -> Corpus:
        """Read a corpus.

        Args:
            root: folder with ``index.parquet``.
            media_root: folder with the media files, if the index lies elsewhere.

        Raises:
            FileNotFoundError: if there is no index in ``root``.
            CorpusError: if the index breaks the schema; the message names the column, the row and the remedy.
        """
        root = Path(root)
        if not (root / INDEX_FILE).is_file():
            raise FileNotFoundError(
                f"no {INDEX_FILE} in {root}; a folder of videos is indexed by avssl_core.data.open_corpus"
            )
        timed = _read_table(root / TIMED_FILE) if (root / TIMED_FILE).is_file() else None
        return cls(Path(media_root) if media_root is not None else root, _read_table(root / INDEX_FILE), timed)

    def save(self, folder: str | Path | None = None) -> None:
        """Write the tables into ``folder`` (default: the corpus's own), each by one atomic rename."""
        folder = Path(folder) if folder is not None else self.root
        folder.mkdir(parents=True, exist_ok=True)
        if self.timed is not None:
            write_table(self.timed, folder / TIMED_FILE)
        write_table(self.index, folder / INDEX_FILE)

    def __len__(self) -> int:
        return len(self.index)

    def select(self, *, split: str | None = None, rows: Sequence[int] | NDArray[np.generic] | None = None) -> Corpus:
        """The part of the corpus with this split, or these row numbers or this boolean mask; timed labels follow.

        Raises:
            CorpusError: if nothing is left.
        """
        index = self.index if rows is None else self.index.iloc[_row_numbers(rows, len(self))]
        if split is not None:
            index = index[index["split"] == split]
        if index.empty:
            known = sorted(self.index["split"].dropna().unique())
            raise CorpusError(f"no clip of {self.root} has split {split!r} among the chosen rows; splits are {known}")
        timed = None if self.timed is None else self.timed[self.timed["clip_id"].isin(index["clip_id"])]
        return Corpus(self.root, index.reset_index(drop=True), None if timed is None else timed.reset_index(drop=True))

    def source(self, row: int) -> Path | TarMember:
        """What the media readers take for the clip in this row: a path, or a place inside a tar shard."""
        uri, offset, length = (self.index[name].iat[row] for name in ("uri", "offset", "length"))
        path = self.root / uri
        return TarMember(str(path), int(offset), int(length)) if is_shard(uri) else path

    def codes(self, column: str) -> tuple[NDArray[np.int64], list[str]]:
        """A text column as integers: codes ``(len(self),)`` and the sorted names they stand for.

        Raises:
            CorpusError: if there is no such column or a clip has no value in it.
        """
        if column not in self.index:
            labels = [name for name in self.index.columns if name.startswith("label_")]
            raise CorpusError(f"no column {column!r} in the index of {self.root}; label columns are {labels}")
        values = self.index[column]
        if values.isna().any():
            raise CorpusError(
                f"{int(values.isna().sum())} clips of {self.root} have no {column!r}; select the labelled ones first"
            )
        names = sorted(values.unique())
        code = {name: number for number, name in enumerate(names)}
        return values.map(code).to_numpy(dtype=np.int64), [str(name) for name in names]


def is_shard(uri: str) -> bool:
    """Whether a uri names a tar shard, so that the row needs an offset and a length."""
    return uri.lower().endswith(".tar")


def split_of(name: str) -> str:
    """The split of a clip that came without one: a fifth, chosen by the CRC-32 of the bare file name, is for
    testing."""
    return "test" if zlib.crc32(PurePosixPath(name).name.encode()) % 5 == 0 else "train"


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write Parquet so that a reader sees the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        table.to_parquet(temporary, index=False)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except Exception as error:  # pyarrow raises a different class for each kind of damage
        raise CorpusError(
            f"{path} is not a readable Parquet file ({error}); delete it to have it made again"
        ) from error


def _row_numbers(rows: Sequence[int] | NDArray[np.generic], total: int) -> NDArray[np.int64]:
    array = np.asarray(rows)
    if array.dtype == bool:
        if len(array) != total:
            raise CorpusError(f"a mask of {len(array)} values cannot select from {total} clips")
        return np.flatnonzero(array)
    return array.astype(np.int64)


def _checked_index(index: pd.DataFrame, where: str) -> pd.DataFrame:
    """A copy of ``index`` with every column of the schema, of the right kind; or a ``CorpusError`` that says what is
    wrong."""
    missing = [name for name in REQUIRED if name not in index]
    if missing:
        raise CorpusError(f"{where}: columns {missing} are missing; it has {list(index.columns)}")
    if index.empty:
        raise CorpusError(f"{where}: the index has no rows")
    index = _with_kinds(index.reset_index(drop=True), where)
    _refuse(
        index["clip_id"].isna() | index["clip_id"].duplicated(), index, "clip_id", "must be present and unique", where
    )
    durations = index["duration_s"]
    _refuse(
        ~(np.isfinite(durations) & (durations > 0)), index, "duration_s", "must be a positive number of seconds", where
    )
    escapes = index["uri"].map(_escapes)
    _refuse(
        escapes,
        index,
        "uri",
        "must be a path below the folder of the corpus; move the corpus to a common parent",
        where,
    )
    shard = index["uri"].map(is_shard)
    unplaced = shard & ~((index["offset"] >= 0) & (index["length"] > 0))
    _refuse(unplaced, index, "offset", "and length must be given for a clip inside a tar shard", where)
    return index


def _with_kinds(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Add what is optional, and turn columns into text or float64."""
    for name in _NUMBERS:
        try:
            table[name] = pd.to_numeric(table[name]).astype("float64") if name in table else np.nan
        except (ValueError, TypeError) as error:
            raise CorpusError(f"{where}: column {name!r} must hold numbers ({error})") from error
    for name in _TEXT:
        values = table[name] if name in table else [None] * len(table)
        table[name] = _objects(None if pd.isna(value) else str(value) for value in values)
    pairs = zip(table["split"], table["uri"], strict=True)
    table["split"] = _objects(split_of(str(uri)) if split is None else split for split, uri in pairs)
    pairs = zip(table["group"], table["clip_id"], strict=True)
    table["group"] = _objects(clip_id if group is None else group for group, clip_id in pairs)
    rest = [name for name in table.columns if name not in INDEX_COLUMNS]
    return table[[*INDEX_COLUMNS, *rest]]


def _objects(values: Iterable[Any]) -> pd.Series:
    """A column of plain Python objects, in which ``None`` stays ``None``; pandas' text type makes it NaN."""
    return pd.Series(list(values), dtype=object)


def _escapes(uri: str | None) -> bool:
    return not uri or PurePosixPath(uri).is_absolute() or ".." in PurePosixPath(uri).parts


def _refuse(wrong: pd.Series, table: pd.DataFrame, column: str, rule: str, where: str) -> None:
    if wrong.any():
        row = int(np.flatnonzero(wrong.to_numpy())[0])
        value = table[column].iat[row]
        value = value.item() if isinstance(value, np.generic) else value
        raise CorpusError(
            f"{where}: {column} {rule}; {int(wrong.sum())} rows break this, the first is row {row} with {value!r}"
        )


def _checked_timed(timed: pd.DataFrame, index: pd.DataFrame, where: str) -> pd.DataFrame:
    missing = [name for name in TIMED_COLUMNS if name not in timed]
    if missing:
        raise CorpusError(f"{where}: columns {missing} are missing; it has {list(timed.columns)}")
    timed = timed.reset_index(drop=True)
    for name in ("start_s", "end_s"):
        try:
            timed[name] = pd.to_numeric(timed[name]).astype("float64")
        except (ValueError, TypeError) as error:
            raise CorpusError(f"{where}: column {name!r} must hold numbers ({error})") from error
    for name in ("clip_id", "kind", "label"):
        _refuse(timed[name].isna(), timed, name, "must be present", where)
        timed[name] = _objects(str(value) for value in timed[name])
    _refuse(~timed["clip_id"].isin(index["clip_id"]), timed, "clip_id", "must be one of the index's clips", where)
    _refuse(~(timed["start_s"] <= timed["end_s"]), timed, "start_s", "must not be later than end_s", where)
    return timed
