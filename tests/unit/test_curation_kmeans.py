"""K-means by mini-batches: a plain loop, closed forms, the rescue of centres, scikit-learn's beside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avssl_core.curation import (
    CentreState,
    SGDKMeans,
    assign_clusters,
    cluster_features,
    contingency_table,
    kmeans_rate,
    kmeans_step,
    normalised_mutual_information,
    reinitialised,
    sgd_kmeans,
    unit_variance,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(clips: int, clusters: int, dim: int = 6, *, spread: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor]:
    centres = 3 * torch.randn(clusters, dim, generator=generator(seed))
    labels = torch.randint(clusters, (clips,), generator=generator(seed + 1))
    return centres[labels] + spread * torch.randn(clips, dim, generator=generator(seed + 2)), labels


def state_of(centres: list[list[float]], counts: list[int], seen: int) -> CentreState:
    return CentreState(torch.tensor(centres), torch.tensor(counts), seen)


def agreement(found: Tensor, truth: Tensor) -> float:
    return normalised_mutual_information(contingency_table(found, truth)).item()


def test_the_parallel_step_in_closed_form() -> None:
    state = state_of([[0.0, 4.0], [2.0, 2.0], [9.0, 9.0]], [5, 5, 5], 15)
    batch = torch.tensor([[1.0, 1.0], [3.0, 3.0], [2.0, 0.0]])
    after = kmeans_step(state, batch, torch.tensor([0, 0, 1]), lr=0.1)
    assert after.centres.flatten().tolist() == pytest.approx([0.4, 3.6, 2.0, 1.8, 9.0, 9.0])
    assert after.counts.tolist() == [7, 6, 5] and after.seen == 18
    assert state.counts.tolist() == [5, 5, 5]  # the old value is untouched


def test_the_sequential_step_is_a_plain_loop() -> None:
    features, _ = blobs(30, 3)
    assignment = torch.randint(4, (30,), generator=generator())
    start = CentreState(torch.randn(4, 6, generator=generator(5)), torch.zeros(4, dtype=torch.int64))
    centres = start.centres.tolist()
    for sample, centre in zip(features.tolist(), assignment.tolist(), strict=True):
        centres[centre] = [0.9 * c + 0.1 * x for c, x in zip(centres[centre], sample, strict=True)]
    found = kmeans_step(start, features, assignment, lr=0.1, sequential=True)
    torch.testing.assert_close(found.centres, torch.tensor(centres), atol=1e-5, rtol=0)
    assert found.counts.tolist() == torch.bincount(assignment, minlength=4).tolist()
    single = kmeans_step(start, features[:1], assignment[:1], lr=0.1)
    torch.testing.assert_close(
        single.centres, kmeans_step(start, features[:1], assignment[:1], lr=0.1, sequential=True).centres
    )


def test_a_rate_that_would_overshoot_is_capped() -> None:
    state = state_of([[0.0], [8.0]], [0, 0], 0)
    batch = torch.full((20, 1), 4.0)
    assignment = torch.tensor([0] * 19 + [1])
    after = kmeans_step(state, batch, assignment, lr=0.1)
    assert after.centres.flatten().tolist() == pytest.approx([2.0, 8 - 4 * 0.5 / 19])  # half way, not beyond
    below = kmeans_step(state, batch[:9], assignment[:9], lr=0.1)
    assert below.centres[0].item() == pytest.approx(0.9 * 4)


def test_the_discount_draws_samples_to_dying_centres() -> None:
    samples = torch.tensor([[0.9], [1.5], [3.0]])
    state = state_of([[0.0], [2.0]], [3, 97], 100)  # (100 / 2)^0.7 = 15.5
    assert state.dying.tolist() == [True, False]
    assert assign_clusters(samples, state).tolist() == [0, 1, 1]
    assert assign_clusters(samples, state, rescue="discount").tolist() == [0, 1, 1]
    assert assign_clusters(torch.tensor([[1.3]]), state).tolist() == [1]
    assert assign_clusters(torch.tensor([[1.3]]), state, rescue="discount").tolist() == [0]  # 1.69 / 5 < 0.49
    alive = state_of([[0.0], [2.0]], [16, 84], 100)
    assert assign_clusters(torch.tensor([[1.3]]), alive, rescue="discount").tolist() == [1]


def test_assignment_equals_all_distances() -> None:
    features, _ = blobs(50, 4)
    state = CentreState(torch.randn(7, 6, generator=generator(3)), torch.zeros(7, dtype=torch.int64))
    assert torch.equal(assign_clusters(features, state), torch.cdist(features, state.centres).argmin(dim=1))
    assert assign_clusters(features[:0], state).shape == (0,)


def test_unused_centres_are_put_onto_samples() -> None:
    """The paper's rule: a share of the updates below (1/k)^2."""
    state = state_of([[0.0], [50.0], [60.0]], [88, 12, 0], 100)
    assert state.unused.tolist() == [False, False, True]  # 12 > 100 / 9
    assert state_of([[0.0], [50.0], [60.0]], [89, 11, 0], 100).unused.tolist() == [False, True, True]
    batch = torch.tensor([[1.0], [2.0]])
    after = reinitialised(state, batch, generator=generator())
    assert after.centres[:2].flatten().tolist() == [0.0, 50.0] and after.centres[2].item() in (1.0, 2.0)
    assert after.counts.tolist() == [88, 12, 34] and not after.unused.any()
    assert reinitialised(after, batch, generator=generator()) is after


