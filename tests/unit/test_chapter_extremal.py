"""The extremal-perturbation chapter's own definitions, tested like library code: truth, games, masks, cells."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from avssl_core import attribution, encoders, training
from avssl_core import data as avdata
from avssl_core.reporting import load_claim_sheet, load_definitions, read_budget

CHAPTER = Path(__file__).resolve().parents[2] / "chapters" / "13_extremal"
CPU = training.World.single("cpu")
BUDGETS = ["smoke", "small", "record", "full-voc-coco"]


@pytest.fixture(scope="module")
def chapter() -> ModuleType:
    return load_definitions(CHAPTER / "extremal.py")


@pytest.fixture(scope="module")
def tiny(chapter: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> object:
    cache = pytest.MonkeyPatch()
    cache.setenv("AVSSL_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield chapter.make_config(**(read_budget(CHAPTER, "smoke") | {"device": "cpu"}))
    cache.undo()


@pytest.fixture(scope="module")
def questions(chapter: ModuleType, tiny: object) -> object:
    return chapter.open_questions(tiny, 0)


@pytest.fixture(scope="module")
def model(chapter: ModuleType, tiny: object, questions: object) -> nn.Module:
    return chapter.small_network(tiny, len(questions.classes), 0).eval()


def test_every_claimed_arm_is_defined_and_every_described_one_exists(chapter: ModuleType) -> None:
    sheet = load_claim_sheet(CHAPTER / "claims.yaml")
    assert {arm for claim in sheet.claims for arm in claim.arms} == set(sheet.arms) == set(chapter.ARMS)


@pytest.mark.parametrize("budget", BUDGETS)
def test_budgets_fit_the_configuration(chapter: ModuleType, budget: str) -> None:
    config = chapter.make_config(**read_budget(CHAPTER, budget))
    chapter.check_values(config)
    chapter.fit_config(config, config.steps, 0)
    chapter.ascent(config)
    chapter.generator_for((config.size, config.size), config)


def test_the_full_budget_is_the_release(chapter: ModuleType) -> None:
    config = chapter.make_config(**read_budget(CHAPTER, "full-voc-coco"))
    ours, release = chapter.ascent(config), attribution.ExtremalConfig()
    assert ours.area_growth == pytest.approx(release.area_growth, abs=1e-5)
    assert replace(ours, area_growth=release.area_growth) == release
    generator = chapter.generator_for((224, 224), config)
    assert generator.parameter_shape == (32, 32) and generator.canvas_shape == (260, 260)


# --- truth ------------------------------------------------------------------------------------------------------------


def test_boxes_are_on_the_things(chapter: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real files: what is inside a box differs from what surrounds it, and what is asked for is there."""
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path))
    config = chapter.make_config(clips=24, pairs=0)
    corpus = chapter.still_world(config, 3)
    asked = chapter.ask_playground(corpus, config)
    names, there = chapter.presence(corpus)
    assert len(names) == 6 and len(asked.targets) == 24
    assert all(there[row, target] for row, target in enumerate(asked.targets.tolist()))
    assert asked.targets.unique().numel() == 6
    assert (asked.regions.flatten(1).sum(1) > 40).all() and (asked.regions.float().mean((1, 2)) < 0.15).all()
    contrast = []
    for image, region in zip(asked.images, asked.regions, strict=True):
        grown = nn.functional.max_pool2d(region[None, None].float(), 9, 1, 4)[0, 0] > 0
        inside, ring = image[:, region].mean(1), image[:, grown & ~region].mean(1)
        contrast.append(float((inside - ring).abs().max()))
    assert np.median(contrast) > 0.5


@pytest.mark.parametrize("colours", ["half", "torchvision", "caffe"])
def test_pictures_come_back(chapter: ModuleType, colours: str) -> None:
    x = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(chapter.shown(chapter.normalised(x, colours), colours), x / 255)


