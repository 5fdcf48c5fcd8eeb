"""Shots, and which stretches of a film become clips.

ACAV100M cuts films at shot boundaries (FFmpeg's ``scdet``), cuts ten seconds out of the middle of each shot that is
long enough, and keeps up to three of them that resemble each other least (MPEG-7 signatures, local search). The same
here with what needs no other program: boundaries where the histograms of neighbouring pictures differ, resemblance by
the signs of brightness differences. As in the release, the threshold rises by a fifth until there are enough shots, and
a film without a shot that is long enough gives its middle.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 16
PICTURES = 4  # of a clip, in its signature
SOUND_BANDS = 8
_RISE = 1.2  # of the threshold, as released
_SPANS = 9  # of time, in the signature of a sound


@dataclass(frozen=True)
class Stretch:
    """A part of a film, in seconds."""

    start_s: float
    length_s: float


def histogram_jumps(frames: Tensor) -> Tensor:
    """How much the colours change from each picture to the next.

    Args:
        frames: uint8 ``(T, 3, H, W)``.

    Returns:
        ``(T - 1,)``, in [0, 1]: half the L1 distance of the histograms of each channel, mean over channels.
    """
    T = len(frames)
    bins = frames.flatten(2).long() * BINS // 256  # (T, 3, H W)
    places = bins + BINS * torch.arange(3)[:, None] + 3 * BINS * torch.arange(T)[:, None, None]
    counts = torch.bincount(places.flatten(), minlength=T * 3 * BINS).view(T, 3, BINS)
    shares = counts.double() / max(bins.shape[2], 1)
    return (shares[1:] - shares[:-1]).abs().sum(dim=2).mean(dim=1) / 2


def find_shots(jumps: Tensor, *, fps: float, end_s: float, threshold: float, begin_s: float = 0.0) -> list[Stretch]:
    """Shots of a film.

    Args:
        jumps: between pictures at ``k / fps`` and ``(k + 1) / fps``.
        fps: pictures a second.
        end_s: end of the film, of pictures and sound.
        begin_s: their beginning.
        threshold: a jump above it is a boundary, in the middle between the two pictures.
    """
    cuts = [(k + 0.5) / fps for k in (jumps > threshold).nonzero()[:, 0].tolist()]
    edges = [begin_s, *(cut for cut in cuts if begin_s < cut < end_s), end_s]
    return [Stretch(begin, end - begin) for begin, end in itertools.pairwise(edges)]


def place_stretches(
    jumps: Tensor,
    *,
    fps: float,
    end_s: float,
    length_s: float,
    wanted: int,
    threshold: float,
    begin_s: float = 0.0,
) -> list[Stretch]:
    """Stretches of one length, each from the middle of a shot.

    Args:
        jumps: of :func:`histogram_jumps`, at ``fps``.
        fps: pictures a second.
        end_s: end of the film, of pictures and sound.
        length_s: of a stretch. A film that is no longer is one stretch, with its cuts.
        wanted: the threshold rises until there are so many, or no boundary is left.
        threshold: to begin with.
        begin_s: beginning of the film.

    Returns:
        At least one, in the order of time; there may be more than wanted.
    """
    if end_s - begin_s <= length_s:
        return [Stretch(begin_s, end_s - begin_s)]
    best: list[Stretch] = []
    while threshold < _RISE:  # at 1 no jump is left; once more, should the last step have passed over that
        shots = find_shots(jumps, fps=fps, end_s=end_s, threshold=threshold, begin_s=begin_s)
        long = [shot for shot in shots if shot.length_s >= length_s]
        best = max(best, long, key=len)
        if len(best) >= wanted or len(shots) == 1:
            break
        threshold *= _RISE
    return [Stretch(shot.start_s + (shot.length_s - length_s) / 2, length_s) for shot in best] or [
        Stretch((begin_s + end_s - length_s) / 2, length_s)
    ]


def picture_signature(frames: Tensor) -> Tensor:
    """What the pictures of a clip look like, in bits: is it brighter to the right?

    Args:
        frames: uint8 ``(T, 3, H, W)``, T >= 1.

    Returns:
        bool ``(PICTURES * 64,)``: an 8 × 8 field of signs for each of four evenly spaced pictures.
    """
    shown = torch.linspace(0, len(frames) - 1, 2 * PICTURES + 1)[1::2].round().long()
    grey = frames[shown].float().mean(dim=1, keepdim=True)  # (4, 1, H, W)
    small = F.adaptive_avg_pool2d(grey, (8, 9))[:, 0]  # (4, 8, 9)
    return (small[..., 1:] > small[..., :-1] + 0.5).flatten()  # less than half a grey level is no edge


def sound_signature(waveform: Tensor, *, n_fft: int = 512) -> Tensor:
    """What a clip sounds like, in bits: does each band get louder?

    Args:
        waveform: ``(L,)``, a few kHz.
        n_fft: samples of a frame.

    Returns:
        bool ``(64,)``: eight bands, eight steps in time.
    """
    missing = max(0, _SPANS * n_fft - len(waveform))
    frames = F.pad(waveform, (0, missing)).unfold(0, n_fft, n_fft // 2) * torch.hann_window(n_fft)
    power = torch.fft.rfft(frames).abs().square()[:, 1:]  # (frames, n_fft / 2)
    edges = np.unique(np.geomspace(1, power.shape[1], SOUND_BANDS + 1).round().astype(int))
    bands = torch.stack([power[:, a:b].sum(dim=1) for a, b in itertools.pairwise([0, *edges[1:].tolist()])])
    loud = F.adaptive_avg_pool1d(bands[None], _SPANS)[0].clamp_min(1e-6).log()  # (bands, 9)
    return (loud[:, 1:] > loud[:, :-1]).flatten()


def least_alike(similarity: np.ndarray, count: int) -> list[int]:
    """Items of which no two are alike: least sum of pairwise similarities, by swaps from a greedy start.

    Args:
        similarity: symmetric, ``(n, n)``.
        count: items to keep; all where there are no more.

    Returns:
        Positions, ascending. No single swap lowers the sum.
    """
    n = len(similarity)
    if count >= n:
        return list(range(n))
    chosen = [0]
    while len(chosen) < count:
        others = [item for item in range(n) if item not in chosen]
        chosen.append(min(others, key=lambda item: similarity[item, chosen].sum()))
    improved = True
    while improved:
        improved = False
        for place, new in itertools.product(range(count), range(n)):
            rest = chosen[:place] + chosen[place + 1 :]
            if new not in chosen and similarity[new, rest].sum() < similarity[chosen[place], rest].sum() - 1e-12:
                chosen[place], improved = new, True
    return sorted(chosen)
