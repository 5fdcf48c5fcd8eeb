"""Time shift, reversal, and the generators that everything random comes from."""

from __future__ import annotations

import pytest
import torch

from avssl_core.transforms import TimeReversal, TimeShift, generator_for, mix, modality_split, time_reverse


def test_reversal_is_an_involution_on_both_modalities() -> None:
    video, spec = torch.rand(3, 3, 5, 4, 4), torch.rand(3, 1, 6, 9)
    reverse = TimeReversal()
    once = reverse(video, spec)
    assert torch.equal(once[0][:, :, 0], video[:, :, -1]) and torch.equal(once[1][..., 0], spec[..., -1])
    twice = reverse(*once)
    assert torch.equal(twice[0], video) and torch.equal(twice[1], spec)


def test_reversal_of_chosen_clips_leaves_the_others() -> None:
    video, spec = torch.rand(3, 3, 5, 4, 4), torch.rand(3, 1, 6, 9)
    chosen = torch.tensor([True, False, True])
    some, full = TimeReversal()(video, spec, chosen), TimeReversal()(video, spec)
    for part, whole, original in zip(some, full, (video, spec), strict=True):
        assert torch.equal(part[chosen], whole[chosen]) and torch.equal(part[1], original[1])
    assert torch.equal(time_reverse(spec, 3), full[1])


@pytest.mark.parametrize("gap", [0.0, 0.4, 1.0])
def test_shifts_stay_inside_and_keep_the_gap(gap: float) -> None:
    shift = TimeShift(1.0, gap, 3)
    generator = torch.Generator().manual_seed(0)
    starts = torch.stack([shift(4.0, generator) for _ in range(500)])
    assert starts.dtype == torch.float64 and starts.shape == (500, 3)
    assert starts.min() >= 0 and starts.max() <= 3.0
    ordered = starts.sort(dim=1).values
    assert (ordered[:, 1:] - ordered[:, :-1]).min() >= gap - 1e-9
    # No place in the tuple is favoured: each of the three is the earliest about equally often (5 sigma of 1/3 of 500).
    first = starts.argmin(dim=1).bincount(minlength=3)
    assert (first - 500 / 3).abs().max() < 5 * (500 * 2 / 9) ** 0.5


def test_without_a_gap_the_draws_are_independent_and_uniform() -> None:
    generator = torch.Generator().manual_seed(1)
    starts = torch.stack([TimeShift(1.0)(5.0, generator) for _ in range(2000)]) / 4.0
    assert (starts.mean(dim=0) - 0.5).abs().max() < 5 / (12 * 2000) ** 0.5
    assert abs(float(torch.corrcoef(starts.T)[0, 1])) < 5 / 2000**0.5


def test_with_a_gap_the_placement_is_uniform_over_the_admissible_ones() -> None:
    """Against rejection sampling: the distribution of the distance of two starts."""
    generator = torch.Generator().manual_seed(2)
    ours = torch.stack([TimeShift(1.0, 1.0, 2)(4.0, generator) for _ in range(4000)])
    pairs = torch.rand(40000, 2, generator=generator, dtype=torch.float64) * 3
    kept = pairs[(pairs[:, 0] - pairs[:, 1]).abs() >= 1]
    for q in (0.1, 0.5, 0.9):
        a, b = ((x[:, 0] - x[:, 1]).abs().quantile(q).item() for x in (ours, kept[:15000]))
        assert a == pytest.approx(b, abs=0.06)


def test_a_clip_that_just_fits_has_one_placement() -> None:
    starts = TimeShift(1.0, 1.0, 2)(2.0, torch.Generator().manual_seed(0))
    assert sorted(starts.tolist()) == [0.0, 1.0]


def test_a_clip_that_is_too_short_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"2.500 s cannot hold 2 windows of 1.000 s .* 2.000 s apart: that takes 3.000 s"
    ):
        TimeShift(1.0, 2.0, 2)(2.5, torch.Generator())
    with pytest.raises(ValueError, match="clip_s=0"):
        TimeShift(0)


def test_generators_depend_on_the_whole_path_and_nothing_else() -> None:
    torch.manual_seed(0)
    a = torch.rand(4, generator=generator_for(1, 2, 3))
    torch.manual_seed(99)
    assert torch.equal(a, torch.rand(4, generator=generator_for(1, 2, 3)))
    paths = [(1, 2, 4), (1, 3, 2), (2, 1, 3), (1, 2), (1, 2, 3, 0), (-1, 2, 3)]
    for path in paths:
        assert not torch.equal(a, torch.rand(4, generator=generator_for(*path)))
    assert len({mix(0, epoch, index) for epoch in range(20) for index in range(500)}) == 10000


def test_neighbouring_paths_give_unrelated_draws() -> None:
    first = torch.stack([torch.rand(2, generator=generator_for(0, 0, i)) for i in range(4000)]).double()
    assert (first.mean(dim=0) - 0.5).abs().max() < 5 / (12 * 4000) ** 0.5
    assert abs(float(torch.corrcoef(torch.stack((first[1:, 0], first[:-1, 0])))[0, 1])) < 5 / 4000**0.5


def test_modality_split_keeps_rows_together() -> None:
    parts = modality_split(torch.zeros(2, 3, 4, 5, 5), torch.ones(2, 1, 4, 6))
    assert parts["video"].shape[0] == parts["audio"].shape[0] == 2
    with pytest.raises(ValueError, match="2 videos but 3 spectrograms"):
        modality_split(torch.zeros(2, 3, 4, 5, 5), torch.ones(3, 1, 4, 6))
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        TimeReversal()(torch.zeros(2, 3), torch.ones(3, 1, 4, 6))
