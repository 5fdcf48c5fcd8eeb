"""Labels by optimal transport: Sinkhorn–Knopp with cluster sizes of one's choice, over any number of samples.

SeLaVi (https://arxiv.org/abs/2006.13662, eqs. 2-3; the uniform case is SeLa, https://arxiv.org/abs/1911.05371) labels a
data set by the plan ``Q`` that minimises ``-<Q, log P> + KL(Q | r c^T) / λ`` among those with rows summing to ``c``
and columns to ``r``. Its form is ``Q_iy = exp(u_i + λ log P_iy + v_y)``; the label of a sample is its largest entry.

The release raises probabilities to the power λ and scales the matrix in float64
(:mod:`avssl_core.clustering.released`). With λ = 20 a row of joint probabilities below 1e-32 is then a row of zeros,
and its label one of NaNs. Here the potentials ``v`` are kept in log space and float32 carries the rest
(:mod:`avssl_core.clustering.scaled_matrix`). What else differs:

* One iteration is one pass over the matrix: the row scaling of a chunk is found and used while it is in the cache.
* Sharp scores need thousands of plain iterations; extrapolated ones need about a tenth of them
  (:mod:`avssl_core.clustering.scaling`).
* Rows may be spread over processes; the ``K`` column sums are all that travels.
* The memory is that of the scores and of one matrix beside them: 2 x 2.1 GB for 1.7 million samples and 309 clusters.

**Collapse.** The plan always has the asked-for columns, its row maxima need not: where all rows are alike, every label
is the cluster with the largest marginal. Labels are therefore counted and compared with what was asked for, and
:class:`CollapseError` says when they do not spread.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from avssl_core.clustering.marginals import check_marginal, effective_number
from avssl_core.clustering.scaled_matrix import ScaledMatrix
from avssl_core.clustering.scaling import find_potentials
from avssl_core.collectives import LOCAL, Collectives

OnCollapse = Literal["raise", "sharpen", "keep"]

FLOAT32_TOLERANCE = 1e-6  # rounding of float32 matrix products moves the column sums by about 1e-7
COLLAPSED = 0.5  # labels that spread over less than this share of the clusters asked for have collapsed
MAX_DOUBLINGS = 8


class CollapseError(RuntimeError):
    """Labels crowd into far fewer clusters than the marginal asks for."""


@dataclass(frozen=True)
class SinkhornResult:
    """Labels and how they came about. Everything but ``labels`` is the same on all processes.

    Attributes:
        labels: cluster of each row of this process, int64 ``(N,)``.
        potentials: ``v``, float64 ``(K,)``, mean 0: a label is the argmax of ``sharpness * scores + potentials``.
        column_sums: of the plan, float64 ``(K,)``; its row sums are exact.
        counts: labels a cluster, int64 ``(K,)``.
        iterations: passes over the matrix.
        error: ``sum_y |column_sums_y - marginal_y|``: twice the share of mass in a wrong cluster.
        converged: whether the error reached the tolerance.
        sharpness: λ that was used; larger than asked for only after ``on_collapse="sharpen"``.
        cost: mean over samples of minus the score of the label (nats for log-probabilities).
    """

    labels: Tensor
    potentials: Tensor
    column_sums: Tensor
    counts: Tensor
    iterations: int
    error: float
    converged: bool
    sharpness: float
    cost: float

    @property
    def spread(self) -> float:
        """Effective number of clusters in use: the exponential of the entropy of the label counts."""
        return effective_number(self.counts.double() / self.counts.sum())


def sinkhorn(
    scores: Tensor,
    marginal: Tensor,
    *,
    sharpness: float = 20.0,
    tolerance: float = 1e-3,
    max_iterations: int = 2000,
    row_marginal: Tensor | None = None,
    start: Tensor | None = None,
    accelerate: bool = True,
    precision: torch.dtype = torch.float32,
    on_collapse: OnCollapse = "raise",
    collectives: Collectives = LOCAL,
) -> SinkhornResult:
    """Label the rows of ``scores`` so that cluster sizes follow ``marginal`` (SeLaVi, eq. 3).

    Args:
        scores: log-probabilities of this process's samples, finite, shape ``(N, K)``; rows need not be normalised. Any
            floating dtype. Processes may hold different numbers of rows.
        marginal: ``r``, share of each cluster, positive, sum 1, shape ``(K,)``; the same on all processes.
        sharpness: λ; positive. At 20 most rows of the plan are nearly one-hot; towards 0 the plan becomes ``c r^T``.
        tolerance: stop when the column sums differ from ``marginal`` by at most this in total. 1e-3: one sample in
            two thousand sits in the wrong cluster. The release's rule is in :func:`released_sinkhorn`.
        max_iterations: give up after these, with a warning.
        row_marginal: ``c``, positive weights of the samples, ``(N,)``; normalised over all processes. ``None``: equal.
        start: potentials to begin with, ``(K,)``, e.g. those of the previous round. The fixed point does not depend
            on them.
        accelerate: extrapolate from the last steps, and anneal the sharpness where that stalls. Same fixed point; where
            the scores are sharp, a tenth of the iterations. ``False`` is Sinkhorn–Knopp to the letter.
        precision: of the matrix and its products, ``torch.float32`` or ``torch.float64``.
        on_collapse: what to do about labels that crowd together: ``"raise"``; ``"sharpen"``, double the sharpness until
            they spread (row maxima follow the plan ever more closely), and raise if they never do; ``"keep"``, for
            experiments that count the labels themselves.
        collectives: how to reach other processes; they must call this together.

    Returns:
        Labels, potentials, and a report.

    Raises:
        ValueError: for shapes that do not fit, scores that are not finite, a marginal that is not positive or does not
            sum to 1, or a setting out of range.
        CollapseError: see ``on_collapse``.

    Example:
        >>> scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]).log()
        >>> sinkhorn(scores, torch.tensor([0.5, 0.5])).labels
        tensor([0, 0, 1, 1])
    """
    scores = scores.detach()
    _check_settings(scores, sharpness, tolerance, max_iterations, precision, on_collapse)
    r = check_marginal(marginal, scores.shape[1]).to(scores.device)
    potentials = _check_start(start, r)
    weights = _row_weights(scores, row_marginal, collectives)
    matrix = ScaledMatrix(scores, weights, sharpness, precision, collectives)
    used = 0
    for doubling in range(MAX_DOUBLINGS + 1):
        end, iterations = find_potentials(matrix, r, potentials, tolerance, max_iterations, accelerate=accelerate)
        used += iterations
        labels, counts, cost = matrix.labels(end.potentials)
        collapse = _collapse(counts, r)
        if collapse is None or on_collapse == "keep":
            break
        if on_collapse == "raise" or doubling == MAX_DOUBLINGS:
            raise CollapseError(_collapse_message(collapse, counts, matrix.sharpness, on_collapse))
        matrix.sharpness *= 2
        potentials = end.potentials * 2  # for large λ they grow in proportion to it
    converged = end.error <= tolerance
    if not converged:
        warnings.warn(
            f"Sinkhorn–Knopp stopped after {iterations} iterations at a marginal error of {end.error:.2g}, above "
            f"{tolerance:g}: raise max_iterations, start from the previous potentials, or lower sharpness "
            f"({matrix.sharpness:g})",
            stacklevel=2,
        )
    return SinkhornResult(labels, end.potentials, end.sums, counts, used, end.error, converged, matrix.sharpness, cost)


def transport_plan(
    scores: Tensor,
    potentials: Tensor,
    *,
    sharpness: float = 20.0,
    row_marginal: Tensor | None = None,
    collectives: Collectives = LOCAL,
) -> Tensor:
    """The plan ``Q`` itself, for looking at: ``c_i softmax_y(λ scores_iy + v_y)``.

    Args:
        scores: as given to :func:`sinkhorn`, ``(N, K)``.
        potentials: of its result.
        sharpness: of its result.
        row_marginal: as given to it.
        collectives: as given to it.

    Returns:
        ``(N, K)`` float64; it sums to 1 over all processes.

    Raises:
        ValueError: for potentials that do not fit the scores.
    """
    if scores.ndim != 2 or potentials.shape != scores.shape[1:]:
        raise ValueError(f"expected (N, K) and (K,), got {tuple(scores.shape)} and {tuple(potentials.shape)}")
    weights = _row_weights(scores, row_marginal, collectives)
    logits = scores.double() * sharpness + potentials.to(scores.device, torch.float64)
    return logits.softmax(dim=1) * weights[:, None]


def _check_settings(
    scores: Tensor,
    sharpness: float,
    tolerance: float,
    max_iterations: int,
    precision: torch.dtype,
    on_collapse: OnCollapse,
) -> None:
    if scores.ndim != 2 or scores.shape[1] < 1 or not scores.is_floating_point():
        raise ValueError(f"scores must be (N, K) floating-point numbers, got {tuple(scores.shape)} {scores.dtype}")
    if not 0 < sharpness < math.inf:
        raise ValueError(f"sharpness must be positive, got {sharpness}; scores are multiplied by it, 20 in the paper")
    if precision not in (torch.float32, torch.float64):
        raise ValueError(f"precision must be torch.float32 or torch.float64, got {precision}")
    if not tolerance > 0 or (precision == torch.float32 and tolerance < FLOAT32_TOLERANCE):
        raise ValueError(
            f"tolerance must be positive, and at least {FLOAT32_TOLERANCE:g} in float32, got {tolerance:g}; finer ones "
            "need precision=torch.float64"
        )
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
    if on_collapse not in ("raise", "sharpen", "keep"):
        raise ValueError(f"on_collapse must be 'raise', 'sharpen' or 'keep', got {on_collapse!r}")


def _check_start(start: Tensor | None, r: Tensor) -> Tensor:
    if start is None:
        return torch.zeros_like(r)
    if start.shape != r.shape or not bool(start.isfinite().all()):
        raise ValueError(f"start must hold {len(r)} finite potentials, got shape {tuple(start.shape)}")
    potentials = start.detach().to(r.device, torch.float64)
    return potentials - potentials.mean()


def _row_weights(scores: Tensor, row_marginal: Tensor | None, collectives: Collectives) -> Tensor:
    """``c`` in float64, ``(N,)``, summing to 1 over all processes; refuses bad numbers on all of them together."""
    ones = torch.ones(len(scores), dtype=torch.float64, device=scores.device)
    weights = ones if row_marginal is None else row_marginal.detach().to(scores.device, torch.float64)
    if weights.shape != ones.shape:
        raise ValueError(f"row_marginal must hold one weight for each of {len(ones)} rows, got {tuple(weights.shape)}")
    found = [_count_bad_rows(scores), int((~((weights > 0) & weights.isfinite())).sum()), len(scores)]
    # One message, before anybody raises: a process that left alone would leave the others waiting.
    facts = collectives.sum(torch.tensor(found, dtype=torch.float64, device=scores.device))
    bad_rows, bad_weights, rows = (int(fact) for fact in facts.tolist())
    if bad_rows:
        raise ValueError(f"{bad_rows} of {rows} rows of scores have NaN or infinity; use log_softmax, not log(softmax)")
    if bad_weights:
        raise ValueError(f"{bad_weights} of {rows} weights of row_marginal are not positive: drop those rows")
    if not rows:
        raise ValueError("there are no rows to label on any process")
    return weights / collectives.sum(weights.sum())


def _count_bad_rows(scores: Tensor) -> int:
    """A row's sum is finite where all of it is, and takes no table of the size of ``scores``."""
    sums = scores.sum(dim=1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return int((~sums.isfinite()).sum())


def _collapse(counts: Tensor, r: Tensor) -> tuple[float, float] | None:
    """Effective numbers of clusters found and asked for, if the former is far smaller."""
    rows = int(counts.sum())
    found, asked = effective_number(counts.double() / rows), min(effective_number(r), rows)
    return (found, asked) if found < COLLAPSED * asked else None


def _collapse_message(numbers: tuple[float, float], counts: Tensor, sharpness: float, on_collapse: OnCollapse) -> str:
    found, asked = numbers
    remedy = (
        "the scores of different samples hardly differ (a collapsed or untrained network?); train or whiten the "
        "features first"
        if on_collapse == "sharpen"
        else "pass on_collapse='sharpen', a higher sharpness, or a marginal that is less skewed"
    )
    return (
        f"labels collapsed: they spread over {found:.1f} clusters where the marginal asks for {asked:.1f} "
        f"({int((counts == 0).sum())} of {len(counts)} are empty, the largest holds {int(counts.max())} of "
        f"{int(counts.sum())} samples, sharpness {sharpness:g}): {remedy}"
    )
