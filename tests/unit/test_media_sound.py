"""Samples: their times, their spectrum, their mix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_media import encode, numbered, tone

from avssl_core.media import MediaReader, WindowError, read_all, read_clip, write_clip

HALF_FRAME_S = 0.5 / 25
EVENTS_S = (0.52, 1.24, 2.0, 3.36, 4.12, 5.48)


def flashes_and_clicks(seconds: float = 6.0, rate: int = 16_000) -> tuple[np.ndarray, np.ndarray]:
    """White frames, and two-millisecond clicks that begin with them."""
    frames = np.full((round(seconds * 25), 48, 64, 3), 20, np.uint8)
    sound = np.zeros(round(seconds * rate), np.float32)
    for event in EVENTS_S:
        frames[round(event * 25)] = 255
        sound[round(event * rate) : round(event * rate) + rate // 500] = 0.9
    return frames, sound


def measured(frames: torch.Tensor, pts_s: torch.Tensor) -> list[float]:
    bright = frames.float().mean(dim=(1, 2, 3)) > 128
    return pts_s[bright].tolist()


def clicks(waveform: torch.Tensor, rate: int, start_s: float) -> list[float]:
    """Onsets: loud samples with 100 ms of quiet before them."""
    loud = (waveform.abs() > 0.3).nonzero().flatten().tolist()
    return [at / rate + start_s for k, at in enumerate(loud) if k == 0 or at - loud[k - 1] > rate / 10]


@pytest.mark.parametrize(
    ("suffix", "codecs"),
    [
        (".mp4", {}),
        (".mp4", {"video_codec": "libx264", "gop": 250, "b_frames": 3}),
        (".mkv", {}),
        (".webm", {"video_codec": "libvpx", "audio_codec": "libopus"}),
        (".avi", {"audio_codec": "pcm_s16le"}),
        (".mp4", {"audio_codec": "libmp3lame"}),
    ],
)
@pytest.mark.parametrize("rate", [16_000, 24_000, 22_050])
def test_flash_and_click_coincide_in_every_window(tmp_path: Path, suffix: str, codecs: dict, rate: int) -> None:
    frames, sound = flashes_and_clicks()
    path = tmp_path / f"sync{suffix}"
    write_clip(path, frames, sound, **codecs)
    generator = np.random.default_rng(0)
    seen = 0
    with MediaReader(path) as reader:
        for start in [0.0, 0.52, *generator.uniform(0, 3.8, size=8)]:
            window = reader.frames(start, num_frames=50, fps=25)
            waveform = reader.samples(start, num_samples=2 * rate, sample_rate=rate)
            heard = clicks(waveform, rate, start)
            for event in EVENTS_S:
                if start + 0.06 < event < start + 1.9:
                    sight = min(measured(window.frames, window.pts_s), key=lambda at: abs(at - event))
                    hearing = min(heard, key=lambda at: abs(at - event))
                    assert abs(sight - event) < 1e-6, f"flash at {event} seen at {sight} (window from {start})"
                    assert abs(hearing - sight) < HALF_FRAME_S, (
                        f"click {hearing - sight:+.4f} s from its flash ({start})"
                    )
                    # The codec smears a click over its short blocks; the clock itself must be exact.
                    assert abs(hearing - event) < 0.004, f"click at {event} heard at {hearing} (window from {start})"
                    seen += 1
    assert seen > 15


def test_a_sine_stays_in_phase_across_windows(tmp_path: Path) -> None:
    """Every window of a 440 Hz tone is that tone at the window's own time, to 0.2 % of full scale."""
    path = encode(tmp_path / "tone.wav", sound=tone(5.0, rate=44_100, level=0.5), rate=44_100, audio_codec="pcm_s16le")
    with MediaReader(path) as reader:
        for start in (0.5, 1.234, 2.7183):
            for rate in (24_000, 16_000, 48_000, 44_100, 8_000):
                wave = reader.samples(start, num_samples=rate, sample_rate=rate).numpy()
                time = start + np.arange(rate) / rate
                error = np.abs(wave - 0.5 * np.sin(2 * np.pi * 440 * time)).max()
                # The one freedom left is the nearest sample where rates do not divide.
                assert error < 0.5 * 2 * np.pi * 440 * 0.51 / max(rate, 44_100) + 2e-3, (start, rate, error)


