"""The Motionformer chapter's own definitions, tested like library code: truth in tokens, tampering, scoring, cells."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from avssl_core import data as avdata
from avssl_core import encoders, training
from avssl_core.media import write_clip
from avssl_core.reporting import load_claim_sheet, load_definitions, read_budget

CHAPTER = Path(__file__).resolve().parents[2] / "chapters" / "09_motionformer"
CPU = training.World.single("cpu")


@pytest.fixture(scope="module")
def chapter() -> ModuleType:
    return load_definitions(CHAPTER / "motionformer.py")


@pytest.fixture(scope="module")
def tiny(chapter: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> object:
    cache = pytest.MonkeyPatch()
    cache.setenv("AVSSL_CACHE", str(tmp_path_factory.mktemp("cache")))
    config = chapter.make_config(
        clips=36,
        decode_size=36, crop=32, dim=16, depth=1, batch=6, steps=2, image_steps=2,
        warmup_steps=0, followed=5, cost_dim=64,
        cost_side=4, device="cpu",
    )  # fmt: skip
    yield config
    cache.undo()


def test_every_claimed_arm_is_defined_and_every_described_one_exists(chapter: ModuleType) -> None:
    sheet = load_claim_sheet(CHAPTER / "claims.yaml")
    assert {arm for claim in sheet.claims for arm in claim.arms} <= set(chapter.ARMS)
    assert set(sheet.arms) <= set(chapter.ARMS)


BUDGETS = ["smoke", "small", "record", "grid", "full-ssv2", "full-kinetics400", "full-epic"]


@pytest.mark.parametrize("budget", BUDGETS)
def test_budgets_fit_the_configuration(chapter: ModuleType, budget: str) -> None:
    config = chapter.make_config(**read_budget(CHAPTER, budget))
    assert config.steps > 0 and set(config.arms.split(",")) <= set(chapter.ARMS)
    assert config.crop % config.patch == 0 and config.num_frames % config.tubelet == 0
    chapter.fit_config(config, 0)
    chapter.Augment(config)


@pytest.mark.parametrize("budget", BUDGETS[4:])
def test_full_budgets_are_the_papers_network(chapter: ModuleType, budget: str) -> None:
    config = chapter.make_config(**read_budget(CHAPTER, budget))
    assert 1e-9 * chapter.macs_of("trajectory", config, config.depth) == pytest.approx(369.5, abs=0.3)
    with torch.device("meta"):
        standard = encoders.VideoTransformer(7)
    built = chapter.build_model(chapter.ARMS["trajectory"], replace(config, depth=1), {"class": range(7)}, 0)
    assert sum(p.numel() for p in built.blocks[0].parameters()) == sum(
        p.numel() for p in standard.blocks[0].parameters()
    )
    assert float(built.blocks[0].mlp.hidden.weight.detach().std()) == pytest.approx(
        0.02, abs=0.002
    )  # as the paper draws them


# --- the definition ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value_proj", [True, False])
def test_the_definition_and_its_gradient(chapter: ModuleType, value_proj: bool) -> None:
    with encoders.seeded_init(0):
        layer = encoders.TrajectoryAttention(12, heads=3, value_proj=value_proj).double()
    x = torch.randn(2, 1 + 3 * 4, 12, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    ours, plain = layer(x, 3), chapter.by_definition(layer, x, 3)
    torch.testing.assert_close(ours, plain)
    (a,), (b,) = (torch.autograd.grad(y.square().sum(), x) for y in (ours, plain))
    torch.testing.assert_close(a, b)


def test_the_chosen_prototypes_are_the_librarys(chapter: ModuleType) -> None:
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(3))
    chosen = chapter.most_orthogonal(x, 9)
    assert chosen == encoders.most_orthogonal_subset(x[None], 9)[0].tolist()


def test_the_matched_network_is_the_shallowest_that_costs_as_much(chapter: ModuleType) -> None:
    config = chapter.make_config()
    depth, wanted = chapter.matched_depth(config), chapter.macs_of("trajectory", config, config.depth)
    assert chapter.macs_of("joint", config, depth) >= wanted > chapter.macs_of("joint", config, depth - 1)


def test_without_a_pretrained_start_layers_speak_as_loudly_as_a_wide_networks(chapter: ModuleType) -> None:
    narrow = chapter.build_model(chapter.ARMS["trajectory"], chapter.make_config(dim=48), {"a": range(3)}, 0)
    assert float(narrow.blocks[0].attention.qkv.weight.detach().std()) == pytest.approx(0.02 * 4, rel=0.05)
    assert float(narrow.positions.time.detach().std()) == pytest.approx(1.0, rel=0.2)


def test_the_mean_picture_is_subtracted_in_training_and_in_tests(chapter: ModuleType, tiny: object) -> None:
    config = replace(tiny, decode_size=tiny.crop, jitter=0.0, flip=0.0, subtract="picture")
    videos, grey = chapter.open_videos(config, 0), chapter.open_videos(replace(config, subtract="grey"), 0)
    assert grey.picture is None and videos.picture.shape == (3, 1, config.crop, config.crop)
    frames = torch.stack([videos.train[0, row]["frames"][0] for row in range(len(videos.train))]).transpose(1, 2)
    learnt = chapter.Augment(config, videos.picture)(frames, torch.Generator().manual_seed(0))
    tested = chapter.eval_crops(config, videos.picture)[0](frames)
    torch.testing.assert_close(learnt, tested)
    torch.testing.assert_close(tested, chapter.eval_crops(config)[0](frames) - videos.picture)
    assert float(tested.mean((0, 2)).abs().max()) < 1e-4  # few clips, so the mean is over all of them
    assert abs(mean_input(chapter, videos, config)) < 0.3 * abs(mean_input(chapter, grey, config))


def mean_input(chapter: ModuleType, videos: Any, config: Any) -> float:
    """Mean of what a network is shown of held-out clips."""
    shown: list[Tensor] = []

    class Spy(torch.nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            shown.append(x)
            return {name: torch.zeros(len(x), len(found)) for name, found in videos.classes.items()}

    chapter.accuracies(Spy(), videos, config, training.World.single("cpu"))
    return float(torch.cat(shown).mean())


@pytest.mark.parametrize("changes", [{"decode_size": 40}, {"flip": 0.5}, {"crops": 3}, {"rand_augment": "9,2,0.5"}])
def test_pictures_that_move_have_no_mean_picture(chapter: ModuleType, changes: dict[str, object]) -> None:
    alike = {"subtract": "picture", "decode_size": 32, "crop": 32}
    chapter.check_values(chapter.make_config(**alike))
    with pytest.raises(ValueError, match="subtract='picture' takes pictures that all lie alike"):
        chapter.check_values(chapter.make_config(**{**alike, **changes}))


def test_the_values_of_stage_two_start_as_the_identity(chapter: ModuleType, tiny: object) -> None:
    """What an image transformer finds in a slice goes through: at first the printed and the released reading agree."""
    videos, config = chapter.open_videos(tiny, 0), replace(tiny, depth=2)
    clip = torch.randn(2, 3, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    printed, released = (
        chapter.start(chapter.ARMS[n], config, videos, 0, CPU).eval() for n in ("trajectory", "released")
    )
    for block in printed.blocks:
        assert torch.equal(block.attention.trajectory_kv.weight[16:], torch.eye(16))
    with torch.inference_mode():
        for name, scores in printed(clip).items():
            torch.testing.assert_close(scores, released(clip)[name])


# --- clips and labels -------------------------------------------------------------------------------------------------


def test_a_whole_video_is_one_clip_in_the_order_of_time(chapter: ModuleType) -> None:
    config = chapter.make_config(sampling="whole", num_frames=4)
    start_s = torch.tensor([[0.3, 0.1, 0.4, 0.2], [3.0, 2.0, 1.0, 0.0]])
    frames = start_s[:, :, None, None, None, None].expand(2, 4, 1, 3, 2, 2)
    clip = chapter.clips_of(frames, start_s, config)
    assert clip.shape == (2, 1, 3, 4, 2, 2)
    assert clip[:, 0, 0, :, 0, 0].tolist() == [pytest.approx([0.1, 0.2, 0.3, 0.4]), [0.0, 1.0, 2.0, 3.0]]


@pytest.mark.parametrize("together", [1, 2])
def test_shuffling_moves_frames_and_changes_none(chapter: ModuleType, together: int) -> None:
    clips = torch.arange(6.0)[None, None, None, :, None, None].expand(3, 2, 3, 6, 2, 2)
    moved = chapter.shuffled(clips, torch.Generator().manual_seed(0), together=together)
    order = moved[:, 0, 0, :, 0, 0]
    assert torch.equal(order.sort(1).values, torch.arange(6.0).expand(3, 6)) and not torch.equal(order[0], order[1])
    assert torch.equal(moved[:, 0], moved[:, 1])  # views of a video are shuffled alike
    assert (order[:, 1::2] - order[:, ::2] == 1).all() == (together == 2)


def test_a_clip_backwards_is_scored_with_the_partner_class(chapter: ModuleType) -> None:
    classes = {"direction": ("left", "right"), "shape": ("ball", "box")}
    labels = {"direction": torch.tensor([0, 1, 0, 1]), "shape": torch.tensor([0, 0, 1, 1])}
    said = {"direction": torch.eye(2)[[1, 0, 0, 0]], "shape": torch.eye(2)[[0, 0, 1, 0]]}
    worlds = pd.DataFrame({"phase": [1.0, 1.0, 0.0, 1.0], "reach": [0.1, 0.2, 0.1, 0.2]})
    found = chapter.of_worlds(said, labels, worlds, classes, "_reversed")
    assert found == pytest.approx(
        {"shape_reversed": 3 / 4, "direction_reversed": 0, "direction_partner": 1, "direction_clock_reversed": 1}
    )


def test_worlds_are_told_apart(chapter: ModuleType) -> None:
    classes = {"direction": ("left", "right"), "shape": ("ball", "box")}
    labels = {"direction": torch.tensor([0, 1, 0, 1]), "shape": torch.tensor([0, 0, 1, 1])}
    worlds = pd.DataFrame({"phase": [1.0, 1.0, 0.0, 1.0], "reach": [0.1, 0.2, 0.1, 0.2]})
    said = {"direction": torch.eye(2)[[0, 1, 1, 0]], "shape": torch.eye(2)[[0, 0, 1, 1]]}
    found = chapter.of_worlds(said, labels, worlds, classes, "")
    expected = {"shape": 1, "direction": 2 / 3, "direction_clock": 0, "direction_at_0": 1, "direction_at_1": 0.5}
    assert found == pytest.approx(expected | {"direction_fast_over_slow": -0.5})


def test_questions_that_are_not_asked_count_for_nothing(chapter: ModuleType) -> None:
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    assert chapter.right(scores, torch.tensor([0, -1, 0])).tolist() == [1, 0]


# --- truth, and whether attention follows it --------------------------------------------------------------------------


def test_the_track_is_the_red_thing(chapter: ModuleType, tiny: object) -> None:
    """In the middle crop of real files, the reddest token is one that the target's box touches."""
    config = replace(
        tiny, decode_size=64, crop=48, clips=6, reaches="1.25", phases="1", decoys=0, occluders=0, camera=0.0
    )
    videos = chapter.open_videos(config, 0)
    clip, track = chapter.still_clips(videos, 0, range(4), config)
    red = clip[:, 0] - clip[:, 1:].amax(1)  # (V, T', H, W)
    red = red.unflatten(2, (6, 8)).unflatten(4, (6, 8)).mean((3, 5))  # (V, frames, 6, 6)
    red = red.unflatten(1, (-1, 2)).amax(2).flatten(2)  # (V, T, S): of the two frames of a slice
    # a box in the margin, cut off by the crop, touches no token
    shown = track.seen & track.on.any(2)
    hit = track.on.gather(2, red.argmax(2, keepdim=True))[..., 0]
    assert shown.float().mean() > 0.4 and hit[shown].float().mean() > 0.9


