"""Pyramidal motion statistics prediction (PMSP): where in a clip most moves, as a label that costs nothing.

IMRNet's first pretext task (section 2.2.3, algorithm 1). The codec's motion vectors are differentiated in space, which
cancels what the camera does and keeps the borders of what moves by itself; summed over a window of GOPs; and averaged
over the cells of a grid. The label is the cell with the largest mean. A pyramid of levels ``(s, t)`` has grids of
``s x s`` cells and ``t`` overlapping windows of ``T - t + 1`` GOPs: with ``s`` in {2, 3, 4} and ``t`` in {1, 3, 5}
there are 27 labels a clip.

The source does not say how a two-channel field is differentiated, how borders are padded, nor how cells are summed, and
its sums over time are signed, so that an oscillating thing cancels itself. The readings give different labels, hence
``operator``, ``signed`` and ``padding`` have no defaults: whoever makes labels says which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl_core.collectives import LOCAL, Collectives
from avssl_core.losses.nce import reduce_weighted, upcast

Level = tuple[int, int]  # (s, t): s x s cells, t windows
Operator = Literal["literal", "four_derivatives", "raw"]
Padding = Literal["zero", "replicate"]


@dataclass(frozen=True)
class PMSPLabels:
    """Labels of a batch; the keys of all three mappings are the levels ``(s, t)``.

    Attributes:
        labels: cell that moves most, ``row * s + column``, int64 ``(B, t)``; the first of equal ones.
        valid: whether anything moves in the window, bool ``(B, t)``. Where nothing does, the label is a meaningless 0.
        grids: the means of the cells, float64 ``(B, t, s, s)``, indexed by row and column.
    """

    labels: Mapping[Level, Tensor]
    valid: Mapping[Level, Tensor]
    grids: Mapping[Level, Tensor]

    @property
    def levels(self) -> tuple[Level, ...]:
        """All ``(s, t)``."""
        return tuple(self.labels)

    def restricted_to(self, clips: Tensor) -> PMSPLabels:
        """The same labels, valid only for the clips that ``clips``, bool ``(B,)``, admits.

        For training with both tasks: a clip whose P-frames were taken from elsewhere or put in another order has no
        use for the labels of its own motion.
        """
        valid = {level: mask & clips.to(mask.device)[:, None] for level, mask in self.valid.items()}
        return PMSPLabels(self.labels, valid, self.grids)


def pmsp_labels(
    motion: Tensor,
    num_gops: int,
    gop_size: int,
    *,
    operator: Operator,
    signed: bool,
    padding: Padding,
    spatial: Sequence[int] = (2, 3, 4),
    temporal: Sequence[int] = (1, 3, 5),
) -> PMSPLabels:
    """Labels of every level from the motion vectors of whole clips.

    Make them after cropping and flipping, so that cells refer to what the network sees, and before the GOPs are
    rearranged. One vector a block works too, but is another field, whose derivative is 0 on a block that moves alone
    and spreads over its neighbours: on coded clips of 64 to 128 pixels, a third of the labels or more differ from those
    of vectors painted per pixel. Paint them to compare with anybody.

    Args:
        motion: vectors (x, y) of each frame, per pixel or per block, ``(B, 2, num_gops * gop_size, H, W)``, floats in
            any unit; zero at I-frames.
        num_gops: ``T``.
        gop_size: frames of a GOP that ``motion`` holds, I-frame included if it does.
        operator: ``"literal"``: the derivative of x-motion along x and of y-motion along y, as algorithm 1 can be
            read; ``"four_derivatives"``: both components along both axes, which also sees shear; ``"raw"``: the
            vectors themselves, which mostly see the camera.
        signed: add vectors over the window and then take the length, as printed; else add the lengths.
        padding: what lies beyond the border: ``"zero"`` (every pan then draws a frame of motion around the picture) or
            ``"replicate"``. Without effect for ``"raw"``.
        spatial: grids ``s``. Cells are the bins ``[floor(i H / s), ceil((i + 1) H / s))``, which overlap by one row
            where ``s`` does not divide ``H``, so that their means compare fairly.
        temporal: numbers of windows ``t``, none above ``num_gops``.

    Raises:
        ValueError: if the shape is not as above, cells would be smaller than the map's own, there are fewer GOPs than
            windows, or an option is unknown.
    """
    _check_motion(motion, num_gops, gop_size, spatial, temporal)
    gops = _gop_sums(motion, num_gops, operator, signed=signed, padding=padding)  # (B, N, T, H, W)
    labels, valid, grids = {}, {}, {}
    for t in temporal:
        windows = gops.unfold(2, num_gops - t + 1, 1).sum(dim=-1)  # (B, N, t, H, W)
        magnitude = _length(windows)[:, 0]
        for s in spatial:
            grid = F.adaptive_avg_pool2d(magnitude, s)  # exactly the bins above
            largest, label = grid.flatten(2).max(dim=-1)
            grids[s, t], labels[s, t], valid[s, t] = grid, label, largest > 0
    levels = [(s, t) for s in spatial for t in temporal]
    return PMSPLabels(*({level: found[level] for level in levels} for found in (labels, valid, grids)))


def pmsp_loss(
    logits: Mapping[Level, Tensor],
    labels: PMSPLabels,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    collectives: Collectives = LOCAL,
) -> Tensor:
    """Cross-entropy at every window of every level that has a valid label (eq. 2.4).

    The equation is a sum: 27 terms a clip, ``9 (ln 4 + ln 9 + ln 16) = 57.2`` nats for an undecided network, 41 times
    the ``ln 4`` of CTP's one term. Added with the paper's weight of 1, CTP would hardly count; the default is therefore
    the mean over all valid terms of the batch, 2.12 nats at the start.

    Args:
        logits: for each level, ``(B, t, s * s)``.
        labels: of the same levels.
        reduction: ``"mean"`` over all valid terms or ``"sum"`` as printed.
        collectives: how to reach other processes, whose numbers of valid terms may differ.

    Returns:
        A scalar; 0, with gradient 0, if no label is valid.

    Raises:
        ValueError: for levels or shapes that do not match, or an unknown reduction.
    """
    if set(logits) != set(labels.levels) or not logits:
        raise ValueError(f"logits for levels {sorted(logits)} but labels for {sorted(labels.levels)}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"unknown reduction {reduction!r}; use 'mean' or 'sum'")
    terms, masks = [], []
    for level, label in labels.labels.items():
        x = logits[level]
        if x.shape != (*label.shape, level[0] ** 2):
            raise ValueError(
                f"level {level} needs logits (B, t, s * s) = {(*label.shape, level[0] ** 2)}, got {tuple(x.shape)}"
            )
        valid = labels.valid[level].to(x.device).flatten()
        losses = F.cross_entropy(upcast(x).flatten(0, 1), label.to(x.device).flatten(), reduction="none")
        terms.append(torch.where(valid, losses, 0))
        masks.append(valid)
    return reduce_weighted(torch.cat(terms), torch.cat(masks).sum(), reduction, collectives)


def _gop_sums(motion: Tensor, num_gops: int, operator: Operator, *, signed: bool, padding: Padding) -> Tensor:
    """Sums over each GOP's frames, ``(B, N, T, H, W)`` float64: ``N`` components, or one length if not ``signed``.

    Derivatives are linear, so that signed sums are taken first and differentiated once a GOP, not once a frame. Sums of
    float32 numbers are exact in float64: motion that cancels leaves 0 and not a rounding error that wins the argmax.
    """
    batch, channels, frames, height, width = motion.shape
    gops = motion.reshape(batch, channels, num_gops, frames // num_gops, height, width)
    if signed:
        return _components(gops.sum(dim=3, dtype=torch.float64), operator, padding)
    lengths = []
    for i in range(num_gops):  # one GOP at a time: float64 components of all frames would be eight times the input
        components = _components(gops[:, :, i].double(), operator, padding)  # (B, N, K, H, W)
        lengths.append(_length(components).sum(dim=2))
    return torch.stack(lengths, dim=2)


def _length(components: Tensor) -> Tensor:
    """``(B, N, ...)`` to ``(B, 1, ...)``. On a CPU 37 times as fast as ``vector_norm`` over this axis."""
    return components.square().sum(dim=1, keepdim=True).sqrt()


def _components(field: Tensor, operator: Operator, padding: Padding) -> Tensor:
    """What the length is taken of: the field ``(B, 2, F, H, W)``, or 2 or 4 of its derivatives."""
    if operator == "raw":
        return field
    if operator == "literal":
        return torch.cat([_prewitt(field[:, :1], -1, padding), _prewitt(field[:, 1:], -2, padding)], dim=1)
    if operator == "four_derivatives":
        return torch.cat([_prewitt(field, -1, padding), _prewitt(field, -2, padding)], dim=1)
    raise ValueError(f"unknown operator {operator!r}; use 'literal', 'four_derivatives' or 'raw'")


def _prewitt(field: Tensor, axis: int, padding: Padding) -> Tensor:
    """Prewitt derivative of ``(B, C, F, H, W)`` along ``axis`` (-1: x, -2: y), undivided.

    Difference of the two neighbours first, sum of three lines then: where all vectors are equal that is exactly 0,
    which a convolution, adding six products in some order, does not promise.
    """
    if padding not in ("zero", "replicate"):
        raise ValueError(f"unknown padding {padding!r}; use 'zero' or 'replicate'")
    padded = F.pad(field, (1, 1, 1, 1, 0, 0), mode="constant" if padding == "zero" else "replicate")
    size, across = field.shape[axis], -3 - axis
    difference = padded.narrow(axis, 2, size) - padded.narrow(axis, 0, size)
    lines = field.shape[across]
    return sum((difference.narrow(across, i, lines) for i in (1, 2)), start=difference.narrow(across, 0, lines))


def _check_motion(
    motion: Tensor, num_gops: int, gop_size: int, spatial: Sequence[int], temporal: Sequence[int]
) -> None:
    if motion.ndim != 5 or motion.shape[1] != 2 or not motion.is_floating_point():
        raise ValueError(f"expected float motion (B, 2, T * K, H, W), got {tuple(motion.shape)} {motion.dtype}")
    if num_gops < 1 or gop_size < 1 or motion.shape[2] != num_gops * gop_size:
        raise ValueError(f"{motion.shape[2]} frames are not {num_gops} GOPs of {gop_size}: cut the clip at GOP borders")
    if not temporal or min(temporal) < 1 or max(temporal) > num_gops:
        raise ValueError(
            f"{num_gops} GOPs have between 1 and {num_gops} windows, got temporal={tuple(temporal)}: leave out the "
            "levels above"
        )
    if not spatial or min(spatial) < 1 or max(spatial) > min(motion.shape[3:]):
        raise ValueError(
            f"a map of {motion.shape[3]} x {motion.shape[4]} vectors cannot fill grids of spatial={tuple(spatial)} "
            "cells a side: leave out the finer levels, or paint the vectors per pixel"
        )
