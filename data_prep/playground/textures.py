"""Backgrounds: textures drawn once a clip, on a ground larger than the frame for the camera to slide over."""

from __future__ import annotations

from typing import Any

import numpy as np

from .scene import Background

FloatArray = np.ndarray[tuple[Any, ...], np.dtype[Any]]  # float32

TEXTURES: tuple[str, ...] = ("clouds", "planks", "pebbles", "weave", "dunes", "dots", "mosaic", "rings")


def _clouds(xy: FloatArray, rng: np.random.Generator, cell: float) -> FloatArray:
    """Two octaves of smooth value noise."""
    total = np.zeros(xy.shape[1:], np.float32)
    for octave, weight in ((1.0, 0.7), (2.3, 0.3)):
        total += weight * _value_noise(xy * octave, rng, cell)
    return total


def _value_noise(xy: FloatArray, rng: np.random.Generator, cell: float) -> FloatArray:
    lattice = rng.random((40, 40), dtype=np.float32)
    grid = xy / cell + rng.uniform(0, 40, (2, 1, 1)).astype(np.float32)
    low = np.floor(grid)
    f = grid - low
    f = f * f * (3 - 2 * f)
    x0, y0 = low.astype(np.int64) % 40
    x1, y1 = (x0 + 1) % 40, (y0 + 1) % 40
    top = lattice[y0, x0] * (1 - f[0]) + lattice[y0, x1] * f[0]
    bottom = lattice[y1, x0] * (1 - f[0]) + lattice[y1, x1] * f[0]
    return top * (1 - f[1]) + bottom * f[1]


def _turned(xy: FloatArray, rng: np.random.Generator) -> FloatArray:
    angle = rng.uniform(0, np.pi)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return np.stack([c * xy[0] + s * xy[1], -s * xy[0] + c * xy[1]])


def _planks(xy: FloatArray, rng: np.random.Generator, cell: float) -> FloatArray:
    """Boards with a shade each, a dark seam, and a little grain along them."""
    u, v = _turned(xy, rng)
    rows = v / (1.1 * cell)
    shade = rng.random(64, dtype=np.float32)[np.floor(rows).astype(np.int64) % 64]
    seam = np.abs(rows - np.round(rows)) < 0.06
    grain = 0.2 * _value_noise(np.stack([u * 0.25, v * 2]), rng, cell)
    return np.where(seam, 0.0, 0.25 + 0.55 * shade + grain).astype(np.float32)


def _weave(xy: FloatArray, rng: np.random.Generator, cell: float) -> FloatArray:
    u, v = _turned(xy, rng) * np.float32(np.pi / cell)
    return (0.5 + 0.25 * np.sin(u) * np.sign(np.sin(v)) + 0.25 * np.sin(v)).astype(np.float32)


def _dunes(xy: FloatArray, rng: np.random.Generator, cell: float) -> FloatArray:
    u, v = _turned(xy, rng)
    bent = v + 1.6 * cell * _value_noise(np.stack([u, v]), rng, 2.5 * cell)
    wave = (bent / (1.3 * cell)) % 1.0
    return np.where(wave < 0.8, wave / 0.8, (1 - wave) / 0.2).astype(np.float32)


def _dots(xy: FloatArray, rng: np.random.Generator, cell: float) -> FloatArray:
    u, v = _turned(xy, rng) / np.float32(cell)
    u = u + 0.5 * (np.floor(v) % 2)
    radius = np.hypot(u - np.floor(u) - 0.5, v - np.floor(v) - 0.5)
    return (0.2 + 0.75 / (1 + np.exp((radius - 0.27) * 25))).astype(np.float32)


def _nearest_two(xy: FloatArray, rng: np.random.Generator, cell: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Distances to the two nearest of a set of scattered seeds, and a shade for the nearest: the stuff of mosaics."""
    span = float(xy.max()) - float(xy.min()) + 1
    count = max(6, round((span / (1.8 * cell)) ** 2))
    seeds = (rng.random((count, 2), dtype=np.float32) * span + xy.min()).astype(np.float32)
    distance = np.hypot(xy[0][..., None] - seeds[:, 0], xy[1][..., None] - seeds[:, 1])  # (H, W, seeds)
    nearest = distance.argmin(-1)
    two = np.partition(distance, 1, axis=-1)
    return two[..., 0], two[..., 1], rng.random(count, dtype=np.float32)[nearest]


def _mosaic(xy: FloatArray, rng: np.random.Generator, cell: float) -> FloatArray:
    first, second, shade = _nearest_two(xy, rng, cell)
    return np.where(second - first < 1.6, 0.0, 0.25 + 0.7 * shade).astype(np.float32)


def _pebbles(xy: FloatArray, rng: np.random.Generator, cell: float) -> FloatArray:
    first, second, shade = _nearest_two(xy, rng, 0.75 * cell)
    bump = np.clip((second - first) / (0.9 * cell), 0, 1) ** 0.5
    return (bump * (0.45 + 0.5 * shade)).astype(np.float32)


def _rings(xy: FloatArray, rng: np.random.Generator, cell: float) -> FloatArray:
    """Wood-like rings around a point off the frame."""
    angle = rng.uniform(0, 2 * np.pi)
    far = 1.2 * float(xy.max())
    mid = 0.5 * (float(xy.max()) + float(xy.min()))
    radius = np.hypot(xy[0] - mid - far * np.cos(angle), xy[1] - mid - far * np.sin(angle))
    radius = radius + 0.9 * cell * _value_noise(xy, rng, 2 * cell)
    return (0.5 + 0.45 * np.sin(radius * (2 * np.pi / (1.3 * cell)))).astype(np.float32)


_FAMILIES = {
    "clouds": _clouds,
    "planks": _planks,
    "pebbles": _pebbles,
    "weave": _weave,
    "dunes": _dunes,
    "dots": _dots,
    "mosaic": _mosaic,
    "rings": _rings,
}


def draw_ground(background: Background, *, side: int, unit: int) -> FloatArray:
    """Paint the ground.

    Args:
        background: texture family, colours, scale and seed.
        side: side of the picture to paint, in pixels (the frame plus the camera's margins).
        unit: side of the frame, which texture elements are measured against.

    Returns:
        ``(side, side, 3)`` float32 in [0, 255].

    Raises:
        ValueError: the texture family is unknown.
    """
    if background.texture not in _FAMILIES:
        raise ValueError(f"unknown texture {background.texture!r}; choose one of {', '.join(TEXTURES)}")
    rng = np.random.default_rng(background.seed)
    line = np.arange(side, dtype=np.float32)
    xy = np.stack(np.meshgrid(line, line))  # (2, side, side): x, y
    tone = _FAMILIES[background.texture](xy, rng, background.scale * unit / 7)
    tone = np.clip(tone, 0, 1)[..., None]
    dark, middle, light = (np.array(colour, np.float32) * 255 for colour in background.colours)
    painted = np.where(tone < 0.5, dark + (middle - dark) * 2 * tone, middle + (light - middle) * (2 * tone - 1))
    fall = (xy - side / 2) / (side / 2)
    vignette = 1.04 - 0.13 * (fall**2).sum(0)[..., None]  # the lamp hangs above the middle
    return np.clip(painted * vignette, 0, 255).astype(np.float32)
