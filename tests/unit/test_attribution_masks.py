"""Smooth masks: the lemma, closed forms, an independent reference for any number of axes, gradients, failures."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from avssl_core.attribution import SmoothMaskGenerator, axis_geometry, kernel_profile, smooth_max
from avssl_core.attribution import smooth_masks as module


def bell(distance: float, kernel: str) -> float:
    return (
        math.exp(-2 * max(0, distance - 0.5) ** 2)
        if kernel == "release"
        else math.exp(-(max(0, distance - 1) ** 2) / 4)
    )


def definition(
    p: Tensor, shape: tuple[int, ...], steps: list[int], sigmas: list[float], sharpness: float, kernel: str
) -> Tensor:
    """Pixel by pixel, tap by tap: the canvas of one mask."""
    nodes = p.shape
    reach = [1 + math.ceil(w / s) for s, w in zip(steps, sigmas, strict=True)]
    before = [1 + math.ceil(2 * w / s) for s, w in zip(steps, sigmas, strict=True)]
    sizes = [s * (n + 2 * a - 2 * r) - s + 1 for s, n, a, r in zip(steps, nodes, before, reach, strict=True)]
    out = torch.zeros(sizes, dtype=p.dtype)
    for pixel in itertools.product(*map(range, sizes)):
        values = []
        for tap in itertools.product(*(range(2 * r + 1) for r in reach)):
            node = [u // s - a + k for u, s, a, k in zip(pixel, steps, before, tap, strict=True)]
            if any(not 0 <= i < n for i, n in zip(node, nodes, strict=True)):
                values.append(torch.zeros((), dtype=p.dtype))
                continue
            units = sigmas if kernel == "release" else steps
            squares = [
                ((u - w - s * i) / z) ** 2 for u, w, s, i, z in zip(pixel, sigmas, steps, node, units, strict=True)
            ]
            values.append(p[tuple(node)] * bell(math.sqrt(sum(squares)), kernel))
        t = torch.stack(values)
        out[pixel] = t.max() if math.isinf(sharpness) else (t * torch.softmax(sharpness * t, 0)).sum()
    return out


CASES: list[tuple[tuple[int, ...], list[int], list[float]]] = [
    ((17,), [3], [6.0]),
    ((9, 7), [3, 2], [3.0, 4.0]),
    ((3, 5, 4), [1, 2, 2], [1.0, 2.0, 2.0]),
]


@pytest.mark.parametrize("kernel", ["release", "paper"])
@pytest.mark.parametrize("sharpness", [20.0, 90.0, math.inf])
@pytest.mark.parametrize(("shape", "steps", "sigmas"), CASES, ids=["1-D", "2-D", "3-D"])
def test_definition(
    shape: tuple[int, ...], steps: list[int], sigmas: list[float], sharpness: float, kernel: Any
) -> None:
    generator = SmoothMaskGenerator(shape, step=steps, sigma=sigmas, sharpness=sharpness, kernel=kernel).double()
    p = torch.rand(1, 1, *generator.parameter_shape, generator=torch.Generator().manual_seed(0)).double()
    found = generator(p)
    expected = definition(p[0, 0], shape, steps, sigmas, sharpness, kernel)
    assert found.crop.shape == (1, 1, *shape)
    torch.testing.assert_close(found.canvas[0, 0], expected, atol=1e-6, rtol=0)  # weights are kept in float32
    window = tuple(slice(round(w), round(w) + n) for w, n in zip(sigmas, shape, strict=True))
    assert torch.equal(found.crop[0, 0], found.canvas[0, 0][window])


@pytest.mark.parametrize("options", [{}, {"sharpness": 60.0}, {"sharpness": math.inf}, {"pooling": "sigmoid"}], ids=str)
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 3)], ids=str)
def test_gradients(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    generator = SmoothMaskGenerator(shape, step=2, sigma=2.0, **options).double()
    p = torch.rand(2, 1, *generator.parameter_shape, generator=torch.Generator().manual_seed(1)).double()
    p = (0.1 + 0.8 * p).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(generator(x)), p, eps=1e-6, atol=1e-6)


def test_usual_size() -> None:
    generator = SmoothMaskGenerator((224, 224))
    axis = generator.axes[0]
    assert (axis.nodes, axis.taps, axis.padding, axis.windows, axis.start) == (32, 9, 7, 38, 21)
    assert generator.canvas_shape == (260, 260)


def test_lemma() -> None:
    """``p <= m <= 1`` at the nodes: a one stays a one under the maximum, and is dampened by a convolution."""
    generator = SmoothMaskGenerator((32, 40), step=4, sigma=8.0, sharpness=math.inf)
    p = (torch.rand(3, 1, 8, 10, generator=torch.Generator().manual_seed(0)) > 0.9).float()
    masks, nodes = generator(p).crop, (..., slice(None, None, 4), slice(None, None, 4))
    assert (masks[nodes] >= p).all()
    assert masks.max() <= 1
    total = SmoothMaskGenerator((32, 40), step=4, sigma=8.0, pooling="sum", clamp=False)
    convolved = total(p).crop / total(torch.ones_like(p)).crop
    assert (masks[nodes][p == 1] == 1).all()
    assert (convolved[nodes][p == 1] < 0.7).any()


def test_as_smooth_as_the_kernel() -> None:
    """Neighbours differ by no more than the bell falls in a pixel, or is high where the window cuts it off."""
    generator = SmoothMaskGenerator((40, 40), step=4, sigma=8.0, sharpness=math.inf)
    p = torch.rand(4, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    masks = generator(p).canvas
    z = torch.linspace(0, 6, 6001)
    steepest = (kernel_profile(z, "release").diff() / z.diff()).abs().max().item() / 8
    cut = kernel_profile(torch.tensor(12 / 8), "release").item()  # the nearest node that the window may lose
    assert masks.diff(dim=-1).abs().max() <= max(steepest, cut) + 1e-5
    assert masks.diff(dim=-2).abs().max() <= max(steepest, cut) + 1e-5


def test_one_parameter_draws_the_kernel() -> None:
    generator = SmoothMaskGenerator((40, 40), step=4, sigma=8.0, sharpness=math.inf)
    p = torch.zeros(1, 1, 10, 10)
    p[0, 0, 5, 5] = 1
    rows = torch.arange(40)
    distance = ((rows[:, None] - 20).square() + (rows[None] - 20).square()).sqrt() / 8
    near = distance <= 1.5  # farther off the window cuts
    expected = kernel_profile(distance, "release")
    torch.testing.assert_close(generator(p).crop[0, 0][near], expected[near])


def test_moves_with_its_parameters() -> None:
    generator = SmoothMaskGenerator((40, 40), step=4, sigma=8.0)
    p = torch.zeros(2, 1, 10, 10)
    p[0, 0, 4, 4], p[1, 0, 5, 4] = 0.8, 0.8
    masks = generator(p).crop
    torch.testing.assert_close(masks[1, 0, 4:], masks[0, 0, :-4])


def test_all_ones() -> None:
    ones = torch.ones(1, 1, 32, 32)
    assert (SmoothMaskGenerator((224, 224), sharpness=math.inf)(ones).crop == 1).all()
    smooth = SmoothMaskGenerator((224, 224))(ones).crop
    assert 0.97 < smooth.min() < smooth.max() < 1


def test_smooth_in_time() -> None:
    """A clip's mask changes slowly from frame to frame as well, and slower for a wider bell."""
    p = torch.zeros(1, 1, 8, 4, 4)
    p[0, 0, 4] = 1
    jumps = []
    for sigma in (2.0, 6.0):
        generator = SmoothMaskGenerator((16, 8, 8), step=2, sigma=(sigma, 4.0, 4.0), sharpness=math.inf)
        clip = generator(p).crop[0, 0]
        assert clip.shape == (16, 8, 8)
        assert (clip[8] == 1).all()
        jumps.append(clip.diff(dim=0).abs().max().item())
    assert jumps[1] < jumps[0] < 0.5


