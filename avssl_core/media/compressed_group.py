"""One group of pictures, read: vectors and residuals of its P pictures, by the cheapest way that its stream allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from avssl_core.media.compressed_clip import GopSpec
from avssl_core.media.compressed_pictures import Decoders
from avssl_core.media.convert import unscaled_rgb
from avssl_core.media.gops import Structure
from avssl_core.media.motion_vectors import Blocks, accumulate, block_motion, dense_motion, displaced

_NO_BLOCKS: Blocks = np.empty((0, 7), np.int32)


@dataclass(frozen=True)
class GroupPart:
    """What was read of one group.

    Attributes:
        blocks: vectors of each picture, in the order of the group.
        missing: whether each picture was not coded.
        residual: of the kept pictures, ``(3, kept, H, W)``; None where none was asked for.
        accumulated: vectors from each P picture to the intra picture, where they were needed for the residual.
    """

    blocks: list[Blocks]
    missing: list[bool]
    residual: npt.NDArray[np.int8 | np.int16] | None = None
    accumulated: npt.NDArray[np.float32] | None = None


def read_group(decoders: Decoders, structure: Structure, packets: list[Any], spec: GopSpec) -> GroupPart:
    """Read packets 0 … ``spec.last`` of a group, ``None`` for pictures that were not coded."""
    if spec.residual == "pixel":
        return _pixel(decoders, structure, packets, spec)
    if spec.residual is None and structure.coded_obstacle is not None:
        return _vectors_of_all(decoders, packets, spec)
    return _alone(decoders, structure, packets, spec)


def group_motion(
    parts: Sequence[GroupPart], structure: Structure, spec: GopSpec
) -> npt.NDArray[np.float32 | np.int16] | None:
    """Motion of the kept pictures of all groups, as ``spec.motion`` asks; None where it does not."""
    height, width = structure.height, structure.width
    if spec.motion is None:
        return None
    if spec.motion != "accumulated":
        cells = block_motion([part.blocks[n] for part in parts for n in spec.positions], height, width)
        return dense_motion(cells, height, width, rule=spec.motion) if spec.dense else cells
    chosen = [position - 1 for position in spec.positions]
    paths = [_accumulated(part, height, width) if part.accumulated is None else part.accumulated for part in parts]
    return np.concatenate([path[:, chosen] for path in paths], 1)


def _accumulated(part: GroupPart, height: int, width: int) -> npt.NDArray[np.float32]:
    step = dense_motion(block_motion(part.blocks, height, width), height, width, rule="coviar")
    return accumulate(step[:, 1:])


def _alone(decoders: Decoders, structure: Structure, packets: list[Any], spec: GopSpec) -> GroupPart:
    """Vectors, and coded residuals, of a group's P pictures, each from its own packet."""
    height, width = structure.height, structure.width
    blocks: list[Blocks] = [_NO_BLOCKS] * (spec.last + 1)
    planes = np.zeros((3, len(spec.positions), height, width), np.int8) if spec.residual else None
    kept = {position: number for number, position in enumerate(spec.positions)}
    for position in range(1, spec.last + 1):
        packet, wanted = packets[position], position in kept or spec.every_motion or spec.motion == "accumulated"
        if packet is None or not wanted:
            continue
        if planes is not None and position in kept:
            picture = decoders.coded(packet)
            blocks[position] = picture.blocks
            for channel, plane in enumerate(picture.planes):
                planes[channel, kept[position]] = plane if channel == 0 else _doubled(plane, height, width)
        elif spec.motion is not None or spec.every_motion:
            blocks[position] = decoders.vectors(packet)
    return GroupPart(blocks, [packet is None for packet in packets], planes)


def _vectors_of_all(decoders: Decoders, packets: list[Any], spec: GopSpec) -> GroupPart:
    """Vectors of a group whose pictures do not decode alone: all are decoded up to the last one wanted."""
    missing = [packet is None for packet in packets]
    if spec.motion is None and not spec.every_motion:
        return GroupPart([_NO_BLOCKS] * (spec.last + 1), missing)
    return GroupPart([blocks for _, blocks in decoders.all_of(packets)], missing)


def _pixel(decoders: Decoders, structure: Structure, packets: list[Any], spec: GopSpec) -> GroupPart:
    """Vectors and pixel residuals of a group, from all of its pictures up to the last one wanted."""
    decoded = decoders.all_of(packets)
    blocks = [found for _, found in decoded]
    height, width = structure.height, structure.width
    step = dense_motion(block_motion(blocks, height, width), height, width, rule="coviar")
    accumulated = accumulate(step[:, 1:]) if spec.motion == "accumulated" else None
    references = [0 if accumulated is not None else position - 1 for position in spec.positions]
    needed = sorted({*references, *spec.positions})
    planar = unscaled_rgb([decoded[n][0] for n in needed]).astype(np.int16)  # (N, 3, H, W); differences fit
    pictures = dict(zip(needed, planar, strict=True))
    residual = np.empty((3, len(spec.positions), height, width), np.int16)
    for number, (position, reference) in enumerate(zip(spec.positions, references, strict=True)):
        vectors = step[:, position] if accumulated is None else accumulated[:, position - 1]
        residual[:, number] = pictures[position] - displaced(pictures[reference], vectors)
    return GroupPart(blocks, [packet is None for packet in packets], residual, accumulated)


def _doubled(plane: npt.NDArray[np.int8], height: int, width: int) -> npt.NDArray[np.int8]:
    """A colour plane at the size of the luma plane, by repetition."""
    return plane.repeat(2, axis=0)[:height].repeat(2, axis=1)[:, :width]
