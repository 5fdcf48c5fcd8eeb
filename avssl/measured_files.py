"""Sections of what concerns files: reading clips, the playground, and what its files and streams hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from avssl.measured_rows import Found, Row, Section, number, ratio, share

PAPER_TIMES = 26.1  # by which preprocessing gets cheaper in the tables of IMRNet's paper


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


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
