"""Windows of pictures: which frame, at what time, at what cost."""

from __future__ import annotations

import tarfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helpers_media import encode, number_of, numbered, numbers, tone

from avssl_core.media import (
    DecodeError,
    MediaReader,
    NoAudioError,
    NoVideoError,
    TarMember,
    WindowError,
    probe,
    read_all,
    read_clip,
    write_clip,
)

CODECS = {
    "mpeg4": {"codec": "mpeg4"},
    "mpeg4 with B pictures": {"codec": "mpeg4", "b_frames": 2},
    "h264": {"codec": "libx264", "gop": 250, "b_frames": 3, "options": {"crf": "18", "preset": "medium"}},
    "h264, open groups": {"codec": "libx264", "gop": 20, "b_frames": 3, "options": {"x264-params": "open-gop=1"}},
    "hevc": {"codec": "libx265", "gop": 24, "options": {"preset": "ultrafast", "x265-params": "log-level=none"}},
}


@pytest.fixture(scope="module", params=list(CODECS))
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds, 25 frames a second, frame ``n`` showing the number ``n``."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    return encode(path, numbered(100), tone(4.0, rate=16_000), **CODECS[request.param])


def nearest(start: float, count: int, fps: float, rate: float = 25.0) -> list[int]:
    return [int(np.floor((start + k / fps) * rate + 0.5 - 1e-9)) for k in range(count)]


def test_every_window_shows_the_nearest_frames(clip: Path) -> None:
    generator = np.random.default_rng(0)
    with MediaReader(clip) as reader:
        for _ in range(12):
            start, fps = generator.uniform(0, 2.9), generator.choice([5.0, 16.0, 25.0, 40.0])
            count = int(fps)
            window = reader.frames(start, num_frames=count, fps=fps)
            assert numbers(window.frames) == nearest(start, count, fps), (start, fps)
            torch.testing.assert_close(window.pts_s, torch.tensor(nearest(start, count, fps)) / 25.0, check_dtype=False)


def test_seeking_changes_no_pixel(clip: Path) -> None:
    every = read_all(clip, fps=25, size=None, sample_rate=None).frames
    assert numbers(every) == list(range(100))
    with MediaReader(clip) as reader:
        for start in (60, 7, 93, 0, 31):
            window = reader.frames(start / 25, num_frames=5, fps=25).frames
            assert torch.equal(window, every[start : start + 5]), f"frames from {start} differ from a sequential read"


def test_a_window_costs_a_group_of_pictures_not_the_file(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    write_clip(path, np.concatenate([numbered(250)] * 8), tone(80, rate=16_000)[0])
    with MediaReader(path) as reader:
        window = reader.frames(70.0, num_frames=25, fps=25)
        reader.samples(70.0, num_samples=16_000, sample_rate=16_000)
        assert numbers(window.frames) == [1750 % 250 + k for k in range(25)]
        assert reader._pictures is not None and reader._sound is not None
        assert reader._pictures.stats.frames <= 25 + 12 and reader._pictures.stats.packets <= 25 + 12 + 2
        assert reader._sound.stats.packets <= 25  # 1.2 s in blocks of 64 ms


def test_pictures_that_nothing_refers_to_are_skipped(tmp_path: Path) -> None:
    path = encode(tmp_path / "b.mp4", numbered(100), **CODECS["h264"])
    with MediaReader(path) as reader:
        window = reader.frames(3.0, num_frames=1, fps=1)
        assert numbers(window.frames) == [75]
        assert reader._pictures is not None
        assert reader._pictures.stats.frames < 60, "B pictures before the window were decoded"


def test_variable_frame_rate_uses_real_times(tmp_path: Path) -> None:
    times = np.cumsum([0, *np.random.default_rng(1).integers(20, 90, size=59)]).tolist()
    path = encode(tmp_path / "vfr.mp4", numbered(60), times_ms=times, codec="libx264", b_frames=2)
    stamps = np.asarray(times) / 1000
    with MediaReader(path) as reader:
        for start in (0.0, 0.333, 1.02, 1.9):
            window = reader.frames(start, num_frames=20, fps=25)
            asked = start + np.arange(20) / 25
            expected = [int(np.abs(stamps - at).argmin()) for at in asked]
            assert numbers(window.frames) == expected
            np.testing.assert_allclose(window.pts_s.numpy(), stamps[expected], atol=1e-3)
    assert probe(path).duration_s == pytest.approx(stamps[-1], abs=0.1)


@pytest.mark.parametrize("start", [2.04, 5.0, -0.03, -3.0])
def test_outside_the_file_is_an_error(tmp_path: Path, start: float) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path, numbered(75), tone(3, rate=16_000)[0])
    with pytest.raises(WindowError, match=r"clip\.mp4.*ask for less"):
        read_clip(path, start, num_frames=25, fps=25)
    with pytest.raises(WindowError, match=r"clip\.mp4.*ask for less"):
        MediaReader(path).samples(start, num_samples=16_000, sample_rate=16_000)


