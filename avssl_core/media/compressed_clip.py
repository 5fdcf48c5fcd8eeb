"""What a compressed clip is: which groups, positions and streams are asked for, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from avssl_core.media.gops import Structure

Motion = Literal["codec", "coviar", "accumulated"]
Residual = Literal["coded", "pixel"]


@dataclass(frozen=True)
class GopSpec:
    """What a compressed clip holds. The defaults are IMRNet's (Table 2.1): 60 pictures, 5 intra and 25 predicted.

    Attributes:
        gops: consecutive groups (T).
        gop_size: pictures of each (K).
        stride: of the positions 1 … K − 1, those at which vectors and residuals are kept: ``stride, 2·stride, …``.
        motion: ``"codec"`` as coded; ``"coviar"`` whole and inside the picture; ``"accumulated"`` since the intra
            picture; ``None`` leaves vectors out.
        residual: ``"coded"``, ``"pixel"`` (against the picture before; against the intra picture where motion is
            accumulated), or ``None``.
        dense: a vector a pixel; otherwise one for each 8x8 block (only ``motion="codec"``).
        every_motion: also the 8x8 vectors of *all* pictures, for labels made from motion.
        sample_rate: of the sound in Hz; ``None`` for none.

    Raises:
        ValueError: sizes below 1, nothing kept, or options that exclude each other.
    """

    gops: int = 5
    gop_size: int = 12
    stride: int = 2
    motion: Motion | None = "codec"
    residual: Residual | None = "coded"
    dense: bool = True
    every_motion: bool = False
    sample_rate: int | None = None

    def __post_init__(self) -> None:
        if self.gops < 1 or self.stride < 1 or self.gop_size <= self.stride:
            raise ValueError(f"need gops >= 1 and gop_size > stride >= 1, or no P picture is kept; got {self}")
        if not self.dense and self.motion not in ("codec", None):
            raise ValueError(f"block resolution exists for motion='codec' alone, got {self}: set dense=True")

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions in a group that are kept; 2, 4, 6, 8, 10 by default."""
        return tuple(range(self.stride, self.gop_size, self.stride))

    @property
    def last(self) -> int:
        """The last position of a group that is touched."""
        return self.gop_size - 1 if self.every_motion else self.positions[-1]


@dataclass(frozen=True)
class CompressedClip:
    """T groups of a file; P = T · len(positions) kept predicted pictures, in order.

    Attributes:
        iframes: RGB, uint8 ``(3, T, H, W)``.
        motion: displacement in pixels, x then y, float32 ``(2, P, H, W)`` or at block resolution ``(2, P, ⌈H/8⌉,
            ⌈W/8⌉)``; see :mod:`~avssl_core.media.motion_vectors`.
        residual: ``(3, P, H, W)``; *coded*: Y, U, V (colour repeated to full size), int8; *pixel*: R, G, B, int16 in
            −255 … 255.
        intra: macroblocks coded anew, bool ``(P, ⌈H/16⌉, ⌈W/16⌉)``; there a coded residual holds the picture itself.
        every_motion: vectors of all pictures, zero at intra ones, float32 ``(2, T·K, ⌈H/8⌉, ⌈W/8⌉)``.
        gop: group of each kept P picture, counted from the clip's first, int64 ``(P,)``.
        position: its position in the group, int64 ``(P,)``.
        iframe_s: time of each intra picture in seconds after the file's first picture, float64 ``(T,)``.
        pframe_s: the same of each kept P picture, ``(P,)``, as the file has it: the rate may vary.
        start_s: time of the clip's first picture.
        waveform: the sound of the same seconds, float32 ``(L,)``.
        structure: of the stream.
    """

    iframes: Tensor
    motion: Tensor | None
    residual: Tensor | None
    intra: Tensor | None
    every_motion: Tensor | None
    gop: Tensor
    position: Tensor
    iframe_s: Tensor
    pframe_s: Tensor
    start_s: float
    waveform: Tensor | None
    structure: Structure
