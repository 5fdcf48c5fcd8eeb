"""Places: a background that is seen and an ambience that is heard, tied together as loosely as a recipe wants."""

from __future__ import annotations

import numpy as np

from ..palettes import GROUNDS, jitter_ground
from ..scene import Ambience, Background, Camera
from ..textures import TEXTURES
from ..voices import AMBIENCES

MAX_PLACES = len(GROUNDS) * len(TEXTURES)


def place_names(count: int) -> tuple[str, ...]:
    """Names of the first ``count`` places, palette and texture: every two differ in at least one of them.

    Raises:
        ValueError: there are not that many.
    """
    if not 1 <= count <= MAX_PLACES:
        raise ValueError(f"the number of places must lie in [1, {MAX_PLACES}], got {count}")
    palettes, textures = list(GROUNDS), TEXTURES
    names = []
    for i in range(count):
        lap = i // len(palettes)  # after a lap of all palettes the textures move on by three
        names.append(f"{palettes[i % len(palettes)]} {textures[(i + 3 * lap) % len(textures)]}")
    return tuple(names)


def background(place: str, rng: np.random.Generator) -> Background:
    """A background of the place: its palette and texture family, with a light and a pattern of this clip's own."""
    palette, texture = place.split()
    colours = jitter_ground(GROUNDS[palette], rng, hue=0.02, value=0.08)
    return Background(texture, colours, scale=rng.uniform(0.85, 1.2), seed=int(rng.integers(2**31)))


def camera(sway: float, rng: np.random.Generator) -> Camera:
    """A swaying camera of amplitude up to ``sway``."""
    return Camera(sway * rng.uniform(0.4, 1), rng.uniform(3, 6), rng.random(), rng.uniform(0, np.pi))


def ambience_name(index: int) -> str:
    """Name of the ``index``-th ambience: the families in turn, then the same families at other pitches."""
    return f"{AMBIENCES[index % len(AMBIENCES)]}-{index // len(AMBIENCES)}"


def ambience(index: int, level: float, rng: np.random.Generator) -> Ambience:
    """The ``index``-th ambience, slightly out of tune and louder or softer by up to 2 dB."""
    octave = index // len(AMBIENCES)
    pitch = 110.0 * 2.0 ** (5 * octave / 12) * 2.0 ** rng.uniform(-0.04, 0.04)
    loudness = level * 10 ** (rng.uniform(-2, 2) / 20)
    return Ambience(AMBIENCES[index % len(AMBIENCES)], pitch, loudness, int(rng.integers(2**31)))
