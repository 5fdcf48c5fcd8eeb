"""Smooth masks by max-convolution of a few parameters (section 3.2 and appendix A.1 of the paper).

A mask is drawn by parameters on a coarse grid: each spreads a bell of height ``p`` around its node, and a pixel takes
the (smooth) maximum of the bells that reach it (eqs. 6 and 7). Hence the mask is as smooth as the bell and yet reaches
1, which a convolution does not. Fong, Patrick & Vedaldi, ICCV 2019, https://arxiv.org/abs/1910.08485.

The definition unfolds ``K`` taps an axis over every pixel: 81 copies of a picture at the usual size, several times over
once gradients are recorded. Here pixels are grouped by their *phase*, the position within a cell of the grid: pixels of
one phase see the same taps with the same weights, so that one phase is a column-wise reduction of a small matrix, done
within the cache; the backward pass computes it again instead of keeping it. On a GPU one kernel does the same
(:mod:`avssl_core.attribution.smooth_masks_triton`).

Generators work on any number of axes: pictures, spectrograms, and clips, whose masks are then smooth in time too.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from avssl_core.attribution.mask_geometry import AxisGeometry, Kernel, axis_geometry, kernel_profile

Pooling = Literal["smoothmax", "sum", "sigmoid"]

SIGMOID_OFFSET, SIGMOID_THRESHOLD = 3.0, 5.0  # the release's, which do not match: its hard sigmoid switches elsewhere
CPU_CHUNK = 1 << 17  # numbers worked on at a time: half a megabyte stays in the second-level cache
SAFE_SHARPNESS = 40.0  # exp(40) times some hundred taps is far from overflow in float32: nothing to subtract first


class SmoothMasks(NamedTuple):
    """Masks ``(N, 1, *shape)`` and the canvas ``(N, 1, *canvas)`` they were cut from, which has a margin around."""

    crop: Tensor
    canvas: Tensor


def smooth_max(values: Tensor, sharpness: float, dim: int) -> Tensor:
    """Softmax-weighted mean ``sum f e^(f/T) / sum e^(f/T)`` (eq. 7); ``sharpness`` is ``1/T``, infinite for the max."""
    if math.isinf(sharpness):
        return values.amax(dim)
    return (values * torch.softmax(sharpness * values, dim)).sum(dim)


class SmoothMaskGenerator(nn.Module):
    """Parameters on a coarse grid to smooth masks, differentiable.

    Args:
        shape: of a mask: ``(H, W)``, ``(F, T)``, ``(T, H, W)``, ...
        step: pixels between nodes; one number, or one an axis.
        sigma: width of the bell in pixels; one number, or one an axis. Distances are scaled axis by axis. Best a
            multiple of the step.
        pooling: ``"smoothmax"`` (eq. 7), ``"sum"``, or ``"sigmoid"`` of the sum.
        sharpness: ``1/T`` of eq. 7, or the slope of the sigmoid; ``math.inf`` for the maximum, or for a step.
        kernel: profile of the bell, see :func:`kernel_profile`.
        clamp: cut the masks to [0, 1]; only a sum leaves that range.
        backend: ``"auto"`` takes the fused kernel for the smooth maximum on a GPU where Triton is installed.

    Raises:
        ValueError: if numbers of axes differ, an option is unknown, or as :func:`axis_geometry` does.
    """

    weights: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        *,
        step: int | Sequence[int] = 7,
        sigma: float | Sequence[float] = 21.0,
        pooling: Pooling = "smoothmax",
        sharpness: float = 20.0,
        kernel: Kernel = "release",
        clamp: bool = True,
        backend: Literal["auto", "torch", "triton"] = "auto",
    ) -> None:
        super().__init__()
        if pooling not in ("smoothmax", "sum", "sigmoid"):
            raise ValueError(f"unknown pooling {pooling!r}; use 'smoothmax', 'sum' or 'sigmoid'")
        if not sharpness > 0:
            raise ValueError(f"sharpness must be positive, got {sharpness}: it is 1/T, 20 in the paper")
        steps, sigmas = _each_axis(step, len(shape), "step"), _each_axis(sigma, len(shape), "sigma")
        self.axes = [axis_geometry(n, int(s), float(w)) for n, s, w in zip(shape, steps, sigmas, strict=True)]
        self.pooling, self.sharpness, self.clamp, self.backend = pooling, sharpness, clamp, backend
        self.register_buffer("weights", _tap_weights(self.axes, kernel).float(), persistent=False)

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        """Nodes of each axis."""
        return tuple(axis.nodes for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels of a mask along each axis."""
        return tuple(axis.size for axis in self.axes)

    @property
    def canvas_shape(self) -> tuple[int, ...]:
        """Pixels of the canvas along each axis."""
        return tuple(axis.canvas for axis in self.axes)

    def forward(self, parameters: Tensor) -> SmoothMasks:
        """Draw masks.

        Args:
            parameters: ``(N, 1, *parameter_shape)`` in [0, 1]. Half precision is computed in float32.

        Raises:
            ValueError: for another shape, and, on a CPU, for values outside [0, 1] (on a GPU the check would wait).
        """
        self._check(parameters)
        p = parameters.float() if parameters.dtype in (torch.float16, torch.bfloat16) else parameters
        pixels = self._pool(p[:, 0])  # (phases, N, *windows)
        canvas = self._interleave(pixels)[:, None]
        if self.clamp:
            canvas = canvas.clamp(0, 1)
        return SmoothMasks(self.crop(canvas), canvas)

    def crop(self, canvas: Tensor) -> Tensor:
        """The part of ``(..., *canvas_shape)`` that lies on the picture, a view ``(..., *shape)``."""
        for dim, axis in enumerate(self.axes, -len(self.axes)):
            canvas = canvas.narrow(dim, axis.start, axis.size)
        return canvas

    def _pool(self, p: Tensor) -> Tensor:
        """``(N, *nodes)`` to the pixels of all phases, ``(phases, N, *windows)``."""
        weights = self.weights.to(p.dtype)
        windows = tuple(axis.windows for axis in self.axes)
        if self.pooling == "smoothmax" and not math.isinf(self.sharpness) and self._fused(p):
            from avssl_core.attribution.smooth_masks_triton import fused_smooth_max

            return fused_smooth_max(p, weights, self.axes, self.sharpness)
        taps = self._unfold(p)  # (K^d, N * windows)
        if self.pooling == "smoothmax":
            hard = math.isinf(self.sharpness)
            pool, extra = (_HardMaxPooling, ()) if hard else (_SmoothMaxPooling, (self.sharpness,))
            pooled = pool.apply(taps, weights, *extra)
        else:
            pooled = weights.T @ taps  # sums over taps are one product
            if self.pooling == "sigmoid" and math.isinf(self.sharpness):
                pooled = (pooled > SIGMOID_THRESHOLD).to(p.dtype)  # without a gradient
            elif self.pooling == "sigmoid":
                pooled = torch.sigmoid(self.sharpness * pooled - SIGMOID_OFFSET)
        return pooled.reshape(-1, len(p), *windows)

    def _fused(self, p: Tensor) -> bool:
        if self.backend == "triton":
            return True
        fits = p.is_cuda and p.dtype == torch.float32 and self.sharpness <= SAFE_SHARPNESS and len(self.axes) == 2
        return self.backend == "auto" and fits and importlib.util.find_spec("triton") is not None

    def _unfold(self, p: Tensor) -> Tensor:
        """What each cell's taps see: ``(N, *nodes)`` to ``(K^d, N * windows)``, zeros beyond the grid."""
        padding = [pad for axis in reversed(self.axes) for pad in (axis.padding, axis.padding)]
        p = F.pad(p, padding)
        for i, axis in enumerate(self.axes):
            p = p.unfold(1 + i, axis.taps, 1)  # (N, *windows, *taps)
        d = len(self.axes)
        p = p.permute(*range(1 + d, 1 + 2 * d), *range(1 + d))
        return p.reshape(math.prod(axis.taps for axis in self.axes), -1)

    def _interleave(self, pixels: Tensor) -> Tensor:
        """``(phases, N, *windows)`` to ``(N, *canvas)``: phase and cell of each axis become neighbours."""
        d = len(self.axes)
        pixels = pixels.reshape(*(axis.step for axis in self.axes), *pixels.shape[1:])  # (*steps, N, *windows)
        order = [axis for i in range(d) for axis in (d + 1 + i, i)]
        pixels = pixels.permute(d, *order)  # (N, windows_1, step_1, windows_2, step_2, ...)
        pixels = pixels.reshape(len(pixels), *(axis.windows * axis.step for axis in self.axes))
        for dim, axis in enumerate(self.axes, 1):
            pixels = pixels.narrow(dim, 0, axis.canvas)
        return pixels

    def _check(self, parameters: Tensor) -> None:
        expected = ("N", 1, *self.parameter_shape)
        if parameters.shape[1:] != expected[1:] or not parameters.is_floating_point():
            raise ValueError(f"expected float parameters {expected}, got {tuple(parameters.shape)} {parameters.dtype}")
        if parameters.device.type == "cpu" and parameters.numel():
            low, high = (x.item() for x in parameters.detach().aminmax())
            if not (low >= 0 and high <= 1):
                raise ValueError(
                    f"parameters must lie in [0, 1], got [{low:.3g}, {high:.3g}]: clamp them after each step"
                )


