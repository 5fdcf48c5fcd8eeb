"""Broken and odd media: no hang, no crash, no silent substitute.

Every case runs in a child process under a time limit, so a decoder that hangs or takes the process down fails the one
case it belongs to. A case writes its own files, and asserts either that what it reads is right or that it is refused
with an error that names the file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers_media import encode, numbered, numbers, promise_duration, tone

from avssl_core.media import (
    DecodeError,
    MediaError,
    MediaReader,
    NoAudioError,
    NotMediaError,
    NoVideoError,
    TarMember,
    WindowError,
    probe,
    read_all,
    read_clip,
    write_clip,
)

CASE_LIMIT_S = 60.0
CASES: dict[str, Callable[[Path], None]] = {}


def case(function: Callable[[Path], None]) -> Callable[[Path], None]:
    CASES[function.__name__] = function
    return function


def refused(kinds: type[MediaError] | tuple[type[MediaError], ...], read: Callable[[], object], name: str) -> str:
    """Assert that a read fails with one of some errors, and that the error names the file; returns its reason."""
    try:
        result = read()
    except kinds as error:
        assert name in str(error), f"the error does not name {name}: {error}"
        assert len(error.reason) > 20, f"the error does not explain itself: {error}"
        return error.reason
    raise AssertionError(f"expected {kinds}, got {str(result)[:200]}")


def everything(path: Path) -> list[Callable[[], object]]:
    """Every way to read a file."""
    return [
        lambda: probe(path),
        lambda: probe(path, verify=True),
        lambda: read_clip(path, 0.0, num_frames=8, fps=8, sample_rate=16_000),
        lambda: read_all(path, fps=25, size=32, sample_rate=16_000),
    ]


@case
def zero_bytes(folder: Path) -> None:
    path = folder / "empty.mp4"
    path.touch()
    for read in everything(path):
        assert "zero bytes" in refused(NotMediaError, read, "empty.mp4")
    refused(NotMediaError, lambda: probe(b""), "<0 bytes>")


@case
def text_named_mp4(folder: Path) -> None:
    texts = {
        "prose": "It was a dark and stormy night.\n" * 400,
        "csv": "a,b,c\n1,2,3\n" * 2000,
        "page": "<html>\n" * 999,
    }
    for name, text in texts.items():
        path = folder / f"{name}.mp4"
        path.write_text(text)
        for read in everything(path):
            refused(NotMediaError, read, path.name)
        refused(NotMediaError, lambda text=text: probe(text.encode()), "bytes>")


@case
def random_bytes(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for index, header in enumerate(
        [b"", b"\x00\x00\x00\x18ftypmp42", b"RIFF....AVI LIST", b"\x1aE\xdf\xa3", b"ID3\x04"]
    ):
        path = folder / f"noise{index}.mp4"
        path.write_bytes(header + generator.bytes(50_000))
        for read in everything(path):
            refused(MediaError, read, path.name)


def _truncations(folder: Path, suffix: str, **codecs: object) -> None:
    """Cut a file at many points: what a read returns is right, or the read fails by name."""
    sound = tone(3.0, rate=int(codecs.get("rate", 16_000)))  # type: ignore[call-overload]
    whole = encode(folder / f"whole{suffix}", numbered(75), sound, **codecs)  # type: ignore[arg-type]
    expected = read_all(whole, fps=25, size=None, sample_rate=None).frames
    data, readable, refusals = whole.read_bytes(), 0, 0
    path = folder / f"cut{suffix}"
    for size in [0, 1, 7, 40, 200, 600, *np.linspace(1000, len(data) - 1, 24).astype(int).tolist()]:
        path.write_bytes(data[:size])
        for start in (0, 20, 45, 65):
            try:
                frames = read_clip(path, start / 25, num_frames=10, fps=25).frames
            except MediaError as error:
                refusals += 1
                assert path.name in str(error)
                continue
            readable += 1
            # Where a picture's time is not stored, libav counts it: then one may be missing, but none may be wrong.
            assert torch.equal(frames, expected[start : start + 10]), (
                f"{size} bytes: window from frame {start} is wrong"
            )
        for read in (lambda: probe(path), lambda: probe(path, verify=True), lambda: _sound(path)):
            try:
                read()
            except MediaError as error:
                assert path.name in str(error)
        try:
            clip = read_all(path, fps=25, size=None, sample_rate=None)
        except MediaError as error:
            assert path.name in str(error)
        else:
            assert torch.equal(clip.frames, expected[: len(clip.frames)]), f"{size} bytes: the whole file is wrong"
    assert refusals > 20 and readable > 10, f"cutting exercised nothing: {readable} windows, {refusals} refusals"


def _sound(path: Path) -> None:
    wave = MediaReader(path).samples(0.5, num_samples=16_000, sample_rate=16_000)
    assert abs(wave.std() - 0.5 / 2**0.5) < 0.03, "the sound is not the tone that was written"


@case
def truncated_mp4(folder: Path) -> None:
    _truncations(folder, ".mp4", container_options={"movflags": "faststart"})


@case
def truncated_mp4_with_b_pictures(folder: Path) -> None:
    _truncations(folder, ".mp4", codec="libx264", b_frames=3, gop=30, container_options={"movflags": "faststart"})


@case
def truncated_fragmented_mp4(folder: Path) -> None:
    _truncations(folder, ".mp4", container_options={"movflags": "frag_keyframe+empty_moov"})


@case
def truncated_mkv(folder: Path) -> None:
    _truncations(folder, ".mkv", codec="libx264", b_frames=2, gop=25)


@case
def truncated_webm(folder: Path) -> None:
    _truncations(folder, ".webm", codec="libvpx", audio_codec="libopus", rate=48_000)


@case
def truncated_avi(folder: Path) -> None:
    _truncations(folder, ".avi", audio_codec="pcm_s16le")


@case
def truncated_ts(folder: Path) -> None:
    _truncations(folder, ".ts", codec="libx264", gop=12)


@case
def truncated_mp4_without_its_index(folder: Path) -> None:
    path = encode(folder / "tail.mp4", numbered(75), tone(3.0, rate=16_000))
    path.write_bytes(path.read_bytes()[:-2500])  # the index stands at the end
    for read in everything(path):
        assert "index" in refused(NotMediaError, read, "tail.mp4")


@case
def windows_before_the_cut_still_read(folder: Path) -> None:
    write_clip(folder / "whole.mp4", numbered(75), tone(3.0, rate=16_000)[0])
    data = (folder / "whole.mp4").read_bytes()
    path = folder / "half.mp4"
    path.write_bytes(data[: len(data) * 2 // 3])
    info = probe(path)
    assert 0.8 < info.duration_s < 2.6 and info.header_s > 2.9, info
    clip = read_clip(path, 0.0, num_frames=20, fps=25, sample_rate=16_000)
    assert numbers(clip.frames) == list(range(20))
    last = int(info.duration_s * 25) - 10
    assert numbers(read_clip(path, last / 25, num_frames=10, fps=25).frames) == list(range(last, last + 10))
    refused((DecodeError, WindowError), lambda: read_clip(path, 2.0, num_frames=25, fps=25), "half.mp4")
    refused(
        (DecodeError, WindowError),
        lambda: MediaReader(path).samples(1.9, num_samples=16_000, sample_rate=16_000),
        "half.mp4",
    )
    assert "max_s" in refused(DecodeError, lambda: read_all(path, fps=25, size=None, sample_rate=None), "half.mp4")
    assert len(read_all(path, fps=25, size=None, sample_rate=16_000, max_s=0.8).frames) == 20


@case
def damaged_in_the_middle(folder: Path) -> None:
    write_clip(folder / "whole.mp4", numbered(75), tone(3.0, rate=16_000)[0])
    expected = read_all(folder / "whole.mp4", fps=25, size=None, sample_rate=None).frames
    data = bytearray((folder / "whole.mp4").read_bytes())
    start = data.index(b"mdat") + len(data) // 3
    data[start : start + 4000] = np.random.default_rng(0).bytes(4000)
    path = folder / "scratched.mp4"
    path.write_bytes(data)
    failures = 0
    for first in range(0, 70, 5):
        try:
            frames = read_clip(path, first / 25, num_frames=5, fps=25).frames
        except DecodeError as error:
            failures += 1
            assert "scratched.mp4" in str(error)
        else:
            assert torch.equal(frames, expected[first : first + 5]), (
                f"frames from {first} are wrong, and nothing said so"
            )
    assert 0 < failures < 14


@case
def no_audio(folder: Path) -> None:
    path = folder / "mute.mp4"
    write_clip(path, numbered(25))
    assert probe(path).audio is None and probe(path).duration_s == 1.0
    assert numbers(read_clip(path, 0.2, num_frames=3, fps=25).frames) == [5, 6, 7]
    refused(NoAudioError, lambda: read_clip(path, 0.2, num_frames=3, fps=25, sample_rate=16_000), "mute.mp4")
    refused(NoAudioError, lambda: read_all(path, fps=25, size=None, sample_rate=16_000), "mute.mp4")


@case
def no_video(folder: Path) -> None:
    path = encode(folder / "blind.mp4", sound=tone(1.0, rate=16_000))
    assert probe(path).video is None
    assert MediaReader(path).samples(0.2, num_samples=8_000, sample_rate=16_000).std() > 0.3
    refused(NoVideoError, lambda: read_clip(path, 0.2, num_frames=3, fps=25), "blind.mp4")
    refused(NoVideoError, lambda: read_all(path, fps=25, size=None, sample_rate=16_000), "blind.mp4")


@case
def silent_track(folder: Path) -> None:
    path = folder / "silent.mp4"
    write_clip(path, numbered(25), np.zeros(16_000, np.float32))
    clip = read_clip(path, 0.0, num_frames=25, fps=25, sample_rate=16_000)
    assert clip.waveform is not None and clip.waveform.abs().max() < 1e-3  # silence is sound


@case
def one_frame(folder: Path) -> None:
    path = folder / "one.mp4"
    write_clip(path, numbered(1, first=77))
    assert numbers(read_clip(path, 0.0, num_frames=1, fps=25).frames) == [77]
    assert numbers(read_all(path, fps=25, size=None, sample_rate=None).frames) == [77]
    refused(WindowError, lambda: read_clip(path, 0.0, num_frames=2, fps=25), "one.mp4")
    refused(WindowError, lambda: read_clip(path, 0.0, num_frames=16, fps=16), "one.mp4")


@case
def variable_frame_rate(folder: Path) -> None:
    times = [0, 40, 80, 500, 510, 520, 530, 1400, 1440, 1480, 2000]
    path = encode(folder / "vfr.mp4", numbered(11), times_ms=times, codec="libx264")
    asked = np.arange(25) * 0.08
    expected = [int(np.abs(np.asarray(times) / 1000 - at).argmin()) for at in asked]
    assert numbers(read_clip(path, 0.0, num_frames=25, fps=12.5).frames) == expected
    assert numbers(read_all(path, fps=12.5, size=None, sample_rate=None).frames)[:25] == expected
    refused(WindowError, lambda: read_clip(path, 2.0, num_frames=25, fps=12.5), "vfr.mp4")


@case
def rotated(folder: Path) -> None:
    for turn in (90, 180, 270):
        coded = np.ascontiguousarray(np.rot90(numbered(25), turn // 90, axes=(1, 2)))
        path = encode(folder / f"turned{turn}.mp4", coded, turn={"degrees": -turn}, codec="libx264")
        info = probe(path).video
        assert info is not None and (info.width, info.height, info.rotation) == (96, 64, turn)
        assert numbers(read_clip(path, 0.2, num_frames=4, fps=25, size=64).frames) == [5, 6, 7, 8]


@case
def odd_sizes(folder: Path) -> None:
    for height, width in ((63, 97), (65, 99), (101, 161)):
        path = folder / f"odd{height}x{width}.mp4"
        write_clip(path, numbered(10, height=height, width=width))
        clip = read_clip(path, 0.0, num_frames=10, fps=25)
        assert clip.frames.shape == (10, 3, height, width) and numbers(clip.frames) == list(range(10))


@case
def ten_bit(folder: Path) -> None:
    for codec in ("libx264", "libx265"):
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        path = encode(folder / f"{codec}.mp4", numbered(25), codec=codec, pix_fmt="yuv420p10le", options=options)
        info = probe(path).video
        assert info is not None and info.pix_fmt == "yuv420p10le"
        assert numbers(read_clip(path, 0.4, num_frames=5, fps=25, size=48).frames) == [10, 11, 12, 13, 14]


@case
def layouts_and_rates(folder: Path) -> None:
    for layout, channels in (("mono", 1), ("stereo", 2), ("5.1", 6)):
        for rate in (8_000, 96_000):
            sound = tone(1.0, rate=rate, channels=channels)
            path = encode(folder / f"{layout}{rate}.mp4", numbered(25), sound, rate=rate, layout=layout)
            wave = read_clip(path, 0.1, num_frames=20, fps=25, sample_rate=24_000).waveform
            assert wave is not None and wave.shape == (19_200,)
            assert np.argmax(np.abs(np.fft.rfft(wave.numpy()))) == 352, (layout, rate)  # 440 Hz in 0.8 s
            assert abs(wave.std() - 0.5 / 2**0.5) < 0.03, (layout, rate)


@case
def a_tenth_of_a_second(folder: Path) -> None:
    path = encode(folder / "short.mp4", numbered(3, first=5), tone(0.1, rate=16_000), fps=30)
    assert abs(probe(path).duration_s - 0.1) < 0.01
    clip = read_clip(path, 0.0, num_frames=3, fps=30, sample_rate=16_000)
    assert numbers(clip.frames) == [5, 6, 7] and clip.waveform is not None and clip.waveform.shape == (1600,)
    refused(WindowError, lambda: read_clip(path, 0.0, num_frames=16, fps=16), "short.mp4")
    refused(WindowError, lambda: MediaReader(path).samples(0.0, num_samples=16_000, sample_rate=16_000), "short.mp4")


@case
def header_promises_two_hours(folder: Path) -> None:
    for suffix in (".mp4", ".mkv"):
        path = encode(folder / f"liar{suffix}", numbered(75), tone(3.0, rate=16_000))
        promise_duration(path, 7200)
        for verify in (False, True):
            assert abs(probe(path, verify=verify).duration_s - 3.0) < 0.07
        assert numbers(read_clip(path, 1.0, num_frames=25, fps=25).frames) == list(range(25, 50))
        for start in (2.5, 100.0, 7000.0):
            wrong = (WindowError, DecodeError)
            refused(wrong, lambda path=path, start=start: read_clip(path, start, num_frames=25, fps=25), path.name)
            reader = MediaReader(path)
            refused(wrong, lambda r=reader, s=start: r.samples(s, num_samples=16_000, sample_rate=16_000), path.name)


@case
def a_window_far_outside(folder: Path) -> None:
    path = folder / "clip.mp4"
    write_clip(path, numbered(25), tone(1.0, rate=16_000)[0])
    for start in (-1e9, -5.0, 1.5, 1e6, 1e12):
        refused(WindowError, lambda start=start: read_clip(path, start, num_frames=2, fps=25), "clip.mp4")


@case
def non_ascii_names(folder: Path) -> None:
    for name in ("żółw 亀 🐢.mp4", "a b'c\"d.mp4", "semi;colon&.mp4", "http:__x.mp4", "tab\tnewline\n.mp4"):
        write_clip(folder / name, numbered(5))
        assert numbers(read_clip(folder / name, 0.0, num_frames=5, fps=25).frames) == list(range(5))
        (folder / name).write_bytes(b"")
        refused(NotMediaError, lambda name=name: probe(folder / name), name)


@case
def symlink_loops(folder: Path) -> None:
    (folder / "a.mp4").symlink_to(folder / "b.mp4")
    (folder / "b.mp4").symlink_to(folder / "a.mp4")
    (folder / "dangling.mp4").symlink_to(folder / "nowhere.mp4")
    for read in everything(folder / "a.mp4"):
        refused(NotMediaError, read, "a.mp4")
    refused(NotMediaError, lambda: probe(folder / "dangling.mp4"), "dangling.mp4")
    refused(NotMediaError, lambda: probe(folder), folder.name)


@case
def vanishes_between_index_and_read(folder: Path) -> None:
    path, tar = folder / "gone.mp4", folder / "gone.tar"
    write_clip(path, numbered(25), tone(1.0, rate=16_000)[0])
    with tarfile.open(tar, "w") as shard:
        shard.add(path, "clip.mp4")
    with tarfile.open(tar) as shard:
        member = shard.getmember("clip.mp4")
    source = TarMember(str(tar), member.offset_data, member.size)
    assert probe(path).duration_s == probe(source).duration_s == 1.0
    with MediaReader(path) as opened:
        path.unlink()  # an open file stays readable
        assert numbers(opened.frames(0.2, num_frames=2, fps=25).frames) == [5, 6]
    assert "index again" in refused(NotMediaError, lambda: read_clip(path, 0.0, num_frames=5, fps=25), "gone.mp4")
    tar.write_bytes(tar.read_bytes()[:2000])
    assert "index again" in refused(NotMediaError, lambda: read_clip(source, 0.0, num_frames=5, fps=25), "gone.tar")
    tar.unlink()
    refused(NotMediaError, lambda: read_clip(source, 0.0, num_frames=5, fps=25), "gone.tar")


@case
def shrinks_while_open(folder: Path) -> None:
    path = folder / "shrinking.mp4"
    write_clip(path, np.concatenate([numbered(250)] * 2), tone(20.0, rate=16_000)[0])
    with MediaReader(path) as reader:
        assert numbers(reader.frames(0.0, num_frames=2, fps=25).frames) == [0, 1]
        os.truncate(path, path.stat().st_size // 3)
        refused((DecodeError, WindowError), lambda: reader.frames(18.0, num_frames=5, fps=25), "shrinking.mp4")
        refused(
            (DecodeError, WindowError),
            lambda: reader.samples(18.0, num_samples=16_000, sample_rate=16_000),
            "shrinking.mp4",
        )


@case
def unreadable(folder: Path) -> None:
    path = folder / "pipe.mp4"
    os.mkfifo(path)
    for read in everything(path):
        refused(NotMediaError, read, "pipe.mp4")


@case
def says_nothing_on_the_terminal(folder: Path) -> None:
    """libav's own messages would drown a training log; what matters is in the error."""
    write_clip(folder / "whole.mp4", numbered(25))
    data = (folder / "whole.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    program = (
        "import sys; from avssl_core.media import *\n"
        "for start in (0.0, 0.3, 0.8):\n"
        "    try: read_clip(sys.argv[1], start, num_frames=3, fps=25)\n"
        "    except MediaError: pass\n"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(folder / "cut.mp4")], capture_output=True, timeout=50)
    assert ran.returncode == 0 and ran.stdout == b"" and ran.stderr == b"", ran.stderr


