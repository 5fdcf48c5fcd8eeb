"""One notebook on many ranks: they compute together; whatever dies ends the run with its reason and leaves nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil
import pytest
from toy_book import HEAD, write_book

from avssl.ranks import processes_of, sweep

LIMIT_S = 60  # a failure ends the run within this
MARK = "AVSSL_TEST_MARK"

JOIN = """
# %%
import datetime
import time

import torch
import torch.distributed as dist

dist.init_process_group("gloo", timeout=datetime.timedelta(minutes=30))
rank = dist.get_rank()
(run_dir / f"pid{rank}.json").write_text(json.dumps({"kernel": os.getpid(), "papermill": os.getppid()}))
number = torch.tensor([float(rank + 1)])
dist.all_reduce(number)
print("sum over ranks:", number.item(), "of", dist.get_world_size())
"""

WRITE = """
# %%
if rank == 0:
    claims = [{"id": "sum", "statement": "ranks add up", "effect": number.item()}]
    (run_dir / "claims.json").write_text(json.dumps(claims))
dist.barrier()
dist.destroy_process_group()
"""

RAISE = """
# %%
if rank == 1:
    raise ZeroDivisionError("the second rank cannot go on")
dist.barrier()
"""

WAIT = """
# %%
(run_dir / f"waiting{rank}").touch()
if rank == 0:
    dist.barrier()  # rank 1 never comes
time.sleep(600)
"""

# The same where nothing is computed, without the seconds that two kernels take to import torch and to meet.
APART = """
# %%
import time

rank = int(os.environ["RANK"])
(run_dir / f"pid{rank}.json").write_text(json.dumps({"kernel": os.getpid(), "papermill": os.getppid()}))
"""
ALONE = (
    APART
    + """
(run_dir / f"waiting{rank}").touch()
time.sleep(600)
"""
)
RAISE_APART = """
# %%
while not all((run_dir / f"pid{each}.json").exists() for each in range(2)):
    time.sleep(0.1)
if rank == 1:
    raise ZeroDivisionError("the second rank cannot go on")
time.sleep(600)
"""

DRY = """
# %%
def make_config(steps: int = 3, rate: float = 0.5) -> dict:
    return {"steps": steps, "rate": rate}


def dry_run(config: dict) -> dict:
    if os.environ["RANK"] == "1" and config["rate"] < 0:
        raise ZeroDivisionError("the second rank cannot measure")
    import torch

    from avssl_core import training

    run = training.join("cpu")
    number = run.collectives.sum(torch.tensor([run.rank + 1.0]))
    return {"sum over ranks": f"{number.item()} of {run.world_size}"}


# %%
raise SystemExit("the notebook itself must not run")
"""


def processes_with(mark: str) -> list[psutil.Process]:
    """Processes that inherited this test's mark, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
    return found


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
TORCHRUN += ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", "-m", "avssl", "run", "toy"]


