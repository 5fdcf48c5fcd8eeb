"""The parts of a benchmark's section on the page of measurements: rows, and how figures are written in them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Found = Mapping[str, Any]  # a result file


@dataclass(frozen=True)
class Row:
    """One figure, in words: what was measured, the value, the goal, and whether it was met (``None``: no goal)."""

    what: str
    value: str
    goal: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Section:
    """A benchmark: what its ratios compare, its rows, why they are as they are; ``stated`` is what the file lacks."""

    title: str
    compares: str
    rows: Sequence[Row]
    why: str = ""
    stated: str = ""  # conditions that only the benchmark's description knows


@dataclass(frozen=True)
class Benchmark:
    """Who writes a result file, and how it is read."""

    command: str  # after ``python benchmarks/``
    describe: Callable[[Found], Section]


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:,.0f}"


def ratio(what: str, value: float, at_least: float | None = None) -> Row:
    """A ratio, and the least that it should be."""
    if at_least is None:
        return Row(what, f"{number(value)} ×")
    return Row(what, f"{number(value)} ×", f"≥ {at_least:g} ×", value >= at_least)


def share(value: float, digits: int = 0) -> str:
    """A share of one in per cent."""
    return f"{100 * value:.{digits}f} %"


def growing(what: str, values: Sequence[float]) -> Row:
    """Ratios that should grow from one to the next."""
    grows = all(a < b for a, b in itertools.pairwise(values))
    return Row(what, ", ".join(f"{number(value)} ×" for value in values), "growing", grows)


def exponent(what: str, value: float) -> Row:
    """An exponent of time that should be one."""
    return Row(what, f"{value:.2f}", "linear (≤ 1.1)", value <= 1.1)
