"""Two processes compute what one computes on the joint batch: collectives, gradients, whole runs, failures."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers_distributed import run_ranks
from torch import Tensor, nn

from avssl_core.collectives import LOCAL, Collectives
from avssl_core.losses import symmetric_info_nce
from avssl_core.training import FitConfig, NonFiniteError, Preempted, TorchCollectives, World, fit, join

Work = Callable[[World, Path], None]


def _enter(rank: int, work: Work, folder: Path) -> None:
    world = join("cpu", timeout_s=60)
    assert world.rank == rank
    try:
        work(world, folder)
    finally:
        world.leave()


def on_two(work: Work, folder: Path) -> None:
    """Run ``work`` on two ranks that join as under torchrun; a failure there fails the test with its traceback."""
    run_ranks(_enter, work, folder, join=False)


# -- collectives -------------------------------------------------------------------------------------------------------


def check_collectives(world: World, folder: Path) -> None:
    both = world.collectives
    assert isinstance(both, TorchCollectives) and (both.rank, both.world_size) == (world.rank, 2)
    mine = torch.arange(6.0).reshape(3, 2) + 10 * world.rank
    whole = torch.cat([torch.arange(6.0).reshape(3, 2), torch.arange(6.0).reshape(3, 2) + 10])
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64):
        assert torch.equal(both.gather(mine.to(dtype)), whole.to(dtype))
    assert torch.equal(both.gather(mine > 9), whole > 9)
    assert torch.equal(both.gather(mine.T), torch.cat([whole[:3].T, whole[3:].T]))  # not contiguous
    assert torch.equal(both.sum(mine), whole[:3] + whole[3:])
    assert torch.equal(both.mean(torch.tensor([world.rank])), torch.tensor([0.5]))
    assert torch.equal(mine, torch.arange(6.0).reshape(3, 2) + 10 * world.rank)  # inputs are left alone
    assert world.any(world.rank == 1, False, torch.tensor(True)) == [True, False, True]
    with pytest.raises(ValueError, match=r"numbers of elements are \[4, 6\].*drop the last"):
        both.gather(torch.zeros(2 + world.rank, 2))


def check_gather_gradient(world: World, folder: Path) -> None:
    torch.manual_seed(0)
    joint = torch.randn(6, 4, dtype=torch.float64)
    factors = torch.randn(2, 6, 4, dtype=torch.float64)  # each rank has a loss of its own
    mine = joint[3 * world.rank : 3 * world.rank + 3].clone().requires_grad_()
    loss = (world.collectives.gather(mine).pow(3) * factors[world.rank]).sum()
    loss.backward()
    whole = joint.clone().requires_grad_()
    sum((whole.pow(3) * factors[rank]).sum() for rank in range(2)).backward()  # type: ignore[union-attr]
    assert mine.grad is not None and whole.grad is not None
    torch.testing.assert_close(mine.grad, whole.grad[3 * world.rank : 3 * world.rank + 3])


def check_both(world: World, folder: Path) -> None:
    check_collectives(world, folder)
    check_gather_gradient(world, folder)


def test_collectives_have_the_right_values_and_gradients(tmp_path: Path) -> None:
    on_two(check_both, tmp_path)


# -- World -------------------------------------------------------------------------------------------------------------


def check_world(world: World, folder: Path) -> None:
    again = join("cpu")
    assert (again.rank, again.world_size) == (world.rank, world.world_size)
    assert world.main_only(lambda: "rank 0") == ("rank 0" if world.rank == 0 else None)
    with world.main_first():
        if world.is_main:
            time.sleep(0.5)
            (folder / "cache").write_text("built")
        assert (folder / "cache").read_text() == "built"
    if world.is_main:
        with pytest.raises(ZeroDivisionError), world.main_first():
            raise ZeroDivisionError
    else:
        with pytest.raises(RuntimeError, match="rank 1 waited for work of rank 0, which failed"), world.main_first():
            pass
    norm = nn.BatchNorm1d(2)
    norm.running_mean.fill_(world.rank + 1.0)  # type: ignore[union-attr]
    norm.num_batches_tracked.fill_(world.rank + 5)  # type: ignore[union-attr]
    world.sync_buffers(norm)
    assert norm.running_mean.tolist() == [1.0, 1.0] and int(norm.num_batches_tracked) == 5  # type: ignore
    world.leave()
    world.leave()


def test_world_of_two(tmp_path: Path) -> None:
    on_two(check_world, tmp_path)


def test_alone_everything_is_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    world = join("cpu")
    assert world == World.single() and world.is_main and world.collectives is LOCAL
    model = nn.Linear(2, 2)
    assert world.wrap(model) is model
    assert world.any(True, False) == [True, False] and world.main_only(int, "3") == 3
    with world.main_first():
        pass
    world.barrier()
    world.leave()


def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match=r"RANK are set but WORLD_SIZE, MASTER_ADDR, MASTER_PORT not: .*torchrun"):
        join("cpu")


def test_a_rank_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "99")
    with pytest.raises(RuntimeError, match="local rank 99 has no GPU of its own"):
        join("cuda")


# -- runs --------------------------------------------------------------------------------------------------------------

STEPS, JOINT = 5, 8


class TwoTowers(nn.Module):
    """Sight and sound into one space."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.sight, self.sound = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5)), nn.Linear(4, 5)

    def forward(self, sight: Tensor, sound: Tensor) -> tuple[Tensor, Tensor]:
        normalise = functools.partial(nn.functional.normalize, dim=1)
        return normalise(self.sight(sight)), normalise(self.sound(sound))


