"""Sizes of clusters, and which cluster gets which: brute force over permutations, the three readings, seeds."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from avssl_core.clustering import (
    arrange_sizes,
    cluster_mass,
    effective_number,
    gaussian_sizes,
    sinkhorn,
    uniform_sizes,
    zipf_sizes,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positive(count: int, seed: int) -> Tensor:
    return torch.rand(count, generator=seeded(seed), dtype=torch.float64) + 0.1


def test_sizes_have_mean_one() -> None:
    assert uniform_sizes(4).tolist() == [1, 1, 1, 1]
    torch.testing.assert_close(zipf_sizes(4).sum(), torch.tensor(4.0, dtype=torch.float64))
    harmonic = 1 + 1 / 2 + 1 / 3 + 1 / 4
    torch.testing.assert_close(zipf_sizes(4), 4 / torch.arange(1, 5).double() / harmonic)
    torch.testing.assert_close(zipf_sizes(3, exponent=2), 3 / torch.tensor([1.0, 4, 9]).double() / (1 + 1 / 4 + 1 / 9))
    assert zipf_sizes(5, exponent=0).tolist() == [1] * 5


def test_gaussian_sizes_have_the_moments_asked_for_and_a_seed() -> None:
    sizes = gaussian_sizes(20_000, std=0.1, generator=seeded())
    assert abs(float(sizes.mean()) - 1) < 4 * 0.1 / math.sqrt(20_000)
    assert float(sizes.std()) == pytest.approx(0.1, rel=0.03)
    assert torch.equal(sizes, gaussian_sizes(20_000, std=0.1, generator=seeded()))
    assert not torch.equal(sizes, gaussian_sizes(20_000, std=0.1, generator=seeded(1)))
    generator = seeded()
    heads = [gaussian_sizes(5, generator=generator) for _ in range(2)]  # a draw of its own for each head
    assert not torch.equal(*heads)
    assert gaussian_sizes(5, std=0, generator=seeded()).tolist() == [1] * 5


def test_gaussian_sizes_stay_positive() -> None:
    sizes = gaussian_sizes(1000, std=2.0, generator=seeded())
    assert sizes.min() == 0.01 and (sizes == 0.01).sum() > 100


@pytest.mark.parametrize("seed", range(4))
def test_the_papers_arrangement_is_the_best_of_all_permutations(seed: int) -> None:
    """Equation 4: minus the sum of q log(R r)."""
    sizes, mass = positive(5, seed), positive(5, seed + 10)
    found = arrange_sizes(sizes, mass)

    def energy(order: tuple[float, ...]) -> float:
        return -sum(float(q) * math.log(r) for q, r in zip(mass, order, strict=True))

    best = min(permutations((sizes / sizes.sum()).tolist()), key=energy)
    torch.testing.assert_close(found.marginal, torch.tensor(best, dtype=torch.float64))
    torch.testing.assert_close(found.marginal, found.sizes / sizes.sum())
    worst = max(permutations((sizes / sizes.sum()).tolist()), key=energy)
    assert energy(worst) - energy(best) > 0.05


def test_readings_by_hand() -> None:
    sizes, mass = torch.tensor([2.0, 8.0, 4.0]), torch.tensor([5.0, 1.0, 3.0])  # ascending mass: clusters 1, 2, 0
    paper = arrange_sizes(sizes, mass)
    assert paper.sizes.tolist() == [8, 2, 4]
    torch.testing.assert_close(paper.marginal, torch.tensor([8.0, 2, 4]).double() / 14)
    reciprocal = arrange_sizes(sizes, mass, reading="sorted_reciprocal")
    assert reciprocal.sizes.tolist() == [8, 2, 4]
    torch.testing.assert_close(reciprocal.marginal, torch.tensor([1.0, 4, 2]).double() / 7)
    released = arrange_sizes(sizes, mass, reading="released")
    assert released.sizes.tolist() == [4, 2, 8]  # 2 to cluster 1, 8 to cluster 2... as drawn: 2 -> 1, 8 -> 2, 4 -> 0


@pytest.mark.parametrize("reading", ["paper", "sorted_reciprocal"])
def test_sorted_readings_do_not_depend_on_the_order_of_sizes_and_repeat_themselves(reading: str) -> None:
    sizes, mass = positive(6, 1), positive(6, 2)
    first = arrange_sizes(sizes, mass, reading=reading)
    again = arrange_sizes(first.sizes, mass, reading=reading)
    shuffled = arrange_sizes(sizes.flip(0), mass, reading=reading)
    for other in (again, shuffled):
        torch.testing.assert_close(other.marginal, first.marginal)


def test_the_released_reading_permutes_anew_at_each_call() -> None:
    sizes, mass = torch.tensor([1.0, 2, 3, 4]), torch.tensor([3.0, 1, 4, 2])
    first = arrange_sizes(sizes, mass, reading="released")
    second = arrange_sizes(first.sizes, mass, reading="released")
    assert first.sizes.tolist() == [3, 1, 4, 2]
    assert second.sizes.tolist() == [4, 3, 2, 1]
    assert not torch.equal(first.marginal, second.marginal)


def test_marginals_sum_to_one_and_uniform_sizes_stay_uniform() -> None:
    for reading in ("paper", "sorted_reciprocal", "released"):
        found = arrange_sizes(positive(9, 3), positive(9, 4), reading=reading).marginal
        assert found.min() > 0 and float(found.sum()) == pytest.approx(1)
        uniform = arrange_sizes(uniform_sizes(9), positive(9, 4), reading=reading).marginal
        torch.testing.assert_close(uniform, torch.full((9,), 1 / 9, dtype=torch.float64))


def test_equal_masses_count_in_index_order() -> None:
    assert arrange_sizes(torch.tensor([3.0, 1, 2]), torch.ones(3)).sizes.tolist() == [1, 2, 3]


def test_aligned_zipf_labels_better_than_uniform_and_reciprocal_ones() -> None:
    """The card's check: a skewed latent class, fixed soft predictions, the assignment step alone."""
    generator, clusters, rows = seeded(5), 8, 2000
    prior = zipf_sizes(clusters) / clusters
    truth = torch.multinomial(prior, rows, replacement=True, generator=generator)
    logits = 2.0 * torch.eye(clusters)[truth] + torch.randn(rows, clusters, generator=generator)
    scores = logits.log_softmax(dim=1)
    mass = cluster_mass([scores, scores])
    sizes = zipf_sizes(clusters)[torch.randperm(clusters, generator=generator)]
    marginals = {
        reading: arrange_sizes(sizes, mass, reading=reading).marginal for reading in ("paper", "sorted_reciprocal")
    }
    marginals["uniform"] = arrange_sizes(uniform_sizes(clusters), mass).marginal
    accuracy = {name: float((sinkhorn(scores, r).labels == truth).double().mean()) for name, r in marginals.items()}
    assert accuracy["paper"] > accuracy["uniform"] + 0.1 > accuracy["sorted_reciprocal"] + 0.2


