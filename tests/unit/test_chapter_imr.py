"""The IMRNet chapter's own definitions, tested like library code: labels, streams, words, whole cells."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch

from avssl_core import losses, training, transforms
from avssl_core.data import Corpus
from avssl_core.reporting import load_claim_sheet, load_definitions, read_budget, read_ledgers

CHAPTER = Path(__file__).resolve().parents[2] / "chapters" / "12_imr"
CPU = training.World.single("cpu")


@pytest.fixture(scope="module")
def imr() -> ModuleType:
    return load_definitions(CHAPTER / "imr.py")


@pytest.fixture(scope="module")
def tiny(imr: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> object:
    cache = pytest.MonkeyPatch()
    cache.setenv("AVSSL_CACHE", str(tmp_path_factory.mktemp("cache")))
    config = imr.make_config(
        clips=32, binding_clips=24, store=40, crop=32, width=4, gamma=2, batch=4, steps=2, warmup_steps=0,
        label_steps=2, label_warmup_steps=0, few=20, few_steps=1, device="cpu",
    )  # fmt: skip
    yield config
    cache.undo()


def test_every_claimed_arm_is_defined_and_every_described_one_exists(imr: ModuleType) -> None:
    sheet = load_claim_sheet(CHAPTER / "claims.yaml")
    assert {arm for claim in sheet.claims for arm in claim.arms} <= set(imr.ARMS)
    assert set(sheet.arms) <= set(imr.ARMS)


FULL = sorted(path.stem for path in CHAPTER.glob("full-*.yaml"))
BUDGETS = ["smoke", "small", "record", *FULL]


@pytest.mark.parametrize("budget", BUDGETS)
def test_budgets_fit_the_configuration(imr: ModuleType, budget: str) -> None:
    config = imr.make_config(**read_budget(CHAPTER, budget))
    assert config.steps > 0 and set(config.arms.split(",")) <= set(imr.TASKS)


def test_dry_run_measures_and_projects(imr: ModuleType, tiny: object) -> None:
    report = imr.dry_run(replace(tiny, arms="scratch,pmsp-ctp", fusions="late"))
    assert {"iframes", "every_motion", "start_s", "parameters, scratch", "measured", "projection"} <= set(report)
    kept = tiny.gops * len(imr.gop_spec(tiny).positions)
    assert report["network input, I"] == f"(2, 3, {tiny.gops}, {tiny.crop}, {tiny.crop}) float32"
    assert report["network input, R"] == f"(2, 3, {kept}, {tiny.crop}, {tiny.crop}) float32"
    assert report["PMSP labels"] == "27 a clip"
    assert report["parameters, scratch"] < report["parameters, pmsp-ctp"]
    assert "GiB" in report["projection"] and "of it reading" in report["measured"]


def test_the_papers_downstream_protocol_on_folders_of_an_official_split(
    imr: ModuleType, tiny: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes from subfolders, the split from train/ and test/, three crops of each held-out video, and flips."""
    made = Corpus.load(imr.build_playground(replace(imr.TRAVEL, size=64), clips=10, seed=3, progress=False))
    for number in range(10):
        folder = tmp_path / ("train" if number < 6 else "test") / ("rising", "falling")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.mp4").write_bytes(made.source(number).read_bytes())
    flips, crops = set(), []
    drawn, fixed = imr.draw_crop, imr.transforms.fixed_crop
    monkeypatch.setattr(imr, "draw_crop", lambda *a, flip: flips.add(flip) or drawn(*a, flip=flip))
    monkeypatch.setattr(imr.transforms, "fixed_crop", lambda *a, **k: crops.append(k.get("position")) or fixed(*a, **k))
    config = replace(tiny, downstream=str(tmp_path), data=str(tmp_path), streams="im")
    model = imr.PretextModel(imr.build_trunk(config, 0), (), config.gops)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = imr.downstream_accuracy(model, config, 0, CPU)
    assert found in {n / 4 for n in range(5)}
    assert flips == {0.5} and crops == [0.0, 0.5, 1.0] * 4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # a copy is trained


