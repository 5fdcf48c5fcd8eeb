"""Probe, k-NN, few-shot, intervals, time sensitivity: exact where it can be, chance where it must be."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from avssl_core.evaluation import (
    bootstrap_interval,
    few_shot_1nn,
    knn_classify,
    linear_probe,
    repeated_probe,
    score_predictions,
    time_sensitivity,
    wilson_interval,
)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def separable(per_class: int = 20, classes: int = 4, seed: int = 0, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Classes on orthogonal axes."""
    labels = torch.arange(classes).repeat_interleave(per_class)
    return 3 * torch.eye(classes)[labels] + noise * normal(len(labels), classes, seed=seed), labels


PROTOCOLS = {
    "linear": lambda *args: linear_probe(*args),
    "knn": lambda *args: knn_classify(*args, k=5),
    "few_shot": lambda *args: few_shot_1nn(*args, shots=2, trials=5),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_exact_on_separable_classes(name: str) -> None:
    train, test = separable(seed=0), separable(seed=1)
    result = PROTOCOLS[name](*train, *test)
    assert result.accuracy == 1.0 and result.chance == 0.25 and result.n_test == 80


@pytest.mark.parametrize("name", PROTOCOLS)
def test_chance_on_features_that_know_nothing(name: str) -> None:
    labels = torch.arange(4).repeat(150)
    result = PROTOCOLS[name](normal(600, 8, seed=0), labels, normal(600, 8, seed=1), labels)
    assert abs(result.accuracy - 0.25) < 0.06
    if name != "few_shot":
        assert result.interval[0] <= 0.25 <= result.interval[1]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_labels_may_be_strings(name: str) -> None:
    (train_x, train_y), (test_x, test_y) = separable(seed=0), separable(seed=1)
    words = np.array(["red", "green", "blue", "white"])
    assert PROTOCOLS[name](train_x, words[train_y].tolist(), test_x, pd.Series(words[test_y])).accuracy == 1.0


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_is_wrong_is_named(name: str) -> None:
    x, y = separable(per_class=3)
    run = PROTOCOLS[name]
    with pytest.raises(ValueError, match=r"classes missing from train_y: 3\. Split"):
        run(x[y != 3], y[y != 3], x, y)
    with pytest.raises(ValueError, match="train_y must hold one label for each of 12"):
        run(x, y[:-1], x, y)
    with pytest.raises(ValueError, match=r"test_x has 1 items with NaN or infinity \(first at 2\)"):
        run(x, y, x.index_fill(0, torch.tensor([2]), math.nan), y)
    with pytest.raises(ValueError, match="4 features, test_x 3"):
        run(x, y, x[:, :3], y)
    with pytest.raises(ValueError, match="test_y has 1 missing"):
        run(x, y, x, [*map(str, y[:-1].tolist()), None])
    with pytest.raises(ValueError, match="integers or strings, got float64"):
        run(x, y.double().numpy(), x, y)
    with pytest.raises(ValueError, match=r"shape \(0, 4\)"):
        run(x[:0], y[:0], x, y)


def test_probe_standardises_with_training_statistics() -> None:
    (train_x, train_y), (test_x, test_y) = separable(seed=0, noise=1.5), separable(seed=1, noise=1.5)
    scale, shift = torch.tensor([1e-4, 1.0, 1e3, 7.0]), torch.tensor([5.0, -2.0, 1e4, 0.0])
    plain = linear_probe(train_x, train_y, test_x, test_y)
    assert linear_probe(train_x * scale + shift, train_y, test_x * scale + shift, test_y) == plain
    assert 0.25 < plain.accuracy < 1
    shifted = linear_probe(train_x, train_y, test_x + 20, test_y)  # test statistics would remove the shift
    assert shifted.accuracy < plain.accuracy


def test_probe_survives_constant_features_and_refuses_one_class() -> None:
    x, y = separable()
    assert linear_probe(torch.cat([x, torch.ones(80, 2)], 1), y, torch.cat([x, torch.ones(80, 2)], 1), y).accuracy == 1
    with pytest.raises(ValueError, match="single class 0"):
        linear_probe(x[:20], y[:20], x[:20], y[:20])


def test_collapsed_features_give_a_constant_answer() -> None:
    labels = torch.tensor([0] * 60 + [1] * 40)
    result = linear_probe(torch.ones(100, 3), labels, torch.ones(100, 3), labels)
    assert result.accuracy == result.chance == 0.6 and result.macro_recall == 0.5


def test_scores_by_hand() -> None:
    result = score_predictions(["a", "a", "b", "b", "a"], ["a", "a", "a", "b", "c"])
    assert result.accuracy == 0.6 and result.chance == 0.6 and result.n_classes == 3
    assert result.macro_recall == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert result.interval == wilson_interval(3, 5)
    with pytest.raises(ValueError, match="no test items"):
        score_predictions([], [])


def test_wilson_against_published_values() -> None:
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    with pytest.raises(ValueError, match="3 of 2"):
        wilson_interval(3, 2)


def test_bootstrap_over_groups_is_wider_than_over_items() -> None:
    groups = torch.arange(40).repeat_interleave(10)
    values = (torch.arange(40) % 2).repeat_interleave(10).double().numpy()  # all items of a group alike
    by_item, by_group = bootstrap_interval(values, seed=0), bootstrap_interval(values, groups=groups, seed=0)
    width = [high - low for low, high in (by_item, by_group)]
    assert by_item[0] < 0.5 < by_item[1] and width[1] / width[0] == pytest.approx(math.sqrt(10), rel=0.15)
    assert width[0] == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(400), rel=0.1)
    assert bootstrap_interval(values, groups=groups, seed=0) == by_group != bootstrap_interval(values, seed=1)
    with pytest.raises(ValueError, match="non-empty"):
        bootstrap_interval([])


