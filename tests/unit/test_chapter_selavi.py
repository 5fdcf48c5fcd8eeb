"""The SeLaVi chapter's own definitions, tested like library code: rounds, labels, rivals, scores, a whole cell."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from avssl_core import clustering, training
from avssl_core.reporting import load_claim_sheet, load_definitions, read_budget

CHAPTER = Path(__file__).resolve().parents[2] / "chapters" / "06_selavi"
BUDGETS = ("smoke", "small", "record", "grid", "full-vggsound", "full-kinetics", "full-audioset")


@pytest.fixture(scope="module")
def selavi() -> ModuleType:
    return load_definitions(CHAPTER / "selavi.py")


@pytest.fixture(scope="module")
def tiny(selavi: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    cache = pytest.MonkeyPatch()
    cache.setenv("AVSSL_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield selavi.make_config(
        clips=48, num_frames=4, fps=5.0, decode_size=20, crop=16, width=4, audio_width=4, feature_dim=16, hidden_dim=16,
        batch=12, steps=4, rounds=2, heads=3, norm_warmup=2, warmup_steps=0, shrinks="2", device="cpu",
    )  # fmt: skip
    cache.undo()


@pytest.fixture(scope="module")
def collection(selavi: ModuleType, tiny: Any) -> Any:
    return selavi.open_collection(tiny, 0)


@pytest.fixture(scope="module")
def alone() -> training.World:
    return training.World.single("cpu")


# --- configuration ------------------------------------------------------------------------------------------------


def test_every_claimed_arm_is_defined_and_every_arm_described(selavi: ModuleType) -> None:
    sheet = load_claim_sheet(CHAPTER / "claims.yaml")
    claimed = {arm for claim in sheet.claims for arm in claim.arms}
    assert claimed <= set(selavi.ARMS) and set(sheet.arms) == set(selavi.ARMS)


def test_metrics_of_claims_exist(selavi: ModuleType, tiny: Any) -> None:
    """A misspelt metric would only be found after hours of recording."""
    made = {}
    for arm in ("selavi", "concat", "kmeans-random", "own-labels"):
        made[arm] = set(selavi.run_cell(arm, 1, replace(tiny, shrinks="4")))
    kinds = {"kmeans": "kmeans-random", "labels": "own-labels", "splice": "selavi"}
    for claim in load_claim_sheet(CHAPTER / "claims.yaml").claims:
        for side in (claim.better, claim.worse):
            for arm in side.arms or ():
                known = made[kinds.get(selavi.ARMS[arm].method, "concat")]
                assert side.metric in known, (claim.id, arm, side.metric)


@pytest.mark.parametrize("budget", BUDGETS)
def test_budgets_fit_the_configuration(selavi: ModuleType, budget: str) -> None:
    config = selavi.make_config(**read_budget(CHAPTER, budget))
    selavi.check_values(config)
    assert config.steps > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"marginal": "zip"}, "marginal='zip': use one of gaussian, uniform, zipf"),
        ({"arms": "selavi,conkat"}, "concat"),
        ({"heads": 1, "groups": 2}, "groups=2 need as many heads"),
        ({"clusters": 1}, "clusters >= 2"),
        ({"crop": 50}, "crop=50 does not fit"),
        ({"shrinks": "4,64"}, "none may exceed crop=32"),
        ({"lr": 0.0}, "lr=0.0: must be positive"),
    ],
)
def test_values_that_cannot_work_are_refused(selavi: ModuleType, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selavi.check_values(selavi.make_config(**values))
    with pytest.raises(ValueError, match=r"hedas.*heads"):
        selavi.make_config(hedas=3)


# --- items --------------------------------------------------------------------------------------------------------


def test_items_know_their_number_and_truth(selavi: ModuleType, collection: Any) -> None:
    items = collection.train
    assert items.asked == "class" and collection.clusters(selavi.make_config()) == len(set(items.truth["class"]))
    assert collection.clusters(selavi.make_config(clusters=5)) == 5
    for index in (0, len(items) - 1):
        assert items[index]["item"] == items[3, index]["item"] == index
        row = int(items.rows[index])
        assert items.truth["place"][index] == items.corpus.index["label_place"].iat[row]
    moving = [float(items[epoch, 0]["start_s"]) for epoch in range(4)]
    assert len(set(moving)) == 4


def test_one_pass_visits_every_item_once_whatever_the_processes(selavi: ModuleType) -> None:
    for world in (1, 2, 3):
        passes = [list(selavi.OnePass(10, 3, 7, rank, world)) for rank in range(world)]
        seen = [key for batches in passes for batch in batches for key in batch]
        assert sorted(seen) == [(7, index) for index in range(10)]
        assert [len(selavi.OnePass(10, 3, 7, rank, world)) for rank in range(world)] == [len(p) for p in passes]


# --- networks and rounds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "sets"), [("splice", 2), ("concat", 1), ("sight", 1), ("sound", 1)])
def test_heads_stand_on_what_the_method_says(selavi: ModuleType, tiny: Any, method: str, sets: int) -> None:
    model = selavi.build_model(tiny, method, 9, 5, 0).eval()
    clips, sounds = torch.randn(4, 3, 4, 16, 16), torch.randn(4, 1, 40, 20)
    logits = model(clips, sounds)
    assert [tuple(each.shape) for each in logits] == sets * [(3, 4, 5)]
    for changed, arguments in (("sight", (clips + 1, sounds)), ("sound", (clips, sounds + 1))):
        moved = [not torch.allclose(a, b) for a, b in zip(logits, model(*arguments), strict=True)]
        expected = {"splice": [changed == "sight", changed == "sound"], "concat": [True]}
        assert moved == expected.get(method, [method == changed])
    assert model.labels.shape == (9, 3) and "labels" in model.state_dict() and "sizes" in model.state_dict()


def test_sizes_are_drawn_for_each_head_and_are_a_function_of_the_seed(selavi: ModuleType, tiny: Any) -> None:
    one, same, other = (selavi.build_model(tiny, "splice", 9, 5, seed).sizes for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other) and not torch.equal(one[0], one[1])
    zipf = selavi.build_model(replace(tiny, marginal="zipf"), "splice", 9, 5, 0).sizes
    assert torch.equal(zipf[2], clustering.zipf_sizes(5))


def rounds_of(selavi: ModuleType, tiny: Any, collection: Any, alone: Any, **changes: Any) -> tuple[Any, Any]:
    model = selavi.build_model(tiny, "splice", len(collection.train), 4, 0)
    config = replace(tiny, norm_warmup=20)
    return selavi.Clustering(selavi.Arm(**changes), config, collection.train, 0, alone), model


def test_a_round_labels_every_item_in_every_head(
    selavi: ModuleType, tiny: Any, collection: Any, alone: training.World
) -> None:
    rounds, model = rounds_of(selavi, tiny, collection, alone)
    weights = [heads.head(0).out.weight.clone() for heads in model.heads]
    rounds(model, 0)
    assert all(len(model.labels[:, head].unique()) > 2 for head in range(3))
    line = rounds.history[0]
    assert line["size_error"] < 0.2 and line["spread"] > 0.7 and line["same_after"] >= line["same_before"]
    assert line["cost_kept"] < 1 and 0 <= line["nmi"] <= 1 and math.isnan(line["kept"])
    assert torch.equal(model.heads[0].head(0).out.weight, weights[0])  # sight is the reference
    after = model.heads[1].head(0).out.weight
    assert torch.equal(after.sort(0).values, weights[1].sort(0).values) and not torch.equal(after, weights[1])
    rounds(model, 2)
    assert torch.equal(model.heads[1].head(0).out.weight, after)  # outputs are exchanged only once
    assert 0 <= rounds.history[1]["kept"] <= 1


def test_without_alignment_nothing_is_exchanged(
    selavi: ModuleType, tiny: Any, collection: Any, alone: training.World
) -> None:
    rounds, model = rounds_of(selavi, tiny, collection, alone, align=False)
    before = model.heads[1].head(1).out.weight.clone()
    rounds(model, 0)
    assert torch.equal(model.heads[1].head(1).out.weight, before) and "same_before" in rounds.history[0]


def test_labels_of_a_head_are_those_of_the_transport(
    selavi: ModuleType, tiny: Any, collection: Any, alone: training.World
) -> None:
    """Against the definition: mean log-probability, sizes by mass, argmax of the plan; here by the chapter's loops."""
    rounds, model = rounds_of(selavi, tiny, collection, alone)
    model.eval()
    generator = torch.Generator().manual_seed(0)
    tables = [
        torch.randn(len(collection.train), 16, generator=generator),
        torch.randn(len(collection.train), 32, generator=generator),
    ]
    with torch.no_grad():
        rounds.label(model, 1, tables, first=False)
        p = [heads.head(1)(x).double().softmax(1) for heads, x in zip(model.heads, tables, strict=True)]
    mass, drawn = (p[0] * p[1]).sum(0), selavi.build_model(tiny, "splice", 9, 4, 0).sizes[1]
    sizes = torch.empty(4, dtype=torch.float64)
    sizes[mass.argsort()] = drawn.sort().values
    expected = selavi.label_by_transport(0.5 * (p[0].log() + p[1].log()), sizes / sizes.sum())
    assert (model.labels[:, 1] == expected).double().mean() > 0.9  # to the tolerance of the column sums


