"""Orders: coverage, ranks, resuming, and the rule of grouped batches."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from avssl_core.data import GroupedBatchSampler, InOrder, SeededOrder


def test_an_epoch_visits_every_clip_once_up_to_the_remainder() -> None:
    order = SeededOrder(103, 10, seed=0)
    assert order.steps_per_epoch == 10
    batches = list(islice(order, 20))
    for epoch in range(2):
        keys = [key for batch in batches[10 * epoch : 10 * epoch + 10] for key in batch]
        assert {e for e, _ in keys} == {epoch}
        assert len({i for _, i in keys}) == 100 and all(0 <= i < 103 for _, i in keys)
    assert [i for _, i in batches[0]] != [i for _, i in batches[10]]


def test_the_order_is_a_function_of_the_seed() -> None:
    assert list(islice(SeededOrder(50, 8, seed=1), 15)) == list(islice(SeededOrder(50, 8, seed=1), 15))
    assert list(islice(SeededOrder(50, 8, seed=1), 15)) != list(islice(SeededOrder(50, 8, seed=2), 15))


@pytest.mark.parametrize("start", [0, 1, 5, 6, 7, 23])
def test_resuming_gives_the_rest_of_the_uninterrupted_order(start: int) -> None:
    full = list(islice(SeededOrder(50, 8, seed=3), 40))
    assert list(islice(SeededOrder(50, 8, seed=3, start_step=start), 40 - start)) == full[start:]
    assert list(islice(SeededOrder(50, 8, seed=3).starting_at(start), 40 - start)) == full[start:]
    assert SeededOrder(50, 8, seed=3).batch(start) == full[start]


def test_ranks_share_one_global_batch() -> None:
    """Two processes with batches of 4 see what one with a batch of 8 sees, each its half."""
    alone = list(islice(SeededOrder(50, 8, seed=3), 13))
    ranks = [list(islice(SeededOrder(50, 4, seed=3, rank=r, world_size=2), 13)) for r in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == alone


def test_grouped_batches_obey_the_rule() -> None:
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(9), [4, 5, 6, 7, 8, 9, 10, 11, 3]))
    order = GroupedBatchSampler(groups, 12, 4, seed=0, window=6)
    place = {int(clip): rank for g in range(9) for rank, clip in enumerate(np.flatnonzero(groups == g))}
    seen = set()
    for step, batch in enumerate(islice(order, 200)):
        assert [s for s, _ in batch] == [step] * 12
        clips = [i for _, i in batch]
        assert len(set(clips)) == 12
        for start in range(0, 12, 4):
            members = clips[start : start + 4]
            assert len({groups[i] for i in members}) == 1
            places = [place[i] for i in members]
            assert max(places) - min(places) + 1 <= 6
        chosen = [int(groups[i]) for i in clips[::4]]
        assert len(set(chosen)) == 3
        seen |= set(clips)
    # Groups with fewer clips than the window (0, 1 and 8) stay out; all clips of the others come up.
    assert seen == {int(i) for i in np.flatnonzero(~np.isin(groups, [0, 1, 8]))}


def test_grouped_batches_resume_and_repeat() -> None:
    groups = np.repeat(np.arange(6), 5)
    order = GroupedBatchSampler(groups, 6, 2, seed=4)
    full = list(islice(order, 20))
    assert list(islice(order.starting_at(7), 13)) == full[7:]
    assert order.batch(11) == full[11]
    assert full != list(islice(GroupedBatchSampler(groups, 6, 2, seed=5), 20))


def test_ranks_draw_different_groups_where_there_are_enough() -> None:
    groups = np.repeat(np.arange(6), 5)
    for step in range(30):
        drawn = [
            {int(groups[i]) for _, i in GroupedBatchSampler(groups, 6, 2, seed=4, rank=r, world_size=2).batch(step)}
            for r in range(2)
        ]
        assert len(drawn[0]) == len(drawn[1]) == 3 and not drawn[0] & drawn[1]
    few = [GroupedBatchSampler(groups, 10, 2, seed=4, rank=r, world_size=2).batch(0) for r in range(2)]
    assert few[0] != few[1]


def test_one_clip_per_group_is_allowed() -> None:
    batch = GroupedBatchSampler(np.repeat(np.arange(8), 3), 8, 1, seed=0).batch(0)
    assert len({i // 3 for _, i in batch}) == 8


def test_in_order_visits_everything_once() -> None:
    assert list(InOrder(7, 3)) == [[0, 1, 2], [3, 4, 5], [6]] and len(InOrder(7, 3)) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SeededOrder(10, 16, seed=0), "1 x 16 clips cannot be drawn from 10"),
        (lambda: SeededOrder(10, 6, seed=0, rank=0, world_size=2), "use at most 5"),
        (lambda: SeededOrder(10, 2, seed=0, rank=2, world_size=2), "rank=2"),
        (lambda: SeededOrder(10, 0, seed=0), "batch_size=0"),
        (lambda: GroupedBatchSampler([0, 0, 1, 1], 5, 2, seed=0), "multiple of per_group, got 5 and 2"),
        (lambda: GroupedBatchSampler([0, 0, 1, 1], 4, 2, seed=0, window=1), "window of 1 clips cannot hold 2"),
        (lambda: GroupedBatchSampler([0, 0, 1, 1, 2], 6, 2, seed=0), "3 groups of at least 2 clips, there are 2 of 3"),
    ],
)
def test_impossible_orders_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
