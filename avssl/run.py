"""Running a chapter: script → notebook in memory → papermill → executed notebook, HTML copy and claims table in a run
directory.

The chapter's kernel finds ``AVSSL_BUDGET`` and ``AVSSL_RUN_DIR`` among its environment variables, and the folders that
others name as absolute paths (``avssl.places``). What it wants shown at the end it writes to
``AVSSL_RUN_DIR/claims.json``. The same function runs the only process of a laptop and each rank of a many-rank run.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat

from avssl.errors import UsageError
from avssl.kernels import environment, kernel_config, kernel_home
from avssl.manifest import Chapter, Manifest
from avssl.notebooks import read_script
from avssl.parameters import Parameter, declared, read_budget, read_overrides
from avssl.places import corpus_names, data_value, places

CLAIMS = "claims.json"
DEFAULT_BUDGET = "small"


@dataclass(frozen=True)
class Plan:
    """A run that has been checked and not started: every name is known and every value has its type."""

    chapter: Chapter
    budget: str
    parameters: Mapping[str, Any]
    run_dir: Path
    places: Mapping[str, str]  # folders as the command that was typed meant them; a job may start elsewhere

    def output(self, rank: int = 0) -> Path:
        """Where a rank's executed notebook goes."""
        suffix = "" if rank == 0 else f".rank{rank}"
        return self.run_dir / f"{self.chapter.name}{suffix}.ipynb"


@dataclass(frozen=True)
class Outcome:
    """What a finished run left behind."""

    notebook: Path
    html: Path | None
    wall_s: float
    claims: list[dict[str, Any]] = field(default_factory=list)


class ChapterFailed(Exception):  # noqa: N818 - the state of a chapter, not of this program
    """A cell raised, or the kernel died. The message is the traceback; ``notebook`` shows how far it came, if it began.

    ``when`` is seconds since the epoch, of the exception itself: writing notebooks and ending kernels takes ranks
    unequally long.
    """

    def __init__(self, message: str, notebook: Path, *, when: float | None = None, kernel_died: bool = False) -> None:
        super().__init__(message)
        self.notebook = notebook
        self.when = time.time() if when is None else when
        self.kernel_died = kernel_died


def plan_run(
    manifest: Manifest,
    name: str,
    *,
    budget: str | None = None,
    overrides: list[str] | None = None,
    data: str | None = None,
    dry_run: bool = False,
    out: Path | None = None,
) -> Plan:
    """Check everything about a run before it starts.

    Args:
        manifest: the book.
        name: the chapter.
        budget: ``smoke``, ``small``, ``full-…``; when not given, the environment variable ``AVSSL_BUDGET``, then
            ``small``.
        overrides: ``name=value`` pairs that win over the budget.
        data: a folder of video files, or the name of a corpus that the chapter knows.
        dry_run: validate and measure instead of training: the parameter ``dry_run`` of chapters that have one; for
            the others, :func:`measure` does it.
        out: run directory; ``runs/CHAPTER/BUDGET-TIME`` beside ``book.yml`` when not given.

    Raises:
        UsageError: an unknown chapter, budget or parameter (the nearest valid ones are named), a value of the wrong
            type, a corpus that the chapter does not know, a folder that does not exist.
    """
    chapter = manifest.runnable(name)
    budget = budget or os.environ.get("AVSSL_BUDGET") or DEFAULT_BUDGET
    budget_file = chapter.budget_file(budget)
    parameters = declared(read_script(chapter.script))
    values = read_budget(budget_file, parameters) | read_overrides(list(overrides or []), parameters)
    if data is not None:
        values["data"] = _takes(parameters, "data", chapter).check(data)
    if values.get("data") is not None:
        typed = data is not None or any(pair.startswith("data=") for pair in overrides or [])
        values["data"] = data_value(str(values["data"]), corpus_names(chapter, parameters), typed=typed)
    if dry_run and "dry_run" in parameters:
        values["dry_run"] = parameters["dry_run"].check(True)
    if "budget" in parameters:
        values["budget"] = budget
    stamp = dt.datetime.now().strftime("%Y%m%d-%H%M%S")
    run_dir = Path(out) if out is not None else manifest.root / "runs" / chapter.name / f"{budget}-{stamp}"
    return Plan(chapter, budget, values, run_dir=run_dir.resolve(), places=places(chapter.root))


