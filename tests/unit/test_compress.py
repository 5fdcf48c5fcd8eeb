"""``data_prep.compress``: folders of all kinds, made readable by groups of pictures; interrupted, crashed, repeated."""

from __future__ import annotations

import csv
import importlib
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers_media import encode, numbered, numbers, tone
from rich.console import Console
from test_media_compressed import drifting
from tiny_corpora import write_corpus
from typer.testing import CliRunner

from avssl import data_cli
from avssl.cli import app
from avssl.data_cli import parse_size
from avssl.errors import UsageError
from avssl_core.data import Corpus, CorpusError, GopDataset, open_corpus
from avssl_core.media import CompressedReader, GopSpec, StructureError, read_all
from avssl_core.media.survey import quantisers, survey
from data_prep.compress import CompressError, Report, Settings, build, compress_folder, films, misfit, verify
from data_prep.compress.pool import Died, Late, outcomes
from data_prep.compress.records import exclusive, read_films

ODD = "ünï ☂ [a]#1.mkv"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good films of six kinds, one cut off, one that is none; never written to."""
    folder = tmp_path_factory.mktemp("made") / "films"
    (folder / "sub").mkdir(parents=True)
    sound = tone(1.2, rate=16_000)
    encode(folder / "a.mp4", numbered(30), sound, codec="libx264", b_frames=2)
    encode(folder / "b.avi", numbered(30), b_frames=2)
    encode(folder / "fits.avi", drifting(30), options={"qmin": "4", "qmax": "4"})
    encode(folder / "sub" / "a.mp4", numbered(20, first=100), sound, turn={"degrees": 90})
    encode(folder / ODD, numbered(30, height=35, width=51), sound, codec="ffv1")
    encode(folder / "cut.avi", drifting(50), codec="mpeg2video")
    (folder / "cut.avi").write_bytes((folder / "cut.avi").read_bytes()[:9_000])
    (folder / "words.mp4").write_text("not a video")
    with tarfile.open(folder / "shard.tar", "w") as shard:
        for name, member in (("fits.avi", "x/fits.avi"), ("a.mp4", "../../out.mp4")):
            shard.add(folder / name, member)
    return folder


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "films"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(data_cli, "console", Console(width=160))
    return lambda *arguments: CliRunner().invoke(app, ["data", "compress", *map(str, arguments)])


def compress(source: Path, out: Path, **settings: Any) -> Report:
    """In this process, unless told otherwise."""
    return compress_folder(source, out, **{"workers": 0, "progress": False} | settings)


def contents(out: Path) -> dict[str, bytes]:
    """What lies in a folder, without what is hidden."""
    paths = (path for path in sorted(out.rglob("*")) if path.is_file())
    named = {path.relative_to(out): path.read_bytes() for path in paths}
    return {str(path): data for path, data in named.items() if not any(part.startswith(".") for part in path.parts)}


def videos(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(out).items() if name.endswith((".mp4", ".avi"))}


def structure(path: Path) -> Any:
    with CompressedReader(path) as reader:
        return reader.structure


# -- what comes out ----------------------------------------------------------------------------------------------------


def test_a_folder_of_all_kinds(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = compress(source, out)
    written = videos(out)
    odd = ODD.replace(".mkv", ".mp4")
    assert set(written) == {"a.mp4", "b.mp4", "fits.avi", "sub/a.mp4", odd, "shard/x/fits.avi", "shard/out.mp4"}
    assert (report.transcoded, report.kept, report.earlier) == (5, 2, 0)
    for name in written:
        found = structure(out / name)
        assert {len(gop) for gop in found.gops[:-1]} <= {12} and len(found.gops[-1]) <= 12
        assert found.coded_obstacle is None and "B" not in "".join(gop.kinds for gop in found.gops)
        assert quantisers(out / name) == ({4} if "fits" in name else {3})
    assert written["fits.avi"] == written["shard/x/fits.avi"] == (source / "fits.avi").read_bytes()
    assert report.bytes_after == sum(map(len, written.values()))
    assert numbers(read_all(out / "a.mp4", fps=25, size=None, sample_rate=None).frames) == list(range(30))
    assert structure(out / "sub/a.mp4").height == 96 and structure(out / odd).height == 35
    assert not (tmp_path / "out.mp4").exists()


def test_what_is_refused_is_listed_with_its_reason(source: Path, tmp_path: Path) -> None:
    report = compress(source, tmp_path / "out")
    with open(tmp_path / "out" / "quarantine.csv", encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["uri", "reason"] and rows == [list(row) for row in report.refused]
    reasons = dict(report.refused)
    assert set(reasons) == {"cut.avi", "words.mp4"}
    assert any(word in reasons["cut.avi"] for word in ("truncated", "promises")), reasons
    assert "not a media container" in reasons["words.mp4"]


def test_the_index_tells_of_the_new_files(source: Path, tmp_path: Path) -> None:
    compress(source, tmp_path / "out", size=32)
    before = open_corpus(source, progress=False).index.set_index("clip_id")
    corpus = open_corpus(tmp_path / "out", progress=False)
    after = corpus.index.set_index("clip_id")
    assert set(after.index) == set(before.index) - {"cut.avi"}
    assert (after["split"] == before["split"].reindex(after.index)).all()
    assert (after["group"] == before["group"].reindex(after.index)).all()
    assert set(after["video_codec"]) == {"mpeg4"} and set(after["audio_codec"]) == {"aac", ""}
    assert (after[["height", "width"]].min(axis=1) == 32).all() and after["offset"].isna().all()
    assert after.loc["a.mp4", "duration_s"] == pytest.approx(1.2, abs=0.05)
    assert all(Path(corpus.source(row)).is_file() for row in range(len(corpus)))


def test_labels_splits_and_timed_labels_go_over(tmp_path: Path) -> None:
    before = write_corpus(tmp_path / "films", clips=3, frames=30)
    report = compress(tmp_path / "films", tmp_path / "out", gop=6)
    after = Corpus.load(tmp_path / "out")
    columns = ["clip_id", "split", "group", "label_parity"]
    pd.testing.assert_frame_equal(before.index[columns], after.index[columns])
    assert before.timed is not None and after.timed is not None
    pd.testing.assert_frame_equal(before.timed, after.timed)
    assert report.transcoded == 3 and structure(tmp_path / "out" / "clip_0.mp4").lengths() == {6: 5}


def test_what_the_readers_errors_promise_is_true(made: Path, tmp_path: Path) -> None:
    """They send the owner of a film with B pictures here."""
    (tmp_path / "films").mkdir()
    shutil.copy(made / "b.avi", tmp_path / "films")
    spec = GopSpec(2, 12, 4)
    with CompressedReader(tmp_path / "films" / "b.avi") as reader, pytest.raises(StructureError, match="data compress"):
        reader.clip(0, spec)
    compress(tmp_path / "films", tmp_path / "out")
    dataset = GopDataset(open_corpus(tmp_path / "out", progress=False), spec, seed=0)
    assert dataset.refused == [] and dataset[0, 0]["residual"].shape == (3, 4, 64, 96)


def test_real_films_of_ucf101_are_taken_as_they_are_where_they_fit(real_data: Path, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    fits, packed = "v_BenchPress_g01_c05.avi", "v_ApplyEyeMakeup_g01_c02.avi"
    for name in (fits, packed):
        shutil.copy(real_data / "ucf101_mpeg4" / name, tmp_path / "films")
    report = compress(tmp_path / "films", tmp_path / "out")
    assert (report.kept, report.transcoded, report.refused) == (1, 1, ())
    assert (tmp_path / "out" / fits).read_bytes() == (tmp_path / "films" / fits).read_bytes()
    assert structure(tmp_path / "out" / packed.replace(".avi", ".mp4")).lengths() == {12: 10, 3: 1}


def test_films_that_fit_are_written_anew_on_request(made: Path, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    shutil.copy(made / "fits.avi", tmp_path / "films")
    report = compress(tmp_path / "films", tmp_path / "out", keep=False, quantiser=9)
    assert (report.transcoded, report.kept) == (1, 0)
    assert quantisers(tmp_path / "out" / "fits.mp4") == {9}


def test_films_of_one_stem_get_names_of_their_own(made: Path, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    for name, copy in (("a.mp4", "x.mp4"), ("b.avi", "x.avi"), ("b.avi", "x.avi.avi")):
        shutil.copy(made / name, tmp_path / "films" / copy)
    report = compress(tmp_path / "films", tmp_path / "out")
    assert set(videos(tmp_path / "out")) == {"x.avi.mp4", "x.mp4.mp4"}
    assert [uri for uri, _ in report.refused] == ["x.avi.avi"] and "rename" in report.refused[0][1]


# -- what counts as fitting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "settings", "reason"),
    [
        ({}, {}, None),
        ({}, {"size": 64}, None),
        ({}, {"fps": 25}, None),
        ({}, {"size": 32}, "size is 64×96, expected 32×48"),
        ({}, {"fps": 12.5}, "pictures"),
        ({"gop": 10}, {}, r"groups have \[10\] pictures, expected 12"),
        ({"codec": "libx264"}, {}, "codec is h264"),
        ({"b_frames": 1}, {}, "B pictures"),
        ({"turn": {"degrees": 90}}, {}, "display matrix"),
        ({"times_ms": [40 * number + 200 * (number > 11) for number in range(30)]}, {}, "evenly spaced|pictures"),
    ],
)
def test_misfits(tmp_path: Path, form: dict[str, Any], settings: dict[str, Any], reason: str | None) -> None:
    path = encode(tmp_path / "a.mp4", drifting(30), **form)
    found = misfit(path, survey(path), Settings(**settings))
    if reason is None:
        assert found is None
    else:
        assert found is not None and pd.Series([found]).str.contains(reason).all(), found


def test_verification_tells_what_is_wrong(tmp_path: Path) -> None:
    loud, dumb = (
        encode(tmp_path / "a.mp4", drifting(25), tone(1.0, rate=16_000)),
        encode(tmp_path / "b.mp4", drifting(25)),
    )
    seen, silent = survey(loud), survey(dumb)
    assert verify(loud, seen, Settings(), quantiser=2, sound_s=1.0) is None  # 25 = 2 · 12 + 1
    assert "quantisers are [2], expected 3" in str(verify(loud, seen, Settings(), quantiser=3))
    assert "sound ends" in str(verify(loud, seen, Settings(), sound_s=2.0))
    assert "has no sound" in str(verify(dumb, seen, Settings()))
    assert "has sound" in str(verify(loud, silent, Settings()))


def test_a_film_that_does_not_verify_is_refused(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What if the encoder did not do as it was told? The film must not get its final name."""
    (tmp_path / "films").mkdir()
    for name in ("a.mp4", "fits.avi"):
        shutil.copy(made / name, tmp_path / "films")
    real = films.transcode
    monkeypatch.setattr(films, "transcode", lambda *given, **wanted: real(*given, **wanted | {"gop": 7}))
    report = compress(tmp_path / "films", tmp_path / "out")
    assert set(videos(tmp_path / "out")) == {"fits.avi"}
    assert "does not verify: its groups have [2, 7] pictures, expected 12" in dict(report.refused)["a.mp4"]


