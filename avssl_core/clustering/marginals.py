"""How large clusters shall be, and which cluster gets which size.

SeLaVi (https://arxiv.org/abs/2006.13662, section 3.2) fixes the *sizes* of clusters and leaves open which cluster gets
which: the cost of a permutation ``R`` is ``-sum_y q(y) [R log r]_y`` (eq. 4) with the current masses ``q``, and the
rearrangement inequality says that the largest size goes to the most populated cluster. The release means to do so and
does something else, in three ways, which :func:`arrange_sizes` has side by side:

=====================  ====================================================================================
reading                marginal
=====================  ====================================================================================
``paper``              sizes in the order of the masses; share proportional to size
``sorted_reciprocal``  sizes in the order of the masses; share proportional to *1 / size*: the fullest
                       cluster gets the smallest share (what the release would do if its sort worked)
``released``           the j-th size *as drawn* goes to the cluster of the j-th smallest mass (its sort
                       acts on an axis of length one); share proportional to 1 / size; the next call
                       permutes the permuted sizes again
=====================  ====================================================================================

With the paper's Gaussian sizes (standard deviation a tenth of the mean) the three differ little. With Zipf sizes,
which motivate the section and which the release lists but turns into uniform ones, they differ much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from avssl_core.collectives import LOCAL, Collectives

Reading = Literal["paper", "sorted_reciprocal", "released"]

SMALLEST = 0.01  # of the mean size: below it a Gaussian draw would ask for an empty or negative cluster
MASS_CHUNK = 2**22  # elements of a temporary


class Arrangement(NamedTuple):
    """Sizes handed out to clusters.

    Attributes:
        marginal: share of each cluster, float64 ``(K,)``, sum 1: for :func:`~avssl_core.clustering.sinkhorn`.
        sizes: size of each cluster in this reading, ``(K,)``. The released code hands *these* to its next call; the
            other readings give the same answer for any order of the sizes.
    """

    marginal: Tensor
    sizes: Tensor


def uniform_sizes(clusters: int) -> Tensor:
    """Equal sizes (SeLa): float64 ``(K,)`` of mean 1.

    Raises:
        ValueError: for fewer than one cluster.
    """
    if clusters < 1:
        raise ValueError(f"need at least 1 cluster, got {clusters}")
    return torch.ones(clusters, dtype=torch.float64)


def gaussian_sizes(clusters: int, *, std: float = 0.1, generator: torch.Generator) -> Tensor:
    """Sizes drawn from a normal distribution of mean 1, in draw order (section 4.1; drawn once a run, anew a head).

    Args:
        clusters: ``K``.
        std: standard deviation in units of the mean size.
        generator: the sizes are a function of its state; draws happen where it lives.

    Returns:
        Float64 ``(K,)`` on the CPU, none below :data:`SMALLEST`.

    Raises:
        ValueError: for fewer than one cluster or a negative ``std``.
    """
    if std < 0:
        raise ValueError(f"std must not be negative, got {std}; 0 makes uniform sizes")
    draw = torch.randn(clusters, generator=generator, device=generator.device, dtype=torch.float64).cpu()
    return (uniform_sizes(clusters) + std * draw).clamp(min=SMALLEST)


def zipf_sizes(clusters: int, *, exponent: float = 1.0) -> Tensor:
    """Sizes proportional to ``rank^-exponent``, largest first: float64 ``(K,)`` of mean 1.

    Semantic classes are said to be so distributed with an exponent near 1; 0 makes uniform sizes.

    Raises:
        ValueError: for fewer than one cluster or an exponent that is negative or infinite.
    """
    if not 0 <= exponent < float("inf"):
        raise ValueError(f"exponent must be finite and not negative, got {exponent}; Zipf's law has 1")
    ranks = uniform_sizes(clusters).cumsum(0)
    sizes = ranks**-exponent
    return sizes / sizes.mean()


def arrange_sizes(sizes: Tensor, mass: Tensor, *, reading: Reading = "paper") -> Arrangement:
    """Hand out sizes to clusters by their current mass (eq. 4), in one of three readings (see the module).

    Args:
        sizes: positive numbers in any unit, ``(K,)``. Their order matters for ``"released"`` alone.
        mass: how populated each cluster is, ``(K,)``: :func:`cluster_mass`. Equal masses count in index order.
        reading: ``"paper"``, or a released procedure for ablations.

    Returns:
        The marginal and the arranged sizes, float64 on the device of ``mass``.

    Raises:
        ValueError: for shapes that differ, sizes that are not positive, masses that are NaN, or an unknown reading.
    """
    if sizes.ndim != 1 or sizes.shape != mass.shape:
        raise ValueError(f"expected sizes (K,) and masses (K,), got {tuple(sizes.shape)} and {tuple(mass.shape)}")
    sizes, mass = sizes.detach().to(mass.device, torch.float64), mass.detach().double()
    if not bool((sizes > 0).all()) or not bool(sizes.isfinite().all()):
        raise ValueError(f"sizes must be positive and finite, got {float(sizes.min())} to {float(sizes.max())}")
    if bool(mass.isnan().any()):
        raise ValueError(f"the mass of {int(mass.isnan().sum())} clusters is NaN: look at the network's outputs")
    if reading not in ("paper", "sorted_reciprocal", "released"):
        raise ValueError(f"unknown reading {reading!r}; use 'paper', 'sorted_reciprocal' or 'released'")
    ascending = mass.argsort(stable=True)
    arranged = torch.empty_like(sizes)
    arranged[ascending] = sizes if reading == "released" else sizes.sort().values
    shares = arranged if reading == "paper" else 1 / arranged
    return Arrangement(shares / shares.sum(), arranged)


def cluster_mass(log_probs: Sequence[Tensor], *, collectives: Collectives = LOCAL) -> Tensor:
    """``q(y) = sum_i prod_m p_m(y | x_i)``: how populated the networks find each cluster (before any power).

    Args:
        log_probs: log-probabilities of each modality, ``(N, K)`` each, rows of this process.
        collectives: how to reach other processes.

    Returns:
        Float64 ``(K,)``, over all processes.

    Raises:
        ValueError: without tables, or for shapes that differ.
    """
    if not log_probs or any(table.ndim != 2 or table.shape != log_probs[0].shape for table in log_probs):
        raise ValueError(f"expected tables (N, K) of one shape, got {[tuple(table.shape) for table in log_probs]}")
    rows, clusters = log_probs[0].shape
    total = torch.zeros(clusters, dtype=torch.float64, device=log_probs[0].device)
    step = max(1, MASS_CHUNK // clusters)
    for first in range(0, rows, step):
        joint = torch.stack([table[first : first + step].detach().double() for table in log_probs]).sum(dim=0)
        total += joint.exp().sum(dim=0)
    return collectives.sum(total)


def effective_number(shares: Tensor) -> float:
    """Exponential of the entropy of shares that sum to 1: ``K`` for uniform ones, 1 when a single one is left."""
    return float(torch.special.entr(shares.double()).sum().exp())


def check_marginal(marginal: Tensor, clusters: int) -> Tensor:
    """The marginal in float64, summing to 1 to the last bit or so.

    Raises:
        ValueError: unless it has one positive share a cluster and they sum to 1.
    """
    if marginal.shape != (clusters,):
        raise ValueError(f"marginal must hold one share for each of {clusters} clusters, got {tuple(marginal.shape)}")
    r = marginal.detach().double()
    if not bool((r > 0).all()) or not bool(r.isfinite().all()):
        raise ValueError(f"every cluster needs a positive share, got {float(r.min()):g}: leave it out or raise it")
    total = float(r.sum())
    if abs(total - 1) > 1e-4:
        raise ValueError(f"marginal must sum to 1, got {total:g}: divide sizes by their sum")
    return r / total