def test_without_transport_labels_are_the_likeliest(
    selavi: ModuleType, tiny: Any, collection: Any, alone: training.World
) -> None:
    rounds, model = rounds_of(selavi, tiny, collection, alone, assign="argmax")
    model.eval()
    tables = [torch.randn(len(collection.train), d, generator=torch.Generator().manual_seed(d)) for d in (16, 32)]
    with torch.no_grad():
        rounds.label(model, 0, tables, first=False)
        log_p = sum(heads.head(0)(x).log_softmax(1) for heads, x in zip(model.heads, tables, strict=True))
    assert isinstance(log_p, Tensor) and torch.equal(model.labels[:, 0], log_p.argmax(1))


class _HalfWorld:
    """One of two processes, whose sums add what the other one, simulated, has left in a list."""

    def __init__(self, rank: int) -> None:
        self.rank, self.world_size, self.device = rank, 2, torch.device("cpu")
        self.collectives = self

    def sum(self, table: Tensor) -> Tensor:
        return table


def test_each_process_writes_its_share_of_the_labels(selavi: ModuleType, tiny: Any, collection: Any) -> None:
    model = selavi.build_model(tiny, "splice", len(collection.train), 4, 0)
    total = torch.zeros(len(collection.train), dtype=torch.int64)
    for rank in (0, 1):
        mine = torch.arange(rank, len(collection.train), 2)
        selavi.store_labels(model, 0, mine % 4, _HalfWorld(rank))
        total += model.labels[:, 0]
    assert torch.equal(total, torch.arange(len(collection.train)) % 4)


