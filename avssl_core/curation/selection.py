"""Greedy selection of the clips whose clusterings agree: exact, and lazy.

ACAV100M (https://arxiv.org/abs/2101.10803, Algorithm 2): starting from nothing, add the clip that leaves the set with
the largest value, until it has the size asked for. Every pick compares the whole pool, which is quadratic; see
:mod:`~avssl_core.curation.batch_selection` for the linear one. Neither table nor score of a candidate is recomputed
here: after a pick only the candidates that share a cluster with it change (:class:`Candidates`).

What the release does differently, each on request:

* It puts an arbitrary clip in first. Its two programs disagree on what that means, see :class:`Start`.
* It stops one clip short of the size asked for. Ask for one less.
* Ties fall by rounding. Here the first of the order in which candidates are given wins, always.
* Its lazy greedy algorithm presumes submodularity, which the objective lacks: see :func:`lazy_greedy_select`.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avssl_core.curation.contingency import ROW_CHUNK
from avssl_core.curation.objective import PairwiseInformation, RunningInformation


def _no_ids() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Start:
    """Clips that are in the set before the selection begins.

    Attributes:
        ids: int64 ``(k,)``; candidates are the others.
        counted: whether they count in the tables. The release's large-scale greedy program lists its start and never
            counts it.
        returned: whether they belong to the selection and its size. The release's batch program counts its start and
            does not return it.
    """

    ids: Tensor = field(default_factory=_no_ids)
    counted: bool = True
    returned: bool = True


@dataclass(frozen=True)
class Selection:
    """What was chosen, in order.

    Attributes:
        ids: int64 ``(M,)``: the start, if it is returned, and the picks.
        picks: int64 ``(K,)``, without the start.
        values: float64 ``(K,)`` in nats: the objective with each pick, as it was scored when the pick was made.
        lookups: int64 ``(K,)``: how many candidates were scored for each pick; a pick that took over the scores of an
            earlier one counts 0.
    """

    ids: Tensor
    picks: Tensor
    values: Tensor
    lookups: Tensor


class Candidates:
    """Candidates and their increments, kept right while clips are taken from them.

    After a pick the increment of a candidate changes by the cells that it shares with the pick. Finding them compares
    ``D`` labels a candidate, in chunks; most candidates share none.

    Args:
        running: the set, to which picks are added.
        ids: candidates, int64 ``(B,)``, in the order that settles ties.
    """

    def __init__(self, running: RunningInformation, ids: Tensor) -> None:
        self.running = running
        self.ids = ids
        self._labels = np.ascontiguousarray(running.objective.rows(ids).T)  # (D, B)
        self._increments = running.increments(ids)

    def take(self) -> tuple[int, float]:
        """Add the best candidate to the set, the first of equal ones.

        Returns:
            Its position among the candidates, and the value of the set with it.

        Raises:
            ValueError: if all have been taken.
        """
        best = int(self._increments.argmax()) if len(self._increments) else 0
        if not len(self._increments) or np.isneginf(self._increments[best]):
            raise ValueError(f"all {len(self.ids)} candidates have been taken")
        value = self.running.value_with(float(self._increments[best]))
        shared = self.running.add_one(int(self.ids[best]))
        self._increments[best] = -np.inf
        picked = self._labels[:, best, None].copy()
        for begin in range(0, len(self.ids), ROW_CHUNK):
            match = self._labels[:, begin : begin + ROW_CHUNK] == picked
            near = np.flatnonzero(match.any(axis=0))
            m = match[:, near].astype(np.float64)  # (D, touched)
            self._increments[begin + near] += (shared @ m * m).sum(axis=0)
        return best, value


def greedy_select(
    objective: PairwiseInformation,
    size: int,
    *,
    start: Start | None = None,
    order: Tensor | None = None,
) -> Selection:
    """Exact greedy maximisation (Algorithm 2): the best of all remaining clips, one after the other.

    Each pick costs a comparison of ``N * D`` labels, so that the whole is quadratic in the pool.

    Args:
        objective: what to maximise.
        size: clips to return, ``M``.
        start: clips that are in the set beforehand; none if None.
        order: candidates, int64; of equally good ones the first wins. By default all clips but the start, ascending.

    Returns:
        The clips, in the order of picking.

    Raises:
        ValueError: for a size that the candidates cannot fill, or ids that repeat or are outside the pool.
    """
    start = start or Start()
    order, count = candidates_for(objective, size, start, order)
    pool = Candidates(opened(objective, start), order)
    taken = [pool.take() for _ in range(count)]
    lookups = torch.arange(len(order), len(order) - count, -1)
    return _selection(start, order[[place for place, _ in taken]], [value for _, value in taken], lookups)


def lazy_greedy_select(
    objective: PairwiseInformation,
    size: int,
    *,
    start: Start | None = None,
    order: Tensor | None = None,
) -> Selection:
    """Lazy greedy maximisation (CELF): score again only the candidates whose old gain still heads the queue.

    Exact for submodular functions, whose gains can only shrink. This one's can grow, in which case a better candidate
    stays buried under its old gain: every pick is worth what ``values`` says, but need not be the best, and on noisy
    clusterings the selection can end at half the value of the exact one. The release offers it as an alternative; its
    queue is reproduced pick by pick.

    Args:
        objective: what to maximise.
        size: clips to return, ``M``.
        start: clips that are in the set beforehand; none if None.
        order: candidates; of equal gains one that was scored later wins, then the first of the order.

    Returns:
        The clips, in the order of picking. ``lookups`` tells what laziness saved.

    Raises:
        ValueError: as :func:`greedy_select`.
    """
    start = start or Start()
    order, count = candidates_for(objective, size, start, order)
    running = opened(objective, start)
    # (minus the gain, turn, place): of equal gains the freshest first, then the order of the candidates. The first
    # gains are those over nothing, as released: with a start they bound the true ones from above, so that every
    # candidate is scored again before it is believed.
    queue = [(-score, place, place) for place, score in enumerate(running.scores(order).tolist())]
    heapq.heapify(queue)
    places: list[int] = []
    values: list[float] = []
    lookups: list[int] = []
    turn = 0
    for pick in range(count):
        loss, _, place = heapq.heappop(queue)
        scored = len(order) if pick == 0 else 0  # before the first pick all gains are fresh
        while pick > 0:
            loss = running.value - running.scores(order[place : place + 1]).item()
            scored, turn = scored + 1, turn - 1
            if not queue or loss <= queue[0][0]:
                break
            loss, _, place = heapq.heapreplace(queue, (loss, turn, place))
        values.append(-loss if pick == 0 else running.value - loss)
        running.add(order[place : place + 1])
        places.append(place)
        lookups.append(scored)
    return _selection(start, order[places], values, torch.tensor(lookups, dtype=torch.int64))


def candidates_for(objective: PairwiseInformation, size: int, start: Start, order: Tensor | None) -> tuple[Tensor, int]:
    """Candidates of a selection, int64 ``(B,)``, and how many of them to pick.

    Raises:
        ValueError: for a size that they cannot fill, or ids that repeat, overlap or are outside the pool.
    """
    free = torch.ones(len(objective), dtype=torch.bool)
    _claim(free, start.ids, "start")
    if order is None:
        order = free.nonzero()[:, 0]
    else:
        _claim(free, order, "order")
    count = size - (len(start.ids) if start.returned else 0)
    if not 0 <= count <= len(order):
        raise ValueError(
            f"cannot return {size} clips: {len(start.ids)} start clip(s) ({'' if start.returned else 'not '}returned) "
            f"and {len(order)} candidates"
        )
    return order.long(), count


def opened(objective: PairwiseInformation, start: Start) -> RunningInformation:
    """The objective at the start, as far as it counts."""
    return objective.running(start.ids if start.counted else None)


def top_places(scores: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.intp]:
    """Places of the ``count`` largest scores, best first, the earlier place first among equal ones."""
    return np.argsort(-scores, kind="stable")[:count]


def _claim(free: Tensor, ids: Tensor, name: str) -> None:
    """Mark clips as used; complain about those that are not free."""
    if ids.ndim != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"{name} must be integers (k,), got {tuple(ids.shape)} {ids.dtype}")
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= len(free)):
        raise ValueError(f"{name} runs from {int(ids.min())} to {int(ids.max())}, the pool has {len(free)} clips")
    if not bool(free[ids].all()) or len(torch.unique(ids)) < len(ids):
        raise ValueError(f"{name} repeats a clip or names one of the start, in {ids.tolist()[:20]}; list each once")
    free[ids] = False


def _selection(start: Start, picks: Tensor, values: list[float], lookups: Tensor) -> Selection:
    ids = torch.cat([start.ids.long(), picks]) if start.returned else picks
    return Selection(ids, picks, torch.tensor(values, dtype=torch.float64), lookups)
