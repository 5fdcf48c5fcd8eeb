"""Clusters of every layer, the clips that agree best with each other, and a score for all.

ACAV100M keeps the subset whose clusterings of sight and of sound tell most of each other
(:mod:`avssl_core.curation`). The number of clusters follows from the number of clips to keep, unless it is given: by
chance alone, ``C × C`` tables of ``M`` clips show about ``(C - 1)^2 / 2M`` nats. With the ``C`` chosen here that is
0.15, and the 500 clusters which the paper found best for two million clips are of the same order.

The default pairs layers across the modalities (*bipartite*). The paper uses all pairs, also those within a modality,
which know nothing of the other one; on negatives whose layers stay together they cost precision.

**Scores.** ``F`` is a mean over the chosen clips of their pointwise information: ``log(n n_ab / (n_a n_b))`` of the
clip's own cells, averaged over pairs of layers. That is the score of a clip; a clip that was not chosen is given the
one that it would have if it were added. Below zero, its sight and sound are met less often together than by chance.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from avssl_core.curation import (
    BatchPlan,
    BatchState,
    PairwiseInformation,
    batch_greedy_rounds,
    cluster_features,
    pairing,
    unit_variance,
)
from avssl_core.curation.pairings import Scheme
from avssl_core.transforms import generator_for

MOST_CLUSTERS = 2000
_BIAS = 0.15  # nats that chance alone may contribute


@dataclass(frozen=True)
class Selecting:
    """How clips are chosen.

    Attributes:
        pairs: which layers are compared.
        batch: candidates a round.
        picks: picks a round.
        chunk: clips that are chosen from together; larger pools are dealt into chunks of equal share, as in the
            release, which bounds memory and lets chunks run side by side.
        seed: of the draws.
    """

    pairs: Scheme = "bipartite"
    batch: int = 10_000
    picks: int = 500
    chunk: int = 1_000_000
    seed: int = 0

    @property
    def plan(self) -> BatchPlan:
        """As the selection takes it."""
        return BatchPlan(batch=self.batch, picks=min(self.picks, self.batch), seed=self.seed)


@dataclass(frozen=True)
class Ranking:
    """All clips in order.

    Attributes:
        picked: int64 ``(N,)``: place in the order of choosing, from 1; 0 for clips that were not chosen.
        score: float64 ``(N,)`` in nats.
        rank: int64 ``(N,)``, from 1: the chosen ones by score, then the others by score.
        information: ``F`` of the chosen clips in nats.
    """

    picked: npt.NDArray[np.int64]
    score: npt.NDArray[np.float64]
    rank: npt.NDArray[np.int64]
    information: float


def default_clusters(kept: int) -> int:
    """Clusters of a layer for a selection of ``kept`` clips: 0.15 nats of chance, at least 2 clusters."""
    return max(2, min(MOST_CLUSTERS, round(1 + math.sqrt(2 * _BIAS * kept))))


def kept_count(share: float, clips: int) -> int:
    """Clips to keep: the share, rounded, at least one."""
    return max(1, round(share * clips))


def cluster_layer(features: Tensor, clusters: int, *, seed: int) -> Tensor:
    """Cluster of each clip in one layer.

    Args:
        features: ``(N, D)``; each dimension is scaled to unit variance.
        clusters: at most N are made.
        seed: the result is a function of it.

    Returns:
        int32 ``(N,)``.
    """
    labels, _ = cluster_features(unit_variance(features), min(clusters, len(features)), seed=seed)
    return labels.int()


def deal(clips: int, size: int, chunk: int, *, seed: int) -> list[tuple[Tensor, int]]:
    """Deal a pool into chunks, each with its share of the clips to keep.

    Args:
        clips: N.
        size: clips to keep, M.
        chunk: largest chunk.
        seed: of the order.

    Returns:
        Positions, int64, ascending in each chunk, and how many to keep; the chunks cover the pool, the numbers add up.
    """
    count = -(-clips // chunk)
    order = torch.randperm(clips, generator=generator_for(seed)) if count > 1 else torch.arange(clips)
    parts = [part.sort().values for part in torch.tensor_split(order, count)]
    ends = np.cumsum([len(part) for part in parts])
    shares = np.diff(np.rint(size * ends / clips).astype(int), prepend=0).tolist()
    return list(zip(parts, shares, strict=True))


def choose(
    labels: Tensor, layers: tuple[int, int], size: int, how: Selecting, *, saved: Path, advanced: Callable[[int], None]
) -> Tensor:
    """Choose clips of one chunk, going on where a stopped run was.

    Args:
        labels: ``(N, D)``.
        layers: number of layers of pictures and of sound, of sum D.
        size: clips to choose.
        how: to choose them.
        saved: file in which the state is kept, round by round.
        advanced: is told how many clips have been chosen.

    Returns:
        Positions, int64 ``(size,)``, in the order of choosing.
    """
    objective = PairwiseInformation(labels, pairing(how.pairs, layers))
    picks = torch.empty(0, dtype=torch.int64)
    for state in _rounds(objective, size, how.plan, saved):
        picks = state.picks
        advanced(len(picks))
    return picks


def rank_clips(labels: Tensor, layers: tuple[int, int], picks: Tensor, how: Selecting) -> Ranking:
    """Scores and ranks of all clips, given the chosen ones.

    Args:
        labels: ``(N, D)``.
        layers: number of layers of pictures and of sound.
        picks: int64 ``(M,)``, in the order of choosing.
        how: they were chosen.
    """
    pairs = pairing(how.pairs, layers)
    picked = torch.zeros(len(labels), dtype=torch.int64)
    picked[picks] = torch.arange(1, len(picks) + 1)
    score = pointwise_information(labels, pairs, picked > 0)
    order = np.lexsort((np.arange(len(labels)), -score, (picked == 0).numpy()))
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(1, len(labels) + 1)
    information = PairwiseInformation(labels, pairs)(picks)
    return Ranking(picked.numpy(), score, rank, information)


def pointwise_information(labels: Tensor, pairs: Tensor, chosen: Tensor) -> npt.NDArray[np.float64]:
    """What each clip's own cells contribute to the information in a set of clips.

    Args:
        labels: ``(N, D)``.
        pairs: columns that are compared, ``(P, 2)``.
        chosen: bool ``(N,)``, the set.

    Returns:
        float64 ``(N,)`` in nats: of a clip of the set as it is, of another one as if it were added. The mean over the
        set is ``F``.
    """
    inside, columns = chosen.numpy(), labels.numpy().astype(np.int64)
    extra = (~inside).astype(np.float64)  # the clip itself, where it is not counted yet
    n = inside.sum() + extra
    total = np.zeros(len(columns))
    for first, second in pairs.tolist():
        a, b = columns[:, first], columns[:, second]
        both = a * (int(b.max()) + 1) + b
        n_a, n_b, n_ab = (np.bincount(x[inside], minlength=int(x.max()) + 1)[x] + extra for x in (a, b, both))
        total += np.log(n * n_ab / (n_a * n_b))
    return total / len(pairs)


def _rounds(objective: PairwiseInformation, size: int, plan: BatchPlan, saved: Path) -> Iterator[BatchState]:
    state = _load(saved) if saved.is_file() else None
    if state is not None:
        yield state
    for later in batch_greedy_rounds(objective, size, plan, state=state, every=1):
        _store(later, saved)
        yield later


def _store(state: BatchState, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    tensors = {"picks": state.picks, "values": state.values, "lookups": state.lookups, "pool": state.pool}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, {"rounds": str(state.rounds)})
    os.replace(temporary, path)


def _load(path: Path) -> BatchState:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        rounds = int(file.metadata()["rounds"])
    return BatchState(**load_file(path), rounds=rounds)
