"""Turning and reversing compressed clips: the pretext tasks of decoded video, carried over to vectors and residuals.

Rotation prediction and the arrow of time were made for pictures. On a compressed clip the vectors have to follow: a
quarter turn of the picture turns every displacement, and a film shown backwards moves the other way.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quarter_turns(x: Tensor, turns: Tensor, *, vectors: bool = False) -> Tensor:
    """Rotate each clip of a batch counter-clockwise by a number of quarter turns.

    Args:
        x: square maps ``(B, C, T, S, S)``.
        turns: 0 to 3 for each clip, ``(B,)``.
        vectors: ``x`` holds displacements ``(B, 2, T, S, S)``, x to the right and y down, which turn with the picture.

    Raises:
        ValueError: maps that are not square, vectors that do not have two channels, or another number of clips.
    """
    if x.ndim != 5 or x.shape[-1] != x.shape[-2] or len(turns) != len(x) or (vectors and x.shape[1] != 2):
        raise ValueError(
            f"expected square maps (B, C, T, S, S) of {len(turns)} clips{', C = 2' if vectors else ''}, got "
            f"{tuple(x.shape)}"
        )
    out = x.clone()
    for k in (1, 2, 3):
        chosen = (turns == k).nonzero()[:, 0].to(x.device)
        if len(chosen):
            turned = torch.rot90(x[chosen], k, dims=(-2, -1))
            out[chosen] = _turn_vectors(turned, k) if vectors else turned
    return out


def _turn_vectors(field: Tensor, turns: int) -> Tensor:
    """One counter-clockwise quarter turn takes right to up and down to right: (x, y) becomes (y, −x)."""
    for _ in range(turns):
        field = torch.stack([field[:, 1], -field[:, 0]], dim=1)
    return field


def reverse_order(x: Tensor, backwards: Tensor, *, differences: bool = False) -> Tensor:
    """Show some clips of a batch backwards.

    The reversed stream is not quite what an encoder would make of the reversed film: it would search for other vectors,
    and a group begins with its intra picture whichever way the film runs. No decoder can mend that without decoding.

    Args:
        x: intra pictures, vectors or residuals, ``(B, C, T, H, W)``.
        backwards: which clips, bool ``(B,)``.
        differences: ``x`` says what changes from one picture to the next (vectors, residuals), so that its sign turns,
            too.

    Raises:
        ValueError: another number of clips.
    """
    if x.ndim != 5 or len(backwards) != len(x):
        raise ValueError(f"expected (B, C, T, H, W) with B = {len(backwards)}, got {tuple(x.shape)}")
    reversed_ = -x.flip(2) if differences else x.flip(2)
    return torch.where(backwards.to(x.device)[:, None, None, None, None], reversed_, x)
