"""``data_prep.curate``: a pool with exchanged sound tracks, stopped, killed, repeated, changed; and the command."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers_curate import SIGHT, settings, write_pair, write_pool
from rich.console import Console
from tiny_corpora import write_ramp
from typer.testing import CliRunner

from avssl import curate_cli
from avssl.cli import app
from avssl.errors import UsageError
from data_prep.compress.records import exclusive
from data_prep.curate import MANIFEST_FILE, PAGE_FILE, Choice, CurateError, Report, Settings, curate_folder
from data_prep.curate.stages import ShardJob, Work

STAGES = ("candidates", "clips", "unique", "features", "clusters", "selection", "report")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    folder = tmp_path_factory.mktemp("pool") / "films"
    return folder, write_pool(folder)


@pytest.fixture(scope="module")
def done(made: tuple[Path, set[str]]) -> Path:
    """The curated pool; never written to."""
    out = made[0].with_name("curated")
    curate_folder(made[0], out, settings(), workers=0, progress=False)
    return out


@pytest.fixture
def again(made: tuple[Path, set[str]], done: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the pool and of what came of it, as if they had been made here."""
    source, out = tmp_path / "films", tmp_path / "curated"
    shutil.copytree(made[0], source)
    shutil.copytree(done, out)
    about = (out / "curate.json").read_text()
    (out / "curate.json").write_text(about.replace(str(made[0]), str(source)))
    return source, out


def curate(source: Path, out: Path, mapper: Any = None, **changes: Any) -> Report:
    return curate_folder(source, out, settings(**changes), workers=0, progress=False, mapper=mapper)


def manifest(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / MANIFEST_FILE)


def test_the_clips_that_were_not_exchanged_are_kept(made: tuple[Path, set[str]], done: Path) -> None:
    table = manifest(done)
    assert set(table["clip_id"][table["kept"]]) == made[1]
    assert len(table) == 2 * len(made[1]) and table["rank"].tolist() == list(range(1, len(table) + 1))
    assert sorted(table["picked"].dropna()) == list(range(1, len(made[1]) + 1))
    assert table["kept"].is_monotonic_decreasing and table["reason"].isna().all()
    assert table["score"][table["kept"]].min() > 1 > 0 > table["score"][~table["kept"]].max()
    assert (table["end_s"] - table["start_s"]).between(1.0, 1.3).all()
    assert sorted(path.name for path in made[0].iterdir()) == sorted(table["uri"])  # nothing was written there


def test_the_same_seed_gives_the_same_manifest(made: tuple[Path, set[str]], done: Path, tmp_path: Path) -> None:
    curate(made[0], tmp_path / "b")
    pd.testing.assert_frame_equal(manifest(tmp_path / "b"), manifest(done))


def test_nothing_is_done_twice(again: tuple[Path, Path]) -> None:
    report = curate(*again)
    assert report.ran == () and report.skipped == STAGES
    assert report.kept == 20 and report.usable == 40


@pytest.mark.parametrize("stage", STAGES)
def test_a_deleted_stage_is_done_again_with_those_that_follow(again: tuple[Path, Path], stage: str) -> None:
    before = manifest(again[1])
    shutil.rmtree(again[1] / "stages" / stage)
    report = curate(*again)
    assert report.skipped + report.ran == STAGES and report.ran[0] == stage
    pd.testing.assert_frame_equal(manifest(again[1]), before)


@pytest.mark.parametrize("name", [MANIFEST_FILE, PAGE_FILE, "quarantine.csv"])
def test_a_deleted_result_is_written_again(again: tuple[Path, Path], name: str) -> None:
    (again[1] / name).unlink()
    assert curate(*again).ran == ("report",)
    assert (again[1] / name).is_file()


def test_settings_are_noticed_where_they_matter(again: tuple[Path, Path]) -> None:
    assert curate(*again, keep=0.25).ran == ("selection", "report")
    assert manifest(again[1])["kept"].sum() == 10
    assert curate(*again, keep=0.25, windows=2).ran == STAGES[3:]


def test_a_new_film_costs_its_shards_alone(again: tuple[Path, Path]) -> None:
    source, out = again

    def shards() -> set[str]:
        return {path.name for stage in ("clips", "features") for path in (out / "stages" / stage).glob("*.shard")}

    before = shards()
    write_pair(source / "20a.mp4", 1, 1, number=99)
    report = curate(source, out)
    assert report.ran == STAGES and report.usable == 41
    assert len(shards() - before) == 2 and len(before - shards()) <= 2


