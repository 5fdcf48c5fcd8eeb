"""Forward and backward of our losses beside lightly's and pytorch-metric-learning's: equal values, ratios in one run.

    python benchmarks/losses.py [--batch 512] [--dim 256] [--rounds 40] [--threads 1] [--device cpu]

Up to 1,024 embeddings, unnormalised when they come in (the others normalise inside, so that ours get ``F.normalize`` in
front): NT-Xent over two views, symmetric InfoNCE between modalities, and seven positives an anchor.
Values and gradients must agree before anything is timed; contestants take turns within a round, so that a busy machine
slows all alike. Ratios are medians of the rounds' (other time / our time): above 1, ours is faster. Writes
``benchmarks/results/losses.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss as LightlyNTXent
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss
from torch import Tensor

from avssl_core.losses import CompositionalNCE, Hypothesis, find_hypothesis, symmetric_info_nce

TEMPERATURE = 0.07
RESULT = Path(__file__).parent / "results" / "losses.json"
Contestants = dict[str, Callable[[Tensor], Tensor]]  # the first is ours; input (rows, d)


def equation_one(h: Hypothesis, videos: int, device: str) -> Contestants:
    """Eq. (1) with its matrices built once, and from codes at every step."""
    loss = CompositionalNCE(TEMPERATURE)
    codes = h.codes(videos).to(device)
    contrast, weight = (matrix.to(device) for matrix in h.matrices(videos))
    return {
        "ours": lambda z: loss(F.normalize(z), contrast, weight),
        "ours, matrices rebuilt": lambda z: loss.from_codes(
            F.normalize(z), codes, h.kinds, h.weight_mode, modality=h.modality
        ),
    }


def nt_xent(batch: int, device: str) -> Contestants:
    """Two views of ``batch`` images; rows ``(image, view)``."""
    labels = torch.arange(batch, device=device).repeat_interleave(2)
    lightly, supcon = LightlyNTXent(TEMPERATURE), SupConLoss(TEMPERATURE)
    return {
        **equation_one(find_hypothesis("a"), batch, device),
        "lightly NTXentLoss": lambda z: lightly(z[::2], z[1::2]),
        "pytorch-metric-learning SupConLoss": lambda z: supcon(z, labels),
    }


def cross_modal(batch: int, device: str) -> Contestants:
    """``batch`` pairs of video (first half of the rows) and audio (second half)."""
    labels = torch.arange(batch, device=device)
    others = labels.clone()  # the same object would make supcon drop pairs (i, i) as comparisons with oneself
    supcon = SupConLoss(TEMPERATURE)

    def ours(z: Tensor) -> Tensor:
        v, a = F.normalize(z).chunk(2)
        return symmetric_info_nce(v, a, temperature=TEMPERATURE)

    def plain(z: Tensor) -> Tensor:
        v, a = F.normalize(z).chunk(2)
        logits = v @ a.T / TEMPERATURE
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    def metric_learning(z: Tensor) -> Tensor:
        v, a = z.chunk(2)
        forward = supcon(v, labels, ref_emb=a, ref_labels=others)
        return (forward + supcon(a, labels, ref_emb=v, ref_labels=others)) / 2

    return {
        "ours": ours,
        "torch cross_entropy, twice": plain,
        "pytorch-metric-learning SupConLoss, twice": metric_learning,
    }


def several_positives(batch: int, device: str) -> Contestants:
    """Row (d) of GDT's Table 1: ``batch / 8`` videos, eight clips each, seven positives an anchor."""
    videos = batch // 8
    labels = torch.arange(videos, device=device).repeat_interleave(8)
    supcon = SupConLoss(TEMPERATURE)
    return {
        **equation_one(find_hypothesis("d"), videos, device),
        "pytorch-metric-learning SupConLoss": lambda z: supcon(z, labels),
    }


def nt_xent_small(batch: int, device: str) -> Contestants:
    """As :func:`nt_xent`, for a contestant that builds a matrix (positive pairs, negative pairs): 4 GB at batch 512."""
    videos = batch // 8
    labels = torch.arange(videos, device=device).repeat_interleave(2)
    metric = NTXentLoss(TEMPERATURE)
    return {
        **equation_one(find_hypothesis("a"), videos, device),
        "pytorch-metric-learning NTXentLoss": lambda z: metric(z, labels),
    }


SETTINGS: dict[str, tuple[Callable[[int, str], Contestants], float]] = {
    "NT-Xent, two views": (nt_xent, 2),  # rows an element of the batch
    "symmetric InfoNCE, two modalities": (cross_modal, 2),
    "seven positives an anchor": (several_positives, 1),
    "NT-Xent, an eighth of the batch": (nt_xent_small, 0.25),
}


def step(loss: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """Value, and gradient of the embeddings."""
    leaf = z.detach().requires_grad_()
    value = loss(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def check_equal(contestants: Contestants, z: Tensor) -> None:
    """Raise unless all contestants agree in value and gradient."""
    value, gradient = step(next(iter(contestants.values())), z)
    for name, loss in contestants.items():
        other_value, other_gradient = step(loss, z)
        message = f"{name} computes something else: "
        torch.testing.assert_close(other_value, value, rtol=1e-4, atol=1e-5, msg=lambda m, n=message: n + m)
        scale = gradient.abs().max().item()
        torch.testing.assert_close(other_gradient, gradient, rtol=0, atol=1e-3 * scale, msg=lambda m, n=message: n + m)


def measure(contestants: Contestants, z: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds and median ratio to ours, over rounds in which all take their turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(rounds + 3):
        for k in range(len(names)):  # who goes first changes: a large contestant leaves cold caches to the next
            name = names[(turn + k) % len(names)]
            loss = contestants[name]
            synchronise(z)
            start = time.perf_counter()
            step(loss, z)
            synchronise(z)
            if turn >= 3:  # the first rounds warm up
                seconds[name].append(time.perf_counter() - start)
    ours = seconds["ours"]
    return {
        name: {
            "median_ms": 1000 * statistics.median(own),
            "ratio_to_ours": statistics.median(t / o for t, o in zip(own, ours, strict=True)),
        }
        for name, own in seconds.items()
    }


def synchronise(z: Tensor) -> None:
    """Wait for the device, so that the clock reads finished work."""
    if z.is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    """Check, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = {}
    for title, (build, rows) in SETTINGS.items():
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(int(rows * options.batch), options.dim, generator=generator).to(options.device)
        contestants = build(options.batch, options.device)
        check_equal(contestants, z)
        settings[title] = measure(contestants, z, options.rounds)
        print(f"\n{title} ({len(z)} x {options.dim})")
        for name, result in settings[title].items():
            print(f"  {name:45s} {result['median_ms']:8.2f} ms   x {result['ratio_to_ours']:.2f}")
    packages = ("torch", "lightly", "pytorch-metric-learning")
    record = {
        "batch": options.batch,
        "dim": options.dim,
        "rounds": options.rounds,
        "threads": options.threads,
        "device": torch.cuda.get_device_name() if z.is_cuda else "cpu",
        "versions": {name: version(name) for name in packages},
        "settings": settings,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    main()
