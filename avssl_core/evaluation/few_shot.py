"""Few-shot classification: one nearest neighbour among n labelled examples a class (GDT, protocol 2, table 3).

The paper gives one figure. With one example a class the draw of examples decides much, so this repeats the draw and
reports its spread.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from avssl_core.evaluation.labels import Labels, as_features, as_labels, cosine_ready, require_known, shown


@dataclass(frozen=True)
class FewShotResult:
    """Outcome over several draws of the examples.

    Attributes:
        accuracy: mean over draws.
        std: standard deviation over draws (0 with one draw).
        per_trial: accuracy of each draw.
        chance: accuracy of a random answer, one over the number of classes.
        shots: examples a class.
        n_test: test items a draw.
    """

    accuracy: float
    std: float
    per_trial: tuple[float, ...]
    chance: float
    shots: int
    n_test: int


def _item_means(features: Tensor, *, name: str) -> Tensor:
    """``(N, D)`` as it is, ``(N, S, D)`` averaged over its S clips (the paper takes ten a video)."""
    values = as_features(features, name=name, ndim=3 if features.ndim == 3 else 2)
    return values.mean(dim=1) if values.ndim == 3 else values


def few_shot_1nn(
    train_x: Tensor,
    train_y: Labels,
    test_x: Tensor,
    test_y: Labels,
    *,
    shots: int = 1,
    trials: int = 20,
    seed: int = 0,
) -> FewShotResult:
    """Draw ``shots`` training items a class, and give each test item the class of the most similar one (cosine).

    Examples stand in random order, so that equal similarities are settled by the seed and favour no class.

    Args:
        train_x: features ``(N, D)``, or ``(N, S, D)``: S clips a video, averaged.
        train_y: classes of the N items.
        test_x: features ``(M, D)`` or ``(M, S, D)``.
        test_y: classes of the M items; each must occur in ``train_y``.
        shots: examples a class.
        trials: independent draws.
        seed: the draws are a function of (seed, trial).

    Raises:
        ValueError: for shapes or labels that do not match, a test class missing from training, a class with fewer than
            ``shots`` items, or ``shots`` or ``trials`` below 1.
    """
    train, test = _item_means(train_x, name="train_x"), _item_means(test_x, name="test_x")
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"train_x has {train.shape[1]} features, test_x {test.shape[1]}: use the same encoder")
    known = as_labels(train_y, len(train), name="train_y")
    truth = as_labels(test_y, len(test), name="test_y")
    require_known(truth, known, where="train_y")
    classes, counts = np.unique(known, return_counts=True)
    if shots < 1 or trials < 1:
        raise ValueError(f"shots and trials must be at least 1, got {shots} and {trials}")
    if counts.min() < shots:
        raise ValueError(f"fewer than {shots} training items in: {shown(classes[counts < shots].tolist())}")
    similarity = cosine_ready(test) @ cosine_ready(train).T  # (M, N), shared by all draws
    accuracies = []
    for trial in range(trials):
        rng = np.random.default_rng((seed, trial))
        drawn = np.concatenate([rng.choice(np.flatnonzero(known == c), shots, replace=False) for c in classes])
        drawn = rng.permutation(drawn)
        nearest = similarity[:, torch.from_numpy(drawn)].argmax(dim=1).numpy()
        accuracies.append(float((known[drawn][nearest] == truth).mean()))
    return FewShotResult(
        accuracy=statistics.fmean(accuracies),
        std=statistics.stdev(accuracies) if trials > 1 else 0.0,
        per_trial=tuple(accuracies),
        chance=1 / len(classes),
        shots=shots,
        n_test=len(test),
    )
