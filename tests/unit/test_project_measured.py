"""The page "What was measured": every benchmark's file, figures as they stand there, and no missed goal left out."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from avssl import measured
from avssl.measured import conditions
from avssl.measured_rows import ratio
from avssl.measured_sections import BENCHMARKS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RESULTS, tmp_path / "results"))


def measured_page(results: Path) -> str:
    """The page with ordinary spaces."""
    return measured.measured_page(results).replace("\u00a0", " ")


def change(path: Path, value: object, *keys: str) -> None:
    """Write another value into a result file, under these keys."""
    found = json.loads(path.read_text())
    inner = found
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(found))


def test_every_result_file_has_its_section() -> None:
    page = measured_page(RESULTS)
    names = sorted(path.name for path in RESULTS.glob("*.json"))
    assert names == sorted(BENCHMARKS)
    assert re.findall(r"^.*Measured on: .+ \(`(\w+\.json)`\)\.$", page, flags=re.MULTILINE) == list(BENCHMARKS)
    assert page.count("\n## ") == len(names) + 1  # and the missed goals
    for benchmark in BENCHMARKS.values():
        assert (ROOT / "benchmarks" / benchmark.command.split()[0]).is_file()


def test_the_table_of_binding_is_the_benchmarks() -> None:
    """The recipe's description shows what the file holds, to two digits."""
    held = json.loads((RESULTS / "binding_streams.json").read_text())["results"]
    text = (ROOT / "data_prep" / "playground" / "recipes" / "binding.py").read_text()
    for world, streams in held.items():
        (shown,) = re.findall(rf"^`*{re.escape(world)}`*.*?((?:\s+\d\.\d\d){{4}})$", text, flags=re.MULTILINE)
        assert shown.split() == [f"{value:.2f}" for value in streams.values()], world


def test_the_page_is_in_the_table_of_contents() -> None:
    toc = yaml.safe_load((ROOT / "book.yml").read_text())
    assert {"file": "what-was-measured"} in toc["parts"][0]["chapters"]


def test_missed_goals_are_named_at_the_top() -> None:
    page = measured_page(RESULTS)
    top, *sections = page.split("\n## ")[1:]
    listed = re.findall(r"^- \*\*(.+)\*\*, (.+): (.+), goal (.+)\.$", top, flags=re.MULTILINE)
    marked = [
        (section.split("\n")[0], what, value, goal)
        for section in sections
        for what, value, goal in re.findall(r"^\| (.+) \| (.+) \| (.+) \| \*\*no\*\* \|$", section, flags=re.MULTILINE)
    ]
    assert listed and listed == marked
    met, goals = map(int, re.search(r"(\d+) of (\d+) goals were met", top).groups())
    assert (goals - met, met) == (len(marked), page.count(" | yes |"))


def test_figures_and_verdicts_follow_the_files(results: Path) -> None:
    gpu = results / "attention_cuda_float32.json"
    missed = "**Trajectory attention, on a GPU**, time, 8×14×14 tokens: 0.500 ×, goal ≥ 1.5 ×"
    change(gpu, 0.5, "sizes", "8 x 14 x 14", "plain", "time_ratio")
    change(gpu, 12.34, "sizes", "8 x 14 x 14", "plain", "memory_ratio")
    page = measured_page(results)
    assert missed in page
    assert "ours takes 2.00 times as long as that, at 12.3 times less memory" in page
    change(gpu, 1.75, "sizes", "8 x 14 x 14", "plain", "time_ratio")
    page = measured_page(results)
    assert missed not in page and "not been measured yet" not in page
    assert "| time, 8×14×14 tokens | 1.75 × | ≥ 1.5 × | yes |" in page
    change(results / "playground_speed.json", 19.9, "recipes", "boxes", "clips_per_s")
    assert "- **The playground's speed**, boxes: 19.9 clips a second, goal ≥ 20." in measured_page(results)


def test_a_missing_an_unknown_and_a_broken_file_stop_the_build(results: Path) -> None:
    shutil.copy(results / "losses.json", results / "novel.json")
    with pytest.raises(ValueError, match=r"novel\.json has no section on the page: add one"):
        measured_page(results)
    (results / "novel.json").unlink()
    (results / "losses.json").write_text('{"settings": {}}')
    with pytest.raises(ValueError, match=r"losses\.json does not hold .*'batch'.*run `python benchmarks/losses\.py`"):
        measured_page(results)
    (results / "losses.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"losses\.json does not exist: run `python benchmarks/losses\.py`"):
        measured_page(results)


@pytest.mark.parametrize(
    ("found", "stated", "told"),
    [
        ({"device": "cpu", "threads": 1, "versions": {"torch": "2"}}, "", "a CPU; 1 thread; torch 2"),
        ({"processor": "x86_64", "torch": "2"}, "one thread", "x86_64 processor; one thread; torch 2"),
        ({"settings": {"workers": [1, 2]}, "machine": "m"}, "", "m processor; 1 and 2 workers (versions not recorded)"),
        (
            {"machine": {"processor": "x86_64", "cpu_capability": "AVX512", "cores": 2}, "threads": 2, "torch": "2"},
            "",
            "x86_64 processor (AVX512, 2 cores); 2 threads; torch 2",
        ),
        (
            {"load_average_before": 1.9},
            "",
            "load average before it 1.9 (machine and threads and versions not recorded)",
        ),
    ],
)
def test_what_a_file_does_not_say_is_named(found: dict[str, object], stated: str, told: str) -> None:
    assert conditions(found, stated) == told


def test_ratios_are_judged_unrounded() -> None:
    row = ratio("time", 1.4999, 1.5)
    assert (row.value, row.goal, row.met) == ("1.50 ×", "≥ 1.5 ×", False)
    assert ratio("time", 1.5, 1.5).met and ratio("time", 107.08).value == "107 ×"
