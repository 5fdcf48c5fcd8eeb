"""What each benchmark's file says, as rows of a table: the figure, the goal where one was set, and why.

A function a benchmark takes the parsed file and returns a :class:`~avssl.measured_rows.Section`. Figures come from the
file; goals are those that were set before measuring. A reason stands where the file or the benchmark itself knows one.
Sections of what concerns files stand in :mod:`avssl.measured_files`.
"""

from __future__ import annotations

import math
from statistics import mean

from avssl.measured_files import (
    binding_streams,
    clip_loading,
    compressed_reading,
    loading_share,
    playground_speed,
    playground_supervised,
)
from avssl.measured_rows import Benchmark, Found, Row, Section, exponent, growing, number, ratio, share

REFERENCE = "8 x 14 x 14"  # tokens at which the goals of attention are set
RELATIVES = ("orthoformer", "nystrom", "performer")


def _size(name: str) -> str:
    return name.replace(" x ", "×")


def attention(found: Found) -> Section:
    """Trajectory attention, exact and approximate."""
    sizes, on = found["sizes"], "CPU" if found["device"] == "cpu" else "GPU"
    time, memory = (sizes[REFERENCE]["plain"][f"{kind}_ratio"] for kind in ("time", "memory"))
    along = [name for name in sizes if name.endswith(" x 14 x 14")]
    differences = found["largest_relative_difference_float32"]
    rows = [
        ratio(f"time, {_size(REFERENCE)} tokens", time, 1.5),
        ratio(f"peak memory, {_size(REFERENCE)} tokens", memory, 3.0),
        *(
            growing(f"{kind}, {', '.join(map(_size, along))}", [sizes[n]["plain"][f"{kind}_ratio"] for n in along])
            for kind in ("time", "memory")
        ),
        Row(
            "relative difference of outputs and gradients",
            ", ".join(f"{differences[name]:.0e}" for name in ("output", "gradients")),
            "exact (rounding: ≤ 1e-05)",
            max(differences.values()) <= 1e-5,
        ),
        *_approximations(found),
    ]
    why = "The plain definition keeps a matrix of all tokens by all tokens and projects every trajectory token."
    if on == "GPU" and time < 1:
        why += (
            f" At {_size(REFERENCE)} tokens ours takes {number(1 / time)} times as long as that, at {number(memory)} "
            "times less memory: queries are taken in parts, whose size had been tuned for a CPU. Since this run parts "
            "on a GPU are larger; that has not been measured yet."
        )
    compares = f"the plain definition over ours, forward and backward, {found['dtype']}, batch {found['batch']}"
    return Section(f"Trajectory attention, on a {on}", compares, rows, why)


def _approximations(found: Found) -> list[Row]:
    """Whether cost grows as the tokens do, and the error at the largest number of prototypes."""
    growth = found["growth"]
    small, *_, large = growth
    tokens = math.prod(map(int, large.split(" x "))) / math.prod(map(int, small.split(" x ")))
    slopes = [growth[large][name]["median_ms"] / growth[small][name]["median_ms"] / tokens for name in RELATIVES]
    sharpness, by_count = list(found["relative_error"].items())[-1]
    count, errors = list(by_count.items())[-1]
    shown = {"Orthoformer": "orthogonal", "Nyström": "nystrom", "Performer": "performer"}
    return [
        Row(
            f"{', '.join(shown)}: growth of time over growth of tokens, {_size(small)} to {_size(large)}",
            ", ".join(f"{number(slope)} ×" for slope in slopes),
            "linear (≤ 1.1 ×)",
            max(slopes) <= 1.1,
        ),
        Row(
            f"{', '.join(shown)}: relative error with {count} prototypes, {sharpness}",
            ", ".join(number(errors[name]) for name in shown.values()),
        ),
    ]


