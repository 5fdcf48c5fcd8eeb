"""Alignment of two modalities' outputs: slow costs, brute force, planted permutations, the layer itself."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from avssl_core.clustering import align_modalities, alignment_costs, permute_outputs_


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def softmaxes(rows: int = 30, clusters: int = 6, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    logits = torch.randn(2, rows, clusters, generator=seeded(seed), dtype=torch.float64)
    reference, other = (2 * logits).softmax(dim=2)
    return reference, other


def test_costs_agree_with_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = softmaxes(9, 4)
    slow = [[sum(abs(float(a[i, j]) - float(b[i, k])) for i in range(9)) for k in range(4)] for j in range(4)]
    expected = torch.tensor(slow, dtype=torch.float64)
    torch.testing.assert_close(alignment_costs(a, b), expected)
    torch.testing.assert_close(alignment_costs(b, a), expected.T)
    assert (expected - expected.T).abs().max() > 0.1
    monkeypatch.setattr("avssl_core.clustering.alignment.COST_CHUNK", 8)  # two rows
    torch.testing.assert_close(alignment_costs(a, b), expected)


def test_costs_add_up_to_equation_7() -> None:
    a, b = softmaxes()
    order = torch.tensor([3, 1, 0, 5, 2, 4])
    costs = alignment_costs(a, b)
    direct = (b[:, order] - a).abs().sum()
    torch.testing.assert_close(costs[torch.arange(6), order].sum(), direct)


@pytest.mark.parametrize("seed", range(1, 5))
def test_assignment_is_the_best_of_all_permutations(seed: int) -> None:
    costs = alignment_costs(*softmaxes(12, 5, seed=seed))
    totals = {p: sum(float(costs[j, k]) for j, k in enumerate(p)) for p in permutations(range(5))}
    found = align_modalities(costs)
    assert found.cost == pytest.approx(min(totals.values()))
    assert totals[tuple(found.permutation.tolist())] == pytest.approx(found.cost)
    assert found.cost_before == pytest.approx(totals[0, 1, 2, 3, 4])
    assert found.cost < found.cost_before


@pytest.mark.parametrize("method", ["assignment", "greedy"])
def test_finds_a_planted_permutation(method: str) -> None:
    reference = softmaxes(40, 12)[0]
    planted = torch.randperm(12, generator=seeded(1))
    other = torch.empty_like(reference)
    other[:, planted] = reference  # output j of the reference is output planted[j] of the other
    found = align_modalities(alignment_costs(reference, other), method=method, generator=seeded())
    assert torch.equal(found.permutation, planted)
    assert found.cost < 1e-12 < found.cost_before


def test_greedy_lies_between_the_identity_and_the_optimum() -> None:
    costs = alignment_costs(*softmaxes(40, 24, seed=2))
    optimum = align_modalities(costs)
    hurried = align_modalities(costs, method="greedy", steps=60, restarts=1, generator=seeded())
    patient = align_modalities(costs, method="greedy", generator=seeded())
    assert optimum.cost <= patient.cost < hurried.cost < optimum.cost_before
    assert patient.cost < 1.05 * optimum.cost
    assert patient.permutation.sort().values.tolist() == list(range(24))


def test_greedy_is_a_function_of_the_seed_and_keeps_the_best_restart() -> None:
    costs = alignment_costs(*softmaxes(40, 24, seed=2))
    runs = [
        align_modalities(costs, method="greedy", steps=300, restarts=1, generator=seeded(s)).cost for s in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]
    generator, singles = seeded(), []
    for _ in range(4):
        singles.append(align_modalities(costs, method="greedy", steps=300, restarts=1, generator=generator).cost)
    together = align_modalities(costs, method="greedy", steps=300, restarts=4, generator=seeded())
    assert together.cost == min(singles) < max(singles)


def test_patience_ends_a_search() -> None:
    costs = alignment_costs(*softmaxes(40, 24, seed=2))
    found = [
        align_modalities(costs, method="greedy", steps=5000, restarts=1, patience=p, generator=seeded()).cost
        for p in (1, 10, 1000)
    ]
    assert found[0] > found[1] > found[2]


def test_the_greedy_search_leaves_an_optimum_alone() -> None:
    reference = softmaxes(30, 6)[0]
    found = align_modalities(alignment_costs(reference, reference), method="greedy", generator=seeded())
    assert found.permutation.tolist() == list(range(6)) and found.cost == found.cost_before == 0


@pytest.mark.parametrize("method", ["assignment", "greedy"])
def test_a_single_cluster(method: str) -> None:
    found = align_modalities(torch.ones(1, 1), method=method, generator=seeded())
    assert found.permutation.tolist() == [0] and found.cost == 1


@pytest.mark.parametrize("bias", [True, False])
def test_permuting_a_layer_permutes_its_outputs(bias: bool) -> None:
    torch.manual_seed(0)
    layer, order, x = nn.Linear(5, 6, bias=bias), torch.tensor([3, 1, 0, 5, 2, 4]), torch.randn(7, 5)
    before, weight = layer(x).detach(), layer.weight
    permute_outputs_(layer, order)
    torch.testing.assert_close(layer(x), before[:, order])
    assert layer.weight is weight and weight.requires_grad  # the parameter an optimiser holds


def test_alignment_of_networks_lowers_the_cost_to_what_was_promised() -> None:
    torch.manual_seed(1)
    video, audio, x = nn.Linear(5, 6), nn.Linear(5, 6), torch.randn(50, 5)

    def costs() -> Tensor:
        return alignment_costs(video(x).softmax(dim=1), audio(x).softmax(dim=1))

    found = align_modalities(costs())
    permute_outputs_(audio, found.permutation)
    after = align_modalities(costs())
    assert after.cost_before == pytest.approx(found.cost, rel=1e-5) and found.cost < found.cost_before
    assert after.permutation.tolist() == list(range(6))


def test_refuses_what_does_not_fit() -> None:
    a, b = softmaxes()
    with pytest.raises(ValueError, match=r"\(30, 6\) and \(12, 6\)"):
        alignment_costs(a, b[:12])
    with pytest.raises(ValueError, match="NaN or infinite"):
        alignment_costs(a, b.log() * torch.inf)
    with pytest.raises(ValueError, match=r"finite table \(K, K\), got \(2, 3\)"):
        align_modalities(torch.ones(2, 3))
    with pytest.raises(ValueError, match="pass a generator"):
        align_modalities(torch.ones(2, 2), method="greedy")
    with pytest.raises(ValueError, match="at least 1, got 50000, 0, 1000"):
        align_modalities(torch.ones(2, 2), method="greedy", restarts=0, generator=seeded())
    with pytest.raises(ValueError, match="unknown method 'hungarian'"):
        align_modalities(torch.ones(2, 2), method="hungarian")
    with pytest.raises(ValueError, match=r"permutation of 0\.\.5, got \[0, 0, 1, 2, 3, 4\]"):
        permute_outputs_(nn.Linear(3, 6), torch.tensor([0, 0, 1, 2, 3, 4]))
    with pytest.raises(ValueError, match=r"permutation of 0\.\.5, got \[1, 0\]"):
        permute_outputs_(nn.Linear(3, 6), torch.tensor([1, 0]))
