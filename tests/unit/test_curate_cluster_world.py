"""The world of features: a function of its seed, what each knob does, and what it shares between modalities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from data_prep.curate.cluster_world import ClusterWorld, DrawnWorld


def between_over_all(features: Tensor, classes: Tensor) -> float:
    """Share of the variance that lies between classes."""
    means = torch.stack([features[classes == k].mean(0) for k in classes.unique()])
    inside = torch.stack([features[classes == k].var(0) for k in classes.unique()]).mean(0)
    return float((means.var(0) / (means.var(0) + inside)).mean())


def canonical(a: Tensor, b: Tensor) -> float:
    """Largest canonical correlation of two sets of features."""
    qa, qb = (torch.linalg.qr(x - x.mean(0)).Q for x in (a, b))
    return float(torch.linalg.svdvals(qa.T @ qb)[0])


def test_a_world_is_a_function_of_its_seed() -> None:
    world = ClusterWorld(clips=50)
    first, again, other = world.draw(3), world.draw(3), world.draw(4)
    assert torch.equal(first.classes, again.classes) and not torch.equal(first.classes, other.classes)
    assert all(torch.equal(a, b) for a, b in zip(first.features, again.features, strict=True))
    assert len(first.features) == 10 and first.layers == (5, 5) and first.features[0].shape == (50, 24)


def test_deeper_layers_say_more_of_the_class() -> None:
    drawn = ClusterWorld(clips=2000, classes=8).draw(0)
    for layers in (drawn.features[:5], drawn.features[5:]):
        shares = [between_over_all(x, drawn.classes) for x in layers]
        assert shares == sorted(shares) and shares[0] < 0.1 < 0.4 < shares[-1]


def related(drawn: DrawnWorld, one: int, other: int) -> float:
    return canonical(drawn.features[one], drawn.features[other])


def test_layers_of_a_modality_share_its_nuisance_and_modalities_only_the_class() -> None:
    nothing = ClusterWorld(clips=4000, gains=(0.0, 0.0)).draw(0)  # columns: two of sight, two of sound
    assert related(nothing, 0, 1) > 0.6 and related(nothing, 2, 3) > 0.6
    assert related(nothing, 0, 2) < 0.2
    own = ClusterWorld(clips=4000, gains=(0.0, 0.0), own=1.0).draw(0)
    assert related(own, 0, 2) > 0.4
    classes = ClusterWorld(clips=4000, gains=(1.0, 1.0)).draw(0)
    assert related(classes, 0, 2) > 0.6


def test_classes_are_as_frequent_as_asked() -> None:
    world = ClusterWorld(clips=20_000, classes=4, zipf=1.0)
    seen = torch.bincount(world.draw(0).classes, minlength=4) / 20_000
    torch.testing.assert_close(world.shares(), torch.tensor([12, 6, 4, 3], dtype=torch.float64) / 25)
    assert (seen - world.shares()).abs().max() < 0.02


@pytest.mark.parametrize(
    "changes", [{"clips": 0}, {"classes": 0}, {"gains": ()}, {"noise": -1.0}, {"zipf": -0.1}, {"nuisance_dim": 0}]
)
def test_worlds_that_cannot_be_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"at least|not negative"):
        ClusterWorld(**changes)
