"""Batch norm before the first clustering: statistics of the batches, nothing else; and the schedule that SeLa has."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from avssl_core.clustering import clustering_rounds, warmup_batchnorm


def batches(count: int = 30) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 + 2 * torch.randn(64, 4, generator=generator) for _ in range(count)]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def test_statistics_come_near_those_of_the_data_and_nothing_else_changes() -> None:
    model = network().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert warmup_batchnorm(model, batches(), model) == 20
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm1d) and norm.running_mean is not None and norm.running_var is not None
    share = 1 - 0.9**20  # what 20 batches of momentum 0.1 leave of the start
    assert norm.running_mean.tolist() == pytest.approx(4 * [3 * share], abs=0.15)
    assert norm.running_var.tolist() == pytest.approx(4 * [1 + 3 * share], abs=0.4)
    assert int(norm.num_batches_tracked) == 20
    for name, value in model.state_dict().items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(value, before[name])
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_is_the_running_statistics_of_ordinary_training_passes() -> None:
    """Independent reference: torch's own cumulative average of batch means."""
    model = network()
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm1d)
    norm.momentum = None
    data = batches(5)
    assert warmup_batchnorm(model, data, lambda x: model(x), count=9) == 5
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, torch.stack([batch.mean(0) for batch in data]).mean(0))
    assert model.training


def test_modes_come_back_one_by_one() -> None:
    model = network().train()
    model[2].eval()
    warmup_batchnorm(model, batches(2), model)
    assert model.training and model[1].training and not model[2].training


def test_refuses_no_batches() -> None:
    model = network()
    with pytest.raises(ValueError, match="no batches to warm"):
        warmup_batchnorm(model, [], model)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        warmup_batchnorm(model, batches(), model, count=0)
    assert model.training


def test_rounds_beyond_the_end_are_those_of_sela() -> None:
    """SeLa's release: (E + 1.01) epochs times (j / (J - 1))^2, J = 100; its last round happens before the end."""
    epochs, per_epoch = 50, 100
    times = [(epochs + 1.01) * per_epoch * (j / 99) ** 2 for j in range(100)]
    expected = sorted({math.ceil(time - 1e-6) for time in times if time <= epochs * per_epoch - 1})
    found = clustering_rounds(epochs * per_epoch, power=2.0, beyond=1.01 * per_epoch)
    assert list(found) == expected
    assert found[0] == 0 and found[-1] < epochs * per_epoch
    plain = clustering_rounds(epochs * per_epoch, power=2.0)
    assert all(late >= early for early, late in zip(plain, found, strict=False))
    with pytest.raises(ValueError, match="not negative, got -1"):
        clustering_rounds(10, beyond=-1)
