"""Demuxing for random access: from a moment in seconds to the packets that its pictures or samples need.

The moving parts of a window read are few: seek to a key packet at or before the window, read packets until nothing
later can matter, and step further back when the landing place turns out too late (open groups of pictures, containers
with coarse indices). Both the picture and the sound track do exactly this; they differ in what they decode.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import av
from av.container import InputContainer
from av.packet import Packet

from avssl_core.media.errors import DecodeError

# How much further back, in seconds, to look for a usable key packet when the nearest one did not serve; the last step
# is the beginning of the stream, where every decoder can start.
RETREATS = (0.0, 1.0, 4.0, 16.0, math.inf)
# The first packets of a stream may have times this much before its first picture or sample: an audio encoder's priming,
# an MPEG program stream's decoding times.
_LEAD_S = 1.0
_MAX_TICKS = 1 << 62  # what libav takes as a time
_LIBAV_ERRORS = (av.FFmpegError, OSError)


@dataclass
class ReadStats:
    """Work done by a track so far: packets demuxed and frames decoded."""

    packets: int = 0
    frames: int = 0


@dataclass
class Run:
    """Packets of one track in decoding order.

    Attributes:
        packets: the packets; the first is a key packet.
        from_start: the run begins where the stream does.
        ended: nothing follows in the file.
        damaged: it ended where the file is cut off.
        count: number of packets.
    """

    packets: list[Packet[Any]] = field(default_factory=list)
    from_start: bool = False
    ended: bool = False
    damaged: bool = False
    count: int = 0


class Track:
    """One stream of an open container, on its own clock of integer ticks.

    Args:
        container: the open container.
        stream: the stream to read.
        name: the source, for messages.
    """

    def __init__(self, container: InputContainer, stream: Any, name: str) -> None:
        self.container, self.stream, self.name = container, stream, name
        self.tick_s = float(stream.time_base)
        self.stats = ReadStats()
        self._context = stream.codec_context

    @property
    def start_s(self) -> float:
        """Time of the first picture or sample, on the container's clock."""
        return self.stream.start_time * self.tick_s if self.stream.start_time is not None else 0.0

    @property
    def header_end_s(self) -> float | None:
        """Where the header says that the stream ends, on the container's clock; ``None`` if it does not say."""
        return None if self.stream.duration is None else self.start_s + self.stream.duration * self.tick_s

    def seek(self, time_s: float) -> bool:
        """Go to the key packet at or before a time; returns whether that is the beginning of the stream."""
        from_start = time_s <= self.start_s
        if not from_start:
            self._seek(time_s)
            return False
        try:
            self._seek(self.start_s - _LEAD_S)
        except DecodeError:  # AVI refuses times before the first packet
            self._seek(self.start_s)
        return True

    def _seek(self, time_s: float) -> None:
        # Rounded, not floored: 0.48 s must find the key picture at tick 6144, not its predecessor at 6143.99.
        ticks = max(-_MAX_TICKS, min(_MAX_TICKS, round(time_s / self.tick_s)))
        try:
            self.container.seek(ticks, stream=self.stream)
        except _LIBAV_ERRORS as error:
            raise self._failure(f"seek to {time_s:.3f} s", error) from error

    def packets(self) -> Iterator[Packet[Any]]:
        """Packets from here to the end; the last one is empty and flushes the decoder."""
        incoming = self.container.demux(self.stream)
        while True:
            try:
                packet = next(incoming, None)
            except _LIBAV_ERRORS as error:
                raise self._failure("read on", error) from error
            if packet is None:
                return
            self.stats.packets += 1
            yield packet

    def decode(self, packet: Packet[Any] | None) -> list[Any]:
        """Frames that a packet completes; ``None`` drains the decoder, after which only a seek makes sense."""
        try:
            frames = self._context.decode(packet)
        except _LIBAV_ERRORS as error:
            at = None if packet is None else stamp(packet)
            where = "at its end" if at is None else f"at {at * self.tick_s:.3f} s"
            raise self._failure(f"decode {self.stream.type} {where}", error) from error
        self.stats.frames += len(frames)
        return frames

    def _failure(self, what: str, error: Exception) -> DecodeError:
        """libav's or the file system's error as one that names the file."""
        reason = getattr(error, "strerror", None) or error
        advice = "the file is damaged or truncated there: use an earlier window"
        return DecodeError(self.name, f"could not {what} ({reason}); {advice}")


def stamp(item: Any) -> int | None:
    """Presentation time of a packet or frame in ticks; where a container stores only decoding times (AVI), those."""
    return item.pts if item.pts is not None else item.dts


def is_flush(packet: Packet[Any]) -> bool:
    """Whether this is the empty packet that stands for the end of the file (a dropped AVI frame has a time)."""
    return packet.size == 0 and packet.pts is None and packet.dts is None
