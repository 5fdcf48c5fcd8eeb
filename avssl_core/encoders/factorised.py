"""The small video encoder of the CPU budgets: (2+1)-D convolutions without a single 3-D convolution behind the stem.

The idea is R(2+1)D's, space and time apart; the form is chosen by measurement (``benchmarks/encoder_shapes.py``).
Activations live in one dense buffer, laid out ``(B, T, H, W, C)`` in memory, which two *views* share without copying:

* ``(B*T, C, H, W)`` channels-last: a spatial 3x3 convolution treats frames as images;
* ``(B, C, T, H*W)`` channels-last: a temporal convolution is a 3x1 convolution over a "picture" of T rows.

What makes it fast is, in this order: a stem of non-overlapping patches, whose stride 4 leaves the costly first stage a
sixteenth of the pixels; no widening between the spatial and the temporal half, which in R(2+1)D more than doubles the
first stage; and only then the merged axes, up to a quarter faster than the same arithmetic in plain ``conv3d`` and
about even with ``conv3d`` on channels-last activations. At these sizes normalisation and ReLU cost more than the
convolutions, and bfloat16 autocast makes a step slower, not faster.

Each stage halves height and width, doubles the channels, and ends with a residual temporal convolution, so that even
the first stage sees motion. None of the papers uses this network; where a paper's encoder matters, take
:class:`~avssl_core.encoders.r2plus1d.R2Plus1D`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from avssl_core.encoders.layers import NormKind, check_input, kaiming_fan_out_, make_norm


def frames_to_time(x: Tensor, num_frames: int) -> Tensor:
    """View ``(B*T, C, H, W)`` channels-last as ``(B, C, T, H*W)`` channels-last. No copy if ``x`` is channels-last."""
    n, c, h, w = x.shape
    flat = x.permute(0, 2, 3, 1).reshape(n // num_frames, num_frames, h * w, c)  # (B, T, H*W, C)
    return flat.permute(0, 3, 1, 2)


def time_to_frames(x: Tensor, height: int, width: int) -> Tensor:
    """Inverse of :func:`frames_to_time`: ``(B, C, T, H*W)`` channels-last as ``(B*T, C, H, W)`` channels-last."""
    b, c, t, _ = x.shape
    flat = x.permute(0, 2, 3, 1).reshape(b * t, height, width, c)  # (B*T, H, W, C)
    return flat.permute(0, 3, 1, 2)


class SpatialConv(nn.Module):
    """3x3 convolution on every frame, normalisation, ReLU; with ``residual`` added to its input."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, residual: bool = False, norm: NormKind
    ) -> None:
        super().__init__()
        self.residual = residual
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm = make_norm(norm, out_channels, axes=2)

    def forward(self, x: Tensor) -> Tensor:
        """``(B*T, Ci, H, W)`` to ``(B*T, Co, ceil(H / stride), ceil(W / stride))``."""
        out = self.norm(self.conv(x))
        return F.relu(x + out if self.residual else out, inplace=True)


