"""What a training run is made of, as one flat, frozen record.

Every field is a scalar, so that the parameters cell of a notebook, a YAML budget or a command line can set it. Unknown
names are errors: a misspelt ``warmup_step`` that is silently ignored costs a run.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

OptimiserName = Literal["sgd", "adamw"]
ScheduleName = Literal["constant", "cosine", "multistep"]
PrecisionName = Literal["float32", "bf16"]
Scalar = int | float | str | bool | None

_CHOICES: dict[str, tuple[str, ...]] = {
    "optimiser": get_args(OptimiserName),
    "schedule": get_args(ScheduleName),
    "precision": get_args(PrecisionName),
}
_AT_LEAST: dict[str, float] = {
    "steps": 0, "lr": 0, "momentum": 0, "beta2": 0, "weight_decay": 0, "warmup_steps": 0, "warmup_from": 0, "min_lr": 0,
    "gamma": 0, "grad_clip": 0, "accumulate": 1, "ema": 0, "log_every": 1, "checkpoint_every": 0, "seed": 0,
}  # fmt: skip
_BELOW_ONE = ("momentum", "beta2", "ema")


@dataclass(frozen=True)
class FitConfig:
    """Settings of :func:`avssl_core.training.fit`.

    Raises:
        ValueError: a value lies outside its range; the message names the field, the value and the range.
    """

    steps: int = 1000  # optimiser steps, not batches (see accumulate)
    lr: float = 0.01  # peak learning rate; scale it with `scale_lr` when the batch grows
    optimiser: OptimiserName = "sgd"
    momentum: float = 0.9  # SGD's momentum, AdamW's first beta
    beta2: float = 0.999  # AdamW only
    weight_decay: float = 1e-5
    decay_norm_bias: bool = True  # False: parameters with one dimension (biases, norm scales) are not decayed
    warmup_steps: int = 0  # linear rise to lr
    warmup_from: float = 0.0  # where that rise starts, as a share of lr
    schedule: ScheduleName = "constant"  # after the warm-up
    min_lr: float = 0.0  # where the cosine ends, as a share of lr
    milestones: str = ""  # multistep: steps at which lr is multiplied by gamma, e.g. "600,900"
    gamma: float = 0.1
    grad_clip: float = 0.0  # largest norm of the whole gradient; 0 = no clipping
    accumulate: int = 1  # batches a step
    precision: PrecisionName = "float32"
    ema: float = 0.0  # decay of the running average of the weights; 0 = none
    log_every: int = 50  # steps a line
    checkpoint_every: int = 500  # steps a checkpoint; 0 = only at the end and on preemption
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every range once, where the value is set."""
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(choices)}")
        for name, low in _AT_LEAST.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= low):
                raise ValueError(f"{name}={value!r} must be a finite number of at least {low}")
        for name in _BELOW_ONE:
            if getattr(self, name) >= 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be below 1")
        if self.schedule == "multistep" and not self.milestone_steps:
            raise ValueError("schedule='multistep' needs milestones, for instance milestones='600,900'")

    @property
    def milestone_steps(self) -> tuple[int, ...]:
        """``milestones`` as ascending integers."""
        try:
            return tuple(sorted(int(part) for part in self.milestones.split(",") if part.strip()))
        except ValueError:
            raise ValueError(
                f"milestones={self.milestones!r} must be steps separated by commas, e.g. '600,900'"
            ) from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FitConfig:
        """Build from a mapping of names to scalars, such as a YAML budget.

        Numbers that YAML reads as text (``1e-3`` without a dot) are converted.

        Raises:
            ValueError: an unknown name (the message gives the nearest valid ones), or a value of the wrong type.
        """
        kinds = {field.name: type(field.default) for field in fields(cls)}
        for name in values:
            if name not in kinds:
                raise ValueError(_unknown(name, list(kinds)))
        return cls(**{name: _convert(name, value, kinds[name]) for name, value in values.items()})

    def to_dict(self) -> dict[str, int | float | str | bool]:
        """All fields as plain scalars, for the record kept beside a result."""
        return asdict(self)


def _unknown(name: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"valid names are {', '.join(valid)}"
    return f"unknown training setting {name!r}: {hint}"


def _convert(name: str, value: Any, kind: type) -> Any:
    """``value`` as ``kind``, where nothing is lost by it; booleans are never taken for numbers."""
    try:
        if kind in (bool, str):
            if isinstance(value, kind):
                return value
        elif not isinstance(value, bool):
            number = float(value)
            if kind is float:
                return number
            if number.is_integer():
                return int(value) if isinstance(value, int) else int(number)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{name}={value!r} must be of type {kind.__name__}")


FREE_TO_CHANGE = ("arms", "workers", "cache")
"""Parameters of every chapter on which no training depends: what is trained beside it, and how its clips are read."""


def run_context(config: object, *, without: Collection[str] = (), **more: Scalar) -> dict[str, Scalar]:
    """What decides a training, for ``context`` of :func:`avssl_core.training.fit`: with it, a checkpoint goes on.

    Args:
        config: a chapter's configuration, a dataclass of scalars.
        without: further fields on which this training does not depend, such as those of the evaluation after it.
        more: what the fields do not say: which arm it is, which task.

    Raises:
        ValueError: ``without`` names a field that does not exist.
    """
    values = vars(config)
    unknown = [name for name in without if name not in values]
    if unknown:
        raise ValueError(f"without={unknown}: the configuration has no such field; it has {', '.join(values)}")
    return {name: value for name, value in values.items() if name not in {*FREE_TO_CHANGE, *without}} | more
