"""Augmentation of compressed clips: one crop, scale and flip per clip, the same for pictures, vectors and residuals.

A vector is a displacement: where the picture is mirrored its x component changes sign, where it is enlarged the vector
grows. The first is always done. The second is a choice: CoViAR's loader resizes vector maps like pictures and leaves
their lengths alone (``rescale=False``, the default here as in the papers that build on it); with ``rescale=True`` a
vector stays true to the pixels that the network sees.

Maps may have any resolution: a crop is kept in fractions of the picture, so that vectors of 8x8 blocks are cut where
the pictures are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl_core.transforms.randomness import uniform

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Displacements beyond this are cut off: what CoViAR's eight-bit vector maps can hold.
MOTION_BOUND = 20.0


@dataclass(frozen=True)
class CropDraw:
    """One crop for each clip of a batch, in fractions of the picture.

    Attributes:
        top: upper edge, 0 to 1, ``(B,)``.
        left: left edge, 0 to 1, ``(B,)``.
        height: share of the picture's height, ``(B,)``.
        width: share of its width, ``(B,)``.
        flipped: mirrored left to right, bool ``(B,)``.
        picture: height and width of the pictures in pixels.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flipped: Tensor
    picture: tuple[int, int]

    def cut(self, x: Tensor, size: int) -> Tensor:
        """Resample ``(B, C, T, h, w)`` of any resolution to float32 ``(B, C, T, size, size)``, bilinearly.

        Raises:
            ValueError: another number of clips.
        """
        B, C, T, h, w = x.shape
        if len(self.top) != B:
            raise ValueError(f"the crops were drawn for {len(self.top)} clips, got {B}")
        centres = (torch.arange(size, device=x.device) + 0.5) / size  # (S,)
        along_y = self.top.to(x.device)[:, None] + self.height.to(x.device)[:, None] * centres  # (B, S)
        along_x = self.left.to(x.device)[:, None] + self.width.to(x.device)[:, None] * centres
        along_x = torch.where(self.flipped.to(x.device)[:, None], along_x.flip(1), along_x)
        grid = torch.stack(
            (
                (2 * along_x - 1)[:, None, :].expand(B, size, size),
                (2 * along_y - 1)[:, :, None].expand(B, size, size),
            ),
            dim=-1,
        )  # (B, S, S, 2), x before y
        with torch.autocast(x.device.type, enabled=False):
            planes = x.reshape(B, C * T, h, w).float()  # frames share the grid: they ride along as channels
            out = F.grid_sample(planes, grid.float(), mode="bilinear", padding_mode="border", align_corners=False)
        return out.view(B, C, T, size, size)

    def cut_motion(self, motion: Tensor, size: int, *, rescale: bool = False) -> Tensor:
        """The same for vectors ``(B, 2, P, h, w)`` in pixels of the picture; x changes sign where mirrored.

        Args:
            motion: x, then y.
            size: side of the result.
            rescale: count in pixels of the crop as it is resized for the *pictures*; ``size`` is taken for that side,
                so cut vectors to the pictures' size where lengths should agree.
        """
        out = self.cut(motion, size)
        sign = torch.where(self.flipped, -1.0, 1.0).to(out)
        across, down = sign, torch.ones_like(sign)
        if rescale:
            across = across * size / (self.width.to(out) * self.picture[1])
            down = down * size / (self.height.to(out) * self.picture[0])
        return out * torch.stack((across, down), 1)[:, :, None, None, None]


class CompressedAugment:
    """Random square crop of varying side, resized, and flip: one draw for all streams of a clip.

    Args:
        size: side of the result in pixels.
        scales: sides of the crop in units of the picture's shorter side, one drawn for each clip; IMRNet's.
        flip: probability of mirroring.
    """

    def __init__(self, size: int, *, scales: Sequence[float] = (0.975, 0.9, 0.85), flip: float = 0.5) -> None:
        if size < 1 or not scales or not all(0 < scale <= 1 for scale in scales) or not 0 <= flip <= 1:
            raise ValueError(f"need size >= 1, 0 < scales <= 1, 0 <= flip <= 1; got {size=}, {scales=}, {flip=}")
        self.size, self.scales, self.flip = size, tuple(scales), flip

    def draw(self, batch: int, picture: tuple[int, int], generator: torch.Generator) -> CropDraw:
        """Draw for ``batch`` clips whose pictures are ``(height, width)``; clip b uses row b of one draw of (B, 4)."""
        u = uniform(batch, 4, generator=generator, device=torch.device("cpu"))
        chosen = (u[:, 2] * len(self.scales)).long().clamp(max=len(self.scales) - 1)
        side = torch.tensor(self.scales)[chosen] * min(picture)
        height, width = side / picture[0], side / picture[1]
        return CropDraw(u[:, 0] * (1 - height), u[:, 1] * (1 - width), height, width, u[:, 3] < self.flip, picture)