@contextlib.contextmanager
def launched(
    book: Path, out: Path, nproc: int = 2, *, launcher: list[str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``avssl run toy --nproc N``, or another launcher, in a process of its own; leftovers are killed at the end."""
    mark = uuid.uuid4().hex
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")} | {MARK: mark}
    command = launcher or [sys.executable, "-m", "avssl", "run", "toy", "--nproc", str(nproc)]
    process = subprocess.Popen(
        [*command, "--budget", "smoke", "--book", str(book), "--out", str(out)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process, mark
    finally:
        for left in processes_with(mark):
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        process.wait(10)


def ended(process: subprocess.Popen[str], limit_s: float) -> str:
    """What the run printed; fails when it has not ended within the limit."""
    output, _ = process.communicate(timeout=limit_s)
    return re.sub(r"\x1b\[[0-9;]*m", "", output)


def wait_for(paths: list[Path], limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, f"{paths} did not appear within {limit_s} s"
        time.sleep(0.1)


def assert_nothing_left(mark: str, within_s: float = 10) -> None:
    deadline = time.monotonic() + within_s
    while (left := processes_with(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, [process.cmdline() for process in left]


@pytest.mark.timeout(180)
def test_ranks_compute_together(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with launched(write_book(tmp_path, JOIN + WRITE), out) as (process, mark):
        output = ended(process, 120)
        assert process.returncode == 0, output
        assert_nothing_left(mark)
    assert "sum over ranks: 3.0 of 2" in output  # rank 0 speaks
    assert output.count("sum over ranks") == 1  # rank 1 does not
    assert "ranks add up" in output
    kernels = [json.loads((out / f"pid{rank}.json").read_text()) for rank in range(2)]
    assert len({pid for kernel in kernels for pid in kernel.values()}) == 4  # two papermills, a kernel each
    for name in ("toy.ipynb", "toy.rank1.ipynb"):
        cells = nbformat.read(out / name, as_version=4).cells
        assert any("sum over ranks: 3.0" in text.get("text", "") for cell in cells for text in cell.get("outputs", []))
    assert (out / "toy.html").is_file()
    assert not (out / "toy.rank1.html").exists()


@pytest.mark.timeout(240)
def test_an_exception_on_one_rank_ends_the_run_with_its_traceback(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with launched(write_book(tmp_path, JOIN + RAISE), out) as (process, mark):
        wait_for([out / "pid0.json", out / "pid1.json"], 90)
        output = ended(process, LIMIT_S)
        assert process.returncode == 1
        assert_nothing_left(mark)
    assert re.search(r"^rank \d failed", output, flags=re.MULTILINE).group() == "rank 1 failed"  # the cause comes first
    assert "ZeroDivisionError" in output
    assert "the second rank cannot go on" in output


@pytest.mark.timeout(240)
@pytest.mark.parametrize("victim", ["kernel", "papermill"])
def test_a_killed_process_ends_the_run_and_leaves_nothing(tmp_path: Path, victim: str) -> None:
    out = tmp_path / "out"
    # a kernel dies while the others wait for it outside Python; a papermill, whatever they are doing
    with launched(write_book(tmp_path, JOIN + WAIT if victim == "kernel" else ALONE), out) as (process, mark):
        wait_for([out / "waiting0", out / "waiting1"], 90)
        os.kill(json.loads((out / "pid1.json").read_text())[victim], signal.SIGKILL)
        output = ended(process, LIMIT_S)
        assert process.returncode == 1
        assert_nothing_left(mark)
    if victim == "kernel":
        assert re.search(r"^rank \d failed", output, flags=re.MULTILINE).group() == "rank 1 failed"
        assert "the kernel died in cell" in output
        assert "time.sleep(600)" in output  # the cell that was running
    else:
        assert "rank 1: its papermill process ended with SIGKILL" in output


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
def test_a_launcher_that_is_ended_takes_its_ranks_with_it(tmp_path: Path, how: signal.Signals) -> None:
    out = tmp_path / "out"
    # only an interrupt is a matter of what the kernel is doing: here, a barrier outside Python
    with launched(write_book(tmp_path, JOIN + WAIT if how == signal.SIGINT else ALONE), out) as (process, mark):
        wait_for([out / "waiting0", out / "waiting1"], 90)
        assert len(processes_with(mark)) >= 5  # the launcher, two papermills, two kernels
        process.send_signal(how)
        output = ended(process, LIMIT_S)
        assert process.returncode == (-how if how == signal.SIGKILL else 128 + how)
        assert "avssl/cli.py" not in output  # no traceback of ours; an interrupted kernel may print its own
        assert_nothing_left(mark)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fails", [False, True], ids=["finishes", "fails"])
def test_the_readers_own_torchrun_works_too(tmp_path: Path, fails: bool) -> None:
    """As on several nodes: torchrun starts the command itself, and every process finds that it is a rank."""
    out = tmp_path / "out"
    book = write_book(tmp_path, APART + RAISE_APART if fails else JOIN + WRITE)
    with launched(book, out, launcher=TORCHRUN) as (process, mark):
        output = ended(process, 120)
        assert (process.returncode != 0) == fails, output
        assert_nothing_left(mark)
    assert (out / "toy.rank1.ipynb").is_file()
    if fails:
        assert "ZeroDivisionError" in output
    else:
        assert output.count("ranks add up") == 1  # one table, from rank 0


@pytest.mark.timeout(180)
@pytest.mark.parametrize("fails", [False, True], ids=["finishes", "fails"])
def test_a_dry_run_is_measured_on_as_many_ranks_as_asked(tmp_path: Path, fails: bool) -> None:
    book = write_book(tmp_path, DRY, head=HEAD.replace("dry_run: bool = False", "").replace("dry_run={dry_run}", ""))
    command = [sys.executable, "-m", "avssl", "run", "toy", "--nproc", "2", "--dry-run", "-p", f"rate={1 - 2 * fails}"]
    with launched(book, tmp_path / "out", launcher=command) as (process, mark):
        output = ended(process, 120)
        assert process.returncode == fails, output
        assert_nothing_left(mark)
    assert not list(tmp_path.rglob("*.ipynb"))
    if fails:
        assert re.search(r"^rank \d failed", output, flags=re.MULTILINE).group() == "rank 1 failed"
        assert "ZeroDivisionError: the second rank cannot measure" in output
        assert "no notebook was begun" in output
    else:
        assert output.count("3.0 of 2") == output.count("nothing was trained") == 1  # rank 0 reports, once


@pytest.mark.timeout(120)
def test_a_single_run_takes_its_kernel_with_it(tmp_path: Path) -> None:
    waiting = '\n# %%\n(run_dir / "waiting").touch()\nimport time\n\ntime.sleep(600)\n'
    out = tmp_path / "out"
    with launched(write_book(tmp_path, waiting, head=HEAD), out, nproc=1) as (process, mark):
        wait_for([out / "waiting"])
        process.kill()
        process.wait(10)
        assert_nothing_left(mark)


def test_the_sweep_finds_processes_whose_parent_is_gone() -> None:
    run_id = uuid.uuid4().hex
    sleeper = "[sys.executable, '-c', 'import time; time.sleep(60)']"
    orphan = f"import subprocess, sys; subprocess.Popen({sleeper}, start_new_session=True)"
    subprocess.run([sys.executable, "-c", orphan], env=os.environ | {"AVSSL_RUN_ID": run_id}, check=True)
    assert len(processes_of(run_id)) == 1
    assert len(sweep(run_id)) >= 1
    assert processes_of(run_id) == []
    assert sweep(uuid.uuid4().hex) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_first_chapter_runs_on_two_processes(tmp_path: Path) -> None:
    """GDT, below smoke, by the command line: both ranks end, their weights score the same, rank 0 speaks for them."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "avssl", "run", "gdt", "--budget", "smoke", "-p", "arms=l", "--nproc", "2"]
    small = {"clips": 32, "width": 4, "audio_width": 4, "embed_dim": 8, "steps": 2, "shifts": 2, "variance_batches": 2}
    command += [word for name, value in (small | {"warmup_steps": 0}).items() for word in ("-p", f"{name}={value}")]
    ran = subprocess.run(
        [*command, "--out", str(out)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    notebooks = [out / name for name in ("gdt.ipynb", "gdt.rank1.ipynb")]
    assert all("steps in" in text and "on 2 × cpu" in text for text in map(_printed, notebooks))
    ours, theirs = (_shown(notebook, "time_sensitivity") for notebook in notebooks)
    assert ours and ours == theirs  # only rank 0 keeps a checkpoint, but each rank probes the weights that it holds
    assert json.loads((out / "claims.json").read_text())["this run"].keys() == {"random", "l"}
    drawn = [notebook.read_text().count("image/svg+xml") for notebook in notebooks]
    assert drawn[0] > 0 and drawn[1] == 0  # nobody looks at the second rank's figures


def _printed(notebook: Path) -> str:
    cells = nbformat.read(notebook, as_version=4).cells
    return "".join(o.get("text", "") for cell in cells for o in cell.get("outputs", []) if o.output_type == "stream")


def _shown(notebook: Path, column: str) -> list[str]:
    """Tables of an executed notebook that have this column, as text."""
    cells = nbformat.read(notebook, as_version=4).cells
    texts = (o["data"].get("text/plain", "") for cell in cells for o in cell.get("outputs", []) if "data" in o)
    return [text for text in texts if column in text]
