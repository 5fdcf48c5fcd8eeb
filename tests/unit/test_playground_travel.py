"""The travel recipe: courses on the screen whatever the camera does, and where labels made from motion hold or fail."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier

from avssl_core.losses import pmsp_labels
from avssl_core.media import CompressedReader, GopSpec, write_clip
from data_prep.playground import Clip, Travel, describe, make_recipe, render_clip
from data_prep.playground.draw import draw_scene
from data_prep.playground.motion import Track, track
from data_prep.playground.recipes.travel import BEND, DIRECTIONS
from data_prep.playground.truth import analytic_flow, boxes

ALL = Travel(directions=8, share_oscillating=0.2, share_panning=0.5, share_overlay=0.5)


@pytest.fixture(scope="module")
def drawn() -> list[Clip]:
    return [ALL.clip(0, number) for number in range(900)]


def course(clip: Clip, actor: int = 0) -> Track:
    return track(clip.seen.actors[actor], clip.seen, np.arange(clip.seen.num_frames) / clip.seen.fps)


def accuracy(factors: pd.DataFrame, labels: pd.Series) -> float:
    """Of a forest on the last third, trained on the rest."""
    x, y, cut = pd.get_dummies(factors).to_numpy(np.float64), labels.to_numpy(), 2 * len(labels) // 3
    forest = RandomForestClassifier(60, min_samples_leaf=3, random_state=0).fit(x[:cut], y[:cut])
    return float((forest.predict(x[cut:]) == y[cut:]).mean())


# --- what is drawn ------------------------------------------------------------------------------------------------


def test_the_sprite_stays_in_the_picture_and_keeps_to_its_course(drawn: list[Clip]) -> None:
    bend = BEND * ALL.pan * ALL.duration_s * ALL.size
    for clip in drawn[:200]:
        size, way = clip.seen.size, course(clip)
        box = boxes(clip.seen.actors[0], way)
        assert box.min() > -1 and box.max() < size + 1  # a sway turns the body a little
        line = np.stack([way.x, way.y], 1)
        if clip.labels["motion"] == "oscillating":
            assert np.ptp(line[:, 1]) <= 2.1 * bend and 0.06 * size < np.ptp(line[:, 0]) <= 0.1 * size + 2.1 * bend
            continue
        moved = line[-1] - line[0]
        assert (np.sign(np.round(moved / size, 1)) == DIRECTIONS[clip.labels["motion"]]).all()
        assert 0.79 * 0.58 * size - 2.1 * bend < np.hypot(*moved) < 0.6 * size + 2.1 * bend
        straight = line[0] + np.linspace(0, 1, len(line))[:, None] * moved
        assert np.abs(line - straight).max() <= 2.1 * bend + 0.01


def test_ceilings(drawn: list[Clip]) -> None:
    """What the screen shows tells each label; nuisances, and the labels of other questions, tell nothing."""
    labels, kinds = pd.DataFrame([clip.labels for clip in drawn]), describe(ALL)
    ways = [course(clip) for clip in drawn]
    moved = [(w.x[-2] - w.x[0], w.y[-2] - w.y[0], np.ptp(w.x) + np.ptp(w.y)) for w in ways]
    shown = pd.DataFrame(moved, columns=["dx", "dy", "range"])
    assert accuracy(shown, labels.motion) > 0.95 <= kinds.sight["motion"]
    sprites = [clip.seen.actors[0] for clip in drawn]
    nuisances = pd.DataFrame([(a.skin, *a.colour, a.angle) for a in sprites], columns=["skin", *"rgb", "angle"])
    others = labels[["identity", "pan", "overlay"]]
    for kind in ("motion", "shape", "event"):
        more = {"shape": "motion", "motion": "shape", "event": "camera"}[kind]
        top = kinds.chance[kind]
        assert accuracy(nuisances.join(others).join(labels[[more]]), labels[kind]) < top + 0.07, kind
    for kind in ("camera", "overlay"):
        assert accuracy(nuisances.join(labels[["motion", "shape", "identity"]]), labels[kind]) < 0.5 + 0.12, kind
    for kind in kinds.index:
        share = Counter(labels[kind]).most_common(1)[0][1] / len(drawn)
        assert share == pytest.approx(kinds.chance[kind], abs=0.07) and kinds.sound[kind] == kinds.chance[kind]
        assert set(labels[kind]) <= set(kinds.names[kind].split(", "))


def test_groups_can_be_told_apart_and_put_in_order() -> None:
    for number in range(6):
        clip = Travel(size=64).clip(0, number)
        pictures = draw_scene(clip.seen)[::12].astype(int)
        assert min(np.abs(a - b).max() for i, a in enumerate(pictures) for b in pictures[:i]) > 40
        way = course(clip)
        along = np.array(DIRECTIONS[clip.labels["motion"]]) @ np.stack([way.x, way.y])[:, ::12]
        assert (np.diff(along) > 0.08 * 64).all()
    swing = Travel(share_oscillating=1.0).clip(0, 0)
    x = course(swing).x.reshape(5, 12)
    np.testing.assert_allclose(x, np.broadcast_to(x[:1], x.shape), atol=1e-9)  # no order here


def test_what_is_fast_is_seen_in_one_group_only() -> None:
    recipe, groups = Travel(radius=0.04, fast=True), set()
    for number in range(60):
        clip = recipe.clip(0, number)
        box = boxes(clip.seen.actors[0], course(clip))
        there = np.flatnonzero((box[:, :2] < 96).all(1) & (box[:, 2:] > 0).all(1))
        assert 10 <= len(there) <= 13  # its edge may still show in the I picture that follows
        assert there[0] // 12 == (there[-1] - 1) // 12
        groups.add(int(there[0] // 12))
        middle = box[there].reshape(-1, 2, 2).mean(1)
        assert np.ptp(middle, axis=0).max() > 0.85 * 96
    assert groups == {0, 1, 2, 3, 4}


def test_an_overlay_flickers_at_its_place() -> None:
    for number, share in ((0, 0.0), (1, 1.0), (2, 1.0)):
        clip = Travel(share_overlay=1.0, share_panning=share).clip(0, number)
        assert [actor.shape for actor in clip.seen.actors[1:]] == ["box", "heart"]
        panel = course(clip, 1)
        assert max(np.ptp(panel.x), np.ptp(panel.y)) < 2.1 * BEND * 1.0 * 96 * share + 1e-6
        box = boxes(clip.seen.actors[1], panel).mean(0)
        x0, y0, x1, y1 = np.round(box).astype(int)
        assert {x0 < 48, x1 > 48} and x1 - x0 in (18, 19, 20)
        frames = draw_scene(clip.seen).astype(int)
        sign = np.s_[y0 + 3 : y1 - 3, x0 + 3 : x1 - 3]
        changes = [np.abs(b[sign] - a[sign]).mean() for a, b in pairwise(frames)]
        assert min(changes) > 5
        sprite = boxes(clip.seen.actors[0], course(clip))
        assert (
            (sprite[:, 0] > x1).all()
            or (sprite[:, 2] < x0).all()
            or (sprite[:, 1] > y1).all()
            or (sprite[:, 3] < y0).all()
        )


def test_flow_of_the_ground_is_against_the_pan() -> None:
    clip = next(c for c in (Travel(share_panning=1.0).clip(0, n) for n in range(40)) if c.labels["pan"] == "right")
    flow = analytic_flow(clip.seen, 30)[:, 48]
    assert np.median(flow[0]) == pytest.approx(-0.5 * 96 / 30, abs=0.01) and abs(np.median(flow[1])) < 1e-6


def test_same_seed_same_clip() -> None:
    assert ALL.clip(3, 5) == ALL.clip(3, 5) != ALL.clip(4, 5)
    still, panning = Travel().clip(0, 1), Travel(share_panning=1.0).clip(0, 1)
    assert still.labels["event"] == panning.labels["event"] and still.labels["pan"] == "none" != panning.labels["pan"]
    assert np.array_equal(render_clip(still)[1], render_clip(panning)[1])  # the sound tells nothing


# --- what is written ----------------------------------------------------------------------------------------------


def vectors(clip: Clip, path: Path) -> torch.Tensor:
    """One vector a block of 8 pixels, (2, 60, h, w)."""
    write_clip(path, draw_scene(clip.seen), fps=30, gop=12, quantiser=3)
    with CompressedReader(path) as reader:
        assert [gop.kinds for gop in reader.structure.gops] == ["I" + 11 * "P"] * 5
        motion = reader.clip(0, GopSpec(residual=None, every_motion=True)).every_motion
    assert motion is not None
    return motion


def test_vectors_follow_pan_and_sprite(tmp_path: Path) -> None:
    for number in range(4):
        clip = Travel(size=128, share_panning=1.0).clip(0, number)
        motion = vectors(clip, tmp_path / "clip.mp4").numpy()
        moving = np.arange(60) % 12 > 0
        ground = np.median(motion[:, moving].reshape(2, -1), axis=1)
        expected = -0.5 * 128 / 30 * np.array(DIRECTIONS[clip.labels["pan"]])
        np.testing.assert_allclose(ground, expected, atol=0.3)  # vectors are halves of pixels
        way = course(clip)
        inside = [motion[:, f, int(way.y[f] / 8), int(way.x[f] / 8)] for f in np.flatnonzero(moving)]
        velocity = [(way.x[-1] - way.x[0]) / 59, (way.y[-1] - way.y[0]) / 59]
        np.testing.assert_allclose(np.median(inside, axis=0), velocity, atol=0.3)


READINGS: dict[str, tuple[Any, bool]] = {
    "raw": ("raw", True),
    "literal": ("literal", True),
    "derivatives": ("four_derivatives", False),
}


def hit_rates(recipe: Travel, path: Path, clips: int = 8) -> dict[tuple[str, int], float]:
    """For each reading and grid, the share of labels of all windows whose cell holds the sprite's mean centre."""
    hits: dict[tuple[str, int], list[bool]] = {(name, s): [] for name in READINGS for s in (2, 4)}
    for number in range(clips):
        clip = recipe.clip(0, number)
        way = course(clip)
        dense = vectors(clip, path).repeat_interleave(8, 2).repeat_interleave(8, 3)[None]
        for name, (operator, signed) in READINGS.items():
            found = pmsp_labels(dense, 5, 12, operator=operator, signed=signed, padding="replicate", spatial=(2, 4))
            for (s, t), label in found.labels.items():
                for n in range(t):
                    frames = slice(12 * n, 12 * (n + 5 - t + 1))
                    cell = [int(s * c[frames].mean() / recipe.size) for c in (way.y, way.x)]
                    hits[name, s].append(int(label[0, n]) == cell[0] * s + cell[1])
    return {key: float(np.mean(hit)) for key, hit in hits.items()}


