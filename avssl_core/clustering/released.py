"""Sinkhorn–Knopp as SeLaVi released it: powers of probabilities scaled in float64, with its own stopping rule.

Kept to compare with, and for the numbers of the authors' code; :func:`avssl_core.clustering.sinkhorn` is what to use.
Its rule, checked on iterations 0, 10, 20, ..., is ``sum_i |β_i / β_i' - 1| <= 0.1``: a *sum* over samples, so that the
accuracy asked for grows with their number.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from avssl_core.clustering.marginals import check_marginal

CHECK_EVERY = 10


@dataclass(frozen=True)
class ReleasedResult:
    """What the released procedure arrives at.

    Attributes:
        labels: row maxima of the plan, int64 ``(N,)``.
        plan: ``Q``, float64 ``(N, K)``; rows sum to ``1 / N``, columns to the marginal within the tolerance.
        cost: ``-sum_i log M_i,label / (λ N)``, the mean of minus the averaged log-probability of the label.
        iterations: ``10 n + 1``, or the most allowed.
        error: left-hand side of the stopping rule when it was last checked.
    """

    labels: Tensor
    plan: Tensor
    cost: float
    iterations: int
    error: float


def released_sinkhorn(
    p_video: Tensor,
    p_audio: Tensor,
    marginal: Tensor,
    *,
    sharpness: float = 20.0,
    tolerance: float = 0.1,
    max_iterations: int = 2000,
) -> ReleasedResult:
    """Label samples by ``(p_v p_a)^(λ/2)``, scaled to the marginal.

    Args:
        p_video: softmax outputs of one modality, ``(N, K)``.
        p_audio: of the other, ``(N, K)``.
        marginal: ``r``, positive, sum 1, ``(K,)``. (The release passes reciprocals of sizes; see
            :func:`avssl_core.clustering.arrange_sizes`.)
        sharpness: λ.
        tolerance: of the rule above.
        max_iterations: at most.

    Returns:
        Labels, the plan, and its cost.

    Raises:
        ValueError: for shapes that do not fit, or probabilities so small that their powers underflow float64.
    """
    if p_video.ndim != 2 or p_video.shape != p_audio.shape:
        raise ValueError(f"expected two tables (N, K), got {tuple(p_video.shape)} and {tuple(p_audio.shape)}")
    r, rows = check_marginal(marginal, p_video.shape[1]), len(p_video)
    matrix = (p_video.double() * p_audio.double()) ** (sharpness / 2)
    dead_rows, dead_columns = int((matrix.sum(dim=1) == 0).sum()), int((matrix.sum(dim=0) == 0).sum())
    if dead_rows or dead_columns:
        raise ValueError(
            f"{dead_rows} of {rows} rows and {dead_columns} of {len(r)} columns underflow float64 at sharpness "
            f"{sharpness:g}: use sinkhorn(), which works on logarithms"
        )
    beta = matrix.new_full((rows,), 1 / rows)
    error, iteration = float("inf"), 0
    while error > tolerance and iteration < max_iterations:
        alpha = r / (beta @ matrix)
        scaled = 1 / (rows * (matrix @ alpha))
        if iteration % CHECK_EVERY == 0:
            error = float((beta / scaled - 1).abs().sum())
        beta, iteration = scaled, iteration + 1
    plan = beta[:, None] * matrix * alpha
    labels = plan.argmax(dim=1)
    chosen = matrix.gather(1, labels[:, None]).log()
    return ReleasedResult(labels, plan, float(-chosen.sum() / (sharpness * rows)), iteration, error)
