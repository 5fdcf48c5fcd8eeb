"""Few tokens that stand for many: the prototypes (landmarks) through which attention is approximated.

Orthoformer (Patrick et al., NeurIPS 2021, section 3.3) takes tokens that are as orthogonal to each other as possible:
greedily the one whose largest absolute cosine to those already taken is smallest. Random tokens and means of segments
are what it is compared with. The text chooses from queries and keys; the release is given the keys and ignores them.
Nothing here carries a gradient: prototypes are constants, in the release and here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Selection = Literal["orthogonal", "random", "segment-means"]
SegmentOrder = Literal["time", "space"]


def most_orthogonal_subset(
    x: Tensor,
    num: int,
    *,
    first: Tensor | None = None,
    candidates: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Indices of ``num`` rows chosen one after the other, each as orthogonal to the earlier ones as can be had.

    ``O(num * n * d)`` arithmetic in ``num`` dependent steps, and one number a candidate to remember. Neither the length
    nor the sign of a row matters, only its line. A row of zeros is orthogonal to everything and is taken early.

    Args:
        x: vectors, ``(B, n, d)``.
        num: how many, from 1 to the number of candidates.
        first: row to start from, ``(B,)`` int64, counted within the candidates. Drawn with ``generator`` if absent;
            without either, row 0.
        candidates: rows to choose from, ``(c,)`` int64 indices into ``x``, the same for the whole batch, all rows if
            absent. The paper draws a fixed multiple of ``num``, so that the cost no longer depends on ``n``.
        generator: source of the first row, a CPU generator.

    Returns:
        ``(B, num)`` int64 indices into ``x``, in the order in which they were taken. No row of the candidates is
        taken twice.

    Raises:
        ValueError: for another shape of ``x``, or a ``num`` that the candidates cannot provide.
    """
    if x.ndim != 3:
        raise ValueError(f"expected vectors (B, n, d), got shape {tuple(x.shape)}")
    pool = x.detach() if candidates is None else x.detach()[:, candidates]
    batch, available, _ = pool.shape
    check_number(num, available)
    if first is None:
        first = _draw_first(batch, available, generator)
    with torch.no_grad(), without_autocast(x):
        chosen = _greedy(F.normalize(pool.float(), dim=2), first.to(x.device), num)
    return chosen if candidates is None else candidates.to(x.device)[chosen]


def _draw_first(batch: int, available: int, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return torch.zeros(batch, dtype=torch.int64)
    return torch.randint(available, (batch,), generator=generator)


def _greedy(unit: Tensor, first: Tensor, num: int) -> Tensor:
    """Farthest-point rule on lines: unit vectors ``(B, n, d)`` and starts ``(B,)`` to indices ``(B, num)``."""
    batch = torch.arange(len(unit), device=unit.device)
    largest = torch.zeros_like(unit[..., 0])  # largest absolute cosine to those taken, (B, n)
    order = torch.empty(len(unit), num, dtype=torch.int64, device=unit.device)
    current = first
    for step in range(num):
        order[:, step] = current
        cosine = torch.bmm(unit, unit[batch, current].unsqueeze(2)).squeeze(2).abs()  # (B, n)
        torch.maximum(largest, cosine, out=largest)
        largest[batch, current] = torch.inf  # never taken again
        current = largest.argmin(dim=1)
    return order


def random_subset(x: Tensor, num: int, *, generator: torch.Generator) -> Tensor:
    """Indices ``(B, num)`` int64 of different rows of ``x`` ``(B, n, d)``, drawn evenly for each element apart.

    Raises:
        ValueError: for a ``num`` that the rows cannot provide.
    """
    batch, available, _ = x.shape
    check_number(num, available)
    return torch.rand(batch, available, generator=generator).argsort(dim=1)[:, :num].to(x.device)


def segment_means(x: Tensor, num: int, *, num_frames: int = 1, order: SegmentOrder = "time") -> Tensor:
    """Means of ``num`` consecutive segments of tokens: the landmarks of Nystromformer.

    Where ``num`` does not divide ``n``, the earlier segments hold ``n // num`` tokens and the later ones one more.

    Args:
        x: tokens ``(..., n, d)``, frame by frame.
        num: number of segments, from 1 to ``n``.
        num_frames: frames that the tokens form.
        order: order that is cut into segments: ``"time"`` as the tokens lie, so that a segment is part of a frame;
            ``"space"`` with the frame running fastest, so that it is a place through all frames (the release's).

    Returns:
        ``(..., num, d)``.

    Raises:
        ValueError: for a ``num`` that the tokens cannot provide, or tokens that do not form the frames.
    """
    n = x.shape[-2]
    check_number(num, n)
    if n % num_frames:
        raise ValueError(f"{n} tokens do not form {num_frames} frames of equal size")
    if order == "space":
        x = torch.unflatten(x, -2, (num_frames, -1)).transpose(-3, -2).flatten(-3, -2)
    short = n // num
    few = num - n % num  # segments of the smaller size
    parts = [torch.unflatten(x[..., : few * short, :], -2, (few, short)).mean(dim=-2)]
    if few < num:
        parts.append(torch.unflatten(x[..., few * short :, :], -2, (num - few, short + 1)).mean(dim=-2))
    return torch.cat(parts, dim=-2)


def check_number(num: int, available: int) -> None:
    """Raise a ``ValueError`` unless ``num`` tokens can be had from ``available``."""
    if not 1 <= num <= available:
        raise ValueError(f"cannot take {num} prototypes from {available} tokens; choose a number from 1 to {available}")


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Where ``x`` lies, matrix products keep their precision in this block; on ``meta`` there is none to keep."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
