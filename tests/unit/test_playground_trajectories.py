"""The trajectories recipe: opposite classes hold the same pictures, their order tells, and truth says where to look."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier

from avssl_core.media import read_all
from data_prep.playground import Actor, Clip, Trajectories, build_playground, describe, make_recipe
from data_prep.playground.draw import draw_scene
from data_prep.playground.motion import track
from data_prep.playground.recipes.trajectories import DIRECTIONS, RED, REVERSED, target_boxes

STEPS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}  # in coordinates of the picture


def places(clip: Clip, actor: Actor | None = None) -> np.ndarray:
    """Centre (x, y) in sides of the picture, a row a frame; the first target's by default."""
    seen = clip.seen
    course = track(seen.actors[0] if actor is None else actor, seen, np.arange(seen.num_frames) / seen.fps)
    return np.stack([course.x, course.centre_y], 1) / seen.size


def shown(clip: Clip, recipe: Trajectories, first: int = 0) -> np.ndarray:
    """Centre of whichever of the things from actor ``first`` on is nearest to the picture, a row a frame."""
    ways = np.stack([places(clip, a) for a in clip.seen.actors[first : first + 1 + recipe.followers]])
    nearest = np.abs(ways - 0.5).max(2).argmin(0)
    return ways[nearest, np.arange(ways.shape[1])]


def accuracy(features: pd.DataFrame | np.ndarray, labels: pd.Series) -> float:
    """Of a forest on the last third, trained on the rest."""
    x, y, cut = np.asarray(features, np.float64), labels.to_numpy(), 2 * len(labels) // 3
    forest = RandomForestClassifier(100, min_samples_leaf=3, random_state=0).fit(x[:cut], y[:cut])
    return float((forest.predict(x[cut:]) == y[cut:]).mean())


def noise(chance: float, count: int) -> float:
    """Three standard deviations of an accuracy at chance."""
    return 3 * float(np.sqrt(chance * (1 - chance) / count))


# --- same pictures, another order ---------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_clip_goes_where_its_label_says(direction: str) -> None:
    recipe = Trajectories(camera=0.0)
    for number in range(20):
        way = places(recipe.redirected(0, number, direction))
        gone = recipe.reach * (len(way) - 1) / len(way)
        np.testing.assert_allclose(way[-1] - way[0], gone * np.array(STEPS[direction]), atol=1e-9)


def test_a_clip_played_backwards_is_of_the_partner_class() -> None:
    """A crossing from the edge shows, picture by picture, what the opposite one shows in the opposite order."""
    recipe = Trajectories(phase=0.0, decoys=0, occluders=0, camera=0.0, grain=0.0, size=64, fps=24.0)
    recipe = replace(recipe, reach=recipe.period)
    for direction, partner in REVERSED.items():
        forwards = draw_scene(recipe.redirected(0, 5, direction).seen)
        backwards = draw_scene(recipe.redirected(0, 5, partner).seen)[::-1]
        # Frames lie at 0, 1/48, ... of the way, so that the mirrored walk is one frame late.
        assert np.abs(forwards[1:].astype(int) - backwards[:-1]).mean() < 0.5
        assert np.abs(forwards[1:].astype(int) - backwards[:-1][::-1]).mean() > 2, "the clip hardly moves"


def test_nothing_else_changes_with_the_direction() -> None:
    recipe = Trajectories(decoys=2, occluders=2)
    own = 1 + recipe.followers
    a, b = (recipe.redirected(0, 7, direction) for direction in ("right", "up"))
    assert a.seen.actors[own:] == b.seen.actors[own:] and a.seen.background == b.seen.background
    assert a.labels | {"direction": ""} == b.labels | {"direction": ""}
    assert recipe.redirected(0, 7, recipe.clip(0, 7).labels["direction"]) == recipe.clip(0, 7)
    with pytest.raises(ValueError, match="unknown direction 'W'; choose one of right, left, down, up"):
        recipe.redirected(0, 7, "W")


# --- what tells what ----------------------------------------------------------------------------------------------


