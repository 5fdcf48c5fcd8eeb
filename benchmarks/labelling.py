"""Labels by optimal transport to equal marginal error: ours beside POT's log-domain solver and the release.

    python benchmarks/labelling.py [--threads 2] [--gains 2 4] [--rounds 3] [--whole] [--large] [--quick]

How long does it take to label 170,000 samples with 309 clusters (VGG-Sound's sizes), from a table of scores to labels,
until the column sums differ from the marginal by 1e-3 in total? Contestants, all at the same sharpness:

* "ours": :func:`avssl_core.clustering.sinkhorn`, float32, extrapolated;
* "release": the published procedure in our own plain form: probabilities to the power λ, in float64, rows and columns
  scaled in turn by matrix products. Its stopping rule is replaced by the marginal error, which costs it nothing;
* "POT": ``ot.bregman.sinkhorn_log`` as it comes (NumPy, float64, one thread), and on torch in float32 with all threads.
  Left out where POT is not installed.

Scores are those of two linear networks: features are the prototype of the sample's class plus noise one and a half
times as long, logits are gain times the product with all prototypes, scores the mean log-softmax of both modalities.
Classes follow Zipf's law with exponent 1/2, between the two marginals (uniform, and Zipf with exponent 1), so that
either has to move samples. With 309 classes the mean largest probability is 0.02 at gain 2, 0.14 at 4 and 0.8 at 8; the
record has it for every case.

On a part of the rows all run to a tenth of the tolerance and must agree in labels before anything is timed.
Contestants take turns within a round; ratios are medians of the rounds' (other time / our time): above 1, ours is
faster. Ours is timed whole. The others make the same steps in every iteration, so that a few are timed and extrapolated
to the number that this error takes: preparation and one iteration, plus the cost of a further one times the number
left. That number is counted by a float32 run of the same iterations (``--whole`` times all iterations of the release
instead). POT's checks of its error after the first are not counted, and it takes its turn in the first round alone.

``--large`` labels 1.7 million samples in a process of its own, and records its peak memory.
Writes ``benchmarks/results/labelling.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl_core.clustering import (
    SinkhornResult,
    arrange_sizes,
    cluster_mass,
    fuse_log_probs,
    sinkhorn,
    uniform_sizes,
    zipf_sizes,
)

RESULT = Path(__file__).parent / "results" / "labelling.json"
SHARPNESS, TOLERANCE = 20.0, 1e-3
FEATURES, NOISE, CLASS_EXPONENT = 128, 1.5, 0.5
MARGINALS: dict[str, Callable[[int], Tensor]] = {"uniform": uniform_sizes, "Zipf": zipf_sizes}
MOST_ITERATIONS = 2000  # the release's own limit
RELEASE_STEPS, POT_STEPS = 10, 1  # iterations timed beyond the first
CHECKED_ROWS = 4000
LARGE = 1_700_000
ROW_CHUNK = 2**14
SMALLEST_LOG = math.log(5e-324)  # of a float64 that is not 0


@dataclass(frozen=True)
class Size:
    """Of a problem: samples and clusters."""

    rows: int
    clusters: int


def make_scores(size: Size, gain: float, seed: int = 0) -> tuple[Tensor, dict[str, float]]:
    """Scores ``(N, K)``, float32, and how sharp one modality's softmax is; made in chunks, without a second table."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = F.normalize(torch.randn(2, size.clusters, FEATURES, generator=generator), dim=2)
    classes = zipf_sizes(size.clusters, exponent=CLASS_EXPONENT)
    scores = torch.empty(size.rows, size.clusters)
    largest = entropy = 0.0
    for block in scores.split(ROW_CHUNK):
        y = torch.multinomial(classes, len(block), replacement=True, generator=generator)
        noise = NOISE * torch.randn(2, len(block), FEATURES, generator=generator) / FEATURES**0.5
        logits = [gain * (own[y] + n) @ own.T for own, n in zip(prototypes, noise, strict=True)]
        block.copy_(fuse_log_probs(logits))
        p = logits[0].softmax(dim=1)
        largest += float(p.amax(dim=1).sum()) / size.rows
        entropy += float(torch.special.entr(p).sum()) / size.rows
    return scores, {"mean_largest_probability": largest, "mean_entropy_nats": entropy}


