"""Good and bad pairs, the leak of the released evaluation, and ranking."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from avssl_core.curation import (
    BatchPlan,
    CorrespondenceSet,
    PairwiseInformation,
    batch_greedy_select,
    class_level_set,
    mismatched,
    pairing,
    precision,
    precision_curve,
    principal_components,
    rank_scores,
    sample_level_set,
    top_share,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Negatives


@pytest.mark.parametrize("groups", [list(range(9)), [0, 0, 0, 1, 1, 2, 3, 3, 4], [0] * 5 + [1] * 5, [7, 3]])
@pytest.mark.parametrize("seed", range(3))
def test_no_place_holds_two_of_a_group(groups: list[int], seed: int) -> None:
    found = mismatched(torch.tensor(groups), 2, generator=generator(seed))
    assert found[0].tolist() == list(range(len(groups))) == sorted(found[1].tolist())
    assert all(groups[a] != groups[b] for a, b in found.T.tolist())


def test_three_modalities_are_mismatched_pairwise() -> None:
    groups = torch.arange(12) // 3
    found = mismatched(groups, 3, generator=generator())
    for a, b in itertools.combinations(range(3), 2):
        assert (groups[found[a]] != groups[found[b]]).all()
    with pytest.raises(ValueError, match=r"4 of 8 negatives belong to one group.*in 3 modalities"):
        mismatched(torch.arange(8) // 4, 3, generator=generator())
    assert mismatched(torch.empty(0, dtype=torch.int64), 3, generator=generator()).shape == (3, 0)


def test_derangements_are_drawn_about_equally() -> None:
    """All nine derangements of four, none of them rare."""
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(450):
        found = tuple(mismatched(torch.arange(4), 2, generator=generator(seed))[1].tolist())
        counts[found] = counts.get(found, 0) + 1
    assert len(counts) == 9 and min(counts.values()) > 30


def test_honest_negatives_keep_a_modality_together() -> None:
    found = sample_level_set(101, (3, 2), positives=0.5, seed=1)
    assert found.is_positive.sum() == 50
    own = torch.arange(101)
    for rows in torch.split(found.source, [3, 2]):
        assert (rows == rows[0]).all()
        assert rows[0].sort().values.tolist() == own.tolist()
    assert torch.equal(found.source[0], own)
    assert torch.equal(found.source[3] == own, found.is_positive)
    assert found.torn() == 0 and found.accidental() == 0
    assert not torch.equal(found.source, sample_level_set(101, (3, 2), seed=2).source)
    assert torch.equal(found.source, sample_level_set(101, (3, 2), seed=1).source)
    assert sample_level_set(10, (1, 1), positives=1.0).is_positive.all()


def test_released_negatives_are_torn_apart() -> None:
    found = sample_level_set(400, (2, 2), per_layer=True)
    assert found.torn() > 0.97
    kept = found.source[:, found.is_positive]
    assert (kept == kept[0]).all()
    single = sample_level_set(400, (1, 1), per_layer=True)  # one layer cannot be torn
    assert single.torn() == 0
    met = sum(sample_level_set(40, (1, 1), per_layer=True, seed=seed).accidental() for seed in range(200)) / 200
    assert met == pytest.approx(1 / 20, abs=0.02)  # one clip in expectation, among 20


def test_class_level_pairs() -> None:
    classes = torch.arange(10).repeat(12)[torch.randperm(120, generator=generator())]
    found = class_level_set(classes, (2, 3), seed=3)
    good, bad = found.source[:, found.is_positive], found.source[:, ~found.is_positive]
    assert len(classes[good].unique()) == len(classes[bad].unique()) == 5
    assert (classes[good[0]] == classes[good[2]]).all() and (good[0] != good[2]).all()
    assert (classes[bad[0]] != classes[bad[2]]).all()
    assert found.torn() == 0 and found.accidental(classes) == 0
    leaking = [class_level_set(classes, (2, 3), per_layer=True, seed=seed) for seed in range(20)]
    assert sum(s.accidental(classes) for s in leaking) / 20 == pytest.approx(1 / 5, abs=0.03)
    assert min(s.torn() for s in leaking) > 0.9


def test_labels_and_features_move_with_their_clips() -> None:
    source = torch.tensor([[0, 1, 2], [0, 1, 2], [2, 1, 0]])
    made = CorrespondenceSet(source, torch.tensor([False, True, False]), (2, 1))
    labels = torch.tensor([[0, 10, 20], [1, 11, 21], [2, 12, 22]])
    assert made.rearranged(labels).tolist() == [[0, 10, 22], [1, 11, 21], [2, 12, 20]]
    features = torch.tensor([[0.0], [1.0], [2.0]])
    assert made.features(2, features).flatten().tolist() == [2, 1, 0]
    assert made.torn() == 0 and made.accidental() == 0 and made.accidental(torch.tensor([4, 5, 4])) == 1


def layered_labels(clips: int, seed: int, *, classes: int = 8) -> Tensor:
    """Three layers a modality: the class, ever more often with depth, or a nuisance of this clip and modality.

    The nuisance is shared by the layers of a modality and unknown to the other one.
    """
    draw = generator(seed)
    content = torch.randint(classes, (clips, 1), generator=draw)
    columns = []
    for _ in range(2):
        nuisance = torch.randint(classes, (clips, 1), generator=draw)
        knows = torch.rand(clips, 3, generator=draw) < torch.tensor([0.3, 0.5, 0.7])
        columns.append(torch.where(knows, content, nuisance))
    return torch.cat(columns, dim=1)


@pytest.fixture(scope="module")
def precisions() -> dict[tuple[str, bool], float]:
    """Mean precision over five seeds by (pairing scheme, whether negatives are permuted by layer)."""
    found = {}
    for scheme, leak in itertools.product(["intra", "bipartite", "combination"], [False, True]):
        values = []
        for seed in range(5):
            labels = layered_labels(600, seed)
            pairs = sample_level_set(600, (3, 3), per_layer=leak, seed=seed)
            objective = PairwiseInformation(pairs.rearranged(labels), pairing(scheme, (3, 3)))
            chosen = batch_greedy_select(objective, 300, BatchPlan(60, 6, "top", seed=seed))
            values.append(precision(chosen.ids, pairs.is_positive))
        found[scheme, leak] = float(np.mean(values))
    return found


def test_the_leak_teaches_pairs_within_a_modality_what_they_cannot_know(
    precisions: dict[tuple[str, bool], float],
) -> None:
    """The standard error of a mean of five precisions of 300 clips is 0.013."""
    assert precisions["intra", False] == pytest.approx(0.5, abs=0.05)
    assert precisions["intra", True] > 0.75


def test_the_leak_turns_the_order_of_the_pairing_schemes(precisions: dict[tuple[str, bool], float]) -> None:
    assert precisions["bipartite", False] > precisions["combination", False] + 0.03
    assert precisions["combination", True] > precisions["bipartite", True]
    assert precisions["bipartite", False] > 0.6


# Ranking


def test_scores_equal_plain_loops() -> None:
    features = torch.randn(4, 9, 5, generator=generator(), dtype=torch.float64)
    pairs = torch.tensor([[0, 2], [1, 3], [0, 3]])
    likenesses = {
        "inner_product": lambda a, b: float(a @ b),
        "cosine_similarity": lambda a, b: float(a @ b / (a.norm() * b.norm())),
        "euclidean_diff_l1": lambda a, b: -float((a - b).abs().sum()),
        "euclidean_diff_l2": lambda a, b: -float((a - b) @ (a - b)),
    }
    for likeness, plain in likenesses.items():
        expected = [sum(plain(features[p, i], features[q, i]) for p, q in pairs.tolist()) / 3 for i in range(9)]
        assert rank_scores(features, pairs, likeness).tolist() == pytest.approx(expected)
        assert rank_scores(list(features), pairs, likeness).tolist() == pytest.approx(expected)


def test_on_unit_vectors_cosine_and_distance_rank_alike() -> None:
    unit = torch.nn.functional.normalize(torch.randn(2, 50, 6, generator=generator()), dim=2)
    orders = [top_share(rank_scores(unit, torch.tensor([[0, 1]]), likeness), 1.0) for likeness in LIKE_ON_SPHERE]
    assert torch.equal(orders[0], orders[1]) and torch.equal(orders[0], orders[2])


LIKE_ON_SPHERE = ("cosine_similarity", "euclidean_diff_l2", "inner_product")


def test_principal_components() -> None:
    features = torch.randn(40, 6, generator=generator(), dtype=torch.float64) * torch.arange(1, 7) + 5
    found = principal_components(features, 3)
    expected = torch.from_numpy(PCA(3).fit_transform(features.numpy()))
    torch.testing.assert_close(found.abs(), expected.abs(), atol=1e-9, rtol=0)  # signs are arbitrary in theirs
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(principal_components(features - 9, 3), found)  # the mean does not matter
    loadings = (features - features.mean(dim=0)).T @ found  # each axis times its variance
    assert (loadings.max(dim=0).values > -loadings.min(dim=0).values).all()
    turned = principal_components(features * torch.tensor([1, 1, 1, 1, 1, -1]), 3)
    assert turned[:, 0].dot(found[:, 0]) < 0  # the widest dimension turned, and its axis did not


def test_the_best_share_and_its_precision() -> None:
    scores = torch.tensor([0.1, 0.9, 0.5, 0.9, 0.2])
    assert top_share(scores, 0.7).tolist() == [1, 3, 2] and top_share(scores, 0.0).tolist() == []
    good = torch.tensor([True, False, True, True, False])
    assert precision_curve(torch.tensor([3, 1, 0]), good).tolist() == pytest.approx([1, 1 / 2, 2 / 3])
    assert precision(torch.tensor([3, 1, 0]), good) == pytest.approx(2 / 3)


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match=r"share of positives must lie in \[0, 1\], got 1\.5"):
        sample_level_set(10, (1, 1), positives=1.5)
    with pytest.raises(ValueError, match=r"at least one layer, got \(1, 0\)"):
        sample_level_set(10, (1, 0))
    with pytest.raises(ValueError, match="1 of 1 negatives belong to one group"):
        sample_level_set(3, (1, 1), positives=0.67)
    with pytest.raises(ValueError, match="classes must be integers"):
        class_level_set(torch.rand(5), (1, 1))
    with pytest.raises(ValueError, match="belong to one group"):
        class_level_set(torch.tensor([0, 0, 0, 1]), (1, 1), positives=0.0)
    with pytest.raises(ValueError, match=r"expected source \(2, N\) and a bool mask \(N,\), got \(2, 3\)"):
        CorrespondenceSet(torch.zeros(2, 3, dtype=torch.int64), torch.ones(4, dtype=torch.bool), (1, 1))
    with pytest.raises(ValueError, match=r"labels must be \(N, 2\), got \(3, 5\)"):
        sample_level_set(10, (1, 1)).rearranged(torch.zeros(3, 5))
    features = [torch.zeros(4, 3), torch.zeros(4, 2)]
    with pytest.raises(ValueError, match="see principal_components"):
        rank_scores(features, torch.tensor([[0, 1]]), "inner_product")
    with pytest.raises(ValueError, match="unknown likeness 'l3'"):
        rank_scores(features, torch.tensor([[0, 1]]), "l3")
    with pytest.raises(ValueError, match=r"1 <= dim <= d, got \(4, 3\) and 4"):
        principal_components(features[0], 4)
    with pytest.raises(ValueError, match=r"a share in \[0, 1\], got \(4,\) and 2"):
        top_share(torch.zeros(4), 2)
    with pytest.raises(ValueError, match="each once, got"):
        precision(torch.tensor([1, 1]), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="must be bool"):
        precision(torch.tensor([1]), torch.ones(3))
