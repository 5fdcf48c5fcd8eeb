"""What probing reports, on files whose facts are known, and on real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_media import encode, numbered, numbers, promise_duration, tone

from avssl_core.media import MediaReader, NoAudioError, probe, read_all, read_clip, write_clip


def test_every_field(tmp_path: Path) -> None:
    path = encode(
        tmp_path / "clip.mp4",
        numbered(60, height=62, width=90),
        tone(2.0, rate=44_100, channels=2),
        fps=30,
        codec="libx264",
        rate=44_100,
        layout="stereo",
    )
    info = probe(path)
    assert info.video is not None and info.audio is not None
    assert (info.video.width, info.video.height, info.video.fps) == (90, 62, 30.0)
    assert (info.video.codec, info.video.pix_fmt, info.video.rotation) == ("h264", "yuv420p", 0)
    assert (info.audio.sample_rate, info.audio.channels, info.audio.codec) == (44_100, 2, "aac")
    assert info.video.duration_s == pytest.approx(2.0) and info.audio.duration_s == pytest.approx(2.0, abs=0.01)
    assert info.duration_s == pytest.approx(2.0, abs=0.01) and info.start_s == 0.0 and info.container == "mov"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi", ".mpg"])
@pytest.mark.parametrize("verify", [False, True])
def test_durations_in_every_container(tmp_path: Path, suffix: str, verify: bool) -> None:
    kinds = {
        ".webm": {"codec": "libvpx", "audio_codec": "libopus", "rate": 48_000},
        ".avi": {"audio_codec": "pcm_s16le"},
        ".mpg": {"codec": "mpeg1video", "audio_codec": "mp2", "rate": 44_100},
    }
    asked = {"rate": 16_000} | kinds.get(suffix, {})
    path = encode(tmp_path / f"clip{suffix}", numbered(75), tone(3.0, rate=asked["rate"]), **asked)
    info = probe(path, verify=verify)
    assert info.duration_s == pytest.approx(
        3.0, abs=0.07
    )  # .mpg: an MP2 decoder's delay, and no time for the last frame
    clip = read_clip(path, info.duration_s - 1.0, num_frames=25, fps=25, sample_rate=16_000)
    assert numbers(clip.frames)[-1] in (72, 73, 74)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("verify", [False, True])
def test_a_header_that_promises_two_hours(tmp_path: Path, suffix: str, verify: bool) -> None:
    path = encode(tmp_path / f"liar{suffix}", numbered(75), tone(3.0, rate=16_000))
    before, honest = path.read_bytes(), probe(path)
    promise_duration(path, 7200)
    assert path.read_bytes() != before
    info = probe(path, verify=verify)
    assert info.duration_s == pytest.approx(honest.duration_s, abs=0.05)
    if suffix == ".mkv":  # libav itself corrects an MP4's headers by its sample table
        assert info.header_s == 7200


def test_sound_alone(tmp_path: Path) -> None:
    path = encode(tmp_path / "sound.wav", sound=tone(1.5, rate=8_000), rate=8_000, audio_codec="pcm_s16le")
    info = probe(path)
    assert info.video is None and info.audio is not None and info.duration_s == pytest.approx(1.5)


def test_a_cover_picture_is_not_a_video(tmp_path: Path) -> None:
    import av

    path = tmp_path / "song.mp3"
    cover = encode(tmp_path / "cover.mkv", numbered(1), codec="mjpeg", pix_fmt="yuvj420p")
    with av.open(str(path), "w") as out, av.open(str(cover)) as source:
        audio = out.add_stream("libmp3lame", rate=16_000, layout="mono")
        picture = out.add_stream_from_template(source.streams.video[0])
        picture.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(
            (tone(1, rate=16_000) * 32767).astype(np.int16), format="s16p", layout="mono"
        )
        frame.sample_rate, frame.pts = 16_000, 0
        for part in av.AudioResampler(format=audio.codec_context.format, layout="mono", rate=16_000).resample(frame):
            out.mux(audio.encode(part))
        packet = next(packet for packet in source.demux(video=0) if packet.size)
        packet.stream = picture
        out.mux(packet)
        out.mux(audio.encode(None))
    info = probe(path)
    assert info.video is None and info.audio is not None


def real_clips(root: Path) -> list[Path]:
    folders = ("av_events", "open_clips", "ucf101_mpeg4", "long_form")
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*.*"))]
    few = [path for folder in ("grid_lips", "grid_speech") for path in sorted((root / folder).glob("s1_*"))[::250]]
    return [path for path in [*paths, *few] if path.suffix in (".mp4", ".webm", ".avi", ".mpg", ".mkv")]


def test_every_real_clip_reads(real_data: Path) -> None:
    paths = real_clips(real_data)
    assert len(paths) > 90
    generator = np.random.default_rng(0)
    for path in paths:
        with MediaReader(path) as reader:
            info = reader.info
            assert info.video is not None and info.duration_s > 2.5, path
            latest = info.duration_s - 1.0
            for start in (generator.choice([info.start_s, generator.uniform(info.start_s, latest)]), latest):
                window = reader.frames(start, num_frames=8, fps=8, size=64)
                assert window.frames.shape[:2] == (8, 3) and min(window.frames.shape[2:]) == 64, path
                misses = (window.pts_s - start - torch.arange(8) / 8).abs()
                assert misses.max() <= 0.75 / info.video.fps + 1e-3, path
                if info.audio is None:
                    with pytest.raises(NoAudioError):
                        reader.samples(start, num_samples=24_000, sample_rate=24_000)
                else:
                    assert reader.samples(start, num_samples=24_000, sample_rate=24_000).isfinite().all()


def test_a_real_clip_without_a_sound_track(real_data: Path) -> None:
    path = next((real_data / "ucf101_mpeg4").glob("v_BenchPress*"))
    assert probe(path).audio is None
    with pytest.raises(NoAudioError, match="BenchPress"):
        read_clip(path, 0.0, num_frames=4, fps=4, sample_rate=16_000)


@pytest.mark.parametrize(
    "name",
    [
        "ucf101_mpeg4/v_ApplyEyeMakeup_g01_c01.avi",  # packed B pictures, no presentation times
        "ucf101_mpeg4/v_Diving_g01_c01.avi",
        "grid_speech/s1_bbaf2n.mpg",
        "open_clips/chaplin.mp4",
        "open_clips/mdn_elf.webm",
        "av_events/baby/avsync15_baby_crying.mp4",
        "av_events/other/decord_flipping_a_pancake.mkv",
    ],
)
def test_real_windows_equal_a_sequential_read(real_data: Path, name: str) -> None:
    path = real_data / name
    info = probe(path)
    assert info.video is not None
    whole = read_all(path, fps=info.video.fps, size=64, sample_rate=16_000 if info.audio else None)
    with MediaReader(path) as reader:
        for first in (0, 13, 31):
            start = first / info.video.fps
            window = reader.frames(start, num_frames=20, fps=info.video.fps, size=64)
            assert torch.equal(window.pts_s, whole.pts_s[first : first + 20])
            assert torch.equal(window.frames, whole.frames[first : first + 20])
            if whole.waveform is not None and round(start * 16_000) + 16_000 < len(whole.waveform):
                wave = reader.samples(round(start * 16_000) / 16_000, num_samples=16_000, sample_rate=16_000)
                assert abs(lag(wave, whole.waveform[round(start * 16_000) :][:16_000])) <= 16  # Matroska counts in ms


def lag(a: torch.Tensor, b: torch.Tensor) -> int:
    """Samples by which ``a`` comes after ``b``, by circular cross-correlation."""
    match = torch.fft.irfft(torch.fft.rfft(a) * torch.fft.rfft(b).conj(), n=len(a))
    at = int(match.argmax())
    return at if at < len(a) // 2 else at - len(a)


def test_real_pictures_equal_libavs_own_decoding(real_data: Path) -> None:
    import av

    path = real_data / "grid_lips" / "s1_bbaf2n.mp4"
    with av.open(str(path)) as container:
        reference = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    window = read_clip(path, 1.0, num_frames=25, fps=25)
    expected = torch.from_numpy(np.stack(reference[25:50])).permute(0, 3, 1, 2)
    assert (window.frames.int() - expected.int()).abs().float().mean() < 3  # other chroma interpolation and rounding


def test_write_then_probe_costs_one_picture(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", numbered(200), tone(8, rate=16_000)[0])
    with MediaReader(tmp_path / "clip.mp4") as reader:
        assert reader.info.duration_s == pytest.approx(8.0, abs=0.01)
        assert reader._pictures is not None and reader._pictures.stats.packets <= 2
