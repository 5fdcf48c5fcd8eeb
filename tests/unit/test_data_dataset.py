"""Items: what they hold, what they depend on, and where evaluation windows lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_corpora import FPS, RATE, first_level, write_corpus

from avssl_core import media
from avssl_core.data import (
    Corpus,
    CorpusError,
    DecodedCache,
    NoUsableClipsError,
    TimedDataset,
    TooManyBadClipsError,
    UniformDataset,
    WindowDataset,
    WindowSpec,
    collate,
    make_loader,
    open_corpus,
)

SPEC = WindowSpec(8, FPS, size=(16, 20), sample_rate=RATE, windows=2, min_gap_s=0.32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), clips=6)


@pytest.fixture(scope="module")
def cache(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> DecodedCache:
    return DecodedCache.build(corpus, SPEC, tmp_path_factory.mktemp("cache"), progress=False)


def test_an_item_holds_what_the_spec_says(corpus: Corpus) -> None:
    item = WindowDataset(corpus, SPEC, seed=0)[0, 3]
    assert item["frames"].shape == (2, 8, 3, 16, 20) and item["frames"].dtype == torch.uint8
    assert item["waveform"].shape == (2, 8 * RATE // FPS) and item["waveform"].dtype == torch.float32
    assert item["start_s"].shape == (2,) and item["start_s"].dtype == torch.float64
    assert (item["row"], item["group"], item["bad"]) == (3, 1, [])
    assert abs(item["start_s"][0] - item["start_s"][1]) >= 0.32
    for window, start in zip(item["frames"], item["start_s"].tolist(), strict=True):
        assert first_level(window) == pytest.approx(start * FPS, abs=0.9)


def test_without_sound_there_is_no_waveform(corpus: Corpus) -> None:
    assert "waveform" not in WindowDataset(corpus, WindowSpec(4, FPS, size=16), seed=0)[0, 0]


def test_files_and_cache_give_the_same_items(corpus: Corpus, cache: DecodedCache) -> None:
    from_files, from_cache = WindowDataset(corpus, SPEC, seed=0), WindowDataset(corpus, SPEC, seed=0, cache=cache)
    for key in [(0, 0), (0, 5), (3, 2)]:
        a, b = from_files[key], from_cache[key]
        assert torch.equal(a["start_s"], b["start_s"]) and torch.equal(a["frames"], b["frames"])
        assert (a["waveform"] - b["waveform"]).abs().max() < 5e-3  # run-up of the codec at the window's start


def test_items_are_functions_of_seed_epoch_and_index(corpus: Corpus, cache: DecodedCache) -> None:
    data = WindowDataset(corpus, SPEC, seed=0, cache=cache)
    base = data[1, 2]
    data[0, 0], data[5, 4]
    torch.manual_seed(1)
    assert torch.equal(base["start_s"], data[1, 2]["start_s"]) and torch.equal(base["frames"], data[1, 2]["frames"])
    assert not torch.equal(base["start_s"], data[2, 2]["start_s"])
    assert not torch.equal(base["start_s"], WindowDataset(corpus, SPEC, seed=1, cache=cache)[1, 2]["start_s"])


def test_short_clips_are_left_out_and_groups_follow(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, clips=4)
    corpus.index.loc[1, "duration_s"] = 0.2
    data = WindowDataset(corpus, SPEC, seed=0)
    assert data.rows.tolist() == [0, 2, 3] and len(data) == 3 and data.groups.tolist() == [0, 0, 1]
    assert data.refused == [("clip_1.mp4", "lasts 0.200 s, the windows need 0.640 s")]
    assert data[0, 1]["row"] == 2
    with pytest.raises(NoUsableClipsError, match="none of the 4"):
        WindowDataset(corpus, WindowSpec(200, FPS), seed=0)


def test_timed_windows_are_centred_on_their_label(corpus: Corpus, cache: DecodedCache) -> None:
    spec = WindowSpec(8, FPS, size=(16, 20), sample_rate=RATE)
    data = TimedDataset(corpus, spec, kind="word", cache=cache)
    assert data.classes == ["early", "middle"] and len(data) == 12
    assert np.bincount(data.labels).tolist() == [6, 6]
    for index in range(12):
        item = data[index]
        assert item["frames"].shape == (1, 8, 3, 16, 20) and item["waveform"].shape == (1, 8 * RATE // FPS)
        # Clips last 2 s: the middle is 1.0, the label at 0.05 would reach out of the clip and is moved inside.
        expected = 0.0 if item["label"] == 0 else 1.0 - 0.16
        assert float(item["start_s"][0]) == pytest.approx(expected)
        assert item["row"] == index // 2
        assert first_level(item["frames"][0]) == pytest.approx(expected * FPS, abs=0.9)


def test_a_label_at_the_end_is_moved_inside(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, clips=1)
    assert corpus.timed is not None
    corpus.timed.loc[0, ["start_s", "end_s"]] = [1.9, 2.0]
    data = TimedDataset(corpus, WindowSpec(8, FPS, size=16), kind="word")
    assert float(data[0]["start_s"][0]) == pytest.approx(2.0 - 0.32)


def test_classes_agree_between_splits(corpus: Corpus) -> None:
    spec = WindowSpec(8, FPS, size=16)
    train, test = (TimedDataset(corpus, spec, kind="word", split=split) for split in ("train", "test"))
    assert train.classes == test.classes
    assert set(train.rows) == {0, 1, 3, 4} and set(test.rows) == {2, 5}


def test_timed_data_that_do_not_exist(corpus: Corpus) -> None:
    spec = WindowSpec(8, FPS, size=16)
    with pytest.raises(CorpusError, match=r"kind 'digit'; kinds are \['event', 'word'\]"):
        TimedDataset(corpus, spec, kind="digit")
    with pytest.raises(CorpusError, match="split 'val'"):
        TimedDataset(corpus, spec, kind="word", split="val")
    with pytest.raises(CorpusError, match="no timed labels"):
        TimedDataset(Corpus(corpus.root, corpus.index), spec, kind="word")


def test_uniform_windows_span_the_clip_and_carry_labels(corpus: Corpus) -> None:
    data = UniformDataset(corpus, WindowSpec(25, FPS, size=16, windows=3), label="label_parity", split="train")
    assert data.classes == ["even", "odd"] and data.rows.tolist() == [0, 1, 3, 4]
    assert data.labels is not None and data.labels.tolist() == [0, 1, 1, 0]
    item = data[1]
    assert item["start_s"].tolist() == pytest.approx([0.0, 0.5, 1.0]) and item["label"] == 1
    assert "label" not in UniformDataset(corpus, WindowSpec(25, FPS, size=16))[0]
    with pytest.raises(CorpusError, match="split 'val'"):
        UniformDataset(corpus, SPEC, split="val")


def test_batches_stack_items(corpus: Corpus, cache: DecodedCache) -> None:
    data = TimedDataset(corpus, WindowSpec(8, FPS, size=(16, 20), sample_rate=RATE), kind="event", cache=cache)
    batches = list(make_loader(data, 4))
    assert [len(batch["row"]) for batch in batches] == [4, 2] and len(make_loader(data, 4)) == 2
    assert batches[0]["frames"].shape == (4, 1, 8, 3, 16, 20) and batches[0]["label"].tolist() == [0] * 4
    assert torch.cat([batch["row"] for batch in batches]).tolist() == list(range(6))


def test_clips_of_different_sizes_cannot_be_stacked() -> None:
    items = [{"frames": torch.zeros(1, 2, 3, 4, width, dtype=torch.uint8), "bad": []} for width in (4, 5)]
    with pytest.raises(ValueError, match=r"square=True or size=\(height, width\)"):
        collate(items)  # type: ignore[arg-type]


def test_a_cache_of_another_corpus_is_refused(corpus: Corpus, cache: DecodedCache) -> None:
    with pytest.raises(ValueError, match="the cache holds 6 clips, the corpus 2"):
        WindowDataset(corpus.select(rows=[0, 1]), SPEC, seed=0, cache=cache)
    with pytest.raises(ValueError, match=r"got 1\.5"):
        WindowDataset(corpus, SPEC, seed=0, max_bad_share=1.5)


def test_a_cache_without_sound_serves_video_alone(corpus: Corpus, tmp_path: Path) -> None:
    spec = WindowSpec(4, FPS, size=(16, 20))
    data = WindowDataset(corpus, spec, seed=0, cache=DecodedCache.build(corpus, spec, tmp_path, progress=False))
    assert set(data[0, 0]) == {"frames", "start_s", "row", "group", "bad"}


def test_a_clip_that_the_cache_found_shorter_than_its_index_says_is_bad(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", clips=3, frames=10)
    corpus.index.loc[1, "duration_s"] = 2.0  # passes for long enough, holds 0.4 s
    corpus.index.loc[[0, 2], "duration_s"] = 0.4
    spec = WindowSpec(8, FPS, size=(16, 20), windows=2, min_gap_s=0.08)
    cache = DecodedCache.build(corpus, spec, tmp_path / "cache", progress=False)
    assert WindowDataset(corpus, spec, seed=0, cache=cache)[0, 1]["row"] == 1  # it still fits into what is there
    longer = WindowSpec(8, FPS, size=(16, 20), windows=2, min_gap_s=1.0)
    data = WindowDataset(corpus, longer, seed=0, cache=cache)
    assert data.rows.tolist() == [1]
    with pytest.raises(TooManyBadClipsError, match=r"clip_1.mp4: .*0.400 s cannot hold 2 windows"):
        data[0, 0]


def test_square_cuts_the_middle_so_that_any_shapes_fit_one_batch(tmp_path: Path) -> None:
    wide, tall = (np.zeros((30, *shape, 3), np.uint8) for shape in ((24, 48), (48, 24)))
    wide[:, :, 12:36], tall[:, 12:36] = 200, 200  # what lies in the middle
    (tmp_path / "clips").mkdir()
    for name, frames in (("wide", wide), ("tall", tall)):
        media.write_clip(tmp_path / "clips" / f"{name}.mp4", frames, fps=FPS, quantiser=2)
    corpus = open_corpus(tmp_path / "clips", progress=False)
    spec = WindowSpec(4, FPS, size=24, windows=1)
    with pytest.raises(ValueError, match="square=True"):
        collate([WindowDataset(corpus, spec, seed=0)[0, n] for n in (0, 1)])
    square = WindowDataset(corpus, replace(spec, square=True), seed=0)
    batch = collate([square[0, n] for n in (0, 1)])
    assert batch["frames"].shape == (2, 1, 4, 3, 24, 24)
    assert batch["frames"].float().mean() > 180  # nothing of the dark sides


def test_square_needs_the_shorter_side() -> None:
    with pytest.raises(ValueError, match="size=None"):
        WindowSpec(4, FPS, square=True)
