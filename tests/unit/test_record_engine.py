"""``avssl record`` on a chapter whose cells take no time: sittings, failures, hashes, commits, and the ledger."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers_cells import fork_cells
from rich.console import Console

from avssl.cell import checked_metrics
from avssl.errors import UsageError
from avssl.record import record_chapter, status
from avssl_core.reporting import Ledger

SCRIPT = """# %% [markdown]
# # Toy
# %%
from __future__ import annotations
import os
import time
from dataclasses import dataclass
from pathlib import Path

LEVEL = {"good": 0.8, "bad": 0.5, "flat": 0.5, "long": 0.9, "real": 0.7, "unreal": 0.6}

@dataclass(frozen=True)
class Config:
    steps: int = 1
    device: str = "cpu"

def make_config(**values) -> Config:
    return Config(**values)

def run_cell(arm, seed, config):
    flag = Path(__file__).with_name(f"{arm}-{seed}.do")
    what = flag.read_text() if flag.exists() else ""
    with open(Path(__file__).with_name("ran.txt"), "a") as ran:
        ran.write(f"{arm}-{seed} {os.environ['OMP_NUM_THREADS']} {config.device} {os.environ['AVSSL_DATA']}\\n")
    if what == "raise":
        raise RuntimeError(f"broken on purpose in {arm}")
    if what == "sleep":
        time.sleep(600)
    if what == "kill":
        os.kill(os.getpid(), 9)
    return {"score": LEVEL[arm] + 0.01 * seed + 0.001 * config.steps * (seed % 2), "curve": [1.0, 0.5]}

print("never printed")
raise SystemExit("cells of the notebook are not run")
"""

CLAIMS = {
    "seeds": 5,
    "claims": [
        {
            "id": "order",
            "statement": "good beats bad",
            "paper": {"figure": "1", "source": "Table 1"},
            "metric": "score",
            "better": "good",
            "worse": "bad",
            "minimum_effect": 0.05,
            "corpus": "playground",
            "control": {"statement": "flat", "better": "flat", "worse": "bad", "expectation": "not_reproduced"},
        },
        {
            "id": "on-real",
            "statement": "real beats unreal",
            "paper": {"figure": "1", "source": "Table 1"},
            "metric": "score",
            "better": "real",
            "worse": "unreal",
            "minimum_effect": 0.05,
            "corpus": "grid",
            "seeds": 2,
        },
        {
            "id": "later",
            "statement": "long beats good",
            "paper": {"figure": "1", "source": "Table 1"},
            "metric": "score",
            "better": "long",
            "worse": "good",
            "minimum_effect": 0.05,
            "corpus": "playground",
            "extended": True,
            "seeds": 1,
        },
    ],
}


class Toy:
    """A chapter folder in a book of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "chapters" / "01_toy"
        self.folder.mkdir(parents=True)
        self.script = self.folder / "toy.py"
        self.script.write_text(SCRIPT, encoding="utf-8")
        self.write_claims(CLAIMS)
        (self.folder / "record.yaml").write_text("steps: 2\n", encoding="utf-8")

    def write_claims(self, claims: dict) -> None:
        (self.folder / "claims.yaml").write_text(yaml.safe_dump(claims), encoding="utf-8")

    def command(self, arm: str, seed: int, what: str) -> Path:
        flag = self.folder / f"{arm}-{seed}.do"
        flag.write_text(what, encoding="utf-8")
        return flag

    def record(self, **options):
        self.output = io.StringIO()
        return record_chapter(self.folder, console=Console(file=self.output, width=200), **options)

    def ran(self) -> list[str]:
        path = self.folder / "ran.txt"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return sorted(line.split()[0] for line in lines)

    @property
    def ledger(self) -> Path:
        return self.root / "results" / "toy" / "record-cpu.json"


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


