"""k-nearest-neighbour classification of frozen features: nothing is fitted, so nothing can be tuned but k.

With a temperature it is the weighted vote of Wu et al. (CVPR 2018, section 3.4), the usual figure of self-supervised
learning; without, each neighbour counts once.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from avssl_core.evaluation.labels import Labels, as_features, as_labels, cosine_ready, require_known
from avssl_core.evaluation.scores import ProbeResult, score_predictions


def knn_classify(
    train_x: Tensor,
    train_y: Labels,
    test_x: Tensor,
    test_y: Labels,
    *,
    k: int = 20,
    temperature: float | None = 0.07,
    groups: Labels | None = None,
    seed: int = 0,
) -> ProbeResult:
    """Classify test items by a vote of their ``k`` nearest training items (cosine).

    Ties are settled by position: among equally similar items the earlier training item is nearer, and of classes with
    equal votes the first in sorted order wins.

    Args:
        train_x: features ``(N, D)``.
        train_y: their classes.
        test_x: features ``(M, D)``.
        test_y: their classes; each must occur in ``train_y``.
        k: neighbours that vote, at most N.
        temperature: a neighbour of similarity s has ``exp(s / temperature)`` votes; None gives each one vote.
        groups: video or speaker of each test item, for the interval.
        seed: of the bootstrap over groups.

    Raises:
        ValueError: for shapes or labels that do not match, a test class missing from training, a k outside ``[1, N]``
            or a temperature that is not positive.
    """
    train, test = as_features(train_x, name="train_x"), as_features(test_x, name="test_x")
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"train_x has {train.shape[1]} features, test_x {test.shape[1]}: use the same encoder")
    if not 1 <= k <= len(train):
        raise ValueError(f"k must lie between 1 and the {len(train)} training items, got {k}")
    if temperature is not None and temperature <= 0:
        raise ValueError(f"temperature must be positive or None, got {temperature}")
    known = as_labels(train_y, len(train), name="train_y")
    truth = as_labels(test_y, len(test), name="test_y")
    require_known(truth, known, where="train_y")
    classes, codes = np.unique(known, return_inverse=True)
    similarity = cosine_ready(test) @ cosine_ready(train).T  # (M, N)
    nearest = similarity.argsort(dim=1, descending=True, stable=True)[:, :k]
    near = similarity.gather(1, nearest)
    # The largest similarity is subtracted before the exponential: only ratios of votes matter.
    votes = torch.ones_like(near) if temperature is None else ((near - near[:, :1]) / temperature).exp()
    totals = torch.zeros(len(test), len(classes), dtype=votes.dtype)
    totals.scatter_add_(1, torch.from_numpy(codes)[nearest], votes)
    return score_predictions(classes[totals.argmax(dim=1).numpy()], truth, groups=groups, seed=seed)
