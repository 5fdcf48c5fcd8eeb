"""Correspondence types: what each draw may and may not be, what it does to a clip, and the loss in closed form."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from avssl_core.losses import BINARY_TYPES, CTP_TYPES, CTPDraw, apply_ctp, ctp_loss, draw_ctp, is_rotation

T, P = 5, 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(batch: int, channels: int = 2, num_gops: int = T) -> Tensor:
    """Clips (B, C, T * p, 2, 2) whose every value names its clip, channel and frame."""
    clip, channel, frame = torch.meshgrid(
        torch.arange(batch), torch.arange(channels), torch.arange(num_gops * P), indexing="ij"
    )
    return (10000 * clip + 1000 * channel + frame)[..., None, None].expand(-1, -1, -1, 2, 2).float()


def rows(draw: CTPDraw, name: str) -> list[int]:
    return (draw.label == CTP_TYPES.index(name)).nonzero().flatten().tolist()


@pytest.fixture(scope="module")
def draw() -> CTPDraw:
    return draw_ctp(400, T, generator())


def test_names_are_those_of_the_paper() -> None:
    assert CTP_TYPES == ("aligned", "random", "shuffle", "shift")
    assert BINARY_TYPES == ("aligned", "random")


def test_types_are_equally_likely(draw: CTPDraw) -> None:
    counts = torch.bincount(draw.label, minlength=4)
    assert counts.sum() == 400 and (counts - 100).abs().max() < 4 * math.sqrt(400 * 3 / 16)
    binary = draw_ctp(400, T, generator(), binary=True)
    assert set(binary.label.tolist()) == {0, 1}
    assert abs(int(binary.label.sum()) - 200) < 4 * math.sqrt(400 / 4)


def test_the_draw_is_a_function_of_the_generator() -> None:
    first, second, other = (draw_ctp(16, T, generator(seed)) for seed in (1, 1, 2))
    for name in ("label", "permutation", "donor"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert not torch.equal(first.permutation, other.permutation)


def test_donors(draw: CTPDraw) -> None:
    own = torch.arange(400)
    random = draw.label == CTP_TYPES.index("random")
    assert (draw.donor[random] != own[random]).all()
    assert torch.equal(draw.donor[~random], own[~random])
    assert len(set(draw.donor[random].tolist())) == int(random.sum())  # none twice


@pytest.mark.parametrize("batch", [2, 3])
def test_donors_of_tiny_batches_are_others_and_all_of_them_occur(batch: int) -> None:
    seen = set()
    for seed in range(60):
        found = draw_ctp(batch, 1, generator(seed), binary=True)
        pairs = [(i, int(found.donor[i])) for i in rows(found, "random")]
        assert all(i != j for i, j in pairs)
        seen.update(pairs)
    assert seen == set(itertools.permutations(range(batch), 2))


def test_permutations_of_each_type(draw: CTPDraw) -> None:
    identity = list(range(T))
    rotations = [identity[r:] + identity[:r] for r in range(1, T)]
    orders = {name: [draw.permutation[i].tolist() for i in rows(draw, name)] for name in CTP_TYPES}
    assert all(order == identity for name in ("aligned", "random") for order in orders[name])
    assert {tuple(order) for order in orders["shift"]} == {tuple(order) for order in rotations}
    assert all(sorted(order) == identity for order in orders["shuffle"])
    assert all(order not in [identity, *rotations] for order in orders["shuffle"])
    assert torch.equal(draw.aligned, draw.label == 0)


def test_shuffles_cover_all_orders_that_are_no_rotation_evenly() -> None:
    """Of three GOPs: the three that are not among the six orders' three rotations."""
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(4):
        found = draw_ctp(300, 3, generator(seed))
        counts.update(tuple(found.permutation[i].tolist()) for i in rows(found, "shuffle"))
    assert set(counts) == {(0, 2, 1), (1, 0, 2), (2, 1, 0)}
    share = sum(counts.values()) / 3
    assert all(abs(count - share) < 4 * math.sqrt(share * 2 / 3) for count in counts.values())


def test_shuffles_of_five_are_115_of_120() -> None:
    allowed = {o for o in itertools.permutations(range(5)) if not is_rotation(torch.tensor(o))}
    assert len(allowed) == 115
    found = draw_ctp(4000, 5, generator())
    assert {tuple(found.permutation[i].tolist()) for i in rows(found, "shuffle")} <= allowed


def test_is_rotation() -> None:
    assert all(is_rotation(torch.arange(4).roll(r)) for r in range(4))
    assert not is_rotation(torch.tensor([0, 2, 1])) and not is_rotation(torch.tensor([3, 2, 1, 0]))


def test_apply_gathers_whole_gops(draw: CTPDraw) -> None:
    """Against a loop over clips and GOPs; order inside a GOP is therefore kept."""
    x = numbered(400)
    found = apply_ctp(draw, x, T)
    assert found.shape == x.shape
    for i in range(400):
        source = x[draw.donor[i]]
        gops = [source[:, int(g) * P : (int(g) + 1) * P] for g in draw.permutation[i]]
        assert torch.equal(found[i], torch.cat(gops, dim=1))
    for i in rows(draw, "aligned"):
        assert torch.equal(found[i], x[i])
    for i in range(400):
        assert sorted(found[i, 0, :, 0, 0].tolist()) == x[draw.donor[i], 0, :, 0, 0].tolist()
        if i not in rows(draw, "aligned"):
            assert not torch.equal(found[i], x[i])


