"""The parts of the playground: what is drawn, heard and said to be true agree with one another."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data_prep.playground import Actions, Actor, Boxes, Scene, analytic_flow, render_clip
from data_prep.playground.captions import caption
from data_prep.playground.draw import REACH, SHAPES, draw_actor, draw_scene, signed_distance
from data_prep.playground.events import hear_scene, pitch_curve
from data_prep.playground.motion import PROGRAMMES, onset_times, track
from data_prep.playground.palettes import GROUNDS, contrasting
from data_prep.playground.recipes.places import MAX_PLACES, place_names
from data_prep.playground.scene import Ambience, Background, Camera, Motion, Voice
from data_prep.playground.textures import TEXTURES, draw_ground
from data_prep.playground.truth import boxes
from data_prep.playground.voices import AMBIENCES, TIMBRES, ambience

GREY = ((0.4, 0.4, 0.4),) * 3
STILL = Camera(0.0, 4.0, 0.0, 0.0)
SILENT = Ambience("hum", 110.0, 0.0, 0)


def make_actor(shape: str = "ball", programme: str = "rest", **changes: object) -> Actor:
    motion = Motion(programme, 3.0, 0.3, 0.15)
    base = Actor(shape, (1.0, 0.9, 0.2), "plain", 0.5, 0.5, 0.18, 0.4, 0.0, 1.0, motion)
    return replace(base, **changes)  # type: ignore[arg-type]


def make_scene(*actors: Actor, **changes: object) -> Scene:
    scene = Scene(96, 25.0, 1.0, 16000, Background("clouds", GREY, 1.0, 0), STILL, SILENT, actors)
    return replace(scene, **changes)  # type: ignore[arg-type]


def silhouette(actor: Actor, scene: Scene) -> np.ndarray:
    """Brightness (T, H, W) of the body painted white on black, where shadows vanish: zero outside it."""
    black = np.zeros((scene.num_frames, scene.size, scene.size, 3), np.float32)
    draw_actor(black, replace(actor, colour=(1.0, 1.0, 1.0)), scene)
    return black.max(-1) / 255


@pytest.mark.parametrize("shape", SHAPES)
def test_signed_distance_is_negative_inside_positive_outside_and_within_reach(shape: str) -> None:
    line = np.linspace(-2, 2, 201, dtype=np.float32)
    u, v = np.meshgrid(line, line)
    inside = signed_distance(shape, u, v) < 0
    assert 0.5 < inside.sum() * (line[1] - line[0]) ** 2 < 3.5  # neither a speck nor a slab
    assert np.hypot(u, v)[inside].max() < REACH[shape]


@pytest.mark.parametrize("programme", PROGRAMMES)
@pytest.mark.parametrize("shape", ["ball", "star", "heart"])
def test_boxes_bound_what_is_drawn(shape: str, programme: str) -> None:
    actor = make_actor(shape, programme)
    scene = make_scene(actor)
    blur = 1.75  # half a pixel of anti-aliasing reaches that far along a sharp tip
    truth = boxes(actor, track(actor, scene, np.arange(scene.num_frames) / scene.fps))
    drawn_all = silhouette(actor, scene) > 0.2
    for drawn, (x0, y0, x1, y1) in zip(drawn_all, truth, strict=True):
        ys, xs = np.nonzero(drawn)
        drawn_box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        np.testing.assert_allclose(drawn_box, [x0, y0, x1, y1], atol=blur)


def test_bodies_at_the_edge_are_cut_and_not_refused() -> None:
    scene = make_scene(make_actor(x=0.0, y=1.02), make_actor(x=1.4, y=-0.5))
    empty = draw_scene(replace(scene, actors=()))
    frames = draw_scene(scene)
    assert (frames[:, :, 40:] == empty[:, :, 40:]).all()
    assert (frames[:, 80:, :12] != empty[:, 80:, :12]).any()


def test_impacts_are_where_the_body_touches_the_ground() -> None:
    actor = make_actor(programme="hop")
    scene = make_scene(actor)
    onsets = onset_times(actor)
    assert len(onsets) == 3
    np.testing.assert_allclose(track(actor, scene, onsets).height, 0, atol=1e-6)
    assert (track(actor, scene, onsets[:-1] + 0.5 / 3).height > 14).all()  # amplitude 0.15 of 96 pixels


def test_struck_sound_starts_at_the_impact() -> None:
    actor = make_actor(programme="hop", voice=Voice("marimba", 330.0, 1.0, 0.0))
    sound = hear_scene(make_scene(actor))
    energy = np.convolve(sound**2, np.ones(160) / 160, "same")
    for onset in onset_times(actor):
        i = round(onset * 16000)
        assert energy[i + 320] > 4 * energy[max(0, i - 320)] + 1e-5


def dominant_hz(sound: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    return float(np.argmax(spectrum) * rate / len(sound))


@pytest.mark.parametrize(("drift", "sign"), [("scale", 1), ("scale", -1), ("vertical", 1), ("horizontal", -1)])
def test_pitch_follows_the_drift(drift: str, sign: int) -> None:
    motion = Motion("sway", 3.0, 0.0, 0.1, drift=drift, sign=sign, reach=1.0)  # type: ignore[arg-type]
    actor = make_actor(motion=motion, voice=Voice("flute", 440.0, 1.0, 1.0))
    sound = hear_scene(make_scene(actor))
    early, late = dominant_hz(sound[1600:4800], 16000), dominant_hz(sound[11200:14400], 16000)
    assert np.sign(late - early) == sign
    expected = pitch_curve(actor, np.array([0.2, 0.8]))
    np.testing.assert_allclose([early, late], expected, rtol=0.12)


def test_growing_bodies_grow() -> None:
    actor = make_actor(motion=Motion("rest", 0.0, 0.0, 0.0, drift="scale", sign=1, reach=1.0))
    course = track(actor, make_scene(actor), np.array([0.0, 1.0]))
    assert course.radius[1] / course.radius[0] == pytest.approx(2.0)
    assert actor.direction == "grow"
    assert replace(actor, motion=replace(actor.motion, back_and_forth=True)).direction is None


@pytest.mark.parametrize("programme", ["hop", "sway", "spin", "orbit"])
def test_flow_carries_a_frame_onto_the_next(programme: str) -> None:
    """Pixels moved by the flow find their own colour in the next frame, far better than pixels that stay."""
    motion = Motion(programme, 2.0, 0.2, 0.15, drift="scale", sign=1, reach=1.0)
    actor = make_actor("star", skin="striped", motion=motion)
    scene = make_scene(
        actor, camera=Camera(0.08, 1.5, 0.1, 0.7), background=Background("dots", ((0, 0, 0), *GREY[:2]), 1.0, 3)
    )
    frames = draw_scene(scene).astype(np.float64).mean(-1)
    moved, still = [], []
    for frame in range(5, 20):
        flow = analytic_flow(scene, frame)
        y, x = np.mgrid[8:88:2, 8:88:2]
        to_x, to_y = np.rint(x + flow[0, y, x]).astype(int), np.rint(y + flow[1, y, x]).astype(int)
        keep = (to_x >= 0) & (to_x < 96) & (to_y >= 0) & (to_y < 96) & (np.hypot(*flow[:, y, x]) > 0.7)
        moved.append(np.abs(frames[frame + 1][to_y[keep], to_x[keep]] - frames[frame][y[keep], x[keep]]).sum())
        still.append(np.abs(frames[frame + 1][y[keep], x[keep]] - frames[frame][y[keep], x[keep]]).sum())
    assert sum(moved) < 0.6 * sum(still)


def test_flow_of_the_last_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="successor"):
        analytic_flow(make_scene(), 24)


@pytest.mark.parametrize("texture", TEXTURES)
def test_textures_are_smooth_enough_varied_and_reproducible(texture: str) -> None:
    ground = Background(texture, ((0.1, 0.1, 0.2), (0.3, 0.4, 0.5), (0.8, 0.8, 0.7)), 1.0, 5)
    painted = draw_ground(ground, side=110, unit=96)
    assert painted.shape == (110, 110, 3) and painted.dtype == np.float32
    assert painted.std() > 5
    assert np.abs(np.diff(painted, axis=1)).mean() < 25  # a pattern, not noise
    np.testing.assert_array_equal(painted, draw_ground(ground, side=110, unit=96))
    assert np.abs(painted - draw_ground(replace(ground, seed=6), side=110, unit=96)).max() > 5


@pytest.mark.parametrize("family", [*AMBIENCES, "music"])
def test_ambiences_have_their_level(family: str) -> None:
    sound = ambience(Ambience(family, 110.0, 0.1, 3), 64000, 16000)
    assert 0.05 < sound.std() < 0.2
    assert np.isfinite(sound).all() and sound.dtype == np.float32


@pytest.mark.parametrize("timbre", TIMBRES)
def test_voices_are_heard_and_never_clip(timbre: str) -> None:
    actor = make_actor(programme="sway", voice=Voice(timbre, 330.0, 1.0, 1.0))
    sound = hear_scene(make_scene(actor, gain=2.0))
    assert 0.03 < sound.std() < 0.5
    assert np.abs(sound).max() < 1


def test_unknown_parts_are_named() -> None:
    with pytest.raises(ValueError, match="unknown shape 'blob'"):
        draw_scene(make_scene(make_actor("blob")))
    with pytest.raises(ValueError, match="unknown motion programme 'fly'"):
        draw_scene(make_scene(make_actor(programme="fly")))
    with pytest.raises(ValueError, match="unknown texture 'lava'"):
        draw_ground(Background("lava", GREY, 1.0, 0), side=8, unit=8)
    with pytest.raises(ValueError, match="unknown timbre 'kazoo'"):
        hear_scene(make_scene(make_actor(programme="sway", voice=Voice("kazoo", 330.0, 1.0, 0.0))))
    with pytest.raises(ValueError, match="unknown ambience 'disco'"):
        ambience(Ambience("disco", 110.0, 0.1, 0), 100, 16000)


def test_places_are_distinct() -> None:
    names = place_names(MAX_PLACES)
    assert len(set(names)) == MAX_PLACES
    with pytest.raises(ValueError, match=f"{MAX_PLACES + 1}"):
        place_names(MAX_PLACES + 1)


def test_actors_stand_out_from_every_ground() -> None:
    rng = np.random.default_rng(0)
    for _, ground, _ in GROUNDS.values():
        drawn = {contrasting(ground, rng) for _ in range(200)}
        assert len(drawn) >= 5  # colour stays a nuisance in every place
        assert min(np.abs(np.subtract(colour, ground)).sum() for colour in drawn) > 0.4


def test_a_clip_is_a_pure_function_of_seed_and_number() -> None:
    recipe = Actions(duration_s=1.0)
    frames, waveform = render_clip(recipe.clip(3, 7))
    again, sound = render_clip(Actions(duration_s=1.0).clip(3, 7))
    assert frames.shape == (25, 96, 96, 3) and frames.dtype == np.uint8
    assert waveform.shape == (16000,) and waveform.dtype == np.float32
    np.testing.assert_array_equal(frames, again)
    np.testing.assert_array_equal(waveform, sound)
    for other in (recipe.clip(3, 8), recipe.clip(4, 7)):
        assert (render_clip(other)[0] != frames).any() and (render_clip(other)[1] != waveform).any()


def test_a_knob_of_the_sound_leaves_the_picture_alone() -> None:
    loud, quiet = (
        Actions(duration_s=1.0).clip(0, 1),
        Actions(duration_s=1.0, ambience_level=0.0, av_match=0.0).clip(0, 1),
    )
    np.testing.assert_array_equal(draw_scene(loud.seen), draw_scene(quiet.seen))
    assert (render_clip(loud)[1] != render_clip(quiet)[1]).any()


def test_sizes_rates_and_durations_are_parameters() -> None:
    recipe = Boxes(size=64, fps=12.5, duration_s=2.0, sample_rate=8000, shapes=8)
    frames, waveform = render_clip(recipe.clip(0, 0))
    assert frames.shape == (25, 64, 64, 3)
    assert waveform.shape == (16000,)


def test_captions_say_what_happens_in_order() -> None:
    first = make_actor("star", "hop", end_s=0.5)
    second = make_actor("box", start_s=0.5, motion=Motion("sway", 3.0, 0.0, 0.1, drift="scale", sign=-1, reach=1.0))
    assert caption(make_scene(first, second)) == "A star hops; then a box sways, going away."
    assert caption(make_scene(make_actor("ball"), make_actor("moon"))) == "A ball lies still; a moon lies still."
    assert caption(make_scene()) == ""
