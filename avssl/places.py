"""Folders that the reader names: one meaning for every command, whichever folder its cells run in.

A relative ``--data``, ``AVSSL_DATA`` or ``AVSSL_CACHE`` is relative to where the command was typed. Where no
``AVSSL_DATA`` is set, corpora called by name are looked for in ``data`` beside ``book.yml``. Kernels and cells run in
folders of their own, so they are told absolute paths.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from avssl.errors import UsageError, unknown
from avssl.manifest import Chapter
from avssl.parameters import Parameter, read_budget

DATA = "AVSSL_DATA"
CACHE = "AVSSL_CACHE"


def data_home(root: Path) -> Path:
    """Where corpora called by name are looked for.

    Args:
        root: the folder of ``book.yml``.
    """
    return _absolute(os.environ.get(DATA) or root / "data")


def places(root: Path) -> dict[str, str]:
    """The variables that tell a process started in another folder what they mean here; ``root`` as for data_home."""
    cache = os.environ.get(CACHE)
    return {DATA: str(data_home(root))} | ({CACHE: str(_absolute(cache))} if cache else {})


def _absolute(folder: str | Path) -> Path:
    # links are kept: a corpus is known by the path that its owner gave it
    return Path(os.path.abspath(Path(folder).expanduser()))


def corpus_names(chapter: Chapter, parameters: Mapping[str, Parameter]) -> list[str]:
    """Corpora that a chapter takes by name: those quoted in the comment of its parameter ``data``, and its budgets'.

    Names of ``full-…`` budgets stand for what the paper used, which the reader has to pass. Empty where the comment
    quotes none: then only the chapter knows.
    """
    quoted = re.findall(r'"([^"]+)"', parameters["data"].comment)
    if not quoted:
        return []
    budgets = [name for name in chapter.budget_names() if not name.startswith("full-")]
    named = [read_budget(chapter.budget_file(name), parameters).get("data") for name in budgets]
    return list(dict.fromkeys([*quoted, *(name for name in named if name is not None)]))


def data_value(given: str, names: Collection[str], *, typed: bool) -> str:
    """The parameter ``data`` as a kernel in another folder needs it: the name of a corpus, or an absolute path.

    Args:
        given: a name, or a folder relative to where the command was typed; a name wins over a folder called alike.
        names: the corpora that the chapter takes by name; empty if unknown.
        typed: whether the reader typed it; the name in a budget may be one that stands for the reader's own.

    Raises:
        UsageError: there is no such folder, or no corpus of that name; the nearest names are told.
    """
    path = _absolute(given)
    if given in names or not (path.exists() or _is_path(given) or (typed and names)):
        return given
    if path.exists():
        return str(path)
    if _is_path(given):
        raise UsageError(
            f"--data {given}: no such file or folder. Pass a folder of video files, or the name of a corpus."
        )
    raise UsageError(f"{unknown('corpus', given, names)} Nor is it a folder in {Path.cwd()}.")


def _is_path(given: str) -> bool:
    return os.sep in given or given.startswith((".", "~"))
