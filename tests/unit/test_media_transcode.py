"""Transcoding: groups, quantisers, times, sound and colours of what was written, read back by the readers."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from helpers_media import encode, numbered, numbers, promise_duration, tone
from test_media_compressed import drifting
from test_media_sound import EVENTS_S, HALF_FRAME_S, clicks, flashes_and_clicks, measured

from avssl_core.media import (
    CompressedReader,
    DecodeError,
    MediaError,
    MediaReader,
    NoAudioError,
    NotMediaError,
    NoVideoError,
    probe,
    read_all,
    write_clip,
)
from avssl_core.media.survey import Tracks, encodable, quantisers, survey
from avssl_core.media.transcode import transcode


def whole(path: Path, *, fps: float = 25.0, rate: int | None = None) -> Any:
    return read_all(path, fps=fps, size=None, sample_rate=rate)


def moved(source: Path, path: Path, seconds: float) -> Path:
    """The same packets, with the sound's times moved."""
    with av.open(str(source)) as given, av.open(str(path), "w") as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in given.streams}
        for packet in given.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "audio":
                ticks = round(seconds / packet.time_base)
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
            packet.stream = streams[packet.stream.index]
            out.mux(packet)
    return path


# -- structure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gop", "quantiser"), [(12, 3), (5, 1), (12, 31)])
def test_groups_and_quantisers_are_what_was_asked_for(tmp_path: Path, gop: int, quantiser: int) -> None:
    """Scene cuts, B pictures and other groups of the source leave no trace."""
    pictures = drifting(40, cut=17)
    source = encode(tmp_path / "a.mkv", pictures, codec="libx264", b_frames=3, gop=9)
    made = transcode(source, tmp_path / "b.mp4", gop=gop, quantiser=quantiser)
    assert (made.pictures, made.rate, made.height, made.width, made.sound_s) == (40, 25, *pictures.shape[1:3], None)
    with CompressedReader(tmp_path / "b.mp4") as reader:
        structure = reader.structure
    full, rest = divmod(40, gop)
    assert [len(group) for group in structure.gops] == [gop] * full + [rest] * bool(rest)
    assert {kind for group in structure.gops for kind in group.kinds} == {"I", "P"}
    assert structure.coded_obstacle is None and structure.fps == 25
    assert quantisers(tmp_path / "b.mp4") == {quantiser}
    assert quantisers(source) == frozenset()