class _SmoothMaxPooling(torch.autograd.Function):
    """Smooth maximum over taps of ``t = p g``: ``(K^d, M)`` and ``(K^d, phases)`` to ``(phases, M)``.

    With ``e = exp(t / T)``: ``m = sum(t e) / sum(e)`` and ``dm/dt = e (1 + (t - m) / T) / sum(e)``. Work is done in
    place in two small buffers, as fresh memory costs more than the arithmetic.
    """

    @staticmethod
    def forward(ctx: Any, taps: Tensor, weights: Tensor, sharpness: float) -> Tensor:
        """``sharpness`` is finite. Keeps ``sum(e)``, or its logarithm where ``e`` alone might overflow."""
        pooled, totals = (taps.new_empty(weights.shape[1], taps.shape[1]) for _ in range(2))
        safe = sharpness <= SAFE_SHARPNESS
        for phase, columns, t, e in _scaled_scores(taps, weights, sharpness):
            largest = None if safe else t.amax(0)
            torch.exp(t if largest is None else t - largest, out=e)
            total = torch.sum(e, 0, out=totals[phase, columns])
            torch.sum(t.mul_(e), 0, out=pooled[phase, columns]).div_(total).div_(sharpness)
            if largest is not None:
                total.log_().add_(largest)
        ctx.save_for_backward(taps, weights, pooled, totals)
        ctx.sharpness = sharpness
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Computes ``t`` and ``e`` again."""
        taps, weights, pooled, totals = ctx.saved_tensors
        out, safe = torch.zeros_like(taps), ctx.sharpness <= SAFE_SHARPNESS
        linear = grad / totals if safe else grad  # of the slope in t / T, and what stands before it
        constant = linear * (1 - ctx.sharpness * pooled)
        for phase, columns, t, e in _scaled_scores(taps, weights, ctx.sharpness):
            torch.exp(t if safe else t - totals[phase, columns], out=e)
            torch.addcmul(constant[phase, columns], t, linear[phase, columns], out=t).mul_(e)  # grad * dm/dt
            out[:, columns].addcmul_(t, weights[:, phase, None])
        return out, None, None


class _HardMaxPooling(torch.autograd.Function):
    """Maximum over taps, whose gradient goes to the (first) largest; shapes as :class:`_SmoothMaxPooling`."""

    @staticmethod
    def forward(ctx: Any, taps: Tensor, weights: Tensor) -> Tensor:
        """Keeps which tap was largest."""
        pooled = taps.new_empty(weights.shape[1], taps.shape[1])
        largest = torch.empty_like(pooled, dtype=torch.int64)
        for phase, columns, t, _ in _scaled_scores(taps, weights, 1.0):
            torch.max(t, 0, out=(pooled[phase, columns], largest[phase, columns]))
        ctx.save_for_backward(weights, largest)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Scatters phase by phase."""
        weights, largest = ctx.saved_tensors
        out = grad.new_zeros(len(weights), grad.shape[1])
        for phase, tap in enumerate(largest):
            out.scatter_add_(0, tap[None], (grad[phase] * weights[tap, phase])[None])
        return out, None


