"""Writing clips: what comes back, whether it is the same each time, and how long it takes."""

from __future__ import annotations

import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from helpers_media import numbered, numbers, tone

from avssl_core.media import probe, read_all, write_clip
from avssl_core.media.mpeg4 import find_layer, parse_pictures


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(255.0**2 / ((a.float() - b.float()) ** 2).mean()))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    frames = torch.from_numpy(numbered(75, height=96, width=96)).permute(0, 3, 1, 2)
    sound = torch.from_numpy(tone(3.0, rate=16_000)[0])
    path = tmp_path / "clip.mp4"
    write_clip(path, frames, sound)
    clip = read_all(path, fps=25, size=None, sample_rate=16_000)
    assert clip.frames.shape == frames.shape and numbers(clip.frames) == list(range(75))
    assert psnr(clip.frames, frames) > 26, "chroma is stored at half size; anything below this is more than that"
    assert clip.waveform is not None and abs(len(clip.waveform) - 48_000) <= 16
    noise = clip.waveform[:48_000] - sound[: len(clip.waveform)]
    assert 10 * torch.log10(sound.var() / noise.var()) > 20
    info = probe(path)
    assert info.duration_s == pytest.approx(3.0, abs=0.005)
    assert info.video is not None and (info.video.codec, info.video.fps) == ("mpeg4", 25.0)
    assert info.audio is not None and (info.audio.codec, info.audio.sample_rate) == ("aac", 16_000)


