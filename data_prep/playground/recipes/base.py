"""What every recipe shares: the size of a clip, the way its files are encoded, and its independent random streams."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from ..scene import Clip


@dataclass(frozen=True)
class LabelKind:
    """One question that can be asked of a clip, and how well it can be answered at all.

    ``timed`` labels hold for a part of the clip (``timed.parquet``), others for the whole (``label_<kind>`` of the
    index). ``chance`` is the best constant answer; ``sight`` and ``sound`` are the accuracies of the best possible
    answers from what one modality shows.
    """

    kind: str
    timed: bool
    classes: tuple[str, ...]
    chance: float
    sight: float
    sound: float


@dataclass(frozen=True)
class Recipe(ABC):
    """A distribution over clips: flat scalar parameters, and how clip ``number`` of ``seed`` is drawn."""

    size: int = 96  # side of the square frame, pixels
    fps: float = 25.0
    duration_s: float = 3.0
    sample_rate: int = 16000
    quantiser: int = 3  # MPEG-4 Part 2 quantiser: 2 is nearly transparent, 31 is mud
    gop: int = 12
    audio_bitrate: int = 64000
    grain: float = 0.012  # picture noise, standard deviation in [0, 1]
    hiss: float = 0.004  # microphone noise, standard deviation

    def __post_init__(self) -> None:
        for name in ("size", "fps", "duration_s", "sample_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        if self.size % 2:
            raise ValueError(f"size must be even (4:2:0 video), got {self.size}; take {self.size + 1}")

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def stream(self, seed: int, number: int, factor: str) -> np.random.Generator:
        """Random numbers of one factor of one clip: a pure function of (seed, recipe, clip, factor).

        A stream a factor means that switching one knob leaves every other factor of the clip as it was.
        """
        return np.random.default_rng([seed, number, zlib.crc32(self.name.encode()), zlib.crc32(factor.encode())])

    @abstractmethod
    def clip(self, seed: int, number: int) -> Clip:
        """Draw clip ``number`` of the world ``seed``."""

    @abstractmethod
    def kinds(self) -> tuple[LabelKind, ...]:
        """The labels that the recipe gives, with chance and ceilings."""


def check_share(name: str, value: float) -> None:
    """Raise unless ``value`` is a share.

    Raises:
        ValueError: outside [0, 1].
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a share and must lie in [0, 1], got {value!r}")
