"""``book.yml`` as the command line sees it: the chapters, their papers, states and budgets.

One file is the table of contents of the book and the manifest of the project. A chapter's folder holds ``NAME.py``
(the source), ``NAME.ipynb`` (executed, committed) and one flat YAML per budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from avssl.errors import UsageError, unknown

BOOK = "book.yml"
STATES = ("runs", "draft", "planned")  # a draft runs, but its claims are not recorded and no notebook is committed
NOT_BUDGETS = ("claims",)  # the other YAML file of a chapter's folder


@dataclass(frozen=True)
class Budget:
    """What one size of a chapter costs: ``minutes`` on ``hardware``."""

    name: str
    minutes: float
    hardware: str


@dataclass(frozen=True)
class Chapter:
    """One paper: where its files are, and what the manifest says about it. ``root`` is the folder of ``book.yml``."""

    name: str
    root: Path
    folder: Path
    part: str
    title: str
    paper: str
    venue: str
    url: str
    state: str
    budgets: tuple[Budget, ...] = ()

    @property
    def script(self) -> Path:
        """The py:percent source."""
        return self.folder / f"{self.name}.py"

    @property
    def notebook(self) -> Path:
        """The executed, committed notebook."""
        return self.folder / f"{self.name}.ipynb"

    @property
    def runs(self) -> bool:
        """Whether the chapter is whole: script, notebook, measured budgets."""
        return self.state == "runs" and self.script.is_file()

    @property
    def runnable(self) -> bool:
        """Whether the chapter can be run today, be it as a draft."""
        return self.runs or (self.state == "draft" and self.script.is_file())

    def budget_names(self) -> list[str]:
        """Budgets that have a YAML file in the chapter's folder, smallest first where the names are known."""
        order = {"smoke": 0, "small": 1, "record": 2}
        names = (path.stem for path in self.folder.glob("*.yaml") if path.stem not in NOT_BUDGETS)
        return sorted(names, key=lambda name: (order.get(name, 9), name))

    def budget_file(self, name: str) -> Path:
        """The YAML of one budget.

        Raises:
            UsageError: there is no such budget; the message names the nearest.
        """
        if name not in self.budget_names():
            raise unknown(f"budget of chapter {self.name}", name, self.budget_names())
        return self.folder / f"{name}.yaml"


@dataclass(frozen=True)
class Manifest:
    """Everything ``book.yml`` says. ``root`` is the folder that holds it; parts are in reading order."""

    root: Path
    parts: Mapping[str, str]
    chapters: tuple[Chapter, ...] = field(default_factory=tuple)

    def chapter(self, name: str) -> Chapter:
        """The chapter called ``name``.

        Raises:
            UsageError: there is none (the message names the nearest), or it is still planned.
        """
        by_name = {chapter.name: chapter for chapter in self.chapters}
        if name not in by_name:
            raise unknown("chapter", name, by_name)
        return by_name[name]

    def runnable(self, name: str) -> Chapter:
        """The chapter called ``name``, if it can be run today."""
        chapter = self.chapter(name)
        if not chapter.runnable:
            ready = ", ".join(c.name for c in self.chapters if c.runnable) or "none yet"
            raise UsageError(
                f"chapter {name!r} is planned: {chapter.script} does not exist yet. Chapters that run: {ready}."
            )
        return chapter


def find_book(start: Path | None = None) -> Path:
    """``book.yml`` in ``start`` or above it, else in the checkout that this package was installed from.

    Raises:
        UsageError: neither has one.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[1]):
        if (folder / BOOK).is_file() and "meta" in (_read(folder / BOOK) or {}):
            return folder / BOOK
    raise UsageError(f"no {BOOK} in {here} or above it: run this inside a checkout of the book, or pass --book FILE.")


def load_manifest(book: Path | None = None) -> Manifest:
    """Read the manifest.

    Args:
        book: path of ``book.yml``; searched for from the working directory upwards when not given.

    Raises:
        UsageError: the file is missing or does not hold what a manifest holds.
    """
    path = Path(book).resolve() if book is not None else find_book()
    if not path.is_file():
        raise UsageError(f"{path} does not exist: --book takes the path of a book.yml.")
    content = _read(path)
    meta = content.get("meta") if isinstance(content, dict) else None
    if not isinstance(meta, dict) or "chapters" not in meta:
        raise UsageError(f"{path} has no manifest: expected the key meta.chapters.")
    chapters = tuple(_chapter(entry, path) for entry in meta["chapters"])
    return Manifest(root=path.parent, parts=dict(meta.get("parts", {})), chapters=chapters)


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from error


def _chapter(entry: Mapping[str, Any], book: Path) -> Chapter:
    needed = ("name", "folder", "part", "title", "paper", "venue", "url", "state")
    missing = [key for key in needed if key not in entry]
    if missing:
        raise UsageError(f"{book}: chapter {entry.get('name', '?')!r} lacks {', '.join(missing)}.")
    if entry["state"] not in STATES:
        raise UsageError(
            f"{book}: chapter {entry['name']!r} has state {entry['state']!r}; expected one of {', '.join(STATES)}."
        )
    budgets = tuple(_budget(entry["name"], name, cost, book) for name, cost in entry.get("budgets", {}).items())
    texts = {key: str(entry[key]) for key in needed if key != "folder"}
    folder = (book.parent / entry["folder"]).resolve()
    return Chapter(root=book.parent, folder=folder, budgets=budgets, **texts)


def _budget(chapter: str, name: str, cost: Any, book: Path) -> Budget:
    if not isinstance(cost, dict) or set(cost) != {"minutes", "hardware"}:
        raise UsageError(
            f"{book}: budget {name!r} of chapter {chapter!r} must be {{minutes: …, hardware: …}}, got {cost!r}."
        )
    return Budget(name=name, minutes=float(cost["minutes"]), hardware=str(cost["hardware"]))


def chapters_markdown(manifest: Manifest) -> str:
    """The chapters as a Markdown table, for the README."""
    lines = ["| part | chapter | paper | state | budgets |", "| --- | --- | --- | --- | --- |"]
    for chapter in manifest.chapters:
        part = f"{chapter.part} · {manifest.parts[chapter.part]}"
        paper = f"[{chapter.paper}]({chapter.url}), {chapter.venue}"
        lines.append(f"| {part} | `{chapter.name}` | {paper} | {chapter.state} | {costs(chapter.budgets) or '–'} |")
    return "\n".join(lines)


def costs(budgets: Sequence[Budget], *, separator: str = "; ") -> str:
    """Budgets in words, by hardware: ``smoke 75 s, small 10 min (2 CPU cores); full-audioset 72 h (64 GPUs)``."""
    from avssl_core.reporting import duration  # here: importing the room takes a second

    on: dict[str, list[str]] = {}
    for budget in budgets:
        on.setdefault(budget.hardware, []).append(f"{budget.name} {duration(budget.minutes * 60)}")
    return separator.join(f"{', '.join(names)} ({hardware})" for hardware, names in on.items())
