"""``avssl keep`` on a toy chapter in a git repository: what is kept, what is refused, and that nothing stays behind."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers_cells import fork_cells
from rich.console import Console
from toy_book import write_book

from avssl import keep, old_code
from avssl.errors import UsageError
from avssl.keep import differences, keep_chapter
from avssl.record import record_chapter, sole_recording, status
from avssl_core.reporting import Ledger, code_hash

CELLS = """
# %%
from dataclasses import dataclass

LEVEL = {"good": 0.8, "bad": 0.5}

@dataclass(frozen=True)
class Config:
    steps: int = 1
    rate: float = 0.5
    device: str = "cpu"

def make_config(**values):
    return Config(**values)

def score(arm, seed, config):
    return LEVEL[arm] + 0.01 * seed + 0.001 * config.steps

def run_cell(arm, seed, config):
    told = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "AVSSL_CACHE", "AVSSL_DATA")}
    with open(os.environ["TOY_RAN"], "a") as ran:
        told |= {"arm": arm, "seed": seed, "steps": config.steps, "file": __file__, "cwd": os.getcwd()}
        ran.write(json.dumps(told) + "\\n")
    if config.device != "cpu":
        raise RuntimeError("there is no GPU here")
    return {"score": score(arm, seed, config), "curve": [0.1 * config.steps, config.rate]}
"""
RETURNED = "    return LEVEL[arm]"
REFUSES = f'    if seed < 0:\n        raise ValueError(f"no seed {{seed}}")\n{RETURNED}'
CLAIMS = """
chapter: toy
seeds: {seeds}
claims:
  - id: order
    statement: good beats bad
    paper: {{figure: "1", source: Table 1}}
    metric: score
    better: good
    worse: bad
    minimum_effect: 0.05
    corpus: playground