def test_tensor_and_array_give_the_same_file(tmp_path: Path) -> None:
    frames = numbered(12)
    write_clip(tmp_path / "a.mp4", frames)
    write_clip(tmp_path / "b.mp4", torch.from_numpy(frames).permute(0, 3, 1, 2))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, codec: str) -> None:
    for name in ("first.mp4", "second, elsewhere.mp4"):
        write_clip(tmp_path / name, numbered(50), tone(2.0, rate=16_000)[0], video_codec=codec, b_frames=2)
        if name == "first.mp4":
            time.sleep(1.1)  # a file date of whole seconds would show
    first, second = (tmp_path / name for name in ("first.mp4", "second, elsewhere.mp4"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("gop", [1, 6, 12, 100])
@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_key_pictures_stand_where_the_gop_says(tmp_path: Path, codec: str, gop: int) -> None:
    path = tmp_path / "clip.mp4"
    cut = np.concatenate([numbered(20), 255 - numbered(20)])  # a scene cut must not add one
    write_clip(path, cut, video_codec=codec, gop=gop)
    with av.open(str(path)) as container:
        keys = [packet.pts * 25 * packet.time_base for packet in container.demux(video=0) if packet.is_keyframe]
    assert keys == list(range(0, 40, gop))


@pytest.mark.parametrize(("b_frames", "codec"), [(0, "mpeg4"), (2, "mpeg4"), (0, "libx264"), (3, "libx264")])
def test_b_pictures_are_written_where_asked(tmp_path: Path, b_frames: int, codec: str) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path, numbered(50), video_codec=codec, b_frames=b_frames, gop=24)
    with av.open(str(path)) as container:
        kinds = {av.video.frame.PictureType(frame.pict_type).name for frame in container.decode(video=0)}
    assert kinds == ({"I", "P", "B"} if b_frames else {"I", "P"})
    assert numbers(read_all(path, fps=25, size=None, sample_rate=None).frames) == list(range(50))


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_a_larger_quantiser_is_smaller_and_worse(tmp_path: Path, codec: str) -> None:
    frames = torch.from_numpy(numbered(25)).permute(0, 3, 1, 2)
    sizes, qualities = [], []
    for quantiser in (2, 8, 24):
        path = tmp_path / f"{quantiser}.mp4"
        write_clip(path, frames, quantiser=quantiser, video_codec=codec)
        sizes.append(path.stat().st_size)
        qualities.append(psnr(read_all(path, fps=25, size=None, sample_rate=None).frames, frames))
    assert sizes == sorted(sizes, reverse=True) and qualities == sorted(qualities, reverse=True)


def test_lossless_and_other_containers(tmp_path: Path) -> None:
    frames = torch.from_numpy(numbered(10)).permute(0, 3, 1, 2)
    write_clip(tmp_path / "clip.mkv", frames, tone(0.4, rate=16_000)[0], video_codec="ffv1", audio_codec="pcm_s16le")
    clip = read_all(tmp_path / "clip.mkv", fps=25, size=None, sample_rate=16_000)
    assert numbers(clip.frames) == list(range(10))
    np.testing.assert_allclose(clip.waveform, tone(0.4, rate=16_000)[0], atol=1e-4)


@pytest.mark.parametrize("fps", [10, 29.97, 30])
def test_frame_rates(tmp_path: Path, fps: float) -> None:
    write_clip(tmp_path / "clip.mp4", numbered(30), fps=fps)
    clip = read_all(tmp_path / "clip.mp4", fps=fps, size=None, sample_rate=None)
    assert numbers(clip.frames) == list(range(30))
    np.testing.assert_allclose(clip.pts_s, np.arange(30) / fps, atol=1e-3)


def test_one_frame_one_sample_and_odd_sizes(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", numbered(1, height=33, width=51), np.zeros(1, np.float32))
    clip = read_all(tmp_path / "clip.mp4", fps=25, size=None, sample_rate=None)
    assert clip.frames.shape == (1, 3, 33, 51)


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": np.zeros((5, 3, 8, 8), np.uint8)},
        {"frames": torch.zeros(5, 8, 8, 3, dtype=torch.uint8)},
        {"frames": torch.zeros(5, 3, 8, 8)},
        {"frames": np.zeros((0, 8, 8, 3), np.uint8)},
        {"waveform": np.zeros((2, 100), np.float32)},
        {"waveform": np.full(100, np.nan, np.float32)},
        {"fps": 0},
        {"sample_rate": 0},
    ],
)
def test_wrong_input_is_refused_and_leaves_nothing(tmp_path: Path, wrong: dict) -> None:
    asked = {"frames": numbered(5), "waveform": np.zeros(3200, np.float32)} | wrong
    with pytest.raises(ValueError, match="expected"):
        write_clip(tmp_path / "clip.mp4", asked.pop("frames"), asked.pop("waveform"), **asked)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path, numbered(10))
    before = path.read_bytes()
    with pytest.raises(Exception, match="no_such_codec"):
        write_clip(path, numbered(10), video_codec="no_such_codec")
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_written_file_is_readable_by_others(tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("")
    write_clip(tmp_path / "clip.mp4", numbered(2))
    assert (tmp_path / "clip.mp4").stat().st_mode == plain.stat().st_mode


def encode_plainly(path: Path, frames: np.ndarray, sound: np.ndarray) -> None:
    """The shortest PyAV loop that stores the same pictures and sound: no checks, no atomic rename, no fixed bytes."""
    with av.open(str(path), "w") as out:
        video, audio = out.add_stream("mpeg4", rate=25), out.add_stream("aac", rate=16_000, layout="mono")
        video.width, video.height, video.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        audio.codec_context.options = {"aac_coder": "fast"}
        for picture in frames:
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        block = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        block.sample_rate = 16_000
        for part in av.AudioResampler(format="fltp", layout="mono", rate=16_000, frame_size=1024).resample(block):
            out.mux(audio.encode(part))
        out.mux([*video.encode(None), *audio.encode(None)])


def test_writing_costs_hardly_more_than_a_plain_encoding_loop(tmp_path: Path) -> None:
    """A ratio, both interleaved: seconds would judge the machine, and `benchmarks/playground_speed.py` has them."""
    frames, sound = numbered(75, height=96, width=96), tone(3.0, rate=16_000)[0]
    taken: dict[str, list[float]] = {"ours": [], "plain": []}
    for index in range(9):
        for name, write in (("ours", write_clip), ("plain", encode_plainly)):
            start = time.process_time()
            write(tmp_path / f"{name}{index}.mp4", frames, sound)
            taken[name].append(time.process_time() - start)
    assert min(taken["ours"]) < 1.5 * min(taken["plain"])  # about 1.0; with the default AAC coder 2.0


@pytest.mark.parametrize("quantiser", [1, 2, 3, 8, 31])
def test_every_picture_has_the_quantiser_that_was_asked_for(tmp_path: Path, quantiser: int) -> None:
    """Read from the pictures' own headers: an option that libav ignores would show nowhere else."""
    noisy = torch.randint(0, 256, (14, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_clip(tmp_path / "a.mp4", noisy, fps=25, quantiser=quantiser)
    with av.open(str(tmp_path / "a.mp4")) as container:
        header = container.streams.video[0].codec_context.extradata
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    layer = find_layer(header, packets[0])
    assert layer is not None
    assert {parse_pictures(packet, layer)[0].quantiser for packet in packets} == {quantiser}