def extremal(found: Found) -> Section:
    """Extremal perturbations; the goal is asked of the network as it comes."""
    on_cpu, runs = found["device"] == "cpu", found["runs"]
    ours = {name: run["ratio_release_to_this"] for name, run in runs.items() if name != "release"}
    best = max((name for name in ours if "prepared" not in name), key=ours.__getitem__)
    goal, tolerance = (3.0, 1e-3) if on_cpu else (8.0, 5e-3)
    rows = [ratio(f"time, {name}", value, goal if name == best else None) for name, value in ours.items()]
    apart = runs[best]["largest_mask_difference"]
    rows.append(Row(f"difference of the masks, {best}", f"{apart:.0e}", f"≤ {tolerance:.0e}", apart <= tolerance))
    rows.append(ratio("the mask generator alone", found["generators"]["ours"]["ratio_unfold_to_this"]))
    why = f"The network takes {share(found['network_share_of_ours'])} of our time, which no mask generator can shorten."
    if ours[best] < goal:
        prepared = "ours, prepared network"
        why += (
            f" The goal was missed with the network as it comes; with batch normalisation folded into the convolutions "
            f"and channels last, which alters results by rounding only, the ratio is {number(ours[prepared])}."
        )
    why += f" On the file: {found['note']}." if "note" in found else ""
    title = f"Extremal perturbations, on a {'CPU' if on_cpu else 'GPU'}"
    pairs = f"{found['images']} images, {found['areas']} areas"
    return Section(title, f"the release's procedure over ours, a picture and an area ({pairs})", rows, why)


def encoder_shapes(found: Found) -> Section:
    """Small video networks, in CPU time, relative to plain conv3d with a stem of stride two on the same clips."""
    rows, videos = [], [row for row in found["rows"] if len(row["shape"]) == 4]
    for shape in dict.fromkeys(tuple(row["shape"]) for row in videos):
        here = [row for row in videos if tuple(row["shape"]) == shape]
        plain = next(r for r in here if (r["network"], r["stem_stride"]) == ("conv3d (2+1)D", 2))
        for row in (row for row in here if row is not plain):
            name = f"{'×'.join(map(str, shape[1:]))}: {row['network']}, stem stride {row['stem_stride']}"
            rows.append(ratio(name, row["clips_per_cpu_s"] / plain["clips_per_cpu_s"]))
    why = "A stem of stride 4 leaves a quarter of the positions, which weighs more than how those are convolved."
    compares = "clips a second of CPU time over those of conv3d (2+1)D with stem stride 2"
    return Section("Shapes of small video networks", compares, rows, why, "one thread")


def gradient_variance(found: Found) -> Section:
    """GDT's batches: differences of logarithms become ratios."""
    rows = []
    for pair, kinds in found["differences"].items():
        for kind in ("log_relative_variance", "log_variance"):
            centre, low, high = (math.exp(kinds[kind][end]) for end in ("mean", "low", "high"))
            what = f"{kind.removeprefix('log_').replace('_', ' ')}, {pair.replace(' - ', ' over ')}"
            rows.append(Row(what, f"{number(centre)} × [{number(low)}, {number(high)}]"))
    alone = mean(seed["independent"]["anchors_with_positive"] for seed in found["seeds"])
    why = f"Of the anchors of an independent batch only {share(alone)} have a positive; of a hierarchical one all have."
    compares = f"{len(found['seeds'])} seeds, with 95 % intervals"
    return Section("Variance of the gradient, by kind of batch", compares, rows, why, "one thread a seed")


def loss_functions(found: Found) -> Section:
    """Losses beside two libraries'."""
    rows = [
        ratio(f"{setting}: {name}", each["ratio_to_ours"])
        for setting, contestants in found["settings"].items()
        for name, each in contestants.items()
        if name != "ours"
    ]
    why = (
        "Ours is handed its matrices of contrasts and weights here. Training builds them anew in every step; what that "
        "costs is the row “matrices rebuilt”, by which the others' ratios are to be divided. Ratios are medians of the "
        "rounds' ratios."
    )
    compares = f"the other's time over ours, forward and backward, batch {found['batch']}, {found['dim']} numbers each"
    return Section("Losses", compares, rows, why)


