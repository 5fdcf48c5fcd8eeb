"""Checkpoints: whole or not there, readable without pickle, refused where they do not belong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from avssl_core.training import CheckpointError, load_checkpoint, save_checkpoint
from avssl_core.training.checkpoint import LAST, PREVIOUS, check_identity


def test_round_trip_keeps_types_and_bits(tmp_path: Path) -> None:
    state = {
        "model": {"w": torch.randn(3, 2), "n": torch.tensor(7)},
        "history": [{"step": 1.0, "loss": 0.1}],
        "ema": None,
        "text": "ü",
    }
    save_checkpoint(tmp_path / "new" / "folder", state)
    loaded = load_checkpoint(tmp_path / "new" / "folder")
    assert loaded is not None
    assert torch.equal(loaded["model"]["w"], state["model"]["w"])  # type: ignore[index]
    assert loaded["history"] == state["history"] and loaded["text"] == "ü" and loaded["ema"] is None


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None and load_checkpoint(tmp_path / "absent") is None


def test_last_and_previous_are_kept(tmp_path: Path) -> None:
    for step in range(4):
        save_checkpoint(tmp_path, {"step": step})
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([LAST, PREVIOUS])
    assert torch.load(tmp_path / PREVIOUS, weights_only=True)["step"] == 2
    assert load_checkpoint(tmp_path)["step"] == 3  # type: ignore[index]


@pytest.mark.parametrize(("call", "expected"), [("save", 1), ("fsync", 1), ("replace 1", 1), ("replace 2", 1)])
def test_dying_at_any_moment_of_saving_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, expected: int
) -> None:
    """The moments are simulated one by one; tests/faults kills real processes."""
    save_checkpoint(tmp_path, {"step": 0})
    save_checkpoint(tmp_path, {"step": 1})
    replace, save, calls = os.replace, torch.save, []

    def dying_replace(*args: Any) -> None:
        calls.append(args)
        if call == f"replace {len(calls)}":
            raise KeyboardInterrupt
        replace(*args)

    def dying_save(state: Any, file: Any) -> None:
        save(state, file)
        file.truncate(100)
        raise KeyboardInterrupt

    def dying_fsync(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying_replace)
        if call == "save":
            patch.setattr(torch, "save", dying_save)
        if call == "fsync":
            patch.setattr(os, "fsync", dying_fsync)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, {"step": 2})
    assert load_checkpoint(tmp_path)["step"] == expected  # type: ignore[index]
    save_checkpoint(tmp_path, {"step": 2})  # the leftovers do not disturb the next
    assert load_checkpoint(tmp_path)["step"] == 2  # type: ignore[index]


def test_a_damaged_file_is_passed_over_with_a_warning(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"step": 0, "w": torch.randn(1000)})
    save_checkpoint(tmp_path, {"step": 1, "w": torch.randn(1000)})
    whole = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match=r"checkpoint\.pt.*continuing from .*checkpoint\.previous\.pt"):
        state = load_checkpoint(tmp_path)
    assert state is not None and state["step"] == 0
    (tmp_path / PREVIOUS).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint can be read.*checkpoint\.pt.*checkpoint\.previous\.pt"):
        load_checkpoint(tmp_path)


class Payload:
    """An object whose unpickling would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("pwned",))


def test_pickled_code_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "step": Payload()}, tmp_path / LAST)
    with pytest.raises(CheckpointError, match="no checkpoint can be read"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_identity_names_every_difference() -> None:
    check_identity({"lr": 0.1, "log_every": 5}, {"lr": 0.1, "log_every": 9}, where="run", free=frozenset({"log_every"}))
    with pytest.raises(CheckpointError) as caught:
        check_identity({"lr": 0.1, "old": 1}, {"lr": 0.2, "new": 2}, where="runs/a")
    text = str(caught.value)
    assert "runs/a" in text and "lr: 0.1 there, 0.2 here" in text and "choose another run_dir" in text
    assert "old: 1 there, '(absent)' here" in text and "new: '(absent)' there, 2 here" in text
