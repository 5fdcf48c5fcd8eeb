"""Retrieval against slow loops, and its ties against enumeration of all orders."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from avssl_core.evaluation import cross_modal_recall, pair_similarity, retrieval_recall


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def slow_class_recall(query: Tensor, gallery: Tensor, q: list[int], g: list[int], k: int, exclude_self: bool) -> float:
    hits = 0
    for i, row in enumerate(query):
        others = [j for j in range(len(gallery)) if not (exclude_self and j == i)]
        nearest = sorted(others, key=lambda j: -cosine(row, gallery[j]))[:k]
        hits += any(g[j] == q[i] for j in nearest)
    return hits / len(query)


@pytest.mark.parametrize("exclude_self", [False, True])
def test_class_recall_against_loops(exclude_self: bool) -> None:
    gallery = normal(60, 6, seed=0)
    query = gallery if exclude_self else normal(40, 6, seed=1)
    q, g = [i % 7 for i in range(len(query))], [i % 7 for i in range(60)]
    result = retrieval_recall(query, gallery, q, g, ks=(1, 3, 10), exclude_self=exclude_self)
    for k in (1, 3, 10):
        assert result.at[k] == pytest.approx(slow_class_recall(query, gallery, q, g, k, exclude_self))
    assert result.n_queries == len(query) and result.n_gallery == 60 - exclude_self


def test_cross_modal_recall_against_loops() -> None:
    a = normal(50, 3, 8, seed=0)
    b = a + 1.5 * normal(50, 3, 8, seed=1)
    result = cross_modal_recall(a, b, ks=(1, 5, 50))
    for k in (1, 5, 50):
        hits = 0
        for i in range(50):
            scores = [sum(cosine(a[i, w], b[j, w]) for w in range(3)) / 3 for j in range(50)]
            hits += i in sorted(range(50), key=lambda j: -scores[j])[:k]
        assert result.at[k] == pytest.approx(hits / 50)
    assert result.at[50] == 1.0 and 0.1 < result.at[1] < 1
    assert result.chance == {1: 1 / 50, 5: 5 / 50, 50: 1.0}


def test_pair_similarity_is_the_mean_over_aligned_windows() -> None:
    a, b = normal(4, 3, 8, seed=0), normal(5, 3, 8, seed=1)
    similarity = pair_similarity(a, b)
    assert similarity.shape == (4, 5)
    assert float(similarity[2, 4]) == pytest.approx(sum(cosine(a[2, w], b[4, w]) for w in range(3)) / 3)
    torch.testing.assert_close(pair_similarity(a[:, 0], b[:, 0])[1, 2], torch.tensor(cosine(a[1, 0], b[2, 0])).double())


def test_windows_help_where_each_is_noisy() -> None:
    a = normal(100, 16, 8, seed=0)
    b = a + 3 * normal(100, 16, 8, seed=1)
    assert cross_modal_recall(a, b).at[1] > cross_modal_recall(a[:, 0], b[:, 0]).at[1] + 0.3


def test_recall_does_not_decrease_in_k_and_ends_at_one() -> None:
    query, gallery = normal(30, 4, seed=0), normal(30, 4, seed=1)
    labels = [i % 3 for i in range(30)]
    ks = tuple(range(1, 31))
    for result in (retrieval_recall(query, gallery, labels, labels, ks), cross_modal_recall(query, gallery, ks)):
        values = [result.at[k] for k in ks]
        assert values == sorted(values) and values[-1] == 1.0
        chances = [result.chance[k] for k in ks]
        assert chances == sorted(chances) and chances[-1] == pytest.approx(1.0)


def test_exact_on_separable_classes_and_aligned_pairs() -> None:
    labels = torch.arange(5).repeat(6)
    x = torch.eye(5)[labels]
    result = retrieval_recall(x, x, labels, labels, exclude_self=True)
    assert result.at == {1: 1.0, 5: 1.0} and result.interval[1] == (1.0, 1.0)
    distinct = normal(40, 8, seed=0)
    assert cross_modal_recall(distinct, distinct * 7).at == {1: 1.0, 5: 1.0}


def test_scale_of_features_does_not_matter() -> None:
    query, gallery = normal(30, 4, seed=0), normal(30, 4, seed=1)
    lengths = torch.rand(30, 1, generator=torch.Generator().manual_seed(0)).double() + 0.1
    labels = [i % 3 for i in range(30)]
    first = retrieval_recall(query, gallery, labels, labels)
    assert retrieval_recall(query * lengths, gallery * lengths, labels, labels) == first


def expected_over_orders(similarity: list[float], relevant: list[bool], k: int) -> float:
    """Share of hits over every order of the items that sorts the similarities."""
    hits = [
        any(relevant[i] for i in order[:k])
        for order in itertools.permutations(range(len(similarity)))
        if all(similarity[a] >= similarity[b] for a, b in itertools.pairwise(order))
    ]
    return sum(hits) / len(hits)


def test_ties_score_the_mean_over_all_orders() -> None:
    # One query along the first axis; the gallery's first coordinate is its similarity.
    similarity = [0.6, 0.6, 0.6, 0.8, 0.6, 0.0]
    gallery = torch.tensor([[s, math.sqrt(1 - s * s)] for s in similarity], dtype=torch.float64)
    labels = [1, 0, 1, 0, 0, 1]
    query = torch.tensor([[1.0, 0.0]])
    result = retrieval_recall(query, gallery, [1], labels, ks=(1, 2, 3, 4, 5, 6))
    for k in range(1, 7):
        expected = expected_over_orders(similarity, [label == 1 for label in labels], k)
        assert result.at[k] == pytest.approx(expected), k


def test_partner_ties_score_the_mean_over_all_orders() -> None:
    b = torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.6, 0.8], [1.0, 0.0]])
    a = torch.tensor([[1.0, 0.0]] * 4)
    result = cross_modal_recall(a, b, ks=(1, 2, 3, 4))
    # Items 0-2: behind item 3, anywhere among three. Item 3: first.
    for k, share in {1: 0.0, 2: 1 / 3, 3: 2 / 3, 4: 1.0}.items():
        assert result.at[k] == pytest.approx((3 * share + 1) / 4)


def test_a_collapsed_encoder_gets_chance_exactly() -> None:
    labels = [i % 4 for i in range(40)]
    constant = torch.full((40, 16), 0.3)
    for result in (
        retrieval_recall(constant, constant, labels, labels, ks=(1, 5)),
        retrieval_recall(constant, constant, labels, labels, ks=(1, 5), exclude_self=True),
        cross_modal_recall(constant, constant, ks=(1, 5)),
    ):
        for k in (1, 5):
            assert result.at[k] == pytest.approx(result.chance[k])
    assert retrieval_recall(constant, constant, labels, labels, ks=(1,)).chance[1] == pytest.approx(0.25)
    assert retrieval_recall(constant, constant, labels, labels, ks=(1,), exclude_self=True).chance[1] == pytest.approx(
        9 / 39
    )


def test_random_features_are_within_the_interval_of_chance() -> None:
    labels = [i % 5 for i in range(400)]
    by_class = retrieval_recall(normal(400, 8, seed=0), normal(400, 8, seed=1), labels, labels)
    paired = cross_modal_recall(normal(400, 8, seed=0), normal(400, 8, seed=1), ks=(5, 50))
    for result in (by_class, paired):
        for k, (low, high) in result.interval.items():
            assert low - 0.01 <= result.chance[k] <= high + 0.01
    assert by_class.chance[5] == pytest.approx(1 - math.comb(320, 5) / math.comb(400, 5))


def test_many_queries_are_searched_in_chunks() -> None:
    x = normal(1100, 4, seed=0)
    labels = [i // 2 for i in range(1100)]
    assert cross_modal_recall(x, x).at[1] == 1.0
    unit = x / x.norm(dim=1, keepdim=True)
    nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(dim=1)
    expected = (nearest // 2 == torch.arange(1100) // 2).double().mean().item()
    assert retrieval_recall(x, x, labels, labels, exclude_self=True).at[1] == pytest.approx(expected)
    tied = x.repeat_interleave(2, dim=0)[:1100]
    assert retrieval_recall(tied, tied, labels, labels, ks=(1,), exclude_self=True).at[1] == 1.0


def test_what_is_wrong_is_named() -> None:
    x = normal(6, 3, seed=0)
    labels = [0, 1, 2, 0, 1, 2]
    with pytest.raises(ValueError, match="classes missing from gallery_labels: 2"):
        retrieval_recall(x, x[:2], labels, [0, 1], ks=(1,))
    with pytest.raises(ValueError, match=r"the 6 items searched, got \(1, 7\)"):
        retrieval_recall(x, x, labels, labels, ks=(1, 7))
    with pytest.raises(ValueError, match="the 5 items searched"):
        retrieval_recall(x, x, labels, labels, ks=(6,), exclude_self=True)
    with pytest.raises(ValueError, match="3 queries and 6 gallery"):
        retrieval_recall(x[:3], x, labels[:3], labels, ks=(1,), exclude_self=True)
    with pytest.raises(ValueError, match="3 features and gallery 2"):
        retrieval_recall(x, x[:, :2], labels, labels)
    with pytest.raises(ValueError, match=r"\(6, 3\) and \(5, 3\)"):
        cross_modal_recall(x, x[:5])
    with pytest.raises(ValueError, match="every k"):
        cross_modal_recall(x, x, ks=())
