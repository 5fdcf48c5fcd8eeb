"""Eq. (1) against slow loops, its special cases, its floors, and its numerics."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from avssl_core.losses import (
    HYPOTHESES,
    CompositionalNCE,
    batch_matrices,
    contrast_matrix,
    loss_floor,
    path_codes,
    symmetric_info_nce,
    weight_matrix,
)


def unit(rows: int, dim: int = 6, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=-1)


def slow_equation_one(z: Tensor, c: Tensor, w: Tensor, temperature: float) -> list[float]:
    """The printed formula, one anchor at a time, with no log-sum-exp."""
    losses = []
    for t in range(len(z)):
        score = [math.exp(float(z[t] @ z[other]) / temperature) for other in range(len(z))]
        denominator = sum(s for s, admitted in zip(score, w[t].tolist(), strict=True) if admitted)
        losses.append(
            -sum(
                math.log(score[other] / denominator)
                for other in range(len(z))
                if bool(c[t, other]) and bool(w[t, other])
            )
        )
    return losses


def random_matrices(n: int = 12) -> tuple[Tensor, Tensor]:
    """Contrast of random codes and a weight that is neither symmetric nor full; some anchors have no positive."""
    generator = torch.Generator().manual_seed(8)
    codes = torch.randint(4, (n, 1), generator=generator)
    codes[0] = 9  # nobody shares it
    w = torch.rand(n, n, generator=generator) < 0.7
    return contrast_matrix(codes, ("distinctive",)), w & ~torch.eye(n, dtype=torch.bool)


CASES = {row: h.matrices(3) for row, h in HYPOTHESES.items()} | {"random": random_matrices()}


@pytest.mark.parametrize("name", CASES)
def test_matches_slow_loops(name: str) -> None:
    c, w = CASES[name]
    z = unit(len(c))
    expected = torch.tensor(slow_equation_one(z, c, w, 0.3), dtype=torch.float64)
    torch.testing.assert_close(CompositionalNCE(0.3, reduction="none")(z, c, w), expected)
    torch.testing.assert_close(CompositionalNCE(0.3, reduction="sum")(z, c, w), expected.sum())
    torch.testing.assert_close(CompositionalNCE(0.3)(z, c, w), expected.sum() / (c & w).sum())


@pytest.mark.parametrize("name", ["a", "d", "e", "l", "random"])
def test_gradients(name: str) -> None:
    c, w = CASES[name]
    z = unit(len(c), 3).requires_grad_()
    for reduction in ("mean", "sum", "none"):
        assert torch.autograd.gradcheck(lambda x, r=reduction: CompositionalNCE(0.5, reduction=r)(x, c, w), (z,))


def test_equals_the_summed_nt_xent_of_simclr() -> None:
    """Two augmentations an image: 2N rows, each with one positive and 2N - 2 negatives (SimCLR, eq. 1)."""
    z = unit(10)
    logits = z @ z.T / 0.2
    logits.fill_diagonal_(float("-inf"))
    partner = torch.arange(10).view(5, 2).flip(1).flatten()
    nt_xent = F.cross_entropy(logits, partner, reduction="sum")
    c, w = HYPOTHESES["a"].matrices(5)
    torch.testing.assert_close(CompositionalNCE(0.2, reduction="sum")(z, c, w), nt_xent)


def test_equals_symmetric_info_nce_with_one_clip_a_modality() -> None:
    v, a = unit(7), unit(7, seed=1)
    z = torch.stack([v, a], dim=1).flatten(0, 1)  # (N, K_m, d) -> (2N, d)
    c, w = HYPOTHESES["e"].matrices(7)
    symmetric = symmetric_info_nce(v, a, temperature=0.1)
    torch.testing.assert_close(CompositionalNCE(0.1)(z, c, w), symmetric)
    torch.testing.assert_close(CompositionalNCE(0.1, reduction="sum")(z, c, w), 14 * symmetric)


@pytest.mark.parametrize("row", HYPOTHESES)
def test_value_at_a_constant_embedding_is_the_log_of_the_admitted(row: str) -> None:
    c, w = HYPOTHESES[row].matrices(4)
    z = unit(1).expand(len(c), 6)
    losses = CompositionalNCE(reduction="none")(z, c, w)
    expected = (c & w).sum(dim=1) * w.sum(dim=1).double().log()
    torch.testing.assert_close(losses, expected)


def perfect(codes: Tensor, columns: list[int]) -> Tensor:
    """One-hot embedding of the classes that the named columns form."""
    classes = codes[:, columns].unique(dim=0, return_inverse=True)[1]
    return F.one_hot(classes).double()


@pytest.mark.parametrize("row", HYPOTHESES)
def test_floor_log_p_is_reached_and_not_passed(row: str) -> None:
    """A perfect embedding comes to log P as the temperature falls; nothing found by descent goes below."""
    h = HYPOTHESES[row]
    c, w = h.matrices(3)
    floor = loss_floor(c, w)
    positives = (c & w).sum(dim=1)
    torch.testing.assert_close(floor, positives.double().log())
    codes = h.codes(3)
    z = perfect(codes, [m for m, kind in enumerate(h.kinds) if kind == "distinctive"])
    reached = CompositionalNCE(0.02, reduction="none")(z, c, w) / positives
    torch.testing.assert_close(reached, floor, atol=1e-8, rtol=0)
    found = descend(c, w, torch.arange(len(c)), steps=60)
    assert (found >= floor[0] - 1e-9).all()


def descend(c: Tensor, w: Tensor, sample: Tensor, *, steps: int) -> Tensor:
    """Minimise eq. (1) over free, unnormalised embeddings; rows with the same ``sample`` share one."""
    free = torch.randn(int(sample.max()) + 1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    free.requires_grad_()
    loss = CompositionalNCE(1.0)
    optimiser = torch.optim.LBFGS([free], lr=0.5, max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(free[sample], c, w)
        value.backward()
        return value

    optimiser.step(closure)
    return loss(free[sample], c, w).detach()


def static(row: str, column: int, *, videos: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Contrast, weight and identical samples of a world where one factor (time shift or reversal) changes nothing."""
    h = HYPOTHESES[row]
    codes = h.codes(videos)
    kinds = tuple("invariant" if m == column else "distinctive" for m in range(5))
    return *h.matrices(videos), contrast_matrix(codes, kinds)


