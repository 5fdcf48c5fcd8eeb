"""One notebook, many ranks: each rank is a papermill process with a kernel of its own, started and watched by
torchrun's agent.

torchrun gives rendezvous, the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), the end of all
ranks when one fails, and several nodes. What it lacks for notebooks is added here: kernels are grandchildren in
sessions of their own, which torchrun neither sees nor ends. Each process therefore asks the operating system to be
ended with its parent, every process of a run carries ``AVSSL_RUN_ID``, and whatever still carries it when the ranks
are gone is killed.

On several nodes: ``torchrun --nnodes … -m avssl run CHAPTER --out DIR``: a process that finds RANK in its environment
is a rank.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from avssl.errors import UsageError
from avssl.kernels import environment
from avssl.run import ChapterFailed, Outcome, Plan, execute, finished, measure

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

RUN_ID = "AVSSL_RUN_ID"
_PR_SET_PDEATHSIG = 1


_LAST_WORDS_S = 4.0  # nbclient asks once a second whether its kernel lives


@dataclass(frozen=True)
class RankFailure:
    """How one rank ended. A kernel that died, else the earliest exception, is the cause; the others follow from it."""

    rank: int
    time_s: float
    kernel_died: bool
    traceback: str


def this_rank() -> int | None:
    """The rank this process was given by torchrun, or None outside it."""
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return int(os.environ["RANK"]) if all(name in os.environ for name in needed) else None


def launched_by_us() -> bool:
    """Whether :func:`launch` started this process (and reports for it), rather than a ``torchrun`` of the user's."""
    return RUN_ID in os.environ


def run_rank(plan: Plan, rank: int) -> Outcome:
    """Run the chapter as one rank; a failure is written where the launcher finds it, then raised.

    torchrun ends all ranks as soon as one has exited. When a kernel is killed, its peers learn of it (connection
    closed) before its own papermill does; so a failing rank stays a few seconds, for the rank that is the cause to
    say so.

    Raises:
        ChapterFailed: a cell raised or the kernel died.
    """
    with _last_words(plan, rank):
        return execute(plan, rank=rank, progress=rank == 0)


def measure_rank(plan: Plan, rank: int) -> dict[str, Any]:
    """The dry run as one rank: all ranks measure together, in their own processes and without a notebook.

    Raises:
        ChapterFailed: it raised; the failure is written where the launcher finds it.
    """
    with _last_words(plan, rank):
        try:
            return measure(plan)
        except UsageError as error:
            raise ChapterFailed(str(error), plan.output(rank)) from error
        except Exception as error:
            raise ChapterFailed(traceback.format_exc(), plan.output(rank)) from error


@contextlib.contextmanager
def _last_words(plan: Plan, rank: int) -> Iterator[None]:
    """Run the block as a rank: ended with its parent, and what it raises told to the launcher."""
    end_with_parent()
    try:
        yield
    except ChapterFailed as error:
        failure = RankFailure(rank=rank, time_s=error.when, kernel_died=error.kernel_died, traceback=str(error))
        plan.run_dir.mkdir(parents=True, exist_ok=True)
        _failure_file(plan.run_dir, rank).write_text(json.dumps(asdict(failure)), encoding="utf-8")
        time.sleep(_LAST_WORDS_S)
        raise


def launch(plan: Plan, arguments: list[str], *, nproc: int) -> Outcome:
    """Run the chapter, or its dry run, on ``nproc`` ranks of this machine and wait for all of them.

    Args:
        plan: the checked run; its ``run_dir`` is shared by the ranks.
        arguments: what to pass to ``python`` for one rank, e.g. ``["-m", "avssl", "run", …, "--out", DIR]``.
        nproc: ranks; on a GPU machine, its number of GPUs.

    Raises:
        ChapterFailed: a rank failed. All others have been ended, and no process of the run is left.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    plan.run_dir.mkdir(parents=True, exist_ok=True)
    for old in plan.run_dir.glob("rank*.failed.json"):
        old.unlink()
    run_id, scratch = uuid.uuid4().hex, tempfile.mkdtemp(prefix="avssl-run-")
    threads = max(1, (os.cpu_count() or 1) // nproc)
    changes = {
        RUN_ID: run_id,
        "AVSSL_SCRATCH": scratch,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }
    started = time.perf_counter()
    try:
        with environment(changes):
            elastic_launch(_config(plan, nproc, run_id), sys.executable)(*arguments)
    except SignalException as error:  # the launcher was told to stop; torchrun has ended the ranks
        raise SystemExit(128 + error.sigval) from error
    except ChildFailedError as error:
        raise ChapterFailed(_explain(plan.run_dir, error), plan.output()) from error
    finally:
        sweep(run_id)
        shutil.rmtree(scratch, ignore_errors=True)
    return finished(plan, wall_s=time.perf_counter() - started)


def _config(plan: Plan, nproc: int, run_id: str) -> LaunchConfig:
    """One node, a free port of the loopback interface, no restarts; rank 0 on the terminal, the others in files."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    quiet = {local_rank: Std.ALL for local_rank in range(1, nproc)} or Std.NONE
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=run_id,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=str(plan.run_dir / "ranks"), redirects=quiet),
    )


def _failure_file(run_dir: Path, rank: int) -> Path:
    return run_dir / f"rank{rank}.failed.json"


def _explain(run_dir: Path, error: BaseException) -> str:
    """The traceback of the rank that failed first, and how each other rank that failed on its own ended."""
    written = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(run_dir.glob("rank*.failed.json")))
    failures = sorted(
        (RankFailure(**content) for content in written), key=lambda failure: (not failure.kernel_died, failure.time_s)
    )
    known = {failure.rank for failure in failures}
    children = getattr(error, "failures", {})
    # A process that was killed leaves no file. It is the cause: the ranks beside it fail after it.
    killed = [
        f"rank {rank}: its papermill process ended with {_ending(child.exitcode)}, without a traceback"
        for rank, child in sorted(children.items())
        if rank not in known and child.exitcode != -signal.SIGTERM
    ]
    lines = killed + [f"rank {failure.rank} failed:\n{failure.traceback}" for failure in failures]
    return "\n\n".join(lines) or str(error)


def _ending(exitcode: int) -> str:
    if exitcode < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"


def end_with_parent() -> None:
    """Ask the system to kill this process when its parent dies (Linux; elsewhere the launcher's sweep does it)."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died between the two calls
            os._exit(1)


def sweep(run_id: str, *, wait_s: float = 10.0) -> list[int]:
    """Kill every process started with ``AVSSL_RUN_ID=run_id``, but this one; returns their process ids."""
    killed: list[int] = []
    deadline = time.monotonic() + wait_s
    while (left := processes_of(run_id)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                killed.append(process.pid)
        psutil.wait_procs(left, timeout=1)
    return killed


def processes_of(run_id: str) -> list[psutil.Process]:
    """Living processes of a run, found by the environment they were started with, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            alive = process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
            if alive and process.environ().get(RUN_ID) == run_id:
                found.append(process)
    return found