"""
REASON = "refuses seeds that no cell has"
Edit = Callable[["Toy"], object]


class Toy:
    """A book in a folder of a git repository, its chapter committed and recorded."""

    def __init__(self, repository: Path) -> None:
        self.repository, self.root = repository, repository / "book"
        write_book(self.root, CELLS)
        self.folder = self.root / "chapters" / "01_toy"
        self.script, self.ledger = self.folder / "toy.py", self.root / "results" / "toy" / "record-cpu.json"
        self.witness = repository.parent / "ran.txt"
        (self.folder / "record.yaml").write_text("steps: 2\n")
        self.seeds(1)
        git(repository, "init", "-q")
        self.commit()

    def seeds(self, count: int) -> None:
        (self.folder / "claims.yaml").write_text(CLAIMS.format(seeds=count))

    def commit(self) -> str:
        git(self.repository, "add", "book/book.yml", "book/chapters")
        git(self.repository, "commit", "-q", "--allow-empty", "-m", "as it stands")
        return git(self.repository, "rev-parse", "HEAD")

    def edit(self, old: str = RETURNED, new: str = REFUSES) -> None:
        text = self.script.read_text()
        assert text.count(old) == 1
        self.script.write_text(text.replace(old, new))

    def record(self, **options: Any) -> str:
        output = io.StringIO()
        report = record_chapter(self.folder, console=Console(file=output, width=200), **options)
        assert report.ok
        return output.getvalue()

    def keep(self, **options: Any) -> tuple[keep.Report, str]:
        output = io.StringIO()
        given = {"reason": REASON, "arms": ["good"], **options}
        return keep_chapter(self.folder, console=Console(file=output, width=200), **given), output.getvalue()

    def ran(self) -> list[dict[str, Any]]:
        """What the cells since the last call told about themselves."""
        lines = self.witness.read_text().splitlines() if self.witness.exists() else []
        self.witness.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def checkouts(self) -> int:
        return git(self.repository, "worktree", "list", "--porcelain").count("worktree ")


def git(folder: Path, *arguments: str) -> str:
    names = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    done = subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made during a test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def toy(tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """Recorded, with cells that are forked and code that is hashed in this process; see the last test for others."""
    fork_cells(monkeypatch)
    monkeypatch.setattr(old_code, "_code_there", lambda root, script: code_hash(script))
    monkeypatch.setenv("TOY_RAN", str(tmp_path / "ran.txt"))
    monkeypatch.setenv("AVSSL_DATA", "videos")
    made = Toy(tmp_path / "repository")
    made.record()
    assert len(made.ran()) == 2
    return made


def test_a_neutral_edit_is_kept_and_nothing_is_stale(toy: Toy, temporary: Path) -> None:
    before = json.loads(toy.ledger.read_text())
    old, commit = code_hash(toy.script).sha256, git(toy.repository, "rev-parse", "HEAD")
    toy.edit()
    assert "2 recorded by other code" in toy.record(dry_run=True)
    report, said = toy.keep(overrides=["steps=7", "rate=0.25"])
    assert report.ok and "evidence that the edit changes none, not proof; the ledger says so" in said
    assert "good: 2 metrics equal to the last bit" in said and "kept 2 cells" in said
    after = json.loads(toy.ledger.read_text())
    new = code_hash(toy.script).sha256
    assert after.pop("kept") == [
        {
            "from": old,
            "to": new,
            "commit": commit,
            "reason": REASON,
            "changed": ["chapter:score"],
            "checked": [
                {"arm": "good", "seed": 0, "overrides": {"steps": 7, "rate": 0.25}, "metrics": ["curve", "score"]}
            ],
            "note": "a few short cells gave equal figures on a CPU: evidence that the edit changes none, not proof",
        }
    ]
    assert {cell["code_hash"] for cell in after["cells"]} == {new} != {old}
    assert after == json.loads(json.dumps(before).replace(old, new))  # nothing else is another
    line = toy.record(dry_run=True)
    assert "2 cells done (kept across 1 edit of the code), nothing missing" in line and "other code" not in line


GAINED = ("    rate: float = 0.5\n", "    rate: float = 0.5\n    slope: float = 0.0\n")


def test_a_parameter_gained_is_kept_at_its_default(toy: Toy, temporary: Path) -> None:
    toy.edit(*GAINED)
    toy.edit("steps: int = 3", "slope: float = 0.0\nsteps: int = 3")  # the cell of parameters
    toy.edit("0.001 * config.steps", "0.001 * config.steps + config.slope * seed")
    with pytest.raises(UsageError, match=r"-p slope=0\.5: the code of the cells has no such parameter"):
        toy.keep(overrides=["slope=0.5"])
    report, _ = toy.keep(overrides=["steps=7"])
    assert report.ok
    ledger = Ledger.read(toy.ledger)
    assert ledger.kept[-1]["added"] == {"slope": 0.0} and ledger.config["slope"] == 0.0
    assert "2 cells done (kept across 1 edit of the code), nothing missing" in toy.record(dry_run=True)
    toy.commit()
    toy.edit()  # and once more, now that the ledger knows the parameter
    assert toy.keep(overrides=["steps=7"])[0].ok and "added" not in Ledger.read(toy.ledger).kept[-1]
    assert toy.ran()[-1]["steps"] == 7


@pytest.mark.parametrize(
    ("record", "edits", "told"),
    [
        ("steps: 2\nslope: 0.1\n", [GAINED], r"2 of 2 cells .* \(slope: 'absent', today 0.1\)"),
        ("steps: 2\n", [("    rate: float = 0.5\n", "    rate: float = 0.4\n")], r"2 of 2 .* \(rate: 0.5, today 0.4\)"),
        ("steps: 2\n", [GAINED, ("    steps: int = 1\n", "    steps: int = 1\n    rise: int = 1\n"),
                        ("    rate: float = 0.5\n", "")], r"rate: 0.5, today 'absent'"),
    ],
)  # fmt: skip
def test_a_value_that_changed_is_not_kept_beside_a_gained_parameter(
    toy: Toy, record: str, edits: list[tuple[str, str]], told: str
) -> None:
    for old, new in edits:
        toy.edit(old, new)
    (toy.folder / "record.yaml").write_text(record)
    toy.ran()
    before = toy.ledger.read_bytes()
    with pytest.raises(UsageError, match=told):
        toy.keep()
    assert toy.ledger.read_bytes() == before and toy.ran() == []


def test_both_codes_run_the_same_short_cell_with_caches_of_their_own(toy: Toy, temporary: Path) -> None:
    toy.edit()
    toy.keep(overrides=["steps=7"], seed=3)
    first, second = toy.ran()
    assert Path(first["file"]).is_relative_to(temporary) and second["file"] == str(toy.script)
    same = {"arm": "good", "seed": 3, "steps": 7, "OMP_NUM_THREADS": "1", "AVSSL_DATA": str(Path.cwd() / "videos")}
    assert same.items() <= first.items() and same.items() <= second.items()
    assert [Path(each["file"]).parents[2] for each in (first, second)] == [Path(first["cwd"]), toy.root]
    assert second["cwd"] == str(toy.root)
    caches = {Path(each["AVSSL_CACHE"]) for each in (first, second)}
    assert len(caches) == 2 and all(cache.is_relative_to(temporary) for cache in caches)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("0.001 *", "0.0010000001 *", "good: score: 0.802 by the old code, 0.80200000"),
        ("[0.1 *", "[0.3 *", "good: curve: 1 of 2 numbers differ, by up to 0.4"),
        ('"bad": 0.5', '"bad": 0.25', "bad: score: 0.502 by the old code, 0.252 by the new, -0.25"),
        ('"curve"', '"line"', "good: curve: only the old code reports it"),
    ],
)
def test_an_edit_that_changes_a_figure_changes_nothing_in_the_ledger(toy: Toy, old: str, new: str, told: str) -> None:
    before = toy.ledger.read_bytes()
    toy.edit(old, new)
    report, said = toy.keep(arms=["good", "bad"])
    assert not report.ok and told in said and "nothing is kept" in said
    assert toy.ledger.read_bytes() == before and "2 recorded by other code" in toy.record(dry_run=True)


def test_a_difference_is_told_to_the_last_bit() -> None:
    nearly = 0.1 + 0.2
    assert differences({"a": 0.3, "b": [1.0, [0.5]]}, {"a": 0.3, "b": [1.0, [0.5]]}) == ()
    assert differences({"a": 0.3}, {"a": nearly}) == (f"a: 0.3 by the old code, {nearly} by the new, +5.55e-17",)
    assert differences({"a": 0.0}, {"a": -0.0}) == ("a: 0.0 by the old code, -0.0 by the new, -0",)
    assert differences({"a": [1.0]}, {"a": [1.0, 2.0]}) == ("a: 1 numbers by the old code, 2 by the new",)
    assert differences({"a": [1.0, 2.0]}, {"a": [[1.0, 2.0]]}) == ("a: 0 of 2 numbers differ, by up to 0",)
    assert differences({}, {"a": 1.0}) == ("a: only the new code reports it",)


def test_a_cell_that_fails_keeps_nothing(toy: Toy) -> None:
    before = toy.ledger.read_bytes()
    toy.edit(new=f'    raise ValueError("broken on purpose")\n{RETURNED}')
    report, said = toy.keep()
    assert not report.ok and "good by the new code: failed with exit code 1" in said and "broken on purpose" in said
    assert toy.ledger.read_bytes() == before


def with_ledger(toy: Toy, change: Callable[[Ledger], Ledger]) -> None:
    change(Ledger.read(toy.ledger)).write(toy.ledger)


def of_two_codes(ledger: Ledger) -> Ledger:
    return replace(ledger, cells=(replace(ledger.cells[0], code_hash="f" * 64), *ledger.cells[1:]))


def recorded_before_its_commit(toy: Toy) -> None:
    toy.edit("0.01 *", "0.02 *")
    toy.record()
    assert str(Ledger.read(toy.ledger).commit).endswith("-dirty")


@pytest.mark.parametrize(
    ("prepare", "told"),
    [
        (lambda toy: (toy.folder / "record.yaml").write_text("steps: 3\n"), r"2 of 2 cells .* \(steps: 2, today 3\)"),
        (recorded_before_its_commit, "made by code .* before their code was committed"),
        (lambda toy: with_ledger(toy, lambda ledger: replace(ledger, commit="0" * 40)), "commit 0+ of .* not in git"),
        (lambda toy: with_ledger(toy, lambda ledger: replace(ledger, commit=None)), "names no commit"),
        (lambda toy: with_ledger(toy, of_two_codes), "come from 2 codes"),
        (lambda toy: toy.ledger.unlink(), "holds no cells to keep"),
        (lambda toy: toy.edit(REFUSES, RETURNED), "nothing to keep"),
    ],
)
def test_what_is_not_stale_by_one_known_code_alone_is_refused(toy: Toy, prepare: Edit, told: str) -> None:
    if prepare is not recorded_before_its_commit:
        toy.edit()
    prepare(toy)
    if prepare is recorded_before_its_commit:
        toy.edit()
    toy.ran()
    before = toy.ledger.read_bytes() if toy.ledger.exists() else None
    with pytest.raises(UsageError, match=told):
        toy.keep()
    assert toy.ran() == [] and toy.checkouts() == 1
    assert (toy.ledger.read_bytes() if toy.ledger.exists() else None) == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"arms": ["good", "bat"]}, "unknown arm of the ledger 'bat'; did you mean 'bad'"),
        ({"arms": []}, "no arm to compare: .* --arm good"),
        ({"reason": " \n"}, "--reason is empty"),
        ({"overrides": ["stepps=1"]}, "unknown parameter 'stepps'; did you mean 'steps'"),
        ({"overrides": ["steps=many"]}, "steps is int"),
        ({"overrides": ["note=x"]}, "make_config refuses"),
        ({"device": "cuda"}, "record-cuda.json holds no cells"),
        ({"device": "gpu"}, "--device gpu: no such device"),
    ],
)
def test_what_was_asked_wrongly_is_said_before_anything_runs(toy: Toy, options: dict[str, Any], told: str) -> None:
    toy.edit()
    before = toy.ledger.read_bytes()
    with pytest.raises(UsageError, match=told):
        toy.keep(**options)
    assert toy.ran() == [] and toy.ledger.read_bytes() == before


def test_the_device_of_the_comparison_is_not_a_parameter(toy: Toy) -> None:
    toy.edit("note: str | None = None", 'device: str = "cpu"')
    toy.edit()
    with pytest.raises(UsageError, match="-p device=cuda: the comparison runs on the CPU"):
        toy.keep(overrides=["device=cuda"])


def test_a_recording_at_work_is_waited_for(toy: Toy) -> None:
    toy.edit()
    cells = toy.root / "runs" / "cells" / "toy" / "record-cpu"
    with sole_recording(cells), pytest.raises(UsageError, match="another recording is at work"):
        toy.keep()


def interrupted(toy: Toy, seen: list[int]) -> Callable[..., Iterator[None]]:
    def run_cells(requests: object, **options: object) -> Iterator[None]:
        seen.append(toy.checkouts())
        raise KeyboardInterrupt
        yield

    return run_cells


@pytest.mark.parametrize("ending", ["kept", "different", "failed", "interrupted", "refused"])
def test_the_checkout_is_gone_however_it_ends(
    toy: Toy, temporary: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    edits = {"different": RETURNED.replace("return", "return 1 +"), "failed": f"    1 / 0\n{RETURNED}"}
    toy.edit(new=edits.get(ending, REFUSES))
    seen: list[int] = []
    if ending == "interrupted":
        monkeypatch.setattr(keep, "run_cells", interrupted(toy, seen))
        with pytest.raises(KeyboardInterrupt):
            toy.keep()
    elif ending == "refused":
        there = lambda root, script: seen.append(toy.checkouts()) or code_hash(toy.script)  # noqa: E731
        monkeypatch.setattr(old_code, "_code_there", there)
        with pytest.raises(UsageError, match="made by code"):
            toy.keep()
    else:
        run = keep.run_cells
        monkeypatch.setattr(keep, "run_cells", lambda *a, **o: seen.append(toy.checkouts()) or run(*a, **o))
        report, _ = toy.keep()
        assert report.ok == (ending == "kept")
    assert seen and set(seen) == {2}  # it was there
    assert toy.checkouts() == 1 and list((toy.repository / ".git" / "worktrees").glob("*")) == []
    assert list(temporary.iterdir()) == []


def test_what_was_kept_survives_recording_and_a_second_edit(toy: Toy) -> None:
    """The second edit is compared with the code that made the figures: the first was never committed."""
    original = code_hash(toy.script).sha256
    toy.edit()
    toy.keep()
    toy.edit("no seed", "there is no seed")
    report, _ = toy.keep(reason="says it better")
    assert report.ok
    kept = Ledger.read(toy.ledger).kept
    assert [edit["reason"] for edit in kept] == [REASON, "says it better"]
    assert [edit["from"] for edit in kept] == [original, original]
    toy.seeds(2)
    toy.commit()
    toy.ran()
    toy.record()
    # only what is new, in whichever order two processes come to it
    assert sorted((each["arm"], each["seed"]) for each in toy.ran()) == [("bad", 1), ("good", 1)]
    ledger = Ledger.read(toy.ledger)
    assert ledger.kept == kept and len(ledger.cells) == 4 and ledger.claim("order").n_seeds == 2
    assert {cell.code_hash for cell in ledger.cells} == {kept[-1]["to"]}


def test_a_third_edit_is_compared_with_the_commit_that_recorded_last(toy: Toy) -> None:
    toy.edit()
    toy.keep()
    second = code_hash(toy.script).sha256
    commit = toy.commit()
    (toy.folder / "small.yaml").write_text("steps: 6\n")  # uncommitted, and not read by any cell
    toy.record()
    assert Ledger.read(toy.ledger).commit == f"{commit}-dirty"
    toy.edit("no seed", "there is no seed")
    report, _ = toy.keep()
    edit = Ledger.read(toy.ledger).kept[-1]
    assert report.ok and (edit["from"], edit["commit"]) == (second, f"{commit}-dirty")


def test_cells_that_are_run_anew_were_not_kept(toy: Toy) -> None:
    toy.edit()
    toy.keep()
    toy.edit("0.001 *", "0.002 *")
    assert status(toy.folder).kept == 0 and status(toy.folder).stale == 2
    toy.record()
    assert Ledger.read(toy.ledger).kept == () and "kept" not in json.loads(toy.ledger.read_text())


def test_a_cuda_ledger_is_compared_on_the_cpu(toy: Toy) -> None:
    ledger = Ledger.read(toy.ledger)
    on_cuda = toy.ledger.with_name("record-cuda.json")
    cells = tuple(replace(cell, device="cuda", hardware="a GPU") for cell in ledger.cells)
    replace(ledger, device="cuda", cells=cells).write(on_cuda)
    before = toy.ledger.read_bytes()
    toy.edit()
    report, _ = toy.keep(device="cuda:1")  # its cells refuse any other device than the CPU
    assert report.ok and len(toy.ran()) == 2
    assert status(toy.folder, device="cuda").stale == 0 and not status(toy.folder, device="cuda").missing
    assert {cell.device for cell in Ledger.read(on_cuda).cells} == {"cuda"}
    assert toy.ledger.read_bytes() == before and status(toy.folder).stale == 2  # each ledger has its own say


def test_a_chapter_whose_folder_was_renumbered_is_found(toy: Toy) -> None:
    toy.edit()
    toy.folder = toy.folder.rename(toy.folder.with_name("02_toy"))
    report, _ = toy.keep()
    assert report.ok


def avssl(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line as a person runs it, in a book whose packages are its own, told by ``PYTHONPATH`` alone."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("AVSSL_")}
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "TOY_RAN": str(root / "ran.txt"), "COLUMNS": "200"}
    command = [sys.executable, "-m", "avssl", *arguments]
    return subprocess.run(command, cwd=root, env=inherited | own, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_each_code_runs_with_the_packages_of_its_own_checkout(tmp_path: Path) -> None:
    """Processes as they are started outside tests; what was edited lies in a package, once without and once with a
    change of the figures.
    """
    toy = Toy(tmp_path / "repository")
    package = toy.root / "data_prep" / "__init__.py"
    package.parent.mkdir()
    package.write_text("def bonus(seed):\n    return 0.25\n")
    toy.edit("+ 0.01 * seed", "+ bonus(seed)")
    toy.edit("from dataclasses import dataclass", "from dataclasses import dataclass\nfrom data_prep import bonus")
    git(toy.repository, "add", "book/data_prep")
    toy.commit()
    recorded = avssl(toy.root, "record", "toy")
    assert recorded.returncode == 0, recorded.stdout + recorded.stderr
    asked = ("keep", "toy", "--reason", REASON, "--arm", "good", "-p", "steps=1")
    package.write_text("def bonus(seed):\n    if seed < 0:\n        raise ValueError(seed)\n    return 0.25\n")
    kept = avssl(toy.root, *asked)
    assert kept.returncode == 0, kept.stdout + kept.stderr
    ledger = Ledger.read(toy.ledger)
    assert [edit["changed"] for edit in ledger.kept] == [["data_prep:bonus"]]
    assert "nothing missing" in avssl(toy.root, "record", "toy", "--dry-run").stdout
    before = toy.ledger.read_bytes()
    package.write_text("def bonus(seed):\n    return 0.5\n")
    refused = avssl(toy.root, *asked)
    assert refused.returncode == 1 and "good: score: 1.051 by the old code, 1.301 by the new" in refused.stdout
    assert toy.ledger.read_bytes() == before and toy.checkouts() == 1
    nameless = avssl(toy.root, "keep", "toy", "--reason", REASON)
    assert nameless.returncode == 2 and "name at least one" in nameless.stderr