@pytest.fixture
def forked_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells without the seconds that a Python takes to import, for what does not depend on how a cell is started."""
    fork_cells(monkeypatch)


def git(folder: Path, *arguments: str) -> None:
    names = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", *names, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.usefixtures("forked_cells")
def test_a_whole_recording(toy: Toy) -> None:
    report = toy.record()
    assert report.ok and len(report.ran) == 19 and not report.status.missing
    ledger = Ledger.read(toy.ledger)
    order = ledger.claim("order")
    assert order.verdict == "reproduced" and order.effect == pytest.approx(0.3) and order.n_seeds == 5
    assert order.control is not None and order.control.outcome == "as expected"
    assert ledger.claim("on-real").verdict == "undecided at this size"
    assert ledger.claim("later").n_seeds == 0  # extended: registered, not run
    assert ledger.chapter == "toy" and ledger.config["steps"] == 2 and ledger.seeds == (0, 1, 2, 3, 4)
    assert {cell.corpus for cell in ledger.cells if cell.arm in ("real", "unreal")} == {"grid"}
    assert ledger.cells[0].metrics["curve"] == [1.0, 0.5]
    assert set(ledger.versions) >= {"python", "torch", "numpy"}
    text = toy.output.getvalue()
    assert "19 missing (time left unknown" in text and "[19/19]" in text and "reproduced" in text
    assert "never printed" not in text
    lines = (toy.folder / "ran.txt").read_text(encoding="utf-8").splitlines()
    assert {line.split()[1:][0] for line in lines} == {"1"}  # one thread each
    leftover = {path.suffix for path in (toy.root / "runs" / "cells" / "toy" / "record-cpu").iterdir()}
    assert leftover == {".json", ""}  # the cells; the lock and the folder of code hashes


def test_a_second_sitting_runs_nothing_and_a_clone_needs_only_the_ledger(toy: Toy) -> None:
    """With cells as they are started outside tests: processes of their own."""
    toy.record(only="on-real")
    assert {line.split()[1] for line in (toy.folder / "ran.txt").read_text(encoding="utf-8").splitlines()} == {"1"}
    toy.ran()
    before = Ledger.read(toy.ledger)
    assert toy.record(only="on-real").ran == () and toy.ran() == []
    for path in (toy.root / "runs").rglob("*.json"):
        path.unlink()
    report = toy.record(only="on-real")
    assert report.ran == () and toy.ran() == []
    assert Ledger.read(toy.ledger).cells == before.cells


@pytest.mark.usefixtures("forked_cells")
def test_only_extended_and_dry_run(toy: Toy) -> None:
    report = toy.record(dry_run=True)
    assert len(report.status.missing) == 19 and not toy.ledger.exists() and not (toy.root / "runs").exists()
    assert "good: seeds 0, 1, 2, 3, 4" in toy.output.getvalue()
    toy.record(only="on-real")
    assert toy.ran() == ["real-0", "real-1", "unreal-0", "unreal-1"]
    toy.record(only=["bad"])
    assert toy.ran() == [f"bad-{seed}" for seed in range(5)]
    now = status(toy.folder)
    assert len(now.done) == 9 and len(now.missing) == 10 and now.hours_left is not None and now.hours_left >= 0
    toy.record(extended=True)
    assert Ledger.read(toy.ledger).claim("later").n_seeds == 1
    with pytest.raises(UsageError, match="did you mean 'order'"):
        toy.record(only="ordre")


@pytest.mark.usefixtures("forked_cells")
def test_cells_look_for_corpora_where_the_command_was_typed(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = toy.root / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for given, seen in ((None, toy.root / "data"), ("videos", elsewhere / "videos")):
        monkeypatch.delenv("AVSSL_DATA", raising=False)
        if given is not None:
            monkeypatch.setenv("AVSSL_DATA", given)
        (toy.folder / "record.yaml").write_text(f"steps: {len(str(seen))}\n", encoding="utf-8")
        toy.record(only="real")
        lines = (toy.folder / "ran.txt").read_text(encoding="utf-8").splitlines()
        assert len(toy.ran()) == 2 and {line.split()[3] for line in lines} == {str(seen)}


@pytest.mark.usefixtures("forked_cells")
def test_a_failing_cell_is_told_and_does_not_stop_the_others(toy: Toy) -> None:
    flag = toy.command("good", 1, "raise")
    toy.command("flat", 0, "kill")
    toy.record(only="bad")
    report = toy.record(jobs=3, only=["good", "flat"])
    assert not report.ok and len(report.ran) == 8
    reasons = {(failure.arm, failure.seed): failure.reason for failure in report.failures}
    assert "RuntimeError: broken on purpose in good" in reasons["good", 1] and "Traceback" in reasons["good", 1]
    assert "killed by SIGKILL" in reasons["flat", 0]
    assert "broken on purpose in good" in toy.output.getvalue()
    assert Ledger.read(toy.ledger).claim("order").n_seeds == 4
    flag.unlink()
    toy.ran()
    assert toy.record(only="order").ran == (("good", 1),)  # flat-0 fails again
    assert toy.ran() == ["flat-0", "good-1"]
    assert Ledger.read(toy.ledger).claim("order").verdict == "reproduced"


@pytest.mark.usefixtures("forked_cells")
def test_a_cell_that_hangs_is_ended(toy: Toy) -> None:
    toy.command("real", 0, "sleep")
    start = time.monotonic()
    report = toy.record(only="real", cell_timeout_s=3.0)
    assert time.monotonic() - start < 60
    assert [failure.reason.splitlines()[0] for failure in report.failures] == ["ended after 3 s, its time limit"]
    assert report.ran == (("real", 1),)


@pytest.mark.usefixtures("forked_cells")
def test_code_and_configuration_invalidate_and_prose_does_not(toy: Toy) -> None:
    toy.record(only="on-real")
    toy.ran()
    toy.script.write_text(SCRIPT.replace("# # Toy", "# # A better toy"), encoding="utf-8")
    assert toy.record(only="on-real").ran == ()
    toy.script.write_text(SCRIPT.replace("0.001 * config", "0.002 * config"), encoding="utf-8")
    now = status(toy.folder, only="on-real")
    assert len(now.missing) == 4 and now.stale == 4 and "4 recorded by other code" in now.line()
    assert now.changed == ("chapter:run_cell",) and "changed: chapter:run_cell" in now.line()
    assert now.hours_left is not None  # older cells still tell how long one takes
    assert len(toy.record(only="on-real").ran) == 4
    (toy.folder / "record.yaml").write_text("steps: 3\n", encoding="utf-8")
    assert len(toy.record(only="on-real").ran) == 4
    assert all(len(Ledger.read(toy.ledger).values(arm, "score")) == 2 for arm in ("real", "unreal"))
    toy.script.write_text(SCRIPT.replace("0.001 * config", "0.002 * config"), encoding="utf-8")
    (toy.folder / "record.yaml").write_text("steps: 2\n", encoding="utf-8")
    toy.ran()
    assert toy.record(only="on-real").ran == () and toy.ran() == []  # back where it was: still cached


@pytest.mark.usefixtures("forked_cells")
def test_claims_must_be_committed_first(toy: Toy) -> None:
    git(toy.root, "init", "-q")
    with pytest.raises(UsageError, match="not committed"):
        toy.record(only="on-real")
    assert toy.ran() == []
    assert toy.record(only="on-real", dry_run=True).status.missing
    git(toy.root, "add", "chapters")
    git(toy.root, "commit", "-q", "-m", "claims")
    assert toy.record(only="on-real").ok
    assert Ledger.read(toy.ledger).commit is not None
    toy.write_claims({**CLAIMS, "seeds": 6})
    with pytest.raises(UsageError, match="not committed as it stands"):
        toy.record()
    report = toy.record(only="bad", allow_uncommitted=True)
    told = " ".join(toy.output.getvalue().split())  # the console wraps lines, wherever the path is long
    assert len(report.ran) == 6 and "recording all the same" in told
    assert str(Ledger.read(toy.ledger).commit).endswith("-dirty")


@pytest.mark.usefixtures("forked_cells")
def test_a_misspelt_metric_shows_at_once_and_the_other_claims_are_judged(toy: Toy) -> None:
    claims = json.loads(json.dumps(CLAIMS))
    claims["claims"][1]["metric"] = "scores"
    toy.write_claims(claims)
    report = toy.record(only=["on-real", "good", "bad"])
    assert not report.ok
    assert report.status.problems == (
        "claim 'on-real': arm 'real', seed 0: unknown metric 'scores'; did you mean 'score'? Valid: score.",
    )
    ledger = Ledger.read(toy.ledger)
    assert ledger.claim("order").verdict == "reproduced" and ledger.claim("on-real").n_seeds == 0
    assert toy.output.getvalue().index("unknown metric") < toy.output.getvalue().index("[14/14]")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda toy: (toy.folder / "claims.yaml").unlink(), "claims.yaml"),
        (lambda toy: (toy.folder / "record.yaml").write_text("stepps: 2\n"), "refuses the budget's values"),
        (lambda toy: (toy.folder / "record.yaml").unlink(), "budget 'record'"),
        (lambda toy: toy.script.write_text("X = 1\n"), "run_cell"),
        (lambda toy: toy.script.write_text("def run_cell(a, s, c):\n    return {}\n"), "make_config"),
        (lambda toy: toy.write_claims({"claims": []}), "non-empty list"),
    ],
)
def test_what_is_missing_is_said(toy: Toy, break_it, message: str) -> None:
    break_it(toy)
    with pytest.raises(UsageError, match=message):
        toy.record()


@pytest.mark.usefixtures("forked_cells")
def test_device_reaches_the_configuration_and_has_a_ledger_of_its_own(toy: Toy) -> None:
    toy.record(only="on-real")
    toy.ran()
    now = status(toy.folder, device="cuda:0", only="on-real")
    assert len(now.missing) == 4 and now.ledger.name == "record-cuda.json"
    toy.script.write_text(SCRIPT.replace('    device: str = "cpu"\n', ""), encoding="utf-8")
    with pytest.raises(UsageError, match="no 'device'"):
        status(toy.folder, device="cuda")


def test_a_recording_may_be_asked_about_from_any_folder(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chapter's constant may look for the book, as ``reporting.chapter_dir`` does."""
    constant = 'HERE = Path("claims.yaml").resolve(strict=True)\n'
    toy.script.write_text(SCRIPT.replace("LEVEL =", f"{constant}LEVEL ="), encoding="utf-8")
    monkeypatch.chdir("/")
    assert len(status(toy.folder).missing) == 19 and Path.cwd() == Path("/")


