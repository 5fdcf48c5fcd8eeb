"""K-means, contrastive heads, ranking and negatives against numbers of the authors' code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from avssl_core.curation import (
    CentreState,
    CorrespondenceHeads,
    CorrespondenceSet,
    HeadTraining,
    assign_clusters,
    capped_rate,
    class_level_set,
    epoch_rate_factor,
    kmeans_rate,
    kmeans_step,
    rank_scores,
    sample_level_set,
    top_share,
    train_heads,
)
from avssl_core.curation.kmeans import RANDOM_SAMPLES

CENTRES = 5e-6
NCE = 2e-6
TRAINED = 1e-5
KINDS = ("weight", "bias")


@pytest.fixture
def folder(fixtures_dir: Path) -> Path:
    return fixtures_dir / "acav"


def test_every_fixture_is_listed(folder: Path) -> None:
    patterns = ("kmeans_*", "sgd_*", "nce_*", "rank_*", "negatives_*")
    assert sum(len(list(folder.glob(pattern))) for pattern in patterns) == 3 + 2 + 3 + 1 + 2


# K-means


@pytest.mark.parametrize("name", ["parallel", "sequential", "fallback"])
def test_a_step_of_kmeans(folder: Path, name: str) -> None:
    stored = load_file(folder / f"kmeans_step_{name}.safetensors")
    assert stored["reinit"].tolist() == [0.7, 5.0]
    state = CentreState(stored["centres_before"], stored["counts_before"], int(stored["count_before"]))
    assignment = assign_clusters(stored["batch"], state, rescue="discount")
    assert torch.equal(assignment, stored["assignment"])
    assert torch.equal(assign_clusters(stored["batch"], state), stored["nearest_without_discount"])
    assert not torch.equal(assignment, stored["nearest_without_discount"])  # the discount is at work
    lr, sequential = stored["lr"].item(), bool(stored["sequential"].item())
    after = kmeans_step(state, stored["batch"], assignment, lr=lr, sequential=sequential)
    torch.testing.assert_close(after.centres, stored["centres_after"], atol=CENTRES, rtol=0)
    assert torch.equal(after.counts, stored["counts_after"])
    assert after.seen == state.seen + len(assignment)
    if not sequential:
        assert (capped_rate(torch.bincount(assignment), lr) != lr) == bool(stored["fallback"].item())


@pytest.mark.parametrize("name", ["n600_k8", "n500_k12_overclustered"])
def test_a_run_of_kmeans(folder: Path, name: str) -> None:
    """Batch by batch, with the random assignments of the beginning taken from the file."""
    stored = load_file(folder / f"sgd_kmeans_{name}.safetensors")
    _, _, clusters, _, size = stored["params"].tolist()
    state = CentreState(stored["centres_init"], torch.zeros(clusters, dtype=torch.int64))
    batches = torch.split(stored["features"], size)
    compared = 0
    for number, recorded in enumerate(stored["batch_assignments"]):
        epoch, batch = number // len(batches), batches[number % len(batches)]
        assert kmeans_rate(epoch) == pytest.approx(stored["lr_per_epoch"][epoch].item(), rel=1e-12)
        recorded = recorded[recorded >= 0]
        if state.seen >= RANDOM_SAMPLES * clusters:
            assert torch.equal(assign_clusters(batch, state, rescue="discount"), recorded)
            compared += len(batch)
        state = kmeans_step(state, batch, recorded, lr=kmeans_rate(epoch))
        if number < len(stored["centres_after_first_batches"]):
            expected = stored["centres_after_first_batches"][number]
            torch.testing.assert_close(state.centres, expected, atol=CENTRES, rtol=0)
        if (number + 1) % len(batches) == 0:
            torch.testing.assert_close(state.centres, stored["centres_after_epoch"][epoch], atol=CENTRES, rtol=0)
            assert torch.equal(state.counts, stored["counts_after_epoch"][epoch])
    assert compared >= state.seen - RANDOM_SAMPLES * clusters - size
    assert torch.equal(assign_clusters(stored["features"], state, rescue="discount"), stored["final_assignment"])
    assert torch.equal(assign_clusters(stored["features"], state), stored["nearest_centre"])


# Contrastive heads


def released_heads(stored: dict[str, Tensor], prefix: str = "state.") -> CorrespondenceHeads:
    dim = len(stored["state.visual_linear.bias"])
    heads = CorrespondenceHeads(stored["visual"].shape[1], stored["audio"].shape[1], dim=dim)
    names = {f"{side}.{kind}": f"{prefix}{side}_linear.{kind}" for side in ("visual", "audio") for kind in KINDS}
    heads.load_state_dict({ours: stored[theirs] for ours, theirs in names.items()})
    return heads


@pytest.mark.parametrize("name", ["nce_b8", "nce_b16_out10"])
def test_contrastive_loss_and_score(folder: Path, name: str) -> None:
    stored = load_file(folder / f"{name}.safetensors")
    heads = released_heads(stored)
    loss = heads.loss(stored["visual"], stored["audio"])
    torch.testing.assert_close(loss, stored["loss"][0], atol=NCE, rtol=0)
    torch.testing.assert_close(heads.scores(stored["visual"], stored["audio"]), stored["score"], atol=NCE, rtol=0)
    accuracy = heads.accuracy(stored["visual"], stored["audio"])
    assert accuracy == pytest.approx(stored["accuracy_percent"].item() / 100, abs=1e-6)
    loss.backward()
    for side in ("visual", "audio"):
        for kind in KINDS:
            gradient = getattr(getattr(heads, side), kind).grad
            torch.testing.assert_close(gradient, stored[f"grad.{side}_linear.{kind}"], atol=NCE, rtol=0)


def test_the_dimension_by_default_is_the_smaller_one(folder: Path) -> None:
    stored = load_file(folder / "nce_b8.safetensors")
    heads = CorrespondenceHeads(stored["visual"].shape[1], stored["audio"].shape[1])
    assert heads.audio.weight.shape == stored["state.audio_linear.weight"].shape


@pytest.mark.parametrize("accumulate", [True, False])
@pytest.mark.parametrize("name", ["nce_b8", "nce_b16_out10"])
def test_contrastive_training(folder: Path, name: str, accumulate: bool) -> None:
    """Four epochs of two identical batches; the release never clears its gradients."""
    stored = load_file(folder / f"{name}.safetensors")
    heads, key = released_heads(stored), "train_accumulate" if accumulate else "train_zeroed"
    training = HeadTraining(epochs=4, warmup=1, lr=2e-3, accumulate=accumulate)
    losses = train_heads(heads, lambda epoch: [(stored["visual"], stored["audio"])] * 2, training)
    assert losses == pytest.approx(stored[f"{key}.losses"].tolist(), abs=TRAINED)
    rates = [2e-3 * epoch_rate_factor(epoch, epochs=4, warmup=1) for epoch in range(4)]
    assert rates == pytest.approx(stored["train.lrs"].tolist(), rel=1e-12)
    expected = released_heads(stored, f"{key}.")
    for found, wanted in zip(heads.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, atol=TRAINED, rtol=0)
    scores = heads.scores(stored["visual"], stored["audio"])
    torch.testing.assert_close(scores, stored[f"{key}.score"], atol=TRAINED, rtol=0)


def test_the_two_trainings_differ(folder: Path) -> None:
    """By ten times the tolerance and more: otherwise both would be tested against the same numbers."""
    stored = load_file(folder / "nce_b8.safetensors")
    assert (stored["train_accumulate.losses"] - stored["train_zeroed.losses"]).abs().max() > 0.01


@pytest.mark.parametrize("case", range(3))
def test_learning_rate_factors(folder: Path, case: int) -> None:
    stored = load_file(folder / "nce_lr_factors.safetensors")
    epochs, warmup = stored[f"epochs_warmup_{case}"].tolist()
    found = [epoch_rate_factor(epoch, epochs=epochs, warmup=warmup) for epoch in range(epochs)]
    assert found == pytest.approx(stored[f"factor_{case}"].tolist(), rel=1e-12)


# Ranking


@pytest.mark.parametrize("likeness", ["inner_product", "cosine_similarity", "euclidean_diff_l1", "euclidean_diff_l2"])
def test_ranking(folder: Path, likeness: str) -> None:
    stored = load_file(folder / "rank_n120.safetensors")
    scores = rank_scores(stored["features"], stored["pairs"], likeness)
    torch.testing.assert_close(scores, stored[likeness], atol=1e-5, rtol=0)
    assert set(top_share(scores).tolist()) == set(stored[f"{likeness}.top"].tolist())


# Negatives


def released_set(folder: Path, level: str) -> tuple[CorrespondenceSet, dict[str, Tensor]]:
    stored = load_file(folder / f"negatives_{level}_level.safetensors")
    layers = len(stored["source_index"]) // 2
    return CorrespondenceSet(stored["source_index"], stored["is_true"].bool(), (layers, layers)), stored


def test_released_negatives_are_torn_and_so_are_ours_on_request(folder: Path) -> None:
    released, _ = released_set(folder, "sample")
    clips = len(released.is_positive)
    assert released.is_positive.sum() == clips / 2
    ours = sample_level_set(clips, released.layers, per_layer=True)
    honest = sample_level_set(clips, released.layers)
    for leaking in (released, ours):
        assert leaking.torn() == 1.0  # three layers: all negatives
        assert (leaking.source[:, leaking.is_positive] == leaking.source[0, leaking.is_positive]).all()
        places = leaking.source[:, ~leaking.is_positive].sort(dim=1).values
        assert (places == places[0]).all()  # every layer permutes the same clips
    assert honest.torn() == 0.0 and honest.accidental() == 0.0
    assert honest.is_positive.sum() == ours.is_positive.sum() == clips / 2


def test_released_negatives_meet_their_class_by_accident(folder: Path) -> None:
    released, stored = released_set(folder, "class")
    classes = torch.empty(len(released.is_positive), dtype=torch.int64)
    classes[released.source[0]] = stored["class_index"][0]
    assert torch.equal(classes[released.source], stored["class_index"])
    for seed in range(5):
        ours = class_level_set(classes, released.layers, per_layer=True, seed=seed)
        for leaking in (released, ours):
            assert leaking.torn() > 0.8
            assert 0.05 < leaking.accidental(classes) < 0.4  # one in five expected
            kept = leaking.source[:, leaking.is_positive]
            assert (classes[kept] == classes[kept[0]]).all()
            assert not torch.isin(classes[kept].unique(), classes[leaking.source[:, ~leaking.is_positive]]).any()
        honest = class_level_set(classes, released.layers, seed=seed)
        assert honest.torn() == 0.0 and honest.accidental(classes) == 0.0
