"""What a mask is rewarded for: scores of a target, alone or against the best other class; computed batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

Reward = Callable[[Tensor, Tensor], Tensor]


def simple_reward(activations: Tensor, targets: Tensor) -> Tensor:
    """Score of the target: ``(N, C, ...)`` and ``(N,)`` to ``(N, ...)``."""
    return activations.gather(1, _index(activations, targets))[:, 0]


def contrastive_reward(activations: Tensor, targets: Tensor) -> Tensor:
    """Score of the target minus the best other one, place by place: ``(N, C, ...)`` and ``(N,)`` to ``(N, ...)``.

    The authors' release subtracts the others of every mask of a batch from every mask. The sum, and hence the masks,
    are the same; its history is not what it says.
    """
    others = activations.scatter(1, _index(activations, targets), -torch.inf)
    return simple_reward(activations, targets) - others.amax(1)


def mean_over_places(values: Tensor) -> Tensor:
    """``(N, ...)`` to ``(N,)``: maps of scores count by their mean."""
    return values.flatten(1).mean(1) if values.ndim > 1 else values


REWARDS: dict[str, Reward] = {"simple": simple_reward, "contrastive": contrastive_reward}


def _index(activations: Tensor, targets: Tensor) -> Tensor:
    return targets.view(-1, *[1] * (activations.ndim - 1)).expand(-1, 1, *activations.shape[2:])


class Scorer:
    """Rewards of many inputs, a few at a time, with or without their gradients.

    Args:
        model: inputs ``(N, ...)`` to scores ``(N, C)`` or maps of scores ``(N, C, ...)``.
        limit: inputs at a time; all if ``None``.
        autocast: type the model is computed in.

    Raises:
        ValueError: for a limit below 1.
    """

    def __init__(self, model: nn.Module, *, limit: int | None = None, autocast: torch.dtype | None = None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"max_evaluations must be at least 1, got {limit}: leave it out for all at once")
        self.model, self.autocast, self.limit = model, autocast, limit

    def activations(self, inputs: Tensor) -> Tensor:
        """What the model returns, in the type of its inputs.

        Raises:
            ValueError: if that is no scores.
        """
        precision = nullcontext() if self.autocast is None else torch.autocast(inputs.device.type, self.autocast)
        with precision:
            activations = self.model(inputs)
        if not isinstance(activations, Tensor) or activations.ndim < 2 or len(activations) != len(inputs):
            found = tuple(activations.shape) if isinstance(activations, Tensor) else type(activations).__name__
            raise ValueError(f"the model must return scores (N, C) or (N, C, ...) for N={len(inputs)}, got {found}")
        return activations.to(inputs.dtype)

    def score(self, inputs: Tensor, targets: Tensor, reward: Reward) -> Tensor:
        """``(N, C, ...)`` to ``(N,)``: the reward, averaged over places."""
        return mean_over_places(reward(self.activations(inputs), targets))

    def scores(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Of the targets, without gradients."""
        size = self.limit or len(inputs)
        with torch.no_grad():
            parts = zip(torch.split(inputs, size), torch.split(targets, size), strict=True)
            return torch.cat([self.score(x, y, simple_reward) for x, y in parts])

    def rewards(self, inputs: Tensor, targets: Tensor, reward: Reward) -> tuple[Tensor, Tensor]:
        """Of all inputs ``(N,)``, and their gradient on the inputs."""
        size = self.limit or len(inputs)
        values: list[Tensor] = []
        gradients: list[Tensor] = []
        for x, y in zip(torch.split(inputs.detach(), size), torch.split(targets, size), strict=True):
            leaf = x.requires_grad_()
            value = self.score(leaf, y, reward)
            gradients += torch.autograd.grad(value.sum(), leaf)
            values.append(value.detach())
        return torch.cat(values), torch.cat(gradients)
