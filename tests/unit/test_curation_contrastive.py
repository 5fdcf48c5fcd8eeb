"""The contrastive rival: eq. (4.1) as a slow loop, its closed forms, and what training learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from avssl_core.curation import CorrespondenceHeads, HeadTraining, epoch_rate_factor, precision, top_share, train_heads
from avssl_core.curation import contrastive as contrastive_module


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def heads(visual: int = 5, audio: int = 4, **settings: object) -> CorrespondenceHeads:
    torch.manual_seed(0)
    return CorrespondenceHeads(visual, audio, **settings).double()


def slow_loss(v: Tensor, a: Tensor, temperature: float) -> float:
    """Eq. (4.1) and its mirror image, mean over the batch and both directions."""

    def cosine(x: Tensor, y: Tensor) -> float:
        return (x @ y / (x.norm() * y.norm())).item()

    total = 0.0
    for i in range(len(v)):
        own = math.exp(cosine(v[i], a[i]) / temperature)
        total -= math.log(own / sum(math.exp(cosine(v[i], a[j]) / temperature) for j in range(len(v))))
        total -= math.log(own / sum(math.exp(cosine(v[j], a[i]) / temperature) for j in range(len(v))))
    return total / (2 * len(v))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_and_scores_equal_slow_loops(temperature: float) -> None:
    model, v, a = heads(temperature=temperature), normal(6, 5, seed=1), normal(6, 4, seed=2)
    projected = (v @ model.visual.weight.T + model.visual.bias, a @ model.audio.weight.T + model.audio.bias)
    assert model.loss(v, a).item() == pytest.approx(slow_loss(*projected, temperature), rel=1e-12)
    expected = torch.nn.functional.cosine_similarity(*projected, dim=1)
    torch.testing.assert_close(model.scores(v, a), expected)
    assert not model.scores(v, a).requires_grad


def test_closed_forms() -> None:
    model = heads(4, 4)
    with torch.no_grad():
        for side in (model.visual, model.audio):
            side.weight.copy_(torch.eye(4))
            side.bias.zero_()
    same = torch.eye(4).double()
    assert model.loss(same, same).item() == pytest.approx(math.log(1 + 3 * math.exp(-10)))
    assert model.accuracy(same, same) == 1.0 and model.scores(same, same).tolist() == [1.0] * 4
    constant = torch.ones(4, 4).double()
    assert model.loss(constant, constant).item() == pytest.approx(math.log(4))
    assert model.accuracy(same, same.roll(1, dims=0)) == 0.0


def test_the_space_is_as_wide_as_the_narrower_side() -> None:
    assert heads(5, 4).visual.weight.shape == (4, 5)
    assert heads(5, 4, dim=3).audio.weight.shape == (3, 4)


def test_scores_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, v, a = heads(), normal(25, 5, seed=1), normal(25, 4, seed=2)
    whole = model.scores(v, a)
    monkeypatch.setattr(contrastive_module, "SCORE_CHUNK", 4)
    torch.testing.assert_close(model.scores(v, a), whole)


def corresponding(clips: int, seed: int) -> tuple[Tensor, Tensor]:
    """Both sides show the same three numbers, mixed by a fixed random map, with noise."""
    shared = normal(clips, 3, seed=seed)
    return (
        shared @ normal(3, 5, seed=100) + 0.3 * normal(clips, 5, seed=seed + 1),
        shared @ normal(3, 4, seed=101) + 0.3 * normal(clips, 4, seed=seed + 2),
    )


def test_training_finds_mismatched_clips_it_has_never_seen() -> None:
    v, a = corresponding(200, seed=0)
    model = heads()
    losses = train_heads(
        model,
        lambda epoch: zip(torch.split(v, 20), torch.split(a, 20), strict=True),
        HeadTraining(epochs=30, warmup=2, lr=1e-2),
    )
    assert len(losses) == 300 and sum(losses[-10:]) < 0.7 * sum(losses[:10])
    v, a = corresponding(200, seed=10)
    a[100:] = a[100:].roll(1, dims=0)
    found = precision(top_share(model.scores(v, a)), torch.arange(200) < 100)
    assert found > 0.8 > precision(top_share(heads().scores(v, a)), torch.arange(200) < 100)


@pytest.mark.parametrize("accumulate", [True, False])
def test_training_is_a_plain_loop(accumulate: bool) -> None:
    """AdamW with AMSGrad, written out, at the rate of each epoch."""
    v, a = corresponding(20, seed=0)
    trained, plain = heads(), heads()
    settings = HeadTraining(epochs=4, warmup=2, lr=1e-2, accumulate=accumulate)
    train_heads(trained, lambda epoch: [(v, a)], settings)
    moments = [[torch.zeros_like(p) for p in plain.parameters()] for _ in range(4)]
    for step, rate in enumerate([5e-3, 1e-2, 1e-2 * 2 / 3, 1e-2 / 3], start=1):
        gradients = torch.autograd.grad(plain.loss(v, a), list(plain.parameters()))
        for p, g, first, second, largest, total in zip(plain.parameters(), gradients, *moments, strict=True):
            total.copy_(total + g if accumulate else g)
            first.lerp_(total, 0.1)
            second.lerp_(total.square(), 0.001)
            largest.copy_(torch.maximum(largest, second))
            with torch.no_grad():
                p.mul_(1 - rate * 0.01)
                scale = (largest / (1 - 0.999**step)).sqrt() + 1e-6
                p.sub_(rate * first / (1 - 0.9**step) / scale)
    for found, expected in zip(trained.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_accumulated_gradients_change_every_step_but_the_first() -> None:
    v, a = corresponding(20, seed=0)
    runs = {
        accumulate: train_heads(
            heads(), lambda epoch: [(v, a)], HeadTraining(epochs=4, warmup=1, lr=1e-2, accumulate=accumulate)
        )
        for accumulate in (True, False)
    }
    assert runs[True][:2] == runs[False][:2]  # losses before the first two steps
    assert all(x != y for x, y in zip(runs[True][2:], runs[False][2:], strict=True))


def test_the_rate_rises_and_falls() -> None:
    factors = [epoch_rate_factor(epoch, epochs=10, warmup=4) for epoch in range(10)]
    assert factors[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert factors[3:] == pytest.approx([1 - i / 7 for i in range(7)]) and factors[-1] > 0
    assert epoch_rate_factor(0, epochs=1, warmup=0) == pytest.approx(0.5)
    short = [epoch_rate_factor(epoch, epochs=2, warmup=3) for epoch in range(2)]  # over before the rate is reached
    assert short == pytest.approx([1 / 3, 2 / 3])


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        CorrespondenceHeads(3, 3, temperature=0.0)
    with pytest.raises(ValueError, match="got 0 and 3"):
        HeadTraining(epochs=0)
    with pytest.raises(ValueError, match="got 2 and -1"):
        HeadTraining(epochs=2, warmup=-1)
    with pytest.raises(ValueError, match="got 4, 4 and 0"):
        epoch_rate_factor(4, epochs=4, warmup=0)
    with pytest.raises(ValueError, match="got 3 and 2 rows"):
        heads().scores(normal(3, 5, seed=0), normal(2, 4, seed=0))
    spent = iter([(normal(4, 5, seed=0), normal(4, 4, seed=0))])
    with pytest.raises(ValueError, match="epoch 1 has no batch"):
        train_heads(heads(), lambda epoch: spent, HeadTraining(epochs=2, warmup=1))
