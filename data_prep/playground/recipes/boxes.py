"""``boxes``: a quiet table with a few labelled objects, one of which sounds; every frame has exact boxes.

For attribution: objects are small and keep off the centre (a pointing method must beat "look at the middle"), their
colours say nothing about their class, and the one that sounds throbs with its sound, so that both "where is the
star?" and "what do I hear?" have a known answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..captions import caption
from ..draw import SHAPES, SKINS
from ..palettes import contrasting, jitter
from ..scene import Actor, Clip, Motion, Scene, TimedLabel, Voice
from . import places
from .actions import TIMBRE_OF
from .base import LabelKind, Recipe

CELLS = tuple(
    (x, y) for y in (0.2, 0.5, 0.8) for x in (0.2, 0.5, 0.8) if (x, y) != (0.5, 0.5)
)  # 3 × 3 without the centre


@dataclass(frozen=True)
class Boxes(Recipe):
    """Parameters of the recipe."""

    shapes: int = 6  # classes
    min_objects: int = 2
    max_objects: int = 4
    radius: float = 0.115  # fraction of the side; jittered by a fifth of an octave
    speed: float = 0.0  # amplitude of a slow sway of every object, fraction of the side; 0 = still
    visible_beat: bool = True  # the sounding object throbs with its sound; False leaves only its timbre to tell
    identities: int = 16
    ambience_level: float = 0.015
    camera_sway: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.min_objects <= self.max_objects <= min(self.shapes, len(CELLS)):
            raise ValueError(
                f"need 1 <= min_objects <= max_objects <= shapes (each object of a clip is of another class), "
                f"got {self.min_objects}, {self.max_objects}, {self.shapes}"
            )
        if self.shapes > len(SHAPES):
            raise ValueError(f"there are {len(SHAPES)} shapes, got shapes={self.shapes}")

    def kinds(self) -> tuple[LabelKind, ...]:
        names = SHAPES[: self.shapes]
        counts = np.arange(self.min_objects, self.max_objects + 1)
        guess = 1.0 if self.visible_beat else float((1 / counts).mean())
        present = float(counts.mean()) / self.shapes
        majority = max(present, 1 - present)
        # the sounding object is present for sure; of the others nothing is heard
        rest = float(((counts - 1) / (self.shapes - 1)).mean()) if self.shapes > 1 else 0.0
        heard = (1 + (self.shapes - 1) * max(rest, 1 - rest)) / self.shapes
        made = [LabelKind("sounding", False, names, 1 / self.shapes, guess, 1.0)]
        made += [LabelKind(f"has_{name}", False, ("no", "yes"), majority, 1.0, heard) for name in names]
        return tuple(made)

    def clip(self, seed: int, number: int) -> Clip:
        place = self.stream(seed, number, "place")
        name = places.place_names(self.identities)[place.integers(self.identities)]
        ground = places.background(name, place)
        actors = self._objects(seed, number, ground.colours[1])
        ambient = self.stream(seed, number, "ambience")
        scene = Scene(
            size=self.size,
            fps=self.fps,
            duration_s=self.duration_s,
            sample_rate=self.sample_rate,
            background=ground,
            camera=places.camera(self.camera_sway, place),
            ambience=places.ambience(int(ambient.integers(4)), self.ambience_level, ambient),
            actors=actors,
            grain=self.grain,
            hiss=self.hiss,
            seed=int(ambient.integers(2**31)),
        )
        sounding = next(actor.shape for actor in actors if actor.voice is not None)
        present = {actor.shape for actor in actors}
        labels = {"identity": name, "sounding": sounding}
        labels |= {f"has_{shape}": "yes" if shape in present else "no" for shape in SHAPES[: self.shapes]}
        timed = (TimedLabel(0.0, self.duration_s, "sounding", sounding),)
        return Clip(number, scene, scene, "own", labels, timed, caption(scene))

    def _objects(self, seed: int, number: int, ground: tuple[float, float, float]) -> tuple[Actor, ...]:
        what = self.stream(seed, number, "objects")
        count = int(what.integers(self.min_objects, self.max_objects + 1))
        shapes = what.permutation(self.shapes)[:count]
        cells = what.permutation(len(CELLS))[:count]
        sight, sound = self.stream(seed, number, "sight"), self.stream(seed, number, "sound")
        return tuple(
            self._object(SHAPES[shape], CELLS[cell], i == 0, ground, sight, sound)
            for i, (shape, cell) in enumerate(zip(shapes, cells, strict=True))  # the first drawn is the one that sounds
        )

    def _object(
        self,
        shape: str,
        cell: tuple[float, float],
        sounding: bool,
        ground: tuple[float, float, float],
        sight: np.random.Generator,
        sound: np.random.Generator,
    ) -> Actor:
        throbs = sounding and self.visible_beat
        tempo, phase = sight.uniform(1.6, 2.4), float(sight.random())
        slow = Motion("sway" if self.speed > 0 else "rest", 0.5 * tempo / 2, phase, self.speed)
        voice = Voice(TIMBRE_OF[shape], 330 * 2 ** sound.uniform(-0.4, 0.4), 0.9, 0.0, seed=int(sound.integers(2**31)))
        return Actor(
            shape,
            jitter(contrasting(ground, sight), sight, hue=0.02, value=0.08),
            skin=SKINS[sight.integers(len(SKINS))],
            x=cell[0] + sight.uniform(-0.03, 0.03),
            y=cell[1] + sight.uniform(-0.03, 0.03),
            radius=self.radius * 2 ** sight.uniform(-0.2, 0.2),
            angle=sight.uniform(-0.35, 0.35),
            start_s=0.0,
            end_s=self.duration_s,
            motion=Motion("throb", tempo, phase, self.speed) if throbs else slow,
            voice=voice if sounding else None,
        )
