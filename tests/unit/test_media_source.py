"""Sources: tar members, names, and what is refused before any decoder sees it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from helpers_media import numbered, numbers

from avssl_core.media import MediaError, NotMediaError, TarMember, WindowError, probe, read_all, write_clip
from avssl_core.media.source import BoundedFile, describe, open_container


def test_a_bounded_file_is_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "tar").write_bytes(bytes(range(100)))
    with BoundedFile(str(tmp_path / "tar"), 10, 20) as inside:
        assert inside.read(5) == bytes(range(10, 15)) and inside.tell() == 5
        assert inside.read() == bytes(range(15, 30)) and inside.read(4) == b""
        assert inside.seek(-3, os.SEEK_END) == 17 and inside.read(10) == bytes(range(27, 30))
        assert inside.seek(2) == 2 and inside.seek(1, os.SEEK_CUR) == 3 and inside.read(1) == bytes([13])
        assert inside.seek(500) == 500 and inside.read(1) == b""
        with pytest.raises(OSError, match="-1"):
            inside.seek(-1)


@pytest.mark.parametrize("member", [(0, 10**9), (-1, 10), (0, 0), (10**9, 10)])
def test_a_member_outside_its_tar(tmp_path: Path, member: tuple[int, int]) -> None:
    (tmp_path / "shard.tar").write_bytes(b"x" * 1000)
    with pytest.raises(NotMediaError, match=r"shard\.tar\["):
        probe(TarMember(str(tmp_path / "shard.tar"), *member))


@pytest.mark.parametrize(
    "name",
    [
        "Größe – 映像 🎬.mp4",
        "a:b.mp4",
        "http:x.mp4",
        "concat:a|b.mp4",
        "%03d.mp4",
        "-y.mp4",
        "new\nline.mp4",
        "'q\".mp4",
    ],
)
def test_names_are_data(tmp_path: Path, name: str) -> None:
    write_clip(tmp_path / name, numbered(10))
    assert numbers(read_all(tmp_path / name, fps=25, size=None, sample_rate=None).frames) == list(range(10))


def test_a_name_that_is_not_unicode(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", numbered(3))
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    os.rename(tmp_path / "clip.mp4", odd)
    assert probe(odd).duration_s == pytest.approx(0.12)


def test_playlists_do_not_open_other_files(tmp_path: Path) -> None:
    write_clip(tmp_path / "secret.mp4", numbered(5))
    lists = {
        "hls.mp4": "#EXTM3U\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        "cat.mp4": "ffconcat version 1.0\nfile secret.mp4\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(NotMediaError, match=name):
            probe(tmp_path / name)


def test_still_images_are_not_videos(tmp_path: Path) -> None:
    import matplotlib.image

    matplotlib.image.imsave(tmp_path / "still.png", numbered(1)[0])
    with pytest.raises(NotMediaError, match=r"still\.png"):
        probe(tmp_path / "still.png")


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(NotMediaError, match="not a regular file"):
        probe(tmp_path / "pipe.mp4")


@pytest.mark.parametrize("kind", [MediaError, NotMediaError, WindowError])
def test_errors_travel_between_processes(kind: type[MediaError]) -> None:
    error = pickle.loads(pickle.dumps(kind("clip.mp4", "reason")))
    assert type(error) is kind and (error.source, error.reason) == ("clip.mp4", "reason")
    assert str(error) == "clip.mp4: reason" and isinstance(error, ValueError)


def test_closing_leaves_no_open_file(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", numbered(3))
    size = (tmp_path / "clip.mp4").stat().st_size
    member = TarMember(str(tmp_path / "clip.mp4"), 0, size)
    (tmp_path / "text.mp4").write_text("text")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(20):
        probe(tmp_path / "clip.mp4")
        probe(member)
        with pytest.raises(NotMediaError):
            open_container(TarMember(str(tmp_path / "text.mp4"), 0, 4))
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after <= before + 1


def test_describe() -> None:
    assert describe(b"abc") == "<3 bytes>"
    assert describe(TarMember("a.tar", 512, 10)) == "a.tar[512:522]"
    assert describe(Path("x/y.mp4")) == "x/y.mp4"
