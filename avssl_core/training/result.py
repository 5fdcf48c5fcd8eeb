"""What a training run leaves behind: its history and its speed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
from torch import nn


@dataclass(frozen=True)
class FitResult:
    """What a run left.

    Attributes:
        history: one row an interval: ``step`` (steps done), ``loss`` and metrics (means over the interval and over
            ranks), ``lr``, ``grad_norm`` (before clipping), ``clips_per_s``, ``wait_share``, ``wall_s``.
        steps: optimiser steps done.
        resumed_from: step of the checkpoint this call began with; 0 for a fresh start.
        wall_s: seconds of all sittings together.
        wait_share: share of the training time in which the loop waited for data.
        clips_per_s: items of a batch a second, of all ranks together; one that holds several windows counts once.
        peak_memory: bytes, on this rank (see :func:`~avssl_core.training.throughput.peak_memory`).
        device: type of the device.
        world_size: number of processes.
        in_memory_clips_per_s: of all ranks on a batch held in memory, where it was measured.
        ema: the averaged model, where there is one.
    """

    history: pd.DataFrame
    steps: int
    resumed_from: int
    wall_s: float
    wait_share: float
    clips_per_s: float
    peak_memory: int
    device: str
    world_size: int
    in_memory_clips_per_s: float | None = None
    ema: nn.Module | None = None

    @property
    def loading_share(self) -> float | None:
        """Share of the in-memory speed that the run reached with loading; None where it was not measured."""
        return None if self.in_memory_clips_per_s is None else self.clips_per_s / self.in_memory_clips_per_s

    def summary(self) -> str:
        """One line for the end of a training cell."""
        parts = [f"{self.steps} steps in {self.wall_s:.0f} s on {self.world_size} × {self.device}"]
        if not math.isnan(self.clips_per_s):
            parts += [f"{self.clips_per_s:.1f} clips/s", f"{100 * self.wait_share:.1f} % of the time waiting for data"]
        if self.loading_share is not None:
            parts.append(f"{100 * self.loading_share:.0f} % of in-memory speed")
        parts.append(f"peak memory {self.peak_memory / 2**30:.2f} GiB")
        return " · ".join(parts)
