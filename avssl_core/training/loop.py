"""The training loop: plain torch, small enough to read, and exact when it resumes.

Lightning and accelerate were tried and left: one refuses ``DistributedDataParallel`` inside a kernel, the other is a
process-wide singleton that pickles its random state. Here a run is a function of its configuration: every random number
depends on (seed, step, micro-batch, rank) alone, so that a run killed anywhere continues from its checkpoint with the
same weights, bit for bit on the CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from avssl_core.training.checkpoint import CheckpointError, Identity, check_identity, load_checkpoint, save_checkpoint
from avssl_core.training.config import FitConfig
from avssl_core.training.diagnosis import NonFiniteError, diagnose
from avssl_core.training.distributed import World, average_over
from avssl_core.training.logs import Meter, OnLog, Row, RunLog
from avssl_core.training.optimisers import ParamGroup
from avssl_core.training.preemption import Preempted, PreemptionWatch
from avssl_core.training.result import FitResult
from avssl_core.training.rng import preserved_global
from avssl_core.training.schedules import learning_rate
from avssl_core.training.steps import LossFn, Stepper, to_device
from avssl_core.training.throughput import Throughput, clips_in, in_memory_speed, peak_memory

Batches = Callable[[int], Iterator[Any]]
Groups = Callable[[nn.Module], Sequence[ParamGroup]]


def fit(
    model: nn.Module,
    batches: Batches,
    loss_fn: LossFn,
    config: FitConfig,
    *,
    device: str | torch.device = "cpu",
    run_dir: str | Path | None = None,
    on_log: OnLog | Sequence[OnLog] | None = None,
    world: World | None = None,
    context: Mapping[str, int | float | str | bool | None] | None = None,
    groups_of: Groups | None = None,
    find_unused_parameters: bool = False,
    in_memory_steps: int = 0,
) -> FitResult:
    """Train ``model`` in place for ``config.steps`` optimiser steps, or continue the run found in ``run_dir``.

    With ``accumulate > 1`` a step averages the gradients of that many batches. For losses that are means over samples
    this equals one large batch; a contrastive loss sees the negatives of its own batch only, and batch norm its own
    statistics.

    Args:
        model: everything that learns or remembers (heads, temperatures, queues) must be inside it, for that is what a
            checkpoint holds. It is moved to the device and left in training mode.
        batches: ``batches(start)`` returns an iterator whose first item is batch ``start`` of an endless, fixed order
            (``start`` is the number of batches consumed: steps × ``accumulate``). On several processes it yields this
            rank's share.
        loss_fn: ``(model, batch, generator) -> (scalar loss, metrics)``. It gets the batch on the device, a CPU
            generator for augmentation, and the *wrapped* model: call it (``model(x)``), as gradients are exchanged only
            for such calls.
        config: settings.
        device: where to train; ignored when ``world`` is given.
        run_dir: gets checkpoints, ``metrics.csv`` and ``tensorboard/``; None keeps nothing. Shared by all ranks.
        on_log: called with each line of the log on rank 0; on resuming, with the stored lines first.
        world: from :func:`~avssl_core.training.join`; None is one process.
        context: further scalars that decide the run (data set, architecture, arm); a checkpoint with others is refused.
        groups_of: parameter groups of the model, for unequal learning rates (``lr_scale``).
        find_unused_parameters: of DDP, for a loss that leaves parameters without gradient in some steps.
        in_memory_steps: after training, so many steps on a copy of the model and the last batch measure the in-memory
            speed.

    Returns:
        History and speed. A run that is already finished is returned at once, with its weights in ``model``.

    Raises:
        NonFiniteError: loss or gradient is not finite; the weights are those before the step.
        CheckpointError: ``run_dir`` holds another run.
        Preempted: SIGTERM or SIGUSR1 arrived (only with ``run_dir``); exit code 75.
        ValueError: the batches ended early, or the loss is not one number.
    """
    world = world or World.single(device)
    listeners = [] if on_log is None or not world.is_main else [on_log] if callable(on_log) else list(on_log)
    model.train()
    stepper = Stepper(
        model,
        loss_fn,
        config,
        world,
        groups=groups_of(model) if groups_of else None,
        find_unused_parameters=find_unused_parameters,
    )
    run = _Run(stepper, None if run_dir is None else Path(run_dir), context or {})
    run.restore()
    log = RunLog(run.folder if world.is_main else None, run.history, listeners)
    try:
        if run.step < config.steps:
            with preserved_global(world.device):
                run.train(batches, log)
    finally:
        log.close()
    return run.result(log.history, run.in_memory(in_memory_steps, groups_of) if in_memory_steps else None)


class _Run:
    """A run in progress: where it stands, and what a checkpoint of it holds."""

    def __init__(
        self, stepper: Stepper, folder: Path | None, context: Mapping[str, int | float | str | bool | None]
    ) -> None:
        self.stepper, self.config, self.world, self.folder = stepper, stepper.config, stepper.world, folder
        self.identity: Identity = {
            **self.config.to_dict(),
            "world_size": self.world.world_size,
            **{f"context.{name}": value for name, value in context.items()},
        }
        self.step = self.resumed_from = self.saved_at = 0
        self.lr = math.nan
        self.history: list[Row] = []
        self.meter = Meter()
        self.speed = Throughput()
        self._sitting_began = time.perf_counter()
        self._last_batch: Any = None

    # -- the loop ------------------------------------------------------------------------------------------------------

    def train(self, batches: Batches, log: RunLog) -> None:
        """Step until done; save, log and leave when it is time to."""
        interval = Throughput()
        self._sitting_began = time.perf_counter()
        with PreemptionWatch(enabled=self.folder is not None) as watch, self._lost_workers(watch):
            stream = iter(batches(self.step * self.config.accumulate))
            while self.step < self.config.steps:
                asked = self._one_step(stream, watch, log, interval)
                done = self.step == self.config.steps
                if done or self.step % self.config.log_every == 0:
                    log.write(self._row(interval))
                    interval = Throughput()
                every = self.config.checkpoint_every
                if done or asked or (every and self.step % every == 0):
                    self.save(log.history)
                if asked and not done:
                    raise Preempted(self.step, self.config.steps, str(self.folder))

    @contextmanager
    def _lost_workers(self, watch: PreemptionWatch) -> Iterator[None]:
        """A signal to the whole process group also kills the loader's workers, in mid-step: leave without saving."""
        try:
            yield
        except (RuntimeError, ConnectionError, EOFError) as error:
            loading = not isinstance(error, RuntimeError) or "DataLoader worker" in str(error)
            if loading and watch.wait(timeout_s=1.0):  # the workers' death may be noticed before our own signal
                raise Preempted(self.saved_at, self.config.steps, str(self.folder)) from error
            raise

    def _one_step(self, stream: Iterator[Any], watch: PreemptionWatch, log: RunLog, interval: Throughput) -> bool:
        """Load, compute, check, update; returns whether any rank was asked to leave."""
        began = time.perf_counter()
        loaded = [self._next(stream, micro) for micro in range(self.config.accumulate)]
        wait_s = time.perf_counter() - began
        on_device = [to_device(batch, self.world.device) for batch in loaded]
        metrics = self.stepper.gradients(self.step, on_device)
        numbers = torch.stack([metrics["loss"], metrics["grad_norm"]])
        broken, asked = self.world.any(~torch.isfinite(numbers).all(), watch.requested)
        if broken:
            self._stop_non_finite(on_device, metrics, log)
        self.lr = self.stepper.apply(self.step, metrics["grad_norm"])
        self.meter.add(metrics)
        step_s, clips = time.perf_counter() - began, sum(clips_in(batch) for batch in loaded)
        first = self.step == self.resumed_from
        self.speed.add(clips=clips, step_s=step_s, wait_s=wait_s, first=first)
        interval.add(clips=clips, step_s=step_s, wait_s=wait_s, first=first)
        self._last_batch = loaded[-1]
        self.step += 1
        return asked

    def _next(self, stream: Iterator[Any], micro: int) -> Any:
        try:
            return next(stream)
        except StopIteration:
            raise ValueError(
                f"the batches ended at step {self.step} (micro-batch {micro}) of {self.config.steps}: "
                "batches(start) must return an endless iterator"
            ) from None

    def _stop_non_finite(self, batches: Sequence[Any], metrics: Mapping[str, torch.Tensor], log: RunLog) -> None:
        """Raise with all that can be found out; the module is named on one process only, as ranks may fail alone."""

        def rerun() -> None:
            with torch.no_grad():
                for micro, batch in enumerate(batches):
                    self.stepper.forward(self.step, micro, batch)

        lr = learning_rate(self.config, self.step)
        alone = self.world.world_size == 1
        findings = diagnose(self.stepper.model, batches, metrics, lr=lr, rerun=rerun if alone else None)
        raise NonFiniteError(self.step, findings, log.history)

    def _row(self, interval: Throughput) -> Row:
        """The line of the interval that just ended: means over its steps and over ranks."""
        means = self.meter.means()
        self.meter.reset()
        names = [name for name in means if name != "grad_norm"]
        row: Row = {"step": float(self.step)}
        row.update(zip(names, average_over(self.world, [means[name] for name in names]), strict=True))
        row |= {"lr": self.lr, "grad_norm": float(means["grad_norm"])}
        row["clips_per_s"] = interval.clips_per_s * self.world.world_size
        row["wait_share"] = interval.wait_share
        row["wall_s"] = self._wall_s()
        return row

    def _wall_s(self) -> float:
        return self.speed.wall_s + time.perf_counter() - self._sitting_began

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def save(self, history: Sequence[Row]) -> None:
        """Rank 0 writes; the others wait, so that nobody leaves before the file is whole."""
        self.speed.wall_s, self._sitting_began = self._wall_s(), time.perf_counter()
        self.speed.peak_memory = max(self.speed.peak_memory, peak_memory(self.world.device))
        if self.folder is None:
            return
        self.saved_at = self.step
        if self.world.is_main:
            save_checkpoint(
                self.folder,
                {
                    "step": self.step,
                    "identity": self.identity,
                    "model": self.stepper.model.state_dict(),
                    "optimiser": self.stepper.optimiser.state_dict(),
                    "ema": self.stepper.ema.state_dict() if self.stepper.ema else None,
                    "history": list(history),
                    "meter": self.meter.state_dict(),
                    "speed": self.speed.state_dict(),
                },
            )
        self.world.barrier()

    def restore(self) -> None:
        """Take up the checkpoint of the folder, if there is one."""
        state = None if self.folder is None else load_checkpoint(self.folder)
        if state is not None:
            self._take(state)
        steps = self.world.collectives.gather(torch.tensor([self.step], device=self.world.device)).tolist()
        if len(set(steps)) > 1:
            raise CheckpointError(
                f"the ranks found different checkpoints in {self.folder} (steps {steps}): is it shared?"
            )

    def _take(self, state: Mapping[str, Any]) -> None:
        where = str(self.folder)
        check_identity(state["identity"], self.identity, where=where, free=_without_effect(self.config))
        if state["step"] > self.config.steps:
            raise CheckpointError(
                f"the checkpoint in {where} is at step {state['step']}, beyond steps={self.config.steps}"
            )
        try:
            self.stepper.model.load_state_dict(state["model"])
            self.stepper.optimiser.load_state_dict(state["optimiser"])
            if self.stepper.ema is not None:
                self.stepper.ema.load_state_dict(state["ema"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint in {where} does not fit this model: {error}") from error
        self.step = self.resumed_from = self.saved_at = int(state["step"])
        self.history = [dict(row) for row in state["history"]]
        self.meter.load_state_dict(state["meter"], self.world.device)
        self.speed = Throughput(**state["speed"])

    # -- the end -------------------------------------------------------------------------------------------------------

    def in_memory(self, steps: int, groups_of: Groups | None) -> float | None:
        """In-memory clips a second of all ranks; None where this call trained nothing."""
        if self._last_batch is None:
            return None
        one = in_memory_speed(
            self.stepper.model,
            self._last_batch,
            self.stepper.loss_fn,
            self.config,
            world=self.world,
            steps=steps,
            groups_of=groups_of,
        )
        return one * self.world.world_size

    def result(self, history: Sequence[Row], in_memory: float | None) -> FitResult:
        """Everything the caller gets back."""
        return FitResult(
            history=pd.DataFrame(list(history)),
            steps=self.step,
            resumed_from=self.resumed_from,
            wall_s=self.speed.wall_s,
            wait_share=self.speed.wait_share,
            clips_per_s=self.speed.clips_per_s * self.world.world_size,
            peak_memory=self.speed.peak_memory,
            device=self.world.device.type,
            world_size=self.world.world_size,
            in_memory_clips_per_s=in_memory,
            ema=self.stepper.ema.module if self.stepper.ema else None,
        )


def _without_effect(config: FitConfig) -> frozenset[str]:
    """Settings that cannot change the weights of a step; ``steps`` is among them unless a cosine is fitted to it."""
    names = {"log_every", "checkpoint_every"}
    return frozenset(names if config.schedule == "cosine" else names | {"steps"})