def test_every_picture_is_there_and_the_bytes_do_not_depend_on_the_run(tmp_path: Path) -> None:
    source = encode(tmp_path / "a.mkv", numbered(30), tone(1.2, rate=16_000), b_frames=2, audio_codec="libmp3lame")
    for name in ("b.mp4", "c.mp4"):
        transcode(source, tmp_path / name)
    assert numbers(whole(tmp_path / "b.mp4").frames) == list(range(30))
    assert (tmp_path / "b.mp4").read_bytes() == (tmp_path / "c.mp4").read_bytes()


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turned_pictures_are_written_upright(tmp_path: Path, degrees: int) -> None:
    coded = np.ascontiguousarray(np.rot90(numbered(14), degrees // 90, axes=(1, 2)))
    source = encode(tmp_path / "a.mp4", coded, turn={"degrees": -degrees}, codec="libx264", options={"crf": "10"})
    assert survey(source).turned
    made = transcode(source, tmp_path / "b.mp4", size=32)
    info = probe(tmp_path / "b.mp4").video
    assert (made.height, made.width) == (32, 48)
    assert info is not None and info.rotation == 0
    assert numbers(whole(tmp_path / "b.mp4").frames) == list(range(14))


@pytest.mark.parametrize(
    ("stored", "size", "expected"),
    [((35, 51), None, (35, 51)), ((35, 51), 33, (33, 48)), ((64, 48), 32, (43, 32)), ((40, 64), (30, 20), (30, 20))],
)
def test_sizes(tmp_path: Path, stored: tuple[int, int], size: Any, expected: tuple[int, int]) -> None:
    source = encode(tmp_path / "a.mkv", np.full((5, *stored, 3), 180, np.uint8), codec="ffv1", pix_fmt="yuv444p")
    transcode(source, tmp_path / "b.mp4", size=size)
    frames = whole(tmp_path / "b.mp4").frames
    assert frames.shape == (5, 3, *expected)
    assert (frames.int() - 180).abs().max() <= 4  # up to the last column


@pytest.mark.parametrize("fps", [None, 10, Fraction(30000, 1001), 50])
def test_a_variable_rate_becomes_constant_by_the_nearest_picture(tmp_path: Path, fps: Any) -> None:
    times = np.cumsum([0, *np.random.default_rng(1).integers(20, 70, size=39)])
    source = encode(tmp_path / "a.mp4", numbered(40), times_ms=times.tolist(), codec="libx264", b_frames=2)
    made = transcode(source, tmp_path / "b.mp4", fps=fps)
    mean = 39_000 / int(times[-1])
    assert float(made.rate) == pytest.approx(mean if fps is None else float(fps), rel=0.03 if fps is None else 1e-9)
    clip = whole(tmp_path / "b.mp4", fps=float(made.rate))
    shown = np.arange(made.pictures) / float(made.rate)
    np.testing.assert_allclose(clip.pts_s.numpy(), shown, atol=1e-3)
    stamps = times / 1000
    exact = [index for index, at in enumerate(shown) if len(set(np.abs(stamps - at).round(3))) == 40]  # no near ties
    expected = np.abs(stamps[:, None] - shown).argmin(axis=0)
    assert len(exact) > 3 and made.pictures == pytest.approx((stamps[-1] + 1 / mean) * float(made.rate), abs=1.1)
    found = numbers(clip.frames)
    assert [found[index] for index in exact] == expected[exact].tolist()


@pytest.mark.parametrize(
    ("pix_fmt", "colours"), [("yuv420p", {}), ("yuvj420p", {}), ("yuv420p", {"colorspace": "bt709"})]
)
def test_colours_are_those_that_the_reader_shows(tmp_path: Path, pix_fmt: str, colours: dict[str, str]) -> None:
    y, x = np.mgrid[:48, :64]
    picture = np.stack([60 + x * 2, 70 + y * 2, 190 - x], axis=-1).astype(np.uint8)  # far from the corners of the gamut
    source = encode(
        tmp_path / "a.mkv",
        np.repeat(picture[None], 4, 0),
        codec="libx264",
        pix_fmt=pix_fmt,
        options={"crf": "1"} | colours,
    )
    transcode(source, tmp_path / "b.mp4", quantiser=1)
    before, after = whole(source).frames.float(), whole(tmp_path / "b.mp4").frames.float()
    assert (before - after).abs().mean() < 1.5 and (before - after).mean((0, 2, 3)).abs().max() < 1.0


def test_a_change_of_size_within_a_film_needs_a_size(tmp_path: Path) -> None:
    """The second half is of another size, as in recordings off the air."""
    halves = []
    for height, width in ((48, 64), (32, 48)):
        path = encode(tmp_path / f"{height}.avi", np.full((12, height, width, 3), 90, np.uint8), codec="mjpeg",
                      pix_fmt="yuvj420p")  # fmt: skip
        with av.open(str(path)) as container:
            halves.append([bytes(packet) for packet in container.demux(video=0) if packet.size])
    source = tmp_path / "joined.mkv"
    with av.open(str(tmp_path / "48.avi")) as template, av.open(str(source), "w") as out:
        stream = out.add_stream_from_template(template.streams.video[0])
        for number, data in enumerate([*halves[0], *halves[1]]):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
            packet.is_keyframe = True
            out.mux(packet)
    with pytest.raises(DecodeError, match=r"changes from \(48, 64\) to \(32, 48\).*pass a size"):
        transcode(source, tmp_path / "b.mp4")
    assert transcode(source, tmp_path / "b.mp4", size=(24, 32)).pictures == 24
    assert (whole(tmp_path / "b.mp4").frames.int() - 90).abs().max() <= 3


# -- sound -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "codecs"),
    [
        (".mp4", {"video_codec": "libx264", "gop": 250, "b_frames": 3}),
        (".mkv", {}),
        (".avi", {"audio_codec": "libmp3lame"}),
        (".webm", {"video_codec": "libvpx", "audio_codec": "libopus"}),
    ],
)
def test_flash_and_click_stay_together(tmp_path: Path, suffix: str, codecs: dict[str, Any]) -> None:
    frames, sound = flashes_and_clicks()
    write_clip(tmp_path / f"a{suffix}", frames, sound, **codecs)
    transcode(tmp_path / f"a{suffix}", tmp_path / "b.mp4", size=24)
    before, after = (whole(tmp_path / name, rate=16_000) for name in (f"a{suffix}", "b.mp4"))
    flashes, heard = measured(after.frames, after.pts_s), clicks(after.waveform, 16_000, 0.0)
    assert flashes == pytest.approx(measured(before.frames, before.pts_s), abs=1e-3)  # AVI's muxer had moved them
    assert heard == pytest.approx(clicks(before.waveform, 16_000, 0.0), abs=0.004)
    assert heard == pytest.approx(flashes, abs=HALF_FRAME_S) and len(heard) == len(EVENTS_S)


@pytest.mark.parametrize("seconds", [0.4, -0.3])
def test_sound_that_begins_later_or_earlier_keeps_its_place(tmp_path: Path, seconds: float) -> None:
    write_clip(tmp_path / "a.mkv", *flashes_and_clicks())
    source = moved(tmp_path / "a.mkv", tmp_path / "moved.mkv", seconds)
    transcode(source, tmp_path / "b.mp4")
    clip = whole(tmp_path / "b.mp4", rate=16_000)
    flashes = [at for at in EVENTS_S if at + seconds < 5.98]
    assert clicks(clip.waveform, 16_000, 0.0) == pytest.approx([at + seconds for at in flashes], abs=HALF_FRAME_S)
    assert measured(clip.frames, clip.pts_s) == pytest.approx(EVENTS_S, abs=1e-3)


def test_resampled_pictures_and_sound_stay_together(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", *flashes_and_clicks())
    transcode(tmp_path / "a.mp4", tmp_path / "b.mp4", fps=50)
    clip = whole(tmp_path / "b.mp4", fps=50, rate=16_000)
    seen = measured(clip.frames, clip.pts_s)
    middles = [0.5 * (first + second) for first, second in zip(seen[::2], seen[1::2], strict=True)]
    assert middles == pytest.approx(EVENTS_S, abs=0.011)  # of the two that show each flash
    assert clicks(clip.waveform, 16_000, 0.0) == pytest.approx(EVENTS_S, abs=0.006)


@pytest.mark.parametrize(("rate", "written"), [(8000, 8000), (10_000, 11_025), (44_100, 44_100)])
def test_sound_becomes_mono_aac_at_its_own_rate(tmp_path: Path, rate: int, written: int) -> None:
    sound = tone(1.0, rate=rate, channels=2)
    source = encode(tmp_path / "a.mkv", numbered(25), sound, rate=rate, layout="stereo", audio_codec="pcm_s16le")
    transcode(source, tmp_path / "b.mp4")
    info = probe(tmp_path / "b.mp4").audio
    assert info is not None and (info.codec, info.sample_rate, info.channels) == ("aac", written, 1)
    with MediaReader(tmp_path / "b.mp4") as reader:
        heard = reader.samples(0.2, num_samples=4000, sample_rate=8000).numpy()
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(4000)))
    assert spectrum.argmax() * 2 == pytest.approx(440, abs=2) and np.sqrt(2) * heard.std() == pytest.approx(
        0.5, abs=0.05
    )


