"""``avssl``: list the chapters, run one, record its claims, look after data, and ask what this machine lacks."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from avssl.data_cli import data_app
from avssl.errors import UsageError
from avssl.manifest import BOOK, costs, load_manifest
from avssl.run import ChapterFailed, Outcome, Plan, check_values, dry_run_of, execute, finished, measure, plan_run

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(data_app, name="data")
console = Console()
errors = Console(stderr=True)

BookOption = Annotated[
    Path | None, typer.Option("--book", help="book.yml; found from the working directory upwards by default.")
]


@app.command("list")
def list_chapters(book: BookOption = None) -> None:
    """Chapters, papers, states, budgets and their minutes."""
    manifest = load_manifest(book)
    table = Table(header_style="bold")
    for heading, fixed in (("part", True), ("chapter", True), ("paper", False), ("state", True), ("budgets", False)):
        table.add_column(heading, no_wrap=fixed)
    for chapter in manifest.chapters:
        state = chapter.state if chapter.runnable else "planned"
        budgets = costs(chapter.budgets, separator="\n") if chapter.runnable else ""
        table.add_row(chapter.part, chapter.name, escape(f"{chapter.paper} ({chapter.venue})"), state, budgets or "–")
    console.print(table)
    console.print("Run one with: avssl run NAME --budget smoke")


@app.command()
def run(
    chapter: Annotated[str, typer.Argument(help="Name of a chapter, as `avssl list` shows it.")],
    budget: Annotated[
        str | None, typer.Option(help="smoke, small, full-…; default: $AVSSL_BUDGET, then small.")
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", help="name=value; wins over the budget.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="A folder of video files, or the name of a corpus.")] = None,
    nproc: Annotated[int, typer.Option(min=1, help="Ranks on this machine: its number of GPUs.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate, measure two steps, project memory and hours.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Run directory; default: runs/CHAPTER/BUDGET-TIME.")] = None,
    book: BookOption = None,
) -> None:
    """Run a chapter: executed notebook, HTML copy, claims table."""
    from avssl import ranks

    rank = ranks.this_rank()
    if rank is not None and nproc == 1 and out is None:
        raise UsageError("a rank started by torchrun needs --out DIR, the same for all ranks.")
    manifest = load_manifest(book)
    plan = plan_run(manifest, chapter, budget=budget, overrides=parameter, data=data, dry_run=dry_run, out=out)
    where = manifest.root / BOOK if book is None else book
    arguments = _rank_arguments(plan, parameter=parameter or [], data=data, dry_run=dry_run, book=where)
    if dry_run and "dry_run" not in plan.parameters:
        _run_dry(plan, arguments, rank=rank, nproc=nproc)
        return
    if rank is None:
        check_values(plan)
    if rank is not None:
        outcome = ranks.run_rank(plan, rank)
    elif nproc > 1:
        outcome = ranks.launch(plan, arguments, nproc=nproc)
    else:
        outcome = execute(plan)
    if rank is None or (rank == 0 and not ranks.launched_by_us()):
        show_outcome(outcome)


def _run_dry(plan: Plan, arguments: list[str], *, rank: int | None, nproc: int) -> None:
    """Measure here, or on ranks that measure together; the only process, or rank 0, reports."""
    from avssl import ranks

    if rank is not None:
        measured = ranks.measure_rank(plan, rank)
    elif nproc > 1:
        dry_run_of(plan)  # what the chapter refuses is said once, before any rank starts
        check_values(plan)
        ranks.launch(plan, arguments, nproc=nproc)
        return
    else:
        measured = measure(plan)
    if not rank:
        show_measured(measured)


def show_measured(measured: dict[str, Any]) -> None:
    """The end of a dry run: nothing was trained."""
    table = Table("what", "measured or projected", header_style="bold")
    for what, value in measured.items():
        table.add_row(escape(what), escape(str(value)))
    console.print(table)
    console.print("Dry run: every parameter is valid; nothing was trained.")


def show_outcome(outcome: Outcome) -> None:
    """The end of a run: the claims table and the paths of what was written."""
    from avssl_core.reporting import claims_for_terminal, duration

    if outcome.claims:
        console.print(claims_for_terminal(claims_frame(outcome.claims), width=console.width))
    else:
        console.print("No claims are recorded yet: `avssl record` runs their cells.")
    console.print(f"finished in {duration(outcome.wall_s)}")
    for label, path in (("notebook", outcome.notebook), ("html", outcome.html)):
        if path is not None:
            console.print(f"{label}: {path}", soft_wrap=True, highlight=False, markup=False)


def claims_frame(claims: list[dict[str, Any]]) -> pd.DataFrame:
    """What a run wrote to claims.json: a row a claim, the columns it chose; a mapping becomes its values."""
    import pandas as pd

    return pd.DataFrame([{name: _in_words(value) for name, value in claim.items()} for claim in claims]).fillna("–")


def _in_words(value: Any) -> Any:
    if isinstance(value, dict):
        return "; ".join(str(part) for part in value.values())
    if isinstance(value, list):
        return "[" + ", ".join(f"{part:+.3f}" if isinstance(part, float) else str(part) for part in value) + "]"
    return value


@app.command()
def submit(
    chapter: Annotated[str, typer.Argument(help="Name of a chapter.")],
    budget: Annotated[str, typer.Option(help="A budget for nodes: full-….")],
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of a node, a rank each.")] = 8,
    cpus: Annotated[int, typer.Option(min=1, help="Cores of a rank.")] = 8,
    hours: Annotated[float, typer.Option(help="Time limit; a preempted job is requeued and resumes.")] = 24.0,
    partition: Annotated[str | None, typer.Option(help="SLURM partition.")] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", help="name=value; wins over the budget.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="A folder of video files, or the name of a corpus.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory, on a disk that all nodes see.")] = None,
    cluster: Annotated[str, typer.Option(help="slurm, or local: the same job as processes of this machine.")] = "slurm",
    book: BookOption = None,
) -> None:
    """Queue a chapter on SLURM nodes (through submitit)."""
    from avssl.submit import Nodes
    from avssl.submit import submit as queue

    plan = plan_run(load_manifest(book), chapter, budget=budget, overrides=parameter, data=data, out=out)
    wanted = Nodes(nodes=nodes, gpus=gpus, cpus=cpus, hours=hours, partition=partition)
    job = queue(plan, wanted, cluster=cluster)
    console.print(f"job {job.job_id}, run directory {plan.run_dir}", soft_wrap=True, highlight=False)
    if cluster == "local":
        started = time.perf_counter()
        job.results()
        show_outcome(finished(plan, wall_s=time.perf_counter() - started))


@app.command()
def record(
    chapter: Annotated[str, typer.Argument(help="Name of a chapter.")],
    budget: Annotated[str, typer.Option(help="Budget of the cells.")] = "record",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; devices are never mixed within a claim.")] = "cpu",
    jobs: Annotated[int, typer.Option(min=1, help="Cells at a time.")] = 2,
    only: Annotated[list[str] | None, typer.Option(help="Only the cells of these claims or arms.")] = None,
    extended: Annotated[bool, typer.Option("--extended", help="Also the claims beyond six hours.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what is done, missing, and the hours left.")] = False,
    allow_uncommitted: Annotated[
        bool, typer.Option("--allow-uncommitted", help="A trial: claims not committed.")
    ] = False,
    book: BookOption = None,
) -> None:
    """Run the missing cells of a chapter's claims and write the ledger."""
    from avssl.record import record_chapter

    manifest = load_manifest(book)
    report = record_chapter(
        manifest.runnable(chapter).folder,
        budget=budget,
        device=device,
        jobs=jobs,
        only=only,
        extended=extended,
        dry_run=dry_run,
        allow_uncommitted=allow_uncommitted,
        console=console,
    )
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def keep(
    chapter: Annotated[str, typer.Argument(help="Name of a chapter.")],
    reason: Annotated[str, typer.Option(help="Why the edit cannot change a figure; the ledger keeps it.")] = "",
    arm: Annotated[list[str] | None, typer.Option(help="An arm to compare; one or more.")] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("-p", "--parameter", help="name=value; makes the compared cells short.")
    ] = None,
    budget: Annotated[str, typer.Option(help="Budget of the ledger.")] = "record",
    device: Annotated[str, typer.Option(help="Whose ledger, cpu or cuda; the comparison runs on the CPU.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of the compared cells.")] = 0,
    book: BookOption = None,
) -> None:
    """Keep recorded cells across an edit of the code that changes no figure, after comparing both codes on a few."""
    from avssl.keep import keep_chapter

    report = keep_chapter(
        load_manifest(book).runnable(chapter).folder,
        reason=reason,
        arms=arm or [],
        overrides=parameter or [],
        budget=budget,
        device=device,
        seed=seed,
        console=console,
    )
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def doctor(book: BookOption = None) -> None:
    """What this machine has and lacks; says what to do about each finding. Exit code 1 if something blocks."""
    from avssl.doctor import examine, table_of

    findings = examine(load_manifest(book).root)
    console.print(table_of(findings))
    if any(finding.level == "blocks" for finding in findings):
        raise typer.Exit(1)


