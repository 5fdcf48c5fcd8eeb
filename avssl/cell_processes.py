"""Cells side by side, each in a process of its own with one thread; whatever ends one leaves the others running."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from avssl.cell import CellRequest
from avssl_core.reporting import duration

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Failure:
    """A cell that ended without figures: why, and the end of its log (with the traceback)."""

    arm: str
    seed: int
    reason: str
    log: Path


def run_cells(
    requests: Iterable[CellRequest],
    *,
    jobs: int,
    timeout_s: float,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
) -> Generator[tuple[CellRequest, Failure | None], None, None]:
    """Run cells, at most ``jobs`` at a time; yield each as it ends. Leaving the loop ends those at work.

    Args:
        requests: in the order in which to start them.
        jobs: processes side by side.
        timeout_s: a cell that takes longer is killed and counts as failed.
        cwd: working directory of the cells.
        environment: variables of the cells on top of this process's own.
    """
    queue = list(requests)
    running: list[tuple[CellRequest, subprocess.Popen[bytes], float]] = []
    try:
        while queue or running:
            while queue and len(running) < jobs:
                request = queue.pop(0)
                running.append((request, _start(request, cwd, environment or {}), time.monotonic()))
            for entry in list(running):
                request, process, started = entry
                late = time.monotonic() - started > timeout_s
                if process.poll() is None and not late:
                    continue
                _end(process)
                running.remove(entry)
                yield request, _failure(request, process.returncode, timeout_s if late else None)
            time.sleep(0.05)
    finally:
        for _, process, _ in running:
            _end(process)


def _start(request: CellRequest, cwd: Path, own: Mapping[str, str]) -> subprocess.Popen[bytes]:
    output = Path(request.output)
    request.write(output.with_suffix(".request"))
    fixed = {**dict.fromkeys(_THREADS, "1"), "PYTHONHASHSEED": "0", "PYTHONFAULTHANDLER": "1"}
    environment = {**os.environ, **own, **fixed}
    with open(output.with_suffix(".log"), "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "avssl.cell", str(output.with_suffix(".request")), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=environment,
            start_new_session=True,  # a group of its own, so that ending a cell ends its loader workers too
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a cell's process group, then collect the process."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _failure(request: CellRequest, returncode: int, timed_out_s: float | None) -> Failure | None:
    output = Path(request.output)
    log = output.with_suffix(".log")
    output.with_suffix(".request").unlink(missing_ok=True)
    if output.is_file():
        log.unlink(missing_ok=True)
        return None
    if timed_out_s is not None:
        reason = f"ended after {duration(timed_out_s)}, its time limit"
    elif returncode < 0:
        hint = " (out of memory?)" if returncode == -signal.SIGKILL else ""
        reason = f"killed by {signal.Signals(-returncode).name}{hint}"
    else:
        reason = f"failed with exit code {returncode}"
    return Failure(request.arm, request.seed, f"{reason}\n{_tail(log)}".rstrip(), log)


def _tail(log: Path, lines: int = 40) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return "\n".join(text.rstrip().splitlines()[-lines:])