@pytest.mark.parametrize("rate", [24_000, 16_000])
def test_resampling_keeps_what_fits_and_removes_what_does_not(tmp_path: Path, rate: int) -> None:
    low, high = tone(2.0, rate=48_000, hertz=2_000, level=0.4), tone(2.0, rate=48_000, hertz=15_000, level=0.4)
    path = encode(tmp_path / "two.wav", sound=low + high, rate=48_000, audio_codec="pcm_s16le")
    with MediaReader(path) as reader:
        wave = reader.samples(0.5, num_samples=rate, sample_rate=rate).numpy()
    power = np.abs(np.fft.rfft(wave * np.hanning(rate))) ** 2
    assert np.argmax(power) == 2_000
    alias = abs(15_000 - rate)
    assert 10 * np.log10(power[alias - 3 : alias + 4].max() / power.max()) < -60


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize(("layout", "channels"), [("mono", 1), ("stereo", 2), ("5.1", 6)])
def test_rates_and_layouts(tmp_path: Path, rate: int, layout: str, channels: int) -> None:
    sound = tone(1.5, rate=rate, level=0.6, channels=channels)
    path = encode(tmp_path / "sound.mp4", numbered(38), sound, rate=rate, layout=layout)
    clip = read_clip(path, 0.25, num_frames=16, fps=16, sample_rate=24_000)
    assert clip.waveform is not None and clip.waveform.shape == (24_000,)
    spectrum = np.abs(np.fft.rfft(clip.waveform.numpy()))
    assert np.argmax(spectrum) == 440
    assert clip.waveform.std() == pytest.approx(0.6 / np.sqrt(2), abs=0.03)


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_u8", "pcm_f32le", "pcm_f64le", "flac"])
def test_sample_formats(tmp_path: Path, codec: str) -> None:
    path = encode(tmp_path / "sound.mkv", sound=tone(1.0, rate=16_000, channels=2), layout="stereo", audio_codec=codec)
    wave = MediaReader(path).samples(0.0, num_samples=16_000, sample_rate=16_000).numpy()
    assert np.abs(wave - tone(1.0, rate=16_000)[0]).max() < (0.02 if codec == "pcm_u8" else 1e-3)


def test_mono_is_the_mean_of_the_channels(tmp_path: Path) -> None:
    left, right = tone(1.0, rate=16_000, hertz=300), tone(1.0, rate=16_000, hertz=700)
    both = np.concatenate([left, right])
    path = encode(tmp_path / "two.wav", sound=both, layout="stereo", audio_codec="pcm_s16le")
    wave = MediaReader(path).samples(0.0, num_samples=16_000, sample_rate=16_000).numpy()
    np.testing.assert_allclose(wave, both.mean(axis=0), atol=1e-3)


def test_opposite_channels_cancel_and_loud_ones_do_not_clip(tmp_path: Path) -> None:
    loud = tone(1.0, rate=16_000, level=1.0, channels=2)
    path = encode(tmp_path / "loud.wav", sound=loud, layout="stereo", audio_codec="pcm_s16le")
    wave = MediaReader(path).samples(0.0, num_samples=24_000, sample_rate=24_000)
    assert wave.abs().max() <= 1.0 and (wave.abs() > 0.999).float().mean() < 0.05
    loud[1] *= -1
    path = encode(tmp_path / "opposite.wav", sound=loud, layout="stereo", audio_codec="pcm_s16le")
    assert MediaReader(path).samples(0.0, num_samples=16_000, sample_rate=16_000).abs().max() < 1e-3


