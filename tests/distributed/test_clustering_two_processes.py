"""Rows spread unevenly over two processes are labelled as one process labels them all."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch
from helpers_distributed import run_ranks
from torch import Tensor

from avssl_core.clustering import (
    CollapseError,
    align_modalities,
    alignment_costs,
    arrange_sizes,
    cluster_mass,
    sinkhorn,
    transport_plan,
    zipf_sizes,
)
from avssl_core.collectives import LOCAL, Collectives
from avssl_core.training.distributed import TorchCollectives

ROWS, CLUSTERS, SPLIT = 61, 6, 23
SHARES = [slice(0, SPLIT), slice(SPLIT, ROWS)]
EVERYTHING = slice(0, ROWS)
CASES: dict[str, dict[str, Any]] = {
    "float64": {"precision": torch.float64, "tolerance": 1e-10},
    "float64, plain": {"precision": torch.float64, "tolerance": 1e-6, "accelerate": False, "max_iterations": 5000},
    "float32": {"tolerance": 1e-5},
    "annealed": {"precision": torch.float64, "tolerance": 1e-6, "sharpness": 400.0},
    "sharpened": {"precision": torch.float64, "tolerance": 1e-8, "sharpness": 0.02, "on_collapse": "sharpen"},
}
# Rounding decides after how many extrapolations they stop, anywhere within the marginal error asked for.
LOOSE = {"float32": {"atol": 1e-4, "rtol": 1e-3}, "annealed": {"atol": 1e-5, "rtol": 0}}


def tables() -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of two modalities and weights of the samples. No sample likes cluster 2, and it underflows."""
    generator = torch.Generator().manual_seed(4)
    video, audio = 2 * torch.randn(2, ROWS, CLUSTERS, generator=generator, dtype=torch.float64)
    video[:SPLIT, 2] -= 90
    video[SPLIT:, 2] -= 60
    weights = torch.rand(ROWS, generator=generator, dtype=torch.float64) + 0.5
    return video.log_softmax(dim=1), audio.log_softmax(dim=1), weights


def label(rows: slice, collectives: Collectives, names: Collection[str] = CASES) -> dict[str, dict[str, Any]]:
    video, audio, weights = (table[rows] for table in tables())
    scores = (video + audio) / 2
    mass = cluster_mass([video, audio], collectives=collectives)
    marginal = arrange_sizes(zipf_sizes(CLUSTERS), mass).marginal
    costs = alignment_costs(video.exp(), audio.exp(), collectives=collectives)
    results: dict[str, dict[str, Any]] = {
        "parts": {"mass": mass, "costs": costs, "order": align_modalities(costs).permutation}
    }
    for name in names:
        found = sinkhorn(scores, marginal, row_marginal=weights, collectives=collectives, **CASES[name])
        plan = transport_plan(
            scores, found.potentials, sharpness=found.sharpness, row_marginal=weights, collectives=collectives
        )
        results[name] = {**vars(found), "plan": plan}
    return results


def on_rank(rank: int) -> dict[str, dict[str, Any]]:
    return label(SHARES[rank], TorchCollectives())


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, dict[str, Any]]]:
    return run_ranks(on_rank)


@pytest.fixture(scope="module")
def one_process() -> dict[str, dict[str, Any]]:
    return label(EVERYTHING, LOCAL)


def test_masses_and_costs(two_ranks: list[dict[str, dict[str, Any]]], one_process: dict[str, dict[str, Any]]) -> None:
    for rank in two_ranks:
        torch.testing.assert_close(rank["parts"], one_process["parts"])
    alone = label(SHARES[0], LOCAL, [])["parts"]
    assert (alone["costs"] - one_process["parts"]["costs"]).abs().max() > 1  # otherwise sums would not be tested


@pytest.mark.parametrize("name", CASES)
def test_equals_one_process_on_all_rows(
    two_ranks: list[dict[str, dict[str, Any]]], one_process: dict[str, dict[str, Any]], name: str
) -> None:
    expected, found = one_process[name], [rank[name] for rank in two_ranks]
    tolerance = LOOSE.get(name, {"atol": 1e-9, "rtol": 1e-6})
    assert expected["converged"]
    assert torch.equal(torch.cat([rank["labels"] for rank in found]), expected["labels"])
    torch.testing.assert_close(torch.cat([rank["plan"] for rank in found]), expected["plan"], **tolerance)
    for rank in found:
        assert torch.equal(rank["counts"], expected["counts"])
        assert rank["sharpness"] == expected["sharpness"]
        assert rank["cost"] == pytest.approx(expected["cost"])
        torch.testing.assert_close(rank["column_sums"], expected["column_sums"], **tolerance)
    assert torch.equal(found[0]["potentials"], found[1]["potentials"])  # bit by bit: they decide alike
    assert found[0]["iterations"] == found[1]["iterations"]


def test_each_process_alone_would_label_otherwise(two_ranks: list[dict[str, dict[str, Any]]]) -> None:
    """Guards the test above."""
    alone = label(SHARES[1], LOCAL, ["float64"])["float64"]
    assert (alone["labels"] != two_ranks[1]["float64"]["labels"]).any()


def fail_on_rank(rank: int, reason: str) -> str:
    """Both ranks must raise, although only one of them sees why."""
    scores, marginal = tables()[0][SHARES[rank]], torch.ones(CLUSTERS) / CLUSTERS
    weights = torch.ones(len(scores))
    if reason == "scores" and rank == 1:
        scores[5, 0] = float("nan")
    if reason == "weights" and rank == 0:
        weights[0] = -1
    if reason == "collapse":
        marginal = arrange_sizes(zipf_sizes(CLUSTERS), torch.arange(CLUSTERS)).marginal
        scores = TorchCollectives().gather(scores[:1])[:1].expand_as(scores).clone()
    try:
        sinkhorn(scores, marginal, row_marginal=weights, collectives=TorchCollectives())
    except (ValueError, CollapseError) as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("scores", "1 of 61 rows of scores have NaN"),
        ("weights", "1 of 61 weights of row_marginal are not positive"),
        ("collapse", "the largest holds 61 of 61 samples"),
    ],
)
def test_what_one_process_sees_stops_all(reason: str, message: str) -> None:
    assert all(message in found for found in run_ranks(fail_on_rank, reason, timeout_s=60))


def empty_share(rank: int) -> Tensor:
    scores = tables()[1] if rank == 0 else tables()[1][:0]
    return sinkhorn(scores, torch.ones(CLUSTERS) / CLUSTERS, collectives=TorchCollectives()).labels


def test_a_process_without_rows() -> None:
    expected = sinkhorn(tables()[1], torch.ones(CLUSTERS) / CLUSTERS).labels
    first, second = run_ranks(empty_share, timeout_s=60)
    assert torch.equal(first, expected) and second.shape == (0,)
