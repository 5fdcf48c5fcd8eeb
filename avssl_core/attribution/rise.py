"""RISE: the mean of random masks, each weighted by the score of what it lets through (Petsiuk et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl_core.attribution.networks import frozen


def upsample_grid(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Cells to a smooth field somewhat larger than the picture, from which masks are cut.

    Args:
        grid: ``(N, 1, cells, cells)``, at least 2 cells.
        size: of the picture, ``(H, W)``.

    Returns:
        ``(N, 1, H + ceil(H / cells), W + ceil(W / cells))``.
    """
    cells = grid.shape[-1]
    wanted = [n + math.ceil(n / cells) for n in size]
    cell = [math.ceil(n / cells) for n in wanted]
    field = F.pad(grid, (1, 1, 1, 1), mode="reflect")
    field = F.interpolate(field, size=[(cells + 2) * c for c in cell], mode="bilinear", align_corners=False)
    return field[..., cell[0] : cell[0] + wanted[0], cell[1] : cell[1] + wanted[1]]


def rise_masks(
    number: int, size: tuple[int, int], *, cells: int = 7, keep: float = 0.5, generator: torch.Generator
) -> Tensor:
    """Random masks ``(number, 1, H, W)`` in [0, 1].

    Args:
        number: of masks.
        size: ``(H, W)``.
        cells: along each side of the grid, at least 2.
        keep: probability that a cell is kept.
        generator: draws cells and offsets.

    Raises:
        ValueError: for fewer than 2 cells or a probability outside (0, 1].
    """
    if cells < 2 or not 0 < keep <= 1:
        raise ValueError(f"need cells >= 2 and keep in (0, 1], got cells={cells}, keep={keep}")
    grid = (torch.rand(number, 1, cells, cells, generator=generator) < keep).float()
    fields = upsample_grid(grid, size)
    offsets = [torch.randint(math.ceil(n / cells), (number,), generator=generator).tolist() for n in size]
    cut = [f[:, i : i + size[0], j : j + size[1]] for f, i, j in zip(fields, *offsets, strict=True)]
    return torch.stack(cut) if cut else fields.new_empty(0, 1, *size)


def rise(
    model: nn.Module,
    images: Tensor,
    *,
    masks: Tensor | None = None,
    number: int = 8000,
    cells: int = 7,
    keep: float = 0.5,
    seed: int = 0,
    activation: Literal["sigmoid", "softmax", "none"] = "sigmoid",
    max_evaluations: int = 64,
) -> Tensor:
    """Saliency of every class, ``(1 / N) sum_n s(Phi(x mask_n)) mask_n``.

    Args:
        model: pictures to scores ``(N, C)`` or maps, which are averaged first; restored afterwards.
        images: ``(B, C, H, W)``, or clips ``(B, C, T, H, W)``, whose frames are masked alike.
        masks: ``(N, 1, H, W)``; drawn if ``None``.
        number: of masks drawn, the same for all pictures.
        cells: see :func:`rise_masks`.
        keep: see there. The result is not divided by it, as in the release.
        seed: of the drawing.
        activation: of the scores.
        max_evaluations: masked pictures at a time.

    Returns:
        ``(B, classes, H, W)``.

    Raises:
        ValueError: for masks of another size, no masks, or an unknown activation.
    """
    size = (images.shape[-2], images.shape[-1])
    if activation not in ("sigmoid", "softmax", "none"):
        raise ValueError(f"unknown activation {activation!r}; use 'sigmoid', 'softmax' or 'none'")
    if masks is not None and tuple(masks.shape[1:]) != (1, *size):
        raise ValueError(f"expected masks (N, 1, {size[0]}, {size[1]}), got {tuple(masks.shape)}")
    if number < 1 or (masks is not None and not len(masks)):
        raise ValueError("need at least one mask; the paper takes 8000")
    generator, total = torch.Generator().manual_seed(seed), number if masks is None else len(masks)
    weigh: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "softmax": _softmax, "none": torch.clone}
    sums: list[Tensor] = []
    with frozen(model), torch.no_grad():
        for start in range(0, total, max_evaluations):
            count = min(max_evaluations, total - start)
            if masks is None:
                some = rise_masks(count, size, cells=cells, keep=keep, generator=generator).to(images)
            else:
                some = masks[start : start + count].to(images)
            dose = some[:, :, None] if images.ndim == 5 else some  # (N, 1, [1,] H, W)
            scores = [weigh[activation](_class_scores(model(image[None] * dose))) for image in images]
            sums.append(torch.einsum("bnc,nhw->bchw", torch.stack(scores), some[:, 0]))
    return torch.stack(sums).sum(0) / total


def _class_scores(scores: Tensor) -> Tensor:
    """``(N, C, ...)`` to ``(N, C)``."""
    return scores.flatten(2).mean(2) if scores.ndim > 2 else scores


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(1)
