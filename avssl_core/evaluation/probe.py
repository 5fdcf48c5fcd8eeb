"""Linear probe: how much of a label can be read off frozen features with a straight cut.

Features are standardised with the training set's statistics and classified by L2-regularised logistic regression. The
solver is deterministic; what varies between runs is the encoder, hence seeds belong to the training that is probed. For
data without a split, :func:`repeated_probe` draws several, keeping groups together.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from avssl_core.evaluation.labels import Labels, as_features, as_labels, require_known
from avssl_core.evaluation.scores import ProbeResult, score_predictions


def linear_probe(
    train_x: Tensor,
    train_y: Labels,
    test_x: Tensor,
    test_y: Labels,
    *,
    C: float = 0.1,  # noqa: N803 (scikit-learn's name)
    seed: int = 0,
    max_iter: int = 1000,
    groups: Labels | None = None,
) -> ProbeResult:
    """Fit a linear classifier on ``train`` and score it on ``test``.

    Args:
        train_x: features ``(N, D)``.
        train_y: their classes.
        test_x: features ``(M, D)``.
        test_y: their classes; each must occur in ``train_y``.
        C: inverse strength of the L2 penalty on standardised features.
        seed: of the bootstrap over ``groups``; the fit draws nothing.
        max_iter: of L-BFGS; scikit-learn warns where that is not enough.
        groups: video, sentence or speaker of each test item, where items of one group are alike; see
            :func:`~avssl_core.evaluation.scores.score_predictions`.

    Raises:
        ValueError: for labels or features that do not match, a test class missing from training, or a single class.
    """
    train, test = as_features(train_x, name="train_x"), as_features(test_x, name="test_x")
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"train_x has {train.shape[1]} features, test_x {test.shape[1]}: use the same encoder")
    known = as_labels(train_y, len(train), name="train_y")
    truth = as_labels(test_y, len(test), name="test_y")
    require_known(truth, known, where="train_y")
    if len(set(known.tolist())) < 2:
        raise ValueError(f"train_y holds the single class {known[0]}: there is nothing to tell apart")
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=max_iter))
    classifier.fit(train.numpy(), known)
    return score_predictions(classifier.predict(test.numpy()), truth, groups=groups, seed=seed)


@dataclass(frozen=True)
class RepeatedProbe:
    """A probe over several random splits.

    Attributes:
        mean: mean accuracy.
        std: standard deviation over splits. They share items, so it describes the choice of split and is not a
            standard error.
        results: one :class:`ProbeResult` a split.
    """

    mean: float
    std: float
    results: tuple[ProbeResult, ...]


def repeated_probe(
    features: Tensor,
    labels: Labels,
    *,
    seed: int,
    repeats: int = 5,
    test_share: float = 0.25,
    groups: Labels | None = None,
    C: float = 0.1,  # noqa: N803 (scikit-learn's name)
    max_iter: int = 1000,
) -> RepeatedProbe:
    """Linear probe over ``repeats`` random splits; a group is never on both sides.

    Args:
        features: ``(N, D)``.
        labels: one class an item.
        seed: the splits are a function of (seed, repeat).
        repeats: number of splits.
        test_share: share of the groups that is tested, in ``(0, 1)``.
        groups: video, sentence or speaker of each item; None makes every item its own group.
        C: see :func:`linear_probe`.
        max_iter: see :func:`linear_probe`.

    Raises:
        ValueError: as :func:`linear_probe`, or if ``test_share`` leaves one side without groups.
    """
    values = as_features(features, name="features")
    classes = as_labels(labels, len(values), name="labels")
    ids = np.arange(len(values)) if groups is None else as_labels(groups, len(values), name="groups")
    unique = np.unique(ids)
    n_test = round(test_share * len(unique))
    if repeats < 1 or not 0 < n_test < len(unique):
        raise ValueError(f"repeats={repeats} and test_share={test_share} of {len(unique)} groups leave nothing to do")
    results = []
    for repeat in range(repeats):
        held_out = np.random.default_rng((seed, repeat)).permutation(unique)[:n_test]
        test = np.isin(ids, held_out)
        result = linear_probe(
            values[~test],
            classes[~test],
            values[test],
            classes[test],
            C=C,
            seed=seed,
            max_iter=max_iter,
            groups=None if groups is None else ids[test],
        )
        results.append(result)
    accuracies = [result.accuracy for result in results]
    std = statistics.stdev(accuracies) if repeats > 1 else 0.0
    return RepeatedProbe(mean=statistics.fmean(accuracies), std=std, results=tuple(results))
