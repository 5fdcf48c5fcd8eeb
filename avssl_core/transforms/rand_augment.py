"""RandAugment for clips: a few operations, drawn anew for every clip and the same on all of its frames.

Cubuk et al., 2020, in the "increasing" form that the video transformers' recipes use: the larger the magnitude, the
stronger every operation. Motionformer (NeurIPS 2021) trains with it on Something-Something V2 (two operations,
magnitude 20, standard deviation 0.5) and on EPIC-Kitchens (magnitude 15). Its authors apply it picture by picture with
one seed a clip; here a clip is one tensor, where it lies.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torchvision.transforms.v2.functional as ops
from torch import Tensor

Operation = Callable[[Tensor, float], Tensor]  # frames uint8 (T, 3, H, W) and a strength in [-1, 1]

MOST = 30.0  # magnitude that counts as full strength
FILL = [128.0, 128.0, 128.0]  # what comes in from outside


def _affine(frames: Tensor, strength: float, *, kind: str) -> Tensor:
    height, width = frames.shape[-2:]
    moves = {
        "rotate": (30 * strength, [0.0, 0.0], [0.0, 0.0]),
        "shear x": (0.0, [0.0, 0.0], [17.2 * strength, 0.0]),  # degrees whose tangent is 0.3
        "shear y": (0.0, [0.0, 0.0], [0.0, 17.2 * strength]),
        "move x": (0.0, [0.45 * width * strength, 0.0], [0.0, 0.0]),
        "move y": (0.0, [0.0, 0.45 * height * strength], [0.0, 0.0]),
    }
    angle, translate, shear = moves[kind]
    return ops.affine(frames, angle, translate, 1.0, shear, interpolation=ops.InterpolationMode.BILINEAR, fill=FILL)


def _colour(frames: Tensor, strength: float, *, adjust: Callable[[Tensor, float], Tensor]) -> Tensor:
    return adjust(frames, 1 + 0.9 * strength)


_COLOURS: dict[str, Operation] = {
    "auto-contrast": lambda frames, _: ops.autocontrast(frames),
    "equalise": lambda frames, _: ops.equalize(frames),
    "invert": lambda frames, _: ops.invert(frames),
    "posterise": lambda frames, strength: ops.posterize(frames, max(1, 4 - round(4 * abs(strength)))),
    "solarise": lambda frames, strength: ops.solarize(frames, 255 * (1 - abs(strength))),
    "saturation": partial(_colour, adjust=ops.adjust_saturation),
    "contrast": partial(_colour, adjust=ops.adjust_contrast),
    "brightness": partial(_colour, adjust=ops.adjust_brightness),
    "sharpness": partial(_colour, adjust=ops.adjust_sharpness),
}
_MOVES: dict[str, Operation] = {
    kind: partial(_affine, kind=kind) for kind in ("rotate", "shear x", "shear y", "move x", "move y")
}
OPERATIONS: dict[str, Operation] = {**_COLOURS, **_MOVES}


class RandAugment:
    """A random chain of operations for each clip.

    Args:
        magnitude: mean strength, of :data:`MOST`.
        num: operations a clip, each applied with probability 0.5 as in the recipes' library.
        deviation: standard deviation of the magnitude.
        probability: with which a drawn operation is applied.
    """

    def __init__(
        self, magnitude: float = 20.0, num: int = 2, deviation: float = 0.5, *, probability: float = 0.5
    ) -> None:
        if not 0 <= magnitude <= MOST or num < 1 or deviation < 0 or not 0 <= probability <= 1:
            raise ValueError(
                f"need 0 <= magnitude <= {MOST:g}, num >= 1, deviation >= 0, 0 <= probability <= 1; got {magnitude=}, "
                f"{num=}, {deviation=}, {probability=}"
            )
        self.magnitude, self.num, self.deviation, self.probability = magnitude, num, deviation, probability

    def __call__(self, clip: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a batch.

        Args:
            clip: uint8 ``(B, 3, T, H, W)``.
            generator: the only source of randomness, on the CPU.

        Returns:
            uint8 of the same shape.

        Raises:
            ValueError: for another shape or type.
        """
        if clip.dtype != torch.uint8 or clip.ndim != 5 or clip.shape[1] != 3:
            raise ValueError(f"expected uint8 clips (B, 3, T, H, W), got {clip.dtype} {tuple(clip.shape)}")
        out = [self._one(frames, generator) for frames in clip.transpose(1, 2)]  # (T, 3, H, W) each
        return torch.stack(out).transpose(1, 2)

    def _one(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        names = list(OPERATIONS)
        chosen = torch.randint(len(names), (self.num,), generator=generator).tolist()
        draws = torch.rand(self.num, 2, generator=generator).tolist()  # applied at all? which sign?
        noise = torch.randn(self.num, generator=generator).tolist()
        for which, (applied, side), z in zip(chosen, draws, noise, strict=True):
            if applied < self.probability:
                strength = min(max(self.magnitude + self.deviation * z, 0.0), MOST) / MOST
                frames = OPERATIONS[names[which]](frames, strength if side < 0.5 else -strength)
        return frames
