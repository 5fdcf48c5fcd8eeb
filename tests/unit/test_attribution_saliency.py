"""Saliency baselines where the answer is known, the pointing game, and the check by randomised weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

from avssl_core.attribution import (
    PointingGame,
    centre_point,
    contrastive_excitation_backprop,
    deconvnet,
    excitation_backprop,
    grad_cam,
    gradient_saliency,
    guided_backprop,
    layers_from_the_top,
    linear_approximation,
    meaningful_perturbation,
    output_gradient,
    pointing_hit,
    randomised,
    resize_and_smooth,
    rise,
    rise_masks,
    ruled_relu,
    saliency_point,
    summed_masks,
    total_variation,
)


def pictures(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


class Residual(nn.Module):
    """A sum of two ways, ReLU as a function or in place as a module."""

    def __init__(self, functional: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.functional = functional
        self.stem, self.body = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.relu, self.head = nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        relu: Callable[[Tensor], Tensor] = torch.relu if self.functional else self.relu
        x = relu(self.stem(x))
        x = relu(self.norm(self.body(x)) + x)
        return self.head(x.mean((2, 3)))


def test_gradient() -> None:
    model, x = Residual().eval(), pictures(2, 3, 8, 9)
    leaf = x.clone().requires_grad_()
    scores = model(leaf)
    (expected,) = torch.autograd.grad(scores[0, 1] + scores[1, 3], leaf)
    torch.testing.assert_close(gradient_saliency(model, x, [1, 3]), expected.abs().amax(1, keepdim=True))


@pytest.mark.parametrize("method", [guided_backprop, deconvnet, gradient_saliency, excitation_backprop])
def test_relu_as_function_or_in_place(method: Callable[..., Tensor]) -> None:
    x, targets = pictures(2, 3, 8, 9), [1, 3]
    torch.testing.assert_close(method(Residual(True), x, targets), method(Residual(False), x, targets))


def test_layers_before_relus_in_place() -> None:
    """The output of a layer is seen as it was, although the ReLU behind it would have written over it."""
    model, x = Residual(False), pictures(1, 3, 8, 9)
    assert (
        linear_approximation(model, x, [0], layer="stem") != linear_approximation(model, x, [0], layer="relu")
    ).any()
    found = linear_approximation(Residual(True), x, [0], layer="stem")
    torch.testing.assert_close(linear_approximation(model, x, [0], layer="stem"), found)


def test_guided_rule_by_hand() -> None:
    """One ReLU: what comes back through it is positive, and for guided backpropagation only where it was open."""
    x = torch.tensor([[-1.0, 2.0, 3.0, -4.0]])
    weight = torch.tensor([[1.0, 1.0, -1.0, -1.0]])

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x) @ weight.T

    assert gradient_saliency(Model(), x, [0]).item() == 1  # the largest over channels
    leaf = x.clone().requires_grad_()
    for rule, expected in (("guided", [0, 1, 0, 0]), ("deconvnet", [1, 1, 0, 0]), ("gradient", [0, 1, -1, 0])):
        found = torch.autograd.grad(ruled_relu(leaf, rule), leaf, weight)[0]  # type: ignore[arg-type]
        assert found[0].tolist() == expected
    with pytest.raises(ValueError, match="unknown rule 'open'"):
        ruled_relu(x, "open")  # type: ignore[arg-type]


def test_grad_cam_is_cam() -> None:
    """Behind a mean over places and a linear layer: class weights times activations."""
    torch.manual_seed(0)
    trunk, head = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()), nn.Linear(5, 4)
    model, x = nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head), pictures(2, 3, 8, 9)
    found = grad_cam(model, x, [2, 0], layer="0")
    activation = trunk(x).detach()
    cam = torch.einsum("bk,bkhw->bhw", head.weight[[2, 0]], activation)[:, None].clamp(min=0) / (6 * 7)
    torch.testing.assert_close(found, cam.detach())


def test_linear_approximation_of_a_linear_model_sums_to_the_score() -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        pictures(2, 3, 6, 6),
    )
    torch.testing.assert_close(linear_approximation(model, x, [1, 2]).sum((1, 2, 3)), model(x)[[0, 1], [1, 2]].detach())


def test_excitation_is_conserved_through_a_residual_network() -> None:
    torch.manual_seed(0)
    model, x = resnet18().eval(), pictures(2, 3, 64, 64)
    for layer in ("layer1", "layer3", "avgpool"):
        found = excitation_backprop(model, x, [3, 700], layer=layer)
        torch.testing.assert_close(found.sum((1, 2, 3)), torch.ones(2), atol=1e-4, rtol=0)
        assert found.min() >= 0
    options = {"layer": "layer3", "contrast_layer": "avgpool", "classifier": "fc"}
    contrast = contrastive_excitation_backprop(model, x, [3, 700], **options)
    assert contrast.shape == (2, 1, 4, 4)
    assert contrast.min() >= 0
    assert not torch.allclose(contrast, excitation_backprop(model, x, [3, 700], layer="layer3"), atol=1e-3)


def test_excitation_by_hand() -> None:
    """Two linear layers over two places: shares in proportion to ``x w+``."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    model[1].weight.data = torch.tensor([[1.0, 1.0], [2.0, -1.0]])
    model[3].weight.data = torch.tensor([[1.0, 3.0], [-1.0, 1.0]])
    x = torch.ones(1, 1, 2)
    # The hidden units are 2 and 1. Class 0 hears 2 * 1 and 1 * 3: shares of 2/5 and 3/5. The first unit hands its share
    # down in halves, the second all of it to the first place.
    torch.testing.assert_close(excitation_backprop(model, x, [0]), torch.tensor([[[0.8, 0.2]]]))
    # Class 1 hears the second unit only, its negative the first only: 1 to the first place, less a half to both.
    found = contrastive_excitation_backprop(model, x, [1], layer=None, contrast_layer="2", classifier="3")
    torch.testing.assert_close(found, torch.tensor([[[0.5, 0.0]]]))