@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_mass_is_the_sum_of_products(monkeypatch: pytest.MonkeyPatch, modalities: int) -> None:
    tables = [
        torch.randn(11, 4, generator=seeded(m), dtype=torch.float64).log_softmax(dim=1) for m in range(modalities)
    ]
    expected = [sum(math.prod(float(t[i, y].exp()) for t in tables) for i in range(11)) for y in range(4)]
    torch.testing.assert_close(cluster_mass(tables), torch.tensor(expected, dtype=torch.float64))
    monkeypatch.setattr("avssl_core.clustering.marginals.MASS_CHUNK", 12)  # three rows
    torch.testing.assert_close(cluster_mass(tables), torch.tensor(expected, dtype=torch.float64))


def test_effective_number() -> None:
    assert effective_number(torch.ones(7) / 7) == pytest.approx(7)
    assert effective_number(torch.tensor([1.0, 0, 0])) == 1
    assert effective_number(torch.tensor([0.5, 0.25, 0.25])) == pytest.approx(2**1.5)


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="at least 1 cluster, got 0"):
        uniform_sizes(0)
    with pytest.raises(ValueError, match=r"std must not be negative, got -0\.1"):
        gaussian_sizes(3, std=-0.1, generator=seeded())
    for exponent in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"exponent must be finite and not negative, got {exponent}"):
            zipf_sizes(3, exponent=exponent)
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        arrange_sizes(torch.ones(3), torch.ones(2))
    with pytest.raises(ValueError, match=r"positive and finite, got 0\.0 to 1\.0"):
        arrange_sizes(torch.tensor([1.0, 0]), torch.ones(2))
    with pytest.raises(ValueError, match="mass of 1 clusters is NaN"):
        arrange_sizes(torch.ones(2), torch.tensor([1.0, math.nan]))
    with pytest.raises(ValueError, match="unknown reading 'eq4'"):
        arrange_sizes(torch.ones(2), torch.ones(2), reading="eq4")
    with pytest.raises(ValueError, match=r"\[\(2, 3\), \(2, 4\)\]"):
        cluster_mass([torch.zeros(2, 3), torch.zeros(2, 4)])
    with pytest.raises(ValueError, match=r"got \[\]"):
        cluster_mass([])
