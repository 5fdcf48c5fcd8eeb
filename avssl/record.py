"""``avssl record``: run the cells that a chapter's claims need, and write the ledger.

A cell = (arm, seed) runs in a process of its own with one thread, ``jobs`` of them side by side (``avssl.cell``). Its
figures are cached under ``runs/cells`` by a hash of its configuration and of the code it reaches; whatever is already
there, or in the committed ledger, is not run again. So a chapter is recorded in any number of sittings, and a sitting
that is killed loses the cells it was in and nothing else.

Two rules are kept here. ``claims.yaml`` must be committed before cells run: a claim written down afterwards is not a
prediction. And a ledger belongs to one kind of device: figures from CPU and GPU are never compared with one another.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from avssl.cell_processes import Failure, run_cells
from avssl.errors import UsageError
from avssl.places import places
from avssl.recording_status import (
    Key,
    Plan,
    Status,
    kept_edits,
    make_plan,
    read_status,
    recorded_elsewhere,
    remember_code,
)
from avssl_core.reporting import (
    CellRecord,
    Ledger,
    claims_for_terminal,
    claims_table,
    commit,
    duration,
)
from avssl_core.reporting.environment import git


@dataclass(frozen=True)
class Report:
    """What a sitting did: the status after it, the cells it ran, and those that failed."""

    status: Status
    ran: tuple[Key, ...] = ()
    failures: tuple[Failure, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every cell of the sitting gave figures and every claim found its metrics."""
        return not self.failures and not self.status.problems


def record_chapter(
    chapter_dir: str | Path,
    *,
    budget: str = "record",
    device: str = "cpu",
    jobs: int = 2,
    only: str | Iterable[str] | None = None,
    extended: bool = False,
    dry_run: bool = False,
    allow_uncommitted: bool = False,
    root: str | Path | None = None,
    cell_timeout_s: float = 7200.0,
    console: Console | None = None,
) -> Report:
    """Run the missing cells of a chapter's claims, judge the claims and write the ledger.

    A cell that fails is reported with its traceback and does not stop the others; it is tried again at the next
    sitting.

    Args:
        chapter_dir: ``chapters/NN_name``, with ``name.py``, ``claims.yaml`` and ``<budget>.yaml``.
        budget: name of the budget file.
        device: ``cpu`` or ``cuda`` (``cuda:1`` …); each kind has a ledger of its own.
        jobs: cells side by side, one thread each.
        only: restrict to these claims (by id) or arms.
        extended: also the claims marked ``extended``.
        dry_run: show what is done, missing and left, and what a ledger of another device holds; run and write nothing.
        allow_uncommitted: run although ``claims.yaml`` is not committed (said aloud).
        root: the book's folder, where ``results`` and ``runs`` are; two above the chapter by default.
        cell_timeout_s: a cell that takes longer is ended and counts as failed.
        console: where to print.

    Raises:
        UsageError: unknown names or device, a refused configuration, claims that are not committed, or another
            recording at work.
    """
    console = console or Console()
    if jobs < 1:
        raise UsageError(f"jobs must be at least 1, got {jobs}.")
    plan = make_plan(chapter_dir, budget=budget, device=device, only=only, extended=extended, root=root)
    before = read_status(plan, jobs)
    _say(console, escape(before.line()))
    if dry_run:
        _print_missing(console, before)
        for line in recorded_elsewhere(plan):
            _say(console, escape(line))
        return Report(before)
    if before.missing:
        _require_committed(plan.folder / "claims.yaml", allow=allow_uncommitted, console=console)
    with sole_recording(plan.cells_dir):
        remember_code(plan)
        ran, failures = _run_all(plan, before, jobs, cell_timeout_s, console)
        after = read_status(plan, jobs)
        if after.done:
            _write_ledger(plan, after)
    _print_end(console, plan, after, failures)
    return Report(after, tuple(ran), tuple(failures))


def status(
    chapter_dir: str | Path,
    *,
    budget: str = "record",
    device: str = "cpu",
    jobs: int = 2,
    only: str | Iterable[str] | None = None,
    extended: bool = False,
    root: str | Path | None = None,
) -> Status:
    """What is recorded and what is missing; nothing is run or written. Arguments as for :func:`record_chapter`."""
    return read_status(
        make_plan(chapter_dir, budget=budget, device=device, only=only, extended=extended, root=root), jobs
    )