def run_cases(names: Iterable[str], folder: Path) -> None:
    """The child: run cases one after the other, saying on standard output when each begins and how it ends."""
    torch.set_num_threads(1)
    for name in names:
        print(json.dumps({"begins": name}), flush=True)
        outcome = "passed"
        try:
            (folder / name).mkdir()
            CASES[name](folder / name)
        except BaseException:
            outcome = traceback.format_exc()
        print(json.dumps({"ends": name, "outcome": outcome}), flush=True)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Outcome of every case; a child that hangs or dies is replaced by one that goes on with the next case."""
    found: dict[str, str] = {}
    while remaining := [name for name in CASES if name not in found]:
        folder = tmp_path_factory.mktemp("broken")
        log = folder / "log"
        with log.open("w") as out:
            child = subprocess.Popen([sys.executable, __file__, str(folder), *remaining], stdout=out, stderr=out)
        current, since = remaining[0], time.monotonic()
        while child.poll() is None and time.monotonic() - since < CASE_LIMIT_S:
            time.sleep(0.05)
            if (now := _read(log, found)) != current:
                current, since = now, time.monotonic()
        current = _read(log, found)
        if child.poll() is None:
            child.kill()
            found[current] = f"hung: not done after {CASE_LIMIT_S:.0f} s"
        elif current not in found:
            found[current] = f"took the process down (exit status {child.returncode}):\n{log.read_text()[-2000:]}"
        child.wait()
    return found


def _read(log: Path, found: dict[str, str]) -> str:
    """Take over the outcomes logged so far; returns the case that began last."""
    current = next(name for name in CASES if name not in found) if len(found) < len(CASES) else ""
    for line in log.read_text().splitlines():
        if not line.startswith("{"):
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # not written to its end yet
            continue
        if "ends" in entry:
            found[entry["ends"]] = entry["outcome"]
        else:
            current = entry["begins"]
    return current


@pytest.mark.parametrize("name", list(CASES))
def test_broken_media(outcomes: dict[str, str], name: str) -> None:
    assert outcomes[name] == "passed", outcomes[name]


if __name__ == "__main__":
    run_cases(sys.argv[2:], Path(sys.argv[1]))
