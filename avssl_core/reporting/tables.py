"""The claims table and the arms table: what a chapter ends with, from the ledger and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pandas as pd
from rich.markup import escape
from rich.table import Table

from avssl_core.reporting.ledger import ClaimResult, ControlResult, Ledger
from avssl_core.reporting.verdicts import NOT_RECORDED, NOT_REPRODUCED, REPRODUCED, t_interval

CLAIM_COLUMNS = (
    "claim",
    "corpus",
    "budget",
    "statement",
    "paper",
    "metric",
    "ordering",
    "effect",
    "95 % interval",
    "seeds",
    "verdict",
    "control",
)
_VERDICT_COLUMNS = ("statement", "verdict", "effect", "95 % interval", "seeds", "metric", "paper", "control")
_NARROW_COLUMNS = ("claim", "effect", "95 % interval", "seeds", "verdict")  # fit into a terminal of 80 columns
_WIDE_COLUMNS = ("claim", "corpus", "ordering", "metric", "effect", "95 % interval", "seeds", "verdict")
_WIDE = 130  # columns of a terminal
_STYLES = {REPRODUCED: "green", NOT_REPRODUCED: "red"}


def claims_table(
    ledgers: Ledger | Iterable[Ledger], *, corpus: str | None = None, extended: bool = True
) -> pd.DataFrame:
    """One row a claim, numbers as text with their sign, ready to be shown.

    Args:
        ledgers: one, or several (budgets, devices) below one another; their verdicts are never merged.
        corpus: only claims about this one.
        extended: keep claims marked so.

    Returns:
        A frame with ``CLAIM_COLUMNS``, playground before real corpora, in each what was recorded first.
    """
    rows = [
        {
            "claim": claim.id + (" (extended)" if claim.extended else ""),
            "corpus": claim.corpus,
            "budget": f"{ledger.budget}-{ledger.device}",
            "statement": claim.statement,
            "paper": f"{claim.paper['figure']} ({claim.paper['source']})",
            "metric": claim.metric,
            "ordering": f"{claim.better} > {claim.worse}",
            "effect": signed(claim.effect),
            "95 % interval": interval_text(claim.ci),
            "seeds": claim.n_seeds,
            "verdict": claim.verdict if claim.n_seeds else f"{NOT_RECORDED} yet",
            "control": _control_text(claim.control),
        }
        for ledger, claim in listed_claims(ledgers)
        if (corpus is None or claim.corpus == corpus) and (extended or not claim.extended)
    ]
    frame = pd.DataFrame(rows, columns=list(CLAIM_COLUMNS))
    last = pd.DataFrame({"real": frame["corpus"] != "playground", "waiting": frame["seeds"] == 0})
    return frame.loc[last.sort_values(["real", "waiting"], kind="stable").index].reset_index(drop=True)


def listed_claims(ledgers: Ledger | Iterable[Ledger]) -> list[tuple[Ledger, ClaimResult]]:
    """Every claim with the ledger that speaks of it, ledger after ledger.

    A claim that was recorded on one kind of device need not be listed as missing on another: it is left out of ledgers
    that hold no seed of it, and stands in the first where no ledger holds any.
    """
    every = [ledgers] if isinstance(ledgers, Ledger) else list(ledgers)
    recorded = {claim.id for ledger in every for claim in ledger.claims if claim.n_seeds}
    listed: list[tuple[Ledger, ClaimResult]] = []
    open_ids: set[str] = set()
    for ledger in every:
        for claim in ledger.claims:
            if claim.n_seeds or (claim.id not in recorded and claim.id not in open_ids):
                open_ids |= set() if claim.n_seeds else {claim.id}
                listed.append((ledger, claim))
    return listed


def verdicts_text(ledgers: Ledger | Iterable[Ledger], *, corpus: str) -> str:
    """The claims about one corpus as Markdown tables: one a ledger with what it decided, one of what nobody has run.

    Args:
        ledgers: one, or several (budgets, devices).
        corpus: verdicts on real and on made-up videos never share a table.

    Returns:
        Nothing where nothing was recorded.
    """
    every = [ledgers] if isinstance(ledgers, Ledger) else list(ledgers)
    table = claims_table(every, corpus=corpus)
    texts = []
    for ledger in every:
        part = table[(table["budget"] == f"{ledger.budget}-{ledger.device}") & (table["seeds"] > 0)]
        if len(part):
            texts.append(f"{_recorded_on(ledger, corpus)}\n\n{to_markdown(part[list(_VERDICT_COLUMNS)])}")
    waiting = table.loc[table["seeds"] == 0, ["statement", "ordering", "metric", "paper"]]
    if len(waiting):
        texts.append(f"Not recorded yet:\n\n{to_markdown(waiting)}")
    return "\n\n".join(texts)


def _recorded_on(ledger: Ledger, corpus: str) -> str:
    """Where the cells were computed: figures of different kinds of device never meet in one claim."""
    where = dict.fromkeys(cell.hardware for cell in ledger.cells if cell.corpus == corpus and cell.hardware)
    kept = f", kept across {edits_text(len(ledger.kept))}" if ledger.kept else ""
    return f"Recorded on {' and '.join(where) or 'unnamed hardware'} (`{ledger.budget}`, {ledger.device}{kept}):"


def edits_text(count: int) -> str:
    """``1 edit of the code``, ``2 edits of the code``: how often figures were kept instead of recorded again."""
    return f"{count} edit{'' if count == 1 else 's'} of the code"


def shortfalls(ledgers: Ledger | Iterable[Ledger]) -> str:
    """What did not come out as claimed, as a Markdown list: claims not reproduced, controls that surprise, open ones.

    A chapter must say this whatever the numbers are, so the list is written by the ledger. Claims of which fewer than
    two seeds have been recorded are counted in the last line.

    Args:
        ledgers: one, or several (budgets, devices).
    """
    lines, missing = [], 0
    claims = [claim for _, claim in listed_claims(ledgers)]
    for claim in claims:
        if claim.n_seeds < 2:
            missing += 1
        elif claim.verdict != REPRODUCED:
            found = f"`{claim.metric}`, {claim.better} over {claim.worse}: {signed(claim.effect)}"
            lines.append(f"- **{claim.verdict.capitalize()}.** {claim.statement} ({found} {interval_text(claim.ci)})")
        if claim.n_seeds >= 2 and claim.control is not None and claim.control.outcome == "not as expected":
            found = f"{signed(claim.control.effect)} {interval_text(claim.control.ci)}"
            lines.append(f"- **A control that surprises**, of `{claim.id}`: {claim.control.statement} ({found})")
    if missing:
        lines.append(f"- **Not recorded yet**: {missing} of {len(claims)} claims.")
    return "\n".join(line.replace("<", "&lt;") for line in lines)


def arms_table(ledger: Ledger, metrics: Sequence[str] | None = None, *, confidence: float = 0.95) -> pd.DataFrame:
    """Mean and t interval over seeds of each arm and metric, in long form.

    Args:
        ledger: what was recorded.
        metrics: which scalar metrics; all of them by default.
        confidence: of the intervals.

    Returns:
        Columns ``corpus, arm, metric, mean, low, high, seeds``; ``low`` and ``high`` are infinite with one seed.
    """
    names = list(metrics) if metrics is not None else _scalar_metrics(ledger)
    arms = dict.fromkeys((cell.corpus, cell.arm) for cell in ledger.cells)
    rows = []
    for corpus, arm in arms:
        for name in names:
            values = list(ledger.values(arm, name).values())
            if values:
                rows.append((corpus, arm, name, *t_interval(values, confidence=confidence), len(values)))
    return pd.DataFrame(rows, columns=["corpus", "arm", "metric", "mean", "low", "high", "seeds"])


def cells_frame(ledger: Ledger) -> pd.DataFrame:
    """One row a cell and scalar metric (``corpus, arm, seed, metric, value``): what the pictures over seeds take."""
    rows = [
        (cell.corpus, cell.arm, cell.seed, name, float(value))
        for cell in ledger.cells
        for name, value in cell.metrics.items()
        if isinstance(value, int | float)
    ]
    return pd.DataFrame(rows, columns=["corpus", "arm", "seed", "metric", "value"])


def to_markdown(frame: pd.DataFrame, *, digits: int = 3) -> str:
    """A frame as a Markdown table; text is escaped, so that names cannot break out of their cell."""
    lines = [[str(name) for name in frame.columns]]
    lines += [[_text(value, digits) for value in row] for row in frame.itertuples(index=False)]
    escaped = [[_plain(text) for text in line] for line in lines]
    rule = ["---:" if pd.api.types.is_numeric_dtype(frame[name]) else "---" for name in frame.columns]
    return "\n".join(f"| {' | '.join(line)} |" for line in [escaped[0], rule, *escaped[1:]])


def claims_for_terminal(table: pd.DataFrame, *, width: int, title: str | None = None) -> Table:
    """The claims table in what a terminal of ``width`` columns can show; statements are read in the notebook.

    Args:
        table: as ``claims_table`` returns it; one without the column ``claim`` is shown whole.
        width: columns of the terminal.
        title: above the table.
    """
    chosen = [name for name in (_WIDE_COLUMNS if width >= _WIDE else _NARROW_COLUMNS) if name in table]
    return to_rich(table[chosen] if "claim" in chosen else table, title=title)


def to_rich(frame: pd.DataFrame, *, title: str | None = None, digits: int = 3) -> Table:
    """A frame as a table for the terminal; verdicts are coloured as well as written, numbers never broken."""
    table = Table(title=title, show_lines=False)
    for name in frame.columns:
        number = pd.api.types.is_numeric_dtype(frame[name])
        table.add_column(
            str(name),
            justify="right" if number else "left",
            no_wrap=number or name in ("effect", "95 % interval"),
            overflow="fold",
        )
    for row in frame.itertuples(index=False):
        texts = [_text(value, digits) for value in row]
        table.add_row(*(f"[{_STYLES[t]}]{t}[/]" if t in _STYLES else escape(t) for t in texts))
    return table


def interval_text(ci: tuple[float, float]) -> str:
    """``[+0.010, +0.052]``, or an en dash where two seeds are still missing."""
    return f"[{signed(ci[0])}, {signed(ci[1])}]" if all(math.isfinite(end) for end in ci) else "–"


def signed(value: float) -> str:
    """Three decimals with a sign, or an en dash for what is no number."""
    return f"{value:+.3f}".replace("-", "−") if math.isfinite(value) else "–"


def _control_text(control: ControlResult | None) -> str:
    if control is None:
        return "–"
    return f"{control.outcome}: {signed(control.effect)} {interval_text(control.ci)} ({control.statement})"


def _scalar_metrics(ledger: Ledger) -> list[str]:
    scalars = (name for cell in ledger.cells for name, value in cell.metrics.items() if isinstance(value, int | float))
    return list(dict.fromkeys(scalars))


def _text(value: object, digits: int) -> str:
    if isinstance(value, float):
        return f"{value:.{digits}f}" if math.isfinite(value) else "–"
    return str(value)


def _plain(text: str) -> str:
    for old, new in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("\n", " ")):
        text = text.replace(old, new)
    return text
