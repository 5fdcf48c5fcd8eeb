"""``actions``: a place that stays, events that change, and a direction that only time reveals.

The general toy world for learning from sight and sound by contrast (Patrick, Asano et al., "On Compositions of
Transformations in Contrastive Self-Supervised Learning", ICCV 2021). Each clip shows

1. an **identity**: one of ``identities`` places, with a pattern of the clip's own, visible in every frame and
   therefore a shortcut within the picture; its ambience is faint, is shared by several identities, and follows the
   identity in ``identity_sound`` of the clips only;
2. a **timeline of events**: every ``segment_s`` another shape with another motion; timbre follows shape, articulation
   follows motion;
3. a **direction** (grow/shrink by default, which survives mirroring): the pitch rises or falls with it;
4. **nuisances**: position, size, colours, tempo, base pitch, loudness and noise, drawn independently for sight and
   for sound.

Variants: ``directed`` as above; ``static``: one event with its direction is repeated throughout, so that two windows
of a clip differ in the phase of the rhythm alone; ``symmetric``: everything swings to and fro, tones are constant and
envelopes mirrored, so that neither the picture nor the sound tells forwards from backwards. ``av_match=0`` gives
every clip the sound of an unrelated scene.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ..captions import caption
from ..draw import SHAPES, SKINS
from ..palettes import contrasting, jitter
from ..scene import DIRECTION_NAMES, Actor, Clip, Drift, Motion, Scene, TimedLabel, Voice
from . import places
from .base import LabelKind, Recipe, check_share

TIMBRE_OF: dict[str, str] = dict(
    zip(SHAPES, ("marimba", "bell", "wood", "reed", "string", "horn", "glass", "flute"), strict=True)
)
MOTIONS: tuple[str, ...] = ("hop", "sway", "spin", "orbit")
VARIANTS: tuple[str, ...] = ("directed", "static", "symmetric")


@dataclass(frozen=True)
class Actions(Recipe):
    """Parameters of the recipe; the module says what they mean together."""

    duration_s: float = 4.0  # room for two one-second windows with a gap
    variant: str = "directed"
    identities: int = 16
    ambiences: int = 4  # distinct ambiences; identity k has number k mod ambiences
    identity_sound: float = 0.6  # share of clips whose ambience is their identity's; otherwise it is drawn at random
    ambience_level: float = 0.02  # RMS; a voice has about 0.16
    shapes: int = 4
    motions: int = 2
    segment_s: float = 1.0
    segment_jitter_s: float = 0.08
    direction: Drift = "scale"
    reach: float = 1.0  # octaves of size for "scale", fraction of the side otherwise
    bend_octaves: float = 1.0  # how far the pitch goes with the direction
    tempo_hz: float = 3.0
    nuisance: float = 1.0  # scales the jitter of position, size, colour, tempo, base pitch and loudness
    camera_sway: float = 0.03
    mirrored_envelopes: bool = (
        False  # swelling notes as in ``symmetric``: then sound has no arrow of time but its pitch
    )
    av_match: float = 1.0  # share of clips heard with their own sound

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("identity_sound", "av_match"):
            check_share(name, getattr(self, name))
        if self.variant not in VARIANTS:
            raise ValueError(f"unknown variant {self.variant!r}; choose one of {', '.join(VARIANTS)}")
        if self.direction not in DIRECTION_NAMES:
            raise ValueError(f"unknown direction {self.direction!r}; choose one of {', '.join(DIRECTION_NAMES)}")
        if not (1 <= self.shapes <= len(SHAPES) and 1 <= self.motions <= len(MOTIONS)):
            raise ValueError(
                f"shapes must lie in [1, {len(SHAPES)}] and motions in [1, {len(MOTIONS)}], "
                f"got {self.shapes} and {self.motions}"
            )
        if self.duration_s < self.segment_s or self.segment_jitter_s >= 0.4 * self.segment_s:
            raise ValueError(
                f"a clip of {self.duration_s} s must hold a segment of {self.segment_s} s, "
                f"jittered by less than 0.4 of it (got {self.segment_jitter_s} s)"
            )
        places.place_names(self.identities)

    # --- the label space -----------------------------------------------------------------------------------------

    @property
    def events(self) -> tuple[str, ...]:
        """Names of the event classes: shape × motion."""
        return tuple(f"{shape} {motion}" for shape in SHAPES[: self.shapes] for motion in MOTIONS[: self.motions])

    def kinds(self) -> tuple[LabelKind, ...]:
        own = self.own_share()
        made = [
            self._kind("identity", False, places.place_names(self.identities), sound=self._identity_from_sound(own))
        ]
        timed = [("event", self.events), ("shape", SHAPES[: self.shapes]), ("motion", MOTIONS[: self.motions])]
        if self.variant != "symmetric":
            timed.append(("direction", DIRECTION_NAMES[self.direction]))
        for kind, classes in timed:
            ceiling = own + (1 - own) / len(classes)
            made.append(self._kind(kind, True, classes, sound=ceiling))
            if self.variant == "static":
                made.append(self._kind(kind, False, classes, sound=ceiling))
        if 0 < own < 1:
            majority = max(own, 1 - own)
            made.append(LabelKind("match", False, ("no", "yes"), majority, majority, self._match_from_sound(own)))
        return tuple(made)

    @staticmethod
    def _kind(kind: str, timed: bool, classes: tuple[str, ...], *, sound: float) -> LabelKind:
        return LabelKind(kind, timed, classes, 1 / len(classes), 1.0, sound)

    def own_share(self) -> float:
        """Share of clips heard with their own sound."""
        return self.av_match

    def _match_from_sound(self, own: float) -> float:
        return max(own, 1 - own)

    def _identity_from_sound(self, own: float) -> float:
        """Bayes accuracy of naming the identity from the ambience: Σ_a max_k P(k) P(a | k)."""
        follows = np.eye(self.ambiences)[np.arange(self.identities) % self.ambiences]  # (identities, ambiences)
        given = self.identity_sound * follows + (1 - self.identity_sound) / self.ambiences
        heard = own * given + (1 - own) * given.mean(0)
        return float((heard / self.identities).max(0).sum())

    # --- drawing a clip ------------------------------------------------------------------------------------------

    def clip(self, seed: int, number: int) -> Clip:
        seen, labels, timed = self.scene(seed, number, "seen")
        own = bool(self.stream(seed, number, "match").random() < self.av_match)
        heard = seen if own else self.scene(seed, number, "overdub")[0]
        labels["match"] = "yes" if own else "no"
        return Clip(number, seen, heard, "own" if own else "overdub", labels, timed, caption(seen))

    def scene(self, seed: int, number: int, salt: str) -> tuple[Scene, dict[str, str], tuple[TimedLabel, ...]]:
        """A scene with its labels; another ``salt`` gives an independent one."""
        place = self.stream(seed, number, f"{salt} place")
        identity = int(place.integers(self.identities))
        name = places.place_names(self.identities)[identity]
        ambient = self.stream(seed, number, f"{salt} ambience")
        follows = ambient.random() < self.identity_sound
        index = identity % self.ambiences if follows else int(ambient.integers(self.ambiences))
        ground = places.background(name, place)
        actors = self._timeline(seed, number, salt, ground.colours[1])
        scene = Scene(
            size=self.size,
            fps=self.fps,
            duration_s=self.duration_s,
            sample_rate=self.sample_rate,
            background=ground,
            camera=places.camera(self.camera_sway, place),
            ambience=places.ambience(index, self.ambience_level, ambient),
            actors=actors,
            grain=self.grain,
            hiss=self.hiss,
            gain=10 ** (self.nuisance * ambient.uniform(-6, 3) / 20),
            seed=int(ambient.integers(2**31)),
        )
        labels = {"identity": name, "ambience": places.ambience_name(index)}
        timed = tuple(label for actor in actors for label in timed_labels(actor))
        if self.variant == "static":
            labels |= {label.kind: label.label for label in timed}
        return scene, labels, timed

    def _boundaries(self, rng: np.random.Generator) -> np.ndarray:
        """Segment boundaries, jittered so that the first and the last segment never get shorter than ``segment_s``."""
        count = max(1, round(self.duration_s / self.segment_s))
        cuts = np.linspace(0, self.duration_s, count + 1)
        moves = rng.uniform(-self.segment_jitter_s, self.segment_jitter_s, count + 1)
        moves[[0, -1]] = 0
        if count > 1 and self.variant != "static":  # a static clip repeats one cycle exactly
            moves[1], moves[-2] = (0.0, 0.0) if count == 2 else (abs(moves[1]), -abs(moves[-2]))
            cuts += moves
        return cuts

    def _timeline(self, seed: int, number: int, salt: str, ground: tuple[float, float, float]) -> tuple[Actor, ...]:
        what = self.stream(seed, number, f"{salt} events")
        sight = self.stream(seed, number, f"{salt} sight")
        sound = self.stream(seed, number, f"{salt} sound")
        cuts = self._boundaries(self.stream(seed, number, f"{salt} cuts"))
        pairs = list(pairwise(cuts.tolist()))
        if self.variant == "static":
            actor = self._actor(int(what.integers(len(self.events))), what, sight, sound, ground, *pairs[0])
            return tuple(replace(actor, start_s=start, end_s=end) for start, end in pairs)
        actors, event = [], -1
        for start, end in pairs:
            event = _another(event, len(self.events), what)
            actors.append(self._actor(event, what, sight, sound, ground, start, end))
        return tuple(actors)

    def _actor(
        self,
        event: int,
        what: np.random.Generator,
        sight: np.random.Generator,
        sound: np.random.Generator,
        ground: tuple[float, float, float],
        start_s: float,
        end_s: float,
    ) -> Actor:
        n, symmetric = self.nuisance, self.variant == "symmetric"
        shape, programme = self.events[event].split()
        motion = Motion(
            programme,
            tempo_hz=self.tempo_hz * 2 ** (n * sight.uniform(-0.25, 0.25)),
            phase=float(sight.random()),
            amplitude=0.14,
            turn=int(sight.choice([-1, 1])),
            drift=self.direction,
            sign=int(what.choice([-1, 1])),
            reach=self.reach,
            back_and_forth=symmetric,
            drift_phase=float(sight.random()),
        )
        voice = Voice(
            TIMBRE_OF[shape],
            pitch_hz=330.0 * 2 ** (n * sound.uniform(-0.4, 0.4)),
            gain=10 ** (n * sound.uniform(-3, 3) / 20),
            bend_octaves=0.0 if symmetric else self.bend_octaves,
            reversible=symmetric or self.mirrored_envelopes,
            seed=int(sound.integers(2**31)),
        )
        lift = 0.06 if programme == "hop" else 0.0  # leave room above the ground for the hop
        return Actor(
            shape,
            jitter(contrasting(ground, sight), sight, hue=0.02 * n, value=0.08 * n),
            skin=SKINS[sight.integers(len(SKINS))],
            x=0.5 + 0.1 * n * sight.uniform(-1, 1),
            y=0.5 + lift + 0.1 * n * sight.uniform(-1, 1),
            radius=0.19 * 2 ** (n * sight.uniform(-0.25, 0.25)),
            angle=n * sight.uniform(-0.35, 0.35),
            start_s=start_s,
            end_s=end_s,
            motion=motion,
            voice=voice,
        )


def timed_labels(actor: Actor) -> list[TimedLabel]:
    """What can be asked about the part of the clip in which ``actor`` lives."""
    shape, programme = actor.shape, actor.motion.programme
    kinds = {"event": f"{shape} {programme}", "shape": shape, "motion": programme}
    if actor.direction is not None:
        kinds["direction"] = actor.direction
    return [TimedLabel(actor.start_s, actor.end_s, kind, label) for kind, label in kinds.items()]


def _another(previous: int, count: int, rng: np.random.Generator) -> int:
    """Draw evenly among ``count`` classes, never the previous one again (unless it is the only one)."""
    if previous < 0 or count == 1:
        return int(rng.integers(count))
    return int((previous + 1 + rng.integers(count - 1)) % count)