def test_where_labels_of_motion_hold_and_fail(tmp_path: Path) -> None:
    """The order of the pilot on IMRNet's first task: a pan breaks raw vectors and not their derivatives; signed sums
    lose a part of a swing; a graphic draws labels to itself, and what is small and fast escapes all readings."""
    rows: dict[str, dict[str, Any]] = {
        "still, straight": {},
        "still, swing": {"share_oscillating": 1.0},
        "pan, straight": {"share_panning": 1.0},
        "pan, swing": {"share_panning": 1.0, "share_oscillating": 1.0},
        "overlay": {"share_overlay": 1.0},
        "tiny and fast": {"radius": 0.04, "fast": True},
    }
    rates = {name: hit_rates(Travel(**params), tmp_path / "clip.mp4") for name, params in rows.items()}
    for name in tuple(rows)[:4]:
        assert rates[name]["derivatives", 2] > 0.8 and rates[name]["derivatives", 4] > 0.25, rates
        assert rates[name]["literal", 4] < rates[name]["derivatives", 4]
    assert min(rates["still, straight"]["raw", s] for s in (2, 4)) > 0.8
    assert max(rates[f"pan, {way}"]["raw", s] for way in ("straight", "swing") for s in (2, 4)) < 0.1
    assert rates["overlay"]["derivatives", 2] < rates["still, straight"]["derivatives", 2] - 0.2
    assert max(rates["tiny and fast"].values()) < 0.4


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"shapes": 9}, r"shapes must lie in \[1, 8\]"),
        ({"directions": 6}, "directions must be 4 or 8"),
        ({"speed": 0.5}, r"take a speed of at most 0.3\d\d"),
        ({"radius": 0.5}, "a smaller radius"),
        ({"swing": 0.4, "share_oscillating": 0.5}, "no room for a swing"),
        ({"share_panning": 1.2}, "share_panning is a share"),
        ({"overlay": 0.6}, "overlay is a width"),
        ({"pan": 0.0}, "pan must be positive"),
        ({"identities": 90}, r"identities must lie in \[1, \d\d\]"),
    ],
)
def test_impossible_parameters_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_recipe("travel", **params)