def marginal_for(name: str, scores: Tensor) -> Tensor:
    """Sizes of that name, the largest to the fullest cluster: float64 ``(K,)``."""
    return arrange_sizes(MARGINALS[name](scores.shape[1]), cluster_mass([scores])).marginal


def ours(scores: Tensor, r: Tensor, tolerance: float = TOLERANCE, **options: Any) -> SinkhornResult:
    """The library's; labels that crowd together are not its fault here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whether it converged is recorded
        return sinkhorn(scores, r, sharpness=SHARPNESS, tolerance=tolerance, on_collapse="keep", **options)


def release(p: Tensor, r: Tensor, tolerance: float, iterations: int) -> tuple[Tensor, int, float]:
    """The published procedure on ``p = sqrt(p_v p_a)``: labels, iterations made, and the error they end at.

    Stops at the first iteration whose column sums are right, which the next one's product shows without further cost.
    """
    matrix = p.double() ** SHARPNESS
    rows = len(matrix)
    beta = matrix.new_full((rows,), 1 / rows)
    alpha, error, made = torch.zeros_like(r), math.inf, 0
    while True:
        sums = beta @ matrix
        if made:
            error = float((alpha * sums - r).abs().sum())
        if error <= tolerance or made == iterations:
            break
        alpha = r / sums
        beta = 1 / (rows * (matrix @ alpha))
        made += 1
    return matrix.mul_(beta[:, None]).mul_(alpha).argmax(dim=1), made, error


def count_iterations(scores: Tensor, r: Tensor, tolerance: float = TOLERANCE) -> SinkhornResult:
    """The release's and POT's iterations in float32, from where their first one ends, until the error is reached."""
    sums = torch.stack([(SHARPNESS * block.double()).logsumexp(dim=0) for block in scores.split(ROW_CHUNK)])
    first = r.log() - sums.logsumexp(dim=0)
    return ours(scores, r, tolerance, start=first, accelerate=False, max_iterations=MOST_ITERATIONS)


def underflowing(scores: Tensor) -> int:
    """Rows and columns that are zero in the release's float64."""
    rows = int((SHARPNESS * scores.amax(dim=1) < SMALLEST_LOG).sum())
    return rows + int((SHARPNESS * scores.amax(dim=0) < SMALLEST_LOG).sum())


def find_pot() -> ModuleType | None:
    """POT, if it is installed."""
    try:
        return import_module("ot")
    except ImportError as error:
        print(f"POT is left out, it does not load: {error}")
        return None


def pot(ot: ModuleType, scores: Any, r: Any, iterations: int) -> Any:
    """Row maxima of POT's plan after that many iterations; arrays of NumPy or tensors, in their own precision."""
    weights = scores[:, 0] * 0 + 1 / len(scores)
    plan = ot.bregman.sinkhorn_log(
        weights, r, -scores, 1 / SHARPNESS, numItermax=iterations, stopThr=0, warn=False
    )  # fmt: skip
    return plan.argmax(1)


def rivals(ot: ModuleType | None, scores: Tensor, r: Tensor) -> dict[str, tuple[Callable[[int], Any], int]]:
    """What labels in a given number of iterations, and how many beyond the first to time."""
    found: dict[str, tuple[Callable[[int], Any], int]] = {}
    if not underflowing(scores):
        p = scores.exp()
        found["release"] = (lambda n: release(p, r, 0.0, n), RELEASE_STEPS)
    if ot is not None:
        table, share = scores.double().numpy(), r.numpy()
        found["POT, NumPy, float64"] = (lambda n: pot(ot, table, share, n), POT_STEPS)
        found["POT, torch, float32"] = (lambda n: pot(ot, scores, r.float(), n), POT_STEPS)
    return found


