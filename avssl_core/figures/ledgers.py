"""What was recorded, as pictures: arms over seeds from a ledger, and claims with their verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import seaborn as sns
from matplotlib.axes import Axes

from avssl_core.figures.seeds import arms_over_seeds, interval_bar
from avssl_core.figures.style import SKY, VERMILLION, axes_of
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
