"""Results over seeds: every plot shows the single runs and the interval, never a bare mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from avssl_core.figures.style import (
    COLOURS,
    DASHES,
    GREY,
    MARKERS,
    SKY,
    WIDTH,
    axes_of,
    bar_style,
    labels_at_right,
    line_style,
    reference_line,
)
from avssl_core.reporting import t_interval


def arms_over_seeds(
    frame: pd.DataFrame,
    *,
    value: str = "value",
    label: str = "accuracy",
    order: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    chance: float | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Each arm's runs as points, beside their mean with the 95 % t interval.

    Args:
        frame: one row a run, columns ``arm``, ``seed`` and ``value``.
        value: column to draw.
        label: of the horizontal axis, with its unit.
        order: arms from above to below; as they come by default. Only these are drawn.
        names: what to call an arm; its own name by default.
        chance: a line to draw.
        title: above the plot.
        ax: where to draw.

    Raises:
        ValueError: nothing to draw.
    """
    arms = list(order) if order is not None else list(dict.fromkeys(frame["arm"]))
    arms = [arm for arm in arms if (frame["arm"] == arm).any()]
    if not arms:
        raise ValueError(f"no runs of {list(order or [])} to draw; the frame has {sorted(set(frame['arm']))}")
    ax = axes_of(ax, height=0.34 * len(arms) + 0.9)
    chosen = frame[frame["arm"].isin(arms)]
    sns.stripplot(
        chosen, x=value, y="arm", order=arms, ax=ax, jitter=False, size=4.5, color=SKY, edgecolor="black",
        linewidth=0.4, alpha=0.9, zorder=2,
    )  # fmt: skip
    for place, arm in enumerate(arms):
        interval_bar(ax, chosen.loc[chosen["arm"] == arm, value], place + 0.24)
    room = 0.55  # below the last arm, for the name of the line
    if chance is not None:
        reference_line(ax, chance, "chance", vertical=True)
        room = 1.0
    ax.set_yticks(range(len(arms)), [(names or {}).get(arm, arm) for arm in arms])
    ax.set(xlabel=label, ylabel="", title=title, ylim=(len(arms) - 1 + room, -0.55))
    ax.grid(axis="x")
    ax.grid(False, axis="y")
    sns.despine(ax=ax)
    return ax


def paper_and_ours(
    paper: Mapping[str, float],
    ours: Mapping[str, Sequence[float]],
    *,
    paper_label: str,
    our_label: str,
    groups: Sequence[tuple[str, Sequence[str]]] = (),
    names: Mapping[str, str] | None = None,
    chance: float | None = None,
) -> Figure:
    """The paper's numbers above, ours with intervals below, arm under arm: scales of their own, one order.

    Args:
        paper: the printed number of each arm; arms that the paper lacks stay empty.
        ours: our runs of each arm, one number a seed; sets arms and order.
        paper_label: vertical axis above, with data set and unit.
        our_label: vertical axis below, likewise.
        groups: titles over runs of neighbouring arms (``("within-modal", ["a", "b"])``), hatched alike.
        names: what to call an arm.
        chance: of our metric.

    Raises:
        ValueError: no arms of ours.
    """
    if not ours:
        raise ValueError("nothing of ours to draw: ours is empty")
    arms = [arm for _, members in groups for arm in members if arm in ours] or list(ours)
    styles = {arm: bar_style(number) for number, (_, members) in enumerate(groups) for arm in members}
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(WIDTH, 4.2))
    for place, arm in enumerate(arms):
        style = styles.get(arm, bar_style(0))
        if arm in paper:
            above.bar(place, paper[arm], width=0.7, **style)
        mean, low, high = t_interval(list(ours[arm]))
        below.bar(place, mean, width=0.7, **style)
        if math.isfinite(high):
            below.errorbar(place, mean, yerr=[[mean - low], [high - mean]], color="black", capsize=3, linestyle="none")
        dots = np.linspace(-0.2, 0.2, len(ours[arm])) if len(ours[arm]) > 1 else [0.0]
        below.scatter(
            place + np.asarray(dots), ours[arm], s=9, color="white", edgecolor="black", linewidth=0.6, zorder=3
        )
    for ax, label, numbers in ((above, paper_label, list(paper.values())), (below, our_label, _flat(ours))):
        ax.set_ylabel(label)
        ax.set_ylim(*_bar_range(numbers, chance if ax is below else None))
        sns.despine(ax=ax)
    if chance is not None:
        reference_line(below, chance, "chance")  # after the limits are set
    above.set_title("paper (single runs)")
    below.set_title("ours (mean, 95 % interval, single runs)")
    below.set_xticks(range(len(arms)), [(names or {}).get(arm, arm) for arm in arms])
    if groups:
        handles = [Rectangle((0, 0), 1, 1, **bar_style(n)) for n in range(len(groups))]
        figure.legend(handles, [title for title, _ in groups], loc="outside lower center", ncols=min(len(groups), 4))
    return figure


