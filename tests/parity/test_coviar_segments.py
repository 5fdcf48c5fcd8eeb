"""CoViAR's choice of pictures against the release's own table: every row, test and training."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from avssl_core.data.coviar_segments import COVIAR_STREAMS, gop_place, segment_centre, segment_range


def test_every_row_of_the_table(fixtures_dir: Path) -> None:
    table = load_file(fixtures_dir / "compressed" / "loader_scaling.safetensors")["index_table"]
    assert len(table) > 50
    for frames, segments, code, segment, gop, position, begin, end in table.tolist():
        asked = frames, segments, segment, COVIAR_STREAMS[code]
        assert segment_centre(*asked) == (gop, position), asked
        assert segment_range(*asked) == (begin, end), asked


def test_streams_of_change_never_meet_an_iframe_and_stay_in_the_video() -> None:
    for frames in range(2, 60):
        for segment in range(3):
            begin, end = segment_range(frames, 3, segment, "motion")
            assert 1 <= begin < end <= frames
            assert all(gop_place(frame, "residual").position > 0 for frame in range(begin, end))
            assert segment_centre(frames, 3, segment, "iframe", gop_size=7).position == 0


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="segment=3 of 3 in 24 pictures"):
        segment_range(24, 3, 3, "iframe")
    with pytest.raises(ValueError, match="in at least 2"):
        segment_centre(1, 1, 0, "motion")
    with pytest.raises(ValueError, match="unknown stream 'rgb': use one of iframe, motion, residual"):
        segment_range(24, 3, 0, "rgb")  # type: ignore[arg-type]
