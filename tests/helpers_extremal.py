"""What the parity tests of extremal perturbations share: stored numbers and the small networks they were made with."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn


def load(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parameters and tensors of ``extremal/<name>.safetensors``."""
    with safe_open(folder / "extremal" / f"{name}.safetensors", "pt") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118  (no mapping)
        return json.loads(stored.metadata()["params"]), tensors


def network(kind: str, tensors: dict[str, Tensor]) -> nn.Sequential:
    """``vec`` or ``map`` with the weights stored beside the numbers."""
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    classes = len(state["fc2.bias"])
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, 8, 3, padding=1),
        "relu1": nn.ReLU(),
        "pool1": nn.AvgPool2d(2),
        "conv2": nn.Conv2d(8, 12, 3, padding=1),
        "relu2": nn.ReLU(),
    }
    if kind == "vec":
        layers |= {"mean": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc1": nn.Linear(12, 10)}
        layers |= {"relu3": nn.ReLU(), "fc2": nn.Linear(10, classes)}
    else:
        layers |= {"pool2": nn.MaxPool2d(2), "conv3": nn.Conv2d(12, 10, 3, padding=1)}
        layers |= {"relu3": nn.ReLU(), "fc2": nn.Conv2d(10, classes, 1)}
    model = nn.Sequential(OrderedDict(layers))
    model.load_state_dict(state)
    return model