class TemporalConv(nn.Module):
    """Convolution over three neighbouring frames at every position, normalisation, ReLU.

    With equal widths and stride 1 it is residual: a stage can pass still pictures through untouched.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: NormKind) -> None:
        super().__init__()
        self.residual = in_channels == out_channels and stride == 1
        self.conv = nn.Conv2d(in_channels, out_channels, (3, 1), stride=(stride, 1), padding=(1, 0), bias=False)
        self.norm = make_norm(norm, out_channels, axes=2)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """``(B*T, Ci, H, W)`` to ``(B*T', Co, H, W)`` with ``T' = ceil(T / stride)``."""
        height, width = x.shape[-2:]
        out = self.norm(self.conv(frames_to_time(x, num_frames)))
        out = time_to_frames(out, height, width)
        return F.relu(x + out if self.residual else out, inplace=True)


class FactorisedStage(nn.Module):
    """Spatial convolutions (the first strided, the others residual), then one residual temporal convolution."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, convs: int, norm: NormKind) -> None:
        super().__init__()
        layers = [SpatialConv(in_channels, out_channels, stride=stride, norm=norm)] if convs else []
        layers += [SpatialConv(out_channels, out_channels, residual=True, norm=norm) for _ in range(convs - 1)]
        self.spatial = nn.Sequential(*layers)
        self.temporal = TemporalConv(out_channels, out_channels, norm=norm)

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """``(B*T, Ci, H, W)`` to ``(B*T, Co, ceil(H / stride), ceil(W / stride))``."""
        out: Tensor = self.temporal(self.spatial(x), num_frames)
        return out


class FactorisedVideoNet(nn.Module):
    """Fast (2+1)-D video encoder on merged axes, for CPU and small-GPU budgets.

    Args:
        width: channels of the first stage, doubled by each further one.
        stem_stride: side of the square patches, without overlap, that the stem embeds. 4 is three to four times as fast
            as 2; frames whose sides it does not divide are padded with zeros on the right and at the bottom.
        dim: width of the pooled feature.
        blocks: spatial convolutions a stage; the stages after the first halve height and width. The first may have 0:
            the stem's is then its only one (a fifth faster, and the patches never see their neighbours there).
        norm: ``"bn"`` or ``"gn"``.
        in_channels: 3 for RGB.
        final_temporal_stride: stride in time of the last convolution, which also widens to ``dim``.

    Attributes:
        dim: width of the pooled feature.

    Raises:
        ValueError: if a size is below 1.
    """

    def __init__(
        self,
        width: int = 16,
        stem_stride: int = 4,
        dim: int = 256,
        *,
        blocks: Sequence[int] = (1, 1, 1, 1),
        norm: NormKind = "bn",
        in_channels: int = 3,
        final_temporal_stride: int = 2,
    ) -> None:
        super().__init__()
        sizes = (width, stem_stride, dim, in_channels, final_temporal_stride, *blocks[1:])
        if not blocks or blocks[0] < 0 or min(sizes) < 1:
            raise ValueError(
                f"every size must be at least 1 (the first of blocks at least 0), got width={width}, "
                f"stem_stride={stem_stride}, dim={dim}, blocks={tuple(blocks)}, in_channels={in_channels}, "
                f"final_temporal_stride={final_temporal_stride}"
            )
        self.in_channels, self.stem_stride, self.dim = in_channels, stem_stride, dim
        # A Conv3d of one frame's depth reads (B, C, T, H, W) as it lies: moving the channels of full-size frames first
        # would cost as much as a stage.
        patch = (1, stem_stride, stem_stride)
        self.stem = nn.Conv3d(in_channels, width, patch, stride=patch, bias=False)
        self.stem_norm = make_norm(norm, width, axes=2)
        self.stages = nn.ModuleList()
        channels = width
        for i, convs in enumerate(blocks):
            out = width * 2**i
            self.stages.append(FactorisedStage(channels, out, stride=1 if i == 0 else 2, convs=convs, norm=norm))
            channels = out
        self.final = TemporalConv(channels, dim, stride=final_temporal_stride, norm=norm)
        kaiming_fan_out_(self)

    def _embed_patches(self, x: Tensor) -> Tensor:
        """``(B, C, T, H, W)`` to channels-last ``(B*T, width, ceil(H / s), ceil(W / s))``."""
        s = self.stem_stride
        pad_h, pad_w = -x.shape[-2] % s, -x.shape[-1] % s
        if pad_h or pad_w:
            x = F.pad(x, (0, pad_w, 0, pad_h))
        x = self.stem(x)  # (B, width, T, h, w)
        b, c, t, h, w = x.shape
        x = x.permute(0, 2, 3, 4, 1).reshape(b * t, h, w, c).permute(0, 3, 1, 2)  # the one copy: channels to the end
        return F.relu(self.stem_norm(x), inplace=True)

    def feature_map(self, x: Tensor) -> Tensor:
        """Unpooled output.

        Args:
            x: normalised clips ``(B, in_channels, T, H, W)``, any ``T, H, W >= 1``.

        Returns:
            Non-negative map ``(B, dim, T', H', W')`` with ``T' = ceil(T / 2)`` and, for four stages,
            ``H' = ceil(H / (8 * stem_stride))``.

        Raises:
            ValueError: if the shape or dtype is not that of a clip batch.
        """
        check_input(x, ndim=5, channels=self.in_channels, expected="clips (B, C, T, H, W)")
        batch, num_frames = x.shape[0], x.shape[2]
        x = self._embed_patches(x)
        for stage in self.stages:
            x = stage(x, num_frames)
        x = self.final(x, num_frames)  # (B*T', dim, H', W')
        return x.reshape(batch, -1, *x.shape[1:]).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Clips ``(B, in_channels, T, H, W)`` to pooled features ``(B, dim)``: the mean over time and space."""
        return self.feature_map(x).mean(dim=(2, 3, 4))
