"""Motion vectors of predicted pictures: from the decoder's list of blocks to maps, one vector a pixel or a block.

Sign and unit, everywhere in this package: a vector is *displacement*, in pixels, x to the right and y down; what moved
three pixels to the right since the reference has the vector (3, 0), and ``picture(p) ≈ reference(p - vector)``. libav
stores the opposite (from the block to its source), in halves or quarters of a pixel.

Two rules for what a map holds:

* ``"codec"``: the vectors as coded, with their fractions, also where they point out of the picture (MPEG-4 repeats the
  border there);
* ``"coviar"``: what the loader of CoViAR (Wu et al. 2018), and with it every paper built on it, feeds its networks:
  fractions cut off toward zero, and no vector for a pixel whose source lies outside the picture.

Blocks that were coded anew (intra) have no vector and count as (0, 0); :func:`intra_map` tells them from still ones. In
interlaced streams a macroblock may have a vector for each field; they stand in its upper and lower half.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Rule = Literal["codec", "coviar"]
Blocks: TypeAlias = npt.NDArray[np.int32]  # (N, 7): left, top, width, height, motion x, motion y, scale
Floats: TypeAlias = npt.NDArray[np.float32]

CELL = 8  # pixels: the smallest block that carries a vector of its own
_MACROBLOCK = 2  # cells


def blocks_of(frame: Any) -> Blocks:
    """The blocks of a decoded frame that carry vectors, ``(N, 7)``; none for intra pictures.

    The frame's decoder must have been opened with ``flags2=+export_mvs``.
    """
    side_data = frame.side_data.get("MOTION_VECTORS")
    if side_data is None:
        return np.empty((0, 7), np.int32)
    raw = side_data.to_ndarray()
    out = np.empty((len(raw), 7), np.int32)
    out[:, 2], out[:, 3] = raw["w"], raw["h"]
    out[:, 0], out[:, 1] = raw["dst_x"] - out[:, 2] // 2, raw["dst_y"] - out[:, 3] // 2
    out[:, 4], out[:, 5], out[:, 6] = raw["motion_x"], raw["motion_y"], raw["motion_scale"]
    return out[raw["source"] < 0]  # B pictures have vectors into the future too


def block_motion(frames: list[Blocks], height: int, width: int) -> Floats:
    """Vectors at the resolution of 8x8 blocks, under the rule ``"codec"``.

    Args:
        frames: blocks of each of P pictures.
        height: of the pictures, in pixels.
        width: of the pictures, in pixels.

    Returns:
        float32 ``(2, P, ceil(height / 8), ceil(width / 8))``, x then y, in *pixels*.
    """
    cells = np.zeros((2, len(frames), -(-height // CELL), -(-width // CELL)), np.float32)
    blocks, picture = _joined(frames)
    rows, columns, owner = _cells(blocks, *cells.shape[2:])
    moved = -blocks[:, 4:6] / blocks[:, 6:7].astype(np.float32)
    cells[:, picture[owner], rows, columns] = moved[owner].T
    return cells


def _joined(frames: list[Blocks]) -> tuple[Blocks, npt.NDArray[np.intp]]:
    """The blocks of all pictures in one list, and the picture of each."""
    numbers = np.repeat(np.arange(len(frames)), [len(blocks) for blocks in frames])
    return (np.concatenate(frames) if frames else np.empty((0, 7), np.int32)), numbers


def _cells(blocks: Blocks, height: int, width: int) -> tuple[Any, Any, Any]:
    """Rows and columns of all cells that blocks cover, inside a grid, and the block that each belongs to."""
    across, down = np.maximum(blocks[:, 2] // CELL, 1), np.maximum(blocks[:, 3] // CELL, 1)
    top, left = blocks[:, 1] // CELL, blocks[:, 0] // CELL
    owners, rows, columns = [np.empty(0, np.intp)], [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    for dy in range(int(down.max(initial=0))):
        for dx in range(int(across.max(initial=0))):
            row, column = top + dy, left + dx
            covered = (dy < down) & (dx < across) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            owner = np.flatnonzero(covered)
            owners.append(owner)
            rows.append(row[owner])
            columns.append(column[owner])
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(owners)


def intra_map(frames: list[Blocks], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Macroblocks of P pictures that carry no vector because they were coded anew.

    Returns:
        bool ``(P, ceil(height / 16), ceil(width / 16))``.
    """
    side = CELL * _MACROBLOCK
    intra = np.ones((len(frames), -(-height // side), -(-width // side)), bool)
    blocks, picture = _joined(frames)
    rows, columns, owner = _cells(blocks, _MACROBLOCK * intra.shape[1], _MACROBLOCK * intra.shape[2])
    intra[picture[owner], rows // _MACROBLOCK, columns // _MACROBLOCK] = False
    return intra


def dense_motion(cells: Floats, height: int, width: int, *, rule: Rule = "codec") -> Floats:
    """Vectors of blocks painted over their pixels.

    Args:
        cells: of :func:`block_motion`, ``(2, P, h, w)``.
        height: of the pictures, in pixels.
        width: of the pictures, in pixels.
        rule: see the module.

    Returns:
        float32 ``(2, P, height, width)``; whole numbers under ``"coviar"``.
    """
    coarse = np.trunc(cells) if rule == "coviar" else cells
    dense = coarse.repeat(CELL, axis=2)[:, :, :height].repeat(CELL, axis=3)[..., :width]
    if rule == "codec":
        return np.ascontiguousarray(dense)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    from_x, from_y = x - dense[0], y - dense[1]
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    return np.where(inside, dense, np.float32(0))


def accumulate(step: Floats) -> Floats:
    """Follow every pixel back through the predicted pictures of one group to its place in the intra picture.

    A pixel without a vector (still, intra, or from outside) stands where it stood in the picture before.

    Args:
        step: vectors of *all* pictures 1, 2, … of the group in order, under the rule ``"coviar"``, ``(2, P, H, W)``.

    Returns:
        The displacement since the intra picture, ``(2, P, H, W)``: pixel minus origin.

    Raises:
        ValueError: vectors with fractions, or that point out of the picture.
    """
    _, count, height, width = step.shape
    y, x = np.mgrid[:height, :width]
    origin_x, origin_y = x, y
    out = np.empty_like(step)
    for at in range(count):
        from_x, from_y = _sources(step[:, at], x, y)
        origin_x, origin_y = origin_x[from_y, from_x], origin_y[from_y, from_x]
        out[0, at], out[1, at] = x - origin_x, y - origin_y
    return out


def displaced(reference: npt.NDArray[Any], vectors: Floats) -> npt.NDArray[Any]:
    """What motion compensation by whole vectors makes of a picture: ``reference(p - vector)``.

    Args:
        reference: ``(C, H, W)``.
        vectors: ``(2, H, W)``, whole and inside the picture, as of the rule ``"coviar"`` or :func:`accumulate`.

    Raises:
        ValueError: vectors with fractions, or that point out of the picture.
    """
    y, x = np.mgrid[: reference.shape[1], : reference.shape[2]]
    from_x, from_y = _sources(vectors, x, y)
    return np.asarray(reference[:, from_y, from_x])


def _sources(vectors: Floats, x: Any, y: Any) -> tuple[Any, Any]:
    """Columns and rows that pixels come from."""
    whole = vectors.astype(np.int64)
    from_x, from_y = x - whole[0], y - whole[1]
    height, width = x.shape
    if (
        (whole != vectors).any()
        or min(from_x.min(), from_y.min()) < 0
        or from_x.max() >= width
        or from_y.max() >= height
    ):
        raise ValueError(
            "expected whole vectors that stay inside the picture: paint them with dense_motion(..., rule='coviar')"
        )
    return from_x, from_y
