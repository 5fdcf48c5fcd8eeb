"""The labels recipe: a class that both streams share, nuisances of each stream, and what can be told from which.

Ceilings are measured on true factors, which say what a stream can show; files are read back for what a recipe of real
files must keep.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import normalized_mutual_info_score

from avssl_core.data import Corpus
from data_prep.playground import Clip, Labels, build_playground, describe, make_recipe
from data_prep.playground.draw import draw_scene
from data_prep.playground.events import hear_scene

CLIPS = 3000
KINDS = ("class", "look", "voice", "place", "ambience")


@pytest.fixture(scope="module")
def drawn() -> list[Clip]:
    return [Labels().clip(0, number) for number in range(CLIPS)]


def label(clips: list[Clip], kind: str) -> np.ndarray:
    return np.array([clip.labels[kind] for clip in clips])


def accuracy(factors: pd.DataFrame, labels: np.ndarray) -> float:
    """Of a forest on the last third, trained on the rest."""
    x, cut = pd.get_dummies(factors).to_numpy(np.float64), 2 * len(labels) // 3
    forest = RandomForestClassifier(40, min_samples_leaf=3, random_state=0).fit(x[:cut], labels[:cut])
    return float((forest.predict(x[cut:]) == labels[cut:]).mean())


def in_sight(clip: Clip) -> dict[str, Any]:
    """What the picture shows, as true factors."""
    scene, (actor,) = clip.seen, clip.seen.actors
    return {
        "shape": actor.shape, "motion": actor.motion.programme, "x": actor.x, "radius": actor.radius,
        "tempo": actor.motion.tempo_hz, "skin": actor.skin, "texture": scene.background.texture,
        **dict(zip(("ground r", "ground g", "ground b"), scene.background.colours[1], strict=True)),
    }  # fmt: skip


def in_sound(clip: Clip) -> dict[str, Any]:
    """What the microphone hears, as true factors."""
    assert clip.heard is not None
    (actor,), ambience = clip.heard.actors, clip.heard.ambience
    assert actor.voice is not None
    return {
        "timbre": actor.voice.timbre, "motion": actor.motion.programme, "pitch": actor.voice.pitch_hz,
        "gain": actor.voice.gain, "family": ambience.family, "level": ambience.level, "tempo": actor.motion.tempo_hz,
    }  # fmt: skip


def test_ceilings_of_each_stream(drawn: list[Clip]) -> None:
    kinds = describe(Labels())
    assert kinds.sight["class"] == kinds.sound["class"] == 0.75
    for stream, factors in (("sight", in_sight), ("sound", in_sound)):
        seen = pd.DataFrame([factors(clip) for clip in drawn])
        for kind in KINDS:
            p = kinds[stream][kind]
            margin = 3 * float(np.sqrt(max(p * (1 - p), 0.01) / (CLIPS // 3))) + 0.02
            assert accuracy(seen, label(drawn, kind)) == pytest.approx(p, abs=margin), (stream, kind)


def test_both_streams_name_every_class(drawn: list[Clip]) -> None:
    both = {(clip.labels["look"], clip.labels["voice"]): clip.labels["class"] for clip in drawn}
    assert len(both) == 8 == len(set(both.values()))
    assert (Labels().ceilings()["both"] == 1).all()


def test_pairs_share_what_they_should() -> None:
    parts = Labels().parts
    pairs = [parts[2 * i : 2 * i + 2] for i in range(4)]
    assert all(a[1] == b[1] for a, b in pairs)  # the motion
    assert [a[0] == b[0] for a, b in pairs] == [True, True, False, False]  # the shape
    assert [a[2] == b[2] for a, b in pairs] == [False, False, True, True]  # the timbre
    plain = Labels(sight_pairs=0, sound_pairs=0)
    assert describe(plain).sight["class"] == describe(plain).sound["class"] == 1.0
    assert len({part[0] for part in plain.parts}) == len({part[2] for part in plain.parts}) == 8


def test_nuisances_are_private_and_independent_of_everything(drawn: list[Clip]) -> None:
    chance = describe(Labels()).chance
    for kind in ("class", "place", "ambience"):
        p = chance[kind]
        counts = Counter(label(drawn, kind))
        assert len(counts) == 8
        assert max(abs(n / CLIPS - p) for n in counts.values()) < 4 * np.sqrt(p * (1 - p) / CLIPS)
    for one, other in (("class", "place"), ("class", "ambience"), ("place", "ambience")):
        assert normalized_mutual_info_score(label(drawn, one), label(drawn, other)) < 0.02


def test_the_place_fills_more_of_the_picture_than_the_class() -> None:
    """Variance of the pixels between places, and between looks, over clips: the nuisance is the larger one."""
    clips = [Labels().clip(0, number) for number in range(200)]
    frames = np.stack([draw_scene(clip.seen)[0] for clip in clips]).reshape(200, -1).astype(float)

    def between(kind: str) -> float:
        labels = label(clips, kind)
        means = np.stack([frames[labels == each].mean(0) for each in labels])
        return float(means.var(0).mean())

    assert between("place") > 3 * between("look")


def test_nuisances_can_be_switched_off() -> None:
    plain = Labels(sight_nuisance=False, sound_nuisance=False)
    clips = [plain.clip(0, number) for number in range(40)]
    assert set(label(clips, "place")) == {"mist dunes"} and set(label(clips, "ambience")) == {"silence"}
    assert all(clip.seen.ambience.level == 0 for clip in clips)
    noisy = [Labels().clip(0, number) for number in range(40)]
    assert label(clips, "class").tolist() == label(noisy, "class").tolist()  # nothing else has moved
    assert [c.seen.actors[0].x for c in clips] == [c.seen.actors[0].x for c in noisy]
    kinds = describe(plain)
    assert kinds.chance["place"] == kinds.chance["ambience"] == 1.0


def test_frequencies_follow_zipf() -> None:
    skewed = Labels(exponent=1.0)
    assert skewed.shares[0] == pytest.approx(8 * skewed.shares[7]) and skewed.shares.sum() == pytest.approx(1)
    names = label([skewed.clip(0, number) for number in range(2000)], "class")
    counts = np.array([(names == name).mean() for name in skewed.names])
    assert np.abs(counts - skewed.shares).max() < 4 * np.sqrt(0.25 / 2000)
    # of two classes that look alike the likelier is answered: 1/1 beats 1/2, 1/3 beats 1/4
    lost = (1 / 2 + 1 / 4) / sum(1 / k for k in range(1, 9))
    assert describe(skewed).sight["class"] == pytest.approx(1 - lost)
    assert describe(skewed).chance["class"] == pytest.approx(float(skewed.shares[0]))


def test_strange_sounds_say_nothing_about_what_is_seen() -> None:
    strange, half = Labels(av_match=0.0), Labels(av_match=0.5)
    assert describe(strange).sound["class"] == describe(strange).chance["class"] == 0.125
    assert 0.125 < describe(half).sound["class"] < 0.75
    clips = [strange.clip(0, number) for number in range(1500)]
    heard = [clip.heard.actors[0].voice.timbre for clip in clips if clip.heard and clip.heard.actors[0].voice]
    assert len(heard) == 1500 and {clip.soundtrack for clip in clips} == {"overdub"}
    assert normalized_mutual_info_score(heard, label(clips, "class")) < 0.02
    own = [clip.soundtrack == "own" for clip in (half.clip(0, number) for number in range(600))]
    assert np.mean(own) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(600))


def test_another_deal_makes_other_classes_of_the_same_parts() -> None:
    one, other = Labels(), Labels(deal=1)
    assert not set(one.names) & set(other.names)
    assert other.parts == Labels(deal=1).parts and len(set(other.parts)) == 8
    assert {m for _, m, _ in one.parts} == {m for _, m, _ in other.parts}
    assert {shape for shape, _, _ in other.parts} <= {shape for shape, _, _ in Labels(sight_pairs=0).parts}


def test_colours_follow_shapes_as_often_as_asked() -> None:
    tinted, free = ([Labels(tint=t).clip(0, n).seen.actors[0] for n in range(300)] for t in (1.0, 0.0))
    spread = []
    for actors in (tinted, free):
        balls = np.array([actor.colour for actor in actors if actor.shape == "ball"])
        spread.append(balls.std(0).mean())
    assert spread[0] < 0.1 < spread[1]


def test_same_seed_same_clip_and_streams_apart() -> None:
    assert Labels().clip(3, 5) == Labels().clip(3, 5) != Labels().clip(4, 5)
    louder, quiet = Labels(ambience_level=0.1).clip(0, 1), Labels().clip(0, 1)
    np.testing.assert_array_equal(draw_scene(louder.seen), draw_scene(quiet.seen))
    assert np.abs(hear_scene(louder.seen) - hear_scene(quiet.seen)).max() > 0.01


def test_files_carry_their_labels(tmp_path: Path) -> None:
    folder = build_playground(Labels(), clips=4, seed=0, root=tmp_path, workers=1, progress=False)
    corpus = Corpus.load(folder)
    for number in range(4):
        clip = Labels().clip(0, number)
        for kind in KINDS:
            assert corpus.index[f"label_{kind}"].iat[number] == clip.labels[kind]
    assert corpus.timed is not None and corpus.timed["label"].tolist() == corpus.index["label_class"].tolist()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"classes": 7}, r"classes must be even and lie in \[2, 8\], got 7"),
        ({"classes": 10}, r"lie in \[2, 8\], got 10"),
        ({"sight_pairs": 3}, "8 classes make 4 pairs, got sight_pairs=3 and sound_pairs=2"),
        ({"exponent": -1.0}, "exponent must be finite and not negative"),
        ({"av_match": 2.0}, "av_match is a share"),
        ({"tint": -0.1}, "tint is a share"),
        ({"ambiences": 0}, "at least 1 ambience"),
    ],
)
def test_impossible_parameters_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_recipe("labels", **params)
