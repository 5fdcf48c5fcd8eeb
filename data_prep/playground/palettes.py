"""Colours: muted grounds, vivid actors.

Grounds come in twelve curated palettes (dark, middle, light of one harmony); actors take one of ten vivid colours
that stands out from the ground by lightness or hue. Most colours stand out from most grounds, so that an actor's
colour says little about the place.
"""

from __future__ import annotations

import colorsys

import numpy as np

from .scene import Colour


def _rgb(code: str) -> Colour:
    return tuple(int(code[i : i + 2], 16) / 255 for i in (0, 2, 4))  # type: ignore[return-value]


GROUNDS: dict[str, tuple[Colour, Colour, Colour]] = {
    "slate": (_rgb("2b3a4a"), _rgb("3f5468"), _rgb("587089")),
    "sand": (_rgb("b99b6b"), _rgb("d3b888"), _rgb("ead8b1")),
    "moss": (_rgb("33452f"), _rgb("4d6643"), _rgb("6f8a5b")),
    "plum": (_rgb("3f2a47"), _rgb("5b4066"), _rgb("7d5d88")),
    "mist": (_rgb("9fb3bb"), _rgb("bccbd0"), _rgb("dae4e6")),
    "brick": (_rgb("5c2f2a"), _rgb("7d453b"), _rgb("a0655a")),
    "mint": (_rgb("7fb3a0"), _rgb("a3cdbc"), _rgb("cbe6da")),
    "night": (_rgb("141a33"), _rgb("232c52"), _rgb("384574")),
    "rose": (_rgb("c48f98"), _rgb("dcb0b6"), _rgb("f1d5d7")),
    "cocoa": (_rgb("3a2c24"), _rgb("574236"), _rgb("7a6150")),
    "teal": (_rgb("12464b"), _rgb("226469"), _rgb("42868a")),
    "lilac": (_rgb("9a93bd"), _rgb("b8b2d4"), _rgb("dad6ea")),
}

ACTOR_COLOURS: tuple[Colour, ...] = tuple(
    _rgb(code)
    for code in ("ff5a4f", "ffb01f", "ffe45c", "57c84d", "19b8a6", "2f9bff", "5b5ce6", "b455e0", "ff6fb1", "f6f3ea")
)


def luminance(colour: Colour) -> float:
    """Relative lightness of a colour, in [0, 1] (Rec. 601 weights)."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def contrasting(ground: Colour, rng: np.random.Generator) -> Colour:
    """An actor colour that stands out from ``ground`` in lightness and hue together, drawn evenly among those."""

    def distance(colour: Colour) -> float:
        chroma = sum(
            abs((a - luminance(colour)) - (b - luminance(ground))) for a, b in zip(colour, ground, strict=True)
        )
        return abs(luminance(colour) - luminance(ground)) + 0.6 * chroma

    standing_out = [colour for colour in ACTOR_COLOURS if distance(colour) > 0.5]
    return standing_out[rng.integers(len(standing_out))]


def jitter(colour: Colour, rng: np.random.Generator, *, hue: float, value: float) -> Colour:
    """The same colour under another light: hue moved by up to ``hue`` of the circle, lightness by up to ``value``."""
    h, s, v = colorsys.rgb_to_hsv(*colour)
    h = (h + rng.uniform(-hue, hue)) % 1.0
    v = float(np.clip(v * (1 + rng.uniform(-value, value)), 0, 1))
    return colorsys.hsv_to_rgb(h, s, v)


def jitter_ground(
    colours: tuple[Colour, Colour, Colour], rng: np.random.Generator, *, hue: float, value: float
) -> tuple[Colour, Colour, Colour]:
    """All three tones moved together, so that the harmony survives."""
    turn, light = rng.uniform(-hue, hue), 1 + rng.uniform(-value, value)
    moved = []
    for colour in colours:
        h, s, v = colorsys.rgb_to_hsv(*colour)
        moved.append(colorsys.hsv_to_rgb((h + turn) % 1.0, s, min(1.0, v * light)))
    return moved[0], moved[1], moved[2]
