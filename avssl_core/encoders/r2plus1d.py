"""R(2+1)D: a residual video network whose 3-D convolutions are split into space and time (Tran et al., CVPR 2018).

A 3x3x3 convolution becomes a 1x3x3 one into ``mid`` channels, a ReLU, and a 3x1x1 one out of them. ``mid`` is chosen so
that the pair has as many weights as the convolution it replaces, hence the same capacity with one more non-linearity.
GDT, STiCA and SeLaVi use the 18-layer form without its classifier: 31,300,125 parameters, 512-d output.

Against the releases: stages are one list, width, depth and normalisation are parameters, every convolution has a
readable name (``spatial``, ``temporal``) and the unpooled map is available, which feature crops (STiCA) and retrieval
need. ``checkpoints.py`` maps their weights onto these names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from avssl_core.encoders.layers import NormKind, check_input, kaiming_fan_out_, make_norm

FULL_WIDTH = 64
FULL_STEM_MID = 45  # Tran et al. and every release; the rule below would give 83 for the 7x7 stem


def mid_channels(in_channels: int, out_channels: int) -> int:
    """Channels between the spatial and the temporal half of a block's convolutions.

    ``floor(27 Ci Co / (9 Ci + 3 Co))``: the two halves together then have (about) the ``27 Ci Co`` weights of the 3x3x3
    convolution they replace. As in the releases it is computed once a block, from the block's own input and output
    widths, and used for both of its convolutions.
    """
    return (27 * in_channels * out_channels) // (9 * in_channels + 3 * out_channels)


class FactorisedConv(nn.Module):
    """Spatial convolution, normalisation, ReLU, temporal convolution: "(2+1)D" in place of one 3-D convolution."""

    def __init__(
        self,
        in_channels: int,
        mid: int,
        out_channels: int,
        *,
        spatial_kernel: int = 3,
        spatial_stride: int = 1,
        temporal_stride: int = 1,
        norm: NormKind = "bn",
    ) -> None:
        super().__init__()
        pad = spatial_kernel // 2
        self.spatial = nn.Conv3d(
            in_channels,
            mid,
            (1, spatial_kernel, spatial_kernel),
            stride=(1, spatial_stride, spatial_stride),
            padding=(0, pad, pad),
            bias=False,
        )
        self.norm = make_norm(norm, mid, axes=3)
        self.temporal = nn.Conv3d(
            mid, out_channels, (3, 1, 1), stride=(temporal_stride, 1, 1), padding=(1, 0, 0), bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, Ci, T, H, W)`` to ``(B, Co, ceil(T / st), ceil(H / s), ceil(W / s))``."""
        out: Tensor = self.temporal(F.relu(self.norm(self.spatial(x))))
        return out


class R2Plus1DBlock(nn.Module):
    """Basic residual block of two factorised convolutions; the first may stride in space and in time."""

    def __init__(
        self, in_channels: int, out_channels: int, *, spatial_stride: int, temporal_stride: int, norm: NormKind
    ) -> None:
        super().__init__()
        mid = mid_channels(in_channels, out_channels)
        self.conv1 = FactorisedConv(
            in_channels, mid, out_channels, spatial_stride=spatial_stride, temporal_stride=temporal_stride, norm=norm
        )
        self.norm1 = make_norm(norm, out_channels, axes=3)
        self.conv2 = FactorisedConv(out_channels, mid, out_channels, norm=norm)
        self.norm2 = make_norm(norm, out_channels, axes=3)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or spatial_stride != 1 or temporal_stride != 1:
            stride = (temporal_stride, spatial_stride, spatial_stride)
            self.shortcut = nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, stride=stride, bias=False),
                make_norm(norm, out_channels, axes=3),
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, Ci, T, H, W)`` to ``(B, Co, T', H', W')``, non-negative."""
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class R2Plus1D(nn.Module):
    """R(2+1)D trunk without classifier; the defaults are R(2+1)D-18 (31,300,125 parameters).

    Args:
        width: channels of the first stage; each further stage doubles them. 64 is full size.
        blocks: residual blocks a stage. ``(2, 2, 2, 2)`` is the 18-layer network.
        norm: ``"bn"`` as published, ``"gn"`` for small batches.
        in_channels: 3 for RGB, 2 for optical flow.
        temporal_strides: stride in time of each stage's first block. ``(1, 2, 2, 2)`` as published; ones keep the
            temporal resolution of the map (30 frames then give 30 steps instead of 4).

    Attributes:
        dim: width of the pooled feature, ``8 * width`` for four stages.

    Raises:
        ValueError: if ``blocks`` and ``temporal_strides`` differ in length or hold a value below 1.
    """

    def __init__(
        self,
        width: int = FULL_WIDTH,
        blocks: Sequence[int] = (2, 2, 2, 2),
        norm: NormKind = "bn",
        *,
        in_channels: int = 3,
        temporal_strides: Sequence[int] = (1, 2, 2, 2),
    ) -> None:
        super().__init__()
        if width < 1 or not blocks or len(blocks) != len(temporal_strides) or min(*blocks, *temporal_strides) < 1:
            raise ValueError(
                f"width, blocks and temporal_strides must be positive and the last two equally long, got "
                f"width={width}, blocks={tuple(blocks)}, temporal_strides={tuple(temporal_strides)}"
            )
        self.in_channels = in_channels
        stem_mid = max(1, round(FULL_STEM_MID * width / FULL_WIDTH))
        self.stem = FactorisedConv(in_channels, stem_mid, width, spatial_kernel=7, spatial_stride=2, norm=norm)
        self.stem_norm = make_norm(norm, width, axes=3)
        self.stages = nn.ModuleList()
        channels = width
        for i, (depth, temporal_stride) in enumerate(zip(blocks, temporal_strides, strict=True)):
            out = width * 2**i
            first = R2Plus1DBlock(
                channels, out, spatial_stride=1 if i == 0 else 2, temporal_stride=temporal_stride, norm=norm
            )
            rest = (R2Plus1DBlock(out, out, spatial_stride=1, temporal_stride=1, norm=norm) for _ in range(depth - 1))
            self.stages.append(nn.Sequential(first, *rest))
            channels = out
        self.dim = channels
        kaiming_fan_out_(self)

    def feature_map(self, x: Tensor) -> Tensor:
        """Unpooled output of the last stage.

        Args:
            x: normalised clips ``(B, in_channels, T, H, W)``, any ``T, H, W >= 1``.

        Returns:
            Non-negative map ``(B, dim, T', H', W')``; at full size ``T' = ceil(T / 8)``, ``H' = ceil(H / 16)``.

        Raises:
            ValueError: if the shape or dtype is not that of a clip batch.
        """
        check_input(x, ndim=5, channels=self.in_channels, expected="clips (B, C, T, H, W)")
        x = F.relu(self.stem_norm(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Clips ``(B, in_channels, T, H, W)`` to pooled features ``(B, dim)``: the mean over time and space."""
        return self.feature_map(x).mean(dim=(2, 3, 4))
