"""Fine-tuning: train an encoder with a linear classifier on its pooled feature (GDT, protocol 1).

The paper: SGD, weight decay 5e-3, learning rate 2.5e-3 warmed up to 2e-2 in two epochs, twelve epochs, times 0.05 at
epochs 6 and 10, batch 32. The release moves the backbone ten times slower than the head, starts the head orthogonal,
averages logits instead of probabilities, and reports the best epoch *on the test fold*. Here both averages are offered,
and the figure is that of the last epoch: choosing by the test set is not an evaluation.

The same function gives the supervised ceiling: pass a freshly initialised encoder and ``backbone_lr_scale=1``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl_core.encoders import Encoder
from avssl_core.evaluation.features import extract_features
from avssl_core.evaluation.labels import Labels
from avssl_core.evaluation.scores import ProbeResult, score_predictions
from avssl_core.training import FitConfig, FitResult, World, fit, parameter_groups
from avssl_core.training.logs import OnLog
from avssl_core.transforms.randomness import generator_for

Prepare = Callable[[Any, torch.Generator], tuple[Tensor, Tensor]]
Average = Literal["probability", "logit"]


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of :func:`finetune`; the defaults are the paper's, except that the backbone is ten times slower.

    Attributes:
        epochs: passes over the training set.
        lr: learning rate of the head, after the warm-up.
        backbone_lr_scale: the encoder's share of it (release 0.1, text 1).
        warmup_epochs: epochs of linear warm-up.
        warmup_from: where that starts, as a share of ``lr``.
        milestones: epochs, separated by commas, at which the rate is multiplied by ``gamma``; empty: constant.
        gamma: that factor.
        optimiser: ``"sgd"`` or ``"adamw"``.
        momentum: of SGD; first beta of AdamW.
        weight_decay: on all parameters.
        precision: ``"float32"`` or ``"bf16"``.
        seed: of head, dropout and whatever ``prepare`` draws.
    """

    epochs: int = 12
    lr: float = 2e-2
    backbone_lr_scale: float = 0.1
    warmup_epochs: int = 2
    warmup_from: float = 0.125
    milestones: str = "6,10"
    gamma: float = 0.05
    optimiser: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-3
    precision: Literal["float32", "bf16"] = "float32"
    seed: int = 0

    def to_fit(self, steps_per_epoch: int) -> FitConfig:
        """The same schedule in optimiser steps."""
        milestones = [int(part) * steps_per_epoch for part in self.milestones.split(",") if part.strip()]
        return FitConfig(
            steps=self.epochs * steps_per_epoch,
            lr=self.lr,
            optimiser=self.optimiser,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            warmup_steps=self.warmup_epochs * steps_per_epoch,
            warmup_from=self.warmup_from,
            schedule="multistep" if milestones else "constant",
            milestones=",".join(map(str, milestones)),
            gamma=self.gamma,
            precision=self.precision,
            log_every=steps_per_epoch,
            checkpoint_every=steps_per_epoch,
            seed=self.seed,
        )


