"""What decoders are asked for in compressed-domain reading, each by the cheapest route a stock libav offers.

* Intra pictures: their packets alone, to a plain decoder.
* Motion vectors: the packets of the wanted P pictures alone. Vectors are predicted from neighbours within a picture, so
  the pictures in between need not be decoded; and as nobody looks at the samples, the decoder is told to leave out the
  inverse transform and to reconstruct at an eighth of the size. The vectors stay those of the full size.
* Coded residuals: each P packet after a flat grey intra picture. Motion compensation of a constant is that constant, so
  the result minus 128 is the prediction error that the bitstream carries. What it needs of the bitstream's other
  pictures is nothing. The grey picture is decoded anew for every P picture: of two pictures in one packet libav gives
  back the first alone.
* Pixel residuals (CoViAR's): all pictures of the group, as there the residual is *computed* from decoded pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags

from avssl_core.media.errors import DecodeError, StructureError
from avssl_core.media.gops import Structure
from avssl_core.media.motion_vectors import Blocks, blocks_of
from avssl_core.media.mpeg4 import grey_picture

# The MPEG-4 decoder reads ahead of the end of a packet. Without zeros there its result differs from run to run.
_PADDING = bytes(64)
_GREY = np.uint8(128)
_VECTORS = {"flags2": "+export_mvs"}
# Vectors and nothing else: an eighth of the size, no inverse transform.
_VECTORS_ALONE = {**_VECTORS, "lowres": "3", "skip_idct": "all"}

Planes = tuple[npt.NDArray[np.int8], npt.NDArray[np.int8], npt.NDArray[np.int8]]


@dataclass(frozen=True)
class CodedPicture:
    """One P picture decoded alone.

    Attributes:
        planes: prediction error of Y ``(H, W)``, U and V ``(⌈H/2⌉, ⌈W/2⌉)``, int8; in intra blocks the picture itself,
            minus 128.
        blocks: its vectors.
    """

    planes: Planes
    blocks: Blocks


class Decoders:
    """Decoders for one stream, opened when first needed and kept.

    Args:
        stream: PyAV's stream, for codec and header.
        structure: of the stream.
        header: the stream's header where the container has none outside the packets (AVI, raw streams).
        name: the source, for messages.
    """

    def __init__(self, stream: Any, structure: Structure, header: bytes, name: str) -> None:
        self._codec, self._structure, self._name = stream.codec_context.name, structure, name
        self._header = stream.codec_context.extradata or header
        self._tick_s = float(stream.time_base)
        self._open: dict[str, Any] = {}
        self._grey: av.Packet[Any] | None = None

    def intra(self, packet: Any) -> av.VideoFrame:
        """Decode one intra picture."""
        return self._one(self._context("plain", {}), packet)

    def vectors(self, packet: Any) -> Blocks:
        """The vectors of one P picture, nothing else decoded."""
        context = self._context("vectors", _VECTORS_ALONE)
        if not context.is_open:
            self._show_grey(context)  # a first picture to refer to
        return blocks_of(self._one(context, packet))

    def coded(self, packet: Any) -> CodedPicture:
        """Prediction error and vectors of one P picture, from its packet alone."""
        context = self._context("coded", _VECTORS)
        self._show_grey(context)
        frame = self._one(context, packet)
        luma, u, v = (_plane(frame, index) for index in range(3))
        return CodedPicture((luma, u, v), blocks_of(frame))

    def all_of(self, packets: list[Any]) -> list[tuple[av.VideoFrame, Blocks]]:
        """Decode a group from its intra picture on; a picture that was not coded is the one before it."""
        context = self._context("all", _VECTORS)
        context.flush_buffers()
        out: list[tuple[av.VideoFrame, Blocks]] = []
        for packet in packets:
            if packet is None:
                out.append((out[-1][0], np.empty((0, 7), np.int32)))
            else:
                frame = self._one(context, packet)
                out.append((frame, blocks_of(frame)))
        return out

    def _context(self, purpose: str, options: dict[str, str]) -> Any:
        if purpose not in self._open:
            context: Any = av.CodecContext.create(self._codec, "r")
            if self._header:
                context.extradata = self._header
            context.thread_count = 1
            context.options = {**options, "err_detect": "explode"}  # no guesses where the bitstream is damaged
            context.flags |= Flags.low_delay  # a picture in, a picture out
            self._open[purpose] = context
        return self._open[purpose]

    def _show_grey(self, context: Any) -> None:
        if self._grey is None:
            layer, obstacle = self._structure.layer, self._structure.coded_obstacle
            if layer is None or obstacle is not None:
                reason = f"coded residuals cannot be read from {obstacle}"
                raise StructureError(self._name, reason + "; ask for residual='pixel', or transcode the file")
            self._grey = av.Packet(grey_picture(layer) + _PADDING)
        self._one(context, self._grey)

    def _one(self, context: Any, packet: Any) -> av.VideoFrame:
        """Decode a packet into its picture.

        Raises:
            DecodeError: it is damaged, or gave no picture.
        """
        if packet.is_corrupt:
            raise DecodeError(
                self._name, f"is cut off in the picture{self._at(packet)}: copy it again, or leave it out"
            )
        try:
            frames = context.decode(packet)
        except av.FFmpegError as error:
            context.flush_buffers()
            reason = f"the picture{self._at(packet)} cannot be decoded ({error.strerror or error})"
            raise DecodeError(self._name, reason + "; the file is damaged there: leave it out") from error
        if len(frames) != 1 or frames[0].is_corrupt:
            context.flush_buffers()
            reason = f"the packet{self._at(packet)} gave {len(frames)} pictures, or a damaged one, instead of one"
            raise DecodeError(self._name, reason + "; the file is damaged there: leave it out")
        found: av.VideoFrame = frames[0]
        return found

    def _at(self, packet: Any) -> str:
        return "" if packet.pts is None else f" at {float(packet.pts * Fraction(self._tick_s)):.3f} s"


def _plane(frame: av.VideoFrame, index: int) -> npt.NDArray[np.int8]:
    """One plane of a frame minus mid-grey."""
    plane: Any = frame.planes[index]
    height, width = (frame.height, frame.width) if index == 0 else (-(-frame.height // 2), -(-frame.width // 2))
    raw = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:height, :width]
    return (raw ^ _GREY).view(np.int8)  # turning the highest bit over subtracts 128
