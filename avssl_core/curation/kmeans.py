"""K-means by mini-batches: the paper's, the release's, and scikit-learn's.

ACAV100M (https://arxiv.org/abs/2101.10803, SGD k-means) assigns a batch to its nearest centres and moves them by a
convex combination of weight ``lr``. Centres must not die; the paper re-initialises one whose share of all updates falls
below ``(1/k)^2``. The release does something else: for a centre with fewer than ``(seen/k)^0.7`` updates, distances
are divided by 5, in training and in the final assignment alike, so that its cells are not those of the nearest centre.
It also starts all centres at practically 0 and assigns the first ``10 k`` samples at random, and lets the rate fall
tenfold every five epochs where the paper keeps 0.01.

All of it is here to be compared. What to use at scale is :func:`cluster_features`, scikit-learn's ``MiniBatchKMeans``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Rescue = Literal["discount", "reinitialise", "none"]
RESCUES = ("discount", "reinitialise", "none")

DISCOUNT_POWER = 0.7
DISCOUNT = 5.0
RANDOM_SAMPLES = 10  # a cluster: as many are assigned at random before the first real assignment
ASSIGN_CHUNK = 1 << 15  # rows of the (n, k) distances held at once

_START_SCALE = 1e-5
_CAPPED = 0.5  # the largest weight of a batch mean, where the rate would push it to 1 or beyond


@dataclass(frozen=True)
class CentreState:
    """Centres and how they were used; a plain value, from which a run goes on.

    Attributes:
        centres: ``(k, d)``.
        counts: updates of each centre, int64 ``(k,)``.
        seen: samples seen so far, those assigned at random included.
    """

    centres: Tensor
    counts: Tensor
    seen: int = 0

    @classmethod
    def near_zero(cls, clusters: int, dim: int, *, generator: torch.Generator) -> CentreState:
        """Centres drawn from U(0, 1e-5), as released: they differ only to tell them apart."""
        centres = _START_SCALE * torch.rand(clusters, dim, generator=generator)
        return cls(centres, torch.zeros(clusters, dtype=torch.int64))

    @property
    def dying(self) -> Tensor:
        """Centres with fewer than ``(seen/k)^0.7`` updates, bool ``(k,)``."""
        return self.counts < (self.seen / len(self.counts)) ** DISCOUNT_POWER

    @property
    def unused(self) -> Tensor:
        """Centres whose share of the updates is below ``(1/k)^2``, bool ``(k,)``: the paper's rule."""
        return self.counts * len(self.counts) ** 2 < self.seen


@dataclass(frozen=True)
class SGDKMeans:
    """How to run :func:`sgd_kmeans`. Defaults: the release's retrieval experiments.

    Attributes:
        clusters: ``k``.
        epochs: passes over the features, in their order.
        batch: samples a step.
        rescue: ``"discount"`` (released), ``"reinitialise"`` (paper) or ``"none"``.
        decaying: let the rate fall tenfold every five epochs (released) instead of keeping 0.01 (paper).
        sequential: move the centres sample by sample instead of by the batch's sums.
        seed: of the start, the random assignments and the re-initialised centres.

    Raises:
        ValueError: for numbers below 1 or an unknown rescue.
    """

    clusters: int
    epochs: int = 20
    batch: int = 64
    rescue: Rescue = "discount"
    decaying: bool = True
    sequential: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.clusters, self.epochs, self.batch) < 1:
            raise ValueError(
                f"clusters, epochs and batch must be at least 1, got {self.clusters}, {self.epochs} and {self.batch}"
            )
        if self.rescue not in RESCUES:
            raise ValueError(f"unknown rescue {self.rescue!r}; use one of {RESCUES}")


def sgd_kmeans(features: Tensor, settings: SGDKMeans, *, start: CentreState | None = None) -> CentreState:
    """Move centres over the features, epoch by epoch.

    Args:
        features: ``(n, d)``, floating point, on the CPU; see :func:`unit_variance`.
        settings: how.
        start: centres to begin with; :meth:`CentreState.near_zero` if None.

    Returns:
        The final state; :func:`assign_clusters` turns it into labels.

    Raises:
        ValueError: for features that are not ``(n, d)`` with n at least 1, or a start that does not fit.
    """
    if features.ndim != 2 or not len(features) or not features.is_floating_point():
        raise ValueError(f"features must be (n, d) floats with n >= 1, got {tuple(features.shape)} {features.dtype}")
    generator = torch.Generator().manual_seed(settings.seed)
    if start is None:
        start = CentreState.near_zero(settings.clusters, features.shape[1], generator=generator)
    if start.centres.shape != (settings.clusters, features.shape[1]):
        raise ValueError(
            f"start has centres {tuple(start.centres.shape)}, expected ({settings.clusters}, {features.shape[1]})"
        )
    state = CentreState(start.centres.to(features.dtype), start.counts, start.seen)
    for epoch in range(settings.epochs):
        lr = kmeans_rate(epoch) if settings.decaying else kmeans_rate(0)
        for batch in torch.split(features, settings.batch):
            if state.seen < RANDOM_SAMPLES * settings.clusters:
                assignment = torch.randint(settings.clusters, (len(batch),), generator=generator)
            else:
                assignment = assign_clusters(batch, state, rescue=settings.rescue)
            state = kmeans_step(state, batch, assignment, lr=lr, sequential=settings.sequential)
            if settings.rescue == "reinitialise" and state.seen >= RANDOM_SAMPLES * settings.clusters:
                state = reinitialised(state, batch, generator=generator)
    return state


