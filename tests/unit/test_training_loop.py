"""The loop: what a step computes, what is logged, what stops it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from avssl_core.training import (
    CheckpointError,
    FitConfig,
    LiveCurve,
    NonFiniteError,
    fit,
    in_memory_speed,
    print_line,
)
from avssl_core.training.distributed import World
from avssl_core.training.steps import Stepper, to_device
from avssl_core.training.throughput import clips_in

Batch = tuple[Tensor, Tensor]


def make_model(seed: int = 0, *, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 2))


def batches_of(size: int) -> Callable[[int], Iterator[Batch]]:
    """An endless order that is a function of the batch's index: the samples are numbered through."""

    def batches(start: int) -> Iterator[Batch]:
        index = start
        while True:
            rows = [torch.Generator().manual_seed(1000 + index * size + row) for row in range(size)]
            x = torch.stack([torch.randn(6, generator=g) for g in rows])
            yield x, torch.stack([x[:, 0] * x[:, 1], x[:, 2]], dim=1)
            index += 1

    return batches


def squared_error(
    model: nn.Module, batch: Batch, generator: torch.Generator
) -> tuple[Tensor, dict[str, float | Tensor]]:
    x, y = batch
    x = x + 0.1 * torch.randn(x.shape, generator=generator)
    loss = (model(x) - y).pow(2).mean()
    return loss, {"rmse": loss.detach().sqrt(), "size": float(len(x))}


