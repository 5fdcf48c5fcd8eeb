"""The binding recipe: equal I pictures, motion in P pictures alone, no hint in one stream of what the other holds.

Ceilings are measured on true factors. What forests make of coded vectors and residuals takes hundreds of files, too
many for here; the recipe's module has the figures. Here stands the reason: a moved card is an exact copy.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier

from avssl_core.data import Corpus
from avssl_core.media import CompressedReader, GopSpec, write_clip
from avssl_core.media.compressed_clip import CompressedClip
from data_prep.playground import Binding, Clip, build_playground, describe, make_recipe
from data_prep.playground.draw import draw_scene
from data_prep.playground.events import hear_scene
from data_prep.playground.motion import track
from data_prep.playground.truth import boxes

CLIPS = 2000
SPEC = GopSpec(residual="coded", stride=1, dense=False, every_motion=True)


@pytest.fixture(scope="module")
def drawn() -> list[Clip]:
    return [Binding().clip(0, number) for number in range(CLIPS)]


def mover(clip: Clip) -> int:
    """0 or 1: which of the two things moves."""
    half = len(clip.seen.actors) // 2
    moving = [i for i in (0, 1) if clip.seen.actors[i * half].motion.programme != "rest"]
    assert len(moving) == 1
    return moving[0]


def label(clips: list[Clip], kind: str) -> np.ndarray:
    return np.array([clip.labels[kind] for clip in clips])


def accuracy(factors: pd.DataFrame, labels: np.ndarray) -> float:
    """Of a forest on the last third, trained on the rest."""
    x, cut = pd.get_dummies(factors).to_numpy(np.float64), 2 * len(labels) // 3
    forest = RandomForestClassifier(60, min_samples_leaf=3, random_state=0).fit(x[:cut], labels[:cut])
    return float((forest.predict(x[cut:]) == labels[cut:]).mean())


def margin(p: float, n: int = CLIPS // 3) -> float:
    return 3 * float(np.sqrt(p * (1 - p) / n)) + 0.02


def in_the_picture(clip: Clip) -> dict[str, Any]:
    """All that an I picture shows of the things: looks and poses in frame 0, the left one first."""
    first = [(actor, track(actor, clip.seen, np.zeros(1))) for actor in clip.seen.actors]
    things = sorted((first[:2], first[2:]), key=lambda thing: float(thing[0][1].x[0]))
    seen: dict[str, Any] = {}
    for i, ((card, pose), (printed, inner)) in enumerate(things):
        assert (pose.x, pose.y) == (inner.x, inner.y)
        seen |= {f"shape {i}": printed.shape, f"x {i}": pose.x[0], f"y {i}": pose.y[0], f"angle {i}": inner.angle[0]}
        seen |= {f"radius {i}": inner.radius[0], f"skins {i}": f"{card.skin} {printed.skin}"}
        seen |= {f"{name} {i}": value for name, value in zip("rgb", card.colour, strict=True)}
        seen |= {f"{name} {i} inner": value for name, value in zip("rgb", printed.colour, strict=True)}
    return seen


def read(clip: Clip, path: Path, recipe: Binding) -> CompressedClip:
    write_clip(path, draw_scene(clip.seen), fps=30, gop=recipe.gop, quantiser=recipe.quantiser)
    with CompressedReader(path) as reader:
        return reader.clip(0, SPEC)


# --- what is drawn ------------------------------------------------------------------------------------------------


def test_ceilings_of_the_pictures(drawn: list[Clip]) -> None:
    seen = pd.DataFrame([in_the_picture(clip) for clip in drawn])
    kinds, ceilings = describe(Binding()), Binding().ceilings()
    assert set(ceilings.index) == set(kinds.index)
    assert ceilings.pictures["moving_shape"] == 0.5 == ceilings.pictures["moving_place"]
    for kind in ("moving_shape", "moving_place"):
        assert accuracy(seen, label(drawn, kind)) < 0.5 + margin(0.5)
    assert accuracy(seen[["shape 0", "shape 1"]], label(drawn, "present")) == ceilings.pictures["present"] == 1.0


def test_ceilings_of_the_motion(drawn: list[Clip]) -> None:
    moving = [clip.seen.actors[2 * mover(clip)] for clip in drawn]
    rows = [(a.x, a.y, a.radius, a.motion.phase, a.motion.amplitude, a.motion.turn) for a in moving]
    seen, ceilings = pd.DataFrame(rows, columns=["x", "y", "card", "phase", "amplitude", "turn"]), Binding().ceilings()
    assert accuracy(seen, label(drawn, "moving_place")) == ceilings.vectors["moving_place"] == 1.0
    for kind in ("moving_shape", "present"):
        assert accuracy(seen, label(drawn, kind)) < ceilings.vectors[kind] + margin(ceilings.vectors[kind])
    # the oracle: the shape at the place that moves
    printed = [clip.seen.actors[2 * mover(clip) + 1].shape for clip in drawn]
    assert printed == [clip.labels["moving_shape"] for clip in drawn]
    assert {a.shape for a in moving} == {"box"}


def test_labels_are_balanced_and_independent(drawn: list[Clip]) -> None:
    chance = describe(Binding()).chance
    for kind in ("moving_shape", "moving_place", "present", "identity"):
        counts = Counter(label(drawn, kind))
        p = chance[kind]
        assert max(abs(n / CLIPS - p) for n in counts.values()) < 4 * np.sqrt(p * (1 - p) / CLIPS)
    table = pd.DataFrame([clip.labels for clip in drawn])
    for (pair, _), group in table.groupby(["present", "moving_place"]):
        first = (group.moving_shape == str(pair).split("+")[0]).mean()
        assert first == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(len(group)))
        assert set(group.moving_shape) == set(str(pair).split("+"))


def test_things_keep_to_their_own_cells(drawn: list[Clip]) -> None:
    """Cards lie inside their halves at all times, and the left one's shadow (2.16 radii wide) ends before the right."""
    for clip in drawn[:60]:
        scene, swept = clip.seen, []
        for card in (scene.actors[0], scene.actors[2]):
            box = boxes(card, track(card, scene, np.arange(12) / 30))
            swept.append((*box[:, :2].min(0), *box[:, 2:].max(0)))
        left, right = sorted(swept)
        assert min(left[0], left[1], right[1]) >= 0 and max(right[2], left[3], right[3]) <= scene.size
        assert left[2] + (2.16 - 1.3) * Binding().radius * scene.size <= right[0]