def test_rounds_happen_when_they_are_due_and_labels_are_a_function_of_the_seed(
    selavi: ModuleType, tiny: Any, collection: Any, alone: training.World
) -> None:
    first, again, other = (selavi.self_label(selavi.Arm(), tiny, collection, seed, alone) for seed in (0, 0, 1))
    due = clustering.clustering_rounds(tiny.steps, rounds=tiny.rounds + 1, power=tiny.power)
    assert first[2]["step"].tolist() == list(due)
    assert torch.equal(first[0].labels, again[0].labels) and not torch.equal(first[0].labels, other[0].labels)


# --- labels and scores --------------------------------------------------------------------------------------------


class _Fixed:
    """Labels that are the truth of sight, of sound, or the class; worse with less detail."""

    def __call__(self, items: Any, shrink: int = 1, hold: int = 1) -> dict[str, np.ndarray]:
        found = {"all": items.truth["class"], "sight": items.truth["look"], "sound": items.truth["voice"]}
        codes = {name: np.unique(labels, return_inverse=True)[1] for name, labels in found.items()}
        if shrink > 1:
            codes["sight"] = np.zeros_like(codes["sight"])
        return codes


def test_scores_of_known_labels(selavi: ModuleType, collection: Any) -> None:
    metrics = selavi.score(_Fixed(), collection)
    assert metrics["nmi"] == metrics["accuracy"] == metrics["purity"] == metrics["test_nmi"] == pytest.approx(1)
    assert 0.5 < metrics["nmi_sight"] < 1 and metrics["nmi_place"] < 0.6 and metrics["entropy"] == pytest.approx(0)


