"""Self-labelling, alignment, loss and metrics against numbers of the authors' code and independent recomputations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from avssl_core.clustering import (
    align_modalities,
    alignment_costs,
    arrange_sizes,
    cluster_mass,
    fuse_log_probs,
    permute_outputs_,
    released_sinkhorn,
    self_label_loss,
    sinkhorn,
    transport_plan,
    zipf_sizes,
)
from avssl_core.evaluation import clustering_scores

TOLERANCE = 1e-9
ASSIGNMENTS = ("sk_gauss", "sk_gauss_heads", "sk_uniform", "sk_zipf")
READINGS = [(name, "out") for name in ASSIGNMENTS] + [(name, "paper") for name in ASSIGNMENTS if name != "sk_uniform"]
ALIGNMENTS = ("match_k12", "match_k6")
METRICS = ("nmi", "ami", "ari", "accuracy", "mean_entropy", "mean_max_purity")


@pytest.fixture(scope="module")
def folder(fixtures_dir: Path) -> Path:
    return fixtures_dir / "selavi"


def stored_marginal(stored: dict[str, Tensor], reading: str) -> Tensor:
    return stored["out.r_used" if reading == "out" else "paper.r"]


def log_probs(stored: dict[str, Tensor]) -> Tensor:
    """Equation 6: the mean of both log-probabilities."""
    return (stored["in.p_video"].log() + stored["in.p_audio"].log()) / 2


def test_every_fixture_is_listed(folder: Path) -> None:
    found = {path.stem for path in folder.glob("*.safetensors")}
    assert found == {*ASSIGNMENTS, *ALIGNMENTS, "head_loss", "metrics_labels", "metrics_logits"}


@pytest.mark.parametrize(("name", "reading"), READINGS)
def test_released_procedure(folder: Path, name: str, reading: str) -> None:
    stored = load_file(folder / f"{name}.safetensors")
    sharpness = stored["in.lambda"].item()
    found = released_sinkhorn(
        stored["in.p_video"], stored["in.p_audio"], stored_marginal(stored, reading), sharpness=sharpness
    )
    assert torch.equal(found.labels, stored[f"{reading}.labels"])
    assert found.iterations == stored[f"{reading}.iterations"].item()
    torch.testing.assert_close(found.plan, stored[f"{reading}.Q"], rtol=TOLERANCE, atol=0)
    assert found.cost == pytest.approx(stored[f"{reading}.cost"].item(), rel=TOLERANCE)
    if reading == "out":
        assert found.error == pytest.approx(stored["out.last_error"].item(), rel=1e-8)
        torch.testing.assert_close(found.plan.sum(dim=0), stored["out.column_sums"], rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize(("name", "reading"), READINGS)
def test_as_many_plain_iterations_in_log_space_give_the_same_plan(folder: Path, name: str, reading: str) -> None:
    """Started where the released one is after its first column scaling; both end with exact rows."""
    stored = load_file(folder / f"{name}.safetensors")
    scores, r = log_probs(stored), stored_marginal(stored, reading)
    sharpness = stored["in.lambda"].item()
    first = r.log() - (sharpness * scores).logsumexp(dim=0)  # β = 1/N; a constant does not matter
    with pytest.warns(UserWarning, match="stopped after"):
        found = sinkhorn(
            scores,
            r,
            sharpness=sharpness,
            start=first,
            max_iterations=int(stored[f"{reading}.iterations"]),
            tolerance=1e-30,
            accelerate=False,
            precision=torch.float64,
        )
    plan = transport_plan(scores, found.potentials, sharpness=sharpness)
    torch.testing.assert_close(plan, stored[f"{reading}.Q"], rtol=TOLERANCE, atol=0)
    assert torch.equal(found.labels, stored[f"{reading}.labels"])
    assert found.cost == pytest.approx(stored[f"{reading}.cost"].item(), rel=TOLERANCE)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "reading"), READINGS)
def test_labels_of_our_solver(folder: Path, name: str, reading: str, precision: torch.dtype) -> None:
    """Accelerated, from log-softmaxes in the precision asked for, stopped by the marginal error.

    The release stops by a rule of its own, so that a video between two clusters may get the other one.
    """
    stored = load_file(folder / f"{name}.safetensors")
    scores = fuse_log_probs([stored["in.p_video"].log(), stored["in.p_audio"].log()], dtype=precision)
    sharpness, theirs = stored["in.lambda"].item(), stored[f"{reading}.labels"]
    found = sinkhorn(scores, stored_marginal(stored, reading), sharpness=sharpness, precision=precision, tolerance=1e-4)
    differ = (found.labels != theirs).nonzero()[:, 0]
    mine, other = (stored[f"{reading}.Q"][differ, labels[differ]] for labels in (found.labels, theirs))
    assert len(differ) <= 0.01 * len(theirs) and (mine > 0.99 * other).all()
    assert found.iterations < stored[f"{reading}.iterations"].item()
    assert found.cost == pytest.approx(stored[f"{reading}.cost"].item(), rel=1e-5)


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_current_mass(folder: Path, name: str) -> None:
    stored = load_file(folder / f"{name}.safetensors")
    found = cluster_mass([stored["in.p_video"].log(), stored["in.p_audio"].log()])
    torch.testing.assert_close(found, stored["in.current_mass"], rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("name", ["sk_gauss", "sk_gauss_heads"])
def test_three_readings_of_the_marginals(folder: Path, name: str) -> None:
    stored = load_file(folder / f"{name}.safetensors")
    sizes, mass = stored["in.sizes"], stored["in.current_mass"]
    found = {
        reading: arrange_sizes(sizes, mass, reading=reading) for reading in ("paper", "sorted_reciprocal", "released")
    }
    torch.testing.assert_close(found["released"].sizes, stored["out.sizes_arranged"], rtol=TOLERANCE, atol=0)
    torch.testing.assert_close(found["released"].marginal, stored["out.r_used"], rtol=TOLERANCE, atol=0)
    torch.testing.assert_close(found["paper"].marginal, stored["paper.r"], rtol=TOLERANCE, atol=0)
    torch.testing.assert_close(
        found["sorted_reciprocal"].marginal, stored["sorted_reciprocal.r"], rtol=TOLERANCE, atol=0
    )
    # By the released procedure: one of the samples would change its label if it went on for longer.
    labels = released_sinkhorn(stored["in.p_video"], stored["in.p_audio"], found["sorted_reciprocal"].marginal).labels
    assert torch.equal(labels, stored["sorted_reciprocal.labels"])
    answers = [stored["out.labels"], stored["paper.labels"], labels]
    assert all(not torch.equal(answers[i], answers[j]) for i in range(3) for j in range(i))  # else nothing was compared


def test_zipf_sizes(folder: Path) -> None:
    stored = load_file(folder / "sk_zipf.safetensors")
    mass = stored["in.current_mass"]
    found = arrange_sizes(zipf_sizes(len(mass)), mass).marginal
    torch.testing.assert_close(found, stored["paper.r"], rtol=TOLERANCE, atol=0)
    torch.testing.assert_close(stored["out.r_used"], torch.full_like(mass, 1 / len(mass)))  # what it did


@pytest.mark.parametrize("method", ["assignment", "greedy"])
@pytest.mark.parametrize("name", ALIGNMENTS)
def test_alignment(folder: Path, name: str, method: str) -> None:
    stored = load_file(folder / f"{name}.safetensors")
    costs = alignment_costs(stored["in.p_video"], stored["in.p_audio"])
    found = align_modalities(costs, method=method, generator=torch.Generator().manual_seed(0))
    for expected in ("out.permutation", "optimal.permutation", "in.true_permutation"):
        assert torch.equal(found.permutation, stored[expected]), expected
    for expected in ("out.cost_permutation", "optimal.cost"):
        assert found.cost == pytest.approx(stored[expected].item(), rel=TOLERANCE), expected
    assert found.cost_before == pytest.approx(stored["out.cost_identity"].item(), rel=TOLERANCE)


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_permuted_layer(folder: Path, name: str) -> None:
    stored = load_file(folder / f"{name}.safetensors")
    layer = nn.Linear(stored["in.weight"].shape[1], stored["in.weight"].shape[0])
    layer.load_state_dict({"weight": stored["in.weight"], "bias": stored["in.bias"]})
    permute_outputs_(layer, stored["out.permutation"])
    assert torch.equal(layer.weight, stored["out.weight"])
    assert torch.equal(layer.bias, stored["out.bias"])


def test_head_loss(folder: Path) -> None:
    stored = load_file(folder / "head_loss.safetensors")
    video, audio = (stored[f"in.logits_{m}"].requires_grad_() for m in ("video", "audio"))
    for m, part in (("video", video), ("audio", audio)):
        single = self_label_loss([part], stored["in.labels"])
        torch.testing.assert_close(single, stored[f"out.loss_{m}"], atol=1e-6, rtol=0)
    loss = self_label_loss([video, audio], stored["in.labels"])
    torch.testing.assert_close(loss, stored["out.loss"], atol=1e-6, rtol=0)
    loss.backward()
    for m, part in (("video", video), ("audio", audio)):
        torch.testing.assert_close(part.grad, stored[f"out.grad_{m}"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", ["k5", "k12", "perfect"])
def test_metrics(folder: Path, case: str) -> None:
    stored = load_file(folder / "metrics_labels.safetensors")
    found = clustering_scores(stored[f"{case}.labels_pred"], stored[f"{case}.labels_true"])
    for metric in METRICS:
        assert getattr(found, metric) == pytest.approx(stored[f"{case}.{metric}"].item(), abs=1e-10), metric


def test_metrics_of_labels_from_both_modalities(folder: Path) -> None:
    """Labels are the argmax of the product of softmaxes; the release reports the head that is best *on the truth*."""
    stored = load_file(folder / "metrics_logits.safetensors")
    truth = stored["in.labels_true"]
    pairs = zip(stored["in.logits_video"], stored["in.logits_audio"], strict=True)
    labels = [fuse_log_probs(pair, dtype=torch.float64).argmax(dim=1) for pair in pairs]
    nmi = [clustering_scores(head, truth).nmi for head in labels]
    assert nmi == pytest.approx(stored["out.nmi_per_head"].tolist(), abs=1e-10)
    best = max(range(len(nmi)), key=nmi.__getitem__)
    assert best == stored["out.best_head"].item()
    assert torch.equal(labels[best], stored["out.labels_pred"])
    for prefix, head in (("out", best), ("out.head0", 0)):
        found = clustering_scores(labels[head], truth)
        for metric in METRICS:
            assert getattr(found, metric) == pytest.approx(stored[f"{prefix}.{metric}"].item(), abs=1e-10), metric