def _takes(parameters: Mapping[str, Parameter], name: str, chapter: Chapter) -> Parameter:
    if name not in parameters:
        raise UsageError(
            f"chapter {chapter.name} has no parameter {name!r}: --{name.replace('_', '-')} cannot be passed to it."
        )
    return parameters[name]


def measure(plan: Plan) -> dict[str, Any]:
    """A dry run: the chapter's own ``dry_run(make_config(**values))``, without the notebook.

    Returns:
        What the chapter reports: shapes, speed, projected memory and hours.

    Raises:
        UsageError: the chapter defines no ``dry_run``, or it or its configuration refuses the values.
    """
    measured, config = dry_run_of(plan)
    # ValueError of the run itself: a value that only it could refuse
    with _in_chapter(plan), _refused(plan, ValueError):
        return dict(measured(config))


def dry_run_of(plan: Plan) -> tuple[Callable[[Any], Mapping[str, Any]], Any]:
    """The chapter's own ``dry_run``, and the configuration that it is to be called with; nothing is measured yet.

    Raises:
        UsageError: the chapter defines no ``dry_run``, or its configuration refuses the values.
    """
    module = _definitions(plan)
    absent = [name for name in ("make_config", "dry_run") if not hasattr(module, name)]
    if absent:
        raise UsageError(f"chapter {plan.chapter.name} has no dry run: it defines no {' and no '.join(absent)}.")
    with _in_chapter(plan), _refused(plan, TypeError, ValueError):
        return module.dry_run, module.make_config(**plan.parameters)


def check_values(plan: Plan) -> None:
    """Let the chapter refuse values now, by its own ``check_values``, that it would only trip over minutes later.

    Raises:
        UsageError: with the chapter's words.
    """
    module = _definitions(plan)
    if hasattr(module, "make_config") and hasattr(module, "check_values"):
        with _in_chapter(plan), _refused(plan, TypeError, ValueError):
            module.check_values(module.make_config(**plan.parameters))


def _definitions(plan: Plan) -> ModuleType:
    from avssl_core.reporting import load_definitions

    with _in_chapter(plan):  # a constant of the script may look for the book, and the command may be typed elsewhere
        return load_definitions(plan.chapter.script)


@contextlib.contextmanager
def _in_chapter(plan: Plan) -> Iterator[None]:
    """What the chapter's kernel would find: its folder, and the places."""
    with contextlib.chdir(plan.chapter.folder), environment(plan.places):
        yield


