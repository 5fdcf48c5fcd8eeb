"""What a run costs, said before it starts: the cost line of a chapter, and projections from a few measured steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GIB = float(1 << 30)


@dataclass(frozen=True)
class Cost:
    """A chapter's promise: on ``hardware``, about ``minutes``, ending near ``expected``."""

    hardware: str
    minutes: float
    expected: str

    def line(self) -> str:
        """One line for the first cells of a chapter."""
        return f"Cost: {duration(60 * self.minutes)} on {self.hardware}. Expect: {self.expected}."


@dataclass(frozen=True)
class Projection:
    """What a full run would take: hours of wall time, device-hours, and memory in GiB on each device."""

    hours: float
    device_hours: float
    memory_gib: float

    def line(self, *, limit_gib: float | None = None) -> str:
        """One line; says so when the memory exceeds ``limit_gib``."""
        text = f"{self.hours:.1f} h ({self.device_hours:.0f} device-hours), {self.memory_gib:.1f} GiB a device"
        if limit_gib is not None and self.memory_gib > limit_gib:
            text += f"; that is more than the {limit_gib:.0f} GiB there are: lower the batch or accumulate gradients"
        return text


def project(
    *,
    seconds_per_sample: float,
    batch: int,
    steps: int,
    memory_bytes: Mapping[int, int],
    devices: int = 1,
    speed: float = 1.0,
) -> Projection:
    """Project hours and memory of a run from steps measured at tiny batches.

    Time is taken as proportional to the number of samples, which overestimates large batches on a GPU. Memory is a
    straight line through the two measurements: the constant part is weights, gradients and optimiser state, the slope
    is the activations.

    Args:
        seconds_per_sample: measured wall time of a training step, divided by its batch.
        batch: samples a step over all devices.
        steps: optimiser steps of the run.
        memory_bytes: peak memory at each of two or more batch sizes (per device); with one, it is scaled in
            proportion.
        devices: that share the batch evenly.
        speed: how many times faster the target device is than the measured one.

    Raises:
        ValueError: a number that must be positive is not, or no memory was measured.
    """
    positive = {
        "seconds_per_sample": seconds_per_sample,
        "batch": batch,
        "steps": steps,
        "devices": devices,
        "speed": speed,
    }
    for name, value in positive.items():
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    if not memory_bytes:
        raise ValueError("memory_bytes is empty; measure the peak memory at one batch size at least")
    per_device = -(-batch // devices)
    hours = seconds_per_sample * per_device * steps / speed / 3600
    small, large = min(memory_bytes), max(memory_bytes)
    # one point: all of it is taken to grow with the batch, which errs on the safe side for larger batches
    slope = (
        (memory_bytes[large] - memory_bytes[small]) / (large - small) if large > small else memory_bytes[small] / small
    )
    memory = memory_bytes[large] + slope * (per_device - large)
    return Projection(hours, hours * devices, memory / GIB)


@dataclass(frozen=True)
class MeasuredTraining:
    """What a dry run knows of one training after a few steps of it."""

    batch: int  # samples a step of the real run, over all devices
    steps: int  # of the real run
    seconds: float  # a sample
    peaks: Mapping[int, int]  # bytes, by samples a device


def projection_lines(
    trainings: Sequence[MeasuredTraining], *, world_size: int = 1, others: Sequence[int] = ()
) -> dict[str, str]:
    """Hours and memory of trainings that run one after the other, a named line for each number of devices.

    Args:
        trainings: their hours add up; the memory is that of the largest.
        world_size: devices of this run; its line is called ``projection``.
        others: further numbers of such devices to project to.

    Raises:
        ValueError: nothing is trained, or as :func:`project`.
    """
    if not trainings:
        raise ValueError("there is nothing to project: no training was measured")
    lines = {}
    for devices in sorted({world_size, *others}):
        parts = [
            project(
                seconds_per_sample=each.seconds,
                batch=each.batch,
                steps=each.steps,
                memory_bytes=each.peaks,
                devices=devices,
            )
            for each in trainings
        ]
        whole = Projection(
            sum(p.hours for p in parts), sum(p.device_hours for p in parts), max(p.memory_gib for p in parts)
        )
        lines["projection" if devices == world_size else f"projection, {devices} such devices"] = whole.line()
    return lines


def duration(seconds: float) -> str:
    """Wall time in words, to two figures: ``40 s``, ``3.5 min``, ``2.4 h``."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= length * 1.5:
            value = seconds / length
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    return f"{seconds:.0f} s"