def test_sound_ends_with_the_pictures(tmp_path: Path) -> None:
    source = encode(tmp_path / "a.mkv", numbered(20), tone(3.0, rate=16_000))
    made = transcode(source, tmp_path / "b.mp4")
    assert made.sound_s == pytest.approx(0.8)
    assert probe(tmp_path / "b.mp4", verify=True).duration_s == pytest.approx(0.8, abs=0.07)


def test_a_gap_in_the_sound_is_silent(tmp_path: Path) -> None:
    """Pictures on; packets of sound between 0.5 and 1 s are missing."""
    source = encode(tmp_path / "a.mkv", numbered(40), tone(1.6, rate=16_000), audio_codec="pcm_s16le")
    with av.open(str(source)) as given, av.open(str(tmp_path / "b.mkv"), "w") as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in given.streams}
        for packet in given.demux():
            if packet.dts is not None and not (packet.stream.type == "audio" and 0.5 < packet.pts / 1000 < 1.0):
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    transcode(tmp_path / "b.mkv", tmp_path / "c.mp4")
    heard = whole(tmp_path / "c.mp4", rate=16_000).waveform.abs()
    loud = [float(heard[round(at * 16_000) :][:1600].max()) for at in (0.2, 0.7, 1.2)]
    assert loud[0] > 0.4 and loud[1] < 0.02 and loud[2] > 0.4


