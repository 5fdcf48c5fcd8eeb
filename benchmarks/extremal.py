"""Extremal perturbations, ours beside the release's procedure: seconds per (image, area), ratios in one run.

    python benchmarks/extremal.py [--device cpu|cuda] [--quick] [--threads 1]

ResNet-18 with random weights, 4 images of 224 pixels, 4 areas. The contestant "release" is the published procedure in
our own plain form: one image at a time with its areas as batch, masks by unfolding 81 taps over every pixel, the area
by a full sort. Network, perturbation, schedule and precision are the same; the network's parameters are frozen in both.
Masks must agree before anything is timed. Contestants take turns within a round, so that a busy machine slows all
alike; ratios are medians of the rounds' (release time / our time): above 1, ours is faster.

Rows that change more than the procedure say so: "prepared" folds batch normalisation into the convolutions and stores
channels last, which alters results by rounding only; "bfloat16" computes the network in less precision.
Writes ``benchmarks/results/extremal_<device>.json``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from avssl_core.attribution.extremal import extremal_perturbation
from avssl_core.attribution.perturbations import BlurPyramid
from avssl_core.attribution.smooth_masks import SmoothMaskGenerator

SIZE, STEP, SIGMA, SHARPNESS = 224, 7, 21, 20.0
NODES, TAPS, PADDING, WINDOWS = 32, 9, 7, 38
ITERATIONS = 800  # of a whole run, to extrapolate to
RESULTS = Path(__file__).parent / "results"
Clock = Callable[[int], None]


class PlainGenerator(nn.Module):
    """Smooth masks by the definition: unfold, upsample to the nearest, weigh, softmax over the taps."""

    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        u = torch.arange(WINDOWS * STEP)
        nodes = SIGMA + STEP * (u[None] // STEP + torch.arange(TAPS)[:, None] - PADDING)
        offsets = (u[None] - nodes).float()  # (K, W'')
        distance = (offsets[:, None, :, None] ** 2 + offsets[None, :, None, :] ** 2).sqrt() / SIGMA
        self.register_buffer("weights", torch.exp(-2 * (distance - 0.5).clamp(min=0) ** 2).flatten(0, 1)[None])

    def forward(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """``(K, 1, 32, 32)`` to crop and canvas."""
        taps = F.unfold(F.pad(parameters, [PADDING] * 4), TAPS).unflatten(2, (WINDOWS, WINDOWS))
        t = F.interpolate(taps, scale_factor=STEP, mode="nearest") * self.weights  # (K, 81, 266, 266)
        t = t[..., : 1 - STEP, : 1 - STEP]
        canvas = (t * torch.softmax(SHARPNESS * t, dim=1)).sum(1, keepdim=True).clamp(0, 1)
        return canvas[..., SIGMA : SIGMA + SIZE, SIGMA : SIGMA + SIZE], canvas


def release(
    model: nn.Module,
    images: Tensor,
    targets: list[int],
    areas: list[float],
    start: Tensor,
    iterations: int,
    tell: Clock,
) -> Tensor:
    """The published procedure; masks ``(B, A, 1, H, W)``. ``tell`` is called when an iteration of an image is done."""
    generator = PlainGenerator().to(images.device)
    found = []
    for image, target, own_start in zip(images, targets, start, strict=True):
        operator = BlurPyramid(image[None])
        parameters = own_start[:, None].clone().requires_grad_()
        optimiser = torch.optim.SGD([parameters], lr=0.01, momentum=0.9, dampening=0.9)
        weight = 300.0
        tell(-1)
        for t in range(iterations):
            crop, canvas = generator(parameters)
            pictures = operator(crop[None])[0]
            reward = model(pictures.flip(-1) if t % 2 == 0 else pictures)[:, target]
            ordered = canvas.flatten(1).sort(dim=1).values
            reference = torch.zeros_like(ordered)
            for row, area in zip(reference, areas, strict=True):
                row[int(row.numel() * (1 - area)) :] = 1
            energy = (reward - weight * (ordered - reference).square().mean(1)).sum()
            optimiser.zero_grad()
            (-energy).backward()
            optimiser.step()
            with torch.no_grad():
                parameters.clamp_(0, 1)
            weight *= 1.0035
            tell(t)
        found.append(crop.detach())
    return torch.stack(found)


def ours(
    model: nn.Module,
    images: Tensor,
    targets: list[int],
    areas: list[float],
    start: Tensor,
    iterations: int,
    tell: Clock,
    **options: Any,
) -> Tensor:
    """All images and areas at once."""
    return extremal_perturbation(
        model, images, targets, areas, start=start, iterations=iterations, on_iteration=tell, **options
    ).masks


def networks(device: str) -> tuple[nn.Module, nn.Module]:
    """As it comes, and prepared: batch normalisation folded in, channels last."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval().requires_grad_(False)
    prepared = fuse(model).to(device=device, memory_format=torch.channels_last).requires_grad_(False)
    return model.to(device), prepared


