"""One line per interval: as CSV, for TensorBoard, and to whoever listens.

The CSV is the record a chapter reads back; it is rewritten from the checkpoint when a run resumes, so that a killed run
leaves no line twice.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Row = dict[str, float]
OnLog = Callable[[Row], None]
METRICS_FILE = "metrics.csv"
TENSORBOARD_DIR = "tensorboard"


class Meter:
    """Means of scalars over an interval, kept where the scalars live so that nothing waits for the device.

    Sums are float64: their order is that of the steps, and a checkpoint restores them exactly.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Take in the scalars of one step."""
        for name, value in values.items():
            value = value.detach().to(torch.float64)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def means(self) -> dict[str, Tensor]:
        """Mean of each scalar since the last :meth:`reset`, in the order of first appearance."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def reset(self) -> None:
        """Begin a new interval."""
        self._sums.clear()
        self._counts.clear()

    def state_dict(self) -> dict[str, Any]:
        """The unfinished interval."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue an unfinished interval."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])


class RunLog:
    """Where the lines of a run go.

    Args:
        run_dir: gets ``metrics.csv`` and ``tensorboard/``; None writes no files.
        history: lines already known from a checkpoint; they are replayed to ``listeners`` so that a curve is whole.
        listeners: called with every line.
    """

    def __init__(self, run_dir: Path | None, history: Sequence[Row], listeners: Sequence[OnLog]) -> None:
        self.history = [dict(row) for row in history]
        self._listeners = listeners
        self._path = None if run_dir is None else run_dir / METRICS_FILE
        self._columns: list[str] = []
        self._board: Any = None
        if run_dir is not None:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._rewrite()
            self._board = _open_board(run_dir / TENSORBOARD_DIR, self.history)
        for row in self.history:
            self._tell(row)

    def write(self, row: Row) -> None:
        """Add one line; a metric that appears late gets a column, empty before."""
        self.history.append(dict(row))
        if self._path is not None:
            if set(row) <= set(self._columns):
                with open(self._path, "a", newline="", encoding="utf-8") as file:
                    csv.DictWriter(file, self._columns).writerow(row)
            else:
                self._rewrite()
        if self._board is not None:
            _to_board(self._board, row)
        self._tell(row)

    def close(self) -> None:
        """Flush TensorBoard's file."""
        if self._board is not None:
            self._board.close()
            self._board = None

    def _tell(self, row: Row) -> None:
        for listener in self._listeners:
            listener(dict(row))

    def _rewrite(self) -> None:
        assert self._path is not None
        self._columns = list(dict.fromkeys(name for row in self.history for name in row))
        temporary = self._path.with_suffix(".csv.writing")
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            if self._columns:
                writer = csv.DictWriter(file, self._columns)
                writer.writeheader()
                writer.writerows(self.history)
        os.replace(temporary, self._path)


def _open_board(folder: Path, history: Sequence[Row]) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # a second to import: only runs that keep files pay it

    first_new = int(history[-1]["step"]) + 1 if history else 0
    return SummaryWriter(str(folder), purge_step=first_new)  # hides what a killed run wrote beyond its checkpoint


def _to_board(board: Any, row: Row) -> None:
    for name, value in row.items():
        if name != "step":
            board.add_scalar(name, value, int(row["step"]))
    board.flush()  # a killed run must not lose its lines


def print_line(row: Row) -> None:
    """A listener for terminals: the line, rounded."""
    parts = [f"step {int(row['step'])}"]
    parts += [f"{name} {value:.4g}" for name, value in row.items() if name != "step" and not math.isnan(value)]
    print(" · ".join(parts), flush=True)
