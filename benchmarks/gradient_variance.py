"""Variance of the gradient of eq. (1) of GDT at an untrained network, from three kinds of batches of one size.

    python benchmarks/gradient_variance.py [--seeds 5] [--clips 200] [--samples 128] [--batches 64] [--processes 2]

Hypothesis (h): videos are distinctive, time shift, modality and direction invariant. Each batch encodes ``--samples``:

* ``hierarchical``: the paper's tree. N videos, two starts *of each video's own*, both modalities, both directions, and
  a fresh visual augmentation for every clip (a spectrogram's two directions share their mask, as in the release).
* ``independent``: as many transformations drawn independently: of any video, with a start, a modality, a direction and
  an augmentation of their own.
* ``full product``: what the paper decides against in section 3, the Cartesian product of one small set a factor.
  N videos × two starts × both modalities × both directions × one augmentation: every video of the batch is seen at the
  *same* two places (a place is the share of the way from the first start to the last one possible, as the release
  draws it), through the same crop, flip and colours, and heard at the same volume behind the same mask. Only from
  batch to batch are these drawn anew. The videos are those of the hierarchical batch of the same number, so that
  nothing else differs.

Networks, augmentations, batches and embeddings are the GDT chapter's own definitions, and so is the first figure:

* relative variance: trace of the gradient's covariance over the squared norm of its mean, in nats. The squared norm of
  a mean over B batches holds 1/B of the variance, so that this hardly exceeds log B, however weak the true mean is;
* variance: the trace alone, in nats, and
* squared mean: the squared norm of the mean alone, less that share of the variance: which of the two moved. Where it
  drowns in the noise there is no logarithm, and its difference is left out;
* the share of anchors with a positive, and the cosine between each kind's mean gradient and the hierarchical one: the
  three kinds estimate differently weighted objectives, and this says how different.

A seed redraws world, initial weights and batches, and runs on one thread of a process. Differences are paired by seed,
with 95 % t intervals; printed as ratios. Written to ``benchmarks/results/gradient_variance.json``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import platform
import resource
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avssl_core import data, losses, reporting, training

RESULT = Path(__file__).parent / "results" / "gradient_variance.json"
CHAPTER = Path(__file__).parents[1] / "chapters" / "01_gdt" / "gdt.py"
KINDS = ("hierarchical", "independent", "full product")
LOGARITHMS = ("log_relative_variance", "log_variance", "log_squared_mean")
ROW = losses.HYPOTHESES["h"]

Batch = dict[str, Tensor]
Figures = dict[str, float]


class SharedAugmentation:
    """One augmentation of sight and one of sound, drawn once and applied to whatever it is handed.

    Args:
        augment: the chapter's ``Augment``, which draws anew for every sample.
        generator: decides the one draw.
    """

    def __init__(self, augment: Any, generator: torch.Generator) -> None:
        self.augment = augment
        self.seed = int(torch.randint(2**62, (), generator=generator))

    def sight(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 ``(B, T, 3, H, W)`` to clips ``(B, 3, T, crop, crop)``; the generator is left alone."""
        return torch.cat([self.augment.sight(frames[b : b + 1], self._again()) for b in range(len(frames))])

    def sound(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Waveforms ``(B, L)`` to spectrograms ``(B, 1, F, T)``; the generator is left alone."""
        return torch.cat([self.augment.sound(waveform[b : b + 1], self._again()) for b in range(len(waveform))])

    def _again(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)  # each sample alone, from the same state: the same draws


def at_shared_places(batch: Batch, places: Tensor, cache: data.DecodedCache, spec: data.WindowSpec) -> Batch:
    """The same videos, every one of them at the same places in [0, 1) of its own length."""
    frames, sounds, starts = [], [], []
    for row in batch["row"].tolist():
        slack = max(0.0, cache.duration_s(row) - spec.clip_s)
        starts.append(slack * places)
        frames.append(torch.stack([cache.frames(row, s, spec.num_frames, spec.fps) for s in starts[-1].tolist()]))
        rate = cache.sample_rate or 0
        sounds.append(torch.stack([cache.samples(row, s, spec.num_samples, rate) for s in starts[-1].tolist()]))
    return batch | {"frames": torch.stack(frames), "waveform": torch.stack(sounds), "start_s": torch.stack(starts)}


def batches(kind: str, gdt: Any, config: Any, videos: Any, seed: int) -> Iterator[Batch]:
    """Endless batches of windows for ``config.samples_per_step`` samples, in an order that ``seed`` fixes."""
    if kind == "independent":
        yield from gdt.independent_batches(videos, config, config.samples_per_step, seed)
        return
    shifts, count = ROW.branches[0], config.samples_per_step // math.prod(ROW.branches)
    drawn = gdt.batches_of(videos, config, count, shifts, seed, training.World.single("cpu")).batches()
    for number, batch in enumerate(drawn):
        if kind == "full product":
            generator = training.step_generator(seed, number, micro=2)
            places = torch.rand(shifts, generator=generator, dtype=torch.float64)
            batch = at_shared_places(batch, places, videos.caches[0], gdt.window_spec(config, shifts))
        yield batch


def embed(
    kind: str, gdt: Any, model: torch.nn.Module, augment: Any, batch: Batch, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Embeddings ``(samples, d)`` of a batch, and their codes ``(samples, 5)``.

    Of a full product the chapter's path codes are its value codes: branch k of a factor is the same value everywhere.
    """
    if kind == "independent":
        return gdt.embed_independent(model, augment, batch, generator)
    used = SharedAugmentation(augment, generator) if kind == "full product" else augment
    return gdt.embed_leaves(model, used, batch, ROW, generator).flatten(0, 4), ROW.codes(len(batch["row"]))


def gradients(kind: str, gdt: Any, config: Any, videos: Any, seed: int) -> tuple[Tensor, float]:
    """Gradients of ``config.variance_batches`` batches, float64 ``(batches, parameters)``; anchors with a positive."""
    model, augment = gdt.build_model(config, seed), gdt.Augment(config)
    loss_of, found, shares = losses.CompositionalNCE(config.temperature), [], []
    stream = batches(kind, gdt, config, videos, seed)
    for number, batch in enumerate(itertools.islice(stream, config.variance_batches)):
        z, codes = embed(kind, gdt, model, augment, batch, training.step_generator(seed, number))
        c, w = losses.batch_matrices(codes, ROW.kinds, ROW.weight_mode, modality=ROW.modality)
        shares.append(float((c & w).any(1).float().mean()))
        model.zero_grad()
        loss_of(z, c, w).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    return torch.stack(found).double(), sum(shares) / len(shares)


def figures_of(g: Tensor, reference: Tensor) -> Figures:
    """What gradients ``(batches, parameters)`` say; ``reference`` is the mean gradient of the hierarchical batches."""
    mean = g.mean(0)
    variance, square = float(g.var(0).sum()), float(mean.square().sum())
    unbiased = square - variance / len(g)
    return {
        "log_relative_variance": math.log(variance / square),
        "log_variance": math.log(variance),
        "log_squared_mean": math.log(unbiased) if unbiased > 0 else -math.inf,
        "cosine_to_hierarchical": float(torch.nn.functional.cosine_similarity(mean, reference, dim=0)),
    }


def one_seed(seed: int, settings: dict[str, Any]) -> dict[str, Figures]:
    """Figures of each kind of batches in one world, at one network; ``settings`` override the chapter's parameters."""
    torch.set_num_threads(1)
    gdt = reporting.load_definitions(CHAPTER)
    config = gdt.make_config(**settings)
    videos = gdt.open_videos(config, seed)
    found = {kind: gradients(kind, gdt, config, videos, seed) for kind in KINDS}
    reference = found[KINDS[0]][0].mean(0)
    return {
        kind: figures_of(g, reference) | {"anchors_with_positive": share, "batches": len(g)}
        for kind, (g, share) in found.items()
    }


def differences(seeds: list[dict[str, Figures]]) -> dict[str, dict[str, dict[str, float]]]:
    """Paired differences of the logarithms, mean and 95 % t interval over seeds, for every two kinds."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for one, other in itertools.combinations(KINDS, 2):
        table[f"{other} - {one}"] = {}
        for name in LOGARITHMS:
            paired = [seed[other][name] - seed[one][name] for seed in seeds]
            if all(map(math.isfinite, paired)):  # a squared mean that drowned in the noise has no logarithm
                mean, low, high = reporting.t_interval(paired)
                table[f"{other} - {one}"][name] = {"mean": mean, "low": low, "high": high}
    return table


def show(seeds: list[dict[str, Figures]], table: dict[str, dict[str, dict[str, float]]]) -> None:
    """Means over seeds in nats, then ratios with their intervals."""
    names = (*LOGARITHMS, "anchors_with_positive", "cosine_to_hierarchical")
    print("".join(f"{text:>24s}" for text in ("means over seeds", *names)))
    for kind in KINDS:
        means = [sum(seed[kind][name] for seed in seeds) / len(seeds) for name in names]
        print(f"{kind:>24s}" + "".join(f"{mean:24.3f}" for mean in means))
    for pair, rows in table.items():
        print(f"\n{pair.replace(' - ', ' over ')} (ratio, 95 % interval)")
        for name, d in rows.items():
            low, mean, high = (math.exp(d[key]) for key in ("low", "mean", "high"))
            print(f"  {name.removeprefix('log_').replace('_', ' '):20s} {mean:7.2f}   [{low:.2f}, {high:.2f}]")


def finite(figures: Figures) -> dict[str, float | None]:
    """Figures as JSON has them, which knows no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def main() -> None:
    """Measure every seed, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=200, help="videos of a world; a quarter is held out")
    parser.add_argument("--samples", type=int, default=128, help="encoded samples of a batch")
    parser.add_argument("--batches", type=int, default=64, help="of each kind and seed")
    parser.add_argument("--processes", type=int, default=2, help="seeds at a time; the figures do not depend on it")
    parser.add_argument("--json", type=Path, default=RESULT)
    args = parser.parse_args()
    settings = {
        "clips": args.clips, "samples_per_step": args.samples, "variance_batches": args.batches, "device": "cpu"
    }  # fmt: skip
    with ProcessPoolExecutor(args.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        seeds = list(pool.map(partial(one_seed, settings=settings), range(args.seeds)))
    table = differences(seeds)
    show(seeds, table)
    spent = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    report = {
        "settings": {name: value for name, value in vars(args).items() if name not in ("json", "processes")},
        "versions": {name: version(name) for name in ("torch", "av")},
        "machine": platform.machine(),
        "cpu_s": round(sum(resource.getrusage(who).ru_utime for who in spent)),
        "seeds": [{kind: finite(found) for kind, found in seed.items()} for seed in seeds],
        "differences": table,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {args.json}")


if __name__ == "__main__":
    main()
