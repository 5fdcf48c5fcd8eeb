"""The ACAV100M chapter's own definitions, tested like library code: pools, torn negatives, choices, whole cells."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from avssl_core import curation, training
from avssl_core.reporting import load_claim_sheet, load_definitions, read_budget
from data_prep.curate.cluster_world import ClusterWorld

CHAPTER = Path(__file__).resolve().parents[2] / "chapters" / "07_acav"
CPU = training.World.single("cpu")


@pytest.fixture(scope="module")
def acav() -> ModuleType:
    return load_definitions(CHAPTER / "acav.py")


@pytest.fixture(scope="module")
def tiny(acav: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> object:
    cache = pytest.MonkeyPatch()
    cache.setenv("AVSSL_CACHE", str(tmp_path_factory.mktemp("cache")))
    config = acav.make_config(
        clips=36, teacher_clips=16, clusters=3, world_clips=160, head_epochs=1, kmeans_epochs=1, width=4, audio_width=4,
        embed_dim=8, samples_per_step=16, steps=2, warmup_steps=0, pretrain_steps=2, device="cpu",
    )  # fmt: skip
    yield config
    cache.undo()


def test_every_claimed_arm_and_metric_is_there(acav: ModuleType) -> None:
    sheet = load_claim_sheet(CHAPTER / "claims.yaml")
    assert {arm for claim in sheet.claims for arm in claim.arms} == set(sheet.arms) == set(acav.ARMS)


BUDGETS = ["smoke", "small", "grid", "record", "full-kinetics-sounds", "full-acav100m"]


@pytest.mark.parametrize("budget", BUDGETS)
def test_budgets_fit_the_configuration(acav: ModuleType, budget: str) -> None:
    acav.check_values(acav.make_config(**read_budget(CHAPTER, budget)))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"wrong": "exchange"}, "wrong='exchange': use one of exchanged, shifted"),
        ({"scheme": "all"}, "use one of diagonal, bipartite, combination"),
        ({"features": "supervized"}, "supervised"),
        ({"features": "supervised", "data": "grid"}, "use pool or given"),
        ({"bad": 1.5}, "it is a share"),
        ({"picks": 101}, "picks=101 of a batch of 100"),
        ({"crop": 60}, "does not fit into decode_size"),
        ({"steps": 0}, "steps=0: must be positive"),
    ],
)
def test_values_are_refused_before_any_work(
    acav: ModuleType, tiny: object, changes: dict[str, object], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        acav.dry_run(replace(tiny, **changes))


def test_dry_run_measures_and_projects(acav: ModuleType, tiny: object) -> None:
    report = acav.dry_run(tiny)
    assert {"frames", "waveform", "parameters", "measured", "projection"} <= set(report)
    assert "GiB" in report["projection"]


def clips_of(acav: ModuleType, n: int = 300, **world: object) -> object:
    drawn = ClusterWorld(clips=n, classes=4, **world).draw(0)
    pairs = curation.sample_level_set(n, drawn.layers, seed=1)
    return acav.Clips(drawn.features, drawn.layers, pairs.is_positive, drawn.classes).arranged(pairs.source)


def test_torn_clips_are_torn_where_they_are_bad_and_nowhere_else(acav: ModuleType) -> None:
    number = torch.arange(40.0)[:, None]
    clips = acav.Clips((number,) * 4, (2, 2), torch.arange(40) < 20)
    found = torch.cat(acav.torn(clips, 0).features, dim=1)  # which clip each column of each clip is from
    assert torch.equal(found[:20], number[:20].expand(20, 4))
    assert (found[20:] >= 20).all() and all(len(set(column.tolist())) == 20 for column in found[20:].T)
    assert (found[20:, 0] != found[20:, 1]).float().mean() > 0.8  # two layers of one modality


def test_the_leak_is_in_the_negatives_and_not_in_the_scheme(acav: ModuleType) -> None:
    """Within one modality nothing can be known of the other: chance when honest, far above when torn."""
    honest = clips_of(acav, 600)
    size = int(honest.good.sum())
    precision = {}
    for name, clips in (("honest", honest), ("torn", acav.torn(honest, 3))):
        labels = acav.cluster_all(clips, 4, 0)
        ids = acav.choose(labels, clips.layers, size, acav.How("intra", batch=0), 0)
        precision[name] = curation.precision(ids, clips.good)
    assert abs(precision["honest"] - 0.5) < 0.1 and precision["torn"] > 0.7


def test_a_choice_is_what_the_library_chooses(acav: ModuleType) -> None:
    clips = clips_of(acav)
    labels = acav.cluster_all(clips, 4, 0)
    pairs = curation.pairing("diagonal", (5, 5))
    exact = curation.greedy_select(curation.PairwiseInformation(labels, pairs), 50).ids
    assert torch.equal(acav.choose(labels, (5, 5), 50, acav.How("diagonal", batch=0), 0), exact)
    objective = curation.PairwiseInformation(labels, pairs)
    for inner in ("sequential", "top"):
        plan = curation.BatchPlan(30, 6, inner, seed=7)
        assert torch.equal(
            acav.choose(labels, (5, 5), 50, acav.How("diagonal", None, 30, 6, inner), 7),
            curation.batch_greedy_select(objective, 50, plan).ids,
        )
    weighted = acav.choose(labels, (5, 5), 50, acav.How("diagonal", batch=0, weights=("exp", 30.0)), 0)
    last = acav.choose(labels, (5, 5), 50, acav.How("diagonal", 4, batch=0), 0)
    assert len(set(weighted.tolist()) & set(last.tolist())) > 40  # all weight on the deepest pair


def test_scores_count_good_clips_and_their_classes(acav: ModuleType) -> None:
    good = torch.tensor([True] * 5 + [False] * 15)
    clips = acav.Clips((torch.zeros(20, 1),) * 2, (1, 1), good, torch.arange(20) % 2)
    found = acav.scored("x", torch.arange(10), clips)
    assert found["x"] == 0.5 and found["x_early"] == 1.0
    assert found["x_entropy"] == pytest.approx(math.log(2))


def test_the_slow_loop_of_the_text_is_the_formula(acav: ModuleType) -> None:
    table = np.random.default_rng(0).integers(0, 9, size=(4, 5))
    value = float(curation.mutual_information(torch.from_numpy(table)))
    assert acav.information(table) == pytest.approx(value, abs=1e-12)


def test_bad_clips_are_heard_with_the_sound_of_another(acav: ModuleType, tiny: object) -> None:
    """On a folder of files, from the cache and from the files; good clips keep theirs."""
    made = acav.Correspondence(**acav.RECIPE, overdub=0.0)
    folder = acav.build_playground(made, clips=10, seed=4, progress=False)
    for cache in (True, False):
        config = replace(tiny, data=str(folder), features="pool", cache=cache)
        pool = acav.open_pool(config, 0)
        spec = acav.window_spec(config, 2)
        plain = acav.avdata.UniformDataset(pool.corpus, spec, cache=pool.cache)
        heard = acav.Heard(pool, plain)
        assert len(heard) == len(pool.good) > 2
        for row in range(len(heard)):
            item, own = heard[row], plain[row]
            source = int(pool.sound_of[row])
            assert torch.equal(item["frames"], own["frames"]) and (source == row) == bool(pool.good[row])
            assert torch.equal(item["waveform"], plain[source]["waveform"])


def test_shifted_sound_is_the_clips_own(acav: ModuleType, tiny: object) -> None:
    made = acav.Correspondence(**acav.RECIPE, overdub=0.0)
    folder = acav.build_playground(made, clips=10, seed=4, progress=False)
    pool = acav.open_pool(replace(tiny, data=str(folder), features="pool", wrong="shifted"), 0)
    assert torch.equal(pool.sound_of, torch.arange(len(pool.good)))
    assert ((pool.shift_s > 0) == ~pool.good).all() and pool.shift_s.max() <= 1.5


def test_heads_learn_what_pairs_show(acav: ModuleType) -> None:
    clips = clips_of(acav, 400, noise=0.2, nuisance=0.2)
    taught = replace(clips, good=torch.ones(400, dtype=torch.bool))
    scores = acav.contrastive_scores(clips, taught, 8, 0)
    assert scores[clips.good].mean() > scores[~clips.good].mean() + 0.1


SIMULATED = ["world", "world-leaked", "world-classes", "world-mostly-bad", "world-uneven"]
ON_FILES = ["clips-supervised", "clips-slides", "pretrain-curated", "pretrain-oracle"]


@pytest.mark.parametrize("arm", [*SIMULATED, *ON_FILES])
def test_a_cell_runs_repeats_itself_and_has_what_claims_ask(acav: ModuleType, tiny: object, arm: str) -> None:
    first, second = (acav.run_cell(arm, 3, tiny) for _ in range(2))
    assert first == second  # a cell is a function of (arm, seed, configuration)
    assert all(math.isfinite(value) for value in first.values())
    assert asked_of(arm) <= set(first)


def asked_of(arm: str) -> set[str]:
    """Metrics that claims and controls read from an arm."""
    asked = set()
    for claim in load_claim_sheet(CHAPTER / "claims.yaml").claims:
        for sides in (claim, claim.control):
            if sides is not None:
                asked |= {side.metric for side in (sides.better, sides.worse) if arm in side.arms}
    return asked


def test_time_is_measured(acav: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acav, "TIMED", (200, 400))
    found = acav.ask_time(0)
    assert asked_of("world-time") <= set(found) and len(found["seconds_greedy"]) == 2


@pytest.mark.slow
def test_a_pool_of_real_sentences(acav: ModuleType, tiny: object, real_data: Path, tmp_path: Path) -> None:
    import pandas as pd

    table = pd.read_csv(real_data / "grid_lips" / "words.csv")
    few = table.sample(40, random_state=0)
    few.to_csv(tmp_path / "words.csv", index=False)
    for name in few["file"]:
        (tmp_path / Path(name).name).symlink_to(real_data / "grid_lips" / Path(name).name)
    changes = dict(acav.GRID) | {"data": str(tmp_path), "steps": 1, "pretrain_steps": 1, "num_frames": 4, "fps": 6.25}
    monkey = replace(acav.OnFiles("pool"), changes=tuple(changes.items()))
    found = acav.run_on_files(monkey, replace(tiny, clusters=2), 0)
    assert asked_of("grid-exchanged") <= set(found) and 0 <= found["own_score"] <= 1
    probed = acav.run_on_files(replace(monkey, subset="curated"), replace(tiny, clusters=2), 0)
    assert asked_of("grid-probe-curated") <= set(probed)