def learning_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    floors: Mapping[str, float] | None = None,
    label: str = "loss (nats)",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Values against steps, each curve with its theoretical floor as a thin line of its own colour.

    Args:
        curves: name → (steps, values).
        floors: name of a curve → the lowest value that theory allows it; lines under other names are drawn in grey.
        label: of the vertical axis.
        title: above the plot.
        ax: where to draw.
    """
    ax = axes_of(ax)
    for number, (name, (steps, values)) in enumerate(curves.items()):
        style = line_style(number)
        ax.plot(steps, values, label=name, **style)
        if floors and name in floors:
            ax.axhline(floors[name], color=style["color"], linestyle=(0, (1, 2)), linewidth=1.1)
    for name, value in (floors or {}).items():
        if name not in curves:
            ax.axhline(value, color=GREY, linestyle=(0, (4, 3)), linewidth=1.0)
    colours = {name: str(line_style(number)["color"]) for number, name in enumerate(curves)}
    texts = [
        (value, f"floor of {name}" if name in curves else name, colours.get(name, "#555555"))
        for name, value in (floors or {}).items()
    ]
    ax.margins(y=0.06)
    labels_at_right(ax, texts)
    ax.set(xlabel="step", ylabel=label, title=title)
    ax.legend()
    sns.despine(ax=ax)
    return ax


def sensitivity_histogram(
    spreads: Mapping[str, Sequence[float]],
    *,
    label: str = "std of the features over time shifts",
    bins: int = 30,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """How much features vary along a video, one number a video, one outline an arm (GDT, figure 3).

    Args:
        spreads: arm → spread of each video.
        label: of the horizontal axis.
        bins: shared by all arms.
        title: above the plot.
        ax: where to draw.
    """
    if not spreads:
        raise ValueError("there are no arms to draw")
    ax = axes_of(ax, height=2.8)
    every = np.concatenate([np.asarray(each, dtype=float) for each in spreads.values()])
    edges = np.histogram_bin_edges(every, bins).tolist()
    for number, (name, values) in enumerate(spreads.items()):
        style = line_style(number)
        weights = np.full(len(values), 100 / len(values))
        ax.hist(values, bins=edges, weights=weights, histtype="stepfilled", alpha=0.15, color=style["color"])
        ax.hist(values, bins=edges, weights=weights, histtype="step", linewidth=1.5, label=name, **style)
        ax.axvline(float(np.mean(values)), linewidth=1.0, **style)
    ax.set(xlabel=label, ylabel="videos (%)", title=title)
    handles, names = ax.get_legend_handles_labels()
    lines = [Line2D([], [], **line_style(n)) for n in range(len(handles))]
    ax.legend(lines, [f"{name} (line: mean)" for name in names])
    sns.despine(ax=ax)
    return ax


def variance_plot(
    frame: pd.DataFrame,
    *,
    x: str,
    label: str,
    quantities: Mapping[str, str] | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Formulas as lines and simulations as marks, both axes logarithmic.

    Args:
        frame: column ``x`` and one column a quantity.
        x: column of the horizontal axis.
        label: its label, with unit or symbol.
        quantities: column → name, in order; all columns by default. Columns whose name begins with ``simulated`` are
            drawn as marks, the others as lines; names that end alike (``theorem_direct``, ``simulated_direct``) share
            a colour.
        title: above the plot.
        ax: where to draw.
    """
    chosen = (
        quantities if quantities is not None else {name: name.replace("_", " ") for name in frame.columns if name != x}
    )
    ax = axes_of(ax, height=3.8)
    families: dict[str, int] = {}
    for column, name in chosen.items():
        number = families.setdefault(column.rpartition("_")[2], len(families))
        if column.startswith("simulated"):
            ax.plot(
                frame[x], frame[column], label=name, color=COLOURS[number % len(COLOURS)], linestyle="none",
                marker=MARKERS[number % len(MARKERS)], markersize=6, markeredgecolor="black", markeredgewidth=0.5,
            )  # fmt: skip
        else:
            dash = DASHES[sum(line.get_linestyle() != "None" for line in ax.lines) % len(DASHES)]
            ax.plot(frame[x], frame[column], label=name, color=COLOURS[number % len(COLOURS)], linestyle=dash)
    ax.set(xscale="log", yscale="log", xlabel=label, ylabel="variance of the estimate", title=title)
    ax.set_xticks(list(frame[x]), [f"{value:g}" for value in frame[x]])
    ax.minorticks_off()
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    sns.despine(ax=ax)
    return ax


def interval_bar(ax: Axes, values: Sequence[float] | pd.Series, place: float) -> None:
    """Mean and t interval as a horizontal bar with a diamond; nothing without values, the diamond alone with one."""
    numbers = [float(value) for value in values]
    if not numbers:
        return
    mean, low, high = t_interval(numbers)
    if math.isfinite(low):
        ax.plot(
            [low, high], [place, place], color="black", linewidth=1.8, linestyle="-", solid_capstyle="butt", zorder=3
        )
    ax.plot(mean, place, marker="D", color="black", markersize=5, linestyle="none", zorder=4)


def _flat(ours: Mapping[str, Sequence[float]]) -> list[float]:
    return [value for values in ours.values() for value in values]


def _bar_range(numbers: Sequence[float], floor: float | None) -> tuple[float, float]:
    """Bars begin at zero: a bar's length is its value."""
    top = max([*numbers, floor or 0.0])
    return min(0.0, *numbers), top * 1.12
