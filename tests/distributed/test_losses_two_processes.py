"""Two processes with half the batch each compute what one does on the joint batch: loss and averaged parameter
gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers_distributed import RankError, run_ranks
from torch import Tensor, nn

from avssl_core.collectives import LOCAL, Collectives
from avssl_core.losses import (
    CompositionalNCE,
    PairwiseGDTLoss,
    find_hypothesis,
    info_nce,
    joint_nce,
    multi_positive_nce,
    path_codes,
    similarity,
    symmetric_info_nce,
)
from avssl_core.training.distributed import TorchCollectives

VIDEOS, SHIFTS, DIRECTIONS, WIDTH, DIM, WORLD = 6, 2, 2, 7, 5, 2
Inputs = tuple[Tensor, Tensor]  # (N, K_τ, K_r, WIDTH) of each modality
Loss = Callable[[Tensor, Tensor, Collectives], Tensor]


class Encoder(nn.Module):
    """Two linear encoders with one common output space."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.video, self.audio = (nn.Linear(WIDTH, DIM, dtype=torch.float64) for _ in range(2))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))

    def forward(self, video: Tensor, audio: Tensor) -> Inputs:
        return F.normalize(self.video(video), dim=-1), F.normalize(self.audio(audio), dim=-1)


def first_variant(z: Tensor) -> Tensor:
    return z[:, 0, 0]  # (N, d)


def pairwise(v: Tensor, a: Tensor, collectives: Collectives, *, release_id: int, stop_grad_keys: bool) -> Tensor:
    places = {"A": (0, 0), "B": (1, 0), "C": (0, 1), "D": (1, 1)}
    embeddings = {x: (v[:, s, r], a[:, s, r]) for x, (s, r) in places.items()}
    return PairwiseGDTLoss(release_id, stop_grad_keys=stop_grad_keys, local_negatives="all", collectives=collectives)(
        embeddings
    )


def compositional(v: Tensor, a: Tensor, collectives: Collectives, *, row: str, reduction: str) -> Tensor:
    h = find_hypothesis(row)
    shifts, _, directions, _ = h.branches
    z = torch.stack([v[:, :shifts, :directions], a[:, :shifts, :directions]], dim=2).flatten(0, 3)
    loss = CompositionalNCE(reduction=reduction, collectives=collectives)
    codes = h.codes(len(v), rank=collectives.rank)
    value = loss.from_codes(z, codes, h.kinds, h.weight_mode, modality=h.modality)
    return value.mean() if reduction == "none" else value


def uneven_positives(v: Tensor, a: Tensor, collectives: Collectives) -> Tensor:
    """Three rows of rank 0 have positives and one of rank 1: the mean's denominator is no multiple of the batch."""
    names = collectives.gather(torch.arange(len(v)) + collectives.rank * len(v))
    own = names[collectives.rank * len(v) : (collectives.rank + 1) * len(v)]
    mask = (own[:, None] - names[None, :]).abs() % 5 == 1
    mask[own >= 4] = False
    logits = similarity(first_variant(v), collectives.gather(first_variant(a)), temperature=0.1)
    return multi_positive_nce(logits, mask, collectives=collectives)


def simclr_in_one_modality(v: Tensor, a: Tensor, collectives: Collectives) -> Tensor:
    """Weight `not_self`: a rank must leave out its own rows, not rank 0's."""
    codes = path_codes((len(v), SHIFTS), rank=collectives.rank)
    loss = CompositionalNCE(collectives=collectives)
    return loss.from_codes(v[:, :, 0].flatten(0, 1), codes, ("distinctive", "invariant"), "not_self") + 0 * a.sum()


def pair(function: Callable[..., Tensor], **settings: object) -> Loss:
    return partial(_pair, function=function, settings=settings)


def _pair(
    v: Tensor, a: Tensor, collectives: Collectives, *, function: Callable[..., Tensor], settings: dict[str, object]
) -> Tensor:
    return function(first_variant(v), first_variant(a), temperature=0.1, collectives=collectives, **settings)