def test_half_a_frame_outside_is_inside(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path, numbered(75), tone(3, rate=16_000)[0])
    assert numbers(read_clip(path, 2.015, num_frames=25, fps=25).frames) == list(range(50, 75))
    assert numbers(read_clip(path, -0.015, num_frames=2, fps=25).frames) == [0, 1]


def test_more_frames_than_there_are_repeat_to_the_very_end(tmp_path: Path) -> None:
    path = tmp_path / "slow.mp4"
    write_clip(path, numbered(10), fps=10)
    window = read_clip(path, 0.0, num_frames=30, fps=30)
    assert numbers(window.frames)[-3:] == [9, 9, 9] and len(set(numbers(window.frames))) == 10
    with pytest.raises(WindowError):
        read_clip(path, 0.0, num_frames=32, fps=30)


@pytest.mark.parametrize(
    ("size", "expected"), [(None, (64, 96)), (32, (32, 48)), ((40, 30), (40, 30)), (128, (128, 192)), (33, (33, 50))]
)
def test_sizes(tmp_path: Path, size: int | tuple[int, int] | None, expected: tuple[int, int]) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path, numbered(25))
    window = MediaReader(path).frames(0.2, num_frames=4, fps=25, size=size)
    assert window.frames.shape == (4, 3, *expected) and window.frames.dtype == torch.uint8
    assert numbers(window.frames) == [5, 6, 7, 8]


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("flip", [False, True])
def test_display_matrix_is_applied(tmp_path: Path, turn: int, flip: bool) -> None:
    upright = numbered(30)
    coded = np.rot90(upright, turn // 90, axes=(1, 2))  # turned counter-clockwise in the file …
    coded = np.ascontiguousarray(coded[:, :, ::-1] if flip and turn in (0, 180) else coded)
    matrix = {"degrees": -turn, "hflip": flip and turn in (0, 180)}  # … and clockwise by the matrix
    path = encode(tmp_path / "turned.mp4", coded, turn=matrix, codec="libx264", options={"crf": "10"})
    window = MediaReader(path).frames(0.4, num_frames=5, fps=25, size=(32, 48))
    assert numbers(window.frames) == [10, 11, 12, 13, 14]
    info = probe(path).video
    assert info is not None and (info.width, info.height) == (96, 64)
    if not flip:
        assert info.rotation == turn


@pytest.mark.parametrize(("height", "width"), [(63, 95), (2, 2), (17, 360), (145, 3)])
def test_odd_sizes_keep_every_column(tmp_path: Path, height: int, width: int) -> None:
    grey = np.full((5, height, width, 3), 200, np.uint8)
    path = encode(tmp_path / "odd.mkv", grey, codec="ffv1", pix_fmt="yuv444p")
    frames = read_clip(path, 0.0, num_frames=5, fps=25).frames
    assert frames.shape == (5, 3, height, width)
    assert (frames.int() - 200).abs().max() <= 2, "part of the picture was not converted"


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv444p", "yuv422p"])
def test_other_pixel_formats(tmp_path: Path, pix_fmt: str) -> None:
    path = encode(tmp_path / "deep.mp4", numbered(30), codec="libx264", pix_fmt=pix_fmt, b_frames=2)
    assert numbers(read_clip(path, 0.5, num_frames=5, fps=25).frames) == [12, 13, 14, 15, 16]
    info = probe(path).video
    assert info is not None and info.pix_fmt == pix_fmt


def test_colours_are_right_at_every_scale(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (250, 200, 30)]
    pictures = np.stack([np.broadcast_to(np.uint8(colour), (64, 96, 3)) for colour in colours])
    path = tmp_path / "colours.mp4"
    write_clip(path, pictures, quantiser=1)
    for size in (None, 32, 100):
        frames = read_clip(path, 0.0, num_frames=5, fps=25, size=size).frames.float().mean(dim=(2, 3))
        assert (frames - torch.tensor(colours).float()).abs().max() < 6


def test_shrinking_does_not_alias(tmp_path: Path) -> None:
    stripes = np.zeros((3, 128, 128, 3), np.uint8)
    stripes[:, :, ::2] = 255
    path = encode(tmp_path / "stripes.mkv", stripes, codec="ffv1", pix_fmt="yuv444p")
    frames = read_clip(path, 0.0, num_frames=1, fps=25, size=32).frames.float()
    assert frames.std() < 8 and abs(frames.mean() - 127) < 8


def test_bytes_and_tar_members_read_like_files(tmp_path: Path) -> None:
    path, tar = tmp_path / "clip.mp4", tmp_path / "shard.tar"
    write_clip(path, numbered(50), tone(2, rate=16_000)[0])
    with tarfile.open(tar, "w") as shard:
        shard.add(__file__, "noise.py")
        shard.add(path, "clip.mp4")
        shard.add(__file__, "more.py")
    with tarfile.open(tar) as shard:
        member = shard.getmember("clip.mp4")
        source = TarMember(str(tar), member.offset_data, member.size)
    asked = {"num_frames": 8, "fps": 8, "sample_rate": 16_000}
    expected = read_clip(path, 0.7, **asked)
    for other in (source, path.read_bytes(), str(path)):
        clip = read_clip(other, 0.7, **asked)
        assert torch.equal(clip.frames, expected.frames) and torch.equal(clip.waveform, expected.waveform)
        assert probe(other) == probe(path)


def test_a_reader_serves_windows_in_any_order_and_mixed(clip: Path) -> None:
    asked = [("v", 3.0), ("a", 0.0), ("v", 0.0), ("v", 2.0), ("a", 2.9), ("a", 1.0), ("v", 2.0)]
    with MediaReader(clip) as reader:
        for kind, start in asked:
            if kind == "v":
                assert number_of(reader.frames(start, num_frames=1, fps=1).frames[0]) == round(start * 25)
            else:
                assert reader.samples(start, num_samples=8_000, sample_rate=16_000).std() > 0.2


def test_decoder_threads_change_nothing(clip: Path) -> None:
    with MediaReader(clip) as one, MediaReader(clip, threads=2) as two:
        for start in (0.1, 2.2):
            asked = {"num_frames": 10, "fps": 12}
            assert torch.equal(one.frames(start, **asked).frames, two.frames(start, **asked).frames)


def test_whole_files_at_other_rates(clip: Path) -> None:
    slow = read_all(clip, fps=10, size=32, sample_rate=8_000)
    assert numbers(slow.frames) == nearest(0.0, 40, 10)
    assert slow.waveform is not None and abs(len(slow.waveform) - 32_000) <= 8
    fast = read_all(clip, fps=50, size=32, sample_rate=None, max_s=1.0)
    assert len(fast.frames) == 50 and fast.waveform is None
    assert numbers(fast.frames) == nearest(0.0, 50, 50)


def test_whole_file_and_window_agree(clip: Path) -> None:
    whole = read_all(clip, fps=25, size=48, sample_rate=24_000)
    window = read_clip(clip, 2.0, num_frames=25, fps=25, size=48, sample_rate=24_000)
    assert torch.equal(whole.frames[50:75], window.frames)
    assert whole.waveform is not None and window.waveform is not None
    torch.testing.assert_close(whole.waveform[48_000:72_000], window.waveform, atol=2e-3, rtol=0)


def test_missing_tracks_are_named(tmp_path: Path) -> None:
    mute, blind = tmp_path / "mute.mp4", tmp_path / "blind.mp4"
    write_clip(mute, numbered(25))
    encode(blind, sound=tone(1.0, rate=16_000))
    with pytest.raises(NoAudioError, match=r"mute\.mp4"):
        MediaReader(mute).samples(0, num_samples=10, sample_rate=10)
    with pytest.raises(NoAudioError, match=r"mute\.mp4"):
        read_all(mute, fps=25, size=None, sample_rate=16_000)
    with pytest.raises(NoVideoError, match=r"blind\.mp4"):
        MediaReader(blind).frames(0, num_frames=1, fps=1)
    assert read_all(blind, fps=None, size=None, sample_rate=16_000).waveform is not None


@pytest.mark.parametrize("wrong", [{"num_frames": 0}, {"fps": 0}, {"start_s": float("nan")}])
def test_arguments_out_of_range(tmp_path: Path, wrong: dict[str, float]) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path, numbered(5))
    asked = {"start_s": 0.0, "num_frames": 1, "fps": 25} | wrong
    with pytest.raises(ValueError, match="expected"):
        read_clip(path, asked.pop("start_s"), **asked)


