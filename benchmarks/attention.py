"""Trajectory attention as the library does it beside the definition as it is written down: equal numbers, time, memory.

    python benchmarks/attention.py [--device cpu|cuda] [--dtype float32|bfloat16] [--batch 1] [--seconds 0.5] [--quick]

Three questions, at the full model's width (768 channels, 12 heads):

1. One layer, forward and backward, from 4 to 16 frames of 14 x 14 and 21 x 21 tokens: milliseconds and peak memory of
   ours and of the plain definition (all tokens by all tokens kept, every trajectory token projected), with joint and
   divided attention for scale. Outputs and gradients of the two must agree in float32 before anything is timed.
2. The approximations as the number of tokens grows: does their cost grow in proportion?
3. Their error against the number of prototypes, on tokens in clusters.

Peak memory is the most that was allocated at once during forward and backward, above what lay there before (weights and
input): on a GPU from torch's allocator; on a CPU from the allocations that torch's profiler records in a run of its
own. Times are medians of rounds in which all take turns; ratios are to the first of a list (above 1, that one is
better). Writes
``benchmarks/results/attention_<cpu|cuda>_<dtype>.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from avssl_core.encoders import (
    DividedAttention,
    JointAttention,
    TrajectoryAttention,
    most_orthogonal_subset,
    nystrom_attention,
    orthoformer_attention,
    orthogonal_projection,
    performer_attention,
    random_subset,
    seeded_init,
    segment_means,
)

DIM, HEADS = 768, 12
RESULTS = Path(__file__).parent / "results"
SIZES = [(t, side) for side in (14, 21) for t in (4, 8, 16)]  # frames, and tokens along the side of a frame
GROWTH = [(8, side) for side in (7, 14, 21, 28)]
PROTOTYPES = (16, 32, 64, 128)
LOGITS = (2.0, 8.0)  # diffuse attention, and peaked


class PlainTrajectoryAttention(TrajectoryAttention):
    """Eqs. 4 to 6 word for word: every matrix is formed, and autograd keeps what it needs of all of them."""

    def forward(self, x: Tensor, num_frames: int, **_: object) -> Tensor:
        """Tokens ``(B, 1 + T * S, D)`` to as many."""
        q, k, v = self.queries_keys_values(x)
        scale = q.shape[3] ** -0.5
        from_class = torch.softmax(q[:, :, :1] @ k.transpose(2, 3) * scale, dim=3) @ v
        q, k, v = (y[:, :, 1:] for y in (q, k, v))
        logits = (q @ k.transpose(2, 3) * scale).unflatten(3, (num_frames, -1))  # (B, h, N, T, S)
        frames = v.unflatten(2, (num_frames, -1))
        tokens = torch.einsum("bhnts,bhtsd->bnthd", torch.softmax(logits, dim=4), frames).flatten(3)  # (B, N, T, D)
        by_frame = tokens.unflatten(1, (num_frames, -1))  # (B, T, S, T, D)
        own = by_frame.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).flatten(1, 2)  # (B, N, D)
        query = self.trajectory_q(own).unflatten(2, (self.heads, -1))  # (B, N, h, d)
        key, value = self.trajectory_kv(tokens).unflatten(3, (2, self.heads, -1)).unbind(3)  # (B, N, T, h, d)
        if not self.value_proj:
            value = tokens.unflatten(3, (self.heads, -1))
        weights = torch.softmax(torch.einsum("bnhd,bnthd->bnht", query, key) * scale, dim=3)
        patches = torch.einsum("bnht,bnthd->bnhd", weights, value).flatten(2)
        return self.out(torch.cat([from_class.transpose(1, 2).flatten(2), patches], dim=1))


class DividedPair(nn.Module):
    """Time, then space, as in a divided block."""

    def __init__(self) -> None:
        super().__init__()
        self.time = DividedAttention(DIM, HEADS, axis="time")
        self.space = DividedAttention(DIM, HEADS, axis="space")

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """Tokens ``(B, 1 + T * S, D)`` to as many."""
        return self.space(self.time(x, num_frames), num_frames)


def contestants(device: str) -> dict[str, nn.Module]:
    """The first two have the same weights."""
    with seeded_init(0):
        ours = TrajectoryAttention(DIM, HEADS)
        layers = {"ours": ours, "plain": PlainTrajectoryAttention(DIM, HEADS)}
        layers |= {"joint": JointAttention(DIM, HEADS), "divided": DividedPair()}
    layers["plain"].load_state_dict(ours.state_dict())
    return {name: layer.to(device) for name, layer in layers.items()}


def approximations(device: str) -> dict[str, nn.Module]:
    """Trajectory attention exact, and with 128 prototypes, landmarks or random features."""
    layers = {"exact": TrajectoryAttention(DIM, HEADS)}
    layers |= {name: TrajectoryAttention(DIM, HEADS, approx=name) for name in ("orthoformer", "nystrom", "performer")}
    layers["orthoformer, random prototypes"] = TrajectoryAttention(DIM, HEADS, approx="orthoformer", selection="random")
    return {name: layer.to(device) for name, layer in layers.items()}


class Bench:
    """Forward and backward passes on one device, in one precision."""

    def __init__(self, device: str, dtype: torch.dtype, batch: int, seconds: float) -> None:
        self.device, self.dtype, self.batch, self.seconds = device, dtype, batch, seconds

    def tokens(self, frames: int, side: int) -> Tensor:
        """Random tokens, as a LayerNorm would leave them."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, 1 + frames * side * side, DIM, generator=generator)
        return x.to(self.device).requires_grad_()

    def step(self, layer: nn.Module, x: Tensor, frames: int) -> tuple[Tensor, list[Tensor]]:
        """Output, and gradients of the input and of the weights that have one."""
        wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            out = layer(x, frames)
        return out.detach(), list(torch.autograd.grad(out, wanted, torch.ones_like(out)))

    def wait(self) -> None:
        """Let the clock read finished work."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak(self, layer: nn.Module, x: Tensor, frames: int) -> int:
        """Bytes allocated at once during a step, at most, above those before it."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step(layer, x, frames)
            return torch.cuda.max_memory_allocated() - before
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its own start and end
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
            self.step(layer, x, frames)
        events = [e for e in run.profiler.kineto_results.events() if e.name() == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            held += event.nbytes()  # negative for what is given back
            peak = max(peak, held)
        return peak

    def compare(self, layers: dict[str, nn.Module], frames: int, side: int) -> dict[str, dict[str, float]]:
        """Median milliseconds and peak MiB of each; what does not fit into memory is left out."""
        x = self.tokens(frames, side)
        found: dict[str, dict[str, float]] = {}
        seconds: dict[str, list[float]] = {}
        for name, layer in layers.items():
            try:
                self.step(layer, x, frames)  # warms up
                found[name] = {"peak_MiB": self.peak(layer, x, frames) / 2**20}
                seconds[name] = []
            except torch.cuda.OutOfMemoryError:
                torch.cuda.empty_cache()
        end = time.perf_counter() + self.seconds
        names, turn = list(found), 0
        while time.perf_counter() < end or turn < 3:
            turn += 1
            for k in range(len(names)):  # who goes first changes
                name = names[(turn + k) % len(names)]
                self.wait()
                start = time.perf_counter()
                self.step(layers[name], x, frames)
                self.wait()
                seconds[name].append(time.perf_counter() - start)
        first = seconds[names[0]]
        for name, own in seconds.items():
            found[name]["median_ms"] = 1000 * statistics.median(own)
            found[name]["time_ratio"] = statistics.median(t / o for t, o in zip(own, first, strict=True))
            found[name]["memory_ratio"] = found[name]["peak_MiB"] / found[names[0]]["peak_MiB"]
        return found


def check_equal(bench: Bench, layers: dict[str, nn.Module], frames: int = 8, side: int = 14) -> dict[str, float]:
    """Largest differences of outputs and gradients from the plain ones, relative to the largest of each."""
    exact = Bench(bench.device, torch.float32, 1, 0)
    x = exact.tokens(frames, side)
    out, gradients = exact.step(layers["ours"], x, frames)
    plain_out, plain_gradients = exact.step(layers["plain"], x, frames)
    scale = max(g.abs().max().item() for g in plain_gradients)
    found = {
        "output": ((out - plain_out).abs().max() / plain_out.abs().max()).item(),
        "gradients": max((a - b).abs().max().item() for a, b in zip(gradients, plain_gradients, strict=True)) / scale,
    }
    if max(found.values()) > 1e-4:
        raise SystemExit(f"ours and the plain definition are not equal: {found}")
    return found


def clustered(seed: int, frames: int, side: int, dim: int) -> Tensor:
    """Tokens ``(1, T * S, d)`` of about unit length: half of a frame is background, the rest one of 39 things."""
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(40, dim, generator=generator), dim=1)
    things = torch.randint(1, 40, (frames, side * side), generator=generator)
    things[torch.rand(things.shape, generator=generator) < 0.5] = 0
    x = directions[things] + 0.3 / dim**0.5 * torch.randn(frames, side * side, dim, generator=generator)
    return x.flatten(0, 1).unsqueeze(0)


