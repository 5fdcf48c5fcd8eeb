"""Media files made in tests, with every frame numbered so that no test has to trust a decoder's frame count."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from torch import Tensor

BITS = 8


def numbered(count: int, *, height: int = 64, width: int = 96, first: int = 0) -> np.ndarray:
    """``(T, H, W, 3)`` pictures whose eight vertical bars spell the frame's number, over a moving texture below."""
    y, x = np.mgrid[:height, :width]
    frames = np.empty((count, height, width, 3), np.uint8)
    for index in range(count):
        bits = (first + index) >> (x * BITS // width) & 1
        texture = np.stack([(x * 2 + index * 5) % 256, (y * 3 + index * 2) % 256, (x + y) % 256], axis=-1)
        frames[index] = np.where(y[..., None] < height // 2, bits[..., None] * 255, texture)
    return frames


def number_of(frame: Tensor) -> int:
    """Read the number back from ``(3, H, W)``, whatever the size."""
    _, height, width = frame.shape
    row = frame[:, height // 8 : height * 3 // 8].float().mean(dim=(0, 1)).numpy()  # (W,)
    bars = [row[round((k + 0.25) * width / BITS) : round((k + 0.75) * width / BITS)].mean() for k in range(BITS)]
    return sum(1 << k for k, bar in enumerate(bars) if bar > 127)


def numbers(frames: Tensor) -> list[int]:
    return [number_of(frame) for frame in frames]


def tone(seconds: float, *, rate: int, hertz: float = 440.0, channels: int = 1, level: float = 0.5) -> np.ndarray:
    """A sine, ``(C, L)`` float32, the same in every channel."""
    time = np.arange(round(seconds * rate)) / rate
    return np.tile((level * np.sin(2 * np.pi * hertz * time)).astype(np.float32), (channels, 1))


def encode(
    path: Path,
    pictures: np.ndarray | None = None,
    sound: np.ndarray | None = None,
    *,
    fps: int = 25,
    times_ms: Sequence[int] | None = None,
    codec: str = "mpeg4",
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    b_frames: int = 0,
    options: dict[str, str] | None = None,
    rate: int = 16_000,
    layout: str = "mono",
    audio_codec: str = "aac",
    turn: dict[str, Any] | None = None,
    container: str | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode with PyAV directly: everything the library's own writer does not offer.

    Args:
        path: where to write.
        pictures: ``(T, H, W, 3)`` uint8.
        sound: ``(C, L)`` float32.
        times_ms: presentation times of the pictures; by default ``k / fps``.
        turn: arguments of PyAV's ``set_display_rotation``.
    """
    kind = {"format": container} if container else {}
    with av.open(str(path), "w", options=container_options or {}, **kind) as out:
        video = audio = None
        if pictures is not None:
            video = out.add_stream(codec, rate=fps, options=options or {})
            video.height, video.width = pictures.shape[1:3]
            video.pix_fmt = pix_fmt
            context = video.codec_context
            context.gop_size, context.max_b_frames, context.thread_count = gop, b_frames, 1
            if times_ms is not None:
                context.time_base = Fraction(1, 1000)
            if codec in ("mpeg4", "mpeg1video", "mpeg2video"):
                context.qscale, context.global_quality = True, 2 * 118
            if turn is not None:
                video.set_display_rotation(**turn)
        if sound is not None:
            audio = out.add_stream(audio_codec, rate=rate, layout=layout)
        if video is not None and pictures is not None:
            for index, picture in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
                frame.pts = index if times_ms is None else times_ms[index]
                frame.time_base = Fraction(1, fps) if times_ms is None else Fraction(1, 1000)
                out.mux(video.encode(frame))
            out.mux(video.encode(None))
        if audio is not None and sound is not None:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            context = audio.codec_context
            size = context.frame_size or 1024
            resampler = av.AudioResampler(format=context.format, layout=layout, rate=rate, frame_size=size)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                out.mux(audio.encode(part))
            out.mux(audio.encode(None))
    return path


def promise_duration(path: Path, seconds: int) -> None:
    """Overwrite the duration in every header of an MP4 (version 0 boxes) or a Matroska file."""
    data = bytearray(path.read_bytes())
    if data.startswith(b"\x1aE\xdf\xa3"):
        at = data.index(b"\x44\x89\x88")  # Duration, eight bytes, in milliseconds
        struct.pack_into(">d", data, at + 3, seconds * 1000.0)
    else:
        movie_scale = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)[0]
        struct.pack_into(">I", data, data.index(b"mvhd") + 20, seconds * movie_scale)
        for at in _positions(data, b"tkhd"):
            struct.pack_into(">I", data, at + 24, seconds * movie_scale)
        for at in _positions(data, b"mdhd"):
            scale = struct.unpack_from(">I", data, at + 16)[0]
            struct.pack_into(">I", data, at + 20, seconds * scale)
        for at in _positions(data, b"elst"):
            struct.pack_into(">I", data, at + 12, seconds * movie_scale)
    path.write_bytes(data)


def _positions(data: bytes | bytearray, tag: bytes) -> list[int]:
    found, at = [], data.find(tag)
    while at >= 0:
        found.append(at)
        at = data.find(tag, at + 1)
    return found
