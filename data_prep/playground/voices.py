"""Voices and ambiences: additive, noisy, plucked and bell-like timbres, synthesised from a pitch curve and an envelope.

A voice is a sum of partials that share one phase curve; each partial has its own decay, which is most of what tells a
bell from a marimba. Ambiences are stationary (or slowly modulated by sines), so that a place sounds the same forwards
and backwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .scene import Ambience

Array = np.ndarray[tuple[Any, ...], np.dtype[Any]]  # float32 waveforms and envelopes, float64 times

TAU = 2 * np.pi


@dataclass(frozen=True)
class Timbre:
    """Partials as (multiple of the pitch, amplitude, decay in seconds when struck), and the level of band noise."""

    partials: tuple[tuple[float, float, float], ...]
    breath: float = 0.0


TIMBRES: dict[str, Timbre] = {
    "marimba": Timbre(((1.0, 1.0, 0.13), (3.93, 0.45, 0.05), (9.2, 0.15, 0.02))),
    "bell": Timbre(((1.0, 0.5, 0.2), (2.0, 0.35, 0.18), (2.76, 0.6, 0.18), (5.40, 0.5, 0.13), (8.93, 0.3, 0.09))),
    "wood": Timbre(((1.0, 0.25, 0.05),), breath=1.0),
    "reed": Timbre(tuple((float(k), 1.0 / k**0.7, 0.08) for k in range(1, 13, 2))),
    "string": Timbre(tuple((float(k), 1.0 / k, 0.3 / k**0.5) for k in range(1, 10))),
    "glass": Timbre(((2.0, 0.5, 0.25), (4.1, 0.6, 0.2), (6.8, 0.5, 0.15))),
    "horn": Timbre(tuple((float(k), a, 0.2) for k, a in ((1, 0.6), (2, 1.0), (3, 0.7), (4, 0.3), (5, 0.15)))),
    "flute": Timbre(((1.0, 1.0, 0.2), (2.0, 0.12, 0.1)), breath=0.25),
}


def timbre_named(name: str) -> Timbre:
    """The timbre ``name``.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in TIMBRES:
        raise ValueError(f"unknown timbre {name!r}; choose one of {', '.join(TIMBRES)}")
    return TIMBRES[name]


def band_noise(num_samples: int, bandwidth_hz: float, sample_rate: int, rng: np.random.Generator) -> Array:
    """Low-passed Gaussian noise of unit variance: linear interpolation of a slower noise, cheap and smooth enough."""
    step = max(1.0, sample_rate / (2 * bandwidth_hz))
    knots = rng.standard_normal(int(num_samples / step) + 2)
    slow = np.interp(np.arange(num_samples) / step, np.arange(len(knots)), knots)
    return (slow * np.sqrt(1.5)).astype(np.float32)  # linear interpolation averages the variance to 2/3


def struck(since: Array, decay_s: float) -> Array:
    """Envelope of a struck body, ``since`` seconds after the strike (infinite before the first)."""
    return np.exp(-since / decay_s) * (1 - np.exp(-since / 0.003))


def mirrored(distance: Array, decay_s: float) -> Array:
    """The same forwards and backwards: a smooth bump around each strike, ``distance`` seconds away."""
    width = 0.02 + 0.2 * decay_s
    return np.exp(-0.5 * (distance / width) ** 2)


def tone(timbre: str, pitch: Array, envelopes: list[Array], sample_rate: int, rng: np.random.Generator) -> Array:
    """Sum the partials of a timbre.

    Args:
        timbre: a name in ``TIMBRES``.
        pitch: (L,) instantaneous fundamental, hertz.
        envelopes: one (L,) envelope a partial.
        sample_rate: hertz; partials above 0.45 of it are left out.
        rng: phases and noise.

    Returns:
        (L,) float32, of unit RMS before the envelope.

    Raises:
        ValueError: the timbre is unknown.
    """
    spec = timbre_named(timbre)
    phase = np.cumsum(pitch, dtype=np.float64) * (TAU / sample_rate) + rng.uniform(0, TAU)
    top = float(pitch.max())
    total = np.zeros(len(pitch), np.float32)
    for (multiple, amplitude, _), envelope in zip(spec.partials, envelopes, strict=True):
        if multiple * top < 0.45 * sample_rate:
            wave = np.sin(np.remainder(multiple * phase, TAU).astype(np.float32))
            total += np.float32(amplitude) * envelope * wave
    if spec.breath > 0:
        noise = band_noise(len(pitch), 0.5 * float(pitch.mean()), sample_rate, rng)
        carrier = np.sin(np.remainder(2.0 * phase, TAU).astype(np.float32)) + 0.5
        total += np.float32(spec.breath) * envelopes[0] * noise * carrier
    power = 0.5 * sum(a * a for _, a, _ in spec.partials) + 0.75 * spec.breath**2
    return total / np.float32(np.sqrt(power))


