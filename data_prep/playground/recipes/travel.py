"""``travel``: one sprite travels across the picture or swings on the spot, under a camera that rests or pans.

For pretext tasks on compressed video (Yu et al., "Self-Supervised Learning of Compressed Video Representations",
ICLR 2021): *where is the motion?* (pyramidal motion statistics) has a true answer, the sprite's box in every frame;
*do pictures and motion belong together?* (correspondence types) has one too, as the sprite travels for the whole clip
and no two groups of pictures look alike. Downstream, ``motion`` × ``shape`` = ``event``.

Each way in which labels made from motion fail is a knob:

* ``share_panning``: a camera that pans, in a direction independent of the sprite's, moves everything;
* ``share_oscillating``: a swing that comes back within a group cancels itself in signed sums (and, at ``period=gop``,
  makes all groups alike, so that their order cannot be told);
* ``radius`` and ``fast``: a small thing that crosses the picture within one group and is gone;
* ``share_overlay``: as in television, a graphic in a corner that changes in every frame.

Labels and ``boxes`` tell the course *on the screen*, whatever the camera does; ``x``, ``motion`` and ``direction`` in
``actors`` are in the world that it films (where a slow sway of huge amplitude serves as a second straight motion).
Actor 0 is the sprite, actors 1 and 2, where there are any, are the overlay's panel and sign. A pan is the linear part
of a slow sway: over the clip its speed falls by 5 % towards both ends, and what should stand or go straight on the
screen is off its line by at most 0.8 % of the way panned. The sound is a faint ambience, independent of all that is
seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..draw import REACH, SHAPES, SKINS
from ..palettes import contrasting, jitter
from ..scene import Actor, Camera, Clip, Colour, Drift, Motion, Scene, TimedLabel
from . import places
from .base import LabelKind, Recipe, check_share

DIRECTIONS: dict[str, tuple[int, int]] = {  # on the screen: x to the right, y down
    "right": (1, 0),
    "left": (-1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up right": (1, -1),
    "up left": (-1, -1),
    "down right": (1, 1),
    "down left": (-1, 1),
}
OSCILLATING = "oscillating"
# Of the textures that are painted fast enough for the wide ground of a pan, those with details in both directions:
# vectors on stripes and waves (planks, dunes, rings) slide along them, and a pan then moves everything differently.
FOLLOWED = ("weave", "dots")
PAN_PERIOD = 10.0  # clips that the sway takes whose middle is the pan: longer is straighter and needs more ground
BEND = 0.0082  # part of the way panned by which the sway is off the straight line at the clip's ends: (π/10)² / 12
SLOW = 0.02  # radians of the slow sway that a sprite's straight motion uses to either side: straight to 1e-4
PANEL_EDGE = 0.8  # half the side of a ``box`` of radius 1
GOLDEN = 0.381966  # of a turn: the sign of an overlay never comes back to an earlier angle
MARGIN = 0.03  # between an overlay and the picture's edges
REST = Motion("rest", tempo_hz=0.0, phase=0.0, amplitude=0.0)


@dataclass(frozen=True)
class _Course:
    """A sprite's course on the screen: place in the middle of the clip and velocity (x, y), what it does besides, and
    the box (x0, y0, x1, y1) that it sweeps."""

    middle: np.ndarray
    velocity: np.ndarray
    programme: Motion
    swept: np.ndarray


@dataclass(frozen=True)
class Travel(Recipe):
    """Parameters of the recipe; lengths are fractions of the frame's side, speeds sides a second."""

    fps: float = 30.0
    duration_s: float = 2.0  # 60 frames: five groups of twelve
    grain: float = 0.0  # noise would make motion vectors of nothing
    shapes: int = 4  # classes
    directions: int = 4  # 4, or 8 with the diagonals
    radius: float = 0.125  # of the sprite; 0.04 is tiny
    speed: float = 0.3  # of a straight course, drawn down to 0.8 of it; 0.3 is a pixel a frame at size=100
    fast: bool = False  # True: crosses the picture in one group's time and is out of it before and after; no ``speed``
    share_oscillating: float = 0.0  # share of clips whose sprite swings from side to side instead
    swing: float = 0.05  # amplitude of that
    period: float = 12.0  # of that, frames
    share_panning: float = 0.0  # share of clips with a panning camera
    pan: float = 0.5  # its speed; keep it off ``speed``: what moves against an equal pan stands still on the ground
    share_overlay: float = 0.0  # share of clips with an overlay in a corner
    overlay: float = 0.2  # its width
    identities: int = 16  # backgrounds
    ambience_level: float = 0.015

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("share_oscillating", "share_panning", "share_overlay"):
            check_share(name, getattr(self, name))
        for name in ("radius", "speed", "swing", "period", "pan"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        if not 1 <= self.shapes <= len(SHAPES):
            raise ValueError(f"shapes must lie in [1, {len(SHAPES)}], got {self.shapes}")
        if self.directions not in (4, 8):
            raise ValueError(f"directions must be 4 or 8, got {self.directions}")
        if not 0 < self.overlay <= 0.4:
            raise ValueError(f"overlay is a width and must lie in (0, 0.4] of the side, got {self.overlay}")
        if not 1 <= self.identities <= len(_known_places()):
            raise ValueError(f"identities must lie in [1, {len(_known_places())}], got {self.identities}")
        self._check_room()

    def _check_room(self) -> None:
        """Raise unless courses fit into the picture."""
        room = max(1 - 2 * self._reach(), 0.0)
        if room == 0 or (not self.fast and room < self.speed * self.duration_s):
            raise ValueError(
                f"a sprite of radius {self.radius} at speed {self.speed} leaves the picture within "
                f"{self.duration_s} s; take a speed of at most {room / self.duration_s:.3f}, a smaller radius, or "
                "fast=True"
            )
        if self.share_oscillating > 0 and room < 2 * self.swing:
            raise ValueError(f"no room for a swing of {self.swing}; take at most {room / 2:.3f}")

    def _reach(self) -> float:
        """How far a sprite extends from the straight line that its centre follows."""
        widest = self.radius * max(REACH[shape] for shape in SHAPES[: self.shapes])
        return widest + (BEND * self.pan * self.duration_s if self.share_panning > 0 else 0.0)

    # --- the label space -----------------------------------------------------------------------------------------

    @property
    def motions(self) -> tuple[str, ...]:
        """Names of the motion classes."""
        straight = tuple(DIRECTIONS)[: self.directions] if self.share_oscillating < 1 else ()
        return (*straight, OSCILLATING) if self.share_oscillating > 0 else straight

    def kinds(self) -> tuple[LabelKind, ...]:
        shapes = SHAPES[: self.shapes]
        events = tuple(f"{shape} {motion}" for shape in shapes for motion in self.motions)
        majority = max((1 - self.share_oscillating) / self.directions, self.share_oscillating)
        identities = _known_places()[: self.identities]
        made = [
            _unheard("motion", self.motions, majority),
            _unheard("shape", shapes, 1 / len(shapes)),
            _unheard("event", events, majority / len(shapes)),
            _unheard("identity", identities, 1 / len(identities)),
        ]
        for kind, classes, share in (
            ("camera", ("still", "pan"), self.share_panning),
            ("overlay", ("no", "yes"), self.share_overlay),
        ):
            if 0 < share < 1:
                made.append(_unheard(kind, classes, max(share, 1 - share)))
        return tuple(made)

    # --- drawing a clip ------------------------------------------------------------------------------------------

    def clip(self, seed: int, number: int) -> Clip:
        place, ambient = self.stream(seed, number, "place"), self.stream(seed, number, "ambience")
        name = _known_places()[place.integers(self.identities)]
        ground = places.background(name, place)
        panning, pan = self._pan(self.stream(seed, number, "camera"))
        what = self.stream(seed, number, "event")
        shape = SHAPES[what.integers(self.shapes)]
        straight = tuple(DIRECTIONS)[what.integers(self.directions)]
        motion = OSCILLATING if what.random() < self.share_oscillating else straight
        sight = self.stream(seed, number, "sight")
        course = self._course(motion, sight)
        sprite = self._sprite(
            shape, ground.colours[1], course, self._carried(course.programme, course.velocity, pan), sight
        )
        overlay = self._overlay(course.swept, pan, self.stream(seed, number, "overlay"))
        scene = Scene(
            size=self.size,
            fps=self.fps,
            duration_s=self.duration_s,
            sample_rate=self.sample_rate,
            background=ground,
            camera=self._camera(pan),
            ambience=places.ambience(int(ambient.integers(4)), self.ambience_level, ambient),
            actors=(sprite, *overlay),
            grain=self.grain,
            hiss=self.hiss,
            seed=int(ambient.integers(2**31)),
        )
        labels = {"identity": name, "shape": shape, "motion": motion, "event": f"{shape} {motion}"}
        timed = tuple(TimedLabel(0.0, self.duration_s, kind, labels[kind]) for kind in ("event", "shape", "motion"))
        labels |= {"camera": "pan" if any(pan) else "still", "pan": panning, "overlay": "yes" if overlay else "no"}
        return Clip(number, scene, scene, "own", labels, timed, said(shape, motion, panning))

    def _pan(self, rng: np.random.Generator) -> tuple[str, tuple[float, float]]:
        """Direction of the camera's pan, along an axis of the picture, and its velocity in sides a second."""
        direction = tuple(DIRECTIONS)[rng.integers(4)]
        if rng.random() >= self.share_panning:
            return "none", (0.0, 0.0)
        dx, dy = DIRECTIONS[direction]
        return direction, (dx * self.pan, dy * self.pan)

    def _camera(self, velocity: tuple[float, float]) -> Camera:
        """A sway so slow that the clip sees its zero crossing only: straight to within ``BEND`` of the way."""
        period_s = PAN_PERIOD * self.duration_s
        sway = float(np.hypot(*velocity)) * period_s / (2 * np.pi)
        return Camera(sway, period_s, phase=-0.5 / PAN_PERIOD, tilt=float(np.arctan2(velocity[1], velocity[0])))

    def _sprite(self, shape: str, ground: Colour, course: _Course, motion: Motion, rng: np.random.Generator) -> Actor:
        return Actor(
            shape,
            jitter(contrasting(ground, rng), rng, hue=0.02, value=0.08),
            skin=SKINS[1 + rng.integers(len(SKINS) - 1)],  # a pattern, for the encoder to follow
            x=float(course.middle[0]),
            y=float(course.middle[1]),
            radius=self.radius,
            angle=rng.uniform(-0.35, 0.35),
            start_s=0.0,
            end_s=self.duration_s,
            motion=motion,
        )

    def _course(self, motion: str, rng: np.random.Generator) -> _Course:
        """Where the sprite goes on the screen: anywhere that keeps its whole course inside, unless it is fast."""
        part, where, phase, group = rng.uniform(0.8, 1), rng.random(2), rng.uniform(0, 2), rng.random()
        if motion == OSCILLATING:  # a sway comes back after two beats
            programme = Motion("sway", 2 * self.fps / self.period, phase, part * self.swing)
            return self._within(where, np.array([programme.amplitude, 0.0]), np.zeros(2), programme)
        heading = np.array(DIRECTIONS[motion], float)
        if not self.fast:
            velocity = part * self.speed * heading / np.hypot(*heading)
            return self._within(where, np.abs(velocity) * self.duration_s / 2, velocity, REST)
        velocity = heading * (1 + 2 * self._reach()) * self.fps / self.gop  # in and out again within one group
        groups = max(1, int(self.duration_s * self.fps / self.gop))
        crosses_s = (int(group * groups) + 0.5) * self.gop / self.fps
        across = self._within(where, np.where(heading != 0, 0.5 - self._reach(), 0.0), velocity, REST)
        return replace(across, middle=across.middle + velocity * (self.duration_s / 2 - crosses_s))

    def _within(self, where: np.ndarray, extent: np.ndarray, velocity: np.ndarray, programme: Motion) -> _Course:
        """A course that goes ``extent`` to either side of a middle that is drawn by ``where``, in [0, 1] an axis."""
        reach = self._reach() + extent
        middle = reach + (1 - 2 * reach) * where
        return _Course(middle, velocity, programme, np.concatenate([middle - reach, middle + reach]))

    def _carried(self, programme: Motion, velocity: np.ndarray, pan: tuple[float, float]) -> Motion:
        """The motion in the world that looks like ``programme`` and ``velocity`` on the screen of the panning camera.

        An actor has one drift; a second straight motion is the zero crossing of a slow sway, for which the programme
        must be free. The places of all actors are those in the middle of the clip.
        """
        vx, vy = (float(v) for v in velocity + np.array(pan))
        if vy == 0 or vx == 0:
            drift: Drift = "horizontal" if vy == 0 else "vertical"
            along = vx if vy == 0 else -vy  # a vertical drift of sign 1 goes up
            if along == 0:
                return programme
            return replace(programme, drift=drift, sign=int(np.sign(along)), reach=abs(along) * self.duration_s)
        assert programme.programme == "rest", "a programme and a pan along two axes do not go together"
        tempo = 2 * SLOW / (np.pi * self.duration_s)
        amplitude = abs(vx) * self.duration_s / 2 / SLOW
        phase = (1.5 if vx > 0 else 0.5) - SLOW / np.pi  # rising or falling zero crossing in the middle of the clip
        return Motion("sway", tempo, phase, amplitude, 1, "vertical", int(-np.sign(vy)), abs(vy) * self.duration_s)

    def _overlay(self, swept: np.ndarray, pan: tuple[float, float], rng: np.random.Generator) -> tuple[Actor, ...]:
        """A panel in a corner that the sprite keeps free, with a sign that turns by the golden angle every frame."""
        if rng.random() >= self.share_overlay:
            return ()
        half = 0.5 * self.overlay
        near, far = MARGIN + half, 1 - MARGIN - half
        corners = [(near, near), (far, near), (near, far), (far, far)]
        free = [(x, y) for x, y in corners if not _meet(swept, np.array([x - half, y - half, x + half, y + half]))]
        chosen = free or corners
        x, y = chosen[rng.integers(len(chosen))]
        still, spin = REST, Motion("spin", 2 * GOLDEN * self.fps, float(rng.random()), 0.0)
        still, spin = (self._carried(motion, np.zeros(2), pan) for motion in (still, spin))
        until = self.duration_s
        panel = Actor("box", (0.12, 0.13, 0.16), "plain", x, y, half / PANEL_EDGE, 0.0, 0.0, until, still)
        sign = Actor("heart", (0.98, 0.95, 0.85), "striped", x, y, 0.75 * half, 0.0, 0.0, until, spin)
        return panel, sign


def said(shape: str, motion: str, panning: str) -> str:
    """The caption: what is seen on the screen, and what the camera does."""
    does = "swings to and fro" if motion == OSCILLATING else f"moves {motion}"
    return f"A {shape} {does}." if panning == "none" else f"A {shape} {does}; the camera pans {panning}."


def _known_places() -> tuple[str, ...]:
    """All backgrounds that a pan can use; the still camera has the same, so that they do not tell it."""
    names = places.place_names(places.MAX_PLACES)
    return tuple(name for name in names if name.split()[1] in FOLLOWED)


def _unheard(kind: str, classes: tuple[str, ...], chance: float) -> LabelKind:
    """A kind that is seen and of which sound tells nothing."""
    return LabelKind(kind, False, classes, chance, 1.0, chance)


def _meet(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two boxes (x0, y0, x1, y1) overlap."""
    return bool((a[:2] < b[2:]).all() and (b[:2] < a[2:]).all())
