"""What benchmarks/curation.py compares: its plain forms score as ours do, its stages, its record."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from helpers_benchmarks import loaded_benchmark
from torch import Tensor

from avssl_core.curation import PairwiseInformation, pairing
from avssl_core.curation.batch_selection import pick_sequentially, pick_top

PAIRS = pairing("combination", (4, 4))


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with loaded_benchmark("curation") as module:
        yield module


@pytest.fixture(scope="module")
def setting(benchmark: ModuleType) -> Any:
    return benchmark.Setting(clips=600, clusters=7, batch=60, picks=5)


@pytest.fixture(scope="module")
def labels(benchmark: ModuleType, setting: Any) -> Tensor:
    found = benchmark.make_labels(setting)
    assert isinstance(found, Tensor)
    return found


def scoring(benchmark: ModuleType, labels: Tensor, chosen: Tensor) -> Any:
    return benchmark.ReleasedScoring(labels.long(), PAIRS, 7, chosen, torch.float64)


def test_recomputing_every_table_gives_the_objective(benchmark: ModuleType, labels: Tensor) -> None:
    objective = PairwiseInformation(labels, PAIRS)
    for ids in (torch.arange(1), torch.arange(2), torch.arange(100, 400)):
        found = benchmark.recomputed_score(labels[ids].long().numpy(), PAIRS.tolist(), 7)
        assert found == pytest.approx(objective(ids), abs=1e-10)


def test_released_scoring_is_ours(benchmark: ModuleType, labels: Tensor) -> None:
    chosen, batch = torch.arange(200), torch.arange(300, 360)
    expected = PairwiseInformation(labels, PAIRS).running(chosen).scores(batch)
    torch.testing.assert_close(scoring(benchmark, labels, chosen).scores(batch)[0], expected, rtol=0, atol=1e-10)
    single = benchmark.ReleasedScoring(labels.long(), PAIRS, 7, chosen).scores(batch)[0]
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=2e-5)


def test_released_scoring_follows_the_sequential_picks(benchmark: ModuleType, labels: Tensor) -> None:
    """Along our picks: the same values, and none better. (Ties fall by rounding there.)"""
    chosen, batch = torch.arange(200), torch.arange(300, 360)
    running = PairwiseInformation(labels, PAIRS).running(chosen)
    places, values, _ = pick_sequentially(running, batch, 12)
    released = scoring(benchmark, labels, chosen)
    for count, (place, value) in enumerate(zip(places.tolist(), values.tolist(), strict=True)):
        left = [k for k in range(60) if k not in places[:count].tolist()]
        scores, _ = released.scores(batch[left])
        assert float(scores.max()) == pytest.approx(value, abs=1e-9)
        assert released.pick(batch[place][None])[1] == pytest.approx(value, abs=1e-9)


def test_released_scoring_picks_the_best_and_counts_it(benchmark: ModuleType, labels: Tensor) -> None:
    chosen, batch = torch.arange(200), torch.arange(300, 360)
    released = scoring(benchmark, labels, chosen)
    place, value = released.pick(batch)
    after = torch.cat([chosen, batch[place][None]])
    assert value == pytest.approx(PairwiseInformation(labels, PAIRS)(after), abs=1e-9)
    fresh = scoring(benchmark, labels, after)
    torch.testing.assert_close(released.tables, fresh.tables)
    torch.testing.assert_close(released.scores(batch)[0], fresh.scores(batch)[0], rtol=0, atol=1e-9)


def test_released_scoring_picks_the_top_of_a_round(benchmark: ModuleType, labels: Tensor) -> None:
    chosen, batch = torch.arange(200), torch.arange(300, 360)
    running = PairwiseInformation(labels, PAIRS).running(chosen)
    _, values, _ = pick_top(running, batch, 10)
    released = scoring(benchmark, labels, chosen)
    places, found = released.pick_top(batch, 10)
    torch.testing.assert_close(found, values, rtol=0, atol=1e-9)
    fresh = scoring(benchmark, labels, torch.cat([chosen, batch[places]]))
    torch.testing.assert_close(released.scores(batch)[0], fresh.scores(batch)[0], rtol=0, atol=1e-9)


def test_stages_are_the_middles_of_fifths(benchmark: ModuleType, setting: Any, labels: Tensor) -> None:
    picks = benchmark.select(labels, setting, "top").picks
    stages = benchmark.stages_of(labels, setting, picks)
    assert [len(stage.chosen) for stage in stages] == [15, 45, 75, 105, 135]
    for stage in stages:
        assert len(stage.batch) == 60 and not set(stage.batch.tolist()) & set(stage.chosen.tolist())
        assert stage.released.size[0].item() == pytest.approx(len(stage.chosen))


def test_other_scores_are_refused(benchmark: ModuleType, setting: Any, labels: Tensor) -> None:
    stages = benchmark.stages_of(labels, setting, benchmark.select(labels, setting, "top").picks)
    found = benchmark.check_equal(labels, setting, stages)
    assert found["recomputed"] < 1e-10 and found["release"] < 1e-5
    stages[2].released.sums[0] += 1
    with pytest.raises(SystemExit, match="differ from ours"):
        benchmark.check_equal(labels, setting, stages)


def test_extrapolations_add_up(
    benchmark: ModuleType, setting: Any, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that tells how often the plain forms were called: 1 s a candidate, 10 s a scored batch."""
    now = [0.0]
    recomputed, scored = benchmark.recomputed_score, benchmark.ReleasedScoring.scores

    def slow_recomputed(*given: Any) -> float:
        now[0] += 1.0
        return float(recomputed(*given))

    def slow_scores(self: Any, clips: Tensor) -> Any:
        now[0] += 10.0 if len(clips) > 1 else 0.0
        return scored(self, clips)

    stages = benchmark.stages_of(labels, setting, benchmark.select(labels, setting, "top").picks)
    monkeypatch.setattr(benchmark, "recomputed_score", slow_recomputed)
    monkeypatch.setattr(benchmark.ReleasedScoring, "scores", slow_scores)
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    assert benchmark.seconds_a_candidate(labels.long().numpy(), setting, stages) == pytest.approx(1.0)
    assert benchmark.seconds_a_pick(setting, stages) == pytest.approx(10.0)
    assert benchmark.seconds_a_round(setting, stages) == pytest.approx((10.0, 10.0))


