"""IMRNet's connections between pathways: what is sent, and how much of it (eqs. 2.1 and 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl_core.encoders.layers import kaiming_fan_out_

Resampling = Literal["conv", "interpolate"]


@dataclass(frozen=True)
class Lateral:
    """What one :class:`LateralGate` sends, and the gates it was sent through; ``None`` where there is no such thing.

    Attributes:
        to_iframes: ``(B, c_1, T, h, w)``, gated.
        to_predicted: ``(B, c_2, kappa * T, h, w)``, gated; ``None`` in a unidirectional connection.
        gate_iframes: factor of each channel of ``to_iframes``, ``(B, c_1)`` in (0, 1).
        gate_predicted: factor of each channel of ``to_predicted``, ``(B, c_2)`` in (0, 1).
    """

    to_iframes: Tensor
    to_predicted: Tensor | None
    gate_iframes: Tensor | None
    gate_predicted: Tensor | None


class LateralGate(nn.Module):
    """Connection between the I pathway and one pathway of predicted frames (P: motion or residuals) at one depth.

    Both maps are max-pooled over time and space and concatenated to one descriptor ``z`` of ``C_Z = C_I + C_P``
    numbers. Two hidden layers of width ``C_Z`` and one sigmoid layer for each direction turn it into a factor for every
    channel that is sent (eq. 2.1), so that a clip decides how much passes. What passes is the other map, brought to
    one's own frame rate by a convolution or transposed convolution over ``kappa`` frames (eq. 2.2). Everything is
    computed from the maps as they leave their stage, before either is widened.

    Args:
        iframe_channels: ``C_I``.
        predicted_channels: ``C_P``.
        to_iframes: channels sent to the I pathway. Without convolutions it is always ``C_P``.
        to_predicted: channels sent to the other pathway. Without convolutions it is always ``C_I``.
        kappa: P-frames for every I-frame.
        bidirectional: whether anything is sent to the P pathway.
        resampling: ``"conv"``, or ``"interpolate"`` for the ablation "no conv": the mean over the ``kappa`` frames of a
            GOP one way, repetition the other way, with all channels.
        gated: ``False`` for the ablation "no attention": every factor is 1 and there is no gate.

    Attributes:
        to_iframes_channels: channels that really arrive at the I pathway.
        to_predicted_channels: channels that really arrive at the P pathway, 0 if unidirectional.

    Raises:
        ValueError: if a number is below 1.
    """

    def __init__(
        self,
        iframe_channels: int,
        predicted_channels: int,
        to_iframes: int,
        to_predicted: int,
        *,
        kappa: int = 5,
        bidirectional: bool = True,
        resampling: Resampling = "conv",
        gated: bool = True,
    ) -> None:
        super().__init__()
        sizes = (iframe_channels, predicted_channels, to_iframes, to_predicted, kappa)
        if min(sizes) < 1:
            raise ValueError(f"channels of both maps, channels sent both ways and kappa must be positive, got {sizes}")
        conv = one_of("resampling", resampling, ("conv", "interpolate")) == "conv"
        self.kappa, self.bidirectional = kappa, bidirectional
        self.to_iframes_channels = to_iframes if conv else predicted_channels
        self.to_predicted_channels = (to_predicted if conv else iframe_channels) if bidirectional else 0
        self.down: nn.Module = nn.AvgPool3d((kappa, 1, 1))
        self.up: nn.Module = nn.Upsample(scale_factor=(kappa, 1, 1), mode="nearest")
        if conv:
            # No bias: a constant a channel is what the next stage's normalisation removes.
            self.down = nn.Conv3d(predicted_channels, to_iframes, (kappa, 1, 1), (kappa, 1, 1), bias=False)
            kaiming_fan_out_(self.down)
            if bidirectional:
                self.up = nn.ConvTranspose3d(iframe_channels, to_predicted, (kappa, 1, 1), (kappa, 1, 1), bias=False)
                # The same rule as everywhere: a transposed kernel has its axes swapped, so torch's fan-in is fan-out.
                nn.init.kaiming_normal_(self.up.weight, mode="fan_in", nonlinearity="relu")
        both = iframe_channels + predicted_channels
        self.gate = ChannelGate(both, self.to_iframes_channels, self.to_predicted_channels) if gated else None

    def forward(self, iframes: Tensor, predicted: Tensor) -> Lateral:
        """Maps ``(B, C_I, T, h, w)`` and ``(B, C_P, kappa * T, h, w)`` to what each sends to the other.

        Raises:
            ValueError: if the two maps do not have ``T`` and ``kappa * T`` frames of one size.
        """
        (_, _, frames, *grid), (_, _, predicted_frames, *predicted_grid) = iframes.shape, predicted.shape
        if predicted_frames != self.kappa * frames or grid != predicted_grid:
            raise ValueError(
                f"expected maps of T and {self.kappa} * T frames of one size, got {tuple(iframes.shape)} and "
                f"{tuple(predicted.shape)}"
            )
        to_iframes = self.down(predicted)
        to_predicted = self.up(iframes) if self.bidirectional else None
        if self.gate is None:
            return Lateral(to_iframes, to_predicted, None, None)
        z = torch.cat([iframes.amax(dim=(2, 3, 4)), predicted.amax(dim=(2, 3, 4))], dim=1)  # (B, C_Z)
        gate_iframes, gate_predicted = self.gate(z)
        to_iframes = gate_iframes[:, :, None, None, None] * to_iframes
        if to_predicted is not None and gate_predicted is not None:
            to_predicted = gate_predicted[:, :, None, None, None] * to_predicted
        return Lateral(to_iframes, to_predicted, gate_iframes, gate_predicted)


class ChannelGate(nn.Module):
    """Eq. 2.1: a descriptor of both pathways to one factor for every channel that is sent.

    The slope of the LeakyReLU is not given; torch's 0.01 is used.

    Args:
        dim: length ``C_Z`` of the descriptor and width of both hidden layers.
        to_iframes: factors for the I pathway.
        to_predicted: factors for the other pathway; 0 for none.
    """

    def __init__(self, dim: int, to_iframes: int, to_predicted: int) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(dim, dim)
        self.hidden2 = nn.Linear(dim, dim)
        self.iframes = nn.Linear(dim, to_iframes)
        self.predicted = nn.Linear(dim, to_predicted) if to_predicted else None

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """``(B, C_Z)`` to gates ``(B, to_iframes)`` and ``(B, to_predicted)``, in (0, 1)."""
        h = F.leaky_relu(self.hidden2(F.leaky_relu(self.hidden1(z))))
        predicted = None if self.predicted is None else torch.sigmoid(self.predicted(h))
        return torch.sigmoid(self.iframes(h)), predicted


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """``value``, or an error that names those allowed."""
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}: use one of {allowed}")
    return value
