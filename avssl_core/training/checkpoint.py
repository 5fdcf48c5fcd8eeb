"""Checkpoints that a kill cannot spoil and that hold everything a run needs.

A file is written under a temporary name, flushed to the disk, and renamed; the one before it is kept. Whenever the
process dies, at least one complete checkpoint remains. They are read with ``weights_only=True``: tensors, numbers,
text, lists and dictionaries, never code.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

LAST = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
_TEMPORARY = ".checkpoint.pt.writing"
_FORMAT = 1

State = dict[str, Any]
Identity = dict[str, int | float | str | bool | None]


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or that belongs to another run."""


def save_checkpoint(run_dir: str | Path, state: Mapping[str, Any]) -> Path:
    """Write ``state`` atomically as the last checkpoint of ``run_dir`` and keep the one before it.

    Args:
        run_dir: created where missing.
        state: tensors, numbers, text and containers of them.

    Returns:
        Path of the file written.
    """
    folder = Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    temporary, last = folder / _TEMPORARY, folder / LAST
    with open(temporary, "wb") as file:
        torch.save({**state, "format": _FORMAT}, file)
        file.flush()
        os.fsync(file.fileno())
    if last.exists():
        os.replace(last, folder / PREVIOUS)  # killed here: the reader finds the previous one, complete
    os.replace(temporary, last)
    _sync_folder(folder)
    return last


def _sync_folder(folder: Path) -> None:
    """Make the renames themselves durable; a file system without it (Windows) has its own guarantees."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_checkpoint(run_dir: str | Path) -> State | None:
    """The newest complete checkpoint of ``run_dir`` on the CPU, or None where there is none.

    A last file that cannot be read (a damaged disk) is passed over, with a warning, for the previous one.

    Raises:
        CheckpointError: there are files, but none can be read.
    """
    failures = []
    for name in (LAST, PREVIOUS):
        path = Path(run_dir) / name
        if not path.exists():
            continue
        try:
            state: State = torch.load(path, map_location="cpu", weights_only=True)
            if state["format"] != _FORMAT:
                raise ValueError(f"format {state['format']}, this version reads {_FORMAT}")
        except Exception as error:  # a damaged zip raises almost anything
            failures.append(f"{path}: {type(error).__name__}: {error}")
            continue
        for failure in failures:
            warnings.warn(f"unreadable checkpoint passed over: {failure}; continuing from {path}", stacklevel=2)
        return state
    if failures:
        raise CheckpointError(f"no checkpoint can be read; remove them to start anew: {'; '.join(failures)}")
    return None


def check_identity(
    stored: Mapping[str, Any], ours: Identity, *, where: str | Path, free: frozenset[str] = frozenset()
) -> None:
    """Refuse a checkpoint of another run.

    Args:
        stored: identity in the checkpoint.
        ours: identity of this run: its configuration and whatever else decides its course.
        where: folder, for the message.
        free: names that may differ because they cannot change the weights.

    Raises:
        CheckpointError: naming every setting that differs, with both values.
    """
    names = sorted((stored.keys() | ours.keys()) - free)
    absent = "(absent)"
    pairs = [(name, stored.get(name, absent), ours.get(name, absent)) for name in names]
    different = [f"{name}: {old!r} there, {new!r} here" for name, old, new in pairs if old != new]
    if different:
        raise CheckpointError(
            f"the checkpoint in {where} belongs to another run ({'; '.join(different)}): choose another run_dir, "
            "delete this one, or restore its settings"
        )
