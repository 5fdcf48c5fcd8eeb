"""Two towers: sight and sound, each an encoder with its projection head, into one embedding space (GDT, section 3).

Composition only: any encoder with ``forward(x) -> (B, dim)`` and a ``dim`` fits. A tower is a module of its own, so
that a within-modal baseline trains ``model.video`` alone and evaluation reads ``model.video.encoder``: downstream tasks
use the encoder's feature, never the embedding.
"""

from __future__ import annotations

from typing import Protocol, cast

from torch import Tensor, nn

from avssl_core.encoders.factorised import FactorisedVideoNet
from avssl_core.encoders.heads import ProjectionHead
from avssl_core.encoders.layers import NormKind, seeded_init
from avssl_core.encoders.r2plus1d import R2Plus1D
from avssl_core.encoders.spectrogram_resnet import ResNet9Audio


class Encoder(Protocol):
    """What every encoder of this package offers beside being an ``nn.Module``."""

    dim: int

    def __call__(self, x: Tensor) -> Tensor:
        """Pooled features ``(B, dim)``."""

    def feature_map(self, x: Tensor) -> Tensor:
        """Unpooled features: a grid ``(B, dim, ...)``, or ``(B, L, dim)`` for words."""


class Tower(nn.Module):
    """An encoder followed by a projection head.

    Raises:
        ValueError: if the head does not take what the encoder gives.
    """

    def __init__(self, encoder: nn.Module, head: ProjectionHead) -> None:
        super().__init__()
        dim = cast(Encoder, encoder).dim
        if dim != head.in_dim:
            raise ValueError(f"the encoder gives {dim} features but the head takes {head.in_dim}: make them equal")
        self.encoder = encoder
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Inputs of the encoder to embeddings ``(B, head.dim)``."""
        embedding: Tensor = self.head(self.encoder(x))
        return embedding


class AudioVisualModel(nn.Module):
    """Video and audio towers into one space.

    Args:
        video_encoder: takes clips ``(B, 3, T, H, W)``.
        audio_encoder: takes spectrograms ``(B, 1, F, T)``.
        video_head: projection of the video feature.
        audio_head: projection of the audio feature, to the same width.

    Attributes:
        video: the video :class:`Tower`.
        audio: the audio :class:`Tower`.

    Raises:
        ValueError: if the two embeddings differ in width.
    """

    def __init__(
        self,
        video_encoder: nn.Module,
        audio_encoder: nn.Module,
        video_head: ProjectionHead,
        audio_head: ProjectionHead,
    ) -> None:
        super().__init__()
        if video_head.dim != audio_head.dim:
            raise ValueError(
                f"both embeddings must have one width, got video {video_head.dim} and audio {audio_head.dim}"
            )
        self.video = Tower(video_encoder, video_head)
        self.audio = Tower(audio_encoder, audio_head)

    def forward(self, video: Tensor, spectrogram: Tensor) -> tuple[Tensor, Tensor]:
        """Clips ``(B, 3, T, H, W)`` and spectrograms ``(B', 1, F, T')`` to embeddings ``(B, D)`` and ``(B', D)``."""
        return self.video(video), self.audio(spectrogram)


def full_gdt(*, seed: int = 0) -> AudioVisualModel:
    """GDT at full size: R(2+1)D-18, ResNet-9, two heads 512-512-256; 36,988,637 parameters, a function of ``seed``."""
    with seeded_init(seed):
        return AudioVisualModel(R2Plus1D(), ResNet9Audio(), ProjectionHead(), ProjectionHead())


def small(
    *,
    seed: int,
    width: int = 16,
    stem_stride: int = 4,
    dim: int = 256,
    audio_width: int = 16,
    embedding_dim: int = 64,
    dropout: float = 0.0,
    norm: NormKind = "bn",
) -> AudioVisualModel:
    """The model of the CPU budgets: :class:`FactorisedVideoNet` and a narrow ResNet-9.

    Args:
        seed: initial weights are a function of it.
        width: first-stage channels of the video network.
        stem_stride: patch size of the video network's stem.
        dim: width of the video feature.
        audio_width: first-stage channels of the audio network, whose feature has ``8 * audio_width``.
        embedding_dim: width of the shared space.
        dropout: of the heads; zero by default, since a short run needs no regularising.
        norm: normalisation of both encoders (the heads keep batch norm).
    """
    with seeded_init(seed):
        video = FactorisedVideoNet(width, stem_stride, dim, norm=norm)
        audio = ResNet9Audio(audio_width, norm=norm)
        return AudioVisualModel(
            video,
            audio,
            ProjectionHead(video.dim, video.dim, embedding_dim, dropout=dropout),
            ProjectionHead(audio.dim, audio.dim, embedding_dim, dropout=dropout),
        )
