"""Work in stages that are not done twice, and in shards that survive a kill.

A stage has a folder below ``OUT/stages``. Its key is a digest of its settings and of the runs of the stages that it
builds on; ``stage.json``, written last, holds the key, and a token that is drawn anew whenever the stage does any work.
So a stage is skipped while nothing before it has changed, and deleting its folder has it done again with all that
follow. Within a stage, a shard's file is named after everything that decides its contents: files that are there are
right, whatever run left them, and a new film costs the one shard that it falls into.

A shard is done by a function of one picklable job that writes the shard's file and returns nothing. Who runs these
functions is a parameter (:data:`Mapper`): the process pool of :mod:`data_prep.compress`, or a cluster's client.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm.auto import tqdm

from avssl_core.data.locations import digest
from data_prep.compress.pool import Died, Late
from data_prep.compress.records import write_text

STAGE_FILE = "stage.json"
_FORM = 1  # to be raised when the same settings would give other results
_LONGEST = 4  # times the mean length, where chance cuts no shard


class CurateError(ValueError):
    """A folder that cannot be curated as asked; the message says what to do."""


def unknown(kind: str, given: str, valid: Iterable[str]) -> CurateError:
    """The error for a name that does not exist; it names the nearest ones."""
    from avssl_core.reporting.names import unknown_name  # here: workers would import the room for each shard

    return CurateError(unknown_name(kind, given, valid))


class Item(Protocol):
    """What a shard is made of: a film or a clip."""

    @property
    def key(self) -> str:
        """Its name, unique."""

    @property
    def identity(self) -> tuple[Any, ...]:
        """Plain values; where they are the same, so is what a stage makes of the item."""

    @property
    def limit_s(self) -> float:
        """Seconds that it may take."""


I = TypeVar("I", bound=Item)  # noqa: E741


@dataclass(frozen=True)
class ShardJob:
    """A shard to be done, as a worker is told.

    Attributes:
        items: films or clips.
        path: file to write, atomically.
        spec: what to do: plain, picklable, with a ``repr`` that tells specs apart.
        skip: reasons of items that must not be touched again (their process died), by key.
    """

    items: tuple[Any, ...]
    path: Path
    spec: Any
    skip: Mapping[str, str] = field(default_factory=dict)

    @property
    def limit_s(self) -> float:
        """Seconds that the shard may take."""
        return float(sum(item.limit_s for item in self.items))


Work = Callable[[ShardJob], None]
Mapper = Callable[[Work, Sequence[ShardJob], Callable[[ShardJob], float]], Iterator[tuple[ShardJob, Any]]]
"""Runs a function over jobs and yields ``(job, outcome)`` as they end: ``Died`` or ``Late`` for a lost process."""


class Stages:
    """The stages of one output folder.

    Args:
        out: the folder.
        said: takes one line on every stage.
    """

    def __init__(self, out: Path, said: Callable[[str], None] = lambda _: None) -> None:
        self._home = out / "stages"
        self._said = said
        self.ran: list[str] = []
        self.skipped: list[str] = []

    def folder(self, name: str) -> Path:
        """Where a stage keeps what it makes."""
        return self._home / name

    def run(
        self,
        name: str,
        settings: Any,
        inputs: Sequence[str],
        work: Callable[[Path], Iterable[Path]],
        *,
        outputs: Sequence[Path] = (),
    ) -> tuple[str, list[Path]]:
        """Do a stage, unless it has been done.

        Args:
            name: of the stage and its folder.
            settings: what decides its result, beside its inputs; of telling ``repr``.
            inputs: tokens of the stages that it builds on, or digests of other inputs.
            work: is given the folder, returns the files in it that hold the result.
            outputs: files elsewhere that it writes.

        Returns:
            The token of this result, and its files.
        """
        folder = self.folder(name)
        key = digest(_FORM, name, settings, list(inputs))
        if (done := self._done(folder, key)) is not None and all(path.is_file() for path in outputs):
            self.skipped.append(name)
            self._said(f"{name}: as before")
            return done
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STAGE_FILE).unlink(missing_ok=True)
        files = [path.relative_to(folder).as_posix() for path in work(folder)]
        token = secrets.token_hex(8)
        write_text(folder / STAGE_FILE, json.dumps({"key": key, "token": token, "files": files}, indent=1) + "\n")
        self.ran.append(name)
        return token, [folder / name for name in files]

    def _done(self, folder: Path, key: str) -> tuple[str, list[Path]] | None:
        try:
            record = json.loads((folder / STAGE_FILE).read_text(encoding="utf-8"))
            files = [folder / name for name in record["files"]]
            there = record["key"] == key and all(file.is_file() for file in files)
            return (str(record["token"]), files) if there else None
        except (OSError, ValueError, KeyError, TypeError):  # never done, or damaged: do it
            return None


def cut_shards(items: Sequence[I], size: int) -> list[tuple[I, ...]]:
    """Cut items, in their order, into shards of about ``size``.

    A shard ends with an item whose key says so (by its digest), so that an item more or less changes the shard that it
    falls into, and those up to the next such item where a shard has reached its greatest length.
    """
    shards: list[tuple[I, ...]] = []
    begin = 0
    for number, item in enumerate(items, 1):
        if int(digest(item.key), 16) % size == 0 or number - begin == _LONGEST * size or number == len(items):
            shards.append(tuple(items[begin:number]))
            begin = number
    return shards


def run_shards(
    function: Work, items: Sequence[Item], folder: Path, *, spec: Any, size: int, mapper: Mapper, bar: Mapping[str, Any]
) -> list[Path]:
    """Have the shards done that are not there yet.

    A shard whose process dies or hangs is done item by item, each in a process of its own, to find the culprits; they
    are refused, the others kept.

    Args:
        function: writes the file of a shard; importable.
        items: all of them.
        folder: of the shards' files; what does not belong to a shard of this call is deleted in the end.
        spec: what to do with an item.
        size: items of a shard, about.
        mapper: who runs them.
        bar: arguments of the progress bar.

    Returns:
        Files of all shards, in the order of the items.
    """
    jobs = [
        ShardJob(part, folder / f"{digest(_FORM, spec, [item.identity for item in part])}.shard", spec)
        for part in cut_shards(items, size)
    ]
    waiting = [job for job in jobs if not job.path.is_file()]
    lost: list[ShardJob] = []
    with tqdm(total=len(items), initial=len(items) - sum(len(job.items) for job in waiting), **bar) as shown:
        for job, outcome in mapper(function, waiting, _limit):
            if isinstance(outcome, Died | Late):
                lost.append(job)
            else:
                shown.update(len(job.items))
        for job in lost:
            _mend(function, job, mapper)
            shown.update(len(job.items))
    tidy(folder, [job.path for job in jobs])
    return [job.path for job in jobs]


def _limit(job: ShardJob) -> float:
    return job.limit_s


def _mend(function: Work, job: ShardJob, mapper: Mapper) -> None:
    """Do a shard without the items that end its process."""
    scratch = job.path.with_suffix(".alone")
    scratch.mkdir(exist_ok=True)
    alone = [replace(job, items=(item,), path=scratch / f"{n}.shard") for n, item in enumerate(job.items)]
    bad = {
        single.items[0].key: str(outcome)
        for single, outcome in mapper(function, alone, _limit)
        if isinstance(outcome, Died | Late)
    }
    shutil.rmtree(scratch)
    for _, outcome in mapper(function, [replace(job, skip=bad)], _limit):
        if isinstance(outcome, Died | Late):  # together they end it, alone they do not: memory, most likely
            function(replace(job, skip={item.key: str(outcome) for item in job.items}))


def tidy(folder: Path, wanted: Iterable[Path]) -> None:
    """Delete shards of earlier settings or films, and what killed workers left unfinished."""
    kept = {path.name for path in wanted}
    for path in folder.iterdir():
        if path.suffix == ".alone":
            shutil.rmtree(path)
        elif path.name not in kept and (path.suffix == ".shard" or path.name.startswith(".")):
            path.unlink(missing_ok=True)
