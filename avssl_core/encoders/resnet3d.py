"""3-D residual networks whose convolutions see time only where they are told to (IMRNet, table 2.1; SlowFast).

Time is never strided: a clip of five I-frames leaves as a map of five steps, one a GOP. Each stage states how many
frames the first convolution of its blocks spans: 1 makes the stage a picture network that is applied frame by frame, 3
lets it compare neighbouring frames. The I-frame pathway begins to look at time in res4; the two pathways of predicted
frames do so from their first layer.

The stages are a plain list with their widths beside it, because :class:`~avssl_core.encoders.imrnet.IMRNet` runs three
of these networks in lockstep and widens the input of every stage by what the other pathways send
(``extra_channels``). Without such channels the network works alone, like the other encoders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from avssl_core.encoders.layers import NormKind, check_input, kaiming_fan_out_, make_norm

Depth = Literal[18, 50]

BLOCKS: Mapping[int, tuple[int, ...]] = MappingProxyType({18: (2, 2, 2, 2), 50: (3, 4, 6, 3)})
EXPANSION: Mapping[int, int] = MappingProxyType({18: 1, 50: 4})  # output channels over a stage's inner width


class BasicBlock3d(nn.Module):
    """Two convolutions around a shortcut: ``t x 3 x 3``, which may stride in space, and ``1 x 3 x 3``."""

    def __init__(self, in_channels: int, width: int, *, temporal_kernel: int, stride: int, norm: NormKind) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, width, temporal_kernel, 3, stride)
        self.norm1 = make_norm(norm, width, axes=3)
        self.conv2 = _conv(width, width, 1, 3)
        self.norm2 = make_norm(norm, width, axes=3)
        self.shortcut = _shortcut(in_channels, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, Ci, T, H, W)`` to ``(B, width, T, ceil(H / stride), ceil(W / stride))``, non-negative."""
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class Bottleneck3d(nn.Module):
    """Three convolutions around a shortcut: ``t x 1 x 1``, ``1 x 3 x 3``, which may stride, and ``1 x 1 x 1`` to
    four times the width.

    The table does not say which convolution strides. Here it is the 3x3 one, as in torchvision and SlowFast; the first
    one (He et al. 2016) would drop three quarters of its input unseen.
    """

    def __init__(self, in_channels: int, width: int, *, temporal_kernel: int, stride: int, norm: NormKind) -> None:
        super().__init__()
        out_channels = EXPANSION[50] * width
        self.conv1 = _conv(in_channels, width, temporal_kernel, 1)
        self.norm1 = make_norm(norm, width, axes=3)
        self.conv2 = _conv(width, width, 1, 3, stride)
        self.norm2 = make_norm(norm, width, axes=3)
        self.conv3 = _conv(width, out_channels, 1, 1)
        self.norm3 = make_norm(norm, out_channels, axes=3)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, Ci, T, H, W)`` to ``(B, 4 * width, T, ceil(H / stride), ceil(W / stride))``, non-negative."""
        out = F.relu(self.norm1(self.conv1(x)))
        out = F.relu(self.norm2(self.conv2(out)))
        out = self.norm3(self.conv3(out))
        return F.relu(out + self.shortcut(x))


class Stem3d(nn.Module):
    """Convolution ``t x 7 x 7``, normalisation, ReLU and max-pooling ``t x 3 x 3``: two halvings in space, none in
    time ("conv1" and "pool1")."""

    def __init__(self, in_channels: int, out_channels: int, *, temporal_kernel: int, norm: NormKind) -> None:
        super().__init__()
        self.conv = _conv(in_channels, out_channels, temporal_kernel, 7, 2)
        self.norm = make_norm(norm, out_channels, axes=3)
        # A maximum over a box is one of maxima over its sides, and on a CPU that is a third faster.
        across = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        along = nn.MaxPool3d((temporal_kernel, 1, 1), 1, (temporal_kernel // 2, 0, 0))
        self.pool = nn.Sequential(across, along) if temporal_kernel > 1 else across

    def forward(self, x: Tensor) -> Tensor:
        """``(B, Ci, T, H, W)`` to ``(B, Co, T, ceil(H / 4), ceil(W / 4))``, non-negative."""
        out: Tensor = self.pool(F.relu(self.norm(self.conv(x))))
        return out


class ResNet3D(nn.Module):
    """3-D ResNet-18 or -50 without striding in time; the defaults are IMRNet's I-frame pathway (20.0 M parameters).

    Args:
        widths: inner width of each of the four stages res2 to res5; a bottleneck stage puts out four times as many.
        temporal_kernels: frames that the first convolution of every block of a stage spans, odd.
        depth: 18 (basic blocks) or 50 (bottlenecks).
        in_channels: 3 for RGB and residuals, 2 for motion vectors.
        stem_width: channels of conv1; by default the width of the first stage.
        stem_temporal_kernel: frames that conv1 and pool1 span, odd.
        extra_channels: channels beside the previous stage's output that enter each stage, 0 for a network on its own.
            Whoever asks for them runs the stages himself.
        norm: ``"bn"`` or ``"gn"``. Group normalisation gives a layer of up to 32 channels one group a channel: on the
            narrow pathways that is instance normalisation, which forgets how *much* moved.

    Attributes:
        stem: conv1 and pool1, a :class:`Stem3d`.
        stages: res2 to res5.
        channels: channels put out by the stem and by each stage, five numbers.
        dim: width of the pooled feature, the last of ``channels``.

    Raises:
        ValueError: for another depth than 18 and 50, sequences that are not of length 4, widths below 1, even kernels.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256, 512),
        temporal_kernels: Sequence[int] = (1, 1, 3, 3),
        depth: Depth = 18,
        *,
        in_channels: int = 3,
        stem_width: int | None = None,
        stem_temporal_kernel: int = 1,
        extra_channels: Sequence[int] = (0, 0, 0, 0),
        norm: NormKind = "bn",
    ) -> None:
        super().__init__()
        _check_sizes(depth, widths, (stem_temporal_kernel, *temporal_kernels), extra_channels)
        stem_width = widths[0] if stem_width is None else stem_width
        self.in_channels, self.extra_channels = in_channels, tuple(extra_channels)
        self.channels = (stem_width, *(EXPANSION[depth] * width for width in widths))
        self.dim = self.channels[-1]
        self.stem = Stem3d(in_channels, stem_width, temporal_kernel=stem_temporal_kernel, norm=norm)
        block = BasicBlock3d if depth == 18 else Bottleneck3d
        self.stages = nn.ModuleList()
        for i, (width, kernel, blocks) in enumerate(zip(widths, temporal_kernels, BLOCKS[depth], strict=True)):
            entering = self.channels[i] + extra_channels[i]
            layers = [block(entering, width, temporal_kernel=kernel, stride=1 if i == 0 else 2, norm=norm)]
            for _ in range(blocks - 1):
                layers.append(block(self.channels[i + 1], width, temporal_kernel=kernel, stride=1, norm=norm))
            self.stages.append(nn.Sequential(*layers))
        kaiming_fan_out_(self)

    def feature_map(self, x: Tensor) -> Tensor:
        """Unpooled output of res5.

        Args:
            x: normalised clips ``(B, in_channels, T, H, W)``, any ``T, H, W >= 1``.

        Returns:
            Non-negative map ``(B, dim, T, ceil(H / 32), ceil(W / 32))``.

        Raises:
            ValueError: if the shape or dtype is not that of a clip batch, or if stages expect extra channels.
        """
        check_input(x, ndim=5, channels=self.in_channels, expected="clips (B, C, T, H, W)")
        if any(self.extra_channels):
            raise ValueError(
                f"the stages expect {self.extra_channels} channels from other pathways: run stem and stages one by "
                "one, or build the network without extra_channels"
            )
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Clips ``(B, in_channels, T, H, W)`` to pooled features ``(B, dim)``: the mean over time and space."""
        return self.feature_map(x).mean(dim=(2, 3, 4))


def _conv(in_channels: int, out_channels: int, temporal: int, spatial: int, stride: int = 1) -> nn.Conv3d:
    """Convolution without bias, padded so that only a spatial stride changes the size."""
    return nn.Conv3d(
        in_channels,
        out_channels,
        (temporal, spatial, spatial),
        stride=(1, stride, stride),
        padding=(temporal // 2, spatial // 2, spatial // 2),
        bias=False,
    )


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: NormKind) -> nn.Module:
    """Identity where shapes agree, else a projection: also wherever channels of another pathway enter the block."""
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    return nn.Sequential(_conv(in_channels, out_channels, 1, 1, stride), make_norm(norm, out_channels, axes=3))


def _check_sizes(depth: int, widths: Sequence[int], kernels: Sequence[int], extra: Sequence[int]) -> None:
    if depth not in BLOCKS:
        raise ValueError(f"depth must be 18 or 50, got {depth}")
    if len(widths) != 4 or len(kernels) != 5 or len(extra) != 4 or min(widths) < 1 or min(extra) < 0:
        raise ValueError(
            f"widths, temporal_kernels and extra_channels hold one number for each of res2 to res5 (at least 1, 1 and "
            f"0), got {tuple(widths)}, {tuple(kernels[1:])} and {tuple(extra)}"
        )
    if any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
        raise ValueError(
            f"temporal kernels must be odd, since an even one would shift frames: got {kernels[0]} (stem) and "
            f"{tuple(kernels[1:])}"
        )
