"""``avssl keep``: let recorded cells outlive an edit of the code that changes none of their figures.

Every edit of a definition that ``run_cell`` reaches makes its cells stale, also a clearer error or the refusal of a
file that no cell reads. Where hours of cells would be run again for the same figures, this command carries them over.
It checks out the commit that recorded them, makes sure that the code there is the code of the cells, runs a few short
cells by that code and by today's, on the CPU, and asks for figures that are equal to the last bit. Equality is evidence
and not proof: the ledger lists each such edit under ``kept``, with its reason and with what was compared. Parameters
that a chapter has gained since may be kept likewise, at their defaults; a changed value never is.

Both codes start without a cache, so that neither reads what the other has decoded. What they do share is a corpus of
real videos with whatever index lies in its folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from avssl.cell import CellRequest, chapter_config, config_hash
from avssl.cell_processes import Failure, run_cells
from avssl.errors import UsageError, unknown
from avssl.notebooks import read_script
from avssl.old_code import Tree, both_trees, import_from
from avssl.parameters import declared, read_overrides
from avssl.places import places
from avssl.record import sole_recording
from avssl.recording_status import Plan, make_plan, remember_code
from avssl_core.reporting import KeptCheck, KeptEdit, Ledger, duration, edits_text, load_definitions
from avssl_core.reporting.ledger import KEPT_NOTE, Metrics, read_json


@dataclass(frozen=True)
class Comparison:
    """An arm run by both codes: the names of its metrics, and a line for each that is not equal to the last bit."""

    arm: str
    metrics: tuple[str, ...]
    differences: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What was compared, and the cells that gave no figures; the ledger was rewritten only if all is well."""

    compared: tuple[Comparison, ...] = ()
    failures: tuple[Failure, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the cells were kept."""
        return not self.failures and not any(each.differences for each in self.compared)


def keep_chapter(
    chapter_dir: str | Path,
    *,
    reason: str,
    arms: Iterable[str],
    overrides: Sequence[str] = (),
    budget: str = "record",
    device: str = "cpu",
    seed: int = 0,
    root: str | Path | None = None,
    cell_timeout_s: float = 7200.0,
    console: Console | None = None,
) -> Report:
    """Compare today's code with that of a ledger's cells on a few short cells; where they agree, keep the ledger's.

    Args:
        chapter_dir: ``chapters/NN_name``.
        reason: why the edit cannot change a figure; it is stored in the ledger.
        arms: what to run, one seed each; they should reach the edited definitions.
        overrides: ``name=value`` pairs that win over the budget, to make the cells short.
        budget: of the ledger.
        device: of the ledger; the comparison runs on the CPU whatever it is.
        seed: of the compared cells.
        root: the book's folder; two above the chapter by default.
        cell_timeout_s: a cell that takes longer is ended, and nothing is kept.
        console: where to print.

    Raises:
        UsageError: no reason or arm, unknown names, cells that are not stale by their code alone, a commit that does
            not hold their code, or a recording at work.
    """
    console = console or Console()
    plan = make_plan(chapter_dir, budget=budget, device=device, only=None, extended=False, root=root)
    if not reason.strip():
        raise UsageError("--reason is empty: say why the edit cannot change a recorded figure; the ledger keeps it.")
    values = _overrides(plan, overrides)
    with sole_recording(plan.cells_dir):
        ledger = _ledger(plan)
        chosen = _arms(ledger, arms)
        added = _added_parameters(plan, ledger)
        old_code = _sole_stale_code(plan, ledger, added)
        _require_known(values, added)
        with both_trees(plan, ledger, old_code) as (old, new):
            changed = new.code.changed_from(old.code)
            _say(
                console,
                f"{len(ledger.cells)} cells, changed since: {escape(', '.join(changed)) or 'nothing that counts'}",
            )
            report = _compare(old, new, _requests(plan, ledger, chosen, seed, values), cell_timeout_s, console)
        if report.ok:
            checked = [KeptCheck(arm=c.arm, seed=seed, overrides=values, metrics=[*c.metrics]) for c in report.compared]
            _keep(plan, ledger, _edit(ledger, old, new, reason.strip(), changed, checked, added))
    _print_end(console, plan, ledger, report)
    return report


def _overrides(plan: Plan, pairs: Sequence[str]) -> dict[str, Any]:
    """The pairs as typed values that the chapter's configuration takes."""
    values = read_overrides([*pairs], declared(read_script(plan.script))) if pairs else {}
    if "device" in values:
        raise UsageError(f"-p device={values['device']}: the comparison runs on the CPU; --device names the ledger.")
    chapter_config(load_definitions(plan.script), {**plan.values, **values}, "cpu")
    return values


def _ledger(plan: Plan) -> Ledger:
    ledger = Ledger.read(plan.ledger) if plan.ledger.is_file() else None
    if ledger is None or not ledger.cells:
        raise UsageError(f"{plan.ledger} holds no cells to keep; `avssl record` makes them.")
    return ledger


def _arms(ledger: Ledger, given: Iterable[str]) -> tuple[str, ...]:
    """The arms to compare, each once."""
    there = tuple(dict.fromkeys(cell.arm for cell in ledger.cells))
    chosen = tuple(dict.fromkeys(given))
    if not chosen:
        raise UsageError(f"no arm to compare: name at least one that the edit could change, --arm {there[0]} …")
    for arm in chosen:
        if arm not in there:
            raise unknown("arm of the ledger", arm, there)
    return chosen


def _added_parameters(plan: Plan, ledger: Ledger) -> dict[str, Any]:
    """Parameters that the chapter has gained since, at their defaults; all others must be those of the cells."""
    recorded, today = ledger.config, json.loads(json.dumps(dict(plan.config), default=str))
    other = sum(cell.config_hash not in (plan.config_hash, config_hash(recorded)) for cell in ledger.cells)
    added = {name: today[name] for name in today.keys() - recorded.keys() - plan.values.keys()}
    same = {name: value for name, value in today.items() if name not in added}
    if other or _without_device(recorded) != _without_device(same):
        count = other or len(ledger.cells)
        raise UsageError(
            f"{plan.ledger}: {count} of {len(ledger.cells)} cells have another configuration "
            f"({_changed_values(plan, ledger)}). Only edits of the code, and new parameters at their defaults, can be "
            "kept: restore the configuration, or record again."
        )
    return dict(sorted(added.items()))


def _without_device(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "device"}


def _require_known(values: Mapping[str, Any], added: Mapping[str, Any]) -> None:
    """The old code takes no parameter that it does not have."""
    if new := sorted(values.keys() & added.keys()):
        raise UsageError(f"-p {new[0]}={values[new[0]]}: the code of the cells has no such parameter; leave it out.")


def _sole_stale_code(plan: Plan, ledger: Ledger, added: Mapping[str, Any]) -> str:
    """The hash of the one old code that made all cells of a ledger."""
    cells = len(ledger.cells)
    codes = sorted({cell.code_hash for cell in ledger.cells})
    if codes == [plan.code.sha256] and not added:
        raise UsageError(f"{plan.ledger}: all {cells} cells are those of today's code; there is nothing to keep.")
    if len(codes) > 1:
        found = ", ".join(code[:12] for code in codes)
        raise UsageError(
            f"{plan.ledger}: its {cells} cells come from {len(codes)} codes ({found}), and one comparison cannot speak "
            "for all. Record those that are missing with `avssl record`."
        )
    return codes[0]


def _changed_values(plan: Plan, ledger: Ledger) -> str:
    """``steps: 2, today 3``: the values by which two configurations differ."""
    recorded, today = ledger.config, json.loads(json.dumps(dict(plan.config), default=str))
    names = sorted((recorded.keys() | today.keys()) - {"device"})
    found = [
        f"{name}: {recorded.get(name, 'absent')!r}, today {today.get(name, 'absent')!r}"
        for name in names
        if name not in recorded or name not in today or recorded[name] != today[name]
    ]
    return "; ".join(found) or "its values are not those the ledger names"


def _requests(
    plan: Plan, ledger: Ledger, arms: Iterable[str], seed: int, overrides: Mapping[str, Any]
) -> list[CellRequest]:
    """A short cell for each arm; script, code and output are those of a tree, and filled in there."""
    corpus = {cell.arm: cell.corpus for cell in ledger.cells}
    values = {**plan.values, **overrides}
    short = config_hash(chapter_config(load_definitions(plan.script), values, "cpu"))
    return [CellRequest("", arm, seed, corpus[arm], "cpu", values, short, "", "") for arm in arms]


def _compare(old: Tree, new: Tree, requests: Sequence[CellRequest], timeout_s: float, console: Console) -> Report:
    """Run the cells in both trees, the old one first, and compare all that they report."""
    data = places(new.root)  # today's for both
    figures: list[dict[str, Metrics]] = []
    for tree in (old, new):
        own = {**import_from(tree.root), **data, "AVSSL_CACHE": str(tree.scratch / "cache")}
        figures.append({})
        told = [_told(tree, request) for request in requests]
        with closing(run_cells(told, jobs=1, timeout_s=timeout_s, cwd=tree.root, environment=own)) as cells:
            for request, failure in cells:
                if failure is not None:
                    _say(console, f"[red]{escape(f'{request.arm} by the {tree.name} code: {failure.reason}')}[/]")
                    return Report(failures=(failure,))
                cell = read_json(request.output)
                figures[-1][request.arm] = cell["metrics"]
                _say(console, f"{escape(request.arm)} by the {tree.name} code: done in {duration(cell['wall_s'])}")
    before, after = figures
    names = {arm: tuple(sorted(before[arm].keys() | after[arm].keys())) for arm in before}
    return Report(tuple(Comparison(arm, names[arm], differences(before[arm], after[arm])) for arm in before))


def _told(tree: Tree, request: CellRequest) -> CellRequest:
    """The request for a tree; its process refuses where the code that it imports is not the tree's."""
    output = str(tree.scratch / f"{request.arm}.json")
    return replace(request, script=str(tree.script), code_hash=tree.code.sha256, output=output)


def differences(old: Metrics, new: Metrics) -> tuple[str, ...]:
    """A line for each metric that is not equal to the last bit: which, and by how much."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            lines.append(f"{name}: only the {'old' if name in old else 'new'} code reports it")
        elif json.dumps(old[name]) != json.dumps(new[name]):  # JSON spells every bit of a float, its sign included
            lines.append(f"{name}: {_how_far(old[name], new[name])}")
    return tuple(lines)


def _how_far(old: Any, new: Any) -> str:
    if isinstance(old, float) and isinstance(new, float):
        return f"{old!r} by the old code, {new!r} by the new, {new - old:+.3g}"
    before, after = list(_numbers(old)), list(_numbers(new))
    if len(before) != len(after):
        return f"{len(before)} numbers by the old code, {len(after)} by the new"
    apart = [abs(a - b) for a, b in zip(before, after, strict=True) if a != b]
    return f"{len(apart)} of {len(before)} numbers differ, by up to {max(apart, default=0.0):.3g}"


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        for each in value:
            yield from _numbers(each)
    else:
        yield value


def _edit(
    ledger: Ledger,
    old: Tree,
    new: Tree,
    reason: str,
    changed: list[str],
    checked: list[KeptCheck],
    added: dict[str, Any],
) -> KeptEdit:
    edit: KeptEdit = {
        "from": old.code.sha256,
        "to": new.code.sha256,
        "commit": str(ledger.commit),
        "reason": reason,
        "changed": changed,
        "checked": checked,
        "note": KEPT_NOTE,
    }
    return {**edit, "added": added} if added else edit


def _keep(plan: Plan, ledger: Ledger, edit: KeptEdit) -> None:
    """Give the cells today's hashes and say so; the cache stays as it is, since only a ledger can say so."""
    cells = tuple(replace(c, code_hash=edit["to"], config_hash=plan.config_hash) for c in ledger.cells)
    remember_code(plan)
    config = {**ledger.config, **edit.get("added", {})}
    replace(ledger, cells=cells, config=config, kept=(*ledger.kept, edit)).write(plan.ledger)


def _print_end(console: Console, plan: Plan, ledger: Ledger, report: Report) -> None:
    for each in report.compared:
        for line in each.differences:
            _say(console, f"[red]{escape(f'{each.arm}: {line}')}[/]")
        if not each.differences:
            _say(console, f"{escape(each.arm)}: {len(each.metrics)} metrics equal to the last bit")
    if not report.ok:
        _say(console, f"[red]nothing is kept; {escape(str(plan.ledger))} is as it was[/]")
        return
    _say(console, f"kept {len(ledger.cells)} cells, now across {edits_text(len(ledger.kept) + 1)}")
    _say(console, f"[yellow]{KEPT_NOTE}; the ledger says so under 'kept', with the reason and what was compared[/]")
    _say(console, f"ledger: {escape(str(plan.ledger))}")


def _say(console: Console, text: str) -> None:
    """Print a line as it is: no wrapping, no colouring of numbers and paths."""
    console.print(text, soft_wrap=True, highlight=False)