LOSSES: dict[str, Loss] = {
    "info_nce": pair(info_nce),
    "info_nce, sum": pair(info_nce, reduction="sum"),
    "info_nce, detached": pair(info_nce, detach_keys=True),
    "symmetric": pair(symmetric_info_nce),
    "joint": pair(joint_nce),
    "joint, positive twice": pair(joint_nce, positive_twice=True),
    "multi-positive, uneven": uneven_positives,
    "SimCLR": simclr_in_one_modality,
    **{f"compositional ({row})": partial(compositional, row=row, reduction="mean") for row in "efghijklm"},
    "compositional (l), sum": partial(compositional, row="l", reduction="sum"),
    **{f"pairwise {i}": partial(pairwise, release_id=i, stop_grad_keys=True) for i in range(1, 10)},
    "pairwise 7, live keys": partial(pairwise, release_id=7, stop_grad_keys=False),
}


def joint_inputs() -> Inputs:
    generator = torch.Generator().manual_seed(11)
    shape = (VIDEOS, SHIFTS, DIRECTIONS, WIDTH)
    video, audio = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return video, audio


def evaluate(model: nn.Module, inputs: Inputs, collectives: Collectives, name: str) -> dict[str, object]:
    model.zero_grad(set_to_none=False)
    loss = LOSSES[name](*model(*inputs), collectives)
    loss.backward()
    # A modality that a loss does not use keeps a gradient of zero.
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    return {"loss": loss.detach(), "gradients": gradients}


def on_rank(rank: int) -> dict[str, object]:
    model = nn.parallel.DistributedDataParallel(Encoder(), find_unused_parameters=True)
    share = VIDEOS // WORLD
    inputs = tuple(x[rank * share : (rank + 1) * share] for x in joint_inputs())
    return {name: evaluate(model, inputs, TorchCollectives(), name) for name in LOSSES}


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, dict[str, object]]]:
    return run_ranks(on_rank, world_size=WORLD)


@pytest.mark.parametrize("name", LOSSES)
def test_equals_one_process_on_the_joint_batch(two_ranks: list[dict[str, dict[str, object]]], name: str) -> None:
    expected = evaluate(Encoder(), joint_inputs(), LOCAL, name)
    assert any(g.abs().max() > 1e-3 for g in expected["gradients"]), "the reference has no gradient to compare"
    mean_loss = torch.stack([rank[name]["loss"] for rank in two_ranks]).mean()
    torch.testing.assert_close(mean_loss, expected["loss"])
    for rank in two_ranks:  # DistributedDataParallel has averaged them
        torch.testing.assert_close(rank[name]["gradients"], expected["gradients"])


def test_without_gathering_the_loss_would_differ(two_ranks: list[dict[str, dict[str, object]]]) -> None:
    """Guards the test above: with local negatives only, the mean of two halves is another number."""
    share = VIDEOS // WORLD
    halves = [tuple(x[r * share : (r + 1) * share] for x in joint_inputs()) for r in range(WORLD)]
    for name in ("symmetric", "joint", "compositional (l)", "pairwise 7"):
        local = torch.stack([evaluate(Encoder(), half, LOCAL, name)["loss"] for half in halves]).mean()
        gathered = torch.stack([rank[name]["loss"] for rank in two_ranks]).mean()
        assert (local - gathered).abs() > 0.05


def fail_on_rank_one(rank: int) -> int:
    if rank == 1:
        raise RuntimeError("clip 17 is broken")
    torch.distributed.barrier()  # waits for a rank that never comes
    return rank


def sleep(rank: int) -> None:
    import time

    time.sleep(60)


def test_helper_reports_a_failing_rank() -> None:
    with pytest.raises(RankError, match="clip 17 is broken"):
        run_ranks(fail_on_rank_one, timeout_s=60)


def test_helper_ends_a_hanging_rank() -> None:
    with pytest.raises(RankError, match=r"ranks \[0\] still running after 2 s"):
        run_ranks(sleep, world_size=1, timeout_s=2, join=False)