def test_probe_with_groups_uses_them() -> None:
    (train_x, train_y), (test_x, test_y) = separable(seed=0, noise=2.5), separable(seed=1, noise=2.5)
    groups = torch.arange(80) // 5
    grouped = linear_probe(train_x, train_y, test_x, test_y, groups=groups, seed=3)
    plain = linear_probe(train_x, train_y, test_x, test_y)
    assert grouped.accuracy == plain.accuracy and grouped.interval != plain.interval
    assert grouped == linear_probe(train_x, train_y, test_x, test_y, groups=groups, seed=3)


def test_repeated_probe_keeps_groups_together() -> None:
    # The feature is the group's identity: useful only if a group stands on both sides of the split.
    groups = torch.arange(24).repeat_interleave(6)
    labels = torch.from_numpy(np.random.default_rng(0).permutation(np.arange(24) % 2))[groups]
    features = torch.eye(24)[groups] + 0.01 * normal(144, 24, seed=0)
    leaking = repeated_probe(features, labels, seed=0)
    honest = repeated_probe(features, labels, seed=0, groups=groups)
    assert leaking.mean > 0.95 and honest.mean < 0.7 and len(honest.results) == 5
    assert honest == repeated_probe(features, labels, seed=0, groups=groups)
    assert honest.results != repeated_probe(features, labels, seed=1, groups=groups).results
    with pytest.raises(ValueError, match=r"test_share=0\.01 of 24"):
        repeated_probe(features, labels, seed=0, groups=groups, test_share=0.01)


# ---------------------------------------------------------------- k-NN


def slow_knn(train: Tensor, labels: Tensor, test: Tensor, k: int, temperature: float | None) -> list[int]:
    answers = []
    for row in test:
        similarity = [float(torch.nn.functional.cosine_similarity(row, other, dim=0)) for other in train]
        nearest = sorted(range(len(train)), key=lambda i: -similarity[i])[:k]
        votes: dict[int, float] = {}
        for i in nearest:
            weight = 1.0 if temperature is None else math.exp(similarity[i] / temperature)
            votes[int(labels[i])] = votes.get(int(labels[i]), 0.0) + weight
        answers.append(min(votes, key=lambda c: (-votes[c], c)))
    return answers


@pytest.mark.parametrize("temperature", [None, 0.07, 1.0])
@pytest.mark.parametrize("k", [1, 4, 7])
def test_knn_against_loops(k: int, temperature: float | None) -> None:
    train, test = normal(40, 5, seed=0).double(), normal(30, 5, seed=1).double()
    labels = torch.arange(40) % 3
    expected = slow_knn(train, labels, test, k, temperature)
    truth = torch.tensor(expected)
    assert knn_classify(train, labels, test, truth, k=k, temperature=temperature).accuracy == 1.0


