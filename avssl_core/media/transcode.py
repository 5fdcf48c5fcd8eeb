"""A film of any kind to the form that compressed-domain reading wants, picture by picture.

MPEG-4 Part 2, an I picture every ``gop`` pictures and nowhere else, no B pictures, one quantiser throughout, AAC beside
it: what :class:`~avssl_core.media.CompressedReader` takes apart by groups. Pictures and sound are decoded, converted
and encoded side by side, so a film of two hours takes no more memory than a clip of two seconds.

The written file shows what the readers show of its source: pictures stand upright, the picture of each moment is the
nearest in time, and times count from the first picture. Sound is the readers' mono mix at the source's own sample rate;
it begins and ends where the source's does, as long as that is within the pictures.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from avssl_core.media import writer
from avssl_core.media.convert import Converter, Orientation, Size, orientation, target_size
from avssl_core.media.errors import DecodeError
from avssl_core.media.gops import MPEG4
from avssl_core.media.source import Source, describe
from avssl_core.media.survey import MOST_FPS, Survey, Tracks, encodable
from avssl_core.media.unbroken import UnbrokenSound

_MOST_PIXELS = 8191  # of a side (13 bits)
_MOST_GOP = 600  # libav shortens longer groups without a word
_LAMBDA = 118  # libav's Lagrange multiplier for quantiser 1 (FF_QP2LAMBDA)
# The readers', and colour at every pixel: where the colour space changes, libswscale darkens by 2/255 without that.
_SCALING = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


@dataclass(frozen=True)
class Transcoded:
    """What was written.

    Attributes:
        pictures: number.
        rate: pictures a second.
        height: pixels.
        width: pixels.
        sound_s: end of the sound in seconds after the first picture; ``None`` without sound.
    """

    pictures: int
    rate: Fraction
    height: int
    width: int
    sound_s: float | None


def transcode(
    source: Source,
    path: str | Path,
    *,
    size: Size = None,
    gop: int = 12,
    quantiser: int = 3,
    fps: float | Fraction | None = None,
    audio_bitrate: int = 96_000,
) -> Transcoded:
    """Write a film as MPEG-4 Part 2 and AAC; the file appears whole or not at all.

    Args:
        source: path, bytes, or tar member.
        path: where to write, ``….mp4``.
        size: ``None`` (as it is), the short side, or ``(height, width)``, of the upright picture; odd sizes are
            allowed. Non-square pixels are not stretched.
        gop: pictures of each group, 2 to 600; only the last may be shorter.
        quantiser: constant, 1 (best) to 31.
        fps: pictures a second; the source's average rate by default. Each picture is the source's nearest in time.
        audio_bitrate: in bits a second.

    Returns:
        What was written.

    Raises:
        NotMediaError, NoVideoError, NoAudioError: not media; no pictures; a sound track without a sample.
        DecodeError: cut off or damaged anywhere, or the picture's size changes and ``size`` does not say to what.
        OSError: ``path`` cannot be written.
        ValueError: arguments out of range.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"{path}: expected a name that ends in .mp4, as that is what is written")
    require_settings(size=size, gop=gop, quantiser=quantiser, fps=fps)
    # Twice, because pictures and sound are read side by side and each has its own place in the file.
    with Tracks(source) as seen, Tracks(source) as heard:
        found = seen.survey()
        rate = found.rate if fps is None else encodable(Fraction(fps))
        height, width = target_size(found.height, found.width, size)
        require_settings(size=(height, width), gop=gop, quantiser=quantiser, fps=fps)
        seen.pictures.interval_s = 1 / float(found.rate)  # how long its last picture is shown
        prepare = _Preparation(describe(source), found, (height, width), fixed=size is not None)
        with _appearing(path) as temporary:
            try:
                with av.open(f"file:{temporary}", "w", format="mp4", options={"movflags": "faststart"}) as out:
                    out.flags |= writer._BITEXACT_FORMAT
                    video = _video_stream(out, height, width, rate, gop=gop, quantiser=quantiser)
                    sound = None
                    if found.sound:
                        sound = _SoundWriter(out, heard.unbroken(seen.pictures.start_s), audio_bitrate)
                    count = _encode(out, video, seen.paced(rate), prepare, rate, sound)
            except av.FFmpegError as error:  # reading names its own errors: these are the encoder's or the disk's
                raise OSError(error.errno, f"cannot be written ({error.strerror})", str(path)) from error
    return Transcoded(count, rate, height, width, None if sound is None else sound.end_s)


def require_settings(*, size: Size, gop: int, quantiser: int, fps: float | Fraction | None) -> None:
    """Raise unless :func:`transcode` takes these; for who wants to know before the first film.

    Raises:
        ValueError: out of range.
    """
    sides = size if isinstance(size, tuple) else () if size is None else (size,)
    if not all(1 <= side <= _MOST_PIXELS for side in sides):
        raise ValueError(f"size={size}: expected sides of 1 to {_MOST_PIXELS} pixels")
    if not 2 <= gop <= _MOST_GOP:
        raise ValueError(f"gop={gop}: expected groups of 2 to {_MOST_GOP} pictures")
    if not 1 <= quantiser <= 31:
        raise ValueError(f"quantiser={quantiser}: expected 1 (best) to 31")
    if fps is not None and not 0 < fps <= MOST_FPS:
        raise ValueError(f"fps={fps}: expected more than 0 and at most {MOST_FPS} pictures a second")


