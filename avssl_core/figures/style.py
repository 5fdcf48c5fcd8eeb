"""One look for every figure of the book: vector graphics, a palette that the colour-blind and the greyscale printer
can read.

Lines differ in dash and marker as well as in colour, bars in hatch: no figure is told by colour alone. The palette is
Okabe and Ito's (https://jfly.uni-koeln.de/color/), ordered so that neighbours differ in lightness.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import seaborn as sns
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, BLACK, GREY = "#56B4E9", "#CC79A7", "#000000", "#8C8C8C"  # grey: context, such as chance and floors
COLOURS = (BLUE, ORANGE, VERMILLION, SKY, GREEN, PURPLE, BLACK, GREY)
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "+++", "ooo")
WIDTH = 7.0  # inches of a figure as wide as the text

_SETTINGS: dict[Any, Any] = {
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.prop_cycle": cycler(color=COLOURS, linestyle=DASHES),
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "figure.figsize": (WIDTH, 3.4),
    "font.size": 9.5,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.6,
    "image.cmap": "magma",  # lightness grows with the value
    "image.interpolation": "nearest",
    "legend.frameon": False,
    "legend.handlelength": 2.6,  # long enough to show the dashes
    "lines.linewidth": 1.6,
    "savefig.bbox": "tight",
    "savefig.dpi": 150,
    "svg.fonttype": "path",  # looks the same where the font is missing
    "svg.hashsalt": "avssl",  # the same figure gives the same file
}


def use_style() -> None:
    """Set the book's style for this process and, inside a notebook, vector output. Call once, in the first cells.

    Under torchrun only rank 0 draws what a notebook shows.
    """
    sns.set_theme(context="paper", style="ticks", palette=list(COLOURS))
    mpl.rcParams.update(_SETTINGS)
    if "IPython" in sys.modules and _in_notebook():
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        # Of many processes that compute together the first one draws; the figures of others nobody looks at.
        formats = ("svg",) if os.environ.get("RANK", "0") == "0" else ()
        set_matplotlib_formats(*formats, metadata={"Date": None})  # type: ignore[no-untyped-call]


def line_style(number: int, *, marker: bool = False) -> dict[str, Any]:
    """Keyword arguments for the ``number``-th line of a plot: colour, dash, and a marker if asked for."""
    style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)]}
    return style | ({"marker": MARKERS[number % len(MARKERS)], "markersize": 4.5} if marker else {})


def bar_style(number: int) -> dict[str, Any]:
    """Keyword arguments for the ``number``-th kind of bar: face, edge and hatch."""
    face = COLOURS[number % len(COLOURS)]
    return {"facecolor": face, "edgecolor": "black", "linewidth": 0.6, "hatch": HATCHES[number % len(HATCHES)]}


def axes_of(ax: Axes | None, *, width: float = WIDTH, height: float = 3.4) -> Axes:
    """``ax``, or the axes of a new figure of this size in inches."""
    return ax if ax is not None else plt.subplots(figsize=(width, height))[1]


def figure_of(ax: Axes) -> Figure:
    """The figure that axes belong to, through subfigures."""
    figure: Figure | SubFigure | None = ax.figure
    while isinstance(figure, SubFigure):
        figure = figure.figure
    if figure is None:
        raise ValueError("these axes belong to no figure")
    return figure


def reference_line(ax: Axes, value: float, label: str, *, vertical: bool = False) -> None:
    """A thin dashed line for chance or a floor, named at its foot, or to the right of the axes."""
    draw = ax.axvline if vertical else ax.axhline
    draw(value, color=GREY, linewidth=1.0, linestyle=(0, (4, 3)), zorder=0.5)
    if vertical:
        ax.annotate(
            label, (value, 0.0), (3, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
            ha="left", va="bottom", color="#555555", fontsize="small",
        )  # fmt: skip
    else:
        labels_at_right(ax, [(value, label, "#555555")])


def labels_at_right(ax: Axes, labels: Sequence[tuple[float, str, str]], *, gap: float = 0.055) -> None:
    """Name horizontal lines to the right of the axes, moved apart where they would overlap.

    Args:
        ax: with its vertical limits already set.
        labels: (value, text, colour) of each line.
        gap: least distance of two names, as a share of the axes' height.
    """
    low, high = ax.get_ylim()
    previous = -math.inf
    for value, text, colour in sorted(labels):
        place = max((value - low) / (high - low), previous + gap)
        previous = place
        ax.annotate(
            text, (1.0, place), (4, 0), xycoords="axes fraction", textcoords="offset points", va="center",
            color=colour, fontsize="small",
        )  # fmt: skip


def _in_notebook() -> bool:
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and shell.__class__.__name__ == "ZMQInteractiveShell"