@app.command()
def notebook(
    chapter: Annotated[str, typer.Argument(help="Name of a chapter.")],
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether the committed notebook is that of the script.")
    ] = False,
    budget: Annotated[str, typer.Option(help="Budget to execute at; what is committed is small.")] = "small",
    book: BookOption = None,
) -> None:
    """Execute a chapter's script into its committed notebook."""
    from nbclient.exceptions import CellExecutionError

    from avssl.notebooks import execute_chapter, stale_reasons, write_notebook

    found = load_manifest(book).runnable(chapter)
    if not check:
        found.budget_file(budget)
        try:
            executed = execute_chapter(found, budget=budget)
        except CellExecutionError as error:
            raise ChapterFailed(str(error), found.notebook) from error
        console.print(f"wrote {write_notebook(found, executed)}", soft_wrap=True)
    reasons = stale_reasons(found)
    for reason in reasons:
        errors.print(reason, markup=False)
    if reasons:
        raise typer.Exit(1)


def _rank_arguments(plan: Plan, *, parameter: list[str], data: str | None, dry_run: bool, book: Path) -> list[str]:
    """The command line of one rank: this run with everything that was resolved spelled out."""
    arguments = [
        "-m",
        "avssl",
        "run",
        plan.chapter.name,
        "--budget",
        plan.budget,
        "--out",
        str(plan.run_dir),
        "--book",
        str(book),
    ]
    arguments += [text for pair in parameter for text in ("-p", pair)]
    arguments += ["--data", data] if data is not None else []
    return arguments + (["--dry-run"] if dry_run else [])


def main() -> None:
    """Entry point: errors of use exit with 2, failures of a chapter with 1, neither with this program's traceback."""
    try:
        app()
    except UsageError as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        raise SystemExit(130) from None
    except ChapterFailed as error:
        begun = error.notebook.is_file()
        notebook = f"the notebook as far as it came: {error.notebook}" if begun else "no notebook was begun"
        print(f"\n{error}\n\nThe chapter stopped; {notebook}", file=sys.stderr)
        raise SystemExit(1) from None
