"""Pictures of attention: weights light up their tokens, marks stand where they should, bands hold the runs."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.patches import Rectangle

from avssl_core import figures
from avssl_core.reporting import t_interval

FRAMES = torch.full((3, 3, 24, 48), 90, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    matplotlib.use("agg")
    with matplotlib.rc_context():
        figures.use_style()
        yield
        plt.close("all")


def test_a_token_that_is_looked_at_is_brighter_than_the_rest() -> None:
    weights = torch.zeros(3, 2, 4)
    weights[1, 1, 3] = 0.5
    figure = figures.attention_tubes(FRAMES, {"first": weights, "second": weights.flip(2)}, query=(0, 1, 2))
    axes = np.array(figure.axes).reshape(3, 3)
    shown = axes[1, 1].images[0].get_array().astype(float).sum(2)
    assert shown.shape == (24, 48)
    assert shown[12:, 36:].min() > 2 * shown[:12].max()  # row 1, column 3 of two rows and four columns
    mirrored = axes[2, 1].images[0].get_array().astype(float).sum(2)
    assert mirrored[12:, :12].min() > 2 * mirrored[:12].max()
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["frames", "first", "second"]


def test_the_query_is_boxed_in_its_slice_and_the_path_crossed_where_seen() -> None:
    path = torch.tensor([[0.5, 0.5], [torch.nan, torch.nan], [1.5, 3.5]])
    figure = figures.attention_tubes(FRAMES, {"map": torch.ones(3, 2, 4)}, query=(2, 1, 3), path=path)
    axes = np.array(figure.axes).reshape(2, 3)
    boxes = [[patch for patch in ax.patches if isinstance(patch, Rectangle)] for ax in axes[1]]
    assert [len(found) for found in boxes] == [0, 0, 2]
    assert (boxes[2][0].get_x(), boxes[2][0].get_y(), boxes[2][0].get_width()) == (36, 12, 12)
    assert [len(ax.lines) for ax in axes[1]] == [2, 0, 2]
    assert axes[1, 2].lines[0].get_xydata().tolist() == [[42, 18]]


@pytest.mark.parametrize("maps", [{}, {"map": torch.ones(2, 2, 4)}, {"map": torch.ones(3, 8)}])
def test_maps_must_fit_the_frames(maps: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"\(T, h, w\) for 3 frames"):
        figures.attention_tubes(FRAMES, maps, query=(0, 0, 0))


def runs() -> pd.DataFrame:
    rows = [(arm, seed, x, base + 0.1 * x + 0.01 * seed) for arm, base in (("a", 0.2), ("b", 0.5)) for seed in range(3)
            for x in (1, 2)]  # fmt: skip
    return pd.DataFrame(rows, columns=["arm", "seed", "x", "value"])


def test_lines_are_means_and_bands_are_intervals() -> None:
    ax = figures.curves_with_bands(runs(), x="x", order=["b", "a", "absent"], x_label="distance", chance=0.1)
    assert [line.get_label() for line in ax.lines[:2]] == ["b", "a"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.61, 0.71])
    _, low, high = t_interval([0.6, 0.61, 0.62])
    band = ax.collections[0].get_paths()[0].vertices
    at_one = band[band[:, 0] == 1][:, 1]
    assert (at_one.min(), at_one.max()) == (pytest.approx(low), pytest.approx(high))
    assert ax.get_xlabel() == "distance" and ax.get_ylim()[0] <= 0.1


def test_one_run_has_a_line_and_no_band() -> None:
    single = runs().query("seed == 0")
    ax = figures.curves_with_bands(single, x="x", points=False)
    assert len(ax.collections) == 0 and len(ax.lines) == 2
    with pytest.raises(ValueError, match=r"\['c'\]"):
        figures.curves_with_bands(single, x="x", order=["c"])
