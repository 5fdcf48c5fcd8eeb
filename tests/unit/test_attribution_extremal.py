"""Extremal perturbations on small networks: batches, edge cases, other inputs than pictures, and what is restored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from avssl_core.attribution import (
    BlurPyramid,
    ExtremalConfig,
    ExtremalPerturbations,
    SmoothMaskGenerator,
    extremal_perturbation,
)


def small_network(channels: int = 3, classes: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )


def pictures(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def generator(*shape: int) -> SmoothMaskGenerator:
    return SmoothMaskGenerator(shape, step=4, sigma=4.0)


def start(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(2))


def run(
    model: nn.Module, images: Tensor, targets: list[int], areas: list[float], **options: Any
) -> ExtremalPerturbations:
    options = {"iterations": 12, "generator": generator(*images.shape[2:]), **options}
    return extremal_perturbation(model, images, targets, areas, **options)


class PatchScore(nn.Module):
    """Class 0 answers to the brightness of one patch, class 1 to the other half of the picture."""

    def forward(self, x: Tensor) -> Tensor:
        patch, rest = x[:, :, 4:12, 4:12].mean((1, 2, 3)), x[:, :, :, 16:].mean((1, 2, 3))
        return 20 * torch.stack([patch, rest], dim=1)


FIELDS = ("masks", "canvases", "parameters", "rewards", "regularisers", "preserved", "deleted", "original", "perturbed")


@pytest.mark.parametrize("variant", ["preserve", "delete", "dual"])
@pytest.mark.parametrize("reward", ["simple", "contrastive"])
def test_batch_is_one_at_a_time(variant: Any, reward: Any) -> None:
    """Pictures and areas share a batch and nothing else."""
    model, images, first = small_network().double(), pictures(3, 3, 16, 20).double(), start(3, 2, 4, 5).double()
    targets, areas, options = [0, 3, 1], [0.1, 0.4], {"variant": variant, "reward": reward}
    together = run(model, images, targets, areas, start=first, **options)
    for b in range(3):
        for a in range(2):
            own = first[b : b + 1, a : a + 1]
            alone = run(model, images[b : b + 1], targets[b : b + 1], areas[a : a + 1], start=own, **options)
            for field in FIELDS:
                index = (b,) if field in ("original", "perturbed") else (b, a)
                found, expected = (
                    getattr(together, field)[index],
                    getattr(alone, field).reshape(getattr(together, field)[index].shape),
                )
                torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9, msg=lambda m, f=field: f"{f}: {m}")


@pytest.mark.parametrize("limit", [1, 4, 5, 100])
def test_chunks_do_not_matter(limit: int) -> None:
    model, images = small_network(), pictures(2, 3, 16, 16)
    options = {"start": start(2, 3, 4, 4), "variant": "dual"}
    whole = run(model, images, [0, 1], [0.1, 0.2, 0.4], **options)
    parts = run(model, images, [0, 1], [0.1, 0.2, 0.4], max_evaluations=limit, **options)
    torch.testing.assert_close(parts.masks, whole.masks, atol=1e-5, rtol=0)
    torch.testing.assert_close(parts.rewards, whole.rewards, atol=1e-5, rtol=0)


def test_the_network_never_sees_more_than_asked() -> None:
    model, seen = small_network(), []
    handle = model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    run(model, pictures(2, 3, 16, 16), [0, 1], [0.1, 0.2, 0.4], max_evaluations=4, variant="dual")
    handle.remove()
    assert max(seen) == 4


def test_deterministic() -> None:
    images = pictures(2, 3, 16, 16)
    first, second = (run(small_network(), images, [0, 1], [0.1, 0.5]) for _ in range(2))
    assert all(torch.equal(getattr(first, field), getattr(second, field)) for field in FIELDS)


def test_finds_the_patch() -> None:
    """Kept where the evidence is, of the area asked for, better than the same area elsewhere; deletion likewise."""
    x = 0.2 * pictures(2, 3, 32, 32) + 0.1
    x[:, :, 4:12, 4:12] += 1
    area = 0.12
    options = {"perturbation": "fade", "iterations": 200, "area_on": "crop", "jitter": False}
    found = run(PatchScore(), x, [0, 0], [area], **options)
    inside = found.masks[:, :, 0, 4:12, 4:12].mean((2, 3))
    assert (inside > 0.8).all()
    assert (found.masks.mean((2, 3, 4)) - area).abs().max() < 0.05
    assert (found.preserved > 0.8 * found.original[:, None]).all()
    elsewhere = PatchScore()(found.masks[:, 0].flip(3) * x)[:, 0]
    assert (found.preserved[:, 0] > 5 * elsewhere.abs()).all()
    removed = run(PatchScore(), x, [0, 0], [area], variant="delete", **options)
    assert (removed.deleted < 0.2 * removed.original[:, None]).all()


def test_area_on_crop_and_on_canvas() -> None:
    """On the canvas, whose margin stays empty, the visible share is larger than asked."""
    x = 0.2 * pictures(1, 3, 32, 32) + 0.5
    options = {"perturbation": "fade", "iterations": 250, "jitter": False}
    model = small_network()
    canvas = run(model, x, [0], [0.3], area_on="canvas", **options)
    crop = run(model, x, [0], [0.3], area_on="crop", **options)
    assert abs(canvas.canvases.mean().item() - 0.3) < 0.04
    assert abs(crop.masks.mean().item() - 0.3) < 0.04
    assert canvas.masks.mean() > crop.masks.mean() + 0.02


@pytest.mark.parametrize("area", [0.0, 1.0])
def test_extreme_areas(area: float) -> None:
    found = run(small_network(), pictures(1, 3, 16, 16), [0], [area], iterations=150, area_on="crop")
    assert abs(found.masks.mean().item() - area) < 0.05  # a smooth maximum of ones stays below 1
    scores = found.original if area == 1 else found.perturbed
    torch.testing.assert_close(found.preserved[0], scores, atol=0.02, rtol=0)


def test_reference_scores() -> None:
    model, x = small_network().eval(), pictures(2, 3, 16, 16)
    found = run(model, x, [1, 2], [0.2], iterations=1, perturbation="fade")
    with torch.no_grad():
        torch.testing.assert_close(found.original, model(x)[[0, 1], [1, 2]])
        torch.testing.assert_close(found.perturbed, model(0 * x)[[0, 1], [1, 2]])
        torch.testing.assert_close(found.preserved[:, 0], model(found.masks[:, 0] * x)[[0, 1], [1, 2]])
        torch.testing.assert_close(found.deleted[:, 0], model((1 - found.masks[:, 0]) * x)[[0, 1], [1, 2]])


def test_dual_is_antisymmetric() -> None:
    """Exchanging mask and complement turns the reward round: at a mask of a half it is 0."""
    x = pictures(1, 3, 16, 16)

    class Half(SmoothMaskGenerator):
        def forward(self, parameters: Tensor) -> Any:
            masks = super().forward(parameters)
            return type(masks)(0.5 + 0 * masks.crop, 0.5 + 0 * masks.canvas)

    half = Half((16, 16), step=4, sigma=4.0)
    found = run(small_network(), x, [0], [0.5], generator=half, variant="dual", iterations=2)
    assert found.rewards.abs().max() < 1e-6
    single = run(small_network(), x, [0], [0.5], generator=half, iterations=2)
    assert single.rewards.abs().max() > 1e-3


def test_clips() -> None:
    """Masks over time and space, smooth in both."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv3d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 3)
    )
    bells = SmoothMaskGenerator((6, 16, 16), step=(2, 4, 4), sigma=(2.0, 4.0, 4.0))
    clips = pictures(2, 3, 6, 16, 16)
    found = run(model, clips, [0, 2], [0.2, 0.6], generator=bells, iterations=60, area_on="crop")
    assert found.masks.shape == (2, 2, 1, 6, 16, 16)
    torch.testing.assert_close(found.masks.mean((0, 2, 3, 4, 5)), torch.tensor([0.2, 0.6]), atol=0.06, rtol=0)
    assert found.parameters.shape == (2, 2, 3, 4, 4)


