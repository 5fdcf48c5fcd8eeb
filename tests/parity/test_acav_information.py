"""Contingency tables, mutual information, scores and pairings against numbers of the authors' code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from avssl_core.curation import (
    PairwiseInformation,
    entropy,
    layer_weights,
    mutual_information,
    normalised_mutual_information,
    pair_weights,
    pairing,
)

DENSE = 2e-6  # their float32
MEMORY = 1e-5
EXACT = 2e-14  # float64 by a direct summation
INFORMATION = ("bip_n600_d6_c32", "comb_n1000_d8_c16", "diag_n300_d4_c8", "relabelled_copy", "small_subsets_5")
SCORED = ("bip_n800", "comb_n500", "from_empty")
WEIGHTS = ("exp_-1", "exp_0.5", "exp_1", "exp_10", "linear_-1", "linear_-10", "linear_1", "linear_10", "log_1")


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=tolerance, rtol=0)


def loaded(fixtures_dir: Path, name: str) -> tuple[dict[str, Tensor], PairwiseInformation]:
    stored = load_file(fixtures_dir / "acav" / f"{name}.safetensors")
    clusters = stored["C"].tolist() * stored["assignments"].shape[1]
    return stored, PairwiseInformation(stored["assignments"], stored["pairs"], clusters=clusters)


def test_every_fixture_is_listed(fixtures_dir: Path) -> None:
    found = {path.stem for pattern in ("mi_*", "score_*") for path in (fixtures_dir / "acav").glob(pattern)}
    listed = {f"mi_{name}" for name in (*INFORMATION, "small_subsets_1")} | {f"score_{name}" for name in SCORED}
    assert found == listed | {"score_weighted_linear10"}


@pytest.mark.parametrize("name", INFORMATION)
def test_information_of_a_subset(fixtures_dir: Path, name: str) -> None:
    stored, objective = loaded(fixtures_dir, f"mi_{name}")
    running = objective.running(stored["subset"])
    tables = torch.stack([running.tables.table(pair) for pair in range(len(stored["pairs"]))])
    assert torch.equal(tables, stored["table"].round().long())  # theirs start at 2.2e-16 instead of 0
    assert torch.equal(tables.sum(dim=2), stored["row_count"].round().long())
    assert torch.equal(tables.sum(dim=1), stored["col_count"].round().long())
    assert running.size == len(stored["subset"])
    for found in (mutual_information(tables), running.pair_values()):
        assert_near(found, stored["mi_exact"], EXACT)
        assert_near(found, stored["mi"], DENSE)
    assert running.value == pytest.approx(stored["mi_exact"].mean().item(), abs=EXACT)
    assert running.value == pytest.approx(stored["mi_mean"].item(), abs=DENSE)
    assert_near(entropy(tables.sum(dim=2)), stored["entropy_row"], DENSE)
    assert_near(entropy(tables.sum(dim=1)), stored["entropy_col"], DENSE)


@pytest.mark.parametrize("name", INFORMATION)
def test_their_normalised_information_is_twice_the_usual(fixtures_dir: Path, name: str) -> None:
    stored, _ = loaded(fixtures_dir, f"mi_{name}")
    tables = stored["table"].round()
    for mean, key in (("arithmetic", "nmi_ref"), ("max", "nmi_ref_max"), ("min", "nmi_ref_min")):
        assert_near(2 * normalised_mutual_information(tables, mean=mean), stored[key], 4 * DENSE)


def test_a_single_clip_has_no_information(fixtures_dir: Path) -> None:
    """Their ratio of rounding errors gives 1.54 for it, which is not imitated."""
    stored, objective = loaded(fixtures_dir, "mi_small_subsets_1")
    assert torch.equal(objective.pair_values(stored["subset"]), stored["mi_exact"])
    assert objective(stored["subset"]) == 0
    assert normalised_mutual_information(stored["table"].round()).tolist() == [0] * 6


@pytest.mark.parametrize("name", SCORED)
def test_scores_of_candidates(fixtures_dir: Path, name: str) -> None:
    stored, objective = loaded(fixtures_dir, f"score_{name}")
    by_pair = []
    for pair in stored["pairs"]:
        alone = PairwiseInformation(stored["assignments"], pair[None])
        by_pair.append(alone.running(stored["subset"]).scores(stored["candidates"]))
    found = torch.stack(by_pair, dim=1)  # (W, P)
    assert_near(found, stored["score_exact"], 1e-12)  # steps lie on a grid of 2^-40
    assert_near(found, stored["score_dense"], DENSE)
    assert_near(found, stored["score_memory"], MEMORY)
    together = objective.running(stored["subset"]).scores(stored["candidates"])
    assert_near(together, stored["score_exact"].mean(dim=1), 1e-12)


def test_weighted_scores(fixtures_dir: Path) -> None:
    stored, _ = loaded(fixtures_dir, "score_weighted_linear10")
    objective = PairwiseInformation(stored["assignments"], stored["pairs"], weights=stored["pair_weights"])
    found = objective.running(stored["subset"]).scores(stored["candidates"])
    assert_near(found, stored["objective"], MEMORY)
    assert_near(found, stored["weighted_score"].double().mean(dim=1), MEMORY)
    unweighted = PairwiseInformation(stored["assignments"], stored["pairs"]).running(stored["subset"])
    assert (unweighted.scores(stored["candidates"]) - found).abs().max() > 0.01  # otherwise weights would not matter


@pytest.mark.parametrize("layers", [2, 3, 5])
def test_pairings(fixtures_dir: Path, layers: int) -> None:
    stored = load_file(fixtures_dir / "acav" / "pairings.safetensors")
    both = (layers, layers)
    for scheme in ("diagonal", "bipartite", "combination"):
        assert torch.equal(pairing(scheme, both), stored[f"L{layers}.{scheme}"])
    for depth in range(layers):
        assert torch.equal(pairing("diagonal", both, depth=depth), stored[f"L{layers}.single_{depth}"])


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(fixtures_dir: Path, name: str) -> None:
    stored = load_file(fixtures_dir / "acav" / "pairings.safetensors")
    growth, slope = name.split("_")
    found = layer_weights(growth, float(slope), 5)
    torch.testing.assert_close(found, stored[f"L5.layer_weights.{name}"], rtol=1e-12, atol=0)
    for scheme in ("bipartite", "combination"):
        pairs = stored[f"L5.{scheme}"]
        expected = stored[f"L5.{scheme}.weights.{name}"]
        torch.testing.assert_close(pair_weights(found.repeat(2), pairs), expected, rtol=1e-12, atol=0)


def test_every_weight_is_listed(fixtures_dir: Path) -> None:
    stored = load_file(fixtures_dir / "acav" / "pairings.safetensors")
    assert {key.split("layer_weights.")[1] for key in stored if "layer_weights" in key} == set(WEIGHTS)