def test_a_change_of_picture_size_needs_a_size(tmp_path: Path) -> None:
    path = tmp_path / "changing.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        for index, (height, width) in enumerate([(64, 96)] * 5 + [(96, 144)] * 5):
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = (
                width,
                height,
                "yuvj420p",
                Fraction(1, 25),
            )
            picture = numbered(1, first=index, height=height, width=width)[0]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj420p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            for packet in [*encoder.encode(frame), *encoder.encode(None)]:
                packet.stream = stream
                out.mux(packet)
    assert numbers(read_all(path, fps=25, size=32, sample_rate=None).frames) == list(range(10))
    assert read_clip(path, 0.0, num_frames=5, fps=25).frames.shape == (5, 3, 64, 96)
    with pytest.raises(DecodeError, match="pass a size"):
        read_clip(path, 0.0, num_frames=10, fps=25)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_that_begins_long_before_the_pictures_is_no_truncation(tmp_path: Path, suffix: str) -> None:
    """The header counts from the first sample: 1.2 + 2 seconds here, of which the pictures fill the last two."""
    times = [1200 + 40 * k for k in range(50)]
    path = encode(tmp_path / f"late{suffix}", numbered(50), tone(1.5, rate=16_000), times_ms=times)
    info = probe(path)
    assert info.video is not None and abs(info.video.duration_s - 2.0) < 0.1
    assert abs(info.header_s - 2.0) < 0.1, info
    assert numbers(read_all(path, fps=25, size=None, sample_rate=None).frames) == list(range(50))
