"""Retrieval: does what belongs together lie close together? Recall at k, within a class and across modalities.

Both functions state chance and settle ties by expectation: where the k-th place falls among equally similar items, a
query scores the probability that a random order of them gives a hit. A collapsed encoder, to which all items are
equally similar, therefore gets chance exactly, where sorting would give it anything between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import gammaln
from torch import Tensor

from avssl_core.evaluation.labels import Labels, as_features, as_labels, cosine_ready, require_known
from avssl_core.evaluation.scores import bootstrap_interval

QUERY_CHUNK = 512  # rows of the similarity matrix held at once
TIE_DECIMALS = 12


@dataclass(frozen=True)
class Recall:
    """Recall at each k.

    Attributes:
        at: share of queries with a hit among the k most similar items, by k.
        interval: 95 % bootstrap interval over queries, by k.
        chance: expected share under a random order, by k.
        n_queries: number of queries.
        n_gallery: number of items searched.
    """

    at: dict[int, float]
    interval: dict[int, tuple[float, float]]
    chance: dict[int, float]
    n_queries: int
    n_gallery: int


def _no_hit(total: Tensor, relevant: Tensor, drawn: Tensor) -> Tensor:
    """Probability that ``drawn`` of ``total`` items, without replacement, contain none of the ``relevant`` ones."""
    n, m, k = np.broadcast_arrays(*(value.double().numpy() for value in (total, relevant, drawn)))
    possible = n - m >= k
    spare = np.where(possible, n - m - k, 0)
    log_p = gammaln(n - m + 1) - gammaln(spare + 1) - gammaln(n + 1) + gammaln(n - k + 1)
    return torch.from_numpy(np.where(possible, np.exp(log_p), 0.0))


def _settle(similarity: Tensor) -> Tensor:
    """Round to what float64 products are good for, so that equal items tie whatever the order of summation was."""
    return similarity.round(decimals=TIE_DECIMALS)


def _check_ks(ks: Sequence[int], gallery: int) -> tuple[int, ...]:
    if not ks or min(ks) < 1 or max(ks) > gallery:
        raise ValueError(f"every k must lie between 1 and the {gallery} items searched, got {tuple(ks)}")
    return tuple(sorted(set(ks)))


def _class_hits(similarity: Tensor, relevant: Tensor, ks: Sequence[int]) -> Tensor:
    """Probability of a hit ``(Q, len(ks))`` given similarities and relevance ``(Q, G)``; ties in random order."""
    ordered = similarity.sort(dim=1, descending=True).values
    columns = []
    for k in ks:
        boundary = ordered[:, k - 1 : k]  # (Q, 1): similarity of the k-th place
        above, tied = similarity > boundary, similarity == boundary
        certain = (above & relevant).any(dim=1)
        places = k - above.sum(dim=1)
        hit = 1 - _no_hit(tied.sum(dim=1), (tied & relevant).sum(dim=1), places)
        columns.append(torch.where(certain, 1.0, hit))
    return torch.stack(columns, dim=1)


def _summarise(
    hits: Tensor, chance: Tensor, ks: Sequence[int], gallery: int, groups: Labels | None, seed: int
) -> Recall:
    scores: npt.NDArray[np.float64] = hits.numpy()
    return Recall(
        at={k: float(scores[:, i].mean()) for i, k in enumerate(ks)},
        interval={k: bootstrap_interval(scores[:, i], groups=groups, seed=seed) for i, k in enumerate(ks)},
        chance={k: float(chance[i]) for i, k in enumerate(ks)},
        n_queries=len(scores),
        n_gallery=gallery,
    )


def retrieval_recall(
    query: Tensor,
    gallery: Tensor,
    query_labels: Labels,
    gallery_labels: Labels,
    ks: Sequence[int] = (1, 5),
    *,
    exclude_self: bool = False,
    groups: Labels | None = None,
    seed: int = 0,
) -> Recall:
    """Share of queries whose k nearest gallery items (cosine) contain one of the query's class (GDT, protocol 3).

    Args:
        query: features ``(Q, D)``.
        gallery: features ``(G, D)``.
        query_labels: classes of the queries; each must occur in the gallery.
        gallery_labels: classes of the gallery.
        ks: numbers of neighbours.
        exclude_self: query and gallery are the same set, and item i may not find itself.
        groups: video or speaker of each query, for the interval.
        seed: of the bootstrap.

    Raises:
        ValueError: for shapes or labels that do not match, a k beyond the gallery, or a class without a gallery item.
    """
    queries, items = as_features(query, name="query"), as_features(gallery, name="gallery")
    if queries.shape[1] != items.shape[1]:
        raise ValueError(f"query has {queries.shape[1]} features and gallery {items.shape[1]}: use one encoder")
    q_labels = as_labels(query_labels, len(queries), name="query_labels")
    g_labels = as_labels(gallery_labels, len(items), name="gallery_labels")
    require_known(q_labels, g_labels, where="gallery_labels")
    if exclude_self and len(queries) != len(items):
        raise ValueError(f"exclude_self needs equal sets, got {len(queries)} queries and {len(items)} gallery items")
    searched = len(items) - int(exclude_self)
    ks = _check_ks(ks, searched)
    _, codes = np.unique(np.concatenate([q_labels, g_labels]), return_inverse=True)
    q_codes, g_codes = torch.from_numpy(codes[: len(queries)]), torch.from_numpy(codes[len(queries) :])
    unit, hits = cosine_ready(items), []
    for rows in _chunks(len(queries)):
        similarity = _settle(cosine_ready(queries[rows]) @ unit.T)
        relevant = q_codes[rows, None] == g_codes
        if exclude_self:
            own = (torch.arange(len(rows)), rows)
            similarity[own], relevant[own] = -torch.inf, False
        hits.append(_class_hits(similarity, relevant, ks))
    counts = torch.bincount(g_codes, minlength=int(codes.max()) + 1)[q_codes] - int(exclude_self)
    miss = [_no_hit(torch.tensor(searched), counts, torch.tensor(k)).mean() for k in ks]
    return _summarise(torch.cat(hits), 1 - torch.stack(miss), ks, searched, groups, seed)


def _chunks(count: int) -> Iterator[Tensor]:
    yield from torch.split(torch.arange(count), QUERY_CHUNK)


def pair_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of every item of ``a`` with every item of ``b``; items with windows average over them.

    Args:
        a: ``(P, D)``, or ``(P, W, D)``: W aligned windows of each item, e.g. of a sentence.
        b: the same shape but for the number of items.

    Returns:
        ``(P, P')`` float64; with windows the mean over w of ``cos(a[i, w], b[j, w])``.
    """
    # The mean of W inner products is one inner product of the concatenated rows.
    windows = a.shape[1] if a.ndim == 3 else 1
    return cosine_ready(a.double()).flatten(1) @ cosine_ready(b.double()).flatten(1).T / windows


