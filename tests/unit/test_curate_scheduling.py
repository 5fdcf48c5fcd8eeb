"""Shards on Dask: the same files as with this machine's processes, through the death of a worker and past a hang."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_prep.compress.pool import Died, Late
from data_prep.curate.scheduling import dask_mapper, scheduler_address
from data_prep.curate.stages import CurateError, Mapper, ShardJob, run_shards

pytest.importorskip("distributed", reason="the scale extra is not installed")


@dataclass(frozen=True)
class Thing:
    key: str
    limit_s: float = 60.0

    @property
    def identity(self) -> tuple[str]:
        return (self.key,)


THINGS = [Thing(f"{number:02d}") for number in range(12)]


def write_names(job: ShardJob) -> None:
    job.path.write_text(",".join(f"{item.key}{'!' * (item.key in job.skip)}" for item in job.items))


def write_or_die(job: ShardJob) -> None:
    """Thing 05 takes its worker with it."""
    if any(item.key == "05" for item in job.items) and "05" not in job.skip:
        os.kill(os.getpid(), signal.SIGKILL)
    write_names(job)


def hang(seconds: float) -> str:
    time.sleep(seconds)
    return f"slept {seconds}"


def refuse(job: Any) -> None:
    raise ValueError(f"{job} will not do")


@pytest.fixture
def mapper() -> Iterator[Mapper]:
    """A cluster a test, and two workers, as Dask does not always bring back a worker that died."""
    with dask_mapper(workers=2) as made:
        yield made


def shards(function: Any, folder: Path, mapper: Mapper) -> str:
    folder.mkdir()
    files = run_shards(function, THINGS, folder, spec="", size=3, mapper=mapper, bar={"disable": True})
    return ",".join(file.read_text() for file in files)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_shards_are_written_in_the_order_of_their_items(mapper: Mapper, tmp_path: Path) -> None:
    assert shards(write_names, tmp_path / "s", mapper) == ",".join(item.key for item in THINGS)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_cluster_that_has_lost_its_workers_ends_the_run(workers: int) -> None:
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        dask_mapper(cluster.scheduler_address, patience_s=1.0) as mapper,
    ):
        outcomes = mapper(hang, [0.1, 60.0] if workers else [60.0], lambda _: 90.0)
        if workers:
            assert next(outcomes) == (0.1, "slept 0.1")
            cluster.scale(0)
        with pytest.raises(CurateError, match="no worker for 1 s; what is done is kept"):
            list(outcomes)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_killed_worker_costs_the_item_that_killed_it(mapper: Mapper, tmp_path: Path) -> None:
    expected = ",".join(f"{item.key}{'!' * (item.key == '05')}" for item in THINGS)
    assert shards(write_or_die, tmp_path / "s", mapper) == expected


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_job_that_hangs_is_late_and_the_next_one_is_done(mapper: Mapper) -> None:
    found = dict(mapper(hang, [300.0, 0.1], lambda job: 3.0 if job > 1 else 60.0))  # type: ignore[arg-type]
    assert isinstance(found[300.0], Late) and found[0.1] == "slept 0.1"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_what_a_job_raises_ends_the_whole(mapper: Mapper) -> None:
    with pytest.raises(ValueError, match="seven will not do"):
        list(mapper(refuse, ["seven"], lambda _: 60.0))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_death_is_told_as_one(mapper: Mapper) -> None:
    ((_, outcome),) = mapper(os._exit, [3], lambda _: 60.0)  # type: ignore[arg-type]
    assert isinstance(outcome, Died)


def test_addresses() -> None:
    assert scheduler_address("dask") is None and scheduler_address("tcp://head:8786") == "tcp://head:8786"
    with pytest.raises(CurateError, match="use processes, dask, or the address"):
        scheduler_address("slurm")