def _scaled_scores(taps: Tensor, weights: Tensor, sharpness: float) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
    """For each phase and block of columns: both, ``sharpness p g`` of shape ``(K^d, block)``, and as large a buffer."""
    rows, columns = taps.shape
    width = columns if taps.is_cuda else max(1, min(columns, CPU_CHUNK // rows))
    first, second = taps.new_empty(rows, width), taps.new_empty(rows, width)
    for start in range(0, columns, width):
        block = slice(start, min(start + width, columns))
        p = taps[:, block] * sharpness
        t, spare = first[:, : p.shape[1]], second[:, : p.shape[1]]
        for phase in range(weights.shape[1]):
            torch.mul(p, weights[:, phase, None], out=t)
            yield phase, block, t, spare


def _tap_weights(axes: Sequence[AxisGeometry], kernel: Kernel) -> Tensor:
    """Height of the bell that each tap has at each phase, float64 ``(K^d, phases)``."""
    squared: Tensor = torch.zeros(1, 1, dtype=torch.float64)
    for axis in axes:
        phase = torch.arange(axis.step, dtype=torch.float64)
        node = axis.sigma + axis.step * (torch.arange(axis.taps, dtype=torch.float64) - axis.padding)
        unit = axis.sigma if kernel == "release" else axis.step
        own = ((phase[None] - node[:, None]) / unit).square()  # (K, step)
        squared = squared[:, None, :, None] + own[None, :, None, :]
        squared = squared.flatten(2).flatten(0, 1)  # (K^i, step^i)
    return kernel_profile(squared.sqrt(), kernel)


def _each_axis(value: float | Sequence[float], axes: int, name: str) -> tuple[float, ...]:
    values = (value,) * axes if isinstance(value, int | float) else tuple(value)
    if len(values) != axes:
        raise ValueError(f"{name}={value} has {len(values)} numbers for masks of {axes} axes: give one, or one an axis")
    return values
