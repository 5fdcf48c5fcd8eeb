"""Which samples attract and which repel: 0/1 matrices, the sampling tree, and pulls and pushes between clips.

Everything is drawn from integer codes ``(|T|, M)`` and the matrices that ``avssl_core.losses`` computes from them, so
the pictures cannot disagree with the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from torch import Tensor

from avssl_core.figures.style import BLUE, GREEN, GREY, VERMILLION, WIDTH, axes_of

# role of a leaf for an anchor: colour, marker (shape tells it without colour), words
ROLES = {
    "anchor": ("#000000", "*", "anchor"),
    "positive": (GREEN, "o", "positive: pulled"),
    "negative": (VERMILLION, "X", "negative: pushed"),
    "unused": ("#FFFFFF", "o", "takes no part (w = 0)"),
}


def roles_of(contrast: Tensor, weight: Tensor, anchor: int) -> list[str]:
    """What each sample is to an anchor: ``anchor``, ``positive``, ``negative`` or ``unused``.

    Args:
        contrast: c, 0/1 or bool, ``(B, B)``.
        weight: w, of the same shape.
        anchor: row of the anchor.

    Raises:
        ValueError: shapes differ or are not square, or the anchor is outside.
    """
    if contrast.shape != weight.shape or contrast.ndim != 2 or contrast.shape[0] != contrast.shape[1]:
        raise ValueError(f"c and w must be square and alike, got {tuple(contrast.shape)} and {tuple(weight.shape)}")
    if not 0 <= anchor < len(contrast):
        raise ValueError(f"anchor {anchor} is not one of the {len(contrast)} samples")
    roles = []
    for other in range(len(contrast)):
        if other == anchor:
            roles.append("anchor")
        elif not weight[anchor, other]:
            roles.append("unused")
        else:
            roles.append("positive" if contrast[anchor, other] else "negative")
    return roles


def relation_matrices(
    contrast: Tensor, weight: Tensor, *, block: int | None = None, labels: Sequence[str] | None = None, title: str = ""
) -> Figure:
    """The matrices c, w and c·w side by side: dark where 1.

    Args:
        contrast: c, 0/1 or bool, ``(B, B)``.
        weight: w, of the same shape.
        block: samples a video; lines are drawn between videos.
        labels: one a sample, written along the first matrix when there are at most 24.
        title: above everything.
    """
    roles_of(contrast, weight, 0)  # checks the shapes
    panels = (("contrast $c$", contrast), ("weight $w$", weight), ("$c \\cdot w$", contrast * weight))
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, WIDTH / 3 + 0.3), sharey=True)
    total = len(contrast)
    for ax, (name, matrix) in zip(axes, panels, strict=True):
        values = matrix.detach().cpu().numpy().astype(float)
        ax.imshow(values, cmap=ListedColormap(["#F3F3F3", BLUE]), vmin=0, vmax=1)
        pairs = int(values.sum())
        ax.set(title=f"{name}: {pairs} pairs", xlabel="$T'$", xticks=[], yticks=[])
        ax.grid(False)
        for edge in range(block, total, block) if block else []:
            ax.axhline(edge - 0.5, color="black", linewidth=0.8)
            ax.axvline(edge - 0.5, color="black", linewidth=0.8)
    axes[0].set_ylabel("$T$")
    if labels is not None and total <= 24:
        axes[0].set_yticks(range(total), labels, fontsize=5.5 if total > 12 else 7)
        axes[0].set_ylabel("")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    return figure


def relation_grid(rows: Mapping[str, tuple[Tensor, Tensor]], *, columns: int = 3) -> Figure:
    """What each hypothesis pulls together and what it pushes apart, a panel each (GDT, Table 1).

    Dark: pulled (c·w = 1); light: pushed apart (w = 1, c = 0); white: takes no part.

    Args:
        rows: name → (c, w), 0/1 or bool, ``(B, B)`` each.
        columns: panels side by side.

    Raises:
        ValueError: a pair of matrices is not square or not alike.
    """
    count = -(-len(rows) // columns)
    figure, axes = plt.subplots(count, columns, figsize=(WIDTH, WIDTH / columns * count + 0.3), squeeze=False)
    for ax in axes.flat[len(rows) :]:
        ax.set_visible(False)
    for ax, (name, (contrast, weight)) in zip(axes.flat, rows.items(), strict=False):
        roles_of(contrast, weight, 0)  # checks the shapes
        pulled, admitted = (each.detach().cpu().numpy().astype(int) for each in (contrast * weight, weight))
        ax.imshow(admitted + pulled, cmap=ListedColormap(["#FFFFFF", "#D4D4D4", BLUE]), vmin=0, vmax=2)
        ax.set(xticks=[], yticks=[], xlabel="$T'$", ylabel="$T$")
        ax.set_title(f"{name}: {pulled.sum()} of {admitted.sum()}", fontsize="small")
        ax.grid(False)
    return figure


def sampling_tree(
    codes: Tensor,
    contrast: Tensor,
    weight: Tensor,
    *,
    names: Sequence[str],
    kinds: Sequence[str] | None = None,
    values: Sequence[Sequence[str]] | None = None,
    anchor: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """The hierarchical sampler's tree, root above; leaves marked by what they are to the anchor (GDT, figure 1).

    Args:
        codes: int, ``(|T|, M)``, leaves in depth-first order, one column a factor.
        contrast: c, ``(|T|, |T|)``.
        weight: w, of the same shape.
        names: of the M factors, written beside the levels.
        kinds: ``invariant`` or ``distinctive`` for each factor.
        values: names of the values of each factor, by code; the code itself where not given.
        anchor: row of the anchor.
        ax: where to draw.
    """
    table = codes.cpu().numpy()
    leaves, levels = table.shape
    if len(names) != levels:
        raise ValueError(f"{levels} factors need as many names, got {len(names)}: {', '.join(names)}")
    roles = roles_of(contrast, weight, anchor)
    ax = axes_of(ax, height=0.55 * levels + 1.1)
    nodes = _tree_nodes(table)
    for level in range(1, levels + 1):
        for path, x in nodes[level].items():
            above = nodes[level - 1][path[:-1]]
            ax.plot([above, x], [-(level - 1), -level], color=GREY, linewidth=0.8, linestyle="-", zorder=1)
            text = values[level - 1][path[-1]] if values else str(path[-1])
            if len(nodes[level]) <= 32:
                ax.annotate(
                    text, (x, -level), (0, 6 if level < levels else -13), textcoords="offset points", ha="center",
                    fontsize=7, zorder=4, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
                )  # fmt: skip
    _draw_leaves(ax, list(range(leaves)), roles, y=-levels)
    for level, name in enumerate(names, start=1):
        kind = f"\n{kinds[level - 1]}" if kinds else ""
        ax.annotate(
            f"{name}{kind}", (-0.02, -level + 0.12), xycoords=("axes fraction", "data"), ha="right", va="center"
        )
    ax.set(xlim=(-0.8, leaves - 0.2), ylim=(-levels - 0.75, 0.25))
    ax.axis("off")
    ax.legend(handles=_role_handles(roles), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4)
    return ax


def pull_push(
    contrast: Tensor,
    weight: Tensor,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    place: Sequence[tuple[int, int]],
    anchor: int = 0,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Samples on a grid (say video and time down, modality across) with the anchor's pulls and pushes (GDT, figure
    2).

    Args:
        contrast: c, ``(B, B)``.
        weight: w, of the same shape.
        rows: names of the grid's rows.
        columns: names of its columns.
        place: (row, column) of each of the B samples.
        anchor: the sample whose arrows are drawn.
        title: above the plot.
        ax: where to draw.
    """
    roles = roles_of(contrast, weight, anchor)
    if len(place) != len(roles):
        raise ValueError(f"{len(roles)} samples need as many places, got {len(place)}")
    ax = axes_of(ax, width=4.6, height=0.55 * len(rows) + 1.2)
    start = (place[anchor][1], -place[anchor][0])
    for other, role in enumerate(roles):
        if role in ("positive", "negative"):
            end = (place[other][1], -place[other][0])
            colour = ROLES[role][0]
            solid = role == "positive"
            arrow = FancyArrowPatch(
                start, end, arrowstyle="-|>" if solid else "-", shrinkA=11, shrinkB=9, mutation_scale=11,
                color=colour, linestyle="-" if solid else "--", linewidth=1.8 if solid else 1.1,
                connectionstyle=f"arc3,rad={0.25 if start[0] == end[0] else 0.0}",
            )  # fmt: skip
            ax.add_patch(arrow)
    for role in dict.fromkeys(roles):
        points = [(place[n][1], -place[n][0]) for n, each in enumerate(roles) if each == role]
        colour, marker, _ = ROLES[role]
        size = 190 if marker == "*" else 90
        ax.scatter(
            [x for x, _ in points],
            [y for _, y in points],
            s=size,
            marker=marker,
            color=colour,
            edgecolor="black",
            zorder=3,
        )
    ax.set(xlim=(-0.6, len(columns) - 0.4), ylim=(-len(rows) + 0.4, 0.6), title=title)
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks([-n for n in range(len(rows))], rows)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.legend(handles=_role_handles(roles), loc="upper center", bbox_to_anchor=(0.4, 0.02), ncols=2)
    return ax


