"""Modality splicing, the loss of many heads, their groups, and when to cluster."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from avssl_core.clustering import ClusterHeads, clustering_rounds, fuse_log_probs, head_groups, self_label_loss

HEADS, BATCH, CLUSTERS = 3, 7, 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


# Splicing


def slow_log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(x) for x in row))
    return [x - total for x in row]


@pytest.mark.parametrize("weights", [None, (1.0, 3.0)])
def test_fusing_agrees_with_loops(monkeypatch: pytest.MonkeyPatch, weights: tuple[float, float] | None) -> None:
    v, a = logits(0, 8, 4), logits(1, 8, 4)
    w = (0.5, 0.5) if weights is None else (0.25, 0.75)
    rows = zip(map(slow_log_softmax, v.tolist()), map(slow_log_softmax, a.tolist()), strict=True)
    expected = torch.tensor([[w[0] * x + w[1] * y for x, y in zip(p, q, strict=True)] for p, q in rows]).double()
    torch.testing.assert_close(
        fuse_log_probs([v, a], weights=weights, dtype=torch.float64), expected, rtol=1e-6, atol=1e-6
    )
    monkeypatch.setattr("avssl_core.clustering.splicing.FUSE_CHUNK", 12)  # three rows
    found = fuse_log_probs([v.float().requires_grad_(), a.float()], weights=weights)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32 and not found.requires_grad


def test_two_modalities_give_the_geometric_mean_and_constants_do_not_matter() -> None:
    v, a = logits(0, 8, 4), logits(1, 8, 4)
    fused = fuse_log_probs([v, a], dtype=torch.float64)
    torch.testing.assert_close(fused.exp(), (v.softmax(dim=1) * a.softmax(dim=1)).sqrt())
    torch.testing.assert_close(fuse_log_probs([v + 3, a - logits(2, 8, 1)], dtype=torch.float64), fused)
    torch.testing.assert_close(fuse_log_probs([a, v], dtype=torch.float64), fused)
    torch.testing.assert_close(fuse_log_probs([v], dtype=torch.float64), v.log_softmax(dim=1))
    assert (fuse_log_probs([v, a]).argmax(1) != v.argmax(1)).any()


def test_each_modality_can_overrule_the_other_where_it_is_sure() -> None:
    v, a = torch.tensor([[9.0, 0, 0], [1.0, 0, 0]]), torch.tensor([[0.0, 1, 0], [0.0, 9, 0]])
    assert fuse_log_probs([v, a]).argmax(dim=1).tolist() == [0, 1]


def test_half_precision_is_summed_in_float32() -> None:
    v = 30 * logits(0, 50, 4).bfloat16()
    expected = fuse_log_probs([v.float()])
    assert torch.equal(fuse_log_probs([v]), expected)
    torch.testing.assert_close(fuse_log_probs([v], dtype=torch.bfloat16), expected.bfloat16())


def test_fusing_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\[\(8, 4\), \(8, 5\)\]"):
        fuse_log_probs([logits(0, 8, 4), logits(1, 8, 5)])
    with pytest.raises(ValueError, match=r"got \[\]"):
        fuse_log_probs([])
    for weights in ((1.0,), (0.0, 0.0), (2.0, -1.0)):
        with pytest.raises(ValueError, match="expected 2 weights, none negative and not all 0"):
            fuse_log_probs([logits(0, 8, 4), logits(1, 8, 4)], weights=weights)


# Loss


def batch() -> tuple[list[Tensor], Tensor]:
    labels = torch.randint(CLUSTERS, (BATCH, HEADS), generator=seeded(5))
    return [logits(m, HEADS, BATCH, CLUSTERS).requires_grad_() for m in range(2)], labels


def test_loss_is_the_mean_of_all_cross_entropies() -> None:
    parts, labels = batch()
    terms = [
        -slow_log_softmax(part[h, i].tolist())[int(labels[i, h])]
        for part in parts
        for h in range(HEADS)
        for i in range(BATCH)
    ]
    loss = self_label_loss(parts, labels)
    assert loss.item() == pytest.approx(sum(terms) / len(terms))
    assert self_label_loss(parts[::-1], labels).item() == pytest.approx(loss.item())
    single = [self_label_loss([part], labels).item() for part in parts]
    assert loss.item() == pytest.approx(sum(single) / 2) and abs(single[0] - single[1]) > 1e-3


def test_loss_gradients() -> None:
    parts, labels = batch()
    assert torch.autograd.gradcheck(lambda v, a: self_label_loss([v, a], labels), tuple(parts))


def test_constant_logits_cost_log_k_and_sure_ones_nothing() -> None:
    labels = batch()[1]
    flat = torch.zeros(HEADS, BATCH, CLUSTERS)
    assert self_label_loss([flat, flat], labels).item() == pytest.approx(math.log(CLUSTERS))
    sure = 100 * torch.nn.functional.one_hot(labels.T, CLUSTERS).float()
    assert self_label_loss([sure, sure], labels).item() == pytest.approx(0, abs=1e-6)


def test_heads_do_not_mix() -> None:
    """Exchanging two heads with their labels changes nothing; exchanging labels alone does."""
    parts, labels = batch()
    order = torch.tensor([2, 0, 1])
    loss = self_label_loss(parts, labels)
    torch.testing.assert_close(self_label_loss([p[order] for p in parts], labels[:, order]), loss)
    assert (self_label_loss(parts, labels[:, order]) - loss).abs() > 1e-3


def test_loss_is_float32_under_autocast() -> None:
    parts, labels = batch()
    half = [part.detach().bfloat16() for part in parts]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = self_label_loss(half, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, self_label_loss([part.float() for part in half], labels))


@pytest.mark.parametrize("label", [-1, -100, CLUSTERS])
def test_loss_refuses_samples_that_were_never_labelled(label: int) -> None:
    parts, labels = batch()
    labels[2, 1] = label
    with pytest.raises(ValueError, match=rf"labels must lie in 0\.\.4, got .*{label}.*: was every sample"):
        self_label_loss(parts, labels)


def test_loss_refuses_what_does_not_fit() -> None:
    parts, labels = batch()
    with pytest.raises(ValueError, match=r"int64 labels \(7, 3\), got \(3, 7\)"):
        self_label_loss(parts, labels.T)
    with pytest.raises(ValueError, match=r"torch\.int32"):
        self_label_loss(parts, labels.int())
    with pytest.raises(ValueError, match=r"\[\(3, 7, 5\), \(2, 7, 5\)\]"):
        self_label_loss([parts[0], parts[1][:2]], labels)
    with pytest.raises(ValueError, match=r"got \[\]"):
        self_label_loss([], labels)


# Heads


def test_heads_share_nothing() -> None:
    torch.manual_seed(0)
    model = ClusterHeads(6, CLUSTERS, HEADS, hidden_dim=4)
    x = torch.randn(BATCH, 6)
    out = model(x)
    assert out.shape == (HEADS, BATCH, CLUSTERS)
    out[1].sum().backward()
    touched = [any(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters()) for head in model.heads]
    assert touched == [False, True, False]
    model.eval()
    torch.testing.assert_close(model(x)[2], model.head(2)(x))
    assert (model(x)[2] - model(x)[0]).abs().max() > 1e-2
    assert sum(p.numel() for p in model.parameters()) == HEADS * (6 * 4 + 2 * 4 + 4 * CLUSTERS + CLUSTERS)


def test_heads_refuse_to_be_none() -> None:
    with pytest.raises(ValueError, match="at least 1 head and 1 cluster, got 0 and 5"):
        ClusterHeads(6, CLUSTERS, 0)
    with pytest.raises(IndexError):
        ClusterHeads(6, CLUSTERS, 2).head(2)


@pytest.mark.parametrize(("heads", "groups"), [(10, 2), (7, 3), (4, 4), (5, 1)])
def test_groups_are_a_random_partition(heads: int, groups: int) -> None:
    found = head_groups(heads, groups, generator=seeded())
    assert sorted(head for group in found for head in group) == list(range(heads))
    sizes = [len(group) for group in found]
    assert len(sizes) == groups and max(sizes) - min(sizes) <= 1
    assert found == head_groups(heads, groups, generator=seeded())
    generator = seeded()
    assert len({head_groups(heads, groups, generator=generator) for _ in range(20)}) > 10


def test_groups_must_not_be_empty() -> None:
    for groups in (0, 4):
        with pytest.raises(ValueError, match=f"got {groups} groups of 3 heads"):
            head_groups(3, groups, generator=seeded())


# Rounds


def test_rounds_of_the_paper() -> None:
    """Figures of the paper's schedule at 200 epochs: 99 rounds, 22 in the first tenth (32 with power 2)."""
    per_epoch = 1000
    steps = clustering_rounds(200 * per_epoch)
    assert len(steps) == 99 and steps[0] == 0 and steps[-1] < 200 * per_epoch
    epochs = [step / per_epoch for step in steps]
    assert [round(epoch, 2) for epoch in epochs[:6]] == [0, 0.20, 0.57, 1.06, 1.62, 2.27]
    assert [round(epochs[j], 1) for j in (10, 25, 50, 75, 98)] == [6.4, 25.4, 71.8, 131.9, 197.0]
    assert sum(epoch < 20 for epoch in epochs) == 22
    assert sum(step < 20 * per_epoch for step in clustering_rounds(200 * per_epoch, power=2)) == 32


