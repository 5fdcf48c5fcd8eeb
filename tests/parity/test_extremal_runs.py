"""Whole optimisations against those of the authors' code, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_extremal import load, network
from torch import Tensor

from avssl_core.attribution import (
    BlurPyramid,
    ExtremalPerturbations,
    SmoothMaskGenerator,
    extremal_perturbation,
    summed_masks,
)

RUNS = ["run_preserve_blur_a", "run_dual_contrastive_a", "run_delete_fade_a"]
DEFAULT = "run_default_start_a"


def repeated(
    params: dict[str, Any], stored: dict[str, Tensor], iterations: int, **options: Any
) -> ExtremalPerturbations:
    image = stored["image"]
    blur = params["perturbation"] == "blur"
    start = stored.get("start_parameters")
    return extremal_perturbation(
        network(params["kind"], stored),
        image,
        [params["target"]],
        params["areas"],
        perturbation=BlurPyramid(image, levels=params["levels"], max_sigma=params["max_blur"]) if blur else "fade",
        generator=SmoothMaskGenerator(image.shape[2:], step=params["step"], sigma=params["sigma"]),
        start=None if start is None else start[None, :, 0],
        variant=params["variant"],
        reward=params["reward"],
        jitter=params["jitter"],
        iterations=iterations,
        **options,
    )


@pytest.mark.parametrize("name", [*RUNS, DEFAULT])
def test_network(fixtures_dir: Path, name: str) -> None:
    params, stored = load(fixtures_dir, name)
    with torch.no_grad():
        found = network(params["kind"], stored)(stored["image"])
    torch.testing.assert_close(found, stored["activation_unperturbed"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("iterations", [1, 5, 20])
@pytest.mark.parametrize("name", RUNS)
def test_masks(fixtures_dir: Path, name: str, iterations: int) -> None:
    params, stored = load(fixtures_dir, name)
    found = repeated(params, stored, iterations)
    torch.testing.assert_close(found.masks[0], stored[f"mask_after_{iterations}"], atol=2e-5, rtol=0)
    torch.testing.assert_close(found.canvases[0], stored[f"full_mask_after_{iterations}"], atol=2e-5, rtol=0)
    torch.testing.assert_close(found.parameters[0], stored["parameters_history"][iterations - 1], atol=2e-5, rtol=0)
    histories = (found.rewards[0], found.regularisers[0])
    keys = ("reward_history_as_documented", "regulariser_history")
    for history, key in zip(histories, keys, strict=True):
        torch.testing.assert_close(history, stored[key][:, :iterations], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_fifty_iterations(fixtures_dir: Path, name: str) -> None:
    """Rounding grows; what the release's contrastive history adds up to is right even so."""
    params, stored = load(fixtures_dir, name)
    found = repeated(params, stored, 50)
    torch.testing.assert_close(found.masks[0], stored["mask_after_50"], atol=2e-2, rtol=0)
    coded = stored["reward_history_as_coded"]
    torch.testing.assert_close(found.rewards[0].sum(0), coded.sum(0), rtol=1e-3, atol=1e-4)
    assert torch.allclose(found.rewards[0], coded, rtol=1e-3, atol=1e-4) == (params["reward"] == "simple")


@pytest.mark.parametrize("name", [*RUNS, DEFAULT])
def test_smoothed(fixtures_dir: Path, name: str) -> None:
    """The map that the pointing game is played on, from the stored mask."""
    params, stored = load(fixtures_dir, name)
    width, height = params["resize_to_width_height"]
    after = "mask_after_1" if name == DEFAULT else "mask_after_20"  # smoothed separately, area by area
    for mask, own, resized in zip(
        stored[after], stored[f"{after}.smoothed"], stored[f"{after}.smoothed_resized"], strict=True
    ):
        smoothed = summed_masks(mask[None, None], smooth=params["smooth"])[0]
        torch.testing.assert_close(smoothed, own, atol=5e-6, rtol=0)
        smoothed = summed_masks(mask[None, None], (height, width), smooth=params["smooth"])[0]
        torch.testing.assert_close(smoothed, resized, atol=5e-6, rtol=0)


def test_default_start(fixtures_dir: Path) -> None:
    """Ties of an all-ones mask are broken by rounding in the release; ours shares them out. Alike for a few steps."""
    params, stored = load(fixtures_dir, DEFAULT)
    found = repeated(params, stored, 5)
    torch.testing.assert_close(found.masks[0], stored["mask_after_5"], atol=3e-2, rtol=0)
    torch.testing.assert_close(
        found.rewards[0, :, :1], stored["reward_history_as_documented"][:, :1], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(found.regularisers[0, :, :1], stored["regulariser_history"][:, :1], atol=0, rtol=1e-5)
    torch.testing.assert_close(repeated(params, stored, 1).masks[0], stored["mask_after_1"], atol=1e-5, rtol=0)


def test_default_start_in_character(fixtures_dir: Path) -> None:
    """After fifty steps: as large, and about as well rewarded, as the release's masks."""
    params, stored = load(fixtures_dir, DEFAULT)
    found = repeated(params, stored, 50)
    area, expected = (x.flatten(1).mean(1) for x in (found.canvases[0], stored["full_mask_after_50"]))
    torch.testing.assert_close(area, expected, atol=0.05, rtol=0)
    torch.testing.assert_close(
        found.rewards[0, :, -1], stored["reward_history_as_documented"][:, -1], rtol=0.15, atol=0
    )
