"""``correspondence``: clips of one event each, half of them with another clip's sound, and a domain that is none.

The correspondence-retrieval benchmarks of ACAV100M (https://arxiv.org/abs/2101.10803, section 4) in small. As in
Kinetics-Sounds, a clip shows *one* action, of as many as there are pairs of shape and motion, from its beginning to its
end; a known share of the clips is heard with the sound of an unrelated scene, drawn from the same distribution, so that
neither sense alone can tell which. ``music`` and ``silent`` are those of ``web``.

``slides`` mixes in a second domain: a place and nothing in it, with music. Sight and sound of such a clip have nothing
to do with each other, but each says "slides": what only counts how often they are met together takes them for pairs.
The paper drops such videos by their titles and categories before it looks at any.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..captions import caption
from ..scene import Clip
from .base import LabelKind, check_share
from .web import Web

DOMAINS = ("events", "slides")


@dataclass(frozen=True)
class Correspondence(Web):
    """``Web`` with one event a clip; ``overdub``, ``music`` and ``silent`` are shares of the clips with an event."""

    duration_s: float = 2.0
    variant: str = "static"
    shapes: int = 8
    overdub: float = 0.5
    music: float = 0.0
    silent: float = 0.0
    slides: float = 0.0  # share of clips without any event, with music

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("slides", self.slides)

    def kinds(self) -> tuple[LabelKind, ...]:
        """``match`` and ``soundtrack`` are asked of all clips, the others of those with an event."""
        majority = max(self.slides, 1 - self.slides)
        return (*super().kinds(), LabelKind("domain", False, DOMAINS, majority, 1.0, 1.0))

    def clip(self, seed: int, number: int) -> Clip:
        made = super().clip(seed, number)
        if self.stream(seed, number, "domain").random() >= self.slides:
            return replace(made, labels=made.labels | {"domain": "events"})
        place = replace(made.seen, actors=())
        kept = {name: made.labels[name] for name in ("identity", "ambience")}
        labels = kept | {"match": "no", "soundtrack": "music", "domain": "slides"}
        return Clip(number, place, self._music(place, seed, number), "music", labels, (), caption(place))
