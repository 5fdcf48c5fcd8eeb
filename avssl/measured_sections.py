"""What each benchmark's file says, as rows of a table: the figure, the goal where one was set, and why.

A function a benchmark takes the parsed file and returns a :class:`Section`. Figures come from the file; goals are
those that were set before measuring. A reason stands where the file or the benchmark itself knows one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

Found = Mapping[str, Any]  # a result file

REFERENCE = "8 x 14 x 14"  # tokens at which the goals of attention are set
RELATIVES = ("orthoformer", "nystrom", "performer")
PAPER_TIMES = 26.1  # by which preprocessing gets cheaper in the tables of IMRNet's paper


@dataclass(frozen=True)
class Row:
    """One figure, in words: what was measured, the value, the goal, and whether it was met (``None``: no goal)."""

    what: str
    value: str
    goal: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Section:
    """A benchmark: what its ratios compare, its rows, why they are as they are; ``stated`` is what the file lacks."""

    title: str
    compares: str
    rows: Sequence[Row]
    why: str = ""
    stated: str = ""  # conditions that only the benchmark's description knows


@dataclass(frozen=True)
class Benchmark:
    """Who writes a result file, and how it is read."""

    command: str  # after ``python benchmarks/``
    describe: Callable[[Found], Section]


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:,.0f}"


def ratio(what: str, value: float, at_least: float | None = None) -> Row:
    """A ratio, and the least that it should be."""
    if at_least is None:
        return Row(what, f"{number(value)} ×")
    return Row(what, f"{number(value)} ×", f"≥ {at_least:g} ×", value >= at_least)


def share(value: float, digits: int = 0) -> str:
    """A share of one in per cent."""
    return f"{100 * value:.{digits}f} %"


def _size(name: str) -> str:
    return name.replace(" x ", "×")


def _growing(what: str, values: Sequence[float]) -> Row:
    grows = all(a < b for a, b in itertools.pairwise(values))
    return Row(what, ", ".join(f"{number(value)} ×" for value in values), "growing", grows)


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
            _growing(f"{kind}, {', '.join(map(_size, along))}", [sizes[n]["plain"][f"{kind}_ratio"] for n in along])
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


def clip_loading(found: Found) -> Section:
    """Random clips, against the best of the others for each kind of file."""
    rows, worst = [], (math.inf, "")
    for name, figures in found["results"].items():
        rivals = {who: each["ours_over_this"] for who, each in figures.items() if who != "ours"}
        best = min(rivals, key=rivals.__getitem__)
        rows.append(ratio(f"{name.replace(', 1 workers', ', 1 worker')}, against {best}", rivals[best], 1.5))
        worst = min(worst, (rivals[best], name))
    return Section("Loading clips", "ours over the fastest rival, clips a second", rows, _spent(found, worst[1]))


def _spent(found: Found, worst: str) -> str:
    """Where a clip's time goes, by the profile: in every kind of file, and in the one furthest from the goal."""
    profile = found["profile"]["results"]
    decoded = [
        sum(each["ours"][what] for what in ("decode pictures", "decode sound")) / each["ours"][_ALL]
        for each in profile.values()
    ]
    kind = worst.rsplit(",", 1)[0]
    sides = (profile[kind]["ours"], next(each for who, each in profile[kind].items() if who != "ours"))
    (opening, rest), (theirs, others) = ((side[_OPEN], side[_ALL] - side[_OPEN]) for side in sides)
    return (
        f"Decoding, which FFmpeg does for both, takes {', '.join(map(share, decoded))} of our time "
        f"({', '.join(profile)}), and there is nothing to win in it. Furthest from the goal is {kind}: there opening "
        f"and closing a file costs {opening:.1f} ms of CPU against torchcodec's {theirs:.1f}, all else {rest:.1f} "
        f"against {others:.1f}."
    )


_ALL, _OPEN = "all of it, without the clock", "open and close the file"


def compressed_reading(found: Found) -> Section:
    """Routes through a compressed file, against the fastest full decode and against CoViAR's way."""
    goals = {"I only": 6.0, "I + M": 1.5, "I + M + coded residual": 1.0}
    rows, kinds = [], found["results"]
    for kind, each in kinds.items():
        routes = {name: route["full_over_this"] for name, route in each["routes"].items()}
        rows += [ratio(f"{kind}: {name}", routes[name], goal) for name, goal in goals.items()]
        slowest = min((name for name in routes if name.startswith("I ")), key=routes.__getitem__)
        rows.append(ratio(f"{kind}: CoViAR's way over {slowest}", routes[slowest] / routes["CoViAR's way"], 1.0))
    first, last = (kinds[name]["routes"] for name in (next(iter(kinds)), list(kinds)[-1]))
    full = max(first, key=lambda name: first[name]["full_over_this"] if name.startswith("all") else 0)
    most = max(each["routes"]["I + M"]["full_over_this"] for each in kinds.values())
    why = (
        "Vectors and coded residuals come from the packets of the wanted P pictures alone; pixel residuals, which the "
        "paper's loader computes, need every picture of the group. What is saved is pictures that nobody looks at, "
        f"their colours, and bytes ({first['I + M']['MB_read']:.1f} MB of planes and vectors read for I + M instead of "
        f"{first[full]['MB_read']:.1f}, {next(iter(kinds))}). So the paper's {PAPER_TIMES} times are at most "
        f"{number(most)} here. Small pictures leave less to save: a full decode takes "
        f"{first[full]['ms_per_clip']:.0f} ms a clip in the first of these kinds and "
        f"{last[full]['ms_per_clip']:.0f} ms in the last."
    )
    return Section("Reading without decoding", "the fastest full decode over the route", rows, why, "one thread")


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