# -- again, after a change, after a kill, after a crash ----------------------------------------------------------------


def times(out: Path) -> dict[str, int]:
    return {name: (out / name).stat().st_mtime_ns for name in videos(out)}


def test_a_second_run_does_what_is_new_or_changed(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = compress(source, out)
    before, written = contents(out), times(out)
    again = compress(source, out)
    assert (again.transcoded, again.kept, again.earlier) == (0, 0, first.transcoded + first.kept)
    assert again.refused == first.refused and contents(out) == before and times(out) == written
    encode(source / "b.avi", drifting(24))  # now it fits, and so has another name
    shutil.copy(source / "fits.avi", source / "new.avi")
    (out / "sub" / "a.mp4").write_bytes(b"damaged")
    third = compress(source, out)
    assert (third.transcoded, third.kept, third.earlier) == (1, 2, first.transcoded + first.kept - 2)
    assert videos(out)["sub/a.mp4"] == before["sub/a.mp4"] and "b.mp4" not in videos(out)
    assert {"b.avi", "new.avi"} < set(open_corpus(out, progress=False).index["uri"])


@pytest.mark.parametrize("change", [{"quantiser": 5}, {"gop": 6}, {"size": (32, 48)}, {"fps": 10.0}, {"keep": False}])
def test_other_settings_are_refused_and_named(made: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "films").mkdir()
    shutil.copy(made / "fits.avi", tmp_path / "films")
    compress(tmp_path / "films", tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(CompressError, match=rf"other settings: {next(iter(change))} was .*, now .*another folder"):
        compress(tmp_path / "films", tmp_path / "out", **change)
    assert contents(tmp_path / "out") == before
    (tmp_path / "films").rename(tmp_path / "moved")
    with pytest.raises(CompressError, match=r"source was .*films, now .*moved.*compress\.json"):
        compress(tmp_path / "moved", tmp_path / "out")


def test_the_number_of_workers_does_not_matter(source: Path, tmp_path: Path) -> None:
    for workers in (0, 1, 2):
        compress(source, tmp_path / f"out{workers}", workers=workers, size=32)
    found = [contents(tmp_path / f"out{workers}") for workers in (0, 1, 2)]
    assert found[0] == found[1] == found[2]


def test_a_killed_run_goes_on_where_it_was(made: Path, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    for number in range(15):
        shutil.copy(made / "a.mp4", tmp_path / "films" / f"{number:02d}.mp4")
    out, clean = tmp_path / "out", tmp_path / "clean"
    command = [
        sys.executable,
        "-m",
        "avssl",
        "data",
        "compress",
        tmp_path / "films",
        out,
        "--size",
        "32",
        "--workers",
        "1",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(read_films(out)) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended too early"
    compress(tmp_path / "films", clean, size=32)
    there, whole = videos(out), videos(clean)
    assert 3 <= len(there) < 15 and all(data == whole[name] for name, data in there.items())
    report = compress(tmp_path / "films", out, size=32)
    assert 3 <= report.earlier < 15 and report.earlier + report.transcoded == 15
    assert videos(out) == whole and not (out / ".unfinished").exists()
    assert set(read_films(out)) == set(read_films(clean))


# A module of its own, as every process of a worker imports it.
DEADLY = """
import os, signal
from data_prep.compress.films import convert

def convert_or_die(job):
    if job.clip_id == "b.avi":
        os.kill(os.getpid(), signal.SIGKILL)  # what the kernel does where memory ends
    return convert(job)
"""


def test_a_crash_costs_one_film(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(build, "convert", importlib.import_module("deadly").convert_or_die)
        report = compress(source, tmp_path / "out", workers=2)
    assert report.transcoded + report.kept == 6
    assert "process that read it died (SIGKILL)" in dict(report.refused)["b.avi"]
    assert not (tmp_path / "out" / ".unfinished").exists()
    again = compress(source, tmp_path / "out")
    assert (again.transcoded, again.earlier) == (1, 6)


def test_what_a_job_raises_ends_the_whole() -> None:
    assert dict(outcomes(math.sqrt, [4.0, 9.0], 2)) == {4.0: 2.0, 9.0: 3.0}
    assert dict(outcomes(os._exit, [3], 1)) == {3: Died(3)} and "exit code 3" in str(Died(3))
    for workers in (0, 1):
        with pytest.raises(ValueError, match="domain"):
            list(outcomes(math.sqrt, [1.0, -1.0, 4.0], workers))


def test_a_job_that_hangs_is_given_up_and_the_others_go_on() -> None:
    def limit_s(seconds: float) -> float:
        return 2.0 if seconds > 1 else 120.0

    found = dict(outcomes(time.sleep, [600.0, 0.01, 0.02], 1, limit_s))
    assert found == {600.0: Late(2.0), 0.01: None, 0.02: None}
    assert "not done after 2 s" in str(found[600.0])


def test_a_film_may_take_longer_the_longer_it_is(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, float] = {}

    def watch(function: Any, jobs: Any, workers: int, limit_s: Any) -> Any:
        seen.update({job.clip_id: limit_s(job) for job in jobs})
        return outcomes(function, jobs, workers, limit_s)

    monkeypatch.setattr(build, "outcomes", watch)
    compress(source, tmp_path / "out")
    durations = Corpus.load(tmp_path / "out").index.set_index("clip_id")["duration_s"]
    for clip_id, duration_s in durations.items():
        assert seen[str(clip_id)] == pytest.approx(600 + 30 * duration_s, abs=10)


def test_a_full_disk_ends_the_run_and_keeps_what_is_finished(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    real = films.transcode

    def full(given: Any, path: Path, **wanted: Any) -> Any:
        if "b.mp4" in path.name:
            raise OSError(28, "No space left on device")
        return real(given, path, **wanted)

    monkeypatch.setattr(films, "transcode", full)
    with pytest.raises(OSError, match="No space left"):
        compress(source, tmp_path / "out")
    assert set(read_films(tmp_path / "out")) == {"a.mp4"}
    assert set(videos(tmp_path / "out")) == {"a.mp4"} and not (tmp_path / "out" / ".unfinished").exists()


def test_settings_bind_only_where_a_film_was_made_with_them(made: Path, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    shutil.copy(made / "words.mp4", tmp_path / "films")
    with pytest.raises(CorpusError, match=r"words\.mp4"):
        compress(tmp_path / "films", tmp_path / "out", gop=6)
    shutil.copy(made / "a.mp4", tmp_path / "films")
    assert compress(tmp_path / "films", tmp_path / "out").transcoded == 1


def test_two_runs_do_not_meet(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with exclusive(tmp_path / "out"), pytest.raises(CompressError, match="another run"):
        compress(source, tmp_path / "out")


# -- the command line, and what it refuses -----------------------------------------------------------------------------


def test_the_command_ends_with_a_report(run: Any, source: Path, tmp_path: Path) -> None:
    ran = run(source, tmp_path / "out", "--size", "48x32", "--quantiser", 5, "--fps", 12.5, "--workers", 2)
    assert ran.exit_code == 0, f"{ran.output}{ran.exception!r}"
    last = ran.output.strip().splitlines()[-1]
    assert "7 transcoded, 0 kept as they were, 2 refused (see " in last and "quarantine.csv" in last
    assert "MB before" in last and "MB after" in last
    found = structure(tmp_path / "out" / "a.mp4")
    assert (found.height, found.width, found.fps) == (32, 48, 12.5)
    other = run(source, tmp_path / "out", "--size", "48x32")
    assert isinstance(other.exception, UsageError) and "fps was 12.5, now None" in str(other.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["films/a.mp4", "out"], "not a folder"),
        (["nowhere", "out"], "no such folder"),
        (["empty", "out"], "no files in"),
        (["films", "films/out"], "lie one in the other"),
        (["films/sub", "films"], "lie one in the other"),
        (["films", "films"], "lie one in the other"),
        (["films", "empty/../cache"], "holds other files"),
        (["films", "films/a.mp4"], "one in the other"),
        (["films", "out", "--size", "0"], "size=0: expected"),
        (["films", "out", "--size", "256x"], "WIDTHxHEIGHT"),
        (["films", "out", "--size", "large"], "WIDTHxHEIGHT"),
        (["films", "out", "--quantiser", "32"], "quantiser=32: expected 1"),
        (["films", "out", "--gop", "1"], "gop=1: expected"),
        (["films", "out", "--fps", "-1"], "fps=-1.0: expected"),
        (["bad", "out"], "none of the 1 files"),
    ],
)
def test_mistakes_are_errors_of_use(
    run: Any, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for folder, name in (("films", "a.mp4"), ("films/sub", "b.avi"), ("bad", "words.mp4"), ("cache", "a.mp4")):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(made / name, tmp_path / folder)
    ran = run(*arguments)
    assert isinstance(ran.exception, UsageError), ran.output
    assert message in str(ran.exception)
    assert not videos(tmp_path / "out") and not list((tmp_path / "films").rglob("*.json*"))


def test_not_one_usable_film_is_an_error(made: Path, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    shutil.copy(made / "cut.avi", tmp_path / "films")
    with pytest.raises((CompressError, CorpusError), match=r"cut\.avi"):
        compress(tmp_path / "films", tmp_path / "out")


def test_sizes_are_width_by_height_on_the_command_line() -> None:
    assert [parse_size(text) for text in ("256", "340x256", "340×256", "same")] == [256, (256, 340), (256, 340), None]


def test_the_source_is_left_alone(source: Path, tmp_path: Path) -> None:
    before = contents(source)
    compress(source, tmp_path / "out", size=16)
    assert contents(source) == before
    assert np.isfinite(Corpus.load(tmp_path / "out").index["duration_s"]).all()
