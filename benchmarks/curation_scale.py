"""Selecting from as many clips as the web has: cluster labels on disk, chunk by chunk; time, memory, and a projection.

    python benchmarks/curation_scale.py [--clips 10000000] [--chunk 1000000] [--keep 0.25] [--folder DIR] [--quick]

ACAV100M chose a hundred of three hundred million clips, in chunks that are selected from independently. Here made-up
labels (10 columns of ``C`` clusters, 16 bits each: 20 bytes a clip) are written to a file and memory-mapped. Each chunk
gives the same share by batch greedy as the paper describes it (Algorithm 3; batches of 10,000, of which 500 are
picked), across the modalities; its picks go to a second file, so that memory is bounded by a chunk and not by the pool.

Measured at a tenth of the clips and at all of them: seconds, from the opened file to the written picks, and the largest
anonymous memory of the process above that before it began (pages of the mapped file belong to the system, which may
drop them at any time). Projected to 100 million in proportion to the clips; memory by a straight line through both. The
share of good clips among the chosen says that the selection does what it should: half of the pool is good.

10 million clips take about an hour on one core and 0.3 GB of disk. Writes ``benchmarks/results/curation_scale.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from avssl_core.curation import BatchPlan, PairwiseInformation, batch_greedy_select, pairing

RESULT = Path(__file__).parent / "results" / "curation_scale.json"
LAYERS = (5, 5)
NOISE, GOOD = 0.3, 0.5  # share of labels that are anything; of clips whose modalities show one class
TARGET = 100_000_000
WRITTEN = 1_000_000  # clips made at once
GIB = float(1 << 30)


@dataclass(frozen=True)
class Setting:
    """What is selected from what."""

    clips: int = 10_000_000
    clusters: int = 500
    chunk: int = 1_000_000
    keep: float = 0.25
    batch: int = 10_000
    picks: int = 500
    scheme: str = "bipartite"
    seed: int = 0


def write_labels(path: Path, setting: Setting) -> npt.NDArray[np.bool_]:
    """Make the labels ``(N, 10)`` on disk, chunk by chunk; which clips are good, ``(N,)``."""
    good = np.empty(setting.clips, dtype=bool)
    columns = sum(LAYERS)
    with open(path, "wb") as file:
        for number, begin in enumerate(range(0, setting.clips, WRITTEN)):
            n = min(WRITTEN, setting.clips - begin)
            rng = np.random.default_rng([setting.seed, number])
            seen, heard = rng.integers(setting.clusters, size=(2, n), dtype=np.uint16)
            good[begin : begin + n] = same = rng.random(n) < GOOD
            heard = np.where(same, seen, heard)
            labels = np.stack([seen] * LAYERS[0] + [heard] * LAYERS[1], axis=1)  # (n, 10)
            anything = rng.random((n, columns), dtype=np.float32) < NOISE
            labels[anything] = rng.integers(setting.clusters, size=int(anything.sum()), dtype=np.uint16)
            file.write(labels.tobytes())
    return good


def select(path: Path, picked: Path, setting: Setting, clips: int) -> None:
    """Select from the first ``clips`` of the file, chunk by chunk; ids of the chosen ones go to ``picked``."""
    labels = np.memmap(path, dtype=np.uint16, mode="c", shape=(setting.clips, sum(LAYERS)))
    pairs = pairing(setting.scheme, LAYERS)  # type: ignore[arg-type]
    with open(picked, "wb") as file:
        for number, begin in enumerate(range(0, clips, setting.chunk)):
            part = torch.from_numpy(labels[begin : min(begin + setting.chunk, clips)])
            objective = PairwiseInformation(part, pairs, clusters=[setting.clusters] * sum(LAYERS))
            plan = BatchPlan(min(setting.batch, len(part)), setting.picks, seed=setting.seed + number)
            ids = batch_greedy_select(objective, round(setting.keep * len(part)), plan).ids
            file.write((ids.numpy() + begin).astype(np.int64).tobytes())


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Seconds, also of processor time, and the largest anonymous memory above that at the beginning, in GiB.

    Memory is sampled ten times a second. Where the machine does other work, seconds of processor time say how much of
    the wall clock was waiting; two threads of one core still slow each other down.
    """
    found, before, over = {"peak_GiB": 0.0}, _anonymous(), threading.Event()

    def sample() -> None:
        while not over.wait(0.1):
            found["peak_GiB"] = max(found["peak_GiB"], _anonymous() - before)

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    start, busy = time.perf_counter(), time.process_time()
    try:
        yield found
    finally:
        found["seconds"] = time.perf_counter() - start
        found["cpu_seconds"] = time.process_time() - busy
        over.set()
        watcher.join()