@contextmanager
def _appearing(path: Path) -> Iterator[str]:
    """A temporary name beside ``path``, renamed to it where all went well and removed where not."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem[:40]}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        yield temporary
        writer._share(temporary)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _video_stream(out: Any, height: int, width: int, rate: Fraction, *, gop: int, quantiser: int) -> Any:
    """An encoder with one quantiser and I pictures at multiples of ``gop`` alone."""
    stream = writer._video_stream(out, MPEG4, width, height, rate)
    context = stream.codec_context
    writer._configure(context, MPEG4, gop=gop, quantiser=quantiser, b_frames=0)
    # The quantiser's own multiplier, so that a vector is coded only where it saves more bits than it costs. With
    # libav's fixed-quantiser mode it would be 0 here, and flat regions would get random vectors.
    context.qscale = False
    multiplier = str(quantiser * _LAMBDA)
    # A scene cut must not start a group of its own.
    context.options = context.options | {"lmin": multiplier, "lmax": multiplier, "sc_threshold": "1000000000"}
    return stream


def _encode(
    out: Any,
    stream: Any,
    frames: Iterator[av.VideoFrame],
    prepare: _Preparation,
    rate: Fraction,
    sound: _SoundWriter | None,
) -> int:
    """Pictures, and after each the sound that belongs to it; the number of pictures."""
    count = 0
    for count, frame in enumerate(frames, start=1):
        picture = prepare(frame)
        picture.pts, picture.time_base = count - 1, 1 / rate
        picture.pict_type = PictureType.NONE  # decoded pictures carry theirs, and the encoder would obey
        out.mux(stream.encode(picture))
        if sound is not None:
            sound.write(float(count / rate))
    out.mux(stream.encode(None))
    if sound is not None:
        sound.finish()
    return count


class _Preparation:
    """Decoded pictures to what the encoder takes: upright, scaled, 4:2:0 in the colours of untagged video.

    Args:
        name: the source, for messages.
        found: its survey.
        size: height and width to make.
        fixed: whether the caller chose them; otherwise all pictures must have the size of the first.
    """

    def __init__(self, name: str, found: Survey, size: tuple[int, int], *, fixed: bool) -> None:
        self._name, self._found, self._size, self._fixed = name, found, size, fixed
        self._scaler, self._converter = VideoReformatter(), Converter(name)
        self._last: tuple[av.VideoFrame, av.VideoFrame] | None = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        if self._last is None or self._last[0] is not frame:
            self._last = frame, self._prepared(frame)
        return self._last[1]

    def _prepared(self, frame: av.VideoFrame) -> av.VideoFrame:
        turn, (height, width) = orientation(frame), self._size
        shown = (frame.width, frame.height) if turn.transpose else (frame.height, frame.width)
        if not self._fixed and shown != self._size:
            found = f"the picture size changes from {self._size} to {shown} (height, width)"
            raise DecodeError(self._name, f"{found}; pass a size")
        if turn != Orientation():
            pixels = self._converter.to_rgb([frame], size=self._size)[0].transpose(1, 2, 0)  # (3, H, W) -> (H, W, 3)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        # Straight from the source's to the encoder's planes, without a detour by RGB: a third of the time.
        return self._scaler.reformat(
            frame, width=width, height=height, format="yuv420p", interpolation=_SCALING, threads=1,
            dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG,
        )  # fmt: skip


class _SoundWriter:
    """Mono AAC at the rate of the sound, or the nearest above that AAC has."""

    def __init__(self, out: Any, sound: UnbrokenSound, bitrate: int) -> None:
        self._out, self._sound = out, sound
        rates = sorted(av.codec.Codec("aac", "w").audio_rates or (sound.rate,))
        rate = next((rate for rate in rates if rate >= sound.rate), rates[-1])
        self._stream = writer._audio_stream(out, "aac", rate, bitrate)
        self._resampler: av.AudioResampler | None = None
        self.end_s = 0.0

    def write(self, until_s: float) -> None:
        """Encode what comes before a time in seconds after the first picture."""
        at, samples = self._sound.until(until_s)
        if not len(samples):
            return
        rate = self._sound.rate
        frame = av.AudioFrame.from_ndarray(np.clip(samples, -1.0, 1.0)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
        self._encode(frame)
        self.end_s = (at + len(samples)) / rate

    def finish(self) -> None:
        """Encode what is left.

        Raises:
            DecodeError: there was nothing at all.
        """
        if self._resampler is None:
            raise DecodeError(self._sound.name, "its sound lies wholly outside its pictures; leave it out")
        self._encode(None)
        self._out.mux(self._stream.encode(None))

    def _encode(self, frame: av.AudioFrame | None) -> None:
        context = self._stream.codec_context
        if self._resampler is None:  # not before: a codec knows its block only once it is open
            self._resampler = av.AudioResampler(
                format=context.format, layout="mono", rate=context.sample_rate, frame_size=context.frame_size or 1024
            )
        for block in self._resampler.resample(frame):
            self._out.mux(self._stream.encode(block))