def _straight(chapter: ModuleType, config: object) -> object:
    """A target that crosses the grid along its diagonal, seen in all slices but the last."""
    centre = (torch.arange(config.slices, dtype=torch.float32) % config.side + 0.5)[None, :, None].expand(1, -1, 2)
    token = (centre[..., 0].long() * config.side + centre[..., 1].long())[..., None]
    on = torch.zeros(1, config.slices, config.side**2, dtype=torch.bool).scatter(2, token, True)
    seen = torch.ones(1, config.slices, dtype=torch.bool)
    seen[:, -1] = False
    return chapter.Track(centre, seen, on)


def test_following_is_told_from_staying_and_from_finding(chapter: ModuleType) -> None:
    config = chapter.make_config(num_frames=8, tubelet=2, crop=32, patch=8)
    track, n = _straight(chapter, config), config.slices * config.side**2
    target = track.on[0].float().expand(n, -1, -1)  # every token looks at the target
    stay = torch.eye(config.side**2)[torch.arange(n) % config.side**2][:, None].expand(-1, config.slices, -1)
    even = torch.full((n, config.slices, config.side**2), 1 / config.side**2)
    mine = track.on[0].flatten()  # tokens on the target follow it, the others stay
    follow = torch.where(mine[:, None, None], target, stay)
    maps = torch.stack([target, stay, even, follow])[None]
    scores = chapter.follow_scores(maps, track, config)
    assert scores["mass"].tolist() == pytest.approx([1, 0, 1 / 16, 1])
    assert scores["error"][0] == 0 and scores["error"][1] > 1 and scores["hit"][0] == 1
    assert scores["from_elsewhere"].tolist() == pytest.approx([1, 1 / 15, 1 / 16, 1 / 15])
    assert chapter.chance_mass(track, config) == pytest.approx(1 / 16)


