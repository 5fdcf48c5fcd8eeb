"""A run killed at any moment and started again ends with the same bits; a run asked to leave does so cleanly.

This file is also the program that is killed: ``python test_killed_training.py RUN_DIR key=value …``. Where only its
last step counts, it is forked from a server that has the imports done, which take seconds a process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from avssl_core.training import PREEMPTED_EXIT_CODE, FitConfig, FitResult, fit, load_checkpoint, save_checkpoint
from avssl_core.training.checkpoint import LAST

STEPS = 24


class Numbered(Dataset[Tensor]):
    """Sample ``i`` is a function of ``i``."""

    def __getitem__(self, index: int) -> Tensor:
        return torch.randn(2, 6, generator=torch.Generator().manual_seed(index))


class EndlessOrder:
    """Batches of four samples, numbered through from a start."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[list[int]]:
        batch = self.start
        while True:
            yield list(range(4 * batch, 4 * batch + 4))
            batch += 1


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4))


def train(
    run_dir: Path, *, accumulate: int, ema: float, workers: int = 0, pause_s: float = 0.0, init: int = 0, every: int = 5
) -> None:
    """Dropout, augmentation by generator, batch norm, Adam, running average: all that a resume can get wrong."""

    def loss_fn(
        model: nn.Module, batch: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        time.sleep(pause_s)
        noise = 0.3 * torch.randn(batch.shape, generator=generator)
        one, two = (batch + noise).unbind(1)  # (4, 2, 6) -> 2 × (4, 6)
        return (model(one) - model(two)).pow(2).mean() + (model(one).var(0) - 1).pow(2).mean(), {}

    def batches(start: int) -> Iterator[Any]:
        return iter(DataLoader(Numbered(), batch_sampler=EndlessOrder(start), num_workers=workers))

    settings = FitConfig(
        steps=STEPS, lr=0.01, optimiser="adamw", schedule="cosine", warmup_steps=3, grad_clip=1.0,
        accumulate=accumulate, ema=ema, log_every=1, checkpoint_every=every,
    )  # fmt: skip
    model = make_model(init)
    result = fit(
        model, batches, loss_fn, settings, run_dir=run_dir, on_log=lambda row: print(int(row["step"]), flush=True)
    )
    torch.save(bits(model, result), run_dir / "final.pt")


def bits(model: nn.Module, result: FitResult) -> dict[str, Tensor]:
    states = {"model": model.state_dict(), "ema": result.ema.state_dict() if result.ema else {}}
    return {f"{kind}.{name}": value for kind, state in states.items() for name, value in state.items()}


class Forked:
    """This program forked from a server; the part of :class:`subprocess.Popen` that is used here."""

    def __init__(self, arguments: list[str]) -> None:
        from helpers_distributed import forked  # not where this file is a program

        context = forked()
        reader, writer = context.Pipe(duplex=False)
        self.process = context.Process(target=_program, args=(writer, arguments))
        self.process.start()
        writer.close()  # so that reading ends with the process
        self.stdout = os.fdopen(os.dup(reader.fileno()))
        reader.close()

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running after {timeout} s"
        return int(self.process.exitcode)


def _program(output: Any, arguments: list[str]) -> None:
    os.setsid()
    os.dup2(output.fileno(), 1)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - pytest has its own
    main(*arguments)


Start = Callable[..., Any]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start this program in a process group of its own; whatever a failed test leaves of it is ended."""
    started: list[Any] = []

    def starter(run_dir: Path, *, fork: bool = False, **options: float) -> Any:
        arguments = [str(run_dir), *(f"{name}={value}" for name, value in options.items())]
        if fork:
            started.append(Forked(arguments))
        else:
            command = [sys.executable, __file__, *arguments]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True))
        return started[-1]

    yield starter
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def wait_for(process: subprocess.Popen[str] | Forked, step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= step:
            return
    raise AssertionError(f"the run ended (exit code {process.wait()}) before step {step}")


def straight(folder: Path, **options: Any) -> dict[str, Tensor]:
    """The same run, never interrupted."""
    train(folder, **options)
    state: dict[str, Tensor] = torch.load(folder / "final.pt", weights_only=True)
    return state


def assert_same_bits(folder: Path, expected: dict[str, Tensor]) -> None:
    ours = torch.load(folder / "final.pt", weights_only=True)
    assert ours.keys() == expected.keys() and len(ours) > 5
    different = [name for name in ours if not torch.equal(ours[name], expected[name])]
    assert not different


@pytest.mark.parametrize(("accumulate", "ema", "kills"), [(1, 0.0, 1), (2, 0.9, 2)])
def test_killed_and_restarted_ends_with_the_same_bits(
    start: Start, tmp_path: Path, accumulate: int, ema: float, kills: int
) -> None:
    folder, chance = tmp_path / "killed", random.Random()
    stops = sorted(chance.sample(range(6, STEPS - 2), kills))
    print("killed after steps", stops)  # shown by pytest when the test fails
    for attempt, stop in enumerate(stops):
        # another initialisation each time: whatever the checkpoint forgot would show
        process = start(folder, fork=True, accumulate=accumulate, ema=ema, pause_s=0.02, init=attempt)
        wait_for(process, stop)
        time.sleep(chance.uniform(0, 0.03))
        process.kill()
        process.wait()
        assert not (folder / "final.pt").exists()
    last = start(folder, fork=True, accumulate=accumulate, ema=ema, init=9)
    assert last.wait(timeout=120) == 0
    assert_same_bits(folder, straight(tmp_path / "straight", accumulate=accumulate, ema=ema))


@pytest.mark.parametrize(("name", "workers"), [("SIGTERM", 0), ("SIGUSR1", 2)])
def test_asked_to_leave_saves_and_exits_with_the_code(start: Start, tmp_path: Path, name: str, workers: int) -> None:
    folder = tmp_path / "preempted"
    process = start(folder, fork=workers == 0, accumulate=1, ema=0.9, pause_s=0.02, workers=workers, every=0)
    wait_for(process, 7)
    process.send_signal(getattr(signal, name))
    assert process.wait(timeout=120) == PREEMPTED_EXIT_CODE
    state = load_checkpoint(folder)  # every=0: only the signal can have caused it
    assert state is not None and 7 <= state["step"] < STEPS
    if workers == 0:
        assert start(folder, fork=True, accumulate=1, ema=0.9).wait(timeout=120) == 0
        assert_same_bits(folder, straight(tmp_path / "straight", accumulate=1, ema=0.9))


def test_a_signal_to_the_whole_group_also_ends_cleanly(start: Start, tmp_path: Path) -> None:
    """The loader's workers die of it; the run leaves with its last checkpoint, the code, and no process left behind."""
    process = start(tmp_path, accumulate=1, ema=0.0, pause_s=0.02, workers=2)
    wait_for(process, 8)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=120) == PREEMPTED_EXIT_CODE
    state = load_checkpoint(tmp_path)
    assert state is not None and state["step"] >= 5
    time.sleep(0.2)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def save_forever(folder: Path) -> None:
    step = 0
    while True:
        step += 1
        save_checkpoint(folder, {"step": step, "w": torch.full((500_000,), float(step))})


def test_killed_while_saving_never_loses_both(tmp_path: Path) -> None:
    """The processes do nothing but save, so that nearly every kill falls into a save."""
    context, chance = multiprocessing.get_context("fork"), random.Random()  # fork: no seconds of imports a kill
    for attempt in range(6):
        folder = tmp_path / str(attempt)
        process = context.Process(target=save_forever, args=(folder,))
        process.start()
        deadline, seen = time.monotonic() + 60, set()
        while len(seen) < 4:  # several saves have followed one another
            assert time.monotonic() < deadline and process.is_alive()
            with contextlib.suppress(FileNotFoundError):  # between the two renames
                seen.add((folder / LAST).stat().st_mtime_ns)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.join()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nor is there ever a damaged file under either name
            state = load_checkpoint(folder)
        assert state is not None and state["step"] >= 3
        assert torch.equal(state["w"], torch.full((500_000,), float(state["step"])))


def main(folder: str, *options: str) -> None:
    torch.set_num_threads(1)
    given = dict(option.split("=") for option in options)
    real = {name: float(value) for name, value in given.items() if name in ("ema", "pause_s")}
    whole = {name: int(value) for name, value in given.items() if name not in real}
    train(Path(folder), **real, **whole)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
