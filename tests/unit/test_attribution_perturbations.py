"""Blur and fade, dosed by a mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from avssl_core.attribution import BlurPyramid, FadePyramid, gaussian_blur


def pictures(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def operators(x: Tensor) -> list[Any]:
    return [BlurPyramid(x, max_sigma=3.0), FadePyramid(x)]


@pytest.mark.parametrize(
    "shape", [(2, 3, 10, 12), (2, 3, 4, 10, 12), (1, 1, 16, 20)], ids=["pictures", "clips", "sound"]
)
def test_ends_are_exact(shape: tuple[int, ...]) -> None:
    x = pictures(*shape)
    for operator in operators(x):
        ones = torch.ones(shape[0], 2, 1, *shape[2:])
        assert torch.equal(operator(ones), x[:, None].expand(-1, 2, *shape[1:]))
        most = gaussian_blur(x, 3.0) if isinstance(operator, BlurPyramid) else torch.zeros_like(x)
        torch.testing.assert_close(operator(0 * ones)[:, 1], most, atol=1e-6, rtol=0)


def test_linear_between_levels() -> None:
    x = pictures(1, 3, 10, 12)
    operator = BlurPyramid(x, max_sigma=4.0, levels=5)
    for level, sigma, below in ((1.0, 3.0, 4.0), (3.0, 1.0, 2.0)):
        found = operator(torch.full((1, 1, 1, 10, 12), (level - 0.25) / 4))[:, 0]
        expected = 0.75 * gaussian_blur(x, sigma) + 0.25 * gaussian_blur(x, below)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_fade_is_a_product() -> None:
    x, m = pictures(2, 3, 6, 7), torch.rand(2, 4, 1, 6, 7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(FadePyramid(x)(m), m * x[:, None])


def test_each_picture_has_its_own_masks() -> None:
    x, m = pictures(3, 2, 8, 9), torch.rand(3, 4, 1, 8, 9, generator=torch.Generator().manual_seed(1))
    together = BlurPyramid(x)(m)
    alone = torch.cat([BlurPyramid(x[i : i + 1])(m[i : i + 1]) for i in range(3)])
    assert torch.equal(together, alone)


def test_clips_are_blurred_in_space() -> None:
    x = pictures(1, 2, 3, 8, 9)
    m = torch.rand(1, 1, 1, 3, 8, 9, generator=torch.Generator().manual_seed(1))
    frames = [BlurPyramid(x[:, :, t])(m[:, :, :, t]) for t in range(3)]
    torch.testing.assert_close(BlurPyramid(x)(m), torch.stack(frames, dim=3))


def test_gradients() -> None:
    x = pictures(2, 2, 4, 5).double()
    m = torch.rand(2, 2, 1, 4, 5, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    for operator in operators(x):
        assert torch.autograd.gradcheck(operator, m, eps=1e-7)
        ones = torch.ones_like(m).requires_grad_()
        assert not torch.autograd.grad(operator(ones).square().sum(), ones)[0].any()


def test_a_constant_picture_stays_under_the_printed_formula() -> None:
    x = torch.full((1, 1, 20, 15), 0.4)
    for padding in ("renormalise", "reflect", "replicate"):
        torch.testing.assert_close(gaussian_blur(x, 2.0, padding=padding), x)
    assert gaussian_blur(x, 2.0)[0, 0, 0, 0] < 0.2  # zeros outside: a quarter of the weight is inside a corner


def test_blur_by_the_printed_formula() -> None:
    x, sigma = pictures(1, 1, 6, 5).double(), 1.3
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(5), indexing="ij")
    places = torch.stack([rows, columns], -1).reshape(-1, 2).double()
    weights = torch.exp(-torch.cdist(places, places).square() / (2 * sigma**2))
    expected = (weights @ x.flatten() / weights.sum(1)).reshape(6, 5)
    torch.testing.assert_close(gaussian_blur(x, sigma, padding="renormalise")[0, 0], expected)


def test_blur_keeps_the_sum() -> None:
    x = torch.zeros(1, 1, 41, 41)
    x[0, 0, 20, 20] = 1
    assert gaussian_blur(x, 3.0).sum().item() == pytest.approx(1, abs=1e-5)
    assert torch.equal(gaussian_blur(x, 0.0), x)
    assert gaussian_blur(x, 0.0, stride=2).shape == (1, 1, 21, 21)


def test_bad_arguments() -> None:
    x = pictures(1, 3, 8, 8)
    with pytest.raises(ValueError, match="sigma must not be negative, got -1"):
        gaussian_blur(x, -1)
    with pytest.raises(ValueError, match="unknown padding 'wrap'"):
        gaussian_blur(x, 1.0, padding="wrap")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"sigma=2\.0 reflects 8 pixels"):
        gaussian_blur(x, 2.0, padding="reflect")
    with pytest.raises(ValueError, match="levels=1: at least 2"):
        BlurPyramid(x, levels=1)
    for kind in (BlurPyramid, FadePyramid):
        with pytest.raises(ValueError, match=r"got \(3, 8, 8\)"):
            kind(x[0])
        with pytest.raises(ValueError, match=r"expected masks \(1, 'A', 1, 8, 8\), got \(2, 1, 1, 8, 8\)"):
            kind(x)(torch.ones(2, 1, 1, 8, 8))
