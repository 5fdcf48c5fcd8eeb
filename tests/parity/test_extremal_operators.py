"""Smooth masks, blur, perturbations, area and rewards against stored numbers of the authors' code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_extremal import load
from torch import Tensor

from avssl_core.attribution import (
    BlurPyramid,
    FadePyramid,
    SmoothMaskGenerator,
    area_regulariser,
    contrastive_reward,
    gaussian_blur,
    kernel_profile,
    reference_zeros,
    simple_reward,
)

POOLINGS: dict[str, dict[str, Any]] = {
    "smoothmax_20": {},
    "smoothmax_hard": {"sharpness": math.inf},
    "sum_clamped": {"pooling": "sum"},
    "sum_unclamped": {"pooling": "sum", "clamp": False},
    "sigmoid_20": {"pooling": "sigmoid"},
    "sigmoid_hard": {"pooling": "sigmoid", "sharpness": math.inf},
}


def test_every_fixture_is_tested(fixtures_dir: Path) -> None:
    """A file added to the folder must be added to a test."""
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_extremal_*.py"))
    names = {path.stem for path in (fixtures_dir / "extremal").glob("*.safetensors")}
    assert names
    assert not [name for name in names if f'"{name}"' not in tests]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", ["smooth_mask_a", "smooth_mask_b", "smooth_mask_sparse_a"])
def test_smooth_masks(fixtures_dir: Path, name: str, pooling: str) -> None:
    params, stored = load(fixtures_dir, name)
    generator = SmoothMaskGenerator(params["shape"], step=params["step"], sigma=params["sigma"], **POOLINGS[pooling])
    axis = generator.axes[0]
    assert generator.parameter_shape == tuple(params["grid_shape"])
    assert generator.canvas_shape == tuple(params["full_shape"])
    assert (axis.start, axis.padding, axis.radius) == (params["margin_rounded"], params["padding"], params["radius"])
    leaf = stored["parameters"].requires_grad_()
    masks = generator(leaf)
    torch.testing.assert_close(masks.canvas, stored[f"{pooling}.full"], atol=1e-5, rtol=0)
    torch.testing.assert_close(masks.crop, stored[f"{pooling}.cropped"], atol=1e-5, rtol=0)
    if pooling == "sigmoid_hard":  # a step has no gradient, and none is stored
        assert not masks.canvas.requires_grad
        return
    for found, cotangent, key in (
        (masks.canvas, stored["cotangent_full"], "grad_full"),
        (masks.crop, stored["cotangent_cropped"], "grad_cropped"),
    ):
        (gradient,) = torch.autograd.grad((found * cotangent).sum(), leaf, retain_graph=True)
        torch.testing.assert_close(gradient, stored[f"{pooling}.{key}"], rtol=1e-3, atol=5e-4)


def test_kernel(fixtures_dir: Path) -> None:
    _, stored = load(fixtures_dir, "smooth_mask_a")
    torch.testing.assert_close(kernel_profile(stored["kernel_z"], "release"), stored["kernel_k"], atol=1e-6, rtol=0)
    assert not torch.allclose(kernel_profile(stored["kernel_z"], "paper"), stored["kernel_k"], atol=1e-2)


@pytest.mark.parametrize("padding", ["zero_pad", "reflect", "replicate", "constant_0.7", "zero_pad_stride2"])
def test_gaussian_blur(fixtures_dir: Path, padding: str) -> None:
    params, stored = load(fixtures_dir, "gaussian_smoothing_a")
    options: dict[str, dict[str, Any]] = {
        "zero_pad": {"padding": "zero"},
        "constant_0.7": {"padding": "constant", "value": 0.7},
        "zero_pad_stride2": {"padding": "zero", "stride": 2},
    }
    compared = 0
    for sigma in params["sigmas"]:
        key = f"{padding}.sigma{sigma}"
        if key in stored:
            found = gaussian_blur(stored["x"], sigma, **options.get(padding, {"padding": padding}))
            torch.testing.assert_close(found, stored[key], atol=5e-6, rtol=0)
            compared += 1
    assert compared == (4 if padding in ("zero_pad", "reflect", "replicate") else 1)


@pytest.mark.parametrize("tag", ["blur_default", "blur_small", "fade"])
def test_perturbation(fixtures_dir: Path, tag: str) -> None:
    _, stored = load(fixtures_dir, "perturbation_a")
    small = {"levels": 4, "max_sigma": 5.0} if tag == "blur_small" else {}
    operator = FadePyramid(stored["x"]) if tag == "fade" else BlurPyramid(stored["x"], **small)
    leaf = stored["mask"].requires_grad_()
    found = operator(leaf[None])[0]
    torch.testing.assert_close(found, stored[f"{tag}.out"], atol=5e-6, rtol=0)
    (gradient,) = torch.autograd.grad((found * stored["cotangent"]).sum(), leaf)
    torch.testing.assert_close(gradient, stored[f"{tag}.grad_mask"], atol=5e-5, rtol=0)
    assert leaf[0, 0, 0, :4].tolist() == [0, 1, 0.5, 0.25]
    assert (gradient[0, 0, 0, :2] == 0).tolist() == [False, True]
    constant = stored["constant_masks"].view(-1, 1, 1, 1).expand(-1, 1, *stored["x"].shape[2:])
    torch.testing.assert_close(operator(constant[None])[0], stored[f"{tag}.constant_masks_out"], atol=5e-6, rtol=0)
    if isinstance(operator, BlurPyramid):
        torch.testing.assert_close(operator.pyramid[0], stored[f"{tag}.pyramid"], atol=5e-6, rtol=0)
    else:
        levels = torch.linspace(0, 1, len(stored[f"{tag}.pyramid"])).view(1, -1, 1, 1, 1)
        levels = levels.expand(1, -1, 1, *stored["x"].shape[2:])
        torch.testing.assert_close(operator(levels)[0], stored[f"{tag}.pyramid"], atol=5e-6, rtol=0)


@pytest.mark.parametrize("name", ["area_regulariser_a", "area_regulariser_b"])
def test_area_regulariser(fixtures_dir: Path, name: str) -> None:
    """As released: a mean. As printed, a sum, it is larger by the number of pixels."""
    _, stored = load(fixtures_dir, name)
    areas, leaf = stored["areas"].tolist(), stored["mask"].requires_grad_()
    pixels = leaf[0].numel()
    assert [reference_zeros(pixels, area) for area in areas] == stored["zeros_in_reference"].tolist()
    value = area_regulariser(leaf, areas)
    torch.testing.assert_close(value, stored["value_over_weight"].float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(area_regulariser(leaf, areas, reduction="sum"), pixels * value, rtol=1e-5, atol=0)
    weight = stored["weight"]
    torch.testing.assert_close(300 * 1.0035 ** torch.arange(6).double(), weight, rtol=1e-9, atol=0)
    torch.testing.assert_close((-weight * value[:, None]).float(), stored["regulariser"], rtol=1e-5, atol=0)
    for key, own in (("grad_mask_iter0", weight[0]), ("grad_mask_last", weight[-1])):
        (gradient,) = torch.autograd.grad((own * value).sum(), leaf, retain_graph=True)
        torch.testing.assert_close(gradient, stored[key], rtol=1e-5, atol=1e-7)


def rewarded(activation: Tensor, variant: str, masks: int, target: int, reward: Any) -> Tensor:
    """What the optimisation adds up: kept minus left."""
    targets = torch.full((masks,), target)
    if variant != "dual":
        value = reward(activation[:masks], targets)
        return value if variant == "preserve" else -value
    return reward(activation[:masks], targets) - reward(activation[masks:], targets)


@pytest.mark.parametrize("variant", ["preserve", "delete", "dual"])
@pytest.mark.parametrize("kind", ["vector", "map"])
def test_rewards(fixtures_dir: Path, kind: str, variant: str) -> None:
    """Ours is the documented one; it is the diagonal of what the release computes, and sums to the same."""
    params, stored = load(fixtures_dir, "rewards_a")
    activation, K = stored[f"{kind}.activation"], params["K"]
    for reward, tag in ((simple_reward, "simple"), (contrastive_reward, "contrastive_as_documented")):
        found = rewarded(activation, variant, K, params["target"], reward)
        torch.testing.assert_close(found, stored[f"{kind}.{tag}.{variant}"], atol=1e-5, rtol=0)
        per_mask = found.flatten(1).mean(1) if kind == "map" else found
        torch.testing.assert_close(per_mask, stored[f"{kind}.{tag}_per_mask.{variant}"], atol=1e-5, rtol=0)
    coded = stored[f"{kind}.contrastive_as_coded.{variant}"]
    torch.testing.assert_close(coded[torch.arange(K), torch.arange(K)], found, atol=1e-5, rtol=0)
    coded_per_mask = stored[f"{kind}.contrastive_as_coded_per_mask.{variant}"]
    torch.testing.assert_close(coded_per_mask.sum(), per_mask.sum(), atol=1e-4, rtol=0)
    assert not torch.allclose(coded_per_mask, per_mask, atol=1e-2)
