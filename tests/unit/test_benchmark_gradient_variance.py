"""The three kinds of batches that benchmarks/gradient_variance.py compares: size, partners, and what is shared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers_benchmarks import loaded_benchmark

from avssl_core import losses, training
from avssl_core.reporting import load_definitions

ROOT = Path(__file__).resolve().parents[2]
ROW = losses.HYPOTHESES["h"]
VIDEOS = 3  # of a hierarchical batch: 8 samples each


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with loaded_benchmark("gradient_variance") as module:
        yield module


@pytest.fixture(scope="module")
def gdt() -> ModuleType:
    return load_definitions(ROOT / "chapters" / "01_gdt" / "gdt.py")


@pytest.fixture(scope="module")
def config(gdt: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    cache = pytest.MonkeyPatch()
    cache.setenv("AVSSL_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield gdt.make_config(
        clips=16, num_frames=4, fps=4.0, decode_size=20, crop=16, samples_per_step=8 * VIDEOS, width=4, audio_width=4,
        embed_dim=8, variance_batches=3, device="cpu",
    )  # fmt: skip
    cache.undo()


@pytest.fixture(scope="module")
def videos(gdt: ModuleType, config: Any) -> Any:
    return gdt.open_videos(config, 0)


def _embedded(benchmark: ModuleType, gdt: ModuleType, config: Any, videos: Any, kind: str) -> Any:
    batch = next(benchmark.batches(kind, gdt, config, videos, 0))
    model, generator = gdt.build_model(config, 0), training.step_generator(0, 0)
    return batch, *benchmark.embed(kind, gdt, model, gdt.Augment(config), batch, generator)


@pytest.mark.parametrize("kind", ["hierarchical", "independent", "full product"])
def test_every_kind_encodes_the_same_number_of_samples(
    benchmark: ModuleType, gdt: ModuleType, config: Any, videos: Any, kind: str
) -> None:
    _, z, codes = _embedded(benchmark, gdt, config, videos, kind)
    assert z.shape == (config.samples_per_step, config.embed_dim)
    assert codes.shape == (config.samples_per_step, 5)


@pytest.mark.parametrize("kind", ["hierarchical", "full product"])
def test_trees_and_products_give_every_anchor_the_partners_of_the_table(
    benchmark: ModuleType, gdt: ModuleType, config: Any, videos: Any, kind: str
) -> None:
    batch, _, codes = _embedded(benchmark, gdt, config, videos, kind)
    assert len(set(batch["row"].tolist())) == VIDEOS
    counts = losses.validate_batch(*losses.batch_matrices(codes, ROW.kinds, ROW.weight_mode, modality=ROW.modality))
    assert counts.positives.tolist() == [4] * len(codes)  # the other modality's 2 shifts x 2 directions
    assert counts.negatives.tolist() == [4 * VIDEOS - 4] * len(codes)


def test_partners_of_independent_samples_are_those_of_the_same_video_and_other_modality(
    benchmark: ModuleType, gdt: ModuleType, config: Any, videos: Any
) -> None:
    batch, _, codes = _embedded(benchmark, gdt, config, videos, "independent")
    c, w = losses.batch_matrices(codes, ROW.kinds, ROW.weight_mode, modality=ROW.modality)
    drawn = list(zip(batch["row"].tolist(), codes[:, 2].tolist(), strict=True))
    partners = [sum(row == i and m != n for i, n in drawn) for row, m in drawn]
    assert (c & w).sum(1).tolist() == partners
    assert 0 < sum(partners) < 4 * len(drawn)  # some have none, which no tree allows


def test_a_full_product_shows_all_videos_at_the_same_places(
    benchmark: ModuleType, gdt: ModuleType, config: Any, videos: Any
) -> None:
    stream = benchmark.batches("full product", gdt, config, videos, 0)
    tree = next(benchmark.batches("hierarchical", gdt, config, videos, 0))
    first, second = next(stream), next(stream)
    assert torch.equal(first["row"], tree["row"])  # the same videos as the tree of the same number
    length = torch.tensor([videos.caches[0].duration_s(row) for row in first["row"].tolist()])
    places = first["start_s"] / (length - 1.0)[:, None]
    assert torch.allclose(places, places[:1].expand_as(places))
    assert not torch.allclose(first["start_s"], second["start_s"])  # drawn anew for the next batch
    row, start = int(first["row"][1]), float(first["start_s"][1, 0])
    assert torch.equal(first["frames"][1, 0], videos.caches[0].frames(row, start, config.num_frames, config.fps))
    assert first["frames"].shape == tree["frames"].shape and first["waveform"].shape == tree["waveform"].shape


def test_a_full_product_augments_all_videos_alike(benchmark: ModuleType, gdt: ModuleType, config: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(256, (1, 4, 3, 20, 20), generator=generator, dtype=torch.uint8).expand(5, -1, -1, -1, -1)
    waveform = torch.randn(1, 16_000, generator=generator).expand(5, -1)
    augment = gdt.Augment(config)
    shared = benchmark.SharedAugmentation(augment, training.step_generator(0, 0))
    other = benchmark.SharedAugmentation(augment, training.step_generator(0, 1))
    for name, same in (("sight", frames), ("sound", waveform)):
        fresh = getattr(augment, name)(same, generator)
        assert not torch.equal(fresh[0], fresh[1])  # the chapter's own draws anew for every sample
        seen = getattr(shared, name)(same, generator)
        assert torch.equal(seen, seen[:1].expand_as(seen))
        assert torch.equal(seen, getattr(shared, name)(same, generator))  # and for both directions alike
        assert not torch.equal(seen, getattr(other, name)(same, generator))


@pytest.mark.parametrize("kind", ["hierarchical", "independent"])
def test_relative_variance_is_the_chapters(
    benchmark: ModuleType, gdt: ModuleType, config: Any, videos: Any, kind: str
) -> None:
    g, share = benchmark.gradients(kind, gdt, config, videos, 0)
    expected = gdt.gradient_variance(kind == "hierarchical", config, videos, 0, training.World.single("cpu"))
    assert benchmark.figures_of(g, g.mean(0))["log_relative_variance"] == pytest.approx(expected["log_variance"])
    assert share == pytest.approx(expected["anchors_with_positive"])


def test_full_product_gradients_differ_from_the_trees(
    benchmark: ModuleType, gdt: ModuleType, config: Any, videos: Any
) -> None:
    config = replace(config, variance_batches=2)
    product, share = benchmark.gradients("full product", gdt, config, videos, 0)
    tree, _ = benchmark.gradients("hierarchical", gdt, config, videos, 0)
    assert share == 1.0 and product.shape == tree.shape
    assert not torch.allclose(product, tree)


def test_figures_of_known_gradients(benchmark: ModuleType) -> None:
    g = torch.tensor([[3.0, 1.0], [5.0, 1.0], [4.0, 1.0], [4.0, 1.0]], dtype=torch.float64)
    figures = benchmark.figures_of(g, torch.tensor([4.0, 1.0], dtype=torch.float64))
    variance, square = 2 / 3, 17.0
    assert figures["log_variance"] == pytest.approx(math.log(variance))
    assert figures["log_relative_variance"] == pytest.approx(math.log(variance / square))
    assert figures["log_squared_mean"] == pytest.approx(math.log(square - variance / 4))
    assert figures["cosine_to_hierarchical"] == pytest.approx(1.0)


def test_differences_are_paired_by_seed_and_leave_out_what_has_no_logarithm(benchmark: ModuleType) -> None:
    kinds, names = benchmark.KINDS, benchmark.LOGARITHMS
    seeds = [{kind: dict.fromkeys(names, float(n * k)) for k, kind in enumerate(kinds)} for n in (1, 2, 3)]
    seeds[0][kinds[1]]["log_squared_mean"] = -math.inf
    table = benchmark.differences(seeds)
    between = table[f"{kinds[1]} - {kinds[0]}"]
    assert between["log_variance"]["mean"] == pytest.approx(2.0)
    assert "log_squared_mean" not in between
    half = 4.302653 / math.sqrt(3)  # t at 97.5 % with 2 degrees of freedom; standard deviation 1
    assert between["log_variance"]["high"] == pytest.approx(2.0 + half, rel=1e-5)