def labelling(found: Found) -> Section:
    """Labels by optimal transport, beside POT and the release."""
    rows = []
    for case, each in found["cases"].items():
        for name, other in each["contestants"].items():
            if name != "ours":
                goal = 5.0 if name.startswith("POT") else 2.0
                rows.append(ratio(f"{case}: {name}", other["ratio_to_ours"], goal))
    if large := found["large"]:
        peak = large["GiB_peak"]
        rows.append(Row(f"peak memory, {large['rows']:,} samples", f"{peak:.1f} GiB", "≤ 12 GiB", peak <= 12))
    cases = found["cases"].values()
    errors = [each["contestants"]["ours"]["marginal_error"] for each in cases]
    steps = [
        (c["ours"]["iterations"], c["release"]["iterations"])
        for c in (e["contestants"] for e in cases)
        if "release" in c
    ]
    taken = ", ".join(f"{own} iterations where plain ones need {plain}" for own, plain in steps)
    why = f"All stop at one marginal error ({max(errors):.1g} at most for ours). Ours takes {taken}."
    setting = found["settings"]
    compares = f"the other's time over ours, {setting['rows']:,} samples, {setting['clusters']} clusters"
    return Section("Labelling by optimal transport", compares, rows, why)


def curation(found: Found) -> Section:
    """Selecting by mutual information, beside recomputing and beside the release's incremental scoring."""
    names = {"recomputed": "tables counted anew", "release": "the release's incremental scoring"}
    goals, rows = {"recomputed": 100.0, "release": 10.0}, []
    for inner, contestants in found["contestants"].items():
        for name, each in contestants.items():
            if name != "ours":
                rows.append(ratio(f"{inner}: {names.get(name, name)}", each["ratio_to_ours"], goals.get(name)))
    for inner, row in found["growth"].items():
        rows.append(exponent(f"{inner}: exponent of time in the number of clips", row["exponent"]))
    if found["memory"]:
        rows.append(Row("memory of a further clip", f"{number(found['memory']['bytes_a_further_clip'])} bytes"))
    setting = found["settings"]
    why = (
        "A further clip touches one cell of each table; candidates that share no cluster with a pick keep their score."
    )
    compares = f"the other's time over ours, {setting['clips']:,} clips, {setting['clusterings']} clusterings"
    return Section("Choosing clips by mutual information", compares, rows, why)


def curation_scale(found: Found) -> Section:
    """Choosing from labels on disk, and what a hundred million clips would take."""
    rows = [
        Row(f"{each['clips']:,} clips", f"{each['seconds'] / 60:.1f} min, {each['peak_GiB']:.2f} GiB")
        for each in found["measured"]
    ]
    ahead, last = found["projection"], found["measured"][-1]
    rows.append(exponent("exponent of time in the number of clips", found["exponent"]))
    rows.append(Row(f"{ahead['clips']:,} clips, projected", f"{ahead['hours']:.1f} h, {ahead['peak_GiB']:.2f} GiB"))
    why = (
        f"Chunks of {found['settings']['chunk']:,} clips bound the memory. Of the chosen {share(last['good_share'])} "
        f"are good, of the pool {share(found['settings']['good'])}. Load of the machine, this process included: "
        f"{found['load_average']['last quarter of an hour']}."
    )
    kept = share(found["settings"]["keep"])
    compares = f"labels of {found['settings']['columns']} columns, memory-mapped, {kept} chosen"
    return Section("Choosing from as many clips as the web has", compares, rows, why)


BENCHMARKS = {
    "clip_loading.json": Benchmark("clip_loading.py", clip_loading),
    "loading_share.json": Benchmark("loading_share.py", loading_share),
    "compressed_reading.json": Benchmark("compressed_reading.py", compressed_reading),
    "losses.json": Benchmark("losses.py", loss_functions),
    "encoder_shapes.json": Benchmark("encoder_shapes.py", encoder_shapes),
    "attention_cpu_float32.json": Benchmark("attention.py", attention),
    "attention_cuda_float32.json": Benchmark("attention.py --device cuda", attention),
    "extremal_cpu.json": Benchmark("extremal.py", extremal),
    "extremal_cuda.json": Benchmark("extremal.py --device cuda", extremal),
    "gradient_variance.json": Benchmark("gradient_variance.py", gradient_variance),
    "playground_speed.json": Benchmark("playground_speed.py", playground_speed),
    "playground_supervised.json": Benchmark("playground_supervised.py", playground_supervised),
    "binding_streams.json": Benchmark("binding_streams.py", binding_streams),
    "labelling.json": Benchmark("labelling.py --large", labelling),
    "curation.json": Benchmark("curation.py", curation),
}
