"""How fast a run is, and how much of that the loading of data costs.

Two figures. The *wait share* is the part of the time that the loop stood still for the next batch. The *share of
in-memory speed* compares clips a second with those of the same steps on one batch that is already on the device; it
also sees what worker processes take from the training by using the same cores.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from avssl_core.training.config import FitConfig
from avssl_core.training.diagnosis import tensors_in
from avssl_core.training.distributed import World
from avssl_core.training.optimisers import ParamGroup
from avssl_core.training.rng import preserved_global
from avssl_core.training.steps import LossFn, Stepper, to_device


@dataclass
class Throughput:
    """Sums over the steps of a run, on this rank.

    The first step of each sitting (workers start, kernels are chosen) is kept apart, and counts only where there is no
    other.
    """

    clips: int = 0
    step_s: float = 0.0
    wait_s: float = 0.0
    wall_s: float = 0.0  # everything, logging and checkpoints included
    peak_memory: int = 0  # bytes
    first_clips: int = 0
    first_step_s: float = 0.0
    first_wait_s: float = 0.0

    def add(self, *, clips: int, step_s: float, wait_s: float, first: bool) -> None:
        """Take in one step."""
        if first:
            self.first_clips, self.first_step_s, self.first_wait_s = clips, step_s, wait_s
        else:
            self.clips, self.step_s, self.wait_s = self.clips + clips, self.step_s + step_s, self.wait_s + wait_s

    @property
    def clips_per_s(self) -> float:
        """Clips a second of this rank; NaN before the first step."""
        clips, seconds = (self.clips, self.step_s) if self.clips else (self.first_clips, self.first_step_s)
        return clips / seconds if seconds > 0 else math.nan

    @property
    def wait_share(self) -> float:
        """Share of the time spent waiting for data; NaN before the first step."""
        wait, seconds = (self.wait_s, self.step_s) if self.clips else (self.first_wait_s, self.first_step_s)
        return wait / seconds if seconds > 0 else math.nan

    def state_dict(self) -> dict[str, int | float]:
        """All sums."""
        return asdict(self)


def clips_in(batch: Any) -> int:
    """Number of clips in a batch: the length of its first tensor; 1 where it holds none."""
    for _, tensor in tensors_in(batch):
        return int(tensor.shape[0]) if tensor.ndim else 1
    return 1


def peak_memory(device: torch.device) -> int:
    """Most bytes held at once: by tensors on CUDA, by this process on the CPU (since it started; 0 where unknown)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # kilobytes on Linux, bytes on macOS
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def in_memory_speed(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFn,
    config: FitConfig,
    *,
    world: World | None = None,
    steps: int = 20,
    warmup: int = 2,
    groups_of: Callable[[nn.Module], Sequence[ParamGroup]] | None = None,
) -> float:
    """Clips a second, on this rank, of training steps on one batch that is already on the device.

    Works on a copy of ``model``; the caller's random state is left as it was. On several processes every rank must call
    it.

    Args:
        model: unwrapped.
        batch: one batch as the loader yields it; it is used for every micro-batch of a step.
        loss_fn: as for :func:`~avssl_core.training.fit`.
        config: its optimiser, accumulation and precision are used.
        world: None is one process on the CPU.
        steps: how many to time.
        warmup: how many before those, untimed.
        groups_of: parameter groups of the copy, where the run has its own.
    """
    world = world or World.single()
    replica = copy.deepcopy(model).train()
    stepper = Stepper(replica, loss_fn, config, world, groups=groups_of(replica) if groups_of else None)
    batches = [to_device(batch, world.device)] * config.accumulate
    with preserved_global(world.device):
        for step in range(warmup):
            _timed_step(stepper, step, batches)
        seconds = sum(_timed_step(stepper, step, batches) for step in range(warmup, warmup + steps))
    return clips_in(batch) * config.accumulate * steps / seconds


def _timed_step(stepper: Stepper, step: int, batches: Sequence[Any]) -> float:
    start = time.perf_counter()
    metrics = stepper.gradients(step, batches)
    stepper.world.any(~torch.isfinite(metrics["grad_norm"]))  # the loop waits for the device here, so this must as well
    stepper.apply(step, metrics["grad_norm"])
    if stepper.world.device.type == "cuda":
        torch.cuda.synchronize(stepper.world.device)
    return time.perf_counter() - start