def _tree_nodes(table: npt.NDArray[np.int64]) -> list[dict[tuple[int, ...], float]]:
    """Horizontal place of every node by its path, level by level: the middle of its leaves."""
    levels = []
    for depth in range(table.shape[1] + 1):
        places: dict[tuple[int, ...], list[int]] = {}
        for leaf, row in enumerate(table):
            places.setdefault(tuple(int(code) for code in row[:depth]), []).append(leaf)
        levels.append({path: float(np.mean(each)) for path, each in places.items()})
    return levels


def _draw_leaves(ax: Axes, places: Sequence[float], roles: Sequence[str], *, y: float) -> None:
    for role in dict.fromkeys(roles):
        colour, marker, _ = ROLES[role]
        points = [place for place, each in zip(places, roles, strict=True) if each == role]
        size = 130 if marker == "*" else 55
        ax.scatter(points, [y] * len(points), s=size, marker=marker, color=colour, edgecolor="black", zorder=3)


def _role_handles(roles: Sequence[str]) -> list[Line2D]:
    handles = []
    for role in (role for role in ROLES if role in roles):
        colour, marker, words = ROLES[role]
        size = 10 if role == "anchor" else 7
        handle = Line2D([], [], linestyle="none", marker=marker, color=colour, markersize=size, label=words)
        handle.set_markeredgecolor("black")
        handles.append(handle)
    return handles
