"""Clips by groups of pictures: intra pictures, motion vectors and residuals, as the file holds them.

A video file already says what moved: between two intra pictures it stores vectors and corrections. This reader hands
them out without rebuilding the pictures, where that is possible, and says so where it is not:

==================  ==============================================================  =======================
asked for           decoded                                                         streams
==================  ==============================================================  =======================
intra pictures      their packets                                                   MPEG-4 Part 2; others, no B
vectors             headers and vectors of the wanted P pictures                    MPEG-4 Part 2, no B
vectors             every picture up to the last one wanted                         other codecs, no B
coded residual      the wanted P pictures, each alone                               MPEG-4 Part 2, no B
pixel residual      every picture up to the last one wanted                         no B pictures
==================  ==============================================================  =======================

The *coded* residual is the prediction error in the bitstream. The *pixel* residual is CoViAR's (Wu et al. 2018): a
decoded picture minus a decoded reference displaced by whole vectors. They differ where vectors have fractions.

Vectors are taken to point one picture back. H.264 and its successors may refer further back, and libav does not tell
which picture was meant: for such streams ask for a transcoded copy (`avssl data compress`), whose vectors cannot.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cached_property
from types import TracebackType
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch
from av.stream import Discard
from torch import Tensor

from avssl_core.media.compressed_clip import CompressedClip, GopSpec
from avssl_core.media.compressed_group import GroupPart, group_motion, read_group
from avssl_core.media.compressed_pictures import Decoders
from avssl_core.media.convert import Converter, unscaled_rgb
from avssl_core.media.errors import DecodeError, NoVideoError, StructureError, WindowError
from avssl_core.media.gops import Gop, Structure, find_structure
from avssl_core.media.motion_vectors import block_motion, intra_map
from avssl_core.media.sound import SoundTrack
from avssl_core.media.source import Source, describe, open_container, raw_mpeg4
from avssl_core.media.tracks import Track, stamp

_REMEDY = "transcode it with `avssl data compress`, which writes MPEG-4 Part 2 without B pictures"


class CompressedReader:
    """Random access to the groups of one file, opened once.

    Args:
        source: path, bytes, or tar member: .mp4, .avi, .mkv …, or a raw MPEG-4 Part 2 stream (.m4v).
        structure: of this very file, from an earlier reading; saves the pass over its packets.

    Raises:
        NotMediaError, NoVideoError, DecodeError: no such file, no pictures, damaged headers.

    Example:
        >>> with CompressedReader("clip.avi") as reader:  # doctest: +SKIP
        ...     reader.structure.lengths()
        ...     clip = reader.clip(0, GopSpec(gops=5, gop_size=12, stride=2))
    """

    def __init__(self, source: Source, *, structure: Structure | None = None) -> None:
        self._name, self._known = describe(source), structure
        raw = raw_mpeg4(source)
        self._file = None
        self._container: Any
        if raw is not None:
            self._container = av.open(io.BytesIO(raw), "r", format="m4v")
        else:
            self._container, self._file = open_container(source)
        videos = self._container.streams.video
        if not videos or videos[0].codec_context is None:
            self.close()
            raise NoVideoError(self._name, "has no pictures; leave it out")
        self._stream = videos[0]
        self._track = Track(self._container, self._stream, self._name)
        # A raw stream knows no times to seek to: its packets are kept.
        self._kept = [packet for packet in self._track.packets() if packet.size] if raw is not None else None

    def __enter__(self) -> CompressedReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; clips that were read stay valid."""
        self._container.close()
        if self._file is not None:
            self._file.close()

    @cached_property
    def structure(self) -> Structure:
        """The stream's groups, from one pass over its packets; nothing is decoded.

        Raises:
            DecodeError: a header is damaged, or there is no picture.
        """
        if self._known is not None:
            return self._known
        if self._kept is None:
            self._track.seek(self._track.start_s)
        try:
            found = find_structure(self._packets_from_here(), self._stream)
        except ValueError as error:
            raise DecodeError(self._name, f"{error}; the file is damaged: leave it out") from error
        if not found.gops:
            raise DecodeError(self._name, "holds not one picture; it is truncated: copy it again, or leave it out")
        return found

    def starts(self, spec: GopSpec) -> list[int]:
        """Groups at which a clip of ``spec`` can begin; empty where the structure does not allow any."""
        return self.structure.starts(spec.gops, spec.gop_size, spec.last)

    def iframes(self, gops: list[int] | None = None, *, size: int | tuple[int, int] | None = None) -> Tensor:
        """Intra pictures alone: nothing of a predicted picture is read from the file or decoded.

        Args:
            gops: numbers of groups, ascending; by default all that have their intra picture.
            size: ``None`` (as stored), the short side, or ``(height, width)``.

        Returns:
            RGB, uint8 ``(3, N, H, W)``.

        Raises:
            WindowError, DecodeError: no such group; damaged.
            StructureError: B pictures in a stream other than MPEG-4 Part 2, whose packets do not come in the order of
                their times.
        """
        if self.structure.layer is None and self.structure.obstacle is not None:
            raise StructureError(self._name, f"has {self.structure.obstacle}; {_REMEDY}")
        wanted = [n for n, gop in enumerate(self.structure.gops) if not gop.headless] if gops is None else gops
        frames = [self._decoders.intra(packet) for packet in self._keys([self._gop(number) for number in wanted])]
        return _rgb(self._name, frames, size)

    def clip(self, first: int, spec: GopSpec | None = None) -> CompressedClip:
        """Read the groups ``first`` … ``first + spec.gops - 1``.

        Raises:
            StructureError: the stream has B pictures, groups of other lengths, or cannot give what was asked.
            WindowError: the groups lie outside the file.
            DecodeError: damaged.
        """
        spec = spec or GopSpec()
        self._require(first, spec)
        groups = [self._gop(first + number) for number in range(spec.gops)]
        packets, times = self._group_packets(groups, spec.last)
        parts = [read_group(self._decoders, self.structure, group, spec) for group in packets]
        frames = [self._decoders.intra(group[0]) for group in packets]
        return self._assembled(groups, times, frames, parts, spec)

    # -- packets -------------------------------------------------------------------------------------------------------

    def _packets_from_here(self) -> Iterator[Any]:
        return iter(self._kept) if self._kept is not None else self._track.packets()

    def _gop(self, number: int) -> Gop:
        if not 0 <= number < len(self.structure.gops):
            raise WindowError(self._name, f"has {len(self.structure.gops)} groups of pictures, asked for {number}")
        return self.structure.gops[number]

    def _keys(self, gops: list[Gop]) -> Iterator[Any]:
        """The packets of intra pictures, found by seeking; the demuxer passes over everything else."""
        wanted = {gop.stamp for gop in gops}
        if self._kept is not None:
            yield from (packet for packet in self._kept if stamp(packet) in wanted)
            return
        self._stream.discard = Discard.nonkey
        try:
            for run in _runs(gops, self.structure):
                self._track.seek(run[0].stamp * self._track.tick_s)
                yield from self._these(run)
        finally:
            self._stream.discard = Discard.default

    def _these(self, run: list[Gop]) -> Iterator[Any]:
        """From here on, the packets with the stamps of ``run``."""
        left = {gop.stamp for gop in run}
        for packet in self._track.packets():
            if stamp(packet) in left and packet.size:
                left.discard(int(stamp(packet) or 0))
                yield packet
            if not left:
                return
        raise DecodeError(self._name, f"lacks intra pictures at ticks {sorted(left)}; the file was changed or cut off")

    def _group_packets(self, groups: list[Gop], last: int) -> tuple[list[list[Any]], list[list[float]]]:
        """Packets 0 … ``last`` of consecutive groups, ``None`` for pictures that were not coded; and times of all."""
        out: list[list[Any]] = []
        times: list[list[float]] = []
        if self._kept is None:
            self._track.seek(groups[0].stamp * self._track.tick_s)
        stream = self._packets_from_here()
        for gop in groups:
            packet = next((p for p in stream if stamp(p) == gop.stamp and p.size), None)
            found = [packet, *(next(stream, None) for _ in gop.kinds[1 : last + 1])]
            if any(packet is None for packet in found):
                raise DecodeError(self._name, f"ends inside the group at {gop.start_s:.3f} s: copy it again")
            out.append([None if kind == "N" else p for kind, p in zip(gop.kinds, found, strict=False)])
            times.append([self._time_s(gop, position, p) for position, p in enumerate(found)])
        return out, times

    def _time_s(self, gop: Gop, position: int, packet: Any) -> float:
        """Time of a group's picture after the file's first one; where it has no stamp, that of a steady rate."""
        ticks = stamp(packet)
        past_s = position / self.structure.fps if ticks is None else (ticks - gop.stamp) * self._track.tick_s
        return gop.start_s + float(past_s)

    def _require(self, first: int, spec: GopSpec) -> None:
        """Raise unless the clip at ``first`` can be read as asked."""
        structure = self.structure
        if first + spec.gops > len(structure.gops) or first < 0:
            reason = f"has {len(structure.gops)} groups of pictures, asked for {first} to {first + spec.gops - 1}"
            raise WindowError(self._name, reason + "; ask for fewer, or leave the file out")
        needs_p = spec.motion is not None or spec.residual is not None or spec.every_motion
        if needs_p and structure.obstacle is not None:
            raise StructureError(self._name, f"has {structure.obstacle}; {_REMEDY}")
        if first not in structure.starts(spec.gops, spec.gop_size, spec.last):
            found = [len(gop) for gop in structure.gops[first : first + spec.gops]]
            reason = f"has groups of {found} pictures at {first}, expected {spec.gop_size} each"
            raise StructureError(self._name, f"{reason}; take one of starts(spec), another gop_size, or {_REMEDY}")
        if spec.residual == "coded" and structure.coded_obstacle is not None:
            reason = f"coded residuals cannot be read from {structure.coded_obstacle}"
            raise StructureError(self._name, f"{reason}; ask for residual='pixel', or {_REMEDY}")

    # -- pictures ------------------------------------------------------------------------------------------------------

    @cached_property
    def _decoders(self) -> Decoders:
        header = b"" if self._kept is None else bytes(self._kept[0])
        return Decoders(self._stream, self.structure, header, self._name)

    # -- putting together ----------------------------------------------------------------------------------------------

    def _assembled(
        self,
        groups: list[Gop],
        times: list[list[float]],
        frames: list[av.VideoFrame],
        parts: list[GroupPart],
        spec: GopSpec,
    ) -> CompressedClip:
        height, width = self.structure.height, self.structure.width
        kept = [part.blocks[position] for part in parts for position in spec.positions]
        coded = np.array([not part.missing[position] for part in parts for position in spec.positions])
        wanted = spec.motion is not None or spec.residual is not None
        intra = intra_map(kept, height, width) & coded[:, None, None] if wanted else None
        every = [part.blocks[n] for part in parts for n in range(spec.gop_size)] if spec.every_motion else None
        residual = np.concatenate([p.residual for p in parts if p.residual is not None], 1) if spec.residual else None
        return CompressedClip(
            iframes=_rgb(self._name, frames, None),
            motion=_tensor(group_motion(parts, self.structure, spec)),
            residual=_tensor(residual),
            intra=_tensor(intra),
            every_motion=_tensor(block_motion(every, height, width) if every is not None else None),
            gop=torch.arange(spec.gops).repeat_interleave(len(spec.positions)),
            position=torch.tensor(spec.positions).repeat(spec.gops),
            iframe_s=torch.tensor([gop.start_s for gop in groups], dtype=torch.float64),
            pframe_s=torch.tensor([group[n] for group in times for n in spec.positions], dtype=torch.float64),
            start_s=groups[0].start_s,
            waveform=self._sound(groups[0].start_s, spec),
            structure=self.structure,
        )

    def _sound(self, start_s: float, spec: GopSpec) -> Tensor | None:
        """The sound of the clip's seconds, on the pictures' clock."""
        if spec.sample_rate is None:
            return None
        streams = [stream for stream in self._container.streams.audio if stream.codec_context is not None]
        if not streams:
            raise StructureError(self._name, "has no sound; set sample_rate=None, or leave it out")
        seconds = spec.gops * spec.gop_size / self.structure.fps
        data = SoundTrack(self._container, streams[0], self._name).window(
            self._track.start_s + start_s,
            num_samples=round(seconds * spec.sample_rate),
            sample_rate=spec.sample_rate,
            tolerance_s=0.5 / self.structure.fps,
        )
        return torch.from_numpy(data)


def _runs(gops: list[Gop], structure: Structure) -> list[list[Gop]]:
    """Groups that follow each other in the file: one seek each."""
    order = {gop.stamp: number for number, gop in enumerate(structure.gops)}
    runs: list[list[Gop]] = []
    for gop in gops:
        if runs and order[gop.stamp] == order[runs[-1][-1].stamp] + 1:
            runs[-1].append(gop)
        else:
            runs.append([gop])
    return runs


def _rgb(name: str, frames: list[av.VideoFrame], size: int | tuple[int, int] | None) -> Tensor:
    pixels = unscaled_rgb(frames) if size is None else Converter(name).to_rgb(frames, size=size)  # (T, 3, H, W)
    return torch.from_numpy(np.ascontiguousarray(pixels.swapaxes(0, 1)))


def _tensor(values: npt.NDArray[Any] | None) -> Tensor | None:
    return None if values is None else torch.from_numpy(np.ascontiguousarray(values))