def contestants(device: str, model: nn.Module, prepared: nn.Module) -> dict[str, Callable[..., Tensor]]:
    """The first is the release's procedure; all take images, targets, areas, start, iterations, clock."""
    half = {"autocast": torch.bfloat16}
    rows: dict[str, Callable[..., Tensor]] = {"release": partial(release, model), "ours": partial(ours, model)}
    graph: dict[str, Any] = {}
    if device == "cuda":
        graph = {"cuda_graph": True}
        rows["ours, CUDA graph"] = partial(ours, model, **graph)
    rows["ours, prepared network"] = partial(ours, prepared, **graph)
    rows["ours, prepared network, bfloat16"] = partial(ours, prepared, **graph, **half)
    return rows


def iteration_seconds(contestant: Callable[..., Tensor], inputs: tuple[Any, ...], iterations: int, skip: int) -> float:
    """Median seconds of an iteration of all images, without preparation and the first ``skip`` iterations."""
    device, marks = inputs[0].device, []

    def tell(t: int) -> None:
        synchronise(device)
        marks.append((t, time.perf_counter()))

    contestant(*inputs, iterations, tell)
    spans = [b[1] - a[1] for a, b in itertools.pairwise(marks) if b[0] > a[0] and b[0] >= skip]
    images = sum(t == iterations - 1 for t, _ in marks)  # who does one at a time tells of each
    return statistics.median(spans) * images


def measure_runs(
    device: str, sizes: tuple[int, int], rounds: int, iterations: int, skip: int
) -> tuple[float, dict[str, dict[str, float]]]:
    """Agreement, then the network's share of our time, and seconds per (image, area) with ratios."""
    images_count, areas = sizes[0], [0.05, 0.1, 0.2, 0.4][: sizes[1]]
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(images_count, 3, SIZE, SIZE, generator=generator).to(device)
    start = torch.rand(images_count, len(areas), NODES, NODES, generator=generator).to(device)
    inputs = (images, list(range(images_count)), areas, start)
    model, prepared = networks(device)
    rows, pairs = contestants(device, model, prepared), images_count * len(areas)
    difference = agreement(rows, inputs)
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    alone: list[float] = []
    for _ in range(rounds):
        for name, contestant in rows.items():
            seconds[name].append(iteration_seconds(contestant, inputs, iterations, skip))
            if name == "ours":
                alone.append(network_seconds(model, images, pairs, iterations))
    share = statistics.median(n / o for n, o in zip(alone, seconds["ours"], strict=True))
    return share, {
        name: {
            "ms_per_iteration_and_pair": 1000 * statistics.median(own) / pairs,
            "seconds_per_pair_extrapolated": ITERATIONS * statistics.median(own) / pairs,
            "ratio_release_to_this": statistics.median(p / o for p, o in zip(seconds["release"], own, strict=True)),
            "largest_mask_difference": difference[name],
        }
        for name, own in seconds.items()
    }


def agreement(rows: dict[str, Callable[..., Tensor]], inputs: tuple[Any, ...]) -> dict[str, float]:
    """Largest difference of the masks after five steps from the same start; raises where it is more than rounding."""
    expected = rows["release"](*inputs, 6, lambda t: None)
    found = {}
    for name, contestant in rows.items():
        found[name] = (contestant(*inputs, 6, lambda t: None) - expected).abs().max().item()
        # A graphics card convolves batches of 4 and of 16 in other orders, and in TF32 for all contestants.
        if found[name] > (5e-2 if "bfloat16" in name else 5e-3 if inputs[0].is_cuda else 1e-3):
            raise SystemExit(f"{name} computes other masks: they differ by {found[name]:.2g}")
    return found