def test_smooth_max() -> None:
    values = torch.rand(50, 7, generator=torch.Generator().manual_seed(0)).double()
    found = [smooth_max(values, s, 0) for s in (1e-9, 1.0, 20.0, 400.0, math.inf)]
    assert all((a <= b).all() for a, b in itertools.pairwise(found))
    torch.testing.assert_close(found[0], values.mean(0), atol=1e-8, rtol=0)
    assert torch.equal(found[-1], values.amax(0))
    leaf = values[:, 0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(smooth_max(leaf, 20.0, 0), leaf)
    share = torch.softmax(20 * leaf, 0)
    torch.testing.assert_close(gradient, (share * (1 + 20 * (leaf - found[2][0]))).detach())
    assert (gradient < 0).any()  # not monotone in each value


def test_no_copies_are_kept() -> None:
    """The definition keeps 81 numbers a pixel for the backward pass, several times; this keeps about four."""
    generator, kept = SmoothMaskGenerator((224, 224)), {}

    def note(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        generator(torch.ones(1, 1, 32, 32, requires_grad=True))
    assert sum(kept.values()) / 4 < 6 * 260 * 260


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = SmoothMaskGenerator((30, 24), step=3, sigma=6.0)
    p = torch.rand(2, 1, *generator.parameter_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    whole = generator(p).canvas
    (gradient,) = torch.autograd.grad(whole.square().sum(), p)
    monkeypatch.setattr(module, "CPU_CHUNK", 700)
    parts = generator(p).canvas
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(parts.square().sum(), p)[0], gradient, atol=1e-3, rtol=1e-5)


def test_half_precision_is_computed_in_float32() -> None:
    generator = SmoothMaskGenerator((20, 20), step=4, sigma=8.0)
    p = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(generator(p).crop, generator(p.float()).crop)


FUSED = """
import torch
from avssl_core.attribution import SmoothMaskGenerator
torch.manual_seed(0)
for shape, step, sigma in (((14, 7), 7, 21), ((10, 8), 3, 3)):
    found = []
    for backend in ("torch", "triton"):
        generator = SmoothMaskGenerator(shape, step=step, sigma=sigma, backend=backend)
        torch.manual_seed(1)
        p = torch.rand(2, 1, *generator.parameter_shape, requires_grad=True)
        canvas = generator(p).canvas
        found.append((canvas, torch.autograd.grad((canvas * torch.rand_like(canvas)).sum(), p)[0]))
    (a, ga), (b, gb) = found
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    torch.testing.assert_close(ga, gb, atol=5e-4, rtol=1e-3)
try:
    SmoothMaskGenerator((5, 5, 5), step=1, sigma=1, backend="triton")(torch.rand(1, 1, 5, 5, 5))
except ValueError as error:
    assert "use backend='torch'" in str(error)
    print("same")
"""


def test_fused_kernel() -> None:
    """Triton's interpreter runs the kernels of the GPU on this processor."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", FUSED], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "same", done.stderr


@pytest.mark.gpu
def test_fused_kernel_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    p = torch.rand(4, 1, 32, 32, device="cuda", requires_grad=True)
    found = [SmoothMaskGenerator((224, 224), backend=b).cuda()(p).canvas for b in ("torch", "triton")]  # type: ignore[arg-type]
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)
    cotangent = torch.rand_like(found[0])
    gradients = [torch.autograd.grad((x * cotangent).sum(), p)[0] for x in found]
    torch.testing.assert_close(gradients[0], gradients[1], atol=5e-2, rtol=1e-3)


@pytest.mark.parametrize(("size", "step", "sigma"), [(64, 4, 6.0), (70, 7, 10.0), (64, 10, 4.0)])
def test_canvas_too_small(size: int, step: int, sigma: float) -> None:
    with pytest.raises(ValueError, match=f"step={step}, sigma={sigma} .* make sigma a multiple of the step"):
        SmoothMaskGenerator((size, size), step=step, sigma=sigma)


@pytest.mark.parametrize(("step", "sigma"), [(1, 1), (4, 8), (7, 21), (7, 7), (3, 12)])
def test_multiples_of_the_step_fit(step: int, sigma: int) -> None:
    for size in range(1, 70):
        axis = axis_geometry(size, step, sigma)
        assert axis.start + size <= axis.canvas, size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0}, "step=0"),
        ({"sigma": 0.0}, "sigma=0.0"),
        ({"step": (7, 7, 7)}, r"step=\(7, 7, 7\) has 3 numbers for masks of 2 axes"),
        ({"pooling": "median"}, "unknown pooling 'median'"),
        ({"kernel": "box"}, "unknown kernel 'box'"),
        ({"sharpness": 0.0}, "sharpness must be positive, got 0.0"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SmoothMaskGenerator((28, 28), **options)


def test_bad_parameters() -> None:
    generator = SmoothMaskGenerator((28, 28))
    with pytest.raises(ValueError, match=r"expected float parameters \('N', 1, 4, 4\), got \(1, 1, 4, 5\)"):
        generator(torch.ones(1, 1, 4, 5))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got \[0, 1.5\]"):
        generator(torch.tensor([0, 1.5]).repeat(8).reshape(1, 1, 4, 4))
