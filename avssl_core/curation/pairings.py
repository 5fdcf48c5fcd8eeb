"""Which clusterings are compared with which, and how much each comparison counts.

ACAV100M (https://arxiv.org/abs/2101.10803, section on pairing schemes) has five layers of each of two modalities and
three schemes: equal depths of both (*diagonal*, 5 pairs), all cross-modal pairs (*bipartite*, 25), and all pairs, those
within a modality included (*combination*, 45, the one it uses). Twenty of the 45 say nothing about sight and sound
together; ``"intra"`` is them alone, the control that shows what they measure.

Columns are numbered modality by modality, layers of rising depth. Any number of modalities is allowed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Scheme = Literal["diagonal", "bipartite", "combination", "intra"]
SCHEMES = ("diagonal", "bipartite", "combination", "intra")
Growth = Literal["linear", "log", "exp"]
GROWTHS = ("linear", "log", "exp")

_LEAST = 2.0  # the release's smallest raw layer weight: keeps log and ratios away from 0


def pairing(scheme: Scheme, layers: Sequence[int], *, depth: int | None = None) -> Tensor:
    """Pairs of columns to compare.

    Args:
        scheme: ``"diagonal"`` (equal depths of different modalities), ``"bipartite"`` (all pairs across modalities),
            ``"intra"`` (all pairs within one), or ``"combination"`` (both).
        layers: number of layers of each modality, e.g. ``(5, 5)``.
        depth: keep the diagonal pairs of this layer alone (the paper's "Layer1 .. Layer5", from 0).

    Returns:
        int64 ``(P, 2)``, the smaller column first, in lexicographic order. For ``(5, 5)``: 5, 25, 20 or 45 pairs.

    Raises:
        ValueError: for an unknown scheme, a modality without layers, modalities of unequal depth on the diagonal, a
            depth that is none or given to another scheme, or a choice without any pair.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"unknown pairing scheme {scheme!r}; use one of {SCHEMES}")
    if not layers or min(layers) < 1:
        raise ValueError(f"every modality needs at least one layer, got {tuple(layers)}")
    if scheme == "diagonal" and len(set(layers)) > 1:
        raise ValueError(f"the diagonal pairs equal depths, but the modalities have {tuple(layers)} layers")
    if depth is not None and (scheme != "diagonal" or not 0 <= depth < layers[0]):
        raise ValueError(f"depth {depth} selects a layer of the diagonal, 0 to {layers[0] - 1}; scheme is {scheme!r}")
    places = [(modality, layer) for modality, count in enumerate(layers) for layer in range(count)]
    columns = range(len(places))
    kept = [
        (i, j) for i, j in itertools.combinations(columns, 2) if _belongs(scheme, places[i], places[j], depth=depth)
    ]
    if not kept:
        raise ValueError(f"scheme {scheme!r} leaves no pair for modalities of {tuple(layers)} layers")
    return torch.tensor(kept, dtype=torch.int64)


def layer_weights(growth: Growth, slope: float, layers: int) -> Tensor:
    """Weights that rise (or fall) with depth, 1 at the median layer; as released.

    Raw depths are ``2, 2 + |slope|, 2 + 2|slope|, ...``, in falling order for a negative slope; ``growth`` is applied
    to them (identity, logarithm, exponential), and the result divided by its median. The paper's Table 4.5 prints these
    weights under other names: its "linear(0.25)" is slope 1 here, "linear(0.50)" slope 10.

    Args:
        growth: ``"linear"``, ``"log"`` or ``"exp"``.
        slope: difference of neighbouring raw depths.
        layers: number of layers, at least 1.

    Returns:
        float64 ``(layers,)``.

    Raises:
        ValueError: for an unknown growth or no layer.
    """
    if layers < 1:
        raise ValueError(f"need at least one layer, got {layers}")
    depths = slope * torch.arange(layers, dtype=torch.float64)
    depths = depths - depths.min() + _LEAST
    if growth == "linear":
        grown = depths
    elif growth == "log":
        grown = depths.log()
    elif growth == "exp":
        grown = (depths - depths.quantile(0.5)).exp()  # a constant factor, which the median removes: no overflow
    else:
        raise ValueError(f"unknown growth {growth!r}; use one of {GROWTHS}")
    return grown / grown.quantile(0.5)


def pair_weights(weights: Tensor, pairs: Tensor) -> Tensor:
    """Weight of each pair: the product of the weights of its two columns, as released.

    Args:
        weights: of the columns, ``(D,)``; repeat :func:`layer_weights` once a modality.
        pairs: int64 ``(P, 2)``.

    Returns:
        ``(P,)``, of the dtype of ``weights``.

    Raises:
        ValueError: if a pair names a column without a weight.
    """
    if weights.ndim != 1 or int(pairs.max()) >= len(weights):
        raise ValueError(
            f"pairs name columns up to {int(pairs.max())}, weights have shape {tuple(weights.shape)}; repeat the "
            "layers' weights for each modality"
        )
    return weights[pairs[:, 0]] * weights[pairs[:, 1]]


def _belongs(scheme: Scheme, a: tuple[int, int], b: tuple[int, int], *, depth: int | None) -> bool:
    """Whether two different columns, each ``(modality, layer)``, are a pair of the scheme."""
    if scheme == "combination":
        return True
    if scheme == "intra":
        return a[0] == b[0]
    across = a[0] != b[0]
    return across if scheme == "bipartite" else across and a[1] == b[1] and depth in (None, a[1])