# Row, column that changes nothing (1 time shift, 3 reversal), P, H.
@pytest.mark.parametrize(
    ("row", "column", "positives", "hard"),
    [("i", 3, 1, 1), ("j", 1, 1, 1), ("l", 1, 2, 2), ("k", 3, 2, 2), ("m", 1, 1, 1), ("m", 3, 1, 1), ("h", 1, 4, 0)],
)
def test_floor_with_indistinguishable_negatives(row: str, column: int, positives: int, hard: int) -> None:
    """log(P + H): log 2 for rows (i) and (j) on palindromic or static clips."""
    c, w, same = static(row, column)
    floor = loss_floor(c, w, same_sample=same)
    torch.testing.assert_close(floor, torch.full_like(floor, math.log(positives + hard)))
    sample = same.double().argmax(dim=1).unique(return_inverse=True)[1]
    reached = descend(c, w, sample, steps=300)
    assert floor[0] - 1e-9 <= reached <= floor[0] + 0.02


def test_floor_where_only_one_of_two_positives_has_a_twin() -> None:
    """P = 2, H = 1: the groups differ, and the optimum (log 4 + log 2) / 2 lies below log(P + H) = log 3."""
    c = torch.tensor([[True, True, False]])
    w = torch.ones(1, 3, dtype=torch.bool)
    same = torch.eye(3, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True
    expected = (math.log(4) + math.log(2)) / 2
    assert expected < math.log(3)
    assert loss_floor(c, w, same_sample=same).item() == pytest.approx(expected)
    # Probabilities (q, 1 - 2q, q) on positive, positive, twin: the best q is on a fine grid, too.
    q = torch.linspace(0.001, 0.499, 9999, dtype=torch.float64)
    assert (-(q.log() + (1 - 2 * q).log()) / 2).min().item() == pytest.approx(expected, abs=1e-6)


def test_floor_of_an_anchor_without_positives_is_nan() -> None:
    c, w = random_matrices()
    without = (c & w).sum(dim=1) == 0
    assert 0 < without.sum() < len(c)
    assert torch.equal(loss_floor(c, w).isnan(), without)


def test_without_negatives_the_constant_embedding_is_optimal() -> None:
    """All factors invariant: collapse. Descent ends where it cannot tell anything apart, at log n_w."""
    w = weight_matrix(path_codes((4, 2)), "not_self")
    c = torch.ones_like(w)
    torch.testing.assert_close(loss_floor(c, w), torch.full((8,), math.log(7), dtype=torch.float64))
    constant = CompositionalNCE()(unit(1).expand(8, 6), c, w)
    assert constant.item() == pytest.approx(math.log(7))
    assert CompositionalNCE()(unit(8), c, w) > constant


@pytest.mark.parametrize("name", ["d", "l", "random"])
def test_permuting_transformations_permutes_the_losses(name: str) -> None:
    c, w = CASES[name]
    z, order = unit(len(c)), torch.randperm(len(c), generator=torch.Generator().manual_seed(1))
    loss = CompositionalNCE(reduction="none")
    torch.testing.assert_close(loss(z[order], c[order][:, order], w[order][:, order]), loss(z, c, w)[order])


@pytest.mark.parametrize("name", ["d", "l", "random"])
def test_a_constant_added_to_all_logits_changes_nothing(name: str) -> None:
    c, w = CASES[name]
    z = unit(len(c))
    shifted = torch.cat([z, torch.full((len(z), 1), 5.0, dtype=torch.float64)], dim=1)
    loss = CompositionalNCE(reduction="none")
    torch.testing.assert_close(loss(shifted, c, w), loss(z, c, w))


def test_excluded_pairs_have_no_influence() -> None:
    """Even an excluded logit that would overflow: -inf stands in its place before the row maximum is taken."""
    c, w = HYPOTHESES["l"].matrices(2)
    z = unit(len(c)).float()
    z[0] *= 200  # <z0, z0> / 0.07 = 5.7e5, excluded by the cross-modal weight
    loss = CompositionalNCE(reduction="none")(z.requires_grad_(), c, w)
    loss.sum().backward()
    assert loss.isfinite().all() and z.grad is not None and z.grad.isfinite().all()
    without = CompositionalNCE(reduction="none")(z.detach().double(), c, w)
    torch.testing.assert_close(loss.double(), without, rtol=1e-5, atol=1e-4)


def test_anchors_without_positives_or_partners_contribute_zero_and_no_gradient() -> None:
    c, w = random_matrices()
    w[3] = False  # nobody to compare with: a row of -inf
    z = unit(len(c)).requires_grad_()
    losses = CompositionalNCE(reduction="none")(z, c, w)
    assert losses[0] == 0 and losses[3] == 0 and (losses[4:] > 0).any()
    losses.sum().backward()
    assert z.grad is not None and z.grad.isfinite().all()
    (alone,) = torch.autograd.grad(CompositionalNCE(reduction="none")(z, c, w)[[0, 3]].sum(), z)
    assert alone.abs().max() == 0


def test_broken_embeddings_are_not_hidden() -> None:
    c, w = HYPOTHESES["l"].matrices(2)
    for bad in (float("nan"), float("inf")):
        z = unit(len(c))
        z[5, 2] = bad
        assert not CompositionalNCE()(z, c, w).isfinite()


def test_a_batch_without_any_positive_gives_zero_not_nan() -> None:
    w = ~torch.eye(4, dtype=torch.bool)
    z = unit(4).requires_grad_()
    loss = CompositionalNCE()(z, torch.zeros_like(w), w)
    loss.backward()
    assert loss == 0 and z.grad is not None and z.grad.abs().max() == 0


def test_half_precision_and_autocast() -> None:
    c, w = HYPOTHESES["l"].matrices(16)
    z = unit(len(c), 32).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = CompositionalNCE(0.01)(z, c, w)
    assert loss.dtype == torch.float32
    expected = CompositionalNCE(0.01)(z.detach().double(), c, w)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    loss.backward()
    assert z.grad is not None and z.grad.dtype == torch.bfloat16 and z.grad.isfinite().all()


def test_from_codes_is_the_same_as_the_matrices() -> None:
    h = HYPOTHESES["l"]
    z, codes = unit(24), h.codes(3)
    c, w = batch_matrices(codes, h.kinds, h.weight_mode, modality=h.modality)
    assert torch.equal(c, h.matrices(3)[0]) and torch.equal(w, h.matrices(3)[1])
    loss = CompositionalNCE()
    torch.testing.assert_close(loss.from_codes(z, codes, h.kinds, h.weight_mode, modality=h.modality), loss(z, c, w))


def test_messages() -> None:
    c, w = HYPOTHESES["e"].matrices(3)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        CompositionalNCE(0)
    with pytest.raises(ValueError, match="unknown reduction 'avg'"):
        CompositionalNCE(reduction="avg")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"need matrices \(5, 5\), got \(6, 6\)"):
        CompositionalNCE()(unit(5), c, w)
    with pytest.raises(ValueError, match="must be bool"):
        CompositionalNCE()(unit(6), c.float(), w)
    with pytest.raises(ValueError, match="same_sample must be bool"):
        loss_floor(c, w, same_sample=torch.eye(3, dtype=torch.bool))
    assert repr(CompositionalNCE(0.1)) == "CompositionalNCE(temperature=0.1, reduction='mean')"