@pytest.mark.parametrize("name", ["trajectory", "joint"])
def test_maps_of_all_blocks_sum_to_one_in_each_slice(chapter: ModuleType, tiny: object, name: str) -> None:
    config = replace(tiny, depth=2)
    model = chapter.build_model(chapter.ARMS[name], config, {"direction": range(2)}, 0).eval()
    maps = chapter.attention_of(model, torch.randn(2, 3, 16, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert len(maps) == 2 and maps[0].shape == (2, 2, 8 * 16, 8, 16)
    torch.testing.assert_close(maps[1].sum(4), torch.ones(2, 2, 128, 8))


def test_errors_of_the_rivals_fall_where_attention_is_a_choice_among_few(chapter: ModuleType, tiny: object) -> None:
    model = chapter.build_model(chapter.ARMS["trajectory"], tiny, {"direction": range(2)}, 0).eval()
    errors = chapter.token_errors(model, torch.randn(2, 3, 16, 32, 32, generator=torch.Generator().manual_seed(0)), 0)
    assert set(errors) == set(chapter.RIVALS) and set(errors["random"]) == set(chapter.FEW_TO_MANY)
    assert errors["nystrom"][64] < errors["nystrom"][4] and errors["performer"][64] < errors["performer"][4]


# --- cells ------------------------------------------------------------------------------------------------------------

CELLS = [
    "trajectory",
    "joint",
    "divided",
    "norm-st",
    "average",
    "released",
    "joint-matched",
    "one-frame",
    "untrained",
    "image-start",
]
CELLS += ["orthoformer", "nystrom", "performer", "orthoformer-unshared", "joint-squares", "trajectory-table"]


@pytest.mark.parametrize("arm", CELLS)
def test_a_cell_runs_and_repeats_itself(chapter: ModuleType, tiny: object, arm: str) -> None:
    first, second = (chapter.run_cell(arm, 3, tiny) for _ in range(2))
    assert first == second  # a cell is a function of (arm, seed, configuration)
    assert all(math.isfinite(value) for value in first.values() if isinstance(value, float))
    if chapter.ARMS[arm].kind == "train":
        assert 0 <= first["direction"] <= 1 and 0 <= first["shape"] <= 1
        assert ("direction_partner" in first) == (arm != "one-frame") and ("shape_bag" in first) == (arm == "one-frame")


def test_arms_of_one_depth_start_from_the_same_pictures(
    chapter: ModuleType, tiny: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(tiny, image_steps=2)
    alone = {arm: chapter.run_cell(arm, 3, config) for arm in ("joint", "trajectory", "joint-squares")}
    monkeypatch.setenv("AVSSL_SHARED_DIR", str(tmp_path))
    for arm in ("joint", "trajectory"):
        assert chapter.run_cell(arm, 3, config) == alone[arm]
    assert len(list(tmp_path.iterdir())) == 1
    assert chapter.run_cell("joint-squares", 3, config) == alone["joint-squares"]  # sees frames at another rate
    assert len(list(tmp_path.iterdir())) == 2


def test_claimed_metrics_are_what_cells_return(chapter: ModuleType, tiny: object) -> None:
    sheet = load_claim_sheet(CHAPTER / "claims.yaml")
    returned = {arm: set(chapter.run_cell(arm, 3, tiny)) for arm in ("trajectory", "joint", "one-frame", "untrained")}
    for claim in sheet.claims:
        for side in (
            claim.better,
            claim.worse,
            *([claim.control.better, claim.control.worse] if claim.control else []),
        ):
            for arm in side.arms:
                assert arm not in returned or side.metric in returned[arm], (claim.id, arm, side.metric)


@pytest.mark.parametrize("name", ["plain", "exact", "orthoformer", "nystrom", "performer"])
def test_a_layers_cost_is_measured(chapter: ModuleType, tiny: object, name: str) -> None:
    cost = chapter.run_cell(f"cost-{name}", 0, tiny)
    assert set(cost) == {"log_ms", "log_mib", "log_growth"} and cost["log_growth"] > 0


def test_keeping_every_matrix_costs_memory(chapter: ModuleType, tiny: object) -> None:
    config = replace(tiny, cost_side=8)
    plain, exact = (chapter.run_cell(f"cost-{name}", 0, config) for name in ("plain", "exact"))
    assert plain["log_mib"] > exact["log_mib"] and plain["log_growth"] > exact["log_growth"]


def test_dry_run_measures_and_projects(chapter: ModuleType, tiny: object) -> None:
    report = chapter.dry_run(replace(tiny, arms="trajectory,one-frame"))
    assert {"frames", "asked_direction", "parameters, trajectory", "measured", "projection"} <= set(report)
    assert report["network input"].startswith("(2, 3, 16, 32, 32)") and report["tokens"] == "8 slices of 4×4"
    assert "GiB" in report["projection"]


def test_dry_run_counts_the_image_transformer_too(
    chapter: ModuleType, tiny: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two arms, four trainings: networks of ``batch`` clips, image transformers of twice as many frames."""
    kept: list[object] = []
    monkeypatch.setattr(chapter.reporting, "projection_lines", lambda costs, **_: kept.extend(costs) or {})
    chapter.dry_run(replace(tiny, arms="joint,divided", image_steps=7, steps=11))
    assert [(each.batch, each.steps) for each in kept] == [(6, 11), (12, 7)] * 2
    assert [sorted(each.peaks) for each in kept] == [[1, 2], [2, 4]] * 2
    assert all(each.seconds > 0 for each in kept)


@pytest.mark.parametrize("budget", BUDGETS)
def test_every_budget_passes_the_check(chapter: ModuleType, budget: str) -> None:
    chapter.check_values(chapter.make_config(**read_budget(CHAPTER, budget)))


@pytest.mark.slow
@pytest.mark.parametrize("budget", BUDGETS[4:])
def test_dry_run_of_the_papers_runs(chapter: ModuleType, budget: str) -> None:
    """Every value of the file but the picture's size, so that a full-size network takes seconds; of three files that
    differ in data and recipe, two with a sixth of its blocks."""
    smaller = {"crop": 32, "decode_size": 40, "device": "cpu"} | ({} if budget == BUDGETS[4] else {"depth": 2})
    values = read_budget(CHAPTER, budget)
    assert values["depth"] == 12
    report = chapter.dry_run(chapter.make_config(**(values | smaller)))
    if "depth" not in smaller:
        assert report["parameters, trajectory"] == pytest.approx(108.3e6, rel=0.01)
    hours, memory = (float(x) for x in re.findall(r"([\d.]+) h .*?([\d.]+) GiB", report["projection"])[0])
    assert hours > 10 and memory > 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pool": "max"}, "pool='max': use one of mean, class"),
        ({"sampling": "all"}, "use one of window, whole"),
        ({"crops": 2}, "crops=2: use one of 1, 3"),
        ({"arms": "trajectory,cost-plain"}, "'cost-plain'. cannot be trained"),
        ({"arms": "trajektory"}, "'trajektory'"),
        ({"steps": 0}, "steps=0: must be positive"),
        ({"directions": 3}, "directions=3: use one of 2, 4"),
        ({"smoothing": 1.2}, "smoothing=1.2: it is a share"),
        ({"rand_augment": "9,2"}, "takes 3 numbers"),
        ({"schedule": "multistep"}, "needs milestones"),
        ({"init": "nowhere.pth"}, "no such file of image weights"),
        ({"patch": 7}, "patch=7 does not divide crop"),
        ({"crop": 40}, "does not fit into decode_size"),
    ],
)
def test_dry_run_refuses_what_the_run_would_trip_over(
    chapter: ModuleType, tiny: object, changes: dict[str, object], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        chapter.dry_run(replace(tiny, **changes))


def test_recorded_curves_and_displacements_become_tables(chapter: ModuleType, tiny: object) -> None:
    metrics = chapter.run_cell("joint", 3, tiny)
    table = chapter.against_displacement({("joint", 3): metrics}, tiny)
    assert len(table) == 3 and (table["moved"].diff().dropna() > 0).all()


# --- real videos ------------------------------------------------------------------------------------------------------


def test_words_on_real_sentences(chapter: ModuleType, tiny: object, real_data: Path, tmp_path: Path) -> None:
    source = real_data / "grid_lips"
    table = pd.read_csv(source / "words.csv")
    few = table.sample(40, random_state=0)
    few.to_csv(tmp_path / "words.csv", index=False)
    for name in few["file"]:
        (tmp_path / Path(name).name).symlink_to(source / Path(name).name)
    config = replace(tiny, data=str(tmp_path), fps=25.0, flip=0.5)
    videos = chapter.open_videos(config, 0)
    assert set(videos.classes) == set(chapter.WORDS) and len(videos.train) == 3 * len(videos.corpora[0])
    asked = [[videos.test[i][f"asked_{kind}"] >= 0 for kind in chapter.WORDS] for i in range(len(videos.test))]
    assert all(sum(row) == 1 for row in asked)  # one question a moment
    model, _ = chapter.train(chapter.ARMS["divided"], config, videos, 0, CPU)
    metrics = chapter.accuracies(model, videos, config, CPU)
    assert metrics["words"] == pytest.approx(sum(metrics[kind] for kind in chapter.WORDS) / 3)
    assert {"words_slices", "digit_reversed"} <= set(metrics) and "direction_partner" not in metrics


def test_a_folder_with_a_subfolder_a_class_and_many_views(
    chapter: ModuleType, tiny: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The full budgets' way: whole videos and windows, three crops of frames of two shapes, RandAugment, smoothing."""
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    for number in range(12):
        name, level = ("bright", 210) if number % 2 else ("dark", 40)
        path = tmp_path / "actions" / ("test" if number < 4 else "train") / name / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        wide = 64 if number % 3 else 48
        write_clip(path, torch.full((60, 3, 48, wide), level, dtype=torch.uint8), None, fps=25)
    common = {"data": str(tmp_path / "actions"), "cache": False, "decode_size": 40, "scale_jitter": "1.1,1.25"}
    common |= {"rand_augment": "9,2,0.5", "smoothing": 0.2, "crops": 3, "pool": "class", "lr": 3e-3, "steps": 3}
    for sampling, views in (("window", 2), ("whole", 1)):
        config = replace(tiny, **common, sampling=sampling, views=views)
        videos = chapter.open_videos(config, 0)
        assert videos.classes == {"folder": ("bright", "dark")}
        model, _ = chapter.train(chapter.ARMS["trajectory"], config, videos, 0, CPU)
        assert 0 <= chapter.accuracies(model, videos, config, CPU)["folder"] <= 1


def test_videos_without_the_asked_labels_are_refused(chapter: ModuleType) -> None:
    index = pd.DataFrame({"clip_id": ["c"], "uri": ["c.mp4"], "duration_s": [1.0], "label_noun": ["cup"]})
    corpus = avdata.Corpus(Path(), index)
    assert chapter.label_columns(corpus, chapter.make_config(data="x", labels="noun")) == ["label_noun"]
    with pytest.raises(ValueError, match="label_verb"):
        chapter.label_columns(corpus, chapter.make_config(data="x", labels="verb,noun"))
