"""Many films at once, none of which can take the others down.

Decoders are C code that meets whatever lies on the web: now and then one crashes, or takes all memory, and its process
with it, or never ends. Python's pools then give up everything that was under way, or wait. Here each film has a process
of its own and a time limit, forked from a server that has imported everything already, so that a new one costs
milliseconds.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from data_prep.starting import without_main

J = TypeVar("J")
R = TypeVar("R")


@dataclass(frozen=True)
class Died:
    """The process of a job ended before the job did.

    Attributes:
        exitcode: as :mod:`multiprocessing` gives it: minus the signal that ended the process.
    """

    exitcode: int | None

    def __str__(self) -> str:
        names = {-number: number.name for number in signal.Signals}
        how = names.get(self.exitcode or 0, f"exit code {self.exitcode}")
        return f"the process that read it died ({how}): a crash of the decoder, or no memory left"


@dataclass(frozen=True)
class Late:
    """A job that was ended because it took longer than it may.

    Attributes:
        limit_s: seconds that it was given.
    """

    limit_s: float

    def __str__(self) -> str:
        return f"not done after {self.limit_s:.0f} s: the decoder hangs, or the machine is too slow for it"


def outcomes(
    function: Callable[[J], R], jobs: Sequence[J], workers: int, limit_s: Callable[[J], float] = lambda _: math.inf
) -> Iterator[tuple[J, R | Died | Late]]:
    """Results of a function, as they come.

    Args:
        function: of one job; importable, and so are jobs and results (they travel between processes).
        jobs: what to do, in order.
        workers: processes at a time; with 0 everything happens in this process, crashes and hangs included.
        limit_s: seconds that a job may take; then its process is killed.

    Raises:
        Exception: what the function raises ends the whole.
    """
    if not workers:
        yield from ((job, function(job)) for job in jobs)
        return
    waiting, running = deque(jobs), dict[Any, tuple[Any, J, float]]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                process, end = _started(function, waiting[0])
                running[end] = process, waiting[0], time.monotonic() + limit_s(waiting.popleft())
            next_s = min(deadline for _, _, deadline in running.values()) - time.monotonic()
            for end in wait(list(running), None if next_s == math.inf else max(next_s, 0.0)):
                process, job, _ = running.pop(end)
                yield job, _result(process, end)
            for end in [end for end, (_, _, deadline) in running.items() if deadline <= time.monotonic()]:
                process, job, _ = running.pop(end)
                _killed(process)
                end.close()
                yield job, Late(limit_s(job))
    finally:
        for process, _, _ in running.values():
            _killed(process)


def _killed(process: Any) -> None:
    process.kill()
    process.join()


def _started(function: Callable[[J], R], job: J) -> tuple[Any, Any]:
    """A process at work, and where its result will arrive."""
    # never a plain fork: decoders and torch hold threads, which do not survive one
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(kind)
    if kind == "forkserver":
        context.set_forkserver_preload(["data_prep.compress.films"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(function, job, there), daemon=True)
    with without_main():
        process.start()
    there.close()  # or its end would not be noticed
    return process, here


def _result(process: Any, end: Any) -> Any:
    try:
        result, error = end.recv()
    except EOFError:
        process.join()
        return Died(process.exitcode)
    finally:
        end.close()
    process.join()
    if error is not None:
        raise error
    return result


def _work(function: Callable[[J], R], job: J, connection: Connection) -> None:
    """What a process does: one job, with one thread of computation."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        message = function(job), None
    except Exception as error:
        message = None, error
    connection.send(message)


def _end_with_parent() -> None:
    """Otherwise a worker whose parent was killed would write on, beside the run that takes over."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
