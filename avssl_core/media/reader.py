"""Windows of pictures and sound from a media file, by time.

Self-supervised video learning draws short random windows from long files, millions of times. This reader does what that
needs and nothing more: one window costs one seek, the decoding of what the window shows, and one pass over its pixels.
Times are presentation times, so variable frame rates, edit lists and encoder delays are exact, and picture and sound of
one window belong together to within half a frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any

import av
import numpy as np
import torch
from av.stream import Disposition, Stream
from torch import Tensor

from avssl_core.media.convert import Converter, Size
from avssl_core.media.errors import DecodeError, NoAudioError, NotMediaError, NoVideoError
from avssl_core.media.pictures import PictureTrack
from avssl_core.media.probe import MediaInfo, describe_tracks
from avssl_core.media.sound import SoundTrack
from avssl_core.media.source import Source, describe, open_container
from avssl_core.media.tracks import stamp

# Half a frame at 25 frames a second, where there are no frames to halve.
_SOUND_ONLY_TOLERANCE_S = 0.02
# Container headers are rounded and count the sound's last block; this much more than the tracks have is no rounding.
_INCOMPLETE_S = 0.5


@dataclass(frozen=True)
class VideoWindow:
    """Pictures of one window.

    Attributes:
        frames: RGB, uint8, shape ``(T, 3, H, W)``.
        pts_s: presentation time of each picture in seconds after the file's first one, float64, shape ``(T,)``.
    """

    frames: Tensor
    pts_s: Tensor


@dataclass(frozen=True)
class AVClip:
    """Pictures and sound of one window.

    Attributes:
        frames: RGB, uint8, shape ``(T, 3, H, W)``.
        pts_s: presentation times of the pictures, float64, shape ``(T,)``.
        waveform: mono, float32 in [−1, 1], shape ``(L,)``; ``None`` if no sound was asked for.
        sample_rate: of the waveform, in Hz; ``None`` without one.
        start_s: beginning of the window.
    """

    frames: Tensor
    pts_s: Tensor
    waveform: Tensor | None
    sample_rate: int | None
    start_s: float


class MediaReader:
    """Random access to one file, opened once.

    Seconds count from the first picture (from the first sample where there are no pictures).

    Args:
        source: path, bytes, or :class:`~avssl_core.media.source.TarMember`.
        threads: decoder threads; data workers are parallel already, so the default is one.

    Raises:
        NotMediaError: missing, empty, or not a media file with pictures or sound.

    Example:
        >>> with MediaReader("clip.mp4") as reader:  # doctest: +SKIP
        ...     window = reader.frames(1.0, num_frames=16, fps=16, size=112)
        ...     waveform = reader.samples(1.0, num_samples=24_000, sample_rate=24_000)
    """

    def __init__(self, source: Source, *, threads: int = 1) -> None:
        self._name = describe(source)
        self._container, self._file = open_container(source)
        self._converter = Converter(self._name)
        self._pictures, self._sound = self._find_tracks(threads)
        if self._pictures is None and self._sound is None:
            self.close()
            reason = "holds neither pictures nor sound that can be decoded; an mp4 that was cut off has lost its index"
            raise NotMediaError(self._name, f"{reason}: copy it again, or leave it out")

    def __enter__(self) -> MediaReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; windows that were read stay valid."""
        self._container.close()
        if self._file is not None:
            self._file.close()

    @cached_property
    def info(self) -> MediaInfo:
        """What the file holds, as :func:`~avssl_core.media.probe` finds it without ``verify``."""
        return self.describe()

    def describe(self, *, verify: bool = False) -> MediaInfo:
        """What the file holds; ``verify`` measures where the tracks end instead of believing the header."""
        return describe_tracks(self._container, self._pictures, self._sound, verify=verify)

    def frames(self, start_s: float, *, num_frames: int, fps: float, size: Size = None) -> VideoWindow:
        """Read the pictures nearest in time to ``start_s + k / fps`` for k = 0 … num_frames − 1.

        A time counts as inside the file from half a frame before the first picture to half a frame after the last one;
        where more frames a second are asked for than there are, to half an asked frame before the last picture's end.

        Args:
            start_s: beginning of the window in seconds.
            num_frames: pictures to return, T ≥ 1.
            fps: pictures a second, > 0; above the file's own rate pictures repeat.
            size: ``None`` (as stored), the short side, or ``(height, width)``, of the upright picture.

        Returns:
            The window; frames of shape ``(num_frames, 3, H, W)``.

        Raises:
            NoVideoError, WindowError, DecodeError: no pictures, outside the file, damaged.
            ValueError: arguments out of range.
        """
        track = self._require_pictures()
        if num_frames < 1 or fps <= 0:
            raise ValueError(f"num_frames={num_frames}, fps={fps}: expected at least one picture at a positive rate")
        _require_finite(start_s)
        times = track.start_s + start_s + np.arange(num_frames, dtype=np.float64) / fps
        chosen = track.nearest(times)
        return self._window(track, chosen, size)

    def samples(self, start_s: float, *, num_samples: int, sample_rate: int) -> Tensor:
        """Read sound from ``start_s`` on, mixed to mono and resampled.

        Args:
            start_s: beginning of the window in seconds on the pictures' clock.
            num_samples: samples to return, L ≥ 1.
            sample_rate: in Hz.

        Returns:
            float32 in [−1, 1], shape ``(num_samples,)``. Up to half a frame beyond the ends of the track is silent.

        Raises:
            NoAudioError, WindowError, DecodeError: no sound, outside the track, damaged.
            ValueError: arguments out of range.
        """
        track = self._require_sound()
        if num_samples < 1 or sample_rate < 1:
            raise ValueError(f"num_samples={num_samples}, sample_rate={sample_rate}: expected both to be positive")
        _require_finite(start_s)
        tolerance = 0.5 * self._pictures.interval_s if self._pictures is not None else _SOUND_ONLY_TOLERANCE_S
        at = self._origin_s + start_s
        data = track.window(at, num_samples=num_samples, sample_rate=sample_rate, tolerance_s=tolerance)
        return torch.from_numpy(data)

    def whole(self, *, fps: float | None, size: Size, sample_rate: int | None, max_s: float | None = None) -> AVClip:
        """Read everything from time 0 on; see :func:`read_all`."""
        until = self._origin_s + (math.inf if max_s is None else max_s)
        frames, pts = torch.empty(0, 3, 0, 0, dtype=torch.uint8), torch.empty(0, dtype=torch.float64)
        if fps is not None:
            track = self._require_pictures()
            window = self._window(track, track.paced(self._origin_s, fps, until), size)
            frames, pts = window.frames, window.pts_s
        waveform = None
        if sample_rate is not None:
            data = self._require_sound().whole(self._origin_s, sample_rate=sample_rate, until_s=until)
            waveform = torch.from_numpy(data)
        if max_s is None:
            self._require_complete()
        return AVClip(frames, pts, waveform, sample_rate, 0.0)

    def _require_complete(self) -> None:
        """Raise if no track reaches what the container promises: each may seem whole where the file was cut."""
        tracks = (self.info.video, self.info.audio)
        end = max(track.duration_s for track in tracks if track is not None)
        if end + _INCOMPLETE_S < self.info.header_s:
            reason = (
                f"ends at {end:.3f} s although its header promises {self.info.header_s:.3f} s; truncated, or a wrong "
            )
            raise DecodeError(self._name, reason + "header: copy it again, or pass max_s to take what is there")

    @property
    def _origin_s(self) -> float:
        track = self._pictures or self._sound
        return track.start_s if track is not None else 0.0

    def _find_tracks(self, threads: int) -> tuple[PictureTrack | None, SoundTrack | None]:
        pictures, sound = None, None
        stream: Any
        for stream in self._container.streams:
            if stream.codec_context is None:
                continue
            if stream.type == "video" and pictures is None and not _is_cover(stream):
                pictures = PictureTrack(self._container, stream, self._name, threads=threads)
            elif stream.type == "audio" and sound is None and stream.codec_context.sample_rate:
                sound = SoundTrack(self._container, stream, self._name)
        return pictures, sound

    def _require_pictures(self) -> PictureTrack:
        if self._pictures is None:
            raise NoVideoError(self._name, "has no pictures; ask it for samples only, or leave it out")
        return self._pictures

    def _require_sound(self) -> SoundTrack:
        if self._sound is None:
            raise NoAudioError(self._name, "has no sound; ask it for frames only (sample_rate=None), or leave it out")
        return self._sound

    def _window(self, track: PictureTrack, chosen: Iterable[av.VideoFrame], size: Size) -> VideoWindow:
        """Convert frames as they come, noting when each is shown."""
        pts: list[float] = []

        def noted() -> Iterator[av.VideoFrame]:
            for frame in chosen:
                pts.append((stamp(frame) or 0) * track.tick_s - self._origin_s)
                yield frame

        pixels = self._converter.to_rgb(noted(), size=size)
        return VideoWindow(torch.from_numpy(pixels), torch.tensor(pts, dtype=torch.float64))