def test_spectrograms() -> None:
    """One channel, frequency and time, steps of their own."""
    bells = SmoothMaskGenerator((20, 30), step=(4, 3), sigma=(4.0, 6.0))
    x = pictures(2, 1, 20, 30)
    found = run(
        small_network(channels=1), x, [0, 1], [0.3], generator=bells, jitter=False, iterations=60, area_on="crop"
    )
    assert found.masks.shape == (2, 1, 1, 20, 30)
    assert (found.masks.mean((1, 2, 3, 4)) - 0.3).abs().max() < 0.06


def test_mirror_at_every_other_iteration() -> None:
    seen: list[Tensor] = []

    class Watcher(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return x.mean((2, 3))

    x = pictures(1, 3, 16, 16)
    run(Watcher(), x, [0], [1.0], iterations=4, perturbation="fade", learning_rate=0.0)
    first, second, third, fourth = seen[-6:-2]  # before: pictures as they are; after: what is kept and left
    assert torch.equal(first, second.flip(-1))
    assert torch.equal(first, third)
    assert torch.equal(second, fourth)


def test_maps_of_scores_count_by_their_mean() -> None:
    torch.manual_seed(0)
    trunk = nn.Conv2d(3, 4, 3, padding=1)
    pooled = nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x, first = pictures(2, 3, 16, 16), start(2, 2, 4, 4)
    found, expected = (run(model, x, [0, 3], [0.1, 0.3], start=first) for model in (trunk, pooled))
    torch.testing.assert_close(found.masks, expected.masks, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.rewards, expected.rewards, atol=1e-5, rtol=0)


def test_lower_precision_is_asked_for() -> None:
    x, first = pictures(1, 3, 16, 16), start(1, 1, 4, 4)
    full = run(small_network(), x, [0], [0.3], start=first)
    half = run(small_network(), x, [0], [0.3], start=first, autocast=torch.bfloat16)
    assert half.masks.dtype == torch.float32
    assert not torch.equal(full.rewards, half.rewards)
    torch.testing.assert_close(full.masks, half.masks, atol=0.05, rtol=0)


def test_model_is_restored() -> None:
    model = small_network().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = [(m.training) for m in model.modules()], [p.requires_grad for p in model.parameters()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    run(model, pictures(1, 3, 16, 16), [0], [0.3])
    assert ([(m.training) for m in model.modules()], [p.requires_grad for p in model.parameters()]) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    with pytest.raises(RuntimeError):
        run(model, pictures(1, 5, 16, 16), [0], [0.3])
    assert ([(m.training) for m in model.modules()], [p.requires_grad for p in model.parameters()]) == before


def test_iterations_are_told_of() -> None:
    told: list[int] = []
    found = run(small_network(), pictures(1, 3, 16, 16), [0], [0.3], iterations=5, on_iteration=told.append)
    assert told == [0, 1, 2, 3, 4]
    assert found.rewards.shape == found.regularisers.shape == (1, 1, 5)


def test_defaults_are_the_release() -> None:
    config = ExtremalConfig()
    assert (config.iterations, config.area_weight, config.learning_rate, config.area_on) == (800, 300.0, 0.01, "canvas")
    x = pictures(1, 3, 28, 28)
    found = extremal_perturbation(small_network(), x, [0], [0.3], iterations=1)
    assert found.parameters.shape == (1, 1, 4, 4)
    own = extremal_perturbation(small_network(), x, [0], [0.3], iterations=1, perturbation=BlurPyramid(x))
    assert torch.equal(own.rewards, found.rewards)


@pytest.mark.parametrize("iterations", [1, 2, 3, 7, 30])
def test_the_papers_weight_doubles_after_each_third(iterations: int) -> None:
    """The mask does not move, so that the regulariser tells the weight."""
    options: dict[str, Any] = {"iterations": iterations, "learning_rate": 0.0, "area_schedule": "thirds"}
    found = run(small_network(), pictures(1, 3, 16, 16), [0], [0.3], **options)
    ratio = found.regularisers[0, 0] / found.regularisers[0, 0, 0]
    assert ratio.tolist() == pytest.approx([2 ** (3 * t // iterations) for t in range(iterations)])


@pytest.mark.gpu
def test_recorded_iterations_are_the_same() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model, x, first = small_network().cuda(), pictures(2, 3, 16, 16).cuda(), start(2, 2, 4, 4).cuda()
    plain, recorded = (
        run(model, x, [0, 1], [0.1, 0.4], start=first, iterations=15, cuda_graph=graph) for graph in (False, True)
    )
    torch.testing.assert_close(plain.masks, recorded.masks, atol=1e-4, rtol=0)
    torch.testing.assert_close(plain.rewards, recorded.rewards, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"targets": [0, 1, 2]}, ValueError, r"a target for each of 2 images, got \(3,\)"),
        ({"targets": [0, 9]}, ValueError, r"classes in \[0, 3\], got \[0, 9\]"),
        ({"areas": []}, ValueError, "at least one area"),
        ({"areas": [1.5]}, ValueError, r"shares in \[0, 1\], got \[1.5\]"),
        ({"variant": "keep"}, ValueError, "unknown variant 'keep'"),
        ({"reward": "log"}, ValueError, "unknown reward 'log'"),
        ({"area_schedule": "halves"}, ValueError, "unknown area_schedule 'halves'"),
        ({"area_on": "picture"}, ValueError, "unknown area_on 'picture'"),
        ({"perturbation": "noise"}, ValueError, "unknown perturbation 'noise'"),
        ({"iterations": 0}, ValueError, "at least 1, got 0"),
        ({"max_evaluations": 0}, ValueError, "max_evaluations must be at least 1, got 0"),
        ({"start": torch.ones(2, 1, 3, 3)}, ValueError, r"\(B, A, \*nodes\) = \(2, 1, 4, 4\), got \(2, 1, 3, 3\)"),
        ({"generator": SmoothMaskGenerator((12, 12), step=4, sigma=4.0)}, ValueError, "expected masks"),
        ({"cuda_graph": True}, ValueError, "needs images on a CUDA device, they are on cpu"),
        ({"learning": 1}, TypeError, "learning"),
        ({"model": nn.Flatten(0)}, ValueError, r"must return scores .* for N=1, got \(768,\)"),
    ],
    ids=lambda x: ",".join(x) if isinstance(x, dict) else "",
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"model": small_network(), "targets": [0, 1], "areas": [0.2], **options}
    model, targets, areas = (arguments.pop(key) for key in ("model", "targets", "areas"))
    with pytest.raises(error, match=message):
        run(model, pictures(2, 3, 16, 16), targets, areas, **arguments)
