"""The headers of an MPEG-4 Part 2 stream (ISO/IEC 14496-2), and one picture written by hand.

Compressed-video learning needs to know what a packet holds *before* any decoding: is it a key picture, a predicted one,
a picture that was skipped, two pictures packed into one? That stands in the first bits of a picture (a "VOP"), whose
lengths are set by the header of the stream (the "VOL", video object layer). Both are read here; nothing else is.

:func:`grey_picture` writes the flat picture that turns a stock decoder into a reader of coded residuals: every sample
128, in the syntax of the given stream. It has no coefficients, so quantisation matrices and quarter-sample vectors do
not matter to it; interlacing and the clock's resolution change its bits, and are taken from the header.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

PictureType = Literal["I", "P", "B", "S"]

_PICTURE, _GROUP, _OBJECT, _USER_DATA = 0xB6, 0xB3, 0xB5, 0xB2
_LAYERS = range(0x20, 0x30)
_TYPES: tuple[PictureType, ...] = ("I", "P", "B", "S")
_START = b"\x00\x00\x01"
# Up to here, one step of a DC coefficient is 8, and 128 is a whole number of steps.
_GREY_QUANTISER = 2
# One intra macroblock without coefficients whose four luma and two chroma DC values equal their prediction: mcbpc "1",
# ac_pred_flag "0", cbpy "0011", [dct_type "0" if interlaced], four times "011", twice "11".
_MACROBLOCK, _FIELD_DCT, _ZERO_DC = "100011", "0", "011" * 4 + "11" * 2


@dataclass(frozen=True)
class Layer:
    """What the stream's own header (VOL) says.

    Attributes:
        width: pixels.
        height: pixels.
        clock: ticks a second of the pictures' time stamps (``vop_time_increment_resolution``), at least 1.
        interlaced: macroblocks may be coded as fields.
        quarter_sample: motion vectors count quarters of a pixel, not halves.
        overlapped: overlapped block motion compensation.
        sprites: static sprites or global motion compensation.
        partitioned: data partitioning.
        scalable: this is one of several layers.
        rectangular: the picture is a rectangle, no cut-out shape.
        eight_bit: samples have eight bits.
        estimates_complexity: pictures carry complexity estimates.
        resynchronises: pictures may be cut into video packets.
        new_prediction: the reference is chosen picture by picture (NEWPRED), or resolution is reduced.
    """

    width: int
    height: int
    clock: int
    interlaced: bool = False
    quarter_sample: bool = False
    overlapped: bool = False
    sprites: bool = False
    partitioned: bool = False
    scalable: bool = False
    rectangular: bool = True
    eight_bit: bool = True
    estimates_complexity: bool = False
    resynchronises: bool = False
    new_prediction: bool = False

    @property
    def increment_bits(self) -> int:
        """Width of ``vop_time_increment``."""
        return max(1, (self.clock - 1).bit_length())

    @property
    def obstacle(self) -> str | None:
        """Why predicted pictures of this stream cannot be decoded alone; ``None`` where they can."""
        obstacles = {
            "sprites or global motion compensation": self.sprites,
            "overlapped motion compensation": self.overlapped,
            "data partitioning": self.partitioned,
            "scalable layers": self.scalable,
            "cut-out shapes": not self.rectangular,
            "samples of more than eight bits": not self.eight_bit,
            "complexity estimates": self.estimates_complexity,
            "a reference chosen picture by picture": self.new_prediction,
        }
        return next((name for name, found in obstacles.items() if found), None)


@dataclass(frozen=True)
class Picture:
    """What the first bits of a picture (VOP) say.

    Attributes:
        type: intra, predicted, bidirectional, or sprite.
        coded: false for a picture that only says "as before" (``vop_coded`` = 0).
        rounding: half-sample interpolation rounds down (``vop_rounding_type``); false where there is none.
        quantiser: 1 to 31; 0 where nothing is coded.
    """

    type: PictureType
    coded: bool
    rounding: bool = False
    quantiser: int = 0


class _Bits:
    """Reads a byte string bit by bit, most significant first; ends with ``EOFError``."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        if count > self._left:
            raise EOFError("the header ends early")
        self._left -= count
        return (self._value >> self._left) & ((1 << count) - 1)

    def flag(self) -> bool:
        return bool(self.read(1))


def units(data: bytes) -> Iterator[tuple[int, int]]:
    """``(code, position after the code)`` of every start code ``00 00 01 xx``."""
    at = data.find(_START)
    while 0 <= at < len(data) - 3:
        yield data[at + 3], at + 4
        at = data.find(_START, at + 4)


def parse_layer(data: bytes) -> Layer | None:
    """Read the stream's header where it stands: in a container's extra data, or ahead of a key picture.

    Returns:
        The header, or ``None`` if there is none in ``data``.

    Raises:
        ValueError: the header is cut off, or describes an empty picture.
    """
    version = 1
    for code, at in units(data):
        if code == _OBJECT:
            bits = _Bits(data[at : at + 8])
            version = bits.read(4) if bits.flag() else 1
        elif code in _LAYERS:
            try:
                layer = _layer(_Bits(data[at : at + 256]), version)
            except EOFError as error:
                raise ValueError("the MPEG-4 header is cut off") from error
            if layer.rectangular and min(layer.width, layer.height, layer.clock) < 1:
                raise ValueError(f"the MPEG-4 header is damaged: it says {layer}")
            return layer
    return None


