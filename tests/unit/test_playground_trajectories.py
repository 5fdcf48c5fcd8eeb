"""The trajectories recipe: all classes hold the same pictures, only their order tells, and truth says where to look."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier

from avssl_core.media import read_all
from data_prep.playground import Actor, Clip, Trajectories, build_playground, describe, make_recipe
from data_prep.playground.draw import draw_scene, live_frames
from data_prep.playground.motion import track
from data_prep.playground.recipes.trajectories import CORNERS, ORDERS, RED, REVERSED, TRIPS, target_boxes

PLAIN = Trajectories(fps=24.0, decoys=0, occluders=0, camera=0.0, grain=0.0, size=64)


def places(clip: Clip, actors: tuple[Actor, ...] | None = None) -> np.ndarray:
    """Centre (x, y) in pixels of the one among ``actors`` that lives, a row a frame; the target's by default."""
    seen = clip.seen
    found = np.full((seen.num_frames, 2), np.nan)
    for actor in seen.actors[:TRIPS] if actors is None else actors:
        first, last = live_frames(actor, seen)
        course = track(actor, seen, np.arange(first, last) / seen.fps)
        assert np.isnan(found[first:last]).all(), "two trips at once"
        found[first:last] = np.stack([course.x, course.centre_y], 1)
    assert not np.isnan(found).any(), "no trip under way"
    return found


def house(clip: Clip, recipe: Trajectories) -> Actor:
    return clip.seen.actors[TRIPS * (1 + recipe.decoys)]


def corners(clip: Clip, recipe: Trajectories) -> list[int]:
    """The corners that the target visits, in order, read off from its track relative to the house."""
    away = places(clip) - places(clip, (house(clip, recipe),))
    far = np.abs(away).max(1) > 0.3 * recipe.spread * recipe.size
    signs = [tuple(int(s) for s in np.sign(row)) for row in away[far]]
    seen = [CORNERS.index(s) for s in signs]
    return [c for i, c in enumerate(seen) if i == 0 or c != seen[i - 1]]


def accuracy(features: pd.DataFrame | np.ndarray, labels: pd.Series) -> float:
    """Of a forest on the last third, trained on the rest."""
    x, y, cut = np.asarray(features, np.float64), labels.to_numpy(), 2 * len(labels) // 3
    forest = RandomForestClassifier(60, min_samples_leaf=3, random_state=0).fit(x[:cut], y[:cut])
    return float((forest.predict(x[cut:]) == y[cut:]).mean())


# --- same pictures, another order ---------------------------------------------------------------------------------


def test_all_classes_hold_the_same_pictures() -> None:
    pictures = {}
    for order in ORDERS:
        drawn = draw_scene(PLAIN.reordered(0, 5, order).seen)
        pictures[order] = [frame.tobytes() for frame in drawn]
    first = pictures["clockwise"]
    assert len(set(first)) > 0.9 * len(first), "the clip hardly moves"
    for order, frames in pictures.items():
        assert set(frames) == set(first), f"{order} shows other pictures"
        assert order == "clockwise" or frames != first


@pytest.mark.parametrize("order", ORDERS)
def test_a_clip_played_backwards_is_of_the_partner_class(order: str) -> None:
    for number in range(10):
        forwards = corners(PLAIN.reordered(0, number, order), PLAIN)
        backwards = corners(PLAIN.reordered(1, number, REVERSED[order]), PLAIN)
        cycle = (forwards[::-1] * 3)[:12] if len(set(forwards)) == 4 else None
        assert cycle is not None, "not every corner is seen"
        joined = "".join(map(str, forwards[::-1][:4] * 2))
        assert "".join(map(str, backwards[:4])) in joined


