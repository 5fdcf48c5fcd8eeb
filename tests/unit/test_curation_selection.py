"""Greedy, lazy and batch-greedy selection against a reference that makes every table anew, for every candidate."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from avssl_core.curation import (
    BatchPlan,
    BatchState,
    PairwiseInformation,
    Start,
    batch_greedy_rounds,
    batch_greedy_select,
    greedy_select,
    lazy_greedy_select,
    pairing,
    uniform_draw,
)
from avssl_core.curation import selection as selection_module

TIED = 1e-9


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noisy_labels(clips: int, layers: int = 4, clusters: int = 4, seed: int = 0) -> Tensor:
    """Each layer shows the clip's class or, for half of the clips, anything."""
    classes = torch.randint(clusters, (clips, 1), generator=generator(seed))
    anything = torch.randint(clusters, (clips, layers), generator=generator(seed + 1))
    return torch.where(torch.rand(clips, layers, generator=generator(seed + 2)) < 0.5, classes, anything)


def slow_value(rows: list[list[int]], pairs: list[list[int]]) -> float:
    """Eq. (4.3) from tables that are counted anew."""
    n, total = len(rows), 0.0
    for p, q in pairs:
        both = Counter((row[p], row[q]) for row in rows)
        first, second = Counter(row[p] for row in rows), Counter(row[q] for row in rows)
        total += sum(m / n * math.log(Fraction(n * m, first[a] * second[b])) for (a, b), m in both.items())
    return total / len(pairs)


def slow_greedy(
    labels: Tensor, pairs: Tensor, batch: list[int], chosen: list[int], count: int
) -> list[tuple[int, float]]:
    """The best of the batch, the first of those within rounding, with every table made anew."""
    rows, taken = labels.tolist(), []
    for _ in range(count):
        left = [clip for clip in batch if clip not in [t for t, _ in taken]]
        before = [*chosen, *(t for t, _ in taken)]
        values = [slow_value([rows[clip] for clip in [*before, x]], pairs.tolist()) for x in left]
        best = next(i for i, value in enumerate(values) if value > max(values) - TIED)
        taken.append((left[best], values[best]))
    return taken


@pytest.fixture
def objective() -> PairwiseInformation:
    return PairwiseInformation(noisy_labels(40), pairing("combination", (2, 2)))


def labels_of(objective: PairwiseInformation) -> Tensor:
    return torch.from_numpy(objective.labels)


# Exact and lazy


@pytest.mark.parametrize("start", [[], [5], [3, 30, 8]])
def test_exact_greedy_equals_recomputing_every_table(objective: PairwiseInformation, start: list[int]) -> None:
    order = torch.tensor([clip for clip in torch.randperm(40, generator=generator()).tolist() if clip not in start])
    chosen = greedy_select(objective, len(start) + 12, start=Start(torch.tensor(start).long()), order=order)
    expected = slow_greedy(labels_of(objective), objective.pairs, order.tolist(), start, 12)
    assert chosen.picks.tolist() == [clip for clip, _ in expected]
    assert chosen.values.tolist() == pytest.approx([value for _, value in expected], abs=1e-10)
    assert chosen.ids.tolist() == start + chosen.picks.tolist()
    assert chosen.lookups.tolist() == list(range(len(order), len(order) - 12, -1))
    assert chosen.values[-1].item() == pytest.approx(objective(chosen.ids), abs=1e-10)


def test_weights_steer_the_selection(objective: PairwiseInformation) -> None:
    """All weight on one pair is that pair alone."""
    weights = torch.zeros(len(objective.pairs))
    weights[2] = 1.0
    steered = PairwiseInformation(labels_of(objective), objective.pairs, weights=weights)
    alone = PairwiseInformation(labels_of(objective), objective.pairs[2:3])
    found, expected = greedy_select(steered, 15), greedy_select(alone, 15)
    assert torch.equal(found.ids, expected.ids)
    torch.testing.assert_close(found.values * len(weights), expected.values)
    assert not torch.equal(found.ids, greedy_select(objective, 15).ids)


