"""``labels``: a class that sight and sound share weakly, and nuisances, private to each, that are easier to cluster.

For labelling without people (Asano, Patrick et al., "Labelling unlabelled videos from scratch with multi-modal
self-supervision", NeurIPS 2020). Each clip has a **class**: a shape that moves in one way and has one timbre. What
makes it hard to find is all the rest:

* **private nuisances**: one of ``places`` backgrounds fills the picture, one of ``ambiences`` fills the sound, drawn
  apart. Each is a perfectly good clustering of its own stream, with more variance than the class, and tells nothing
  of the other stream. ``sight_nuisance=False`` puts every clip in one place, ``sound_nuisance=False`` silences the
  ambience: then whoever clusters one stream alone, or both side by side, finds the class, too.
* **confusable pairs**: classes come in pairs that share a motion. The first ``sight_pairs`` of them share the shape as
  well and differ in timbre alone, the next ``sound_pairs`` share the timbre and differ in shape. So neither stream
  names all classes, and both together do.
* **frequencies**: class ``k`` has a share in proportion to ``(k + 1)^-exponent``; 0 makes them equal, 1 is Zipf's law.
* ``deal`` shuffles which shapes, motions and timbres make up the classes: another set of labels over the same parts,
  for networks that were trained on other labels and for transfer to other classes.
* ``av_match`` is the share of clips that are heard with the voice of their own class. Of the others sight says nothing
  about the sound; at 0 there is nothing that the streams share.

Position, size, colour, skin, tempo, pitch and loudness are drawn for each clip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from ..captions import caption
from ..draw import SHAPES, SKINS
from ..palettes import ACTOR_COLOURS, contrasting, jitter
from ..scene import Actor, Ambience, Clip, Colour, Motion, Scene, TimedLabel, Voice
from ..voices import TIMBRES
from . import places
from .actions import MOTIONS
from .base import LabelKind, Recipe, check_share

PLAIN = 4  # number of the place of all clips where places are no nuisance: mist, a light grey


@dataclass(frozen=True)
class Labels(Recipe):
    """Parameters of the recipe; the module says what they mean together."""

    size: int = 48
    fps: float = 10.0
    duration_s: float = 1.2
    classes: int = 8
    sight_pairs: int = 2  # pairs of classes that look alike
    sound_pairs: int = 2  # pairs of classes that sound alike
    exponent: float = 0.0  # of the classes' frequencies
    deal: int = 0  # which parts make up the classes
    places: int = 8
    ambiences: int = 8
    sight_nuisance: bool = True
    sound_nuisance: bool = True
    ambience_level: float = 0.05  # RMS; a voice has about 0.1
    av_match: float = 1.0
    tint: float = 1.0  # share of clips whose thing has its shape's colour; of the others it is drawn at random
    radius: float = 0.3  # fraction of the side
    tempo_hz: float = 2.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("av_match", self.av_match)
        check_share("tint", self.tint)
        if self.classes < 2 or self.classes % 2 or self.classes > self.most_classes:
            raise ValueError(f"classes must be even and lie in [2, {self.most_classes}], got {self.classes}")
        if min(self.sight_pairs, self.sound_pairs) < 0 or 2 * (self.sight_pairs + self.sound_pairs) > self.classes:
            raise ValueError(
                f"{self.classes} classes make {self.classes // 2} pairs, got sight_pairs={self.sight_pairs} and "
                f"sound_pairs={self.sound_pairs}; lower one of them"
            )
        if not 0 <= self.exponent < float("inf"):
            raise ValueError(f"exponent must be finite and not negative, got {self.exponent}; Zipf's law has 1")
        places.place_names(self.places)
        if self.ambiences < 1:
            raise ValueError(f"there must be at least 1 ambience, got {self.ambiences}")

    # --- the label space -----------------------------------------------------------------------------------------

    @property
    def most_classes(self) -> int:
        """Shapes (and timbres) are not used twice."""
        return len(SHAPES)

    @cached_property
    def parts(self) -> tuple[tuple[str, str, str], ...]:
        """Shape, motion and timbre of every class."""
        rng = np.random.default_rng(self.deal)
        named = [list(SHAPES), list(MOTIONS), list(TIMBRES)]
        shapes, motions, timbres = (rng.permutation(names).tolist() if self.deal else names for names in named)
        made = []
        for number in range(self.classes):
            pair = number // 2
            alike = 2 * pair  # the member whose part both share
            shape = shapes[alike if pair < self.sight_pairs else number]
            quiet = self.sight_pairs <= pair < self.sight_pairs + self.sound_pairs
            made.append((shape, motions[pair % len(motions)], timbres[alike if quiet else number]))
        return tuple(made)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(" ".join(parts) for parts in self.parts)

    @property
    def shares(self) -> np.ndarray:
        """How frequent each class is, ``(classes,)``, sum 1."""
        weights = np.arange(1, self.classes + 1) ** -float(self.exponent)
        return weights / weights.sum()

    def kinds(self) -> tuple[LabelKind, ...]:
        looks, voices = (self._labels_of(parts) for parts in ("look", "voice"))
        asked = {"class": self.names, "look": tuple(looks), "voice": tuple(voices)}
        made = []
        for kind, classes in asked.items():
            of_class = np.array([classes.index(label) for label in self._each(kind)])
            share = np.bincount(of_class, self.shares)
            sight, sound = self._told(of_class, "look"), self._told(of_class, "voice")
            made.append(LabelKind(kind, False, classes, float(share.max()), sight, sound))
        made.append(self._private("place", self.place_names, seen=True))
        made.append(self._private("ambience", self.ambience_names, seen=False))
        return tuple(made)

    def ceilings(self) -> pd.DataFrame:
        """How well each kind can be told from sight, from sound and from both: accuracies of the best answers.

        ``both`` is that of a reader who knows that the sound belongs: below ``av_match=1`` it is not always so.
        """
        rows = {kind.kind: (kind.sight, kind.sound, 1.0) for kind in self.kinds()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["sight", "sound", "both"])

    @property
    def place_names(self) -> tuple[str, ...]:
        """Backgrounds in use."""
        return places.place_names(self.places) if self.sight_nuisance else (places.place_names(PLAIN + 1)[PLAIN],)

    @property
    def ambience_names(self) -> tuple[str, ...]:
        """Ambiences in use."""
        return tuple(map(places.ambience_name, range(self.ambiences))) if self.sound_nuisance else ("silence",)

    def _each(self, kind: str) -> list[str]:
        """Label of ``kind`` of every class: its name, what is seen of it, or what is heard of it."""
        if kind == "class":
            return list(self.names)
        return [f"{shape} {motion}" if kind == "look" else f"{timbre} {motion}" for shape, motion, timbre in self.parts]

    def _labels_of(self, kind: str) -> list[str]:
        return list(dict.fromkeys(self._each(kind)))

    def _told(self, asked: np.ndarray, stream: str) -> float:
        """Accuracy of the best answer from one stream: the sum over what it may show of the likeliest label's mass."""
        shown = self._each(stream)
        own = self.av_match if stream == "voice" else 1.0
        total = 0.0
        for token in self._labels_of(stream):
            says = np.array([each == token for each in shown], float)
            mass = self.shares * (own * says + (1 - own) * float(self.shares @ says))
            total += float(np.bincount(asked, mass).max())
        return total

    def _private(self, kind: str, names: tuple[str, ...], *, seen: bool) -> LabelKind:
        chance = 1 / len(names)
        return LabelKind(kind, False, names, chance, 1.0 if seen else chance, chance if seen else 1.0)

    # --- drawing a clip ------------------------------------------------------------------------------------------

    def clip(self, seed: int, number: int) -> Clip:
        what = self.stream(seed, number, "class")
        known = int(what.choice(self.classes, p=self.shares))
        seen, place, ambience = self._scene(seed, number, known)
        match = self.stream(seed, number, "match")
        own = bool(match.random() < self.av_match)
        heard = seen if own else self._scene(seed, number, int(match.choice(self.classes, p=self.shares)))[0]
        labels = {kind: self._each(kind)[known] for kind in ("class", "look", "voice")}
        labels |= {"place": place, "ambience": ambience, "match": "yes" if own else "no"}
        timed = (TimedLabel(0.0, self.duration_s, "class", labels["class"]),)
        return Clip(number, seen, heard, "own" if own else "overdub", labels, timed, caption(seen))

    def _scene(self, seed: int, number: int, known: int) -> tuple[Scene, str, str]:
        """The scene of a class, with the name of its place and of its ambience."""
        place, ambient = self.stream(seed, number, "place"), self.stream(seed, number, "ambience")
        seen = self.place_names[place.integers(len(self.place_names))]
        heard = int(ambient.integers(self.ambiences))
        ground = places.background(seen, place)
        scene = Scene(
            size=self.size,
            fps=self.fps,
            duration_s=self.duration_s,
            sample_rate=self.sample_rate,
            background=ground,
            camera=places.camera(0.02, place),
            ambience=self._ambience(heard, ambient),
            actors=(self._actor(seed, number, known, ground.colours[1]),),
            grain=self.grain,
            hiss=self.hiss,
            gain=10 ** (ambient.uniform(-4, 2) / 20),
            seed=int(ambient.integers(2**31)),
        )
        return scene, seen, places.ambience_name(heard) if self.sound_nuisance else "silence"

    def _ambience(self, index: int, rng: np.random.Generator) -> Ambience:
        made = places.ambience(index, self.ambience_level, rng)
        return made if self.sound_nuisance else replace(made, level=0.0)

    def _actor(self, seed: int, number: int, known: int, ground: Colour) -> Actor:
        """The thing that is seen and heard; what is drawn for the eye does not depend on what is drawn for the ear."""
        sight, sound = self.stream(seed, number, "sight"), self.stream(seed, number, "sound")
        shape, programme, timbre = self.parts[known]
        tempo = self.tempo_hz * 2 ** sight.uniform(-0.25, 0.25)
        motion = Motion(programme, tempo, float(sight.random()), amplitude=0.14, turn=int(sight.choice([-1, 1])))
        pitch = 330.0 * 2 ** sound.uniform(-0.4, 0.4)
        gain = 10 ** (sound.uniform(-3, 3) / 20)
        lift = 0.06 if programme == "hop" else 0.0  # leave room above the ground for the hop
        drawn = contrasting(ground, sight)
        own = ACTOR_COLOURS[SHAPES.index(shape)] if sight.random() < self.tint else drawn
        return Actor(
            shape,
            jitter(own, sight, hue=0.02, value=0.08),
            skin=SKINS[sight.integers(len(SKINS))],
            x=0.5 + 0.08 * sight.uniform(-1, 1),
            y=0.5 + lift + 0.08 * sight.uniform(-1, 1),
            radius=self.radius * 2 ** sight.uniform(-0.2, 0.2),
            angle=sight.uniform(-0.35, 0.35),
            start_s=0.0,
            end_s=self.duration_s,
            motion=motion,
            voice=Voice(timbre, pitch, gain, bend_octaves=0.0, seed=int(sound.integers(2**31))),
        )
