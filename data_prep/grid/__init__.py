"""GRID lips: a real corpus small enough for two cores, from the public GRID archives or from a folder that has
``words.csv``.

GRID is 34 talkers saying a thousand three-second sentences each. ``build_grid`` cuts the lower face out of the
published videos and writes small MPEG-4 files with their 6,000 timed words a talker; ``open_grid`` opens what it
wrote, or any folder with the same table. Nothing is downloaded here: the archives come from the corpus's own pages.
"""

from data_prep.grid.archives import read_checksums
from data_prep.grid.build import (
    DEFAULT_WINDOW,
    SPEAKER_WINDOWS,
    Window,
    build_grid,
    crop,
    preview_windows,
    window_of,
)
from data_prep.grid.corpus import corpus_of, is_grid, open_grid
from data_prep.grid.words import KINDS, GridError, Sentence, Word, decode_name, parse_alignment, read_words

__all__ = [
    "DEFAULT_WINDOW",
    "KINDS",
    "SPEAKER_WINDOWS",
    "GridError",
    "Sentence",
    "Window",
    "Word",
    "build_grid",
    "corpus_of",
    "crop",
    "decode_name",
    "is_grid",
    "open_grid",
    "parse_alignment",
    "preview_windows",
    "read_checksums",
    "read_words",
    "window_of",
]
