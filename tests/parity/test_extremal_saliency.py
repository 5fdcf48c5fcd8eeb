"""Saliency baselines, RISE and the pointing game against stored numbers of the authors' code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers_extremal import load, network
from torch import Tensor

from avssl_core.attribution import (
    PointingGame,
    centre_point,
    contrastive_excitation_backprop,
    deconvnet,
    excitation_backprop,
    grad_cam,
    gradient_saliency,
    guided_backprop,
    linear_approximation,
    output_gradient,
    pointing_hit,
    resize_and_smooth,
    rise,
    ruled_relu,
    saliency_point,
    upsample_grid,
)

FILES = {"vec": "saliency_vec_a", "map": "saliency_map_a"}
MAPS = {
    "gradient": gradient_saliency,
    "guided_backprop": guided_backprop,
    "deconvnet": deconvnet,
    "linear_approx": linear_approximation,
    "grad_cam": grad_cam,
    "excitation_backprop": excitation_backprop,
}


def assert_same_map(found: Tensor, expected: Tensor, key: str) -> None:
    torch.testing.assert_close(
        found, expected, atol=1e-5 * expected.abs().max().item(), rtol=0, msg=lambda m: f"{key}: {m}"
    )


@pytest.mark.parametrize("feedback", ["one_hot", "pointing"])
@pytest.mark.parametrize("kind", FILES)
def test_backward_maps(fixtures_dir: Path, kind: str, feedback: str) -> None:
    """Every map of the file, told apart by its name: ``feedback.method[.at_layer][.resized...]``."""
    params, stored = load(fixtures_dir, FILES[kind])
    model, target, compared = network(params["kind"], stored), [params["target"]], 0
    width, height = params["resize_width_height"]
    for key, expected in stored.items():
        own, _, rest = key.partition(".")
        method, _, where = rest.partition(".")
        if own != feedback or method not in MAPS:
            continue
        layer = where.partition(".")[0].removeprefix("at_") if where.startswith("at_") else None
        at_input = layer == "input_non_negative"
        image = stored["image_non_negative" if at_input else "image"]
        options = {"layer": layer} if layer and not at_input else {}
        found = MAPS[method](model, image, target, feedback=feedback, **options)
        if "resized" in where:
            smooth = params["smooth"] if "smoothed" in where else 0
            # Grad-CAM is stored at the size of the input, the others at a size of their own.
            size = (params["H"], params["W"]) if method == "grad_cam" else (height, width)
            found = resize_and_smooth(found, size, smooth=smooth)
        assert_same_map(found, expected, key)
        compared += 1
    stated = {"vec": {"one_hot": 14, "pointing": 0}, "map": {"one_hot": 14, "pointing": 13}}
    assert compared == stated[kind][feedback]


@pytest.mark.parametrize(
    ("kind", "feedback"), [("vec", "one_hot"), ("map", "one_hot"), ("map", "pointing")], ids=lambda x: x
)
def test_contrastive_excitation(fixtures_dir: Path, kind: str, feedback: str) -> None:
    params, stored = load(fixtures_dir, FILES[kind])
    model, target, image = network(params["kind"], stored), [params["target"]], stored["image"]
    for contrast in ("relu2", "relu3"):
        layer = params["low_layer"]
        key = f"{feedback}.contrastive_excitation_backprop.at_{layer}_contrast_{contrast}"
        options = {"layer": layer, "contrast_layer": contrast, "classifier": params["classifier_layer"]}
        if (kind, contrast) == ("map", "relu2"):  # below pool2: nothing is subtracted from what the release returns
            plain = excitation_backprop(model, image, target, layer=layer, feedback=feedback)
            assert_same_map(plain.clamp(min=0), stored[key], key)
            with pytest.raises(ValueError, match="does not lie below"):
                contrastive_excitation_backprop(model, image, target, feedback=feedback, **options)
        else:
            found = contrastive_excitation_backprop(model, image, target, feedback=feedback, **options)
            assert_same_map(found, stored[key], key)


def test_excitation_is_conserved(fixtures_dir: Path) -> None:
    params, stored = load(fixtures_dir, FILES["vec"])
    found = excitation_backprop(network("vec", stored), stored["image_non_negative"], [params["target"]])
    torch.testing.assert_close(found.sum(), stored["one_hot_output_gradient"].sum(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", FILES)
def test_output_gradient(fixtures_dir: Path, kind: str) -> None:
    params, stored = load(fixtures_dir, FILES[kind])
    scores, target = stored["output"], [params["target"]]
    assert torch.equal(output_gradient(scores, target), stored["one_hot_output_gradient"])
    found = output_gradient(scores, target, "pointing")
    torch.testing.assert_close(found, stored["pointing_output_gradient"], atol=1e-6, rtol=0)
    total = stored["pointing_output_gradient_unnormalised"].sum()
    torch.testing.assert_close(found * total, stored["pointing_output_gradient_unnormalised"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("rule", ["gradient", "guided", "deconvnet"])
def test_relu_rules(fixtures_dir: Path, rule: str) -> None:
    _, stored = load(fixtures_dir, "relu_rules_a")
    tag, x = "relu" if rule == "gradient" else rule, stored["x"].requires_grad_()
    found = ruled_relu(x, rule)
    assert torch.equal(found, stored[f"{tag}.forward"])
    assert torch.equal(torch.autograd.grad(found, x, stored["p"])[0], stored[f"{tag}.backward"])


@pytest.mark.parametrize("kind", FILES)
def test_rise(fixtures_dir: Path, kind: str) -> None:
    params, stored = load(fixtures_dir, FILES[kind])
    found = rise(network(params["kind"], stored), stored["image"], masks=stored["rise.masks"], max_evaluations=16)
    assert_same_map(found, stored["rise.all_classes"], "rise")
    own = found[:, [params["target"]]]
    assert_same_map(own, stored["rise.target"], "rise.target")
    width, height = params["resize_width_height"]
    assert_same_map(resize_and_smooth(own, (height, width)), stored["rise.target.resized"], "rise.target.resized")


def test_rise_upsampling(fixtures_dir: Path) -> None:
    params, stored = load(fixtures_dir, "rise_upsampling_a")
    found = upsample_grid(stored["grid"], (params["H"], params["W"]))
    torch.testing.assert_close(found, stored["upsampled"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["pointing_game_a", "pointing_game_b"])
def test_pointing_game(fixtures_dir: Path, name: str) -> None:
    params, stored = load(fixtures_dir, name)
    size, tolerance = (params["H"], params["W"]), params["tolerance"]
    game, centre = PointingGame(params["num_classes"], tolerance), []
    points, hits = [], []
    for saliency, mask, label in zip(stored["saliency"], stored["masks"].bool(), stored["class_id"], strict=True):
        points.append(saliency_point(saliency))
        hits.append(game.add(points[-1], mask, int(label)))
        centre.append(pointing_hit(centre_point(size), mask, tolerance))
    signs = torch.tensor(hits).long() * 2 - 1
    assert torch.equal(torch.tensor(points), stored["points_u_v"])
    assert torch.equal(signs, stored["hit"])
    assert torch.equal(torch.tensor(centre).long() * 2 - 1, stored["centre_point_hit"])
    assert torch.equal(game.hits, stored["hits_per_class"])
    assert torch.equal(game.misses, stored["misses_per_class"])
    assert torch.equal(game.class_accuracies, stored["class_accuracies"])
    assert game.accuracy == pytest.approx(stored["accuracy"].item(), abs=1e-12)


@pytest.mark.parametrize("name", ["pointing_game_a", "pointing_game_b"])
def test_pointing_tolerance(fixtures_dir: Path, name: str) -> None:
    params, stored = load(fixtures_dir, name)
    mask = stored["single_pixel_mask"].bool()
    for v, u in torch.cartesian_prod(torch.arange(params["H"]), torch.arange(params["W"])).tolist():
        hit = pointing_hit((u, v), mask, params["tolerance"])
        assert hit == (stored["single_pixel_hit_map"][v, u] == 1), (u, v)
    assert stored["empty_mask_hit"] == -1
    assert not pointing_hit((0, 0), torch.zeros_like(mask), params["tolerance"])
