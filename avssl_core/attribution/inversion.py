"""Feature inversion: the picture that a layer answers to as to a given, masked activation (eq. 12 of the paper).

``I* = argmax <m (x) Phi(x), Phi(I)>``. The paper refers to Olah et al., "Feature Visualization" (Distill 2017), for how
and gives no settings; those here are of that kind: a picture made of waves whose amplitudes start as in nature,
squashed to [0, 1]; shifted, turned and scaled at random at every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl_core.attribution.networks import frozen

Parametrisation = Literal["fourier", "pixels"]


def feature_inversion(
    head: nn.Module,
    target: Tensor,
    size: tuple[int, int],
    *,
    channels: int = 3,
    steps: int = 256,
    learning_rate: float = 0.05,
    shift: int = 4,
    degrees: float = 0.0,
    scale: float = 0.0,
    parametrisation: Parametrisation = "fourier",
    colours: Tensor | None = None,
    normalise: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Pictures whose activations point where the target does.

    The target is divided by its length, which changes no maximum and makes steps comparable.

    Args:
        head: pictures ``(B, channels, H, W)`` to activations like ``target``. Frozen meanwhile and restored.
        target: ``m (x) Phi(x)``, ``(B, K, h, w)``.
        size: ``(H, W)`` of the pictures.
        channels: of the pictures.
        steps: of Adam.
        learning_rate: of Adam.
        shift: pictures are rolled by up to so many pixels at each step, against patterns of single pixels.
        degrees: they are turned by up to so much as well, either way,
        scale: and enlarged or shrunk by up to this share of their size, see :func:`turned`.
        parametrisation: ``"fourier"``: waves, low ones moving most; ``"pixels"``: each by itself.
        colours: mixes independent planes into colours, ``(channels, channels)``; ``None`` leaves them as they are.
        normalise: from pictures in [0, 1] to what the head takes.
        seed: of the start and the shifts.

    Returns:
        Pictures ``(B, channels, H, W)`` in [0, 1] and the objective before each step, ``(B, steps)``.

    Raises:
        ValueError: for an unknown parametrisation, a scale outside [0, 1), or a head whose output does not look like
            the target.
    """
    if parametrisation not in ("fourier", "pixels"):
        raise ValueError(f"unknown parametrisation {parametrisation!r}; use 'fourier' or 'pixels'")
    if not 0 <= scale < 1:
        raise ValueError(f"scale={scale} must lie in [0, 1): 0.1 draws sizes of 0.9 to 1.1")
    generator = torch.Generator().manual_seed(seed)
    shape = (len(target), channels, *size)
    waves = torch.randn(*shape, generator=generator).to(target) * 0.1
    parameters = torch.view_as_real(torch.fft.rfft2(waves, norm="ortho")) if parametrisation == "fourier" else waves
    parameters = parameters.detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([parameters], lr=learning_rate)
    amplitudes = _amplitudes(size).to(target)
    direction = target.detach() / target.detach().flatten(1).norm(dim=1).clamp(min=1e-12).view(
        -1, *[1] * (target.ndim - 1)
    )

    def picture() -> Tensor:
        planes = parameters
        if parametrisation == "fourier":
            planes = torch.fft.irfft2(torch.view_as_complex(parameters) * amplitudes, s=size, norm="ortho")
        if colours is not None:
            planes = torch.einsum("dc,bchw->bdhw", colours.to(planes), planes)
        return torch.sigmoid(planes)

    history = []
    with frozen(head):
        for _ in range(steps):
            roll = torch.randint(-shift, shift + 1, (2,), generator=generator).tolist()
            shown = picture().roll(roll, dims=(2, 3))
            if degrees or scale:
                angle, size_by = (
                    (2 * torch.rand(2, generator=generator) - 1) * torch.tensor([degrees, scale])
                ).tolist()
                shown = turned(shown, angle, 1 + size_by)
            features = head(shown if normalise is None else normalise(shown))
            if features.shape != target.shape:
                raise ValueError(f"the head gives {tuple(features.shape)}, the target is {tuple(target.shape)}")
            objective = (features * direction).flatten(1).sum(1)
            parameters.grad = torch.autograd.grad(-objective.sum(), parameters)[0]
            optimiser.step()
            history.append(objective.detach())
    return picture().detach(), torch.stack(history, 1) if history else target.new_empty(len(target), 0)


def turned(pictures: Tensor, degrees: float, scale: float = 1.0) -> Tensor:
    """Pictures ``(B, C, H, W)`` turned about their middle and enlarged by ``scale``; what comes in is mirrored."""
    angle, (H, W) = math.radians(degrees), pictures.shape[-2:]
    c, s = math.cos(angle) / scale, math.sin(angle) / scale
    rows = torch.tensor([[c, -s * H / W, 0.0], [s * W / H, c, 0.0]]).to(pictures)  # of places in units of half a side
    grid = F.affine_grid(rows.expand(len(pictures), 2, 3), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)


def _amplitudes(size: tuple[int, int]) -> Tensor:
    """One over the frequency, as in natural pictures, ``(H, W // 2 + 1)``, 1 for the lowest."""
    H, W = size
    frequency = (torch.fft.fftfreq(H)[:, None].square() + torch.fft.rfftfreq(W)[None].square()).sqrt()
    lowest = 1 / max(H, W)
    return lowest / frequency.clamp(min=lowest) * (H * W) ** 0.5 / 8
