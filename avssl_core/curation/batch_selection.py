"""Batch-greedy selection: compare a random batch instead of the whole pool, so that the cost is linear.

ACAV100M (https://arxiv.org/abs/2101.10803, Algorithm 3): draw ``b`` clips of the pool, pick ``s`` of them greedily, put
the others back, until ``M`` clips are chosen. Two procedures go by that name:

* the paper's re-evaluates the batch after every pick (``inner="sequential"``);
* the released code scores the batch once and takes the ``s`` best together (``inner="top"``). Equal clips are then
  taken together, which later ones of a sequence would not have been.

Per pick, about ``b`` candidates are compared. The release permutes its whole pool in every round, which makes it
quadratic after all; a round here touches ``b`` places of the pool.

A selection can be cut off after any round and continued from its :class:`BatchState`: the draw of a round is a function
of (seed, round), the tables follow from the picks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avssl_core.curation.objective import PairwiseInformation, RunningInformation
from avssl_core.curation.selection import Candidates, Selection, Start, candidates_for, opened, top_places
from avssl_core.transforms import generator_for

Inner = Literal["sequential", "top"]
INNERS = ("sequential", "top")

Draw = Callable[[Tensor, int], Tensor]
"""Given the pool, int64 ``(n,)``, and the round: different positions in the pool, int64, in batch order."""

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BatchPlan:
    """How to select by batches. Defaults: the paper's setting at large scale.

    Attributes:
        batch: ``b``, candidates a round.
        picks: ``s``, picks a round. The paper found 5 % of the batch safe, and a loss beyond 25 %: a batch holds no
            more good clips than the pool.
        inner: ``"sequential"`` (Algorithm 3) or ``"top"`` (as released).
        keep: put unselected members of a batch back into the pool. Without, every clip is looked at once, and ``s`` is
            raised to ``ceil(b M / N)`` where it would leave the selection short, as released.
        seed: of the draws.

    Raises:
        ValueError: for ``s`` outside ``[1, b]`` or an unknown inner procedure.
    """

    batch: int = 10_000
    picks: int = 500
    inner: Inner = "sequential"
    keep: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.picks <= self.batch:
            raise ValueError(f"picks must lie between 1 and the batch of {self.batch}, got {self.picks}")
        if self.inner not in INNERS:
            raise ValueError(f"unknown inner procedure {self.inner!r}; use one of {INNERS}")

    def picks_for(self, size: int, pool: int) -> int:
        """Picks a round that give ``size`` clips out of a pool of ``pool``."""
        return self.picks if self.keep else max(self.picks, -(-self.batch * size // pool))


@dataclass(frozen=True)
class BatchState:
    """Where a batch-greedy selection stands after a round; tensors and an integer, to be stored as they are.

    Attributes:
        picks: int64 ``(K,)``, in order, without the start.
        values: float64 ``(K,)`` in nats: the objective with each pick, as scored when it was made.
        lookups: int64 ``(K,)``: candidates scored for each pick.
        pool: int64: the clips that may still be drawn, in the order that positions refer to.
        rounds: rounds done.
    """

    picks: Tensor
    values: Tensor
    lookups: Tensor
    pool: Tensor
    rounds: int


def batch_greedy_select(
    objective: PairwiseInformation,
    size: int,
    plan: BatchPlan,
    *,
    start: Start | None = None,
    order: Tensor | None = None,
    state: BatchState | None = None,
    draw: Draw | None = None,
) -> Selection:
    """Select by batches, from the beginning or from a state to the end.

    Args:
        objective: what to maximise.
        size: clips to return, ``M``.
        plan: batch size, picks a round, and which procedure.
        start: clips that are in the set beforehand; none if None.
        order: the pool; by default all clips but the start.
        state: where to go on; of the same objective, size, plan and start.
        draw: how to draw a batch; uniformly if None, see :func:`uniform_draw`.

    Returns:
        The clips, in the order of picking. Batches are searched in the order of the draw, which settles ties.

    Raises:
        ValueError: for a size that the pool cannot fill, or ids that repeat or are outside it.
    """
    start = start or Start()
    (end,) = batch_greedy_rounds(objective, size, plan, start=start, order=order, state=state, draw=draw)
    ids = torch.cat([start.ids.long(), end.picks]) if start.returned else end.picks
    return Selection(ids, end.picks, end.values, end.lookups)


def batch_greedy_rounds(
    objective: PairwiseInformation,
    size: int,
    plan: BatchPlan,
    *,
    start: Start | None = None,
    order: Tensor | None = None,
    state: BatchState | None = None,
    draw: Draw | None = None,
    every: int | None = None,
) -> Iterator[BatchState]:
    """Select by batches, and say where the selection stands every so many rounds.

    Args:
        objective: what to maximise.
        size: clips to return, ``M``.
        plan: how.
        start: clips in the set beforehand.
        order: the pool.
        state: where to go on.
        draw: how to draw a batch.
        every: rounds between states; only the end if None. Each state copies the pool.

    Yields:
        States; the last one is that of the finished selection.

    Raises:
        ValueError: as :func:`batch_greedy_select`.
    """
    start = start or Start()
    order, count = candidates_for(objective, size, start, order)
    rounds = _Rounds(objective, plan, start, order, count, state, draw or uniform_draw(plan.batch, plan.seed))
    while rounds.missing:
        rounds.advance()
        if every is not None and rounds.done % every == 0 and rounds.missing:
            yield rounds.state()
    yield rounds.state()


def uniform_draw(batch: int, seed: int) -> Draw:
    """Draw ``batch`` different positions uniformly, all of them when fewer are left; a function of (seed, round).

    The cost does not depend on the size of the pool, unless the batch is more than half of it.
    """

    def draw(pool: Tensor, number: int) -> Tensor:
        generator = generator_for(seed, number)
        if 2 * batch >= len(pool):
            return torch.randperm(len(pool), generator=generator)[:batch]
        drawn = np.empty(0, dtype=np.int64)
        while len(drawn) < batch:
            more = torch.randint(len(pool), (batch,), generator=generator).numpy()
            drawn = np.concatenate([drawn, more])
            # What came before is left out: drawing with repeats and ignoring them is drawing without replacement.
            drawn = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
        return torch.from_numpy(drawn[:batch])

    return draw


class _Rounds:
    """A selection under way."""

    def __init__(
        self,
        objective: PairwiseInformation,
        plan: BatchPlan,
        start: Start,
        order: Tensor,
        count: int,
        state: BatchState | None,
        draw: Draw,
    ) -> None:
        self._plan, self._count, self._draw = plan, count, draw
        self._picks_a_round = plan.picks_for(count, max(len(order), 1))
        self._running = opened(objective, start)
        self.done = 0 if state is None else state.rounds
        self._pool: _Ints = (order if state is None else state.pool).numpy().copy()
        self._parts = [] if state is None else [(state.picks, state.values, state.lookups)]
        self.missing = count - (0 if state is None else len(state.picks))
        if state is not None:
            if self.missing < 0 or self.missing > len(self._pool):
                raise ValueError(
                    f"the state holds {len(state.picks)} picks and a pool of {len(self._pool)}, {count} picks are "
                    "wanted; continue with the size it was begun with"
                )
            self._running.add(state.picks)

    def advance(self) -> None:
        """One round: draw, pick, return the others."""
        positions = self._draw(torch.from_numpy(self._pool), self.done).numpy()
        ids = torch.from_numpy(self._pool[positions])
        count = min(self._picks_a_round, self.missing, len(ids))
        pick = pick_sequentially if self._plan.inner == "sequential" else pick_top
        places, values, lookups = pick(self._running, ids, count)
        self._parts.append((ids[places], values, lookups))
        self._pool = _without(self._pool, positions[places.numpy()] if self._plan.keep else positions)
        self.missing -= count
        self.done += 1

    def state(self) -> BatchState:
        """A copy of where the selection stands."""
        empty = (torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64))
        parts = self._parts or [(empty[0], empty[1], empty[0])]
        picks, values, lookups = (torch.cat(part) for part in zip(*parts, strict=True))
        self._parts = [(picks, values, lookups)]
        return BatchState(picks, values, lookups, torch.from_numpy(self._pool.copy()), self.done)


def pick_sequentially(running: RunningInformation, ids: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pick greedily within a batch, each pick scored with the ones before it in the set (Algorithm 3, lines 5-9).

    Args:
        running: the set, to which the picks are added.
        ids: the batch, int64 ``(b,)``.
        count: picks, at most ``b``.

    Returns:
        Positions in the batch, values in nats and numbers of candidates scored, ``(count,)`` each.
    """
    candidates = Candidates(running, ids)
    taken = [candidates.take() for _ in range(count)]
    places = torch.tensor([place for place, _ in taken], dtype=torch.int64)
    lookups = torch.arange(len(ids), len(ids) - count, -1)
    return places, torch.tensor([value for _, value in taken], dtype=torch.float64), lookups


def pick_top(running: RunningInformation, ids: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Score a batch once and pick the best ``count`` together, as released.

    Args:
        running: the set, to which the picks are added.
        ids: the batch, int64 ``(b,)``.
        count: picks, at most ``b``.

    Returns:
        As :func:`pick_sequentially`, best first. A value is that of the set *before* the round and one pick.
    """
    increments = running.increments(ids)
    best = top_places(increments, count)
    values = running.values_with(increments[best])
    places = torch.from_numpy(best.astype(np.int64))
    running.add(ids[places])
    lookups = torch.zeros(count, dtype=torch.int64)
    lookups[:1] = len(ids)
    return places, values, lookups


def _without(pool: _Ints, positions: _Ints) -> _Ints:
    """The pool without some positions, their places filled from its end: touches no more than twice as many."""
    left = len(pool) - len(positions)
    holes = positions[positions < left]
    gone = np.zeros(len(pool) - left, dtype=bool)
    gone[positions[positions >= left] - left] = True
    pool[np.sort(holes)] = pool[left:][~gone]
    return pool[:left]
