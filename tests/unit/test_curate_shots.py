"""Shots, the clips that are cut out of them, and signatures by which copies are known."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_curate import RATE, made_up
from helpers_media import numbered, tone
from torch import Tensor

from avssl_core.media import write_clip
from data_prep.curate.candidates import Film
from data_prep.curate.clips import Cutting, _clips_of
from data_prep.curate.duplicates import drop_duplicates
from data_prep.curate.shots import (
    Stretch,
    find_shots,
    histogram_jumps,
    least_alike,
    picture_signature,
    place_stretches,
    sound_signature,
)


def shades(*levels: int, each: int = 4) -> Tensor:
    """Pictures ``(T, 3, 8, 8)``: ``each`` of every grey level."""
    return torch.tensor(levels, dtype=torch.uint8).repeat_interleave(each)[:, None, None, None].expand(-1, 3, 8, 8)


def test_jumps_are_1_between_strangers_and_0_between_equals() -> None:
    jumps = histogram_jumps(shades(0, 200, 200, each=2))
    assert jumps.tolist() == [0, 1, 0, 0, 0]
    half = shades(0, each=2).clone()
    half[1, :, :4] = 255  # half of the pixels changed
    assert histogram_jumps(half).tolist() == [0.5]


def test_jumps_agree_with_plain_histograms() -> None:
    frames = torch.randint(0, 256, (5, 3, 6, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = [
        np.mean(
            [np.abs(np.subtract(*(np.histogram(f[c], 16, (0, 256))[0] for f in pair))).sum() / 42 / 2 for c in range(3)]
        )
        for pair in itertools.pairwise(frames.numpy())
    ]
    assert histogram_jumps(frames).tolist() == pytest.approx(plain)


def test_shots_lie_between_cuts() -> None:
    shots = find_shots(histogram_jumps(shades(0, 90, 250)), fps=4, end_s=3.0, threshold=0.3)
    assert [(shot.start_s, shot.length_s) for shot in shots] == [(0, 0.875), (0.875, 1.0), (1.875, 1.125)]


def place(frames: Tensor, **asked: Any) -> list[Stretch]:
    asked = {"fps": 4, "end_s": len(frames) / 4, "length_s": 1.0, "wanted": 3, "threshold": 0.3} | asked
    return place_stretches(histogram_jumps(frames), **asked)


def test_stretches_come_from_the_middle_of_shots() -> None:
    found = place(shades(0, 90, 250, each=8))
    assert [stretch.length_s for stretch in found] == [1.0] * 3
    assert [stretch.start_s for stretch in found] == pytest.approx([0.4375, 2.375, 4.4375])


def test_a_film_that_is_no_longer_is_one_stretch() -> None:
    assert place(shades(0, 90), length_s=2.0) == [Stretch(0, 2.0)]
    assert place(shades(0, 90), length_s=2.0, begin_s=0.5) == [Stretch(0.5, 1.5)]


def test_weak_boundaries_give_way_until_a_shot_is_long_enough() -> None:
    flicker = shades(0, each=16).clone()
    flicker[::2, :, :3] = 255  # 3/8 of the pixels, every other picture
    assert find_shots(histogram_jumps(flicker), fps=4, end_s=4.0, threshold=0.3)[1].length_s == 0.25
    assert place(flicker) == [Stretch(1.5, 1.0)]
    assert place(shades(0, 250, each=1).repeat(8, 1, 1, 1)) == [Stretch(1.5, 1.0)]  # nothing but cuts: the middle


def test_pictures_and_sounds_are_known_again() -> None:
    frames = torch.from_numpy(numbered(12)).permute(0, 3, 1, 2)
    louder = (frames * 0.8).byte()
    assert (picture_signature(frames) != picture_signature(louder)).float().mean() < 0.05
    assert (picture_signature(frames) != picture_signature(frames.flip(3))).float().mean() > 0.3
    assert len(picture_signature(frames[:1])) == 256 and not picture_signature(shades(7)).any()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8000, generator=generator) * torch.linspace(0, 4, 8000).sin()
    assert (sound_signature(noise) != sound_signature(noise / 3)).sum() == 0
    assert (sound_signature(noise) != sound_signature(noise.flip(0))).sum() > 16
    assert len(sound_signature(noise[:100])) == 64 and not sound_signature(torch.zeros(8000)).any()


def test_the_least_alike_are_as_good_as_an_exhaustive_search() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        similarity = generator.random((7, 7))
        similarity += similarity.T
        found = least_alike(similarity, 3)
        sums = {c: similarity[np.ix_(c, c)].sum() - similarity[c, c].sum() for c in itertools.combinations(range(7), 3)}
        swaps = [tuple(sorted({*found} - {a} | {b})) for a in found for b in range(7) if b not in found]
        assert all(sums[tuple(found)] <= sums[swap] + 1e-9 for swap in swaps)
    assert least_alike(similarity, 9) == list(range(7))


def film_of(path: Path, seconds: float) -> Film:
    status = path.stat()
    return Film(path.name, path.name, path, seconds, status.st_size, status.st_mtime_ns, "mpeg4")


def test_a_long_film_gives_clips_of_its_shots(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shots = [torch.randint(0, 60, (1, 3, 32, 40), generator=generator) + level for level in (0, 90, 190)]
    frames = torch.cat([shot.expand(15, -1, -1, -1) for shot in shots]).byte()  # 1.5 s each
    write_clip(tmp_path / "film.mp4", frames, torch.from_numpy(tone(4.5, rate=RATE)[0]), fps=10, sample_rate=RATE)
    rows = _clips_of(film_of(tmp_path / "film.mp4", 4.5), Cutting(length_s=1.0, most=2))
    assert len(rows) == 2 and all(row["length_s"] == 1.0 for row in rows)
    starts = [row["start_s"] for row in rows]
    assert any(abs(start - 0.25) < 0.15 or abs(start - 3.25) < 0.15 for start in starts)
    assert rows[0]["clip_id"] == f"film.mp4@{starts[0]:.2f}-{starts[0] + 1:.2f}"


def flipped(bits: Tensor, count: int) -> Tensor:
    changed = bits.clone()
    changed[torch.linspace(0, len(bits) - 1, count).long()] ^= True  # spread over all pieces
    return changed


def test_copies_are_refused_and_overdubs_are_not() -> None:
    picture, sound = torch.arange(256) % 3 == 0, torch.arange(64) % 2 == 0
    clips = [
        made_up("a", picture=picture, sound=sound),
        made_up("bytes", content="a", picture=picture, sound=sound),
        made_up("encoded", picture=flipped(picture, 12), sound=flipped(sound, 6)),
        made_up("overdubbed", picture=picture, sound=~sound),
        made_up("other", picture=flipped(picture, 14), sound=sound),
        made_up("stranger"),
    ]
    kept, refused = drop_duplicates(clips, "near")
    assert [one.clip_id for one in kept] == ["a", "overdubbed", "other", "stranger"]
    assert [(row[0], row[3]) for row in refused] == [
        ("bytes", "has the same bytes as a"),
        ("encoded", "looks and sounds like a"),
    ]
    assert [row[0] for row in drop_duplicates(clips, "same")[1]] == ["bytes"]
    assert drop_duplicates(clips, "keep") == (clips, [])


def test_pictures_without_an_edge_prove_nothing() -> None:
    flat = torch.zeros(256, dtype=torch.bool)
    clips = [made_up(name, picture=flat, sound=flat[:64]) for name in "abc"]
    assert drop_duplicates(clips, "near") == (clips, [])
    assert drop_duplicates([], "near") == ([], [])
