"""Occlusion: how much a score falls when a window is covered (Zeiler & Fergus 2014), the oldest perturbation method."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avssl_core.attribution.networks import frozen
from avssl_core.attribution.perturbations import FadePyramid, Perturbation
from avssl_core.attribution.rewards import Scorer


def occlusion_windows(size: tuple[int, int], *, window: int, stride: int) -> Tensor:
    """Every square of a regular grid as a mask, 1 inside: bool ``(N, H, W)``.

    The first and the last window of each axis reach beyond the border, so that every pixel is covered by as many
    windows as any other, up to rounding.

    Args:
        size: ``(H, W)``.
        window: side in pixels.
        stride: pixels from one window to the next, at most the window.

    Raises:
        ValueError: for a window or stride below 1, or a stride that leaves pixels uncovered.
    """
    if window < 1 or not 1 <= stride <= window:
        raise ValueError(f"need window >= 1 and a stride in [1, window], got window={window}, stride={stride}")
    covered = []
    for n in size:
        starts = torch.arange(stride - window, n, stride)
        pixels = torch.arange(n)
        covered.append((pixels >= starts[:, None]) & (pixels < starts[:, None] + window))  # (windows, n)
    rows, columns = covered
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)


def occlusion(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[int] | Tensor,
    *,
    window: int,
    stride: int,
    perturbation: Perturbation | None = None,
    max_evaluations: int = 64,
) -> Tensor:
    """Mean fall of the target's score over the windows that cover a pixel.

    Args:
        model: pictures to scores ``(N, C)`` or maps, which are averaged; frozen meanwhile and restored.
        images: ``(B, C, H, W)``, or clips ``(B, C, T, H, W)``, whose frames are covered alike.
        targets: ``(B,)``.
        window: see :func:`occlusion_windows`.
        stride: see there.
        perturbation: what covering does, made for these images; fade to 0 if ``None``.
        max_evaluations: covered pictures at a time.

    Returns:
        ``(B, 1, H, W)``, signed: what hurts the score where it is covered is positive.

    Raises:
        ValueError: for targets that are not one an image, or as :func:`occlusion_windows` does.
    """
    classes = torch.as_tensor(targets, dtype=torch.long, device=images.device)
    if classes.shape != images.shape[:1]:
        raise ValueError(f"need a target for each of {len(images)} images, got {tuple(classes.shape)}")
    size = (images.shape[-2], images.shape[-1])
    windows = occlusion_windows(size, window=window, stride=stride).to(images)  # (N, H, W)
    operator = FadePyramid(images) if perturbation is None else perturbation
    scorer, together = Scorer(model, limit=max_evaluations), max(1, max_evaluations // len(images))
    total = torch.zeros(len(images), *size).to(images)
    with frozen(model), torch.no_grad():
        original = scorer.scores(images, classes)
        for start in range(0, len(windows), together):
            some = windows[start : start + together]
            masks = (1 - some)[None, :, None].expand(len(images), -1, 1, *size)
            if images.ndim == 5:
                masks = masks[:, :, :, None].expand(-1, -1, -1, images.shape[2], -1, -1)
            covered = operator(masks).flatten(0, 1)
            scores = scorer.scores(covered, classes.repeat_interleave(len(some))).reshape(len(images), -1)
            total += torch.einsum("bn,nhw->bhw", original[:, None] - scores, some)
    return (total / windows.sum(0))[:, None]