# --- ambiences -------------------------------------------------------------------------------------------------------

AMBIENCES: tuple[str, ...] = ("wind", "hum", "rain", "pad", "engine", "crickets", "surf", "organ")


def _coloured(num_samples: int, sample_rate: int, centre_hz: float, octaves: float, rng: np.random.Generator) -> Array:
    """Unit-variance noise in a band: Gaussian in log-frequency around ``centre_hz``."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples, dtype=np.float32))
    hz = np.fft.rfftfreq(num_samples, 1 / sample_rate)
    spectrum *= np.exp(-0.5 * (np.log2(np.maximum(hz, 1.0) / centre_hz) / octaves) ** 2)
    noise = np.fft.irfft(spectrum, num_samples)
    return (noise / (noise.std() + 1e-9)).astype(np.float32)


def _chord(t: Array, pitch_hz: float, ratios: tuple[float, ...], rng: np.random.Generator) -> Array:
    total = np.zeros_like(t)
    for ratio in ratios:
        total += np.sin(np.remainder(TAU * pitch_hz * ratio * t + rng.uniform(0, TAU), TAU).astype(np.float32))
    return total * np.float32(np.sqrt(2 / len(ratios)))


def ambience(spec: Ambience, num_samples: int, sample_rate: int) -> Array:
    """Synthesise ``num_samples`` of an ambience at its level (RMS), float32.

    Raises:
        ValueError: the family is unknown.
    """
    if spec.level <= 0:
        return np.zeros(num_samples, np.float32)
    rng = np.random.default_rng(spec.seed)
    t = np.arange(num_samples, dtype=np.float64) / sample_rate
    slow = 1 + 0.4 * np.sin(TAU * (t * rng.uniform(0.15, 0.4) + rng.random()))
    p = spec.pitch_hz
    match spec.family:
        case "wind":
            sound = _coloured(num_samples, sample_rate, 2.0 * p, 0.5, rng) * slow
        case "hum":
            sound = _chord(t, 0.5 * p, (1.0, 2.0, 3.0), rng)
        case "rain":
            sound = _coloured(num_samples, sample_rate, 18 * p, 0.6, rng)
        case "pad":
            sound = _chord(t, p, (1.0, 1.25, 1.5, 2.0), rng) * slow
        case "engine":
            sound = _coloured(num_samples, sample_rate, p, 0.7, rng) * (1 + 0.8 * np.sin(TAU * t * 11))
        case "crickets":
            sound = _chord(t, 22 * p, (1.0, 1.012), rng) * (1 + np.sin(TAU * (14 * t + rng.random())))
        case "surf":
            sound = _coloured(num_samples, sample_rate, 6 * p, 1.3, rng) * (
                1 + 0.7 * np.sin(TAU * (0.5 * t + rng.random()))
            )
        case "organ":
            sound = _chord(t, p, (1.0, 2.0, 3.0, 4.0, 6.0, 8.0), rng)
        case "music":
            sound = music(num_samples, sample_rate, p, rng)
        case _:
            raise ValueError(f"unknown ambience {spec.family!r}; choose one of {', '.join(AMBIENCES)} or music")
    return (sound * np.float32(spec.level)).astype(np.float32)


def music(num_samples: int, sample_rate: int, pitch_hz: float, rng: np.random.Generator) -> Array:
    """A small tune unrelated to anything seen: plucked notes of a pentatonic scale over a bass, at a steady beat."""
    scale = np.array([0, 2, 4, 7, 9, 12, 14])
    beat_s = rng.uniform(0.2, 0.32)
    starts = np.arange(0, num_samples / sample_rate, beat_s)
    t = np.arange(num_samples) / sample_rate
    which = np.minimum((t / beat_s).astype(np.int64), len(starts) - 1)
    since = (t - starts[which]).astype(np.float32)
    total = np.zeros(num_samples, np.float32)
    for octave, every, decay in ((1.0, 1, 0.18), (0.5, 4, 0.6)):
        steps = scale[rng.integers(0, len(scale), len(starts))]
        steps = steps[(np.arange(len(starts)) // every) * every]
        pitch = pitch_hz * octave * 2.0 ** (steps[which] / 12)
        age = since if every == 1 else (t - starts[(which // every) * every]).astype(np.float32)
        envelopes = [struck(age, decay * d / 0.3) for _, _, d in TIMBRES["string"].partials]
        total += tone("string", pitch, envelopes, sample_rate, rng)
    return total
