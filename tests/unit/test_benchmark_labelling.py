"""What benchmarks/labelling.py compares: its plain forms label as ours do, its extrapolation adds up, its record."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers_benchmarks import loaded_benchmark
from scipy.special import logsumexp

from avssl_core.clustering import released_sinkhorn, transport_plan

FIGURES = {"seconds", "ratio_to_ours", "iterations", "marginal_error", "converged", "turns"}


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with loaded_benchmark("labelling") as module:
        yield module


@pytest.fixture(scope="module")
def scores(benchmark: ModuleType) -> torch.Tensor:
    table, _ = benchmark.make_scores(benchmark.Size(600, 9), 2.0)
    assert isinstance(table, torch.Tensor)
    return table


def log_domain(weights: Any, r: Any, costs: Any, reg: float, **options: Any) -> Any:
    """Stands in for POT: its arguments and its iterations, columns first, plan out; NumPy and torch alike."""
    assert options == {"numItermax": options["numItermax"], "stopThr": 0, "warn": False}
    c, share, logits = (np.asarray(x) for x in (weights, r, -costs / reg))
    assert c.dtype == share.dtype == logits.dtype
    u = np.zeros_like(c)
    for _ in range(options["numItermax"]):
        v = np.log(share) - logsumexp(logits + u[:, None], axis=0)
        u = np.log(c) - logsumexp(logits + v, axis=1)
    plan = np.exp(logits + u[:, None] + v)
    return plan if isinstance(costs, np.ndarray) else torch.from_numpy(plan)


STAND_IN = SimpleNamespace(bregman=SimpleNamespace(sinkhorn_log=log_domain))


@pytest.mark.parametrize("name", ["uniform", "Zipf"])
def test_plain_form_labels_as_ours_and_as_the_release(benchmark: ModuleType, scores: torch.Tensor, name: str) -> None:
    r = benchmark.marginal_for(name, scores)
    labels, made, error = benchmark.release(scores.exp(), r, 1e-5, 20_000)
    mine = benchmark.ours(scores, r, 1e-5, max_iterations=20_000)
    assert error <= 1e-5 and mine.converged and made > 1
    assert (labels == mine.labels).double().mean() > 0.998
    theirs = released_sinkhorn(scores.exp(), scores.exp(), r)
    assert torch.equal(benchmark.release(scores.exp(), r, 0.0, theirs.iterations)[0], theirs.labels)
    error_there = (theirs.plan.sum(0) - r).abs().sum().item()
    assert benchmark.release(scores.exp(), r, 0.0, theirs.iterations)[2] == pytest.approx(error_there, rel=1e-9)


@pytest.mark.parametrize("name", ["uniform", "Zipf"])
def test_iterations_are_counted_as_the_release_makes_them(
    benchmark: ModuleType, scores: torch.Tensor, name: str
) -> None:
    r = benchmark.marginal_for(name, scores)
    counted = benchmark.count_iterations(scores, r)
    made, error = benchmark.release(scores.exp(), r, benchmark.TOLERANCE, 5000)[1:]
    assert abs(made - counted.iterations) <= 1
    assert error == pytest.approx(counted.error, rel=0.02) and error <= benchmark.TOLERANCE
    assert benchmark.release(scores.exp(), r, 0.0, made - 1)[2] > benchmark.TOLERANCE


def test_errors_are_those_of_the_plan(benchmark: ModuleType, scores: torch.Tensor) -> None:
    r = benchmark.marginal_for("Zipf", scores)
    mine = benchmark.ours(scores, r)
    plan = transport_plan(scores, mine.potentials, sharpness=benchmark.SHARPNESS)
    assert (plan.sum(0) - r).abs().sum().item() == pytest.approx(mine.error, abs=1e-6)
    assert mine.error <= benchmark.TOLERANCE


def test_pot_is_asked_for_the_same_plan(benchmark: ModuleType, scores: torch.Tensor) -> None:
    r = benchmark.marginal_for("uniform", scores)
    expected = benchmark.release(scores.exp(), r, 0.0, 40)[0]
    rows = benchmark.rivals(STAND_IN, scores, r)
    assert list(rows) == ["release", "POT, NumPy, float64", "POT, torch, float32"]
    for name, share in (("release", 1.0), ("POT, NumPy, float64", 1.0), ("POT, torch, float32", 0.995)):
        found = torch.as_tensor(rows[name][0](40)[0] if name == "release" else rows[name][0](40))
        assert (found == expected).double().mean() >= share


def test_the_real_pot_agrees(benchmark: ModuleType, scores: torch.Tensor) -> None:
    ot = pytest.importorskip("ot", reason="POT is not installed")
    agreement = benchmark.check_equal(scores, ot)
    assert min(row["share of equal labels, POT, NumPy, float64"] for row in agreement.values()) > 0.998


def test_agreement_is_checked_for_both_marginals(
    benchmark: ModuleType, scores: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement = benchmark.check_equal(scores, STAND_IN)
    assert list(agreement) == ["uniform", "Zipf"]
    for row in agreement.values():
        assert min(share for key, share in row.items() if key.startswith("share")) > 0.998
        assert abs(row["iterations_made"] - row["iterations_counted"]) <= max(1, row["iterations_made"] // 100)
    honest = benchmark.release
    monkeypatch.setattr(benchmark, "release", lambda *given: (honest(*given)[0].roll(1), *honest(*given)[1:]))
    with pytest.raises(SystemExit, match="other labels"):
        benchmark.check_equal(scores, None)


def test_extrapolation_adds_up(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def run(iterations: int) -> None:
        now[0] += 5.0 + 0.25 * iterations

    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    for steps in (1, 10):
        found = benchmark.extrapolated(run, steps, 400)
        assert found == pytest.approx({"seconds": 5.0 + 0.25 * 400, "seconds_an_iteration": 0.25})


def test_scores_are_log_probabilities_of_known_sharpness(benchmark: ModuleType) -> None:
    size = benchmark.Size(400, 30)
    sharp = [benchmark.make_scores(size, gain)[1] for gain in (1.0, 4.0)]
    assert sharp[0]["mean_largest_probability"] < sharp[1]["mean_largest_probability"]
    assert sharp[0]["mean_entropy_nats"] > sharp[1]["mean_entropy_nats"]
    table, _ = benchmark.make_scores(size, 1.0)
    assert table.dtype == torch.float32 and float(table.exp().sum(1).max()) <= 1 + 1e-5
    assert torch.equal(table, benchmark.make_scores(size, 1.0)[0])


def test_what_underflows_has_no_release(benchmark: ModuleType, scores: torch.Tensor) -> None:
    low = scores.clone()
    low[3] -= 40  # joint probabilities below 1e-17 to the power 20
    r = benchmark.marginal_for("uniform", scores)
    assert benchmark.underflowing(scores) == 0 and benchmark.underflowing(low) == 1
    assert benchmark.rivals(None, low, r) == {}
    with pytest.raises(SystemExit, match="underflow"):
        benchmark.check_equal(low, None)


def test_quick_run_without_pot(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    monkeypatch.setattr(benchmark, "RESULT", tmp_path / "labelling.json")
    threads = str(torch.get_num_threads())
    benchmark.main(["--quick", "--threads", threads])
    assert not list(tmp_path.iterdir())
    assert "POT is left out" in capsys.readouterr().out
    out = tmp_path / "new" / "quick.json"
    benchmark.main(["--quick", "--whole", "--threads", threads, "--out", str(out)])
    record = json.loads(out.read_text())
    assert set(record) == {"settings", "versions", "machine", "agreement", "cases", "large"}
    assert record["settings"]["rows"] == 2000 and record["settings"]["extrapolation"]["release"].startswith("none")
    assert set(record["versions"]) == {"torch", "numpy", "POT"} and record["large"] is None
    assert list(record["cases"]) == ["gain 2, uniform marginal", "gain 2, Zipf marginal"]
    for case in record["cases"].values():
        assert set(case["contestants"]) == {"ours", "release"} and 0 < case["mean_largest_probability"] < 1
        for row in case["contestants"].values():
            assert set(row) >= FIGURES and row["seconds"] > 0 and row["marginal_error"] <= 1e-3 and row["converged"]
        assert case["contestants"]["ours"]["ratio_to_ours"] == 1
        assert case["contestants"]["ours"]["share_of_labels_as_plain"] > 0.99


def test_peak_memory_is_measured(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--peak", "500", "--clusters", "12", "--threads", str(torch.get_num_threads())])
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 500 and found["marginal_error"] <= 1e-3
    assert 0 < found["GiB_of_scores"] < found["GiB_before_labelling"] <= found["GiB_peak"]


def test_extrapolation_does_not_leap_into_underflow(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of prototypes, unlike independent ones, once made it: two thirds of the time went into log space."""
    slow = []
    matrix = importlib.import_module("avssl_core.clustering.scaled_matrix").ScaledMatrix
    once = matrix._log_column_sums_in_log_space
    monkeypatch.setattr(matrix, "_log_column_sums_in_log_space", lambda self, v: slow.append(1) or once(self, v))
    scores, _ = benchmark.make_scores(benchmark.Size(rows=2000, clusters=64), 4.0)
    result = benchmark.ours(scores, benchmark.marginal_for("Zipf", scores))
    assert result.converged and result.iterations < 150 and not slow