def test_chunks_do_not_change_a_selection(objective: PairwiseInformation, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = greedy_select(objective, 20)
    monkeypatch.setattr(selection_module, "ROW_CHUNK", 7)
    assert torch.equal(greedy_select(objective, 20).ids, whole.ids)


def test_the_first_of_equal_candidates_wins() -> None:
    labels = torch.tensor([[0, 0], [0, 0], [1, 1], [1, 1], [2, 2], [2, 2]])
    objective = PairwiseInformation(labels, torch.tensor([[0, 1]]))
    assert greedy_select(objective, 4).ids.tolist() == [0, 2, 4, 1]
    assert greedy_select(objective, 4, order=torch.tensor([5, 4, 3, 2, 1, 0])).ids.tolist() == [5, 3, 1, 4]


def test_names_of_clusters_do_not_matter(objective: PairwiseInformation) -> None:
    columns = [torch.randperm(4, generator=generator(d))[c] for d, c in enumerate(labels_of(objective).T)]
    renamed = PairwiseInformation(torch.stack(columns, dim=1), objective.pairs)
    assert torch.equal(greedy_select(renamed, 20).ids, greedy_select(objective, 20).ids)


def test_lazy_greedy_is_worth_what_it_says_and_saves_work() -> None:
    objective = PairwiseInformation(noisy_labels(120), pairing("bipartite", (2, 2)))
    lazy, exact = lazy_greedy_select(objective, 40), greedy_select(objective, 40)
    rows, chosen = objective.labels.tolist(), lazy.ids.tolist()
    for count in (1, 2, 5, 17, 40):
        expected = slow_value([rows[clip] for clip in chosen[:count]], objective.pairs.tolist())
        assert lazy.values[count - 1].item() == pytest.approx(expected, abs=1e-10)
    assert len(set(chosen)) == 40
    assert lazy.lookups[0] == 120 and lazy.lookups.sum() < exact.lookups.sum() / 4
    # Gains that grow again stay buried: on noisy labels laziness costs half of the value.
    assert 0.3 * exact.values[-1] < lazy.values[-1] < 0.6 * exact.values[-1]


def test_lazy_greedy_is_exact_while_gains_shrink() -> None:
    """Equal columns, one clip a cluster: every further clip adds less than the one before."""
    labels = torch.arange(6)[:, None].repeat(1, 2)
    objective = PairwiseInformation(labels, torch.tensor([[0, 1]]))
    lazy = lazy_greedy_select(objective, 6)
    assert lazy.values.tolist() == pytest.approx([math.log(n) for n in range(1, 7)], abs=1e-11)


@pytest.mark.parametrize("start", [[], [7], [0, 1], [5, 9, 30]])
def test_lazy_greedy_replays_the_released_queue(objective: PairwiseInformation, start: list[int]) -> None:
    """A stale gain before the first pick is the whole value with that clip, so that a start does not bury anyone."""
    rows, pairs = objective.labels.tolist(), objective.pairs.tolist()

    def value(chosen: list[int]) -> float:
        return round(slow_value([rows[clip] for clip in chosen], pairs), 9)  # ties within rounding are ties

    stale = {clip: (-value([*start, clip]), clip) for clip in range(40) if clip not in start}
    picks, lookups = [min(stale, key=lambda clip: stale[clip])], [len(stale)]
    del stale[picks[0]]
    for turn in range(1, 12):
        chosen, scored = [*start, *picks], 0
        while (best := min(stale, key=lambda clip: stale[clip])) is not None:
            gain = round(value([*chosen, best]) - value(chosen), 9)
            scored, stale[best] = scored + 1, (-gain, -turn * 100 - scored)  # of equal gains the freshest
            if min(stale, key=lambda clip: stale[clip]) == best:
                break
        picks, lookups = [*picks, best], [*lookups, scored]
        del stale[best]
    found = lazy_greedy_select(objective, 12 + len(start), start=Start(torch.tensor(start, dtype=torch.int64)))
    assert found.picks.tolist() == picks and found.lookups.tolist() == lookups
    for count in (1, 5, 12):
        assert found.values[count - 1].item() == pytest.approx(value([*start, *picks[:count]]), abs=1e-8)


# Batches


@pytest.mark.parametrize("inner", ["sequential", "top"])
@pytest.mark.parametrize("keep", [True, False])
def test_batches_equal_a_plain_run(objective: PairwiseInformation, inner: str, keep: bool) -> None:
    """Both procedures on batches that the test draws itself, with every table made anew."""
    order, plan = torch.arange(39, -1, -1), BatchPlan(8, 3, inner, keep=keep, seed=4)
    size = 13
    chosen = batch_greedy_select(objective, size, plan, order=order)
    drawn: list[list[int]] = []

    def noting(pool: Tensor, number: int) -> Tensor:
        positions = uniform_draw(plan.batch, plan.seed)(pool, number)
        drawn.append(pool[positions].tolist())
        return positions

    again = batch_greedy_select(objective, size, plan, order=order, draw=noting)
    assert torch.equal(again.ids, chosen.ids) and len(drawn) == 5
    expected: list[tuple[int, float]] = []
    labels, pairs, seen = labels_of(objective), objective.pairs, set[int]()
    for batch in drawn:
        so_far, count = [clip for clip, _ in expected], min(3, size - len(expected))
        assert not set(batch) & (set(so_far) if keep else seen)
        seen |= set(batch)
        if inner == "sequential":
            expected += slow_greedy(labels, pairs, batch, so_far, count)
            continue
        rows = labels.tolist()
        values = [slow_value([rows[clip] for clip in [*so_far, x]], pairs.tolist()) for x in batch]
        best = sorted(range(len(batch)), key=lambda i: (-round(values[i], 9), i))[:count]
        expected += [(batch[i], values[i]) for i in best]
    assert chosen.ids.tolist() == [clip for clip, _ in expected]
    assert chosen.values.tolist() == pytest.approx([value for _, value in expected], abs=1e-10)


def test_a_batch_of_everything_is_exact_greedy(objective: PairwiseInformation) -> None:
    in_order = lambda pool, number: pool.argsort()  # noqa: E731
    exact = greedy_select(objective, 15)
    whole = batch_greedy_select(objective, 15, BatchPlan(40, 40), draw=in_order)
    one_by_one = batch_greedy_select(objective, 15, BatchPlan(40, 1, "top"), draw=in_order)
    assert torch.equal(whole.ids, exact.ids) and torch.equal(one_by_one.ids, exact.ids)
    torch.testing.assert_close(one_by_one.values, exact.values, atol=1e-11, rtol=0)


def test_picking_whole_batches_is_picking_at_random(objective: PairwiseInformation) -> None:
    """Whatever the labels: s = b leaves nothing to choose."""
    other = PairwiseInformation(noisy_labels(40, seed=9), objective.pairs)
    plan = BatchPlan(10, 10, "top")
    assert set(batch_greedy_select(objective, 20, plan).ids.tolist()) == set(
        batch_greedy_select(other, 20, plan).ids.tolist()
    )


def test_smaller_shares_of_a_batch_and_rescoring_are_better() -> None:
    objective = PairwiseInformation(noisy_labels(600, clusters=8), pairing("bipartite", (2, 2)))

    def value(picks: int, inner: str) -> float:
        return objective(batch_greedy_select(objective, 200, BatchPlan(50, picks, inner, seed=1)).ids)

    exact = objective(greedy_select(objective, 200).ids)
    values = [value(50, "top"), value(25, "top"), value(5, "top")]
    assert values == sorted(values) and values[0] < 0.5 * exact
    assert value(25, "sequential") > value(25, "top") + 0.01
    assert exact > values[2]


@pytest.mark.parametrize("size", [0, 1, 3, 7, 40])
@pytest.mark.parametrize("inner", ["sequential", "top"])
def test_exactly_as_many_as_asked_for(objective: PairwiseInformation, size: int, inner: str) -> None:
    for keep in (True, False):
        chosen = batch_greedy_select(objective, size, BatchPlan(6, 3, inner, keep=keep))
        assert len(chosen.ids) == len(set(chosen.ids.tolist())) == size
    assert len(greedy_select(objective, size).ids) == len(lazy_greedy_select(objective, size).ids) == size


@pytest.mark.parametrize(("pool", "batch", "size"), [(40, 7, 33), (40, 40, 39), (37, 5, 19), (40, 3, 40)])
def test_without_keeping_the_picks_rise_until_the_pool_suffices(pool: int, batch: int, size: int) -> None:
    objective = PairwiseInformation(noisy_labels(pool), pairing("bipartite", (2, 2)))
    plan = BatchPlan(batch, 1, "top", keep=False)
    chosen = batch_greedy_select(objective, size, plan)
    assert len(set(chosen.ids.tolist())) == size
    assert plan.picks_for(size, pool) == math.ceil(batch * size / pool)
    assert dataclasses.replace(plan, keep=True).picks_for(size, pool) == 1


def test_conventions_of_the_start(objective: PairwiseInformation) -> None:
    ids = torch.tensor([11, 2])
    plan = BatchPlan(10, 2, "top")
    for counted, returned in itertools.product([True, False], repeat=2):
        start = Start(ids, counted=counted, returned=returned)
        batches = batch_greedy_select(objective, 10, plan, start=start)
        exact = greedy_select(objective, 10, start=start)
        lazy = lazy_greedy_select(objective, 10, start=start)
        for chosen in (batches, exact, lazy):
            assert len(chosen.ids) == 10 and len(chosen.picks) == len(chosen.values) == (8 if returned else 10)
            assert (chosen.ids[:2].tolist() == [11, 2]) == returned
            assert not {11, 2} & set(chosen.picks.tolist())
        counts = [*ids.tolist(), *exact.picks.tolist()] if counted else exact.picks.tolist()
        assert exact.values[-1].item() == pytest.approx(objective(torch.tensor(counts)), abs=1e-10)


# Resuming, drawing, scale


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("inner", ["sequential", "top"])
def test_a_selection_goes_on_from_any_state(objective: PairwiseInformation, inner: str, keep: bool) -> None:
    plan, start = BatchPlan(6, 2, inner, keep=keep, seed=3), Start(torch.tensor([0]))
    whole = batch_greedy_select(objective, 14, plan, start=start)
    states = list(batch_greedy_rounds(objective, 14, plan, start=start, every=1))
    assert len(states) == 7 and [state.rounds for state in states] == list(range(1, 8))
    for state in states:
        stored = {name: value.clone() for name, value in vars(state).items() if isinstance(value, Tensor)}
        loaded = BatchState(**stored, rounds=state.rounds)
        fresh = PairwiseInformation(labels_of(objective), objective.pairs)
        again = batch_greedy_select(fresh, 14, plan, start=start, state=loaded)
        assert torch.equal(again.ids, whole.ids) and torch.equal(again.lookups, whole.lookups)
        torch.testing.assert_close(again.values, whole.values, atol=1e-11, rtol=0)
    with pytest.raises(ValueError, match="the size it was begun with"):
        batch_greedy_select(objective, 3, plan, start=start, state=states[-1])


def test_the_seed_decides(objective: PairwiseInformation) -> None:
    runs = [batch_greedy_select(objective, 12, BatchPlan(6, 2, seed=seed)).ids for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("batch", [1, 3, 7, 12])
def test_draws_are_uniform_and_without_repeats(batch: int) -> None:
    draw, pool, rounds = uniform_draw(batch, 5), torch.arange(12), 3000
    counts, first = torch.zeros(12), torch.zeros(12)
    for number in range(rounds):
        found = draw(pool, number)
        assert len(found) == len(set(found.tolist())) == batch
        counts[found] += 1
        first[found[0]] += 1
    for seen, p in ((counts, batch / 12), (first, 1 / 12)):
        assert (seen - rounds * p).abs().max() <= 5 * math.sqrt(rounds * p * (1 - p))
    assert torch.equal(draw(pool, 2), draw(pool, 2)) and len(uniform_draw(20, 0)(pool, 0)) == 12


def test_a_round_touches_the_batch_not_the_pool() -> None:
    """Only the rows of drawn clips are read: others would raise."""
    labels = noisy_labels(3000).numpy()

    class Noted(np.ndarray):
        read = 0

        def __getitem__(self, key: object) -> object:
            found = super().__getitem__(key)
            Noted.read += found.size // 4
            return found

    objective = PairwiseInformation(torch.from_numpy(labels), pairing("bipartite", (2, 2)))
    objective.labels = labels.view(Noted)
    for inner in ("sequential", "top"):
        Noted.read = 0
        batch_greedy_select(objective, 40, BatchPlan(20, 4, inner))
        assert 10 * 20 <= Noted.read <= 4 * 10 * 20


def test_labels_on_disk_need_not_be_loaded(tmp_path: Path) -> None:
    labels = noisy_labels(200).short()
    path = tmp_path / "labels.npy"
    np.save(path, labels.numpy())
    mapped = torch.from_numpy(np.load(path, mmap_mode="c"))
    pairs, plan = pairing("combination", (2, 2)), BatchPlan(20, 5)
    found = batch_greedy_select(PairwiseInformation(mapped, pairs), 50, plan)
    assert torch.equal(found.ids, batch_greedy_select(PairwiseInformation(labels, pairs), 50, plan).ids)


def test_what_is_wrong_is_named(objective: PairwiseInformation) -> None:
    with pytest.raises(ValueError, match="cannot return 41 clips"):
        greedy_select(objective, 41)
    with pytest.raises(ValueError, match=r"cannot return 1 clips: 2 start clip\(s\) \(returned\)"):
        lazy_greedy_select(objective, 1, start=Start(torch.tensor([0, 1])))
    with pytest.raises(ValueError, match="order repeats a clip"):
        greedy_select(objective, 2, order=torch.tensor([1, 1, 2]))
    with pytest.raises(ValueError, match="names one of the start"):
        greedy_select(objective, 2, start=Start(torch.tensor([1])), order=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="start runs from 40 to 40, the pool has 40"):
        batch_greedy_select(objective, 2, BatchPlan(4, 2), start=Start(torch.tensor([40])))
    with pytest.raises(ValueError, match="order must be integers"):
        greedy_select(objective, 2, order=torch.ones(40))
    with pytest.raises(ValueError, match="batch of 4, got 5"):
        BatchPlan(4, 5)
    with pytest.raises(ValueError, match="unknown inner procedure 'lazy'"):
        BatchPlan(4, 2, "lazy")
    pool = selection_module.Candidates(objective.running(), torch.tensor([3]))
    assert pool.take()[0] == 0
    with pytest.raises(ValueError, match="all 1 candidates have been taken"):
        pool.take()
