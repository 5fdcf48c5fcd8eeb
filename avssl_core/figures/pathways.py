"""Networks of several pathways as a diagram: stages as boxes, what leaves them, and who hears whom."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avssl_core.figures.style import WIDTH

_BOX = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "0.2", "linewidth": 0.9}
_APART = 0.106  # from the middle of a box to where its horizontal arrows begin, in shares of the figure


def pathways_diagram(
    pathways: Mapping[str, Sequence[str]],
    stages: Sequence[str],
    *,
    links: Collection[str] = (),
    head: str = "",
) -> Figure:
    """Stages from top to bottom, a column a pathway, arrows both ways between linked neighbours.

    Args:
        pathways: name → what leaves each stage, one text a stage; neighbours in this order are linked.
        stages: name of each row.
        links: stages behind which neighbours are linked.
        head: what follows the last stage, in one box over all columns.

    Raises:
        ValueError: a pathway with another number of texts than stages, or links behind unknown stages.
    """
    if any(len(texts) != len(stages) for texts in pathways.values()) or set(links) - set(stages):
        raise ValueError(f"expected {len(stages)} texts a pathway and links among {list(stages)}, got {list(links)}")
    figure, ax = plt.subplots(figsize=(WIDTH, 0.62 * (len(stages) + 1 + bool(head))))
    places = [(column + 1.25) / (len(pathways) + 0.75) for column in range(len(pathways))]
    for x, (name, texts) in zip(places, pathways.items(), strict=True):
        ax.text(x, 0.4, name, ha="center", va="center", fontweight="bold")
        for row, text in enumerate(texts):
            ax.text(x, -row, text, ha="center", va="center", fontsize="small", bbox=_BOX)
            if row + 1 < len(stages) or head:
                _arrow(ax, (x, -row - 0.27), (x, -row - 0.73))
    for row, stage in enumerate(stages):
        ax.text(0.0, -row, stage, ha="left", va="center", fontsize="small", color="0.35")
        for left, right in pairwise(places) if stage in links else ():
            _arrow(ax, (left + _APART, -row), (right - _APART, -row), style="<->")
    if head:
        ax.text(places[len(places) // 2], -len(stages), head, ha="center", va="center", fontsize="small", bbox=_BOX)
    ax.set(xlim=(0, 1), ylim=(-len(stages) - bool(head) + 0.4, 0.7))
    ax.set_axis_off()
    return figure


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], style: str = "->") -> None:
    ax.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": style, "color": "0.2", "linewidth": 0.9})
