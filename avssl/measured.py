"""The book's page "What was measured", made from the files that the benchmarks left.

Every file has a section: where it was measured, a table of ratios with the goals that were set, and why. The missed
goals stand at the top, so that nobody has to look for them. A file without a section, or a section without its file,
stops the build.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avssl.measured_rows import Benchmark, Row, Section
from avssl.measured_sections import BENCHMARKS

PAGE = """\
# What was measured

Benchmarks put parts of this book beside what a reader would use instead, in turns and in one run, and keep medians. A
ratio above one speaks for ours, unless its table says what else it compares. Goals were set before anything was
measured (those in words, such as *linear*, are judged by the bound beside them); where there is none, the last two
columns are empty. The figures are read from `benchmarks/results` when the book is built: run a benchmark again, and
this page says something else.
"""


def measured_page(results: Path) -> str:
    """The page as Markdown.

    Args:
        results: the folder of the benchmarks' JSON files.

    Raises:
        FileNotFoundError: a benchmark has left no file there.
        ValueError: a file has no section on the page, or lacks what its section shows.
    """
    present = {path.name for path in results.glob("*.json")}
    for name, benchmark in BENCHMARKS.items():
        if name not in present:
            raise FileNotFoundError(f"{results / name} does not exist: run `python benchmarks/{benchmark.command}`")
    if extra := sorted(present - BENCHMARKS.keys()):
        raise ValueError(f"{results / extra[0]} has no section on the page: add one to avssl/measured_sections.py")
    read = {name: _read(results / name, benchmark) for name, benchmark in BENCHMARKS.items()}
    sections = [section for section, _ in read.values()]
    texts = [_section_text(section, name, where) for name, (section, where) in read.items()]
    page = "\n".join([PAGE, _missed_text(sections), *texts])
    return page.replace("≥ ", "≥\u00a0").replace(" ×", "\u00a0×")  # signs stay with their number


def _read(path: Path, benchmark: Benchmark) -> tuple[Section, str]:
    """A file's section, and where it was measured."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        section = benchmark.describe(found)
        return section, conditions(found, section.stated)
    except (KeyError, IndexError, TypeError, StopIteration, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} does not hold what its section shows ({type(error).__name__}: {error}): run "
            f"`python benchmarks/{benchmark.command}` again"
        ) from error


def conditions(found: Mapping[str, Any], stated: str = "") -> str:
    """Where a file's figures were measured: machine or device, threads, versions; what it does not say is named.

    Args:
        found: the parsed file; settings count like the file's own keys.
        stated: threads, where only the benchmark's description tells.
    """
    known = {**found.get("settings", {}), **found}
    machine = _described(known.get("machine") or known.get("processor"))
    device = "a CPU" if known.get("device") == "cpu" and not machine else known.get("device")
    places = [str(place) for place in (device, machine) if place]
    counts = [_counted(known[name], name) for name in ("threads", "workers") if known.get(name) not in (None, "0")]
    versions = known.get("versions") or ({"torch": known["torch"]} if "torch" in known else {})
    parts = {
        "machine": ", ".join(places),
        "threads": ", ".join(counts) or stated,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    told = [part for part in parts.values() if part]
    told += [f"load average before it {known['load_average_before']}"] if "load_average_before" in known else []
    silent = " and ".join(name for name, part in parts.items() if not part)
    return "; ".join(told) + (f" ({silent} not recorded)" if silent else "")


def _described(machine: Any) -> str:
    """A processor in words: files have its name alone, or a mapping that also says what it can and how many cores."""
    if not machine or not isinstance(machine, Mapping):
        return f"{machine} processor" if machine else ""
    cores = _counted(machine["cores"], "cores") if "cores" in machine else ""
    more = ", ".join(str(part) for part in (machine.get("cpu_capability"), cores) if part)
    return f"{machine.get('processor', 'unnamed')} processor" + (f" ({more})" if more else "")


def _counted(value: Any, name: str) -> str:
    count = " and ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{count} {name.removesuffix('s') if count == '1' else name}"


def _missed_text(sections: list[Section]) -> str:
    """Goals that were missed, one line each, or that none was."""
    with_goal = [(section, row) for section in sections for row in section.rows if row.met is not None]
    missed = [(section, row) for section, row in with_goal if not row.met]
    lines = [f"- **{section.title}**, {row.what}: {row.value}, goal {row.goal}." for section, row in missed]
    summary = f"{len(with_goal) - len(missed)} of {len(with_goal)} goals were met."
    return "\n".join(["## Goals that were missed\n", summary + (" These were not:\n" if missed else "\n"), *lines, ""])


def _section_text(section: Section, name: str, where: str) -> str:
    import pandas as pd

    from avssl_core.reporting import to_markdown  # here: importing the room takes a second

    columns = ["measured", "figure", "goal", "met"]
    table = pd.DataFrame([_cells(row) for row in section.rows], columns=columns)
    compared = f"{section.compares[0].upper()}{section.compares[1:]}."
    parts = [f"## {section.title}\n", f"{compared} Measured on: {where} (`{name}`).\n", to_markdown(table) + "\n"]
    return "\n".join([*parts, *([f"{section.why}\n"] if section.why else [])])


def _cells(row: Row) -> tuple[str, str, str, str]:
    met = "" if row.met is None else "yes" if row.met else "**no**"
    return row.what, row.value, row.goal, met
