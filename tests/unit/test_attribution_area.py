"""The area regulariser and what is read off a sweep of areas."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from avssl_core.attribution import (
    CountRegulariser,
    area_regulariser,
    count_regulariser,
    is_monotone,
    optimal_area,
    reference_zeros,
)


def by_sorting(mask: Tensor, area: float) -> Tensor:
    ordered = mask.flatten().sort().values
    reference = torch.ones_like(ordered)
    reference[: int(len(ordered) * (1 - area))] = 0
    return (ordered - reference).square().mean()


@pytest.mark.parametrize("area", [0.0, 0.01, 0.3, 0.5, 0.999, 1.0])
def test_definition(area: float) -> None:
    masks = torch.rand(3, 1, 9, 11, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    found = area_regulariser(masks, [area] * 3)
    expected = torch.stack([by_sorting(mask, area) for mask in masks])
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(x.sum(), masks)[0] for x in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_different_areas_in_one_batch() -> None:
    masks, areas = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)), [0.4, 0.05, 1.0, 0.05, 0.0]
    expected = torch.stack([by_sorting(mask, area) for mask, area in zip(masks, areas, strict=True)])
    torch.testing.assert_close(area_regulariser(masks, areas), expected)
    torch.testing.assert_close(area_regulariser(masks, areas, reduction="sum"), 64 * expected)


def test_nearest_binary_mask() -> None:
    """By the rearrangement inequality it is the squared distance to the nearest binary mask of that many ones."""
    mask = torch.rand(1, 7, generator=torch.Generator().manual_seed(0))
    for count in range(8):
        nearest = min(
            sum((m - (i in ones)) ** 2 for i, m in enumerate(mask[0].tolist()))
            for ones in itertools.combinations(range(7), count)
        )
        assert count_regulariser(mask, [count]).item() == pytest.approx(nearest, abs=1e-6)


def test_zero_only_where_it_should_be() -> None:
    binary = torch.zeros(1, 100)
    binary[0, torch.randperm(100, generator=torch.Generator().manual_seed(0))[:30]] = 1
    assert 100 - reference_zeros(100, 0.3) == 30
    assert area_regulariser(binary, [0.3]).item() == 0
    assert area_regulariser(binary, [0.31]).item() == pytest.approx(0.01)
    assert area_regulariser(0.99 * binary, [0.3]).item() > 0


def test_constant_mask() -> None:
    """``(1 - a) c^2 + a (1 - c)^2``, its gradient the same for all: nobody breaks the tie."""
    mask = torch.full((1, 1, 10, 10), 0.7, dtype=torch.float64, requires_grad=True)
    value = area_regulariser(mask, [0.2])
    assert value.item() == pytest.approx(0.8 * 0.49 + 0.2 * 0.09)
    (gradient,) = torch.autograd.grad(value, mask)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 2 * (0.7 - 0.2) / 100))


def test_pixels_may_change_places() -> None:
    mask = torch.rand(1, 50, generator=torch.Generator().manual_seed(0))
    shuffled = mask[:, torch.randperm(50, generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(area_regulariser(mask, [0.4]), area_regulariser(shuffled, [0.4]))


def test_gradients() -> None:
    masks = torch.rand(2, 12, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda m: area_regulariser(m, [0.25, 0.5]), masks)
    assert torch.autograd.gradcheck(lambda m: count_regulariser(m, [0, 12]), masks)


def test_module_is_the_function() -> None:
    masks = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(CountRegulariser([1, 5, 1])(masks), count_regulariser(masks, [1, 5, 1]))


def test_optimal_area() -> None:
    areas = [0.4, 0.1, 0.2]
    assert optimal_area(torch.tensor([3.0, 1.0, 2.0]), areas, 2.0) == 0.2
    assert optimal_area(torch.tensor([3.0, 1.0, 2.0]), areas, 0.0) == 0.1
    assert optimal_area(torch.tensor([3.0, 1.0, 2.0]), areas, 4.0) is None


def test_monotone_up_to_the_optimal_area() -> None:
    areas = [0.1, 0.2, 0.4, 0.8]
    assert is_monotone(torch.tensor([1.0, 2.0, 3.0, 2.0]), areas, 3.0)
    assert not is_monotone(torch.tensor([1.0, 2.0, 3.0, 2.0]), areas, 9.0)
    assert not is_monotone(torch.tensor([2.0, 1.0, 3.0, 4.0]), areas, 3.0)
    assert is_monotone(torch.tensor([3.0, 1.0, 2.0, 4.0])[[0, 2, 1, 3]], [0.8, 0.1, 0.2, 0.9], 9.0) is False
    assert is_monotone(torch.tensor([4.0, 1.0]), [0.8, 0.1], 9.0)


def test_bad_arguments() -> None:
    masks = torch.rand(2, 10)
    with pytest.raises(ValueError, match=r"areas are shares in \[0, 1\], got \[0.1, 5\]"):
        area_regulariser(masks, [0.1, 5])
    with pytest.raises(ValueError, match=r"need a count in \[0, 10\] for each of 2 masks, got \[1\]"):
        count_regulariser(masks, [1])
    with pytest.raises(ValueError, match=r"got \[1, 11\]"):
        count_regulariser(masks, [1, 11])
    with pytest.raises(ValueError, match="unknown reduction 'max'"):
        area_regulariser(masks, [0.1, 0.2], reduction="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one score for each of 3 areas"):
        optimal_area(torch.zeros(2), [0.1, 0.2, 0.3], 0.0)