def test_caffe_wants_blue_first_on_a_scale_of_255(chapter: ModuleType) -> None:
    red = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    red[:, 0] = 255
    assert chapter.normalised(red, "caffe")[0, :, 0, 0].tolist() == pytest.approx([-103.939, -116.779, 255 - 123.68])


def test_augmenting_keeps_the_values_and_the_labels_place(chapter: ModuleType, tiny: object) -> None:
    x = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    out = chapter.augmented(x, tiny, torch.Generator().manual_seed(1))
    plain = chapter.normalised(x, "half")
    assert out.shape == plain.shape and not torch.equal(out, plain)
    for before, after in zip(plain, out, strict=True):  # one and the same picture, moved
        torch.testing.assert_close(before.flatten().sort().values, after.flatten().sort().values)
    again = chapter.augmented(x, tiny, torch.Generator().manual_seed(1))
    assert torch.equal(out, again)


def _photographs(folder: Path) -> Path:
    folder.mkdir()
    sizes = [(40, 60), (50, 44), (48, 48)]
    told: dict[str, list[dict[str, object]]] = {
        "categories": [
            {"id": 7, "name": "cat", "supercategory": "animal"},
            {"id": 2, "name": "cup", "supercategory": "kitchen"},
            {"id": 9, "name": "dog", "supercategory": "animal"},
        ],
        "images": [],
        "annotations": [],
    }
    for n, (h, w) in enumerate(sizes):
        Image.fromarray(np.full((h, w, 3), 60 * n, np.uint8)).save(folder / f"{n}.png")
        told["images"].append({"id": n, "file_name": f"{n}.png", "height": h, "width": w})
    box = {"bbox": [10, 5, 20, 10], "segmentation": []}
    told["annotations"] = [
        {"image_id": 0, "category_id": 7, **box},
        {"image_id": 0, "category_id": 2, "bbox": [40, 20, 10, 10], "segmentation": [[40, 20, 49, 20, 49, 29, 40, 29]]},
        {"image_id": 1, "category_id": 9, **box},
        {"image_id": 2, "category_id": 9, **box, "iscrowd": 1},
    ]
    (folder / "instances.json").write_text(json.dumps(told))
    return folder


def test_photographs_and_their_regions(chapter: ModuleType, tmp_path: Path) -> None:
    folder = _photographs(tmp_path / "p")
    names, entries = chapter.annotated(folder)
    assert names == ("cup", "cat", "dog")  # in the order of their numbers
    assert [file for file, _ in entries] == ["0.png", "1.png"]  # a crowd is no object
    picture, regions = chapter.read_photograph(folder / "0.png", entries[0][1], 3)
    assert picture.shape == (3, 40, 60)
    rows, columns = regions[1].nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 15, 10, 30)
    assert regions[0, 20:30, 40:50].all() and regions[0].sum() == 100 and not regions[2].any()
    assert chapter.annotated(folder, "supercategory")[0] == ("kitchen", "animal")


def test_a_photograph_is_asked_for_all_that_is_in_it(chapter: ModuleType, tmp_path: Path) -> None:
    config = chapter.make_config(size=32, data=str(_photographs(tmp_path / "p")), pairs=0)
    questions = chapter.open_questions(config, 0)
    asked = questions.groups[0]
    assert len(questions.groups) == 2 and questions.learnt is None
    assert asked.images.shape == (2, 3, 32, 48) and asked.targets.tolist() == [0, 1]
    assert asked.regions.shape == asked.others.shape == (2, 40, 60)
    assert torch.equal(asked.others[0], asked.regions[1])


def test_every_process_plays_its_share(chapter: ModuleType, tiny: object, tmp_path: Path) -> None:
    config = replace(tiny, data=str(_photographs(tmp_path / "p")), pairs=0)
    questions, model = chapter.open_questions(config, 0), chapter.small_network(config, 3, 0).eval()
    game = chapter.play_all(model, questions, "gradient", config, CPU)
    assert (game.hits + game.misses).tolist() == [1, 1, 1]


