"""The GDT chapter's own definitions, tested like library code: layout of the leaves, both losses, a whole cell."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from avssl_core import losses, training
from avssl_core.data import Corpus
from avssl_core.media import write_clip
from avssl_core.reporting import load_claim_sheet, load_definitions, read_budget

CHAPTER = Path(__file__).resolve().parents[2] / "chapters" / "01_gdt"


@pytest.fixture(scope="module")
def gdt() -> ModuleType:
    return load_definitions(CHAPTER / "gdt.py")


@pytest.fixture(scope="module")
def tiny(gdt: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> object:
    cache = pytest.MonkeyPatch()
    cache.setenv("AVSSL_CACHE", str(tmp_path_factory.mktemp("cache")))
    config = gdt.make_config(
        clips=32, num_frames=4, fps=4.0, decode_size=20, crop=16, samples_per_step=16, steps=2, warmup_steps=0,
        width=4, audio_width=4, embed_dim=8, shifts=2, variance_batches=3, device="cpu",
    )  # fmt: skip
    yield config
    cache.undo()


class _Named(nn.Module):
    """An "encoder" whose embedding says what it saw: the mean of the first and of the second half of the time axis."""

    def forward(self, video: Tensor, sound: Tensor | None = None) -> tuple[Tensor, Tensor] | Tensor:
        z_v = torch.stack([half.flatten(1).mean(1) for half in video.chunk(2, dim=2)], 1)
        if sound is None:
            return z_v
        return z_v, torch.stack([half.flatten(1).mean(1) for half in sound.chunk(2, dim=3)], 1)


class _Plain:
    """No augmentation: the leaves can be told apart by their contents alone."""

    def sight(self, frames: Tensor, generator: torch.Generator) -> Tensor:
        return frames.transpose(1, 2).float()

    def sound(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        return waveform[:, None, None, :]


def _marked_batch(videos: int, shifts: int) -> dict[str, Tensor]:
    """Every window holds 10 * video + shift in its first half and minus that in its second; sound a hundred more."""
    mark = 10.0 * torch.arange(1, videos + 1)[:, None] + torch.arange(1, shifts + 1)  # (N, K_tau)
    halves = torch.tensor([1.0, 1.0, -1.0, -1.0])
    frames = (mark[..., None] * halves)[..., None, None, None].expand(videos, shifts, 4, 3, 2, 2)
    return {"frames": frames, "waveform": (100 + mark[..., None]) * halves}


@pytest.mark.parametrize("name", list("aefghijklm"))
def test_leaves_stand_where_their_codes_say(gdt: ModuleType, name: str) -> None:
    row = losses.HYPOTHESES[name]
    batch = _marked_batch(3, row.branches[0])
    z = gdt.embed_leaves(_Named(), _Plain(), batch, row, torch.Generator())
    assert z.shape[:5] == row.counts(3)
    for (i, tau, m, r, _), leaf in zip(row.codes(3).tolist(), z.flatten(0, 4), strict=True):
        mark = 10 * (i + 1) + (tau + 1) + (100 if m == 1 else 0)
        expected = [-mark, mark] if r == 1 else [mark, -mark]  # reversal exchanges the halves, in both modalities
        assert leaf.tolist() == pytest.approx(expected)


def test_variants_are_the_releases(gdt: ModuleType) -> None:
    row = losses.HYPOTHESES["l"]
    z = torch.randn(5, 2, 2, 2, 1, 8)
    variants = gdt.variants_of(z, row)
    assert set(variants) == {"A", "B", "C", "D"}
    assert torch.equal(variants["B"][0], z[:, 1, 0, 0, 0])  # second shift, sight, forward
    assert torch.equal(variants["C"][1], z[:, 0, 1, 1, 0])  # first shift, sound, reversed


def test_every_claimed_arm_is_defined_and_every_arm_described(gdt: ModuleType) -> None:
    sheet = load_claim_sheet(CHAPTER / "claims.yaml")
    assert {arm for claim in sheet.claims for arm in claim.arms} <= set(gdt.ARMS)
    assert set(sheet.arms) <= set(gdt.ARMS)


@pytest.mark.parametrize("budget", ["smoke", "small", "record", "full-kinetics400", "full-audioset"])
def test_budgets_fit_the_configuration(gdt: ModuleType, budget: str) -> None:
    assert gdt.make_config(**read_budget(CHAPTER, budget)).steps > 0


def test_unknown_parameters_name_the_nearest(gdt: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"stepz.*steps"):
        gdt.make_config(stepz=3)


@pytest.mark.parametrize("arm", ["l", "a", "h-pairwise", "supervised", "random", "gradient-independent"])
def test_a_cell_runs_and_repeats_itself(gdt: ModuleType, tiny: object, arm: str) -> None:
    first, second = (gdt.run_cell(arm, 3, tiny) for _ in range(2))
    assert first == second  # a cell is a function of (arm, seed, configuration)
    if not arm.startswith("gradient"):
        assert {"event_sight", "direction_sight", "identity_sight", "time_sensitivity"} <= set(first)
        assert all(0 <= value <= 1 for name, value in first.items() if name.endswith(("sight", "sound", "r1")))


def test_independent_batches_seldom_hold_a_positive_and_hierarchical_ones_always_do(
    gdt: ModuleType, tiny: object
) -> None:
    """Of n iid draws from N videos, an anchor has (n - 1) / 2N positives of the other modality on average."""
    config = replace(tiny, samples_per_step=32, variance_batches=20)
    videos = gdt.open_videos(config, 0)
    tree, direct = (gdt.run_cell(f"gradient-{kind}", 0, config) for kind in ("hierarchical", "independent"))
    assert tree["anchors_with_positive"] == 1.0
    expected = 1 - (1 - 1 / (2 * len(videos.train))) ** 31
    assert direct["anchors_with_positive"] == pytest.approx(expected, abs=0.08)
    assert all(math.isfinite(metrics["log_variance"]) for metrics in (tree, direct))


def test_mismatched_arm_hears_another_video(gdt: ModuleType, tiny: object) -> None:
    own, other = (gdt.open_corpus(tiny, 0, overdub) for overdub in (False, True))
    assert set(own.index["label_match"]) == {"yes"} and set(other.index["label_match"]) == {"no"}


def test_two_ranks_never_share_a_video_code(gdt: ModuleType) -> None:
    row = losses.HYPOTHESES["l"]
    first, second = (set(row.codes(4, rank=rank)[:, 0].tolist()) for rank in (0, 1))
    assert not first & second


def test_equal_samples_whatever_the_hypothesis(gdt: ModuleType, tiny: object) -> None:
    videos = gdt.open_videos(tiny, 0)
    seen = []

    def listen(row: object, config: object) -> int:
        z_shape = losses.HYPOTHESES[row].counts(config.samples_per_step // _product(losses.HYPOTHESES[row].branches))
        return _product(z_shape)

    for name in "aefghijklm":
        seen.append(listen(name, tiny))
    assert set(seen) == {tiny.samples_per_step}
    _, fitted = gdt.pretrain(gdt.ARMS["m"], replace(tiny, steps=1), videos, 0, training.World.single())
    assert fitted.steps == 1


def _product(numbers: tuple[int, ...]) -> int:
    total = 1
    for number in numbers:
        total *= number
    return total


def test_dry_run_measures_and_projects(gdt: ModuleType, tiny: object) -> None:
    report = gdt.dry_run(tiny)
    assert {"frames", "waveform", "start_s", "parameters", "measured", "projection"} <= set(report)
    assert report["network input, sight"].startswith(f"(2, 3, {tiny.num_frames}, {tiny.crop}, {tiny.crop})")
    assert report["network input, sound"].startswith(f"(2, 1, {tiny.n_mels}, ")
    assert "GiB" in report["projection"]


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["full-kinetics400", "full-audioset"])
def test_dry_run_of_the_papers_run(gdt: ModuleType, budget: str) -> None:
    """Every value of the file but the window and its precision, so that the networks of full size take seconds.

    (float32: for spectrograms this short, oneDNN's bfloat16 convolution reads memory that nobody wrote.)
    """
    smaller = {"crop": 32, "decode_size": 40, "num_frames": 8, "precision": "float32", "device": "cpu"}
    values = read_budget(CHAPTER, budget) | smaller
    report = gdt.dry_run(gdt.make_config(**values))
    assert report["parameters"] == 36_988_637
    assert report["network input, sound"].startswith("(2, 1, 40, 26)")
    hours, memory = (float(x) for x in re.findall(r"([\d.]+) h .*?([\d.]+) GiB", report["projection"])[0])
    assert hours > 100 and memory > 1  # on one CPU


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"encoder": "fool"}, "encoder='fool': use one of fast, full"),
        ({"variant": "dirceted"}, "use one of directed"),
        ({"arms": "l,zz"}, "no hypothesis \\['zz'\\]"),
        ({"precision": "fp8"}, "use one of float32, bf16"),
        ({"num_frames": 0}, "num_frames=0: must be positive"),
        ({"temperature": 0.0}, "temperature=0.0: must be positive"),
        ({"crop": 60}, "does not fit into decode_size"),
    ],
)
def test_dry_run_refuses_what_the_run_would_trip_over(
    gdt: ModuleType, tiny: object, changes: dict[str, object], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        gdt.dry_run(replace(tiny, **changes))


def test_any_folder_of_clips_can_be_learned_from(
    gdt: ModuleType, tiny: object, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of many shapes, codecs and rates, without a label."""
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path))
    config = replace(tiny, data=str(real_data / "av_events"))
    videos = gdt.open_videos(config, 0)
    assert videos.kinds == () and len(videos.test) >= 5
    model, _ = gdt.pretrain(gdt.ARMS["j"], config, videos, 0, training.World.single())
    metrics = gdt.evaluate(model, videos, config, training.World.single())
    assert set(metrics) == {"time_sensitivity", "sound_from_sight_r1", "sound_from_sight_r5"}
    neighbours = gdt.nearest_sounds(model, videos, config, training.World.single())
    assert all(sorted(near) == sorted(neighbours) for near in neighbours.values())