def _anonymous() -> float:
    """Anonymous resident memory of this process in GiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 / GIB for line in lines if line.startswith("RssAnon"))


def measure(setting: Setting, folder: Path) -> list[dict[str, Any]]:
    """A tenth of the pool, then all of it."""
    path, picked = folder / "labels.u16", folder / "picked.i64"
    good = write_labels(path, setting)
    rows = []
    for clips in (setting.clips // 10, setting.clips):
        with watched() as found:
            select(path, picked, setting, clips)
        ids = np.fromfile(picked, dtype=np.int64)
        if len(np.unique(ids)) != len(ids) or ids.max() >= clips:
            raise RuntimeError(f"the selection of {clips} clips repeats a clip or leaves the pool")
        rows.append({"clips": clips, "chosen": len(ids), "good_share": float(good[ids].mean()), **found})
        print(rows[-1], flush=True)
    return rows


def projection(rows: Sequence[dict[str, Any]], target: int = TARGET) -> dict[str, Any]:
    """Hours in proportion to the clips; memory by a line through both sizes, never below what was measured."""
    small, large = rows
    slope = (large["peak_GiB"] - small["peak_GiB"]) / (large["clips"] - small["clips"])
    return {
        "clips": target,
        "hours": large["seconds"] * target / large["clips"] / 3600,
        "peak_GiB": max(large["peak_GiB"], large["peak_GiB"] + slope * (target - large["clips"])),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Make labels, select, project, write."""
    usual = Setting()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=usual.clips)
    parser.add_argument("--chunk", type=int, default=usual.chunk)
    parser.add_argument("--keep", type=float, default=usual.keep)
    parser.add_argument("--clusters", type=int, default=usual.clusters)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the labels lie; a temporary folder by default")
    parser.add_argument("--quick", action="store_true", help="20,000 clips, 20 clusters; writes nothing")
    parser.add_argument("--out", type=Path, help="file to write instead")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    setting = Setting(options.clips, options.clusters, options.chunk, options.keep)
    if options.quick:
        setting = Setting(20_000, 20, 5000, options.keep, batch=1000, picks=50)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure(setting, Path(folder))
    small, large = rows
    record = {
        "settings": {
            **asdict(setting),
            "columns": sum(LAYERS),
            "noise": NOISE,
            "good": GOOD,
            "threads": options.threads,
        },
        "versions": {name: version(name) for name in ("torch", "numpy")},
        "machine": platform.processor() or platform.machine(),
        "load_average": {"before": round(load, 1), "last quarter of an hour": round(os.getloadavg()[2], 1)},
        "measured": rows,
        "exponent": float(np.log(large["seconds"] / small["seconds"]) / np.log(large["clips"] / small["clips"])),
        "projection": projection(rows),
    }
    ahead = record["projection"]
    print(f"time grows with exponent {record['exponent']:.2f}")
    print(f"{ahead['clips']:,} clips: {ahead['hours']:.1f} h on one core, {ahead['peak_GiB']:.2f} GiB")
    if options.quick and options.out is None:
        return
    out = options.out or RESULT
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