def test_half_of_the_clips_correspond(benchmark: ModuleType) -> None:
    labels = benchmark.make_labels(benchmark.Setting(clips=4000, clusters=50))
    assert labels.shape == (4000, 8) and labels.dtype == torch.int16 and int(labels.max()) == 49
    within = (labels[:, 0] == labels[:, 1]).double().mean().item()
    across = (labels[:, 0] == labels[:, 4]).double().mean().item()
    assert within == pytest.approx(0.7**2, abs=0.04) and across == pytest.approx(0.5 * 0.7**2, abs=0.04)


def test_quick_run(benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "RESULT", tmp_path / "curation.json")
    threads = str(torch.get_num_threads())
    benchmark.main(["--quick", "--threads", threads])
    assert not list(tmp_path.iterdir())
    out = tmp_path / "new" / "quick.json"
    benchmark.main(["--quick", "--threads", threads, "--out", str(out)])
    record = json.loads(out.read_text())
    measured = {"largest_score_difference_nats", "candidates_scored", "contestants", "growth", "memory"}
    assert set(record) == {"settings", "versions", "machine", *measured}
    assert record["settings"]["pairs"] == 28 and "recomputed" in record["settings"]["extrapolation"]
    assert record["candidates_scored"] == {"sequential": 150 * sum(range(96, 101)), "top": 150 * 100}
    assert "release, scoring alone" in record["contestants"]["top"]
    for inner, figures in record["contestants"].items():
        assert set(figures) >= {"ours", "release", "recomputed"} and record["growth"][inner]["exponent"] < 3
        assert figures["ours"]["ratio_to_ours"] == 1 and not figures["ours"]["extrapolated"]
        assert figures["recomputed"]["extrapolated"] and figures["recomputed"]["ratio_to_ours"] > 1
        assert all(math.isfinite(row["seconds"]) and row["seconds"] > 0 for row in figures.values())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counts resident memory as Linux does")
def test_memory_of_a_pool(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--peak", "5000", "--clusters", "10", "--batch", "50", "--picks", "5"]
    benchmark.main([*options, "--threads", str(torch.get_num_threads())])
    found = json.loads(capsys.readouterr().out)
    assert found["clips"] == 5000 and found["MB_of_labels"] == pytest.approx(0.08) and 0 <= found["MB_peak"] < 200