def test_shift_swaps_two_groups() -> None:
    draw = CTPDraw(torch.tensor([3, 0]), torch.tensor([[1, 2, 3, 4, 0], [0, 1, 2, 3, 4]]), torch.tensor([0, 1]))
    found = apply_ctp(draw, numbered(2, 1), T)[0, 0, :, 0, 0]
    assert found.tolist() == [*range(3, 15), 0, 1, 2]


def test_motion_and_residuals_are_rearranged_alike(draw: CTPDraw) -> None:
    motion, residual = numbered(400, 2), numbered(400, 3)
    m, r = apply_ctp(draw, motion, T), apply_ctp(draw, residual, T)
    assert torch.equal(m[:, 0], r[:, 0]) and torch.equal(m[:, 1], r[:, 1])
    every_frame = numbered(400, 2).repeat_interleave(2, dim=2)  # another number of frames a GOP
    assert torch.equal(apply_ctp(draw, every_frame, T)[:, :, ::2], m)


def test_the_input_stays_and_the_result_is_a_copy() -> None:
    x = numbered(8).contiguous()
    before = x.clone()
    apply_ctp(draw_ctp(8, T, generator()), x, T).zero_()
    assert torch.equal(x, before)


def test_gradients_return_to_the_donor() -> None:
    draw = draw_ctp(6, T, generator(3))
    x = numbered(6).contiguous().requires_grad_()
    weight = numbered(6) + 1
    (apply_ctp(draw, x, T) * weight).sum().backward()
    expected = torch.zeros_like(weight)
    for i in range(6):
        for k, g in enumerate(draw.permutation[i].tolist()):
            expected[draw.donor[i], :, g * P : (g + 1) * P] += weight[i, :, k * P : (k + 1) * P]
    torch.testing.assert_close(x.grad, expected)


def test_types_that_do_not_exist() -> None:
    for num_gops in (1, 2):
        with pytest.raises(ValueError, match=rf"{num_gops} GOP.*at least 3, or binary=True"):
            draw_ctp(4, num_gops, generator())
        assert draw_ctp(4, num_gops, generator(), binary=True).permutation.shape == (4, num_gops)
    with pytest.raises(ValueError, match="0 GOP"):
        draw_ctp(4, 0, generator(), binary=True)
    with pytest.raises(ValueError, match="batch has 1"):
        draw_ctp(1, T, generator())
    assert draw_ctp(4, 3, generator()).permutation.shape == (4, 3)


def test_wrong_clips_are_named() -> None:
    draw = draw_ctp(4, T, generator())
    for shape, num_gops in [((4, 2, 16, 2, 2), T), ((3, 2, 15, 2, 2), T), ((4, 2, 15, 2, 2), 3), ((4, 15, 2, 2), T)]:
        with pytest.raises(ValueError, match=rf"4 clips of 5 GOPs.*\({', '.join(map(str, shape))}\)"):
            apply_ctp(draw, torch.zeros(shape), num_gops)


@pytest.mark.parametrize("types", [2, 4])
def test_loss_in_closed_form(types: int) -> None:
    label = draw_ctp(8, T, generator(), binary=types == 2).label
    flat = torch.zeros(8, types, dtype=torch.float64)
    assert ctp_loss(flat, label).item() == pytest.approx(math.log(types))
    assert ctp_loss(flat, label, reduction="sum").item() == pytest.approx(8 * math.log(types))
    sharp = 3 * torch.nn.functional.one_hot(label, types).double()
    assert ctp_loss(sharp, label).item() == pytest.approx(math.log(1 + (types - 1) * math.exp(-3)))
    assert ctp_loss(flat.bfloat16(), label).dtype == torch.float32


def test_loss_matches_a_loop() -> None:
    logits = torch.randn(5, 4, generator=generator(), dtype=torch.float64)
    label = torch.tensor([3, 0, 2, 1, 3])
    terms = [math.log(sum(map(math.exp, row))) - row[j] for row, j in zip(logits.tolist(), label.tolist(), strict=True)]
    assert ctp_loss(logits, label).item() == pytest.approx(sum(terms) / 5, rel=1e-12)
    assert ctp_loss(logits, label, reduction="sum").item() == pytest.approx(sum(terms), rel=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradcheck(reduction: str) -> None:
    logits = torch.randn(5, 4, generator=generator(), dtype=torch.float64, requires_grad=True)
    label = torch.tensor([3, 0, 2, 1, 3])
    assert torch.autograd.gradcheck(lambda x: ctp_loss(x, label, reduction=reduction), (logits,))


def test_wrong_logits_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(4,\), \(4,\)"):
        ctp_loss(torch.zeros(4), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(4, 4\), \(3,\)"):
        ctp_loss(torch.zeros(4, 4), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="'none'"):
        ctp_loss(torch.zeros(4, 4), torch.zeros(4, dtype=torch.int64), reduction="none")
