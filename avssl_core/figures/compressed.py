"""Compressed clips to look at: vectors as arrows and as colours, residuals, a whole group of pictures, pyramid labels.

Vectors are displacement in pixels, x to the right and y down, as everywhere in the package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from avssl_core.figures.style import DASHES, WIDTH, axes_of

# Red, green and blue boxes for 2x2, 3x3 and 4x4 cells are the paper's; widths and dashes tell them apart in grey.
_BOXES = {2: ("#D55E00", 2.6, "-"), 3: ("#009E73", 2.0, DASHES[1]), 4: ("#0072B2", 1.4, DASHES[3])}


def motion_colours(motion: Tensor, *, bound: float | None = None) -> npt.NDArray[np.uint8]:
    """A vector field as a picture: hue is direction, and the longer a vector, the darker and purer its colour.

    Args:
        motion: ``(2, H, W)``.
        bound: length that gets full colour; the longest vector by default.

    Returns:
        uint8 ``(H, W, 3)``, white where nothing moves.

    Raises:
        ValueError: another shape, or ``bound`` not positive.
    """
    x, y = _field(motion)
    length = np.hypot(x, y)
    if bound is not None and bound <= 0:
        raise ValueError(f"bound must be positive, got {bound}")
    strength = np.clip(length / (bound or max(float(length.max()), 1e-6)), 0, 1)
    hue = (np.arctan2(-y, x) / (2 * np.pi)) % 1  # up is counter-clockwise, as people draw angles
    rgb = hsv_to_rgb(np.stack((hue, strength, 1 - 0.35 * strength), -1))
    return (255 * rgb).round().astype(np.uint8)


def motion_arrows(picture: Tensor, motion: Tensor, *, step: int = 1, title: str = "", ax: Axes | None = None) -> Axes:
    """Arrows over a picture, from where a block came to where it is.

    Args:
        picture: uint8 ``(3, H, W)``.
        motion: ``(2, h, w)`` of any resolution, in pixels of the picture.
        step: draw every ``step``-th vector in both directions.
        title: above the picture.
        ax: where to draw.
    """
    pixels = _picture(picture)
    x, y = _field(motion)
    height, width = pixels.shape[:2]
    cell_y, cell_x = height / x.shape[0], width / x.shape[1]
    rows, columns = np.mgrid[step // 2 : x.shape[0] : step, step // 2 : x.shape[1] : step]
    u, v = x[rows, columns], y[rows, columns]
    moving = np.hypot(u, v) > 0
    at_x, at_y = (columns[moving] + 0.5) * cell_x, (rows[moving] + 0.5) * cell_y
    ax = axes_of(ax, width=WIDTH / 2, height=WIDTH / 2 * height / width)
    ax.imshow(pixels, interpolation="antialiased", extent=(0, width, height, 0))
    for colour, thickness in (("black", 0.010), ("white", 0.005)):  # legible on any ground
        ax.quiver(
            at_x - u[moving], at_y - v[moving], u[moving], v[moving],
            angles="xy", scale_units="xy", scale=1, color=colour, width=thickness,
        )  # fmt: skip
    return _bare(ax, title)


def residual_picture(residual: Tensor, *, gain: float = 1.0) -> npt.NDArray[np.uint8]:
    """A residual ``(3, H, W)`` or ``(H, W)`` around mid-grey, uint8 ``(H, W, 3)``; ``gain`` makes small errors seen."""
    values = residual.detach().float().cpu()
    if values.ndim == 2:
        values = values.expand(3, -1, -1)
    if values.ndim != 3 or values.shape[0] != 3:
        raise ValueError(f"a residual has shape (3, H, W) or (H, W), got {tuple(residual.shape)}")
    return np.asarray((gain * values + 128).clamp(0, 255).byte().permute(1, 2, 0).numpy())


def group_of_pictures(
    iframe: Tensor,
    motion: Tensor,
    residuals: Mapping[str, Tensor],
    *,
    positions: Sequence[int],
    gain: float = 2.0,
    title: str = "",
) -> Figure:
    """A group dissected: its intra picture, and for some P pictures the vectors and each kind of residual.

    Args:
        iframe: uint8 ``(3, H, W)``.
        motion: ``(2, P, h, w)``.
        residuals: name → ``(3, P, H, W)``; the luma of coded residuals is shown as grey if its name says "coded".
        positions: label of each of the P pictures.
        gain: by which residuals are enlarged.
        title: above everything.

    Raises:
        ValueError: another number of pictures than positions.
    """
    if motion.shape[1] != len(positions) or any(r.shape[1] != len(positions) for r in residuals.values()):
        raise ValueError(f"{len(positions)} positions, but motion has {motion.shape[1]} pictures")
    pixels = _picture(iframe)
    rows, columns = 1 + len(residuals), 1 + len(positions)
    side = WIDTH / columns
    figure, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, rows * (side * pixels.shape[0] / pixels.shape[1] + 0.25) + 0.3), squeeze=False
    )
    bound = float(motion.float().pow(2).sum(0).sqrt().max().clamp(min=1e-6))
    _bare(axes[0, 0], "I").imshow(pixels, interpolation="antialiased")
    for column, position in enumerate(positions):
        colours = motion_colours(motion[:, column], bound=bound)
        _bare(axes[0, column + 1], f"P{position}: vectors").imshow(colours, interpolation="nearest")
    for row, (name, residual) in enumerate(residuals.items(), start=1):
        _wheel(_bare(axes[row, 0], "")) if row == 1 else _bare(axes[row, 0], "").set_axis_off()
        for column, position in enumerate(positions):
            one = residual[0, column] if "coded" in name else residual[:, column]
            shown = residual_picture(one, gain=gain)
            _bare(axes[row, column + 1], f"P{position}: {name}").imshow(shown, interpolation="antialiased")
    figure.suptitle(title, x=0.02, ha="left")
    return figure


def _wheel(ax: Axes) -> None:
    """The key to the colours of vectors: at every place of a disk the colour of the way from its middle to there."""
    place = torch.linspace(-1, 1, 101)
    y, x = torch.meshgrid(place, place, indexing="ij")
    outside = (x.square() + y.square() > 1).numpy()
    colours = motion_colours(torch.stack((x, y)), bound=1.0)
    colours[outside] = 255
    ax.imshow(colours, extent=(-1, 1, 1, -1), interpolation="antialiased")
    ax.set(xlim=(-1.8, 1.8), ylim=(1.8, -1.8))
    ax.set_title("key to directions", loc="left", fontsize="x-small")


def pyramid_labels(
    iframes: Tensor,
    labels: Mapping[tuple[int, int], Tensor],
    *,
    valid: Mapping[tuple[int, int], Tensor] | None = None,
    title: str = "",
) -> Figure:
    """Labels of a spatio-temporal pyramid as boxes over intra pictures: a row for each number of windows.

    Args:
        iframes: uint8 ``(3, T, H, W)``, the first picture of each group.
        labels: ``(cells a side, windows)`` → cell of each window, row by row, int ``(windows,)``.
        valid: the same keys → bool ``(windows,)``; cells of windows without motion are not drawn.
        title: above everything.
    """
    windows = sorted({t for _, t in labels})
    groups, height, width = iframes.shape[1:]
    side = WIDTH / groups
    figure, axes = plt.subplots(
        len(windows), groups, figsize=(WIDTH, len(windows) * (side * height / width + 0.3)), squeeze=False
    )
    for row, count in enumerate(windows):
        for column, ax in enumerate(axes[row]):
            ax.imshow(_picture(iframes[:, column]), interpolation="antialiased")
            _bare(ax, f"{count} window{'s' if count > 1 else ''}" if column == 0 else "")
            if column < count:
                _boxes(ax, labels, valid, count, column, height, width)
            else:
                ax.images[0].set_alpha(0.25)
    figure.suptitle(title, x=0.02, ha="left")
    return figure


def _boxes(
    ax: Axes,
    labels: Mapping[tuple[int, int], Tensor],
    valid: Mapping[tuple[int, int], Tensor] | None,
    count: int,
    window: int,
    height: int,
    width: int,
) -> None:
    for (cells, windows), cell in labels.items():
        if windows != count or (valid is not None and not bool(valid[cells, windows][window])):
            continue
        down, across = divmod(int(cell[window]), cells)
        colour, thickness, dashes = _BOXES.get(cells, ("black", 1.0, "-"))
        ax.add_patch(
            Rectangle(
                (across * width / cells - 0.5, down * height / cells - 0.5),
                width / cells,
                height / cells,
                fill=False,
                edgecolor=colour,
                linewidth=thickness,
                linestyle=dashes,
                label=f"{cells}x{cells}",
            )
        )


def _field(motion: Tensor) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if motion.ndim != 3 or motion.shape[0] != 2:
        raise ValueError(f"a vector field has shape (2, H, W), got {tuple(motion.shape)}")
    x, y = motion.detach().double().cpu().numpy()
    return x, y


def _picture(picture: Tensor) -> npt.NDArray[np.uint8]:
    if picture.ndim != 3 or picture.shape[0] != 3:
        raise ValueError(f"a picture has shape (3, H, W), got {tuple(picture.shape)}")
    return np.ascontiguousarray(picture.detach().cpu().permute(1, 2, 0).numpy())


def _bare(ax: Axes, title: str) -> Axes:
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.set_title(title, loc="left", fontsize="small")
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def predicted_cells(pictures: Tensor, labels: Tensor, guesses: Tensor, *, cells: int) -> Figure:
    """Labelled cells (solid) and predicted ones (dashed) over the intra pictures of some clips, a row a clip.

    Args:
        pictures: uint8 ``(B, 3, T, H, W)``.
        labels: ``(B, T)``, one window a group; cells row by row.
        guesses: the same shape.
        cells: of the grid, a side.

    Raises:
        ValueError: labels and guesses are not one for every picture.
    """
    batch, _, groups, height, width = pictures.shape
    if labels.shape != (batch, groups) or guesses.shape != (batch, groups):
        raise ValueError(f"expected labels and guesses {(batch, groups)}, got {labels.shape} and {guesses.shape}")
    side = WIDTH / groups
    size = (WIDTH, batch * (side * height / width + 0.1) + 0.3)
    figure, axes = plt.subplots(batch, groups, figsize=size, squeeze=False)
    for clip, row in enumerate(axes):
        for group, ax in enumerate(row):
            _bare(ax, "").imshow(_picture(pictures[clip, :, group]), interpolation="antialiased")
            for cell, inset, style in ((labels, 0.0, "-"), (guesses, 0.06, DASHES[1])):
                down, across = divmod(int(cell[clip, group]), cells)
                corner = ((across + inset) * width / cells - 0.5, (down + inset) * height / cells - 0.5)
                share = (1 - 2 * inset) / cells
                for colour, thickness in (("black", 2.6), ("white", 1.2)):
                    ax.add_patch(
                        Rectangle(
                            corner, share * width, share * height, fill=False, edgecolor=colour, linewidth=thickness,
                            linestyle=style if colour == "white" else "-",
                        )
                    )  # fmt: skip
    return figure


def cell_shares(shares: npt.NDArray[np.floating], *, label: str = "share of labels", ax: Axes | None = None) -> Axes:
    """How often each cell of a grid is the label: a small heat map with its numbers.

    Args:
        shares: ``(s, s)``, rows from the top of the picture.
        label: what is counted.
        ax: where to draw.
    """
    grid = np.asarray(shares, dtype=np.float64)
    if grid.ndim != 2 or grid.shape[0] != grid.shape[1]:
        raise ValueError(f"expected a square grid of shares, got {grid.shape}")
    ax = axes_of(ax, width=WIDTH / 2.2, height=WIDTH / 2.2)
    ax.imshow(grid, cmap="Greys", vmin=0, vmax=max(float(grid.max()), 1e-9))
    for (row, column), share in np.ndenumerate(grid):
        dark = share > 0.6 * grid.max()
        ax.text(column, row, f"{share:.2f}", ha="center", va="center", color="white" if dark else "black")
    return _bare(ax, label)
