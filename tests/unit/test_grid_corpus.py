"""GRID: names and alignments, the corpus opened as it lies, and the same corpus made from archives as published."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_distributed import forked

from avssl_core.data import Corpus
from avssl_core.media import probe, read_all, write_clip
from data_prep.grid import (
    KINDS,
    GridError,
    Window,
    build,
    build_grid,
    crop,
    decode_name,
    is_grid,
    open_grid,
    parse_alignment,
    preview_windows,
    read_words,
)
from data_prep.grid.archives import read_checksums, scan
from data_prep.grid.words import speaker_of

ALIGNMENT = """0 23750 sil
23750 29500 bin
29500 34000 blue
34000 35500 at
35500 41000 f
41000 47250 two
47250 53000 now
53000 74500 sil
"""


# ---- words


def test_a_name_spells_its_sentence() -> None:
    assert decode_name("bbaf2n") == ("bin", "blue", "at", "f", "two", "now")
    assert decode_name("grid/s12_swwzzp.mpg") == ("set", "white", "with", "z", "zero", "please")
    for bad in ("bbaf2", "bbaw2n", "xbaf2n", "bbaf2nn", "holiday.mp4"):
        with pytest.raises(GridError, match="not the name"):
            decode_name(bad)


@pytest.mark.parametrize(
    ("path", "speaker"),
    [
        ("s1_bbaf2n.mpg", "s1"),
        ("s1.mpg_vcd.zip/bbaf2n.mpg", "s1"),
        ("alignments/s23/sbaf2n.align", "s23"),
        ("s07/align/bbaf2n.align", "s7"),
        ("s2.zip/s3/bbaf2n.mpg", "s3"),  # the innermost part that names one
        ("align/sbaf2n.align", ""),
    ],
)
def test_speaker_of_a_path(path: str, speaker: str) -> None:
    assert speaker_of(path) == speaker


def test_alignment_is_in_units_of_a_25000th() -> None:
    words = parse_alignment(ALIGNMENT, "bbaf2n")
    assert [word.kind for word in words] == list(KINDS)
    assert (words[0].label, words[0].start_s, words[0].end_s) == ("bin", 0.95, 1.18)
    assert (words[-1].label, words[-1].end_s) == ("now", 2.12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("two", "three"), "not those of the name"),
        (lambda text: text.replace("23750 29500 bin\n", ""), "not those of the name"),
        (lambda text: text.replace("29500 34000 blue", "29500 20000 blue"), "times must increase"),
        (lambda text: text.replace("29500 34000 blue", "28000 34000 blue"), "times must increase"),
        (lambda text: text.replace("0 23750 sil", "0 sil"), "expected 'start end word'"),
        (lambda text: "", "not those of the name"),
    ],
)
def test_alignments_that_do_not_fit_are_refused(change: Callable[[str], str], message: str) -> None:
    with pytest.raises(GridError, match=message):
        parse_alignment(change(ALIGNMENT), "bbaf2n")


# ---- a folder with words.csv


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))


def test_the_lips_corpus_opens_as_it_lies(real_data: Path) -> None:
    folder = real_data / "grid_lips"
    if not is_grid(folder):
        pytest.skip(f"no grid_lips in {real_data}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corpus = open_grid(folder)
    assert len(corpus) == 1000 and corpus.timed is not None and len(corpus.timed) == 6000
    assert (corpus.index["split"] == "test").sum() == 208  # the number in the pilot that used this split
    names = corpus.index["uri"].map(lambda uri: Path(uri).name)
    assert ((names.map(lambda name: zlib.crc32(name.encode()) % 5) == 0) == (corpus.index["split"] == "test")).all()
    classes = corpus.timed.groupby("kind")["label"].nunique()
    assert classes.to_dict() == dict(zip(KINDS, (4, 4, 4, 25, 10, 4), strict=True))
    assert set(corpus.index["label_speaker"]) == {"s1"}
    assert corpus.index["group"].is_unique and Path(corpus.source(0)).is_file()


def test_original_clips_open_too(real_data: Path) -> None:
    corpus = open_grid(real_data / "grid_speech")
    assert len(corpus) == 40 and corpus.timed is not None
    row = corpus.index.set_index("clip_id").loc["s1_bbaf2n.mpg"]
    assert (row["width"], row["height"], row["video_codec"]) == (360, 288, "mpeg1video")
    words = corpus.timed[corpus.timed["clip_id"] == "s1_bbaf2n.mpg"]
    assert list(words["label"]) == ["bin", "blue", "at", "f", "two", "now"] and list(words["kind"]) == list(KINDS)
    assert (row["label_command"], row["label_adverb"]) == ("bin", "now")


@pytest.fixture
def folder(tmp_path: Path, real_data: Path) -> Path:
    """Three original clips, writable."""
    target = tmp_path / "speech"
    target.mkdir()
    for name in ("s1_bbaf2n.mpg", "s1_bbiz1s.mpg", "s1_bgau1a.mpg"):
        shutil.copyfile(real_data / "grid_speech" / name, target / name)
    lines = (real_data / "grid_speech" / "words.csv").read_text(encoding="utf-8").splitlines()
    (target / "words.csv").write_text("\n".join(lines[:4]) + "\n", encoding="utf-8")
    return target


def test_a_broken_clip_is_left_out_and_named(folder: Path) -> None:
    (folder / "s1_bbiz1s.mpg").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"1 sentences have no usable clip, the first is s1_bbiz1s\.mpg"):
        corpus = open_grid(folder)
    assert len(corpus) == 2 and corpus.timed is not None and len(corpus.timed) == 12


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("word_times_s", "times", "columns word_times_s are missing"),
        (",blue,at,f,", ",red,at,f,", r"line 2 .*not those of the name"),
        ("0.95-1.18 ", "", "expected six 'start-end'"),
        ("0.95-1.18", "0.95:1.18", "expected six 'start-end'"),
    ],
)
def test_tables_of_another_form_are_refused(folder: Path, old: str, new: str, message: str) -> None:
    table = folder / "words.csv"
    text = table.read_text(encoding="utf-8")
    assert old in text
    table.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(GridError, match=message):
        open_grid(folder)


def test_a_folder_without_the_table_is_no_grid(tmp_path: Path) -> None:
    assert not is_grid(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no words\.csv"):
        open_grid(tmp_path)


# ---- from archives


def encoded(path: Path, shade: int, *, seconds: float = 3.0, sound: bool = True) -> bytes:
    """A clip of the published form: MPEG-1, 360×288, sound shorter than the pictures; the lips are ``shade``."""
    frames = torch.full((round(25 * seconds), 3, 288, 360), 30, dtype=torch.uint8)
    frames[:, :, 138:250, 99:211] = shade
    wave = 0.3 * torch.sin(torch.arange(round(44_100 * (seconds - 0.05))) * 0.05)
    codecs = {"video_codec": "mpeg1video", "quantiser": 2, "audio_codec": "mp2"}
    write_clip(path, frames, wave if sound else None, gop=12, sample_rate=44_100, **codecs)
    return path.read_bytes()


def align(name: str, *, end: int = 53_000) -> str:
    times = np.linspace(10_000, end, 7).round(-2).astype(int)
    lines = [f"{a} {b} {word}" for a, b, word in zip(times, times[1:], decode_name(name), strict=False)]
    return "\n".join(["0 10000 sil", *lines, f"{end} 74500 sil"]) + "\n"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two speakers: one in a zip with a zip of alignments, one in a tar with a folder of alignments."""
    root = tmp_path_factory.mktemp("published")
    (root / "raw").mkdir()
    good = encoded(root / "raw" / "a.mpg", 200)
    other = encoded(root / "raw" / "b.mpg", 120)
    silent = encoded(root / "raw" / "c.mpg", 90, sound=False)
    short = encoded(root / "raw" / "d.mpg", 90, seconds=1.0)
    videos = {"bbaf2n": good, "bbaf3s": silent, "bbaf4p": good[:3000], "bbaf5a": short, "bbal6n": other}
    with zipfile.ZipFile(root / "s1.mpg_vcd.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in videos.items():
            archive.writestr(f"s1/{name}.mpg", content)
        archive.writestr("__MACOSX/s1/._bbaf2n.mpg", b"clutter")
        archive.writestr("s1/lgbf8n.mpg", good)
    with zipfile.ZipFile(root / "s1.align", "w") as archive:
        for name in videos:
            archive.writestr(f"align/{name}.align", align(name))
    with tarfile.open(root / "s2.tar", "w") as tar:
        tar.add(root / "raw" / "b.mpg", "video/s2/sbwe5n.mpg")
    (root / "alignments" / "s2").mkdir(parents=True)
    (root / "alignments" / "s2" / "sbwe5n.align").write_text(align("sbwe5n"), encoding="ascii")
    shutil.rmtree(root / "raw")
    return root


@pytest.fixture(scope="module")
def built(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_grid([published], tmp_path_factory.mktemp("out") / "grid_lips", workers=1, progress=False)


def test_the_scan_knows_all_layouts(published: Path) -> None:
    found = scan([published])
    assert {speaker for speaker, _ in found.videos} == {"s1", "s2"} and len(found.videos) == 7
    assert found.alignment(("s1", "bbaf2n")) == align("bbaf2n")
    assert found.alignment(("s2", "sbwe5n")) == align("sbwe5n")
    assert found.alignment(("s1", "lgbf8n")) is None
    assert {path.name for path in found.archives} == {"s1.mpg_vcd.zip", "s1.align", "s2.tar"}
    clutter = [str(place) for place in found.videos.values() if "__MACOSX" in str(place)]
    assert clutter == []


def test_clips_have_the_form_of_the_corpus(built: Path) -> None:
    assert sorted(path.name for path in built.glob("*.mp4")) == ["s1_bbaf2n.mp4", "s1_bbal6n.mp4", "s2_sbwe5n.mp4"]
    info = probe(built / "s1_bbaf2n.mp4", verify=True)
    assert info.video is not None and info.audio is not None
    assert (info.video.width, info.video.height, info.video.fps, info.video.codec) == (112, 112, 25.0, "mpeg4")
    assert (info.audio.codec, info.audio.sample_rate, info.audio.channels) == ("aac", 16_000, 1)
    clip = read_all(built / "s1_bbaf2n.mp4", fps=25, size=None, sample_rate=16_000)
    assert (
        clip.frames.shape == (75, 3, 112, 112) and clip.waveform is not None and abs(len(clip.waveform) - 48_000) <= 16
    )
    assert clip.frames.float().mean().item() == pytest.approx(200, abs=3)  # speaker 1: exactly the lips
    tone = clip.waveform[4_000:40_000]
    assert tone.abs().max().item() == pytest.approx(0.3, abs=0.05) and clip.waveform[47_600:].abs().max() < 0.05


def test_tables_are_those_of_the_corpus(built: Path) -> None:
    header = (built / "words.csv").read_text(encoding="utf-8").splitlines()
    assert header[0] == "file,command,colour,preposition,letter,digit,adverb,word_times_s"
    assert header[1].startswith("grid_lips/s1_bbaf2n.mp4,bin,blue,at,f,two,now,0.40-")
    corpus = Corpus.load(built)
    assert len(corpus) == 3 and corpus.timed is not None and len(corpus.timed) == 18
    pd.testing.assert_frame_equal(open_grid(built).timed, corpus.timed)
    assert list(corpus.index["label_speaker"]) == ["s1", "s1", "s2"]
    bare = built.parent / "bare" / "grid_lips"  # without the tables that Parquet holds: the same corpus
    shutil.copytree(built, bare, ignore=shutil.ignore_patterns("*.parquet"))
    reopened = open_grid(bare)
    pd.testing.assert_frame_equal(reopened.timed, corpus.timed)
    pd.testing.assert_frame_equal(reopened.index[corpus.index.columns], corpus.index)


def test_what_cannot_be_used_is_quarantined_with_its_reason(built: Path) -> None:
    table = pd.read_csv(built / "quarantine.csv")
    reasons = {file[-10:-4]: reason for file, reason in zip(table["file"], table["reason"], strict=True)}
    assert set(reasons) == {"bbaf3s", "bbaf4p", "bbaf5a", "lgbf8n"}
    assert "NoAudioError" in reasons["bbaf3s"]
    assert "before the last word" in reasons["bbaf5a"]
    assert "no alignment" in reasons["lgbf8n"]
    sources = json.loads((built / "sources.json").read_text(encoding="utf-8"))
    assert set(sources) == {"s1.mpg_vcd.zip", "s1.align", "s2.tar"} and all(
        len(each["sha256"]) == 64 for each in sources.values()
    )


def test_a_second_build_goes_on_and_adds_speakers(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "lips"
    build_grid([published / "s2.tar", published / "alignments"], out, workers=1, progress=False)
    first = (out / "s2_sbwe5n.mp4").stat().st_mtime_ns
    build_grid([published], out, speakers=["s1"], workers=1, progress=False)
    assert (out / "s2_sbwe5n.mp4").stat().st_mtime_ns == first
    corpus = Corpus.load(out)
    assert list(corpus.index["label_speaker"]) == ["s1", "s1", "s2"] and len(read_words(out / "words.csv")) == 3
    (out / "s1_bbaf2n.mp4").unlink()  # as a killed build would leave it
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.mp4")}
    build_grid([published], out, workers=1, progress=False)
    assert (out / "s1_bbaf2n.mp4").is_file()
    assert all((out / name).stat().st_mtime_ns == time for name, time in times.items())
    with pytest.raises(GridError, match="made with other settings"):
        build_grid([published], out, size=96, workers=1, progress=False)
    with pytest.raises(GridError, match="made with other settings"):
        build_grid([published], out, windows={"s1": Window(0, 0, 112)}, workers=1, progress=False)


def test_the_same_bytes_whatever_the_number_of_workers(
    published: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "get_context", lambda method: forked())  # spawned workers import for seconds first
    again = build_grid([published], tmp_path / "lips", workers=2, progress=False)
    for path in built.glob("*.mp4"):
        assert (again / path.name).read_bytes() == path.read_bytes()


def test_checksums_are_verified(published: Path, tmp_path: Path) -> None:
    right = hashlib.md5((published / "s2.tar").read_bytes()).hexdigest()
    listing = tmp_path / "md5sums"
    listing.write_text(f"{right}  grid/s2.tar\n", encoding="utf-8")
    assert read_checksums(listing) == {"s2.tar": right}
    build_grid([published], tmp_path / "ok", speakers=["s2"], checksums=listing, workers=1, progress=False)
    with pytest.raises(GridError, match="download it again"):
        build_grid([published], tmp_path / "no", checksums={"s2.tar": "0" * 64}, progress=False)
    assert not (tmp_path / "no").exists()
    listing.write_text("nonsense\n", encoding="utf-8")
    with pytest.raises(GridError, match="expected 'digest  file name'"):
        read_checksums(listing)


def test_sources_that_cannot_be_meant(published: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        build_grid([tmp_path / "nothing"], tmp_path / "out")
    half = tmp_path / "s1.zip"
    half.write_bytes((published / "s1.mpg_vcd.zip").read_bytes()[:2000])
    with pytest.raises(GridError, match="incomplete download"):
        scan([half])
    with pytest.raises(GridError, match="there twice"):
        scan([published, published])
    with pytest.raises(GridError, match="speakers found: s1, s2"):
        build_grid([published], tmp_path / "out", speakers=["s3"])
    loose = tmp_path / "videos"
    loose.mkdir()
    (loose / "bbaf2n.mpg").write_bytes(b"x")
    with pytest.raises(GridError, match="folder named s1"):
        scan([loose])
    packed = tmp_path / "s4.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(loose / "bbaf2n.mpg", "s4/bbaf2n.mpg")
    with pytest.raises(GridError, match="unpack it first"):
        scan([packed])


def test_crop_scales_with_the_picture_and_stays_inside() -> None:
    frames = torch.zeros(1, 3, 288, 360, dtype=torch.uint8)
    frames[..., 100:200, 150:250] = 255
    window = Window(top=100, left=150, side=100)
    assert (crop(frames, window, size=100) == 255).all()
    double = frames.repeat_interleave(2, -1).repeat_interleave(2, -2)  # the high-quality videos
    assert crop(double, window, size=112).shape == (1, 3, 112, 112) and (crop(double, window, size=112) == 255).all()
    with pytest.raises(GridError, match="not inside a picture of 360×288"):
        crop(frames, Window(top=200, left=0, side=112), size=112)


def test_preview_shows_each_speaker(published: Path) -> None:
    figure = preview_windows([published])
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.images]
    assert titles == ["s1", "s2"]


def test_our_window_is_that_of_the_shipped_corpus(real_data: Path, tmp_path: Path) -> None:
    """The same clip, cropped here and by the collection, up to coding noise."""
    original, shipped = real_data / "grid_speech" / "s1_bbaf2n.mpg", real_data / "grid_lips" / "s1_bbaf2n.mp4"
    if not shipped.is_file():
        pytest.skip(f"no {shipped}")
    (tmp_path / "s1.align").write_text(ALIGNMENT, encoding="ascii")
    (tmp_path / "align").mkdir()
    shutil.move(tmp_path / "s1.align", tmp_path / "align" / "s1_bbaf2n.align")
    out = build_grid([original, tmp_path / "align"], tmp_path / "lips", workers=1, progress=False)
    ours, theirs = (read_all(p, fps=25, size=None, sample_rate=16_000) for p in (out / shipped.name, shipped))
    error = (ours.frames.float() - theirs.frames.float()).pow(2).mean().item()
    shifted = (ours.frames[..., 1:, :].float() - theirs.frames[..., :-1, :].float()).pow(2).mean().item()
    assert error < 40 < shifted
    assert ours.waveform is not None and theirs.waveform is not None
    length = min(len(ours.waveform), len(theirs.waveform))
    assert torch.corrcoef(torch.stack([ours.waveform[:length], theirs.waveform[:length]]))[0, 1] > 0.98
