"""Clip augmentation: what is constant over a clip, what differs between clips, and the colour axis."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avssl_core.transforms import ClipAugment, ClipEval, GaussianBlur, to_float
from avssl_core.transforms.video import LUMA


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frozen_clips(*, clips: int = 4, frames: int = 5, height: int = 20, width: int = 28) -> torch.Tensor:
    """Clips whose frames are all the same noise image, so that any difference between frames comes from the
    transform."""
    image = torch.rand(clips, 3, 1, height, width, generator=seeded())
    return image.expand(-1, -1, frames, -1, -1).contiguous()


def test_to_float_moves_colour_before_time_and_scales_to_one() -> None:
    frames = torch.randint(0, 256, (2, 3, 4, 3, 5, 6), dtype=torch.uint8, generator=seeded())
    clip = to_float(frames)
    assert clip.shape == (2, 3, 3, 4, 5, 6)
    assert clip[1, 2, 0, 3, 4, 5] == pytest.approx(frames[1, 2, 3, 0, 4, 5].item() / 255)
    with pytest.raises(ValueError, match=r"\(2, 4, 5, 6, 3\)"):
        to_float(torch.zeros(2, 4, 5, 6, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="float32"):
        to_float(torch.zeros(2, 4, 3, 5, 6))


@pytest.mark.parametrize("scale", [None, (1.0, 1.0), (128 / 112, 160 / 112)])
def test_one_set_of_parameters_for_all_frames_of_a_clip(scale: tuple[float, float] | None) -> None:
    out = ClipAugment(12, scale=scale)(frozen_clips(frames=7), seeded())
    assert out.shape == (4, 3, 7, 12, 12)
    assert torch.allclose(out, out[:, :, :1].expand_as(out), atol=1e-5)


@pytest.mark.parametrize("scale", [None, (1.1, 1.4)])
def test_clips_of_a_batch_differ_and_a_seed_repeats(scale: tuple[float, float] | None) -> None:
    clip = frozen_clips(clips=1).expand(6, -1, -1, -1, -1).contiguous()
    augment = ClipAugment(12, scale=scale)
    out = augment(clip, seeded(1))
    for a in range(6):
        for b in range(a):
            assert (out[a] - out[b]).abs().max() > 0.05
    assert torch.equal(out, augment(clip, seeded(1)))
    assert not torch.equal(out, augment(clip, seeded(2)))


def test_a_batch_of_one_gets_the_parameters_of_the_first_row() -> None:
    clip = frozen_clips(clips=40)
    augment = ClipAugment(12)
    assert torch.allclose(augment(clip[:1], seeded(3)), augment(clip, seeded(3))[:1], atol=1e-5)


def test_uint8_and_float_input_agree_in_any_memory_order() -> None:
    frames = torch.randint(0, 256, (3, 4, 3, 20, 24), dtype=torch.uint8, generator=seeded())
    for scale in (None, (1.0, 1.3)):
        augment = ClipAugment(12, scale=scale)
        from_bytes = augment(frames.transpose(1, 2), seeded(5))
        assert torch.allclose(from_bytes, augment(to_float(frames), seeded(5)), atol=2e-5)
        assert torch.allclose(from_bytes, augment(to_float(frames).contiguous(), seeded(5)), atol=2e-5)


def test_large_batches_are_cut_into_pieces_without_a_trace() -> None:
    clip = torch.rand(9, 3, 16, 64, 64, generator=seeded())  # several pieces
    whole = ClipAugment(48)(clip, seeded(1))
    draws = torch.rand(9, 7, generator=seeded(1))
    for b in range(9):
        alone = ClipAugment(48)._augment(clip[b : b + 1].transpose(1, 2).contiguous(), draws[b : b + 1])
        assert torch.allclose(whole[b], alone[0].transpose(0, 1), atol=1e-5)


def test_resampling_agrees_with_resize_then_crop() -> None:
    """Scale 1.5 of a 16-pixel crop: rescaling the short side to 24 and cutting the centre 16 out must give the same
    pixels."""
    clip = torch.rand(2, 3, 3, 36, 36, generator=seeded())
    out = ClipEval(16, scale=1.5, mean=0.0, std=1.0)(clip)
    resized = F.interpolate(clip.transpose(1, 2).flatten(0, 1), size=(24, 24), mode="bilinear", align_corners=False)
    expected = resized[..., 4:20, 4:20].unflatten(0, (2, 3)).transpose(1, 2)
    assert torch.allclose(out, expected, atol=1e-5)


def test_crops_without_scale_are_pieces_of_the_input_and_reach_all_places() -> None:
    """An image that stores its own coordinates shows where each crop came from."""
    H, W, S = 7, 9, 5
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    image = torch.stack((y, x, torch.zeros_like(y))).float()
    clip = image[None, :, None].expand(400, 3, 2, H, W).contiguous()
    out = ClipAugment(S, scale=None, jitter=0.0, mean=0.0, std=1.0)(clip, seeded())
    tops, lefts, flips = set(), set(), 0
    for b in range(400):
        rows, columns = out[b, 0, 0], out[b, 1, 0]
        assert torch.equal(rows, rows[0, 0] + torch.arange(S)[:, None].expand(S, S))  # adjacent rows of the input
        step = columns[0, 1] - columns[0, 0]
        assert step.abs() == 1
        flips += int(step < 0)
        tops.add(int(rows[0, 0]))
        lefts.add(int(columns[0].min()))
    assert tops == {0, 1, 2} and lefts == {0, 1, 2, 3, 4}
    assert 150 < flips < 250  # 200 ± 5 sigma


def test_crops_with_scale_stay_inside_and_cover_the_stated_range() -> None:
    """A horizontal ramp: the step between output pixels is the rescaling factor, its sign the flip."""
    W = 40
    clip = (torch.arange(W) / W).expand(300, 3, 1, W, W).contiguous()
    out = ClipAugment(16, scale=(1.0, 2.0), jitter=0.0, mean=0.0, std=1.0)(clip, seeded()) * W
    steps = (out[:, 0, 0, 8, 9] - out[:, 0, 0, 8, 8]).abs()
    assert steps.min() >= W / 32 - 1e-3 and steps.max() <= W / 16 + 1e-3
    assert steps.min() < W / 32 * 1.05 and steps.max() > W / 16 * 0.95
    assert out.min() >= 0 and out.max() <= W - 1
    assert out.amin(dim=(1, 2, 3, 4)).std() > 1  # crops lie at different places


def test_flip_probability_zero_and_one() -> None:
    clip = frozen_clips(height=16, width=16)
    straight = ClipAugment(16, scale=(1, 1), flip=0.0, jitter=0.0)(clip, seeded())
    mirrored = ClipAugment(16, scale=(1, 1), flip=1.0, jitter=0.0)(clip, seeded())
    assert torch.allclose(straight.flip(-1), mirrored, atol=1e-5)
    assert torch.allclose(straight, (clip - 0.45) / 0.225, atol=1e-5)


def test_jitter_is_brightness_contrast_and_saturation_on_the_colour_axis() -> None:
    """Against a slow reference that applies the three changes one after the other, pixel by pixel, in two different
    orders."""
    clip = torch.rand(3, 3, 4, 8, 8, generator=seeded(), dtype=torch.float64)
    out = ClipAugment(8, scale=None, flip=0.0, jitter=0.4, mean=0.45, std=0.225)(clip.float(), seeded(7))
    factors = (1 + 0.4 * (2 * torch.rand(3, 7, generator=seeded(7))[:, 4:7] - 1)).double()

    def grey(x: torch.Tensor) -> torch.Tensor:
        return LUMA[0] * x[0] + LUMA[1] * x[1] + LUMA[2] * x[2]  # (T, H, W)

    for b in range(3):
        brightness, contrast, saturation = factors[b]
        changes = {
            "b": lambda x, f=brightness: f * x,
            "c": lambda x, f=contrast: f * x + (1 - f) * grey(x).mean(),
            "s": lambda x, f=saturation: f * x + (1 - f) * grey(x)[None],
        }
        for order in ("bcs", "scb"):
            x = clip[b]
            for name in order:
                x = changes[name](x)
            assert torch.allclose(out[b].double(), (x - 0.45) / 0.225, atol=1e-5), (b, order)


def test_jitter_treats_all_frames_alike_unlike_the_release() -> None:
    """The release blends frames 0–2 into a "grey" image: the first frames come out unlike the rest. Ours must not.

    A clip without colour has the same grey everywhere: saturation must leave it alone, and every frame must change
    the same way.
    """
    ramp = torch.linspace(0.2, 0.8, 8)
    clip = ramp[None, None, :, None, None].expand(2, 3, 8, 6, 6).contiguous()  # brightness rises over time
    out = ClipAugment(6, scale=None, flip=0.0, jitter=0.4)(clip, seeded(2))
    steps = out[:, :, 1:] - out[:, :, :-1]
    assert torch.allclose(steps, steps[:, :1, :1, :1, :1].expand_as(steps), atol=1e-4)


def test_saturation_changes_colours_within_a_pixel() -> None:
    red = torch.zeros(8, 3, 2, 4, 4)
    red[:, 0] = 1.0
    out = ClipAugment(4, scale=None, jitter=0.4, mean=0.0, std=1.0)(red, seeded(1))
    factors = 1 + 0.4 * (2 * torch.rand(8, 7, generator=seeded(1))[:, 4:7] - 1)
    gap = (out[:, 0] - out[:, 1]).mean(dim=(1, 2, 3))  # red − green = b·c·s for pure red
    assert torch.allclose(gap, factors.prod(dim=1), atol=1e-5)


def test_evaluation_crop_position_and_normalisation() -> None:
    wide = torch.arange(20.0).expand(1, 3, 1, 10, 20).contiguous() / 20
    left, right = (ClipEval(10, position=p, mean=0.0, std=1.0)(wide) * 20 for p in (0.0, 1.0))
    assert torch.allclose(left[0, 0, 0, 0], torch.arange(10.0), atol=1e-4)
    assert torch.allclose(right[0, 0, 0, 0], torch.arange(10.0, 20.0), atol=1e-4)
    centre = ClipEval(10)(torch.full((2, 3, 2, 10, 10), 0.45 + 0.225))
    assert torch.allclose(centre, torch.ones_like(centre), atol=1e-5)
    as_bytes = ClipEval(10)(torch.full((2, 3, 2, 10, 10), 255, dtype=torch.uint8))
    assert torch.allclose(as_bytes, torch.full_like(as_bytes, (1 - 0.45) / 0.225), atol=1e-5)


def test_blur_keeps_the_mean_of_a_flat_clip_and_removes_detail() -> None:
    noise = frozen_clips(clips=6, height=24, width=20)
    blurred = GaussianBlur(sigma=(1.0, 1.0), probability=1.0)(noise, seeded())
    assert blurred.std() < 0.5 * noise.std()
    flat = torch.full((2, 3, 2, 8, 8), 0.3)
    assert torch.allclose(GaussianBlur(probability=1.0)(flat, seeded()), flat, atol=1e-5)
    assert torch.equal(GaussianBlur(probability=0.0)(noise, seeded()), noise)
    assert torch.allclose(blurred, blurred[:, :, :1].expand_as(blurred), atol=1e-5)


def test_blur_agrees_with_scipy_in_the_interior() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    clip = torch.rand(1, 3, 1, 40, 40, generator=seeded())
    ours = GaussianBlur(sigma=(1.5, 1.5), probability=1.0)(clip, seeded())[0, 0, 0].numpy()
    theirs = ndimage.gaussian_filter(clip[0, 0, 0].numpy().astype(np.float64), 1.5, truncate=8)
    assert np.abs(ours - theirs)[12:-12, 12:-12].max() < 1e-4


def test_blur_leaves_the_clips_that_were_not_chosen() -> None:
    clip = frozen_clips(clips=64, frames=1)
    out = GaussianBlur(sigma=(2.0, 2.0), probability=0.5)(clip, seeded())
    same = (out == clip).flatten(1).all(dim=1)
    assert torch.equal(same, torch.rand(64, 2, generator=seeded())[:, 0] >= 0.5)
    assert 10 < int(same.sum()) < 54


def test_autocast_does_not_lower_the_precision() -> None:
    clip = frozen_clips()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ClipAugment(12)(clip, seeded())
    assert inside.dtype == torch.float32
    assert torch.equal(inside, ClipAugment(12)(clip, seeded()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ClipAugment(0), "got 0"),
        (lambda: ClipAugment(8, scale=(0.5, 1.0)), r"\(0.5, 1.0\)"),
        (lambda: ClipAugment(8, flip=1.5), "flip=1.5"),
        (lambda: ClipEval(8, position=2.0), "position=2.0"),
        (lambda: GaussianBlur(sigma=(0.0, 1.0)), r"sigma=\(0.0, 1.0\)"),
        (lambda: ClipAugment(8)(torch.rand(2, 4, 3, 9, 9), seeded()), r"\(2, 4, 3, 9, 9\)"),
        (lambda: ClipAugment(8)(torch.zeros(2, 3, 4, 9, 9, dtype=torch.int64), seeded()), "int64"),
        (lambda: ClipAugment(10, scale=None)(torch.rand(2, 3, 4, 9, 12), seeded()), "10x10 from frames of 9x12"),
        (lambda: GaussianBlur()(torch.zeros(2, 3, 4, 9, 9, dtype=torch.uint8), seeded()), "uint8"),
    ],
)
def test_wrong_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.gpu
def test_a_gpu_gives_the_same_augmentation_from_the_same_cpu_generator() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    clip = frozen_clips()
    assert torch.allclose(ClipAugment(12)(clip.cuda(), seeded()).cpu(), ClipAugment(12)(clip, seeded()), atol=1e-4)
