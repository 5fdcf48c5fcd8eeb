"""One cell in a process of its own: ``python -m avssl.cell REQUEST.json`` calls ``run_cell`` and writes what it
returned.

What a chapter must define: ``make_config(**values)``, which turns the flat values of a budget file into the
configuration and raises on unknown names, and ``run_cell(arm, seed, config) -> {metric: number or list of numbers}``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from avssl.errors import UsageError
from avssl_core.reporting import CellRecord, code_hash, hardware, load_definitions, versions
from avssl_core.reporting.ledger import read_json, write_json


@dataclass(frozen=True)
class CellRequest:
    """What a cell's process is told: which cell, with which values, and where to write."""

    script: str
    arm: str
    seed: int
    corpus: str
    device: str
    values: Mapping[str, Any]
    config_hash: str
    code_hash: str
    output: str

    def write(self, path: Path) -> None:
        """Store the request for :func:`main`."""
        write_json(path, asdict(self))


def chapter_config(module: ModuleType, values: Mapping[str, Any], device: str) -> Any:
    """The chapter's configuration for a budget's values on a device.

    A configuration with a ``device`` is given the one asked for; one without can only be recorded on the CPU.

    Raises:
        UsageError: the chapter lacks ``make_config``, refuses the values, or cannot be told its device.
    """
    make = getattr(module, "make_config", None)
    if make is None:
        raise UsageError(f"{module.__file__} defines no make_config(**values); recording needs it.")
    try:
        config = make(**values)
        if "device" in config_values(config):
            return make(**{**values, "device": device})
    except (TypeError, ValueError) as error:
        raise UsageError(f"{module.__file__}: make_config refuses the budget's values: {error}") from error
    if device != "cpu":
        raise UsageError(f"{module.__file__}: the configuration has no 'device', so cells run on the CPU only.")
    return config


def config_values(config: Any) -> dict[str, Any]:
    """A configuration (dataclass or mapping) as plain values."""
    if is_dataclass(config) and not isinstance(config, type):
        return asdict(config)
    if isinstance(config, Mapping):
        return dict(config)
    raise UsageError(f"make_config must return a dataclass or a mapping, got {type(config).__name__}.")


def config_hash(config: Any) -> str:
    """SHA-256 of a configuration's values, the device left out: it is part of the ledger's name."""
    values = {name: value for name, value in config_values(config).items() if name != "device"}
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def checked_metrics(returned: Any) -> dict[str, float | list[Any]]:
    """What ``run_cell`` returned as plain finite numbers and (nested) lists of them.

    Raises:
        ValueError: not a mapping, or something in it is no finite number; the message names the metric.
    """
    if not isinstance(returned, Mapping) or not returned:
        raise ValueError(f"run_cell must return a non-empty mapping of metrics, got {returned!r}")
    return {str(name): _plain(value, str(name)) for name, value in returned.items()}


def _plain(value: Any, name: str) -> Any:
    if hasattr(value, "tolist"):  # numpy and torch scalars and arrays
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(each, name) for each in value]
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    raise ValueError(
        f"metric {name!r} is {value!r}, not a finite number; a run that diverged should raise, a metric that does not "
        "apply should be left out"
    )


def shared_trainings(request: CellRequest) -> Path:
    """Where cells of one state of the code and one kind of device keep trainings that several of them need."""
    return Path(request.output).parent / "trained" / f"{request.code_hash[:16]}-{request.device.split(':')[0]}"


def run_request(request: CellRequest) -> CellRecord:
    """Run one cell in this process and return its record."""
    module = load_definitions(request.script)
    if code_hash(request.script).sha256 != request.code_hash:
        raise RuntimeError("the code was edited after this recording began; start it again to record the new code")
    config = chapter_config(module, request.values, request.device)
    # for avssl_core.training.shared_run, whose own name for it would import torch, which not every chapter needs
    os.environ["AVSSL_SHARED_DIR"] = str(shared_trainings(request))
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        torch.manual_seed(request.seed)  # belt and braces: cells draw from generators of their own
    start = time.perf_counter()
    metrics = checked_metrics(module.run_cell(request.arm, request.seed, config))
    return CellRecord(
        arm=request.arm,
        seed=request.seed,
        config_hash=request.config_hash,
        code_hash=request.code_hash,
        metrics=metrics,
        wall_s=time.perf_counter() - start,
        device=request.device.split(":")[0],
        corpus=request.corpus,
        hardware=hardware(request.device),
        versions=versions(),
    )


def end_with_parent(parent: int, *, interval_s: float = 2.0) -> None:
    """End this process soon after ``parent`` is gone, so that a killed recording leaves no cell running."""

    def watch() -> None:
        # the number is told, not asked for: the parent may have died while this process was importing
        while os.getppid() == parent:
            time.sleep(interval_s)
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: list[str]) -> None:
    """Entry point of the cell's process: the path of the request, and the process id of the recording."""
    end_with_parent(int(argv[1]))
    request = CellRequest(**read_json(argv[0]))
    write_json(request.output, asdict(run_request(request)))


if __name__ == "__main__":
    main(sys.argv[1:])
