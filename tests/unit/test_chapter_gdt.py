"""The GDT chapter's own definitions, tested like library code: layout of the leaves, both losses, a whole cell."""

from __future__ import annotations

import contextlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from avssl_core import losses, training
from avssl_core.data import Corpus
from avssl_core.media import write_clip
from avssl_core.reporting import (
    Ledger,
    contrasts_table,
    load_claim_sheet,
    load_definitions,
    read_budget,
    read_ledgers,
    t_interval,
)

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


def test_dry_run_gives_every_process_its_videos(gdt: ModuleType, tiny: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """On four processes there are three videos for each, and each takes two, then three of them a step."""
    asked = []

    def pretrain(arm: object, config: object, videos: object, seed: int, run: training.World) -> tuple[None, object]:
        asked.append((config.samples_per_step, len(videos.train), run.world_size))
        return None, SimpleNamespace(history=pd.DataFrame({"wall_s": [1.0, 2.0, 3.0]}), peak_memory=1 << 30)

    monkeypatch.setattr(gdt.training, "join", lambda device: training.World(rank=0, world_size=4))
    monkeypatch.setattr(training.World, "main_first", lambda self: contextlib.nullcontext())
    monkeypatch.setattr(gdt, "pretrain", pretrain)
    report = gdt.dry_run(replace(tiny, arms="l"))
    per_video = math.prod(losses.HYPOTHESES["l"].branches)
    assert asked == [(4 * count * per_video, 12, 4) for count in (2, 3)]
    assert report["measured"] == f"{1e3 / (3 * per_video):.1f} ms a sample on cpu"  # of one process


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
        ({"arms": "l,zz"}, "unknown arm 'zz'. Valid: a, e, f"),
        ({"arms": "a,b"}, "unknown arm 'b'"),  # a row of the paper's table without an arm
        ({"arms": "ll"}, "unknown arm 'll'; did you mean 'l'"),
        ({"arms": "random"}, "unknown arm 'random'"),  # an arm that nothing trains
        ({"precision": "fp8"}, "use one of float32, bf16"),
        ({"num_frames": 0}, "num_frames=0: must be positive"),
        ({"temperature": 0.0}, "temperature=0.0: must be positive"),
        ({"crop": 60}, "does not fit into decode_size"),
        ({"arms": "a,l", "samples_per_step": 8}, r"\(l\) encodes 8 a video and contrasts two videos at least: 16"),
    ],
)
def test_dry_run_refuses_what_the_run_would_trip_over(
    gdt: ModuleType, tiny: object, changes: dict[str, object], told: str
) -> None:
    for refuses in (gdt.dry_run, gdt.check_values):
        with pytest.raises(ValueError, match=told):
            refuses(replace(tiny, **changes))


def test_a_run_goes_on_with_other_workers_and_arms_and_not_with_another_rate(
    gdt: ModuleType, tiny: object, tmp_path: Path
) -> None:
    videos, one = gdt.open_videos(tiny, 0), training.World.single()
    first, fitted = gdt.pretrain(gdt.ARMS["e"], tiny, videos, 0, one, run_dir=tmp_path)
    assert fitted.resumed_from == 0
    changed = replace(tiny, arms="a,e", workers=1, cache=False, shifts=3, downstream="elsewhere", variance_batches=9)
    again, fitted = gdt.pretrain(gdt.ARMS["e"], changed, videos, 0, one, run_dir=tmp_path)
    assert fitted.resumed_from == tiny.steps
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    for arm, config in (("e", replace(tiny, temperature=0.2)), ("j", tiny)):
        with pytest.raises(training.CheckpointError):
            gdt.pretrain(gdt.ARMS[arm], config, videos, 0, one, run_dir=tmp_path)


def test_what_can_be_trained_here_are_the_papers_rows_with_an_arm(gdt: ModuleType) -> None:
    assert tuple(row for row in losses.HYPOTHESES if row in gdt.ARMS) == gdt.TRAINED_ROWS


