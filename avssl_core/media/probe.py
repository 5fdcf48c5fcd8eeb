"""What a file holds, and from when to when: the facts a corpus index is made of.

Headers are claims. The description reads them, decodes one picture (for the display matrix, which lives there), and
compares the claimed end with the container's own index where it has one; on doubt, or with ``verify``, it measures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import av

from avssl_core.media.convert import orientation
from avssl_core.media.errors import DecodeError
from avssl_core.media.pictures import PictureTrack
from avssl_core.media.sound import SoundTrack
from avssl_core.media.tracks import Track, stamp

# A header that promises this much more than the index holds is not believed.
_DOUBT_S = 1.0


@dataclass(frozen=True)
class VideoInfo:
    """The picture track.

    Attributes:
        width: pixels of the upright picture (after the display matrix).
        height: pixels of the upright picture.
        fps: mean frame rate.
        codec: libav's name of the codec.
        pix_fmt: libav's name of the pixel format.
        rotation: clockwise degrees that the display matrix turns by: 0, 90, 180 or 270. Readers have applied it.
        duration_s: end of the last picture.
    """

    width: int
    height: int
    fps: float
    codec: str
    pix_fmt: str
    rotation: int
    duration_s: float


@dataclass(frozen=True)
class AudioInfo:
    """The sound track.

    Attributes:
        sample_rate: stored samples a second.
        channels: stored channels (readers mix them to one).
        codec: libav's name of the codec.
        duration_s: end of the last sample, on the pictures' clock.
    """

    sample_rate: int
    channels: int
    codec: str
    duration_s: float


@dataclass(frozen=True)
class MediaInfo:
    """A media file. All times are seconds after the first picture (after the first sample, without pictures).

    Attributes:
        duration_s: until when *every* track has content; windows may lie in ``[start_s, duration_s]``.
        video: the picture track, or ``None``.
        audio: the sound track, or ``None``.
        container: libav's first name of the container format: ``mov`` (which is mp4), ``matroska``, ``avi``, …
        start_s: from when every track has content; above 0 where the sound begins after the picture.
        header_s: what the container's header promises; more than the tracks' durations where it is wrong.
    """

    duration_s: float
    video: VideoInfo | None
    audio: AudioInfo | None
    container: str
    start_s: float = 0.0
    header_s: float = 0.0


def describe_tracks(
    container: Any, pictures: PictureTrack | None, sound: SoundTrack | None, *, verify: bool = False
) -> MediaInfo:
    """Describe an open container; see :func:`avssl_core.media.probe`."""
    tracks: list[Track] = [track for track in (pictures, sound) if track is not None]
    origin = tracks[0].start_s
    claims = [_claimed_end(track) for track in tracks]
    video = _video(pictures) if pictures is not None else None
    if verify or any(_doubtful(container, track, end) for track, end in zip(tracks, claims, strict=True)):
        ends = _measured_ends(tracks, claims)
    else:
        ends = [end if math.isfinite(end) else 0.0 for end in claims]
    spans = [end - origin for end in ends]
    audio = _audio(sound, spans[-1]) if sound is not None else None
    return MediaInfo(
        duration_s=min(spans),
        video=replace(video, duration_s=spans[0]) if video is not None else None,
        audio=audio,
        container=container.format.name.split(",")[0],
        start_s=max(0.0, tracks[-1].start_s - origin),
        header_s=_promised_end(container, origin) if container.duration is not None else max(spans),
    )


def _promised_end(container: Any, origin: float) -> float:
    """When the header says that everything is over; it counts from the first track that begins, not from ours."""
    promised: float = ((container.start_time or 0) + container.duration) / av.time_base - origin
    return promised


def _video(track: PictureTrack) -> VideoInfo:
    frame = _first_picture(track)
    turn, context = orientation(frame), track.stream.codec_context
    width, height = (frame.height, frame.width) if turn.transpose else (frame.width, frame.height)
    return VideoInfo(
        width=width,
        height=height,
        fps=1.0 / track.interval_s,
        codec=context.name,
        pix_fmt=frame.format.name,
        rotation=turn.degrees,
        duration_s=0.0,
    )


def _audio(track: SoundTrack, duration_s: float) -> AudioInfo:
    context = track.stream.codec_context
    return AudioInfo(context.sample_rate, context.channels, context.name, duration_s)


def _first_picture(track: PictureTrack) -> Any:
    track.seek(track.start_s)
    for packet in track.packets():
        for frame in track.decode(packet):
            return frame
    raise DecodeError(track.name, "not one picture can be decoded; the file is damaged or truncated: leave it out")


def _claimed_end(track: Track) -> float:
    """The header's word on where a track ends; infinite where it says nothing about this track."""
    return math.inf if track.header_end_s is None else track.header_end_s


def _doubtful(container: Any, track: Track, end_s: float) -> bool:
    """Whether the header's end is missing, or disagrees with an MP4's sample table or with the size of the file."""
    if not math.isfinite(end_s):
        return True
    entries = track.stream.index_entries
    if not container.format.name.startswith("mov") or not len(entries):
        return False
    last = entries[-1]
    return bool(last.timestamp * track.tick_s + _DOUBT_S < end_s or last.pos + last.size > container.size)


def _measured_ends(tracks: list[Track], claims: list[float]) -> list[float]:
    """Where each track really ends: demux its last stretch, or all of it where that finds nothing."""
    ends = []
    for track, claim in zip(tracks, claims, strict=True):
        end = _last_stamp(track, claim - _DOUBT_S) if math.isfinite(claim) else None
        end = _last_stamp(track, -math.inf) if end is None else end
        if end is None:
            raise DecodeError(
                track.name, f"its {track.stream.type} track holds nothing; the file is truncated: copy it again"
            )
        ends.append(end)
    return ends


def _last_stamp(track: Track, from_s: float) -> float | None:
    """End of the last whole packet that follows a key packet, or ``None``."""
    track.seek(from_s)
    end, seen_key = None, False
    for packet in track.packets():
        at, seen_key = stamp(packet), seen_key or packet.is_keyframe
        if packet.is_corrupt:
            break
        if at is not None and packet.size and seen_key:
            end = max(end if end is not None else -math.inf, (at + (packet.duration or 0)) * track.tick_s)
    return end
