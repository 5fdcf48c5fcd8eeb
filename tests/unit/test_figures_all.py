"""Figures draw what they are given: the right marks in the right places, readable without colour."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from itertools import pairwise

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from avssl_core import figures
from avssl_core.figures.style import COLOURS, DASHES, HATCHES, MARKERS, labels_at_right
from avssl_core.losses import contrast_matrix, find_hypothesis, path_codes, weight_matrix
from avssl_core.reporting import CellRecord, ClaimResult, Ledger, t_interval, verdict


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    matplotlib.use("agg")
    with matplotlib.rc_context():
        figures.use_style()
        yield
        plt.close("all")


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def relations(row: str, videos: int):
    hypothesis = find_hypothesis(row)
    codes = path_codes((videos, *hypothesis.branches))
    weight = weight_matrix(codes, hypothesis.weight_mode, modality=hypothesis.modality)
    return hypothesis, codes, contrast_matrix(codes, hypothesis.kinds), weight


# ---- style


def test_neighbouring_styles_differ_without_colour() -> None:
    for cycle in (DASHES, MARKERS, HATCHES):
        assert len(set(map(str, cycle))) == len(cycle) == len(COLOURS)
    lightness = [sum(np.array([0.2126, 0.7152, 0.0722]) * to_rgb(colour)) for colour in COLOURS[:6]]
    assert all(abs(a - b) > 0.04 for a, b in pairwise(lightness))
    assert figures.line_style(1)["linestyle"] != figures.line_style(2)["linestyle"]
    assert figures.bar_style(1)["hatch"] != figures.bar_style(2)["hatch"]


def test_the_same_figure_gives_the_same_vector_file() -> None:
    def draw() -> bytes:
        ax = figures.learning_curves({"a": ([0, 1], [1.0, 0.5])})
        file = io.BytesIO()
        figures.figure_of(ax).savefig(file, format="svg", metadata={"Date": None})
        return file.getvalue()

    first = draw()
    assert first == draw() and b"<svg" in first


def test_close_labels_are_moved_apart() -> None:
    ax = plt.subplots()[1]
    ax.set_ylim(0, 1)
    labels_at_right(ax, [(0.50, "a", "k"), (0.51, "b", "k"), (0.9, "c", "k")], gap=0.1)
    places = {text.get_text(): text.xy[1] for text in ax.texts}
    assert places == pytest.approx({"a": 0.5, "b": 0.6, "c": 0.9})


# ---- clips


def test_filmstrip_shows_the_frames_in_order_with_their_times() -> None:
    frames = torch.arange(50, dtype=torch.uint8).reshape(50, 1, 1, 1).expand(50, 3, 8, 12)
    ax = figures.filmstrip(frames, fps=25.0, start_s=2.0, count=3)
    image = ax.images[0].get_array()
    width = image.shape[1] // 3
    middles = [int(image[4, round(k * (width + 0.4) + 6), 0]) for k in range(3)]
    assert middles == [0, 24, 49]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["2.00 s", "2.96 s", "3.96 s"]


def test_filmstrip_takes_floats_and_refuses_other_layouts() -> None:
    ax = figures.filmstrip(torch.full((1, 3, 4, 4), 0.5), count=8)
    assert ax.images[0].get_array().max() == 128
    for bad in (torch.zeros(3, 4, 4), torch.zeros(2, 4, 4, 3), torch.zeros(0, 3, 4, 4)):
        with pytest.raises(ValueError, match=r"\(T, 3, H, W\)"):
            figures.filmstrip(bad)


def test_waveform_keeps_peaks_and_time() -> None:
    samples = torch.zeros(16_000)
    samples[8_000] = 0.9
    ax = figures.waveform(samples, sample_rate=8_000, start_s=1.0)
    vertices = ax.collections[0].get_paths()[0].vertices
    peak = vertices[vertices[:, 1].argmax()]
    assert peak == pytest.approx([2.0, 0.9], abs=0.01)
    assert ax.get_xlim() == (1.0, 3.0) and ax.get_xlabel() == "time (s)"


def test_spectrogram_axes_are_seconds_and_bands() -> None:
    ax = figures.spectrogram(torch.rand(1, 40, 99), hop_s=0.01, start_s=0.5)
    assert ax.images[0].get_extent() == pytest.approx((0.5, 1.49, -0.5, 39.5))
    with pytest.raises(ValueError, match="shape"):
        figures.spectrogram(torch.rand(2, 40, 99), hop_s=0.01)


def test_sight_and_sound_share_their_seconds() -> None:
    figure = figures.sight_and_sound(
        torch.zeros(25, 3, 16, 16, dtype=torch.uint8), torch.zeros(16_000), torch.zeros(40, 99),
        fps=25, sample_rate=16_000, start_s=3.0, events_s=[3.5],
    )  # fmt: skip
    _, wave, bands = figure.axes
    assert wave.get_xlim() == bands.get_xlim() == (3.0, 4.0)
    assert all(any(line.get_xdata()[0] == 3.5 for line in ax.lines) for ax in (wave, bands))


def test_contact_sheet_has_a_panel_a_clip() -> None:
    clips = [torch.zeros(4, 3, 8, 8, dtype=torch.uint8)] * 5
    figure = figures.contact_sheet(clips, titles=list("abcde"), columns=3)
    assert [ax.get_title(loc="left") for ax in figure.axes if ax.images] == list("abcde")
    with pytest.raises(ValueError, match="5 clips and 2 titles"):
        figures.contact_sheet(clips, titles=["a", "b"])


# ---- relations


def test_matrices_are_those_of_the_loss() -> None:
    _, _, contrast, weight = relations("l", 3)
    figure = figures.relation_matrices(contrast, weight, block=8)
    drawn = [np.asarray(ax.images[0].get_array()) for ax in figure.axes]
    for image, matrix in zip(drawn, (contrast, weight, contrast & weight), strict=True):
        assert np.array_equal(image, matrix.numpy().astype(float))
    assert "48 pairs" in figure.axes[2].get_title(loc="left")  # 24 anchors with 2 positives each


@pytest.mark.parametrize(
    ("row", "positives", "negatives"), [("e", 1, 1), ("h", 4, 4), ("j", 1, 3), ("l", 2, 6), ("m", 1, 7)]
)
def test_roles_count_as_the_card_says(row: str, positives: int, negatives: int) -> None:
    """Two videos: positives as in the hypothesis table, negatives from its formulas with N = 2."""
    _, _, contrast, weight = relations(row, 2)
    for anchor in range(len(contrast)):
        roles = figures.roles_of(contrast, weight, anchor)
        assert (roles.count("positive"), roles.count("negative"), roles.count("anchor")) == (positives, negatives, 1)


def test_tree_marks_leaves_by_their_role() -> None:
    hypothesis, codes, contrast, weight = relations("l", 2)
    names = ["video", "time", "modality", "reversal", "augmentation"]
    ax = figures.sampling_tree(codes, contrast, weight, names=names, kinds=hypothesis.kinds, anchor=3)
    roles = figures.roles_of(contrast, weight, 3)
    at = {
        label: sorted(float(x) for x, _ in points.get_offsets())
        for label, points in zip(dict.fromkeys(roles), ax.collections, strict=True)
    }
    assert at == {role: [float(n) for n, each in enumerate(roles) if each == role] for role in dict.fromkeys(roles)}
    edges = sum((2, 4, 8, 16, 16))
    assert len(ax.lines) == edges
    assert any("time" in text and "distinctive" in text for text in texts(ax))
    with pytest.raises(ValueError, match="need as many names"):
        figures.sampling_tree(codes, contrast, weight, names=["video"])


def test_pull_push_draws_one_arrow_a_partner() -> None:
    _, codes, contrast, weight = relations("j", 2)
    place = [(int(2 * code[0] + code[1]), int(code[2])) for code in codes]
    ax = figures.pull_push(contrast, weight, rows=list("abcd"), columns=["sight", "sound"], place=place)
    styles = [patch.get_linestyle() for patch in ax.patches]
    assert (styles.count("-"), styles.count("--")) == (1, 3)


def test_relation_grid_shades_what_is_pulled_and_what_is_pushed() -> None:
    figure = figures.relation_grid({row: relations(row, 3)[2:] for row in "ehlm"}, columns=3)
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in shown] == ["e: 6 of 18", "h: 96 of 288", "l: 48 of 288", "m: 24 of 288"]
    _, _, contrast, weight = relations("l", 3)
    shades = np.asarray(shown[2].images[0].get_array())
    assert ((shades == 2) == (contrast * weight).numpy().astype(bool)).all()
    assert ((shades == 0) == ~weight.numpy().astype(bool)).all()
    with pytest.raises(ValueError, match="square"):
        figures.relation_grid({"x": (torch.ones(2, 3), torch.ones(2, 3))})


def test_roles_refuse_what_is_no_relation() -> None:
    with pytest.raises(ValueError, match="square"):
        figures.roles_of(torch.ones(2, 3), torch.ones(2, 3), 0)
    with pytest.raises(ValueError, match="anchor 5"):
        figures.roles_of(torch.ones(2, 2), torch.ones(2, 2), 5)


# ---- seeds


RUNS = pd.DataFrame(
    [(arm, seed, base + 0.01 * seed) for arm, base in (("l", 0.6), ("h", 0.5)) for seed in range(5)],
    columns=["arm", "seed", "value"],
)


def test_arms_show_runs_mean_and_interval() -> None:
    ax = figures.arms_over_seeds(RUNS, order=["h", "l", "absent"], names={"l": "mix (l)"}, chance=0.25)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["h", "mix (l)"]
    points = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections if len(c.get_offsets())])
    assert sorted(points[:, 0]) == pytest.approx(sorted(RUNS["value"]))
    mean, low, high = t_interval(RUNS.loc[RUNS["arm"] == "h", "value"].tolist())
    bars = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2]
    assert any(list(bar) == pytest.approx([low, high]) for bar in bars)
    assert any(list(line.get_xdata()) == pytest.approx([mean]) for line in ax.lines if len(line.get_xdata()) == 1)
    assert "chance" in texts(ax)
    with pytest.raises(ValueError, match="no runs"):
        figures.arms_over_seeds(RUNS, order=["absent"])


def test_recorded_arms_draw_a_figure_for_every_ledger_that_holds_the_metric() -> None:
    def ledger(device: str, corpus: str) -> Ledger:
        cells = tuple(
            CellRecord(row.arm, row.seed, "c", "k", {"accuracy": row.value}, 1.0, device, corpus)
            for row in RUNS.itertuples()
        )
        return Ledger("toy", "record", device, None, {}, {}, "", (0,), 1.0, (), cells)

    both = [ledger("cpu", "grid"), ledger("cuda", "playground")]
    drawn = figures.recorded_arms(both, "accuracy", label="accuracy", arms=("h",))
    assert [ax.get_title(loc="left") for ax in drawn] == ["recorded on cpu", "recorded on cuda"]
    assert [t.get_text() for t in drawn[0].get_yticklabels()] == ["h"]
    assert len(figures.recorded_arms(both, "accuracy", label="accuracy", corpus="grid")) == 1
    assert figures.recorded_arms(both, "other", label="other") == []
    assert figures.recorded_arms(both, "accuracy", label="accuracy", arms=("absent",)) == []


def test_recorded_pairs_set_two_metrics_of_the_same_cells_against_each_other() -> None:
    cells = [
        CellRecord("e", 0, "c", "k", {"loss": 2.0, "digit": 0.5}, 1.0, "cpu", "grid"),
        CellRecord("e", 1, "c", "k", {"loss": 4.0}, 1.0, "cpu", "grid"),  # lacks the other metric: no point
        CellRecord("j", 0, "c", "k", {"loss": 3.0, "digit": 0.4}, 1.0, "cpu", "grid"),
    ]
    ledger = Ledger("toy", "record", "cpu", None, {}, {}, "", (0,), 1.0, (), tuple(cells))
    asked = {"labels": ("loss, nats", "accuracy"), "chance": 0.1, "reference": (4.16, "constant")}
    (ax,) = figures.recorded_pairs([ledger], ("loss", "digit"), arms=("e", "j"), **asked)
    assert [list(zip(*line.get_data(), strict=True)) for line in ax.lines[:2]] == [[(2.0, 0.5)], [(3.0, 0.4)]]
    assert {"constant", "chance"} <= set(texts(ax))
    assert figures.recorded_pairs([ledger], ("loss", "digit"), arms=("absent",), labels=("x", "y")) == []


def claim(name: str, differences: tuple[float, ...], corpus: str = "playground") -> ClaimResult:
    result = verdict(differences, min_effect=0.02)
    return ClaimResult(
        name,
        "s",
        {},
        "m",
        result.effect,
        result.ci,
        result.n,
        result.verdict,
        None,
        corpus,
        False,
        "l",
        "h",
        0.02,
        differences,
    )


def test_claims_show_their_verdict_and_corpora_stay_apart() -> None:
    rows = [claim("a", (0.1, 0.11, 0.1, 0.09, 0.1)), claim("b", (0.1,)), claim("c", ())]
    ax = figures.claims_plot(rows)
    assert texts(ax) == ["reproduced", "undecided at this size", "not recorded"]
    with pytest.raises(ValueError, match="one corpus"):
        figures.claims_plot([*rows, claim("d", (), "grid")])


def test_paper_and_ours_keep_their_own_scales() -> None:
    figure = figures.paper_and_ours(
        {"l": 61.4, "h": 59.9}, {"h": [0.5, 0.52], "l": [0.6, 0.62], "x": [0.1]},
        paper_label="HMDB-51 (%)", our_label="probe (0–1)", groups=[("+2", ["l", "h", "x"])], chance=0.25,
    )  # fmt: skip
    above, below = figure.axes
    assert [bar.get_height() for bar in above.patches] == [61.4, 59.9]
    assert [bar.get_height() for bar in below.patches] == pytest.approx([0.61, 0.51, 0.1])
    assert [label.get_text() for label in below.get_xticklabels()] == ["l", "h", "x"]
    assert above.get_ylim()[0] == below.get_ylim()[0] == 0
    with pytest.raises(ValueError, match="ours is empty"):
        figures.paper_and_ours({"l": 1.0}, {}, paper_label="p", our_label="o")


def test_learning_curves_have_their_floors() -> None:
    ax = figures.learning_curves({"(l)": ([0, 10], [3.0, 1.0])}, floors={"(l)": math.log(2), "constant": 2.0})
    heights = [line.get_ydata()[0] for line in ax.lines]
    assert heights == pytest.approx([3.0, math.log(2), 2.0])
    assert sorted(texts(ax)) == ["constant", "floor of (l)"]


def test_histogram_shares_its_bins_and_sums_to_a_hundred() -> None:
    generator = np.random.default_rng(0)
    ax = figures.sensitivity_histogram({"a": generator.random(50), "b": generator.random(70)}, bins=10)
    outlines = [patch.get_xy() for patch in ax.patches]
    assert len({tuple(np.unique(each[:, 0].round(9))) for each in outlines}) == 1
    heights = outlines[1][1:-1:2, 1]
    assert heights.sum() == pytest.approx(100.0)


def test_variance_plot_pairs_formulas_with_simulations() -> None:
    frame = pd.DataFrame(
        {"k": [2, 4], "theorem_direct": [1.0, 0.5], "simulated_direct": [1.1, 0.4], "other_naive": [3.0, 2.0]}
    )
    ax = figures.variance_plot(frame, x="k", label="$K_I$")
    formula, simulated, other = ax.lines
    assert formula.get_color() == simulated.get_color() != other.get_color()
    assert simulated.get_linestyle() == "None" and formula.get_linestyle() != other.get_linestyle()
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_scatter_tells_groups_apart() -> None:
    groups = [n // 2 for n in range(40)]
    ax = figures.embedding_scatter(np.random.default_rng(0).random((40, 2)), groups)
    looks = {(tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes()) for c in ax.collections}
    assert len(looks) == len(ax.collections) == 20
    with pytest.raises(ValueError, match="N groups"):
        figures.embedding_scatter(np.zeros((3, 3)), [1, 2, 3])


def test_feature_maps_show_every_window_twice_a_network() -> None:
    generator = np.random.default_rng(0)
    clumps = np.repeat(generator.normal(size=(4, 8)), 5, axis=0)
    features = {"near": clumps + 0.01 * generator.normal(size=clumps.shape), "far": generator.normal(size=(20, 8))}
    owners = np.repeat(np.arange(4), 5).tolist()
    figure = figures.feature_maps(features, owners)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["near PCA", "near t-SNE", "far PCA", "far t-SNE"]
    drawn = [np.concatenate([np.asarray(each.get_offsets()) for each in ax.collections]) for ax in figure.axes]
    assert [len(points) for points in drawn] == [20] * 4
    by_video = drawn[0].reshape(4, 5, 2)  # tight clumps stay tight on the first two axes
    assert by_video.std(1).max() < 0.1 * by_video.mean(1).std(0).max()
    with pytest.raises(ValueError, match="at least one and three"):
        figures.feature_maps({}, owners)
