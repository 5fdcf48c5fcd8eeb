"""Degraded inputs: frames and sounds with less detail at the same size, to ask what a network can do without it.

SeLaVi (https://arxiv.org/abs/2006.13662, figure 2 and appendix A.5) shrinks the frames of its test videos by 4, 8 and
16 with nearest neighbours, and enlarges them again; the sound is left alone. :func:`hold_samples` is the mirrored
experiment, which the paper lacks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def degrade_nearest(frames: Tensor, factor: int) -> Tensor:
    """Shrink pictures by ``factor`` and enlarge them again, both by nearest neighbours.

    Args:
        frames: any dtype, ``(..., H, W)``.
        factor: side of the squares that get one value, the one in their middle (of an even number the lower right of
            the four, as in torch's nearest-exact rule); 1 changes nothing.

    Returns:
        Of the same shape; squares at the right and lower edge are cut where ``factor`` does not divide the size.

    Raises:
        ValueError: for a factor below 1 or above the shorter side, or fewer than two axes.
    """
    if frames.ndim < 2 or not 1 <= factor <= min(frames.shape[-2:]):
        raise ValueError(f"factor must lie in [1, shorter side], got {factor} for frames {tuple(frames.shape)}")
    rows, columns = (_held(size, factor).to(frames.device) for size in frames.shape[-2:])
    return frames.index_select(-2, rows).index_select(-1, columns)


def hold_samples(waveform: Tensor, factor: int) -> Tensor:
    """Keep every ``factor``-th sample and hold it: nearest neighbours in time, with all the aliasing they bring.

    Args:
        waveform: ``(..., L)``.
        factor: samples that get one value; 1 changes nothing.

    Raises:
        ValueError: for a factor below 1 or above the length.
    """
    if waveform.ndim < 1 or not 1 <= factor <= waveform.shape[-1]:
        raise ValueError(f"factor must lie in [1, samples], got {factor} for a waveform {tuple(waveform.shape)}")
    return waveform.index_select(-1, _held(waveform.shape[-1], factor).to(waveform.device))


def _held(length: int, factor: int) -> Tensor:
    """For every place, the place whose value it gets: ``(length,)``."""
    places = torch.arange(length)
    return (places // factor * factor + factor // 2).clamp(max=length - 1)
