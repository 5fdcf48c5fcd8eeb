"""Clips that fail while a run goes on: recorded, replaced by a function of (seed, epoch, index), and limited."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_corpora import FPS, RATE, write_corpus

from avssl_core.data import (
    Corpus,
    DecodedCache,
    SeededOrder,
    TimedDataset,
    TooManyBadClipsError,
    WindowDataset,
    WindowSpec,
    make_loader,
)

SPEC = WindowSpec(4, FPS, size=(8, 10), sample_rate=RATE)
BAD = {2, 5}


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Ten clips, of which one has been overwritten and one has vanished since the index was made."""
    corpus = write_corpus(tmp_path / "corpus", clips=10)
    (corpus.root / "clip_2.mp4").write_bytes(b"\0" * 5000)
    (corpus.root / "clip_5.mp4").unlink()
    return corpus


def steps(data: WindowDataset, count: int, *, workers: int = 0, start: int = 0) -> list[dict[str, Any]]:
    return list(islice(make_loader(data, SeededOrder(len(data), 5, seed=3), workers=workers).batches(start), count))


def test_bad_clips_are_replaced_and_reported_in_the_batch(corpus: Corpus) -> None:
    data = WindowDataset(corpus, SPEC, seed=0, max_bad_share=0.2)
    order = SeededOrder(10, 5, seed=3)
    for step, batch in enumerate(steps(data, 4)):
        wanted = [index for _, index in order.batch(step)]
        got = batch["row"].tolist()
        assert batch["frames"].shape == (5, 1, 4, 3, 8, 10)
        assert not BAD & set(got)
        for place, index in enumerate(wanted):
            assert (got[place] == index) == (index not in BAD)  # the good clips stay where they were
        assert {row for row, _, _ in batch["bad"]} >= BAD & set(wanted)
        for row, uri, reason in batch["bad"]:
            assert uri == f"clip_{row}.mp4" and uri in reason


def test_replacements_do_not_depend_on_workers_or_on_where_the_run_started(corpus: Corpus) -> None:
    data = WindowDataset(corpus, SPEC, seed=0, max_bad_share=0.2)
    alone = steps(data, 6)
    for other in (steps(data, 6, workers=2), alone[:2] + steps(data, 4, workers=1, start=2)):
        for a, b in zip(alone, other, strict=True):
            assert a["row"].tolist() == b["row"].tolist() and a["bad"] == b["bad"]
            assert torch.equal(a["frames"], b["frames"]) and torch.equal(a["start_s"], b["start_s"])


def test_the_cache_replaces_the_same_clips(corpus: Corpus, tmp_path: Path) -> None:
    cache = DecodedCache.build(corpus, SPEC, tmp_path / "cache", progress=False)
    assert set(cache.bad) == BAD
    from_files = steps(WindowDataset(corpus, SPEC, seed=0, max_bad_share=0.2), 4)
    from_cache = steps(WindowDataset(corpus, SPEC, seed=0, max_bad_share=0.2, cache=cache), 4)
    for a, b in zip(from_files, from_cache, strict=True):
        assert a["row"].tolist() == b["row"].tolist() and torch.equal(a["frames"], b["frames"])


def test_the_ledger_counts_each_clip_once(corpus: Corpus) -> None:
    data = WindowDataset(corpus, SPEC, seed=0, max_bad_share=0.2)
    loader = make_loader(data, SeededOrder(10, 5, seed=3), workers=2)
    for _ in islice(loader, 8):  # four epochs: every bad clip has come up four times
        pass
    assert set(loader.bad.reasons) == BAD
    assert loader.bad.reasons[5][0] == "clip_5.mp4"


@pytest.mark.parametrize("workers", [0, 2])
def test_the_run_stops_beyond_the_stated_share_and_says_why(corpus: Corpus, workers: int) -> None:
    data = WindowDataset(corpus, SPEC, seed=0, max_bad_share=0.1)  # one of ten may fail, two do
    with pytest.raises(
        TooManyBadClipsError, match=r"2 of 10 clips .* allowed share of 0.1(.|\n)*clip_[25].mp4: "
    ) as error:
        steps(data, 4, workers=workers)
    assert {uri for uri, _ in error.value.bad} == {"clip_2.mp4", "clip_5.mp4"}


def test_by_default_one_in_a_hundred_may_fail(corpus: Corpus) -> None:
    with pytest.raises(TooManyBadClipsError, match="1 of 10 clips"):
        steps(WindowDataset(corpus, SPEC, seed=0), 4)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_that_disappears_stops_the_run(corpus: Corpus, workers: int) -> None:
    for path in corpus.root.glob("*.mp4"):
        path.unlink()
    data = WindowDataset(corpus, SPEC, seed=0, max_bad_share=1.0)
    with pytest.raises(TooManyBadClipsError, match=r"replacements all failed(.|\n)*no such file"):
        steps(data, 1, workers=workers)


def test_a_clip_whose_index_promises_too_much_is_bad_not_repeated(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, clips=4)
    corpus.index.loc[1, "duration_s"] = 7200.0
    order = SeededOrder(4, 4, seed=0)
    for batch in islice(make_loader(WindowDataset(corpus, SPEC, seed=0, max_bad_share=0.5), order), 3):
        assert [row for row, _, _ in batch["bad"]] == [1] and 1 not in batch["row"].tolist()


def test_evaluation_never_replaces(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match=r"clip_2.mp4"):
        list(make_loader(TimedDataset(corpus, SPEC, kind="word"), 4))


def test_a_run_with_broken_files_ends_by_itself(corpus: Corpus) -> None:
    """In a process of its own with a time limit: a hang in a worker must show as a failure."""
    program = f"""
from itertools import islice
from avssl_core.data import *
corpus = Corpus.load({str(corpus.root)!r})
data = WindowDataset(corpus, WindowSpec(4, 25, size=(8, 10), sample_rate=16000), seed=0)
list(islice(make_loader(data, SeededOrder(len(data), 5, seed=3), workers=2), 50))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 1
    assert "TooManyBadClipsError" in done.stderr and "max_bad_share" in done.stderr