def _pair_hits(similarity: Tensor, own: Tensor, ks: Sequence[int]) -> Tensor:
    """Probability ``(Q, len(ks))`` that the partner is among the first k; ties in random order."""
    partner = similarity.gather(1, own[:, None])
    above = (similarity > partner).sum(dim=1)
    tied = (similarity == partner).sum(dim=1)  # its own place included
    return torch.stack([((k - above) / tied).clamp(0, 1) for k in ks], dim=1)


def cross_modal_recall(
    a: Tensor, b: Tensor, ks: Sequence[int] = (1, 5), *, groups: Labels | None = None, seed: int = 0
) -> Recall:
    """Share of items of ``a`` that find their partner in ``b`` among the k most similar ones.

    The partner of ``a[i]`` is ``b[i]``; swap the arguments for the other direction.

    Args:
        a: embeddings of one modality, ``(P, D)``, or ``(P, W, D)`` with W aligned windows an item.
        b: embeddings of the other, of the same shape.
        ks: numbers of neighbours.
        groups: video or speaker of each pair, for the interval.
        seed: of the bootstrap.

    Raises:
        ValueError: if the shapes differ or a k exceeds the number of pairs.
    """
    if a.shape != b.shape or a.ndim not in (2, 3):
        raise ValueError(f"a and b must be aligned (P, D) or (P, W, D), got {tuple(a.shape)} and {tuple(b.shape)}")
    first, second = as_features(a, name="a", ndim=a.ndim), as_features(b, name="b", ndim=b.ndim)
    ks = _check_ks(ks, len(second))
    hits = [_pair_hits(_settle(pair_similarity(first[rows], second)), rows, ks) for rows in _chunks(len(first))]
    chance = torch.tensor(ks, dtype=torch.float64) / len(second)
    return _summarise(torch.cat(hits), chance, ks, len(second), groups, seed)