def test_the_notebook_checks_its_parameters_where_it_reads_them() -> None:
    (cell,) = (c for c in (CHAPTER / "gdt.py").read_text().split("# %%") if "config = make_config(" in c)
    assert "check_values(config)" in cell


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


@pytest.fixture
def few_sentences(real_data: Path, tmp_path: Path) -> Path:
    """A folder that holds ``grid_lips`` with sixty of its sentences."""
    source = real_data / "grid_lips"
    if not (source / "words.csv").is_file():
        pytest.skip(f"no grid_lips in {real_data}; data_prep.grid makes one from the public archives")
    folder = tmp_path / "few" / "grid_lips"
    folder.mkdir(parents=True)
    words = pd.read_csv(source / "words.csv").sample(60, random_state=0)
    words.to_csv(folder / "words.csv", index=False)
    for name in words["file"]:
        (folder / Path(name).name).symlink_to(source / Path(name).name)
    return folder.parent


@pytest.mark.parametrize("arm", ["grid-j", "grid-supervised"])
def test_a_grid_cell_runs_on_real_sentences(
    gdt: ModuleType, tiny: object, few_sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    """The recorded recipe, but for its size: windows of its own length and rate, from files to every figure."""
    monkeypatch.setenv("AVSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AVSSL_DATA", str(few_sentences))
    recipe = gdt.ARMS[arm]
    smaller = (("samples_per_step", 24), ("steps", 2), ("shifts", 2))
    monkeypatch.setitem(gdt.ARMS, arm, replace(recipe, changes=(*recipe.changes, *smaller)))
    metrics = gdt.run_cell(arm, 0, tiny)
    (ledger,) = (each for each in read_ledgers(CHAPTER.parents[1], "gdt") if each.values("grid-j", "digit_sight"))
    assert set(metrics) == set(next(cell for cell in ledger.cells if cell.arm == arm).metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(0 <= value <= 1 for name, value in metrics.items() if name.endswith(("sight", "sound", "_r1", "_r5")))


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


# ---- what the chapter says in words of what was recorded


def _ledger_of(corpus: str) -> Ledger:
    (ledger,) = (each for each in read_ledgers(CHAPTER.parents[1], "gdt") if each.of_corpus(corpus).cells)
    return ledger


def _five(ledger: Ledger, arm: str, metric: str) -> list[float]:
    values = ledger.values(arm, metric)
    assert len(values) == 5, f"{arm}, {metric}: {sorted(values)}"
    return [values[seed] for seed in sorted(values)]


def _mean(ledger: Ledger, arm: str, metric: str) -> float:
    return float(np.mean(_five(ledger, arm, metric)))


def _difference(ledger: Ledger, metric: str, first: str, second: str) -> tuple[float, float, float]:
    """Mean and interval of first minus second, seed by seed."""
    pairs = zip(_five(ledger, first, metric), _five(ledger, second, metric), strict=True)
    return t_interval([x - y for x, y in pairs])


def _holds_zero(interval: tuple[float, float, float]) -> bool:
    return interval[1] <= 0 <= interval[2]


def test_what_the_chapter_says_of_grid_networks_is_in_the_ledger(gdt: ModuleType) -> None:
    """The paragraphs around the figure of pairs: which networks left the plateau, and which verdicts follow."""
    ledger = _ledger_of("grid")
    plateau = math.log(dict(gdt.GRID)["samples_per_step"] // 2)
    ends = {arm: np.array(_five(ledger, f"grid-{arm}", "final_loss")) for arm in "egj"}
    assert (abs(ends["g"] - plateau) < 0.01).all()  # all five are where they began
    assert (ends["j"] < plateau - 0.5).all()  # all five have left
    assert ends["e"].min() < ends["j"].min() and (abs(ends["e"] - plateau) < 0.01).sum() == 1
    digits = [value for arm in "egj" for value in _five(ledger, f"grid-{arm}", "digit_sight")]
    assert np.corrcoef(np.concatenate([ends[arm] for arm in "egj"]), digits)[0, 1] < -0.9  # along one line
    verdicts = {claim.id: claim.verdict for claim in ledger.claims}
    for claim in ("grid-distinctive-over-invariant", "grid-distinctive-retrieval", "grid-command"):
        assert verdicts[claim] == "reproduced"
    for claim in ("grid-cross-over-within", "grid-cross-over-random", "grid-below-ceiling"):
        assert verdicts[claim] == "undecided at this size"
    for metric in ("digit_sight", "colour_sight"):
        assert _mean(ledger, "grid-e", metric) - _mean(ledger, "grid-a", metric) > 0.1
        assert _mean(ledger, "grid-e", metric) - _mean(ledger, "grid-random", metric) > 0.05
    reading = sorted(_five(ledger, "grid-supervised", "digit_sight"))
    assert reading[-1] > 0.4 and reading[-2] < 0.3  # one of five reads lips
    assert all(_mean(ledger, "grid-random", f"{kind}_sound") > 0.8 for kind in ("command", "colour", "digit"))


def test_what_the_chapter_says_of_grid_contrasts_is_in_the_ledger(gdt: ModuleType) -> None:
    """The paragraphs around the tables of contrasts: a claim over (a) has a low bar."""
    ledger = _ledger_of("grid")
    words = ("command", "colour", "digit")
    asked = [f"{kind}_{sense}" for sense in ("sight", "sound") for kind in words]
    retrieval = ["sound_from_sight_r1", "sound_from_sight_r5"]
    for metric in (*asked[:3], *retrieval):
        assert _difference(ledger, metric, "grid-j", "grid-g")[1] > 0
    for metric in (*asked, *retrieval):
        assert _holds_zero(_difference(ledger, metric, "grid-e", "grid-random"))
    for metric in asked[3:]:
        assert _five(ledger, "grid-a", metric) == _five(ledger, "grid-supervised", metric)
        assert _five(ledger, "grid-a", metric) == _five(ledger, "grid-random", metric)
        assert max(abs(_difference(ledger, metric, f"grid-{x}", f"grid-{y}")[0]) for x, y in ("ea", "jg")) < 0.06
    for metric in ("command_sight", "colour_sight"):
        assert _difference(ledger, metric, "grid-a", "grid-random")[2] < 0  # training within sight costs
    commands = gdt.parts_of_gain(ledger, "command_sight", "e", "a")
    assert commands["whole"] == pytest.approx(ledger.claim("grid-command").effect)
    assert 0.5 < commands["share of the latter"] < 0.6  # more than half
    assert gdt.parts_of_gain(ledger, "digit_sight", "j", "g")["share of the latter"] == pytest.approx(1 / 3, abs=0.03)


def test_contrasts_of_the_grid_leave_claims_to_their_verdicts(gdt: ModuleType) -> None:
    ledger = _ledger_of("grid")
    table = gdt.grid_contrasts(ledger, [("e", "a"), ("a", "e"), ("j", "g")])
    assert table.index.tolist()[:3] == ["command_sight", "colour_sight", "digit_sight"] and len(table) == 8
    assert table.loc["digit_sight"].tolist() == ["a claim, above"] * 3  # whichever way round
    assert table.loc["colour_sight", "e over a"].startswith("+0.186 [")
    assert table.columns.name == contrasts_table([], []).columns.name


def test_what_the_chapter_says_of_the_playground_is_in_the_ledger() -> None:
    """Who gains over random weights, the prediction about direction that failed, and who has hardly begun."""
    ledger = _ledger_of("playground")
    rows = ("a", "e", "g", "h", "j", "k", "l", "m", "random")
    for row in ("a", "g", "h", "k"):  # no better than random weights at events
        assert _holds_zero(_difference(ledger, "event_sight", row, "random"))
    for metric in ("event_sight", "direction_sight"):
        assert _mean(ledger, "supervised", metric) > max(_mean(ledger, row, metric) for row in rows)
    assert _mean(ledger, "supervised", "identity_sight") < min(_mean(ledger, row, "identity_sight") for row in rows)
    for row in ("random", "h", "l"):
        assert t_interval(_five(ledger, row, "direction_sight"))[1] > 0.5  # not at chance
    assert _holds_zero(_difference(ledger, "direction_sight", "l", "random"))
    assert _difference(ledger, "event_sight", "l", "random")[1] > 0
    for row in "hk":
        assert _difference(ledger, "direction_sight", row, "random")[2] < 0
    assert _difference(ledger, "event_sight", "j", "g")[1] > 0
    identity = _difference(ledger, "identity_sight", "j", "g")
    assert identity[0] < 0 and _holds_zero(identity)
    for metric in ("identity_sight", "direction_sight"):
        assert _holds_zero(_difference(ledger, metric, "m", "l"))
    for k in (1, 5):
        found = {row: _mean(ledger, row, f"sound_from_sight_r{k}") for row in rows}
        assert found["random"] == pytest.approx(k / 100, abs=0.01) and found["g"] > 3 * found["random"]
        assert found["random"] < min(found["h"], found["k"])
        assert max(found[row] for row in "ghk") < 0.5 * min(found[row] for row in "ejlm")
    assert min(_mean(ledger, row, "final_loss") for row in "ghk") > max(_mean(ledger, r, "final_loss") for r in "ejlm")


def test_what_the_chapter_says_of_variances_is_so() -> None:
    """When a batch of the tree beats the direct estimate; which column of the benchmark is corrected."""
    generator = torch.Generator().manual_seed(0)
    strata = losses.GaussianStrata.draw(8, 4, generator, noise=0.5)

    def report(per_stratum: int, spread: float) -> losses.VarianceReport:
        moved = replace(strata, means=spread * strata.means)
        return losses.StratifiedVariance(moved, per_stratum=per_stratum).run(repeats=300, generator=generator)

    for shape in ((2, 1.0), (4, 2.0)):
        assert (told := report(*shape)).simulated_gdt < told.appendix_direct
        assert told.simulated_gdt < 0.5 * told.simulated_naive
    for shape in ((4, 1.0), (8, 1.0), (4, 0.5), (4, 0.25)):
        assert (told := report(*shape)).simulated_gdt > told.appendix_direct
    assert told.simulated_gdt > 0.7 * told.simulated_naive  # little to gain
    stored = json.loads((CHAPTER.parents[1] / "benchmarks" / "results" / "gradient_variance.json").read_text())
    for kind in (each for seed in stored["seeds"] for each in seed.values()):
        variance, square = math.exp(kind["log_variance"]), math.exp(kind["log_squared_mean"])
        uncorrected = square + variance / kind["batches"]
        assert kind["log_relative_variance"] == pytest.approx(math.log(variance / uncorrected), abs=1e-6)


def test_the_released_loss_has_eq_1s_value_for_three_rows_and_not_its_gradient(gdt: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in "efghijklm":
        row = losses.HYPOTHESES[name]
        z = nn.functional.normalize(torch.randn((*row.counts(6), 16), generator=generator), dim=-1).requires_grad_()
        printed = losses.CompositionalNCE(0.1).from_codes(
            z.flatten(0, 4), row.codes(6), row.kinds, row.weight_mode, modality=2
        )
        released = losses.PairwiseGDTLoss(name, temperature=0.1)(gdt.variants_of(z, row))
        assert torch.isclose(printed, released, atol=1e-5) == (name in "eij")
        assert not torch.allclose(*(torch.autograd.grad(loss, z)[0] for loss in (printed, released)), rtol=0.1)
