"""``trajectories``: something red crosses the picture; the direction of its crossing is the label.

For attention over space and time (Patrick et al., "Keeping Your Eye on the Ball: Trajectory Attention in Video
Transformers", NeurIPS 2021), which needs clips whose label is *motion*: classes that contain the same pictures in
another order, a camera that moves, others that pass in front, and the true place of the thing in every frame.

The *target* goes straight through the picture, to the right, the left, down or up: ``direction``. When it has left,
another like it comes in where it came from, so that at every time the picture shows one of them. **A clip played
backwards is one of the partner class** (:data:`REVERSED`): opposite classes hold the same pictures, so that no frame
tells them apart, and no shuffled clip either (:meth:`Trajectories.ceilings`). ``phase`` decides whether the clock
helps. At 1 the crossing is under way by any amount when the clip begins: at every moment the target is as likely here
as there, whichever way it goes, so that not even a frame at a known time tells, and frames have to be compared with
each other. At 0 every clip begins with the target at its edge of the picture, and *where at which time* is enough.

What else is in the picture, each drawn by itself:

* ``shape``, the target's, is the control that one picture answers and motion does not;
* ``decoys`` of other colours cross in directions of their own; the target is the red one, always;
* ``camera`` shakes everything together, so that what stands still moves, too;
* ``occluders`` pass in front of everything.

``reach``, how many sides of the picture the target goes in a clip, sets how far it gets between two frames of an
encoder's: :meth:`Trajectories.speed`.

The first actors are the target and those like it that follow (:attr:`Trajectories.followers`); then come the decoys,
with as many followers each, and the occluders. :func:`target_boxes` finds the one that is in the picture. The sound is
a faint ambience, independent of everything seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..draw import REACH, SHAPES, SKINS
from ..palettes import ACTOR_COLOURS, contrasting, jitter, luminance
from ..scene import Actor, Camera, Clip, Colour, Drift, Motion, Scene, TimedLabel
from . import places
from .base import LabelKind, Recipe, check_share

DIRECTIONS: dict[str, tuple[Drift, int]] = {  # name -> axis, and the sign of motion.DIRECTION_NAMES
    "right": ("horizontal", 1),
    "left": ("horizontal", -1),
    "down": ("vertical", -1),
    "up": ("vertical", 1),
}
REVERSED: dict[str, str] = {"right": "left", "left": "right", "down": "up", "up": "down"}
RED: Colour = ACTOR_COLOURS[0]
OTHERS: tuple[Colour, ...] = ACTOR_COLOURS[2:8] + ACTOR_COLOURS[9:]  # all but red, and orange and pink beside it
BOX = 0.8  # half the side of a ``box`` of radius 1


@dataclass(frozen=True)
class Trajectories(Recipe):
    """Parameters of the recipe; lengths are fractions of the frame's side."""

    duration_s: float = 2.0
    directions: int = 4  # classes: 2 (right and left) or 4
    shapes: int = 4  # classes of the control
    radius: float = 0.08  # of target and decoys
    reach: float = 1.25  # how far things go in a clip
    phase: float = 1.0  # 1: a crossing is under way by any amount when the clip begins; 0: it begins at its edge
    decoys: int = 1
    camera: float = 0.06  # amplitude of the camera's shaking; drawn down to half of it
    camera_period_s: float = 1.3  # of the shaking; jittered by a third
    occluders: int = 1
    identities: int = 16  # backgrounds
    ambience_level: float = 0.015

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.directions not in (2, 4):
            raise ValueError(f"directions must be 2 or 4 (each with its reverse), got {self.directions}")
        if not 1 <= self.shapes <= len(SHAPES):
            raise ValueError(f"shapes must lie in [1, {len(SHAPES)}], got {self.shapes}")
        if not 0 <= self.decoys <= len(OTHERS) or self.occluders < 0:
            raise ValueError(
                f"decoys must lie in [0, {len(OTHERS)}] and occluders be at least 0, "
                f"got {self.decoys} and {self.occluders}"
            )
        check_share("phase", self.phase)
        for name in ("radius", "reach", "camera_period_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        if not 0 <= self.camera <= 0.25:
            raise ValueError(f"camera must lie in [0, 0.25], got {self.camera}")
        places.place_names(self.identities)

    @property
    def width(self) -> float:
        """How far a thing reaches from its centre, at most."""
        return self.radius * max(REACH[shape] for shape in SHAPES[: self.shapes])

    @property
    def period(self) -> float:
        """From one thing to the next of its kind: when one has left the picture, the next comes in."""
        return 1 + 2 * self.width

    @property
    def followers(self) -> int:
        """How many come after a thing within a clip."""
        return math.ceil(self.reach / self.period)

    # --- the label space -----------------------------------------------------------------------------------------

    @property
    def direction_names(self) -> tuple[str, ...]:
        return tuple(DIRECTIONS)[: self.directions]

    def kinds(self) -> tuple[LabelKind, ...]:
        asked = {
            "direction": self.direction_names,
            "shape": SHAPES[: self.shapes],
            "identity": places.place_names(self.identities),
        }
        return tuple(
            LabelKind(kind, False, names, chance=1 / len(names), sight=1.0, sound=1 / len(names))
            for kind, names in asked.items()
        )

    def ceilings(self) -> pd.DataFrame:
        """How well each kind can be answered from a frame, from a frame at a known time, and from a shuffled clip.

        Returns:
            One row a kind (``direction``, ``shape``), accuracies; ``clip`` is all frames in order. Frames in any order
            still show along which axis the target goes, and so does a single one in which an edge cuts it. Where
            clips begin at one point of the crossing (``phase`` below 1), what time tells is unknown (NaN).
        """
        guess, unknown = 1 / self.directions, float("nan")
        cut = 2 * self.width / self.period  # share of frames
        frame = guess if self.directions == 2 else (1 - cut) * guess + cut / 2
        anywhere = self.phase == 1
        rows = {
            "direction": (frame, frame if anywhere else unknown, 0.5 if anywhere else unknown, 1.0),
            "shape": (1.0, 1.0, 1.0, 1.0),  # but for frames that cut the target
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=["frame", "timed frame", "shuffled", "clip"])

    def speed(self, frames: int, tokens: int) -> float:
        """How far the target gets between two of ``frames`` even samples of a clip.

        Args:
            frames: samples, or slices of an encoder's tokens, in a clip.
            tokens: a side of the picture in the unit of the answer: 1 for sides, 14 for tokens of 16 pixels at 224.
        """
        return self.reach / frames * tokens

    # --- drawing a clip ------------------------------------------------------------------------------------------

    def clip(self, seed: int, number: int) -> Clip:
        return self._clip(seed, number, self._direction(seed, number))

    def redirected(self, seed: int, number: int, direction: str) -> Clip:
        """The clip ``number`` with its target going in another direction, and all else as it was."""
        if direction not in self.direction_names:
            raise ValueError(f"unknown direction {direction!r}; choose one of {', '.join(self.direction_names)}")
        return self._clip(seed, number, direction)

    def _direction(self, seed: int, number: int) -> str:
        return self.direction_names[self.stream(seed, number, "direction").integers(self.directions)]

    def _clip(self, seed: int, number: int, direction: str) -> Clip:
        place, ambient = self.stream(seed, number, "place"), self.stream(seed, number, "ambience")
        name = places.place_names(self.identities)[place.integers(self.identities)]
        ground = places.background(name, place)
        shape = SHAPES[self.stream(seed, number, "shape").integers(self.shapes)]
        scene = Scene(
            size=self.size,
            fps=self.fps,
            duration_s=self.duration_s,
            sample_rate=self.sample_rate,
            background=ground,
            camera=self._camera(self.stream(seed, number, "camera")),
            ambience=places.ambience(int(ambient.integers(4)), self.ambience_level, ambient),
            actors=self._actors(seed, number, direction, shape, ground.colours[1]),
            grain=self.grain,
            hiss=self.hiss,
            seed=int(ambient.integers(2**31)),
        )
        labels = {"direction": direction, "shape": shape, "identity": name}
        timed = tuple(TimedLabel(0.0, self.duration_s, kind, labels[kind]) for kind in ("direction", "shape"))
        return Clip(number, scene, scene, "own", labels, timed, f"A {shape} goes {direction}.")

    def _camera(self, rng: np.random.Generator) -> Camera:
        """A shaking camera; it moves as much forth as back, so that it carries no arrow of time."""
        period_s = self.camera_period_s * 2 ** rng.uniform(-0.4, 0.4)
        return Camera(self.camera * rng.uniform(0.5, 1), period_s, rng.random(), rng.uniform(0, np.pi))

    def _actors(self, seed: int, number: int, direction: str, shape: str, ground: Colour) -> tuple[Actor, ...]:
        paint = self.stream(seed, number, "colours")
        painted = [RED, *(OTHERS[i] for i in paint.permutation(len(OTHERS))[: self.decoys])]
        colours = [jitter(c, paint, hue=0.01, value=0.04) for c in painted]
        actors = list(self._crossing(direction, shape, colours[0], self.stream(seed, number, "crossing")))
        for i, colour in enumerate(colours[1:]):
            rng = self.stream(seed, number, f"decoy {i}")
            other, like = self.direction_names[rng.integers(self.directions)], SHAPES[rng.integers(self.shapes)]
            actors += self._crossing(other, like, colour, rng)
        passing = self.stream(seed, number, "occluders")
        return (*actors, *(self._occluder(ground, passing) for _ in range(self.occluders)))

    def _crossing(self, direction: str, shape: str, colour: Colour, rng: np.random.Generator) -> tuple[Actor, ...]:
        """One thing's way through the picture on a straight line anywhere across it, and those that follow."""
        drift, sign = DIRECTIONS[direction]
        motion = Motion("rest", tempo_hz=0.0, phase=0.0, amplitude=0.0, drift=drift, sign=sign, reach=self.reach)
        begin = self.phase * float(rng.random()) * self.period - self.width  # from its edge of the picture
        across, skin = float(rng.random()), SKINS[rng.integers(len(SKINS))]
        found = []
        for follower in range(1 + self.followers):
            along = begin - follower * self.period + self.reach / 2  # at half of the clip
            along = along if direction in ("right", "down") else 1 - along  # as coordinates grow, or against them
            x, y = (along, across) if drift == "horizontal" else (across, along)
            found.append(Actor(shape, colour, skin, x, y, self.radius, 0.0, 0.0, self.duration_s, motion))
        return tuple(found)

    def _occluder(self, ground: Colour, rng: np.random.Generator) -> Actor:
        """A dull pillar of twice a thing's width that crosses the picture at half its height or so, once."""
        radius = 2 * self.radius / BOX
        motion = Motion(
            "rest",
            tempo_hz=0.0,
            phase=0.0,
            amplitude=0.0,
            drift="horizontal",
            sign=int(rng.choice([-1, 1])),
            reach=1 + 2 * radius,
        )
        colour = jitter(contrasting(ground, rng), rng, hue=0.02, value=0.08)
        dull: Colour = tuple(0.6 * luminance(colour) + 0.4 * c for c in colour)  # type: ignore[assignment]
        y = 0.5 + 0.25 * rng.uniform(-1, 1)
        late = rng.uniform(-0.25, 0.25) * self.duration_s  # when it is in the middle
        return Actor("box", dull, "striped", 0.5, y, radius, 0.0, late, late + self.duration_s, motion)


def target_boxes(boxes: pd.DataFrame, recipe: Trajectories) -> pd.DataFrame:
    """Rows of ``boxes.parquet`` of the target that is in the picture, or comes nearest to it: one a clip and frame."""
    size = recipe.size
    likes = boxes[boxes["actor"] <= recipe.followers]
    centre = likes[["x0", "x1"]].mean(axis=1), likes[["y0", "y1"]].mean(axis=1)
    away = np.maximum((centre[0] - size / 2).abs(), (centre[1] - size / 2).abs())
    nearest = likes.assign(away=away).sort_values(["clip_id", "frame", "away"]).groupby(["clip_id", "frame"]).head(1)
    return nearest.drop(columns="away").reset_index(drop=True)