def _layer(bits: _Bits, version: int) -> Layer:
    """VideoObjectLayer() of ISO/IEC 14496-2, 6.2.3, as far as rectangular layers go."""
    bits.read(9)  # random_accessible_vol, video_object_type_indication
    if bits.flag():
        version = bits.read(4)
        bits.read(3)
    if bits.read(4) == 15:  # an aspect ratio of its own
        bits.read(16)
    if bits.flag():  # vol_control_parameters
        bits.read(3)  # chroma_format, low_delay
        if bits.flag():
            bits.read(79)  # the rate buffer's model
    shape = bits.read(2)
    if shape == 3 and version != 1:
        bits.read(4)
    bits.read(1)
    clock = bits.read(16)
    bits.read(1)
    layer = Layer(0, 0, clock, rectangular=shape == 0)
    if bits.flag():  # fixed_vop_rate
        bits.read(layer.increment_bits)
    return layer if shape else _rectangle(bits, version, layer)


def _rectangle(bits: _Bits, version: int, layer: Layer) -> Layer:
    """The part of the header that follows for a rectangular layer."""
    bits.read(1)
    width = bits.read(13)
    bits.read(1)
    height = bits.read(13)
    bits.read(1)
    interlaced, overlapped = bits.flag(), not bits.flag()
    layer = replace(layer, width=width, height=height, interlaced=interlaced, overlapped=overlapped)
    if bits.read(1 if version == 1 else 2):
        return replace(layer, sprites=True)  # what follows depends on the kind of sprite and is of no use here
    if bits.flag():  # not_8_bit
        return replace(layer, eight_bit=bits.read(8) & 15 == 8)
    if bits.flag():  # quant_type: matrices of its own may follow
        for _ in range(2):
            if bits.flag():
                _skip_matrix(bits)
    quarter = bits.flag() if version != 1 else False
    layer = replace(layer, quarter_sample=quarter, estimates_complexity=not bits.flag())
    if layer.estimates_complexity:
        return layer
    layer = replace(layer, resynchronises=not bits.flag(), partitioned=bits.flag())
    if layer.partitioned:
        bits.read(1)
    if version != 1:
        if bits.flag():  # newpred_enable
            return replace(layer, new_prediction=True)
        layer = replace(layer, new_prediction=bits.flag())  # reduced_resolution_vop_enable
    return replace(layer, scalable=bits.flag())


def _skip_matrix(bits: _Bits) -> None:
    """A quantisation matrix: up to 64 bytes, a zero ends it early."""
    for _ in range(64):
        if not bits.read(8):
            return


def parse_pictures(data: bytes, layer: Layer) -> list[Picture]:
    """What each picture in a packet is; more than one where a B picture is packed with another (DivX style).

    Raises:
        ValueError: a picture's header is cut off.
    """
    found = []
    for code, at in units(data):
        if code == _PICTURE:
            try:
                found.append(_picture(_Bits(data[at : at + 64]), layer))
            except EOFError as error:
                raise ValueError("a picture's header is cut off") from error
    return found


def _picture(bits: _Bits, layer: Layer) -> Picture:
    kind = _TYPES[bits.read(2)]
    while bits.flag():  # modulo_time_base: one for each second that has passed
        pass
    bits.read(1 + layer.increment_bits + 1)
    if not bits.flag():
        return Picture(kind, coded=False)
    rounding = bits.flag() if kind == "P" else False
    if layer.sprites or not layer.rectangular or layer.estimates_complexity or layer.new_prediction:
        return Picture(kind, True, rounding)  # more fields stand before the quantiser
    bits.read(3 + 2 * layer.interlaced)  # intra_dc_vlc_thr, field order, scan
    return Picture(kind, True, rounding, bits.read(5))


def find_layer(extradata: bytes | None, first_packet: bytes) -> Layer | None:
    """The stream's header: in the container's extra data (.mp4), or in the first packet (.avi, raw streams)."""
    return parse_layer(extradata or b"") or parse_layer(first_packet)


def grey_picture(layer: Layer) -> bytes:
    """An intra picture whose every sample is 128, in the syntax of ``layer``.

    All DC values equal their prediction (1024 at the borders of a picture, and 128 · 8 = 1024 inside), so a macroblock
    is the same twenty-odd bits everywhere.

    Raises:
        ValueError: the layer uses tools for which this picture would have to look different.
    """
    if layer.obstacle is not None:
        raise ValueError(f"no grey picture for a stream with {layer.obstacle}")
    macroblocks = -(-layer.width // 16) * -(-layer.height // 16)
    header = "00" + "0" + "1" + "0" * layer.increment_bits + "1" + "1"  # I, time 0, coded
    header += "000" + ("00" if layer.interlaced else "") + f"{_GREY_QUANTISER:05b}"
    one = _MACROBLOCK + (_FIELD_DCT if layer.interlaced else "") + _ZERO_DC
    bits = header + one * macroblocks + "0"
    bits += "1" * (-len(bits) % 8)  # stuffing: a zero, then ones to the end of the byte
    return _START + bytes([_PICTURE]) + int(bits, 2).to_bytes(len(bits) // 8, "big")


def with_group_removed(data: bytes) -> bytes:
    """A packet from its first picture on: headers and group headers ahead of it are dropped."""
    for code, at in units(data):
        if code == _PICTURE:
            return data[at - 4 :]
    return data


def has_packed_mark(extradata: bytes | None, first_packet: bytes) -> bool:
    """Whether the encoder signed as one that packs two pictures into a packet (``DivX…p`` in the user data)."""
    data = (extradata or b"") + first_packet
    for code, at in units(data):
        if code == _USER_DATA:
            text = data[at : at + 32].split(b"\x00")[0]
            if text.startswith(b"DivX") and text.rstrip().endswith(b"p"):
                return True
    return False
