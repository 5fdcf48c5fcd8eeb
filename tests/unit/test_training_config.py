"""Settings, schedules, optimisers, running averages, seeds: everything with a closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from avssl_core.training import (
    Ema,
    FitConfig,
    build_optimiser,
    learning_rate,
    momentum_update,
    parameter_groups,
    run_context,
    scale_lr,
    step_generator,
)
from avssl_core.training.optimisers import set_learning_rate
from avssl_core.training.rng import preserved_global, reseed_global
from avssl_core.training.schedules import cosine_factor, multistep_factor, warmup_factor


def test_from_dict_round_trips_and_converts_what_yaml_reads_as_text() -> None:
    config = FitConfig.from_dict({"lr": "1e-3", "steps": 20.0, "weight_decay": 0, "optimiser": "adamw"})
    assert (config.lr, config.steps, config.weight_decay) == (1e-3, 20, 0.0)
    assert isinstance(config.steps, int) and isinstance(config.weight_decay, float)
    assert FitConfig.from_dict(config.to_dict()) == config


def test_unknown_setting_names_the_nearest_valid_one() -> None:
    with pytest.raises(ValueError, match=r"'warmup_step': did you mean warmup_steps"):
        FitConfig.from_dict({"warmup_step": 10})
    with pytest.raises(ValueError, match=r"'zzz': valid names are steps, lr"):
        FitConfig.from_dict({"zzz": 10})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 1.5}, "steps=1.5 must be of type int"),
        ({"steps": True}, "steps=True must be of type int"),
        ({"lr": "fast"}, "lr='fast' must be of type float"),
        ({"decay_norm_bias": 1}, "decay_norm_bias=1 must be of type bool"),
        ({"lr": -0.1}, "lr=-0.1 must be a finite number of at least 0"),
        ({"lr": math.nan}, "lr=nan must be a finite"),
        ({"accumulate": 0}, "accumulate=0 must be a finite number of at least 1"),
        ({"ema": 1.0}, "ema=1.0 must be below 1"),
        ({"optimiser": "lion"}, "optimiser='lion' is not one of sgd, adamw"),
        ({"precision": "fp16"}, "precision='fp16' is not one of float32, bf16"),
        ({"schedule": "multistep"}, "needs milestones"),
        ({"schedule": "multistep", "milestones": "6;9"}, "milestones='6;9' must be steps separated by commas"),
    ],
)
def test_bad_values_are_refused_with_the_value(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FitConfig.from_dict(values)


def test_warmup_rises_linearly_and_wastes_no_step() -> None:
    assert [warmup_factor(t, warmup_steps=4) for t in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warmup_factor(0, warmup_steps=2, start=0.5) == 0.75
    assert warmup_factor(0, warmup_steps=0) == 1.0


def test_cosine_has_its_closed_form() -> None:
    assert cosine_factor(0, steps=10) == 1.0
    assert cosine_factor(5, steps=10) == pytest.approx(0.5)
    assert cosine_factor(10, steps=10, end=0.1) == pytest.approx(0.1)
    assert cosine_factor(99, steps=10, end=0.1) == pytest.approx(0.1)


def test_multistep_drops_at_each_milestone() -> None:
    factors = [multistep_factor(t, milestones=(2, 4), gamma=0.1) for t in range(6)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_learning_rate_combines_warmup_and_schedule() -> None:
    cosine = FitConfig(steps=110, lr=2.0, warmup_steps=10, schedule="cosine", min_lr=0.5)
    assert learning_rate(cosine, 4) == pytest.approx(1.0)
    assert learning_rate(cosine, 9) == learning_rate(cosine, 10) == pytest.approx(2.0)
    assert learning_rate(cosine, 60) == pytest.approx(1.5)
    # GDT's fine-tuning: 0.0025 rising to 0.02, then times 0.05 twice.
    gdt = FitConfig(
        steps=12, lr=0.02, warmup_steps=2, warmup_from=0.125, schedule="multistep", milestones="10, 6", gamma=0.05
    )
    rates = [learning_rate(gdt, t) for t in (0, 1, 5, 6, 10)]
    assert rates == pytest.approx([0.01125, 0.02, 0.02, 0.001, 0.00005])
    assert learning_rate(FitConfig(lr=0.3), 10**6) == 0.3


def test_linear_scaling_gives_gdts_rate() -> None:
    assert scale_lr(0.01, batch_size=512, base_batch_size=8) == pytest.approx(0.64)
    with pytest.raises(ValueError, match="got 0 and 8"):
        scale_lr(0.01, batch_size=0, base_batch_size=8)


def test_norms_and_biases_can_be_left_undecayed() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))
    model[2].weight.requires_grad_(False)
    decayed, free = parameter_groups(model, weight_decay=0.1, decay_norm_bias=False)
    assert [p.shape for p in decayed["params"]] == [(4, 3)] and decayed["weight_decay"] == 0.1
    assert [p.shape for p in free["params"]] == [(4,), (4,), (4,)] and free["weight_decay"] == 0.0
    (only,) = parameter_groups(model, weight_decay=0.1)
    assert len(only["params"]) == 4
    with pytest.raises(ValueError, match="nothing to train"):
        parameter_groups(model.requires_grad_(False), weight_decay=0.1)


def test_sgd_takes_the_textbook_step_and_groups_scale_the_rate() -> None:
    fast, slow = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([1.0]))
    config = FitConfig(lr=0.1, momentum=0.9, weight_decay=0.5)
    optimiser = build_optimiser(config, [{"params": [fast]}, {"params": [slow], "lr_scale": 0.1, "weight_decay": 0.0}])
    set_learning_rate(optimiser, 0.2)
    for _ in range(2):
        fast.grad, slow.grad = torch.tensor([2.0]), torch.tensor([2.0])
        optimiser.step()
    # g = 2 + 0.5·1 = 2.5, w = 0.5; then v = 0.9·2.5 + 2 + 0.5·0.5 = 4.5, w = 0.5 − 0.9 = −0.4
    assert fast.item() == pytest.approx(-0.4)
    # v = 2, then 3.8, at a rate of 0.02
    assert slow.item() == pytest.approx(1 - 0.02 * (2 + 3.8))


def test_adamw_decays_apart_from_the_gradient() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    config = FitConfig(optimiser="adamw", lr=0.1, momentum=0.8, beta2=0.9, weight_decay=0.5)
    optimiser = build_optimiser(config, [{"params": [weight]}])
    weight.grad = torch.tensor([3.0])
    optimiser.step()
    assert weight.item() == pytest.approx(1 * (1 - 0.1 * 0.5) - 0.1, abs=1e-6)  # the first Adam step has size lr
    assert optimiser.param_groups[0]["betas"] == (0.8, 0.9)


def test_ema_follows_its_formula_and_copies_buffers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    ema = Ema(model, decay=0.75)
    expected = dict(start)
    for _ in range(3):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        model[1].running_mean.add_(1.0)
        ema.update(model)
        expected = {name: 0.75 * expected[name] + 0.25 * p.detach() for name, p in model.named_parameters()}
    for name, p in ema.module.named_parameters():
        torch.testing.assert_close(p, expected[name])
        assert not p.requires_grad
    assert not ema.module.training
    torch.testing.assert_close(ema.module[1].running_mean, model[1].running_mean)


def test_momentum_update_has_its_limits_and_refuses_strangers() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    before = a.weight.detach().clone()
    momentum_update(a, b, momentum=1.0)
    assert torch.equal(a.weight, before)
    momentum_update(a, b, momentum=0.0)
    assert torch.equal(a.weight, b.weight)
    with pytest.raises(ValueError, match=r"momentum=1\.5"):
        momentum_update(a, b, momentum=1.5)
    with pytest.raises(ValueError, match="'bias'"):
        momentum_update(a, nn.Linear(2, 2, bias=False), momentum=0.5)


def test_draws_are_functions_of_all_keys() -> None:
    keys = [(s, t, m, r) for s in range(3) for t in range(4) for m in range(3) for r in range(3)]
    draws = {torch.rand(2, generator=step_generator(s, t, micro=m, rank=r)).sum().item() for s, t, m, r in keys}
    assert len(draws) == len(keys)
    one, two = (torch.rand(5, generator=step_generator(1, 2, micro=3, rank=4)) for _ in range(2))
    assert torch.equal(one, two)


def test_dropout_is_a_function_of_all_keys_and_unrelated_to_the_augmentation() -> None:
    def draw(seed: int, step: int, micro: int, rank: int) -> float:
        reseed_global(seed, step, micro=micro, rank=rank)
        return torch.rand(2).sum().item()

    with preserved_global(torch.device("cpu")):
        assert draw(1, 2, 3, 4) == draw(1, 2, 3, 4)
        keys = [(s, t, m, r) for s in range(3) for t in range(4) for m in range(3) for r in range(3)]
        assert len({draw(*key) for key in keys}) == len(keys)
        assert draw(1, 2, 3, 4) != torch.rand(2, generator=step_generator(1, 2, micro=3, rank=4)).sum().item()


def test_global_state_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with preserved_global(torch.device("cpu")):
        reseed_global(1, 2)
        torch.rand(10)
    assert torch.equal(torch.rand(3), expected)


def test_what_decides_a_run_leaves_out_what_does_not() -> None:
    @dataclass(frozen=True)
    class Config:
        lr: float = 0.1
        arms: str = "a,b"
        workers: int = 3
        probes: int = 5

    assert run_context(Config(), without=("probes",), arm="a") == {"lr": 0.1, "arm": "a"}
    assert run_context(Config()) == {"lr": 0.1, "probes": 5}
    with pytest.raises(ValueError, match=r"without=\['probe'\]: the configuration has no such field; it has lr, arms"):
        run_context(Config(), without=("probe",))
