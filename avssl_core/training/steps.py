"""One optimiser step: forward and backward over its batches, then the update.

The two halves are apart because between them the loop looks at the numbers: a gradient that is not finite never reaches
the weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from avssl_core.training.config import FitConfig
from avssl_core.training.distributed import World, unwrap
from avssl_core.training.ema import Ema
from avssl_core.training.optimisers import ParamGroup, build_optimiser, parameter_groups, set_learning_rate
from avssl_core.training.rng import reseed_global, step_generator
from avssl_core.training.schedules import learning_rate

Metrics = Mapping[str, float | Tensor]
LossFn = Callable[[nn.Module, Any, torch.Generator], tuple[Tensor, Metrics]]
RESERVED = ("step", "loss", "lr", "grad_norm", "clips_per_s", "wait_share", "wall_s")


class Stepper:
    """A model with its optimiser and running average, advanced one step at a time.

    Args:
        model: moved to ``world.device``; on several processes wrapped in ``DistributedDataParallel``.
        loss_fn: ``(model, batch, generator) -> (scalar loss, metrics)``.
        config: the run's settings.
        world: this process among its peers.
        groups: parameter groups with an optional ``lr_scale``; None trains everything at one rate.
        find_unused_parameters: of DDP, for a loss that leaves parameters without gradient in some steps.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        config: FitConfig,
        world: World,
        *,
        groups: Sequence[ParamGroup] | None = None,
        find_unused_parameters: bool = False,
    ) -> None:
        self.config, self.world, self.loss_fn = config, world, loss_fn
        self.wrapped = world.wrap(model.to(world.device), find_unused_parameters=find_unused_parameters)
        self.model = unwrap(self.wrapped)
        if groups is None:
            groups = parameter_groups(
                self.model, weight_decay=config.weight_decay, decay_norm_bias=config.decay_norm_bias
            )
        self.optimiser = build_optimiser(config, groups)
        self.ema = Ema(self.model, decay=config.ema) if config.ema > 0 else None

    def forward(self, step: int, micro: int, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of one batch; the same numbers for the same (seed, step, micro, rank)."""
        seed, rank, device = self.config.seed, self.world.rank, self.world.device
        reseed_global(seed, step, micro=micro, rank=rank)
        generator = step_generator(seed, step, micro=micro, rank=rank)
        with autocast(self.config, device):
            loss, metrics = self.loss_fn(self.wrapped, batch, generator)
        if loss.numel() != 1:
            raise ValueError(f"the loss must be one number, got shape {tuple(loss.shape)}: take its mean")
        taken = sorted(set(metrics) & set(RESERVED))
        if taken:
            raise ValueError(f"metric name {taken[0]!r} is reserved for the loop ({', '.join(RESERVED)}): rename it")
        values = {name: torch.as_tensor(value, device=device).detach().float() for name, value in metrics.items()}
        return loss.reshape(()), values

    def gradients(self, step: int, batches: Sequence[Any]) -> dict[str, Tensor]:
        """Leave the gradient of the mean loss over ``batches`` in the parameters.

        Returns:
            Means over the batches of ``loss`` and the metrics, and ``grad_norm`` (before clipping); scalars on the
            device.
        """
        self.optimiser.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        for micro, batch in enumerate(batches):
            with self._exchange(last=micro + 1 == len(batches)):
                loss, metrics = self.forward(step, micro, batch)
                (loss / len(batches)).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss.detach().float(), **metrics}.items():
                totals[name] = totals.get(name, torch.zeros_like(value)) + value / len(batches)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        totals["grad_norm"] = get_total_norm(gradients).to(self.world.device)
        return totals

    def _exchange(self, *, last: bool) -> AbstractContextManager[None]:
        """Ranks exchange gradients once a step, with its last batch."""
        if last or not isinstance(self.wrapped, DistributedDataParallel):
            return nullcontext()
        return self.wrapped.no_sync()

    def apply(self, step: int, grad_norm: Tensor) -> float:
        """Clip, update weights and running average; returns the learning rate used."""
        lr = learning_rate(self.config, step)
        if self.config.grad_clip > 0:
            trained = [p for p in self.model.parameters() if p.grad is not None]
            clip_grads_with_norm_(trained, self.config.grad_clip, grad_norm)
        set_learning_rate(self.optimiser, lr)
        self.optimiser.step()
        self.world.sync_buffers(self.model)
        if self.ema is not None:
            self.ema.update(self.model)
        return lr


def autocast(config: FitConfig, device: torch.device) -> AbstractContextManager[None]:
    """bfloat16 where the operation allows it, on CPU and CUDA; no loss scaling, as bfloat16 has float32's range."""
    context: AbstractContextManager[None] = torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"
    )
    return context


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor on ``device``: mappings, sequences and dataclasses are rebuilt, other values kept."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        moved = {f.name: to_device(getattr(batch, f.name), device) for f in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **moved)
    return batch
