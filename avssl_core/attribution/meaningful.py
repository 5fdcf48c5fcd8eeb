"""Meaningful perturbation (Fong & Vedaldi 2017, eq. 1 of the paper): response, area and smoothness in one energy.

What extremal perturbations replace: how large a mask becomes depends on the weights and on the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl_core.attribution.networks import frozen
from avssl_core.attribution.perturbations import BlurPyramid, Perturbation
from avssl_core.attribution.rewards import mean_over_places, simple_reward


def total_variation(masks: Tensor, power: float = 3.0) -> Tensor:
    """Sum of ``|difference to the right|^power + |difference below|^power``; ``(N, 1, h, w)`` to ``(N,)``."""
    right = (masks[..., 1:] - masks[..., :-1]).abs().pow(power).flatten(1).sum(1)
    below = (masks[..., 1:, :] - masks[..., :-1, :]).abs().pow(power).flatten(1).sum(1)
    return right + below


def meaningful_perturbation(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[int] | Tensor,
    *,
    area_weight: float = 1e-2,
    smoothness_weight: float = 0.2,
    power: float = 3.0,
    step: int = 8,
    iterations: int = 300,
    learning_rate: float = 0.1,
    variant: Literal["preserve", "delete"] = "preserve",
    perturbation: Perturbation | None = None,
) -> Tensor:
    """Masks that maximise ``Phi(m (x) x) - area_weight |m|_1 - smoothness_weight TV(m)``.

    Both penalties are on the coarse mask, whose nodes are ``step`` pixels apart, enlarged bilinearly. For deletion it
    is ``-Phi((1 - m) (x) x)``. The weights, like the score, have no unit: try several.

    Args:
        model: pictures to scores; frozen meanwhile and restored.
        images: ``(B, C, H, W)``.
        targets: ``(B,)``.
        area_weight: of the sum of the mask's values.
        smoothness_weight: of the total variation.
        power: see :func:`total_variation`.
        step: pixels between nodes.
        iterations: of Adam.
        learning_rate: of Adam.
        variant: preservation or deletion.
        perturbation: blur as released if ``None``.

    Returns:
        Masks ``(B, 1, H, W)`` in [0, 1].

    Raises:
        ValueError: for an unknown variant.
    """
    if variant not in ("preserve", "delete"):
        raise ValueError(f"unknown variant {variant!r}; use 'preserve' or 'delete'")
    operator = BlurPyramid(images) if perturbation is None else perturbation
    classes = torch.as_tensor(targets, dtype=torch.long, device=images.device)
    nodes = [max(2, -(-n // step)) for n in images.shape[-2:]]
    start = 1.0 if variant == "preserve" else 0.0
    coarse = images.new_full((len(images), 1, *nodes), 0.5 + 0.4 * (2 * start - 1)).requires_grad_()
    optimiser = torch.optim.Adam([coarse], lr=learning_rate)

    def enlarged() -> Tensor:
        return F.interpolate(coarse, size=images.shape[-2:], mode="bilinear", align_corners=False)

    with frozen(model):
        for _ in range(iterations):
            m = enlarged() if variant == "preserve" else 1 - enlarged()
            score = mean_over_places(simple_reward(model(operator(m[:, None])[:, 0]), classes))
            penalty = area_weight * coarse.flatten(1).sum(1) + smoothness_weight * total_variation(coarse, power)
            energy = (score if variant == "preserve" else -score) - penalty
            coarse.grad = torch.autograd.grad(-energy.sum(), coarse)[0]
            optimiser.step()
            with torch.no_grad():
                coarse.clamp_(0, 1)
    return enlarged().detach()
