"""Labels of motion statistics against independently computed ones, on synthetic fields and on really coded clips."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from avssl_core.losses import PMSPLabels, pmsp_labels

GRID_TOLERANCE = 1e-9  # relative to the largest cell
MARGIN = 1e-6  # below it the two largest cells tie, and rounding decides
CLIPS = ("border_70x54", "clip60_64x48", "cut_128x96", "gop8_64x48", "sprite_96x64")
SYNTHETIC = ("synthetic_oscillation", "synthetic_pan", "synthetic_sprite")
READINGS = {
    "literal_zero": {"operator": "literal", "signed": True, "padding": "zero"},
    "literal_replicate": {"operator": "literal", "signed": True, "padding": "replicate"},
    "four_unsigned": {"operator": "four_derivatives", "signed": False, "padding": "replicate"},
    "four_signed": {"operator": "four_derivatives", "signed": True, "padding": "replicate"},
    "raw_signed": {"operator": "raw", "signed": True, "padding": "replicate"},
}
TEMPORAL = {2: (1, 2), 3: (1, 3), 5: (1, 3, 5)}


def painted(blocks: Tensor, frames: int, height: int, width: int) -> Tensor:
    """Exported blocks as a map (N, H, W, 2) of block minus reference position, in whole pixels.

    Rows: frame, left, top, width, height, x, y, scale, ... Pixels whose own place or reference lies outside stay 0.
    """
    field = torch.zeros(frames, height, width, 2)
    for frame, left, top, w, h, x, y, scale in blocks[:, :8].tolist():
        dx, dy = int(x / scale), int(y / scale)  # int() truncates towards zero, as the loader does
        x0, x1 = max(left, 0, -dx), min(left + w, width, width - dx)
        y0, y1 = max(top, 0, -dy), min(top + h, height, height - dy)
        if x0 < x1 and y0 < y1:
            field[frame, y0:y1, x0:x1] = torch.tensor([-dx, -dy], dtype=field.dtype)
    return field


def motion_of(folder: Path, name: str, stored: dict[str, Tensor]) -> Tensor:
    """Motion per pixel (1, 2, T * K, H, W), float64, zero at I-frames."""
    if "motion" in stored:
        field = stored["motion"]
    else:
        codec = load_file(folder / f"{name}.codec.safetensors")
        width, height, frames = codec["params"][:3].tolist()
        field = painted(codec["blocks"], frames, height, width)
        assert torch.equal((field != 0).any(dim=-1).sum(dim=(1, 2)), stored["motion_nonzero_per_frame"])
        assert not field[codec["frame_type"] == 1].any()
    return field.permute(3, 0, 1, 2)[None].double()


@pytest.fixture(scope="module", params=[*CLIPS, *SYNTHETIC])
def case(request: pytest.FixtureRequest, fixtures_dir: Path) -> tuple[dict[str, Tensor], Tensor]:
    folder = fixtures_dir / "compressed"
    stored = load_file(folder / f"{request.param}.pmsp.safetensors")
    return stored, motion_of(folder, request.param, stored)


def labels_of(case: tuple[dict[str, Tensor], Tensor], reading: str, dtype: torch.dtype) -> PMSPLabels:
    stored, motion = case
    num_gops, gop_size = stored["T_K"].tolist()
    return pmsp_labels(motion.to(dtype), num_gops, gop_size, **READINGS[reading], temporal=TEMPORAL[num_gops])


def test_every_fixture_is_listed(fixtures_dir: Path) -> None:
    found = {path.name.split(".")[0] for path in (fixtures_dir / "compressed").glob("*.pmsp.safetensors")}
    assert found == {*CLIPS, *SYNTHETIC}


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_labels(case: tuple[dict[str, Tensor], Tensor], reading: str, dtype: torch.dtype) -> None:
    found, stored, compared = labels_of(case, reading, dtype), case[0], 0
    assert len(found.levels) == sum(key.startswith(f"{reading}.label.") for key in stored)
    for s, t in found.levels:
        expected = stored[f"{reading}.label.s{s}.t{t}"]
        clear = stored[f"{reading}.margin.s{s}.t{t}"] > MARGIN
        assert torch.equal(found.labels[s, t][0][clear], expected[clear]), (s, t)
        compared += int(clear.sum())
    assert compared >= 2 * len(found.levels) / 3  # otherwise ties would leave nothing to compare


@pytest.mark.parametrize("reading", [name for name in READINGS if name.startswith(("literal", "four_unsigned"))])
def test_grids(case: tuple[dict[str, Tensor], Tensor], reading: str) -> None:
    found = labels_of(case, reading, torch.float64)
    for s, t in found.levels:
        expected = case[0][f"{reading}.grid.s{s}.t{t}"]
        tolerance = GRID_TOLERANCE * expected.max().item()
        torch.testing.assert_close(found.grids[s, t][0], expected, atol=tolerance, rtol=0)


def test_valid(case: tuple[dict[str, Tensor], Tensor]) -> None:
    """Something moves in every window of these files; the unit tests hold still ones."""
    found = labels_of(case, "literal_zero", torch.float64)
    for s, t in found.levels:
        assert torch.equal(found.valid[s, t][0].long(), case[0][f"valid.s{s}.t{t}"])


def test_the_readings_differ(fixtures_dir: Path) -> None:
    """Counts of the fixtures' notes: otherwise all readings would be tested against the same numbers."""
    folder = fixtures_dir / "compressed"
    stored = load_file(folder / "clip60_64x48.pmsp.safetensors")
    motion = motion_of(folder, "clip60_64x48", stored)
    labels = {}
    for reading in READINGS:
        found = labels_of((stored, motion), reading, torch.float64)
        labels[reading] = torch.cat([found.labels[level].flatten() for level in found.levels])
    assert len(labels["literal_zero"]) == 27
    assert (labels["literal_zero"] != labels["literal_replicate"]).sum() == 10
    assert (labels["literal_zero"] != labels["four_unsigned"]).sum() == 20
