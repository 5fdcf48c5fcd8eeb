"""Sinkhorn–Knopp against a slow log-domain reference, closed forms, invariances, underflow, and collapse."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise, permutations

import pytest
import torch
from torch import Tensor

from avssl_core.clustering import (
    CollapseError,
    SinkhornResult,
    effective_number,
    released_sinkhorn,
    scaling,
    sinkhorn,
    transport_plan,
    zipf_sizes,
)
from avssl_core.clustering import scaled_matrix as matrices

EXACT = {"precision": torch.float64, "tolerance": 1e-12, "max_iterations": 20_000}


def log_probs(rows: int = 24, clusters: int = 5, *, seed: int = 0, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(rows, clusters, generator=generator, dtype=torch.float64)
    return logits.log_softmax(dim=1)


def skewed(clusters: int = 5) -> Tensor:
    sizes = zipf_sizes(clusters)
    return sizes.flip(0) / sizes.sum()


def log_sum(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def slow_plan(scores: Tensor, r: Tensor, c: list[float], sharpness: float, rounds: int) -> Tensor:
    """Both log scalings, one number at a time, columns first as in the paper's code."""
    n, k = scores.shape
    cost = [[sharpness * float(scores[i, y]) for y in range(k)] for i in range(n)]
    u, v = [math.log(1 / n)] * n, [0.0] * k
    for _ in range(rounds):
        v = [math.log(float(r[y])) - log_sum([u[i] + cost[i][y] for i in range(n)]) for y in range(k)]
        u = [math.log(c[i]) - log_sum([v[y] + cost[i][y] for y in range(k)]) for i in range(n)]
    return torch.tensor([[math.exp(u[i] + cost[i][y] + v[y]) for y in range(k)] for i in range(n)]).double()


def plan_of(scores: Tensor, result: SinkhornResult, **settings: object) -> Tensor:
    return transport_plan(scores, result.potentials, sharpness=result.sharpness, **settings)


@pytest.mark.parametrize("accelerate", [True, False])
@pytest.mark.parametrize("sharpness", [1.0, 6.0])
def test_agrees_with_loops(sharpness: float, accelerate: bool) -> None:
    scores, r = log_probs(12, 4), skewed(4)
    expected = slow_plan(scores, r, [1 / 12] * 12, sharpness, rounds=600)
    assert (expected.sum(dim=0) - r).abs().sum() < 1e-6, "the reference has not converged"
    found = sinkhorn(scores, r, sharpness=sharpness, accelerate=accelerate, **EXACT)
    torch.testing.assert_close(plan_of(scores, found), expected, atol=1e-7, rtol=1e-5)
    assert torch.equal(found.labels, expected.argmax(dim=1))
    assert found.cost == pytest.approx(-sum(float(scores[i, y]) for i, y in enumerate(found.labels.tolist())) / 12)


