"""Where a recording stands: the cells that the claims need, those that are valid, the verdicts so far, and the time
left.

A record is valid while its configuration and the code it reaches (``avssl_core.reporting.codehash``) are those of
today.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avssl.cell import CellRequest, chapter_config, config_hash, config_values
from avssl.errors import UsageError
from avssl_core.reporting import (
    CellRecord,
    ClaimResult,
    ClaimSheet,
    CodeHash,
    KeptEdit,
    Ledger,
    LedgerError,
    MissingMetricError,
    code_hash,
    duration,
    edits_text,
    judge,
    ledger_path,
    load_claim_sheet,
    load_definitions,
    needed_cells,
    read_budget,
    select_claims,
)
from avssl_core.reporting.ledger import read_json, write_json

Key = tuple[str, int]  # (arm, seed)
_DEVICE = re.compile(r"cpu|cuda(:\d+)?", re.ASCII)  # another kind would get a ledger of its own, which stays empty


@dataclass(frozen=True)
class Status:
    """Where the recording of a chapter stands.

    ``done`` holds the valid records by (arm, seed), ``missing`` what the selection still needs, ``stale`` counts
    records of older code or configuration and ``changed`` names the definitions behind that (where known),
    ``hours_left`` is an estimate from measured cells (``None`` before the
    first one), ``kept`` counts the edits of the code that the ledger's cells outlived by ``avssl keep``.
    """

    chapter: str
    budget: str
    device: str
    ledger: Path
    done: Mapping[Key, CellRecord]
    missing: tuple[Key, ...]
    stale: int
    hours_left: float | None
    claims: tuple[ClaimResult, ...]
    problems: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    kept: int = 0

    def line(self) -> str:
        """One line: done, kept, missing, stale, time left."""
        left = (
            "time left unknown until a cell has run"
            if self.hours_left is None
            else f"about {duration(3600 * self.hours_left)} left"
        )
        stale = f", {self.stale} recorded by other code or configuration" if self.stale else ""
        if self.stale and self.changed:
            more = f" and {len(self.changed) - 3} more" if len(self.changed) > 3 else ""
            stale += f" (changed: {', '.join(self.changed[:3])}{more})"
        missing = f"{len(self.missing)} missing ({left})" if self.missing else "nothing missing"
        kept = f" (kept across {edits_text(self.kept)})" if self.kept else ""
        return f"{self.chapter} {self.budget}-{self.device}: {len(self.done)} cells done{kept}, {missing}{stale}"


@dataclass(frozen=True)
class Plan:
    """Everything a sitting needs to know before it starts a process."""

    folder: Path
    root: Path
    budget: str
    device: str
    sheet: ClaimSheet
    values: Mapping[str, Any]
    config: Mapping[str, Any]
    config_hash: str
    code: CodeHash
    corpus: Mapping[Key, str]  # of every cell of every claim, extended ones included
    wanted: tuple[Key, ...]  # what was selected, in running order

    @property
    def cells_dir(self) -> Path:
        """Cache of this budget and kind of device."""
        return self.root / "runs" / "cells" / self.sheet.chapter / f"{self.budget}-{self.device.split(':')[0]}"

    @property
    def ledger(self) -> Path:
        """Where the ledger lies."""
        return ledger_path(self.root, self.sheet.chapter, self.budget, self.device)

    @property
    def script(self) -> Path:
        """The chapter's source."""
        return self.folder / f"{self.sheet.chapter}.py"

    def cell_file(self, key: Key) -> Path:
        """Cache file of a cell; the short hash in its name tells code and configuration apart."""
        short = self.config_hash[:6] + self.code.sha256[:6]
        return self.cells_dir / f"{key[0]}-s{key[1]}-{short}.json"

    def request(self, key: Key) -> CellRequest:
        """What the process of a cell is told."""
        return CellRequest(
            script=str(self.script),
            arm=key[0],
            seed=key[1],
            corpus=self.corpus[key],
            device=self.device,
            values=self.values,
            config_hash=self.config_hash,
            code_hash=self.code.sha256,
            output=str(self.cell_file(key)),
        )

    def valid(self, cell: CellRecord) -> bool:
        """Whether a record was made by today's code and configuration."""
        return (cell.config_hash, cell.code_hash) == (self.config_hash, self.code.sha256)


def make_plan(
    chapter_dir: str | Path,
    *,
    budget: str,
    device: str,
    only: str | Iterable[str] | None,
    extended: bool,
    root: str | Path | None,
) -> Plan:
    """Read claims and budget, hash code and configuration; nothing is run. Arguments as for ``record_chapter``.

    Raises:
        UsageError: a file is missing or wrong, a name or the device is unknown, or the configuration is refused.
    """
    if not _DEVICE.fullmatch(device):
        raise UsageError(f"--device {device}: no such device. Pass cpu, cuda, or cuda:N for one GPU of several.")
    folder = Path(chapter_dir).resolve()
    try:
        sheet = load_claim_sheet(folder / "claims.yaml")
        values = read_budget(folder, budget)
        claims, arms = select_claims(sheet.claims, only)
        script = folder / f"{sheet.chapter}.py"
        with contextlib.chdir(folder):  # a constant of the script may look for the book
            module, code = load_definitions(script), code_hash(script)
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise UsageError(str(error.args[0] if isinstance(error, KeyError) else error)) from error
    config = chapter_config(module, values, device)
    # a claim or arm asked for by name is meant, extended or not
    wanted = needed_cells(claims, extended=extended or only is not None)
    return Plan(
        folder=folder,
        root=Path(root).resolve() if root is not None else folder.parents[1],
        budget=budget,
        device=device,
        sheet=sheet,
        values=values,
        config=config_values(config),
        config_hash=config_hash(config),
        code=code,
        corpus=needed_cells(sheet.claims, extended=True),
        wanted=tuple(key for key in wanted if arms is None or key[0] in arms),
    )


