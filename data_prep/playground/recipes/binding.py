"""``binding``: two shapes, one of which shakes; only motion tells which one, and only looks tell what it is.

For codecs' streams (Yu et al., "Self-Supervised Learning of Compressed Video Representations", ICLR 2021): the shaking
repeats itself after ``period`` frames, which divide a group of pictures, so that all I pictures of a clip are the same
picture and motion lives in the P pictures alone. Then

* ``moving_shape`` needs both: the I pictures show two shapes but not which one moves, the P pictures show where
  something moves but not what. Whoever pools each stream over the picture before the streams meet has thrown away
  the place, which is all that ties them together;
* ``moving_place`` is the control that motion answers alone, ``present`` the one that the I pictures answer alone.

**I pictures hold no hint**, by symmetry: both shapes draw a motion of their own, and the one that a fair coin picks is
stopped in its pose of frame 0. Neither body nor shadow reaches the other's cell, so what covers what is no hint either.
:meth:`Binding.twin` is the same clip with the coin turned over.

**P pictures hold no hint of the shape**, by two measures. Each shape is printed on a *card*; all cards have one
outline, which moves as one with what is printed on it. Of a bare shape (``cards=False``) the vectors trace the contour.
And at ``period=2`` all moves are even numbers of pixels, whole ones in luma and in the subsampled chroma, so that the
decoder predicts a moved card without remainder. After other moves the *residual* draws the shape again. What forests
and logistic regressions name from blocks around both things, in 500 clips for training and 250 for testing:

===========================  =======  ==============  ==============  ============================
``moving_shape`` from        vectors  coded residual  pixel residual  which of the two, from I
===========================  =======  ==============  ==============  ============================
chance                       0.25     0.25            0.25            0.5
as it is                     0.31     0.31            0.30            0.49
``cards=False``              0.37     0.58            0.61            0.52
``period=12``                0.28     0.48            0.59            0.50
===========================  =======  ==============  ==============  ============================

(``benchmarks/binding_streams.py``: the better of two classifiers, which leans a little to the high side; standard
errors are 0.03; the last row has a radius of 0.1 and an amplitude of 0.05.) Residuals are not quite blind: 0.3 grey
levels are left inside a moved card, none on the one that lies still, and the shape may be named somewhat better than
by chance. A network that is given residuals has this to beat.

``leak`` is the share of clips in which the shape that moves also creeps along: their I pictures differ and answer
everything. The sound is a faint ambience that is independent of everything seen.

Actors are ``card, shape, card, shape`` (``shape, shape`` without cards); each pair moves, or rests, as one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

from ..draw import SHAPES, SKINS
from ..motion import track
from ..palettes import contrasting, jitter
from ..scene import Actor, Camera, Clip, Colour, Motion, Scene, TimedLabel
from . import places
from .base import LabelKind, Recipe, check_share

PRINTED: tuple[str, ...] = tuple(shape for shape in SHAPES if shape != "box")  # which is the card
PLACES: dict[int, tuple[str, ...]] = {
    2: ("left", "right"),
    4: ("top left", "top right", "bottom left", "bottom right"),
}
CARD = 1.3  # half the side of a card, in radii of the shape on it: even a heart's tip stays inside
BODY = 0.8  # half the side of a ``box`` of radius 1
SHADOW = (2.16, 2.57)  # how far a card's shadow reaches to the right of its centre and below it, in the same radii
ORBIT_HEIGHT = 0.6  # of the ellipse that the programme ``orbit`` follows, as a part of its width
CREEP = 0.08  # sides that a leaking clip's mover creeps in all
STILL = Camera(0.0, 1.0, 0.0, 0.0)


@dataclass(frozen=True)
class Binding(Recipe):
    """Parameters of the recipe; lengths are fractions of the frame's side."""

    fps: float = 30.0
    duration_s: float = 2.0  # 60 frames: five groups of twelve
    grain: float = 0.0  # noise would tell the I pictures apart and move where nothing moves
    shapes: int = 4  # classes
    places: int = 2  # cells: 2 (left, right) or 4 (corners); the two shapes lie in two of them
    radius: float = 0.12  # of the largest shape
    size_jitter: float = 0.2  # octaves, downwards
    period: int = 2  # of the motion, frames: 2 shakes by even numbers of pixels, others circle and leave residuals
    amplitude: float = 0.02  # of the motion, largest; drawn down to 0.7 of it; whole pixels (at least 1) at period=2
    scatter: float = 0.01  # how far a card's resting place may lie from its cell's middle
    cards: bool = True  # False: bare shapes, whose contour shows in vectors and residuals
    leak: float = 0.0  # share of clips whose I pictures show what moves
    identities: int = 16  # backgrounds
    ambience_level: float = 0.015

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("leak", self.leak)
        if self.places not in PLACES:
            raise ValueError(f"places must be one of {', '.join(map(str, PLACES))}, got {self.places}")
        if not 2 <= self.shapes <= len(PRINTED):
            raise ValueError(f"shapes must lie in [2, {len(PRINTED)}] (two are seen at once), got {self.shapes}")
        if self.period < 2 or self.gop % self.period:
            raise ValueError(
                f"a motion of period={self.period} frames does not return with every I picture; take a divisor of "
                f"gop={self.gop}, at least 2"
            )
        if not 0 < self.radius <= self._largest_radius():
            raise ValueError(
                f"shapes of radius {self.radius} that move by {self.amplitude} do not fit into {self.places} cells; "
                f"take a radius in (0, {max(self._largest_radius(), 0):.3f}], or a smaller amplitude or scatter"
            )
        places.place_names(self.identities)

    # --- room ----------------------------------------------------------------------------------------------------

    def _away(self) -> float:
        """How far a card gets from its resting place, at most; whole pixels may round up."""
        return self.amplitude + 0.5 / self.size

    def _largest_radius(self) -> float:
        """Radius at which cards stay in their cells and no shadow falls on another card."""
        free = 0.5 - 2 * (self._away() + self.scatter)  # between two neighbours' centres, at the least
        across = min(free / (CARD + SHADOW[0]), 0.5 * free / CARD)
        height = free - CREEP if self.places == 4 else 1 - 2 * self._away() - CREEP
        return min(across, height / (CARD + SHADOW[1]) if self.places == 4 else 0.5 * height / CARD)

    def _middle(self, cell: int, rng: np.random.Generator) -> tuple[float, float]:
        """A resting place: near the middle of its cell, and at any height where cells are as high as the picture."""
        row, column = divmod(cell, 2)
        slack = 0.5 - CARD * self.radius - self._away() - CREEP / 2
        x = 0.25 + 0.5 * column + self.scatter * rng.uniform(-1, 1)
        height = rng.uniform(-1, 1)
        return x, 0.5 + slack * height if self.places == 2 else 0.25 + 0.5 * row + self.scatter * height

    # --- the label space -----------------------------------------------------------------------------------------

    @property
    def shape_names(self) -> tuple[str, ...]:
        return PRINTED[: self.shapes]

    @property
    def pairs(self) -> tuple[str, ...]:
        """Names of the unordered pairs of shapes."""
        return tuple(f"{a}+{b}" for a, b in combinations(self.shape_names, 2))

    def kinds(self) -> tuple[LabelKind, ...]:
        asked = {"moving_shape": self.shape_names, "moving_place": PLACES[self.places], "present": self.pairs}
        asked["identity"] = places.place_names(self.identities)
        return tuple(
            LabelKind(kind, False, names, 1 / len(names), 1.0, 1 / len(names)) for kind, names in asked.items()
        )

    def ceilings(self) -> pd.DataFrame:
        """How well each kind can be answered from one of a codec's streams, and from both: accuracies.

        Returns:
            One row a kind. ``pictures``: the I pictures alone, which leave two candidates wherever the mover is asked
            for; ``vectors``: the motion vectors alone, unknown (NaN) where a bare shape's contour shows in them;
            ``both``. Residuals tell a little more than vectors, and at other periods than 2 a lot
            (see the module).
        """
        coin = self.leak + (1 - self.leak) / 2
        shown = 1 / self.shapes if self.cards else float("nan")
        rows = {
            "moving_shape": (coin, shown, 1.0),
            "moving_place": (coin, 1.0, 1.0),
            "present": (1.0, 1 / len(self.pairs) if self.cards else float("nan"), 1.0),
            "identity": (1.0, 1 / self.identities, 1.0),
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=["pictures", "vectors", "both"])

    # --- drawing a clip ------------------------------------------------------------------------------------------

    def clip(self, seed: int, number: int) -> Clip:
        return self._clip(seed, number, mover=self._coin(seed, number))

    def twin(self, seed: int, number: int) -> Clip:
        """The clip ``number`` with its other shape moving: another ``moving_shape`` and ``moving_place``, but the same
        I pictures (where they do not leak)."""
        return self._clip(seed, number, mover=1 - self._coin(seed, number))

    def _coin(self, seed: int, number: int) -> int:
        return int(self.stream(seed, number, "coin").integers(2))

    def _clip(self, seed: int, number: int, *, mover: int) -> Clip:
        name, scene = self._table(seed, number)
        what = self.stream(seed, number, "what")
        shapes = [self.shape_names[i] for i in what.permutation(self.shapes)[:2]]
        cells = what.permutation(self.places)[:2].tolist()
        creeps = int(what.choice([-1, 1])) if what.random() < self.leak else 0
        actors: list[Actor] = []
        for i in range(2):
            rng = self.stream(seed, number, f"thing {i}")
            thing = self._thing(shapes[i], cells[i], scene.background.colours[1], rng)
            actors += [creeping(a, creeps) if i == mover else frozen(a, scene) for a in thing]
        scene = replace(scene, actors=tuple(actors))
        labels = {
            "identity": name,
            "moving_shape": shapes[mover],
            "moving_place": PLACES[self.places][cells[mover]],
            "present": "+".join(sorted(shapes, key=PRINTED.index)),
        }
        timed = tuple(TimedLabel(0.0, self.duration_s, kind, labels[kind]) for kind in ("moving_shape", "moving_place"))
        said = f"A {shapes[mover]} shakes; a {shapes[1 - mover]} lies still."
        return Clip(number, scene, scene, "own", labels, timed, said)

    def _table(self, seed: int, number: int) -> tuple[str, Scene]:
        """The background's name, and the scene before anything lies on it."""
        place, ambient = self.stream(seed, number, "place"), self.stream(seed, number, "ambience")
        name = places.place_names(self.identities)[place.integers(self.identities)]
        scene = Scene(
            size=self.size,
            fps=self.fps,
            duration_s=self.duration_s,
            sample_rate=self.sample_rate,
            background=places.background(name, place),
            camera=STILL,
            ambience=places.ambience(int(ambient.integers(4)), self.ambience_level, ambient),
            actors=(),
            grain=self.grain,
            hiss=self.hiss,
            seed=int(ambient.integers(2**31)),
        )
        return name, scene

    def _thing(self, shape: str, cell: int, ground: Colour, rng: np.random.Generator) -> tuple[Actor, ...]:
        """A moving shape, on its card if there are cards."""
        x, y = self._middle(cell, rng)
        motion = self._motion(rng)
        card_colour, card_skin = _paint(ground, rng)
        colour, skin = _paint(card_colour if self.cards else ground, rng)
        radius = self.radius * 2 ** -(self.size_jitter * rng.random())
        angle, until = rng.uniform(-0.35, 0.35), self.duration_s
        side = self.radius * CARD / BODY
        card = Actor("box", card_colour, card_skin, x, y, side, 0.0, 0.0, until, motion)
        printed = Actor(shape, colour, skin, x, y, radius, angle, 0.0, until, motion)
        return (card, printed) if self.cards else (printed,)

    def _motion(self, rng: np.random.Generator) -> Motion:
        """An orbit: it does not turn the body, as a sway does, so that every frame is a shifted copy of the last."""
        tempo_hz = 2 * self.fps / self.period  # an orbit takes two beats
        amplitude, phase, turn = self.amplitude * rng.uniform(0.7, 1), rng.uniform(0, 2), int(rng.choice([-1, 1]))
        if self.period > 2:
            return Motion("orbit", tempo_hz, phase, amplitude, turn)
        # Two opposite points of an ellipse, at whole pixels (m, n) and (-m, -n) from its centre: even steps.
        m, n = (round(amplitude * self.size * f(np.pi * phase)) for f in (np.cos, np.sin))
        if m == n == 0:
            m = turn
        width = float(np.hypot(m, n / ORBIT_HEIGHT))
        return Motion("orbit", tempo_hz, float(np.arctan2(n / ORBIT_HEIGHT, m) / np.pi), width / self.size)


def creeping(actor: Actor, sign: int) -> Actor:
    """The same actor, creeping up (``sign`` 1), down (-1) or not at all (0) besides its motion."""
    if sign == 0:
        return actor
    return replace(actor, motion=replace(actor.motion, drift="vertical", sign=sign, reach=CREEP))


def frozen(actor: Actor, scene: Scene) -> Actor:
    """The same actor at rest for all its life, in the pose that it has in frame 0 of ``scene``."""
    pose = track(actor, scene, np.zeros(1))
    x, y, angle = float(pose.x[0]) / scene.size, float(pose.y[0]) / scene.size, float(pose.angle[0])
    return replace(actor, x=x, y=y, angle=angle, motion=Motion("rest", tempo_hz=0.0, phase=0.0, amplitude=0.0))


def _paint(under: Colour, rng: np.random.Generator) -> tuple[Colour, str]:
    """A colour that stands out from the one ``under`` it, and a skin with a pattern, for an encoder to follow."""
    colour = jitter(contrasting(under, rng), rng, hue=0.02, value=0.08)
    return colour, SKINS[1 + rng.integers(len(SKINS) - 1)]
