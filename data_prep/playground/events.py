"""Event rules: what an actor's motion makes it sound like.

The timbre is the actor's (its shape's, in most recipes), the articulation is its motion's:

* a **hop** is struck at each impact,
* a **sway**, **orbit** or **throb** is a sustained tone that swells with the speed of the motion,
* a **spin** is a flutter, several pulses a half turn,

and the pitch follows the drift: up while growing, rising or moving right, down otherwise (``bend_octaves``).
"""

from __future__ import annotations

import numpy as np

from .motion import drift_progress, energy, onset_times
from .scene import Actor, Scene
from .voices import Array, ambience, mirrored, struck, timbre_named, tone

ARTICULATIONS: dict[str, str] = {
    "hop": "struck",
    "sway": "swelling",
    "orbit": "swelling",
    "throb": "swelling",
    "spin": "fluttering",
    "rest": "steady",
}
EDGE_S = 0.015  # voices are faded in and out, so that an actor's appearance does not click
LEVEL = 0.16  # RMS of a voice of gain 1 where its envelope is 1


def _strikes(actor: Actor, t: Array, decay_s: float) -> Array:
    """Envelope of a struck voice at times ``t`` (seconds of the clip)."""
    assert actor.voice is not None
    onsets = onset_times(actor)
    if len(onsets) == 0:
        return np.zeros(len(t), np.float32)
    after = np.searchsorted(onsets, t, side="right")
    since = t - onsets[np.maximum(after - 1, 0)]
    if actor.voice.reversible:
        until = np.abs(onsets[np.minimum(after, len(onsets) - 1)] - t)
        return mirrored(np.minimum(np.abs(since), until), decay_s).astype(np.float32)
    return np.where(after > 0, struck(np.maximum(since, 0), decay_s), 0).astype(np.float32)


def envelopes(actor: Actor, t: Array) -> list[Array]:
    """One envelope a partial of the actor's timbre, at times ``t`` (L,) in seconds of the clip."""
    assert actor.voice is not None
    partials = timbre_named(actor.voice.timbre).partials
    articulation = ARTICULATIONS[actor.motion.programme]
    if articulation == "struck":
        return [1.8 * _strikes(actor, t, decay) for _, _, decay in partials]
    age = t - actor.start_s
    if articulation == "swelling":
        shape = 0.25 + 0.75 * energy(actor.motion, age) ** 1.5
    elif articulation == "fluttering":
        shape = 0.5 + 0.5 * np.cos(2 * np.pi * 4 * (actor.motion.tempo_hz * age + actor.motion.phase))
    else:
        shape = np.full(len(t), 0.6)
    return [shape.astype(np.float32)] * len(partials)


def pitch_curve(actor: Actor, t: Array) -> Array:
    """Fundamental frequency (L,) in hertz: the chirp that follows the drift."""
    assert actor.voice is not None
    progress = drift_progress(actor.motion, (t - actor.start_s) / max(actor.duration_s, 1e-9))
    return actor.voice.pitch_hz * 2.0 ** (actor.voice.bend_octaves * progress)


def voice_track(actor: Actor, scene: Scene) -> tuple[int, Array]:
    """The actor's sound and the sample it starts at."""
    assert actor.voice is not None
    rate = scene.sample_rate
    first, last = max(0, round(actor.start_s * rate)), min(scene.num_samples, round(actor.end_s * rate))
    t = np.arange(first, last) / rate
    rng = np.random.default_rng(actor.voice.seed)
    sound = tone(actor.voice.timbre, pitch_curve(actor, t), envelopes(actor, t), rate, rng)
    edge = np.clip(np.minimum(t - actor.start_s, actor.end_s - t) / EDGE_S, 0, 1).astype(np.float32)
    return first, sound * edge * np.float32(LEVEL * actor.voice.gain)


def hear_scene(scene: Scene) -> Array:
    """Everything the microphone hears: ``(num_samples,)`` float32 in (−1, 1), softly limited."""
    total = ambience(scene.ambience, scene.num_samples, scene.sample_rate)
    for actor in scene.actors:
        if actor.voice is not None:
            first, sound = voice_track(actor, scene)
            total[first : first + len(sound)] += sound
    if scene.hiss > 0:
        rng = np.random.default_rng([scene.seed, 2])
        total += rng.standard_normal(len(total), dtype=np.float32) * np.float32(scene.hiss)
    return np.tanh(total * np.float32(scene.gain))