def test_the_track_tells_the_order() -> None:
    recipe = Trajectories()
    for number in range(60):
        clip = recipe.clip(0, number)
        lap = "".join(map(str, ORDERS[clip.labels["order"]])) * 2
        visited = corners(clip, recipe)
        assert len(visited) in (4, 5) and "".join(map(str, visited[:4])) in lap
    assert len(ORDERS) == 6 == len({"".join(map(str, o[o.index(0) :] + o[: o.index(0)])) for o in ORDERS.values()})


def test_reordering_changes_nothing_else() -> None:
    recipe = Trajectories(decoys=2, occluders=2)
    a, b = (recipe.reordered(0, 7, order) for order in ("Z", "reversed N"))
    assert a.seen.actors[TRIPS:] == b.seen.actors[TRIPS:] and a.seen.background == b.seen.background
    assert {k: v for k, v in a.labels.items() if k != "order"} == {k: v for k, v in b.labels.items() if k != "order"}
    assert recipe.reordered(0, 7, recipe.clip(0, 7).labels["order"]) == recipe.clip(0, 7)
    with pytest.raises(ValueError, match="unknown order 'W'; choose one of clockwise"):
        recipe.reordered(0, 7, "W")


# --- what tells what ----------------------------------------------------------------------------------------------


def test_ceilings() -> None:
    """Single frames and nuisances tell nothing of the order; the sequence tells all of it."""
    recipe = Trajectories(shapes=3, decoys=1)
    clips = [recipe.clip(0, number) for number in range(1200)]
    labels, kinds = pd.DataFrame([clip.labels for clip in clips]), describe(recipe)
    ways = np.stack([places(c) - places(c, (house(c, recipe),)) for c in clips])
    decoys = np.stack([places(c, c.seen.actors[TRIPS : 2 * TRIPS]) for c in clips])
    noise = 3 * np.sqrt(1 / 6 * 5 / 6 / 400)
    for frame in (0, 20, 49):
        assert accuracy(ways[:, frame], labels["order"]) < 1 / 6 + noise
    first = [clip.seen.actors[0] for clip in clips]
    nuisances = pd.DataFrame([(*a.colour, a.start_s, labels["shape"][i] == "ball") for i, a in enumerate(first)])
    assert accuracy(nuisances, labels["order"]) < 1 / 6 + noise
    assert accuracy(np.sign(decoys[:, ::6]).reshape(len(clips), -1), labels["order"]) < 1 / 6 + noise
    assert accuracy(np.sign(ways[:, ::6]).reshape(len(clips), -1), labels["order"]) > 0.8
    assert labels["order"].value_counts(normalize=True).between(0.12, 0.21).all()
    assert set(labels["shape"]) == set(kinds["names"]["shape"].split(", "))
    assert kinds.chance["order"] == pytest.approx(1 / 6) == recipe.ceilings().loc["order", "shuffled"]
    assert np.isnan(Trajectories(laps=0.5).ceilings().loc["order", "shuffled"])


def test_the_cue_tells_the_target() -> None:
    for number in range(40):
        by_colour, by_match = (
            Trajectories(decoys=3).clip(0, number),
            Trajectories(decoys=3, cue="match").clip(0, number),
        )
        colours = [np.array(a.colour) for a in by_colour.seen.actors[: 4 * TRIPS : TRIPS]]
        assert np.argmin([np.abs(c - RED).sum() for c in colours]) == 0
        home = np.array(house(by_match, Trajectories(decoys=3)).colour)
        assert (
            np.argmin([np.abs(np.array(a.colour) - home).sum() for a in by_match.seen.actors[: 4 * TRIPS : TRIPS]]) == 0
        )


