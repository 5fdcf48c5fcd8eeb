"""Attention to look at: tubes of it over the frames of a clip, and curves over a swept quantity with their spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from avssl_core.figures.style import SKY, WIDTH, axes_of, line_style, reference_line
from avssl_core.reporting import t_interval


def attention_tubes(
    frames: Tensor,
    maps: Mapping[str, Tensor],
    *,
    query: tuple[int, int, int],
    path: Tensor | None = None,
    title: str = "",
) -> Figure:
    """Where a query looks in every frame: the frames above, below them a row for each map, dark where it looks away.

    Args:
        frames: one picture a slice of tokens, uint8 ``(T, 3, H, W)``.
        maps: name → non-negative weights ``(T, h, w)``. A row's colours go from 0 to its largest weight.
        query: slice, row and column of the token that looks; boxed.
        path: true place in each slice, ``(T, 2)`` rows and columns in tokens, from 0 at the upper left corner; NaN
            where it cannot be seen. Marked by a cross.
        title: above everything.

    Raises:
        ValueError: no map, or shapes that do not fit each other.
    """
    pictures = frames.detach().cpu().permute(0, 2, 3, 1).numpy()
    slices, height, width = pictures.shape[:3]
    if not maps or any(m.ndim != 3 or len(m) != slices for m in maps.values()):
        raise ValueError(f"expected maps (T, h, w) for {slices} frames, got {[tuple(m.shape) for m in maps.values()]}")
    side = WIDTH / slices
    figure, axes = plt.subplots(
        1 + len(maps), slices, squeeze=False, figsize=(WIDTH, (1 + len(maps)) * (side * height / width + 0.12) + 0.3)
    )
    for row, (name, weights) in enumerate([("", None), *maps.items()]):
        rows, columns = next(iter(maps.values())).shape[1:] if weights is None else weights.shape[1:]
        cell = height / rows, width / columns
        for t, ax in enumerate(axes[row]):
            shown = pictures[t] if weights is None else _lit(pictures[t], weights[t], float(weights.max()))
            ax.imshow(shown, extent=(0, width, height, 0))
            if t == query[0]:
                corner = (query[2] * cell[1], query[1] * cell[0])
                ax.add_patch(Rectangle(corner, cell[1], cell[0], fill=False, edgecolor="white", linewidth=2.4))
                ax.add_patch(Rectangle(corner, cell[1], cell[0], fill=False, edgecolor="black", linewidth=1.0))
            if path is not None and bool(path[t].isfinite().all()):
                y, x = (float(p) * size for p, size in zip(path[t], cell, strict=True))
                ax.plot(x, y, marker="x", color="white", markersize=6, markeredgewidth=2.4, linestyle="none")
                ax.plot(x, y, marker="x", color="black", markersize=5, markeredgewidth=1.0, linestyle="none")
            _bare(ax)
            if row == 0:
                ax.set_title(f"slice {t}", fontsize="small", loc="center")
        axes[row][0].set_ylabel(name or "frames", fontsize="small")
    figure.suptitle(title, fontsize="medium")
    return figure


def curves_with_bands(
    frame: pd.DataFrame,
    *,
    x: str,
    value: str = "value",
    label: str = "accuracy",
    x_label: str = "",
    order: Sequence[str] | None = None,
    chance: float | None = None,
    points: bool = True,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A quantity against another, a line an arm: means over seeds with the 95 % t interval as a band, runs as points.

    Args:
        frame: one row a run and place, columns ``arm``, ``x`` and ``value``.
        x: column of the horizontal axis.
        value: column of the vertical one.
        label: of the vertical axis, with unit.
        x_label: of the horizontal axis; the column's name by default.
        order: arms in the order of the legend; as they come by default. Only these are drawn.
        chance: a line to draw.
        points: draw the single runs; without them, as for learning curves, lines carry no markers either.
        title: above the plot.
        ax: where to draw.

    Raises:
        ValueError: nothing to draw.
    """
    arms = [arm for arm in (order if order is not None else dict.fromkeys(frame["arm"])) if (frame["arm"] == arm).any()]
    if not arms:
        raise ValueError(f"no runs of {list(order or [])} to draw; the frame has {sorted(set(frame['arm']))}")
    ax = axes_of(ax)
    for number, arm in enumerate(arms):
        style = line_style(number, marker=points)
        own = frame[frame["arm"] == arm]
        spread = [(place, *t_interval(list(part[value]))) for place, part in own.groupby(x)]
        places, means, lows, highs = (np.array(column, dtype=float) for column in zip(*spread, strict=True))
        ax.plot(places, means, label=arm, **style)
        if all(math.isfinite(low) for low in lows):
            ax.fill_between(places, lows, highs, color=style["color"], alpha=0.15, linewidth=0)
        if points:
            ax.scatter(own[x], own[value], s=9, color=SKY, edgecolor=style["color"], linewidth=0.6, zorder=2)
    ax.set(xlabel=x_label or x, ylabel=label, title=title)
    if chance is not None:
        ax.margins(y=0.08)
        ax.set_ylim(min(ax.get_ylim()[0], chance), None)
        reference_line(ax, chance, "chance")
    ax.legend()
    sns.despine(ax=ax)
    return ax


def _lit(picture: npt.NDArray[np.uint8], weights: Tensor, largest: float) -> npt.NDArray[np.uint8]:
    """The picture in grey, as bright as it is looked at; a fifth of it stays where nothing looks."""
    grey = picture.astype(float) @ np.array([0.299, 0.587, 0.114])
    light = weights.detach().float().cpu().numpy() / max(largest, 1e-12)
    rows = np.arange(grey.shape[0]) * light.shape[0] // grey.shape[0]
    columns = np.arange(grey.shape[1]) * light.shape[1] // grey.shape[1]
    shade = light[np.ix_(rows, columns)]
    colours = plt.get_cmap("magma")(0.25 + 0.7 * shade)[..., :3]
    lit = (0.2 + 0.3 * (1 - shade))[..., None] * grey[..., None] / 255 + 0.8 * shade[..., None] * colours
    return np.asarray((255 * lit.clip(0, 1)).round().astype(np.uint8))


def _bare(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
