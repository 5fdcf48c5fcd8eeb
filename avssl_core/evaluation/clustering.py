"""How well clusters match classes: SeLaVi's five figures (https://arxiv.org/abs/2006.13662, appendix A.4), and AMI.

NMI, ARI and AMI are scikit-learn's. Accuracy matches clusters and classes one to one; a cluster without a class counts
as wrong, so that it must fall when there are more clusters than classes. Entropy and purity are unweighted means over
the clusters that hold anything.

None of them is 0 for a labelling without information but ARI and AMI: many small clusters look pure by chance alone
(the appendix gives ``1 / K`` as chance of the purity, which only holds for large clusters). :func:`shuffled_scores`
measures chance for the sizes at hand.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from avssl_core.evaluation.labels import Labels, as_labels


@dataclass(frozen=True)
class ClusteringScores:
    """Agreement of clusters with classes, as shares (papers print per cent).

    Attributes:
        nmi: mutual information over the mean of both entropies, in [0, 1].
        ami: the same, adjusted so that random labels get 0; at most 1.
        ari: adjusted Rand index; random labels get 0; at most 1.
        accuracy: share of items in the cluster matched with their class, best one-to-one matching.
        mean_entropy: mean over clusters of the entropy of classes inside, nats; 0 is best.
        mean_max_purity: mean over clusters of the share of their largest class; 1 is best.
    """

    nmi: float
    ami: float
    ari: float
    accuracy: float
    mean_entropy: float
    mean_max_purity: float


def contingency_table(predicted: Labels, truth: Labels) -> npt.NDArray[np.int64]:
    """Items of each class in each cluster: ``(clusters, classes)``, both in sorted order, none of them empty.

    Raises:
        ValueError: without items, or for labels that do not match, or are missing.
    """
    if not len(truth):
        raise ValueError("there are no items to score")
    found, clusters = np.unique(as_labels(predicted, len(truth), name="predicted"), return_inverse=True)
    known, classes = np.unique(as_labels(truth, len(truth), name="truth"), return_inverse=True)
    counts = np.bincount(clusters * len(known) + classes, minlength=len(found) * len(known))
    return counts.reshape(len(found), len(known)).astype(np.int64)


def clustering_scores(predicted: Labels, truth: Labels) -> ClusteringScores:
    """Score one cluster an item against one class an item.

    Args:
        predicted: clusters ``(N,)``; names and numbers do not matter, and there may be more or fewer than classes.
        truth: classes ``(N,)``.

    Raises:
        ValueError: without items, or for labels that do not match, or are missing.
    """
    table = contingency_table(predicted, truth)  # (clusters, classes)
    clusters, classes = as_labels(predicted, len(truth), name="predicted"), as_labels(truth, len(truth), name="truth")
    matched = linear_sum_assignment(table, maximize=True)
    shares = table / table.sum(axis=1, keepdims=True)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return ClusteringScores(
        nmi=float(normalized_mutual_info_score(classes, clusters)),
        ami=float(adjusted_mutual_info_score(classes, clusters)),
        ari=float(adjusted_rand_score(classes, clusters)),
        accuracy=float(table[matched].sum() / table.sum()),
        mean_entropy=abs(float(-(shares * logs).sum(axis=1).mean())),  # not -0.0
        mean_max_purity=float(shares.max(axis=1).mean()),
    )


def shuffled_scores(predicted: Labels, truth: Labels, *, draws: int = 10, seed: int = 0) -> ClusteringScores:
    """Chance: the mean scores of the same clusters and classes when items are dealt to clusters at random.

    Args:
        predicted: clusters ``(N,)``.
        truth: classes ``(N,)``.
        draws: permutations to average over.
        seed: the result is a function of it.

    Raises:
        ValueError: as :func:`clustering_scores`, or for fewer than one draw.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    clusters, rng = as_labels(predicted, len(truth), name="predicted"), np.random.default_rng(seed)
    scores = [clustering_scores(rng.permutation(clusters), truth) for _ in range(draws)]
    means = {field.name: float(np.mean([getattr(s, field.name) for s in scores])) for field in fields(ClusteringScores)}
    return ClusteringScores(**means)


def label_agreement(labels: Tensor | npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
    """NMI of every labelling with every other, e.g. of several heads: how decorrelated are they?

    Args:
        labels: one column a labelling, integers ``(N, H)``.

    Returns:
        ``(H, H)``, symmetric, ones on the diagonal.

    Raises:
        ValueError: unless the labels are a table of integers with at least one row.
    """
    table = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if table.ndim != 2 or 0 in table.shape or table.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers (N, H), got shape {table.shape} of {table.dtype}")
    heads = table.shape[1]
    agreement = np.ones((heads, heads))
    for i in range(heads):
        for j in range(i):
            agreement[i, j] = agreement[j, i] = normalized_mutual_info_score(table[:, i], table[:, j])
    return agreement
