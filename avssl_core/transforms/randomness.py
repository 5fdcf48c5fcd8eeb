"""Random draws as pure functions: a generator for every (seed, epoch, index, …).

Nothing in this package draws from a hidden global generator. What must be the same after a resume, in another worker
or on another number of processes is drawn from ``generator_for(seed, epoch, index)``; what belongs to a training step
is drawn from a generator that the caller passes.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def mix(*path: int) -> int:
    """Hash integers into 64 well-spread bits (the finaliser of SplitMix64, applied along the path).

    Neighbouring paths give unrelated values, and the order matters: ``mix(0, 1) != mix(1, 0)``.
    """
    state = 0x9E3779B97F4A7C15
    for value in path:
        state = (state ^ (int(value) & _MASK)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state = (state ^ (state >> 31)) + 0x9E3779B97F4A7C15 & _MASK
    return state


def generator_for(*path: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator that depends on nothing but ``path``, e.g. ``generator_for(seed, epoch, index)``."""
    # The CPU generator (MT19937) reads 32 bits of its seed: hand it bits that have been mixed already.
    return torch.Generator(device=device).manual_seed(mix(*path) >> 32)


def uniform(rows: int, columns: int, *, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw ``(rows, columns)`` numbers from U[0, 1) with ``generator`` and move them to ``device``.

    The draw happens where the generator lives. With a CPU generator a batch on a GPU therefore gets the same parameters
    as the batch on the CPU.
    """
    return torch.rand(rows, columns, generator=generator, device=generator.device).to(device)
