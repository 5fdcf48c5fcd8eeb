"""Stages that are done once, shards that survive the death of a process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.compress.pool import Died
from data_prep.curate.stages import ShardJob, Stages, Work, cut_shards, run_shards


@dataclass(frozen=True)
class Thing:
    key: str
    limit_s: float = 60.0

    @property
    def identity(self) -> tuple[str]:
        return (self.key,)


THINGS = [Thing(f"{number:03d}") for number in range(60)]


def write_names(job: ShardJob) -> None:
    job.path.write_text(",".join(f"{item.key}{'!' * (item.key in job.skip)}" for item in job.items))


def here(function: Work, jobs: Sequence[ShardJob], _: Callable[[ShardJob], float]) -> Iterator[Any]:
    """Dies of thing 030, and of things 040 and 041 together."""
    for job in jobs:
        names = {item.key for item in job.items} - set(job.skip)
        deadly = "030" in names or {"040", "041"} <= names
        yield job, Died(1) if deadly else function(job)


def shards(folder: Path, mapper: Any = here, things: Sequence[Thing] = THINGS, spec: str = "") -> str:
    folder.mkdir(exist_ok=True)
    files = run_shards(write_names, things, folder, spec=spec, size=6, mapper=mapper, bar={"disable": True})
    return ",".join(file.read_text() for file in files)


def test_shards_cover_the_items_in_order() -> None:
    parts = cut_shards(THINGS, 6)
    assert [item for part in parts for item in part] == THINGS and 5 <= len(parts) <= 20
    assert max(map(len, parts)) <= 24 and cut_shards([], 6) == []


def test_a_death_costs_the_item_alone(tmp_path: Path) -> None:
    together = next(part for part in cut_shards(THINGS, 6) if THINGS[40] in part)
    assert THINGS[41] in together
    lost = {"030", *(item.key for item in together)}
    assert shards(tmp_path / "s") == ",".join(f"{item.key}{'!' * (item.key in lost)}" for item in THINGS)
    assert not list((tmp_path / "s").glob("*.alone"))


def test_what_is_there_is_not_done_again_and_what_is_stale_goes(tmp_path: Path) -> None:
    def none(function: Work, jobs: Sequence[ShardJob], _: Any) -> Iterator[Any]:
        assert not jobs
        return iter(())

    folder = tmp_path / "s"
    shards(folder, things=THINGS[:30])
    (folder / ".x.shard.1.tmp").touch()
    first = shards(folder, none, things=THINGS[:30])
    assert first.startswith("000,") and not (folder / ".x.shard.1.tmp").exists()
    before = {path.name for path in folder.iterdir()}
    shards(folder, things=THINGS[:30], spec="other")
    assert not before & {path.name for path in folder.iterdir()}


def test_a_stage_is_done_once_for_each_input(tmp_path: Path) -> None:
    lines: list[str] = []

    def work(folder: Path) -> list[Path]:
        (folder / "x").write_text("x")
        return [folder / "x"]

    stages = Stages(tmp_path, lines.append)
    first = stages.run("a", 1, ["i"], work)
    assert first == stages.run("a", 1, ["i"], work) and lines == ["a: as before"]
    second = stages.run("a", 1, ["j"], work)
    assert second[0] != first[0]
    (tmp_path / "stages" / "a" / "x").unlink()
    assert stages.run("a", 1, ["j"], work)[0] != second[0]
    (tmp_path / "stages" / "a" / "stage.json").write_text("{")
    stages.run("a", 1, ["j"], work)
    assert stages.ran == ["a"] * 4
