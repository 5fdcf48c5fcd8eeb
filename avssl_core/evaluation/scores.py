"""Accuracy with what is needed to judge it: its interval, the figure of a constant answer, recall by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm

from avssl_core.evaluation.labels import Labels, as_labels

BOOTSTRAP_DRAWS = 2000


@dataclass(frozen=True)
class ProbeResult:
    """Outcome of a classification protocol.

    Attributes:
        accuracy: share of test items answered correctly.
        interval: 95 % interval of the accuracy over test items (the training set is taken as given).
        chance: accuracy of the best constant answer, the share of the most frequent class among the test items.
        macro_recall: mean over test classes of the share of their items answered correctly.
        n_test: number of test items.
        n_classes: number of classes among them.
    """

    accuracy: float
    interval: tuple[float, float]
    chance: float
    macro_recall: float
    n_test: int
    n_classes: int


def wilson_interval(correct: float, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (1927): sound for shares near 0 and 1, where the usual one is not.

    Raises:
        ValueError: if ``total`` is below 1 or ``correct`` outside ``[0, total]``.
    """
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"need 0 <= correct <= total and total >= 1, got {correct} of {total}")
    z = float(norm.ppf((1 + confidence) / 2))
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * np.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def bootstrap_interval(
    values: npt.NDArray[np.floating[Any]] | Sequence[float],
    *,
    groups: Labels | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    draws: int = BOOTSTRAP_DRAWS,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, resampling whole groups.

    Six words of one sentence, or ten windows of one video, share speaker, light and noise: treated as independent they
    make the interval too narrow.

    Args:
        values: one number an item.
        groups: the item's video, sentence or speaker; None resamples items.
        seed: the interval is a function of it.
        confidence: e.g. 0.95.
        draws: bootstrap samples.

    Raises:
        ValueError: without values, or if ``groups`` does not match.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"values must be a non-empty list of numbers, got shape {numbers.shape}")
    ids = np.arange(len(numbers)) if groups is None else as_labels(groups, len(numbers), name="groups")
    _, index = np.unique(ids, return_inverse=True)
    sums, counts = np.bincount(index, numbers), np.bincount(index)
    picks = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def score_predictions(predicted: Labels, truth: Labels, *, groups: Labels | None = None, seed: int = 0) -> ProbeResult:
    """Score one answer an item.

    Args:
        predicted: answers ``(N,)``.
        truth: classes ``(N,)``.
        groups: video, sentence or speaker of each item; makes the interval a bootstrap over groups instead of Wilson's.
        seed: of that bootstrap.

    Raises:
        ValueError: if the lengths differ, there are no items, or a label is missing.
    """
    if not len(truth):
        raise ValueError("there are no test items to score")
    answers = as_labels(predicted, len(truth), name="predicted")
    right = as_labels(truth, len(truth), name="truth")
    correct = answers == right
    by_class = pd.Series(correct).groupby(right)
    interval = (
        wilson_interval(int(correct.sum()), len(correct))
        if groups is None
        else bootstrap_interval(correct.astype(np.float64), groups=groups, seed=seed)
    )
    return ProbeResult(
        accuracy=float(correct.mean()),
        interval=interval,
        chance=float(by_class.size().max() / len(right)),
        macro_recall=float(by_class.mean().mean()),
        n_test=len(right),
        n_classes=int(by_class.ngroups),
    )
