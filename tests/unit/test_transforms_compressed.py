"""Joint augmentation of pictures, vectors and residuals: same place in all, right signs, right lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from avssl_core.transforms.compressed import (
    CompressedAugment,
    CropDraw,
    coviar_mirrored_codes,
    coviar_motion_codes,
    coviar_residual_codes,
    fixed_crop,
    normalise_motion,
    normalise_pictures,
    normalise_residual,
)

H, W = 64, 96


def ramps(batch: int, height: int = H, width: int = W) -> torch.Tensor:
    """``(B, 2, 1, h, w)``: every pixel holds its own x and y, in fractions of the picture."""
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    x = ((torch.arange(width) + 0.5) / width)[None].expand(height, width)
    return torch.stack((x, y))[None, :, None].expand(batch, 2, 1, height, width)


def whole(batch: int, flipped: bool = False) -> CropDraw:
    one = torch.ones(batch)
    return CropDraw(0 * one, 0 * one, one, one, one > (0 if flipped else 1), (H, W))


def test_all_streams_are_cut_at_the_same_place_whatever_their_resolution() -> None:
    draw = CompressedAugment(32).draw(8, (H, W), torch.Generator().manual_seed(0))
    fine, coarse = draw.cut(ramps(8), 32), draw.cut(ramps(8, H // 8, W // 8), 8)
    pooled = torch.nn.functional.avg_pool2d(fine[:, :, 0], 4)
    inside = (pooled - 0.5).abs().amax(1) < 0.4  # the border of a coarse map is repeated
    assert inside.float().mean() > 0.5
    assert (pooled - coarse[:, :, 0]).abs().amax(1)[inside].max() < 0.02


def test_crops_lie_inside_and_vary() -> None:
    augment = CompressedAugment(32)
    draw = augment.draw(500, (H, W), torch.Generator().manual_seed(0))
    for edge, share in ((draw.top, draw.height), (draw.left, draw.width)):
        assert edge.min() >= 0 and (edge + share).max() <= 1 + 1e-6
    sides = (draw.height * H / min(H, W)).unique(sorted=True)
    assert sides.tolist() == pytest.approx([0.85, 0.9, 0.975])
    assert 0.4 < draw.flipped.float().mean() < 0.6
    assert torch.allclose(draw.height * H, draw.width * W)  # square in pixels


def test_mirroring_turns_x_and_twice_is_nothing() -> None:
    motion = torch.randn(3, 2, 4, H, W)
    once = whole(3, flipped=True).cut_motion(motion, H)
    plain = whole(3).cut_motion(motion, H)
    torch.testing.assert_close(once[:, 0], -plain[:, 0].flip(-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(once[:, 1], plain[:, 1].flip(-1), atol=1e-4, rtol=0)
    square = CropDraw(*(torch.tensor([v]) for v in (0.0, 0.0, 1.0, 1.0)), torch.tensor([True]), (H, H))
    start = torch.randn(1, 2, 2, H, H)
    torch.testing.assert_close(square.cut_motion(square.cut_motion(start, H), H), start, atol=1e-4, rtol=0)


def test_pictures_and_residuals_keep_their_sign() -> None:
    residual = torch.randint(-90, 90, (2, 3, 2, H, W), dtype=torch.int16)
    mirrored = whole(2, flipped=True).cut(residual, H)
    torch.testing.assert_close(mirrored, whole(2).cut(residual, H).flip(-1), atol=1e-2, rtol=0)


def test_vectors_keep_their_length_unless_asked() -> None:
    motion = torch.ones(1, 2, 1, H, W) * 3
    half = CropDraw(*(torch.tensor([v]) for v in (0.25, 0.25, 0.5, 0.5)), torch.tensor([False]), (H, W))
    assert half.cut_motion(motion, 64).unique().tolist() == [3.0]
    scaled = half.cut_motion(motion, 64, rescale=True)
    assert scaled[:, 0].unique().tolist() == pytest.approx([3 * 64 / 48])
    assert scaled[:, 1].unique().tolist() == pytest.approx([3 * 64 / 32])


def test_a_picture_warped_by_rescaled_vectors_still_fits() -> None:
    """What the vectors mean is kept: the crop of the moved picture is the moved crop."""
    rng = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 1, 8, 8, generator=rng), size=(H, H), mode="bicubic")[
        :, :, None
    ]
    moved = smooth.roll(4, dims=-1)  # four pixels to the right
    draw = CropDraw(*(torch.tensor([v]) for v in (0.25, 0.25, 0.5, 0.5)), torch.tensor([True]), (H, H))
    before, after = draw.cut(smooth, H)[0, 0, 0], draw.cut(moved, H)[0, 0, 0]
    vector = draw.cut_motion(torch.tensor([4.0, 0.0])[None, :, None, None, None].expand(1, 2, 1, H, H), H, rescale=True)
    shift = round(float(vector[0, 0].mean()))
    assert shift == -8
    assert (before.roll(shift, -1)[:, 10:-10] - after[:, 10:-10]).abs().max() < 0.02


def test_three_crops_along_the_longer_side() -> None:
    lefts = [float(fixed_crop(1, (H, W), position=p).left) * W for p in (0, 0.5, 1)]
    assert lefts == pytest.approx([0, (W - 56) / 2, W - 56])
    assert float(fixed_crop(1, (H, W)).top) * H == pytest.approx(4)
    assert float(fixed_crop(1, (W, H), position=1).top) * W == pytest.approx(W - 56)


def test_normalisation() -> None:
    vectors = torch.tensor([-50.0, -20, -10, 0, 0.25, 10, 20, 50])
    assert normalise_motion(vectors).tolist() == pytest.approx([-0.5, -0.5, -0.25, 0, 0.00625, 0.25, 0.5, 0.5])
    flat = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1, 1) * 255
    assert normalise_pictures(flat).abs().max() < 1e-6
    residual = torch.full((1, 3, 1, 1, 1), 300, dtype=torch.int16)
    assert normalise_residual(residual).flatten().tolist() == pytest.approx(
        [127 / 255 / s for s in (0.229, 0.224, 0.225)]
    )


def test_codes_of_coviars_loader(fixtures_dir: Path) -> None:
    """Eight-bit codes exactly; the network's input up to float32."""
    stored = load_file(fixtures_dir / "compressed" / "loader_scaling.safetensors")
    motion, residual = torch.from_numpy(stored["motion"]), torch.from_numpy(stored["residual"])
    codes = coviar_motion_codes(motion)
    np.testing.assert_array_equal(codes.numpy(), stored["motion_uint8"])
    np.testing.assert_array_equal(coviar_mirrored_codes(codes).numpy(), stored["motion_uint8_flipped"])
    np.testing.assert_allclose((codes.float() / 255 - 0.5).permute(2, 0, 1).numpy(), stored["motion_input"], atol=1e-6)
    codes = coviar_residual_codes(residual)
    np.testing.assert_array_equal(codes.numpy(), stored["residual_uint8"])
    ours = normalise_residual(residual.permute(2, 0, 1)[None, :, None])[0, :, 0].numpy()
    offset = 0.5 / 255 / np.array([0.229, 0.224, 0.225])[:, None, None]  # theirs puts zero at 128 of 255
    np.testing.assert_allclose(ours + offset, stored["residual_input"], atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"size": 0}, {"size": 8, "scales": ()}, {"size": 8, "scales": (1.5,)}, {"size": 8, "flip": 2}]
)
def test_impossible_values(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="need size"):
        CompressedAugment(**options)  # type: ignore[arg-type]


def test_another_number_of_clips_is_refused() -> None:
    with pytest.raises(ValueError, match="drawn for 2 clips, got 3"):
        whole(2).cut(torch.zeros(3, 3, 1, H, W), 8)