# --- networks ---------------------------------------------------------------------------------------------------------


def test_vgg_as_convolutions_is_vgg(chapter: ModuleType) -> None:
    """On a picture of 224 pixels the map has one place, with VGG's scores; narrow, to be quick."""
    with encoders.seeded_init(0):
        vgg = torchvision.models.vgg16(weights=None, num_classes=5)
        vgg.classifier[0], vgg.classifier[3] = nn.Linear(512 * 49, 16), nn.Linear(16, 16)
        vgg.classifier[6] = nn.Linear(16, 5)
    maps = nn.Sequential(*chapter.convolutional(vgg).eval().classifier)
    x = torch.randn(2, 512, 7, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(maps(x)[..., 0, 0], vgg.eval().classifier(x.flatten(1)), atol=1e-5, rtol=1e-4)
    assert {name for name, _ in chapter.convolutional(vgg).named_modules()} >= {
        getattr(chapter.LAYERS["vgg16"], name) for name in ("maps", "excitation", "contrast", "classifier", "channels")
    }


@pytest.mark.parametrize("network", ["resnet50", "googlenet"])
def test_weights_are_loaded_strictly(chapter: ModuleType, tmp_path: Path, network: str) -> None:
    config = chapter.make_config(network=network, weights=str(tmp_path / "w.pth"))
    whole = chapter.drawn_network(config, 4)
    state = whole.state_dict() | ({"aux1.conv.bias": torch.zeros(1)} if network == "googlenet" else {})
    torch.save(state, config.weights)
    given = chapter.given_network(config, 4)
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in given.state_dict().items())
    names = {name for name, _ in given.named_modules()}
    assert {
        getattr(chapter.LAYERS[network], name) for name in ("maps", "excitation", "classifier", "channels")
    } <= names
    state.pop("fc.bias")
    torch.save(state, config.weights)
    with pytest.raises(RuntimeError, match=r"fc\.bias"):
        chapter.given_network(config, 4)


# --- the definition and masks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("area", [0.1, 0.5])
def test_the_loop_is_the_library(chapter: ModuleType, area: float) -> None:
    with encoders.seeded_init(0):
        toy = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    generator = torch.Generator().manual_seed(0)
    x, start = torch.rand(1, 3, 8, 10, generator=generator), 0.2 + 0.6 * torch.rand(1, 1, 8, 10, generator=generator)
    plain = chapter.by_definition(toy, x[0], target=1, area=area, start=start[0, 0], weight=30.0)
    found = attribution.extremal_perturbation(
        toy, x, [1], [area], perturbation="fade", generator=chapter.PixelMasks((8, 10)), start=start, iterations=61,
        area_weight=30.0, area_growth=1.0, jitter=False,
    )  # fmt: skip
    torch.testing.assert_close(found.masks[0, 0, 0], plain, atol=1e-5, rtol=0)


def test_in_one_dimension_only_the_maximum_reaches_one(chapter: ModuleType) -> None:
    lines = chapter.one_dimension((1.0, 20.0))
    assert lines["maximum"].max() == 1 and lines["convolution"].max() < 0.9
    assert lines["smooth maximum, 1/T = 1"].max() < lines["smooth maximum, 1/T = 20"].max() <= 1
    assert (lines["maximum"] >= lines["parameters"] - 1e-6)[8 * 4 : 11 * 4 : 4].all()
    assert {len(line) for line in lines.values()} == {96}


def test_still_masks_are_alike_in_all_frames(chapter: ModuleType) -> None:
    of_pictures = attribution.SmoothMaskGenerator((16, 16), step=4, sigma=4.0)
    still = chapter.StillMasks(5, of_pictures)
    parameters = torch.rand(2, 1, *still.parameter_shape, generator=torch.Generator().manual_seed(0))
    masks = still(parameters)
    assert masks.crop.shape == (2, 1, *still.shape) == (2, 1, 5, 16, 16)
    assert masks.canvas.shape == (2, 1, *still.canvas_shape)
    assert torch.equal(masks.crop[:, :, 3], of_pictures(parameters).crop)


