"""What is said in a GRID sentence, and when: file names, alignment files, and the table ``words.csv``.

A GRID sentence has six words from a fixed grammar, and its file name spells them: ``bbaf2n`` is *bin blue at f two
now*. The corpus's alignment files give ``start end word`` in units of 1/25000 s, with silences.

M. Cooke, J. Barker, S. Cunningham and X. Shao, "An audio-visual corpus for speech perception and automatic speech
recognition", JASA 120(5), 2006.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

KINDS = ("command", "colour", "preposition", "letter", "digit", "adverb")
UNITS_PER_SECOND = 25_000  # of the times in alignment files
FPS = 25  # of every GRID video
COLUMNS = ("file", *KINDS, "word_times_s")

_LETTERS = {letter: letter for letter in "abcdefghijklmnopqrstuvxyz"}  # no w: its name has three syllables
_DIGITS = dict(
    zip("z123456789", ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], strict=True)
)
_GRAMMAR: tuple[dict[str, str], ...] = (
    {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    {"b": "blue", "g": "green", "r": "red", "w": "white"},
    {"a": "at", "b": "by", "i": "in", "w": "with"},
    _LETTERS,
    _DIGITS,
    {"a": "again", "n": "now", "p": "please", "s": "soon"},
)
_SILENCE = ("sil", "sp")
_STEM = re.compile(r"(?:s(\d{1,2})_)?([a-z0-9]{6})")


class GridError(ValueError):
    """Something is not as GRID publishes it; the message names the file and says what was expected."""


@dataclass(frozen=True)
class Word:
    """One spoken word: kind, label, and its time in seconds from the beginning of the clip."""

    kind: str
    label: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Sentence:
    """One clip of the corpus: bare file name, speaker (``"s1"``; empty where the name does not say), six words."""

    file: str
    speaker: str
    words: tuple[Word, ...]


def decode_name(name: str) -> tuple[str, ...]:
    """The six words that a file name spells.

    Args:
        name: ``bbaf2n``, with or without folder, speaker (``s1_``) and suffix.

    Raises:
        GridError: the name does not follow the grammar.
    """
    stem = PurePosixPath(name).name.split(".")[0].lower()
    match = _STEM.fullmatch(stem)
    codes = match.group(2) if match else ""
    if len(codes) != 6 or any(code not in words for code, words in zip(codes, _GRAMMAR, strict=True)):
        raise GridError(f"{name}: not the name of a GRID sentence; expected six letters and digits such as bbaf2n")
    return tuple(words[code] for code, words in zip(codes, _GRAMMAR, strict=True))


def speaker_of(path: str) -> str:
    """The speaker a path names, innermost part first: ``s1_x.mpg``, ``s1/x.mpg``, ``s1.zip/x.mpg``; or ``""``."""
    for part in reversed(re.split(r"[/\\]", path)):
        match = re.match(r"s(\d{1,2})(?=$|[._-])", part.lower())
        if match:
            return f"s{int(match.group(1))}"
    return ""


def parse_alignment(text: str, name: str) -> tuple[Word, ...]:
    """The six words of an alignment file, checked against the file's name.

    Args:
        text: lines ``start end word``, times in 1/25000 s.
        name: of the sentence (any form that :func:`decode_name` takes).

    Raises:
        GridError: a line is malformed, times run backwards, or the words are not those of the name.
    """
    words: list[tuple[float, float, str]] = []
    for line in text.splitlines():
        fields = line.split()
        if not fields:
            continue
        try:
            start, end, word = int(fields[0]), int(fields[1]), fields[2].lower()
        except (ValueError, IndexError) as error:
            raise GridError(f"{name}: alignment line {line!r}; expected 'start end word' in whole units") from error
        if word not in _SILENCE:
            words.append((start / UNITS_PER_SECOND, end / UNITS_PER_SECOND, word))
    return _checked(words, name)


def read_words(path: str | Path) -> list[Sentence]:
    """Read ``words.csv``: columns ``file``, the six kinds, and ``word_times_s`` (six ``start-end``, blank-separated).

    Raises:
        GridError: a column is missing, or a row's words and times do not fit; the message names the line.
    """
    path = Path(path)
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
        if missing:
            raise GridError(f"{path}: columns {', '.join(missing)} are missing; it has {reader.fieldnames}")
        rows = list(reader)
    return [_sentence(row, f"{path}, line {number}") for number, row in enumerate(rows, start=2)]


def write_words(path: str | Path, sentences: Iterable[Sentence], folder: str) -> None:
    """Write ``words.csv`` atomically; files are named ``folder/file`` as in the published form of this table."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for sentence in sentences:
            times = " ".join(f"{word.start_s:.2f}-{word.end_s:.2f}" for word in sentence.words)
            writer.writerow([f"{folder}/{sentence.file}", *(word.label for word in sentence.words), times])
    os.replace(temporary, path)


def _sentence(row: dict[str, str], where: str) -> Sentence:
    name = PurePosixPath(row["file"]).name
    try:
        times = [tuple(map(float, span.split("-"))) for span in row["word_times_s"].split()]
        words = [(start, end, row[kind]) for (start, end), kind in zip(times, KINDS, strict=True)]
    except (ValueError, AttributeError) as error:
        raise GridError(
            f"{where}: word_times_s={row['word_times_s']!r}; expected six 'start-end' in seconds"
        ) from error
    return Sentence(name, speaker_of(name), _checked(words, f"{where} ({name})"))


def _checked(words: list[tuple[float, float, str]], name: str) -> tuple[Word, ...]:
    spelt = decode_name(name.rpartition("(")[2].rstrip(")"))
    said = tuple(word for _, _, word in words)
    if said != spelt:
        raise GridError(f"{name}: the words {' '.join(said)!r} are not those of the name ({' '.join(spelt)!r})")
    previous = 0.0
    for start, end, word in words:
        if not previous <= start < end:
            raise GridError(
                f"{name}: {word!r} from {start} to {end} s; times must increase (previous end {previous} s)"
            )
        previous = end
    return tuple(Word(kind, word, start, end) for kind, (start, end, word) in zip(KINDS, words, strict=True))