def fixed_crop(batch: int, picture: tuple[int, int], *, scale: float = 0.875, position: float = 0.5) -> CropDraw:
    """A crop for evaluation: centred across the shorter side, at ``position`` (0 to 1) along the longer one.

    0, 0.5 and 1 are the three crops of the papers' test protocol; 0.875 is 224 of 256 pixels.
    """
    if not 0 < scale <= 1 or not 0 <= position <= 1:
        raise ValueError(f"need 0 < scale <= 1 and 0 <= position <= 1, got {scale=}, {position=}")
    side, one = scale * min(picture), torch.ones(batch)
    height, width = one * side / picture[0], one * side / picture[1]
    down = position if picture[0] > picture[1] else 0.5
    across = position if picture[1] >= picture[0] else 0.5
    return CropDraw(down * (1 - height), across * (1 - width), height, width, one < 0, picture)


def normalise_pictures(pictures: Tensor) -> Tensor:
    """RGB ``(B, 3, T, H, W)`` in 0 … 255 to zero mean and unit deviation over ImageNet."""
    mean, std = (pictures.new_tensor(x, dtype=torch.float32).view(1, 3, 1, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    return (pictures * (1 / (255 * std))).sub_(mean / std)


def normalise_motion(motion: Tensor, bound: float = MOTION_BOUND) -> Tensor:
    """Vectors in pixels to [−0.5, 0.5]: ``bound`` pixels become 0.5, longer ones are cut off, zero stays zero."""
    if bound <= 0:
        raise ValueError(f"bound must be positive, got {bound}")
    return (motion * (0.5 / bound)).clamp_(-0.5, 0.5)


def normalise_residual(residual: Tensor) -> Tensor:
    """Residuals ``(B, 3, P, H, W)`` to about unit range: cut off at −128 … 127, over 255, over ImageNet's deviation.

    The deviations belong to colours of a picture; CoViAR applies them to residuals, in whatever order their channels
    are (blue first, in its own loader), and so does everybody after it.
    """
    std = residual.new_tensor(IMAGENET_STD, dtype=torch.float32).view(1, 3, 1, 1, 1)
    return residual.to(torch.float32, copy=True).clamp_(-128, 127).mul_(1 / (255 * std))


def coviar_motion_codes(motion: Tensor) -> Tensor:
    """Vectors as CoViAR's loader hands them on, in eight bits: ``clip(trunc(m · 127.5 / 20) + 128, 0, 255)``.

    Its input to the network is that over 255, minus 0.5: about :func:`normalise_motion`, but 0.002 for zero.
    """
    return ((motion.double() * 127.5 / MOTION_BOUND).trunc() + 128).clamp(0, 255).to(torch.uint8)


def coviar_mirrored_codes(codes: Tensor) -> Tensor:
    """Codes of :func:`coviar_motion_codes`, ``(..., H, W, 2)``, mirrored along x as in CoViAR's training.

    The vectors' x becomes ``256 - x``, so that a code of 0 becomes 256, which eight bits do not hold: int32.
    """
    mirrored = codes.to(torch.int32).flip(-2)
    return torch.stack([256 - mirrored[..., 0], mirrored[..., 1]], dim=-1)


def coviar_residual_codes(residual: Tensor) -> Tensor:
    """Residuals as CoViAR's loader hands them on: ``clip(r + 128, 0, 255)`` in eight bits."""
    return (residual.to(torch.int32) + 128).clamp(0, 255).to(torch.uint8)