def check_equal(scores: Tensor, ot: ModuleType | None) -> dict[str, dict[str, float]]:
    """Shares of labels that agree with ours, and iterations counted and made; raises where they are not equal."""
    part, tolerance = scores[:CHECKED_ROWS], TOLERANCE / 10
    if underflowing(part):
        raise SystemExit(f"{underflowing(part)} rows or columns underflow in the release's float64: lower the gain")
    found = {}
    for name in MARGINALS:
        r = marginal_for(name, part)
        mine = ours(part, r, tolerance, max_iterations=10 * MOST_ITERATIONS)
        labels, made, error = release(part.exp(), r, tolerance, 10 * MOST_ITERATIONS)
        counted = count_iterations(part, r, TOLERANCE).iterations
        agreeing = {"release": labels}
        for rival, (run, _) in rivals(ot, part, r).items():
            if rival != "release":
                agreeing[rival] = torch.as_tensor(run(made))
        record = {f"share of equal labels, {who}": _share(mine.labels, their) for who, their in agreeing.items()}
        to_same_error = release(part.exp(), r, TOLERANCE, MOST_ITERATIONS)[1]
        if max(mine.error, error) > tolerance or min(record.values()) < 1 - 10 * tolerance:
            raise SystemExit(f"{name}: other labels, or errors {mine.error:.2g} and {error:.2g} too large: {record}")
        if abs(to_same_error - counted) > max(1, 0.01 * counted):
            raise SystemExit(f"{name}: the release makes {to_same_error} iterations, {counted} were counted")
        found[name] = {**record, "iterations_made": to_same_error, "iterations_counted": counted}
    return found


def _share(a: Tensor, b: Tensor) -> float:
    return float((a == b).double().mean())


