"""Saliency from one backward pass: gradient, guided backpropagation, DeConvNet, linear approximation, Grad-CAM.

The maps that extremal perturbations are compared with (table 1 of the paper). All take a batch, feed a gradient back
from the scores of each target, and leave the model as it was. ReLUs are found wherever they are called, as modules or
as functions, and made to work out of place, so that the output of a layer stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from avssl_core.attribution.networks import frozen, listening
from avssl_core.attribution.perturbations import gaussian_blur

ReLURule = Literal["gradient", "guided", "deconvnet"]
Feedback = Literal["one_hot", "pointing"]
RELUS: tuple[Any, ...] = (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)


class BackwardRules(TorchFunctionMode):
    """While active, calls of some functions are answered by others; keys are functions of torch."""

    def __init__(self, rules: dict[Any, Callable[..., Tensor]]) -> None:
        super().__init__()
        self.rules = rules

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for each of its functions."""
        return self.rules.get(func, func)(*args, **(kwargs or {}))


class _RuledReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: ReLURule) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rule = rule
        return x.clamp(min=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        grad = grad.clamp(min=0)
        return (grad * (x >= 0) if ctx.rule == "guided" else grad), None


def ruled_relu(x: Tensor, rule: ReLURule) -> Tensor:
    """ReLU with another backward pass.

    Args:
        x: any shape.
        rule: ``"gradient"``: the ordinary one; ``"guided"``: positive gradients, where ``x >= 0``, zero included;
            ``"deconvnet"``: positive gradients.

    Raises:
        ValueError: for an unknown rule.
    """
    if rule == "gradient":
        return torch.relu(x)
    if rule not in ("guided", "deconvnet"):
        raise ValueError(f"unknown rule {rule!r}; use 'gradient', 'guided' or 'deconvnet'")
    return _RuledReLU.apply(x, rule)


def relu_rules(rule: ReLURule) -> dict[Any, Callable[..., Tensor]]:
    """For :class:`BackwardRules`: every ReLU follows the rule, none works in place."""
    return dict.fromkeys(RELUS, lambda input, inplace=False: ruled_relu(input, rule))


def output_gradient(scores: Tensor, targets: Sequence[int] | Tensor, feedback: Feedback = "one_hot") -> Tensor:
    """What is fed back from the scores.

    Args:
        scores: ``(B, C)`` or maps ``(B, C, ...)``.
        targets: ``(B,)``.
        feedback: ``"one_hot"``: 1 on the target everywhere; ``"pointing"``: on the target the softmax over places of
            its scores, as the release's pointing game does (the same for scores without places).

    Raises:
        ValueError: for targets without scores, or an unknown feedback.
    """
    if feedback not in ("one_hot", "pointing"):
        raise ValueError(f"unknown feedback {feedback!r}; use 'one_hot' or 'pointing'")
    classes = torch.as_tensor(targets, dtype=torch.long, device=scores.device)
    if classes.shape != scores.shape[:1] or not all(0 <= c < scores.shape[1] for c in classes.tolist()):
        raise ValueError(f"need {len(scores)} targets in [0, {scores.shape[1] - 1}], got {classes.tolist()}")
    rows, gradient = torch.arange(len(scores), device=scores.device), torch.zeros_like(scores)
    own = scores.detach()[rows, classes]
    shares = own.flatten(1).softmax(1).reshape(own.shape) if own.ndim > 1 else torch.ones_like(own)
    gradient[rows, classes] = shares if feedback == "pointing" else 1.0
    return gradient


def gradient_saliency(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[int] | Tensor,
    *,
    layer: str | None = None,
    rule: ReLURule = "gradient",
    feedback: Feedback = "one_hot",
) -> Tensor:
    """Largest absolute gradient over channels.

    Args:
        model: pictures to scores; restored afterwards.
        images: ``(B, C, ...)``.
        targets: ``(B,)``.
        layer: at whose output; ``None`` for the input.
        rule: see :func:`ruled_relu`.
        feedback: see :func:`output_gradient`.

    Returns:
        ``(B, 1, ...)`` of the layer's size, non-negative.

    Raises:
        ValueError: for unknown layers, rules or targets.
    """
    _, gradient = _activation_and_gradient(model, images, targets, layer, rule, feedback)
    return gradient.abs().amax(1, keepdim=True)


def guided_backprop(
    model: nn.Module, images: Tensor, targets: Sequence[int] | Tensor, *, feedback: Feedback = "one_hot"
) -> Tensor:
    """Springenberg et al. 2015; as :func:`gradient_saliency`."""
    return gradient_saliency(model, images, targets, rule="guided", feedback=feedback)


def deconvnet(
    model: nn.Module, images: Tensor, targets: Sequence[int] | Tensor, *, feedback: Feedback = "one_hot"
) -> Tensor:
    """Zeiler & Fergus 2014; as :func:`gradient_saliency`."""
    return gradient_saliency(model, images, targets, rule="deconvnet", feedback=feedback)


def linear_approximation(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[int] | Tensor,
    *,
    layer: str | None = None,
    feedback: Feedback = "one_hot",
) -> Tensor:
    """Activation times gradient, summed over channels, ``(B, 1, ...)``, signed; as :func:`gradient_saliency`."""
    activation, gradient = _activation_and_gradient(model, images, targets, layer, "gradient", feedback)
    return (activation * gradient).sum(1, keepdim=True)


def grad_cam(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[int] | Tensor,
    *,
    layer: str,
    feedback: Feedback = "one_hot",
) -> Tensor:
    """Channels weighted by their mean gradient, ``max(0, sum_c a_c mean(g_c))``, ``(B, 1, ...)`` of the layer's size.

    Selvaraju et al. 2017; as :func:`gradient_saliency`.
    """
    activation, gradient = _activation_and_gradient(model, images, targets, layer, "gradient", feedback)
    weights = gradient.mean(dim=tuple(range(2, gradient.ndim)), keepdim=True)
    return (activation * weights).sum(1, keepdim=True).clamp(min=0)


def resize_and_smooth(
    maps: Tensor,
    size: tuple[int, int] | None = None,
    *,
    smooth: float = 0.0,
    of: Literal["longer", "shorter"] = "longer",
    padding: Literal["replicate", "zero"] = "replicate",
) -> Tensor:
    """Bring maps ``(B, 1, h, w)`` to a picture's size, bilinearly, then blur them.

    The release blurs gradients by a share of the longer side and replicates the border, masks by 0.09 of the shorter
    side with zeros around.

    Args:
        maps: ``(B, 1, h, w)``.
        size: ``(H, W)``, or ``None`` to keep theirs.
        smooth: standard deviation as a share of a side after resizing.
        of: which side.
        padding: beyond the border.
    """
    if size is not None:
        maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    side = max(maps.shape[-2:]) if of == "longer" else min(maps.shape[-2:])
    return gaussian_blur(maps, smooth * side, padding=padding)


def _activation_and_gradient(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[int] | Tensor,
    layer: str | None,
    rule: ReLURule,
    feedback: Feedback,
) -> tuple[Tensor, Tensor]:
    """At the layer's output or at the input, ``(B, K, ...)`` each."""
    leaf = images.detach().requires_grad_()
    names = [] if layer is None else [layer]
    with frozen(model), listening(model, names) as heard, BackwardRules(relu_rules(rule)):
        scores = model(leaf)
    at = leaf if layer is None else heard[layer]
    (gradient,) = torch.autograd.grad(scores, at, output_gradient(scores, targets, feedback))
    return at.detach(), gradient
