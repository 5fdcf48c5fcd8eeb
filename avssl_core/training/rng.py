"""Randomness as a function of where a run stands, so that resuming cannot change it.

Nothing random is carried from one step to the next: the seed of every draw is a hash of (seed, step, micro-batch,
rank). A checkpoint therefore holds no generator state, and a run that was killed continues bit for bit (the
alternative, saving the state of every generator of every rank, breaks as soon as one library draws in another order).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from avssl_core.transforms import generator_for, mix

_AUGMENTATION, _GLOBAL = 0, 1  # streams: what the two uses of a step draw is unrelated


def step_generator(seed: int, step: int, *, micro: int = 0, rank: int = 0) -> torch.Generator:
    """A CPU generator for one micro-batch of one step on one rank.

    It lives on the CPU on every device, so that a run draws the same numbers on a GPU; the transforms draw there and
    move the few numbers they need.
    """
    return generator_for(seed, step, micro, rank, _AUGMENTATION)


def reseed_global(seed: int, step: int, *, micro: int = 0, rank: int = 0) -> None:
    """Seed torch's global generators, from which dropout draws (it accepts no generator of its own)."""
    torch.manual_seed(mix(seed, step, micro, rank, _GLOBAL) >> 1)  # takes 63 bits


@contextmanager
def preserved_global(device: torch.device) -> Iterator[None]:
    """Leave torch's global generators as they were found: training must not change what a caller draws afterwards."""
    devices = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