@pytest.mark.parametrize("device", ["gpu", "CUDA", "cuda:", "cuda:x", "cuda:0:1", "cpu:0", ""])
def test_a_device_that_does_not_exist_is_refused(toy: Toy, device: str) -> None:
    with pytest.raises(UsageError, match=f"--device {device}: .* Pass cpu, cuda, or cuda:N"):
        toy.record(device=device)
    assert not (toy.root / "runs").exists() and not (toy.root / "results").exists()


@pytest.mark.usefixtures("forked_cells")
def test_a_dry_run_tells_what_the_other_devices_ledger_holds(toy: Toy) -> None:
    toy.record(only="on-real")
    for options, told in (({}, 4), ({"only": "real"}, 2), ({"only": "bad"}, 0)):
        toy.record(device="cuda:1", dry_run=True, **options)
        line = f"record-cpu holds {told} cells of these arms: `--device cpu`"
        assert toy.output.getvalue().count("holds") == (told > 0) and (line in toy.output.getvalue()) == (told > 0)
    toy.record(dry_run=True)
    assert "holds" not in toy.output.getvalue()
    toy.ledger.rename(toy.ledger.with_name("record-cuda.json"))
    toy.record(dry_run=True)
    assert "record-cuda holds 4 cells of these arms: `--device cuda`" in toy.output.getvalue()


