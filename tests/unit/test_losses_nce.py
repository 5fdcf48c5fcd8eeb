"""The NCE family against slow loops, closed forms, and the properties the papers' cards state."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avssl_core.losses import info_nce, joint_nce, multi_positive_nce, similarity, symmetric_info_nce
from avssl_core.losses.nce import row_logsumexp

T = 0.1


def unit(rows: int, dim: int = 6, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def log_sum(values: list[float]) -> float:
    return math.log(sum(math.exp(v) for v in values))


def slow_info_nce(a: Tensor, b: Tensor, extra: Callable[[int], list[float]] = lambda i: []) -> list[float]:
    """One direction, term by term."""
    losses = []
    for i in range(len(a)):
        logits = [float(a[i] @ b[j]) / T for j in range(len(b))]
        losses.append(log_sum(logits + extra(i)) - logits[i])
    return losses


def slow_joint_nce(a: Tensor, b: Tensor, *, positive_twice: bool) -> list[float]:
    losses = []
    for i in range(len(a)):
        logits = [float(a[i] @ b[j]) / T for j in range(len(b))]
        logits += [float(a[j] @ b[i]) / T for j in range(len(a)) if j != i or positive_twice]
        losses.append(log_sum(logits) - float(a[i] @ b[i]) / T)
    return losses


def tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_info_nce_is_not_symmetric_and_matches_loops_in_both_orders() -> None:
    a, b = unit(5), unit(5, seed=1)
    forward, backward = (info_nce(x, y, temperature=T, reduction="none") for x, y in ((a, b), (b, a)))
    torch.testing.assert_close(forward, tensor(slow_info_nce(a, b)))
    torch.testing.assert_close(backward, tensor(slow_info_nce(b, a)))
    assert (forward - backward).abs().min() > 1e-3


def test_symmetric_info_nce_is_the_mean_of_both_directions() -> None:
    a, b = unit(5), unit(5, seed=1)
    expected = (tensor(slow_info_nce(a, b)) + tensor(slow_info_nce(b, a))) / 2
    torch.testing.assert_close(symmetric_info_nce(a, b, temperature=T, reduction="none"), expected)
    torch.testing.assert_close(symmetric_info_nce(b, a, temperature=T, reduction="none"), expected)


@pytest.mark.parametrize("positive_twice", [False, True])
def test_joint_nce_matches_loops_and_is_symmetric(positive_twice: bool) -> None:
    a, b = unit(5), unit(5, seed=1)
    expected = tensor(slow_joint_nce(a, b, positive_twice=positive_twice))
    for x, y in ((a, b), (b, a)):
        found = joint_nce(x, y, temperature=T, positive_twice=positive_twice, reduction="none")
        torch.testing.assert_close(found, expected)


def test_shared_extra_keys_are_further_negatives() -> None:
    a, b, queue = unit(4), unit(4, seed=1), unit(7, seed=2)
    expected = slow_info_nce(a, b, lambda i: [float(a[i] @ q) / T for q in queue])
    found = info_nce(a, b, temperature=T, extra_keys=queue, reduction="none")
    torch.testing.assert_close(found, tensor(expected))


def test_a_queue_alone_equals_cross_entropy_with_label_zero() -> None:
    """MoCo's and CoCLR's form: (B, 1 + K) logits, the positive in column 0."""
    a, b, queue = unit(4), unit(4, seed=1), unit(7, seed=2)
    logits = torch.cat([(a * b).sum(1, keepdim=True), a @ queue.T], dim=1) / T
    expected = F.cross_entropy(logits, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(info_nce(a, b, temperature=T, extra_keys=queue, batch_negatives=False), expected)


def test_extra_keys_may_differ_between_queries() -> None:
    """Negatives drawn from a memory bank, one set a query."""
    a, b = unit(4), unit(4, seed=1)
    bank = unit(12, seed=2).reshape(4, 3, 6)
    expected = slow_info_nce(a, b, lambda i: [float(a[i] @ k) / T for k in bank[i]])
    torch.testing.assert_close(info_nce(a, b, temperature=T, extra_keys=bank, reduction="none"), tensor(expected))


def test_detached_keys_get_no_gradient_and_change_no_value() -> None:
    a, b, queue = (x.requires_grad_() for x in (unit(4), unit(4, seed=1), unit(7, seed=2)))
    loss = info_nce(a, b, temperature=T, extra_keys=queue, detach_keys=True)
    torch.testing.assert_close(loss, info_nce(a, b, temperature=T, extra_keys=queue))
    loss.backward()
    assert a.grad is not None and b.grad is None and queue.grad is None


PAIR_LOSSES: dict[str, Callable[..., Tensor]] = {
    "info_nce": info_nce,
    "symmetric": symmetric_info_nce,
    "joint": joint_nce,
    "joint, twice": partial(joint_nce, positive_twice=True),
}


@pytest.mark.parametrize(("name", "terms"), [("info_nce", 8), ("symmetric", 8), ("joint", 15), ("joint, twice", 16)])
def test_value_at_a_constant_embedding(name: str, terms: int) -> None:
    constant = unit(1).expand(8, 6)
    loss = PAIR_LOSSES[name](constant, constant, temperature=T)
    assert loss.item() == pytest.approx(math.log(terms), abs=1e-12)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_orthogonal_codes_reach_zero_as_the_temperature_falls(name: str) -> None:
    codes = torch.eye(6, dtype=torch.float64)
    # info_nce, B = 6: log(1 + 5 exp(-1 / T)); the joint softmax has twice the negatives, or also the positive twice.
    negatives, positives = (10, 2) if "twice" in name else (10, 1) if "joint" in name else (5, 1)
    for temperature in (0.5, 0.1, 0.02):
        expected = math.log(positives + negatives * math.exp(-1 / temperature))
        assert PAIR_LOSSES[name](codes, codes, temperature=temperature).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_permuting_the_pairs_permutes_the_losses(name: str) -> None:
    a, b, order = unit(6), unit(6, seed=1), torch.tensor([3, 0, 5, 1, 4, 2])
    loss = partial(PAIR_LOSSES[name], temperature=T, reduction="none")
    torch.testing.assert_close(loss(a[order], b[order]), loss(a, b)[order])
    assert (loss(a, b)[order] - loss(a, b)).abs().max() > 1e-3


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_reductions(name: str) -> None:
    a, b = unit(6), unit(6, seed=1)
    losses = PAIR_LOSSES[name](a, b, temperature=T, reduction="none")
    assert losses.shape == (6,)
    torch.testing.assert_close(PAIR_LOSSES[name](a, b, temperature=T), losses.mean())
    torch.testing.assert_close(PAIR_LOSSES[name](a, b, temperature=T, reduction="sum"), losses.sum())


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_gradients(name: str) -> None:
    a, b = unit(4).requires_grad_(), unit(4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(partial(PAIR_LOSSES[name], temperature=0.3), (a, b))


@pytest.mark.parametrize("keys", [(7, 6), (4, 3, 6)])
def test_gradients_of_extra_keys(keys: tuple[int, ...]) -> None:
    a, b, extra = unit(4), unit(4, seed=1), unit(math.prod(keys[:-1]), seed=2).reshape(keys)

    def loss(query: Tensor, key: Tensor, extra_keys: Tensor) -> Tensor:
        return info_nce(query, key, temperature=0.3, extra_keys=extra_keys)

    assert torch.autograd.gradcheck(loss, tuple(x.requires_grad_() for x in (a, b, extra)))


def test_joint_nce_lies_between_the_larger_direction_and_their_sum_per_pair() -> None:
    """Movie-negatives card: between the larger of row and column cross-entropy and their sum, above their mean."""
    a, b = unit(9), unit(9, seed=1)
    row = info_nce(a, b, temperature=T, reduction="none")
    column = info_nce(b, a, temperature=T, reduction="none")
    joint = joint_nce(a, b, temperature=T, reduction="none")
    assert (joint >= torch.maximum(row, column)).all() and (joint <= row + column).all()
    assert (joint > (row + column) / 2).all()


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_a_constant_added_to_all_logits_changes_nothing(name: str) -> None:
    """A shared extra coordinate adds the same number to every inner product."""
    a, b = unit(6), unit(6, seed=1)
    ones = torch.full((6, 1), 3.0, dtype=torch.float64)
    shifted = PAIR_LOSSES[name](torch.cat([a, ones], 1), torch.cat([b, ones], 1), temperature=T)
    torch.testing.assert_close(shifted, PAIR_LOSSES[name](a, b, temperature=T))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_half_precision_inputs_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    a, b = unit(64, 32).to(dtype).requires_grad_(), unit(64, 32, seed=1).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = PAIR_LOSSES[name](a, b, temperature=0.01)  # logits up to 100: exp overflows both half formats
    assert loss.dtype == torch.float32
    expected = PAIR_LOSSES[name](a.detach().double(), b.double(), temperature=0.01)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    loss.backward()
    assert a.grad is not None and a.grad.dtype == dtype and a.grad.isfinite().all()


def test_float32_inputs_keep_their_precision_under_autocast() -> None:
    a, b = unit(64, 32, dtype=torch.float32), unit(64, 32, seed=1, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = similarity(a, b, temperature=0.07)
        plain = (a @ b.T) / 0.07
    exact = a.double() @ b.double().T / 0.07
    assert (found - exact).abs().max() < 1e-5
    assert (plain - exact).abs().max() > 1e-2, "autocast did not round the plain product: the test shows nothing"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_broken_embeddings_are_not_hidden(name: str, bad: float) -> None:
    a = unit(6)
    a[2, 3] = bad
    assert not PAIR_LOSSES[name](a, unit(6, seed=1), temperature=T).isfinite()


def test_row_logsumexp_equals_torchs_and_survives_rows_of_minus_infinity() -> None:
    logits = 5 * unit(4)
    logits[1] = float("-inf")
    logits[2, 3] = float("-inf")
    mine, reference = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found, expected = row_logsumexp(mine), reference.logsumexp(dim=1)
    torch.testing.assert_close(found, expected)
    rows = torch.tensor([0, 2, 3])
    (gradient,) = torch.autograd.grad(found[rows].square().sum() + 0 * found[1].exp(), mine)
    (other,) = torch.autograd.grad(expected[rows].square().sum(), reference)
    torch.testing.assert_close(gradient[rows], other[rows])
    assert (gradient[1] == 0).all()


def test_large_raw_products_stay_finite() -> None:
    """Movie negatives contrast unnormalised embeddings."""
    a, b = 100 * unit(8), 100 * unit(8, seed=1)
    for loss in PAIR_LOSSES.values():
        assert loss(a.float(), b.float(), temperature=1.0).isfinite()


# Several positives


def slow_multi_positive(logits: Tensor, mask: Tensor, variant: str) -> list[float]:
    losses = []
    for row, positives in zip(logits.tolist(), mask.tolist(), strict=True):
        total = sum(math.exp(v) for v in row)
        p = [math.exp(v) / total for v, is_positive in zip(row, positives, strict=True) if is_positive]
        if not p:
            losses.append(0.0)
        elif variant == "sum_in_log":
            losses.append(-math.log(sum(p)))
        else:
            losses.append(-sum(math.log(v) for v in p) / len(p))
    return losses


@pytest.fixture
def several() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(6, 9, generator=generator, dtype=torch.float64)
    mask = torch.rand(6, 9, generator=generator) < 0.35
    mask[0] = False
    mask[1] = torch.arange(9) == 4
    mask[2] = True
    return logits, mask


VARIANTS = ("sum_in_log", "mean_of_logs")


@pytest.mark.parametrize("variant", VARIANTS)
def test_multi_positive_matches_loops(several: tuple[Tensor, Tensor], variant: str) -> None:
    logits, mask = several
    expected = tensor(slow_multi_positive(logits, mask, variant))
    torch.testing.assert_close(multi_positive_nce(logits, mask, variant=variant, reduction="none"), expected)
    mean = expected.sum() / mask.any(dim=1).sum()  # the row without positives does not count
    torch.testing.assert_close(multi_positive_nce(logits, mask, variant=variant), mean)


@pytest.mark.parametrize("variant", VARIANTS)
def test_multi_positive_with_one_positive_is_info_nce(variant: str) -> None:
    a, b = unit(6), unit(6, seed=1)
    logits = similarity(a, b, temperature=T)
    loss = multi_positive_nce(logits, torch.eye(6, dtype=torch.bool), variant=variant)
    torch.testing.assert_close(loss, info_nce(a, b, temperature=T))


def test_sum_in_log_is_never_larger_and_falls_with_every_positive(several: tuple[Tensor, Tensor]) -> None:
    logits, mask = several
    mask = mask[1:]
    logits = logits[1:]
    summed, meaned = (multi_positive_nce(logits, mask, variant=v, reduction="none") for v in VARIANTS)
    assert (summed <= meaned + 1e-12).all() and (summed < meaned - 1e-3).any()
    for column in range(9):
        more = mask.clone()
        more[:, column] = True
        assert (multi_positive_nce(logits, more, reduction="none") <= summed + 1e-12).all()


def test_floors_with_several_positives() -> None:
    """All probability on four positives: 0 if summed, log 4 if averaged."""
    mask = torch.arange(9)[None] < 4
    logits = torch.where(mask, 50.0, -50.0)
    assert multi_positive_nce(logits, mask, variant="sum_in_log").item() == pytest.approx(0, abs=1e-6)
    assert multi_positive_nce(logits, mask, variant="mean_of_logs").item() == pytest.approx(math.log(4), abs=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_multi_positive_gradients_also_for_rows_without_positives(several: tuple[Tensor, Tensor], variant: str) -> None:
    logits, mask = several
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: multi_positive_nce(x, mask, variant=variant), (logits,))
    (gradient,) = torch.autograd.grad(multi_positive_nce(logits, mask, variant=variant), logits)
    assert gradient[0].abs().max() == 0 and gradient[1].abs().max() > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_columns_of_minus_infinity_take_no_part(several: tuple[Tensor, Tensor], variant: str) -> None:
    logits, mask = several
    mask[:, 8] = False
    hidden = logits.clone()
    hidden[:, 8] = float("-inf")
    found = multi_positive_nce(hidden.requires_grad_(), mask, variant=variant)
    torch.testing.assert_close(found, multi_positive_nce(logits[:, :8], mask[:, :8], variant=variant))
    found.backward()
    assert hidden.grad is not None and hidden.grad.isfinite().all()


def test_no_positives_anywhere_gives_zero_not_nan() -> None:
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = multi_positive_nce(logits, torch.zeros(3, 4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and logits.grad.abs().max() == 0


# Messages


@pytest.mark.parametrize("temperature", [0.0, -0.1, float("nan")])
def test_refuses_a_temperature_that_is_not_positive(temperature: float) -> None:
    for loss in PAIR_LOSSES.values():
        with pytest.raises(ValueError, match="temperature must be positive"):
            loss(unit(4), unit(4), temperature=temperature)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_refuses_shapes_that_do_not_fit_and_a_single_pair(name: str) -> None:
    with pytest.raises(ValueError, match=r"\(4, 6\) and \(5, 6\)"):
        PAIR_LOSSES[name](unit(4), unit(5), temperature=T)
    with pytest.raises(ValueError, match=r"matching batches"):
        PAIR_LOSSES[name](unit(4)[None], unit(4)[None], temperature=T)
    with pytest.raises(ValueError, match="no negatives"):
        PAIR_LOSSES[name](unit(1), unit(1), temperature=T)
    with pytest.raises(ValueError, match="unknown reduction 'avg'"):
        PAIR_LOSSES[name](unit(4), unit(4), temperature=T, reduction="avg")


def test_refuses_extra_keys_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(3, 2, 6\)"):
        info_nce(unit(4), unit(4), temperature=T, extra_keys=unit(6).reshape(3, 2, 6))
    with pytest.raises(ValueError, match="pass extra_keys"):
        info_nce(unit(4), unit(4), temperature=T, batch_negatives=False)
    with pytest.raises(ValueError, match="same d"):
        similarity(unit(4), unit(4, 5), temperature=T)


def test_one_pair_may_be_contrasted_with_a_queue() -> None:
    expected = slow_info_nce(unit(1), unit(1, seed=1), lambda i: [float(unit(1)[i] @ q) / T for q in unit(7, seed=2)])
    found = info_nce(unit(1), unit(1, seed=1), temperature=T, extra_keys=unit(7, seed=2))
    assert found.item() == pytest.approx(expected[0])


def test_multi_positive_refuses_bad_masks_and_variants(several: tuple[Tensor, Tensor]) -> None:
    logits, mask = several
    with pytest.raises(ValueError, match="bool mask"):
        multi_positive_nce(logits, mask.float())
    with pytest.raises(ValueError, match=r"\(5, 9\)"):
        multi_positive_nce(logits, mask[1:])
    with pytest.raises(ValueError, match="unknown variant 'both'"):
        multi_positive_nce(logits, mask, variant="both")
