"""GDT's Theorem 1, taken apart: which variance formula holds, for which estimator, at which price.

The theorem compares an estimate of ``L = E[l(x, x')]`` from a tree-sampled batch with a direct one. The main text and
the appendix print different formulas for the direct one (the appendix is right), both count the pairs of a batch as
independent (they are not, as ``K_V K_I`` samples form them all), and the direct estimate encodes ``2 K_V^2 K_I^2``
samples where the batch encodes ``K_V K_I``. :class:`StratifiedVariance` gives all formulas beside simulations of all
estimators; nothing of this was released.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Strata(Protocol):
    """A population cut into ``K_V`` equally likely strata (values of the distinctive factors), and a pair loss."""

    @property
    def num_strata(self) -> int:
        """``K_V``."""

    def sample(self, strata: Tensor, generator: torch.Generator) -> Tensor:
        """Independent samples of the given strata: int64 ``(...)`` to ``(..., d)``."""

    def pair_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Symmetric ``l(x, y)``: ``(..., d)`` and ``(..., d)``, broadcast, to ``(...)``."""

    def moments(self) -> PairMoments:
        """Means and variances of the pair loss by stratum: closed forms, or :func:`estimate_moments`."""


@dataclass(frozen=True)
class PairMoments:
    """What the formulas need, with ``g(x) = E_x'[l(x, x')]`` over the whole population.

    Attributes:
        mean: ``L_jj'``, shape ``(K_V, K_V)``: mean over independent ``x`` in ``j`` and ``x'`` in ``j'``.
        variance: ``sigma_jj'^2``, shape ``(K_V, K_V)``.
        within: variance of ``g`` inside each stratum, ``(K_V,)``.
    """

    mean: Tensor
    variance: Tensor
    within: Tensor

    @property
    def between(self) -> Tensor:
        """Variance of the stratum means of ``g``, a scalar; plus ``within.mean()`` it is the total variance."""
        return self.mean.mean(dim=1).var(correction=0)


