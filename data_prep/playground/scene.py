"""What a clip of the playground is made of: plain frozen descriptions, before any pixel or sample exists.

A *scene* is a background, a camera path, an ambience and actors. An *actor* is a shape, a motion programme and a voice;
the event rule that ties its sound to its motion lives in ``events``. A *clip* pairs the scene that is seen with the
scene that is heard (the same one, unless the clip is overdubbed), and carries its labels. Everything downstream
(rendering, ground truth, captions, flow) is a pure function of these objects, so truth never has to be read back from
pixels.

Units: positions and sizes in fractions of the frame's side, y downwards; times in seconds; angles in radians; pitch
in hertz.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Colour = tuple[float, float, float]  # RGB in [0, 1]
Drift = Literal["none", "scale", "horizontal", "vertical"]
Soundtrack = Literal["own", "overdub", "music", "silent"]

DIRECTION_NAMES: dict[str, tuple[str, str]] = {  # drift -> (label of sign +1, label of sign −1)
    "scale": ("grow", "shrink"),
    "horizontal": ("right", "left"),
    "vertical": ("up", "down"),
}


@dataclass(frozen=True)
class Background:
    """A textured table top: texture family, its colours from dark to light, and the seed of its random field."""

    texture: str
    colours: tuple[Colour, Colour, Colour]
    scale: float  # size of the texture's elements, 1 = ordinary
    seed: int


@dataclass(frozen=True)
class Camera:
    """A slow swaying camera; it moves as much forth as back, so it carries no arrow of time."""

    sway: float  # amplitude, fraction of the side
    period_s: float
    phase: float
    tilt: float  # direction of the sway


@dataclass(frozen=True)
class Ambience:
    """The sound of the place: a family of timbres at a pitch and a level (0 = none)."""

    family: str
    pitch_hz: float
    level: float
    seed: int


@dataclass(frozen=True)
class Motion:
    """How an actor moves: a rhythmic programme (hop, sway, …) on top of a drift that has a direction.

    ``drift`` with ``sign`` ±1 goes once from one end to the other during the actor's life; with ``back_and_forth`` it
    swings to and fro (a cosine of random phase), which makes the motion statistically invariant to reversal.
    """

    programme: str
    tempo_hz: float
    phase: float  # in [0, 1) of a beat
    amplitude: float  # fraction of the side
    turn: int = 1  # sense of rotation of a spin or an orbit: +1 clockwise, −1 the other way
    drift: Drift = "none"
    sign: int = 0
    reach: float = 0.0  # octaves of size for "scale", fraction of the side otherwise
    back_and_forth: bool = False
    drift_phase: float = 0.0


@dataclass(frozen=True)
class Voice:
    """What an actor sounds like: a timbre at a base pitch; the articulation follows from its motion."""

    timbre: str
    pitch_hz: float
    gain: float
    bend_octaves: float  # how far the pitch follows the drift: a chirp; 0 = constant tone
    reversible: bool = False  # envelopes symmetric in time instead of struck-and-decaying
    seed: int = 0


@dataclass(frozen=True)
class Actor:
    """A shape that lives from ``start_s`` to ``end_s``, moves, and may be heard."""

    shape: str
    colour: Colour
    skin: str
    x: float
    y: float
    radius: float
    angle: float
    start_s: float
    end_s: float
    motion: Motion
    voice: Voice | None = None

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def direction(self) -> str | None:
        """``grow``/``shrink``, ``right``/``left``, ``up``/``down``, or None for motion without an arrow."""
        if self.motion.drift == "none" or self.motion.back_and_forth or self.motion.sign == 0:
            return None
        return DIRECTION_NAMES[self.motion.drift][0 if self.motion.sign > 0 else 1]


@dataclass(frozen=True)
class Scene:
    """Everything needed to draw and to hear one clip."""

    size: int
    fps: float
    duration_s: float
    sample_rate: int
    background: Background
    camera: Camera
    ambience: Ambience
    actors: tuple[Actor, ...]
    grain: float = 0.0  # standard deviation of the picture noise, in [0, 1]
    hiss: float = 0.0  # standard deviation of the microphone noise
    gain: float = 1.0
    seed: int = 0

    @property
    def num_frames(self) -> int:
        return round(self.duration_s * self.fps)

    @property
    def num_samples(self) -> int:
        return round(self.duration_s * self.sample_rate)


@dataclass(frozen=True)
class TimedLabel:
    """A label that holds during a part of the clip: ``kind`` says of what (``event``, ``direction``, …)."""

    start_s: float
    end_s: float
    kind: str
    label: str


@dataclass(frozen=True)
class Clip:
    """One clip: what is seen, what is heard, and what is true about them.

    ``heard`` is ``seen`` itself for a clip with its own sound, another scene for an overdubbed or music-only one,
    None for silence.
    """

    number: int
    seen: Scene
    heard: Scene | None
    soundtrack: Soundtrack
    labels: dict[str, str] = field(default_factory=dict)
    timed: tuple[TimedLabel, ...] = ()
    caption: str = ""
    group: str = ""  # clips of one film or talker; empty = a group of its own
