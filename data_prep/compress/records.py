"""What a folder of compressed films knows about itself: its settings, its finished films, and what is not usable."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SETTINGS_FILE = "compress.json"
FILMS_FILE = "films.jsonl"
QUARANTINE_FILE = "quarantine.csv"
LOCK_FILE = ".lock"
WORKSHOP = ".unfinished"  # what is not finished
_FORM = 1  # to be raised when the same settings would give other files


class CompressError(ValueError):
    """A folder that cannot be compressed as asked: nothing usable, the wrong place, other settings."""


@dataclass(frozen=True)
class Film:
    """A line of ``films.jsonl``: a finished film and the source it was made from.

    Attributes:
        clip_id: of the source's corpus.
        source_bytes: size of the source.
        source_mtime_ns: its time of change; a source that has changed is done again.
        file: the film, relative to the folder.
        bytes: its size.
        kept: it has its source's bytes.
        facts: columns of the index: duration, size, rates and codecs.
    """

    clip_id: str
    source_bytes: int
    source_mtime_ns: int
    file: str
    bytes: int
    kept: bool
    facts: dict[str, Any]


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Hold the folder for this run.

    Raises:
        CompressError: another run does.
    """
    try:
        import fcntl
    except ImportError:  # no such lock on Windows: two runs at a time would do the work twice
        yield
        return
    with (out / LOCK_FILE).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CompressError(f"another run is writing into {out}; wait until it has ended") from error
        yield


def agree(out: Path, source: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to mix films of different settings or sources in one folder; remember those of this one.

    Raises:
        CompressError: the folder was made otherwise, or by somebody else.
    """
    path = out / SETTINGS_FILE
    now = {"form": _FORM, "source": str(source), **settings}
    now = json.loads(json.dumps(now))  # as it will be read back: lists, no tuples
    if path.is_file():
        was = json.loads(path.read_text(encoding="utf-8"))
        if was != now and read_films(out):
            raise CompressError(
                f"{out} was made with other settings: {_difference(was, now)}; repeat them, give another folder, or "
                f"delete this one (where the source was only moved, correct it in {path.name})"
            )
    elif others := sorted(entry.name for entry in out.iterdir() if not entry.name.startswith(".")):
        raise CompressError(f"{out} holds other files ({others[0]}, …); give a new or an empty folder")
    write_text(path, json.dumps(now, indent=1, sort_keys=True) + "\n")


def _difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in sorted({*was, *now}) if was.get(name) != now.get(name)]
    return ", ".join(f"{name} was {was.get(name)}, now {now.get(name)}" for name in names)


def read_films(out: Path) -> dict[str, Film]:
    """Finished films by clip id; a line that a killed run left incomplete is passed over."""
    films = {}
    path = out / FILMS_FILE
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            film = Film(**json.loads(line))
        except (ValueError, TypeError):
            continue
        films[film.clip_id] = film
    return films


def write_films(out: Path, films: Iterable[Film]) -> None:
    """All finished films, in the order of their clip ids."""
    lines = [_line(film) for film in sorted(films, key=lambda film: film.clip_id)]
    write_text(out / FILMS_FILE, "".join(lines))


def add_film(out: Path, film: Film) -> None:
    """Note one more finished film, so that a run killed after this does not do it again."""
    with open(out / FILMS_FILE, "a", encoding="utf-8") as file:
        file.write(_line(film))


def write_quarantine(out: Path, refused: Iterable[tuple[str, str]]) -> None:
    """The films that are not usable, with reasons."""
    temporary = out / f".{QUARANTINE_FILE}.part"
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("uri", "reason"), *sorted(refused)])
    os.replace(temporary, out / QUARANTINE_FILE)


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _line(film: Film) -> str:
    return json.dumps(asdict(film), sort_keys=True) + "\n"
