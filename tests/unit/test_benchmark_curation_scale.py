"""What benchmarks/curation_scale.py measures: labels as described, chunks that cover the pool, a projection."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers_benchmarks import loaded_benchmark

from avssl.measured_sections import curation_scale


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with loaded_benchmark("curation_scale") as module:
        yield module


@pytest.fixture(scope="module")
def setting(benchmark: ModuleType) -> Any:
    return benchmark.Setting(clips=3000, clusters=8, chunk=1000, batch=200, picks=10)


def test_good_clips_show_one_class_to_both_senses(benchmark: ModuleType, setting: Any, tmp_path: Path) -> None:
    good = benchmark.write_labels(tmp_path / "labels", setting)
    labels = np.fromfile(tmp_path / "labels", dtype=np.uint16).reshape(3000, 10)
    agree = (labels[:, 0] == labels[:, 9]).astype(float)
    assert abs(good.mean() - 0.5) < 0.05 and labels.max() == 7
    assert agree[good].mean() > 0.45 and agree[~good].mean() < 0.2
    assert (labels[:, 0] == labels[:, 1]).mean() > 0.45  # layers of a modality agree whether good or bad


def test_labels_do_not_depend_on_the_size_of_what_is_written_at_once(
    benchmark: ModuleType, setting: Any, tmp_path: Path
) -> None:
    whole = benchmark.write_labels(tmp_path / "a", setting)
    again = benchmark.write_labels(tmp_path / "b", setting)
    assert np.array_equal(whole, again) and (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_chunk_gives_its_share_and_good_clips_are_found(
    benchmark: ModuleType, setting: Any, tmp_path: Path
) -> None:
    good = benchmark.write_labels(tmp_path / "labels", setting)
    benchmark.select(tmp_path / "labels", tmp_path / "picked", setting, 3000)
    ids = np.fromfile(tmp_path / "picked", dtype=np.int64)
    assert np.bincount(ids // 1000).tolist() == [250, 250, 250] and len(set(ids)) == 750
    assert good[ids].mean() > 0.75
    benchmark.select(tmp_path / "labels", tmp_path / "first", setting, 1000)
    assert np.array_equal(np.fromfile(tmp_path / "first", dtype=np.int64), ids[:250])  # a chunk knows no other


def test_the_projection_is_a_proportion_and_a_line(benchmark: ModuleType) -> None:
    rows = [{"clips": 10, "seconds": 36.0, "peak_GiB": 1.0}, {"clips": 100, "seconds": 360.0, "peak_GiB": 1.9}]
    ahead = benchmark.projection(rows, 1000)
    assert ahead["hours"] == pytest.approx(1.0) and ahead["peak_GiB"] == pytest.approx(10.9)
    rows[1]["peak_GiB"] = 0.9
    assert benchmark.projection(rows, 1000)["peak_GiB"] == 0.9


def test_the_record_is_what_the_page_reads(benchmark: ModuleType, tmp_path: Path) -> None:
    benchmark.main(["--quick", "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    shown = curation_scale(found)
    assert "min" in shown.rows[0].value and [row.what for row in shown.rows][-1].endswith("projected")
    assert found["measured"][1]["cpu_seconds"] > 0 and "Load of the machine" in shown.why
    assert found["measured"][1]["clips"] == 20_000 and found["projection"]["clips"] == benchmark.TARGET