def test_the_downstream_folder_may_hold_videos_of_many_shapes(
    imr: ModuleType, tiny: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As HMDB-51 does: short sides of one length, long ones of any."""
    for number, width in enumerate((64, 80, 96, 64, 112, 80, 64, 96)):
        folder = tmp_path / ("train" if number < 4 else "test") / ("rising", "falling")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        frames = torch.randint(0, 256, (60, 3, 64, width), dtype=torch.uint8)
        imr.media.write_clip(folder / f"{number}.mp4", frames, fps=30)
    config = replace(tiny, downstream=str(tmp_path), data=str(tmp_path))
    model = imr.PretextModel(imr.build_trunk(config, 0), (), config.gops)
    drawn, steps = imr.draw_crop, []
    monkeypatch.setattr(imr, "draw_crop", lambda *a, **k: steps.append(1) or drawn(*a, **k))
    found = imr.downstream_accuracy(model, config, 0, CPU, run_dir=tmp_path / "run")
    assert found in {n / 4 for n in range(5)} and len(steps) == config.label_steps
    assert imr.downstream_accuracy(model, config, 0, CPU, run_dir=tmp_path / "run") == found
    assert len(steps) == config.label_steps  # the second time it goes on where the first one ended: no step is left


def test_a_loss_settles_when_nine_tenths_of_its_fall_are_done(imr: ModuleType) -> None:
    falls = pd.Series([2.0] * 10 + [1.0] * 30) * math.log(4)  # in units of guessing: from two to one
    told = imr.loss_course(falls / 2, 4)  # from one to a half
    assert told["left"] == pytest.approx(0.5) and len(told["course"]) == 40
    assert told["settled_at"] == 15 / 40  # the mean of five is through the step five values later
    assert imr.loss_course(pd.Series([1.0] * 20) * math.log(2), 2)["settled_at"] == 1.0  # never fell


def test_types_told_are_those_of_the_draw(imr: ModuleType, tiny: object) -> None:
    """A model that always says "aligned" is right about these and about no others."""
    videos = imr.split_videos(imr.open_corpus(tiny, 0), tiny, 0)
    model = imr.PretextModel(imr.build_trunk(tiny, 0), ("ctp",), tiny.gops).eval()
    for parameter in model.heads["ctp"].parameters():
        parameter.data.zero_()
    last = [parameter for parameter in model.heads["ctp"].parameters() if parameter.shape == (4,)][-1]
    last.data[0] = 1.0
    told = imr.types_told(model, videos, tiny, 0, CPU)
    assert told == {"told_aligned": 1.0, "told_random": 0.0, "told_shuffle": 0.0, "told_shift": 0.0}


def test_dry_run_counts_every_training(imr: ModuleType, tiny: object) -> None:
    config = replace(tiny, arms="scratch,pmsp", fusions="none,late", steps=5, label_steps=7, few_steps=2)
    counted = {name: steps for name, (_, steps) in imr.trainings(config, None, "binding").items()}
    assert counted == {"pre-training, pmsp": 5, "with labels": 4, "fusion, none": 7, "fusion, late": 7}
    downstream = {
        name: steps for name, (_, steps) in imr.trainings(replace(config, downstream="x"), None, None).items()
    }
    assert downstream == {"pre-training, pmsp": 5, "with labels": 18}


@pytest.mark.slow
@pytest.mark.parametrize("budget", FULL)
def test_dry_run_of_the_papers_run(imr: ModuleType, budget: str) -> None:
    """Every value of the file but the picture's size and the precision, so that networks of full size take seconds."""
    smaller = {"store": 40, "crop": 32, "precision": "float32", "device": "cpu"}
    report = imr.dry_run(imr.make_config(**(read_budget(CHAPTER, budget) | smaller)))
    trunk = sum(p.numel() for p in imr.encoders.IMRNet(18).parameters())
    assert report["parameters, pmsp-ctp"] > trunk and report["network input, M"] == "(2, 2, 25, 32, 32) float32"
    hours, memory = (float(x) for x in re.findall(r"([\d.]+) h .*?([\d.]+) GiB", report["projection"])[0])
    assert hours > 10 and memory > 1  # on one CPU


def test_groups_of_another_size_have_a_dry_run(imr: ModuleType, tiny: object) -> None:
    """Own videos need not be like the playground's."""
    config = replace(tiny, data="elsewhere", gops=6, gop_size=15, store=0, binding_clips=0, arms="arrow", few_steps=0)
    report = imr.dry_run(config)
    assert report["every_motion"].startswith("(2, 2, 90, ") and report["PMSP labels"] == "27 a clip"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"motion": "coviar"}, "motion='coviar': use one of codec, accumulated"),
        ({"residual": "pixels"}, "use one of coded, pixel"),
        ({"depth": 34}, "depth=34: use one of 18, 50"),
        ({"connections": "both"}, "use one of none, unidirectional, bidirectional"),
        ({"operator": "prewitt"}, "use one of literal, four_derivatives, raw"),
        ({"precision": "fp8"}, "use one of float32, bf16"),
        ({"arms": "pmsp,pmps"}, "unknown arm 'pmps'; did you mean 'pmsp'"),
        ({"fusions": "early"}, "unknown fusion 'early'"),
        ({"streams": "rgb"}, "streams='rgb': use letters of 'imr'"),
        ({"steps": 0}, "steps=0: must be positive"),
        ({"few": -1}, "few=-1: must be 0 or more"),
        ({"leak": 1.5}, "it is a share"),
        ({"crop": 60}, "does not fit into store"),
        ({"gamma": 3}, "gamma=3 does not divide width"),
        ({"stride": 12}, "keeps no P-frame"),
        ({"gops": 6}, "the playground's clips have 5 groups of 12"),
        ({"gops": 2, "arms": "ctp"}, "CTP takes 3 or more"),
        ({"batch": 1}, "need another clip"),
    ],
)
def test_dry_run_refuses_what_the_run_would_trip_over(
    imr: ModuleType, tiny: object, changes: dict[str, object], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        imr.dry_run(replace(tiny, **changes))


def test_every_budget_passes_the_check(imr: ModuleType) -> None:
    for budget in BUDGETS:
        imr.check_values(imr.make_config(**read_budget(CHAPTER, budget)))


def test_signed_sums_may_be_taken_before_the_derivative(imr: ModuleType, tiny: object) -> None:
    """The short way (sum over a group, then paint) gives the labels of the long one (paint every picture)."""
    every = torch.randint(-6, 7, (3, 2, 60, 5, 5), generator=torch.Generator().manual_seed(0)).float() / 2
    whole = transforms.fixed_crop(3, (40, 40), scale=1.0)
    short = imr.motion_labels(every, whole, replace(tiny, crop=40))
    painted = every.repeat_interleave(8, -1).repeat_interleave(8, -2)
    long = losses.pmsp_labels(painted, num_gops=5, gop_size=12, operator="literal", signed=True, padding="replicate")
    for level, label in long.labels.items():
        assert torch.equal(short.labels[level], label)


def test_a_flip_mirrors_pictures_vectors_and_labels(imr: ModuleType, tiny: object) -> None:
    generator = torch.Generator().manual_seed(1)
    batch = {
        "iframes": torch.randint(0, 256, (2, 3, 5, 40, 40), dtype=torch.uint8, generator=generator),
        "motion": torch.randn(2, 2, 25, 5, 5, generator=generator),
        "residual": torch.randint(-9, 9, (2, 3, 25, 40, 40), dtype=torch.int8, generator=generator),
        "every_motion": torch.randn(2, 2, 60, 5, 5, generator=generator),
    }
    plain = transforms.fixed_crop(2, (40, 40), scale=1.0)
    mirrored = replace(plain, flipped=torch.ones(2, dtype=torch.bool))
    straight, turned = (imr.prepare(batch, crop, tiny) for crop in (plain, mirrored))
    torch.testing.assert_close(turned[0], straight[0].flip(-1))
    torch.testing.assert_close(turned[1][:, 0], -straight[1][:, 0].flip(-1))
    torch.testing.assert_close(turned[1][:, 1], straight[1][:, 1].flip(-1))
    labels, found = (imr.motion_labels(batch["every_motion"], c, tiny).labels[2, 1] for c in (plain, mirrored))
    assert torch.equal(found, labels // 2 * 2 + (1 - labels % 2))


@pytest.mark.parametrize(("streams", "kept"), [("i", (0,)), ("mr", (1, 2)), ("imr", (0, 1, 2))])
def test_streams_that_are_left_out_are_zero(imr: ModuleType, tiny: object, streams: str, kept: tuple[int, ...]) -> None:
    config = replace(tiny, streams=streams)
    videos = imr.split_videos(imr.open_corpus(config, 0), config, 0)
    batch, crop = next(imr.placed_batches(videos.test, config))
    shown = imr.prepare(batch, crop, config)
    assert tuple(k for k, x in enumerate(shown) if x.abs().sum() > 0) == kept


def test_groups_keep_their_features_apart(imr: ModuleType) -> None:
    """Only the third group is lit: so is only the third feature."""
    maps = imr.encoders.StreamMaps(torch.zeros(1, 4, 5, 2, 2), torch.zeros(1, 2, 25, 2, 2), torch.zeros(1, 2, 25, 2, 2))
    maps.iframes[:, :, 2], maps.motion[:, :, 10:15], maps.residual[:, :, 10:15] = 1, 2, 3
    x = imr.gop_features(maps, 5)
    assert x.shape == (1, 5, 8)
    assert x[0, 2].tolist() == [1] * 4 + [2] * 2 + [3] * 2
    assert x[0, [0, 1, 3, 4]].abs().sum() == 0


def test_a_word_lies_in_the_group_of_its_middle(imr: ModuleType, tiny: object, tmp_path: Path) -> None:
    index = pd.DataFrame({"clip_id": ["a", "b"], "uri": ["a.mp4", "b.mp4"], "fps": [25.0, 25.0]})
    timed = pd.DataFrame(
        {
            "clip_id": ["a", "b", "b"],
            "start_s": [0.40, 2.30, 0.0],
            "end_s": [0.60, 2.80, 0.1],
            "kind": ["digit", "digit", "colour"],
            "label": ["two", "one", "red"],
        }
    )
    needed = {"duration_s": 3.0, "width": 96, "height": 96, "video_codec": "mpeg4", "audio_codec": "", "split": "train"}
    corpus = Corpus(tmp_path, index.assign(**needed), timed)
    words = imr.Words(corpus, {"digit": ("one", "two"), "colour": ("red",)}, tiny)
    batch = {"row": torch.tensor([1, 0]), "start_s": torch.tensor([[0.48], [0.0]], dtype=torch.float64)}
    held, group = words.places(batch, "digit", 5)
    assert held.tolist() == [0, 1]
    assert group.tolist() == [4, 1]  # 2.55 s is in the group from 2.40 s, the fifth after 0.48 s
    assert words.label["digit"].tolist() == [1, 0]
    held, _ = words.places(batch, "colour", 5)
    assert held.tolist() == []  # it was said before the clip begins


CELLS = ["none", "late", "mr-only", "bidirectional-leak", "scratch", "pmsp-ctp", "ctp-binary", "rotation", "arrow"]


@pytest.mark.parametrize("arm", [*CELLS, "infonce", "hits-panning-camera-four", "hits-tiny-and-fast-literal"])
def test_a_cell_runs_and_repeats_itself(imr: ModuleType, tiny: object, arm: str) -> None:
    first, second = (imr.run_cell(arm, 3, tiny) for _ in range(2))
    assert first == second  # a cell is a function of (arm, seed, configuration)
    assert all(math.isfinite(value) for value in first.values())
    kind = imr.ARMS[arm].kind
    wanted = {"fusion": "moving_shape", "pretext": "motion_finetuned", "hits": "hit_3"}[kind]
    assert 0 <= first[wanted] <= 1


@pytest.mark.parametrize("route", ["all", "im", "coded", "pixel"])
def test_reading_routes_are_timed(imr: ModuleType, tiny: object, route: str) -> None:
    assert math.isfinite(imr.run_cell(f"read-{route}", 0, tiny)["log_ms"])


def test_gates_are_measured_where_there_are_any(imr: ModuleType, tiny: object) -> None:
    videos = imr.split_videos(imr.open_corpus(tiny, 0), tiny, 0)
    spread = imr.gate_spread(imr.build_trunk(tiny, 0), videos.test, tiny, CPU)
    assert spread["link"].nunique() == 8 and (spread["spread"] > 0).any() and spread["mean"].between(0, 1).all()


def test_words_on_real_sentences(imr: ModuleType, tiny: object, real_data: Path, tmp_path: Path) -> None:
    source = real_data / "grid_lips"
    table = pd.read_csv(source / "words.csv")
    few = table.sample(60, random_state=0)
    few.to_csv(tmp_path / "words.csv", index=False)
    for name in few["file"]:
        (tmp_path / Path(name).name).symlink_to(source / Path(name).name)
    config = replace(tiny, data=str(tmp_path), few=0)
    videos = imr.split_videos(imr.open_corpus(config, 0), config, 0)
    tuned = imr.word_training(imr.build_trunk(config, 0), videos, config, 2, 0, 0, CPU)
    assert set(tuned) == set(imr.WORDS) and all(0 <= value <= 1 for value in tuned.values())
    features = imr.word_features(imr.build_trunk(config, 0).eval(), videos, videos.test.corpus, config, CPU)
    assert all(len(x) == len(videos.test) for x, _ in features.values())  # no word falls between the two starts
    assert imr.label_shares(videos, config).sum() == pytest.approx(1, abs=1e-5)


def test_what_the_chapter_says_of_recorded_networks_is_in_the_ledger() -> None:
    """The paragraphs around the figure of pairs: who binds, who guesses, and whose sight suffers in which order."""
    (ledger,) = (each for each in read_ledgers(CHAPTER.parents[1], "imr") if each.device == "cuda")

    def mean(arm: str, metric: str) -> float:
        values = ledger.values(arm, metric)
        assert len(values) == 5, f"{arm}: {sorted(values)}"
        return sum(values.values()) / len(values)

    for arm in ("unidirectional", "bidirectional", "no-attention"):
        assert mean(arm, "moving_shape") / mean(arm, "present") > 0.9
    assert mean("none", "moving_shape") / mean("none", "present") < 0.65
    order = [mean(arm, "present") for arm in ("none", "unidirectional", "bidirectional", "no-attention")]
    assert order == sorted(order, reverse=True)
    verdicts = {claim.id: claim.verdict for claim in ledger.claims}
    assert verdicts["unidirectional-over-none"] == "reproduced"
    assert verdicts["bidirectional-over-unidirectional"] == "not reproduced"
    scratch = mean("scratch", "motion_finetuned")
    assert abs(mean("ctp", "motion_finetuned") - scratch) < 0.01 < mean("pmsp", "motion_finetuned") - scratch - 0.15
    shapes = [mean(arm, "shape_finetuned") for arm in ("scratch", "pmsp", "ctp", "ctp-binary", "pmsp-ctp", "rotation")]
    assert all(0.25 < value < 0.32 for value in shapes)  # four shapes: chance is 0.25


def test_what_the_chapter_says_of_recorded_sentences_is_in_the_ledger() -> None:
    """Words stay near chance for every network, a random one probes the command best, labels fall on the mouth."""
    (ledger,) = (each for each in read_ledgers(CHAPTER.parents[1], "imr") if each.device == "cpu")
    arms = ("grid-scratch", "grid-pmsp-ctp", "grid-rotation", "grid-infonce")

    def mean(arm: str, metric: str) -> float:
        values = ledger.values(arm, metric)
        assert len(values) == 5, f"{arm}: {sorted(values)}"
        return sum(values.values()) / len(values)

    for kind, chance in (("command", 0.25), ("colour", 0.25), ("digit", 0.1)):
        assert all(abs(mean(arm, f"{kind}_finetuned") - chance) < 0.08 for arm in arms)
    for how in ("probe", "probe_all"):
        assert max(arms, key=lambda arm: mean(arm, f"command_{how}")) == "grid-scratch"
    assert 0.5 < mean("grid-pmsp-ctp", "pmsp_3") < 0.6
    shares = [torch.tensor(cell.metrics["label_share"]) for cell in ledger.cells if cell.arm == "grid-mouth"]
    assert len(shares) == 5 and all(share[2:, 1:3].sum() > 0.5 for share in shares)
