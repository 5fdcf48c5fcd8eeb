"""Degradation: constant squares and runs, the factor of one, against torch's own nearest neighbours, failures."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from avssl_core.transforms import degrade_nearest, hold_samples


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_squares_are_constant_and_hold_a_value_of_the_picture(factor: int) -> None:
    frames = torch.randn(2, 3, 5, 16, 24, generator=torch.Generator().manual_seed(0))
    worse = degrade_nearest(frames, factor)
    assert worse.shape == frames.shape
    for row, column in ((0, 0), (16 - factor, 24 - factor)):
        square = worse[..., row : row + factor, column : column + factor]
        middle = frames[..., row + factor // 2, column + factor // 2]
        assert torch.equal(square, middle[..., None, None].expand_as(square))
    assert not torch.equal(worse, frames)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_agrees_with_two_resamplings_by_nearest_neighbours(factor: int) -> None:
    frames = torch.randn(4, 3, 12, 24, generator=torch.Generator().manual_seed(1))
    small = F.interpolate(frames, scale_factor=1 / factor, mode="nearest-exact")
    assert torch.equal(degrade_nearest(frames, factor), F.interpolate(small, size=(12, 24), mode="nearest-exact"))


def test_a_factor_of_one_changes_nothing() -> None:
    frames, wave = torch.arange(48, dtype=torch.uint8).view(3, 4, 4), torch.arange(10.0)
    assert torch.equal(degrade_nearest(frames, 1), frames) and torch.equal(hold_samples(wave, 1), wave)


def test_sides_that_the_factor_does_not_divide_are_cut() -> None:
    worse = degrade_nearest(torch.arange(25.0).view(5, 5), 2)
    assert worse[0].tolist() == [6, 6, 8, 8, 9]  # rows 0-1 show row 1; columns 0-1 column 1, and so on
    assert worse[:, 0].tolist() == [6, 6, 16, 16, 21]


def test_samples_are_held() -> None:
    held = hold_samples(torch.arange(10.0).expand(2, 10), 4)
    assert held.tolist() == 2 * [[2, 2, 2, 2, 6, 6, 6, 6, 9, 9]]


@pytest.mark.parametrize("factor", [0, 5])
def test_factors_out_of_range_are_refused(factor: int) -> None:
    with pytest.raises(ValueError, match=rf"factor must lie in .* got {factor} for frames \(2, 4, 8\)"):
        degrade_nearest(torch.zeros(2, 4, 8), factor)
    with pytest.raises(ValueError, match=rf"factor must lie in .* got {factor} for a waveform \(4,\)"):
        hold_samples(torch.zeros(4), factor)
