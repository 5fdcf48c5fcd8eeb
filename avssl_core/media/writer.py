"""Pictures and sound to an encoded file: what the playground's worlds are stored as.

MPEG-4 Part 2 with an I picture every 12 and no B pictures is what the compressed-video literature trains on, so it is
the default. The same input gives the same bytes: one encoder thread, no dates, no library versions in the file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
import numpy.typing as npt
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

Frames: TypeAlias = Tensor | npt.NDArray[np.uint8]

_BITEXACT_FORMAT = 0x0400  # AVFMT_FLAG_BITEXACT
_BITEXACT_CODEC = 1 << 23  # AV_CODEC_FLAG_BITEXACT
_QUANTISED = ("mpeg4", "mpeg2video", "mpeg1video", "mjpeg")


def write_clip(
    path: str | Path,
    frames: Frames,
    waveform: Tensor | npt.NDArray[np.float32] | None = None,
    *,
    fps: float | Fraction = 25,
    sample_rate: int = 16_000,
    video_codec: str = "mpeg4",
    gop: int = 12,
    quantiser: int = 3,
    b_frames: int = 0,
    audio_codec: str = "aac",
    audio_bitrate: int = 64_000,
) -> None:
    """Encode a clip; the file appears whole or not at all.

    Args:
        path: where to write; the suffix chooses the container (``.mp4`` for the default codecs).
        frames: RGB, uint8: a tensor ``(T, 3, H, W)`` or an array ``(T, H, W, 3)``, T ≥ 1. Odd sizes are allowed.
        waveform: mono in [−1, 1], shape ``(L,)``; it begins with the first picture. ``None`` writes no sound track.
        fps: pictures a second.
        sample_rate: of the waveform, in Hz.
        video_codec: libav encoder (``mpeg4``, ``libx264``, ``ffv1``, …).
        gop: pictures from one I picture to the next, at most.
        quantiser: constant quantiser, 1 (best) to 31; for x264 and x265 the constant QP, 0 to 51.
        b_frames: B pictures between two others, at most.
        audio_codec: libav encoder (``aac``, ``libmp3lame``, ``pcm_s16le``, …).
        audio_bitrate: in bits a second.

    Raises:
        ValueError: shapes, types or ranges are wrong.
    """
    path, pictures = Path(path), _as_pictures(frames)
    sound = _as_sound(waveform)
    rate = Fraction(fps).limit_denominator(100_000)
    if rate <= 0 or sample_rate < 1:
        raise ValueError(f"fps={fps}, sample_rate={sample_rate}: expected both to be positive")
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem[:40]}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        with av.open(
            f"file:{temporary}", "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}
        ) as out:
            out.flags |= _BITEXACT_FORMAT
            video = _video_stream(out, video_codec, pictures.shape[2], pictures.shape[1], rate)
            _configure(video.codec_context, video_codec, gop=gop, quantiser=quantiser, b_frames=b_frames)
            audio = None if sound is None else _audio_stream(out, audio_codec, sample_rate, audio_bitrate)
            _encode_pictures(out, video, pictures, rate)
            if audio is not None and sound is not None:
                _encode_sound(out, audio, sound, sample_rate)
        _share(temporary)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _as_pictures(frames: Frames) -> npt.NDArray[np.uint8]:
    """Check, and bring to ``(T, H, W, 3)``."""
    if isinstance(frames, Tensor):
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or not len(frames):
            raise ValueError(f"expected a uint8 tensor (T, 3, H, W), T ≥ 1; got {frames.dtype} {tuple(frames.shape)}")
        return frames.detach().cpu().permute(0, 2, 3, 1).contiguous().numpy()  # (T, 3, H, W) -> (T, H, W, 3)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"expected a uint8 array (T, H, W, 3), T ≥ 1; got {frames.dtype} {frames.shape}")
    return np.ascontiguousarray(frames)


def _as_sound(waveform: Tensor | npt.NDArray[np.float32] | None) -> npt.NDArray[np.float32] | None:
    """Check, and bring to ``(1, L)``."""
    if waveform is None:
        return None
    data = np.asarray(waveform.detach().cpu() if isinstance(waveform, Tensor) else waveform, dtype=np.float32)
    if data.ndim != 1 or not len(data) or not np.isfinite(data).all():
        raise ValueError(f"expected a finite mono waveform of shape (L,), L ≥ 1; got shape {data.shape}")
    return np.clip(data, -1.0, 1.0)[None]


def _video_stream(out: Any, codec: str, width: int, height: int, rate: Fraction) -> Any:
    stream = out.add_stream(codec, rate=rate)
    stream.width, stream.height = width, height
    known = [f.name for f in stream.codec_context.codec.video_formats or ()]
    # Chroma planes of odd pictures are rounded up by every encoder that takes 4:2:0; those that do not want 4:4:4.
    stream.pix_fmt = "yuv420p" if "yuv420p" in known or not known else known[0]
    stream.codec_context.time_base = 1 / rate
    return stream


def _configure(context: Any, codec: str, *, gop: int, quantiser: int, b_frames: int) -> None:
    context.gop_size, context.max_b_frames, context.thread_count = gop, b_frames, 1
    context.flags |= _BITEXACT_CODEC
    if codec in _QUANTISED:
        # libav takes a fixed quantiser from each frame's own field, which PyAV leaves at 0: clamp it from both sides.
        context.qscale = True
        context.options = {"qmin": str(quantiser), "qmax": str(quantiser)}
    elif codec in ("libx264", "libx265"):
        # Scene cuts would move the I pictures; a slow preset saves bytes that a playground does not miss.
        context.options = {"qp": str(quantiser), "preset": "veryfast", "sc_threshold": "0"}


def _audio_stream(out: Any, codec: str, sample_rate: int, bitrate: int) -> Any:
    # The two-loop search of libav's AAC encoder takes more time than all the pictures of a clip.
    stream = out.add_stream(
        codec, rate=sample_rate, layout="mono", options={"aac_coder": "fast"} if codec == "aac" else {}
    )
    stream.codec_context.bit_rate = bitrate
    stream.codec_context.thread_count = 1
    stream.codec_context.flags |= _BITEXACT_CODEC
    return stream


def _encode_pictures(out: Any, stream: Any, pictures: npt.NDArray[np.uint8], rate: Fraction) -> None:
    converter, tick = VideoReformatter(), 1 / rate
    for index, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = converter.reformat(frame, format=stream.pix_fmt, threads=1)
        frame.pts, frame.time_base = index, tick
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def _encode_sound(out: Any, stream: Any, sound: npt.NDArray[np.float32], sample_rate: int) -> None:
    for frame in _sound_frames(stream, sound, sample_rate):
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def _sound_frames(stream: Any, sound: npt.NDArray[np.float32], sample_rate: int) -> Iterator[av.AudioFrame]:
    """The waveform in the encoder's sample format, beginning at time 0."""
    frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = sample_rate, 0, Fraction(1, sample_rate)
    context = stream.codec_context
    # PCM takes blocks of any length; one block as long as the file could not be sought into.
    size = context.frame_size or 1024
    resampler = av.AudioResampler(format=context.format, layout="mono", rate=context.sample_rate, frame_size=size)
    yield from resampler.resample(frame)
    yield from resampler.resample(None)


def _share(path: str) -> None:
    """Give a temporary file, which only its owner may read, the mode that a plain new file would have."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)
