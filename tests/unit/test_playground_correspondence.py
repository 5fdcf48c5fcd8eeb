"""The correspondence recipe: one event a clip, bad pairs that no sense gives away alone, and slides."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from data_prep.playground import Clip, Correspondence, describe, make_recipe, render_clip


@pytest.fixture(scope="module")
def drawn() -> list[Clip]:
    recipe = Correspondence(slides=0.25)
    return [recipe.clip(0, number) for number in range(800)]


def test_a_clip_shows_one_event_from_beginning_to_end(drawn: list[Clip]) -> None:
    for clip in drawn:
        names = {label.label for label in clip.timed if label.kind == "event"}
        assert names == ({clip.labels["event"]} if clip.labels["domain"] == "events" else set())


def test_shares(drawn: list[Clip]) -> None:
    kinds, labels = describe(Correspondence(slides=0.25)), pd.DataFrame([clip.labels for clip in drawn])
    counted = labels["domain"].value_counts(normalize=True)
    assert abs(counted["slides"] - 0.25) < 0.05 and kinds.chance["domain"] == 0.75
    events = labels[labels["domain"] == "events"]
    assert abs((events["match"] == "yes").mean() - 0.5) < 0.06
    assert set(events["soundtrack"]) == {"own", "overdub"}
    assert set(labels.loc[labels["domain"] == "slides", "soundtrack"]) == {"music"}
    assert (labels.loc[labels["domain"] == "slides", "match"] == "no").all()


def heard_shape(clip: Clip) -> str:
    assert clip.heard is not None
    return clip.heard.actors[0].shape


def test_sound_follows_sight_in_good_clips_and_chance_in_bad_ones(drawn: list[Clip]) -> None:
    events = [clip for clip in drawn if clip.labels["domain"] == "events"]
    good, bad = ([c for c in events if c.labels["match"] == match] for match in ("yes", "no"))
    assert all(heard_shape(clip) == clip.labels["shape"] for clip in good)
    accidental = np.mean([heard_shape(clip) == clip.labels["shape"] for clip in bad])
    assert abs(accidental - 1 / 8) < 0.06


def test_neither_sense_alone_gives_a_bad_clip_away(drawn: list[Clip]) -> None:
    """What is seen, and what is heard, is spread over good and bad clips alike."""
    events = [clip for clip in drawn if clip.labels["domain"] == "events"]
    for shape_of in (lambda clip: clip.labels["shape"], heard_shape):
        shares = [
            pd.Series(Counter(shape_of(c) for c in events if c.labels["match"] == match)).sort_index()
            for match in ("yes", "no")
        ]
        good, bad = (share / share.sum() for share in shares)
        assert (good - bad).abs().max() < 0.1


def test_slides_hold_a_place_and_music_and_nothing_else(drawn: list[Clip]) -> None:
    clip = next(clip for clip in drawn if clip.labels["domain"] == "slides")
    assert clip.seen.actors == () and clip.heard is not None and clip.heard.ambience.family == "music"
    frames, waveform = render_clip(clip)
    assert frames.shape[0] == 50 and float(np.abs(waveform).max()) > 0.01


def test_the_slides_knob_leaves_other_clips_as_they_are() -> None:
    plain, mixed = Correspondence(), Correspondence(slides=0.25)
    for number in range(40):
        one, other = plain.clip(1, number), mixed.clip(1, number)
        assert other.labels["domain"] == "slides" or one.labels == other.labels


def test_it_goes_by_name_and_refuses_what_is_no_share() -> None:
    assert make_recipe("correspondence", slides=0.1) == Correspondence(slides=0.1)
    with pytest.raises(ValueError, match="slides is a share"):
        Correspondence(slides=1.2)