def test_rounds_are_not_earlier_than_their_time() -> None:
    steps = clustering_rounds(1000, rounds=12, power=1.7)
    for j, step in enumerate(steps):
        time = 1000 * (j / 11) ** 1.7
        assert time - 1e-6 <= step < time + 1


def test_power_one_is_evenly_spaced() -> None:
    assert clustering_rounds(100, rounds=11, power=1) == tuple(range(0, 100, 10))
    assert clustering_rounds(30, rounds=4, power=1) == (0, 10, 20)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_rounds_grow_apart_and_never_repeat(power: float) -> None:
    gaps = torch.tensor(clustering_rounds(50_000, rounds=40, power=power)).diff()
    assert gaps.min() > 0 and (gaps.diff() >= -1).all()  # whole steps: the last digit may wobble
    short = clustering_rounds(20, rounds=100, power=power)
    assert short[0] == 0 and list(short) == sorted(set(short)) and short[-1] < 20
    assert len(short) < 99


def test_rounds_refuse_settings_out_of_range() -> None:
    for settings in (
        {"steps": 0},
        {"steps": 9, "rounds": 1},
        {"steps": 9, "power": 0.0},
        {"steps": 9, "power": math.inf},
    ):
        with pytest.raises(ValueError, match="need steps >= 1, rounds >= 2 and power > 0, got"):
            clustering_rounds(**settings)
