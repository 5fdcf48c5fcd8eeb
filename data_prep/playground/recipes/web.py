"""``web``: actions as one finds them: some clips are overdubbed, some carry only music, some are silent.

The share of each is known, and so is which clip is which (``label_match``, ``label_soundtrack``), so that a method
that claims to find corresponding clips, or to survive the others, can be told that it does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..captions import caption
from ..scene import Ambience, Clip, Scene, Soundtrack
from .actions import Actions
from .base import LabelKind, check_share


@dataclass(frozen=True)
class Web(Actions):
    """``Actions`` with bad sound tracks; ``av_match`` is derived from the three shares and cannot be set."""

    duration_s: float = 3.0
    overdub: float = 0.3  # share of clips with the sound of another scene
    music: float = 0.15  # share with music and nothing else
    silent: float = 0.05  # share with digital silence

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("overdub", "music", "silent"):
            check_share(name, getattr(self, name))
        if self.overdub + self.music + self.silent > 1:
            raise ValueError(
                f"overdub + music + silent is {self.overdub + self.music + self.silent}, more than all clips"
            )
        if self.av_match != 1:
            raise ValueError(f"set overdub, music and silent instead of av_match (got {self.av_match})")

    def own_share(self) -> float:
        return 1 - self.overdub - self.music - self.silent

    def _match_from_sound(self, own: float) -> float:
        return self.music + self.silent + max(own, self.overdub)  # music and silence give themselves away

    def kinds(self) -> tuple[LabelKind, ...]:
        shares = {"music": self.music, "overdub": self.overdub, "own": self.own_share(), "silent": self.silent}
        majority = max(shares.values())
        return (
            *super().kinds(),
            LabelKind("soundtrack", False, tuple(shares), majority, majority, self._match_from_sound(self.own_share())),
        )

    def clip(self, seed: int, number: int) -> Clip:
        seen, labels, timed = self.scene(seed, number, "seen")
        soundtrack = self._soundtrack(float(self.stream(seed, number, "match").random()))
        heard: Scene | None = seen
        if soundtrack == "overdub":
            heard = self.scene(seed, number, "overdub")[0]
        elif soundtrack == "music":
            heard = self._music(seen, seed, number)
        elif soundtrack == "silent":
            heard = None
        labels |= {"match": "yes" if soundtrack == "own" else "no", "soundtrack": soundtrack}
        return Clip(number, seen, heard, soundtrack, labels, timed, caption(seen))

    def _soundtrack(self, draw: float) -> Soundtrack:
        """The kind of sound track that a uniform ``draw`` falls on."""
        if draw < self.overdub:
            return "overdub"
        if draw < self.overdub + self.music:
            return "music"
        return "silent" if draw < self.overdub + self.music + self.silent else "own"

    def _music(self, seen: Scene, seed: int, number: int) -> Scene:
        rng = self.stream(seed, number, "music")
        tune = Ambience("music", 220.0 * 2 ** rng.uniform(-0.5, 0.5), 0.12, int(rng.integers(2**31)))
        return replace(seen, actors=(), ambience=tune)
