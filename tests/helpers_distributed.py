"""Run a function on several gloo processes of this machine: with a time limit, and with their tracebacks.

A rank that hangs is ended and reported; a rank that raises ends the others. The function must be importable (top level
of its test module), since the processes share nothing with the one that starts them.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Imported once by the server that ranks are forked from: an import of torch and of the library takes seconds a process.
PRELOADED = ["torch.distributed", "avssl_core.data", "avssl_core.losses", "avssl_core.training", "pytest"]


class RankError(AssertionError):
    """A rank failed; the message carries its traceback."""


def run_ranks(
    function: Callable[..., Any], *args: Any, world_size: int = 2, timeout_s: float = 120.0, join: bool = True
) -> list[Any]:
    """Call ``function(rank, *args)`` on ``world_size`` processes and return what each returned, by rank.

    RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are set as torchrun sets them.

    Args:
        function: importable; its result must be something ``torch.save`` can write (tensors, numbers, containers).
        args: passed on; must pickle.
        world_size: number of processes.
        timeout_s: wall time for all of them together.
        join: form the gloo group before the call, and leave it after. ``False`` where the function does so itself.

    Raises:
        RankError: a rank raised, died or was still running at the time limit.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = forked()
        port = _free_port()
        processes = [
            context.Process(target=_main, args=(function, args, rank, world_size, port, folder, join), daemon=True)
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        try:
            _wait(processes, timeout_s, Path(folder))
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
        return [torch.load(Path(folder) / f"result{rank}.pt", weights_only=True) for rank in range(world_size)]


def forked() -> Any:
    """Start method whose processes are forked from a server that has the imports done and has never run a test.

    A test process has one server, with the environment it had when it first needed one: a test that wants another must
    set it in the function that it calls. Where the library started it, for a corpus, it holds that one's imports.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _wait(processes: list[Any], timeout_s: float, folder: Path) -> None:
    deadline = time.monotonic() + timeout_s
    while any(process.exitcode is None for process in processes):
        if any(process.exitcode not in (None, 0) for process in processes):
            break
        if time.monotonic() > deadline:
            running = [rank for rank, process in enumerate(processes) if process.exitcode is None]
            raise RankError(f"ranks {running} still running after {timeout_s:g} s{_tracebacks(folder)}")
        time.sleep(0.02)
    failed = {rank: p.exitcode for rank, p in enumerate(processes) if p.exitcode not in (None, 0)}
    if failed:
        time.sleep(0.2)  # a second rank may be writing why it failed, too
        raise RankError(f"ranks failed with exit codes {failed}{_tracebacks(folder)}")


def _tracebacks(folder: Path) -> str:
    return "".join(f"\n--- {path.stem} ---\n{path.read_text()}" for path in sorted(folder.glob("error*.txt")))


def _main(
    function: Callable[..., Any], args: tuple[Any, ...], rank: int, world_size: int, port: int, folder: str, join: bool
) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    try:
        if join:
            dist.init_process_group("gloo", rank=rank, world_size=world_size)
        torch.save(function(rank, *args), Path(folder) / f"result{rank}.pt")
        if join:
            dist.barrier()  # nobody leaves while another still needs the store of rank 0
            dist.destroy_process_group()
    except BaseException:
        (Path(folder) / f"error{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)  # without waiting for collectives that will never finish


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
