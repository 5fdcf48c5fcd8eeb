"""Residual 2-D networks for spectrograms: an image ResNet with one input channel (He et al. 2016; GDT, section 3).

GDT's "ResNet-9" is a ResNet of basic blocks with one block a stage: 1x40x99 becomes 512 numbers with 4.90 M parameters.
The release keeps the unused 1000-way ImageNet classifier of the code it was derived from (513,000 parameters that never
receive a gradient); it is left out here, and named as ignored where the release's weights are loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from avssl_core.encoders.layers import NormKind, check_input, kaiming_fan_out_, make_norm


class BasicBlock2d(nn.Module):
    """Two 3x3 convolutions around a shortcut; the first may stride."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: NormKind) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = make_norm(norm, out_channels, axes=2)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = make_norm(norm, out_channels, axes=2)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                make_norm(norm, out_channels, axes=2),
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, Ci, F, T)`` to ``(B, Co, ceil(F / stride), ceil(T / stride))``, non-negative."""
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class SpectrogramResNet(nn.Module):
    """ResNet of basic blocks over spectrograms.

    Args:
        width: channels of the first stage, doubled by each further one. 64 is full size.
        blocks: basic blocks a stage; ``(2, 2, 2, 2)`` is the trunk of ResNet-18.
        norm: ``"bn"`` as published, ``"gn"`` for small batches.
        in_channels: channels of the spectrogram.
        max_pool: 3x3 max-pooling with stride 2 after the stem. Without it the map stays twice as fine.

    Attributes:
        dim: width of the pooled feature, ``8 * width`` for four stages.

    Raises:
        ValueError: if ``width`` or a number of blocks is below 1.
    """

    def __init__(
        self,
        width: int = 64,
        blocks: Sequence[int] = (2, 2, 2, 2),
        norm: NormKind = "bn",
        *,
        in_channels: int = 1,
        max_pool: bool = True,
    ) -> None:
        super().__init__()
        if width < 1 or not blocks or min(blocks) < 1:
            raise ValueError(f"width and every number of blocks must be at least 1, got {width} and {tuple(blocks)}")
        self.in_channels = in_channels
        self.stem = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.stem_norm = make_norm(norm, width, axes=2)
        self.pool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1) if max_pool else nn.Identity()
        self.stages = nn.ModuleList()
        channels = width
        for i, depth in enumerate(blocks):
            out = width * 2**i
            first = BasicBlock2d(channels, out, stride=1 if i == 0 else 2, norm=norm)
            rest = (BasicBlock2d(out, out, stride=1, norm=norm) for _ in range(depth - 1))
            self.stages.append(nn.Sequential(first, *rest))
            channels = out
        self.dim = channels
        kaiming_fan_out_(self)

    def feature_map(self, x: Tensor) -> Tensor:
        """Unpooled output of the last stage.

        Args:
            x: normalised spectrograms ``(B, in_channels, F, T)``, any ``F, T >= 1``.

        Returns:
            Non-negative map ``(B, dim, F', T')``; with the default strides ``F' = ceil(F / 32)``.

        Raises:
            ValueError: if the shape or dtype is not that of a batch of spectrograms.
        """
        check_input(x, ndim=4, channels=self.in_channels, expected="spectrograms (B, C, F, T)")
        x = self.pool(F.relu(self.stem_norm(self.stem(x))))
        for stage in self.stages:
            x = stage(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Spectrograms ``(B, in_channels, F, T)`` to pooled features ``(B, dim)``: the mean over the map."""
        return self.feature_map(x).mean(dim=(2, 3))


class ResNet9Audio(SpectrogramResNet):
    """GDT's audio trunk: one basic block a stage. At the defaults 4.90 M parameters, ``(B, 1, 40, 99)`` to 512-d."""

    def __init__(self, width: int = 64, blocks: Sequence[int] = (1, 1, 1, 1), norm: NormKind = "bn") -> None:
        super().__init__(width, blocks, norm)