def test_disks_have_their_area_and_lie_in_the_middle(chapter: ModuleType) -> None:
    masks = chapter.disks((20, 30), (0.1, 0.4))
    assert masks.flatten(1).mean(1).tolist() == pytest.approx([0.1, 0.4], abs=2e-3)
    assert masks[:, 0, 9:11, 14:16].all() and not masks[0, 0, :, :5].any()
    assert (masks[1] >= masks[0]).all()


def test_shape_metrics_of_masks_that_are_known(chapter: ModuleType) -> None:
    masks = torch.zeros(2, 2, 1, 10, 10)
    masks[:, 0, 0, :2, :5] = 1.0  # exactly 10 %
    masks[:, 1, 0, :4, :5] = 1.0  # exactly 20 %, around it
    exact = chapter.shape_metrics(masks, (0.1, 0.2))
    assert exact == pytest.approx({"area_error": 0, "area_spread": 0, "grey": 0, "pieces": 1, "nested": 1}, abs=1e-6)
    masks[1, 0, 0, :2, :5] = 0.0
    masks[1, 0, 0, 8:, :] = 1.0  # twice as large, elsewhere
    masks[1, 1, 0, 6, 6] = 0.5  # grey, and no piece
    moved = chapter.shape_metrics(masks, (0.1, 0.2))
    assert moved["area_error"] == pytest.approx((0 + 1 + 0 + 0.025) / 4, abs=1e-5)
    assert moved["area_spread"] == pytest.approx(0.5 * math.log(2) / 2, abs=0.02)
    assert moved["nested"] == pytest.approx(0.5) and moved["grey"] == pytest.approx(1 / 400)
    masks[0, 0, 0, 9, 9] = 1.0
    assert chapter.pieces(masks) == pytest.approx(5 / 4)


def test_the_target_is_scored(chapter: ModuleType) -> None:
    config, pictures = chapter.make_config(max_evaluations=2), torch.arange(12.0).reshape(2, 3, 2, 1, 1)
    maps = chapter.target_scores(nn.Identity(), pictures, torch.tensor([1, 0]), config)
    assert maps.tolist() == [[1, 3, 5], [6, 8, 10]]


def _asked(chapter: ModuleType, regions: torch.Tensor, targets: list[int]) -> object:
    return chapter.Asked(torch.zeros(len(targets), 3, 16, 16), torch.tensor(targets), regions, regions.roll(8, 2))


def test_points_are_counted_by_class(chapter: ModuleType) -> None:
    regions = torch.zeros(3, 16, 16, dtype=torch.bool)
    regions[:, 4:8, 2:6] = True
    maps = torch.zeros(3, 1, 16, 16)
    maps[0, 0, 5, 3] = maps[1, 0, 9, 3] = maps[2, 0, 5, 11] = 1.0  # inside; two pixels below; on the other thing
    found = chapter.pointing(maps, _asked(chapter, regions, [0, 0, 2]), 3, chapter.make_config(tolerance=3.0))
    assert found == pytest.approx({"pointing": 0.5, "pointing_strict": 0.25, "pointing_other": 1 / 3})


def test_every_method_gives_maps_of_the_truths_size(
    chapter: ModuleType, tiny: object, questions: object, model: nn.Module
) -> None:
    asked = questions.groups[0]
    for name, method in chapter.METHODS.items():
        maps = method(model, asked, tiny, 0)
        assert maps.shape == (4, 1, 32, 32) and bool(maps.isfinite().all()), name
    larger = replace(asked, regions=torch.zeros(4, 48, 40, dtype=torch.bool))
    assert all(method(model, larger, tiny, 0).shape == (4, 1, 48, 40) for method in chapter.METHODS.values())


