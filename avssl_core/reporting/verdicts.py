"""From paired differences over seeds to one of three honest ends.

A seed redraws world, initialisation and order, so the arms of one seed share their luck: the difference within a seed
is what is tested, by a two-sided 95 % t interval over seeds. The papers show single runs; this is the least that lets
a reader tell an effect from a lucky seed. Without any seed there is no end yet, and nothing is undecided either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
UNDECIDED = "undecided at this size"
NOT_RECORDED = "not recorded"  # no seed of it was run
MINIMUM_SEEDS = 5  # below this, "reproduced" is not on offer, however tight the interval looks


@dataclass(frozen=True)
class Verdict:
    """Mean difference, its interval, the number of seeds behind them, and what follows.

    ``effect`` is nan without seeds; ``ci`` is (-inf, inf) with fewer than two.
    """

    effect: float
    ci: tuple[float, float]
    n: int
    verdict: str


def t_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and two-sided t interval of independent values.

    Returns:
        ``(mean, low, high)``. Without values the mean is nan; with fewer than two the interval is all of the real
        line. Equal values give an interval of width zero.

    Raises:
        ValueError: a value is not finite, or ``confidence`` is outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    n = len(values)
    for value in values:
        if not math.isfinite(value):
            raise ValueError(f"{value} among {n} values; leave out runs that diverged and say so, do not average them")
    if n == 0:
        return math.nan, -math.inf, math.inf
    mean = math.fsum(values) / n
    if n == 1:
        return mean, -math.inf, math.inf
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * deviation / math.sqrt(n)
    return mean, mean - half, mean + half


def verdict(differences: Sequence[float], *, min_effect: float = 0.0, confidence: float = 0.95) -> Verdict:
    """Judge a claim by its paired differences, signed so that positive supports the paper.

    *Not reproduced*: the interval's upper bound lies below ``min_effect``, so that whatever effect there is, is too
    small to matter. This is asked first: an effect that is surely positive and surely smaller than registered has not
    been reproduced. *Reproduced*: at least five seeds and a lower bound above zero. Everything else is *undecided at
    this size*; without a single difference, *not recorded*.

    Args:
        differences: one number per seed, better arm minus worse arm, in units of the metric.
        min_effect: the smallest difference that would matter, same units, not negative.
        confidence: of the interval.

    Raises:
        ValueError: a difference is not finite, or ``min_effect`` is negative.
    """
    if min_effect < 0:
        raise ValueError(f"min_effect must not be negative, got {min_effect}")
    mean, low, high = t_interval(differences, confidence=confidence)
    n = len(differences)
    if n >= 2 and high < min_effect:
        end = NOT_REPRODUCED
    elif n >= MINIMUM_SEEDS and low > 0:
        end = REPRODUCED
    else:
        end = UNDECIDED if n else NOT_RECORDED
    return Verdict(mean, (low, high), n, end)


def control_outcome(differences: Sequence[float], *, expectation: str, min_effect: float) -> tuple[Verdict, str]:
    """Whether a control came out as expected.

    Args:
        differences: paired differences of the control's own two sides.
        expectation: ``"reproduced"``, ``"not_reproduced"``, ``"reverses"`` (surely negative) or ``"undecided"`` (no
            prediction).
        min_effect: the claim's minimum effect.

    Returns:
        The control's own verdict, and ``"as expected"``, ``"not as expected"``, ``"no prediction"``, ``"undecided at
        this size"`` or, without a single difference, ``"not recorded"``.

    Raises:
        ValueError: another expectation, or as :func:`verdict`.
    """
    result = verdict(differences, min_effect=min_effect)
    low, high = result.ci
    # (as expected, refuted) for each expectation; when neither holds the interval is too wide to tell
    told = {
        "reproduced": (result.verdict == REPRODUCED, result.verdict == NOT_REPRODUCED),
        "not_reproduced": (result.verdict == NOT_REPRODUCED, result.verdict == REPRODUCED),
        "reverses": (high < 0, low > 0),
    }
    if expectation not in ("undecided", *told):
        raise ValueError(f"expectation must be undecided, {', '.join(told)}; got {expectation!r}")
    if not differences:
        return result, NOT_RECORDED
    if expectation == "undecided":
        return result, "no prediction"
    expected, refuted = told[expectation]
    return result, "as expected" if expected else "not as expected" if refuted else UNDECIDED
