"""The compressed-domain reader against CoViAR's loader and the bitstream: whole numbers, so exact equality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from avssl_core.media import CompressedReader, GopSpec
from avssl_core.media.motion_vectors import accumulate, block_motion, dense_motion, intra_map

CLIPS = [
    ("border_70x54", ".avi"),
    ("border_70x54", ".m4v"),
    ("clip60_64x48", ".m4v"),
    ("cut_128x96", ".mp4"),
    ("cut_128x96", ".m4v"),
    ("gop8_64x48", ".m4v"),
    ("sprite_96x64", ".m4v"),
]


class Case:
    """One fixture: the file, what the decoder exports, what the loader gives."""

    def __init__(self, folder: Path, name: str, suffix: str) -> None:
        self.path = folder / f"{name}{suffix}"
        self.codec: dict[str, Any] = load_file(folder / f"{name}.codec.safetensors")
        self.loader: dict[str, Any] = load_file(folder / f"{name}.coviar.safetensors")
        self.width, self.height, self.frames, self.gop_size, _ = self.codec["params"].tolist()[:5]
        self.gops = self.frames // self.gop_size

    def spec(self, **options: Any) -> GopSpec:
        return GopSpec(self.gops, self.gop_size, 1, **options)

    def row(self, gop: int, position: int) -> int:
        """Of a kept P picture, with every position kept."""
        return gop * (self.gop_size - 1) + position - 1


@pytest.fixture(params=CLIPS, ids=["".join(clip) for clip in CLIPS])
def case(request: pytest.FixtureRequest, fixtures_dir: Path) -> Case:
    return Case(fixtures_dir / "compressed", *request.param)


@pytest.mark.parametrize(("motion", "suffix"), [("coviar", "step"), ("accumulated", "accumulated")])
def test_vectors_and_pixel_residuals_are_the_loaders(case: Case, motion: Any, suffix: str) -> None:
    with CompressedReader(case.path) as reader:
        clip = reader.clip(0, case.spec(motion=motion, residual="pixel"))
    assert clip.motion is not None and clip.residual is not None
    compared = 0
    for number, (gop, position) in enumerate(case.loader["gop_pos"].tolist()):
        if position == 0:
            continue
        row = case.row(gop, position)
        vectors, residual = (x[:, row].numpy().transpose(1, 2, 0) for x in (clip.motion, clip.residual))
        np.testing.assert_array_equal(vectors, case.loader[f"mv_{suffix}"][number])
        np.testing.assert_array_equal(residual[..., ::-1], case.loader[f"residual_{suffix}"][number])  # theirs is BGR
        compared += 1
    assert compared >= 3


def test_intra_pictures_are_the_loaders(case: Case) -> None:
    with CompressedReader(case.path) as reader:
        pictures = reader.iframes()
    np.testing.assert_array_equal(pictures.numpy()[::-1].transpose(1, 2, 3, 0), case.loader["iframe_bgr"])


def test_coded_residuals_are_what_the_bitstream_carries(case: Case) -> None:
    with CompressedReader(case.path) as reader:
        clip = reader.clip(0, case.spec(residual="coded"))
    assert clip.residual is not None and clip.intra is not None
    for number, picture in enumerate(case.codec["p_index"].tolist()):
        row = case.row(*divmod(picture, case.gop_size))
        y, u, v = clip.residual[:, row].numpy()
        np.testing.assert_array_equal(y, case.codec["residual_y"][number])
        for found, name in ((u, "u"), (v, "v")):
            np.testing.assert_array_equal(found[::2, ::2], case.codec[f"residual_{name}"][number])
    is_p = case.codec["frame_type"] == 2
    np.testing.assert_array_equal(clip.intra.numpy(), case.codec["intra_mb"][is_p].astype(bool))


def test_a_p_picture_alone_gives_the_vectors_of_a_full_decode(case: Case) -> None:
    """The reader leaves out the inverse transform and most of the picture; the fixture's come with all of it."""
    blocks = case.codec["blocks"].astype(np.int32)
    frames = [blocks[blocks[:, 0] == number][:, 1:8] for number in range(case.frames)]
    expected = block_motion(frames, case.height, case.width)
    with CompressedReader(case.path) as reader:
        clip = reader.clip(0, case.spec(residual=None, dense=False, every_motion=True))
    assert clip.every_motion is not None
    np.testing.assert_array_equal(clip.every_motion.numpy(), expected)


def test_maps_from_the_stored_blocks(case: Case) -> None:
    """The painting alone, without the reader: dense, accumulated, intra."""
    blocks = case.codec["blocks"].astype(np.int32)
    frames = [blocks[blocks[:, 0] == number][:, 1:8] for number in range(case.frames)]
    dense = dense_motion(block_motion(frames, case.height, case.width), case.height, case.width, rule="coviar")
    for number, (gop, position) in enumerate(case.loader["gop_pos"].tolist()):
        first = gop * case.gop_size
        if position:
            path = accumulate(dense[:, first + 1 : first + position + 1])[:, -1]
            np.testing.assert_array_equal(path.transpose(1, 2, 0), case.loader["mv_accumulated"][number])
    is_p = case.codec["frame_type"] == 2
    found = intra_map(frames, case.height, case.width)
    np.testing.assert_array_equal(found[is_p], case.codec["intra_mb"][is_p].astype(bool))


def test_previous_picture_displaced_plus_coded_residual_is_the_picture(case: Case) -> None:
    """On blocks with whole vectors, luma, for every P picture: the identity that makes the coded residual one."""
    with CompressedReader(case.path) as reader:
        clip = reader.clip(0, case.spec(residual="coded"))
    assert clip.residual is not None and clip.motion is not None
    luma, checked = case.codec["y"].astype(np.int64), 0
    y, x = np.mgrid[: case.height, : case.width]
    inner = (x < case.width - case.width % 16) & (y < case.height - case.height % 16)  # the padded border differs
    for picture in np.flatnonzero(case.codec["frame_type"] == 2).tolist():
        row = case.row(*divmod(picture, case.gop_size))
        vectors = clip.motion[:, row].numpy()
        whole = (vectors == np.round(vectors)).all(0) & inner
        intra = clip.intra[row].numpy().repeat(16, 0).repeat(16, 1)[: case.height, : case.width]
        from_x, from_y = (x - vectors[0]).astype(int), (y - vectors[1]).astype(int)
        whole &= ~intra & (from_x < case.width - case.width % 16) & (from_y < case.height - case.height % 16)
        source = luma[picture - 1][from_y.clip(0, case.height - 1), from_x.clip(0, case.width - 1)]
        rebuilt = (source + clip.residual[0, row].numpy()).clip(0, 255)
        assert (rebuilt == luma[picture])[whole].all()
        checked += int(whole.sum())
    assert checked > 1000