# --- geometry -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params", [{}, {"spread": 0.17, "camera": 0.0}, {"camera": 0.12, "spread": 0.22, "radius": 0.06}]
)
def test_the_target_stays_in_the_picture_and_goes_home_between_trips(params: dict[str, Any]) -> None:
    recipe = Trajectories(**params)
    for number in range(50):
        clip = recipe.clip(0, number)
        way, home = places(clip), places(clip, (house(clip, recipe),))
        assert way.min() > recipe.radius * recipe.size * 0.9 and way.max() < (1 - 0.9 * recipe.radius) * recipe.size
        trip = clip.seen.actors[1]
        ends = track(trip, clip.seen, np.array([trip.start_s, trip.start_s + trip.duration_s / 2]))
        at_home = track(house(clip, recipe), clip.seen, np.array([trip.start_s, trip.start_s + trip.duration_s / 2]))
        away = np.stack([ends.x - at_home.x, ends.y - at_home.y], 1) / recipe.size
        np.testing.assert_allclose(away[0], 0, atol=1e-9)
        np.testing.assert_allclose(np.abs(away[1]), recipe.spread, atol=1e-9)
        assert np.abs(np.diff(home, axis=0)).max() > 0.2 or recipe.camera == 0


def test_speed_is_what_tracks_show() -> None:
    recipe = Trajectories(camera=0.0, fps=64.0)  # 128 frames: eight slices of sixteen
    steps = []
    for number in range(30):
        way = places(recipe.clip(0, number))[::16]
        steps.append(np.hypot(*np.diff(way, axis=0).T).max() / recipe.size)
    assert max(steps) <= recipe.speed(8, 1) + 1e-9 and max(steps) > 0.95 * recipe.speed(8, 1)
    assert recipe.speed(8, 14) == pytest.approx(14 * recipe.speed(8, 1))
    assert recipe.speed(16, 1) < recipe.speed(8, 1) and Trajectories(laps=0.5).speed(8, 1) < recipe.speed(8, 1)


def test_boxes_follow_the_red_thing_in_real_files(tmp_path: Path) -> None:
    recipe = Trajectories(occluders=0, scatter=0.0, size=96, identities=1, shapes=1)
    folder = build_playground(recipe, clips=3, seed=0, root=tmp_path, workers=1, progress=False)
    boxes = target_boxes(pd.read_parquet(folder / "boxes.parquet"))
    index = pd.read_parquet(folder / "index.parquet")
    assert (boxes.groupby("clip_id").size() == 50).all() and boxes.groupby("clip_id").frame.apply(
        lambda f: f.is_unique
    ).all()
    checked = 0
    for _, row in index.iterrows():
        frames = (
            read_all(folder / row.uri, fps=25.0, size=None, sample_rate=None)
            .frames.permute(0, 2, 3, 1)
            .numpy()
            .astype(int)
        )
        of_clip = boxes[boxes.clip_id == row.clip_id]
        for frame, box in zip(frames, of_clip.itertuples(), strict=True):
            red = (frame[..., 0] > 150) & (frame[..., 1] < 110) & (frame[..., 2] < 110)
            if red.sum() < 40:  # at home, behind the house
                continue
            checked += 1
            v, u = np.nonzero(red)
            assert box.x0 - 3 < u.mean() < box.x1 + 3 and box.y0 - 3 < v.mean() < box.y1 + 3
    assert checked > 90  # of 150 pictures


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"orders": 3}, "orders must be 2, 4 or 6 (each with its reverse), got 3"),
        ({"shapes": 99}, "shapes must lie in [1, 8], got 99"),
        ({"cue": "smell"}, "unknown cue 'smell'; choose one of colour, match"),
        ({"decoys": 9}, "decoys must lie in [0, 5]"),
        ({"occluders": -1}, "occluders be at least 0"),
        ({"laps": 2.0}, "laps must lie in (0, 1], got 2.0; for faster trips shorten duration_s instead"),
        ({"spread": 0.4}, "trips of 0.4 leave the picture; take a spread of at most 0."),
        ({"spread": 0.05}, "do not leave the house; take a spread of at least 0."),
        ({"radius": -1}, "radius must be positive, got -1"),
        ({"identities": 0}, "number of places"),
    ],
)
def test_bad_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_recipe("trajectories", **params)
