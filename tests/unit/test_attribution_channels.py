"""Channels of a layer: cutting a network, masks of channels against the best there are, profiles, inversion."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from avssl_core.attribution import (
    channel_attribution,
    channel_heat_map,
    class_channel_profile,
    feature_inversion,
    split_model_at,
    turned,
)


class LinearTail(nn.Module):
    """Means over places, weighted: the best channels are the largest contributions."""

    def __init__(self, channels: int = 12, classes: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, channels, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(2) @ self.weight.T


def activations(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_finds_the_best_channels(reduction: Any) -> None:
    tail, acts, counts = LinearTail(), activations(3, 12, 4, 5), [1, 3, 6]
    found = channel_attribution(tail, acts, [0, 1, 2], counts, reduction=reduction)
    contributions = (acts.mean((2, 3)) * tail.weight).detach()
    for b, (a, count) in itertools.product(range(3), enumerate(counts)):
        expected = torch.zeros(12).scatter(0, contributions[b].topk(count).indices, 1.0)
        torch.testing.assert_close(found.masks[b, a], expected, atol=0.2, rtol=0)
        assert torch.equal(found.masks[b, a].round(), expected)


def test_all_and_no_channels() -> None:
    tail, acts = LinearTail(), activations(2, 12, 4, 5)
    found = channel_attribution(tail, acts, [0, 1], [0, 12])
    with torch.no_grad():
        torch.testing.assert_close(found.original, tail(acts)[[0, 1], [0, 1]])
    torch.testing.assert_close(found.scores[:, 1], found.original, atol=0.02, rtol=0)
    torch.testing.assert_close(found.scores[:, 0], torch.zeros(2), atol=0.02, rtol=0)
    assert found.masks[:, 1].min() > 0.98
    assert found.masks[:, 0].max() < 0.02


def test_batch_is_one_at_a_time() -> None:
    tail, acts, options = LinearTail().double(), activations(3, 12, 2, 2, 2).double(), {"iterations": 40}
    together = channel_attribution(tail, acts, [2, 0, 1], [2, 5], **options)
    chunked = channel_attribution(tail, acts, [2, 0, 1], [2, 5], max_evaluations=4, **options)
    torch.testing.assert_close(chunked.masks, together.masks)
    torch.testing.assert_close(chunked.rewards, together.rewards)
    for b, target in enumerate([2, 0, 1]):
        alone = channel_attribution(tail, acts[b : b + 1], [target], [2, 5], **options)
        torch.testing.assert_close(alone.masks[0], together.masks[b])
        torch.testing.assert_close(alone.scores[0], together.scores[b])


def test_tail_is_restored() -> None:
    tail = LinearTail().train()
    channel_attribution(tail, activations(1, 12, 2), [0], [3], iterations=2)
    assert tail.training
    assert tail.weight.requires_grad
    assert tail.weight.grad is None


def test_heat_map() -> None:
    acts, masks = activations(2, 3, 4, 5), torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0]])
    found = channel_heat_map(masks, acts)
    torch.testing.assert_close(found[0, 0], acts[0, 0] + 0.5 * acts[0, 2])
    assert not found[1].any()
    with pytest.raises(ValueError, match=r"masks \(2, 2\) do not fit activations \(2, 3, 4, 5\)"):
        channel_heat_map(masks[:, :2], acts)


def test_class_profile() -> None:
    masks = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    found = class_channel_profile(masks, torch.tensor([2, 0, 2]), 3)
    assert torch.equal(found[0], masks[1])
    assert torch.equal(found[2], torch.tensor([1.0, 0.5]))
    assert found[1].isnan().all()
    with pytest.raises(ValueError, match=r"3 labels in \[0, 1\], got \[2, 0, 2\]"):
        class_channel_profile(masks, torch.tensor([2, 0, 2]), 2)


@pytest.mark.parametrize("layer", ["conv1", "maxpool", "layer2", "layer3.0", "layer4.1.bn2", "avgpool", "fc"])
def test_split(layer: str) -> None:
    torch.manual_seed(0)
    model, x = resnet18().eval(), torch.rand(2, 3, 64, 64)
    if layer == "layer4.1.bn2":  # the block's input goes around it
        with pytest.raises(ValueError, match=r"gets around layer 'layer4\.1\.bn2' to add"):
            split_model_at(model, layer)
        return
    head, tail = split_model_at(model, layer)
    with torch.no_grad():
        assert torch.equal(tail(head(x)), model(x))
    heard: list[Tensor] = []
    model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: heard.append(output))
    with torch.no_grad():
        model(x)
        assert torch.equal(head(x), heard[0])


def test_split_shares_the_weights() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    head, tail = split_model_at(model, "1")
    x = torch.rand(5, 3)
    with torch.no_grad():
        model[0].weight.mul_(2)
        model[2].bias.add_(1)
        assert torch.equal(tail(head(x)), model(x))


def test_split_failures() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x))

    class Asks(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if x.sum() > 0 else x

    class Two(Twice):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.inner(x) + y

    with pytest.raises(ValueError, match="has no layer 'outer'; it has inner"):
        split_model_at(Twice(), "outer")
    with pytest.raises(ValueError, match="'inner' is called 2 times"):
        split_model_at(Twice(), "inner")
    with pytest.raises(ValueError, match=r"cannot follow the forward method .* write the two parts by hand"):
        split_model_at(Asks(), "inner")
    with pytest.raises(ValueError, match=r"takes \['x', 'y'\]; a cut needs a model of one input"):
        split_model_at(Two(), "inner")


def test_bad_channel_arguments() -> None:
    acts = activations(2, 12, 4)
    for targets, counts in (([0], [3]), ([0, 1], []), ([0, 1], [13]), ([0, 1], [-1])):
        with pytest.raises(ValueError, match=r"need 2 targets and counts in \[0, 12\]"):
            channel_attribution(LinearTail(), acts, targets, counts)


@pytest.mark.parametrize("parametrisation", ["fourier", "pixels"])
def test_inversion_finds_what_the_target_answers_to(parametrisation: Any) -> None:
    """A layer of one vertical and one horizontal edge detector: each half of its activation asks for its own edges."""
    head = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.ReLU())
    edge = torch.tensor([[1.0, 0.0, -1.0]]).expand(3, 3)
    head[0].weight.data = torch.stack([edge, edge.T])[:, None]
    target = torch.zeros(2, 2, 24, 24)
    target[0, 0, 6:18, 6:18], target[1, 1, 6:18, 6:18] = 1, 1
    images, history = feature_inversion(head, target, (24, 24), channels=1, steps=80, parametrisation=parametrisation)
    assert images.shape == (2, 1, 24, 24)
    assert 0 <= images.min() <= images.max() <= 1
    assert (history[:, -5:].mean(1) > 2 * history[:, 0]).all()
    with torch.no_grad():
        answers = head(images)[:, :, 6:18, 6:18].mean((2, 3))
    assert answers[0, 0] > 2 * answers[0, 1]
    assert answers[1, 1] > 2 * answers[1, 0]


def test_inversion_does_not_mind_the_scale() -> None:
    head, target = nn.Conv2d(3, 4, 3), activations(1, 4, 10, 10)
    torch.manual_seed(0)
    options: dict[str, Any] = {"steps": 5, "colours": torch.eye(3), "normalise": lambda x: x - 0.5}
    first, _ = feature_inversion(head, target, (12, 12), **options)
    second, _ = feature_inversion(head, 100 * target, (12, 12), **options)
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"gives \(1, 4, 10, 10\), the target is \(1, 3, 10, 10\)"):
        feature_inversion(head, target[:, :3], (12, 12))
    with pytest.raises(ValueError, match="unknown parametrisation 'waves'"):
        feature_inversion(head, target, (12, 12), parametrisation="waves")  # type: ignore[arg-type]


# --- turned pictures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(12, 12), (8, 12)])
def test_turning_by_nothing_changes_nothing(size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(turned(x, 0.0), x, atol=1e-5, rtol=1e-5)


def test_quarter_and_half_turns_are_what_rot90_does() -> None:
    x = torch.rand(1, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    quarter = turned(x, 90.0)
    assert any(torch.allclose(quarter, torch.rot90(x, k, (2, 3)), atol=1e-4) for k in (1, 3))
    torch.testing.assert_close(turned(x, 180.0), torch.rot90(x, 2, (2, 3)), atol=1e-4, rtol=1e-4)


def test_turns_keep_shapes_in_pictures_that_are_not_square() -> None:
    x = torch.zeros(1, 1, 16, 32)
    x[..., 7:9, 12:20] = 1.0  # a bar of 2 by 8 in the middle
    bar = turned(x, 90.0)[0, 0]
    assert bar[4:12, 15:17].mean() > 0.9  # what lay beyond the upper and the lower border is mirrored farther out
    assert float(bar[:, 8:24].sum()) == pytest.approx(16, rel=0.05)


def test_scaling_enlarges() -> None:
    x = torch.zeros(1, 1, 32, 32)
    x[..., 12:20, 12:20] = 1.0
    assert float(turned(x, 0.0, 1.5).sum()) == pytest.approx(64 * 1.5**2, rel=0.05)
    halved = turned(x, 0.0, 0.5)
    assert float(halved[..., 8:24, 8:24].sum()) == pytest.approx(64 * 0.5**2, rel=0.1)
    assert float(halved[..., :4, 12:20].sum()) > 0  # mirrored beyond the border


def test_inversion_may_turn_and_scale() -> None:
    head = nn.Conv2d(1, 4, 5, bias=False).requires_grad_(False)
    target = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    options: dict[str, Any] = {"channels": 1, "steps": 30, "degrees": 5.0, "scale": 0.1}
    images, history = feature_inversion(head, target, (12, 12), **options)
    again, _ = feature_inversion(head, target, (12, 12), **options)
    assert torch.equal(images, again) and history[0, -5:].mean() > history[0, :5].mean()
    plain, _ = feature_inversion(head, target, (12, 12), channels=1, steps=30)
    assert not torch.allclose(images, plain)
    with pytest.raises(ValueError, match="must lie in"):
        feature_inversion(head, target, (12, 12), channels=1, scale=1.5)
