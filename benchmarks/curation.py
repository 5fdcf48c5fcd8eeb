"""Selecting clips by mutual information: ours beside recomputing tables, and beside the release's incremental scoring.

    python benchmarks/curation.py [--threads 2] [--rounds 5] [--quick]

How long does it take to select a quarter of 100,000 clips, with 8 clusterings of 128 clusters (4 of each of two
modalities, all 28 pairs compared), in batches of 1000 of which 50 are picked? By both procedures of that name:
"sequential" scores a batch anew after every pick (Algorithm 3), "top" scores it once (as released). Contestants:

* "ours": :func:`avssl_core.curation.batch_greedy_select`, timed whole;
* "recomputed": for every candidate, all tables of the set with it are counted and their information is summed by
  eq. 4.2 (NumPy, float64);
* "release": its incremental scoring in our own plain form (torch, float32): ``n log n`` kept for every pair, whole rows
  of the tables gathered for every candidate, a pick added as a dense 0/1 table. The release has it for selection
  without batches; here it scores the same batches.

At five stages of a selection that ours has made, all three must give a batch the same scores before anything is timed.
The two others are timed at these stages (the middles of fifths of the selection) and extrapolated: "recomputed" by the
mean time of a candidate times the candidates that ours has looked up; "release" by the mean time of a pick (a batch
less half of its picks scored, one clip added) or of a round (a batch scored, its picks added one by one; and the
scoring alone) times their number. Drawing batches is not charged to them. Contestants take turns within a round; ratios
are medians of the rounds' (other time / our time): above 1, ours is faster.

Then: how does our time grow with the number of clips, and how much memory does it take above the labels? The latter is
the growth of the resident memory of a fresh process (Linux) that scores the whole pool once and selects 1000 clips.

Clips are synthetic: the two modalities show the same of as many classes as clusters, or, for half of the clips, a class
of their own; a clustering shows the class of its modality or, for three clips in ten, anything.
Writes ``benchmarks/results/curation.json``.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avssl_core.curation import BatchPlan, PairwiseInformation, Selection, batch_greedy_select, pairing

RESULT = Path(__file__).parent / "results" / "curation.json"
LAYERS = (4, 4)
INNERS = ("sequential", "top")
STAGES = 5
NOISE, MISMATCHED = 0.3, 0.5
RELEASE_PICKS, RECOMPUTED = 3, 2  # timed at each stage
GROWTH = (25_000, 50_000, 100_000, 200_000)
POOLS = (100_000, 1_000_000, 3_000_000)  # whose memory is measured


@dataclass(frozen=True)
class Setting:
    """Of a selection."""

    clips: int = 100_000
    clusters: int = 128
    batch: int = 1000
    picks: int = 50
    share: float = 0.25

    @property
    def size(self) -> int:
        """Clips to select."""
        return round(self.clips * self.share)

    def plan(self, inner: str) -> BatchPlan:
        """How ours selects."""
        return BatchPlan(self.batch, self.picks, inner)  # type: ignore[arg-type]


def make_labels(setting: Setting, seed: int = 0) -> Tensor:
    """Clusterings of synthetic clips, int16 ``(N, D)``."""
    generator = torch.Generator().manual_seed(seed)
    n, layers = setting.clips, sum(LAYERS)

    def drawn(*shape: int) -> Tensor:
        return torch.randint(setting.clusters, shape, generator=generator, dtype=torch.int16)

    seen, other = drawn(n), drawn(n)
    heard = torch.where(torch.rand(n, generator=generator) < MISMATCHED, other, seen)
    labels = torch.cat([seen[:, None].expand(-1, LAYERS[0]), heard[:, None].expand(-1, LAYERS[1])], dim=1)
    return torch.where(torch.rand(n, layers, generator=generator) < NOISE, drawn(n, layers), labels)


def select(labels: Tensor, setting: Setting, inner: str) -> Selection:
    """Ours, from labels to clips."""
    objective = PairwiseInformation(labels, pairing("combination", LAYERS), clusters=[setting.clusters] * sum(LAYERS))
    return batch_greedy_select(objective, setting.size, setting.plan(inner))


def recomputed_score(labels: npt.NDArray[np.int64], pairs: list[list[int]], clusters: int) -> float:
    """Eq. (4.3) of clips with these labels ``(n, D)``, every table counted from nothing."""
    n, total = len(labels), 0.0
    for p, q in pairs:
        cells = labels[:, p] * clusters + labels[:, q]
        table = np.bincount(cells, minlength=clusters * clusters).reshape(clusters, clusters)
        a, b = np.nonzero(table)
        both, first, second = table[a, b], table.sum(axis=1)[a], table.sum(axis=0)[b]
        total += float((both / n * np.log(n * both / (first * second))).sum())
    return total / len(pairs)


class ReleasedScoring:
    """The release's incremental bookkeeping: tables of a set, and their ``n log n``.

    Args:
        labels: int64 ``(N, D)``.
        pairs: int64 ``(P, 2)``.
        clusters: of every clustering.
        chosen: clips in the set, int64 ``(n,)``.
        dtype: of everything; float32 in the release.
    """

    def __init__(
        self, labels: Tensor, pairs: Tensor, clusters: int, chosen: Tensor, dtype: torch.dtype = torch.float32
    ) -> None:
        self.labels, self.pairs, self.clusters = labels, pairs, clusters
        first, second = labels[chosen][:, pairs].unbind(2)  # (n, P)
        cells = first * clusters + second
        counts = [torch.bincount(column, minlength=clusters * clusters) for column in cells.T]
        self.tables = torch.stack(counts).view(-1, clusters, clusters).to(dtype) + np.finfo(np.float64).eps
        self.rows, self.columns = self.tables.sum(2), self.tables.sum(1)  # (P, C)
        self.size = self.rows.sum(1)  # (P,)
        self.sums = [_x_log_x(counts).flatten(1).sum(1) for counts in (self.tables, self.rows, self.columns)]

    def scores(self, clips: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The set's value with each of these clips ``(W,)``, and the three sums ``(W, P)`` that it then has."""
        first, second = self.labels[clips][:, self.pairs].unbind(2)  # (W, P)
        gathered = torch.stack([table[label] for table, label in zip(self.tables, first.T, strict=True)], dim=1)
        counts = [gathered.gather(2, second[:, :, None])[:, :, 0]]  # out of (W, P, C)
        for sizes, label in ((self.rows, first), (self.columns, second)):
            counts.append(sizes[None].repeat(len(clips), 1, 1).gather(2, label[:, :, None])[:, :, 0])
        sums = [old - _x_log_x(n) + _x_log_x(n + 1) for old, n in zip(self.sums, counts, strict=True)]
        total = self.size + 1
        values = (sums[0] - sums[1] - sums[2]) / total + total.log()
        return values.mean(dim=1), sums

    def add(self, clip: Tensor, sums: list[Tensor]) -> None:
        """One clip, with the sums that it leads to, ``(P,)`` each."""
        first, second = self.labels[clip][self.pairs].unbind(1)  # (P,)
        hot = [torch.nn.functional.one_hot(label, self.clusters).to(self.tables.dtype) for label in (first, second)]
        dense = torch.einsum("pa,pb->pab", *hot)
        self.tables += dense
        self.rows += dense.sum(2)
        self.columns += dense.sum(1)
        self.size += 1
        self.sums = sums

    def pick(self, clips: Tensor) -> tuple[int, float]:
        """Score candidates, add the best; its place and value."""
        values, sums = self.scores(clips)
        best = int(values.argmax())
        self.add(clips[best], [each[best] for each in sums])
        return best, float(values[best])

    def pick_top(self, clips: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Score candidates once, add the best of them one by one; their places and values."""
        values, places = self.scores(clips)[0].topk(count)
        for place in places:
            self.add(clips[place], [each[0] for each in self.scores(clips[place][None])[1]])
        return places, values


def _x_log_x(x: Tensor) -> Tensor:
    return x * x.log()


@dataclass(frozen=True)
class Stage:
    """A point of a selection: the clips chosen so far, the next batch, and the release's tables of the former."""

    chosen: Tensor
    batch: Tensor
    released: ReleasedScoring


def stages_of(labels: Tensor, setting: Setting, picks: Tensor) -> list[Stage]:
    """The middles of fifths of a selection; batches are drawn from the clips not chosen by then."""
    generator = torch.Generator().manual_seed(1)
    pairs, found, wide = pairing("combination", LAYERS), [], labels.long()
    for stage in range(STAGES):
        count = round((stage + 0.5) / STAGES * len(picks) / setting.picks) * setting.picks
        chosen = picks[:count]
        free = torch.ones(len(labels), dtype=torch.bool)
        free[chosen] = False
        pool = free.nonzero()[:, 0]
        batch = pool[torch.randperm(len(pool), generator=generator)[: setting.batch]]
        found.append(Stage(chosen, batch, ReleasedScoring(wide, pairs, setting.clusters, chosen)))
    return found


def check_equal(labels: Tensor, setting: Setting, stages: list[Stage]) -> dict[str, float]:
    """Largest differences of scores from ours, in nats; raises where they are more than float32's rounding."""
    pairs = pairing("combination", LAYERS)
    objective = PairwiseInformation(labels, pairs, clusters=[setting.clusters] * sum(LAYERS))
    wide = labels.long().numpy()
    difference = {"recomputed": 0.0, "release": 0.0}
    for stage in stages:
        mine = objective.running(stage.chosen).scores(stage.batch)
        theirs = stage.released.scores(stage.batch)[0].double()
        few = [recomputed_score(wide[torch.cat([stage.chosen, x[None]])], pairs.tolist(), setting.clusters)
               for x in stage.batch[:RECOMPUTED]]  # fmt: skip
        difference["release"] = max(difference["release"], float((theirs - mine).abs().max()))
        gap = float((torch.tensor(few, dtype=torch.float64) - mine[:RECOMPUTED]).abs().max())
        difference["recomputed"] = max(difference["recomputed"], gap)
    if difference["recomputed"] > 1e-9 or difference["release"] > 1e-4:
        raise SystemExit(f"scores differ from ours: {difference}")
    return difference


def seconds_a_candidate(labels: npt.NDArray[np.int64], setting: Setting, stages: list[Stage]) -> float:
    """Mean over stages of what recomputing the tables for one candidate takes."""
    pairs, found = pairing("combination", LAYERS).tolist(), []
    for stage in stages:
        ids = stage.chosen.numpy()
        began = time.perf_counter()
        for clip in stage.batch[:RECOMPUTED].numpy():
            recomputed_score(labels[np.append(ids, clip)], pairs, setting.clusters)
        found.append((time.perf_counter() - began) / RECOMPUTED)
    return statistics.mean(found)


def seconds_a_pick(setting: Setting, stages: list[Stage]) -> float:
    """Mean over stages of what the release's scoring takes for one pick out of a batch half picked."""
    found = []
    for stage in stages:
        released, batch = copy.deepcopy(stage.released), stage.batch[: setting.batch - setting.picks // 2]
        began = time.perf_counter()
        for _ in range(RELEASE_PICKS):
            place, _ = released.pick(batch)
            batch = torch.cat([batch[:place], batch[place + 1 :]])
        found.append((time.perf_counter() - began) / RELEASE_PICKS)
    return statistics.mean(found)


def seconds_a_round(setting: Setting, stages: list[Stage]) -> tuple[float, float]:
    """Mean over stages of what a round with one scoring takes in the release's bookkeeping, and its scoring alone."""
    rounds, scorings = [], []
    for stage in stages:
        released = copy.deepcopy(stage.released)
        began = time.perf_counter()
        released.scores(stage.batch)
        between = time.perf_counter()
        released.pick_top(stage.batch, setting.picks)
        rounds.append(time.perf_counter() - between)
        scorings.append(between - began)
    return statistics.mean(rounds), statistics.mean(scorings)


def measure(labels: Tensor, setting: Setting, rounds: int) -> dict[str, Any]:
    """Agreement, then seconds and ratios to ours, over rounds in which all take their turn."""
    made = {inner: select(labels, setting, inner) for inner in INNERS}  # also warms up
    stages = {inner: stages_of(labels, setting, made[inner].picks) for inner in INNERS}
    agreement = {inner: check_equal(labels, setting, stages[inner]) for inner in INNERS}
    wide = labels.long().numpy()
    lookups = {inner: int(made[inner].lookups.sum()) for inner in INNERS}
    names = ("ours", "release", "recomputed")
    turns: dict[str, dict[str, list[float]]] = {inner: {name: [] for name in names} for inner in INNERS}
    turns["top"]["release, scoring alone"] = []
    for _ in range(rounds):
        for inner, seconds in turns.items():
            began = time.perf_counter()
            select(labels, setting, inner)
            seconds["ours"].append(time.perf_counter() - began)
            if inner == "sequential":
                seconds["release"].append(setting.size * seconds_a_pick(setting, stages[inner]))
            else:
                needed, each = math.ceil(setting.size / setting.picks), seconds_a_round(setting, stages[inner])
                seconds["release"].append(needed * each[0])
                seconds["release, scoring alone"].append(needed * each[1])
            seconds["recomputed"].append(lookups[inner] * seconds_a_candidate(wide, setting, stages[inner]))
    figures = {
        inner: {
            name: {
                "seconds": statistics.median(own),
                "ratio_to_ours": statistics.median(t / o for t, o in zip(own, seconds["ours"], strict=True)),
                "extrapolated": name != "ours",
            }
            for name, own in seconds.items()
        }
        for inner, seconds in turns.items()
    }
    return {"largest_score_difference_nats": agreement, "candidates_scored": lookups, "contestants": figures}


def growth(setting: Setting, sizes: Sequence[int], rounds: int) -> dict[str, Any]:
    """Median seconds of ours by the number of clips, and the exponent of a power law through them."""
    pools = {clips: replace(setting, clips=clips) for clips in sizes}
    labels = {clips: make_labels(own) for clips, own in pools.items()}
    turns: dict[str, dict[int, list[float]]] = {inner: {clips: [] for clips in sizes} for inner in INNERS}
    for _ in range(rounds):
        for inner, seconds in turns.items():
            for clips, own in pools.items():
                began = time.perf_counter()
                select(labels[clips], own, inner)
                seconds[clips].append(time.perf_counter() - began)
    found: dict[str, Any] = {}
    for inner, seconds in turns.items():
        medians = {clips: statistics.median(own) for clips, own in seconds.items()}
        exponent = np.polyfit(np.log(list(medians)), np.log(list(medians.values())), 1)[0]
        found[inner] = {"seconds": medians, "exponent": float(exponent)}
    return found


def peak(setting: Setting) -> dict[str, float]:
    """Growth of this process's resident memory while it scores a pool once and selects 1000 clips, in MB (Linux)."""
    warm = replace(setting, clips=4 * setting.batch)
    labels = make_labels(setting)
    work(make_labels(warm), warm)  # imports and code are not the pool's
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _resident("VmRSS")
    work(labels, setting)
    return {"clips": setting.clips, "MB_of_labels": labels.nbytes / 1e6, "MB_peak": _resident("VmHWM") - before}


def work(labels: Tensor, setting: Setting) -> None:
    """What :func:`peak` watches."""
    objective = PairwiseInformation(labels, pairing("combination", LAYERS), clusters=[setting.clusters] * sum(LAYERS))
    size = min(1000, setting.size)
    for inner in INNERS:
        chosen = batch_greedy_select(objective, size, setting.plan(inner))
    objective.running(chosen.ids).scores(torch.arange(len(labels)))


def _resident(field: str) -> float:
    """A line of Linux's account of this process's memory, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1e3 for line in lines if line.startswith(field))


def memory(setting: Setting, pools: Sequence[int]) -> dict[str, Any]:
    """:func:`peak` for pools of several sizes, each in a process of its own, and what one more clip takes."""
    found = []
    for clips in pools:
        options = {"peak": clips, "clusters": setting.clusters, "batch": setting.batch, "picks": setting.picks}
        command = [sys.executable, __file__, *(f"--{key}={value}" for key, value in options.items())]
        found.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    more = found[-1]["MB_peak"] - found[0]["MB_peak"]
    return {"pools": found, "bytes_a_further_clip": 1e6 * more / (pools[-1] - pools[0])}


def show(record: dict[str, Any]) -> None:
    """Print all tables."""
    print(f"scores differ from ours by at most {record['largest_score_difference_nats']} nats")
    for inner, figures in record["contestants"].items():
        print(f"\n{inner}, {record['candidates_scored'][inner]} candidates scored")
        for name, row in figures.items():
            note = ", extrapolated" if row["extrapolated"] else ""
            print(f"  {name:12s} {row['seconds']:12.2f} s  x {row['ratio_to_ours']:10.1f}{note}")
    for inner, row in record["growth"].items():
        times = ", ".join(f"{clips} clips {seconds:.2f} s" for clips, seconds in row["seconds"].items())
        print(f"\n{inner}: {times}; time grows with exponent {row['exponent']:.2f}")
    if record["memory"]:
        for row in record["memory"]["pools"]:
            print(
                f"\n{row['clips']} clips: {row['MB_peak']:.0f} MB above {row['MB_of_labels']:.0f} MB of labels", end=""
            )
        print(f"\n{record['memory']['bytes_a_further_clip']:.0f} bytes for a further clip")


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, measure, print, write."""
    usual = Setting()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=usual.clips)
    parser.add_argument("--clusters", type=int, default=usual.clusters)
    parser.add_argument("--batch", type=int, default=usual.batch)
    parser.add_argument("--picks", type=int, default=usual.picks, help="of a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="3,000 clips, 16 clusters, one round; writes nothing")
    parser.add_argument("--out", type=Path, help="file to write instead")
    parser.add_argument("--peak", type=int, metavar="CLIPS", help="only measure the memory of that many; prints JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    setting = Setting(options.clips, options.clusters, options.batch, options.picks)
    if options.peak:
        print(json.dumps(peak(replace(setting, clips=options.peak))))
        return
    rounds, sizes, pools = options.rounds, GROWTH, POOLS
    if options.quick:
        setting, rounds, sizes, pools = Setting(3000, 16, 100, 5), 1, (1500, 3000), ()
    record = {
        "settings": {
            **asdict(setting),
            "clusterings": sum(LAYERS),
            "pairs": len(pairing("combination", LAYERS)),
            "noise": NOISE,
            "mismatched": MISMATCHED,
            "rounds": rounds,
            "threads": options.threads,
            "extrapolation": {
                "ours": "none, timed whole",
                "recomputed": f"mean seconds of {RECOMPUTED} candidates at each of {STAGES} stages, times candidates",
                "release, sequential": f"mean seconds of {RELEASE_PICKS} picks at each of {STAGES} stages, times picks",
                "release, top": f"mean seconds of a round at each of {STAGES} stages, times rounds",
            },
        },
        "versions": {name: version(name) for name in ("torch", "numpy")},
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
        },
        **measure(make_labels(setting), setting, rounds),
        "growth": growth(setting, sizes, min(rounds, 3)),
        "memory": memory(setting, pools) if pools else None,
    }
    show(record)
    if options.quick and options.out is None:
        return
    out = options.out or RESULT
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"\nwritten to {out}")


if __name__ == "__main__":
    main()
