"""A world of features without files: clips of known classes, several layers of two modalities, and nuisances of each.

What the curation of ACAV100M (https://arxiv.org/abs/2101.10803) sees of a video are features of the layers of two
frozen networks. Here they are drawn: deeper layers say more about the class, which sight and sound share, and every
layer of a modality says something about a nuisance that the other modality knows nothing of. Seconds instead of hours,
so that what an algorithm does can be measured over seeds; which clips belong together is decided afterwards
(:mod:`avssl_core.curation.negatives`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MODALITIES = ("sight", "sound")


@dataclass(frozen=True)
class ClusterWorld:
    """A distribution over clips; layer ``l`` of a modality is ``gain_l mu_class + nuisance + noise``.

    Attributes:
        clips: ``N``.
        classes: ``K``; both modalities of a clip show its class.
        dim: of every layer.
        gains: strength of the class in every layer, from shallow to deep.
        nuisance: strength of what is the clip's and the modality's own; all layers of a modality show the same of it.
        nuisance_dim: its dimension.
        noise: standard deviation of what is each layer's own.
        own: strength of what is the clip's own and *shared* by both modalities, whatever its class: no cluster shows
            it, a comparison of clip with clip does.
        zipf: class ``k`` (from 1) is as frequent as ``k ** -zipf``; 0 makes all equally frequent.

    Raises:
        ValueError: for numbers that make no world.
    """

    clips: int = 1600
    classes: int = 16
    dim: int = 24
    gains: tuple[float, ...] = (0.15, 0.3, 0.5, 0.8, 1.2)
    nuisance: float = 0.7
    nuisance_dim: int = 12
    noise: float = 0.5
    own: float = 0.0
    zipf: float = 0.0

    def __post_init__(self) -> None:
        for name in ("clips", "classes", "dim", "nuisance_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.gains or min(self.nuisance, self.noise, self.own, self.zipf) < 0:
            raise ValueError(f"need at least one layer, and strengths that are not negative; got {self}")

    @property
    def layers(self) -> tuple[int, int]:
        """Number of layers of sight and of sound."""
        return len(self.gains), len(self.gains)

    def shares(self) -> Tensor:
        """How frequent each class is, float64 ``(K,)``."""
        weights = torch.arange(1, self.classes + 1, dtype=torch.float64) ** -self.zipf
        return weights / weights.sum()

    def draw(self, seed: int) -> DrawnWorld:
        """Draw all clips, a function of ``(self, seed)``."""
        rng = np.random.default_rng([seed, 0x7])
        classes = rng.choice(self.classes, self.clips, p=self.shares().numpy())
        own = rng.standard_normal((self.clips, self.nuisance_dim))
        features = []
        for _ in MODALITIES:
            means = rng.standard_normal((self.classes, self.dim))
            private = rng.standard_normal((self.clips, self.nuisance_dim))
            for gain in self.gains:
                mixing, shared = rng.standard_normal((2, self.nuisance_dim, self.dim)) / self.nuisance_dim**0.5
                layer = gain * means[classes] + self.nuisance * private @ mixing + self.own * own @ shared
                layer += self.noise * rng.standard_normal((self.clips, self.dim))
                features.append(torch.from_numpy(layer.astype(np.float32)))
        return DrawnWorld(tuple(features), torch.from_numpy(classes), self.layers)


@dataclass(frozen=True)
class DrawnWorld:
    """Clips of a :class:`ClusterWorld`.

    Attributes:
        features: of each column, float32 ``(N, dim)``: the layers of sight from shallow to deep, then those of sound.
        classes: int64 ``(N,)``.
        layers: number of layers of each modality.
    """

    features: tuple[Tensor, ...]
    classes: Tensor
    layers: tuple[int, int]
