"""Correspondence type prediction (CTP): were these P-frames tampered with, and how?

IMRNet's second pretext task (section 2.2.4). The I-frames of a clip stay; its motion vectors and residuals stay too
(aligned), are taken from another clip (random), come in another order of GOPs (shuffle), or begin somewhere else and
wrap around (shift). To tell the types apart a network has to relate what it sees to how that moves, over the whole clip
and GOP by GOP. The transformation belongs to the *input*: behind the first lateral connection the streams are mixed.

A rotation is also a permutation. A shuffle here is never one, nor the identity, so that no clip has two right answers;
4 of the 119 other orders of five GOPs are excluded by that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl_core.collectives import LOCAL, Collectives
from avssl_core.losses.nce import reduce_anchors, upcast

CTPType = Literal["aligned", "random", "shuffle", "shift"]
CTP_TYPES: tuple[CTPType, ...] = get_args(CTPType)  # a label is an index into these
BINARY_TYPES = CTP_TYPES[:2]
_ALIGNED, _RANDOM, _SHUFFLE, _SHIFT = range(4)
MIN_GOPS_TO_SHUFFLE = 3  # every order of two is a rotation


@dataclass(frozen=True)
class CTPDraw:
    """What happens to the P-frames of each clip of a batch; apply it to motion and to residuals alike.

    Attributes:
        label: index into :data:`CTP_TYPES`, int64 ``(B,)``.
        permutation: GOP ``k`` of the result is GOP ``permutation[:, k]`` of the donor, int64 ``(B, T)``.
        donor: clip whose P-frames are taken: the clip itself, or another for "random", int64 ``(B,)``.
    """

    label: Tensor
    permutation: Tensor
    donor: Tensor

    @property
    def aligned(self) -> Tensor:
        """Clips that stay as they are, bool ``(B,)``: those whose own motion statistics may be asked for."""
        return self.label == _ALIGNED


def draw_ctp(batch: int, num_gops: int, generator: torch.Generator, *, binary: bool = False) -> CTPDraw:
    """Draw a type for each clip, all equally likely, and what it needs.

    Donors are a derangement of the whole batch (a random single cycle), of which the "random" clips use their part: no
    clip is its own donor and none is donor twice.

    Args:
        batch: clips ``B``, at least 2: a donor must be another one.
        num_gops: GOPs ``T`` of a clip.
        generator: a CPU generator; the draw is a function of its state.
        binary: only "aligned" and "random", the paper's ablation.

    Raises:
        ValueError: for a batch of 1, or too few GOPs for a type to exist (shuffle needs 3, shift 2).
    """
    if batch < 2:
        raise ValueError(f"'random' takes P-frames from another clip, but the batch has {batch}: use at least 2")
    if num_gops < 1 or (not binary and num_gops < MIN_GOPS_TO_SHUFFLE):
        raise ValueError(
            f"{num_gops} GOP(s) cannot be shuffled, since every order of one or two is a rotation: use at least "
            f"{MIN_GOPS_TO_SHUFFLE}, or binary=True, which needs 1"
        )
    types = BINARY_TYPES if binary else CTP_TYPES
    label = torch.randint(len(types), (batch,), generator=generator)
    clips = torch.randperm(batch, generator=generator)
    cycle = torch.empty_like(clips).index_copy_(0, clips, clips.roll(1))
    donor = torch.where(label == _RANDOM, cycle, torch.arange(batch))
    permutation = torch.stack([_draw_order(int(each), num_gops, generator) for each in label])
    return CTPDraw(label, permutation, donor)


def apply_ctp(draw: CTPDraw, x: Tensor, num_gops: int) -> Tensor:
    """Rearrange the P-frames of a batch.

    Args:
        draw: for ``B`` clips of ``num_gops`` GOPs.
        x: motion vectors or residuals, ``(B, C, T * p, H, W)``: GOP after GOP, ``p`` frames each.
        num_gops: ``T``.

    Returns:
        A tensor like ``x``; frames keep their order within a GOP.

    Raises:
        ValueError: if ``x`` does not hold ``B`` clips of ``T`` GOPs.
    """
    batch, gops = draw.permutation.shape
    if x.ndim != 5 or x.shape[0] != batch or gops != num_gops or x.shape[2] % num_gops:
        raise ValueError(
            f"the draw is for {batch} clips of {gops} GOPs, but x {tuple(x.shape)} should be (B, C, T * p, H, W) with "
            f"T = {num_gops}"
        )
    per_gop = x.shape[2] // num_gops
    frames = draw.permutation[:, :, None] * per_gop + torch.arange(per_gop)  # (B, T, p)
    clips = draw.donor[:, None].to(x.device)
    return x.transpose(1, 2)[clips, frames.flatten(1).to(x.device)].transpose(1, 2)


def ctp_loss(
    logits: Tensor,
    label: Tensor,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    collectives: Collectives = LOCAL,
) -> Tensor:
    """Cross-entropy of the type (eq. 2.5): ``ln 4`` for an undecided network, ``ln 2`` in the binary case.

    Args:
        logits: ``(B, 4)``, or ``(B, 2)`` in the binary case.
        label: :attr:`CTPDraw.label`.
        reduction: ``"mean"`` over clips, or ``"sum"`` as printed; see
            :func:`~avssl_core.losses.motion_statistics.pmsp_loss` on how the two tasks compare.
        collectives: how to reach other processes.

    Raises:
        ValueError: for shapes that do not match, or an unknown reduction.
    """
    if logits.ndim != 2 or label.shape != logits.shape[:1]:
        raise ValueError(f"expected logits (B, types) and labels (B,), got {tuple(logits.shape)}, {tuple(label.shape)}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"unknown reduction {reduction!r}; use 'mean' or 'sum'")
    losses = F.cross_entropy(upcast(logits), label.to(logits.device), reduction="none")
    return reduce_anchors(losses, reduction, collectives)


def is_rotation(order: Tensor) -> bool:
    """Whether an order ``(T,)`` only begins elsewhere; the identity counts as a rotation by 0."""
    return bool(torch.equal((order - order[0]) % len(order), torch.arange(len(order))))


def _draw_order(label: int, num_gops: int, generator: torch.Generator) -> Tensor:
    """Order of the GOPs for a type, uniform among those that are possible."""
    identity = torch.arange(num_gops)
    if label == _SHIFT:
        return identity.roll(-int(torch.randint(1, num_gops, (), generator=generator)))
    order = identity
    while label == _SHUFFLE and is_rotation(order):
        order = torch.randperm(num_gops, generator=generator)
    return order