def test_likeness(chapter: ModuleType) -> None:
    x = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    assert chapter.likeness(x, x.exp()) == pytest.approx(1) and chapter.likeness(x, -x) == pytest.approx(-1)
    assert chapter.likeness(x, torch.zeros_like(x)) == 0


def test_channels_of_a_class(chapter: ModuleType, tiny: object, questions: object, model: nn.Module) -> None:
    asked = questions.groups[0]
    acts, masks, counts = chapter.channel_masks(model, asked, tiny)
    assert acts.shape[:2] == (4, 12) and counts[0] == 1 and counts[-1] == 12
    best, kept = chapter.best_channels(masks, counts)
    assert kept.shape == (4, 12) and all(count in counts for count in best)
    falls = chapter.ablation(model, asked, torch.ones(4, 12), 6, tiny, 0, top=12)
    assert falls["own_fall"] == pytest.approx(falls["random_fall"])  # all of them, in another order
    made = chapter.inversions(model, asked.some(2), kept[:2], tiny, 0)
    assert {name: pictures.shape for name, pictures in made.items()} == dict.fromkeys(made, (2, 3, 32, 32))


def test_the_moving_fifth_is_where_pixels_change(chapter: ModuleType) -> None:
    clips = torch.zeros(2, 3, 6, 20, 20)
    clips[:, :, ::2, 12:, 5:15] = 1.0
    region = chapter.moving_fifth(clips)
    assert 0.15 < region.float().mean() < 0.35 and region[13:, 6:14].all() and not region[:8].any()


# --- cells ------------------------------------------------------------------------------------------------------------

STILL_ARMS = ["maps", "ep", "ep-pixels", "ep-delete", "ep-paper-kernel", "meaningful", "sanity", "channels", "sound"]


@pytest.fixture(scope="module")
def cells(chapter: ModuleType, tiny: object) -> dict[str, dict[str, object]]:
    return {arm: chapter.run_cell(arm, 3, tiny) for arm in STILL_ARMS}


@pytest.mark.parametrize("arm", STILL_ARMS)
def test_a_cell_says_something(cells: dict[str, dict[str, object]], arm: str) -> None:
    numbers = [value for value in cells[arm].values() if isinstance(value, float)]
    assert len(numbers) >= 3 and all(math.isfinite(value) for value in numbers)


@pytest.mark.parametrize("arm", ["ep", "sound"])
def test_a_cell_repeats_itself(
    chapter: ModuleType, tiny: object, cells: dict[str, dict[str, object]], arm: str
) -> None:
    assert chapter.run_cell(arm, 3, tiny) == cells[arm]  # a function of (arm, seed, configuration)


