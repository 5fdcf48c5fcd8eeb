"""Demuxing for random access: from a moment in seconds to the packets that its pictures or samples need.

The moving parts of a window read are few: seek to a key packet at or before the window, read packets until nothing
later can matter, and step further back when the landing place turns out too late (open groups of pictures, containers
with coarse indices). Both the picture and the sound track do exactly this; they differ in what they decode.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import av
from av.container import InputContainer
from av.packet import Packet

from avssl_core.media.errors import DecodeError, MediaError

# How much further back, in seconds, to look for a usable key packet when the nearest one did not serve; the last step
# is the beginning of the stream, where every decoder can start.
RETREATS = (0.0, 1.0, 4.0, 16.0, math.inf)


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
        damaged: it ended at a packet that the file holds only in part.
    """

    packets: list[Packet[Any]] = field(default_factory=list)
    from_start: bool = False
    ended: bool = False
    damaged: bool = False


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
        time_s = self.start_s if from_start else time_s
        with self.decoding(f"seek to {time_s:.3f} s"):
            # Rounded, not floored: 0.48 s must find the key picture at tick 6144, not its predecessor at 6143.99.
            self.container.seek(round(time_s / self.tick_s), stream=self.stream)
        return from_start

    def packets(self) -> Iterator[Packet[Any]]:
        """Packets from here to the end; the last one is empty and flushes the decoder."""
        with self.decoding("read the next packet"):
            for packet in self.container.demux(self.stream):
                self.stats.packets += 1
                yield packet

    def decode(self, packet: Packet[Any] | None) -> list[Any]:
        """Frames that a packet completes; ``None`` drains the decoder, after which only a seek makes sense."""
        at = "at the end" if packet is None or packet.pts is None else f"at {packet.pts * self.tick_s:.3f} s"
        with self.decoding(f"decode {self.stream.type} {at}"):
            frames = self.stream.codec_context.decode(packet)
        self.stats.frames += len(frames)
        return frames

    @contextmanager
    def decoding(self, what: str) -> Iterator[None]:
        """Turn libav's and the file system's errors into one that names the file."""
        try:
            yield
        except MediaError:
            raise
        except (av.FFmpegError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DecodeError(
                self.name, f"could not {what} ({reason}); the file is damaged or truncated there: use an earlier window"
            ) from error


def stamp(item: Any) -> int | None:
    """Presentation time of a packet or frame in ticks; where a container stores only decoding times (AVI), those."""
    return item.pts if item.pts is not None else item.dts
