"""Excitation backpropagation, plain and contrastive (Zhang et al. 2016): "MWP" and "cMWP" of the paper's table 1.

A share of a score is handed down through each layer in proportion to what came up through positive weights:
``p_in = x f*(p_out / f(x))`` with ``f`` the layer without its negative weights and its bias, and ``f*`` its transpose.
ReLU and max pooling hand down like a gradient, batch normalisation unchanged. A sum of two activations, as in residual
networks, hands to each its part of the sum.

The release's modules are ours as functions: every convolution, linear layer, mean and sum follows the rule wherever it
is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from avssl_core.attribution.networks import find_layer, frozen, listening
from avssl_core.attribution.saliency import BackwardRules, Feedback, output_gradient, relu_rules

EPSILON = 1e-20
WEIGHTED: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d, F.linear)
MEANS: tuple[Any, ...] = (
    *(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(torch.mean, Tensor.mean),
)
SUMS: tuple[Any, ...] = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__)


def excitation_backprop(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[int] | Tensor,
    *,
    layer: str | None = None,
    feedback: Feedback = "one_hot",
) -> Tensor:
    """Excitation at a layer, summed over channels.

    Args:
        model: pictures to scores; restored afterwards. Its activations should be non-negative between layers.
        images: ``(B, C, ...)``.
        targets: ``(B,)``.
        layer: at whose output; ``None`` for the input, which should then be non-negative too.
        feedback: see :func:`output_gradient`.

    Returns:
        ``(B, 1, ...)`` of the layer's size. Where all is non-negative it sums to what was fed back.

    Raises:
        ValueError: for unknown layers or targets.
    """
    scores, heard = _excited(model, images, [layer])
    (excitation,) = torch.autograd.grad(scores, heard[layer], output_gradient(scores, targets, feedback))
    return excitation.sum(1, keepdim=True)


def contrastive_excitation_backprop(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[int] | Tensor,
    *,
    layer: str | None,
    contrast_layer: str,
    classifier: str,
    feedback: Feedback = "one_hot",
) -> Tensor:
    """Excitation of the target less that of everything against it.

    The classifier hands down once more with its weights negated; at the contrast layer that is subtracted, and the
    difference, signed, goes on down.

    Args:
        model: as :func:`excitation_backprop`.
        images: ``(B, C, ...)``.
        targets: ``(B,)``.
        layer: where the map is read; ``None`` for the input.
        contrast_layer: where the two are subtracted, between ``layer`` and the classifier.
        classifier: name of the convolution or linear layer that gives the scores.
        feedback: see :func:`output_gradient`.

    Returns:
        ``(B, 1, ...)`` of the layer's size, non-negative.

    Raises:
        ValueError: for unknown layers or targets, a classifier without weights, or a layer that is not below the
            contrast layer (the release then returns the plain excitation, cut at 0).
    """
    weight = getattr(find_layer(model, classifier), "weight", None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"the classifier {classifier!r} has no weights: name the layer that gives the scores")
    scores, heard = _excited(model, images, [layer, contrast_layer])
    back = output_gradient(scores, targets, feedback)
    (for_target,) = torch.autograd.grad(scores, heard[contrast_layer], back, retain_graph=True)
    others, heard_again = _excited(model, images, [contrast_layer], negated=weight)
    (against,) = torch.autograd.grad(others, heard_again[contrast_layer], back)
    if layer == contrast_layer:
        return (for_target - against).sum(1, keepdim=True).clamp(min=0)
    (excitation,) = torch.autograd.grad(heard[contrast_layer], heard[layer], for_target - against, allow_unused=True)
    if excitation is None:
        raise ValueError(
            f"layer {layer!r} does not lie below the contrast layer {contrast_layer!r}, so no contrast reaches it: "
            "exchange them, or use excitation_backprop"
        )
    return excitation.sum(1, keepdim=True).clamp(min=0)


def _excited(
    model: nn.Module, images: Tensor, layers: list[str | None], negated: Tensor | None = None
) -> tuple[Tensor, dict[str | None, Tensor]]:
    """Scores and outputs of layers (``None``: the input), connected by the excitation rule."""
    leaf = images.detach().requires_grad_()
    names = [layer for layer in layers if layer is not None]
    with frozen(model), listening(model, names) as heard, BackwardRules(_excitation_rules(negated)):
        scores = model(leaf)
    found: dict[str | None, Tensor] = {None: leaf}
    found.update(heard)
    return scores, found


def _excitation_rules(negated: Tensor | None) -> dict[Any, Callable[..., Tensor]]:
    rules = relu_rules("gradient")
    for function in WEIGHTED:
        rules[function] = _weighted_rule(function, negated)
    for function in MEANS:
        rules[function] = _mean_rule(function)
    rules[F.batch_norm] = lambda x, *args, **kwargs: _Identity.apply(x, F.batch_norm(x, *args, **kwargs).detach())
    rules.update(dict.fromkeys(SUMS, _add))
    return rules


def _weighted_rule(function: Any, negated: Tensor | None) -> Callable[..., Tensor]:
    def rule(input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        positive = (-weight if weight is negated else weight).detach().clamp(min=0)
        layer = lambda x: function(x, positive, None, *args, **kwargs)  # noqa: E731
        output: Tensor = function(input, weight, bias, *args, **kwargs)
        return _Excitation.apply(input, output.detach(), layer)

    return rule


def _mean_rule(function: Any) -> Callable[..., Tensor]:
    def rule(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = lambda x: function(x, *args, **kwargs)  # noqa: E731
        output: Tensor = function(input, *args, **kwargs)
        return _Excitation.apply(input, output.detach(), layer)

    return rule


def _add(a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
    """Sums of two activations of one shape follow the rule, others (a constant, a position code) do not."""
    both = isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and not args and not kwargs
    if both and a.requires_grad and b.requires_grad:
        return _ExcitationSum.apply(a, b)
    return torch.add(a, b, *args, **kwargs)


class _Excitation(torch.autograd.Function):
    """Output given; backward through ``layer``, which has no negative weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, output: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer = layer
        return output.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, p: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            z = ctx.layer(leaf)
        (down,) = torch.autograd.grad(z, leaf, p / (z.detach() + EPSILON))
        return x * down, None, None


class _ExcitationSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a + b

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, p: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        share = p / (a + b + EPSILON)
        return a * share, b * share


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, output: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    def backward(ctx: Any, p: Tensor) -> tuple[Tensor, None]:
        return p, None
