"""Motion programmes: where an actor is, how large and how squashed, at any time of its life.

A programme is periodic and symmetric in time (a parabola's hop, a sine's sway): no programme has an arrow of time.
The arrow, where a recipe wants one, is the *drift* alone (growing, moving right, …), so that it can be switched off
without touching anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .scene import Actor, Camera, Motion, Scene

Array = np.ndarray[tuple[Any, ...], np.dtype[Any]]  # float64

PROGRAMMES: tuple[str, ...] = ("hop", "sway", "spin", "throb", "orbit", "rest")
FADE_S = 0.06  # an actor pops in and out this fast


@dataclass(frozen=True)
class Track:
    """An actor's course, sampled at ``times`` (T,): all arrays are (T,), lengths in pixels.

    ``x, y`` is the centre on the ground, ``height`` lifts the body off it (and off its shadow), ``stretch`` is the
    factor by which the body is taller and, inversely, narrower than at rest; ``presence`` in [0, 1] fades the actor
    in and out.
    """

    x: Array
    y: Array
    height: Array
    radius: Array
    angle: Array
    stretch: Array
    presence: Array

    @property
    def centre_y(self) -> Array:
        """Vertical centre of the body as seen (lifted by its height)."""
        return self.y - self.height


def drift_progress(motion: Motion, life: Array) -> Array:
    """Progress of the drift in [−½, ½] for ``life`` in [0, 1]: a ramp up or down, or a cosine to and fro."""
    if motion.drift == "none":
        return np.zeros_like(life)
    if motion.back_and_forth:
        return 0.5 * np.cos(2 * np.pi * (life + motion.drift_phase))
    return motion.sign * (life - 0.5)


def beat(motion: Motion, age: Array) -> Array:
    """Position in the beat: integer at each onset of the programme."""
    return motion.tempo_hz * age + motion.phase


def onset_times(actor: Actor) -> Array:
    """Beats in seconds of the clip: impacts of a hop, turning points of a sway, half turns of a spin."""
    motion = actor.motion
    if motion.programme == "rest" or motion.tempo_hz <= 0:
        return np.zeros(0)
    first = np.ceil(motion.phase - 1e-9)
    last = np.floor(motion.tempo_hz * actor.duration_s + motion.phase)
    ages = (np.arange(first, last + 1) - motion.phase) / motion.tempo_hz
    return actor.start_s + ages[(ages >= 0) & (ages < actor.duration_s)]


def energy(motion: Motion, age: Array) -> Array:
    """How fast the programme moves, in [0, 1]: what a sustained voice follows. Zero at the beats, one between them."""
    return np.abs(np.sin(np.pi * beat(motion, age)))


def camera_offset(camera: Camera, times: Array, size: int) -> tuple[Array, Array]:
    """Displacement of the view, in pixels, at each time."""
    sway = camera.sway * size * np.sin(2 * np.pi * (times / camera.period_s + camera.phase))
    return sway * np.cos(camera.tilt), sway * np.sin(camera.tilt)


def track(actor: Actor, scene: Scene, times: Array) -> Track:
    """Follow ``actor`` at ``times`` (seconds of the clip), on the screen (camera included).

    Raises:
        ValueError: the motion programme is unknown.
    """
    motion, size = actor.motion, scene.size
    if motion.programme not in PROGRAMMES:
        raise ValueError(f"unknown motion programme {motion.programme!r}; choose one of {', '.join(PROGRAMMES)}")
    age = times - actor.start_s
    b = beat(motion, age)
    progress = drift_progress(motion, age / max(actor.duration_s, 1e-9))
    pan_x, pan_y = camera_offset(scene.camera, times, size)
    x, y = actor.x * size - pan_x, actor.y * size - pan_y
    radius = np.full_like(age, actor.radius * size)
    if motion.drift == "scale":
        radius = radius * 2.0 ** (progress * motion.reach)
    elif motion.drift == "horizontal":
        x = x + progress * motion.reach * size
    elif motion.drift == "vertical":
        y = y - progress * motion.reach * size
    swing = motion.amplitude * size
    height, stretch, angle = np.zeros_like(age), np.ones_like(age), np.full_like(age, actor.angle)
    if motion.programme == "hop":
        u = b - np.floor(b)
        height = 4 * swing * u * (1 - u)
        stretch = 1.06 - 0.26 * np.exp(-((np.minimum(u, 1 - u) / 0.11) ** 2))  # squashed on the ground, tall in flight
    elif motion.programme == "sway":
        x = x + swing * np.cos(np.pi * b)
        angle = angle - 0.3 * np.cos(np.pi * b)
    elif motion.programme == "spin":
        angle = angle + motion.turn * np.pi * b
    elif motion.programme == "throb":
        radius = radius * (1 - 0.22 * np.cos(2 * np.pi * b))
    elif motion.programme == "orbit":
        x, y = x + swing * np.cos(np.pi * b), y + 0.6 * motion.turn * swing * np.sin(np.pi * b)
    to_edges = [age] if actor.start_s > 0 else []  # who is there when the clip begins or ends does not pop
    to_edges += [actor.duration_s - age] if actor.end_s < scene.duration_s - 1e-6 else []
    presence = np.clip(np.min([edge / FADE_S for edge in to_edges] + [np.ones_like(age)], axis=0), 0, 1)
    return Track(x, y, height, radius, angle, stretch, presence)
