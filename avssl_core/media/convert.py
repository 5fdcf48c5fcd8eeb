"""Decoded pictures to RGB arrays: one pass of libswscale for colour and size, then the display matrix.

libswscale writes planar RGB straight into what becomes the tensor's channel planes. Packed RGB, which most loaders ask
for, costs a second pass over the pixels and a transposition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type
from av.video.reformatter import Interpolation, VideoReformatter

from avssl_core.media.errors import DecodeError

Size: TypeAlias = int | tuple[int, int] | None
Pixels: TypeAlias = npt.NDArray[np.uint8]

# Triangular when shrinking, so it does not alias. Accurate rounding matters at the stored size: libswscale's fast route
# to planar RGB leaves the last columns of widths like 360 unwritten (seen in version 9.5) and darkens by 1/255.
_SCALING = Interpolation.BILINEAR | Interpolation.ACCURATE_RND

_PLANES = ((0, 2), (1, 0), (2, 1))  # channel of the tensor, plane of the "gbrp" format


class Orientation(NamedTuple):
    """How coded pictures are turned for display: transposed first, then mirrored along x and along y."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def degrees(self) -> int:
        """The clockwise rotation (0, 90, 180, 270) among it; a mirrored picture has the rotation left after that."""
        if self.transpose:
            return 90 if self.flip_x else 270
        return 180 if self.flip_y else 0


def orientation(frame: av.VideoFrame) -> Orientation:
    """Read the display matrix that phones write instead of turning their pixels (ISO/IEC 14496-12, 6.2.2)."""
    side_data: Mapping[Any, Any] = frame.side_data
    data = side_data.get(Type.DISPLAYMATRIX)
    if data is None:
        return Orientation()
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), dtype="<i4", count=9)  # x' = ax + cy, y' = bx + dy
    transpose = abs(b) > abs(a)
    return Orientation(bool(transpose), bool((c if transpose else a) < 0), bool((b if transpose else d) < 0))


def target_size(height: int, width: int, size: Size) -> tuple[int, int]:
    """Height and width after scaling: unchanged, by the short side with the aspect kept, or as given."""
    if size is None:
        return height, width
    if not isinstance(size, int):
        return size
    short = min(height, width)
    return max(1, round(height * size / short)), max(1, round(width * size / short))


class Converter:
    """Turns frames of one file into ``(T, 3, H, W)`` RGB, reusing libswscale's tables between calls."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._scaler = VideoReformatter()

    def to_rgb(self, frames: Iterable[av.VideoFrame], *, size: Size) -> Pixels:
        """Convert and scale; one frame at a time, so decoded pictures need not be kept.

        Bilinear, with a wider triangle when shrinking so that nothing aliases. Non-square pixels are not stretched.

        Args:
            frames: at least one frame; consecutive repetitions are converted once.
            size: see :func:`target_size`; counted on the upright picture.

        Returns:
            uint8 of shape ``(T, 3, H, W)``.

        Raises:
            DecodeError: ``size`` is ``None`` and the frames differ in size.
        """
        out: list[Pixels] = []
        turn, coded, previous = Orientation(), (0, 0), None
        for frame in frames:
            if previous is None:
                turn = orientation(frame)
                coded = _coded_size(frame, turn, size)
            elif size is None and (frame.height, frame.width) != coded:
                found = f"the picture size changes from {coded} to {(frame.height, frame.width)} (height, width)"
                raise DecodeError(self._name, found + "; pass a size")
            out.append(out[-1] if frame is previous else self._converted(frame, coded))
            previous = frame
        return _turned(np.stack(out), turn)

    def _converted(self, frame: av.VideoFrame, coded: tuple[int, int]) -> Pixels:
        """One frame as ``(3, H, W)``, not yet turned upright."""
        height, width = coded
        planar = self._scaler.reformat(
            frame, width=width, height=height, format="gbrp", interpolation=_SCALING, threads=1
        )
        out, planes = np.empty((3, height, width), np.uint8), planar.planes
        for channel, index in _PLANES:
            plane = planes[index]
            out[channel] = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)[:, :width]
        return out


def unscaled_rgb(frames: Iterable[av.VideoFrame]) -> Pixels:
    """Frames at their own size with each colour sample repeated over its pixels, not interpolated between them.

    libswscale's route for unscaled 4:2:0, and so the pictures that FFmpeg's and OpenCV's defaults give; published
    loaders compute with them. At odd heights those defaults do interpolate colours, and so does this. Display matrices
    are not applied: motion vectors live on the coded picture.

    Returns:
        uint8 of shape ``(T, 3, H, W)``.

    Raises:
        ValueError: the frames differ in size.
    """
    scaler, out = VideoReformatter(), []
    for frame in frames:
        odd = bool(frame.height % 2)  # then the route depends on the filter, and its last bits on the order of colours
        form, interpolation = ("bgr24", Interpolation.BICUBIC) if odd else ("rgb24", Interpolation.POINT)
        plane = scaler.reformat(frame, format=form, interpolation=interpolation, threads=1).planes[0]
        packed = np.frombuffer(memoryview(plane), np.uint8).reshape(frame.height, plane.line_size)
        pixels = packed[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)
        out.append(pixels[..., ::-1] if odd else pixels)
    return np.ascontiguousarray(np.stack(out).transpose(0, 3, 1, 2))  # (T, H, W, 3) -> (T, 3, H, W)


def _coded_size(frame: av.VideoFrame, turn: Orientation, size: Size) -> tuple[int, int]:
    """Height and width to scale to before turning upright."""
    shown = (frame.width, frame.height) if turn.transpose else (frame.height, frame.width)
    height, width = target_size(*shown, size)
    return (width, height) if turn.transpose else (height, width)


def _turned(pixels: Pixels, turn: Orientation) -> Pixels:
    """Apply a display orientation to ``(T, 3, H, W)``."""
    if turn.transpose:
        pixels = pixels.swapaxes(2, 3)
    if turn.flip_x:
        pixels = pixels[..., ::-1]
    if turn.flip_y:
        pixels = pixels[..., ::-1, :]
    return np.ascontiguousarray(pixels)
