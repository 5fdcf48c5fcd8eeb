"""Where the nodes of a mask's coarse grid lie among its pixels, and the bell that each of them draws.

Appendix A.1 of Fong, Patrick & Vedaldi, ICCV 2019, made consistent with the release.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Kernel = Literal["release", "paper"]


class AxisGeometry(NamedTuple):
    """Where the nodes and pixels of one axis lie; see :func:`axis_geometry`."""

    size: int
    step: int
    sigma: float
    nodes: int
    radius: int
    padding: int

    @property
    def taps(self) -> int:
        """Nodes a pixel looks at, ``2 R + 1``."""
        return 2 * self.radius + 1

    @property
    def windows(self) -> int:
        """Cells of the canvas."""
        return self.nodes + 2 * self.padding - 2 * self.radius

    @property
    def canvas(self) -> int:
        """Pixels of the canvas."""
        return self.step * (self.windows - 1) + 1

    @property
    def start(self) -> int:
        """First pixel of the canvas that is kept."""
        return round(self.sigma)


def axis_geometry(size: int, step: int, sigma: float) -> AxisGeometry:
    """Shape arithmetic of appendix A.1: at 224 pixels, step 7, sigma 21, 32 nodes, 9 taps and a canvas of 260 pixels.

    Raises:
        ValueError: for a size or step below 1, a sigma that is not positive, or a pair whose canvas would be smaller
            than the mask (the authors' release then returns a smaller mask).
    """
    if size < 1 or step < 1 or not sigma > 0:
        raise ValueError(f"need size >= 1, step >= 1, sigma > 0; got size={size}, step={step}, sigma={sigma}")
    nodes, radius = math.ceil(size / step), 1 + math.ceil(sigma / step)
    axis = AxisGeometry(size, step, sigma, nodes, radius, padding=1 + math.ceil(2 * sigma / step))
    if axis.start + size > axis.canvas:
        raise ValueError(
            f"step={step}, sigma={sigma} give a canvas of {axis.canvas} pixels, {axis.start + size} are needed for "
            f"masks of {size}: make sigma a multiple of the step"
        )
    return axis


def kernel_profile(distance: Tensor, kernel: Kernel) -> Tensor:
    """Height of the bell at ``distance``, 1 in its middle.

    Args:
        distance: non-negative; in units of sigma for ``"release"``, in steps of the grid for ``"paper"``.
        kernel: ``"release"``: ``exp(-2 max(0, z - 1/2)^2)``; ``"paper"``: ``exp(-max(0, z - 1)^2 / 4)``, whose sign is
            printed wrongly and whose unit is not given: "before upsampling" suggests steps.
    """
    if kernel == "release":
        return torch.exp(-2 * (distance - 0.5).clamp(min=0).square())
    if kernel == "paper":
        return torch.exp(-(distance - 1).clamp(min=0).square() / 4)
    raise ValueError(f"unknown kernel {kernel!r}; use 'release' or 'paper'")
