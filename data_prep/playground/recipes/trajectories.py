"""``trajectories``: something shuttles between its house and four corners; the order of its visits is the label.

For attention over space and time (Patrick et al., "Keeping Your Eye on the Ball: Trajectory Attention in Video
Transformers", NeurIPS 2021), which needs clips whose label is *motion*: classes that contain the same pictures in
another order, a camera that moves, others that pass in front, and the true place of the thing in every frame.

In the middle of the picture stands a house. The *target* goes out towards one corner and back, then towards the next,
once to each of the four. ``order`` asks in which cyclic order: two go round (``clockwise`` and back), two draw a Z, two
an N. **One lap holds the same pictures in all six classes**: every trip to a corner takes equally long and is its own
mirror image in time, so that classes differ in the order of the trips alone. A frame, or any shuffled lap, tells
nothing of ``order`` (:meth:`Trajectories.ceilings`); a clip played backwards is one of the partner class
(:data:`REVERSED`). ``phase`` decides whether the clock helps: at 1 a lap begins anywhere, so that not even a frame at a
known time tells, and pictures have to be compared with each other; at 0 every lap begins at the top left, and *where at
which time* is enough.

What else is in the picture, each drawn by itself:

* ``shape``, the target's, is the control that one picture answers and motion does not;
* ``decoys`` shuttle from the same house in orders of their own. How to tell the target: by ``cue="colour"`` it is the
  red one, always; by ``cue="match"`` it has the colour of the house, which is another in every clip, so that the two
  have to be compared;
* ``camera`` shakes house, target and ground together, so that places count relative to the house; the house itself
  stands anywhere within ``scatter``;
* ``occluders`` pass in front of everything. The house hides the target between two trips anyway.

``spread`` and ``laps`` set how far the target gets between two frames of an encoder's: :meth:`Trajectories.speed`.

Actors 0 to 4 are the target's trips (a lap cut at a phase has five), the next fives those of the decoys, then come the
house and the occluders. ``boxes`` has a row for whichever trip is under way, so that the target's box in a frame is the
one row of actors 0 to 4 (:func:`target_boxes`). The sound is a faint ambience, independent of everything seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..draw import REACH, SHAPES, SKINS
from ..palettes import ACTOR_COLOURS, contrasting, jitter, luminance
from ..scene import Actor, Camera, Clip, Colour, Motion, Scene, TimedLabel
from . import places
from .base import LabelKind, Recipe, check_share

CORNERS: tuple[tuple[int, int], ...] = ((-1, -1), (1, -1), (1, 1), (-1, 1))  # clockwise from the top left; y down
ORDERS: dict[str, tuple[int, int, int, int]] = {  # corners in the order of their visits, up to where a lap begins
    "clockwise": (0, 1, 2, 3),
    "anticlockwise": (3, 2, 1, 0),
    "Z": (0, 1, 3, 2),
    "reversed Z": (2, 3, 1, 0),
    "N": (3, 0, 2, 1),
    "reversed N": (1, 2, 0, 3),
}
REVERSED: dict[str, str] = {a: b for pair in zip(*[iter(ORDERS)] * 2, strict=True) for a, b in (pair, pair[::-1])}
TRIPS = 5  # of one lap that is cut at any phase
CUES = ("colour", "match")
RED: Colour = ACTOR_COLOURS[0]
OTHERS: tuple[Colour, ...] = ACTOR_COLOURS[2:8] + ACTOR_COLOURS[9:]  # all but red, and orange and pink beside it
HOUSE = 0.8  # half the side of a ``box`` of radius 1


@dataclass(frozen=True)
class Trajectories(Recipe):
    """Parameters of the recipe; lengths are fractions of the frame's side."""

    duration_s: float = 2.0
    orders: int = 6  # classes: 2 (clockwise and back), 4 (and the two Z) or 6
    shapes: int = 4  # classes of the control
    radius: float = 0.07  # of target and decoys
    spread: float = 0.26  # how far a trip goes from the house, on each axis
    laps: float = 1.0  # in a clip; below 1 it does not show every trip
    phase: float = 1.0  # part of a lap within which clips begin; 0: all at the house, before the trip to the top left
    decoys: int = 1
    cue: str = "colour"  # what tells the target: its red "colour", or that its colour "match"es the house's
    scatter: float = 0.04  # how far the house may stand from the middle, on each axis
    camera: float = 0.06  # amplitude of the camera's shaking; drawn down to half of it
    camera_period_s: float = 1.3  # of the shaking; jittered by a third
    occluders: int = 1
    identities: int = 16  # backgrounds
    ambience_level: float = 0.015

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.orders not in (2, 4, 6):
            raise ValueError(f"orders must be 2, 4 or 6 (each with its reverse), got {self.orders}")
        if not 1 <= self.shapes <= len(SHAPES):
            raise ValueError(f"shapes must lie in [1, {len(SHAPES)}], got {self.shapes}")
        if self.cue not in CUES:
            raise ValueError(f"unknown cue {self.cue!r}; choose one of {', '.join(CUES)}")
        if not 0 <= self.decoys <= len(OTHERS) - 2 or self.occluders < 0:
            raise ValueError(
                f"decoys must lie in [0, {len(OTHERS) - 2}] and occluders be at least 0, "
                f"got {self.decoys} and {self.occluders}"
            )
        check_share("phase", self.phase)
        if not 0 < self.laps <= 1:
            raise ValueError(f"laps must lie in (0, 1], got {self.laps}; for faster trips shorten duration_s instead")
        for name in ("radius", "spread", "camera_period_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        places.place_names(self.identities)
        self._check_room()

    def _check_room(self) -> None:
        """Raise unless all trips stay in the picture and leave the house."""
        room = 0.5 - self.scatter - self.camera - self._widest()
        if self.spread > room:
            raise ValueError(
                f"trips of {self.spread} leave the picture; take a spread of at most {max(room, 0):.3f}, or less "
                "radius, scatter or camera"
            )
        if self.spread < 2 * self._widest():
            raise ValueError(
                f"trips of {self.spread} do not leave the house; take a spread of at least {2 * self._widest():.3f}"
            )

    def _widest(self) -> float:
        """How far a thing reaches from its centre, and half the side of the house that hides it."""
        return self.radius * max(REACH[shape] for shape in SHAPES[: self.shapes])

    # --- the label space -----------------------------------------------------------------------------------------

    @property
    def order_names(self) -> tuple[str, ...]:
        return tuple(ORDERS)[: self.orders]

    def kinds(self) -> tuple[LabelKind, ...]:
        asked = {
            "order": self.order_names,
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
            One row a kind (``order``, ``shape``), accuracies; ``clip`` is all frames in order. Where a clip does not
            show every trip (``laps`` below 1), or laps do not begin anywhere (``phase`` below 1), some are unknown
            (NaN).
        """
        none, unknown = 1 / self.orders, float("nan")
        whole, anywhere = self.laps == 1, self.phase == 1
        known = none if anywhere else unknown
        rows = {
            "order": (none if whole or anywhere else unknown, known, none if whole else unknown, 1.0),
            "shape": (1.0, 1.0, 1.0, 1.0),  # but for the frames that hide the target
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=["frame", "timed frame", "shuffled", "clip"])

    def speed(self, frames: int, tokens: int) -> float:
        """How far the target gets between two of ``frames`` even samples of a clip, at its fastest.

        Args:
            frames: samples, or slices of an encoder's tokens, in a clip.
            tokens: a side of the picture in the unit of the answer: 1 for sides, 14 for tokens of 16 pixels at 224.

        Returns:
            The longest straight way between two samples; it is never longer than a whole trip.
        """
        trips = 4 * self.laps / frames  # of a trip out and back, between two samples
        phase = np.linspace(0, 1, 2049)
        out = np.sin(np.pi * phase) ** 2
        later = np.sin(np.pi * np.clip(phase + trips, 0, 1)) ** 2
        return float(np.abs(later - out).max() * np.hypot(self.spread, self.spread) * tokens)

    # --- drawing a clip ------------------------------------------------------------------------------------------

    def clip(self, seed: int, number: int) -> Clip:
        return self._clip(seed, number, self._order(seed, number))

    def reordered(self, seed: int, number: int, order: str) -> Clip:
        """The clip ``number`` with its target visiting the corners in another order, and all else as it was."""
        if order not in self.order_names:
            raise ValueError(f"unknown order {order!r}; choose one of {', '.join(self.order_names)}")
        return self._clip(seed, number, order)

    def _order(self, seed: int, number: int) -> str:
        return self.order_names[self.stream(seed, number, "order").integers(self.orders)]

    def _clip(self, seed: int, number: int, order: str) -> Clip:
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
            actors=self._actors(seed, number, order, shape, ground.colours[1]),
            grain=self.grain,
            hiss=self.hiss,
            seed=int(ambient.integers(2**31)),
        )
        labels = {"order": order, "shape": shape, "identity": name}
        timed = tuple(TimedLabel(0.0, self.duration_s, kind, labels[kind]) for kind in ("order", "shape"))
        return Clip(number, scene, scene, "own", labels, timed, f"A {shape} visits the corners: {order}.")

    def _camera(self, rng: np.random.Generator) -> Camera:
        """A shaking camera; it moves as much forth as back, so that it carries no arrow of time."""
        period_s = self.camera_period_s * 2 ** rng.uniform(-0.4, 0.4)
        return Camera(self.camera * rng.uniform(0.5, 1), period_s, rng.random(), rng.uniform(0, np.pi))

    def _actors(self, seed: int, number: int, order: str, shape: str, ground: Colour) -> tuple[Actor, ...]:
        where, paint = self.stream(seed, number, "house"), self.stream(seed, number, "colours")
        home = 0.5 + self.scatter * where.uniform(-1, 1, 2)
        of_house, *colours = self._colours(ground, paint)
        actors = list(self._tour(order, shape, home, colours[0], self.stream(seed, number, "trips")))
        for i, colour in enumerate(colours[1:]):
            rng = self.stream(seed, number, f"decoy {i}")
            other, like = self.order_names[rng.integers(self.orders)], SHAPES[rng.integers(self.shapes)]
            actors += self._tour(other, like, home, colour, rng)
        actors.append(self._resting("box", of_house, home, self._widest() / HOUSE))
        passing = self.stream(seed, number, "occluders")
        return (*actors, *(self._occluder(ground, passing) for _ in range(self.occluders)))

    def _colours(self, ground: Colour, rng: np.random.Generator) -> list[Colour]:
        """Of the house, the target and each decoy, in this order."""
        drawn = [OTHERS[i] for i in rng.permutation(len(OTHERS))[: self.decoys + 1]]
        house, others = drawn[0], drawn[1:]
        target = house if self.cue == "match" else RED
        return [jitter(c, rng, hue=0.01, value=0.04) for c in (house, target, *others)]

    def _tour(
        self, order: str, shape: str, home: np.ndarray, colour: Colour, rng: np.random.Generator
    ) -> tuple[Actor, ...]:
        """The trips of one thing: a lap that begins within ``phase`` laps after the house and before the top left."""
        trip_s = self.duration_s / (4 * self.laps)
        skin = SKINS[rng.integers(len(SKINS))]
        first, phase = divmod(4 * self.phase * rng.random(), 1)
        begin = ORDERS[order].index(0) + int(first)
        corners = [CORNERS[ORDERS[order][(begin + i) % 4]] for i in range(TRIPS)]
        return tuple(
            self._trip(corner, home, (i - phase) * trip_s, trip_s, shape, colour, skin)
            for i, corner in enumerate(corners)
        )

    def _trip(
        self,
        corner: tuple[int, int],
        home: np.ndarray,
        start_s: float,
        trip_s: float,
        shape: str,
        colour: Colour,
        skin: str,
    ) -> Actor:
        """Out and back along a diagonal: on both axes the way from home is sin² of the trip's course.

        A sway of two beats is a cosine on the horizontal axis, a drift to and fro is one on the vertical axis; centred
        half-way, both begin and end at home, where the house hides that one trip's actor follows the other's.
        """
        right, down = corner
        sway = 0.5 * self.spread
        motion = Motion(
            "sway",
            tempo_hz=2 / trip_s,
            phase=-1.0 if right > 0 else 0.0,
            amplitude=sway,
            drift="vertical",
            sign=1,
            reach=self.spread,
            back_and_forth=True,
            drift_phase=0.0 if down > 0 else 0.5,
        )
        x, y = float(home[0]) + right * sway, float(home[1]) + down * sway
        return Actor(shape, colour, skin, x, y, self.radius, 0.0, start_s, start_s + trip_s, motion)

    def _resting(self, shape: str, colour: Colour, at: np.ndarray, radius: float) -> Actor:
        rest = Motion("rest", tempo_hz=0.0, phase=0.0, amplitude=0.0)
        return Actor(shape, colour, "plain", float(at[0]), float(at[1]), radius, 0.0, 0.0, self.duration_s, rest)

    def _occluder(self, ground: Colour, rng: np.random.Generator) -> Actor:
        """A dull pillar of twice a thing's width that crosses the picture at half its height or so, once."""
        radius = 2 * self.radius / HOUSE
        crossing = Motion(
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
        return Actor("box", dull, "striped", 0.5, y, radius, 0.0, late, late + self.duration_s, crossing)


def target_boxes(boxes: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``boxes.parquet`` that belong to the target: one for each clip and frame, hidden or not."""
    return boxes[boxes["actor"] < TRIPS].sort_values(["clip_id", "frame"], ignore_index=True)
