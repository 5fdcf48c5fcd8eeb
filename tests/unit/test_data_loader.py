"""Loading: resumable at any step, the same whatever the number of workers, and silent about the global generator."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from tiny_corpora import FPS, RATE, write_corpus

from avssl_core.data import (
    Corpus,
    DecodedCache,
    GroupedBatchSampler,
    SeededOrder,
    UniformDataset,
    WindowDataset,
    WindowSpec,
    make_loader,
)

SPEC = WindowSpec(4, FPS, size=(8, 10), sample_rate=RATE, windows=2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), clips=9, groups=3)


@pytest.fixture(scope="module")
def data(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> WindowDataset:
    cache = DecodedCache.build(corpus, SPEC, tmp_path_factory.mktemp("cache"), progress=False)
    return WindowDataset(corpus, SPEC, seed=0, cache=cache)


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one(data: WindowDataset, workers: int) -> None:
    order = SeededOrder(len(data), 4, seed=7)
    full = list(islice(make_loader(data, order).batches(0), 9))  # more than four epochs of two steps
    loader = make_loader(data, order, workers=workers)
    for start in (0, 3, 6):  # the same workers serve all three
        resumed = list(islice(loader.batches(start), 9 - start))
        assert all(equal(a, b) for a, b in zip(full[start:], resumed, strict=True))


def test_an_order_with_a_start_step_is_respected_by_iteration(data: WindowDataset) -> None:
    full = list(islice(make_loader(data, SeededOrder(len(data), 4, seed=7)), 6))
    rest = list(islice(make_loader(data, SeededOrder(len(data), 4, seed=7, start_step=4)), 2))
    assert all(equal(a, b) for a, b in zip(full[4:], rest, strict=True))


def test_shapes_and_the_two_windows_of_a_video(data: WindowDataset) -> None:
    batch = next(iter(make_loader(data, SeededOrder(len(data), 4, seed=7))))
    assert batch["frames"].shape == (4, 2, 4, 3, 8, 10) and batch["waveform"].shape == (4, 2, 4 * RATE // FPS)
    assert batch["start_s"].shape == (4, 2) and batch["bad"] == []
    assert len(set(batch["row"].tolist())) == 4


def test_grouped_batches_come_through(data: WindowDataset) -> None:
    order = GroupedBatchSampler(data.groups, 6, 3, seed=0)
    for batch in islice(make_loader(data, order, workers=1).batches(5), 3):
        assert sorted(torch.bincount(batch["group"], minlength=3).tolist()) == [0, 3, 3]


def test_the_global_generator_is_not_touched(data: WindowDataset) -> None:
    for workers in (0, 1):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        list(islice(make_loader(data, SeededOrder(len(data), 4, seed=7), workers=workers), 2))
        assert torch.equal(before, torch.get_rng_state())


def test_evaluation_passes_are_finite_and_repeatable(corpus: Corpus) -> None:
    loader = make_loader(UniformDataset(corpus, WindowSpec(4, FPS, size=(8, 10))), 4, workers=1)
    passes = [[batch["row"].tolist() for batch in loader] for _ in range(2)]
    assert passes[0] == passes[1] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    with pytest.raises(TypeError, match="no steps to resume"):
        loader.batches(1)


def test_endless_loaders_have_no_length(data: WindowDataset) -> None:
    with pytest.raises(TypeError, match="steps_per_epoch"):
        len(make_loader(data, SeededOrder(len(data), 4, seed=7)))
    with pytest.raises(ValueError, match="got -1"):
        make_loader(data, 4, workers=-1)
