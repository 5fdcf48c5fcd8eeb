"""Theorem 1 of GDT: the formulas against simulation, with tolerances from the sampling error of a variance.

The variance of ``R`` independent, nearly normal numbers has a relative standard error of ``sqrt(2 / R)``; averages of a
few hundred pairs or samples are nearly normal. Five of them are allowed, so that a right formula fails about once in a
million.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from avssl_core.losses import GaussianStrata, PairMoments, StratifiedVariance, VarianceReport, estimate_moments

REPEATS = 3000
TOLERANCE = 5 * math.sqrt(2 / REPEATS)  # 0.13


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def strata() -> GaussianStrata:
    return GaussianStrata.draw(8, 4, generator(), noise=0.5)


@pytest.fixture(scope="module")
def report(strata: GaussianStrata) -> VarianceReport:
    return StratifiedVariance(strata, per_stratum=4).run(repeats=REPEATS, generator=generator(1))


def test_the_theorem_describes_independent_pairs(report: VarianceReport) -> None:
    assert report.simulated_stratified == pytest.approx(report.theorem_stratified, rel=TOLERANCE)


def test_the_appendix_formula_holds_for_the_direct_estimate(report: VarianceReport) -> None:
    assert report.simulated_direct == pytest.approx(report.appendix_direct, rel=TOLERANCE)


def test_the_main_text_formula_does_not(report: VarianceReport) -> None:
    """It is too large by K_V^2 = 64 in one term and by (K_V K_I)^2 = 1024 in the other."""
    assert 64 < report.main_text_direct / report.simulated_direct < 1024


def test_real_batches_are_far_from_independent_pairs(report: VarianceReport) -> None:
    """What the theorem promises is several times too small: a batch's pairs share its samples."""
    assert report.simulated_gdt > 3 * report.theorem_stratified
    # The next order of a U-statistic adds a share of about 1 / B; 32 samples leave at most a third.
    assert report.leading_order_gdt * (1 - TOLERANCE) < report.simulated_gdt < report.leading_order_gdt * 1.4


def test_at_equal_encoded_samples_the_tree_wins(report: VarianceReport) -> None:
    """The fair comparison; against the theorem's own rival (64 times the samples) it loses."""
    assert report.simulated_naive > 2 * report.simulated_gdt
    assert report.simulated_direct < report.simulated_gdt
    assert report.encoded_gdt == 32 and report.encoded_direct == 2048


def test_trivial_pairs_bias_the_estimate(strata: GaussianStrata, report: VarianceReport) -> None:
    """E|x|^2 exceeds <mu, mu> by d s^2 on the 1 / B share of pairs T = T'."""
    standard_error = math.sqrt(report.simulated_gdt / REPEATS)
    assert report.mean_gdt == pytest.approx(report.true_mean, abs=5 * standard_error)
    bias = strata.means.shape[1] * strata.noise**2 / 32
    assert report.mean_with_trivial == pytest.approx(report.true_mean + bias, abs=5 * standard_error)
    assert bias > 10 * standard_error


def test_leading_orders_become_exact_with_more_samples(strata: GaussianStrata) -> None:
    report = StratifiedVariance(strata, per_stratum=12, chunk=50).run(repeats=800, generator=generator(2))
    tolerance = 5 * math.sqrt(2 / 800)  # 0.25; the next order is about 0.03 and 0.12 with 96 samples
    assert report.simulated_gdt == pytest.approx(report.leading_order_gdt, rel=tolerance)
    assert report.simulated_naive == pytest.approx(report.leading_order_naive, rel=tolerance)


def test_the_advantage_grows_with_the_spread_between_strata() -> None:
    ratios = []
    for noise in (0.1, 0.5, 2.0):
        strata = GaussianStrata.draw(8, 4, generator(3), noise=noise)
        report = StratifiedVariance(strata, per_stratum=4).run(repeats=600, generator=generator(4))
        ratios.append(report.simulated_naive / report.simulated_gdt)
    assert ratios[0] > 20 and ratios[0] > 2 * ratios[1] and ratios[1] > ratios[2] > 0.8


def test_closed_form_moments_agree_with_sampling(strata: GaussianStrata) -> None:
    closed, sampled = strata.moments(), estimate_moments(strata, samples=6000, generator=generator(5))
    error = (closed.variance / 6000).sqrt()
    assert ((sampled.mean - closed.mean).abs() < 5 * error).all()
    # Products of Gaussians have heavier tails than normal numbers: kurtosis up to 9, so sqrt(8 / S) a standard error.
    assert ((sampled.variance / closed.variance - 1).abs() < 5 * math.sqrt(8 / 6000)).all()
    torch.testing.assert_close(sampled.within, closed.within, rtol=0.25, atol=0)


def test_variance_of_g_splits_into_within_and_between(strata: GaussianStrata) -> None:
    """g(x) = <x, mean mu>, sampled over the whole population."""
    moments = strata.moments()
    x = strata.sample(torch.randint(8, (40_000,), generator=generator(6)), generator(7))
    g = x @ strata.means.mean(dim=0)
    assert g.var().item() == pytest.approx((moments.within.mean() + moments.between).item(), rel=5 * math.sqrt(2 / 4e4))


class Distances:
    """A population without closed forms: squared distances of uniform samples on three intervals."""

    num_strata = 3

    def sample(self, strata: Tensor, generator: torch.Generator) -> Tensor:
        return (strata + torch.rand(strata.shape, generator=generator, dtype=torch.float64))[..., None]

    def pair_loss(self, x: Tensor, y: Tensor) -> Tensor:
        return (x - y).square().sum(dim=-1)

    def moments(self) -> PairMoments:
        return estimate_moments(self, samples=20_000, generator=generator(8))


def test_other_pair_losses() -> None:
    report = StratifiedVariance(Distances(), per_stratum=4).run(repeats=2000, generator=generator(9))
    tolerance = 5 * math.sqrt(2 / 2000)
    assert report.simulated_stratified == pytest.approx(report.theorem_stratified, rel=tolerance)
    assert report.simulated_direct == pytest.approx(report.appendix_direct, rel=tolerance)
    # Intervals [j, j + 1): E (x - y)^2 = (j - j')^2 + 1/6, whose mean over the nine strata is 4/3 + 1/6.
    assert report.true_mean == pytest.approx(1.5, abs=0.01)


def test_is_a_function_of_the_generator(strata: GaussianStrata) -> None:
    variance = StratifiedVariance(strata, per_stratum=3, chunk=7)
    first, again, other = (variance.run(repeats=20, generator=generator(seed)) for seed in (1, 1, 2))
    assert first == again and first != other and first.repeats == 20


def test_refuses_a_single_sample_a_stratum(strata: GaussianStrata) -> None:
    with pytest.raises(ValueError, match=r"at least 2 .* got 1"):
        StratifiedVariance(strata, per_stratum=1)
