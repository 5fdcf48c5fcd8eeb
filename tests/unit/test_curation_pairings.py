"""Pairing schemes and weights: counts, set identities, more than two modalities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avssl_core.curation import layer_weights, pair_weights, pairing


def as_set(pairs: Tensor) -> set[tuple[int, int]]:
    assert len({tuple(pair) for pair in pairs.tolist()}) == len(pairs)
    return {tuple(pair) for pair in pairs.tolist()}


def test_the_papers_counts() -> None:
    both = (5, 5)
    counts = [len(pairing(scheme, both)) for scheme in ("diagonal", "bipartite", "intra", "combination")]
    assert counts == [5, 25, 20, 45]
    bipartite, intra = as_set(pairing("bipartite", both)), as_set(pairing("intra", both))
    assert bipartite | intra == as_set(pairing("combination", both)) and not bipartite & intra
    assert as_set(pairing("diagonal", both)) == {(i, i + 5) for i in range(5)} < bipartite
    assert pairing("diagonal", both, depth=4).tolist() == [[4, 9]]


def test_modalities_of_unequal_depth_and_three_modalities() -> None:
    assert as_set(pairing("bipartite", (2, 1))) == {(0, 2), (1, 2)}
    assert as_set(pairing("intra", (2, 1))) == {(0, 1)}
    assert as_set(pairing("diagonal", (2, 2, 2))) == {(0, 2), (0, 4), (2, 4), (1, 3), (1, 5), (3, 5)}
    assert len(pairing("bipartite", (2, 3, 4))) == 2 * 3 + 2 * 4 + 3 * 4


def test_weights_rise_and_fall() -> None:
    rising = layer_weights("linear", 2, 5)
    assert rising.tolist() == pytest.approx([2 / 6, 4 / 6, 1, 8 / 6, 10 / 6])
    assert torch.equal(layer_weights("linear", -2, 5), rising.flip(0))
    assert torch.equal(layer_weights("linear", 0, 4), torch.ones(4, dtype=torch.float64))
    growth = layer_weights("exp", 1, 5)
    assert (growth[1:] / growth[:-1]).tolist() == pytest.approx([torch.e] * 4)
    assert layer_weights("exp", 500, 3).isfinite().all()  # the largest is exp(500)
    for kind in ("linear", "log", "exp"):
        assert layer_weights(kind, 3, 5)[2] == 1
        assert layer_weights(kind, 3, 1).tolist() == [1]


def test_a_pair_weighs_the_product_of_its_layers() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0, 5.0])
    assert pair_weights(weights, pairing("bipartite", (2, 2))).tolist() == [3, 5, 6, 10]


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="unknown pairing scheme 'cross'"):
        pairing("cross", (2, 2))
    with pytest.raises(ValueError, match=r"equal depths, but the modalities have \(2, 3\)"):
        pairing("diagonal", (2, 3))
    with pytest.raises(ValueError, match="at least one layer"):
        pairing("bipartite", (2, 0))
    with pytest.raises(ValueError, match="leaves no pair"):
        pairing("intra", (1, 1))
    with pytest.raises(ValueError, match="leaves no pair"):
        pairing("bipartite", (3,))
    with pytest.raises(ValueError, match="depth 2 selects a layer of the diagonal, 0 to 1"):
        pairing("diagonal", (2, 2), depth=2)
    with pytest.raises(ValueError, match="scheme is 'bipartite'"):
        pairing("bipartite", (2, 2), depth=0)
    with pytest.raises(ValueError, match="unknown growth 'cubic'"):
        layer_weights("cubic", 1, 3)
    with pytest.raises(ValueError, match="at least one layer"):
        layer_weights("exp", 1, 0)
    with pytest.raises(ValueError, match="columns up to 3"):
        pair_weights(torch.ones(2), pairing("bipartite", (2, 2)))