def test_grid_lips_brings_its_words(
    gdt: ModuleType, tiny: object, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path))
    monkeypatch.setenv("AVSSL_DATA", str(real_data))
    corpus = gdt.open_corpus(replace(tiny, data="grid"), 0)
    assert (corpus.index["split"] == "test").sum() == 208
    assert {"command", "colour", "digit"} <= set(corpus.timed["kind"])


def test_the_papers_protocols_on_a_folder_with_a_subfolder_a_class(
    gdt: ModuleType, tiny: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silent files, as half of HMDB-51 is; bright and dark classes, so that fine-tuning has something to find."""
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    for number in range(16):
        name, level = ("bright", 210) if number % 2 else ("dark", 40)
        _write_flat(tmp_path / "actions" / ("test" if number < 4 else "train") / name / f"{number}.mp4", level)
    _write_flat(tmp_path / "actions" / "test" / "rare" / "only.mp4", 128)  # a class without a video to learn from
    config = replace(tiny, downstream=str(tmp_path / "actions"))
    videos = gdt.Videos(*_unlabelled(), (None, None), ())
    labelled, column = gdt.labelled_videos(videos, config)
    assert column == "label_folder"
    asked = gdt.VideoFeatures(labelled, column, config, training.World.single())
    assert sorted(asked.labels[1]) == ["bright", "bright", "dark", "dark"]
    encoder = gdt.build_model(config, 0).video.encoder
    frozen = gdt.without_training(encoder, asked)
    assert frozen["R@1"] == 1.0  # brightness is the one thing that even random weights keep
    assert gdt.finetuned(encoder, asked, labelled, column, config) == 1.0


def test_videos_without_labels_have_no_protocols(gdt: ModuleType, tiny: object) -> None:
    assert gdt.labelled_videos(gdt.Videos(*_unlabelled(), (None, None), ()), tiny) is None


def _write_flat(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, torch.full((50, 3, 32, 40), level, dtype=torch.uint8), None, fps=25)


def _unlabelled() -> tuple[Corpus, Corpus]:
    corpus = Corpus(Path(), pd.DataFrame({"clip_id": ["c"], "uri": ["c.mp4"], "duration_s": [1.0]}))
    return corpus, corpus
