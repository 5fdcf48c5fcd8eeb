"""What was recorded, as pictures: arms over seeds from a ledger, and claims with their verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import seaborn as sns
from matplotlib.axes import Axes

from avssl_core.figures.seeds import arms_over_seeds, interval_bar
from avssl_core.figures.style import SKY, VERMILLION, WIDTH, axes_of, line_style, reference_line
from avssl_core.reporting import ClaimResult, Ledger, cells_frame


def recorded_arms(
    ledgers: Iterable[Ledger],
    metric: str,
    *,
    label: str,
    corpus: str | None = None,
    arms: Sequence[str] | None = None,
    chance: float | None = None,
) -> list[Axes]:
    """A figure of :func:`arms_over_seeds` for every ledger that holds the metric; devices never share one.

    Args:
        ledgers: of one chapter.
        metric: a scalar metric of its cells.
        label: of the horizontal axis.
        corpus: only cells that learned from this one.
        arms: only these, in this order; as they come by default.
        chance: a line to draw.

    Returns:
        One axes a figure; none where nothing was recorded.
    """
    drawn = []
    for ledger in ledgers:
        cells = cells_frame(ledger)
        cells = cells[(cells["metric"] == metric) & ((cells["corpus"] == corpus) if corpus else True)]
        if len(cells if arms is None else cells[cells["arm"].isin(list(arms))]):
            title = f"recorded on {ledger.device}"
            drawn.append(arms_over_seeds(cells, label=label, order=arms, chance=chance, title=title))
    return drawn


def recorded_pairs(
    ledgers: Iterable[Ledger],
    metrics: tuple[str, str],
    *,
    labels: tuple[str, str],
    arms: Sequence[str],
    chance: float | None = None,
    reference: tuple[float, str] | None = None,
) -> list[Axes]:
    """Two metrics of the same cells against each other, a point a cell, a mark an arm; a figure for every ledger.

    Args:
        ledgers: of one chapter.
        metrics: of the horizontal and of the vertical axis.
        labels: of the axes.
        arms: in this order.
        chance: a horizontal line to draw.
        reference: a vertical line to draw, and its name.

    Returns:
        One axes a figure; none where no cell of these arms holds both.
    """
    drawn = []
    for ledger in ledgers:
        found = {arm: [ledger.values(arm, name) for name in metrics] for arm in arms}
        points = {arm: [(x[seed], y[seed]) for seed in x if seed in y] for arm, (x, y) in found.items()}
        if not any(points.values()):
            continue
        ax = axes_of(None, width=0.75 * WIDTH)
        for number, (arm, pairs) in enumerate(points.items()):
            style = line_style(number, marker=True) | {"linestyle": "none", "markersize": 7, "markeredgecolor": "black"}
            ax.plot([x for x, _ in pairs], [y for _, y in pairs], label=arm, **style)
        ax.set(xlabel=labels[0], ylabel=labels[1], title=f"recorded on {ledger.device}")
        if chance is not None:
            ax.set_ylim(bottom=0)
            reference_line(ax, chance, "chance")
        if reference is not None:
            reference_line(ax, *reference, vertical=True)
        ax.legend(loc="best")
        sns.despine(ax=ax)
        drawn.append(ax)
    return drawn


def claims_plot(claims: Sequence[ClaimResult], *, title: str = "", ax: Axes | None = None) -> Axes:
    """Effects of claims with intervals, single paired differences, minimum effects and verdicts, one row a claim.

    Args:
        claims: from a ledger; one corpus, so that real and playground verdicts do not meet in one picture.
        title: above the plot.
        ax: where to draw.

    Raises:
        ValueError: no claims, or claims of several corpora.
    """
    if len({claim.corpus for claim in claims}) != 1:
        raise ValueError(f"expected claims of one corpus, got {sorted({claim.corpus for claim in claims})}")
    ax = axes_of(ax, height=0.36 * len(claims) + 0.9)
    for place, claim in enumerate(claims):
        ax.scatter(claim.differences, [place - 0.14] * claim.n_seeds, s=16, color=SKY, edgecolor="black", linewidth=0.4)
        ax.plot([claim.minimum_effect] * 2, [place - 0.3, place + 0.38], color=VERMILLION, linewidth=1.4, linestyle="-")
        interval_bar(ax, claim.differences, place + 0.14)
        ax.annotate(
            claim.verdict, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize="small",
            fontweight="bold" if claim.verdict == "reproduced" else "normal",
        )  # fmt: skip
    ax.axvline(0, color="black", linewidth=0.8, linestyle="-")
    ax.set_yticks(
        range(len(claims)), [f"{claim.id}\n{claim.better} > {claim.worse}" for claim in claims], fontsize="small"
    )
    ax.set(ylim=(len(claims) - 0.5, -0.55), title=title)
    ax.set_xlabel("paired difference, in units of the metric  (dashes: minimum effect)")
    ax.grid(axis="x")
    ax.grid(False, axis="y")
    sns.despine(ax=ax)
    return ax
