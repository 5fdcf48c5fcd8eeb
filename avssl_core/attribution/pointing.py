"""The pointing game: does the maximum of a map fall on an object of its class (Zhang et al. 2016)?

As released: a hit needs a pixel of the class strictly within the tolerance of the point, so that a tolerance of 1 asks
for the pixel itself; the accuracy is the mean over classes of hits / (hits + misses).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from avssl_core.attribution.saliency import resize_and_smooth

MASK_SMOOTHING = 0.09  # of the shorter side (section 4.1)


def summed_masks(masks: Tensor, size: tuple[int, int] | None = None, *, smooth: float = MASK_SMOOTHING) -> Tensor:
    """Masks of all areas added, resized, blurred (section 4.1): ``(B, A, 1, h, w)`` to ``(B, 1, H, W)``."""
    return resize_and_smooth(masks.sum(1), size, smooth=smooth, of="shorter", padding="zero")


def saliency_point(saliency: Tensor) -> tuple[int, int]:
    """Column and row ``(u, v)`` of the largest value of ``(H, W)``, the first of equal ones.

    Raises:
        ValueError: if it is no picture, or holds something that is not a number.
    """
    if saliency.ndim != 2 or saliency.isnan().any():
        raise ValueError(f"expected a map (H, W) of numbers, got {tuple(saliency.shape)}, or it holds NaN")
    v, u = divmod(int(saliency.flatten().argmax()), saliency.shape[1])
    return u, v


def centre_point(size: tuple[int, int]) -> tuple[float, float]:
    """The baseline that looks at nothing: ``(W / 2, H / 2)``, not rounded."""
    return size[1] / 2, size[0] / 2


def pointing_hit(point: tuple[float, float], region: Tensor, tolerance: float = 15) -> bool:
    """Whether a pixel of the region is less than the tolerance away.

    Args:
        point: column and row ``(u, v)``.
        region: bool ``(H, W)``.
        tolerance: in pixels; 0 can never hit.
    """
    rows, columns = region.nonzero(as_tuple=True)
    squared = (columns.double() - point[0]).square() + (rows.double() - point[1]).square()
    return bool((squared < tolerance**2).any())


@dataclass
class PointingGame:
    """Counts of hits and misses by class.

    Attributes:
        num_classes: classes there are.
        tolerance: in pixels of the original picture.
        hits: ``(num_classes,)``.
        misses: ``(num_classes,)``.
    """

    num_classes: int
    tolerance: float = 15
    hits: Tensor = field(init=False)
    misses: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Starts at zero."""
        self.hits, self.misses = (torch.zeros(self.num_classes, dtype=torch.float64) for _ in range(2))

    def add(self, point: tuple[float, float], region: Tensor, label: int) -> bool:
        """Play once; returns whether it hit. What is to be skipped is simply not played.

        Raises:
            ValueError: for a class there is not.
        """
        if not 0 <= label < self.num_classes:
            raise ValueError(f"class {label} is not among the {self.num_classes} of this game")
        hit = pointing_hit(point, region, self.tolerance)
        (self.hits if hit else self.misses)[label] += 1
        return hit

    @property
    def class_accuracies(self) -> Tensor:
        """``(num_classes,)``; 0 for a class that was never played."""
        return self.hits / (self.hits + self.misses).clamp(min=1)

    @property
    def accuracy(self) -> float:
        """Mean over all classes, as released: classes that were never played count as 0."""
        return float(self.class_accuracies.mean())

    @property
    def accuracy_of_played(self) -> float:
        """Mean over the classes that were played; not a number before any was."""
        return float(self.class_accuracies[self.hits + self.misses > 0].mean())
