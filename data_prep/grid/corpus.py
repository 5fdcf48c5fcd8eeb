"""A folder of GRID clips with its table ``words.csv`` as a corpus: sentence labels, and six timed words each.

A sentence is held out for testing when the CRC-32 of its bare file name, extension included, is 0 modulo 5.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from avssl_core.data import Corpus, index_folder
from avssl_core.data.corpus import INDEX_FILE, split_of
from data_prep.grid.words import KINDS, GridError, Sentence, read_words

WORDS_FILE = "words.csv"


def is_grid(folder: str | Path) -> bool:
    """Whether a folder is a GRID corpus of this form: whether it has ``words.csv``."""
    return (Path(folder) / WORDS_FILE).is_file()


def open_grid(folder: str | Path, *, workers: int | None = None, progress: bool = False) -> Corpus:
    """Open a GRID corpus: clips with sentence labels, and six timed words each.

    The folder may be read-only; what probing found is then remembered in the user's cache.

    Args:
        folder: holds the clips and ``words.csv``.
        workers: threads that probe the files at first use.
        progress: show a bar while they do.

    Returns:
        A corpus whose index has ``label_speaker`` and one label column for each of the six kinds, ``split`` by
        CRC-32, each sentence as a ``group`` of its own; ``timed`` has the words (kinds ``command`` … ``adverb``),
        sorted by clip and time.

    Raises:
        FileNotFoundError: there is no ``words.csv``.
        GridError: the table is not of this form, or none of its files is there.
    """
    folder = Path(folder)
    if not is_grid(folder):
        raise FileNotFoundError(
            f"no {WORDS_FILE} in {folder}; data_prep.grid.build_grid makes such a folder from the public GRID archives"
        )
    sentences = read_words(folder / WORDS_FILE)
    if (folder / INDEX_FILE).is_file():
        probed = Corpus.load(folder).index
        if f"label_{KINDS[0]}" in probed:  # one that build_grid wrote: complete as it is
            return Corpus.load(folder)
    corpus, refused = index_folder(folder, workers=workers, progress=progress)
    reasons = {Path(uri).name: reason for uri, reason in zip(refused["uri"], refused["reason"], strict=True)}
    return corpus_of(folder, corpus.index, sentences, reasons)


def corpus_of(
    folder: Path, probed: pd.DataFrame, sentences: Iterable[Sentence], reasons: dict[str, str] | None = None
) -> Corpus:
    """Join probed clips with their sentences by bare file name.

    Args:
        folder: root of the corpus.
        probed: index rows of the clips (``INDEX_COLUMNS``); clips without a sentence are left out.
        sentences: what is said in them; a sentence without a usable clip is left out with a warning.
        reasons: why clips were refused, by bare file name.

    Raises:
        GridError: no sentence has a clip, or two clips have one name.
    """
    by_name = {Path(uri).name: row for row, uri in enumerate(probed["uri"])}
    if len(by_name) != len(probed):
        raise GridError(f"{folder}: two clips have the same file name in different subfolders; names must be unique")
    there = [sentence for sentence in sentences if sentence.file in by_name]
    absent = [sentence.file for sentence in sentences if sentence.file not in by_name]
    if not there:
        raise GridError(f"{folder}: none of the {len(absent)} files of {WORDS_FILE} is there, the first is {absent[0]}")
    if absent:
        first = f"{absent[0]} ({(reasons or {}).get(absent[0], 'not in the folder')})"
        warnings.warn(f"{folder}: {len(absent)} sentences have no usable clip, the first is {first}", stacklevel=3)
    there.sort(key=lambda sentence: sentence.file)
    index = probed.iloc[[by_name[sentence.file] for sentence in there]].reset_index(drop=True)
    index["clip_id"] = index["group"] = index["uri"]
    index["split"] = [split_of(sentence.file) for sentence in there]
    index["label_speaker"] = [sentence.speaker or None for sentence in there]
    for number, kind in enumerate(KINDS):
        index[f"label_{kind}"] = [sentence.words[number].label for sentence in there]
    ids = dict(zip((sentence.file for sentence in there), index["clip_id"], strict=True))
    timed = [(ids[s.file], word.start_s, word.end_s, word.kind, word.label) for s in there for word in s.words]
    return Corpus(folder, index, pd.DataFrame(timed, columns=["clip_id", "start_s", "end_s", "kind", "label"]))