@contextlib.contextmanager
def _refused(plan: Plan, *kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        raise UsageError(f"chapter {plan.chapter.name}: {error}") from error


def execute(plan: Plan, *, rank: int = 0, progress: bool = True) -> Outcome:
    """Run the chapter once, in this process, with one kernel.

    Args:
        plan: what :func:`plan_run` checked.
        rank: this process's rank; only rank 0 writes the HTML copy and reads the claims.
        progress: show a bar over cells and the notebook's own output above it.

    Raises:
        ChapterFailed: a cell raised or the kernel died; the message holds the traceback.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    plan.run_dir.mkdir(parents=True, exist_ok=True)
    output = plan.output(rank)
    if rank == 0:
        resolved = {"chapter": plan.chapter.name, "budget": plan.budget, "parameters": dict(plan.parameters)}
        _write_json(plan.run_dir / "parameters.json", resolved)
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of parameters whose annotation it cannot read
    own = {"AVSSL_BUDGET": plan.budget, "AVSSL_RUN_DIR": str(plan.run_dir), "AVSSL_QUIET": "1"}
    started = time.perf_counter()
    try:
        with kernel_home({**own, **plan.places}) as home, _log(plan, rank, echo=progress) as log:
            papermill.execute_notebook(
                read_script(plan.chapter.script),
                str(output).replace("{", "{{").replace("}", "}}"),  # papermill formats the path
                parameters=dict(plan.parameters),
                kernel_name="python3",
                cwd=str(plan.chapter.folder),
                config=kernel_config(home),
                progress_bar={"desc": plan.chapter.name, "unit": "cell"} if progress else False,
                stdout_file=log,
                stderr_file=log,
            )
    except PapermillExecutionError as error:
        raise ChapterFailed(str(error).strip(), output, when=_raised_at(output)) from error
    except (DeadKernelError, CellTimeoutError, RuntimeError) as error:
        cause = "".join(traceback.format_exception_only(error)).strip()
        raise ChapterFailed(f"{_last_cell(output)}\n{cause}", output, kernel_died=True) from error
    wall_s = time.perf_counter() - started
    if rank == 0:
        write_html(output)
    return finished(plan, wall_s=wall_s, rank=rank)


def finished(plan: Plan, *, wall_s: float, rank: int = 0) -> Outcome:
    """What a run left in its directory; only rank 0 leaves an HTML copy and claims."""
    notebook = plan.output(rank)
    html = notebook.with_suffix(".html")
    claims = read_claims(plan.run_dir) if rank == 0 else []
    return Outcome(notebook=notebook, html=html if html.is_file() else None, wall_s=wall_s, claims=claims)


def write_html(notebook: Path) -> Path:
    """An HTML copy beside an executed notebook: opens in any browser, no Jupyter needed."""
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter(embed_images=True).from_filename(str(notebook))
    path = notebook.with_suffix(".html")
    path.write_text(body, encoding="utf-8")
    return path


def read_claims(run_dir: Path) -> list[dict[str, Any]]:
    """The claims a run left: a list, or a mapping with the key ``claims``; empty when it left none.

    Raises:
        UsageError: the file holds neither; the message names it.
    """
    path = run_dir / CLAIMS
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from error
    claims = content.get("claims") if isinstance(content, dict) else content
    if not isinstance(claims, list) or not all(isinstance(claim, dict) for claim in claims):
        raise UsageError(f"{path}: expected a list of claims, or a mapping with the key 'claims'.")
    return claims


class _Tee:
    """What the notebook prints: to the run's log file and, above the progress bar, to the terminal."""

    def __init__(self, file: Any, *, echo: bool) -> None:
        self.file, self.echo, self._line = file, echo, ""

    def write(self, text: str) -> int:
        self.file.write(text)
        if self.echo:
            *lines, self._line = (self._line + text).split("\n")
            for line in lines:
                self._show(line)
        return len(text)

    def flush(self) -> None:
        self.file.flush()

    def finish(self) -> None:
        if self._line:
            self._show(self._line)

    @staticmethod
    def _show(line: str) -> None:
        from tqdm import tqdm

        tqdm.write(line.rsplit("\r", 1)[-1], file=sys.stdout)


@contextmanager
def _log(plan: Plan, rank: int, *, echo: bool) -> Iterator[_Tee]:
    with plan.output(rank).with_suffix(".log").open("w", encoding="utf-8") as file:
        tee = _Tee(file, echo=echo)
        try:
            yield tee
        finally:
            tee.finish()


def _last_cell(output: Path) -> str:
    """Which cell was running when a kernel died, from the notebook papermill saved."""
    try:
        cells = nbformat.read(output, as_version=4).cells
    except (OSError, ValueError):
        return "the kernel died before the first cell"
    started = [
        (n, cell) for n, cell in enumerate(cells, start=1) if cell.metadata.get("papermill", {}).get("start_time")
    ]
    if not started:
        return "the kernel died before the first cell"
    number, cell = started[-1]  # papermill marks it "completed" all the same
    return f"the kernel died in cell {number} of {len(cells)}:\n{cell.source}"


def _raised_at(output: Path) -> float | None:
    """When the failed cell of a saved notebook ended, in seconds since the epoch."""
    for cell in nbformat.read(output, as_version=4).cells:
        timing = cell.metadata.get("papermill", {})
        if timing.get("exception") and timing.get("end_time"):
            return dt.datetime.fromisoformat(timing["end_time"]).timestamp()
    return None


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