def test_a_moved_card_is_an_exact_copy() -> None:
    """Steps are even numbers of pixels, and the next frame shows the same card moved by them."""
    for number in range(12):
        clip = Binding().clip(0, number)
        card = clip.seen.actors[2 * mover(clip)]
        course = track(card, clip.seen, np.arange(60) / 30)
        steps = np.stack([np.diff(course.x), np.diff(course.y)], 1)
        np.testing.assert_allclose(steps, 2 * np.round(steps / 2), atol=1e-9)
        assert (np.abs(steps).max(1) >= 2).all() and np.abs(steps).max() <= 4
        frames, (dx, dy) = draw_scene(clip.seen), np.round(steps[0]).astype(int)
        inset = 0.9 * 0.8 * card.radius * 96  # its rim blends with the ground
        y0, y1, x0, x1 = (round(c + sign * inset) for c in (course.y[0], course.x[0]) for sign in (-1, 1))
        moved = frames[1, y0 + dy : y1 + dy, x0 + dx : x1 + dx].astype(int)
        assert np.abs(moved - frames[0, y0:y1, x0:x1]).max() <= 1  # rounding


def test_its_twin_has_the_same_i_pictures_and_sound() -> None:
    recipe = Binding(size=64)
    for number in range(6):
        clip, twin = recipe.clip(0, number), recipe.twin(0, number)
        frames, others = draw_scene(clip.seen), draw_scene(twin.seen)
        np.testing.assert_array_equal(frames[::12], others[::12])
        assert (frames != others).any() and mover(clip) != mover(twin)
        assert clip.labels["present"] == twin.labels["present"]
        for kind in ("moving_shape", "moving_place"):
            assert clip.labels[kind] != twin.labels[kind]
        np.testing.assert_array_equal(hear_scene(clip.seen), hear_scene(twin.seen))