def probe(source: Source, *, verify: bool = False) -> MediaInfo:
    """Find out what a file holds.

    Reads the header and one picture. Where the header is silent or contradicts the container's own index, the end is
    measured from packets; ``verify`` always measures it.

    Raises:
        NotMediaError, DecodeError: not media; nothing in it can be decoded.
    """
    with MediaReader(source) as reader:
        return reader.describe(verify=verify)


def read_clip(
    source: Source,
    start_s: float,
    *,
    num_frames: int,
    fps: float,
    size: Size = None,
    sample_rate: int | None = None,
    audio_s: float | None = None,
) -> AVClip:
    """Read one window of pictures, and of sound where ``sample_rate`` is given; see :class:`MediaReader`.

    Args:
        source: path, bytes, or tar member.
        start_s: beginning of both in seconds.
        num_frames: pictures.
        fps: pictures a second.
        size: ``None``, short side, or ``(height, width)``.
        sample_rate: in Hz; ``None`` reads no sound.
        audio_s: seconds of sound; by default as long as the pictures, ``num_frames / fps``.
    """
    with MediaReader(source) as reader:
        window = reader.frames(start_s, num_frames=num_frames, fps=fps, size=size)
        waveform = None
        if sample_rate is not None:
            seconds = num_frames / fps if audio_s is None else audio_s
            waveform = reader.samples(start_s, num_samples=round(seconds * sample_rate), sample_rate=sample_rate)
    return AVClip(window.frames, window.pts_s, waveform, sample_rate, start_s)


def read_all(
    source: Source, *, fps: float | None, size: Size, sample_rate: int | None, max_s: float | None = None
) -> AVClip:
    """Read a whole file in order, for caches: pictures at ``k / fps`` and sound from time 0.

    Args:
        source: path, bytes, or tar member.
        fps: pictures a second; ``None`` reads no pictures.
        size: ``None``, short side, or ``(height, width)``.
        sample_rate: in Hz; ``None`` reads no sound.
        max_s: read no more than this.

    Raises:
        NotMediaError, NoVideoError, NoAudioError: something asked for is not there.
        DecodeError: damaged, or shorter than the header promises (then pass ``max_s``).
    """
    with MediaReader(source) as reader:
        return reader.whole(fps=fps, size=size, sample_rate=sample_rate, max_s=max_s)


def _is_cover(stream: Stream) -> bool:
    """Whether a video stream is a still that music players show."""
    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails))


def _require_finite(start_s: float) -> None:
    if not math.isfinite(start_s):
        raise ValueError(f"start_s={start_s}: expected a number of seconds")
