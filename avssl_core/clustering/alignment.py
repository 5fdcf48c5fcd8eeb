"""Give both modalities' outputs the same order before the first clustering.

The output layers of two random networks number their clusters differently, and a label shared by both would start as a
compromise between unrelated numberings. SeLaVi (https://arxiv.org/abs/2006.13662, section 3.3, eq. 7) permutes the
audio outputs so that the softmaxes differ least in L1. Since softmax commutes with a permutation, the cost is a sum
over clusters of ``C_jk = sum_i |p_v(j | x_i) - p_a(k | x_i)|``: a linear assignment, solved exactly in ``O(K^3)``. The
paper and the release exchange random pairs instead (50 000 draws; 5 restarts in the text, 2 in the release, all from
the identity), which is here for comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from avssl_core.collectives import LOCAL, Collectives

Method = Literal["assignment", "greedy"]
Costs = npt.NDArray[np.floating[Any]]

COST_CHUNK = 2**22  # elements of a transposed copy


@dataclass(frozen=True)
class Alignment:
    """An order for the outputs of the other modality.

    Attributes:
        permutation: ``π``, int64 ``(K,)``: output ``j`` of the reference goes with output ``π(j)`` of the other.
        cost: ``sum_j C[j, π(j)]``.
        cost_before: ``sum_j C[j, j]``.
    """

    permutation: Tensor
    cost: float
    cost_before: float


def alignment_costs(p_reference: Tensor, p_other: Tensor, *, collectives: Collectives = LOCAL) -> Tensor:
    """``C_jk = sum_i |p_reference[i, j] - p_other[i, k]|``, over the rows of all processes.

    Args:
        p_reference: probabilities ``(N, K)``.
        p_other: of the other modality, ``(N, K)``.
        collectives: how to reach other processes.

    Returns:
        ``(K, K)`` float64. ``O(N K^2)`` additions, without a temporary of that size.

    Raises:
        ValueError: for shapes that differ, or values that are not finite.
    """
    if p_reference.ndim != 2 or p_reference.shape != p_other.shape:
        raise ValueError(f"expected two tables (N, K), got {tuple(p_reference.shape)} and {tuple(p_other.shape)}")
    rows, clusters = p_reference.shape
    costs = torch.zeros(clusters, clusters, dtype=torch.float64, device=p_reference.device)
    step = max(1, COST_CHUNK // max(clusters, 1))
    for first in range(0, rows, step):
        a, b = (table[first : first + step].detach().double().T.contiguous() for table in (p_reference, p_other))
        costs += torch.cdist(a, b, p=1.0)
    costs = collectives.sum(costs)
    if not bool(costs.isfinite().all()):
        raise ValueError("the probabilities of some rows are NaN or infinite: look at the networks' outputs")
    return costs


def align_modalities(
    costs: Tensor,
    *,
    method: Method = "assignment",
    steps: int = 50_000,
    restarts: int = 5,
    patience: int = 1000,
    generator: torch.Generator | None = None,
) -> Alignment:
    """Find the permutation of the other modality's outputs that costs least (eq. 7).

    Args:
        costs: of :func:`alignment_costs`, ``(K, K)``.
        method: ``"assignment"``, exact; or ``"greedy"``: exchange random pairs where that lowers the cost.
        steps: greedy: pairs drawn in each restart.
        restarts: greedy: how often to begin at the identity; the best is kept.
        patience: greedy: end a restart after more than this many draws without an exchange. (The release does not
            reset its counter between restarts.)
        generator: greedy: what pairs are drawn with; needed there.

    Returns:
        The permutation, and its cost beside that of the identity.

    Raises:
        ValueError: for costs that are not a finite square table, an unknown method, counts below 1, or a greedy search
            without a generator.
    """
    if costs.ndim != 2 or costs.shape[0] != costs.shape[1] or not bool(costs.isfinite().all()):
        raise ValueError(f"costs must be a finite table (K, K), got {tuple(costs.shape)}; see alignment_costs")
    table: Costs = costs.detach().double().cpu().numpy()
    if method == "assignment":
        order = linear_sum_assignment(table)[1]
    elif method == "greedy":
        if generator is None:
            raise ValueError("the greedy search draws pairs: pass a generator")
        if min(steps, restarts, patience) < 1:
            raise ValueError(f"steps, restarts and patience must be at least 1, got {steps}, {restarts}, {patience}")
        found = [_exchange_pairs(table, steps, patience, generator) for _ in range(restarts)]
        order = min(found, key=lambda candidate: _total(table, candidate))
    else:
        raise ValueError(f"unknown method {method!r}; use 'assignment' or 'greedy'")
    permutation = torch.from_numpy(order).to(costs.device, torch.int64)
    return Alignment(permutation, _total(table, order), float(np.trace(table)))


@torch.no_grad()
def permute_outputs_(layer: nn.Linear, permutation: Tensor) -> None:
    """Reorder the outputs of a linear layer in place: new row ``j`` of weight and bias is the old row ``π(j)``.

    Optimiser states of the layer, if there are any, are not touched: align before the first step, as the paper does.

    Raises:
        ValueError: unless ``permutation`` is one of the layer's outputs.
    """
    expected = torch.arange(layer.out_features, device=permutation.device)
    if permutation.shape != expected.shape or not torch.equal(permutation.sort().values, expected):
        raise ValueError(f"expected a permutation of 0..{layer.out_features - 1}, got {permutation.tolist()}")
    order = permutation.to(layer.weight.device)
    layer.weight.copy_(layer.weight[order])
    if layer.bias is not None:
        layer.bias.copy_(layer.bias[order])


def _exchange_pairs(table: Costs, steps: int, patience: int, generator: torch.Generator) -> npt.NDArray[np.int64]:
    """One greedy search from the identity; each trial costs four look-ups."""
    order = np.arange(len(table))
    idle = 0
    for j, k in _pairs(len(table), steps, generator):
        a, b = order[j], order[k]
        if table[j, b] + table[k, a] < table[j, a] + table[k, b]:
            order[j], order[k], idle = b, a, 0
        else:
            idle += 1
        if idle > patience:
            break
    return order


def _pairs(clusters: int, steps: int, generator: torch.Generator) -> Iterator[tuple[int, int]]:
    """``steps`` random pairs of different clusters (none where there is a single one)."""
    if clusters < 2:
        return
    first = torch.randint(clusters, (steps,), generator=generator, device=generator.device)
    offset = torch.randint(1, clusters, (steps,), generator=generator, device=generator.device)
    yield from zip(first.tolist(), ((first + offset) % clusters).tolist(), strict=True)


def _total(table: Costs, order: npt.NDArray[np.int64]) -> float:
    return float(table[np.arange(len(table)), order].sum())