def test_leak_is_the_share_of_clips_whose_i_pictures_differ() -> None:
    recipe = Binding(size=64, leak=0.4)
    assert recipe.ceilings().pictures["moving_shape"] == pytest.approx(0.7)
    clips = [recipe.clip(0, number) for number in range(400)]
    leaks = [any(actor.motion.reach for actor in clip.seen.actors) for clip in clips]
    assert np.mean(leaks) == pytest.approx(0.4, abs=0.08)
    for number in (leaks.index(True), leaks.index(False)):
        pictures = draw_scene(clips[number].seen)[::12].astype(int)
        changed = [np.abs(b - a).max() for a, b in pairwise(pictures)]
        assert min(changed) > 30 if leaks[number] else max(changed) == 0


def test_same_seed_same_clip() -> None:
    assert Binding().clip(3, 5) == Binding().clip(3, 5) != Binding().clip(4, 5)
    bare = Binding(cards=False).clip(0, 1)
    assert len(bare.seen.actors) == 2 and bare.labels == Binding().clip(0, 1).labels
    corners = {Binding(places=4, radius=0.08).clip(0, n).labels["moving_place"] for n in range(60)}
    assert corners == {"top left", "top right", "bottom left", "bottom right"}


# --- what is written ----------------------------------------------------------------------------------------------


def test_files_have_equal_i_pictures_and_move_where_the_mover_is(tmp_path: Path) -> None:
    """Outside the card's swept box, grown by its shadow (0.16 sides) and a macroblock, hardly a vector; inside, many.

    Outside, the encoder spends some short vectors on what the quantiser did to the I picture: 1 % of all motion.
    """
    folder = build_playground(Binding(size=64), clips=4, seed=0, root=tmp_path, workers=1, progress=False)
    corpus, truth = Corpus.load(folder), pd.read_parquet(folder / "boxes.parquet")
    for number in range(4):
        with CompressedReader(corpus.source(number)) as reader:
            assert [gop.kinds for gop in reader.structure.gops] == ["I" + 11 * "P"] * 5
            clip = reader.clip(0, SPEC)
        assert clip.motion is not None and clip.every_motion is not None
        assert (clip.iframes == clip.iframes[:, :1]).all()
        card = truth[(truth.clip_id == f"{number:06d}") & (truth.actor == 2 * mover(Binding(size=64).clip(0, number)))]
        box = np.array([card.x0.min(), card.y0.min(), card.x1.max(), card.y1.max()])
        length = clip.motion.square().sum(0).sqrt().numpy()  # (55, 8, 8) pixels; the mover's steps are 2 and more
        middle = 8 * np.arange(8) + 4
        away = [np.maximum(box[i] - middle, middle - box[i + 2]) for i in (0, 1)]
        outside = np.maximum(away[0][None], away[1][:, None])
        far = length[:, outside > 0.16 * 64 + 16]
        assert far.max() < 2 and far.sum() < 0.1 * length.sum()
        assert (length[:, outside < -4] >= 2).mean() > 0.8
        assert not clip.every_motion[:, ::12].any()


def test_even_steps_leave_no_residual(tmp_path: Path) -> None:
    """The reason for ``period=2``: after moves by fractions of a pixel, what is printed stands in the residual."""
    left: dict[int, list[float]] = {2: [], 12: []}
    for period, found in left.items():
        recipe = Binding(radius=0.1, amplitude=0.05 if period == 12 else 0.02, period=period)
        for number in range(4):
            drawn = recipe.clip(0, number)
            card = drawn.seen.actors[2 * mover(drawn)]
            residual = read(drawn, tmp_path / "clip.mp4", recipe).residual
            assert residual is not None
            inner = 0.7 * recipe.radius
            rows, columns = (slice(int(96 * (c - inner)), int(96 * (c + inner))) for c in (card.y, card.x))
            found.append(float(residual[0, :, rows, columns].abs().float().mean()))
    assert np.mean(left[2]) < 0.3 * np.mean(left[12])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"shapes": 1}, r"shapes must lie in \[2, 7\]"),
        ({"places": 3}, "places must be one of 2, 4"),
        ({"period": 5}, "take a divisor of gop=12"),
        ({"radius": 0.2}, r"take a radius in \(0, 0.124\]"),
        ({"leak": 2.0}, "leak is a share"),
    ],
)
def test_impossible_parameters_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_recipe("binding", **params)


def test_without_cards_nothing_is_promised_of_vectors() -> None:
    ceilings = replace(Binding(), cards=False).ceilings()
    assert np.isnan(ceilings.vectors["moving_shape"]) and ceilings.pictures["moving_shape"] == 0.5
