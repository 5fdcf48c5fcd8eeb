"""Pictures of compressed clips: what moves right looks like it, boxes stand on their cells."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import rgb_to_hsv
from matplotlib.patches import Rectangle
from matplotlib.quiver import Quiver

from avssl_core import figures

PICTURE = torch.full((3, 48, 64), 90, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    matplotlib.use("agg")
    with matplotlib.rc_context():
        figures.use_style()
        yield
        plt.close("all")


def field(x: float, y: float, height: int = 6, width: int = 8) -> torch.Tensor:
    return torch.tensor([x, y])[:, None, None].expand(2, height, width)


def test_hue_is_direction_and_strength_is_length() -> None:
    hues = [rgb_to_hsv(figures.motion_colours(field(x, y), bound=4)[0, 0] / 255)[0] for x, y in
            ((4, 0), (0, -4), (-4, 0), (0, 4))]  # fmt: skip
    assert hues == pytest.approx([0, 0.25, 0.5, 0.75], abs=0.01)  # right, up, left, down
    assert (figures.motion_colours(field(0, 0)) == 255).all()
    weak, strong = (figures.motion_colours(field(x, 0), bound=4)[0, 0].astype(float) for x in (1, 4))
    luma = np.array([0.299, 0.587, 0.114])
    assert strong @ luma < weak @ luma  # also on a grey printer
    assert (figures.motion_colours(field(9, 0), bound=4) == figures.motion_colours(field(4, 0), bound=4)).all()


def test_arrows_end_at_the_block_they_belong_to() -> None:
    motion = torch.zeros(2, 6, 8)
    motion[:, 2, 3] = torch.tensor([8.0, -4.0])
    ax = figures.motion_arrows(PICTURE, motion)
    arrows = [artist for artist in ax.collections if isinstance(artist, Quiver)]
    assert len(arrows) == 2  # a dark and a light one
    (x, y), u, v = arrows[0].XY[0], arrows[0].U[0], arrows[0].V[0]
    assert (x + u, y + v) == pytest.approx((3.5 * 8, 2.5 * 8)) and (u, v) == (8, -4)


def test_residuals_lie_around_grey() -> None:
    shown = figures.residual_picture(torch.tensor([[0.0, 10, -300]]), gain=2)
    assert shown.shape == (1, 3, 3) and shown[0, :, 0].tolist() == [128, 148, 0]
    with pytest.raises(ValueError, match=r"\(4, 2, 2\)"):
        figures.residual_picture(torch.zeros(4, 2, 2))


def test_a_group_has_a_panel_for_every_stream_and_position() -> None:
    residual = torch.zeros(3, 2, 48, 64)
    figure = figures.group_of_pictures(
        PICTURE, torch.randn(2, 2, 6, 8), {"pixel": residual, "coded": residual}, positions=(2, 6)
    )
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    key = "key to directions"
    assert titles == ["I", "P2: vectors", "P6: vectors", key, "P2: pixel", "P6: pixel", "", "P2: coded", "P6: coded"]
    with pytest.raises(ValueError, match="3 positions"):
        figures.group_of_pictures(PICTURE, torch.randn(2, 2, 6, 8), {}, positions=(1, 2, 3))


def test_boxes_stand_on_their_cells_and_still_windows_have_none() -> None:
    labels = {(2, 1): torch.tensor([3]), (4, 1): torch.tensor([0]), (2, 3): torch.tensor([0, 1, 2])}
    valid = {key: torch.ones(len(value), dtype=torch.bool) for key, value in labels.items()}
    valid[2, 3][1] = False
    figure = figures.pyramid_labels(PICTURE[:, None].expand(3, 5, 48, 64), labels, valid=valid)
    axes = np.array(figure.axes).reshape(2, 5)
    boxes = [[patch for patch in ax.patches if isinstance(patch, Rectangle)] for ax in axes.flat]
    assert [len(found) for found in boxes] == [2, 0, 0, 0, 0, 1, 0, 1, 0, 0]
    whole = next(box for box in boxes[0] if box.get_label() == "2x2")
    assert (whole.get_x(), whole.get_y(), whole.get_width(), whole.get_height()) == (31.5, 23.5, 32, 24)


def test_labels_and_guesses_stand_on_their_cells() -> None:
    pictures = PICTURE[None, :, None].expand(1, 3, 2, 48, 64)
    figure = figures.predicted_cells(pictures, torch.tensor([[3, 0]]), torch.tensor([[0, 0]]), cells=2)
    first = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert [(box.get_x(), box.get_y()) for box in first[:1]] == [(31.5, 23.5)]
    assert all(0 <= box.get_x() + 0.5 < 32 and box.get_linestyle() for box in first[2:])  # the guess: another cell
    with pytest.raises(ValueError, match=r"expected labels and guesses \(1, 2\)"):
        figures.predicted_cells(pictures, torch.zeros(1, 3), torch.zeros(1, 2), cells=2)


def test_shares_say_their_numbers() -> None:
    ax = figures.cell_shares(np.array([[0.5, 0.25], [0.25, 0.0]]))
    assert [text.get_text() for text in ax.texts] == ["0.50", "0.25", "0.25", "0.00"]
    with pytest.raises(ValueError, match="square grid"):
        figures.cell_shares(np.zeros((2, 3)))


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="vector field"):
        figures.motion_colours(torch.zeros(shape))


# --- pathways ---------------------------------------------------------------------------------------------------------


def test_pathways_link_neighbours_where_they_talk() -> None:
    figure = figures.pathways_diagram(
        {"M": ["8", "4"], "I": ["64", "128"], "R": ["8", "4"]}, ["conv1", "res2"], links=["conv1"], head="mean"
    )
    ax = figure.axes[0]
    said = [text.get_text() for text in ax.texts if text.get_text()]
    assert [said.count(text) for text in ("M", "I", "R", "conv1", "64", "mean")] == [1] * 6
    arrows = [text for text in ax.texts if not text.get_text()]
    assert len(arrows) == 3 * 2 + 2  # down from each box, and two links behind conv1 alone


def test_pathways_refuse_texts_and_links_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="expected 2 texts a pathway"):
        figures.pathways_diagram({"I": ["64"]}, ["conv1", "res2"])
    with pytest.raises(ValueError, match="got \\['pool'\\]"):
        figures.pathways_diagram({"I": ["64"]}, ["conv1"], links=["pool"])


def test_the_key_of_vectors_has_the_colours_of_vectors() -> None:
    motion = torch.zeros(2, 1, 4, 4)
    motion[0] = 3.0  # everything to the right
    residual = torch.zeros(3, 1, 4, 4)
    figure = figures.group_of_pictures(torch.zeros(3, 4, 4, dtype=torch.uint8), motion, {"r": residual}, positions=[1])
    field, key = (ax.images[0].get_array() for ax in (figure.axes[1], figure.axes[2]))
    assert key.shape == (101, 101, 3) and (key[0, 0] == 255).all()
    np.testing.assert_array_equal(key[50, -1], field[0, 0])  # the rightmost place of the disk