def test_sound_wholly_outside_the_pictures_is_refused(tmp_path: Path) -> None:
    plain = encode(tmp_path / "a.mkv", numbered(20), tone(0.3, rate=16_000))
    for seconds, error in ((2.0, DecodeError), (-0.4, NoAudioError)):
        with pytest.raises(error, match="leave it out"):
            transcode(moved(plain, tmp_path / "b.mkv", seconds), tmp_path / "c.mp4")
    assert not list(tmp_path.glob("*.mp4"))


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [0.3, 0.6])
@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mp4"])
def test_a_truncated_film_is_refused_and_leaves_nothing(tmp_path: Path, suffix: str, part: float) -> None:
    codecs = {"codec": "mpeg2video", "audio_codec": "mp2"} if suffix == ".avi" else {}
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    source = tmp_path / f"a{suffix}"
    encode(source, drifting(50), tone(2.0, rate=16_000), **codecs, container_options=options)
    source.write_bytes(source.read_bytes()[: int(source.stat().st_size * part)])
    (tmp_path / "out").mkdir()
    with pytest.raises(MediaError) as error:
        transcode(source, tmp_path / "out" / "b.mp4")
    assert source.name in str(error.value)
    assert not list((tmp_path / "out").iterdir())


def test_a_header_that_promises_more_is_refused(tmp_path: Path) -> None:
    source = encode(tmp_path / "a.mkv", numbered(25))
    promise_duration(source, 60)
    with pytest.raises(DecodeError, match="promises"):
        transcode(source, tmp_path / "b.mp4")


def test_what_is_no_film_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words.mp4").write_text("not a video")
    sound = encode(tmp_path / "sound.mp4", sound=tone(1.0, rate=16_000))
    for source, error in ((tmp_path / "words.mp4", NotMediaError), (sound, NoVideoError), (b"", NotMediaError)):
        with pytest.raises(error):
            transcode(source, tmp_path / "b.mp4")


@pytest.mark.parametrize(
    "wrong",
    [
        {"gop": 1},
        {"gop": 601},
        {"quantiser": 0},
        {"quantiser": 32},
        {"fps": 0},
        {"fps": 1001},
        {"size": 0},
        {"size": 9999},
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    source = encode(tmp_path / "a.mp4", numbered(2))
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}=.*expected"):
        transcode(source, tmp_path / "b.mp4", **wrong)
    with pytest.raises(ValueError, match=r"ends in \.mp4"):
        transcode(source, tmp_path / "b.avi")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_folder_that_is_not_there_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        transcode(encode(tmp_path / "a.mp4", numbered(2)), tmp_path / "nowhere" / "b.mp4")


def test_rates_that_a_stream_can_have() -> None:
    assert encodable(Fraction(30000, 1001)) == Fraction(30000, 1001)
    for rate in (Fraction(2987654321, 10**8), Fraction(1, 3), Fraction(999)):
        found = encodable(rate)
        assert float(found) == pytest.approx(float(rate), rel=1e-3) and found.numerator <= 65_535


def test_pictures_and_sound_are_read_as_they_are_written(tmp_path: Path) -> None:
    """So that memory does not grow with length."""
    source = encode(tmp_path / "a.mkv", numbered(60), tone(2.4, rate=16_000), codec="libx264", b_frames=3)
    with Tracks(source) as seen, Tracks(source) as heard:
        assert next(seen.paced(Fraction(25))) is not None
        assert seen.pictures.stats.frames < 10
        sound = heard.unbroken(0.0)
        assert [len(sound.until(at)[1]) for at in (0.04, 0.08)] == [640, 640]
        assert heard._require_sound().stats.frames < 5
