"""The same program on one process or many: who am I, and how do tensors travel.

``torchrun --nproc-per-node 8 --no-python papermill …`` gives each rank's kernel RANK, WORLD_SIZE and MASTER_ADDR;
:func:`join` reads them. Without them it returns a world of one process, so a chapter calls it unconditionally. This is
the only module of the package that knows ``torch.distributed``.

The release of GDT gathers negatives without gradient for the other ranks' embeddings; here :class:`TorchCollectives`
gathers with gradient, so that many processes compute what one would on the joint batch.
"""

from __future__ import annotations

import atexit
import inspect
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from avssl_core.collectives import LOCAL, Collectives

Result = TypeVar("Result")
_DDP_OPTIONS = inspect.signature(DistributedDataParallel).parameters
_WITHOUT_BUFFER_BROADCAST: dict[str, Any] = {  # torch 2.14 renamed the option
    "forward_sync_buffers" if "forward_sync_buffers" in _DDP_OPTIONS else "broadcast_buffers": False
}
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class _GatherWithGradient(torch.autograd.Function):
    """All-gather whose backward pass sums, over ranks, the gradients of the rows that this rank gave."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        return _all_gather(x)  # (B, ...) -> (W*B, ...)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()  # (W*B, ...); cloned: all_reduce works in place, autograd owns the input
        dist.all_reduce(total)
        return total.narrow(0, dist.get_rank() * ctx.rows, ctx.rows)


def _all_gather(x: Tensor) -> Tensor:
    out = x.new_empty((dist.get_world_size() * x.shape[0], *x.shape[1:]))
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # torch 2.14 renamed it
    all_gather(out, x.detach().contiguous())
    return out


class TorchCollectives:
    """:class:`~avssl_core.collectives.Collectives` over the default process group.

    Every rank must call each operation, and run the backward pass of each gather, in the same order.
    """

    @property
    def rank(self) -> int:
        """Index of this process."""
        return dist.get_rank()

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return dist.get_world_size()

    def gather(self, x: Tensor) -> Tensor:
        """``(B, ...)`` of every rank → ``(world_size * B, ...)`` in rank order, with gradient.

        Raises:
            ValueError: the ranks hold different numbers of rows (checked on the CPU, where it costs one small message;
                on CUDA it would make every gather wait for the device).
        """
        if x.dtype == torch.bool:  # not every backend carries it
            return self.gather(x.to(torch.uint8)).to(torch.bool)
        if x.device.type == "cpu":
            self._check_rows(x)
        gathered: Tensor = _GatherWithGradient.apply(x) if x.requires_grad else _all_gather(x)
        return gathered

    def _check_rows(self, x: Tensor) -> None:
        sizes = _all_gather(torch.tensor([x.numel()])).tolist()
        if len(set(sizes)) > 1:
            raise ValueError(
                f"gather needs the same shape on every rank, but their numbers of elements are {sizes} "
                f"(here {tuple(x.shape)}): drop the last incomplete batch"
            )

    def sum(self, x: Tensor) -> Tensor:
        """Sum over ranks, without gradient."""
        total = x.detach().clone()
        dist.all_reduce(total)
        return total

    def mean(self, x: Tensor) -> Tensor:
        """Mean over ranks, without gradient; integers become float32 first."""
        x = x if x.is_floating_point() else x.float()
        return self.sum(x) / self.world_size


@dataclass(frozen=True)
class World:
    """This process among its peers. Build one with :func:`join`, or :meth:`single`.

    Attributes:
        rank: ``0 <= rank < world_size``; rank 0 logs, draws and saves.
        world_size: number of processes.
        device: where this process computes.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _calls: Iterator[int] = field(default_factory=itertools.count, repr=False, compare=False)

    @classmethod
    def single(cls, device: str | torch.device = "cpu") -> World:
        """A world of one process, whatever the environment says."""
        return cls(device=torch.device(device))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def collectives(self) -> Collectives:
        """What to hand to a loss."""
        return TorchCollectives() if self.world_size > 1 else LOCAL

    def main_only(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result | None:
        """``function(*args, **kwargs)`` on rank 0; None elsewhere. For printing and drawing; nobody waits for it."""
        return function(*args, **kwargs) if self.is_main else None

    @contextmanager
    def main_first(self, *, timeout_s: float = 6 * 3600.0) -> Iterator[None]:
        """Rank 0 runs the block while the others wait; then they run it (and find what it left, e.g. a cache on disk).

        The wait has its own, long time limit: it goes through the rendezvous store and not through a collective.

        Raises:
            RuntimeError: on the waiting ranks, when the block failed on rank 0.
        """
        key = f"avssl/main_first/{next(self._calls)}"
        if self.is_main:
            outcome = b"failed"
            try:
                yield
                outcome = b"done"
            finally:
                if self.world_size > 1:
                    _store().set(key, outcome)
            return
        _store().wait([key], timedelta(seconds=timeout_s))
        if _store().get(key) != b"done":
            raise RuntimeError(f"rank {self.rank} waited for work of rank 0, which failed; see the traceback of rank 0")
        yield

    def any(self, *flags: bool | Tensor) -> list[bool]:
        """For each flag, whether it is set on any rank; one small message for all."""
        values = torch.stack([torch.as_tensor(flag, device=self.device).to(torch.int32) for flag in flags])
        if self.world_size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return [bool(v) for v in values.tolist()]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            dist.barrier()

    def wrap(self, model: nn.Module, *, find_unused_parameters: bool = False) -> nn.Module:
        """``model`` for training: itself on one process, inside ``DistributedDataParallel`` on several.

        Batch norm: on CUDA, layers are converted to ``SyncBatchNorm`` *in place* and normalise over the joint batch; on
        the CPU, where torch has no such layer, each process normalises over its own part. DDP's own broadcast of
        buffers is off, as it breaks a loss that calls the model twice; :meth:`sync_buffers` takes its place between
        steps.
        """
        if self.world_size == 1:
            return model
        on_cuda = self.device.type == "cuda"
        if on_cuda:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(
            model,
            device_ids=[self.device.index] if on_cuda else None,
            find_unused_parameters=find_unused_parameters,
            **_WITHOUT_BUFFER_BROADCAST,
        )

    @torch.no_grad()
    def sync_buffers(self, model: nn.Module) -> None:
        """Give every rank the buffers of rank 0 (running statistics, queues), so that one checkpoint suffices."""
        if self.world_size == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            by_dtype.setdefault(buffer.dtype, []).append(buffer)
        for buffers in by_dtype.values():
            flat = torch.cat([b.reshape(-1) for b in buffers])  # one message a dtype, not one a layer
            dist.broadcast(flat, src=0)
            for buffer, part in zip(buffers, torch.split(flat, [b.numel() for b in buffers]), strict=True):
                buffer.copy_(part.view_as(buffer))

    def leave(self) -> None:
        """Leave the process group; harmless on one process, and when called twice."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def join(device: str | torch.device | None = None, *, backend: str | None = None, timeout_s: float = 600.0) -> World:
    """Join the processes that torchrun started, or stand alone.

    Args:
        device: ``None`` takes the GPU of this rank, or the CPU where there is none; ``"cpu"`` or ``"cuda"`` insist.
        backend: ``None`` means nccl on CUDA and gloo on the CPU.
        timeout_s: how long a collective waits for the slowest rank before the run ends with an error.

    Returns:
        This process's place. Calling it again (a cell run twice) returns the same place.

    Raises:
        RuntimeError: the environment is incomplete, or there are fewer GPUs than processes on this machine.
    """
    present = [name for name in _ENVIRONMENT if name in os.environ]
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size(), _device(device))
    if "RANK" not in present and "WORLD_SIZE" not in present:
        return World.single(_device(device))
    missing = [name for name in _ENVIRONMENT if name not in present]
    if missing:
        raise RuntimeError(
            f"{', '.join(present)} are set but {', '.join(missing)} not: start the processes with torchrun"
        )
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    place = _device(device)
    if world_size == 1:
        return World.single(place)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    backend = backend or ("nccl" if place.type == "cuda" else "gloo")
    dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s))
    world = World(rank, world_size, place)
    atexit.register(world.leave)
    return world


def _device(device: str | torch.device | None) -> torch.device:
    """The device of this rank: one GPU a process."""
    wanted = torch.device(device if device is not None else ("cuda" if torch.cuda.is_available() else "cpu"))
    if wanted.type != "cuda" or wanted.index is not None:
        return wanted
    local_rank, available = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= available:
        raise RuntimeError(
            f"local rank {local_rank} has no GPU of its own ({available} present): "
            f"start at most {available} processes on this machine, or pass device='cpu'"
        )
    return torch.device("cuda", local_rank)


def _store() -> Any:
    """The key-value store through which the ranks met."""
    return dist.distributed_c10d._get_default_store()


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside ``DistributedDataParallel``, or ``model`` itself."""
    inner: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
    return inner


def average_over(world: World, values: Sequence[Tensor]) -> list[float]:
    """Mean of each scalar over ranks, as floats, in one message."""
    if not values:
        return []
    stacked = torch.stack([v.to(world.device, torch.float64) for v in values])
    return [float(v) for v in world.collectives.mean(stacked).tolist()]