def trial_errors(num: int, seed: int, logit: float, device: str, frames: int = 8) -> dict[str, float]:
    """Relative error of the trajectory tokens of one clip; a token's logit with its own kind is about ``logit``."""
    x = clustered(seed, frames, side=14, dim=64).to(device)
    generator = torch.Generator().manual_seed(seed)
    q = k = x * (logit * 64**0.5) ** 0.5
    by_frame = [y.unflatten(1, (frames, -1)).transpose(0, 1) for y in (k, x)]  # (T, 1, S, d)
    exact = F.scaled_dot_product_attention(q.expand(frames, -1, -1, -1), *by_frame).permute(1, 2, 0, 3)
    means = segment_means(q, num, num_frames=frames, order="space")
    orthogonal = q[:, most_orthogonal_subset(q, num, generator=generator)[0]]
    drawn = q[:, random_subset(q, num, generator=generator)[0]]
    features = orthogonal_projection(num, 64, generator=generator)
    found = {
        "orthogonal": orthoformer_attention(q, k, x, orthogonal, num_frames=frames),
        "random": orthoformer_attention(q, k, x, drawn, num_frames=frames),
        "segment means": orthoformer_attention(q, k, x, means, num_frames=frames),
        "nystrom": nystrom_attention(q, k, x, means, means, num_frames=frames),
        "performer": performer_attention(q, k, x, features, num_frames=frames),
    }
    return {name: ((y - exact).norm() / exact.norm()).item() for name, y in found.items()}


