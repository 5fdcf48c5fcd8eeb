"""Compressed-domain reading of everything that is not a tidy file: other groups, gaps, damage, other codecs."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from av.video.frame import PictureType

from avssl_core.media import (
    CompressedReader,
    DecodeError,
    GopSpec,
    MediaReader,
    NotMediaError,
    NoVideoError,
    StructureError,
    TarMember,
    WindowError,
    write_clip,
)
from avssl_core.media.convert import unscaled_rgb
from avssl_core.media.mpeg4 import Layer, find_layer, grey_picture, parse_pictures, units

HEIGHT, WIDTH = 64, 96


def drifting(count: int, *, height: int = HEIGHT, width: int = WIDTH, step: int = 2, cut: int | None = None) -> Any:
    """Textured pictures ``(T, H, W, 3)``, drifting to the right by ``step`` pixels each; from ``cut`` on, others."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(2):
        coarse = rng.integers(30, 220, (height // 4 + 2, (width + count * step) // 4 + 2, 3), dtype=np.uint8)
        out.append(coarse.repeat(4, 0).repeat(4, 1))
    pictures = []
    for number in range(count):
        texture = out[int(cut is not None and number >= cut)]
        start = (count - number) * step
        pictures.append(texture[:height, start : start + width])
    return np.stack(pictures)


def encode(
    path: Path | str,
    pictures: Any,
    *,
    codec: str = "mpeg4",
    gop: int = 12,
    b_frames: int = 0,
    intra_at: tuple[int, ...] = (),
    options: dict[str, str] | None = None,
    container: str | None = None,
    rate: Fraction = Fraction(25),
    stamps: Sequence[int] | None = None,
) -> Path:
    """Encode with PyAV directly, every knob of a group's structure in reach."""
    with av.open(str(path), "w", **({"format": container} if container else {})) as out:
        stream: Any = out.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        stream.codec_context.options = {"sc_threshold": "1000000000", "qmin": "3", "qmax": "3"} | (options or {})
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = number if stamps is None else stamps[number], 1 / rate
            if number in intra_at:
                frame.pict_type = PictureType.I
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return Path(path)


def packets_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def raw_of(path: Path) -> tuple[bytes, list[bytes]]:
    """Header and packets of a file as a raw stream."""
    with av.open(str(path)) as container:
        header = container.streams.video[0].codec_context.extradata or b""
    return header, packets_of(path)


def not_coded(layer: Layer) -> bytes:
    """A P picture that says "as before": type, time, ``vop_coded`` 0, stuffing."""
    bits = "01" + "0" + "1" + "0" * layer.increment_bits + "1" + "0"
    bits += "0"
    bits += "1" * (-len(bits) % 8)
    return b"\x00\x00\x01\xb6" + int(bits, 2).to_bytes(len(bits) // 8, "big")


def with_sprites(header: bytes, *, usage: str, fields: str) -> bytes:
    """The stream's header (VOL) with its ``sprite_enable`` set to ``usage``, and the ``fields`` that then follow it."""
    at = next(at for code, at in units(header) if 0x20 <= code < 0x30)
    end = min([after - 4 for _, after in units(header) if after > at], default=len(header))
    bits = f"{int.from_bytes(header[at:end], 'big'):0{8 * (end - at)}b}".rstrip("1")[:-1]  # without stuffing
    size = f"1{WIDTH:013b}1{HEIGHT:013b}1"
    assert bits.count(size) == 1
    sprite = bits.index(size) + len(size) + 2  # after interlaced, obmc_disable
    assert bits[sprite : sprite + len(usage)] == "0" * len(usage)
    bits = bits[:sprite] + usage + fields + bits[sprite + len(usage) :] + "0"
    bits += "1" * (-len(bits) % 8)
    return header[:at] + int(bits, 2).to_bytes(len(bits) // 8, "big") + header[end:]


def planes_of(path: Path) -> list[list[Any]]:
    """Y, U and V of every picture, as decoded from the first to the last, int."""
    with av.open(str(path)) as container:
        return [
            [
                np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:, : plane.width].astype(int)
                for plane in frame.planes
            ]
            for frame in container.decode(video=0)
        ]


# -- structure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv", ".m4v"])
def test_groups_are_found_in_every_container(tmp_path: Path, suffix: str) -> None:
    path = encode(tmp_path / f"a{suffix}", drifting(30))
    with CompressedReader(path) as reader:
        assert [len(gop) for gop in reader.structure.gops] == [12, 12, 6]
        assert [gop.kinds[:2] for gop in reader.structure.gops] == ["IP"] * 3
        assert reader.structure.obstacle is None and reader.structure.num_pictures == 30
        assert reader.starts(GopSpec(2, 12, 2)) == [0] and reader.starts(GopSpec(2, 6, 2)) == []
        assert reader.starts(GopSpec(2, 12, 5)) == [0] and reader.starts(GopSpec(1, 6, 2)) == [0, 1, 2]


def test_groups_of_varying_length_and_scene_cuts(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", drifting(40, cut=17), gop=100, intra_at=(8, 17, 25, 33))
    with CompressedReader(path) as reader:
        assert [len(gop) for gop in reader.structure.gops] == [8, 9, 8, 8, 7]
        spec = GopSpec(2, 8, 2)
        assert reader.starts(spec) == [0, 2, 3]  # of the last group, positions up to 6 are used
        clip = reader.clip(2, spec)
        assert clip.start_s == pytest.approx(17 / 25) and clip.iframe_s.tolist() == pytest.approx([17 / 25, 1.0])
        with pytest.raises(StructureError, match=r"groups of \[9, 8\] pictures at 1, expected 8"):
            reader.clip(1, spec)


@pytest.mark.parametrize("residual", ["coded", "pixel", None])
@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_every_picture_has_the_time_that_the_file_gives_it(tmp_path: Path, suffix: str, residual: Any) -> None:
    skipping = np.cumsum([0, *[3 if number % 5 == 0 else 1 for number in range(1, 24)]]).tolist()  # the rate varies
    stamps = None if suffix == ".avi" else skipping  # an AVI file has no times
    path = encode(tmp_path / f"a{suffix}", drifting(24), stamps=stamps)
    with CompressedReader(path) as reader:
        clip = reader.clip(0, GopSpec(2, 12, 4, residual=residual))
    kept = [4, 8, 16, 20]
    expected = [(stamps or range(24))[number] / 25 for number in kept]
    assert clip.pframe_s.tolist() == pytest.approx(expected, abs=1e-3)
    assert clip.iframe_s.tolist() == pytest.approx([0.0, (stamps or range(24))[12] / 25], abs=1e-3)


def test_a_file_that_begins_inside_a_group(tmp_path: Path) -> None:
    header, packets = raw_of(encode(tmp_path / "a.mp4", drifting(30)))
    with CompressedReader(header + b"".join(packets[5:])) as reader:
        assert [gop.headless for gop in reader.structure.gops] == [True, False, False]
        assert reader.starts(GopSpec(1, 6, 2)) == [1, 2]
        assert reader.iframes().shape[1] == 2
        with pytest.raises(StructureError, match="groups of"):
            reader.clip(0, GopSpec(1, 6, 2))


def test_pictures_that_were_not_coded_repeat(tmp_path: Path) -> None:
    """``N`` has no motion, no residual, is not intra, and looks like its predecessor."""
    header, packets = raw_of(encode(tmp_path / "a.mp4", drifting(24)))
    layer = find_layer(header, packets[0])
    assert layer is not None
    stream = [*packets[:4], not_coded(layer), *packets[4:11], *packets[12:]]
    with CompressedReader(header + b"".join(stream)) as reader:
        assert reader.structure.gops[0].kinds == "IPPPNPPPPPPP"
        coded = reader.clip(0, GopSpec(2, 12, 1))
        pixel = reader.clip(0, GopSpec(2, 12, 1, motion="coviar", residual="pixel"))
    assert coded.motion is not None and coded.residual is not None and coded.intra is not None
    assert not coded.motion[:, 3].any() and not coded.residual[:, 3].any() and not coded.intra[3].any()
    assert coded.motion[:, 2].any() and coded.residual[:, 2].any()
    assert pixel.residual is not None and not pixel.residual[:, 3].any()


def test_b_pictures_are_refused_with_the_remedy_and_intra_pictures_still_come(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.avi", drifting(24), b_frames=2)
    with CompressedReader(path) as reader:
        assert "B" in "".join(gop.kinds for gop in reader.structure.gops)
        with pytest.raises(StructureError, match=r"B pictures.*avssl data compress"):
            reader.clip(0, GopSpec(1, 12, 2))
        assert reader.iframes().shape[0] == 3
        assert reader.clip(0, GopSpec(1, 6, 2, motion=None, residual=None)).iframes.shape == (3, 1, HEIGHT, WIDTH)


def assert_only_intra_pictures_come(stream: bytes, expected: torch.Tensor) -> None:
    with CompressedReader(stream) as reader:
        for spec in (GopSpec(1, 12, 2), GopSpec(1, 12, 2, residual=None), GopSpec(1, 12, 2, residual="pixel")):
            with pytest.raises(StructureError, match=r"sprites or global motion compensation.*avssl data compress"):
                reader.clip(0, spec)
        assert torch.equal(reader.iframes(), expected)
        assert torch.equal(reader.clip(1, GopSpec(1, 6, 2, motion=None, residual=None)).iframes, expected[:, 1:])


_SPRITE = "".join(f"{value:013b}1" for value in (WIDTH, HEIGHT, 0, 0))
_WARPING = "000000" + "00" + "0"  # no warping points, half-sample accuracy, no change of brightness


@pytest.mark.parametrize(
    ("flags", "usage", "fields"),
    [
        pytest.param("+mv4", "1", _SPRITE + _WARPING + "0", id="static, one bit"),
        pytest.param("+qpel", "01", _SPRITE + _WARPING + "0", id="static, two bits"),
        pytest.param("+qpel", "10", _WARPING, id="global motion compensation"),
    ],
)
def test_headers_with_sprites_are_refused_with_the_remedy_and_intra_pictures_still_come(
    tmp_path: Path, flags: str, usage: str, fields: str
) -> None:
    """Version 1 of the header has one bit for it, later ones (which quarter samples need) have two."""
    header, packets = raw_of(encode(tmp_path / "a.mp4", drifting(24), options={"flags": flags}))
    with CompressedReader(header + b"".join(packets)) as reader:
        assert reader.structure.coded_obstacle is None and reader.clip(0, GopSpec(1, 12, 2)).residual is not None
        expected = reader.iframes()
    changed = with_sprites(header, usage=usage, fields=fields) + b"".join(packets)
    with CompressedReader(changed) as reader:
        assert {gop.kinds for gop in reader.structure.gops} == {"I" + 11 * "P"}  # nothing but the header tells
    assert_only_intra_pictures_come(changed, expected)


def test_one_sprite_picture_is_refused_with_the_remedy_and_intra_pictures_still_come(tmp_path: Path) -> None:
    """Wherever in the stream it is, and though the header announces none."""
    header, packets = raw_of(encode(tmp_path / "a.mp4", drifting(24)))
    with CompressedReader(header + b"".join(packets)) as reader:
        expected = reader.iframes()
    picture = bytearray(packets[17])
    assert picture[:4] == b"\x00\x00\x01\xb6" and picture[4] >> 6 == 0b01  # P
    picture[4] |= 0b11 << 6  # S
    changed = header + b"".join([*packets[:17], bytes(picture), *packets[18:]])
    with CompressedReader(changed) as reader:
        assert [gop.kinds for gop in reader.structure.gops] == ["I" + 11 * "P", "IPPPPSPPPPPP"]
    assert_only_intra_pictures_come(changed, expected)


def remux(path: Path, like: Path, packets: dict[int, bytes]) -> Path:
    """An .avi of the given packets, by their place; where a place has none the muxer notes a dropped picture."""
    with av.open(str(like)) as source, av.open(str(path), "w") as out:
        stream: Any = out.add_stream_from_template(source.streams.video[0])
        for number, data in packets.items():
            packet = av.Packet(data)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 25), stream
            packet.is_keyframe = number % 12 == 0
            out.mux(packet)
    return path


def test_packed_pictures_are_refused_and_intra_pictures_still_come(tmp_path: Path) -> None:
    """DivX style: a P and a B picture share a packet, and a dummy picture stands where the B picture belongs."""
    plain = encode(tmp_path / "plain.avi", drifting(24), b_frames=1)
    header, packets = raw_of(plain)
    layer = find_layer(header, packets[0])
    assert layer is not None
    kinds = [parse_pictures(data, layer)[0].type for data in packets]
    assert "".join(kinds[:5]) == "IPBPB"
    packed: dict[int, bytes] = {}
    for number, (kind, data) in enumerate(zip(kinds, packets, strict=True)):
        if kind == "B":
            packed[number - 1] += data
        packed[number] = not_coded(layer) if kind == "B" else data
    assert [picture.type for picture in parse_pictures(packed[1], layer)] == ["P", "B"]
    with CompressedReader(remux(tmp_path / "packed.avi", plain, packed)) as reader, CompressedReader(plain) as apart:
        assert reader.structure.packed and reader.structure.num_pictures == 24
        assert not apart.structure.packed  # B pictures alone are not packed ones
        with pytest.raises(StructureError, match=r"B pictures.*avssl data compress"):
            reader.clip(0, GopSpec(1, 12, 2))
        assert torch.equal(reader.iframes(), apart.iframes())


def test_groups_with_dropped_pictures_are_refused_by_their_length(tmp_path: Path) -> None:
    """An .avi notes a dropped picture as an empty chunk, which FFmpeg passes over: the group is that much shorter."""
    plain = encode(tmp_path / "plain.avi", drifting(36))
    kept = {number: data for number, data in enumerate(packets_of(plain)) if number not in (4, 11)}
    with CompressedReader(remux(tmp_path / "dropped.avi", plain, kept)) as reader:
        assert [len(gop) for gop in reader.structure.gops] == [10, 12, 12]
        assert reader.starts(GopSpec(1, 12, 1)) == [1, 2]
        with pytest.raises(StructureError, match=r"groups of \[10\] pictures at 0, expected 12"):
            reader.clip(0, GopSpec(1, 12, 1))
        clip = reader.clip(1, GopSpec(1, 12, 1))
    with CompressedReader(plain) as whole:
        same = whole.clip(1, GopSpec(1, 12, 1))
    assert clip.start_s == same.start_s == pytest.approx(12 / 25)
    assert clip.motion is not None and same.motion is not None and torch.equal(clip.motion, same.motion)


def test_real_files_of_every_structure(real_data: Path) -> None:
    folder = real_data / "ucf101_mpeg4"
    readable = {path.name: CompressedReader(path).structure for path in sorted(folder.glob("*.avi"))}
    assert readable["v_ApplyEyeMakeup_g01_c01.avi"].packed
    assert readable["v_ApplyEyeMakeup_g01_c01.avi"].obstacle is not None
    assert len(readable["v_HeadMassage_g01_c01.avi"].gops) == 1  # one intra picture, then predicted ones
    punch = readable["v_Punch_g03_c01.avi"]
    assert punch.obstacle is None and punch.coded_obstacle is None and 12 in punch.lengths()
    with CompressedReader(folder / "v_Punch_g03_c01.avi") as reader:
        clip = reader.clip(reader.starts(GopSpec())[0])
    assert clip.iframes.shape == (3, 5, 240, 320) and clip.motion is not None and clip.motion.shape[1] == 25


# -- vectors and residuals ---------------------------------------------------------------------------------------------


def test_what_moves_right_has_a_positive_vector(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", drifting(12, step=3))
    with CompressedReader(path) as reader:
        step = reader.clip(0, GopSpec(1, 12, 1)).motion
        path_since = reader.clip(0, GopSpec(1, 12, 1, motion="accumulated", residual=None)).motion
    assert step is not None and path_since is not None
    inner = step[:, :, 16:-16, 32:-16]
    assert inner[0].median() == 3 and inner[1].median() == 0
    for position in (1, 5):  # what has travelled since the intra picture
        assert path_since[0, position - 1, 16:-16, 48:-16].median() == 3 * position


def test_a_still_clip_has_neither_vectors_nor_residuals(tmp_path: Path) -> None:
    still = np.repeat(drifting(1), 12, axis=0)
    with CompressedReader(encode(tmp_path / "a.mp4", still)) as reader:
        clip = reader.clip(0, GopSpec(1, 12, 1))
    assert clip.motion is not None and clip.residual is not None and clip.intra is not None
    assert not clip.motion.any() and not clip.intra.any()
    assert clip.residual[:, 1:].abs().max() == 0


def test_order_and_neighbours_change_nothing(tmp_path: Path) -> None:
    """A P picture is read alone: other positions, an earlier read or another clip of the file make no difference."""
    path = encode(tmp_path / "a.mp4", drifting(36))
    with CompressedReader(path) as reader:
        all_positions = reader.clip(0, GopSpec(3, 12, 1))
        again = reader.clip(1, GopSpec(1, 12, 3))
        first = reader.clip(0, GopSpec(1, 12, 2))
    assert all_positions.residual is not None and again.residual is not None and first.residual is not None
    torch.testing.assert_close(again.residual, all_positions.residual[:, [13, 16, 19]], rtol=0, atol=0)
    torch.testing.assert_close(first.residual, all_positions.residual[:, 1:11:2], rtol=0, atol=0)
    assert again.gop.tolist() == [0, 0, 0] and again.position.tolist() == [3, 6, 9]


@pytest.mark.parametrize("height", [32, 33])
def test_unscaled_pictures_are_those_of_the_defaults(height: int) -> None:
    """FFmpeg's default filter to blue, green, red: colours are repeated at even heights, interpolated at odd ones."""
    frame = av.VideoFrame(47, height, "yuv420p")
    rng = np.random.default_rng(0)
    for plane in frame.planes:
        plane.update(rng.integers(0, 256, plane.buffer_size, dtype=np.uint8).tobytes())
    (ours,) = unscaled_rgb([frame])
    theirs = frame.reformat(format="bgr24", interpolation="BICUBIC").to_ndarray()  # (H, W, 3)
    np.testing.assert_array_equal(ours.transpose(1, 2, 0)[..., ::-1], theirs)


def test_reconstruction_from_pixel_residuals_is_exact(tmp_path: Path) -> None:
    from avssl_core.media.motion_vectors import displaced

    path = encode(tmp_path / "a.mp4", drifting(24))
    with av.open(str(path)) as container:
        decoded = unscaled_rgb(container.decode(video=0)).astype(np.int16)
    with CompressedReader(path) as reader:
        for motion, reference in (("coviar", lambda n: n - 1), ("accumulated", lambda n: 12 * (n // 12))):
            clip = reader.clip(0, GopSpec(2, 12, 1, motion=motion, residual="pixel"))  # type: ignore[arg-type]
            assert clip.motion is not None and clip.residual is not None
            for row, (gop, position) in enumerate(zip(clip.gop.tolist(), clip.position.tolist(), strict=True)):
                number = 12 * gop + position
                moved = displaced(decoded[reference(number)], clip.motion[:, row].numpy())
                np.testing.assert_array_equal(moved + clip.residual[:, row].numpy(), decoded[number])


@pytest.mark.parametrize(
    "options", [{"flags": "+ilme+ildct"}, {"flags": "+qpel"}, {"mpeg_quant": "1"}, {"flags": "+mv4+aic"}]
)
def test_tools_of_the_advanced_simple_profile(tmp_path: Path, options: dict[str, str]) -> None:
    """Interlaced, quarter-sample, other matrices, four vectors: the grey picture fits, and the identity holds."""
    path = encode(tmp_path / "a.mp4", drifting(12, step=4), options=options)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray()[:HEIGHT].astype(int) for frame in container.decode(video=0)]
    with CompressedReader(path) as reader:
        clip = reader.clip(0, GopSpec(1, 12, 1))
        layer = reader.structure.layer
    assert layer is not None and clip.motion is not None and clip.residual is not None and clip.intra is not None
    assert layer.interlaced == ("ilme" in options.get("flags", ""))
    assert layer.quarter_sample == ("qpel" in options.get("flags", ""))
    checked = 0
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for row in range(11):
        vectors = clip.motion[:, row].numpy()
        intra = clip.intra[row].numpy().repeat(16, 0).repeat(16, 1)
        whole = (vectors == np.round(vectors)).all(0) & ~intra
        from_y, from_x = (
            (y - vectors[1]).astype(int).clip(0, HEIGHT - 1),
            (x - vectors[0]).astype(int).clip(0, WIDTH - 1),
        )
        error = clip.residual[0, row].numpy()
        whole &= (error > -128) & (error < 127)  # there it may be clipped
        rebuilt = (frames[row][from_y, from_x] + error).clip(0, 255)
        agreement = (rebuilt == frames[row + 1])[whole].mean()
        assert agreement > 0.98 if layer.interlaced else agreement == 1  # a field's vector is not its lines'
        checked += int(whole.sum())
    assert checked > 5000


@pytest.mark.parametrize("size", [(16, 16), (54, 70), (50, 98), (240, 360)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    height, width = size
    path = encode(tmp_path / "a.mp4", drifting(12, height=height, width=width))
    with CompressedReader(path) as reader:
        clip = reader.clip(0, GopSpec(1, 12, 4))
        pixel = reader.clip(0, GopSpec(1, 12, 4, motion="coviar", residual="pixel"))
        blocks = reader.clip(0, GopSpec(1, 12, 4, dense=False, residual=None))
    assert clip.motion is not None and clip.residual is not None and clip.intra is not None
    assert clip.motion.shape == (2, 2, height, width) and clip.residual.shape == (3, 2, height, width)
    assert clip.intra.shape == (2, -(-height // 16), -(-width // 16))
    assert blocks.motion is not None and blocks.motion.shape == (2, 2, -(-height // 8), -(-width // 8))
    assert pixel.residual is not None and pixel.residual.abs().float().mean() < 40


@pytest.mark.parametrize("size", [(53, 71), (17, 33), (255, 341)])
@pytest.mark.parametrize("down", [False, True])
def test_previous_picture_displaced_plus_coded_residual_is_the_picture_at_odd_sizes(
    tmp_path: Path, size: tuple[int, int], down: bool
) -> None:
    """Luma and colour, to the last row and column: wherever the vector is whole and points into the picture."""
    height, width = size[::-1] if down else size
    noise = np.random.default_rng(1).integers(-20, 21, (12, height, width, 1))  # a residual everywhere
    pictures = (drifting(12, height=height, width=width) + noise).clip(0, 255).astype(np.uint8)
    path = encode(tmp_path / "a.mp4", pictures.swapaxes(1, 2) if down else pictures)
    decoded = planes_of(path)
    with CompressedReader(path) as reader:
        clip = reader.clip(0, GopSpec(1, 12, 1))
    assert clip.motion is not None and clip.residual is not None and clip.intra is not None
    assert clip.residual.shape == (3, 11, *size)
    for channel, step in enumerate((1, 2, 2)):
        rows, columns = -(-size[0] // step), -(-size[1] // step)
        y, x = np.mgrid[:rows, :columns]
        compared, moved = 0, 0
        for row in range(11):
            before, after = decoded[row][channel], decoded[row + 1][channel]
            shown = clip.residual[channel, row].numpy().astype(int)
            error = shown[::step, ::step]
            np.testing.assert_array_equal(error.repeat(step, 0)[: size[0]].repeat(step, 1)[:, : size[1]], shown)
            vectors = clip.motion[:, row, ::step, ::step].numpy() / step
            from_y, from_x = (y - vectors[1]).astype(int), (x - vectors[0]).astype(int)
            whole = (vectors == np.round(vectors)).all(0) & (from_y < rows) & (from_x < columns)
            whole &= ~clip.intra[row].numpy()[y * step // 16, x * step // 16]
            whole &= (error > -128) & (error < 127)  # there it may be clipped
            rebuilt = before[from_y.clip(0, rows - 1), from_x.clip(0, columns - 1)] + error
            np.testing.assert_array_equal(rebuilt.clip(0, 255)[whole], after[whole])
            compared += int(whole.sum())
            moved += int((whole & vectors.any(0) & (error != 0)).sum())
        assert compared > 0.5 * 11 * rows * columns and moved > 0.1 * 11 * rows * columns


def test_the_sound_of_the_same_seconds(tmp_path: Path) -> None:
    pictures = torch.from_numpy(drifting(48).transpose(0, 3, 1, 2).copy())
    wave = torch.sin(torch.arange(48 * 640) / 16000 * 2 * torch.pi * torch.linspace(200, 900, 48 * 640)) * 0.5
    write_clip(tmp_path / "a.mp4", pictures, wave, fps=25, sample_rate=16000)
    with CompressedReader(tmp_path / "a.mp4") as reader, MediaReader(tmp_path / "a.mp4") as plain:
        clip = reader.clip(1, GopSpec(2, 12, 2, sample_rate=16000))
        expected = plain.samples(12 / 25, num_samples=24 * 640, sample_rate=16000)
    assert clip.waveform is not None
    torch.testing.assert_close(clip.waveform, expected)


# -- what cannot be served ---------------------------------------------------------------------------------------------


def test_h264_gives_vectors_and_pixel_residuals_but_no_coded_ones(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", drifting(24), codec="libx264", options={"sc_threshold": "0", "refs": "1"})
    with CompressedReader(path) as reader:
        first = reader.structure.gops[0]
        spec = GopSpec(1, len(first), 2, motion="coviar", residual="pixel")
        clip = reader.clip(0, spec)
        assert clip.motion is not None and clip.residual is not None
        with pytest.raises(StructureError, match=r"codec h264.*residual='pixel'"):
            reader.clip(0, GopSpec(1, len(first), 2))


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "mp4"), ("mpeg2video", "mkv"), ("mpeg2video", "mpg")])
def test_b_pictures_of_other_codecs_are_refused_whatever_is_asked(tmp_path: Path, codec: str, suffix: str) -> None:
    x264 = {"preset": "medium", "x264-params": "b-adapt=0:bframes=2:scenecut=0"}
    options = x264 if codec == "libx264" else {"bf": "2"}
    path = encode(tmp_path / f"a.{suffix}", drifting(24), codec=codec, b_frames=2, options=options)
    with CompressedReader(path) as reader:
        assert "B" in reader.structure.gops[0].kinds and reader.structure.obstacle is not None
        size = len(reader.structure.gops[0])
        for spec in (
            GopSpec(1, size, 2, residual="pixel"),
            GopSpec(1, size, 2, residual=None),
            GopSpec(1, size, 2, motion="accumulated", residual=None),
        ):
            with pytest.raises(StructureError, match=r"has B pictures.*avssl data compress"):
                reader.clip(0, spec)
        with pytest.raises(StructureError, match=r"has B pictures.*avssl data compress"):
            reader.iframes()


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", "mp4"), ("mpeg2video", "mkv")])
@pytest.mark.parametrize("motion", ["codec", "accumulated"])
def test_vectors_of_other_codecs_without_a_residual(tmp_path: Path, codec: str, suffix: str, motion: str) -> None:
    """The whole group is decoded for them; they are those that the pixel residual was made with."""
    options = {"sc_threshold": "0", "refs": "1", "bf": "0"} if codec == "libx264" else {}
    path = encode(tmp_path / f"a.{suffix}", drifting(24), codec=codec, options=options)
    with CompressedReader(path) as reader:
        size = len(reader.structure.gops[0])
        alone = reader.clip(0, GopSpec(1, size, 2, motion=motion, residual=None))
        beside = reader.clip(0, GopSpec(1, size, 2, motion=motion, residual="pixel"))
        nothing = reader.clip(0, GopSpec(1, size, 2, motion=None, residual=None))
    assert alone.residual is None and alone.motion is not None and beside.motion is not None
    torch.testing.assert_close(alone.motion, beside.motion)
    drift = alone.motion[0, 0].median().abs() / (1 if motion == "codec" else 2)  # position 2 has moved for two pictures
    assert float(drift) == pytest.approx(2.0, abs=0.26)
    assert nothing.motion is None and torch.equal(nothing.iframes, alone.iframes)


def test_grey_pictures_are_not_written_for_tools_they_do_not_know() -> None:
    for name in ("sprites", "partitioned", "overlapped", "estimates_complexity", "new_prediction", "scalable"):
        with pytest.raises(ValueError, match="no grey picture"):
            grey_picture(Layer(64, 48, 30, **{name: True}))


@pytest.mark.parametrize("clock", [1, 2, 25, 30, 1000, 24000, 30000, 65535])
@pytest.mark.parametrize("interlaced", [False, True])
def test_grey_pictures_for_every_clock(clock: int, interlaced: bool) -> None:
    """As many bits of time as the header says: the macroblocks must start where the decoder expects them."""
    layer = Layer(70, 54, clock, interlaced=interlaced)
    data = grey_picture(layer)
    assert list(units(data)) == [(0xB6, 4)]
    picture = parse_pictures(data, layer)[0]
    assert (picture.type, picture.coded, picture.quantiser) == ("I", True, 2)


def test_what_a_picture_carries_is_the_same_at_every_clock(tmp_path: Path) -> None:
    """Here libav reads the grey picture, not its writer: with 5 bits of time, 1, 4, 15 and 16."""
    rates = {25: Fraction(25), 1: Fraction(1), 16: Fraction(16), 24000: Fraction(24000, 1001)}
    rates[65535] = Fraction(65535, 2731)
    clips = []
    for clock, rate in rates.items():
        path = encode(tmp_path / f"{clock}.mp4", drifting(12, height=48, width=80), rate=rate)
        with CompressedReader(path) as reader:
            assert reader.structure.layer is not None and reader.structure.layer.clock == clock
            clips.append(reader.clip(0, GopSpec(1, 12, 1)))
    first = clips[0]
    assert first.motion is not None and first.residual is not None and first.intra is not None
    assert first.motion.any() and first.residual.any(-1).float().mean() > 0.1
    for clip in clips[1:]:
        assert clip.motion is not None and clip.residual is not None and clip.intra is not None
        assert torch.equal(clip.motion, first.motion) and torch.equal(clip.residual, first.residual)
        assert torch.equal(clip.intra, first.intra)


def test_windows_outside_the_file(tmp_path: Path) -> None:
    with CompressedReader(encode(tmp_path / "a.mp4", drifting(24))) as reader:
        for first in (-1, 1, 5):
            with pytest.raises(WindowError, match="2 groups of pictures"):
                reader.clip(first, GopSpec(2, 12, 2))
        with pytest.raises(WindowError, match="asked for 7"):
            reader.iframes([7])


@pytest.mark.parametrize(
    "options", [{"gops": 0}, {"stride": 0}, {"gop_size": 2, "stride": 2}, {"dense": False, "motion": "coviar"}]
)
def test_impossible_specs(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="GopSpec"):
        GopSpec(**options)


def test_not_media(tmp_path: Path) -> None:
    (tmp_path / "empty.avi").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a film")
    for name in ("empty.avi", "text.mp4", "absent.avi"):
        with pytest.raises(NotMediaError, match=name):
            CompressedReader(tmp_path / name)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="wav") as out:
        stream = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
    with pytest.raises(NoVideoError, match="no pictures"):
        CompressedReader(buffer.getvalue())


def test_truncated_anywhere_ends_in_an_error_or_a_shorter_file(tmp_path: Path) -> None:
    """No hang, no crash; what is read of a cut file is what the whole file has."""
    whole = encode(tmp_path / "a.avi", drifting(36)).read_bytes()
    spec = GopSpec(1, 12, 2)
    with CompressedReader(whole) as reader:
        expected = reader.clip(0, spec)
    served = 0
    for cut in np.linspace(1, len(whole) - 1, 40).astype(int).tolist():
        try:
            with CompressedReader(whole[:cut]) as reader:
                for first in reader.starts(spec):
                    clip = reader.clip(first, spec)
                    if first == 0:
                        assert clip.residual is not None and expected.residual is not None
                        assert torch.equal(clip.residual, expected.residual)
                        served += 1
        except (NotMediaError, DecodeError, NoVideoError, StructureError, WindowError) as error:
            assert pickle.loads(pickle.dumps(error)).args == error.args
    assert served > 5


def test_damaged_bytes_never_pass_silently_as_another_size(tmp_path: Path) -> None:
    whole = bytearray(encode(tmp_path / "a.avi", drifting(36)).read_bytes())
    rng = np.random.default_rng(1)
    for _ in range(60):
        broken = bytearray(whole)
        for at in rng.integers(300, len(whole), 8):
            broken[at] = int(rng.integers(256))
        try:
            with CompressedReader(bytes(broken)) as reader:
                for first in reader.starts(GopSpec(1, 12, 2)):
                    clip = reader.clip(first, GopSpec(1, 12, 2))
                    assert clip.residual is not None and clip.residual.shape == (3, 5, HEIGHT, WIDTH)
        except (NotMediaError, DecodeError, NoVideoError, StructureError, WindowError):
            pass


def test_from_bytes_and_from_a_tar(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.m4v", drifting(24), container="m4v")
    data = path.read_bytes()
    (tmp_path / "shard.tar").write_bytes(b"x" * 512 + data + b"y" * 512)
    spec = GopSpec(2, 12, 2)
    clips = []
    for source in (path, data, TarMember(str(tmp_path / "shard.tar"), 512, len(data))):
        with CompressedReader(source) as reader:
            clips.append(reader.clip(0, spec))
    for clip in clips[1:]:
        assert clip.residual is not None and clips[0].residual is not None
        assert torch.equal(clip.residual, clips[0].residual) and torch.equal(clip.iframes, clips[0].iframes)


def test_results_do_not_depend_on_the_run(tmp_path: Path) -> None:
    """The decoder reads past the end of a packet: without padding the same call gives now this, now that."""
    path = encode(tmp_path / "a.mp4", drifting(24))
    found = set()
    for _ in range(6):
        with CompressedReader(path) as reader:
            clip = reader.clip(0, GopSpec(2, 12, 1))
            assert clip.residual is not None
            found.add(clip.residual.numpy().tobytes())
    assert len(found) == 1
