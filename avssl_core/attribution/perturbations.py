"""Perturbation operators ``m (x) x``: a mask doses, pixel by pixel, how strongly a picture is perturbed (section 3.2).

Mask 1 keeps a pixel, mask 0 perturbs it most. A perturbation holds ``L`` levels from the most perturbed to the picture
itself and reads level ``m (L - 1)`` by linear interpolation (footnote 3), which makes a blur of another strength at
every pixel cheap and differentiable. The authors' release pads with zeros and does not renormalise, so that blur fades
to 0 at the border; the printed formula divides by the weight that fell inside. Both are here; the release's is the
default.

Clips ``(B, C, T, H, W)`` are blurred in space; masks may still differ from frame to frame.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Padding = Literal["zero", "renormalise", "reflect", "replicate", "constant"]
_TORCH_MODES = {"reflect": "reflect", "replicate": "replicate", "zero": "constant", "constant": "constant"}


class Perturbation(Protocol):
    """What :func:`extremal_perturbation` needs: masks in, perturbed pictures out."""

    def __call__(self, masks: Tensor) -> Tensor:
        """Masks ``(B, A, 1, ...)`` in [0, 1] to ``(B, A, C, ...)``; mask 1 gives the picture."""
        ...


def gaussian_blur(
    images: Tensor, sigma: float, *, padding: Padding = "zero", value: float = 0.0, stride: int = 1
) -> Tensor:
    """Blur the last two axes with a separable Gaussian, cut at ``ceil(4 sigma)`` and normalised to sum 1.

    Args:
        images: floats ``(..., H, W)``.
        sigma: standard deviation in pixels; 0 does nothing.
        padding: what lies outside: ``"zero"`` (as released), ``"renormalise"`` (zeros, then divided by the weight
            inside: the paper's formula), ``"reflect"``, ``"replicate"``, or ``"constant"`` with ``value``.
        stride: keep every ``stride``-th pixel of each axis, beginning with the first.

    Raises:
        ValueError: for a negative sigma, an unknown padding, or a picture too small to be reflected.
    """
    if sigma < 0:
        raise ValueError(f"sigma must not be negative, got {sigma}")
    if padding != "renormalise" and padding not in _TORCH_MODES:
        raise ValueError(f"unknown padding {padding!r}; use one of {('renormalise', *_TORCH_MODES)}")
    if padding == "renormalise":
        inside = gaussian_blur(torch.ones_like(images[..., :1, :1]).expand_as(images), sigma, stride=stride)
        return gaussian_blur(images, sigma, stride=stride) / inside
    if padding != "constant":
        value = 0.0
    flat = images.reshape(-1, 1, *images.shape[-2:])  # (N, 1, H, W)
    if sigma == 0:
        return flat[..., ::stride, ::stride].reshape(*images.shape[:-2], *flat[..., ::stride, ::stride].shape[-2:])
    radius = math.ceil(4 * sigma)
    if padding == "reflect" and radius >= min(images.shape[-2:]):
        raise ValueError(
            f"sigma={sigma} reflects {radius} pixels, more than pictures of {tuple(images.shape[-2:])} have: "
            "take a smaller sigma or padding='replicate'"
        )
    taps = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-taps.square() / (2 * sigma**2))
    weights = (weights / weights.sum()).to(images)
    mode = _TORCH_MODES[padding]
    extra = {"value": value} if mode == "constant" else {}
    flat = F.conv2d(
        F.pad(flat, (0, 0, radius, radius), mode, **extra), weights[None, None, :, None], stride=(stride, 1)
    )
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), mode, **extra), weights[None, None, None], stride=(1, stride))
    return flat.reshape(*images.shape[:-2], *flat.shape[-2:])


class BlurPyramid(nn.Module):
    """Blur dosed by the mask: ``sigma = max_sigma (1 - m)`` at the levels, interpolated between them.

    Args:
        images: ``(B, C, H, W)`` or clips ``(B, C, T, H, W)``, as the network takes them.
        max_sigma: of the most perturbed level, in pixels.
        levels: ``L``, at least 2.
        padding: see :func:`gaussian_blur`.

    Raises:
        ValueError: for other shapes, or fewer than 2 levels.
    """

    pyramid: Tensor

    def __init__(self, images: Tensor, *, max_sigma: float = 20.0, levels: int = 8, padding: Padding = "zero") -> None:
        super().__init__()
        _check_images(images)
        if levels < 2:
            raise ValueError(f"levels={levels}: at least 2 are needed, the picture and its most perturbed version")
        # In float32, as released: where 4 sigma is whole, its rounding decides where the kernel is cut.
        sigmas = ((1 - torch.linspace(0, 1, levels)) * max_sigma).tolist()
        blurred = [gaussian_blur(images.detach(), sigma, padding=padding) for sigma in sigmas]
        self.register_buffer("pyramid", torch.stack(blurred, dim=1), persistent=False)  # (B, L, C, ..., H, W)

    def forward(self, masks: Tensor) -> Tensor:
        """Masks ``(B, A, 1, ...)`` to pictures ``(B, A, C, ...)``.

        The gradient at a level is that of the interval to its right, hence 0 at ``m = 1``, as in the release.

        Raises:
            ValueError: for masks of another shape.
        """
        B, L, C, *size = self.pyramid.shape
        _check_masks(masks, B, size)
        A, pixels = masks.shape[1], math.prod(size)
        position = masks.reshape(B, A, 1, pixels) * (L - 1)
        level = position.detach().floor().clamp(0, L - 1)
        levels = self.pyramid.reshape(B, 1, L, C, pixels).expand(B, A, L, C, pixels)
        index = level.long()[:, :, None].expand(B, A, 1, C, pixels)
        below = levels.gather(2, index)[:, :, 0]  # (B, A, C, pixels)
        above = levels.gather(2, (index + 1).clamp(max=L - 1))[:, :, 0]
        return torch.addcmul(below, position - level, above.sub_(below)).reshape(B, A, C, *size)


class FadePyramid(nn.Module):
    """Fade to 0, ``m x``: to the mean colour for networks that take normalised pictures (footnote 2).

    Interpolation between any number of levels is this product, so there are none.

    Args:
        images: ``(B, C, H, W)`` or clips ``(B, C, T, H, W)``.

    Raises:
        ValueError: for other shapes.
    """

    images: Tensor

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        _check_images(images)
        self.register_buffer("images", images.detach(), persistent=False)

    def forward(self, masks: Tensor) -> Tensor:
        """Masks ``(B, A, 1, ...)`` to pictures ``(B, A, C, ...)``; gradient 0 at ``m = 1``, as :class:`BlurPyramid`.

        Raises:
            ValueError: for masks of another shape.
        """
        _check_masks(masks, len(self.images), self.images.shape[2:])
        return torch.where(masks < 1, masks, masks.detach()) * self.images[:, None]


def _check_images(images: Tensor) -> None:
    if images.ndim not in (4, 5) or not images.is_floating_point():
        raise ValueError(
            f"expected float pictures (B, C, H, W) or clips (B, C, T, H, W), got {tuple(images.shape)} {images.dtype}"
        )


def _check_masks(masks: Tensor, batch: int, size: list[int] | torch.Size) -> None:
    expected = (batch, "A", 1, *size)
    if masks.ndim != len(expected) or masks.shape[0] != batch or tuple(masks.shape[2:]) != expected[2:]:
        raise ValueError(f"expected masks {expected}, got {tuple(masks.shape)}")
