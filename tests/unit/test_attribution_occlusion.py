"""Occlusion: windows that cover every pixel alike, and maps that add up to what a linear network lost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from avssl_core.attribution import BlurPyramid, occlusion, occlusion_windows


class _Linear(nn.Module):
    """Scores that are weighted sums of pixels, for pictures and clips."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)  # (classes, H, W)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,khw->nk", x.mean(2) if x.ndim == 5 else x, self.weight)


@pytest.mark.parametrize(("window", "stride"), [(4, 4), (6, 3), (5, 1), (1, 1)])
def test_every_pixel_is_covered_and_none_more_than_the_overlap(window: int, stride: int) -> None:
    covered = occlusion_windows((16, 13), window=window, stride=stride).sum(0)
    each = -(-window // stride)
    assert covered.min() >= (window // stride) ** 2 and covered.max() <= each**2


@pytest.mark.parametrize(("window", "stride"), [(0, 1), (4, 5), (4, 0)])
def test_windows_that_leave_gaps_are_refused(window: int, stride: int) -> None:
    with pytest.raises(ValueError, match="stride in"):
        occlusion_windows((8, 8), window=window, stride=stride)


def test_windows_of_one_pixel_give_activation_times_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    model = _Linear(torch.randn(3, 5, 6, generator=generator))
    images = torch.randn(2, 1, 5, 6, generator=generator)
    maps = occlusion(model, images, [2, 0], window=1, stride=1)
    expected = images[:, 0] * model.weight[[2, 0]].detach()
    torch.testing.assert_close(maps[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_the_maximum_is_on_the_patch_that_counts() -> None:
    weight = torch.zeros(2, 16, 16)
    weight[1, 4:8, 8:12] = 1.0
    maps = occlusion(_Linear(weight), torch.ones(1, 1, 16, 16), [1], window=4, stride=2)
    v, u = divmod(int(maps[0, 0].argmax()), 16)
    assert 4 <= v < 8 and 8 <= u < 12
    assert maps[0, 0, 12:].abs().max() == 0


@pytest.mark.parametrize("limit", [1, 3, 7, 1000])
def test_how_many_are_seen_at_a_time_does_not_matter(limit: int) -> None:
    generator = torch.Generator().manual_seed(1)
    model, images = _Linear(torch.randn(2, 8, 8, generator=generator)), torch.randn(3, 1, 8, 8, generator=generator)
    together = occlusion(model, images, [0, 1, 1], window=4, stride=2)
    torch.testing.assert_close(occlusion(model, images, [0, 1, 1], window=4, stride=2, max_evaluations=limit), together)


def test_clips_and_blur() -> None:
    generator = torch.Generator().manual_seed(2)
    model, clips = _Linear(torch.randn(2, 8, 8, generator=generator)), torch.randn(2, 1, 3, 8, 8, generator=generator)
    maps = occlusion(model, clips, [0, 1], window=4, stride=4)
    torch.testing.assert_close(maps, occlusion(model, clips.mean(2), [0, 1], window=4, stride=4))
    blurred = occlusion(model, clips, [0, 1], window=4, stride=4, perturbation=BlurPyramid(clips, max_sigma=2.0))
    assert blurred.shape == (2, 1, 8, 8) and not torch.allclose(blurred, maps)


def test_targets_are_counted_and_the_model_restored() -> None:
    model = _Linear(torch.zeros(2, 4, 4)).train()
    with pytest.raises(ValueError, match="need a target for each of 2"):
        occlusion(model, torch.zeros(2, 1, 4, 4), [0], window=2, stride=2)
    occlusion(model, torch.zeros(2, 1, 4, 4), [0, 1], window=2, stride=2)
    assert model.training and model.weight.requires_grad
