"""``avssl data``: folders of real files, good and bad, through the command line."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from avssl import data_cli
from avssl.cli import app
from avssl.data_cli import summary, undecodable
from avssl.errors import UsageError
from avssl_core.media import write_clip


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(data_cli, "console", Console(width=160))
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, ["data", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good clips, one without sound, one that is no video, one cut in the middle."""
    place = tmp_path / "my [clips]"
    place.mkdir()
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 255, (50, 3, 64, 96), dtype=torch.uint8, generator=generator)
    tone = torch.sin(torch.arange(32000) * 0.1) * 0.5
    for name in ("a.mp4", "b é.mp4"):
        write_clip(place / name, frames, tone)
    write_clip(place / "silent.mp4", frames)
    (place / "words.mp4").write_text("not a video")
    return place


def test_index_says_how_many_and_what_was_refused(run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    ran = run("index", folder)
    assert ran.exit_code == 0, ran.output
    assert "clips indexed" in ran.output
    assert "words.mp4" in ran.output  # with its reason
    again = run("inspect", folder)
    assert again.exit_code == 0, again.output
    for text in ("96×64", "25.0", "mpeg4", "aac", "seconds a clip"):
        assert text in again.output


def test_verify_finds_a_file_that_only_breaks_in_the_middle(run, folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert run("index", folder).exit_code == 0
    assert run("verify", folder).exit_code == 0
    whole = (folder / "a.mp4").read_bytes()
    middle = len(whole) // 4
    (folder / "a.mp4").write_bytes(whole[:middle])  # cut after it was indexed
    ran = run("verify", folder, "--quarantine", tmp_path / "bad.csv")
    assert ran.exit_code == 1
    bad = pd.read_csv(tmp_path / "bad.csv")
    assert list(bad["uri"]) == ["a.mp4"]
    assert "a.mp4" in bad["reason"].iloc[0]


def test_undecodable_takes_files_without_sound_and_names_what_vanished(folder: Path) -> None:
    assert undecodable(folder / "silent.mp4") is None
    assert undecodable(folder / "a.mp4") is None
    assert undecodable(folder / "words.mp4") is not None
    assert "gone.mp4" in str(undecodable(folder / "gone.mp4"))


def test_an_empty_folder_is_an_error_of_use(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for command in ("index", "inspect", "verify"):
        ran = run(command, tmp_path)
        assert isinstance(ran.exception, UsageError), ran.output
        assert str(tmp_path) in str(ran.exception)


def test_playground_files_are_written_and_can_be_inspected(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ran = run("playground", "actions", "--clips", 2, "--out", tmp_path, "--workers", 1)
    assert ran.exit_code == 0, f"{ran.output}{ran.exception!r}"
    corpus = next(tmp_path.glob("actions-*"))
    assert str(corpus) in ran.output
    assert len(list(corpus.rglob("*.mp4"))) == 2
    shown = run("inspect", corpus / "index.parquet")
    assert shown.exit_code == 0, f"{shown.output}{shown.exception!r}"
    assert "timed labels" in shown.output
    assert run("verify", corpus).exit_code == 0


@pytest.mark.parametrize("arguments", [["actionz"], ["actions", "-p", "sise=64"], ["actions", "-p", "size"]])
def test_playground_mistakes_are_errors_of_use(run, arguments: list[str]) -> None:  # type: ignore[no-untyped-def]
    ran = run("playground", *arguments, "--clips", 1)
    assert isinstance(ran.exception, UsageError)
    assert arguments[-1].split("=")[0] in str(ran.exception)


def test_grid_without_its_archives_is_an_error_of_use(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    ran = run("grid", tmp_path / "nowhere", "--out", tmp_path / "lips", "--speakers", "s1, s2")
    assert isinstance(ran.exception, UsageError), ran.output
    assert "nowhere" in str(ran.exception)
    (tmp_path / "empty").mkdir()
    ran = run("grid", tmp_path / "empty", "--out", tmp_path / "lips")
    assert isinstance(ran.exception, UsageError), ran.output


def test_a_summary_counts_and_shortens() -> None:
    clips = pd.DataFrame(
        {
            "duration_s": [1.0, 2.0, 3.0],
            "width": [96, 96, 64],
            "height": [64, 64, 64],
            "fps": [25.0, 25.0, 30.0],
            "audio_codec": ["aac", None, "aac"],
            "label_word": ["a", "b", "a"],
            "group": [0, 1, 1],
        }
    )
    rows = summary(clips)
    assert rows["clips"] == "3"
    assert rows["seconds a clip"] == "1.00 to 3.00, median 2.00"
    assert rows["size"] == "96×64 (2), 64×64 (1)"
    assert rows["audio_codec"] == "aac (2), none (1)"
    assert rows["label_word"] == "2 values"
    assert rows["groups"] == "2"
    many = pd.DataFrame({"duration_s": range(6), "width": range(6), "height": range(6)})
    assert summary(many)["size"].endswith("2 more")
