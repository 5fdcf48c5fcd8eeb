"""What a loss needs from other processes, as an object it is handed.

A loss never asks whether it runs distributed: it calls ``gather`` and ``mean`` on the object it was given. One process
passes :data:`LOCAL`; ``avssl_core.training.distributed`` provides the implementation over ``torch.distributed``. The
formula is therefore the same on one process and on many.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Collectives(Protocol):
    """Operations over all processes of a run."""

    @property
    def rank(self) -> int:
        """Index of this process, ``0 <= rank < world_size``."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    def gather(self, x: Tensor) -> Tensor:
        """Concatenate ``x`` of every process along dimension 0, in rank order, *with gradient*.

        ``(B, ...)`` on each process becomes ``(world_size * B, ...)``. The backward pass sums the gradients that all
        processes have for the rows of this one, so that after the usual averaging of parameter gradients the result
        equals that of one process on the joint batch, if the loss of the joint batch is the mean of the per-process
        losses.
        """

    def sum(self, x: Tensor) -> Tensor:
        """Sum over processes, without gradient."""

    def mean(self, x: Tensor) -> Tensor:
        """Mean over processes, without gradient."""


class LocalCollectives:
    """One process: every operation is the identity."""

    rank: int = 0
    world_size: int = 1

    def gather(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def sum(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def mean(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x


LOCAL: Collectives = LocalCollectives()
