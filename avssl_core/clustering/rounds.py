"""When to cluster: often at first, when features change fast, seldom later.

SeLaVi (https://arxiv.org/abs/2006.13662) clusters at ``t_j = T (j / (J - 1))^p`` of ``T`` steps. The text says "inverse
quadratic", as in SeLa (``p = 2``); the release has ``p = 1.5``, which is the default here. Its last time is the end of
training and never reached: of 100 rounds 99 happen. SeLa's release spreads its times over 1.01 epochs more than there
are, so that its last round does happen, shortly before the end; ``beyond`` is that stretch.
"""

from __future__ import annotations

import math


def clustering_rounds(steps: int, *, rounds: int = 100, power: float = 1.5, beyond: float = 0.0) -> tuple[int, ...]:
    """Steps before which to cluster.

    Args:
        steps: optimiser steps of the whole training, epochs times steps an epoch.
        rounds: ``J``, counting the last one, at ``steps + beyond``, which is left out.
        power: ``p``; 1 is evenly spaced, larger ones crowd the rounds at the start.
        beyond: steps after the end at which the last of the times falls. 0: as SeLaVi released it. SeLa: 1.01 times the
            steps of an epoch, at ``power=2``.

    Returns:
        Strictly increasing 0-based steps; the first is 0. Fewer than ``rounds - 1`` where several would fall on one
        step.

    Raises:
        ValueError: for no steps, fewer than 2 rounds (the first and the one left out), a power that is not positive, or
            a negative ``beyond``.
    """
    if steps < 1 or rounds < 2 or not 0 < power < math.inf:
        raise ValueError(f"need steps >= 1, rounds >= 2 and power > 0, got {steps}, {rounds}, {power}")
    if not 0 <= beyond < math.inf:
        raise ValueError(f"beyond is a number of steps after the end, not negative, got {beyond}")
    times = ((steps + beyond) * (j / (rounds - 1)) ** power for j in range(rounds - 1))
    # The first step that is not earlier than the time; rounding must not make a whole number the next one.
    due = (math.ceil(time - 1e-9 * steps) for time in times)
    return tuple(sorted({step for step in due if step < steps}))
