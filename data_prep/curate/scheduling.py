"""The shards of a curation on Dask: on this machine's cores, or on the workers of a scheduler that is running already.

A cluster's workers see the same disk, do one shard at a time and die one by one: a shard that takes its worker with it
is lost alone, done again item by item as with processes of this machine, and the culprit is refused
(:func:`~data_prep.curate.stages.run_shards`). What has been written stays, so that a run whose scheduler went down goes
on as well. ``dask-jobqueue`` starts workers on SLURM; give its scheduler's address.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from data_prep.compress.pool import Died, Late
from data_prep.curate.stages import CurateError, Mapper

_TICK_S = 0.2  # how often new workers are given work


@contextmanager
def dask_mapper(address: str | None = None, *, workers: int = 1, patience_s: float = 300.0) -> Iterator[Mapper]:
    """Run shards on Dask while the context lasts.

    Args:
        address: of a scheduler, such as ``tcp://head:8786``; a cluster of this machine's processes is started if None.
        workers: processes of that cluster.
        patience_s: how long a cluster may be without any worker, in seconds, before the run ends: workers of a batch
            system may come late, and Dask does not always bring back one that died.

    Yields:
        What :func:`~data_prep.curate.curate_folder` takes as ``mapper``.

    Raises:
        CurateError: Dask is not installed, no scheduler answers, or its workers are gone for ``patience_s``.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise CurateError("Dask is not installed: pip install -e '.[scale]', or leave --scheduler out") from error
    # A death is told at once instead of being tried three times, and nothing waits on a worker that might die.
    with dask.config.set({"distributed.scheduler.allowed-failures": 0, "distributed.scheduler.worker-saturation": 1.0}):
        cluster = None
        if address is None:
            cluster = LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None)
        try:
            with Client(address or cluster, timeout=20) as client:
                yield lambda function, jobs, limit: _outcomes(client, function, jobs, limit, patience_s)
        except OSError as error:
            if address is None or "scheduler" not in str(error).lower():
                raise
            raise CurateError(f"no Dask scheduler answers at {address} ({error})") from error
        finally:
            if cluster is not None:
                cluster.close()


def _outcomes(
    client: Any,
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    limit_s: Callable[[Any], float],
    patience_s: float,
) -> Iterator[tuple[Any, Any]]:
    """Results as they come: as many jobs under way as there are threads, each with its time limit."""
    from distributed import wait

    waiting, running = deque(jobs), dict[Any, tuple[Any, float]]()
    served = time.monotonic()
    try:
        while waiting or running:
            threads = sum(client.nthreads().values())
            served = time.monotonic() if threads else served
            if time.monotonic() - served > patience_s:
                raise CurateError(
                    f"the Dask cluster at {client.scheduler.address} has had no worker for {patience_s:g} s; what is "
                    "done is kept: start workers (dask worker ADDRESS) and the same command again"
                )
            while waiting and len(running) < max(1, threads):
                job = waiting.popleft()
                future = client.submit(_in_time, function, job, limit_s(job), pure=False, retries=0)
                running[future] = job, time.monotonic()
            try:
                done = wait(list(running), timeout=_TICK_S, return_when="FIRST_COMPLETED").done
            except TimeoutError:
                done = set()
            for future in done:
                job, began = running.pop(future)
                yield job, _result(future, time.monotonic() - began, limit_s(job))
    finally:
        client.cancel(list(running), force=True)


def _in_time(function: Callable[[Any], Any], job: Any, limit_s: float) -> Any:
    """Do a job on a worker, which ends itself when that takes too long: nothing else ends a decoder that hangs."""
    watch = threading.Timer(limit_s, os._exit, args=(1,))
    watch.daemon = True
    watch.start()
    try:
        return function(job)
    finally:
        watch.cancel()


def _result(future: Any, taken_s: float, limit_s: float) -> Any:
    """What a job returned; that it was late, or that its worker died. What it raised ends the whole."""
    from distributed.scheduler import KilledWorker

    error = future.exception()
    if isinstance(error, KilledWorker):
        return Late(limit_s) if taken_s >= limit_s else Died(None)
    if error is not None:
        raise error
    return future.result()


def scheduler_address(scheduler: str) -> str | None:
    """The address in ``--scheduler``: ``dask`` starts a cluster here (None), ``tcp://…`` and the like join one.

    Raises:
        CurateError: it is neither.
    """
    if scheduler == "dask":
        return None
    if "://" in scheduler:
        return scheduler
    raise CurateError(
        f"--scheduler {scheduler!r}: use processes, dask, or the address of a scheduler (tcp://head:8786)"
    )
