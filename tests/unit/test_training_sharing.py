"""Trainings that cells of a recording share: done once, the same for whoever asks."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from avssl.cell import CellRequest, shared_trainings
from avssl_core.training import FitConfig, fit, shared_run
from avssl_core.training.sharing import SHARED_DIR


def test_nothing_is_shared_outside_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SHARED_DIR, raising=False)
    with shared_run({"seed": 0}) as folder:
        assert folder is None


def test_a_folder_for_each_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARED_DIR, str(tmp_path / "new" / "place"))
    found = []
    for context in ({"seed": 0, "lr": 0.1}, {"lr": 0.1, "seed": 0}, {"seed": 1, "lr": 0.1}, {"seed": 0, "lr": 0.2}):
        with shared_run(context) as folder:
            found.append(folder)
    assert found[0] == found[1] and len(set(found)) == 3


def test_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARED_DIR, str(tmp_path))
    with shared_run({"seed": 0}) as folder:
        assert folder is not None
        with open(folder / "lock") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with shared_run({"seed": 1}) as elsewhere:  # another training does not wait
            assert elsewhere != folder
    with open(folder / "lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_second_to_come_finds_the_training_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARED_DIR, str(tmp_path))
    asked: list[int] = []

    def batches(start: int):
        asked.append(start)
        while True:
            yield torch.ones(2, 3)

    def trained() -> Tensor:
        torch.manual_seed(len(asked))  # whoever comes second starts elsewhere
        model = nn.Linear(3, 1)
        with shared_run({"seed": 0}) as folder:
            fit(model, batches, lambda m, x, _: (m(x).square().mean(), {}), FitConfig(steps=5), run_dir=folder)
        return model.weight.detach()

    assert torch.equal(trained(), trained()) and asked == [0]


def test_cells_share_by_code_and_device() -> None:
    def place(**changed: str) -> Path:
        named = {"code_hash": "a" * 64, "device": "cuda:1", "output": "/runs/cells/x/ep-s0.json"} | changed
        return shared_trainings(CellRequest("x.py", "ep", 0, "playground", values={}, config_hash="", **named))

    assert place() == place(device="cuda:0") == Path("/runs/cells/x/trained/aaaaaaaaaaaaaaaa-cuda")
    assert len({place(), place(code_hash="b" * 64), place(device="cpu")}) == 3