@dataclass(frozen=True)
class GaussianStrata:
    """``x = mu_j + noise * eps`` with the inner product as pair loss; closed forms exist.

    Attributes:
        means: ``mu_j``, float64, shape ``(K_V, d)``.
        noise: standard deviation within a stratum.
    """

    means: Tensor
    noise: float = 0.5

    @classmethod
    def draw(cls, num_strata: int, dim: int, generator: torch.Generator, *, noise: float = 0.5) -> GaussianStrata:
        """Draw the means from a standard normal distribution."""
        return cls(torch.randn(num_strata, dim, generator=generator, dtype=torch.float64), noise)

    @property
    def num_strata(self) -> int:
        """``K_V``."""
        return len(self.means)

    def sample(self, strata: Tensor, generator: torch.Generator) -> Tensor:
        """Independent samples of the given strata."""
        centre = self.means[strata]
        return centre + self.noise * torch.randn(centre.shape, generator=generator, dtype=centre.dtype)

    def pair_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Inner product."""
        return (x * y).sum(dim=-1)

    def moments(self) -> PairMoments:
        """``<mu_j, mu_j'>``; ``s^2 (|mu_j|^2 + |mu_j'|^2) + d s^4``; ``s^2 |mean mu|^2``."""
        square = self.means.square().sum(dim=1)
        s2 = self.noise**2
        variance = s2 * (square[:, None] + square[None, :]) + self.means.shape[1] * s2**2
        within = (s2 * self.means.mean(dim=0).square().sum()).expand(self.num_strata)
        return PairMoments(self.means @ self.means.T, variance, within)


@dataclass(frozen=True)
class VarianceReport:
    """Formulas (first block) beside simulations (second block). Variances of an estimate of :attr:`true_mean`.

    Attributes:
        theorem_stratified: the theorem's formula for the tree-sampled batch, and
        simulated_stratified: ``K_I^2`` *independent* pairs in each of ``K_V^2`` strata, which it describes.
        appendix_direct: the appendix's formula for the direct estimate,
        main_text_direct: the main text's, and
        simulated_direct: ``K_V^2 K_I^2`` independent pairs of the whole population, which one of them describes.
        leading_order_gdt: ``4 / (K_V K_I) E_j V_within[g]``, the leading order of
        simulated_gdt: what the sampler really gives: all pairs of ``K_V K_I`` samples, ``T = T'`` dropped, strata
            weighted alike.
        leading_order_naive: ``4 / (K_V K_I) V_total[g]``, the leading order of
        simulated_naive: all pairs of as many independent samples.
        true_mean: ``L``.
        mean_gdt: mean of the simulated batches; agrees with ``L``.
        mean_with_trivial: the same with the pairs ``T = T'`` kept: biased.
        encoded_gdt: samples that a batch encodes (also the naive one).
        encoded_direct: samples that the direct estimate encodes.
        repeats: simulated estimates behind each variance; its relative standard error is about ``sqrt(2 / repeats)``.
    """

    theorem_stratified: float
    appendix_direct: float
    main_text_direct: float
    leading_order_gdt: float
    leading_order_naive: float
    simulated_stratified: float
    simulated_direct: float
    simulated_gdt: float
    simulated_naive: float
    true_mean: float
    mean_gdt: float
    mean_with_trivial: float
    encoded_gdt: int
    encoded_direct: int
    repeats: int


@dataclass(frozen=True)
class StratifiedVariance:
    """Formulas and simulations for one population and batch shape.

    Attributes:
        strata: the population and its pair loss.
        per_stratum: ``K_I``, samples a stratum; at least 2.
        chunk: repeats simulated at once; memory is about ``3 chunk (K_V K_I)^2 d`` numbers. The draws depend on it.

    Raises:
        ValueError: for fewer than two samples a stratum.
    """

    strata: Strata
    per_stratum: int
    chunk: int = 250

    def __post_init__(self) -> None:
        if self.per_stratum < 2:
            raise ValueError(
                f"per_stratum must be at least 2 (a stratum's own pairs need T != T'), got {self.per_stratum}"
            )

    def run(self, *, repeats: int, generator: torch.Generator) -> VarianceReport:
        """Evaluate the formulas, and simulate ``repeats`` estimates of each kind."""
        moments = self.strata.moments()
        k_v, k_i = self.strata.num_strata, self.per_stratum
        sizes = [min(self.chunk, repeats - start) for start in range(0, repeats, self.chunk)]
        gdt = torch.cat([self._gdt(size, generator) for size in sizes])  # (repeats, 2)
        stratified, direct, naive = (
            torch.cat([estimate(size, generator) for size in sizes]).var().item()
            for estimate in (self._stratified, self._direct, self._naive)
        )
        return VarianceReport(
            **formulas(moments, k_i),
            simulated_stratified=stratified,
            simulated_direct=direct,
            simulated_gdt=gdt[:, 0].var().item(),
            simulated_naive=naive,
            true_mean=moments.mean.mean().item(),
            mean_gdt=gdt[:, 0].mean().item(),
            mean_with_trivial=gdt[:, 1].mean().item(),
            encoded_gdt=k_v * k_i,
            encoded_direct=2 * (k_v * k_i) ** 2,
            repeats=repeats,
        )

    def _stratified(self, repeats: int, generator: torch.Generator) -> Tensor:
        """Estimates from ``K_I^2`` fresh pairs in every stratum of pairs, ``(repeats,)``."""
        k_v = self.strata.num_strata
        grid = torch.cartesian_prod(torch.arange(k_v), torch.arange(k_v))  # (K_V^2, 2)
        grid = grid.expand(repeats, self.per_stratum**2, k_v**2, 2)
        return self._fresh_pairs(grid[..., 0], grid[..., 1], generator)

    def _direct(self, repeats: int, generator: torch.Generator) -> Tensor:
        """Estimates from as many fresh pairs of the whole population, ``(repeats,)``."""
        k_v = self.strata.num_strata
        both = torch.randint(k_v, (2, repeats, (k_v * self.per_stratum) ** 2), generator=generator)
        return self._fresh_pairs(both[0], both[1], generator)

    def _fresh_pairs(self, first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
        x, y = self.strata.sample(first, generator), self.strata.sample(second, generator)
        return self.strata.pair_loss(x, y).flatten(1).mean(dim=1)

    def _gdt(self, repeats: int, generator: torch.Generator) -> Tensor:
        """Estimates from all pairs of one batch, without and with ``T = T'``: ``(repeats, 2)``."""
        k_v, k_i = self.strata.num_strata, self.per_stratum
        strata = torch.arange(k_v).repeat_interleave(k_i).expand(repeats, k_v * k_i)  # (R, B)
        losses = self._all_pairs(strata, generator)  # (R, B, B)
        trivial = losses.diagonal(dim1=1, dim2=2).sum(dim=1)
        total = losses.sum(dim=(1, 2))
        # Mean of the stratum means: the K_V own strata have K_I (K_I - 1) pairs, the others K_I^2.
        own = torch.eye(k_v, dtype=losses.dtype).repeat_interleave(k_i, 0).repeat_interleave(k_i, 1)  # (B, B)
        own_pairs = (losses * own).sum(dim=(1, 2)) - trivial
        others = total - trivial - own_pairs
        unbiased = (own_pairs / (k_i * (k_i - 1)) + others / k_i**2) / k_v**2
        return torch.stack([unbiased, total / (k_v * k_i) ** 2], dim=1)

    def _naive(self, repeats: int, generator: torch.Generator) -> Tensor:
        """Estimates from all pairs ``T != T'`` of independent samples, ``(repeats,)``."""
        size = self.strata.num_strata * self.per_stratum
        strata = torch.randint(self.strata.num_strata, (repeats, size), generator=generator)
        losses = self._all_pairs(strata, generator)
        off_diagonal = losses.sum(dim=(1, 2)) - losses.diagonal(dim1=1, dim2=2).sum(dim=1)
        return off_diagonal / (size * (size - 1))

    def _all_pairs(self, strata: Tensor, generator: torch.Generator) -> Tensor:
        x = self.strata.sample(strata, generator)  # (R, B, d)
        return self.strata.pair_loss(x[:, :, None], x[:, None, :])