def test_knn_ties_are_defined() -> None:
    train, labels = torch.eye(2), ["b", "a"]
    between = torch.tensor([[1.0, 1.0]])
    assert knn_classify(train, labels, between, ["a"], k=2, temperature=None).accuracy == 1.0  # first in sorted order
    assert knn_classify(train, labels, between, ["b"], k=1).accuracy == 1.0  # first in position


def test_knn_refuses_impossible_settings() -> None:
    x, y = separable(per_class=2)
    with pytest.raises(ValueError, match="1 and the 8 training items, got 9"):
        knn_classify(x, y, x, y, k=9)
    with pytest.raises(ValueError, match="temperature"):
        knn_classify(x, y, x, y, k=2, temperature=0)


# ---------------------------------------------------------------- few-shot


def test_few_shot_more_examples_help_and_spread_is_reported() -> None:
    (train_x, train_y), (test_x, test_y) = separable(100, seed=0, noise=2.0), separable(100, seed=1, noise=2.0)
    one, twenty = (few_shot_1nn(train_x, train_y, test_x, test_y, shots=n, trials=10, seed=0) for n in (1, 20))
    assert one.accuracy < twenty.accuracy and one.std > 0 and len(one.per_trial) == 10
    assert one.accuracy == pytest.approx(sum(one.per_trial) / 10)
    assert one == few_shot_1nn(train_x, train_y, test_x, test_y, shots=1, trials=10, seed=0)
    assert one.per_trial != few_shot_1nn(train_x, train_y, test_x, test_y, shots=1, trials=10, seed=1).per_trial


def test_few_shot_with_all_examples_is_one_nearest_neighbour() -> None:
    (train_x, train_y), (test_x, test_y) = separable(6, seed=0, noise=2.0), separable(50, seed=1, noise=2.0)
    few = few_shot_1nn(train_x, train_y, test_x, test_y, shots=6, trials=3)
    assert few.accuracy == pytest.approx(knn_classify(train_x, train_y, test_x, test_y, k=1).accuracy)
    assert few.std == 0


def test_few_shot_averages_the_clips_of_a_video() -> None:
    x, y = separable(20, noise=0.0)
    spread = normal(80, 2000, 4, seed=0) * 3
    clips = x[:, None] + spread - spread.mean(dim=1, keepdim=True)  # each clip is noise, their mean is the class
    assert few_shot_1nn(clips, y, clips, y).accuracy == 1.0
    assert few_shot_1nn(clips[:, 0], y, clips[:, 0], y).accuracy < 0.7


def test_few_shot_on_collapsed_features_favours_no_class() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)  # answering always "0" would give 0.9
    result = few_shot_1nn(torch.ones(100, 3), labels, torch.ones(100, 3), labels, trials=400)
    assert result.accuracy == pytest.approx(0.5, abs=0.06)


def test_few_shot_needs_enough_examples() -> None:
    x, y = separable(per_class=3)
    with pytest.raises(ValueError, match="fewer than 4 training items in: 0, 1, 2, 3"):
        few_shot_1nn(x, y, x, y, shots=4)
    with pytest.raises(ValueError, match="at least 1"):
        few_shot_1nn(x, y, x, y, trials=0)


# ---------------------------------------------------------------- time sensitivity


def test_time_sensitivity_by_hand() -> None:
    still = torch.tensor([[3.0, 4.0]]).expand(5, 2).clone()
    turning = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    result = time_sensitivity(torch.stack([still, turning]))
    deviation = math.sqrt((3 * 0.4**2 + 2 * 0.6**2) / 4)  # each axis is 1,0,1,0,1 or its complement
    torch.testing.assert_close(result.per_video, torch.tensor([0.0, deviation], dtype=torch.float64))
    assert result.mean == pytest.approx(deviation / 2)


def test_time_sensitivity_ignores_length_and_the_order_of_shifts() -> None:
    features = normal(6, 10, 16, seed=0)
    lengths = torch.rand(6, 10, 1, generator=torch.Generator().manual_seed(1)) + 0.5
    expected = time_sensitivity(features).per_video
    torch.testing.assert_close(time_sensitivity(features * lengths).per_video, expected)
    torch.testing.assert_close(time_sensitivity(features.flip(1)).per_video, expected)
    assert expected.max() < 1 / math.sqrt(16) * 1.1


def test_time_sensitivity_needs_two_shifts() -> None:
    with pytest.raises(ValueError, match="at least 2 clips a video, got 1"):
        time_sensitivity(normal(3, 1, 4, seed=0))
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        time_sensitivity(normal(3, 4, seed=0))