def _known_cells(plan: Plan) -> list[CellRecord]:
    """Every readable record, valid or stale: the ledger's cells, then the cache (which wins)."""
    cells: list[CellRecord] = []
    if plan.ledger.is_file():
        cells += Ledger.read(plan.ledger).cells
    for path in sorted(plan.cells_dir.glob("*.json"), key=lambda path: path.stat().st_mtime):
        try:
            cells.append(CellRecord(**read_json(path)))
        except (LedgerError, TypeError):
            path.unlink(missing_ok=True)  # a cache: what cannot be read is made again
    return cells


def read_status(plan: Plan, jobs: int) -> Status:
    """Compare the plan with what the ledger and the cache hold."""
    known = _known_cells(plan)
    done = {
        (c.arm, c.seed): replace(c, corpus=plan.corpus[c.arm, c.seed])
        for c in known
        if plan.valid(c) and (c.arm, c.seed) in plan.corpus
    }
    missing = tuple(key for key in plan.wanted if key not in done)
    stale = len({(c.arm, c.seed) for c in known if not plan.valid(c)} - set(done))
    claims, problems = _judge(plan.sheet, done)
    return Status(
        chapter=plan.sheet.chapter,
        budget=plan.budget,
        device=plan.device.split(":")[0],
        ledger=plan.ledger,
        done=done,
        missing=missing,
        stale=stale,
        hours_left=_hours_left(missing, known, jobs),
        claims=claims,
        problems=problems,
        changed=_changed(plan, [c for c in known if not plan.valid(c)]),
        kept=len(kept_edits(plan)),
    )


def recorded_elsewhere(plan: Plan) -> tuple[str, ...]:
    """A line for each ledger of this budget and another kind of device that holds cells of the selected arms."""
    arms = {arm for arm, _ in plan.wanted}
    lines = []
    for device in sorted({"cpu", "cuda"} - {plan.device.split(":")[0]}):
        path = ledger_path(plan.root, plan.sheet.chapter, plan.budget, device)
        held = sum(cell.arm in arms for cell in Ledger.read(path).cells) if path.is_file() else 0
        if held:
            lines.append(f"{path.stem} holds {held} cell{'s' * (held > 1)} of these arms: `--device {device}`")
    return tuple(lines)


def kept_edits(plan: Plan) -> tuple[KeptEdit, ...]:
    """Edits across which the ledger's cells came to today's code.

    ``avssl keep`` carries all cells of a ledger over at once, so the list is about the code that its last entry leads
    to. Where today's is another one, the cells are stale or were run anew, and the list is not about them.
    """
    kept = Ledger.read(plan.ledger).kept if plan.ledger.is_file() else ()
    return kept if kept and kept[-1]["to"] == plan.code.sha256 else ()


def remember_code(plan: Plan) -> None:
    """Keep the hash of every definition beside the cells, to say later what changed."""
    write_json(_code_file(plan, plan.code.sha256), {"definitions": dict(plan.code.definitions)})


def _code_file(plan: Plan, sha256: str) -> Path:
    return plan.cells_dir / "code" / f"{sha256[:16]}.json"


def _changed(plan: Plan, stale: list[CellRecord]) -> tuple[str, ...]:
    """Definitions that differ from those of the last stale record; empty where its code was not kept."""
    path = _code_file(plan, stale[-1].code_hash) if stale else None
    if path is None or not path.is_file():
        return ()
    old = CodeHash(stale[-1].code_hash, read_json(path)["definitions"])
    return tuple(plan.code.changed_from(old))


def _judge(sheet: ClaimSheet, done: Mapping[Key, CellRecord]) -> tuple[tuple[ClaimResult, ...], tuple[str, ...]]:
    """Every claim's result; one whose metric no cell reports counts as not recorded, and the problem is told."""
    results, problems = [], []
    for claim in sheet.claims:
        try:
            results.append(judge(claim, done.values()))
        except MissingMetricError as error:
            problems.append(f"claim {claim.id!r}: {error}")
            results.append(judge(claim, []))
    return tuple(results), tuple(problems)


def _hours_left(missing: Iterable[Key], known: Iterable[CellRecord], jobs: int) -> float | None:
    """Mean wall time of the arm's recorded cells (of all cells for an arm never run), over the jobs."""
    walls: dict[str, list[float]] = {}
    for cell in known:
        walls.setdefault(cell.arm, []).append(cell.wall_s)
    every = [wall for each in walls.values() for wall in each]
    left = list(missing)
    if not every:
        return None if left else 0.0
    seconds = sum(sum(times) / len(times) for times in (walls.get(arm, every) for arm, _ in left))
    return seconds / min(jobs, max(len(left), 1)) / 3600