def test_what_is_kept_is_a_share_of_the_streams_own_quality(selavi: ModuleType, tiny: Any, collection: Any) -> None:
    kept = selavi.what_is_kept(_Fixed(), collection.test, tiny)
    assert kept["kept_all_2"] == kept["kept_sound_2"] == kept["held_kept_sight_2"] == 1
    assert kept["kept_sight_2"] == 0


def test_purest_clusters_come_first(selavi: ModuleType) -> None:
    found, truth = np.array([0, 0, 0, 1, 1, 2]), np.array(["a", "a", "b", "c", "c", "d"])
    assert [row[0] for row in selavi.by_purity(found, truth)] == [1, 2, 0]
    assert selavi.by_purity(found, truth)[-1] == (0, pytest.approx(2 / 3), "a")
    assert selavi.by_purity(found, None)[0][:2] == (0, 0.5)


def test_towers_have_the_encoders_of_a_self_labeller(selavi: ModuleType, tiny: Any) -> None:
    towers, model = selavi.build_towers(tiny, 5), selavi.build_model(tiny, "splice", 3, 4, 5)
    for one, other in ((towers.video.encoder, model.video), (towers.audio.encoder, model.audio)):
        assert isinstance(one, nn.Module)
        assert [p.shape for p in one.parameters()] == [p.shape for p in other.parameters()]


@pytest.mark.parametrize(
    "arm",
    [
        "selavi",
        "concat",
        "sound",
        "kmeans-contrastive",
        "kmeans-other-labels",
        "own-labels",
        "argmax",
        "skewed-zipf",
        "one-head",
    ],
)
def test_a_cell_runs_and_repeats_itself(selavi: ModuleType, tiny: Any, arm: str) -> None:
    first, second = (selavi.run_cell(arm, 3, tiny) for _ in range(2))
    assert first == second  # a cell is a function of (arm, seed, configuration)
    assert {"nmi", "test_nmi", "accuracy", "purity", "kept_all_2"} <= set(first)
    assert all(type(value) is float and math.isfinite(value) for value in first.values())
    assert ("transfer_probe" in first) == selavi.ARMS[arm].transfer


def test_splicing_learns_classes_that_the_streams_share(selavi: ModuleType) -> None:
    """Vectors instead of videos, a class in both and something else in each; heads alone, so that it takes seconds."""
    generator = torch.Generator().manual_seed(0)
    n, k = 300, 4
    truth, place, ambience = (torch.randint(k, (n,), generator=generator) for _ in range(3))

    def stream(private: Tensor) -> Tensor:
        shared = nn.functional.one_hot(truth, k).float() @ torch.randn(k, 16, generator=generator)
        return shared + nn.functional.one_hot(private, k).float() @ torch.randn(k, 16, generator=generator) * 0.5

    tables = [stream(place), stream(ambience)]
    torch.manual_seed(0)
    heads = nn.ModuleList(clustering.ClusterHeads(16, k, 1, hidden_dim=32, dropout=0.1) for _ in range(2))
    optimiser, uniform = torch.optim.AdamW(heads.parameters(), lr=5e-3), torch.full((k,), 1 / k)
    for step in range(200):
        if step % 20 == 0:
            heads.eval()
            with torch.no_grad():
                scores = clustering.fuse_log_probs([each(x)[0] for each, x in zip(heads, tables, strict=True)])
            labels = clustering.sinkhorn(scores, uniform, tolerance=0.01, on_collapse="sharpen").labels[:, None]
            heads.train()
        loss = clustering.self_label_loss([each(x) for each, x in zip(heads, tables, strict=True)], labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = labels[:, 0].numpy()
    assert selavi.nmi(found, truth.numpy()) > 0.5 > 0.3 > selavi.nmi(found, place.numpy())


def test_a_dry_run_projects_training_and_passes(selavi: ModuleType, tiny: Any) -> None:
    report = selavi.dry_run(replace(tiny, videos=1000, steps=100, rounds=5))
    assert report["passes"] == "5 rounds x 2 groups over 1000 videos"
    assert report["network input, sight"] == (3, 4, 16, 16)
    assert re.search(r"[\d.]+ h \([\d.]+ device-hours\)", str(report["projection"]))