def kmeans_rate(epoch: int) -> float:
    """The released learning rate of an epoch, from 0: ``0.1^(2 + floor(epoch / 5))``."""
    return 0.1 ** (2 + epoch // 5)


def assign_clusters(features: Tensor, state: CentreState, *, rescue: Rescue = "none") -> Tensor:
    """Nearest centre by squared distance; with the discount of dying centres for ``"discount"``, as released.

    Args:
        features: ``(n, d)``.
        state: centres; with the discount, their counts matter too.
        rescue: ``"discount"`` divides the distances to dying centres by 5.

    Returns:
        int64 ``(n,)``; the first of equally near centres.
    """
    scale = torch.where(state.dying, 1 / DISCOUNT, 1.0) if rescue == "discount" else torch.ones(len(state.counts))
    scale = scale.to(features)
    norms = state.centres.square().sum(dim=1)
    labels = []
    for rows in torch.split(features, ASSIGN_CHUNK):
        distances = rows.square().sum(dim=1, keepdim=True) - 2 * rows @ state.centres.T + norms  # (n, k)
        labels.append((distances.clamp(min=0) * scale).argmin(dim=1))
    return torch.cat(labels) if labels else torch.empty(0, dtype=torch.int64)


def kmeans_step(
    state: CentreState, batch: Tensor, assignment: Tensor, *, lr: float, sequential: bool = False
) -> CentreState:
    """Move centres towards the samples assigned to them.

    In parallel, ``c_j`` samples give ``centre (1 - c_j lr) + lr * (their sum)``. Where ``c_j lr`` reaches 1 the rate of
    the whole batch is capped at ``0.5 / max c_j``, as released; ``(1 - lr)^c_j`` of a sequence never overshoots.

    Args:
        state: where the centres are.
        batch: samples, ``(B, d)``.
        assignment: centre of each, int64 ``(B,)``.
        lr: weight of a sample, in (0, 1).
        sequential: one sample after the other, in their order: ``centre (1 - lr) + lr * sample``.

    Returns:
        A new state.

    Raises:
        ValueError: for a rate outside (0, 1) or shapes that do not fit.
    """
    if not 0 < lr < 1 or assignment.shape != batch.shape[:1] or batch.shape[1:] != state.centres.shape[1:]:
        raise ValueError(
            f"expected 0 < lr < 1, a batch (B, {state.centres.shape[1]}) and an assignment (B,), got {lr}, "
            f"{tuple(batch.shape)} and {tuple(assignment.shape)}"
        )
    used = torch.bincount(assignment, minlength=len(state.counts))
    if sequential:
        centres = state.centres.clone()
        for sample, centre in zip(batch, assignment.tolist(), strict=True):
            centres[centre] = (1 - lr) * centres[centre] + lr * sample
    else:
        lr = capped_rate(used, lr)
        sums = torch.zeros_like(state.centres).index_add_(0, assignment, batch)
        centres = state.centres * (1 - lr * used[:, None].to(batch)) + lr * sums
    return CentreState(centres, state.counts + used, state.seen + len(batch))


def capped_rate(used: Tensor, lr: float) -> float:
    """The rate of a batch whose centres get ``used`` samples each: ``lr``, unless a centre would be overshot."""
    most = int(used.max())
    return _CAPPED / most if lr * most >= 1 else lr


def reinitialised(state: CentreState, batch: Tensor, *, generator: torch.Generator) -> CentreState:
    """Put centres used in less than ``(1/k)^2`` of all steps onto random samples of the batch (the paper's rule).

    The paper does not say what becomes of their counts. They are set to the mean ``seen/k``: with 0 they would be moved
    again at once.

    Args:
        state: after a step.
        batch: samples, ``(B, d)``; drawn with replacement.
        generator: of the draw.

    Returns:
        A new state, or the same one if no centre is unused.
    """
    unused = state.unused
    if not bool(unused.any()):
        return state
    drawn = torch.randint(len(batch), (int(unused.sum()),), generator=generator)
    centres, counts = state.centres.clone(), state.counts.clone()
    centres[unused] = batch[drawn]
    counts[unused] = -(-state.seen // len(counts))
    return CentreState(centres, counts, state.seen)


def unit_variance(features: Tensor) -> Tensor:
    """Divide each dimension of ``(n, d)`` by its standard deviation, as the release's retrieval experiments do.

    A constant dimension is left as it is. No decorrelation, although the release calls it whitening.
    """
    spread = features.std(dim=0, correction=0)
    return features / torch.where(spread > 0, spread, 1)


def cluster_features(features: Tensor, clusters: int, *, seed: int = 0, batch: int = 10_000) -> tuple[Tensor, Tensor]:
    """Cluster features with scikit-learn's ``MiniBatchKMeans``.

    Args:
        features: ``(n, d)``, on the CPU; a tensor over a memory-mapped file is read batch by batch.
        clusters: ``k``, at most ``n``.
        seed: the result is a function of it.
        batch: samples a step.

    Returns:
        Labels, int64 ``(n,)``, and centres ``(k, d)``.

    Raises:
        ValueError: for more clusters than rows, or features that are not ``(n, d)``.
    """
    from sklearn.cluster import MiniBatchKMeans

    if features.ndim != 2 or not 1 <= clusters <= len(features):
        raise ValueError(f"expected features (n, d) with n >= {clusters} clusters >= 1, got {tuple(features.shape)}")
    model = MiniBatchKMeans(clusters, batch_size=batch, random_state=seed, n_init=3).fit(features.numpy())
    centres = torch.from_numpy(model.cluster_centers_)
    state = CentreState(centres.to(features), torch.zeros(clusters, dtype=torch.int64))
    return assign_clusters(features, state), state.centres
