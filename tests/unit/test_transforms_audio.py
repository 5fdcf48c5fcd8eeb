"""Log-mel spectrograms against a slow reference, and the limits of the masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchaudio.functional import melscale_fbanks

from avssl_core.transforms import LogMelSpectrogram, SpecAugment, VolumeJitter


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference(
    samples: np.ndarray, rate: int, width: int, hop: int, n_fft: int, n_mels: int, *, snap: bool
) -> np.ndarray:
    """The card's definition in float64, frame by frame: pre-emphasis, rectangular window, |FFT|² / n, HTK mel
    triangles, ln."""
    samples = np.append(samples[0], samples[1:] - 0.97 * samples[:-1])
    count = 1 + math.ceil((len(samples) - width) / hop)
    mels = np.linspace(0, 2595 * np.log10(1 + rate / 2 / 700), n_mels + 2)
    corners = 700 * (10 ** (mels / 2595) - 1)
    if snap:
        corners = np.floor((n_fft + 1) * corners / rate) * rate / n_fft
    out = np.zeros((n_mels, count))
    for t in range(count):
        frame = np.zeros(width)
        piece = samples[t * hop : t * hop + width]
        frame[: len(piece)] = piece
        power = np.abs(np.fft.rfft(frame, n_fft)) ** 2 / n_fft
        for m in range(n_mels):
            low, centre, high = corners[m : m + 3]
            energy = 0.0
            for k, value in enumerate(power):
                hertz = k * rate / n_fft
                if low <= hertz < centre:
                    energy += value * (hertz - low) / (centre - low)
                elif centre <= hertz < high:
                    energy += value * (high - hertz) / (high - centre)
            out[m, t] = np.log(energy if energy > 0 else np.finfo(float).eps)
    return (out - 1.93) / 17.89


def chirp(rate: int, seconds: float) -> torch.Tensor:
    t = torch.arange(round(rate * seconds), dtype=torch.float64) / rate
    noise = torch.randn(len(t), generator=seeded(), dtype=torch.float64)
    wave = 0.3 * torch.sin(2 * math.pi * (200 * t + 1500 * t**2)) + 0.01 * noise
    return (wave * 32768).round().float() / 32768


@pytest.mark.parametrize("snap", [True, False])
def test_agrees_with_the_definition(snap: bool) -> None:
    wave = chirp(24000, 0.1)
    ours = LogMelSpectrogram(snap=snap)(wave[None])[0, 0]
    theirs = reference(wave.double().numpy() * 32768, 24000, 480, 240, 1024, 40, snap=snap)
    assert ours.shape == theirs.shape == (40, 9)
    assert np.abs(ours.numpy() - theirs).max() < 1e-4


def test_other_settings_agree_too() -> None:
    wave = chirp(16000, 0.1)
    ours = LogMelSpectrogram(sample_rate=16000, window_s=0.025, n_fft=512, n_mels=32)(wave[None])[0, 0]
    theirs = reference(wave.double().numpy() * 32768, 16000, 400, 160, 512, 32, snap=False)
    assert np.abs(ours.numpy() - theirs).max() < 1e-4


def test_one_second_gives_the_papers_image() -> None:
    assert LogMelSpectrogram()(torch.randn(3, 24000, generator=seeded()) * 0.1).shape == (3, 1, 40, 99)


@pytest.mark.parametrize("length", [1, 479, 480, 481, 720, 721, 24000, 24001])
def test_frame_count_formula(length: int) -> None:
    mel = LogMelSpectrogram()
    expected = 1 + max(0, math.ceil((length - 480) / 240))
    assert mel.num_frames(length) == expected
    assert mel(torch.randn(1, length, generator=seeded())).shape[-1] == expected


def test_sixty_four_frames_at_16_khz() -> None:
    mel = LogMelSpectrogram(sample_rate=16000, n_fft=512)
    assert mel.num_samples(64) == 10400
    assert mel(torch.zeros(2, 10400)).shape == (2, 1, 40, 64)


def test_the_bank_is_torchaudios() -> None:
    bank = melscale_fbanks(513, 0.0, 12000.0, 40, 24000, norm=None, mel_scale="htk")
    assert torch.equal(LogMelSpectrogram().bank, bank)


def test_silence_has_a_value_and_cached_samples_give_the_same_image() -> None:
    mel = LogMelSpectrogram()
    silence = mel(torch.zeros(1, 2400))
    assert torch.allclose(silence, torch.full_like(silence, (math.log(2.0**-52) - 1.93) / 17.89))
    # Decoded audio has fractions of an int16 step where the file is silent; the cache stores whole steps.
    wave = chirp(24000, 0.2)
    wave[2000:] = 1e-5 * torch.randn(2800, generator=seeded())
    stored = (wave * 32768).round().to(torch.int16).float() / 32768
    assert torch.equal(mel(wave[None]), mel(stored[None]))


def test_rows_are_independent_and_batches_may_be_large() -> None:
    mel = LogMelSpectrogram()
    waves = torch.randn(11, 24000, generator=seeded()) * 0.1
    assert torch.allclose(mel(waves)[7:8], mel(waves[7:8]), atol=1e-5)


def test_autocast_does_not_lower_the_precision() -> None:
    mel, wave = LogMelSpectrogram(), chirp(24000, 0.2)[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mel(wave)
    assert inside.dtype == torch.float32 and torch.equal(inside, mel(wave))


def test_it_has_no_state_to_save() -> None:
    assert LogMelSpectrogram().state_dict() == {}


def test_spec_augment_masks_stay_below_their_limits_and_fill_with_zero() -> None:
    spec = torch.rand(3000, 1, 40, 99, generator=seeded()) + 1.0
    out = SpecAugment(max_freq=3, max_time=6)(spec, seeded(1))
    hidden = out == 0
    assert torch.equal(out[~hidden], spec[~hidden])
    bins = hidden[:, 0].all(dim=2).sum(dim=1)  # fully hidden rows
    frames = hidden[:, 0].all(dim=1).sum(dim=1)
    # The floor of U(0, 3) and U(0, 6): all widths below the limit occur, the limit itself never.
    assert set(bins.tolist()) == {0, 1, 2}
    assert set(frames.tolist()) == {0, 1, 2, 3, 4, 5}
    assert abs((frames == 0).float().mean().item() - 1 / 6) < 0.035  # 5 sigma
    # One span each: hidden frames of a clip are adjacent.
    where = hidden[:, 0].all(dim=1).float()
    edges = (where[:, 1:] != where[:, :-1]).sum(dim=1)
    assert edges.max() <= 2


def test_spec_augment_reaches_both_ends_and_differs_between_clips() -> None:
    out = SpecAugment(max_freq=3, max_time=6)(torch.ones(4000, 1, 10, 12), seeded())
    frames, bins = (out == 0)[:, 0].all(dim=1), (out == 0)[:, 0].all(dim=2)
    assert frames.any(dim=0).all() and bins.any(dim=0).all()
    assert len({tuple(row) for row in frames.long().tolist()}) > 20


def test_spec_augment_repeats_by_seed_and_can_do_nothing() -> None:
    spec = torch.rand(8, 1, 40, 64, generator=seeded())
    assert torch.equal(SpecAugment()(spec, seeded(3)), SpecAugment()(spec, seeded(3)))
    assert torch.equal(SpecAugment()(spec[:1], seeded(3)), SpecAugment()(spec, seeded(3))[:1])
    assert torch.equal(SpecAugment(0, 0)(spec, seeded()), spec)
    assert torch.equal(SpecAugment(num_freq=0, num_time=0)(spec, seeded()), spec)


def test_volume_jitter_is_one_factor_per_row_in_the_range() -> None:
    wave = torch.rand(500, 64, generator=seeded()) + 0.5
    factors = VolumeJitter()(wave, seeded(1)) / wave
    assert torch.allclose(factors, factors[:, :1].expand_as(factors), atol=1e-6)
    assert 0.9 <= factors.min() < 0.905 and 1.095 < factors.max() <= 1.1
    assert torch.equal(VolumeJitter()(wave, seeded(1)), VolumeJitter()(wave, seeded(1)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LogMelSpectrogram(n_fft=256), "window 480"),
        (lambda: LogMelSpectrogram(std=0.0), "std=0.0"),
        (lambda: LogMelSpectrogram()(torch.zeros(100)), r"\(100,\)"),
        (lambda: LogMelSpectrogram()(torch.zeros(1, 100, dtype=torch.int16)), "int16"),
        (lambda: LogMelSpectrogram().num_samples(0), "got 0"),
        (lambda: SpecAugment(max_time=-1), "max_time=-1"),
        (lambda: SpecAugment(max_time=20)(torch.zeros(1, 1, 40, 10), seeded()), "20 frames do not fit into 40x10"),
        (lambda: SpecAugment()(torch.zeros(1, 40, 10), seeded()), r"\(1, 40, 10\)"),
        (lambda: VolumeJitter(1.1, 0.9), "low=1.1"),
    ],
)
def test_wrong_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