def test_rows_of_unequal_weight_agree_with_loops() -> None:
    scores, r = log_probs(10, 3), skewed(3)
    weights = torch.arange(1.0, 11.0)
    c = (weights.double() / weights.sum()).tolist()
    expected = slow_plan(scores, r, c, 4.0, rounds=500)
    found = sinkhorn(scores, r, sharpness=4.0, row_marginal=weights, **EXACT)
    plan = plan_of(scores, found, row_marginal=weights)
    torch.testing.assert_close(plan, expected, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(plan.sum(dim=1), torch.tensor(c, dtype=torch.float64))
    equal = sinkhorn(scores, r, sharpness=4.0, **EXACT)
    assert (plan_of(scores, equal) - plan).abs().max() > 1e-2  # otherwise the weights would not be tested


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_marginals_of_the_plan_and_what_the_report_says(precision: torch.dtype) -> None:
    scores, r = log_probs(200, 7, spread=2), skewed(7)
    found = sinkhorn(scores.to(precision), r, precision=precision, tolerance=1e-5)
    plan = plan_of(scores, found)
    torch.testing.assert_close(plan.sum(dim=1), torch.full((200,), 1 / 200, dtype=torch.float64))
    assert (plan.sum(dim=0) - r).abs().sum() < 2e-5
    torch.testing.assert_close(plan.sum(dim=0), found.column_sums, atol=1e-6, rtol=1e-4)
    assert found.converged and found.error <= 1e-5
    assert found.error == pytest.approx(float((found.column_sums - r).abs().sum()), rel=1e-6)
    assert found.counts.tolist() == torch.bincount(found.labels, minlength=7).tolist()
    assert found.potentials.mean().abs() < 1e-9


def test_one_plain_iteration_is_row_softmax() -> None:
    scores = log_probs(6, 3)
    with pytest.warns(UserWarning, match="stopped after 1 iterations"):
        found = sinkhorn(scores, skewed(3), max_iterations=1, precision=torch.float64, on_collapse="keep")
    expected = (20 * scores).softmax(dim=1)
    torch.testing.assert_close(found.column_sums, expected.mean(dim=0))
    assert torch.equal(found.labels, scores.argmax(dim=1))
    assert not found.converged and found.iterations == 1


@pytest.mark.parametrize("seed", range(3))
def test_acceleration_reaches_the_same_plan_in_fewer_passes(seed: int) -> None:
    scores, r = log_probs(300, 6, seed=seed, spread=3), skewed(6)
    plain = sinkhorn(scores, r, accelerate=False, **EXACT)
    fast = sinkhorn(scores, r, **EXACT)
    torch.testing.assert_close(plan_of(scores, fast), plan_of(scores, plain), atol=1e-9, rtol=1e-6)
    assert fast.iterations < plain.iterations / 3


def test_the_error_never_grows_without_acceleration() -> None:
    scores, r, errors = log_probs(60, 5, spread=2), skewed(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for most in (1, 2, 4, 8, 16, 32):
            errors.append(
                sinkhorn(
                    scores, r, max_iterations=most, tolerance=1e-9, precision=torch.float64, accelerate=False
                ).error
            )
    assert all(later < earlier for earlier, later in pairwise(errors)), errors


def test_extrapolation_solves_an_affine_iteration_in_as_many_steps_as_dimensions() -> None:
    """Where plain steps shrink the error by a tenth each, at best."""
    generator = torch.Generator().manual_seed(2)
    basis = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    map_ = basis @ torch.diag(torch.tensor([0.9, 0.95, 0.97, 0.99], dtype=torch.float64)) @ basis.T
    target, v = torch.arange(4.0, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    history = scaling.History(torch.full((4,), 0.25, dtype=torch.float64))
    for _ in range(6):
        v = history.extrapolate(scaling.Point(v, (map_ - torch.eye(4)) @ (v - target), v, 0.0))
    torch.testing.assert_close(v, target, atol=1e-8, rtol=0)


@pytest.mark.parametrize("accelerate", [True, False])
def test_a_start_at_the_fixed_point_stays_there(accelerate: bool) -> None:
    scores, r = log_probs(60, 5, spread=2), skewed()
    first = sinkhorn(scores, r, **EXACT)
    settings = EXACT | {"tolerance": 1e-9}
    again = sinkhorn(scores, r, start=first.potentials + 7, accelerate=accelerate, **settings)
    assert again.iterations == 1
    torch.testing.assert_close(again.potentials, first.potentials)


# Closed forms and invariances


def test_towards_zero_sharpness_the_plan_is_the_product_of_the_marginals() -> None:
    scores, r = log_probs(30, 4), skewed(4)
    found = sinkhorn(scores, r, sharpness=1e-6, on_collapse="keep", **EXACT)
    torch.testing.assert_close(plan_of(scores, found), r.expand(30, 4) / 30, atol=1e-7, rtol=1e-5)


def test_sharp_labels_with_their_own_histogram_are_the_row_maxima() -> None:
    scores = log_probs(200, 4, spread=3)
    own = torch.bincount(scores.argmax(dim=1), minlength=4) / 200
    assert own.min() > 0
    found = sinkhorn(scores, own, sharpness=200.0)
    assert torch.equal(found.labels, scores.argmax(dim=1))


def test_two_clusters_have_a_closed_form() -> None:
    """Two kinds of rows, half each, log-odds ±d: ``logit = ±λd + v``; with r = 1/2 the symmetry makes v = 0."""
    d = 0.2
    rows = torch.tensor([[d / 2, -d / 2], [-d / 2, d / 2]], dtype=torch.float64).repeat(8, 1)
    plan = plan_of(rows, sinkhorn(rows, torch.tensor([0.5, 0.5]), sharpness=5.0, **EXACT))
    expected = 1 / (1 + math.exp(-5 * d)) / 16
    torch.testing.assert_close(plan[0], torch.tensor([expected, 1 / 16 - expected], dtype=torch.float64))
    torch.testing.assert_close(plan[1], plan[0].flip(0))


def test_large_sharpness_attains_the_best_assignment() -> None:
    """Quotas of two samples a cluster: against all assignments. Nothing is soft: extrapolation alone stalls here."""
    scores = log_probs(6, 3, seed=4)
    best = max(set(permutations((0, 0, 1, 1, 2, 2))), key=lambda ys: sum(float(scores[i, y]) for i, y in enumerate(ys)))
    found = sinkhorn(scores, torch.ones(3) / 3, sharpness=400.0, **EXACT)
    assert found.converged and tuple(found.labels.tolist()) == best
    assert best != tuple(scores.argmax(dim=1).tolist())  # otherwise the quotas would not be tested


@pytest.mark.parametrize("axis", [0, 1])
def test_constants_added_to_rows_or_columns_change_nothing(axis: int) -> None:
    scores, r = log_probs(40, 5), skewed()
    shape = (40, 1) if axis == 1 else (1, 5)
    moved = scores + 3 * torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    a, b = sinkhorn(scores, r, **EXACT), sinkhorn(moved, r, **EXACT)
    torch.testing.assert_close(plan_of(moved, b), plan_of(scores, a), atol=1e-10, rtol=1e-6)
    assert torch.equal(a.labels, b.labels)


def test_permuted_samples_and_clusters_get_permuted_labels() -> None:
    scores, r, generator = log_probs(40, 5), skewed(), torch.Generator().manual_seed(3)
    rows, columns = torch.randperm(40, generator=generator), torch.randperm(5, generator=generator)
    original = sinkhorn(scores, r, **EXACT).labels
    permuted = sinkhorn(scores[rows][:, columns], r[columns], **EXACT).labels
    assert torch.equal(columns[permuted], original[rows])


def test_counts_follow_the_marginal_where_row_maxima_would_crowd() -> None:
    scores = log_probs(2000, 8, spread=1) + torch.linspace(0, 2, 8, dtype=torch.float64)
    scores = scores.log_softmax(dim=1)
    r = torch.ones(8) / 8
    crowded = torch.bincount(scores.argmax(dim=1), minlength=8)
    assert crowded.min() < 60 and crowded.max() > 600
    found = sinkhorn(scores.float(), r)
    assert (found.counts / 2000 - r).abs().max() < 0.01
    assert found.spread == pytest.approx(8, abs=0.05)


# Numbers that do not fit float32, or float64


@pytest.mark.parametrize("spread", [8.0, 60.0])
def test_float32_agrees_where_the_released_powers_underflow(spread: float) -> None:
    """λ times the range of the scores is far beyond e^±88 (float32) and, for 60, e^±708 (float64)."""
    scores, r = log_probs(300, 6, spread=spread), skewed(6)
    assert 20 * float(scores.min()) < -88
    found = sinkhorn(scores.float(), r, tolerance=1e-4)
    exact = sinkhorn(scores, r, precision=torch.float64, tolerance=1e-6, max_iterations=20_000)
    assert found.converged
    assert (found.labels != exact.labels).sum() <= 1
    assert (found.counts / 300 - r).abs().max() < 0.01
    if spread == 60.0:
        with pytest.raises(ValueError, match="300 of 300 rows and 6 of 6 columns underflow float64"):
            released_sinkhorn((scores - 80).exp(), (scores - 80).exp(), r)


@pytest.mark.parametrize("accelerate", [True, False])
def test_a_cluster_that_no_sample_likes_is_filled_all_the_same(accelerate: bool) -> None:
    """Its column underflows at first, and is summed in log space."""
    scores = log_probs(100, 4)
    scores[:, 2] -= 50  # 1000 nats after sharpening
    r = torch.tensor([0.3, 0.3, 0.2, 0.2])
    found = sinkhorn(scores.float(), r, accelerate=accelerate)
    assert found.converged and abs(int(found.counts[2]) - 20) <= 2
    reference = sinkhorn(log_probs(100, 4), r, precision=torch.float64)
    assert (found.labels != reference.labels).sum() <= 1  # a constant of a column changes nothing


def test_small_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, r = log_probs(50, 5), skewed()
    whole = sinkhorn(scores, r, **EXACT)
    monkeypatch.setattr(matrices, "CPU_CHUNK", 15)  # three rows
    parts = sinkhorn(scores, r, **EXACT)
    assert torch.equal(whole.labels, parts.labels)
    torch.testing.assert_close(whole.potentials, parts.potentials)


def test_half_precision_gradients_and_autocast_do_not_matter() -> None:
    scores, r = log_probs(100, 5).float(), skewed()
    expected = sinkhorn(scores, r)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sinkhorn(scores.clone().requires_grad_(), r)
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.potentials, expected.potentials)
    assert not found.potentials.requires_grad
    rounded = scores.bfloat16()
    assert torch.equal(sinkhorn(rounded, r).labels, sinkhorn(rounded.float(), r).labels)


# Collapse


def test_labels_of_samples_that_are_all_alike_are_refused() -> None:
    """The plan has the marginal asked for, and yet every row maximum is cluster 4."""
    scores = log_probs(1, 5).expand(50, 5).clone()
    for choice in ("raise", "sharpen"):
        with pytest.raises(CollapseError, match=r"spread over 1\.0 clusters .* asks for 4\.\d \(4 of 5 are empty"):
            sinkhorn(scores, skewed(), on_collapse=choice)
    kept = sinkhorn(scores, skewed(), on_collapse="keep")
    assert kept.converged and kept.counts.tolist() == [0, 0, 0, 0, 50]
    assert kept.spread == 1


def test_sharpening_spreads_labels_of_samples_that_are_nearly_alike() -> None:
    scores = (0.02 * log_probs(400, 5)).log_softmax(dim=1)
    with pytest.raises(CollapseError, match="on_collapse='sharpen'"):
        sinkhorn(scores, skewed())
    found = sinkhorn(scores, skewed(), on_collapse="sharpen")
    doublings = math.log2(found.sharpness / 20)
    assert doublings == int(doublings) > 0
    assert found.spread >= 0.5 * effective_number(skewed())
    direct = sinkhorn(scores, skewed(), sharpness=found.sharpness)
    assert (direct.labels != found.labels).sum() <= 2


def test_more_clusters_than_samples_is_no_collapse() -> None:
    found = sinkhorn(log_probs(3, 10, spread=2), torch.ones(10) / 10)
    assert len(set(found.labels.tolist())) == 3


def test_one_cluster_takes_everything() -> None:
    found = sinkhorn(torch.zeros(4, 1), torch.ones(1))
    assert found.labels.tolist() == [0] * 4 and found.error == 0


# Messages


def test_refuses_what_does_not_fit() -> None:
    scores, r = log_probs(), skewed()
    with pytest.raises(ValueError, match=r"each of 5 clusters, got \(4,\)"):
        sinkhorn(scores, skewed(4))
    with pytest.raises(ValueError, match="positive share, got 0"):
        sinkhorn(scores, torch.tensor([0.5, 0.5, 0, 0, 0]))
    with pytest.raises(ValueError, match=r"sum to 1, got 5"):
        sinkhorn(scores, 5 * r)
    with pytest.raises(ValueError, match=r"\(24,\)"):
        sinkhorn(scores[:, 0], r)
    with pytest.raises(ValueError, match=r"torch\.int64"):
        sinkhorn(scores.long(), r)
    with pytest.raises(ValueError, match="no rows to label"):
        sinkhorn(scores[:0], r)
    with pytest.raises(ValueError, match=r"start must hold 5 finite potentials, got shape \(4,\)"):
        sinkhorn(scores, r, start=torch.zeros(4))
    with pytest.raises(ValueError, match=r"each of 24 rows, got \(3,\)"):
        sinkhorn(scores, r, row_marginal=torch.ones(3))
    with pytest.raises(ValueError, match=r"1 of 24 weights of row_marginal are not positive"):
        sinkhorn(scores, r, row_marginal=torch.arange(24.0))
    with pytest.raises(ValueError, match=r"\(24, 5\) and \(4,\)"):
        transport_plan(scores, torch.zeros(4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_refuses_scores_that_are_not_finite(bad: float) -> None:
    scores = log_probs()
    scores[[3, 7], 1] = bad
    with pytest.raises(ValueError, match="2 of 24 rows of scores have NaN or infinity; use log_softmax"):
        sinkhorn(scores, skewed())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sharpness": 0.0}, "sharpness must be positive, got 0"),
        ({"sharpness": math.inf}, "sharpness must be positive, got inf"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"tolerance": 1e-9}, r"at least 1e-06 in float32, got 1e-09; finer ones need precision=torch\.float64"),
        ({"max_iterations": 0}, "max_iterations must be at least 1, got 0"),
        ({"precision": torch.bfloat16}, r"precision must be .* got torch\.bfloat16"),
        ({"on_collapse": "ignore"}, "got 'ignore'"),
    ],
)
def test_refuses_settings_out_of_range(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sinkhorn(log_probs(), skewed(), **settings)


def test_released_refuses_tables_that_differ() -> None:
    with pytest.raises(ValueError, match=r"\(24, 5\) and \(12, 5\)"):
        released_sinkhorn(log_probs().exp(), log_probs(12).exp(), skewed())
