"""Groups of pictures: what a compressed stream is made of, found without decoding a single picture.

A *group* (GOP) is an intra picture and the predicted pictures up to the next one. Reading by groups wants to know where
they begin, how long they are, and whether anything in them forbids it. All of this stands in the packets' headers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from avssl_core.media.mpeg4 import Layer, find_layer, has_packed_mark, parse_pictures
from avssl_core.media.tracks import stamp

MPEG4 = "mpeg4"


@dataclass(frozen=True)
class Gop:
    """One group of pictures.

    Attributes:
        kinds: a letter a picture: ``I``, ``P``, ``B``, ``S``; ``N`` for one that only repeats the picture before it
            (not coded, or a dropped AVI frame).
        stamp: presentation time of the intra picture in the stream's ticks.
        start_s: the same in seconds after the stream's first picture.
        size: bytes.
    """

    kinds: str
    stamp: int
    start_s: float
    size: int

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.kinds)

    @property
    def headless(self) -> bool:
        """Whether the intra picture is missing: the file was cut out of a longer one, and its first pictures refer to
        nothing."""
        return self.kinds[0] != "I"


@dataclass(frozen=True)
class Structure:
    """A stream's groups.

    Attributes:
        codec: libav's name.
        width: pixels, as coded.
        height: pixels, as coded.
        fps: pictures a second.
        gops: in order.
        layer: the MPEG-4 header; ``None`` for other codecs.
        packed: two pictures share a packet, as DivX packs B pictures, or the encoder signed as one that does so.
    """

    codec: str
    width: int
    height: int
    fps: float
    gops: tuple[Gop, ...]
    layer: Layer | None = None
    packed: bool = False

    @property
    def num_pictures(self) -> int:
        """Pictures of the whole stream."""
        return sum(len(gop) for gop in self.gops)

    @property
    def obstacle(self) -> str | None:
        """Why groups cannot be read by intra and predicted pictures; ``None`` where they can."""
        kinds = "".join(gop.kinds for gop in self.gops)
        if self.packed or "B" in kinds:
            return "B pictures, which refer to pictures that are shown after them"
        if "S" in kinds or (self.layer is not None and self.layer.sprites):
            return "sprites or global motion compensation"
        return None

    @property
    def coded_obstacle(self) -> str | None:
        """Why coded residuals cannot be read; ``None`` where they can."""
        if self.layer is None:
            return f"the codec {self.codec}: a predicted picture decodes alone only in MPEG-4 Part 2"
        return self.obstacle or self.layer.obstacle

    def lengths(self) -> dict[int, int]:
        """How many groups there are of each length."""
        found: dict[int, int] = {}
        for gop in self.gops:
            found[len(gop)] = found.get(len(gop), 0) + 1
        return found

    def starts(self, gops: int, gop_size: int, last: int) -> list[int]:
        """Groups at which a clip of ``gops`` consecutive ones can begin.

        All but the last must have exactly ``gop_size`` pictures, so that positions are evenly spaced in time; of the
        last, pictures 0 to ``last`` are used and must exist. A group without its intra picture never serves.
        """
        sizes = [0 if gop.headless else len(gop) for gop in self.gops]
        return [
            first
            for first in range(len(sizes) - gops + 1)
            if all(size == gop_size for size in sizes[first : first + gops - 1]) and sizes[first + gops - 1] > last
        ]


@dataclass
class _Groups:
    """Collects pictures into groups."""

    tick_s: float
    origin: int | None = None
    done: list[Gop] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    at: int = 0
    size: int = 0

    def add(self, kind: str, at: int, size: int) -> None:
        if self.origin is None:
            self.origin = at
        if kind == "I" or not self.kinds:
            self.close()
            self.at = at
        self.kinds.append(kind)
        self.size += size

    def close(self) -> None:
        if self.kinds:
            start_s = (self.at - (self.origin or 0)) * self.tick_s
            self.done.append(Gop("".join(self.kinds), self.at, start_s, self.size))
        self.kinds, self.size = [], 0


def find_structure(packets: Iterable[Any], stream: Any) -> Structure:
    """Read the groups of a stream off its packets.

    Args:
        packets: all packets of the stream, in order; empty ones stand for dropped pictures, the flushing one for none.
        stream: PyAV's stream.

    Raises:
        ValueError: a header is damaged.
    """
    context, layer, packed, first = stream.codec_context, None, False, True
    groups, latest = _Groups(float(stream.time_base)), None
    for packet in packets:
        at = stamp(packet)
        if at is None or packet.is_corrupt:  # the end, or where the file was cut
            break
        data = bytes(packet) if context.name == MPEG4 and packet.size else b""
        if first and data:
            layer, first = find_layer(context.extradata, data), False
            packed = has_packed_mark(context.extradata, data)
        kind, several = _kind(packet, data, layer)
        if layer is None and latest is not None and at < latest:
            kind = "B"  # coded after a picture that is shown later: other codecs' packets tell by their times alone
        latest = at if latest is None else max(latest, at)
        groups.add(kind, at, packet.size)
        packed = packed or several
    groups.close()
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    return Structure(context.name, context.width, context.height, rate, tuple(groups.done), layer, packed)


def _kind(packet: Any, data: bytes, layer: Layer | None) -> tuple[str, bool]:
    """The letter of a packet's (first) picture, and whether it holds more than one."""
    if not packet.size:
        return "N", False
    if layer is None:
        return ("I" if packet.is_keyframe else "P"), False
    pictures = parse_pictures(data, layer)
    if not pictures:
        return "N", False
    first = pictures[0]
    return (first.type if first.coded else "N"), len(pictures) > 1
