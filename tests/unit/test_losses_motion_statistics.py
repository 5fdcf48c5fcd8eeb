"""Labels of motion statistics against slow loops and what a label of motion must do; their loss in closed form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from avssl_core.losses import PMSPLabels, apply_ctp, draw_ctp, pmsp_labels, pmsp_loss

OPERATORS = ("literal", "four_derivatives", "raw")
READINGS = list(itertools.product(OPERATORS, (True, False), ("zero", "replicate")))
LEVELS = [(s, t) for s in (2, 3, 4) for t in (1, 3, 5)]
T, K = 5, 4


def random_motion(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def labels_of(motion: Tensor, reading: tuple[str, bool, str] = ("literal", True, "replicate"), **levels) -> PMSPLabels:
    operator, signed, padding = reading
    frames = motion.shape[2]
    return pmsp_labels(motion, T, frames // T, operator=operator, signed=signed, padding=padding, **levels)


def mover(row: int, column: int, *, size: int = 48, patch: int = 6, frames: range = range(T * K)) -> Tensor:
    """A patch that moves by (2, 1) a frame, drawn around a centre that stays, over a still background."""
    motion = torch.zeros(1, 2, T * K, size, size, dtype=torch.float64)
    rows, columns = (slice(c - patch // 2, c + patch // 2) for c in (row, column))
    for frame in frames:
        motion[0, 0, frame, rows, columns] = 2
        motion[0, 1, frame, rows, columns] = 1
    return motion


def slow_components(u: np.ndarray, v: np.ndarray, operator: str, padding: str) -> list[np.ndarray]:
    """Pixel by pixel: what the length is taken of, for one frame."""
    if operator == "raw":
        return [u, v]
    height, width = u.shape

    def at(f: np.ndarray, y: int, x: int) -> float:
        if padding == "replicate":
            return f[min(max(y, 0), height - 1), min(max(x, 0), width - 1)]
        return f[y, x] if 0 <= y < height and 0 <= x < width else 0.0

    def derivative(f: np.ndarray, axis: str) -> np.ndarray:
        out = np.zeros_like(f)
        for y in range(height):
            for x in range(width):
                for k in (-1, 0, 1):
                    if axis == "x":
                        out[y, x] += at(f, y + k, x + 1) - at(f, y + k, x - 1)
                    else:
                        out[y, x] += at(f, y + 1, x + k) - at(f, y - 1, x + k)
        return out

    if operator == "literal":
        return [derivative(u, "x"), derivative(v, "y")]
    return [derivative(f, axis) for axis in "xy" for f in (u, v)]


def slow_grid(motion: np.ndarray, reading: tuple[str, bool, str], s: int, first: int, last: int) -> np.ndarray:
    """Cell means of the frames ``first`` to ``last - 1`` of one clip (2, F, H, W), cell by cell."""
    operator, signed, padding = reading
    frames = [slow_components(motion[0, f], motion[1, f], operator, padding) for f in range(first, last)]
    if signed:
        sums = [sum(parts) for parts in zip(*frames, strict=True)]
        magnitude = np.sqrt(sum(part**2 for part in sums))
    else:
        magnitude = sum(np.sqrt(sum(part**2 for part in frame)) for frame in frames)
    height, width = magnitude.shape
    grid = np.zeros((s, s))
    for i in range(s):
        for j in range(s):
            rows = range(math.floor(i * height / s), math.ceil((i + 1) * height / s))
            columns = range(math.floor(j * width / s), math.ceil((j + 1) * width / s))
            grid[i, j] = np.mean([magnitude[y, x] for y in rows for x in columns])
    return grid


@pytest.mark.parametrize("reading", READINGS, ids=lambda r: "-".join(map(str, r)))
def test_slow_loops_agree(reading: tuple[str, bool, str]) -> None:
    motion = random_motion(2, 2, T * 2, 7, 10)  # two frames a GOP; no s divides both sides
    found = labels_of(motion, reading)
    for s, t in LEVELS:
        for clip, q in itertools.product(range(2), range(t)):
            expected = slow_grid(motion[clip].numpy(), reading, s, 2 * q, 2 * (q + T - t + 1))
            np.testing.assert_allclose(found.grids[s, t][clip, q].numpy(), expected, rtol=1e-12)
            assert found.labels[s, t][clip, q] == expected.argmax()


def test_twenty_seven_labels_a_clip() -> None:
    found = labels_of(random_motion(3, 2, T * K, 12, 12, dtype=torch.float32))
    assert list(found.levels) == LEVELS
    assert sum(label.shape[1] for label in found.labels.values()) == 27
    for s, t in LEVELS:
        assert found.labels[s, t].shape == found.valid[s, t].shape == (3, t)
        assert found.labels[s, t].dtype == torch.int64 and found.valid[s, t].dtype == torch.bool
        assert found.grids[s, t].shape == (3, t, s, s) and found.grids[s, t].dtype == torch.float64
        assert found.valid[s, t].all()


@pytest.mark.parametrize("operator", ["literal", "four_derivatives"])
@pytest.mark.parametrize("signed", [True, False])
def test_camera_motion_cancels(operator: str, signed: bool) -> None:
    """With replicated borders everywhere; with zeros only away from the border, where a pan draws a frame."""
    motion = random_motion(2, 2, T * K, 16, 16)
    panned = motion + random_motion(2, 2, T * K, 1, 1, seed=1)
    for level in LEVELS:
        found, same = (labels_of(x, (operator, signed, "replicate")).grids[level] for x in (panned, motion))
        torch.testing.assert_close(found, same)
    # 4 x 4 cells of 4 pixels: the inner ones do not touch the border
    still, moved = (labels_of(x, (operator, signed, "zero")).grids[4, 5] for x in (motion, panned))
    torch.testing.assert_close(moved[:, :, 1:3, 1:3], still[:, :, 1:3, 1:3])
    assert (moved - still).abs().amin(dim=(0, 1))[0].min() > 1e-3
    raw, raw_panned = (labels_of(x, ("raw", signed, "zero")).grids[4, 5] for x in (motion, panned))
    assert (raw - raw_panned).abs().min() > 0


def test_a_pure_pan_is_nothing_to_see_unless_zeros_frame_it() -> None:
    pan = torch.full((1, 2, T * K, 15, 15), 0.1, dtype=torch.float32)  # 0.1 is not exact: no rounding may be left over
    for operator, signed in itertools.product(("literal", "four_derivatives"), (True, False)):
        found = labels_of(pan, (operator, signed, "replicate"))
        assert not any(mask.any() for mask in found.valid.values())
        framed = labels_of(pan, (operator, signed, "zero"))
        assert all(mask.all() for mask in framed.valid.values())


@pytest.mark.parametrize("reading", READINGS, ids=lambda r: "-".join(map(str, r)))
@pytest.mark.parametrize("axis", [-1, -2])
def test_flipping_mirrors_the_cells(reading: tuple[str, bool, str], axis: int) -> None:
    motion = random_motion(2, 2, T * K, 13, 11)
    flipped = motion.flip(axis).clone()
    flipped[:, 0 if axis == -1 else 1] *= -1
    found, mirrored = labels_of(motion, reading), labels_of(flipped, reading)
    for s, t in LEVELS:
        torch.testing.assert_close(mirrored.grids[s, t], found.grids[s, t].flip(axis))
        row, column = found.labels[s, t] // s, found.labels[s, t] % s
        expected = row * s + (s - 1 - column) if axis == -1 else (s - 1 - row) * s + column
        assert torch.equal(mirrored.labels[s, t], expected)


@pytest.mark.parametrize("reading", READINGS, ids=lambda r: "-".join(map(str, r)))
@pytest.mark.parametrize("s", [2, 3, 4])
def test_the_label_follows_the_mover(reading: tuple[str, bool, str], s: int) -> None:
    cell = 48 // s
    for row, column in itertools.product(range(s), repeat=2):
        found = labels_of(mover(row * cell + cell // 2, column * cell + cell // 2), reading)
        for t in (1, 3, 5):
            assert (found.labels[s, t] == row * s + column).all()


def test_oscillation_survives_only_unsigned_sums() -> None:
    motion = mover(12, 36)
    motion[:, :, 1::2] *= -1
    assert not any(mask.any() for mask in labels_of(motion, ("literal", True, "replicate")).valid.values())
    found = labels_of(motion, ("literal", False, "replicate"))
    assert (found.labels[2, 5] == 1).all() and found.valid[2, 5].all()


def test_shear_is_seen_only_by_all_four_derivatives() -> None:
    """A bar that moves along its own length: x-motion changes along y alone."""
    motion = torch.zeros(1, 2, T * K, 16, 16)
    motion[:, 0, :, 3:5] = 1
    assert not labels_of(motion, ("literal", False, "replicate")).valid[2, 1].any()
    found = labels_of(motion, ("four_derivatives", False, "replicate"))
    assert found.valid[2, 1].all() and found.grids[2, 1][0, 0, 0].min() > 0 == found.grids[2, 1][0, 0, 1].max()


def test_windows_of_three_overlap() -> None:
    """Motion in GOP g is seen by the windows q with q <= g <= q + 2."""
    seen = {}
    for g in range(T):
        found = labels_of(mover(12, 12, frames=range(g * K, (g + 1) * K)))
        seen[g] = {t: found.valid[2, t][0].nonzero().flatten().tolist() for t in (1, 3, 5)}
    assert [seen[g][3] for g in range(T)] == [[0], [0, 1], [0, 1, 2], [1, 2], [2]]
    assert [seen[g][5] for g in range(T)] == [[0], [1], [2], [3], [4]]
    assert [seen[g][1] for g in range(T)] == [[0]] * T


def test_unsigned_grids_of_windows_add_up() -> None:
    found = labels_of(random_motion(2, 2, T * K, 12, 12), ("four_derivatives", False, "zero"))
    single = found.grids[3, 5]
    torch.testing.assert_close(found.grids[3, 1][:, 0], single.sum(dim=1))
    for q in range(3):
        torch.testing.assert_close(found.grids[3, 3][:, q], single[:, q : q + 3].sum(dim=1))


@pytest.mark.parametrize("reading", READINGS, ids=lambda r: "-".join(map(str, r)))
def test_still_clips_are_masked_and_labelled_zero(reading: tuple[str, bool, str]) -> None:
    motion = torch.cat([torch.zeros(1, 2, T * K, 12, 12, dtype=torch.float64), random_motion(1, 2, T * K, 12, 12)])
    found = labels_of(motion, reading)
    for level in LEVELS:
        assert not found.valid[level][0].any() and not found.labels[level][0].any()
        assert found.valid[level][1].all()


def test_the_first_of_equal_cells_wins() -> None:
    motion = mover(12, 36) + mover(36, 12)
    assert (labels_of(motion).labels[2, 5] == 1).all()


def test_motion_a_block() -> None:
    """One vector for each 8 x 8 block: here it leads to the same cells as painted pixels."""
    blocks = torch.zeros(1, 2, T * K, 8, 8)
    blocks[:, 0, :, 4:6, 0:2] = 3
    found = labels_of(blocks)
    painted = labels_of(blocks.repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2))
    for s, t in LEVELS:
        assert torch.equal(found.labels[s, t], painted.labels[s, t])
    assert (found.labels[4, 1] == 8).all()


def test_other_pyramids() -> None:
    motion = random_motion(1, 2, 6, 9, 9)
    options = {"operator": "raw", "signed": True, "padding": "zero"}
    found = pmsp_labels(motion, 2, 3, **options, spatial=(3,), temporal=(1, 2))
    assert found.levels == ((3, 1), (3, 2))
    whole = pmsp_labels(motion, 1, 6, **options, spatial=(3,), temporal=(1,))
    assert torch.equal(whole.labels[3, 1], found.labels[3, 1])


def test_wrong_motion_is_named() -> None:
    good = torch.zeros(1, 2, T * K, 12, 12)
    options = {"operator": "literal", "signed": True, "padding": "zero"}
    with pytest.raises(ValueError, match=r"\(1, 3, 20, 12, 12\)"):
        pmsp_labels(torch.zeros(1, 3, T * K, 12, 12), T, K, **options)
    with pytest.raises(ValueError, match="int32"):
        pmsp_labels(good.int(), T, K, **options)
    with pytest.raises(ValueError, match="20 frames are not 5 GOPs of 5"):
        pmsp_labels(good, T, 5, **options)
    with pytest.raises(ValueError, match=r"4 GOPs.*temporal=\(1, 3, 5\)"):
        pmsp_labels(good, 4, 5, **options)
    with pytest.raises(ValueError, match=r"12 x 3.*spatial=\(2, 3, 4\)"):
        pmsp_labels(good[..., :3], T, K, **options)
    with pytest.raises(ValueError, match="'sobel'"):
        pmsp_labels(good, T, K, **{**options, "operator": "sobel"})
    with pytest.raises(ValueError, match="'reflect'"):
        pmsp_labels(good, T, K, **{**options, "padding": "reflect"})


def logits_for(labels: PMSPLabels, *, seed: int | None = None) -> dict[tuple[int, int], Tensor]:
    shapes = {(s, t): (*label.shape, s * s) for (s, t), label in labels.labels.items()}
    if seed is None:
        return {level: torch.zeros(shape, dtype=torch.float64) for level, shape in shapes.items()}
    return {level: random_motion(*shape, seed=seed + i) for i, (level, shape) in enumerate(shapes.items())}


@pytest.fixture
def labels() -> PMSPLabels:
    """Three clips: the second is still, in the third only GOP 1 moves."""
    one = random_motion(1, 2, T * K, 12, 12)
    third = torch.zeros_like(one)
    third[:, :, K : 2 * K] = one[:, :, K : 2 * K]
    return labels_of(torch.cat([one, torch.zeros_like(one), third]))


def slow_loss(logits: Mapping[tuple[int, int], Tensor], labels: PMSPLabels) -> list[float]:
    terms = []
    for level, x in logits.items():
        for i, q in itertools.product(range(x.shape[0]), range(x.shape[1])):
            if labels.valid[level][i, q]:
                row = x[i, q].tolist()
                own = row[int(labels.labels[level][i, q])]
                terms.append(math.log(sum(math.exp(value) for value in row)) - own)
    return terms


def test_loss_matches_loops(labels: PMSPLabels) -> None:
    logits = logits_for(labels, seed=3)
    terms = slow_loss(logits, labels)
    assert len(terms) == 27 + 3 * (1 + 2 + 1)  # of the third clip: the whole, windows 0 and 1 of three, one GOP
    assert pmsp_loss(logits, labels).item() == pytest.approx(sum(terms) / len(terms), rel=1e-12)
    assert pmsp_loss(logits, labels, reduction="sum").item() == pytest.approx(sum(terms), rel=1e-12)


@pytest.mark.parametrize("s", [2, 3, 4])
def test_undecided_logits_cost_the_log_of_the_cells(s: int) -> None:
    labels = labels_of(random_motion(4, 2, T * K, 12, 12), spatial=(s,))
    assert pmsp_loss(logits_for(labels), labels).item() == pytest.approx(math.log(s * s))


def test_the_printed_sum_is_41_times_the_other_task() -> None:
    """Eq. 2.4 adds 27 terms where eq. 2.5 has one: with equal weights PMSP drowns CTP. The means are comparable."""
    labels = labels_of(random_motion(1, 2, T * K, 12, 12))
    total = pmsp_loss(logits_for(labels), labels, reduction="sum").item()
    assert total == pytest.approx(9 * (math.log(4) + math.log(9) + math.log(16)))
    assert total == pytest.approx(57.2, abs=0.05)
    assert total / math.log(4) == pytest.approx(41.3, abs=0.05)
    assert pmsp_loss(logits_for(labels), labels).item() / math.log(4) == pytest.approx(1.53, abs=0.01)


def test_a_perfect_prediction_costs_nothing_and_masked_logits_do_not_matter(labels: PMSPLabels) -> None:
    logits = {
        level: 50 * torch.nn.functional.one_hot(label, level[0] ** 2).double() for level, label in labels.labels.items()
    }
    assert pmsp_loss(logits, labels).item() < 1e-15
    for level, mask in labels.valid.items():
        logits[level] = torch.where(mask[..., None], logits[level], random_motion(level[0] ** 2, seed=7))
    assert pmsp_loss(logits, labels).item() < 1e-15


def test_nothing_valid_is_zero_with_zero_gradient(labels: PMSPLabels) -> None:
    none = labels.restricted_to(torch.zeros(3, dtype=torch.bool))
    for reduction in ("mean", "sum"):
        logits = {level: x.requires_grad_() for level, x in logits_for(labels, seed=1).items()}
        loss = pmsp_loss(logits, none, reduction=reduction)
        loss.backward()
        assert loss.item() == 0
        assert all(x.grad is not None and not x.grad.any() for x in logits.values())


def test_restricted_to_aligned_clips(labels: PMSPLabels) -> None:
    draw = draw_ctp(3, T, torch.Generator().manual_seed(1))
    found = labels.restricted_to(draw.aligned)
    for level in LEVELS:
        assert torch.equal(found.valid[level], labels.valid[level] & draw.aligned[:, None])
        assert torch.equal(found.labels[level], labels.labels[level])


def test_shuffling_gops_permutes_the_labels_of_single_gops() -> None:
    """Why labels of transformed clips are not the labels of what the network sees."""
    motion = random_motion(6, 2, T * K, 12, 12)
    draw = draw_ctp(6, T, torch.Generator().manual_seed(0))
    before, after = labels_of(motion), labels_of(apply_ctp(draw, motion, T))
    expected = before.labels[4, 5][draw.donor].gather(1, draw.permutation)
    assert torch.equal(after.labels[4, 5], expected) and not torch.equal(expected, before.labels[4, 5])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradcheck(labels: PMSPLabels, reduction: str) -> None:
    logits = logits_for(labels, seed=5)
    levels = list(logits)

    def loss(*values: Tensor) -> Tensor:
        return pmsp_loss(dict(zip(levels, values, strict=True)), labels, reduction=reduction)

    assert torch.autograd.gradcheck(loss, tuple(x.requires_grad_() for x in logits.values()))


def test_half_precision_logits_are_summed_in_float32(labels: PMSPLabels) -> None:
    logits = {level: x.bfloat16() for level, x in logits_for(labels, seed=2).items()}
    loss = pmsp_loss(logits, labels)
    assert loss.dtype == torch.float32
    exact = pmsp_loss({level: x.double() for level, x in logits.items()}, labels)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)


def test_wrong_logits_are_named(labels: PMSPLabels) -> None:
    logits = logits_for(labels)
    with pytest.raises(ValueError, match=r"\(3, 1, 4\), got \(3, 1, 9\)"):
        pmsp_loss({**logits, (2, 1): torch.zeros(3, 1, 9)}, labels)
    with pytest.raises(ValueError, match="levels"):
        pmsp_loss({(2, 1): logits[2, 1]}, labels)
    with pytest.raises(ValueError, match="'none'"):
        pmsp_loss(logits, labels, reduction="none")