def measure_generators(device: str, masks: int, rounds: int) -> dict[str, dict[str, float]]:
    """Forward and backward of the mask generators alone: milliseconds and megabytes a mask."""
    generators: dict[str, nn.Module] = {"unfold": PlainGenerator(), "ours": SmoothMaskGenerator((SIZE, SIZE))}
    if device == "cuda":
        generators["ours, without the fused kernel"] = SmoothMaskGenerator((SIZE, SIZE), backend="torch")
    parameters = torch.rand(masks, 1, NODES, NODES, generator=torch.Generator().manual_seed(2)).to(device)
    seconds: dict[str, list[float]] = {name: [] for name in generators}
    saved, peak = {}, {}
    expected = draw(generators["unfold"].to(device), parameters)
    for name, generator in generators.items():
        for found, wanted, tolerance in zip(
            draw(generator.to(device), parameters), expected, (1e-5, 5e-2), strict=True
        ):
            message = f"{name} draws other masks: "
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=tolerance, msg=lambda m, n=message: n + m)
        saved[name], peak[name] = memory(generator, parameters)
    for _ in range(rounds):
        for name, generator in generators.items():
            synchronise(parameters.device)
            begin = time.perf_counter()
            draw(generator, parameters)
            synchronise(parameters.device)
            seconds[name].append(time.perf_counter() - begin)
    return {
        name: {
            "ms_per_mask": 1000 * statistics.median(own) / masks,
            "ratio_unfold_to_this": statistics.median(p / o for p, o in zip(seconds["unfold"], own, strict=True)),
            "megabytes_kept_for_backward_per_mask": saved[name] / masks / 1e6,
            **({"megabytes_at_peak_per_mask": peak[name] / masks / 1e6} if device == "cuda" else {}),
        }
        for name, own in seconds.items()
    }


def draw(generator: nn.Module, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Masks and the gradient of their sum."""
    leaf = parameters.detach().requires_grad_()
    crop, _ = generator(leaf)
    return crop.detach(), torch.autograd.grad(crop.sum(), leaf)[0]


def memory(generator: nn.Module, parameters: Tensor) -> tuple[int, int]:
    """Bytes kept for the backward pass, counting each storage once, and (on a GPU) the most that was allocated."""
    storages: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    draw(generator, parameters)
    before = 0
    if parameters.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        draw(generator, parameters)
    return sum(storages.values()), torch.cuda.max_memory_allocated() - before if parameters.is_cuda else 0


def network_seconds(model: nn.Module, images: Tensor, pairs: int, repeats: int) -> float:
    """Median seconds of the network alone for all pictures of an iteration, forward and backward to its input."""
    pictures, seconds = images[:1].expand(pairs, -1, -1, -1).contiguous(), []
    for _ in range(repeats):
        leaf = pictures.detach().requires_grad_()
        synchronise(images.device)
        begin = time.perf_counter()
        torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
        synchronise(images.device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that the clock reads finished work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def show(title: str, rows: dict[str, dict[str, float]]) -> None:
    """Print a table."""
    print(f"\n{title}")
    for name, row in rows.items():
        print(f"  {name:34s} " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="2 images x 2 areas, fewer rounds; writes nothing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file to write instead")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device, quick = options.device, options.quick
    sizes = (2, 2) if quick else (4, 4)
    rounds, iterations, skip = (5, 30, 10) if device == "cuda" else (1 if quick else 3, 3, 1)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    generators = measure_generators(device, 16 if device == "cuda" else 4, 20 if device == "cuda" else 5)
    show(f"mask generator, forward and backward, {name}", generators)
    share, runs = measure_runs(device, sizes, rounds, iterations, skip)
    show(f"optimisation, {sizes[0]} images x {sizes[1]} areas", runs)
    record = {
        "images": sizes[0],
        "areas": sizes[1],
        "iterations_of_a_run": ITERATIONS,
        "device": name,
        "threads": options.threads,
        "versions": {package: version(package) for package in ("torch", "torchvision")},
        "generators": generators,
        "network_share_of_ours": share,
        "runs": runs,
    }
    print(f"\nthe network alone, forward and backward, is {share:.0%} of our time")
    if quick and options.out is None:
        return
    out = options.out or RESULTS / f"extremal_{device}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
