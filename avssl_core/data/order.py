"""Orders: which clips come in which batch, as pure functions of (seed, step).

An order is a batch sampler that yields lists of ``(epoch, index)``, the keys of ``WindowDataset``. It has no state
but the step it starts
at: a resumed run asks for the batches from that step on, whatever the number of workers was or is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from avssl_core.transforms import generator_for

Key = tuple[int, int]

# Tells the draws of orders from those of windows, which start from the same seed.
_ORDER, _GROUPS = 0x6F72, 0x6772


class Order(Protocol):
    """An endless, resumable batch sampler."""

    def batch(self, step: int) -> list[Key]:
        """The keys of one step."""

    def __iter__(self) -> Iterator[list[Key]]: ...

    def starting_at(self, step: int) -> Order:
        """The same order from another step on."""


@dataclass(frozen=True)
class SeededOrder:
    """Every clip once an epoch, in an order shuffled by (seed, epoch); the remainder of an epoch is left out.

    No clip comes twice in a step, also across ranks: a twin would be a false negative.

    Attributes:
        n: number of clips.
        batch_size: clips of a batch, in this process.
        seed: of the shuffles.
        rank: this process.
        world_size: number of processes; each takes its share of the same global batch.
        start_step: first step that iteration yields.
    """

    n: int
    batch_size: int
    seed: int = field(kw_only=True)
    rank: int = field(default=0, kw_only=True)
    world_size: int = field(default=1, kw_only=True)
    start_step: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        _check_sizes(self.batch_size, self.rank, self.world_size, self.start_step)
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"a global batch of {self.world_size} x {self.batch_size} clips cannot be drawn from {self.n} "
                "without repeating any; "
                f"use at most {self.n // self.world_size} a process"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every clip, up to the remainder, has been seen once more."""
        return self.n // (self.batch_size * self.world_size)

    def batch(self, step: int) -> list[Key]:
        """The keys ``(epoch, index)`` of one step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._batch(self._shuffled(epoch), epoch, place)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, place = divmod(self.start_step, self.steps_per_epoch)
        while True:
            shuffled = self._shuffled(epoch)
            for at in range(place, self.steps_per_epoch):
                yield self._batch(shuffled, epoch, at)
            epoch, place = epoch + 1, 0

    def starting_at(self, step: int) -> SeededOrder:
        """The same order from another step on."""
        return replace(self, start_step=step)

    def _shuffled(self, epoch: int) -> list[int]:
        shuffled: list[int] = torch.randperm(self.n, generator=generator_for(self.seed, _ORDER, epoch)).tolist()
        return shuffled

    def _batch(self, shuffled: list[int], epoch: int, place: int) -> list[Key]:
        first = (place * self.world_size + self.rank) * self.batch_size
        return [(epoch, index) for index in shuffled[first : first + self.batch_size]]


@dataclass(frozen=True)
class GroupedBatchSampler:
    """Batches in which each group (a film, a talker) appears exactly ``per_group`` times.

    The sampling policy of "On Negative Sampling for Audio-Visual Contrastive Learning from Movies" (arXiv
    2205.00073): B / k groups are drawn without replacement, then k distinct clips of each, all within a stretch of
    ``window`` consecutive clips of the group. Every anchor gets exactly 2(k − 1) negatives from its own group. Each
    rank's batch obeys the rule by itself.

    Attributes:
        groups: group of every clip as integers, in the order of time within each group (``WindowDataset.groups``).
        batch_size: clips of a batch, in this process; a multiple of ``per_group``.
        per_group: k.
        window: w, the longest stretch in clips, at least k; ``None``: the whole group.
        seed: of the draws.
        rank: this process.
        world_size: number of processes; where there are enough groups, no group is drawn twice in a step.
        start_step: first step that iteration yields.
    """

    groups: Sequence[int] | NDArray[np.int64]
    batch_size: int
    per_group: int
    window: int | None = field(default=None, kw_only=True)
    seed: int = field(kw_only=True)
    rank: int = field(default=0, kw_only=True)
    world_size: int = field(default=1, kw_only=True)
    start_step: int = field(default=0, kw_only=True)
    _members: list[NDArray[np.int64]] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_sizes(self.batch_size, self.rank, self.world_size, self.start_step)
        if self.per_group < 1 or self.batch_size % self.per_group:
            raise ValueError(f"batch_size must be a multiple of per_group, got {self.batch_size} and {self.per_group}")
        if self.window is not None and self.window < self.per_group:
            raise ValueError(f"a window of {self.window} clips cannot hold {self.per_group}")
        groups = np.asarray(self.groups)
        # A stable sort keeps the clips of a group in their order.
        members = np.split(np.argsort(groups, kind="stable"), np.unique(groups, return_counts=True)[1].cumsum()[:-1])
        needed = self.per_group if self.window is None else self.window
        self._members.extend(clips for clips in members if len(clips) >= needed)
        if len(self._members) < self.groups_per_batch:
            raise ValueError(
                f"a batch needs {self.groups_per_batch} groups of at least {needed} clips, there are "
                f"{len(self._members)} of {len(members)}; "
                f"use a smaller batch_size or window, or a larger per_group"
            )

    @property
    def groups_per_batch(self) -> int:
        """Groups of a batch, B / k."""
        return self.batch_size // self.per_group

    def batch(self, step: int) -> list[Key]:
        """The keys ``(step, index)`` of one step; clips of a group follow each other.

        Groups are drawn uniformly, so that there are no epochs: the step takes the epoch's place in the draw of
        windows.
        """
        generator = generator_for(self.seed, _GROUPS, step, self.rank)
        return [(step, int(index)) for group in self._groups_of(step) for index in self._clips_of(group, generator)]

    def __iter__(self) -> Iterator[list[Key]]:
        step = self.start_step
        while True:
            yield self.batch(step)
            step += 1

    def starting_at(self, step: int) -> GroupedBatchSampler:
        """The same order from another step on."""
        return replace(self, start_step=step)

    def _groups_of(self, step: int) -> list[int]:
        share = self.groups_per_batch
        enough = len(self._members) >= share * self.world_size
        path = (step,) if enough else (step, self.rank)
        drawn = torch.randperm(len(self._members), generator=generator_for(self.seed, _ORDER, *path))
        first = share * self.rank if enough else 0
        chosen: list[int] = drawn[first : first + share].tolist()
        return chosen

    def _clips_of(self, group: int, generator: torch.Generator) -> NDArray[np.int64]:
        clips = self._members[group]
        window = len(clips) if self.window is None else self.window
        start = int(torch.randint(len(clips) - window + 1, (), generator=generator))
        chosen = torch.randperm(window, generator=generator)[: self.per_group]
        return clips[start + chosen.numpy()]


@dataclass(frozen=True)
class InOrder:
    """All items once, in their order, for evaluation: yields lists of indices, the last one possibly shorter."""

    n: int
    batch_size: int

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(0, self.n, self.batch_size):
            yield list(range(first, min(first + self.batch_size, self.n)))

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)


def _check_sizes(batch_size: int, rank: int, world_size: int, start_step: int) -> None:
    if batch_size < 1 or start_step < 0 or not 0 <= rank < world_size:
        raise ValueError(
            f"need batch_size >= 1, start_step >= 0, 0 <= rank < world_size; got {batch_size=}, {start_step=}, "
            f"{rank=}, {world_size=}"
        )