def share(start: int, *, rank: int, world_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's rows of joint batch ``start``, ``start + 1``, …"""
    index = start
    while True:
        generator = torch.Generator().manual_seed(index)
        sight, sound = torch.randn(JOINT, 6, generator=generator), torch.randn(JOINT, 4, generator=generator)
        yield sight.chunk(world_size)[rank], sound.chunk(world_size)[rank]
        index += 1


def contrast(collectives: Collectives, model: nn.Module, batch: Any, generator: Any) -> tuple[Tensor, dict[str, Any]]:
    a, b = model(*batch)
    return symmetric_info_nce(a, b, temperature=0.2, collectives=collectives), {"first": batch[0][0, 0]}


def run(world: World, folder: Path | None, *, steps: int = STEPS, **settings: Any) -> tuple[dict[str, Tensor], Any]:
    model = TwoTowers()
    if world.rank == 1:  # the weights of rank 0 count, whatever the others drew
        nn.init.zeros_(model.sound.weight)
    result = fit(
        model,
        functools.partial(share, rank=world.rank, world_size=world.world_size),
        functools.partial(contrast, world.collectives),
        FitConfig(steps=steps, lr=0.5, grad_clip=0.7, log_every=1, **settings),
        world=world,
        run_dir=folder,
    )
    return model.state_dict(), result


SETTINGS: list[dict[str, Any]] = [{}, {"accumulate": 2, "ema": 0.5}]


def check_runs(world: World, folder: Path) -> None:
    for index, settings in enumerate(SETTINGS):
        state, result = run(world, folder / f"run{index}", **settings)
        torch.save(state, folder / f"weights{index}-{world.rank}.pt")
        if world.is_main:
            result.history.to_csv(folder / f"history{index}.csv")
            assert result.world_size == 2 and result.clips_per_s > 0


def test_runs_on_two_processes_equal_one_on_the_joint_batch(tmp_path: Path) -> None:
    on_two(check_runs, tmp_path)
    for index, settings in enumerate(SETTINGS):
        expected, result = run(World.single(), None, **settings)
        for rank in range(2):
            ours = torch.load(tmp_path / f"weights{index}-{rank}.pt", weights_only=True)
            assert ours.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(expected["sound.weight"], TwoTowers().sound.weight, atol=1e-2)  # it has moved
        history = pd.read_csv(tmp_path / f"history{index}.csv")
        for column, tolerance in (("loss", 1e-5), ("grad_norm", 1e-4)):
            assert history[column].tolist() == pytest.approx(result.history[column].tolist(), rel=tolerance)


def noisy(model: nn.Module, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
    """Rank-dependent noise, dropout and batch norm: what a resume on several ranks can get wrong."""
    x = batch[0] + 0.1 * torch.randn(batch[0].shape, generator=generator)
    return (model(x) - model(-x)).pow(2).mean() + model(x).pow(2).mean(), {}


def normed() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))


def check_resume(world: World, folder: Path) -> None:
    batches = functools.partial(share, rank=world.rank, world_size=2)
    whole, halves = normed(), normed()
    fit(whole, batches, noisy, FitConfig(steps=6, lr=0.1), world=world)
    fit(halves, batches, noisy, FitConfig(steps=3, lr=0.1), world=world, run_dir=folder / "run")
    halves = normed()
    result = fit(halves, batches, noisy, FitConfig(steps=6, lr=0.1), world=world, run_dir=folder / "run")
    assert result.resumed_from == 3
    gathered = world.collectives
    for (name, a), b in zip(whole.state_dict().items(), halves.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
        one, two = gathered.gather(a.reshape(1, -1)).unbind(0)
        assert torch.equal(one, two), name  # the ranks agree, buffers included


def test_two_ranks_resume_with_the_same_bits(tmp_path: Path) -> None:
    on_two(check_resume, tmp_path)


def check_agreement(world: World, folder: Path) -> None:
    """What happens on one rank ends the run on both, at the same step."""

    def spoiled(start: int) -> Iterator[tuple[Tensor, Tensor]]:
        for index, (sight, sound) in enumerate(share(start, rank=world.rank, world_size=2), start):
            yield (sight * float("nan") if (index, world.rank) == (2, 1) else sight), sound

    with pytest.raises(NonFiniteError) as caught:
        fit(TwoTowers(), spoiled, functools.partial(contrast, LOCAL), FitConfig(steps=5), world=world)
    assert caught.value.step == 2

    def signalled(start: int) -> Iterator[tuple[Tensor, Tensor]]:
        for index, batch in enumerate(share(start, rank=world.rank, world_size=2), start):
            if (index, world.rank) == (3, 1):
                import signal

                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    loss = functools.partial(contrast, world.collectives)
    with pytest.raises(Preempted) as left:
        fit(TwoTowers(), signalled, loss, FitConfig(steps=9), world=world, run_dir=folder / "run")
    assert left.value.step == 4 and "step 4 of 9" in str(left.value)


def test_the_ranks_stop_together(tmp_path: Path) -> None:
    on_two(check_agreement, tmp_path)