def loading_share(found: Found) -> Section:
    """Training from files beside training on a batch in memory."""
    median, lowest = found["loading_share_median"], found["loading_share_lowest"]
    rows = [
        Row("share of the in-memory speed, median of the rounds", share(median, 1), "≥ 95 %", median >= 0.95),
        Row("the same, lowest round", share(lowest, 1)),
    ]
    waiting, source = share(found["wait_share_median"], 1), found["settings"]["source"]
    why = f"{waiting} of a step is waiting for clips, which come from: {source}."
    return Section("Training speed that loading leaves", "training with loaded batches over one in memory", rows, why)


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


def playground_speed(found: Found) -> Section:
    """Finished clips a second."""
    recipes = found["recipes"]
    rows = [
        Row(name, f"{each['clips_per_s']:.1f} clips a second", "≥ 20", each["clips_per_s"] >= 20)
        for name, each in recipes.items()
    ]
    costs = ", ".join(f"`{name}` {each['cpu_ms']:.0f} ms" for name, each in recipes.items())
    compares = f"{found['duration_s']:g}-second clips, drawn, synthesised, encoded and indexed"
    return Section("The playground's speed", compares, rows, f"A clip costs in CPU time: {costs}.")


def playground_supervised(found: Found) -> Section:
    """What a small network learns from the files, by recipe and sense."""
    worlds = {found["recipe"]: found} | {name: each for name, each in found.items() if "recipe" in _mapping(each)}
    rows = []
    for recipe, world in worlds.items():
        labels = {name: each for name, each in world.items() if "accuracy" in _mapping(each)}
        for sense in dict.fromkeys(name.rsplit(" from ", 1)[1] for name in labels):
            own = {name: each["accuracy"] for name, each in labels.items() if name.endswith(f" from {sense}")}
            shown = ", ".join(f"{name.rsplit(' from ', 1)[0]} {accuracy:.2f}" for name, accuracy in own.items())
            rows.append(Row(f"`{recipe}` from {sense}: accuracy", shown))
        bounded = [each for each in labels.values() if each["ceiling"] is not None]
        beyond = sum(each["interval"][0] > each["ceiling"] for each in bounded)
        learnable = [each for each in bounded if each["ceiling"] > each["chance"]]
        learned = sum(each["interval"][0] > each["chance"] for each in learnable)
        rows.append(Row(f"`{recipe}`: labels surely above chance", f"{learned} of {len(learnable)} that can be told"))
        rows.append(Row(f"`{recipe}`: labels surely above their ceiling", str(beyond), "0", not beyond))
    why = "This checks the world and no method: what can be seen or heard must be learnable, and nothing else."
    return Section("What the playground's files hold", "a small supervised network", rows, why, "one thread")


def binding_streams(found: Found) -> Section:
    """What one stream of a codec tells of the recipe ``binding``, whose point is that none tells the answer alone."""
    rows = [
        Row(f"`binding`, {world}: accuracy", ", ".join(f"{stream} {each:.2f}" for stream, each in streams.items()))
        for world, streams in found["results"].items()
    ]
    why = (
        "Which shape moves, one in four by chance, from the blocks around both things; from I pictures which of the "
        "two on the table it is, one in two. What one stream tells, no connection between streams is needed for."
    )
    compares = f"the better of two classifiers, {2 * found['settings']['clips'] // 3} clips to learn from"
    return Section("What one stream of a codec tells", compares, rows, why, "one thread")


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
        rows.append(_exponent(f"{inner}: exponent of time in the number of clips", row["exponent"]))
    if found["memory"]:
        rows.append(Row("memory of a further clip", f"{number(found['memory']['bytes_a_further_clip'])} bytes"))
    setting = found["settings"]
    why = (
        "A further clip touches one cell of each table; candidates that share no cluster with a pick keep their score."
    )
    compares = f"the other's time over ours, {setting['clips']:,} clips, {setting['clusterings']} clusterings"
    return Section("Choosing clips by mutual information", compares, rows, why)


def _exponent(what: str, value: float) -> Row:
    return Row(what, f"{value:.2f}", "linear (≤ 1.1)", value <= 1.1)


def curation_scale(found: Found) -> Section:
    """Choosing from labels on disk, and what a hundred million clips would take."""
    rows = [
        Row(f"{each['clips']:,} clips", f"{each['seconds'] / 60:.1f} min, {each['peak_GiB']:.2f} GiB")
        for each in found["measured"]
    ]
    ahead, last = found["projection"], found["measured"][-1]
    rows.append(_exponent("exponent of time in the number of clips", found["exponent"]))
    rows.append(Row(f"{ahead['clips']:,} clips, projected", f"{ahead['hours']:.1f} h, {ahead['peak_GiB']:.2f} GiB"))
    why = (
        f"Chunks of {found['settings']['chunk']:,} clips bound the memory. Of the chosen {share(last['good_share'])} "
        f"are good, of the pool {share(found['settings']['good'])}. Load of the machine, this process included: "
        f"{found['load_average']['last quarter of an hour']}."
    )
    kept = share(found["settings"]["keep"])
    compares = f"labels of {found['settings']['columns']} columns, memory-mapped, {kept} chosen"
    return Section("Choosing from as many clips as the web has", compares, rows, why)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


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