@pytest.mark.parametrize("codec", ["aac", "libmp3lame", "libopus", "flac", "ac3"])
def test_a_window_equals_the_same_part_of_the_whole(tmp_path: Path, codec: str) -> None:
    # A sweep, not noise: AAC and AC-3 store noise as "noise", and their decoders draw it anew each time.
    seconds = np.arange(5 * 48_000) / 48_000
    sweep = 0.5 * np.sin(2 * np.pi * (200 * seconds + 400 * seconds**2))[None].astype(np.float32)
    path = encode(tmp_path / "sweep.mp4", sound=sweep, rate=48_000, audio_codec=codec)
    whole = read_all(path, fps=None, size=None, sample_rate=48_000).waveform
    assert whole is not None
    with MediaReader(path) as reader:
        for start in (0.0, 0.9, 2.5, 3.99):
            wave = reader.samples(start, num_samples=48_000, sample_rate=48_000)
            error = (wave - whole[round(start * 48_000) :][:48_000]).abs().max()
            assert error < 0.02, f"{codec}: {error:.3f} from {start} s; the decoder had no run-up"


def test_sound_that_begins_late_is_an_error_where_it_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "late.mkv"
    _write_late(path, delay_s=0.5)
    with MediaReader(path) as reader:
        assert reader.info.start_s == pytest.approx(0.5, abs=0.03)
        with pytest.raises(WindowError, match=r"begins at 0\.5"):
            reader.samples(0.0, num_samples=16_000, sample_rate=16_000)
        assert reader.samples(0.5, num_samples=16_000, sample_rate=16_000).std() > 0.2
    whole = read_all(path, fps=25, size=None, sample_rate=16_000).waveform
    assert whole is not None and whole[:7_500].abs().max() == 0 and whole[8_500:].std() > 0.2


def test_sound_that_ends_early_is_an_error_where_it_is_missing(tmp_path: Path) -> None:
    path = encode(tmp_path / "short.mp4", numbered(75), tone(2.0, rate=16_000))
    with MediaReader(path) as reader:
        assert reader.info.duration_s == pytest.approx(2.0, abs=0.03)
        assert reader.info.video is not None and reader.info.video.duration_s == pytest.approx(3.0)
        assert reader.samples(1.0, num_samples=16_000, sample_rate=16_000).std() > 0.2
        with pytest.raises(WindowError, match="ends at 2"):
            reader.samples(1.5, num_samples=16_000, sample_rate=16_000)


def test_a_gap_inside_the_sound_is_silence(tmp_path: Path) -> None:
    path = tmp_path / "gap.mkv"
    _write_late(path, delay_s=1.0, first_s=0.5)
    wave = MediaReader(path).samples(0.1, num_samples=32_000, sample_rate=16_000)  # sound, gap 0.5–1.0 s, sound
    assert wave[:6_000].std() > 0.2 and wave[14_600:].std() > 0.2
    assert wave[6_600:14_200].abs().max() < 1e-4


def _write_late(path: Path, *, delay_s: float, first_s: float = 0.0) -> None:
    """Pictures from 0 to 3 s; PCM until ``first_s``, and again from ``delay_s`` on."""
    from fractions import Fraction

    import av

    rate, sound = 16_000, tone(3.0, rate=16_000)
    with av.open(str(path), "w") as out:
        video, audio = out.add_stream("mpeg4", rate=25), out.add_stream("pcm_s16le", rate=rate, layout="mono")
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        for index, picture in enumerate(numbered(75)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        for first, last in ((0, round(first_s * rate)), (round(delay_s * rate), 3 * rate)):
            for at in range(first, last, 800):
                data = (sound[:, at : at + 800] * 32767).astype(np.int16)
                block = av.AudioFrame.from_ndarray(data, format="s16", layout="mono")
                block.sample_rate, block.pts, block.time_base = rate, at, Fraction(1, rate)
                out.mux(audio.encode(block))
        out.mux(audio.encode(None))