def test_ceilings() -> None:
    """Single frames, at a known time or not, and nuisances tell nothing of the direction; the sequence tells it."""
    recipe, count = Trajectories(shapes=3, decoys=1), 2400
    clips = [recipe.clip(0, number) for number in range(count)]
    labels, kinds = pd.DataFrame([clip.labels for clip in clips]), describe(recipe)
    ways = np.stack([shown(c, recipe) for c in clips])[:, 3::6]  # eight frames
    decoys = np.stack([shown(c, recipe, 1 + recipe.followers) for c in clips])[:, 3::6]
    ceiling, off = recipe.ceilings(), noise(1 / 4, count // 3)
    for frame in range(8):
        assert accuracy(ways[:, frame], labels["direction"]) < ceiling.loc["direction", "timed frame"] + off
    colours = pd.DataFrame([(*c.seen.actors[0].colour, c.labels["shape"] == "ball") for c in clips])
    assert accuracy(colours, labels["direction"]) < 1 / 4 + off
    assert accuracy(decoys.reshape(count, -1), labels["direction"]) < 1 / 4 + off
    assert accuracy(np.median(np.diff(ways, axis=1), axis=1), labels["direction"]) > 0.97
    any_order = np.sort(ways, axis=1).reshape(count, -1)
    assert 0.4 < accuracy(any_order, labels["direction"]) < ceiling.loc["direction", "shuffled"] + off
    assert labels["direction"].value_counts(normalize=True).between(0.21, 0.29).all()
    assert set(labels["shape"]) == set(kinds["names"]["shape"].split(", "))
    assert kinds.chance["direction"] == 1 / 4 < ceiling.loc["direction", "frame"] < 0.33


def test_where_crossings_begin_at_the_edge_one_timed_frame_tells() -> None:
    recipe = Trajectories(phase=0.0, camera=0.0)
    clips = [recipe.clip(0, number) for number in range(600)]
    first = np.stack([places(clip)[5] for clip in clips])
    assert accuracy(first, pd.Series([clip.labels["direction"] for clip in clips])) > 0.95
    assert np.isnan(recipe.ceilings().loc["direction", "timed frame"])


def test_the_target_is_the_red_one() -> None:
    for number in range(40):
        recipe = Trajectories(decoys=3)
        kinds = recipe.clip(0, number).seen.actors[: 4 * (1 + recipe.followers) : 1 + recipe.followers]
        colours = [np.array(a.colour) for a in kinds]
        assert np.argmin([np.abs(c - RED).sum() for c in colours]) == 0


# --- geometry -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reach", [0.5, 1.25, 3.0])
def test_the_picture_shows_one_target_at_every_time(reach: float) -> None:
    """And it is as often here as there, whichever way it goes and whatever the time."""
    recipe = Trajectories(camera=0.0, reach=reach)
    ways = {d: np.stack([shown(recipe.redirected(0, n, d), recipe) for n in range(200)]) for d in DIRECTIONS}
    for direction, way in ways.items():
        along = way[..., 0] if direction in ("right", "left") else way[..., 1]
        assert -recipe.width - 1e-9 <= along.min() and along.max() <= 1 + recipe.width + 1e-9
        for frame in (0, 25, 49):
            counts = np.histogram(along[:, frame], bins=4, range=(-recipe.width, 1 + recipe.width))[0]
            assert counts.min() > 25, (direction, frame)


def test_the_camera_moves_what_stands_still() -> None:
    pillars = [places(c, c.seen.actors[-1]) for c in (Trajectories(camera=s).clip(0, 3) for s in (0.0, 0.1))]
    assert np.abs(pillars[0] - pillars[1]).max() > 0.03


def test_speed_is_what_tracks_show() -> None:
    recipe = Trajectories(camera=0.0, fps=64.0)  # 128 frames: eight slices of sixteen
    way = places(recipe.clip(0, 0))[::16]
    np.testing.assert_allclose(np.hypot(*np.diff(way, axis=0).T), recipe.speed(8, 1))
    assert recipe.speed(8, 14) == pytest.approx(14 * recipe.speed(8, 1))
    assert recipe.speed(16, 1) < recipe.speed(8, 1) < Trajectories(reach=2.0).speed(8, 1)


def test_boxes_follow_the_red_thing_in_real_files(tmp_path: Path) -> None:
    recipe = Trajectories(occluders=0, decoys=0, size=96, identities=1, shapes=1)
    folder = build_playground(recipe, clips=4, seed=0, root=tmp_path, workers=1, progress=False)
    boxes = target_boxes(pd.read_parquet(folder / "boxes.parquet"), recipe)
    index = pd.read_parquet(folder / "index.parquet")
    assert (boxes.groupby("clip_id").size() == 50).all()
    assert boxes.groupby("clip_id").frame.apply(lambda frames: frames.is_unique).all()
    checked = 0
    for _, row in index.iterrows():
        clip = read_all(folder / row.uri, fps=25.0, size=None, sample_rate=None)
        frames = clip.frames.permute(0, 2, 3, 1).numpy().astype(int)
        for frame, box in zip(frames, boxes[boxes.clip_id == row.clip_id].itertuples(), strict=True):
            red = (frame[..., 0] > 150) & (frame[..., 1] < 110) & (frame[..., 2] < 110)
            if red.sum() < 40:  # beyond the edge
                continue
            checked += 1
            v, u = np.nonzero(red)
            assert box.x0 - 3 < u.mean() < box.x1 + 3 and box.y0 - 3 < v.mean() < box.y1 + 3
    assert checked > 150  # of 200 pictures


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"directions": 3}, "directions must be 2 or 4 (each with its reverse), got 3"),
        ({"shapes": 99}, "shapes must lie in [1, 8], got 99"),
        ({"decoys": 9}, "decoys must lie in [0, "),
        ({"occluders": -1}, "occluders be at least 0"),
        ({"phase": 1.5}, "phase"),
        ({"reach": 0.0}, "reach must be positive, got 0.0"),
        ({"camera": 0.5}, "camera must lie in [0, 0.25], got 0.5"),
        ({"radius": -1}, "radius must be positive, got -1"),
        ({"identities": 0}, "number of places"),
    ],
)
def test_bad_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_recipe("trajectories", **params)