def errors(num: int, logit: float, trials: int, device: str) -> dict[str, float]:
    """Mean over clips of :func:`trial_errors`."""
    each = [trial_errors(num, seed, logit, device) for seed in range(trials)]
    return {name: statistics.mean(trial[name] for trial in each) for name in each[0]}


def show(title: str, found: dict[str, dict[str, float]]) -> None:
    """A line for each contestant."""
    print(f"\n{title}")
    for name, each in found.items():
        print(
            f"  {name:32s} {each['median_ms']:9.2f} ms x {each['time_ratio']:5.2f}   "
            f"{each['peak_MiB']:9.1f} MiB x {each['memory_ratio']:5.2f}",
            flush=True,
        )


def run(bench: Bench, sizes: list[tuple[int, int]], growth: list[tuple[int, int]], trials: int) -> dict:
    """All three parts, printed as they come."""
    layers = contestants(bench.device)
    record: dict = {"largest_relative_difference_float32": check_equal(bench, layers)}
    print(f"ours and the plain definition differ by {record['largest_relative_difference_float32']}")
    for key, chosen, where in (("sizes", layers, sizes), ("growth", approximations(bench.device), growth)):
        record[key] = {}
        for frames, side in where:
            title = f"{frames} x {side} x {side}"
            record[key][title] = bench.compare(chosen, frames, side)
            show(f"{key}: {title} tokens, {bench.batch} clip(s)", record[key][title])
    record["relative_error"] = {}
    for logit in LOGITS:
        print(f"\nrelative error of the trajectory tokens, logit {logit:.0f} between tokens of a kind")
        found = record["relative_error"][f"logit {logit:.0f}"] = {}
        for num in PROTOTYPES:
            found[num] = errors(num, logit, trials, bench.device)
            print(f"  {num:4d} prototypes: " + ", ".join(f"{name} {value:.3f}" for name, value in found[num].items()))
    return record


def main() -> None:
    """Check, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, help="clips; by default 1 on a CPU, 4 (the paper's) on a GPU")
    parser.add_argument("--seconds", type=float, default=0.5, help="at least, for each size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one size of each kind")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    on_gpu = options.device == "cuda"
    batch = options.batch or (4 if on_gpu else 1)
    bench = Bench(options.device, getattr(torch, options.dtype), batch, options.seconds)
    sizes, growth = ([(8, 14)], [(8, 14)]) if options.quick else (SIZES, GROWTH)
    if not on_gpu:  # a core takes minutes, and some 20 GiB, for the last
        sizes, growth = (where if options.quick else where[:-1] for where in (sizes, growth))
    record = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "dtype": options.dtype,
        "batch": batch,
        "threads": options.threads,
        "versions": {"torch": torch.__version__},
        **run(bench, sizes, growth, 3 if options.quick else 10),
    }
    out = options.out or RESULTS / f"attention_{options.device}_{options.dtype}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"\nwritten to {out}")


if __name__ == "__main__":
    main()
