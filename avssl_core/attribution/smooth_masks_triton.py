# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator, no-untyped-def"
# ruff: noqa: N803  (compile-time constants are written large)
"""The smooth maximum of :class:`SmoothMaskGenerator` as two GPU kernels; imported only where Triton is installed.

A program holds all phases of a few cells and walks over the taps, so that nothing but masks is written. Backward, a
program holds a few nodes and walks over the cells that saw them: sums are in a fixed order, no atomics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from avssl_core.attribution.mask_geometry import AxisGeometry

BLOCK = 32  # cells or nodes a program


@triton.jit
def _forward(
    p, weights, pooled, totals, cells, n1, n2, w1, w2, k1: tl.constexpr, k2: tl.constexpr, pad1, pad2, sharpness,
    phases: tl.constexpr, PHASES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    phase = tl.arange(0, PHASES)
    mask, y, x = cell // (w1 * w2), (cell // w2) % w1, cell % w2
    total = tl.zeros((BLOCK, PHASES), tl.float32)
    weighted = tl.zeros((BLOCK, PHASES), tl.float32)
    for tap in range(k1 * k2):
        i, j = y + tap // k2 - pad1, x + tap % k2 - pad2
        inside = (cell < cells) & (i >= 0) & (i < n1) & (j >= 0) & (j < n2)
        value = tl.load(p + mask * n1 * n2 + i * n2 + j, mask=inside, other=0.0)
        g = tl.load(weights + tap * phases + phase, mask=phase < phases, other=0.0)
        t = value[:, None] * g[None, :]
        e = tl.exp(t * sharpness)
        total += e
        weighted += t * e
    place = phase[None, :] * cells + cell[:, None]
    valid = (cell < cells)[:, None] & (phase < phases)[None, :]
    tl.store(pooled + place, weighted / total, mask=valid)
    tl.store(totals + place, total, mask=valid)


@triton.jit
def _backward(
    p, weights, constant, linear, out, cells, nodes, n1, n2, w1, w2, k1: tl.constexpr, k2: tl.constexpr, pad1, pad2,
    sharpness, phases: tl.constexpr, PHASES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    node = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    phase = tl.arange(0, PHASES)
    mask, i, j = node // (n1 * n2), (node // n2) % n1, node % n2
    value = tl.load(p + node, mask=node < nodes, other=0.0)
    slope = tl.zeros((BLOCK, PHASES), tl.float32)
    for tap in range(k1 * k2):
        y, x = i - tap // k2 + pad1, j - tap % k2 + pad2
        inside = (node < nodes) & (y >= 0) & (y < w1) & (x >= 0) & (x < w2)
        place = phase[None, :] * cells + (mask * w1 * w2 + y * w2 + x)[:, None]
        valid = inside[:, None] & (phase < phases)[None, :]
        c = tl.load(constant + place, mask=valid, other=0.0)
        r = tl.load(linear + place, mask=valid, other=0.0)
        g = tl.load(weights + tap * phases + phase, mask=phase < phases, other=0.0)
        t = value[:, None] * g[None, :]
        slope += g[None, :] * tl.exp(t * sharpness) * (c + r * t)
    tl.store(out + node, tl.sum(slope, axis=1), mask=node < nodes)


class _FusedSmoothMax(torch.autograd.Function):
    """As ``_SmoothMaxPooling`` without unfolding first."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, weights: Tensor, axes: Sequence[AxisGeometry], sharpness: float) -> Tensor:
        """``(N, *nodes)`` to ``(phases, N, *windows)``."""
        p, weights = p.contiguous(), weights.contiguous()
        phases = weights.shape[1]
        pooled = p.new_empty(phases, len(p), *(axis.windows for axis in axes))
        totals = torch.empty_like(pooled)
        cells = pooled[0].numel()
        _forward[(triton.cdiv(cells, BLOCK),)](
            p, weights, pooled, totals, cells, *_sizes(axes), sharpness, phases, triton.next_power_of_2(phases), BLOCK
        )
        ctx.save_for_backward(p, weights, pooled, totals)
        ctx.axes, ctx.sharpness = axes, sharpness
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Computes ``t`` and ``e`` again."""
        p, weights, pooled, totals = ctx.saved_tensors
        # grad dm/dt = e (constant + linear t)
        linear = grad / totals * ctx.sharpness
        constant = grad / totals - linear * pooled
        out, phases, cells = torch.empty_like(p), weights.shape[1], pooled[0].numel()
        _backward[(triton.cdiv(p.numel(), BLOCK),)](
            p, weights, constant, linear, out, cells, p.numel(), *_sizes(ctx.axes), ctx.sharpness, phases,
            triton.next_power_of_2(phases), BLOCK,
        )  # fmt: skip
        return out, None, None, None


def fused_smooth_max(p: Tensor, weights: Tensor, axes: Sequence[AxisGeometry], sharpness: float) -> Tensor:
    """Smooth maximum over taps.

    Args:
        p: parameters ``(N, n_1, n_2)``, float32.
        weights: of each tap at each phase, ``(K_1 K_2, phases)``.
        axes: geometry of both axes.
        sharpness: ``1/T``, at most 40.

    Returns:
        ``(phases, N, windows_1, windows_2)``.

    Raises:
        ValueError: for another type, number of axes or sharpness: use ``backend="torch"``.
    """
    if len(axes) != 2 or p.dtype != torch.float32 or sharpness > 40:
        raise ValueError(
            f"the fused kernel takes float32 masks of 2 axes with sharpness up to 40, got {p.dtype}, {len(axes)} axes, "
            f"{sharpness}: use backend='torch'"
        )
    return _FusedSmoothMax.apply(p, weights, axes, sharpness)


def _sizes(axes: Sequence[AxisGeometry]) -> tuple[int, ...]:
    first, second = axes
    nodes, windows = (first.nodes, second.nodes), (first.windows, second.windows)
    return (*nodes, *windows, first.taps, second.taps, first.padding, second.padding)