def formulas(moments: PairMoments, per_stratum: int) -> dict[str, float]:
    """The five closed forms, by their names in :class:`VarianceReport`.

    Args:
        moments: of the pair loss.
        per_stratum: ``K_I``.
    """
    k_v, k_i = len(moments.mean), per_stratum
    noise = moments.variance.sum()
    spread = (moments.mean - moments.mean.mean()).square().sum()
    within = moments.within.mean()
    return {
        "theorem_stratified": float(noise / (k_v**4 * k_i**2)),
        "appendix_direct": float((noise + spread) / (k_v**4 * k_i**2)),
        "main_text_direct": float(noise / (k_v**2 * k_i**2) + spread / k_v**2),
        "leading_order_gdt": float(4 * within / (k_v * k_i)),
        "leading_order_naive": float(4 * (within + moments.between) / (k_v * k_i)),
    }


def estimate_moments(strata: Strata, *, samples: int, generator: torch.Generator) -> PairMoments:
    """Monte Carlo moments, for a pair loss without closed forms.

    Args:
        strata: the population.
        samples: independent pairs a stratum of pairs, and anchors a stratum for ``g``; standard errors fall with its
            root.
        generator: of all draws.
    """
    k_v = strata.num_strata
    grid = torch.arange(k_v).expand(samples, k_v, k_v)  # (S, K_V, K_V): second index
    x, y = strata.sample(grid.transpose(1, 2), generator), strata.sample(grid, generator)
    losses = strata.pair_loss(x, y)  # (S, K_V, K_V)
    # Two independent estimates of g(x) share x only, so that their covariance is the variance of g without the noise of
    # either.
    anchors = strata.sample(torch.arange(k_v).expand(samples, k_v), generator)[:, :, None]  # (S, K_V, 1, d)
    first, second = (
        strata.pair_loss(anchors, strata.sample(grid, generator)).mean(dim=2) for _ in range(2)
    )  # (S, K_V) each
    within = ((first - first.mean(dim=0)) * (second - second.mean(dim=0))).sum(dim=0) / (samples - 1)
    return PairMoments(losses.mean(dim=0), losses.var(dim=0), within)
