"""Rotated and reversed compressed clips: vectors follow what pictures do."""

from __future__ import annotations

import pytest
import torch

from avssl_core.transforms import quarter_turns, reverse_order


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("shift", [(1, 0), (0, 2), (3, -1)])
def test_a_turned_picture_moves_along_the_turned_vector(turns: int, shift: tuple[int, int]) -> None:
    """Move a picture by (x, y) and turn both: the second must be the first, moved by the turned vector."""
    x, y = shift
    before = torch.rand(1, 3, 1, 8, 8, generator=torch.Generator().manual_seed(turns))
    after = before.roll((y, x), dims=(-2, -1))
    vectors = torch.tensor([float(x), float(y)]).view(1, 2, 1, 1, 1).expand(1, 2, 1, 8, 8)
    k = torch.tensor([turns])
    turned = quarter_turns(vectors, k, vectors=True)[0, :, 0, 0, 0].int().tolist()
    expected = quarter_turns(before, k).roll((turned[1], turned[0]), dims=(-2, -1))
    assert torch.equal(quarter_turns(after, k), expected)


def test_each_clip_turns_by_its_own_number_and_four_turns_are_none() -> None:
    x = torch.rand(4, 2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    turns = torch.arange(4)
    out = quarter_turns(x, turns, vectors=True)
    for clip in range(4):
        alone = quarter_turns(x[clip : clip + 1], turns[clip : clip + 1], vectors=True)
        assert torch.equal(out[clip : clip + 1], alone)
    assert torch.equal(out[0], x[0])
    back = quarter_turns(out, (4 - turns) % 4, vectors=True)
    assert torch.equal(back, x)
    assert not torch.equal(out[1], torch.rot90(x[1], 1, dims=(-2, -1)))  # a vector is more than a picture


def test_gradients_reach_every_clip() -> None:
    x = torch.rand(4, 3, 2, 5, 5, requires_grad=True)
    quarter_turns(x, torch.arange(4)).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.ones_like(x))


def test_backwards_turns_order_and_sign() -> None:
    x = torch.arange(12.0).view(2, 1, 6, 1, 1)
    backwards = torch.tensor([True, False])
    assert reverse_order(x, backwards)[0].flatten().tolist() == [5, 4, 3, 2, 1, 0]
    assert reverse_order(x, backwards, differences=True)[0].flatten().tolist() == [-5, -4, -3, -2, -1, 0]
    assert torch.equal(reverse_order(x, backwards, differences=True)[1], x[1])
    twice = reverse_order(reverse_order(x, backwards, differences=True), backwards, differences=True)
    assert torch.equal(twice, x)


@pytest.mark.parametrize(
    ("shape", "turns", "vectors"),
    [((1, 3, 2, 4, 5), 1, False), ((2, 3, 2, 4, 4), 1, False), ((1, 3, 2, 4, 4), 1, True)],
)
def test_what_cannot_be_turned_is_refused(shape: tuple[int, ...], turns: int, vectors: bool) -> None:
    with pytest.raises(ValueError, match="square maps"):
        quarter_turns(torch.zeros(shape), torch.zeros(turns, dtype=torch.int64), vectors=vectors)


def test_another_number_of_clips_is_refused() -> None:
    with pytest.raises(ValueError, match="B = 3"):
        reverse_order(torch.zeros(2, 3, 2, 4, 4), torch.zeros(3, dtype=torch.bool))