def test_models_are_restored() -> None:
    model, x = Residual().train(), pictures(1, 3, 8, 9)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for run in (
        lambda: gradient_saliency(model, x, [0], rule="guided"),
        lambda: grad_cam(model, x, [0], layer="body"),
        lambda: contrastive_excitation_backprop(model, x, [0], layer="stem", contrast_layer="norm", classifier="head"),
        lambda: rise(model, x, number=4, cells=3),
        lambda: meaningful_perturbation(model, x, [0], iterations=2),
    ):
        run()
        assert model.training
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
        assert not model.body._forward_hooks


def test_clips() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    x = pictures(2, 3, 4, 6, 6)
    for method in (gradient_saliency, guided_backprop, linear_approximation, excitation_backprop):
        assert method(model, x, [0, 1]).shape == (2, 1, 4, 6, 6)
    assert grad_cam(model, x, [0, 1], layer="1").shape == (2, 1, 4, 6, 6)
    assert rise(model, x, number=3, cells=2).shape == (2, 4, 6, 6)


def test_rise_on_a_linear_model() -> None:
    """With the scores as they are: its expectation rises with the pixel's weight, the same for all but a constant."""

    class Weighs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0, 4, 4], x.sum((1, 2, 3))], 1)

    found = rise(Weighs(), torch.ones(1, 1, 12, 12), number=3000, cells=4, activation="none")
    assert saliency_point(found[0, 0]) in itertools.product((3, 4, 5), (3, 4, 5))
    assert found[0, 0].max() > 1.3 * found[0, 0].mean()
    assert found[0, 1].std() < 0.1 * found[0, 1].mean()


def test_rise_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = rise_masks(600, (21, 30), cells=7, keep=0.3, generator=generator)
    assert masks.shape == (600, 1, 21, 30)
    assert 0 <= masks.min() <= masks.max() <= 1
    assert masks.mean().item() == pytest.approx(0.3, abs=0.02)  # the probability of keeping, not of hiding
    model, x = Residual(), pictures(2, 3, 21, 30)
    softly = rise(model, x, masks=masks[:50], activation="softmax", max_evaluations=7)
    torch.testing.assert_close(softly.sum(1), masks[:50].mean(0).expand(2, -1, -1))
    assert torch.equal(rise(model, x, number=9, seed=3), rise(model, x, number=9, seed=3))


def test_meaningful_perturbation_trades_area() -> None:
    """What extremal perturbations do away with: a larger weight makes a smaller mask."""

    class Patch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 10 * x[:, :, 4:12, 4:12].mean((1, 2, 3))[:, None]

    x = pictures(1, 3, 32, 32)
    x[:, :, 4:12, 4:12] += 2
    areas = [
        meaningful_perturbation(Patch(), x, [0], area_weight=w, step=4, iterations=60).mean().item()
        for w in (0.01, 0.3)
    ]
    assert areas[1] < 0.7 * areas[0]
    removed = meaningful_perturbation(Patch(), x, [0], variant="delete", area_weight=0.05, step=4, iterations=60)
    assert removed[..., 5:11, 5:11].mean() > 2 * removed[..., 20:, 20:].mean()
    with pytest.raises(ValueError, match="unknown variant 'dual'"):
        meaningful_perturbation(Patch(), x, [0], variant="dual")  # type: ignore[arg-type]


def test_total_variation() -> None:
    mask = torch.zeros(1, 1, 3, 3)
    mask[0, 0, 1, 1] = 2
    assert total_variation(mask, 1.0).item() == 8
    assert total_variation(mask, 3.0).item() == 32
    assert total_variation(torch.ones(2, 1, 4, 4)).tolist() == [0, 0]


