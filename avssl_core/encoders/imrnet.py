"""IMRNet: I-frames, motion vectors and residuals of a compressed clip, in three networks that talk at every depth.

Yu, Lee, Kim & Song, ICLR 2021. A group of pictures (GOP) holds one I-frame and ``kappa`` sampled P-frames, so the wide
I-frame pathway sees ``T`` pictures and the two narrow ones ``kappa * T`` maps of motion (2 channels) and residuals (3).
At four depths a :class:`~avssl_core.encoders.LateralGate` sends what each pathway knows to the other, on one grid:
*what* is there meets *what moves* at its place.

The text (eqs. 2.1 to 2.3) and table 2.1 disagree about the connections. Taken here, as the only reading that can be
built: ``C_I / 8`` channels from I to M and R (both say so), as many channels from M or R to I as the narrow pathway's
stage is wide (the table; the text's ``C_M / 8`` would be half a channel), kernels and strides ``(kappa, 1, 1)`` (the
text; the table's ``1 x 5^2`` with stride 5 in time would leave four frames in five empty). The connection named conv1
stands behind pool1: same channels, a quarter of the positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from avssl_core.encoders.lateral_gates import Lateral, LateralGate, Resampling, one_of
from avssl_core.encoders.layers import NormKind, check_input
from avssl_core.encoders.resnet3d import EXPANSION, Depth, ResNet3D

Connections = Literal["none", "unidirectional", "bidirectional"]
MotionStem = Literal["table", "ratio"]
LateralScale = Literal["table", "output"]

LATERAL_DEPTHS = ("conv1", "res2", "res3", "res4")
LATERAL_RATIO = 8  # C_I / 8 channels go from the I pathway to each of the others (section 2.2.2)


@dataclass(frozen=True)
class StreamMaps:
    """Unpooled outputs of the three pathways, non-negative, on one grid of positions.

    Attributes:
        iframes: ``(B, C_I, T, h, w)``.
        motion: ``(B, C_M, kappa * T, h, w)``.
        residual: ``(B, C_M, kappa * T, h, w)``.
    """

    iframes: Tensor
    motion: Tensor
    residual: Tensor

    def pooled(self) -> Tensor:
        """Means over time and space, concatenated: ``(B, C_I + 2 * C_M)``."""
        return torch.cat([x.mean(dim=(2, 3, 4)) for x in (self.iframes, self.motion, self.residual)], dim=1)


class IMRNet(nn.Module):
    """Three pathways over a compressed clip, joined by gated connections; the defaults are the paper's ResNet-18 form.

    Args:
        depth: 18 (embedding of 576 at full size) or 50 (2304).
        width: channels of the I pathway's first stage, 64 at full size.
        gamma: how many times wider than the others the I pathway is, a divisor of ``width``.
        kappa: P-frames for every I-frame.
        connections: where the pathways hear from each other: ``"none"``, ``"unidirectional"`` (I hears M and R) or
            ``"bidirectional"``.
        resampling: see :class:`LateralGate`. Without convolutions all ``C_I`` channels go to the narrow pathways, which
            makes them dearer, not cheaper.
        gated: see :class:`LateralGate`.
        motion_stem: channels of conv1 of M and R: ``"table"`` for the printed 8, twice ``width / gamma``, or
            ``"ratio"`` for the 4 that gamma implies.
        lateral_scale: channels sent in the 50-layer form, for which no numbers are printed (both readings agree for 18
            layers): ``"table"`` keeps those of the 18-layer one, {8, 8, 16, 32} and {4, 4, 8, 16}; ``"output"`` counts
            the stages' output instead of their inner channels, {8, 32, 64, 128} and {4, 16, 32, 64}.
        norm: ``"bn"`` or ``"gn"``, of the pathways; for the narrow ones see :class:`ResNet3D`.
        input_norm: batch normalisation of motion and residuals, as the loader's own model has it (whatever ``norm``
            is: a normalisation of each clip would hide how much moves).

    Attributes:
        dim: width of the embedding.
        iframes, motion, residual: the pathways, each a :class:`ResNet3D`.
        links: connections, named as ``"res2_motion"``; empty for ``"none"``.

    Raises:
        ValueError: for a width that gamma does not divide, sizes below 1 or an unknown option.
    """

    def __init__(
        self,
        depth: Depth = 18,
        width: int = 64,
        gamma: int = 16,
        kappa: int = 5,
        *,
        connections: Connections = "bidirectional",
        resampling: Resampling = "conv",
        gated: bool = True,
        motion_stem: MotionStem = "table",
        lateral_scale: LateralScale = "table",
        norm: NormKind = "bn",
        input_norm: bool = True,
    ) -> None:
        super().__init__()
        if min(width, gamma, kappa) < 1 or width % gamma:
            raise ValueError(
                f"width, gamma and kappa must be positive and gamma divide width, got {width}, {gamma} and {kappa}"
            )
        one_of("connections", connections, ("none", "unidirectional", "bidirectional"))
        one_of("lateral_scale", lateral_scale, ("table", "output"))
        one_of("motion_stem", motion_stem, ("table", "ratio"))
        self.kappa = kappa
        narrow = width // gamma
        stem = 2 * narrow if motion_stem == "table" else narrow
        self.links = nn.ModuleDict()
        to_iframes, to_predicted = [0] * 4, [0] * 4
        if connections != "none":
            for i, sizes in enumerate(_link_sizes(depth, width, narrow, stem, lateral_scale)):
                for stream in ("motion", "residual"):
                    link = LateralGate(
                        *sizes,
                        kappa=kappa,
                        bidirectional=connections == "bidirectional",
                        resampling=resampling,
                        gated=gated,
                    )
                    self.links[f"{LATERAL_DEPTHS[i]}_{stream}"] = link
                    to_iframes[i] += link.to_iframes_channels
                    to_predicted[i] = link.to_predicted_channels
        self.iframes = ResNet3D(_doubling(width), depth=depth, extra_channels=to_iframes, norm=norm)
        self.motion, self.residual = (
            ResNet3D(
                _doubling(narrow),
                (3, 3, 3, 3),
                depth,
                in_channels=channels,
                stem_width=stem,
                stem_temporal_kernel=5,
                extra_channels=to_predicted,
                norm=norm,
            )
            for channels in (2, 3)
        )
        # No scale and shift to learn: conv1 can do both, and their gradients would have to come through conv1's inputs,
        # which costs a third of a training step on a CPU.
        self.motion_norm = nn.BatchNorm3d(2, affine=False) if input_norm else nn.Identity()
        self.residual_norm = nn.BatchNorm3d(3, affine=False) if input_norm else nn.Identity()
        self.dim = self.iframes.dim + self.motion.dim + self.residual.dim

    def feature_maps(self, iframes: Tensor, motion: Tensor, residual: Tensor) -> StreamMaps:
        """Outputs of res5, for heads that need a place or a time.

        Args:
            iframes: normalised I-frames, ``(B, 3, T, H, W)``.
            motion: motion vectors, ``(B, 2, kappa * T, H, W)``, GOP after GOP.
            residual: residuals, ``(B, 3, kappa * T, H, W)``.

        Returns:
            Maps with ``h = ceil(H / 32)``, ``w = ceil(W / 32)``.

        Raises:
            ValueError: for wrong channels or dtypes, different ``B``, ``H`` or ``W``, or a number of P-frames that is
                not ``kappa`` times that of I-frames.
        """
        return self._run(iframes, motion, residual)[0]

    def gates(self, iframes: Tensor, motion: Tensor, residual: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Activations of every gate, for a histogram: do they vary with the clip at all?

        Takes streams as in :meth:`feature_maps`. Returns, under each connection's name in ``links``, the gates towards
        I ``(B, c_1)`` and towards the other pathway ``(B, c_2)``, ``None`` if unidirectional; nothing without gates.
        """
        laterals = self._run(iframes, motion, residual)[1].items()
        return {name: (x.gate_iframes, x.gate_predicted) for name, x in laterals if x.gate_iframes is not None}

    def forward(self, iframes: Tensor, motion: Tensor, residual: Tensor) -> Tensor:
        """Streams as in :meth:`feature_maps` to the embedding ``(B, dim)``: pooled maps, concatenated."""
        return self.feature_maps(iframes, motion, residual).pooled()

    def _run(self, iframes: Tensor, motion: Tensor, residual: Tensor) -> tuple[StreamMaps, Mapping[str, Lateral]]:
        self._check(iframes, motion, residual)
        i = self.iframes.stem(iframes)
        m = self.motion.stem(self.motion_norm(motion))
        r = self.residual.stem(self.residual_norm(residual))
        laterals: dict[str, Lateral] = {}
        stages = zip(LATERAL_DEPTHS, self.iframes.stages, self.motion.stages, self.residual.stages, strict=True)
        for name, i_stage, m_stage, r_stage in stages:
            if self.links:
                with_m = laterals[f"{name}_motion"] = self.links[f"{name}_motion"](i, m)
                with_r = laterals[f"{name}_residual"] = self.links[f"{name}_residual"](i, r)
                i = torch.cat([i, with_m.to_iframes, with_r.to_iframes], dim=1)  # eq. 2.3
                m, r = _widen(m, with_m.to_predicted), _widen(r, with_r.to_predicted)
            i, m, r = i_stage(i), m_stage(m), r_stage(r)
        return StreamMaps(i, m, r), laterals

    def _check(self, iframes: Tensor, motion: Tensor, residual: Tensor) -> None:
        check_input(iframes, ndim=5, channels=3, expected="I-frames (B, C, T, H, W)")
        check_input(motion, ndim=5, channels=2, expected="motion vectors (B, C, kappa * T, H, W)")
        check_input(residual, ndim=5, channels=3, expected="residuals (B, C, kappa * T, H, W)")
        batch, _, frames, height, width = iframes.shape
        expected = (batch, self.kappa * frames, height, width)
        for name, x in (("motion vectors", motion), ("residuals", residual)):
            if (x.shape[0], *x.shape[2:]) != expected:
                raise ValueError(
                    f"I-frames {tuple(iframes.shape)} need {name} ({batch}, C, {expected[1]}, {height}, {width}), with "
                    f"{self.kappa} P-frames for each I-frame, got {tuple(x.shape)}; resize all streams alike"
                )


def _doubling(width: int) -> list[int]:
    return [width * 2**i for i in range(4)]


def _channels(depth: Depth, width: int, stem: int) -> list[int]:
    """Channels that leave conv1, res2, res3 and res4 of a pathway."""
    return [stem, *(EXPANSION[depth] * each for each in _doubling(width)[:3])]


def _link_sizes(
    depth: Depth, width: int, narrow: int, stem: int, scale: LateralScale
) -> list[tuple[int, int, int, int]]:
    """``(C_I, C_P, channels to I, channels to P)`` at each depth; to I, a stem counts as one stage width."""
    counted: Depth = depth if scale == "output" else 18
    to_iframes = _channels(counted, narrow, narrow)
    to_predicted = [max(1, channels // LATERAL_RATIO) for channels in _channels(counted, width, width)]
    maps = (_channels(depth, width, width), _channels(depth, narrow, stem))
    return list(zip(*maps, to_iframes, to_predicted, strict=True))


def _widen(x: Tensor, sent: Tensor | None) -> Tensor:
    return x if sent is None else torch.cat([x, sent], dim=1)
