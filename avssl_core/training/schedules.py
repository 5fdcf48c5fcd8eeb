"""The learning rate as a pure function of the step.

There is no scheduler object whose state could be lost or advanced twice: the loop asks for the rate of step ``t`` and
sets it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from avssl_core.training.config import FitConfig


def warmup_factor(step: int, *, warmup_steps: int, start: float = 0.0) -> float:
    """Linear rise from ``start`` to 1 over ``warmup_steps`` steps; 1 afterwards.

    Step 0 already takes the first increment (``start + (1 - start) / warmup_steps``): a first step of rate 0 would be
    wasted.
    """
    if step >= warmup_steps:
        return 1.0
    return start + (1.0 - start) * (step + 1) / warmup_steps


def cosine_factor(step: int, *, steps: int, end: float = 0.0) -> float:
    """Half a cosine from 1 at step 0 to ``end`` at step ``steps`` (SGDR, https://arxiv.org/abs/1608.03983, eq. 5)."""
    progress = min(max(step / max(steps, 1), 0.0), 1.0)
    return end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def multistep_factor(step: int, *, milestones: Sequence[int], gamma: float = 0.1) -> float:
    """``gamma`` to the power of the number of milestones reached; ``milestones`` ascend."""
    return gamma ** bisect_right(milestones, step)


def learning_rate(config: FitConfig, step: int) -> float:
    """Learning rate of optimiser step ``step`` (0-based).

    The cosine runs over the steps after the warm-up; milestones count from the start of the run, warm-up included.
    """
    factor = warmup_factor(step, warmup_steps=config.warmup_steps, start=config.warmup_from)
    if config.schedule == "cosine" and step >= config.warmup_steps:
        factor *= cosine_factor(step - config.warmup_steps, steps=config.steps - config.warmup_steps, end=config.min_lr)
    elif config.schedule == "multistep":
        factor *= multistep_factor(step, milestones=config.milestone_steps, gamma=config.gamma)
    return config.lr * factor