def test_resize_and_smooth() -> None:
    """Shares of the longer and of the shorter side after resizing, borders replicated or faded."""
    maps = torch.ones(1, 1, 6, 4)
    assert torch.equal(resize_and_smooth(maps), maps)
    torch.testing.assert_close(resize_and_smooth(maps, (12, 8), smooth=0.1), torch.ones(1, 1, 12, 8))
    faded = summed_masks(torch.ones(1, 3, 1, 6, 4), (30, 20))
    assert faded.shape == (1, 1, 30, 20)
    assert faded[0, 0, 15, 10] == pytest.approx(3, abs=1e-3)
    assert faded[0, 0, 0, 0] < 0.4 * 3
    point = torch.zeros(1, 1, 21, 41)
    point[0, 0, 10, 20] = 1
    shorter, longer = (resize_and_smooth(point, smooth=0.1, of=of).amax().item() for of in ("shorter", "longer"))
    assert longer < 0.5 * shorter


def test_pointing_tolerance() -> None:
    region = torch.zeros(9, 9, dtype=torch.bool)
    region[4, 6] = True
    assert pointing_hit((6, 4), region, 1)
    assert not pointing_hit((5, 4), region, 1)
    assert pointing_hit((5, 4), region, 1.01)
    assert not pointing_hit((6, 4), region, 0)
    assert centre_point((10, 7)) == (3.5, 5.0)


def test_pointing_counts_what_is_played() -> None:
    game = PointingGame(3, tolerance=1)
    region = torch.eye(4, dtype=torch.bool)
    assert [game.add((0, 0), region, 0), game.add((1, 0), region, 0), game.add((2, 2), region, 1)] == [
        True,
        False,
        True,
    ]
    assert game.class_accuracies.tolist() == [0.5, 1, 0]
    assert game.accuracy == pytest.approx(0.5)
    assert game.accuracy_of_played == pytest.approx(0.75)
    with pytest.raises(ValueError, match="class 3 is not among the 3"):
        game.add((0, 0), region, 3)
    assert saliency_point(torch.tensor([[0.0, 2.0], [2.0, 1.0]])) == (1, 0)
    with pytest.raises(ValueError, match="or it holds NaN"):
        saliency_point(torch.tensor([[0.0, float("nan")]]))


def test_cascade() -> None:
    """From the top down: each copy loses one layer more, the last shares nothing with the original."""
    model = Residual()
    order = layers_from_the_top(model)
    assert order == ["head", "norm", "body", "stem"]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    lost: list[str] = []
    for name, copy in randomised(model):
        lost.append(name)
        for key, value in copy.named_parameters():
            changed = not torch.equal(value, before[key])
            assert changed == (key.split(".")[0] in lost and key.split(".")[0] != "norm"), key
    assert lost == order
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_independent_layers_and_seeds() -> None:
    model = Residual()
    copies = {name: copy for name, copy in randomised(model, ["body", "stem"], mode="independent")}
    assert torch.equal(copies["stem"].body.weight, model.body.weight)
    assert not torch.equal(copies["stem"].stem.weight, model.stem.weight)
    state = torch.get_rng_state()
    again, other = (dict(randomised(model, ["stem"], seed=seed))["stem"].stem.weight for seed in (1, 2))
    assert torch.equal(state, torch.get_rng_state())  # nobody else's random numbers are touched
    assert torch.equal(again, copies["stem"].stem.weight)
    assert not torch.equal(again, other)


def test_cascade_failures() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(ValueError, match="Bare 'inner' has parameters but no reset_parameters"):
        list(randomised(nn.ModuleDict({"inner": Bare()})))
    with pytest.raises(ValueError, match="unknown mode 'all'"):
        next(randomised(Bare(), mode="all"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no layer 'top'"):
        next(randomised(Residual(), ["top"]))


def test_bad_arguments() -> None:
    model, x = Residual(), pictures(2, 3, 8, 9)
    with pytest.raises(ValueError, match=r"need 2 targets in \[0, 3\], got \[0, 4\]"):
        gradient_saliency(model, x, [0, 4])
    with pytest.raises(ValueError, match="unknown feedback 'mean'"):
        output_gradient(torch.zeros(1, 2), [0], "mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no layer 'top'; it has stem, body"):
        grad_cam(model, x, [0, 1], layer="top")
    with pytest.raises(ValueError, match="classifier 'relu' has no weights"):
        contrastive_excitation_backprop(model, x, [0, 1], layer="stem", contrast_layer="norm", classifier="relu")
    with pytest.raises(ValueError, match=r"expected masks \(N, 1, 8, 9\), got \(4, 1, 8, 8\)"):
        rise(model, x, masks=torch.ones(4, 1, 8, 8))
    with pytest.raises(ValueError, match="need at least one mask"):
        rise(model, x, number=0)
    with pytest.raises(ValueError, match="unknown activation 'tanh'"):
        rise(model, x, activation="tanh")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got cells=1, keep=0"):
        rise_masks(3, (8, 8), cells=1, keep=0, generator=torch.Generator())