def clean_error(model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
    return (model(batch[0]) - batch[1]).pow(2).mean(), {}


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def test_fit_learns_and_reports(tmp_path: Path) -> None:
    config = FitConfig(steps=60, lr=0.2, log_every=25, schedule="cosine", warmup_steps=5)
    result = fit(make_model(), batches_of(16), squared_error, config, run_dir=tmp_path, in_memory_steps=3)
    assert result.history["step"].tolist() == [25, 50, 60]
    assert result.history["loss"].iloc[-1] < 0.6 * result.history["loss"].iloc[0]
    assert result.steps == 60 and result.resumed_from == 0
    assert 0 < result.wait_share < 1 and result.clips_per_s > 0 and result.peak_memory > 2**20
    assert result.loading_share is not None and result.loading_share > 0
    assert "60 steps" in result.summary() and "% of in-memory speed" in result.summary()
    assert (result.history["size"] == 16).all()


def test_logged_means_equal_the_steps_own_values(tmp_path: Path) -> None:
    seen: list[float] = []

    def watched(model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
        loss, metrics = squared_error(model, batch, generator)
        seen.append(loss.item())
        return loss, metrics

    config = FitConfig(steps=7, lr=0.1, log_every=3, weight_decay=0.0)
    result = fit(make_model(), batches_of(4), watched, config, run_dir=tmp_path)
    expected = [sum(seen[a:b]) / (b - a) for a, b in ((0, 3), (3, 6), (6, 7))]
    assert result.history["loss"].tolist() == pytest.approx(expected, rel=1e-6)
    csv = pd.read_csv(tmp_path / "metrics.csv")
    pd.testing.assert_frame_equal(csv, result.history, check_dtype=False)
    assert list(csv.columns[:4]) == ["step", "loss", "rmse", "size"]


def test_tensorboard_holds_the_same_lines(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = fit(make_model(), batches_of(4), squared_error, FitConfig(steps=6, log_every=2), run_dir=tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [2, 4, 6]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(result.history["loss"].tolist())


def test_accumulation_equals_the_large_batch() -> None:
    one, many = make_model(), make_model()
    settings: dict[str, Any] = {"steps": 5, "lr": 0.1, "grad_clip": 0.5, "log_every": 1}
    big = fit(one, batches_of(12), clean_error, FitConfig(**settings))
    small = fit(many, batches_of(4), clean_error, FitConfig(**settings, accumulate=3))
    torch.testing.assert_close(weights(one), weights(many), rtol=1e-5, atol=1e-6)
    assert small.history["loss"].tolist() == pytest.approx(big.history["loss"].tolist(), rel=1e-5)
    assert small.history["grad_norm"].tolist() == pytest.approx(big.history["grad_norm"].tolist(), rel=1e-4)


def test_clipping_bounds_the_step_and_logs_the_norm_before_it() -> None:
    model = make_model()
    before = weights(model)
    config = FitConfig(steps=1, lr=1.0, momentum=0.0, weight_decay=0.0, grad_clip=0.01)
    result = fit(model, batches_of(8), clean_error, config)
    assert result.history["grad_norm"].iloc[0] > 0.1
    assert float((weights(model) - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_ema_of_a_run_is_the_average_of_its_weights() -> None:
    model = make_model()
    expected = weights(model)
    seen: list[Tensor] = []

    def remember(row: dict[str, float]) -> None:
        seen.append(weights(model))

    config = FitConfig(steps=4, lr=0.1, ema=0.5, log_every=1)
    result = fit(model, batches_of(4), clean_error, config, on_log=remember)
    for value in seen:
        expected = 0.5 * expected + 0.5 * value
    assert result.ema is not None
    torch.testing.assert_close(weights(result.ema), expected)


def test_bf16_computes_in_bf16_and_keeps_float32_weights() -> None:
    kinds: list[torch.dtype] = []

    def watched(model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
        out = model(batch[0])
        kinds.append(out.dtype)
        return (out.float() - batch[1]).pow(2).mean(), {}

    exact, rounded = make_model(), make_model()
    fit(exact, batches_of(8), watched, FitConfig(steps=3, lr=0.1))
    fit(rounded, batches_of(8), watched, FitConfig(steps=3, lr=0.1, precision="bf16"))
    assert kinds == [torch.float32] * 3 + [torch.bfloat16] * 3
    assert all(p.dtype == torch.float32 for p in rounded.parameters())
    assert not torch.equal(weights(exact), weights(rounded))
    torch.testing.assert_close(weights(exact), weights(rounded), rtol=0.05, atol=0.02)


def test_the_callers_random_state_and_order_of_seeds_do_not_matter() -> None:
    torch.manual_seed(1)
    a = make_model(dropout=0.5)
    torch.manual_seed(99)
    expected = torch.rand(2)
    torch.manual_seed(99)
    fit(a, batches_of(4), squared_error, FitConfig(steps=4))
    assert torch.equal(torch.rand(2), expected)
    b = make_model(dropout=0.5)
    torch.manual_seed(7)
    fit(b, batches_of(4), squared_error, FitConfig(steps=4))
    assert torch.equal(weights(a), weights(b))
    c = make_model(dropout=0.5)
    fit(c, batches_of(4), squared_error, FitConfig(steps=4, seed=1))
    assert not torch.equal(weights(a), weights(c))


def test_unequal_rates_move_the_encoder_less() -> None:
    model = make_model()
    encoder, head = model[0].weight.detach().clone(), model[3].weight.detach().clone()

    def groups_of(m: nn.Module) -> list[dict[str, Any]]:
        assert isinstance(m, nn.Sequential)
        return [{"params": list(m[0].parameters()), "lr_scale": 0.0}, {"params": list(m[3].parameters())}]

    fit(model, batches_of(4), clean_error, FitConfig(steps=2, lr=0.1), groups_of=groups_of, in_memory_steps=1)
    assert torch.equal(model[0].weight, encoder) and not torch.equal(model[3].weight, head)


# -- what stops a run --------------------------------------------------------------------------------------------------


def poisoned(size: int, at: int) -> Callable[[int], Iterator[Batch]]:
    def batches(start: int) -> Iterator[Batch]:
        for index, (x, y) in enumerate(batches_of(size)(start), start):
            if index == at:
                x = x.clone()
                x[1, 2] = math.nan
            yield x, y

    return batches


def test_bad_input_stops_the_run_with_weights_untouched(tmp_path: Path) -> None:
    model, twin = make_model(), make_model()
    config = FitConfig(steps=20, lr=0.05, log_every=2, checkpoint_every=0)
    with pytest.raises(NonFiniteError) as caught:
        fit(model, poisoned(4, at=5), clean_error, config, run_dir=tmp_path)
    error = caught.value
    assert error.step == 5
    assert error.findings["input"].startswith("batch[0] (4, 6) holds 1 non-finite of 24")
    assert error.findings["module"].startswith("0 (Linear)")
    assert error.findings["gradient"].startswith("0.weight")
    assert "parameter" not in error.findings
    assert "the data are bad" in str(error) and "step 4" in str(error) and "lr: 0.05" in str(error)
    fit(twin, batches_of(4), clean_error, FitConfig(steps=5, lr=0.05))
    assert torch.equal(weights(model), weights(twin))


def test_bad_weights_and_overflowing_modules_are_named() -> None:
    model = make_model()
    with torch.no_grad():
        model[3].bias[0] = math.inf
    with pytest.raises(NonFiniteError) as caught:
        fit(model, batches_of(4), clean_error, FitConfig(steps=2))
    assert caught.value.findings["parameter"].startswith("3.bias")
    assert "weights were bad before" in str(caught.value)

    class Overflow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 1e30 * 1e30

    model = nn.Sequential(nn.Linear(6, 2), Overflow())
    with pytest.raises(NonFiniteError) as caught:
        fit(model, batches_of(4), clean_error, FitConfig(steps=2))
    assert caught.value.findings["module"].startswith("1 (Overflow)")
    assert "lower lr" in str(caught.value)


def test_a_finite_loss_with_an_infinite_gradient_stops_too() -> None:
    def root(model: nn.Module, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
        return (model(batch[0]) * 0).sqrt().sum(), {"fine": 1.0}

    with pytest.raises(NonFiniteError) as caught:
        fit(make_model(), batches_of(4), root, FitConfig(steps=2))
    assert caught.value.findings["loss"] == "0" and "gradient" in caught.value.findings


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda model, batch, generator: (model(batch[0]).mean(dim=1), {}), r"must be one number, got shape \(4,\)"),
        (lambda model, batch, generator: (model(batch[0]).mean(), {"lr": 1.0}), "metric name 'lr' is reserved"),
    ],
)
def test_bad_losses_are_refused(loss: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(make_model(), batches_of(4), loss, FitConfig(steps=2))


def test_batches_that_end_are_refused() -> None:
    finite = [next(batches_of(4)(0))] * 3
    with pytest.raises(ValueError, match=r"ended at step 3 .* of 5: .* endless"):
        fit(make_model(), lambda start: iter(finite[start:]), clean_error, FitConfig(steps=5))


# -- resuming (kills are in tests/faults) ------------------------------------------------------------------------------


def test_a_finished_run_returns_at_once_with_its_weights(tmp_path: Path) -> None:
    model = make_model()
    first = fit(model, batches_of(4), squared_error, FitConfig(steps=5, ema=0.9, log_every=2), run_dir=tmp_path)

    def never(start: int) -> Iterator[Batch]:
        raise AssertionError("a finished run must not load data")

    lines: list[dict[str, float]] = []
    again = make_model(seed=5)
    config = FitConfig(steps=5, ema=0.9, log_every=2)
    second = fit(again, never, squared_error, config, run_dir=tmp_path, on_log=lines.append, in_memory_steps=2)
    assert torch.equal(weights(model), weights(again))
    assert first.ema is not None and second.ema is not None
    assert torch.equal(weights(first.ema), weights(second.ema))
    pd.testing.assert_frame_equal(first.history, second.history)
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert second.resumed_from == 5 and second.wall_s == first.wall_s and second.in_memory_clips_per_s is None


def test_a_run_can_be_prolonged_but_not_changed(tmp_path: Path) -> None:
    straight = make_model()
    fit(straight, batches_of(4), squared_error, FitConfig(steps=9))
    model = make_model()
    fit(model, batches_of(4), squared_error, FitConfig(steps=5), run_dir=tmp_path, context={"arm": "a"})
    with pytest.raises(CheckpointError, match=r"lr: 0\.01 there, 0\.02 here"):
        fit(model, batches_of(4), squared_error, FitConfig(steps=9, lr=0.02), run_dir=tmp_path, context={"arm": "a"})
    with pytest.raises(CheckpointError, match=r"context\.arm: 'a' there, 'b' here"):
        fit(model, batches_of(4), squared_error, FitConfig(steps=9), run_dir=tmp_path, context={"arm": "b"})
    with pytest.raises(CheckpointError, match="at step 5, beyond steps=3"):
        fit(model, batches_of(4), squared_error, FitConfig(steps=3), run_dir=tmp_path, context={"arm": "a"})
    with pytest.raises(CheckpointError, match="does not fit this model"):
        other = nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 2))
        fit(other, batches_of(4), squared_error, FitConfig(steps=9), run_dir=tmp_path, context={"arm": "a"})
    result = fit(model, batches_of(4), squared_error, FitConfig(steps=9), run_dir=tmp_path, context={"arm": "a"})
    assert result.resumed_from == 5 and torch.equal(weights(model), weights(straight))


def test_a_cosine_run_cannot_be_prolonged(tmp_path: Path) -> None:
    fit(make_model(), batches_of(4), squared_error, FitConfig(steps=2, schedule="cosine"), run_dir=tmp_path)
    with pytest.raises(CheckpointError, match="steps: 2 there, 4 here"):
        fit(make_model(), batches_of(4), squared_error, FitConfig(steps=4, schedule="cosine"), run_dir=tmp_path)


def test_an_interrupted_interval_is_logged_as_if_it_had_not_been(tmp_path: Path) -> None:
    """KilledError between two log lines: the mean of that interval includes the steps before the kill."""
    config = FitConfig(steps=8, log_every=4, checkpoint_every=2)
    straight = fit(make_model(), batches_of(4), squared_error, config).history

    class KilledError(Exception):
        pass

    def dies(start: int) -> Iterator[Batch]:
        for index, batch in enumerate(batches_of(4)(start), start):
            if index == 7:
                raise KilledError
            yield batch

    with pytest.raises(KilledError):
        fit(make_model(), dies, squared_error, config, run_dir=tmp_path)
    result = fit(make_model(seed=3), batches_of(4), squared_error, config, run_dir=tmp_path)
    assert result.resumed_from == 6
    columns = ["step", "loss", "rmse", "lr", "grad_norm"]
    pd.testing.assert_frame_equal(result.history[columns], straight[columns], check_exact=True)
    assert pd.read_csv(tmp_path / "metrics.csv")["step"].tolist() == [4, 8]


# -- helpers -----------------------------------------------------------------------------------------------------------


def test_in_memory_speed_leaves_the_model_alone() -> None:
    model = make_model()
    before = weights(model)
    speed = in_memory_speed(model, next(batches_of(4)(0)), squared_error, FitConfig(accumulate=2, lr=1.0), steps=3)
    assert speed > 0 and torch.equal(weights(model), before)


def test_batches_of_any_shape_are_moved_and_counted() -> None:
    batch = {"a": [torch.zeros(3, 2)], "b": (torch.zeros(3), "text"), "n": 4}
    moved = to_device(batch, torch.device("cpu"))
    assert moved["b"][1] == "text" and moved["n"] == 4 and moved["a"][0].shape == (3, 2)
    assert clips_in(batch) == 3 and clips_in({"x": "no tensor"}) == 1


def test_a_step_depends_on_its_number_alone() -> None:
    stepper = Stepper(make_model(dropout=0.5), squared_error, FitConfig(), World.single())
    batch = next(batches_of(4)(0))
    first = float(stepper.gradients(3, [batch])["loss"])
    stepper.gradients(4, [batch])
    assert float(stepper.gradients(3, [batch])["loss"]) == first != float(stepper.gradients(5, [batch])["loss"])


def test_print_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_line({"step": 10.0, "loss": 0.123456, "wait_share": math.nan})
    assert capsys.readouterr().out == "step 10 · loss 0.1235\n"


def test_live_curve_outside_a_notebook_only_collects() -> None:
    with LiveCurve("loss", "rmse") as curve:
        fit(make_model(), batches_of(4), squared_error, FitConfig(steps=6, log_every=2), on_log=[curve])
    assert [row["step"] for row in curve.rows] == [2, 4, 6]
    assert curve.svg() == curve.svg() and curve.svg().lstrip().startswith("<?xml")