class Stopped(BaseException):
    """As a keyboard interrupt: nobody catches it."""


def counting(done: list[str], stop: int) -> Any:
    """Runs jobs in this process, and stops before the ``stop``-th."""

    def mapper(function: Work, jobs: Sequence[ShardJob], _: Callable[[ShardJob], float]) -> Iterator[Any]:
        for job in jobs:
            if len(done) == stop:
                raise Stopped
            done.append(job.path.name)
            yield job, function(job)

    return mapper


def test_a_stopped_run_goes_on(made: tuple[Path, set[str]], done: Path, tmp_path: Path) -> None:
    total: list[str] = []
    for stop in (3, 17, 1000):
        try:
            report = curate(made[0], tmp_path / "out", counting(total, stop))
        except Stopped:
            continue
    assert report.kept == 20
    assert len(total) == len(set(total)), "a shard was done twice"
    pd.testing.assert_frame_equal(manifest(tmp_path / "out"), manifest(done))


KILLED = """
import sys
from helpers_curate import settings
from data_prep.curate import curate_folder
curate_folder(*sys.argv[1:], settings(shard=1), workers=0, progress=False)
"""


def test_a_killed_run_goes_on(made: tuple[Path, set[str]], done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.Popen([sys.executable, "-c", KILLED, made[0], out], env=environment)
    deadline = time.monotonic() + 120
    while len(list((out / "stages" / "clips").glob("*.shard"))) < 5 and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    child.kill()
    assert child.wait() == -signal.SIGKILL, "it ended too early"
    left = len(list((out / "stages" / "clips").glob("*.shard")))
    assert 5 <= left < 40
    rest: list[str] = []
    curate(made[0], out, counting(rest, 1000), shard=1)
    assert len(rest) == 80 - left
    pd.testing.assert_frame_equal(manifest(out), manifest(done))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Six usable clips of odd names, and as many that are not."""
    folder = tmp_path / "films"
    for number in range(6):
        write_pair(folder / f"<b>{number} & ü [x]#1%41.mp4", number % 3, number % 3, number=number)
    write_pair(folder / "short.mp4", 1, 1, number=7, seconds=0.5)
    write_ramp(folder / "silent.mp4", sound=False)
    (folder / "empty.mp4").touch()
    (folder / "words.mp4").write_text("not a video")
    shutil.copy(folder / "<b>0 & ü [x]#1%41.mp4", folder / "same.mp4")
    whole = write_pair(folder / "cut.avi", 2, 2, number=8).read_bytes()
    (folder / "cut.avi").write_bytes(whole[: len(whole) // 2])
    return folder


def test_what_cannot_be_used_is_listed_with_its_reason(mixed: Path, tmp_path: Path) -> None:
    report = curate(mixed, tmp_path / "out", clusters=3)
    table = manifest(tmp_path / "out").set_index("clip_id")
    refused = table[table["reason"].notna()]
    assert sorted(refused.index) == ["cut.avi", "empty.mp4", "same.mp4", "short.mp4", "silent.mp4", "words.mp4"]
    assert not refused["kept"].any() and refused["rank"].isna().all()
    for name, stage, said in (
        ("empty.mp4", "index", "zero bytes"),
        ("silent.mp4", "candidates", "has no sound"),
        ("short.mp4", "candidates", "less than 1 s"),
        ("same.mp4", "unique", "same bytes as <b>0"),
    ):
        assert refused["stage"][name] == stage and said in refused["reason"][name]
    listed = pd.read_csv(tmp_path / "out" / "quarantine.csv")
    assert sorted(listed["uri"]) == sorted(refused.index)
    assert report.usable == 6 and len(report.refused) == 6


def test_shards_are_curated_in_place(tmp_path: Path) -> None:
    for number in range(4):
        write_pair(tmp_path / "loose" / f"{number}.mp4", number % 2, number % 2, number=number)
    (tmp_path / "films").mkdir()
    with tarfile.open(tmp_path / "films" / "shard.tar", "w") as shard:
        shard.add(tmp_path / "loose", "x")
    report = curate(tmp_path / "films", tmp_path / "out", clusters=2)
    table = manifest(tmp_path / "out")
    assert report.kept == 2 and set(table["uri"]) == {"shard.tar"}
    assert sorted(table["clip_id"]) == [f"shard.tar#x/{number}.mp4" for number in range(4)]
    sizes = {f"shard.tar#x/{number}.mp4": (tmp_path / "loose" / f"{number}.mp4").stat().st_size for number in range(4)}
    assert table.set_index("clip_id")["length"].to_dict() == sizes and (table["offset"] > 0).all()
    assert len(list((tmp_path / "out" / "previews").iterdir())) == 4


def test_too_little_is_an_error_that_says_why(tmp_path: Path) -> None:
    write_ramp(tmp_path / "films" / "silent.mp4", sound=False)
    with pytest.raises(CurateError, match=r"no film that can be used.*silent\.mp4: has no sound"):
        curate(tmp_path / "films", tmp_path / "out")
    write_pair(tmp_path / "films" / "one.mp4", 1, 1)
    with pytest.raises(CurateError, match="only 1 usable clips"):
        curate(tmp_path / "films", tmp_path / "out")
    assert "silent.mp4" in (tmp_path / "out" / "quarantine.csv").read_text()


def test_folders_that_cannot_be_written_to(again: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = again
    with pytest.raises(CurateError, match=r"lie one in the other.*--out"):
        curate(source, source / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(CurateError, match=r"holds other files \(letter.txt.*--out"):
        curate(source, tmp_path / "mine")
    shutil.copytree(source, tmp_path / "others")
    with pytest.raises(CurateError, match=r"holds the curation of .*films"):
        curate(tmp_path / "others", out)
    with exclusive(out), pytest.raises(ValueError, match="another run"):
        curate(source, out)
    with pytest.raises(NotADirectoryError):
        curate(tmp_path / "gone", out)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"keep": 0.0}, r"--keep .* above 0 and at most 1, e\.g\. 0\.25; got 0\.0"),
        ({"keep": 1.5}, "got 1.5"),
        ({"keep": float("nan")}, "got nan"),
        ({"min_s": 0.0}, "--min-seconds"),
        ({"min_s": 9.0, "max_s": 8.0}, "--max-seconds"),
        ({"clusters": 1}, "--clusters must be at least 2"),
        ({"windows": 0}, "must be positive"),
        ({"duplicates": "nea"}, "did you mean 'near'"),
    ],
)
def test_settings_out_of_range(change: dict[str, Any], said: str) -> None:
    with pytest.raises(CurateError, match=said):
        settings(**change)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(curate_cli, "console", Console(width=160))
    return lambda *arguments: CliRunner().invoke(app, ["data", "curate", *map(str, arguments)])


def test_the_command_end_to_end(run: Any, mixed: Path) -> None:
    ran = run(mixed, "--keep", "0.5", "--random-features", "--workers", "1")
    assert ran.exit_code == 0, ran.output
    out = mixed.with_name("films-curated")
    assert "random features" in ran.output and "3 of 6 clips kept, 6 refused" in ran.output
    assert f"{out}: " in ran.output
    table = manifest(out)
    assert table["kept"].sum() == 3 and len(table) == 12
    page = (out / PAGE_FILE).read_text()
    assert "<b>" not in page and "&lt;b&gt;0 &amp; ü" in page and "random weights" in page
    assert page.count("<video") == 6
    assert "selection: as before" in run(mixed, "--keep", "0.5", "--random-features").output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keep", "1.5", "--random-features"], "--keep is the share"),
        (["--keep", "0.5"], "--video-weights FILE .*--random-features"),
        (["--keep", "0.5", "--video", "r3d18", "--random-features"], "did you mean 'r3d_18'"),
        (["--keep", "0.5", "--audio", "resnet", "--random-features"], "did you mean 'resnet9'"),
        (["--keep", "0.5", "--video", "gone.module:function", "--random-features"], "must be importable"),
        (["--keep", "0.5", "--video-weights", "gone.pt", "--audio-weights", "gone.pt"], "no file gone.pt"),
        (["--keep", "0.5", "--video-weights", "gone.pt", "--random-features"], "leave one of the two out"),
        (["--keep", "0.5", "--random-features", "--pairs", "diagnal"], "did you mean 'diagonal'"),
    ],
)
def test_mistakes_are_errors_of_use(run: Any, tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "films").mkdir()
    ran = run(tmp_path / "films", *arguments)
    assert isinstance(ran.exception, UsageError), ran.output
    assert re.search(said, str(ran.exception)), str(ran.exception)
    assert not (tmp_path / "films-curated").exists()


def test_a_choice_is_checked_before_any_work(made: tuple[Path, set[str]], tmp_path: Path) -> None:
    untrained = Settings(keep=0.5, video=SIGHT, audio=Choice("audio"))
    with pytest.raises(CurateError, match="the audio network has no weights: give --audio-weights FILE"):
        curate_folder(made[0], tmp_path / "out", untrained)
    assert not (tmp_path / "out").exists()