def test_two_recordings_at_once_are_refused_and_a_killed_one_leaves_no_process_but_its_ledger(toy: Toy) -> None:
    for seed in (1, 2):
        toy.command("real", seed, "sleep")
    code = f"from avssl.record import record_chapter; record_chapter({str(toy.folder)!r}, only='real')"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not toy.ledger.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [(cell.arm, cell.seed) for cell in Ledger.read(toy.ledger).cells] == [("real", 0)]
        with pytest.raises(UsageError, match="another recording is at work"):
            toy.record(only="unreal")
        cells = _processes_of(toy)
        assert cells
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 20
    while _processes_of(toy) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert _processes_of(toy) == []
    assert toy.record(only="unreal").ok  # the lock went with its holder


def _processes_of(toy: Toy) -> list[int]:
    """Cells of this toy that are at work, by their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"avssl.cell" in line and str(toy.root).encode() in line and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def test_metrics_are_checked() -> None:
    import numpy as np
    import torch

    given = {"a": np.float32(0.5), "b": torch.tensor([1.0, 2.0]), "c": [[1, 2], [3, 4]], "d": 3}
    assert checked_metrics(given) == {"a": 0.5, "b": [1.0, 2.0], "c": [[1.0, 2.0], [3.0, 4.0]], "d": 3.0}
    for bad in ({"a": float("nan")}, {"a": [1.0, float("inf")]}, {"a": "text"}, {}, None, {"a": None}):
        with pytest.raises(ValueError, match="metric"):
            checked_metrics(bad)
