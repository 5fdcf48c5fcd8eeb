"""A first look at a film before it is written anew: how long, at what rate, which way up.

Headers alone do not answer that. Recorders that skip pictures, and containers that store milliseconds, name rates that
their own time stamps contradict; a pass over the packets, which decodes nothing, finds what is there and whether the
file is whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self, TypeAlias

import av
import numpy as np
import numpy.typing as npt
from av.packet import Packet

from avssl_core.media.convert import Orientation, orientation
from avssl_core.media.errors import DecodeError
from avssl_core.media.gops import MPEG4
from avssl_core.media.mpeg4 import find_layer, parse_pictures
from avssl_core.media.pictures import PictureTrack
from avssl_core.media.reader import MediaReader
from avssl_core.media.source import Source, describe
from avssl_core.media.tracks import is_flush, stamp
from avssl_core.media.unbroken import UnbrokenSound

# A rate that the container names is believed if it explains the number of pictures to within this many, or if of the
# times from picture to picture this share is what it says, to within this much: then some pictures were dropped.
_AGREES, _MOST, _NEAR = 1, 0.75, 0.1
# Pictures that an AVI's header may count although they are not there: recorders drop the last ones.
_UNCOUNTED = 2
MOST_FPS = 1000
_MOST_TICKS = 65_535  # a second, on the clock of an MPEG-4 stream (16 bits)

Stamps: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Survey:
    """What a source holds, from one pass over its packets; of the pictures, only the first is decoded.

    Attributes:
        codec: libav's name.
        rate: pictures a second, as an MPEG-4 stream can have them: what the container says if the pictures' times
            agree, otherwise the mean.
        length_s: from the first picture to the end of the last, in seconds.
        height: pixels of the upright picture.
        width: pixels of the upright picture.
        turned: a display matrix turns or mirrors the coded pictures.
        sound: there is a sound track.
    """

    codec: str
    rate: Fraction
    length_s: float
    height: int
    width: int
    turned: bool
    sound: bool


def survey(source: Source) -> Survey:
    """Look at the time of every picture of a source, and find out at what rate they come.

    Raises:
        NotMediaError, NoVideoError: not media; no pictures.
        DecodeError: cut off, damaged, or with times that make no sense.
    """
    with Tracks(source) as tracks:
        return tracks.survey()


def quantisers(source: Source) -> frozenset[int]:
    """The quantisers in the headers of an MPEG-4 Part 2 file's pictures; empty for other codecs.

    Raises:
        NotMediaError, NoVideoError, DecodeError: not media; no pictures; a header is damaged.
    """
    with Tracks(source) as tracks:
        track, layer, found = tracks.pictures, None, set()
        if track.stream.codec_context.name != MPEG4:
            return frozenset()
        track.seek(track.start_s)
        try:
            for data in (bytes(packet) for packet in track.packets() if packet.size):
                layer = layer or find_layer(track.stream.codec_context.extradata, data)
                if layer is not None:
                    found |= {picture.quantiser for picture in parse_pictures(data, layer) if picture.coded}
        except ValueError as error:
            raise DecodeError(describe(source), f"{error}; the file is damaged: leave it out") from error
    return frozenset(found)


def encodable(rate: Fraction) -> Fraction:
    """The nearest rate that an MPEG-4 stream can have: a whole number of ticks of 1/65535 s or longer a picture."""
    return 1 / max((1 / rate).limit_denominator(_MOST_TICKS), Fraction(1, _MOST_TICKS))


class Tracks(MediaReader):
    """A file's tracks, to be read from beginning to end."""

    def __enter__(self) -> Self:
        return self

    @property
    def pictures(self) -> PictureTrack:
        """The picture track; ``NoVideoError`` where there is none."""
        return self._require_pictures()

    def unbroken(self, origin_s: float) -> UnbrokenSound:
        """The sound in order, from a time on the container's clock on; ``NoAudioError`` where there is none."""
        return UnbrokenSound(self._require_sound(), origin_s)

    def paced(self, rate: Fraction) -> Iterator[av.VideoFrame]:
        """The pictures nearest to ``k / rate`` seconds after the first one, to the end of the track."""
        return self.pictures.paced(self.pictures.start_s, float(rate), math.inf)

    def survey(self) -> Survey:
        """See :func:`survey`."""
        track = self.pictures
        first = track.nearest(np.array([track.start_s]))[0]
        stamps = np.sort([at for at in map(stamp, self._shown()) if at is not None])
        if not len(stamps):
            raise DecodeError(track.name, "its pictures have no times; remux it with `ffmpeg -fflags +genpts`")
        _require_counted(track, stamps)
        track._require_complete(float(stamps[-1]) * track.tick_s)
        self._require_complete()
        turn = orientation(first)
        height, width = (first.width, first.height) if turn.transpose else (first.height, first.width)
        rate = _rate(track, stamps)
        length_s = float(stamps[-1] - stamps[0]) * track.tick_s + float(1 / rate)
        codec, sound = track.stream.codec_context.name, self._sound is not None
        return Survey(codec, rate, length_s, height, width, turn != Orientation(), sound)

    def _shown(self) -> Iterator[Packet[Any]]:
        """Packets that stand for a picture; among them AVI's empty ones, which say "as before"."""
        track = self.pictures
        track.seek(track.start_s)
        for packet in track.packets():
            if packet.is_corrupt:
                at_s = (stamp(packet) or 0) * track.tick_s
                raise DecodeError(track.name, f"truncated at {at_s:.3f} s; copy it again, or leave it out")
            if not is_flush(packet) and (not packet.size or track._visible(packet)):
                yield packet


def _require_counted(track: PictureTrack, stamps: Stamps) -> None:
    """Of an AVI that was cut off, libav shortens the duration in the header, but not the number of pictures."""
    promised, found = track.stream.frames, int(stamps[-1]) + 1
    if track.container.format.name == "avi" and found + _UNCOUNTED < promised:
        reason = f"ends with picture {found} although its header promises {promised}; truncated, or a wrong header"
        raise DecodeError(track.name, f"{reason}: copy it again, or leave it out")


def _rate(track: PictureTrack, stamps: Stamps) -> Fraction:
    """The rate that the container names if the pictures' times agree with it, otherwise their mean rate."""
    stream, intervals = track.stream, np.diff(stamps)
    span = int(stamps[-1] - stamps[0]) * Fraction(stream.time_base)
    named = [Fraction(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
    found = next((rate for rate in named if _explains(rate, span, intervals * track.tick_s)), None)
    rate = found or (len(intervals) / span if span else [*named, Fraction(25)][0])
    if not 0 < rate <= MOST_FPS:
        reason = f"its times give {float(rate):.3g} pictures a second, expected at most {MOST_FPS}"
        raise DecodeError(track.name, f"{reason}; remux it with right times, or leave it out")
    return encodable(rate)


def _explains(rate: Fraction, span: Fraction, intervals_s: npt.NDArray[np.float64]) -> bool:
    if abs(span * rate - len(intervals_s)) <= _AGREES:
        return True
    return float((np.abs(intervals_s * float(rate) - 1) <= _NEAR).mean()) >= _MOST
