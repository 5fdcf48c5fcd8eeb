"""Windows: lengths, draws that depend on (seed, epoch, index) alone, and clips that cannot hold them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from avssl_core.data import Corpus, NoUsableClipsError, WindowSpec, draw_starts, uniform_starts
from avssl_core.data.windows import fitting_rows, usable_seconds


def corpus(tmp_path: Path, **columns: list[object]) -> Corpus:
    durations = columns.pop("duration_s", [3.0, 0.5, 1.2])
    names = [f"{n}.mp4" for n in range(len(durations))]
    return Corpus(tmp_path, pd.DataFrame({"clip_id": names, "uri": names, "duration_s": durations, **columns}))


def test_lengths() -> None:
    spec = WindowSpec(16, 25, sample_rate=16000, audio_s=0.65, windows=2, min_gap_s=1.0)
    assert spec.clip_s == pytest.approx(0.64) and spec.span_s == pytest.approx(0.65)
    assert spec.num_samples == 10400 and spec.shift.required_s == pytest.approx(1.65)
    assert WindowSpec(30, 30, sample_rate=24000).num_samples == 24000
    assert WindowSpec(30, 30).num_samples == 0


def test_draws_are_functions_of_seed_epoch_and_index() -> None:
    spec = WindowSpec(8, 25, windows=2, min_gap_s=0.32)
    base = draw_starts(spec, 3.0, seed=1, epoch=2, index=3)
    torch.manual_seed(5)
    assert torch.equal(base, draw_starts(spec, 3.0, seed=1, epoch=2, index=3))
    for other in ({"seed": 2}, {"epoch": 3}, {"index": 4}):
        assert not torch.equal(base, draw_starts(spec, 3.0, **{"seed": 1, "epoch": 2, "index": 3, **other}))
    many = torch.stack([draw_starts(spec, 3.0, seed=0, epoch=e, index=7) for e in range(400)])
    assert many.min() >= 0 and many.max() <= 3.0 - 0.32
    assert (many[:, 0] - many[:, 1]).abs().min() >= 0.32
    assert many.min() < 0.05 and many.max() > 2.63  # the whole clip is used


def test_uniform_starts_span_the_clip() -> None:
    assert uniform_starts(WindowSpec(25, 25, windows=5), 3.0).tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert uniform_starts(WindowSpec(25, 25), 3.0).tolist() == [1.0]
    assert uniform_starts(WindowSpec(25, 25, windows=3), 1.0).tolist() == [0.0, 0.0, 0.0]


def test_clips_that_cannot_hold_the_windows_are_listed(tmp_path: Path) -> None:
    clips = corpus(tmp_path, audio_codec=["aac", "aac", ""])
    rows, refused = fitting_rows(clips, WindowSpec(25, 25))
    assert rows.tolist() == [0, 2] and refused == [("1.mp4", "lasts 0.480 s, the windows need 1.000 s")]
    rows, refused = fitting_rows(clips, WindowSpec(25, 25, sample_rate=16000))
    assert rows.tolist() == [0] and ("2.mp4", "has no sound") in refused
    rows, _ = fitting_rows(clips, WindowSpec(25, 25, windows=2, min_gap_s=2.0))
    assert rows.tolist() == [0]
    with pytest.raises(
        NoUsableClipsError, match=r"none of the 3 clips (.|\n)*lasts 3.000 s, the windows need 4.000 s"
    ) as error:
        fitting_rows(clips, WindowSpec(100, 25))
    assert len(error.value.refused) == 3


def test_sound_that_ends_earlier_limits_the_window(tmp_path: Path) -> None:
    clips = corpus(tmp_path, audio_duration_s=[2.0, 0.5, None])
    assert usable_seconds(clips, WindowSpec(5, 25)).tolist() == pytest.approx([3.0, 0.48, 1.2])
    assert usable_seconds(clips, WindowSpec(5, 25, sample_rate=8000)).tolist() == pytest.approx([2.0, 0.48, 1.2])


def test_sound_nobody_looked_for_is_not_taken_for_silence(tmp_path: Path) -> None:
    rows, _ = fitting_rows(corpus(tmp_path), WindowSpec(5, 25, sample_rate=8000))
    assert rows.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_frames": 0, "fps": 25},
        {"num_frames": 8, "fps": 0},
        {"num_frames": 8, "fps": 25, "windows": 0},
        {"num_frames": 8, "fps": 25, "min_gap_s": -1},
        {"num_frames": 8, "fps": 25, "sample_rate": 0},
        {"num_frames": 8, "fps": 25, "audio_s": 1.0},
        {"num_frames": 8, "fps": 25, "sample_rate": 8000, "audio_s": 0.0},
    ],
)
def test_impossible_specs_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got"):
        WindowSpec(**arguments)  # type: ignore[arg-type]