def seconds_of(run: Callable[[], Any]) -> float:
    """Wall-clock time of one run."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def extrapolated(run: Callable[[int], Any], steps: int, iterations: int) -> dict[str, float]:
    """Seconds of a whole run: preparation with one iteration, plus what each further one costs."""
    first = seconds_of(lambda: run(1))
    step = max(0.0, (seconds_of(lambda: run(1 + steps)) - first) / steps)
    return {"seconds": first + (iterations - 1) * step, "seconds_an_iteration": step}


def measure(
    scores: Tensor, r: Tensor, ot: ModuleType | None, rounds: int, *, whole: bool = False
) -> dict[str, dict[str, Any]]:
    """Seconds to equal error, iterations, and ratios to ours, over rounds in which all take their turn."""
    counted = count_iterations(scores, r)
    others = rivals(ot, scores, r)
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in ("ours", *others)}
    for turn in range(rounds):
        began = time.perf_counter()
        mine = ours(scores, r)
        turns["ours"].append({"seconds": time.perf_counter() - began})
        for name, (run, steps) in others.items():
            if whole and name == "release":
                turns[name].append({"seconds": seconds_of(lambda run=run: run(counted.iterations))})
            elif turn == 0 or not name.startswith("POT"):
                turns[name].append(extrapolated(run, steps, counted.iterations))
    reference = [each["seconds"] for each in turns["ours"]]
    found: dict[str, dict[str, Any]] = {}
    for name, own in turns.items():
        figures = {key: statistics.median(each[key] for each in own) for key in own[0]}
        ratio = statistics.median(t["seconds"] / o for t, o in zip(own, reference, strict=False))
        source = mine if name == "ours" else counted
        found[name] = {
            **figures,
            "ratio_to_ours": ratio,
            "iterations": source.iterations,
            "marginal_error": source.error,
            "converged": source.converged,
            "turns": len(own),
        }
    found["ours"]["share_of_labels_as_plain"] = _share(mine.labels, counted.labels)
    return found


def show(title: str, found: dict[str, dict[str, Any]]) -> None:
    """A line for each contestant."""
    print(f"\n{title}")
    for name, row in found.items():
        print(
            f"  {name:22s} {row['seconds']:9.2f} s  x {row['ratio_to_ours']:7.2f}   {row['iterations']:5d} iterations, "
            f"error {row['marginal_error']:.2g}{'' if row['converged'] else ', NOT converged'}",
            flush=True,
        )


def peak(size: Size, gain: float) -> dict[str, float]:
    """Label that many samples in this process, and say how much memory it ever held (Linux counts it in KiB)."""
    scores, _ = make_scores(size, gain)
    r = marginal_for("uniform", scores)
    made = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    result = ours(scores, r)
    seconds = time.perf_counter() - began
    return {
        **asdict(size),
        "gain": gain,
        "GiB_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "GiB_before_labelling": made / 2**20,
        "GiB_of_scores": scores.nbytes / 2**30,
        "seconds": seconds,
        "iterations": result.iterations,
        "marginal_error": result.error,
    }


def peak_elsewhere(size: Size, gain: float, threads: int) -> dict[str, float]:
    """:func:`peak` in a process of its own.

    Called before this one makes its tables: a new process counts what its parent held at its start.
    """
    options = {"peak": size.rows, "clusters": size.clusters, "gains": gain, "threads": threads}
    command = [sys.executable, __file__, *(f"--{key}={value}" for key, value in options.items())]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(f"{size.rows} rows: peak {found['GiB_peak']:.2f} GiB, {found['GiB_of_scores']:.2f} of them scores, ", end="")
    print(f"{found['iterations']} iterations in {found['seconds']:.0f} s", flush=True)
    return found


def installed(package: str) -> str:
    """Version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def run(size: Size, gains: Sequence[float], rounds: int, *, whole: bool) -> dict[str, Any]:
    """Agreement, then all cases, printed as they come."""
    ot = find_pot()
    record: dict[str, Any] = {"agreement": {}, "cases": {}}
    for gain in gains:
        scores, sharpness = make_scores(size, gain)
        if underflowing(scores):
            print(f"gain {gain:g}: {underflowing(scores)} rows or columns underflow in float64, no release")
        else:
            record["agreement"][f"gain {gain:g}"] = check_equal(scores, ot)
        for name in MARGINALS:
            title = f"gain {gain:g}, {name} marginal"
            found = measure(scores, marginal_for(name, scores), ot, rounds, whole=whole)
            show(f"{title} (mean largest probability {sharpness['mean_largest_probability']:.2f})", found)
            record["cases"][title] = {**sharpness, "contestants": found}
    return record


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=170_000)
    parser.add_argument("--clusters", type=int, default=309)
    parser.add_argument("--gains", type=float, nargs="+", default=[2.0, 4.0], help="of the logits: how sharp they are")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--whole", action="store_true", help="time all iterations of the release")
    parser.add_argument("--large", action="store_true", help=f"also the peak memory of {LARGE} rows")
    parser.add_argument("--quick", action="store_true", help="2,000 rows, 24 clusters, one round; writes nothing")
    parser.add_argument("--out", type=Path, help="file to write instead")
    parser.add_argument("--peak", type=int, metavar="ROWS", help="only label that many, and print figures as JSON")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.peak:
        print(json.dumps(peak(Size(options.peak, options.clusters), options.gains[0])))
        return
    size, gains, rounds = Size(options.rows, options.clusters), options.gains, options.rounds
    if options.quick:
        size, gains, rounds = Size(2000, 24), gains[:1], 1
    large = None
    if options.large:
        large = peak_elsewhere(Size(LARGE, options.clusters), gains[0], options.threads)
    record = {
        "settings": {
            **asdict(size),
            "sharpness": SHARPNESS,
            "tolerance": TOLERANCE,
            "gains": list(gains),
            "features": FEATURES,
            "noise": NOISE,
            "class_exponent": CLASS_EXPONENT,
            "rounds": rounds,
            "threads": options.threads,
            "extrapolation": {
                "ours": "none, timed whole",
                "release": "none, timed whole"
                if options.whole
                else f"preparation and 1 iteration, and {RELEASE_STEPS} more, timed; the rest by their mean",
                "POT": f"preparation and 1 iteration, and {POT_STEPS} more, timed; the rest by their mean; checks of "
                "its error after the first are not counted",
                "iterations": "counted by a float32 run of the same iterations to the same error",
            },
        },
        "versions": {name: installed(name) for name in ("torch", "numpy", "POT")},
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
        },
        **run(size, gains, rounds, whole=options.whole),
        "large": large,
    }
    if options.quick and options.out is None:
        return
    out = options.out or RESULT
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"\nwritten to {out}")


if __name__ == "__main__":
    main()
