"""Which channels of a layer suffice: extremal perturbations at an intermediate activation (section 5 of the paper).

A mask holds one number a channel and multiplies the activation (eq. 9): no smooth family is needed, and the area is the
number of channels kept. Nothing of this is in the authors' release, and the paper states neither the optimiser nor the
start: here as at the input, gradient ascent with averaged gradients from a mask of ones, all of them equal until the
network tells them apart. On a linear tail this finds the best channels exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avssl_core.attribution.area import CountRegulariser, Reduction
from avssl_core.attribution.networks import frozen
from avssl_core.attribution.rewards import Scorer, simple_reward

PAPER_COUNTS = (1, 5, 10, 20, 25, 35, 40, 50, 60, 70, 80, 90, 100, 150, 200, 250, 300, 350, 400, 450, 528)


@dataclass(frozen=True)
class ChannelMasks:
    """What :func:`channel_attribution` found for ``B`` activations, ``A`` counts and ``K`` channels.

    Attributes:
        masks: in [0, 1], nearly binary, ``(B, A, K)``.
        scores: of the target with those channels, ``(B, A)``.
        original: score with all channels, ``(B,)``.
        rewards: before each step, ``(B, A, T)``.
    """

    masks: Tensor
    scores: Tensor
    original: Tensor
    rewards: Tensor


def channel_attribution(
    tail: nn.Module,
    activations: Tensor,
    targets: Sequence[int] | Tensor,
    counts: Sequence[int],
    *,
    iterations: int = 300,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    dampening: float = 0.9,
    area_weight: float = 1500.0,
    ramp: int = 150,
    reduction: Reduction = "sum",
    max_evaluations: int | None = None,
) -> ChannelMasks:
    """Channels that keep the target's score highest, for each number of channels (eqs. 9 and 10).

    Masks start at ones and are optimised in one batch of ``B * A``. A count of all channels leaves them
    near ones.

    Args:
        tail: what follows the layer, to scores ``(N, C)`` or maps ``(N, C, ...)``; see :func:`split_model_at`. Frozen
            meanwhile and restored.
        activations: of the layer, ``(B, K, ...)``.
        targets: class of each, ``(B,)``.
        counts: numbers of channels to keep, from 0 to ``K``.
        iterations: steps of gradient ascent.
        learning_rate: of it.
        momentum: weight of earlier gradients.
        dampening: as momentum, it makes an average of gradients.
        area_weight: reached linearly from 0 after ``ramp`` steps, then constant.
        ramp: see there.
        reduction: ``"sum"`` over channels as printed, ``"mean"``.
        max_evaluations: activations that the tail sees at a time; all if ``None``.

    Raises:
        ValueError: for shapes that do not fit together, or counts out of range.
    """
    B, K = activations.shape[:2]
    classes = torch.as_tensor(targets, dtype=torch.long, device=activations.device)
    if classes.shape != (B,) or not counts or any(not 0 <= count <= K for count in counts):
        raise ValueError(f"need {B} targets and counts in [0, {K}], got {tuple(classes.shape)} and {list(counts)}")
    scorer, labels = Scorer(tail, limit=max_evaluations), classes.repeat_interleave(len(counts))
    regulariser = CountRegulariser(list(counts) * B, reduction=reduction).to(activations.device)
    masks = activations.new_ones(B, len(counts), K)
    velocity, rewards = torch.zeros_like(masks), []
    with frozen(tail):
        original = scorer.scores(activations, classes)
        for t in range(iterations):
            leaf = masks.detach().requires_grad_()
            masked = _masked(leaf, activations.detach())
            reward, gradient = scorer.rewards(masked, labels, simple_reward)
            pull = area_weight * min(1.0, (t + 1) / max(1, ramp)) * regulariser(leaf.flatten(0, 1))
            (step,) = torch.autograd.grad([masked, pull], leaf, [gradient, -torch.ones_like(pull)])
            velocity.mul_(momentum if t else 0).add_(step, alpha=1 - dampening if t else 1)
            masks.add_(velocity, alpha=learning_rate).clamp_(0, 1)
            rewards.append(reward)
        scores = scorer.scores(_masked(masks, activations), labels)
    history = torch.stack(rewards, 1) if rewards else masks.new_empty(len(labels), 0)
    return ChannelMasks(masks, scores.reshape(B, -1), original, history.reshape(B, len(counts), iterations))


def _masked(masks: Tensor, activations: Tensor) -> Tensor:
    """``(B, A, K)`` and ``(B, K, ...)`` to ``(B * A, K, ...)``."""
    spread = masks.reshape(*masks.shape, *[1] * (activations.ndim - 2))
    return (spread * activations[:, None]).flatten(0, 1)


def channel_heat_map(masks: Tensor, activations: Tensor) -> Tensor:
    """Where the kept channels are active (eq. 11): ``(B, K)`` and ``(B, K, ...)`` to ``(B, 1, ...)``."""
    if masks.shape != activations.shape[:2]:
        raise ValueError(f"masks {tuple(masks.shape)} do not fit activations {tuple(activations.shape)}: need (B, K)")
    spread = masks.reshape(*masks.shape, *[1] * (activations.ndim - 2))
    return (spread * activations).sum(1, keepdim=True)


def class_channel_profile(masks: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean mask of each class (section 5.2).

    Args:
        masks: at each picture's optimal area, ``(N, K)``.
        labels: int64 ``(N,)``.
        num_classes: ``C``.

    Returns:
        ``(C, K)`` in [0, 1]; not a number for classes without pictures. The arg-max of a row is the class's channel.

    Raises:
        ValueError: for labels that are not ``N`` classes.
    """
    if labels.shape != masks.shape[:1] or (
        len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes
    ):
        raise ValueError(f"need {len(masks)} labels in [0, {num_classes - 1}], got {labels.tolist()}")
    sums = masks.new_zeros(num_classes, masks.shape[1]).index_add_(0, labels, masks)
    return sums / torch.bincount(labels, minlength=num_classes)[:, None].to(masks)
