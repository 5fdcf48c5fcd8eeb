"""Finding the potentials: plain Sinkhorn–Knopp, extrapolated, and annealed where that is not enough.

Plain iterations never increase the error of the column sums, but the sharper the scores, the smaller their steps.
Extrapolation (Anderson's) turns thousands of steps into tens. Where nearly every row of the plan is one-hot, the steps
carry no direction and it stalls; then the problem is solved at a low sharpness first, which is doubled from there, each
solution times two being the next start (ε-scaling: Schmitzer, https://arxiv.org/abs/1610.06519).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from avssl_core.clustering.scaled_matrix import ScaledMatrix

HISTORY = 10  # steps that an extrapolation looks back on
SLACK = 1.5  # an extrapolated point may be worse than the best by this factor: demanding less rejects good ones
FIRST_TRY = 200  # passes before annealing
EASY = 20.0  # nats: sharpness times the range of the scores at which annealing begins
COARSE = 1e-2  # error that is good enough before the last sharpness
LEAP = 1.0  # nats: most that an extrapolation may add to a plain step; beyond, column sums underflow and time is lost


@dataclass(frozen=True)
class Point:
    """Potentials, the column sums they give, and the step that Sinkhorn–Knopp would take from there."""

    potentials: Tensor
    step: Tensor
    sums: Tensor
    error: float


def find_potentials(
    matrix: ScaledMatrix, r: Tensor, start: Tensor, tolerance: float, max_iterations: int, *, accelerate: bool
) -> tuple[Point, int]:
    """Potentials whose plan has rows exactly and columns within ``tolerance``, or the best found in that many passes.

    Args:
        matrix: at the sharpness asked for.
        r: marginal of the columns, float64 ``(K,)``.
        start: potentials to begin with, ``(K,)``.
        tolerance: of ``sum_y |column_sums_y - r_y|``.
        max_iterations: passes over the matrix, all stages together.
        accelerate: extrapolate and anneal; otherwise plain iterations only.

    Returns:
        Where it ended, and the passes made.
    """
    if not accelerate:
        return _alternate(matrix, r, start, tolerance, max_iterations, accelerate=False)
    end, used = _alternate(matrix, r, start, tolerance, min(FIRST_TRY, max_iterations), accelerate=True)
    if end.error <= tolerance or used == max_iterations:
        return end, used
    annealed, more = _anneal(matrix, r, tolerance, max_iterations - used)
    return min(end, annealed, key=lambda point: point.error), used + more


def _anneal(matrix: ScaledMatrix, r: Tensor, tolerance: float, max_iterations: int) -> tuple[Point, int]:
    asked, used, potentials = matrix.sharpness, 0, torch.zeros_like(r)
    doublings = max(0, math.ceil(math.log2(max(asked * matrix.score_range(), EASY) / EASY)))
    for stage in range(doublings):
        if used + 1 >= max_iterations:
            break
        matrix.sharpness = asked / 2 ** (doublings - stage)
        most = min(FIRST_TRY, max_iterations - used - 1)
        end, passes = _alternate(matrix, r, potentials, max(tolerance, COARSE), most, accelerate=True)
        used, potentials = used + passes, 2 * end.potentials
    matrix.sharpness = asked
    end, passes = _alternate(matrix, r, potentials, tolerance, max_iterations - used, accelerate=True)
    return end, used + passes


def _alternate(
    matrix: ScaledMatrix, r: Tensor, potentials: Tensor, tolerance: float, max_iterations: int, *, accelerate: bool
) -> tuple[Point, int]:
    """Alternate exact rows and corrected columns until the columns are right. Returns where it ended, and passes."""
    matrix.absorb(potentials)
    history, stale = History(r), 0
    best = Point(potentials, torch.zeros_like(r), r, math.inf)
    for iteration in range(1, max_iterations + 1):
        log_sums = matrix.log_column_sums(potentials)
        sums = log_sums.exp()
        point = Point(potentials, r.log() - log_sums, sums, float((sums - r).abs().sum()))
        if point.error < best.error:
            best, stale = point, 0
        else:
            stale += 1
        if point.error <= tolerance or iteration == max_iterations:
            break
        if not accelerate:
            potentials = point.potentials + point.step
        elif not point.error <= SLACK * best.error or stale > HISTORY:  # NaN, too, is no progress
            history.clear()
            potentials, stale = best.potentials + best.step, 0  # a plain step never increases the error
        else:
            potentials = history.extrapolate(point)
        potentials = potentials - potentials.mean()  # rows take up any constant; without this it would drift
        if matrix.needs_absorbing(potentials):
            matrix.absorb(potentials)
    return best, iteration


class History:
    """Anderson acceleration (Walker and Ni, https://doi.org/10.1137/10078356X) of the last steps.

    The next point is the combination of recent ones whose steps come closest to cancelling, in the norm weighted by
    the marginal, so that tiny clusters do not decide.
    """

    def __init__(self, r: Tensor) -> None:
        self._weights = r.sqrt()
        self._points: list[Point] = []

    def clear(self) -> None:
        """Forget all points."""
        self._points.clear()

    def extrapolate(self, point: Point) -> Tensor:
        """Potentials to try next; those of a plain step while there is no history."""
        self._points = [*self._points[-HISTORY:], point]
        plain = point.potentials + point.step
        if len(self._points) == 1:
            return plain
        pairs = list(pairwise(self._points))
        steps = torch.stack([new.step - old.step for old, new in pairs], dim=1)  # (K, m)
        moves = torch.stack([new.potentials - old.potentials for old, new in pairs], dim=1)  # (K, m)
        weighted, target = steps * self._weights[:, None], point.step * self._weights
        # On the CPU, whose solver copes with dependent columns; K times ten numbers.
        shares = torch.linalg.lstsq(weighted.cpu(), target.cpu()[:, None], driver="gelsd").solution[:, 0]
        correction = (moves + steps) @ shares.to(plain.device)
        return plain - correction * (LEAP / max(float(correction.abs().max()), LEAP))