def _require_committed(claims: Path, *, allow: bool, console: Console) -> None:
    folder, name = claims.parent, claims.name
    if git(folder, "rev-parse", "--is-inside-work-tree") != "true":
        return
    in_head = git(folder, "cat-file", "-e", f"HEAD:./{name}") is not None
    if in_head and not git(folder, "status", "--porcelain", "--", name):
        return
    message = f"{claims} is not committed as it stands; claims are written down before their cells run"
    if not allow:
        raise UsageError(f"{message}. Commit it, or pass --allow-uncommitted for a trial.")
    _say(console, f"[yellow]{escape(message)}; recording all the same, as asked[/]")


@contextmanager
def sole_recording(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two recordings of the same cells would run everything twice.

    Raises:
        UsageError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"another recording is at work in {folder}; wait for it, or end it first.") from error
        yield


def _run_all(
    plan: Plan, before: Status, jobs: int, timeout_s: float, console: Console
) -> tuple[list[Key], list[Failure]]:
    """Run what is missing and tell about each cell as it ends."""
    ran: list[Key] = []
    failures: list[Failure] = []
    problems = set(before.problems)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("cells", total=len(before.missing))
        requests = [plan.request(key) for key in before.missing]
        own = places(plan.root)
        for request, failure in run_cells(requests, jobs=jobs, timeout_s=timeout_s, cwd=plan.root, environment=own):
            key, now = (request.arm, request.seed), read_status(plan, jobs)
            if failure is None:
                ran.append(key)
                text = f"{key[0]} seed {key[1]}: done in {duration(now.done[key].wall_s)}"
                _write_ledger(plan, now)  # so that a long recording can be read, and cut off, at any time
            else:
                failures.append(failure)
                text = f"[red]{escape(f'{key[0]} seed {key[1]}: {failure.reason}')}[/]"
            left = "" if now.hours_left is None else f", about {duration(3600 * now.hours_left)} left"
            _say(console, f"[{len(ran) + len(failures)}/{len(before.missing)}] {text}{left}")
            # a misspelt metric shows with the first cell, not with the last
            for problem in sorted(set(now.problems) - problems):
                problems.add(problem)
                _say(console, f"[red]{escape(problem)}[/]")
            progress.update(bar, advance=1, description=f"cells{left}")
    return ran, failures


def _write_ledger(plan: Plan, after: Status) -> None:
    cells = tuple(after.done[key] for key in plan.corpus if key in after.done)
    Ledger(
        chapter=plan.sheet.chapter,
        budget=plan.budget,
        device=after.device,
        commit=commit(plan.root),
        versions=_all_versions(cells),
        config=plan.config,
        claims_sha256=plan.sheet.sha256,
        seeds=tuple(sorted({cell.seed for cell in cells})),
        wall_s=sum(cell.wall_s for cell in cells),
        claims=after.claims,
        cells=cells,
        kept=kept_edits(plan),  # of the ledger that is about to be replaced
    ).write(plan.ledger)


def _all_versions(cells: Iterable[CellRecord]) -> dict[str, str]:
    """The versions behind the cells; where sittings differ, all of them, so that the mixture shows."""
    found: dict[str, dict[str, None]] = {}
    for cell in cells:
        for package, version in cell.versions.items():
            found.setdefault(package, {})[version] = None
    return {package: " / ".join(every) for package, every in found.items()}


def _print_missing(console: Console, before: Status) -> None:
    by_arm: dict[str, list[int]] = {}
    for arm, seed in before.missing:
        by_arm.setdefault(arm, []).append(seed)
    for arm, seeds in by_arm.items():
        _say(console, f"  {escape(arm)}: seeds {', '.join(map(str, seeds))}")


def _print_end(console: Console, plan: Plan, after: Status, failures: list[Failure]) -> None:
    for problem in after.problems:
        _say(console, f"[red]{escape(problem)}[/]")
    if not after.done:
        return
    frame = claims_table(Ledger.read(plan.ledger))
    console.print(claims_for_terminal(frame, width=console.width, title=after.line()))
    if failures:
        _say(console, f"[red]{len(failures)} cells failed; logs: {', '.join(escape(str(f.log)) for f in failures)}[/]")
    _say(console, f"ledger: {escape(str(plan.ledger))}")


def _say(console: Console, text: str) -> None:
    """Print a line as it is: no wrapping, no colouring of numbers and paths."""
    console.print(text, soft_wrap=True, highlight=False)
