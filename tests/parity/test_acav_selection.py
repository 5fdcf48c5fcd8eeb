"""Selections of the authors' code, replayed: their picks have the value they state, and nothing beats them.

Early picks are massively tied and fall by their float32 rounding, so that a free run would part from theirs at once.
Their prefix is therefore forced; where it was unique, the pick must be ours too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from avssl_core.curation import (
    BatchPlan,
    PairwiseInformation,
    Start,
    batch_greedy_select,
    greedy_select,
    lazy_greedy_select,
)

DENSE, MEMORY, EXACT = 2e-6, 1e-5, 1e-12
CLEAR = 1e-5  # gap to the next best beyond which the pick is determined
GREEDY = {
    "greedy_dense_bip_n400": DENSE,
    "greedy_dense_comb_n120": DENSE,
    "greedy_memory_comb_n1000": MEMORY,
    "driver_dense_n150": DENSE,
    "exact_greedy_n60_comb": EXACT,
    "exact_greedy_n100_bip_start3": EXACT,
}
BATCHES = ("batch_discard_n500_b50_s20", "batch_keep_n1000_b100_s25", "batch_keep_n300_b20_s4")


def loaded(fixtures_dir: Path, name: str) -> tuple[dict[str, Tensor], PairwiseInformation]:
    stored = load_file(fixtures_dir / "acav" / f"{name}.safetensors")
    return stored, PairwiseInformation(stored["assignments"], stored["pairs"])


def start_of(name: str, stored: dict[str, Tensor]) -> Start:
    """Their large-scale greedy program lists its start without counting it; the retrieval one counts it."""
    return Start(stored.get("start", torch.empty(0, dtype=torch.int64)), counted=not name.startswith("driver"))


def test_every_fixture_is_listed(fixtures_dir: Path) -> None:
    patterns = ("greedy_*", "driver_*", "exact_*", "batch_*")
    found = {path.stem for pattern in patterns for path in (fixtures_dir / "acav").glob(pattern)}
    assert found == {*GREEDY, *BATCHES, "exact_celf_n80_comb"}


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_picks(fixtures_dir: Path, name: str) -> None:
    stored, objective = loaded(fixtures_dir, name)
    start = start_of(name, stored)
    running = objective.running(start.ids if start.counted else None)
    picks = [pick for pick in stored["picks"].tolist() if pick not in start.ids.tolist()]
    remaining, determined = stored["candidate_order"], 0
    facts = zip(picks, *(stored[key].tolist() for key in ("gains", "num_tied", "gap_to_next")), strict=True)
    for pick, gain, tied, gap in facts:
        scores = running.scores(remaining)
        mine = scores[remaining == pick].item()
        assert mine == pytest.approx(gain, abs=GREEDY[name])
        assert scores.max().item() <= mine + GREEDY[name]
        if tied == 1 and gap > CLEAR:
            assert remaining[scores.argmax()] == pick
            determined += 1
        running.add(torch.tensor([pick]))
        remaining = remaining[remaining != pick]
    assert determined >= len(picks) / 4  # otherwise ties would leave nothing to compare


def earliest(picks: Tensor, order: Tensor) -> Tensor:
    """Their picks before all others: ties then fall as theirs did, and nothing else is decided by the order."""
    return torch.cat([picks, order[~torch.isin(order, picks)]])


@pytest.mark.parametrize("name", GREEDY)
def test_a_whole_run_under_their_ties(fixtures_dir: Path, name: str) -> None:
    stored, objective = loaded(fixtures_dir, name)
    start = start_of(name, stored)
    picks = stored["picks"][~torch.isin(stored["picks"], start.ids)]
    order = earliest(picks, stored["candidate_order"])
    chosen = greedy_select(objective, len(start.ids) + len(picks), start=start, order=order)
    torch.testing.assert_close(chosen.values, stored["gains"], atol=GREEDY[name], rtol=0)
    assert torch.equal(chosen.ids, torch.cat([start.ids, chosen.picks]))
    # The rounding of the "memory" bookkeeping exchanges two picks that differ by less than it.
    assert (chosen.picks != picks).sum() <= (2 if "memory" in name else 0)
    assert set(chosen.picks.tolist()) == set(picks.tolist())


@pytest.mark.parametrize("name", ["driver_dense_n150", "exact_greedy_n100_bip_start3"])
def test_whether_the_start_counts_matters(fixtures_dir: Path, name: str) -> None:
    stored, objective = loaded(fixtures_dir, name)
    start = start_of(name, stored)
    other = Start(start.ids, counted=not start.counted)
    chosen = greedy_select(objective, len(start.ids) + 4, start=other, order=stored["candidate_order"])
    assert (chosen.values[0] - stored["gains"][0]).abs() > 0.1


def test_lazy_greedy_picks(fixtures_dir: Path) -> None:
    stored, objective = loaded(fixtures_dir, "exact_celf_n80_comb")
    running, beaten = objective.running(stored["start"]), 0
    remaining = stored["candidate_order"]
    for pick, gain in zip(stored["picks"].tolist(), stored["gains"].tolist(), strict=True):
        scores = running.scores(remaining)
        assert scores[remaining == pick].item() == pytest.approx(gain, abs=EXACT)
        beaten += int(scores.max().item() > gain + EXACT)
        running.add(torch.tensor([pick]))
        remaining = remaining[remaining != pick]
    assert beaten > 0  # stale gains hide better clips: the function is not submodular
    size = 1 + len(stored["picks"])
    chosen = lazy_greedy_select(objective, size, start=Start(stored["start"]), order=stored["candidate_order"])
    assert torch.equal(chosen.picks, stored["picks"])  # the queue, replayed: ties included
    assert torch.equal(chosen.lookups, stored["lookups"])
    torch.testing.assert_close(chosen.values, stored["gains"], atol=EXACT, rtol=0)


@pytest.mark.parametrize("name", BATCHES)
def test_batches(fixtures_dir: Path, name: str) -> None:
    stored, objective = loaded(fixtures_dir, name)
    size, batch, asked, keep, used, _ = stored["params"].tolist()
    plan = BatchPlan(batch, asked, "top", keep=bool(keep))
    assert plan.picks_for(size, len(objective)) == used
    running, picks, determined = objective.running(stored["start"]), [], 0
    for members, scores, best in zip(stored["batches"], stored["batch_scores"], stored["picks_per_round"], strict=True):
        found = running.scores(members)
        torch.testing.assert_close(found.float(), scores, atol=DENSE, rtol=0)
        threshold = found.sort(descending=True).values[used - 1]
        assert set(members[found > threshold + DENSE].tolist()) <= set(best.tolist())
        assert not set(members[found < threshold - DENSE].tolist()) & set(best.tolist())
        determined += int((found > threshold + DENSE).sum())
        running.add(best)
        picks += best.tolist()
    assert picks[:size] == stored["picks"].tolist()
    assert determined >= len(picks) / 2  # otherwise ties would leave nothing to compare


def recorded(stored: dict[str, Tensor]) -> Callable[[Tensor, int], Tensor]:
    """Draw the batches of the file instead of new ones, each with the picks in front: ties fall as theirs did."""

    def draw(pool: Tensor, number: int) -> Tensor:
        members = earliest(stored["picks_per_round"][number], stored["batches"][number])
        places = torch.full((int(pool.max()) + 1,), -1)
        places[pool] = torch.arange(len(pool))
        assert (places[members] >= 0).all()  # what they could still draw must be in our pool
        return places[members]

    return draw


@pytest.mark.parametrize("name", BATCHES)
def test_a_whole_batch_run_under_their_ties(fixtures_dir: Path, name: str) -> None:
    """The start counts and is not returned; kept members return to the pool, the others never do."""
    stored, objective = loaded(fixtures_dir, name)
    size, batch, asked, keep, used, _ = stored["params"].tolist()
    chosen = batch_greedy_select(
        objective,
        size,
        BatchPlan(batch, asked, "top", keep=bool(keep)),
        start=Start(stored["start"], returned=False),
        order=stored["pool_order"],
        draw=recorded(stored),
    )
    torch.testing.assert_close(chosen.values, stored["gains"][:size], atol=DENSE, rtol=0)
    for begin in range(0, size, used):  # within a round their float32 may order equal scores otherwise
        rows = slice(begin, begin + used)
        assert set(chosen.ids[rows].tolist()) == set(stored["picks"][rows].tolist())
