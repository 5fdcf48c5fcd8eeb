"""Changing the sample rate: against the signal itself, and against libswresample."""

from __future__ import annotations

import numpy as np
import pytest

from avssl_core.media.resample import _resample_by_libav, resample

PAIRS = [(16_000, 24_000), (44_100, 24_000), (48_000, 16_000), (22_050, 16_000), (8_000, 48_000), (96_000, 8_000)]


def sine(hertz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(np.float32)


def decibel(error: np.ndarray) -> float:
    return float(20 * np.log10(np.abs(error).max() + 1e-12))


@pytest.mark.parametrize(("rate", "new_rate"), [*PAIRS, (44_100, 16_001)])
@pytest.mark.parametrize("share", [0.01, 0.4, 0.75])
def test_a_tone_below_the_new_limit_is_that_tone(rate: int, new_rate: int, share: float) -> None:
    hertz = share * min(rate, new_rate) / 2
    out = resample(sine(hertz, rate), rate, new_rate)
    inner = slice(len(out) // 10, -len(out) // 10)
    assert decibel((out - sine(hertz, new_rate)[: len(out)])[inner]) < -70


@pytest.mark.parametrize(("rate", "new_rate"), [(r, n) for r, n in PAIRS if r > n])
def test_a_tone_above_the_new_limit_is_gone(rate: int, new_rate: int) -> None:
    out = resample(sine(0.6 * new_rate, rate), rate, new_rate)
    assert decibel(out[len(out) // 10 : -len(out) // 10]) < -80


@pytest.mark.parametrize(("rate", "new_rate"), PAIRS)
def test_it_agrees_with_libswresample(rate: int, new_rate: int) -> None:
    noise = np.random.default_rng(0).standard_normal(rate).astype(np.float32)
    low = np.convolve(noise, np.hanning(2 * rate // min(rate, new_rate) * 16), mode="same").astype(np.float32)
    low /= np.abs(low).max()
    ours, theirs = resample(low, rate, new_rate), _resample_by_libav(low, rate, new_rate)
    inner = slice(len(ours) // 10, -len(ours) // 10)
    assert decibel(ours[inner] - theirs[: len(ours)][inner]) < -60


@pytest.mark.parametrize("length", [1, 2, 159, 160, 161, 5000])
def test_lengths_and_impulses(length: int) -> None:
    impulse = np.zeros(length, np.float32)
    impulse[length // 2] = 1
    out = resample(impulse, 16_000, 48_000)
    assert out.shape == (3 * length,) and out.dtype == np.float32
    assert np.argmax(out) == 3 * (length // 2)
    assert resample(impulse, 48_000, 16_000).shape == (-(-length // 3),)


def test_a_constant_stays_constant() -> None:
    for rate, new_rate in PAIRS:
        out = resample(np.ones(rate // 2, np.float32), rate, new_rate)
        np.testing.assert_allclose(out[len(out) // 5 : -len(out) // 5], 1.0, atol=1e-3)