def test_cells_of_a_seed_share_one_network_and_say_the_same(
    chapter: ModuleType,
    tiny: object,
    cells: dict[str, dict[str, object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AVSSL_SHARED_DIR", str(tmp_path))
    for arm in ("ep-pixels", "ep-paper-kernel", "channels"):  # these override parameters of masks, as all arms do
        assert chapter.run_cell(arm, 3, tiny) == cells[arm]
    assert len(list(tmp_path.iterdir())) == 1
    chapter.run_cell("channels", 4, tiny)
    assert len(list(tmp_path.iterdir())) == 2


def test_claimed_metrics_are_what_cells_return(cells: dict[str, dict[str, object]]) -> None:
    for claim in load_claim_sheet(CHAPTER / "claims.yaml").claims:
        sides = [claim.better, claim.worse, *([claim.control.better, claim.control.worse] if claim.control else [])]
        for side in sides:
            for arm in side.arms:
                assert arm not in cells or side.metric in cells[arm], (claim.id, arm, side.metric)


def test_all_arms_of_a_seed_look_into_the_same_network(cells: dict[str, dict[str, object]]) -> None:
    assert len({metrics["right"] for metrics in cells.values() if "right" in metrics}) == 1


def test_photographs(chapter: ModuleType, tiny: object, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVSSL_DATA", str(real_data))
    names, entries = chapter.annotated(chapter.photographs(tiny), "supercategory")
    assert len(names) == 12 and len(entries) >= 55
    metrics = chapter.run_cell("photographs", 0, replace(tiny, pairs=2))
    assert set(metrics) >= {"pointing_ep", "pointing_centre", "pointing_gradient"}


@pytest.mark.parametrize("arm", ["lips", "lips-transformer-untrained"])
def test_lips(
    chapter: ModuleType, tiny: object, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    source, folder = real_data / "grid_lips", tmp_path / "grid_lips"
    folder.mkdir()
    table = (source / "words.csv").read_text().splitlines()
    (folder / "words.csv").write_text("\n".join([table[0], *table[1:41]]) + "\n")
    for line in table[1:41]:
        name = Path(next(part for part in line.split(",") if part.endswith(".mp4"))).name
        (folder / name).symlink_to(source / name)
    monkeypatch.setenv("AVSSL_DATA", str(tmp_path))
    metrics = chapter.run_cell(arm, 0, tiny)
    assert {"in_word", "on_mouth", "words_read", "digit_read"} <= set(metrics)
    assert 0 <= metrics["words_read"] <= 1
    assert -1 < metrics["in_word"] < 1 and -0.25 < metrics["on_mouth"] < 0.85


def test_words_are_out_of_the_middle_and_their_frames_known(chapter: ModuleType, real_data: Path) -> None:
    from data_prep.grid import open_grid

    corpus = open_grid(real_data / "grid_lips")
    index = corpus.index.iloc[:12].reset_index(drop=True)
    timed = corpus.timed[corpus.timed["clip_id"].isin(index["clip_id"])].reset_index(drop=True)
    corpus = avdata.Corpus(corpus.root, index, timed)
    spoken = chapter.ask_lips(corpus, parts := chapter.lip_moments(corpus, 0), 9)
    assert spoken.clips.shape == (9, 3, 16, 48, 48) and spoken.during.shape == (9, 16)
    assert (spoken.during.sum(1) >= 1).all() and (spoken.during.float().mean(1) < 0.9).all()
    assert (spoken.words < sum(len(part.classes) for part in parts)).all()


# --- before a run -----------------------------------------------------------------------------------------------------


def test_dry_run_measures_and_projects(chapter: ModuleType, tiny: object) -> None:
    report = chapter.dry_run(tiny)
    assert report["network input"] == "(2, 3, 32, 32) float32" and "GiB" in report["projection"]
    assert "2 areas of (8, 8)" in report["masks"]


@pytest.mark.slow
def test_dry_run_of_the_papers_game(chapter: ModuleType) -> None:
    """Every value of the file but the picture's size."""
    smaller = {"size": 64, "device": "cpu", "network": "resnet50"}
    report = chapter.dry_run(chapter.make_config(**(read_budget(CHAPTER, "full-voc-coco") | smaller)))
    assert report["parameters"] == pytest.approx(23.5e6, rel=0.01) and "10000 pairs" in report["projection"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"network": "alexnet"}, "network='alexnet': use one of small, vgg16, resnet50, googlenet"),
        ({"variant": "keep"}, "variant='keep': use one of preserve, delete, dual"),
        ({"iterations": 0}, "iterations=0: must be positive"),
        ({"arms": "gradient,lime"}, "unknown arm 'lime'"),
        ({"areas": "0.1,1.5"}, "shares between 0 and 1"),
        ({"areas": "0.2,0.1"}, "in ascending order"),
        ({"network": "vgg16"}, "network='vgg16', weights=''"),
        ({"weights": "x.pth"}, "weights='x.pth'"),
        ({"data": "folder"}, "data='folder' needs a trained network"),
        ({"mask_step": 3}, "must be a multiple of mask_step=3"),
    ],
)
def test_dry_run_refuses_what_the_run_would_trip_over(
    chapter: ModuleType, tiny: object, changes: dict[str, object], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        chapter.dry_run(replace(tiny, **changes))
