"""Clustering scores against plain loops, closed forms, invariances, and what chance gives."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from avssl_core.evaluation import clustering_scores, contingency_table, label_agreement, shuffled_scores

Ints = npt.NDArray[np.int64]


def draw(clusters: int = 4, classes: int = 3, items: int = 40, seed: int = 0) -> tuple[Ints, Ints]:
    """Labels with something in common."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=items)
    predicted = np.where(rng.random(items) < 0.5, truth % clusters, rng.integers(clusters, size=items))
    return predicted, truth


def entropy(counts: list[int]) -> float:
    total = sum(counts)
    return -sum(n / total * math.log(n / total) for n in counts if n)


def slow_scores(predicted: list[int], truth: list[int]) -> dict[str, float]:
    n, found, known = len(truth), sorted(set(predicted)), sorted(set(truth))
    pairs = list(zip(predicted, truth, strict=True))
    table = [[pairs.count((p, t)) for t in known] for p in found]
    h_p, h_t = entropy([predicted.count(p) for p in found]), entropy([truth.count(t) for t in known])
    mutual = h_p + h_t - entropy([c for row in table for c in row])
    both = same_p = same_t = 0
    for i, j in combinations(range(n), 2):  # pairs of items, one at a time
        p, t = predicted[i] == predicted[j], truth[i] == truth[j]
        both, same_p, same_t = both + (p and t), same_p + p, same_t + t
    expected = same_p * same_t / math.comb(n, 2)
    size = max(len(found), len(known))
    square = [[table[i][j] if i < len(found) and j < len(known) else 0 for j in range(size)] for i in range(size)]
    best = max(sum(square[i][j] for i, j in enumerate(order)) for order in permutations(range(size)))
    return {
        "nmi": mutual / ((h_p + h_t) / 2),
        "ari": (both - expected) / ((same_p + same_t) / 2 - expected),
        "accuracy": best / n,
        "mean_entropy": sum(map(entropy, table)) / len(found),
        "mean_max_purity": sum(max(row) / sum(row) for row in table) / len(found),
    }


@pytest.mark.parametrize(("clusters", "classes"), [(4, 3), (3, 3), (2, 5), (6, 2)])
@pytest.mark.parametrize("seed", range(2))
def test_agrees_with_loops(clusters: int, classes: int, seed: int) -> None:
    predicted, truth = draw(clusters, classes, seed=seed)
    found = clustering_scores(predicted, truth)
    for name, value in slow_scores(predicted.tolist(), truth.tolist()).items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-10), name


def test_contingency_table_by_hand() -> None:
    table = contingency_table([7, 7, 2, 2, 2], ["b", "a", "a", "a", "b"])
    assert table.tolist() == [[2, 1], [1, 1]]  # cluster 2, cluster 7; classes a, b


def test_perfect_labels_under_other_names() -> None:
    truth = [0, 1, 2, 0, 1, 2, 2]
    found = clustering_scores(["x", "z", "y", "x", "z", "y", "y"], truth)
    assert (found.nmi, found.ami, found.ari, found.accuracy) == pytest.approx((1, 1, 1, 1))
    assert (found.mean_entropy, found.mean_max_purity) == (0, 1)
    assert math.copysign(1, found.mean_entropy) == 1  # -0.0 would be printed


def test_one_cluster_for_everything() -> None:
    found = clustering_scores([0] * 8, [0, 0, 0, 0, 1, 1, 2, 2])
    assert (found.nmi, found.ami, found.ari) == pytest.approx((0, 0, 0))
    assert (found.accuracy, found.mean_max_purity) == (0.5, 0.5)
    assert found.mean_entropy == pytest.approx(1.5 * math.log(2))


def test_a_cluster_an_item_is_pure_and_wrong() -> None:
    """Why purity needs its chance beside it: these labels say nothing."""
    truth = [0, 1] * 10
    found = clustering_scores(list(range(20)), truth)
    assert (found.mean_max_purity, found.mean_entropy) == (1, 0)
    assert found.accuracy == 2 / 20 and found.ari == pytest.approx(0) and found.ami == pytest.approx(0)
    chance = shuffled_scores(list(range(20)), truth)
    assert chance.mean_max_purity == 1 and chance.nmi == pytest.approx(found.nmi)


def test_names_and_order_of_items_do_not_matter() -> None:
    predicted, truth = draw()
    base, rng = clustering_scores(predicted, truth), np.random.default_rng(5)
    renamed = clustering_scores(rng.permutation(4)[predicted] * 10, np.array(["a", "b", "c"])[truth])
    order = rng.permutation(len(truth))
    moved = clustering_scores(torch.from_numpy(predicted[order]), torch.from_numpy(truth[order]))
    for other in (renamed, moved):
        assert vars(other) == pytest.approx(vars(base))


def test_random_labels_have_no_adjusted_score_but_an_nmi_above_zero() -> None:
    rng = np.random.default_rng(0)
    predicted, truth = rng.integers(30, size=600), rng.integers(30, size=600)
    found = clustering_scores(predicted, truth)
    assert abs(found.ari) < 0.01 and abs(found.ami) < 0.05
    # The card's estimate of the bias of I(p; y), (K - 1)^2 / 2N nats, over log K.
    assert found.nmi == pytest.approx(29**2 / (2 * 600 * math.log(30)), rel=0.25)


def test_shuffled_scores_are_chance_for_these_sizes() -> None:
    predicted, truth = draw(items=120)
    found, chance = clustering_scores(predicted, truth), shuffled_scores(predicted, truth, draws=40)
    assert found.ari > 0.1 > abs(chance.ari) + 0.08 and found.nmi > 3 * chance.nmi > 0
    assert chance.mean_max_purity > 1 / 3  # above 1 / classes
    assert chance == shuffled_scores(predicted, truth, draws=40)
    assert chance != shuffled_scores(predicted, truth, draws=40, seed=1)


def test_label_agreement() -> None:
    first, second = draw(seed=1)
    table = np.stack([first, second, (first + 1) % 4], axis=1)
    found = label_agreement(torch.from_numpy(table))
    expected = slow_scores(first.tolist(), second.tolist())["nmi"]
    np.testing.assert_allclose(found, [[1, expected, 1], [expected, 1, expected], [1, expected, 1]])
    assert 0.01 < expected < 0.9


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="no items to score"):
        clustering_scores([], [])
    with pytest.raises(ValueError, match="predicted must hold one label for each of 3 items"):
        clustering_scores([0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match="truth must be integers or strings"):
        clustering_scores([0, 1], np.array([0.5, 1.0]))
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        shuffled_scores([0, 1], [0, 1], draws=0)
    for bad in (np.zeros(3, dtype=np.int64), np.zeros((3, 2)), np.zeros((0, 2), dtype=np.int64)):
        with pytest.raises(ValueError, match=r"integers \(N, H\)"):
            label_agreement(bad)
