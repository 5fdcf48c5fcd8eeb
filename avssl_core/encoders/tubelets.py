"""A clip becomes tokens: disjoint cubes of pixels, projected, and where and when they were.

ViViT's tubelets (Arnab et al. 2021) as in Motionformer (Patrick et al., NeurIPS 2021, section 3.1 and table 2): cubes
of ``2 x 16 x 16`` pixels, or squares of one frame; positions in space and time learnt apart, or jointly.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl_core.encoders.layers import check_input

Inflation = Literal["central", "average"]
PositionKind = Literal["separate", "joint"]

INIT_STD = 0.02  # of every linear map, position and class token of a ViT


class TubeletEmbedding(nn.Module):
    """Linear projection of disjoint cubes: a convolution whose stride is its kernel.

    Args:
        dim: channels ``D`` of a token.
        tubelet: frames of a cube.
        patch: side of a cube in pixels.
        in_channels: channels of the clip.
        inflation: how the kernel over time starts from one over space, see :func:`inflate_patch_kernel`.

    Raises:
        ValueError: for a size below 1 or an unknown inflation.
    """

    def __init__(
        self,
        dim: int,
        *,
        tubelet: int = 2,
        patch: int = 16,
        in_channels: int = 3,
        inflation: Inflation = "central",
    ) -> None:
        super().__init__()
        if min(dim, tubelet, patch, in_channels) < 1:
            found = (dim, tubelet, patch, in_channels)
            raise ValueError(f"dim, tubelet, patch and in_channels must be positive, got {found}")
        self.tubelet, self.patch, self.in_channels = tubelet, patch, in_channels
        kernel = (tubelet, patch, patch)
        self.proj = nn.Conv3d(in_channels, dim, kernel, kernel)
        image = torch.empty(dim, in_channels, patch, patch)
        nn.init.trunc_normal_(image, std=INIT_STD)
        with torch.no_grad():
            self.proj.weight.copy_(inflate_patch_kernel(image, tubelet, inflation))
            if self.proj.bias is not None:
                self.proj.bias.zero_()

    def forward(self, clip: Tensor) -> Tensor:
        """Clips ``(B, C, frames, H, W)`` to tokens ``(B, T, H / patch, W / patch, D)``.

        Raises:
            ValueError: for another number of channels, or sizes that cubes do not fill.
        """
        check_input(clip, ndim=5, channels=self.in_channels, expected="clips (B, C, frames, H, W)")
        frames, height, width = clip.shape[2:]
        if frames % self.tubelet or height % self.patch or width % self.patch:
            raise ValueError(
                f"cubes of {self.tubelet} x {self.patch} x {self.patch} do not fill a clip of {frames} x {height} x "
                f"{width}; crop or resize it"
            )
        return self.proj(clip).permute(0, 2, 3, 4, 1)


def inflate_patch_kernel(kernel: Tensor, tubelet: int, mode: Inflation = "central") -> Tensor:
    """A kernel for cubes that answers to a still clip as ``kernel`` answers to its picture.

    Args:
        kernel: of an image transformer, ``(D, C, p, p)``.
        tubelet: frames of a cube.
        mode: ``"central"``: the picture's kernel on frame ``tubelet // 2`` and zeros on the others, so that even a
            moving clip gives the tokens of those frames; ``"average"``: the same share on every frame.

    Returns:
        ``(D, C, tubelet, p, p)``.

    Raises:
        ValueError: for an unknown mode.
    """
    if mode == "average":
        return kernel.unsqueeze(2).repeat(1, 1, tubelet, 1, 1) / tubelet
    if mode != "central":
        raise ValueError(f"unknown inflation {mode!r}: use 'central' or 'average'")
    inflated = kernel.new_zeros(*kernel.shape[:2], tubelet, *kernel.shape[2:])
    inflated[:, :, tubelet // 2] = kernel
    return inflated


class SpaceTimePositions(nn.Module):
    """Learnt positions of the tokens, added to them, and the class token in front.

    Separate positions: one vector a place, one a frame, the latter starting at zero, so that at first every frame is
    to the network what a picture is to an image transformer. The class token has a place of its own and no time.
    Joint positions: one vector for each of the ``T * S`` tokens.

    Args:
        dim: channels ``D``.
        num_frames: ``T``, after tokenisation.
        side: tokens along a side of the frames that positions are learnt for. Other sizes get separate positions
            resized (bicubic), as the released 336-pixel models do; joint ones fit their size alone.
        kind: ``"separate"`` or ``"joint"``.

    Raises:
        ValueError: for a size below 1 or an unknown kind.
    """

    def __init__(self, dim: int, num_frames: int, side: int, *, kind: PositionKind = "separate") -> None:
        super().__init__()
        if min(dim, num_frames, side) < 1:
            raise ValueError(f"dim, num_frames and side must be positive, got {(dim, num_frames, side)}")
        if kind not in ("separate", "joint"):
            raise ValueError(f"unknown positions {kind!r}: use 'separate' or 'joint'")
        self.kind, self.num_frames, self.side = kind, num_frames, side
        tokens = side * side if kind == "separate" else num_frames * side * side
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.place = nn.Parameter(torch.empty(1, 1 + tokens, dim))  # the class token's first
        self.time = nn.Parameter(torch.zeros(1, num_frames, dim)) if kind == "separate" else None
        nn.init.trunc_normal_(self.class_token, std=INIT_STD)
        # Joint positions start as those of a picture, in every frame.
        space = torch.empty(1, 1 + side * side, dim)
        nn.init.trunc_normal_(space, std=INIT_STD)
        with torch.no_grad():
            self.place.copy_(space if kind == "separate" else tile_positions(space, num_frames))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(B, T, h, w, D)`` to ``(B, 1 + T * h * w, D)``, class token first, then frame by frame.

        Raises:
            ValueError: for another number of frames, or of places if positions are joint.
        """
        frames, height, width = x.shape[1:4]
        if frames != self.num_frames:
            raise ValueError(f"positions are for {self.num_frames} frames of tokens, got {frames}")
        at_class, place = self.place[:, :1], self.place[:, 1:]
        if self.time is None:
            if (height, width) != (self.side, self.side):
                raise ValueError(f"joint positions are for {self.side} x {self.side} tokens, got {height} x {width}")
            x = x.flatten(1, 3) + place
        else:
            place = resize_positions(place, self.side, height, width).unsqueeze(1)  # (1, 1, h * w, D)
            x = (x.flatten(2, 3) + place + self.time.unsqueeze(2)).flatten(1, 2)
        return torch.cat([(self.class_token + at_class).expand(len(x), -1, -1), x], dim=1)


def resize_positions(place: Tensor, side: int, height: int, width: int) -> Tensor:
    """Positions ``(1, side * side, D)`` for a grid of ``height * width``; bicubic, unchanged at their own size."""
    if (height, width) == (side, side):
        return place
    grid = torch.unflatten(place, 1, (side, side)).permute(0, 3, 1, 2)  # (1, D, side, side)
    grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).flatten(1, 2)


def tile_positions(place: Tensor, num_frames: int) -> Tensor:
    """Positions of a picture ``(1, 1 + S, D)``, the class token's first, to ``(1, 1 + T * S, D)``."""
    return torch.cat([place[:, :1], place[:, 1:].repeat(1, num_frames, 1)], dim=1)