def test_a_run_is_a_plain_loop() -> None:
    features, _ = blobs(70, 3)
    settings = SGDKMeans(3, epochs=6, batch=16, seed=2)
    found = sgd_kmeans(features, settings)
    draw = generator(2)
    centres, counts, seen = 1e-5 * torch.rand(3, 6, generator=draw), torch.zeros(3), 0
    for epoch in range(6):
        lr = 0.01 if epoch < 5 else 0.001
        for begin in range(0, 70, 16):
            batch = features[begin : begin + 16]
            if seen < 30:
                assigned = torch.randint(3, (len(batch),), generator=draw)
            else:
                distances = torch.cdist(batch.double(), centres.double()).square()
                distances[:, counts < (seen / 3) ** 0.7] /= 5
                assigned = distances.argmin(dim=1)
            weight = lr if lr * assigned.bincount().max() < 1 else 0.5 / assigned.bincount().max()
            for centre in range(3):
                own = batch[assigned == centre]
                centres[centre] = centres[centre] * (1 - len(own) * weight) + weight * own.sum(dim=0)
                counts[centre] += len(own)
            seen += len(batch)
    torch.testing.assert_close(found.centres, centres, atol=1e-5, rtol=0)
    assert found.counts.tolist() == counts.tolist() and found.seen == seen == 420


@pytest.mark.parametrize("settings", [{"rescue": "discount"}, {"rescue": "reinitialise"}, {"sequential": True}])
def test_blobs_are_found(settings: dict[str, object]) -> None:
    features, truth = blobs(900, 5)
    state = sgd_kmeans(features, SGDKMeans(5, epochs=12, decaying=False, **settings))
    labels = assign_clusters(features, state)
    assert labels.bincount(minlength=5).min() > 0
    assert agreement(labels, truth) > 0.75
    start = CentreState.near_zero(5, 6, generator=generator())
    assert (features - state.centres[labels]).square().sum() < 0.5 * (features - start.centres[0]).square().sum()


def test_without_a_rescue_centres_die() -> None:
    features, _ = blobs(900, 5)
    used = {
        rescue: len(assign_clusters(features, sgd_kmeans(features, SGDKMeans(12, rescue=rescue))).unique())
        for rescue in ("none", "discount")
    }
    assert used["none"] < used["discount"]


def test_a_run_is_a_function_of_its_seed_and_goes_on_from_a_state() -> None:
    features, _ = blobs(200, 3)
    first, again, other = (sgd_kmeans(features, SGDKMeans(3, epochs=2, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first.centres, again.centres) and not torch.equal(first.centres, other.centres)
    more = sgd_kmeans(features, SGDKMeans(3, epochs=1), start=first)
    assert more.seen == 600 and first.seen == 400


def test_rates() -> None:
    assert [kmeans_rate(epoch) for epoch in (0, 4, 5, 10)] == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4])


def test_unit_variance_scales_and_does_not_rotate() -> None:
    features = torch.tensor([[1.0, 10.0, 3.0], [3.0, 30.0, 3.0], [5.0, 10.0, 3.0]])
    found = unit_variance(features)
    assert found.std(dim=0, correction=0).tolist() == pytest.approx([1, 1, 0])
    ratio = found[:, :2] / features[:, :2]
    torch.testing.assert_close(ratio, ratio[:1].expand(3, 2))
    assert found[:, 2].tolist() == [3, 3, 3]


def test_scikit_learns_clusters() -> None:
    features, truth = blobs(600, 5)
    labels, centres = cluster_features(features, 5, seed=0, batch=200)
    assert agreement(labels, truth) > 0.95 and labels.dtype == torch.int64
    assert torch.equal(labels, torch.cdist(features, centres).argmin(dim=1))
    again, _ = cluster_features(features, 5, seed=0, batch=200)
    assert torch.equal(labels, again)


def test_what_is_wrong_is_named() -> None:
    features, _ = blobs(20, 2)
    with pytest.raises(ValueError, match="got 0, 20 and 64"):
        SGDKMeans(0)
    with pytest.raises(ValueError, match="unknown rescue 'pray'"):
        SGDKMeans(2, rescue="pray")
    with pytest.raises(ValueError, match=r"floats with n >= 1, got \(0, 6\)"):
        sgd_kmeans(features[:0], SGDKMeans(2))
    with pytest.raises(ValueError, match=r"start has centres \(3, 6\), expected \(2, 6\)"):
        sgd_kmeans(features, SGDKMeans(2), start=CentreState.near_zero(3, 6, generator=generator()))
    state = CentreState.near_zero(3, 6, generator=generator())
    with pytest.raises(ValueError, match=r"0 < lr < 1.* got 1\.0"):
        kmeans_step(state, features, torch.zeros(20, dtype=torch.int64), lr=1.0)
    with pytest.raises(ValueError, match=r"an assignment \(B,\), got 0\.1, \(20, 6\) and \(19,\)"):
        kmeans_step(state, features, torch.zeros(19, dtype=torch.int64), lr=0.1)
    with pytest.raises(ValueError, match=r"n >= 21 clusters >= 1, got \(20, 6\)"):
        cluster_features(features, 21)
