"""Optimisers and their parameter groups.

A group may carry ``lr_scale``: its learning rate is that share of the scheduled one (fine-tuning moves a pre-trained
encoder ten times slower than its new head).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from avssl_core.training.config import FitConfig

ParamGroup = dict[str, Any]


def parameter_groups(
    model: nn.Module, *, weight_decay: float, decay_norm_bias: bool = True, lr_scale: float = 1.0
) -> list[ParamGroup]:
    """Trainable parameters of ``model``, split by whether they are decayed.

    Args:
        model: frozen parameters (``requires_grad=False``) are left out.
        weight_decay: of the decayed group.
        decay_norm_bias: whether parameters with at most one dimension (biases, scales of norms) are decayed as well.
        lr_scale: share of the scheduled learning rate that these parameters get.

    Returns:
        One or two groups for :func:`build_optimiser`.

    Raises:
        ValueError: there is nothing to train.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(f"{type(model).__name__} has no parameter with requires_grad=True: there is nothing to train")
    decayed = [p for p in trainable if decay_norm_bias or p.ndim > 1]
    free = [p for p in trainable if not decay_norm_bias and p.ndim <= 1]
    groups = ((decayed, weight_decay), (free, 0.0))
    return [{"params": ps, "weight_decay": decay, "lr_scale": lr_scale} for ps, decay in groups if ps]


def build_optimiser(config: FitConfig, groups: Sequence[ParamGroup]) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW, as ``config`` says; groups without ``weight_decay`` get that of ``config``."""
    groups = [dict(group) for group in groups]
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    betas = (config.momentum, config.beta2)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, weight_decay=config.weight_decay)


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set ``lr`` times ``lr_scale`` in every group."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def scale_lr(lr: float, *, batch_size: int, base_batch_size: int) -> float:
    """The linear scaling rule: a batch ``k`` times larger takes ``k`` times the rate (https://arxiv.org/abs/1706.02677,
    2.1).

    GDT's 0.01 for 8 videos becomes 0.64 for 512. The rule needs a warm-up, and holds for SGD; for AdamW a square root
    is usual.
    """
    if batch_size < 1 or base_batch_size < 1:
        raise ValueError(f"batch sizes must be positive, got {batch_size} and {base_batch_size}")
    return lr * batch_size / base_batch_size