class Classifier(nn.Module):
    """An encoder and a linear layer on its pooled feature, started orthogonal with zero bias."""

    def __init__(self, encoder: nn.Module, num_classes: int, *, seed: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.encoder = encoder
        self.head = nn.Linear(cast(Encoder, encoder).dim, num_classes)
        nn.init.orthogonal_(self.head.weight, generator=generator_for(seed))
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs of the encoder to logits ``(B, num_classes)``."""
        logits: Tensor = self.head(self.encoder(x))
        return logits


def finetune(
    encoder: nn.Module,
    batches: Iterable[Any] | Callable[[int], Iterator[Any]],
    *,
    num_classes: int,
    steps_per_epoch: int,
    config: FinetuneConfig | None = None,
    prepare: Prepare | None = None,
    device: str | torch.device = "cpu",
    run_dir: str | None = None,
    on_log: OnLog | None = None,
    world: World | None = None,
) -> tuple[Classifier, FitResult]:
    """Train a copy of ``encoder`` with a new linear classifier.

    Args:
        encoder: any encoder with ``dim``; it is copied, the original keeps its weights.
        batches: either an iterable that can be gone through again each epoch (a list, a ``DataLoader``), or a function
            of the first step that returns an endless iterator (see :func:`avssl_core.training.fit`,
            :func:`tensor_batches`).
        num_classes: width of the classifier.
        steps_per_epoch: batches an epoch; the schedule counts in it.
        config: settings; None takes the defaults.
        prepare: ``(batch, generator) -> (inputs, class indices)`` on the device, augmentation included. Default: a
            batch is that pair.
        device: where to train; ignored when ``world`` is given.
        run_dir: gets checkpoints and logs; a killed run continues from there.
        on_log: called with each line of the log (one an epoch).
        world: several processes.

    Returns:
        The classifier after the last epoch, in evaluation mode, and the history of its training.

    Raises:
        ValueError: if an epoch of ``batches`` is empty or it cannot be repeated, or labels are no class indices.
    """
    config = config or FinetuneConfig()
    model = Classifier(copy.deepcopy(encoder).requires_grad_(True), num_classes, seed=config.seed)
    source = batches if callable(batches) else repeat_epochs(batches)

    def loss_fn(module: nn.Module, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = batch if prepare is None else prepare(batch, generator)
        _check_classes(y, num_classes)
        logits = module(x).float()
        return F.cross_entropy(logits, y), {"accuracy": (logits.argmax(dim=1) == y).float().mean()}

    def groups_of(module: nn.Module) -> list[dict[str, Any]]:
        classifier = cast(Classifier, module)
        decay = config.weight_decay
        return [
            *parameter_groups(classifier.encoder, weight_decay=decay, lr_scale=config.backbone_lr_scale),
            *parameter_groups(classifier.head, weight_decay=decay),
        ]

    result = fit(
        model,
        source,
        loss_fn,
        config.to_fit(steps_per_epoch),
        device=device,
        run_dir=run_dir,
        on_log=on_log,
        world=world,
        context={"num_classes": num_classes, "backbone_lr_scale": config.backbone_lr_scale},
        groups_of=groups_of,
    )
    return model.eval(), result


def _check_classes(y: Tensor, num_classes: int) -> None:
    if y.dtype != torch.int64 or y.ndim != 1:
        raise ValueError(f"labels must be int64 class indices (B,), got {y.dtype} of shape {tuple(y.shape)}")
    if y.device.type == "cpu" and len(y) and not 0 <= int(y.min()) <= int(y.max()) < num_classes:
        raise ValueError(f"labels must lie in [0, {num_classes}), got {int(y.min())} to {int(y.max())}")


def repeat_epochs(batches: Iterable[Any]) -> Callable[[int], Iterator[Any]]:
    """An endless run through ``batches`` again and again, as :func:`avssl_core.training.fit` wants it.

    Raises:
        ValueError: while iterating, if an epoch is empty (an exhausted generator: pass a list or a loader).
    """

    def from_step(start: int) -> Iterator[Any]:
        def endless() -> Iterator[Any]:
            while True:
                count = 0
                for batch in batches:
                    count += 1
                    yield batch
                if not count:
                    raise ValueError("batches gave nothing: pass a list, a DataLoader or a function of the first step")

        return islice(endless(), start, None)

    return from_step


def tensor_batches(x: Tensor, y: Tensor, *, batch_size: int, seed: int) -> Callable[[int], Iterator[Any]]:
    """Shuffled batches of tensors in memory; the order is a function of (seed, epoch).

    Args:
        x: inputs ``(N, ...)``.
        y: labels ``(N, ...)``.
        batch_size: items a batch, at most N; what is left of an epoch is dropped, so that every batch is full.
        seed: of the order.

    Returns:
        A function of the first step that gives the endless rest of the run; an epoch has ``N // batch_size`` steps.

    Raises:
        ValueError: if the lengths differ or ``batch_size`` lies outside ``[1, N]``.
    """
    if len(x) != len(y) or not 1 <= batch_size <= len(x):
        raise ValueError(f"need as many labels as inputs, and no larger batch: {len(x)}, {len(y)}, batch {batch_size}")
    steps = len(x) // batch_size

    def from_step(start: int) -> Iterator[tuple[Tensor, Tensor]]:
        step = start
        while True:
            order = torch.randperm(len(x), generator=generator_for(seed, step // steps))
            for index in torch.split(order, batch_size)[step % steps : steps]:
                yield x[index], y[index]
                step += 1

    return from_step


def predict_videos(
    model: nn.Module,
    clips: Tensor | Iterable[Any],
    *,
    clips_per_video: int = 1,
    average: Average = "probability",
    device: str | torch.device | None = None,
    batch_size: int = 64,
    prepare: Callable[[Any], Tensor] | None = None,
) -> Tensor:
    """Class of each video, from the average answer over its clips.

    Args:
        model: a :class:`Classifier`, or any module that gives logits ``(B, K)``.
        clips: inputs ``(V * clips_per_video, ...)``, the clips of a video next to each other; or batches of them.
        clips_per_video: the paper takes ten, uniformly spaced.
        average: of probabilities (text) or of logits (release).
        device: see :func:`~avssl_core.evaluation.features.extract_features`.
        batch_size: see there.
        prepare: see there.

    Returns:
        Class indices ``(V,)``.

    Raises:
        ValueError: if the clips do not divide into videos, or ``average`` is unknown.
    """
    if average not in ("probability", "logit"):
        raise ValueError(f"average must be 'probability' or 'logit', got {average!r}")
    logits = extract_features(model, clips, device=device, batch_size=batch_size, prepare=prepare)
    if clips_per_video < 1 or len(logits) % clips_per_video:
        raise ValueError(f"{len(logits)} clips do not divide into videos of {clips_per_video}")
    scores = logits.softmax(dim=1) if average == "probability" else logits
    return scores.reshape(-1, clips_per_video, scores.shape[1]).mean(dim=1).argmax(dim=1)  # (V, S, K) -> (V,)


def score_classifier(
    model: nn.Module,
    clips: Tensor | Iterable[Any],
    labels: Labels,
    *,
    clips_per_video: int = 1,
    average: Average = "probability",
    device: str | torch.device | None = None,
    batch_size: int = 64,
    prepare: Callable[[Any], Tensor] | None = None,
    groups: Labels | None = None,
) -> ProbeResult:
    """Accuracy of a fine-tuned classifier over videos: :func:`predict_videos`, then scored; arguments as there.

    Args:
        model: gives logits.
        clips: inputs, the clips of a video next to each other.
        labels: class index of each *video*.
        clips_per_video: see :func:`predict_videos`.
        average: see :func:`predict_videos`.
        device: see :func:`predict_videos`.
        batch_size: see :func:`predict_videos`.
        prepare: see :func:`predict_videos`.
        groups: speaker or scene of each video, for the interval.
    """
    predicted = predict_videos(
        model,
        clips,
        clips_per_video=clips_per_video,
        average=average,
        device=device,
        batch_size=batch_size,
        prepare=prepare,
    )
    return score_predictions(predicted, labels, groups=groups)
