# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # ACAV100M: which clips are worth learning from?
#
# **Paper.** S. Lee\*, J. Chung\*, Y. Yu, G. Kim, T. Breuel, G. Chechik, Y. Song, *ACAV100M: Automatic Curation of
# Large-Scale Datasets for Audio-Visual Video Representation Learning*, ICCV 2021 ([arXiv
# 2101.10803](https://arxiv.org/abs/2101.10803)). Section and table numbers are those of the first author's thesis
# (Seoul National University, 2023), chapter 4, which tells it at greater length.
#
# **What this chapter costs.** Budget `small`, as shown: two minutes of one CPU core, most of which go into drawing and
# describing a thousand short clips. `smoke`: less than one. The recorded verdicts near the end: a few minutes a seed,
# as choosing takes seconds; those marked *extended* train networks and take longer.
#
# ## The claim, and why it matters
#
# Learning from sight and sound together presumes that they belong together. Of videos as one finds them, fewer than
# half do: there is music over the pictures, a commentary, a sound track from elsewhere. Data sets that people have
# checked are small. Can the good part of a hundred million clips be found by a machine that nobody has told what to
# look for?
#
# The paper's answer is to choose a *set*, not to judge clips one by one. Describe every clip by frozen networks, a few
# layers of one for pictures and of another for sound; cluster each layer; then keep the subset in which the clusters of
# what is seen tell the most about the clusters of what is heard, and the other way round: the subset of largest
# **mutual information**. Its claims:
#
# 1. this finds corresponding pairs without any training, and on real clips better than a contrastive model that was
#    trained for it (88.7 % of what it keeps is good, against 73.1 %; chance is 50 %);
# 2. several layers are better than one, and *all pairs of layers*, those within one network included, are best;
# 3. a batch version of the greedy algorithm makes it linear in the number of clips, and costs little;
# 4. what is learned from the chosen clips is as good as what is learned from as many that people have checked.
#
# We ask all of it of worlds in which we know what belongs together. The second half of claim 2 will not survive, and
# the reason is worth the chapter: *how the bad pairs were made*.

# %%
from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import Audio, Markdown, display
from matplotlib import pyplot as plt
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from avssl_core import curation, encoders, evaluation, figures, losses, media, reporting, training, transforms
from avssl_core import data as avdata
from data_prep.curate import networks
from data_prep.curate.cluster_world import ClusterWorld
from data_prep.playground import Correspondence, build_playground

# %% [markdown]
# ## Parameters
#
# One cell, and nothing is tuned below it. Papermill sets these names; so does the environment variable
# `AVSSL_BUDGET`, which reads `smoke.yaml`, `small.yaml` or one of the `full-*.yaml` beside this notebook. To use your
# own files, set `data` to a folder of videos: half of the clips are then given the sound of another, and found again.

# %% tags=["parameters"]
data: str = "playground"  # "playground", "grid", or a folder of video files, whose sounds are then exchanged
clips: int = 640  # playground videos to generate (a quarter is held out)
bad: float = 0.5  # share of clips whose sound does not belong to them; the paper's benchmarks: 0.5
wrong: str = "exchanged"  # how the sounds of other corpora are spoiled: "exchanged" or "shifted"
slides: float = 0.0  # playground: share of clips that are slides with music
teacher_clips: int = 480  # further playground videos, with labels, from which the "supervised" networks learn
features: str = "supervised,random"  # who describes clips, comma-separated: supervised, pool, random, given
video_network: str = ""  # features "given": as `avssl data curate --video`
video_weights: str = ""  # and its checkpoint
audio_network: str = ""  # the same for sound
audio_weights: str = ""
keep: float = 0.5  # share of the pool to keep where learning from it is the question
clusters: int = 8  # of every layer; the paper: the number of classes, 100 to 2000 at large scale
scheme: str = (
    "diagonal"  # pairs of layers compared for learning: diagonal, bipartite, combination; the paper: combination
)
batch: int = 100  # clips drawn a round; the paper: 100, at large scale 10,000
picks: int = 25  # of them kept; the paper: 25, at large scale 500
seed: int = 0  # redraws worlds, weights, bad pairs and batches
world_clips: int = 1600  # clips of the simulated world
head_epochs: int = 20  # of the rival's heads; the paper: 100, the release: 20
kmeans_epochs: int = 20  # of SGD k-means, as released
windows: int = 2  # windows a clip that are described
each_window: bool = False  # a column for each of them instead of their mean
num_frames: int = 2  # frames in a window
fps: float = 2.0  # frames a second; a window lasts num_frames / fps seconds
decode_size: int = 56  # shorter side of the decoded frames, pixels
crop: int = 48  # side of the square the network sees, pixels
sample_rate: int = 16_000  # of the waveform, Hz
n_mels: int = 40  # mel filters of the spectrogram
n_fft: int = 512  # length of its Fourier transform
width: int = 16  # channels of the first stage of the video network
audio_width: int = 8  # the same for the spectrogram network
embed_dim: int = 64  # width of the joint space
temperature: float = 0.1  # the paper: 0.1
samples_per_step: int = 192  # encoded clips plus spectrograms a step, over all processes
steps: int = 250  # optimiser steps of the networks that describe clips
lr: float = 3e-3  # peak learning rate
weight_decay: float = 1e-4
warmup_steps: int = 25  # linear warm-up
pretrain_steps: int = 300  # optimiser steps of what is learned from a chosen part
workers: int = 0  # loader processes; 0 suits a decoded cache in memory
cache: bool = True  # keep decoded frames and samples in a memory map
device: str = "auto"  # "auto", "cpu" or "cuda"


# %% tags=["define", "hide-input"]
@dataclass(frozen=True)
class ACAVConfig:
    """The parameters cell, checked: unknown names and values of another type raise."""

    data: str = "playground"
    clips: int = 640
    bad: float = 0.5
    wrong: str = "exchanged"
    slides: float = 0.0
    teacher_clips: int = 480
    features: str = "supervised,random"
    video_network: str = ""
    video_weights: str = ""
    audio_network: str = ""
    audio_weights: str = ""
    keep: float = 0.5
    clusters: int = 8
    scheme: str = "diagonal"
    batch: int = 100
    picks: int = 25
    seed: int = 0
    world_clips: int = 1600
    head_epochs: int = 20
    kmeans_epochs: int = 20
    windows: int = 2
    each_window: bool = False
    num_frames: int = 2
    fps: float = 2.0
    decode_size: int = 56
    crop: int = 48
    sample_rate: int = 16_000
    n_mels: int = 40
    n_fft: int = 512
    width: int = 16
    audio_width: int = 8
    embed_dim: int = 64
    temperature: float = 0.1
    samples_per_step: int = 192
    steps: int = 250
    lr: float = 3e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 25
    pretrain_steps: int = 300
    workers: int = 0
    cache: bool = True
    device: str = "auto"


# %% tags=["define"]
def make_config(**values: object) -> ACAVConfig:
    """Build the configuration from named values; what is not named keeps its default."""
    return reporting.build_config(ACAVConfig, values)


# %% tags=["define", "hide-input"]
CHOICES = {
    "wrong": ("exchanged", "shifted"),
    "scheme": ("diagonal", "bipartite", "combination", "intra"),
    "device": ("auto", "cpu", "cuda"),
}
DESCRIBERS = ("supervised", "pool", "random", "given")
POSITIVE = (
    "clips",
    "clusters",
    "batch",
    "picks",
    "world_clips",
    "head_epochs",
    "windows",
    "num_frames",
    "fps",
    "steps",
)


def check_values(config: ACAVConfig) -> None:
    """Raise on the first value that the chapter would only trip over later, naming what it takes instead."""
    positive, shares = (*POSITIVE, "kmeans_epochs", "samples_per_step", "lr", "temperature"), ("bad", "slides", "keep")
    lists = {"features": DESCRIBERS}
    reporting.check_fields(config, choices=CHOICES, positive=positive, shares=shares, lists=lists)
    if "supervised" in config.features.split(",") and config.data != "playground":
        raise ValueError(
            f"features=supervised learns the playground's shapes; for data={config.data!r} use pool or given"
        )
    if config.picks > config.batch:
        raise ValueError(f"picks={config.picks} of a batch of {config.batch}: no more than the batch")
    if config.crop > config.decode_size:
        raise ValueError(f"crop={config.crop} does not fit into decode_size={config.decode_size}")


# %%
CHAPTER = reporting.chapter_dir("acav")
config = make_config(**reporting.notebook_parameters(CHAPTER, ACAVConfig, globals()))
check_values(config)
run = training.join(None if config.device == "auto" else config.device)
figures.use_style()
print(", ".join(f"{name} {version}" for name, version in reporting.versions(("torch", "scikit-learn", "av")).items()))

# %% [markdown]
# ## Look, and listen, before any model
#
# The playground's recipe `correspondence` writes real files, two seconds each. A thing of one of eight shapes hops on
# its background, and every shape has a voice. Half of the clips are **bad**: they are heard with the sound of another
# scene, drawn from the same distribution, so that neither picture nor sound alone gives them away. (One bad pair in
# eight is right by accident: the other scene has the same shape. Nobody can tell, and no method is told.)


# %% tags=["define"]
RECIPE = {"size": 56, "fps": 12.5, "shapes": 8, "motions": 1, "identities": 8, "nuisance": 0.4, "reach": 0.4}


@dataclass(frozen=True)
class Pool:
    """Candidates: pictures, the sound that is heard with each, and which pairs are good, where that is known."""

    corpus: avdata.Corpus
    cache: avdata.DecodedCache | None
    sound_of: Tensor  # (N,) row whose sound is heard with each clip's pictures
    shift_s: Tensor  # (N,) how far that sound is displaced
    good: Tensor  # bool (N,)
    test: avdata.Corpus  # held out, for probes


def open_corpus(config: ACAVConfig, seed: int) -> avdata.Corpus:
    """The clips: a playground drawn by ``seed``, GRID lips, or any folder of video files."""
    if config.data == "playground":
        recipe = Correspondence(**RECIPE, overdub=config.bad, slides=config.slides)
        return avdata.Corpus.load(build_playground(recipe, clips=config.clips, seed=seed, progress=False))
    folder = Path(config.data) if config.data != "grid" else Path(os.environ.get("AVSSL_DATA", "data")) / "grid_lips"
    from data_prep.grid import is_grid, open_grid

    return open_grid(folder) if is_grid(folder) else avdata.open_corpus(folder)


def window_spec(config: ACAVConfig, windows: int = 1) -> avdata.WindowSpec:
    """``windows`` windows a clip; the sound is that of the same seconds."""
    return avdata.WindowSpec(
        num_frames=config.num_frames,
        fps=config.fps,
        size=config.decode_size,
        sample_rate=config.sample_rate,
        windows=windows,
        square=True,
    )


# %% tags=["define"]
def open_pool(config: ACAVConfig, seed: int) -> Pool:
    """Open the corpus, hold a part out, decode once, and spoil the pairs of a corpus that comes with good ones."""
    corpus = open_corpus(config, seed)
    corpus = corpus.select(rows=avdata.UniformDataset(corpus, window_spec(config)).rows)
    pool, test = corpus.select(split="train"), corpus.select(split="test")
    cache = avdata.DecodedCache.build(pool, window_spec(config), progress=False) if config.cache else None
    own, still = torch.arange(len(pool)), torch.zeros(len(pool), dtype=torch.float64)
    if config.data == "playground":  # its files are bad already, and say so
        good = torch.from_numpy((pool.index["label_match"] == "yes").to_numpy(copy=True))
        return Pool(pool, cache, own, still, good, test)
    drawn = curation.sample_level_set(len(pool), (1, 1), positives=1 - config.bad, seed=seed)
    if config.wrong == "exchanged":
        return Pool(pool, cache, drawn.source[1], still, drawn.is_positive, test)
    shift = 0.5 + torch.rand(len(pool), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Pool(pool, cache, own, torch.where(drawn.is_positive, still, shift), drawn.is_positive, test)


# %%
with run.main_first():
    pool = open_pool(config, config.seed)
print(f"{len(pool.good)} clips to choose from, {int(pool.good.sum())} of them good; {len(pool.test)} held out")

# %% [markdown]
# A good clip and a bad one. Look at the shape, then listen; nothing in the picture or in the sound alone is wrong with
# the second. (Playground clips only: other corpora are not shown.)


# %% tags=["define"]
def show_pair(pool: Pool, good: bool) -> media.AVClip | None:
    """A whole clip of the playground, as a person would see and hear it."""
    rows = (pool.good == good).nonzero()[:, 0]
    if "label_match" not in pool.corpus.index or not len(rows):
        return None
    return media.read_all(pool.corpus.source(int(rows[0])), fps=6.0, size=96, sample_rate=16_000, max_s=2.0)


# %%
shown = {"good": show_pair(pool, True), "bad": show_pair(pool, False)}
if shown["good"] is not None:
    _ = figures.contact_sheet([clip.frames for clip in shown.values()], titles=list(shown), columns=2, count=6)
# %%
display(*(Audio(clip.waveform.numpy(), rate=16_000) for clip in shown.values() if clip is not None))

# %% [markdown]
# What the networks get of a batch:

# %%
few = avdata.WindowDataset(pool.corpus, window_spec(config), seed=config.seed, cache=pool.cache)
first = next(training.window_loader(few, min(4, len(few)), seed=config.seed).batches())
print({name: tuple(first[name].shape) for name in ("frames", "waveform")})

# %% [markdown]
# ## The idea: one equation, twenty lines
#
# Cluster the clips by what is seen, and again by what is heard, and count how often each cluster of the one meets each
# cluster of the other, *among the chosen clips* $X$. With counts $n_{ab}$, sizes $n_a$ and $n_b$, $n=|X|$ (eq. 4.2):
#
# $$\mathrm{MI}=\sum_{a,b}\frac{n_{ab}}{n}\log\frac{n\,n_{ab}}{n_a\,n_b}$$
#
# Four properties carry the whole method, for better and worse:
#
# - it is 0 when the two clusterings know nothing of each other;
# - it is the entropy of either when they are the same up to names: at most $\log C$;
# - so its maximum is a *uniform diagonal* table: it rewards agreement **and** balance;
# - estimated from $n$ clips, it is not 0 even for independent clusterings, but about $(C-1)^2/2n$.


# %%
def information(table: np.ndarray) -> float:
    """Eq. (4.2), as it reads; ``0 log 0 = 0``."""
    n, total = table.sum(), 0.0
    for a, row in enumerate(table):
        for b, count in enumerate(row):
            if count:
                total += count / n * np.log(n * count / (table[a].sum() * table[:, b].sum()))
    return float(total)


def best_addition(labels: np.ndarray, chosen: list[int], clusters: int) -> int:
    """Algorithm 2, one step: the clip that leaves the set with the most information. Everything is counted anew."""
    values = {}
    for clip in set(range(len(labels))) - set(chosen):
        table = np.zeros((clusters, clusters))
        np.add.at(table, tuple(labels[[*chosen, clip]].T), 1)
        values[clip] = information(table)
    return max(values, key=lambda clip: (round(values[clip], 9), -clip))


# %% [markdown]
# The library keeps the counts, and a further clip touches one cell of each table: with $\varphi(m)=m\log m$ the sum
# changes by $\varphi(n_{ab}+1)-\varphi(n_{ab})-\dots$, three look-ups instead of $C^2$ terms. It picks the same clips:

# %% tags=["nbval-check-output"]
generator = np.random.default_rng(0)
labels = generator.integers(4, size=(40, 2))
labels[:20, 1] = labels[:20, 0]  # twenty clips whose clusterings agree, twenty of chance
slow: list[int] = []
for _ in range(12):
    slow.append(best_addition(labels, slow, clusters=4))
objective = curation.PairwiseInformation(torch.from_numpy(labels), torch.tensor([[0, 1]]))
fast = curation.greedy_select(objective, 12).ids.tolist()
assert fast == slow
print("picked:", fast)

# %% [markdown]
# The first picks are ties: one clip has no information, and the second gives $\log 2$ if it differs from the first in
# both clusters. What the greedy algorithm does early is to spread over new cells, and only then does agreement count.
#
# **Never compare two values of different $n$ or $C$.** Independent labels, and what the formula for the bias says:

# %% tags=["nbval-check-output"]
rows = {}
for count, n in ((8, 500), (32, 500), (32, 2000), (128, 2000)):
    pair = torch.from_numpy(np.random.default_rng(1).integers(count, size=(n, 2)))
    value = float(curation.mutual_information(curation.contingency_table(pair[:, 0], pair[:, 1])))
    rows[f"C={count}, n={n}"] = {"estimate": value, "$(C-1)^2/2n$": curation.independence_bias(count, count, n)}
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# Nothing shared, and up to two nats of "information" and more. While clips are compared at one $n$, this does no harm;
# but where $C$ is large, the differences that chance makes drown those that correspondence makes.
#
# ## The method, from library parts
#
# **1. Describe.** Two frozen networks, five layers each, averaged over time and space. The paper takes a SlowFast
# network trained on Kinetics-400 and VGGish trained on YouTube-8M: networks that learned *from labels, elsewhere*, one
# modality each. Ours are small and learn the eight shapes from the labels of other clips of the playground, in good
# condition (`supervised`). Beside them, networks that were never trained (`random`), and, in the ledger, networks that
# learned from the very pool that is to be judged, bad pairs and all (`pool`).


# %% tags=["define"]
class Heard(Dataset):
    """Windows of a pool's clips, heard with the sound that the pool gives them; of the rows that are asked for."""

    def __init__(self, pool: Pool, windows: avdata.WindowDataset | avdata.UniformDataset, rows: Tensor | None = None):
        self.pool, self.windows = pool, windows
        self.rows = torch.arange(len(windows)) if rows is None else rows
        self.max_bad_share = getattr(windows, "max_bad_share", 0.0)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | tuple[int, int]) -> avdata.Item:
        place = (key[0], int(self.rows[key[1]])) if isinstance(key, tuple) else int(self.rows[key])
        item = self.windows[place]
        row, pool = item["row"], self.pool  # of the clip that was read, where another had to be replaced
        source, shift = int(pool.sound_of[row]), float(pool.shift_s[row])
        if source != row or shift:
            item["waveform"] = torch.stack([self.sound(source, float(t) + shift) for t in item["start_s"]])
        return item

    def sound(self, row: int, start_s: float) -> Tensor:
        """Sound of a window that begins at ``start_s``, or as far from the beginning as that lies beyond the end."""
        spec, corpus = self.windows.spec, self.pool.corpus
        last = max(float(corpus.index["duration_s"].iat[row]) - spec.span_s, 1e-3)
        start_s = start_s if start_s <= last else start_s % last
        asked = {"num_samples": spec.num_samples, "sample_rate": spec.sample_rate}
        if self.pool.cache is not None:
            return self.pool.cache.samples(row, start_s, **asked)
        with media.MediaReader(corpus.source(row)) as reader:
            return reader.samples(start_s, **asked).clamp(-1.0, 1.0)


# %% tags=["define"]
@dataclass(frozen=True)
class Clips:
    """What a curation is given: a feature of every column of every clip, and what only the benchmark knows."""

    features: tuple[Tensor, ...]  # of each column (N, d): layers of sight from shallow to deep, then those of sound
    layers: tuple[int, int]
    good: Tensor  # bool (N,)
    classes: Tensor | None = None  # of what is seen (N,)

    def __len__(self) -> int:
        return len(self.good)

    def arranged(self, source: Tensor) -> Clips:
        """The same clips with the features of clip ``source[k, n]`` in column ``k`` of clip ``n``."""
        return replace(self, features=tuple(x[rows] for x, rows in zip(self.features, source, strict=True)))


def torn(clips: Clips, seed: int) -> Clips:
    """The released negatives: the features of bad clips are permuted in every layer on its own."""
    generator, source = torch.Generator().manual_seed(seed), torch.arange(len(clips)).repeat(len(clips.features), 1)
    bad = (~clips.good).nonzero()[:, 0]
    for row in source:
        row[bad] = bad[torch.randperm(len(bad), generator=generator)]
    return clips.arranged(source)


# %% tags=["define"]
def build_model(config: ACAVConfig, seed: int) -> encoders.AudioVisualModel:
    """Sight and sound encoders with projection heads onto one unit sphere; weights drawn by ``seed``."""
    return encoders.small(seed=seed, width=config.width, audio_width=config.audio_width, embedding_dim=config.embed_dim)


class Augment:
    """Raw windows to network inputs; everything random comes from the generator it is handed."""

    def __init__(self, config: ACAVConfig) -> None:
        self.clip, self.volume = transforms.ClipAugment(config.crop), transforms.VolumeJitter()
        self.log_mel = transforms.LogMelSpectrogram(
            sample_rate=config.sample_rate, n_mels=config.n_mels, n_fft=config.n_fft
        )
        self.mask = transforms.SpecAugment()

    def __call__(self, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clips ``(B, 3, T, crop, crop)`` and spectrograms ``(B, 1, F, T')`` of one window a clip."""
        ready = training.prepare_windows(
            batch,
            clip_augment=self.clip,
            log_mel=self.log_mel,
            generator=generator,
            waveform_augment=self.volume,
            spec_augment=self.mask,
        )
        return ready.views()


def fit_config(config: ACAVConfig, seed: int, steps: int) -> training.FitConfig:
    """What the parameters say about optimisation."""
    return training.FitConfig(
        steps=steps,
        optimiser="adamw",
        lr=config.lr,
        weight_decay=config.weight_decay,
        warmup_steps=min(config.warmup_steps, steps // 2),
        schedule="cosine",
        log_every=max(1, steps // 50),
        seed=seed,
    )


# %% tags=["define"]
def learn_from_labels(config: ACAVConfig, seed: int, run: training.World) -> encoders.AudioVisualModel:
    """Networks from elsewhere: each sense trained with the events of *other* clips, as SlowFast and VGGish were."""
    recipe = Correspondence(**RECIPE, overdub=0.0)
    folder = build_playground(recipe, clips=config.teacher_clips, seed=seed + 1000, progress=False)
    corpus = avdata.Corpus.load(folder)
    codes, names = corpus.codes("label_event")
    label_of = torch.tensor(codes)
    cache = avdata.DecodedCache.build(corpus, window_spec(config), progress=False) if config.cache else None
    windows = avdata.WindowDataset(corpus, window_spec(config), seed=seed, cache=cache)
    model, augment = build_model(config, seed).to(run.device), Augment(config)
    with encoders.seeded_init(seed):
        heads = nn.ModuleList(nn.Linear(tower.encoder.dim, len(names)) for tower in (model.video, model.audio))
    learner = nn.ModuleList([model.video.encoder, model.audio.encoder, heads])
    count = min(config.samples_per_step // 2, len(windows)) // run.world_size

    def step(learner: nn.Module, batch: dict[str, Tensor], generator: torch.Generator):
        sight, sound, (see, hear) = learner
        label = label_of[batch["row"].cpu()].to(run.device)
        clips, spectrograms = augment(batch, generator)
        said = see(sight(clips)), hear(sound(spectrograms))
        return sum(F.cross_entropy(each, label) for each in said), {}

    loader = training.window_loader(windows, count, seed=seed, world=run, workers=config.workers)
    training.fit(learner, loader.batches, step, fit_config(config, seed, config.steps), world=run)
    return model.eval()


# %% tags=["define"]
def learn_from_pairs(
    pool: Pool,
    config: ACAVConfig,
    seed: int,
    run: training.World,
    steps: int,
    rows: Tensor | None = None,
    **options: object,
) -> tuple[encoders.AudioVisualModel, training.FitResult]:
    """Contrast sight with sound over the pool's pairs as they come, bad ones included: GDT's hypothesis (e)."""
    model, augment = build_model(config, seed).to(run.device), Augment(config)
    windows = avdata.WindowDataset(pool.corpus, window_spec(config), seed=seed, cache=pool.cache)
    heard = Heard(pool, windows, rows)
    count = min(config.samples_per_step // 2, len(heard)) // run.world_size
    loader = training.window_loader(heard, count, seed=seed, world=run, workers=config.workers)

    def step(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator):
        sight, sound = model(*augment(batch, generator))
        loss = losses.symmetric_info_nce(sight, sound, temperature=config.temperature, collectives=run.collectives)
        return loss, {}

    fitted = training.fit(model, loader.batches, step, fit_config(config, seed, steps), world=run, **options)
    return model.eval(), fitted


# %% tags=["define"]
def make_networks(
    kind: str, pool: Pool, config: ACAVConfig, seed: int, run: training.World
) -> encoders.AudioVisualModel:
    """Networks that describe clips: from labels of other clips, from this pool without labels, or untrained."""
    if kind == "supervised":
        return learn_from_labels(config, seed, run)
    if kind == "pool":
        return learn_from_pairs(pool, config, seed, run, config.steps)[0]
    return build_model(config, seed).to(run.device).eval()


def extractors(model: encoders.AudioVisualModel, config: ACAVConfig) -> tuple[networks.Extractor, networks.Extractor]:
    """Five layers of each network, as ``avssl data curate`` takes them."""
    inputs = networks.Inputs(
        config.num_frames, config.fps, config.decode_size, config.crop, config.sample_rate, config.n_mels, config.n_fft
    )
    sight, sound = model.video.encoder.cpu(), model.audio.encoder.cpu()
    return (
        networks.VideoExtractor(sight, inputs, networks.book_layers(sight)),
        networks.AudioExtractor(sound, inputs, networks.book_layers(sound)),
    )


def make_extractors(
    kind: str, pool: Pool, config: ACAVConfig, seed: int, run: training.World
) -> tuple[networks.Extractor, networks.Extractor]:
    """What describes sight and sound: networks made here, or those that the parameters name (``given``)."""
    if kind != "given":
        return extractors(make_networks(kind, pool, config, seed, run), config)
    asked = ("video", config.video_network, config.video_weights), ("audio", config.audio_network, config.audio_weights)
    choices = [networks.Choice(side, name or None, weights or None) for side, name, weights in asked]
    return tuple(networks.build_extractor(networks.chosen(choice)) for choice in choices)


# %% tags=["define"]
def describe(pool: Pool, pair: tuple[networks.Extractor, networks.Extractor], config: ACAVConfig) -> Clips:
    """Features of every layer, the mean over a clip's windows, or a column for each window (``each_window``)."""
    dataset = Heard(pool, avdata.UniformDataset(pool.corpus, window_spec(config, config.windows), cache=pool.cache))
    found: list[dict[str, list[Tensor]]] = [{}, {}]
    for batch in avdata.make_loader(dataset, 128, workers=config.workers):
        shown = batch["frames"].flatten(0, 1).transpose(1, 2), batch["waveform"].flatten(0, 1)  # (B K, 3, T, H, W)
        for features, extractor, windows in zip(found, pair, shown, strict=True):
            for layer, x in extractor(windows).items():
                features.setdefault(layer, []).append(x.unflatten(0, (-1, config.windows)))  # (B, K, d)
    columns: list[list[Tensor]] = [[], []]
    for side, features in zip(columns, found, strict=True):
        for parts in features.values():
            x = torch.cat(parts)  # (N, K, d)
            side += list(x.unbind(1)) if config.each_window else [x.mean(1)]
    index = pool.corpus.index
    known = "label_event" in index and index["label_event"].notna().all()  # slides have no event
    classes = torch.tensor(pool.corpus.codes("label_event")[0]) if known else None
    return Clips((*columns[0], *columns[1]), (len(columns[0]), len(columns[1])), pool.good, classes)


# %% [markdown]
# **2. Cluster** every layer. **3. Choose**: pairs of layers by a *scheme*, and a greedy algorithm. Ten columns give 5
# pairs of equal depth (`diagonal`), 25 across the modalities (`bipartite`), 45 in all (`combination`), of which 20 are
# within one modality (`intra`):

# %% tags=["nbval-check-output"]
print({scheme: len(curation.pairing(scheme, (5, 5))) for scheme in curation.pairings.SCHEMES})

# %% [markdown]
# Exact greedy compares all clips for every pick. **Batch greedy** (Algorithm 3) draws $b$ clips, picks $s$ of them one
# after the other, and puts the others back. The ratio $s/b$ matters: a batch holds no more good clips than the pool, so
# that taking half of every batch from a pool that is half good leaves no choice at all.


# %% tags=["define"]
def lloyd(features: Tensor, clusters: int, seed: int) -> Tensor:
    """Cluster of each clip, int64 ``(N,)``: k-means until nothing moves, each dimension of unit variance."""
    return torch.from_numpy(
        KMeans(clusters, n_init=1, random_state=seed).fit(curation.unit_variance(features).numpy()).labels_
    ).long()


def released_kmeans(rescue: str, epochs: int) -> Callable[[Tensor, int, int], Tensor]:
    """SGD k-means with the release's discount of dying centres, or the paper's re-initialisation of unused ones."""

    def cluster(features: Tensor, clusters: int, seed: int) -> Tensor:
        x = curation.unit_variance(features)
        how = curation.SGDKMeans(clusters, epochs=epochs, rescue=rescue, decaying=rescue == "discount", seed=seed)
        return curation.assign_clusters(x, curation.sgd_kmeans(x, how), rescue=rescue)

    return cluster


def cluster_all(clips: Clips, clusters: int, seed: int, method: Callable[[Tensor, int, int], Tensor] = lloyd) -> Tensor:
    """Cluster every column: int64 ``(N, D)``."""
    return torch.stack([method(x, clusters, seed) for x in clips.features], dim=1)


# %% tags=["define"]
@dataclass(frozen=True)
class How:
    """How clips are chosen: which columns are compared, by which algorithm."""

    scheme: str = "bipartite"
    depth: int | None = None  # of a diagonal: this layer alone
    batch: int = 100  # clips drawn a round; 0 for exact greedy
    picks: int = 25  # of them
    inner: str = "sequential"  # Algorithm 3; "top": as released
    weights: tuple[str, float] | None = None  # growth and slope of the layers' weights


def choose(labels: Tensor, layers: tuple[int, int], size: int, how: How, seed: int) -> Tensor:
    """Ids of the chosen clips, int64 ``(size,)``, in the order of choosing."""
    pairs = curation.pairing(how.scheme, layers, depth=how.depth)
    weights = None
    if how.weights is not None:
        by_layer = torch.cat([curation.layer_weights(*how.weights, count) for count in layers])
        weights = curation.pair_weights(by_layer, pairs)
    objective = curation.PairwiseInformation(labels, pairs, weights=weights)
    if not how.batch:
        return curation.greedy_select(objective, size).ids
    plan = curation.BatchPlan(how.batch, how.picks, how.inner, seed=seed)
    return curation.batch_greedy_select(objective, size, plan).ids


# %% tags=["define"]
EARLY = 0.1  # of the selection


def scored(name: str, ids: Tensor, clips: Clips) -> dict[str, float]:
    """Share of good clips in a selection, and in its first tenth; how evenly it covers the classes."""
    curve = curation.precision_curve(ids, clips.good)
    found = {name: float(curve[-1]), f"{name}_early": float(curve[max(0, round(EARLY * len(ids)) - 1)])}
    if clips.classes is not None:
        seen = torch.bincount(clips.classes[ids], minlength=int(clips.classes.max()) + 1)
        found[f"{name}_entropy"] = float(curation.entropy(seen))
    return found


SCHEMES = ("diagonal", "bipartite", "combination", "intra")


def ask_schemes(labels: Tensor, clips: Clips, size: int, seed: int) -> dict[str, float]:
    """Precision by pairing scheme, in batches and by exact greedy; and of single layers."""
    found = {}
    hows = {scheme: How(scheme) for scheme in SCHEMES} | {
        f"{scheme}_greedy": How(scheme, batch=0) for scheme in SCHEMES
    }
    if len(set(clips.layers)) == 1:
        hows |= {f"layer_{depth + 1}": How("diagonal", depth) for depth in range(clips.layers[0])}
    for name, how in hows.items():
        found |= scored(name, choose(labels, clips.layers, size, how, seed), clips)
    return found


# %% [markdown]
# ### Watch it choose
#
# The networks learn, describe the pool, and the algorithm chooses as many clips as there are good ones. Precision is
# the share of good clips among those chosen so far.

# %%
results: dict[str, dict[str, float]] = {}
described: dict[str, Clips] = {}
labelled: dict[str, Tensor] = {}
for kind in config.features.split(","):
    pair = make_extractors(kind, pool, config, config.seed, run)
    described[kind] = describe(pool, pair, config)
    labelled[kind] = cluster_all(described[kind], config.clusters, config.seed)
size = int(pool.good.sum())

# %%
curves = {}
for kind, columns in labelled.items():
    for scheme in ("diagonal", "combination"):
        how = How(scheme, batch=config.batch, picks=config.picks)
        ids = choose(columns, described[kind].layers, size, how, config.seed)
        curves[f"{kind}, {scheme}"] = (range(1, size + 1), curation.precision_curve(ids, pool.good).tolist())
ax = figures.learning_curves(curves, label="share of good clips among those chosen")
_ = ax.set(xlabel="clips chosen", ylim=(0.2, 1.02))
figures.reference_line(ax, float(pool.good.double().mean()), "chance")

# %% [markdown]
# One seed, so read it as a hint. Two things to look for: trained features should lie above chance and random ones at
# it; and the pairs within a modality, which `combination` adds, need not help.
#
# A table before and after. Left, the whole pool, deepest layer of sight against deepest layer of sound; right, the
# chosen half. Columns are sorted so that large cells lie on the diagonal where they can.


# %% tags=["define"]
def tables_before_and_after(labels: Tensor, layers: tuple[int, int], ids: Tensor) -> list[np.ndarray]:
    """Contingency tables of the deepest layers, of the pool and of the chosen clips, in one order of the columns."""
    from scipy.optimize import linear_sum_assignment

    deepest_pair = labels[:, [layers[0] - 1, -1]]
    before, after = (curation.contingency_table(*rows.T).numpy() for rows in (deepest_pair, deepest_pair[ids]))
    whole = np.zeros_like(before)
    whole[: after.shape[0], : after.shape[1]] = after
    order = linear_sum_assignment(-whole)[1] if whole.shape[0] <= whole.shape[1] else np.arange(whole.shape[1])
    return [table[:, [*order, *sorted(set(range(table.shape[1])) - set(order))]] for table in (before, whole)]


# %%
kind = next(iter(labelled))
ids = choose(labelled[kind], described[kind].layers, size, How("diagonal"), config.seed)
figure, axes = plt.subplots(1, 2, figsize=(8, 3.4))
for ax, table, title in zip(
    axes, tables_before_and_after(labelled[kind], described[kind].layers, ids), ("pool", "chosen"), strict=True
):
    sns.heatmap(table, ax=ax, cmap="Greys", square=True, cbar_kws={"label": "clips"})
    ax.set(title=title, xlabel="cluster of sound", ylabel="cluster of sight")

# %% [markdown]
# ### A world of features
#
# Files are slow and few. Most of what follows is asked of a *simulated* world instead: clips of 16 classes, ten columns
# of features, in which the class grows stronger with depth, while each modality has a nuisance of its own that all its
# layers show. Drawing it takes a second, so that every question is asked of five redrawn worlds.


# %% tags=["define"]
@dataclass(frozen=True)
class Simulated:
    """A cell on the world of features: the world, how it is spoiled, and what is asked."""

    world: ClusterWorld = field(default_factory=ClusterWorld)
    positives: float = 0.5
    learned: float | None = None  # share of good pairs among those that heads learn from; that of the pool if None
    level: str = "clip"  # "class": good pairs are different clips of one class
    leak: bool = False
    asked: tuple[str, ...] = ("schemes",)


def simulate(cell: Simulated, config: ACAVConfig, seed: int) -> tuple[Clips, Clips]:
    """Clips to choose from, and as many others of the same world for the rival to learn from."""
    drawn = replace(cell.world, clips=2 * config.world_clips).draw(seed)
    halves = []
    for half, share in enumerate((cell.positives, cell.positives if cell.learned is None else cell.learned)):
        rows = torch.arange(half, 2 * config.world_clips, 2)
        classes, drawing = drawn.classes[rows], 2 * seed + half
        if cell.level == "class" and half == 0:
            pairs = curation.class_level_set(classes, drawn.layers, positives=share, seed=drawing)
        else:
            pairs = curation.sample_level_set(len(rows), drawn.layers, positives=share, seed=drawing)
        clips = Clips(tuple(x[rows] for x in drawn.features), drawn.layers, pairs.is_positive, classes)
        halves.append(clips.arranged(pairs.source))
    return (torn(halves[0], seed) if cell.leak else halves[0]), halves[1]


UNRELATED = ClusterWorld(gains=(0.0,) * 5)
FLAT = ClusterWorld(gains=(0.6,) * 5)
SIMULATED = {
    "world": Simulated(asked=("schemes", "ratios", "counts", "kmeans", "weights", "rivals")),
    "world-leaked": Simulated(leak=True, asked=("schemes", "weights")),
    "world-unrelated": Simulated(UNRELATED, asked=("schemes", "rivals")),
    "world-flat": Simulated(FLAT),
    "world-matched": Simulated(learned=1.0, asked=("schemes", "rivals")),
    "world-classes": Simulated(learned=1.0, level="class", asked=("schemes", "rivals")),
    "world-mostly-bad": Simulated(positives=0.2, asked=("schemes", "rivals")),
    "world-even": Simulated(asked=("diversity",)),
    "world-uneven": Simulated(ClusterWorld(zipf=1.0), asked=("diversity",)),
    "world-time": Simulated(asked=("time",)),
}


# %%
world = SIMULATED["world"]
clips_of, others_of = simulate(world, config, config.seed)
columns = cluster_all(clips_of, world.world.classes, config.seed)
honest = ask_schemes(columns, clips_of, int(clips_of.good.sum()), config.seed)
print(f"{len(clips_of)} clips, {float(clips_of.good.double().mean()):.0%} good, {len(clips_of.features)} columns")
pd.Series({name: honest[name] for name in (*(f"layer_{n}" for n in range(1, 6)), *SCHEMES)}).round(3).to_frame(
    "precision"
)

# %% [markdown]
# ## The leak
#
# Look at the last two lines: `intra`, the pairs within a modality, are at chance, as they must be, since they know
# nothing of the other modality; and `combination`, which adds them, is worse than `bipartite`. The paper has it the
# other way round, and by far: 77.0 for bipartite, **88.7 for combination**. How can pairs that know nothing of
# correspondence add twelve points?
#
# The released evaluation gives the answer. A bad pair is made by permuting: the sound of clip $i$ goes to clip $j$.
# The code keeps its features in a dictionary of *data set × layer*, and permutes **every entry on its own**. So the
# layers of a bad clip's picture come from five different clips, and those of its sound from five others; only good
# clips are of one piece. Whoever asks whether two layers *of the same modality* agree finds the bad clips at once,
# without looking across at all. This is what `intra` measures, and what combination adds. (Read from the code;
# whether the printed numbers were made with it cannot be known from here.)


# %% tags=["nbval-check-output"]
example = curation.sample_level_set(8, (2, 2), seed=0)
leaky = curation.sample_level_set(8, (2, 2), per_layer=True, seed=0)
print("a negative, honest: ", example.source[:, ~example.is_positive][:, 0].tolist())
print("a negative, released:", leaky.source[:, ~leaky.is_positive][:, 0].tolist())
print(f"torn negatives: honest {example.torn():.0%}, released {leaky.torn():.0%}")
assert example.torn() == 0 < leaky.torn()

# %% [markdown]
# The four numbers are the clips that layers 1 and 2 of sight and of sound were taken from. The same choice again, from
# the same features, with the negatives torn:

# %%
torn_clips = torn(clips_of, config.seed)
torn_columns = cluster_all(torn_clips, world.world.classes, config.seed)
leaked = ask_schemes(torn_columns, torn_clips, int(torn_clips.good.sum()), config.seed)
sides = pd.DataFrame({"honest": honest, "torn layer by layer": leaked}).loc[
    [*SCHEMES, *(f"{s}_greedy" for s in SCHEMES)]
]
ax = sides.plot.barh(
    color=figures.COLOURS[:2], edgecolor="black", xlabel="share of good clips among the chosen", ylabel=""
)
for bar in ax.containers[1]:
    bar.set_hatch("//")
ax.invert_yaxis()
ax.axvline(0.5, color="0.4", ls="--")  # chance
_ = ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, title="bad pairs (dashed line: chance)")

# %% [markdown]
# `intra` jumps from chance to where the others are, and with exact greedy combination comes out on top, as in the
# paper's table. The same on the video files above, for networks that were *never trained*:

# %%
for kind in described:
    again = torn(described[kind], config.seed)
    found = ask_schemes(cluster_all(again, config.clusters, config.seed), again, size, config.seed)
    plain = ask_schemes(labelled[kind], described[kind], size, config.seed)
    results[kind] = {name: plain[name] for name in SCHEMES} | {f"{name}_leaked": found[name] for name in SCHEMES}
pd.DataFrame(results).round(3)

# %% [markdown]
# With torn negatives even random networks find the "good" clips, from either modality alone, without a single look at
# what the clips' sight has to do with their sound. So this benchmark, read at face value, would reward a method that
# ignores the question. On honest negatives the pairs within a modality are dead weight; `avssl data curate` therefore
# compares across the modalities only. At the paper's full scale nobody permutes anything, and combination does there
# whatever it does honestly.
#
# ## The rival, and how it is handicapped
#
# Contrastive learning could judge clips, too (eq. 4.1): put a linear head on the last layer of each network, train
# them with InfoNCE on the pool as it comes, and score each clip by the cosine of its two embeddings. It learns from
# what it will judge: where pairs are bad, it is taught that they belong together.


# %% tags=["define"]
def deepest(clips: Clips) -> tuple[Tensor, Tensor]:
    """The last layer of sight and of sound, each dimension of unit variance."""
    return curation.unit_variance(clips.features[clips.layers[0] - 1]), curation.unit_variance(clips.features[-1])


def contrastive_scores(clips: Clips, learned_from: Clips, epochs: int, seed: int, accumulate: bool = False) -> Tensor:
    """The rival (eq. 4.1): two linear heads trained on pairs as they come; the cosine of each clip's embeddings."""
    sight, sound = deepest(learned_from)
    with encoders.seeded_init(seed):
        heads = curation.CorrespondenceHeads(sight.shape[1], sound.shape[1])

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(sight), generator=transforms.generator_for(seed, epoch))
        return ((sight[rows], sound[rows]) for rows in torch.split(order, 10) if len(rows) > 1)

    how = curation.HeadTraining(epochs=epochs, warmup=min(3, epochs), accumulate=accumulate)
    curation.train_heads(heads, batches, how)
    return heads.scores(*deepest(clips))


def ask_rivals(clips: Clips, learned_from: Clips, size: int, epochs: int, seed: int) -> dict[str, float]:
    """Precision of the rivals: trained heads, and likeness without training after PCA."""
    found = {}
    for name, accumulate in (("contrastive", False), ("contrastive_accumulated", True)):
        scores = contrastive_scores(clips, learned_from, epochs, seed, accumulate)
        found |= scored(name, curation.top_share(scores, size / len(clips)), clips)
    width = min(64, *(x.shape[1] for x in deepest(clips)))
    columns = [curation.principal_components(x, width) for x in deepest(clips)]
    for name, likeness in (("cosine", "cosine_similarity"), ("inner", "inner_product"), ("l2", "euclidean_diff_l2")):
        scores = curation.rank_scores(columns, torch.tensor([[0, 1]]), likeness)
        found |= scored(name, curation.top_share(scores, size / len(clips)), clips)
    return found


# %% tags=["define"]
def ask_diversity(labels: Tensor, clips: Clips, learned_from: Clips, epochs: int, seed: int) -> dict[str, float]:
    """Entropy of the classes among a tenth of the pool, chosen by information, by the rival, and by nothing."""
    size = len(clips) // 10
    scores = contrastive_scores(clips, learned_from, epochs, seed)
    chosen = {
        "tenth": choose(labels, clips.layers, size, How(picks=5), seed),
        "tenth_contrastive": scores.argsort(descending=True)[:size],
        "tenth_random": torch.randperm(len(clips), generator=torch.Generator().manual_seed(seed))[:size],
    }
    return {key: value for name, ids in chosen.items() for key, value in scored(name, ids, clips).items()}


TIMED = (2000, 4000, 8000, 16000)  # clips


def ask_time(seed: int) -> dict[str, float]:
    """By which power of the number of clips processor time grows, when a quarter is chosen."""
    spent: dict[str, list[float]] = {"greedy": [], "sequential": [], "top": []}
    hows = {"greedy": How(batch=0), "sequential": How(picks=5), "top": How(picks=5, inner="top")}
    for size in TIMED:
        labels = torch.randint(16, (size, 10), generator=torch.Generator().manual_seed(seed))
        for name, how in hows.items():
            start = time.process_time()
            choose(labels, (5, 5), size // 4, how, seed)
            spent[name].append(time.process_time() - start)
    slope = {name: float(np.polyfit(np.log(TIMED), np.log(times), 1)[0]) for name, times in spent.items()}
    return {f"exponent_{name}": value for name, value in slope.items()} | {
        f"seconds_{name}": times for name, times in spent.items()
    }


# %%
rivals = ask_rivals(clips_of, others_of, int(clips_of.good.sum()), config.head_epochs, config.seed)
names = {"contrastive": "trained heads", "contrastive_accumulated": "as released, gradients never cleared"}
names |= {"cosine": "cosine of principal components", "inner": "their inner product", "l2": "their distance"}
table = pd.Series({names[name]: rivals[name] for name in names} | {"information, bipartite": honest["bipartite"]})
table.round(3).to_frame("precision")

# %% [markdown]
# The three likenesses without training have nothing to go by: principal components of two spaces have nothing to do
# with each other, and what they find above or below one half is luck of this world's draw. (In the paper they reach
# 60 % on Kinetics-Sounds, and 87 % where both sides are pictures described by one network.) Whether heads or
# information win depends on what heads are given to learn from; the ledger below asks it with equal mixtures, with good
# pairs only, and with four bad pairs in five.
#
# ## How much may be taken of a batch, and how many clusters?


# %% tags=["define"]
RATIOS = (3, 5, 10, 25, 50, 80, 100)  # picks of a batch of 100


def ask_ratios(labels: Tensor, clips: Clips, size: int, seed: int) -> dict[str, float]:
    """Precision as more of each batch is taken, by both procedures; what a small ratio loses to exact greedy."""
    found = {}
    for inner, ratio in [
        *(("sequential", r) for r in RATIOS),
        *(("top", r) for r in RATIOS),
        ("sequential", 1),
        ("top", 1),
    ]:
        how = How(picks=ratio, inner=inner)
        found |= scored(f"{inner}_{ratio}", choose(labels, clips.layers, size, how, seed), clips)
    exact = scored("greedy", choose(labels, clips.layers, size, How(batch=0), seed), clips)
    lost = {f"lost_to_greedy_{ratio}": exact["greedy"] - found[f"sequential_{ratio}"] for ratio in RATIOS}
    return found | exact | lost


COUNTS = (4, 8, 16, 32, 64, 128)


def ask_counts(clips: Clips, size: int, seed: int) -> dict[str, float]:
    """Precision by the number of clusters, with the paper's batches and by exact greedy."""
    found = {}
    for count in COUNTS:
        labels = cluster_all(clips, count, seed)
        found |= scored(f"clusters_{count}", choose(labels, clips.layers, size, How(), seed), clips)
        found |= scored(f"clusters_{count}_greedy", choose(labels, clips.layers, size, How(batch=0), seed), clips)
    return found


# %% tags=["define"]
def ask_kmeans(clips: Clips, clusters: int, size: int, epochs: int, seed: int) -> dict[str, float]:
    """Precision by the way of clustering: until nothing moves, as released, as printed."""
    methods = {"lloyd": lloyd} | {
        f"sgd_{rescue}": released_kmeans(rescue, epochs) for rescue in ("discount", "reinitialise")
    }
    found, labels = {}, {}
    for name, method in methods.items():
        labels[name] = cluster_all(clips, clusters, seed, method)
        found |= scored(name, choose(labels[name], clips.layers, size, How(), seed), clips)
    for name in ("sgd_discount", "sgd_reinitialise"):
        found[f"{name}_lost_to_lloyd"] = found["lloyd"] - found[name]
        found[f"{name}_used"] = float(np.mean([len(torch.unique(column)) / clusters for column in labels[name].T]))
    return found


WEIGHTS = {
    "exp_minus_10": ("exp", -10.0),
    "exp_minus_1": ("exp", -1.0),
    "exp_1": ("exp", 1.0),
    "exp_10": ("exp", 10.0),
    "linear_minus_1": ("linear", -1.0),
    "linear_1": ("linear", 1.0),
    "linear_10": ("linear", 10.0),
}


def ask_weights(labels: Tensor, clips: Clips, size: int, seed: int) -> dict[str, float]:
    """Precision by the weights of the layers (Table 4.5), across the modalities and over all pairs."""
    found = {}
    for name, weights in WEIGHTS.items():
        for scheme in ("bipartite", "combination"):
            how = How(scheme, weights=weights)
            found |= scored(f"{name}_{scheme}", choose(labels, clips.layers, size, how, seed), clips)
    return found


# %%
ratios = ask_ratios(columns, clips_of, int(clips_of.good.sum()), config.seed)
lines = {
    {"sequential": "Algorithm 3", "top": "released: best s at once"}[inner]: (
        [ratio / 100 for ratio in RATIOS],
        [ratios[f"{inner}_{ratio}"] for ratio in RATIOS],
    )
    for inner in ("sequential", "top")
}
ax = figures.learning_curves(
    lines, floors={"exact greedy": ratios["greedy"]}, label="share of good clips among the chosen"
)
_ = ax.set(xlabel="share of each batch that is taken, s / b")

# %% [markdown]
# Half of the pool is good. Up to a tenth of a batch costs next to nothing, at a quarter a few points are gone, beyond
# that choosing turns into taking what comes. The paper's retrieval experiments take a quarter; its large-scale run a
# twentieth.

# %%
counted = ask_counts(clips_of, int(clips_of.good.sum()), config.seed)
lines = {
    "final": (COUNTS, [counted[f"clusters_{count}"] for count in COUNTS]),
    "first tenth of the selection": (COUNTS, [counted[f"clusters_{count}_early"] for count in COUNTS]),
}
ax = figures.learning_curves(lines, label="share of good clips among the chosen")
ax.set_xscale("log", base=2)
_ = ax.set(xlabel="clusters of each column (16 classes)")

# %% [markdown]
# Too few clusters mix classes, and agreement means little. Too many leave each cell with a handful of clips, and the
# bias above takes over: with 128 clusters and 800 clips, chance alone shows more information than sixteen classes can
# hold.
#
# ## Files, subsets, and real sentences
#
# The remaining definitions: how a pool that was described is questioned, and the paper's last claim, learning from a
# part of the pool. A network with its heads (GDT's hypothesis (e), sight against sound) learns from the chosen half, a
# random half, or only good clips, for equally many steps, and a linear probe asks its sight for the event.


# %% tags=["define"]
def ask_files(clips: Clips, config: ACAVConfig, seed: int) -> dict[str, float]:
    """Precision on clips from files: by scheme, under torn negatives, by number of clusters, beside the rival."""
    size, labels = int(clips.good.sum()), cluster_all(clips, config.clusters, seed)
    found = ask_schemes(labels, clips, size, seed)
    leaked = torn(clips, seed)
    again = ask_schemes(cluster_all(leaked, config.clusters, seed), leaked, size, seed)
    found |= {f"{name}_leaked": value for name, value in again.items()}
    found |= ask_rivals(clips, clips, size, config.head_epochs, seed)
    if clips.classes is not None:
        for side, column in zip(("sight", "sound"), (clips.layers[0] - 1, -1), strict=True):
            table = curation.contingency_table(labels[:, column], clips.classes)
            found[f"{side}_knows_event"] = float(curation.adjusted_mutual_information(table))
    return found


# %% tags=["define"]
def own_scores(model: encoders.AudioVisualModel, pool: Pool, config: ACAVConfig) -> Tensor:
    """What the networks themselves say of each pair: mean cosine of both embeddings over a clip's windows, ``(N,)``."""
    dataset = Heard(pool, avdata.UniformDataset(pool.corpus, window_spec(config, config.windows), cache=pool.cache))
    clip, log_mel, model = transforms.ClipEval(config.crop), Augment(config).log_mel, model.cpu()
    scores = []
    with torch.inference_mode():
        for batch in avdata.make_loader(dataset, 128, workers=config.workers):
            frames, sound = batch["frames"].flatten(0, 1), batch["waveform"].flatten(0, 1)
            z_v, z_a = model(clip(transforms.to_float(frames)), log_mel(sound))
            scores.append((z_v * z_a).sum(1).unflatten(0, (-1, config.windows)).mean(1))
    return torch.cat(scores)


# %% tags=["define"]
def ask_subset(cell: OnFiles, pool: Pool, config: ACAVConfig, seed: int, run: training.World) -> dict[str, float]:
    """Learn from a part of the pool, always for as many steps, and probe what sight has learned."""
    size = round(config.keep * len(pool.good))
    at_random = torch.randperm(len(pool.good), generator=torch.Generator().manual_seed(seed))
    rows = {
        "all": torch.arange(len(pool.good)),
        "random": at_random[:size],
        "oracle": at_random[pool.good[at_random]][:size],
    }
    if cell.subset == "curated":
        model = make_networks(cell.features, pool, config, seed, run)
        clips = describe(pool, extractors(model, config), config)
        rows["curated"] = choose(
            cluster_all(clips, config.clusters, seed), clips.layers, size, How(config.scheme), seed
        )
    model, fitted = learn_from_pairs(pool, config, seed, run, config.pretrain_steps, rows[cell.subset])
    found = {
        "good_share": float(pool.good[rows[cell.subset]].double().mean()),
        "learned_from": float(len(rows[cell.subset])),
    }
    return found | probes(model, pool, config) | {"final_loss": float(fitted.history["loss"].iloc[-1])}


def probes(model: encoders.AudioVisualModel, pool: Pool, config: ACAVConfig) -> dict[str, float]:
    """Accuracy of linear probes for every timed label at the moment it is seen, on held-out clips, from sight."""
    clip, found, model = transforms.ClipEval(config.crop), {}, model.cpu()
    for kind in [kind for kind in ("event", "command", "colour", "digit") if kind in set(pool.corpus.timed["kind"])]:
        sides = []
        for corpus in (pool.corpus, pool.test):
            cache = pool.cache if corpus is pool.corpus else None
            part = avdata.TimedDataset(corpus, window_spec(config), kind=kind, cache=cache)
            with torch.inference_mode():
                loader = avdata.make_loader(part, 128, workers=config.workers)
                x = [model.video.encoder(clip(transforms.to_float(batch["frames"].flatten(0, 1)))) for batch in loader]
            sides += [torch.cat(x), part.labels]
        found[f"{kind}_sight"] = evaluation.linear_probe(*sides).accuracy
    return found


# %% tags=["define"]
def kept_slides(ids: Tensor, pool: Pool) -> dict[str, float]:
    """Share of slides among the chosen clips and in the pool, where there are any."""
    if "label_domain" not in pool.corpus.index:
        return {}
    slides = torch.from_numpy((pool.corpus.index["label_domain"] == "slides").to_numpy(copy=True)).double()
    return {"kept_slides": float(slides[ids].mean()), "pool_slides": float(slides.mean())}


# %% [markdown]
# ### One cell
#
# A *cell* is one arm with one seed, independent of every other cell. Since choosing is quick, an arm here is a whole
# world or pool, and its many selections are its metrics. `avssl record acav` runs all of them and judges the claims;
# nothing in it differs from what you are reading.


# %% tags=["define"]
def run_simulated(cell: Simulated, config: ACAVConfig, seed: int) -> dict[str, float]:
    """All that is asked of one drawn world."""
    if cell.asked == ("time",):
        return ask_time(seed)
    clips, others = simulate(cell, config, seed)
    size, labels = int(clips.good.sum()), cluster_all(clips, cell.world.classes, seed)
    questions: dict[str, Callable[[], dict[str, float]]] = {
        "schemes": lambda: ask_schemes(labels, clips, size, seed),
        "ratios": lambda: ask_ratios(labels, clips, size, seed),
        "counts": lambda: ask_counts(clips, size, seed),
        "kmeans": lambda: ask_kmeans(clips, cell.world.classes, size, config.kmeans_epochs, seed),
        "weights": lambda: ask_weights(labels, clips, size, seed),
        "rivals": lambda: ask_rivals(clips, others, size, config.head_epochs, seed),
        "diversity": lambda: ask_diversity(labels, clips, others, config.head_epochs, seed),
    }
    return {key: value for name in cell.asked for key, value in questions[name]().items()}


# %% tags=["define"]
@dataclass(frozen=True)
class OnFiles:
    """A cell on video files: which networks describe them, what is asked, and what differs from the plain run."""

    features: str = "supervised"  # "supervised", "pool" or "random"
    subset: str = ""  # "all", "random", "curated" or "oracle": learn from that part of the pool and probe
    changes: tuple[tuple[str, object], ...] = ()


GRID = (
    ("data", "grid"),
    ("num_frames", 12),
    ("fps", 18.75),
    ("windows", 4),
    ("each_window", True),
    ("samples_per_step", 128),
    ("steps", 800),
    ("pretrain_steps", 800),
)
ON_FILES = {
    "clips-supervised": OnFiles(),
    "clips-random": OnFiles("random"),
    "clips-pool": OnFiles("pool", changes=(("steps", 600),)),
    "clips-slides": OnFiles(changes=(("slides", 0.3),)),
    "grid-random": OnFiles("random", changes=GRID),
    "grid-exchanged": OnFiles("pool", changes=GRID),
    "grid-shifted": OnFiles("pool", changes=(*GRID, ("wrong", "shifted"))),
    **{f"pretrain-{part}": OnFiles(subset=part) for part in ("curated", "random", "oracle", "all")},
    **{f"grid-probe-{part}": OnFiles("pool", part, GRID) for part in ("curated", "random")},
}


def run_on_files(cell: OnFiles, config: ACAVConfig, seed: int) -> dict[str, float]:
    """Describe the pool and ask how much of it is found; or learn from a part of it, and ask what was learned."""
    config = replace(config, seed=seed, **dict(cell.changes))
    run, pool = training.World.single(config.device), open_pool(config, seed)
    if cell.subset:
        return ask_subset(cell, pool, config, seed, run)
    model = make_networks(cell.features, pool, config, seed, run)
    clips, size = describe(pool, extractors(model, config), config), int(pool.good.sum())
    found = ask_files(clips, config, seed)
    if cell.features == "pool":
        best = own_scores(model, pool, config).argsort(descending=True)[:size]
        found["own_score"] = curation.precision(best, pool.good)
    ids = choose(cluster_all(clips, config.clusters, seed), clips.layers, size, How("diagonal"), seed)
    return found | kept_slides(ids, pool)


# %% tags=["define"]
ARMS: dict[str, Simulated | OnFiles] = SIMULATED | ON_FILES


def run_cell(arm: str, seed: int, config: ACAVConfig) -> dict[str, float]:
    """Measure one arm with one seed: what ``avssl record`` runs."""
    cell = ARMS[arm]
    return run_simulated(cell, config, seed) if isinstance(cell, Simulated) else run_on_files(cell, config, seed)


# %% [markdown]
# ## The verdicts: five seeds, claims written down first
#
# `claims.yaml` beside this notebook was committed before any of its cells was run. A claim compares two numbers seed by
# seed; *reproduced* needs the 95 % interval of the difference above zero, *not reproduced* needs it below the effect
# that we had said would matter, and everything else is *undecided at this size*.
#
# What was seen before: pilots on a seed that is not recorded. The smallest effects that count, the question about files
# being put to `diagonal`, and one control (exact greedy for torn negatives, since batches tie) were written with their
# figures in view; the recipe of files was changed three times until networks knew enough of its events. Orderings are
# the paper's. Cells that count processor time ran beside others on one core, which blurs exponents.

# %%
NOTHING = "*Nothing recorded yet: `avssl record acav` runs the cells.*"
ledgers = reporting.read_ledgers(CHAPTER.parents[1], "acav")
display(Markdown(reporting.verdicts_text(ledgers, corpus="playground") or NOTHING))


# %% tags=["define"]
def metrics_over_seeds(
    ledgers: list[reporting.Ledger], asked: dict[str, tuple[str, str]], label: str, chance: float | None = 0.5
) -> None:
    """One figure a ledger: a row for each name, which stands for ``(arm, metric)``; a point a seed."""
    for ledger in ledgers:
        rows = [
            {"arm": name, "seed": seed, "value": value}
            for name, (arm, metric) in asked.items()
            for seed, value in ledger.values(arm, metric).items()
        ]
        if rows:
            title = f"recorded on {ledger.device}"
            figures.arms_over_seeds(pd.DataFrame(rows), label=label, chance=chance, title=title)


# %% [markdown]
# Pairing schemes under both kinds of negatives, and beside the paper's table. A point is a seed.

# %%
PRECISION = "share of good clips among the chosen"
asked = {f"{s}, {kind}": (arm, s) for s in SCHEMES for kind, arm in (("honest", "world"), ("torn", "world-leaked"))}
metrics_over_seeds(ledgers, asked, PRECISION)

# %%
PAPER = {"layer_1": 50.820, "layer_2": 51.412, "layer_3": 52.659, "layer_4": 54.422, "layer_5": 58.418}
PAPER |= {"diagonal": 71.450, "bipartite": 76.969, "combination": 88.705}  # Table 4.4
for ledger in ledgers:
    ours = {name: [100 * v for v in ledger.values("world-leaked", f"{name}").values()] for name in PAPER}
    if all(ours.values()):
        label = "torn negatives, % good (ours)"
        figures.paper_and_ours(PAPER, ours, paper_label="Kinetics-Sounds, % (paper)", our_label=label, chance=50.0)

# %% [markdown]
# On files, described by networks that learned elsewhere and by networks that never learned:

# %%
asked = {
    f"{arm.removeprefix('clips-')}: {metric.replace('_', ', ')}": (arm, metric)
    for arm in ("clips-supervised", "clips-random")
    for metric in ("diagonal", "combination", "intra", "combination_leaked", "intra_leaked", "contrastive")
}
metrics_over_seeds(ledgers, asked, PRECISION)

# %% [markdown]
# What the networks know of the events (mutual information of the deepest clusters with the classes, adjusted for
# chance; 1 is all), and the mixture with slides: how many of the chosen clips are slides, beside their share of the
# pool. Sight and sound of a slide show tell each other "slide show", which is information as good as any, so we
# expected to find more of them among the chosen. The difference has that sign, and at this size five seeds cannot tell
# it from none. (The paper drops music videos, screencasts and the like by title and category *before* it looks at the
# rest.)

# %%
asked = {
    f"{arm}: {side}": (arm, f"{side}_knows_event")
    for arm in ("clips-supervised", "clips-random")
    for side in ("sight", "sound")
}
metrics_over_seeds(ledgers, asked, "adjusted mutual information with the event", chance=None)
# %%
asked = {"chosen": ("clips-slides", "kept_slides"), "pool": ("clips-slides", "pool_slides")}
metrics_over_seeds(ledgers, asked, "share of slides", chance=None)

# %% [markdown]
# The rivals, on four kinds of data to learn from and to judge:

# %%
asked = {
    f"{name}: {metric}": (arm, metric)
    for name, arm in (
        ("equal mixture", "world"),
        ("good pairs only", "world-matched"),
        ("mostly bad", "world-mostly-bad"),
        ("classes", "world-classes"),
    )
    for metric in ("bipartite", "bipartite_greedy", "contrastive", "contrastive_accumulated")
}
metrics_over_seeds(ledgers, asked, PRECISION, chance=None)

# %% [markdown]
# Learning from a part of the pool (extended cells; a figure appears when they are recorded):

# %%
_ = figures.recorded_arms(ledgers, "event_sight", label="event accuracy from sight", corpus="playground", chance=1 / 8)

# %% [markdown]
# ## On real video
#
# GRID lips: a thousand real sentences of one talker. Half of them are given the sound of another sentence, or their
# own sound half a second and more too late. `avssl run acav --budget grid --data DIR` runs this notebook on your
# copy. Here every sentence has a word of each kind at about the same moment, so that columns are *layer × window*:
# what the lips do in the second quarter is compared with what is heard in it. The figures are the ledger's; no faces
# are shown.

# %%
display(Markdown(reporting.verdicts_text(ledgers, corpus="grid") or NOTHING))

# %%
GRID_ASKED = ("diagonal", "intra", "intra_leaked", "contrastive", "own_score")
asked = {f"{arm}: {m}": (arm, m) for arm in ("grid-random", "grid-exchanged", "grid-shifted") for m in GRID_ASKED}
metrics_over_seeds(ledgers, asked, PRECISION)

# %% [markdown]
# ## What did not reproduce
#
# Everything that the ledger does not call reproduced, in its own words. Read *undecided* as what it says: at this
# size, five seeds cannot tell.

# %%
display(Markdown(reporting.shortfalls(ledgers) or NOTHING))

# %% [markdown]
# ## What the paper or its code got wrong
#
# - **The negatives** of the released evaluation are torn layer by layer, which favours exactly the scheme that comes
#   out best; above.
# - **Class-level negatives** are shuffled anew among the five classes that are to mismatch, so that about one in five
#   is a match by accident. A perfect judge of classes would then reach 83.3 %, less than the published 87 to 99 %:
#   those runs cannot have used that sampler.
# - **Algorithm 3** scores a batch anew after every pick; the released code takes the best $s$ of one scoring. Both are
#   in `curation.BatchPlan`, and the ledger compares them.
# - **SGD k-means**: the text re-initialises a centre used in less than $(1/k)^2$ of all steps; the code divides the
#   distances to rarely used centres by five, also when it assigns clusters in the end.
# - **The rival's gradients are never cleared** in either of its two trainings. We had expected a handicap and wrote
#   the claim down that way; see the verdict on `cleared-gradients`.
# - **One clip too few**: the exact greedy program stops one short of the size asked for, and its start is listed
#   without being counted.
# - **Table 4.5** prints the layer weights of its steepest exponential as 5e+10; $e^{20}$ is 4.9e+08. Its "linear(0.50)"
#   is slope 10 in the code, "linear(0.25)" slope 1.
# - **Units**: intervals of ±0.002 beside percentages are probably fractions.
# - **"Horizontal flip"** is a vertical one in the code. **"Whitening"** is division by the standard deviation.
# - **Figure 4.4**, the paper's last claim, is printed as bars without numbers.
#
# ## Full scale
#
# The paper's pool: 140 million videos, 1,030 years, 1.8 PB; three clips of ten seconds from each; 300 million clips
# described, clustered and chosen from in chunks. `avssl data curate` does the same to any folder, stage by stage, and
# goes on where it was stopped:
#
# ```
# avssl data curate /data/pool --keep 0.33 --clusters 500 --video r2plus1d_18 --audio-weights /data/gdt.pt
# avssl run acav --budget full-kinetics-sounds --data /data/kinetics-sounds
# ```
#
# What choosing itself costs at that size was measured on made-up labels on disk, in chunks, as the command does it; the
# last line is extrapolated in proportion to the number of clips:


# %% tags=["define"]
def projected(path: Path) -> pd.DataFrame | str:
    """Hours and memory of choosing, measured and in proportion, from the benchmark's file."""
    if not path.is_file():
        return "not measured yet: python benchmarks/curation_scale.py"
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = {
        f"{row['clips']:,} clips": {"hours": row["seconds"] / 3600, "peak memory, GiB": row["peak_GiB"]}
        for row in found["measured"]
    }
    ahead = found["projection"]
    rows[f"{ahead['clips']:,} clips, projected"] = {"hours": ahead["hours"], "peak memory, GiB": ahead["peak_GiB"]}
    return pd.DataFrame(rows).T.round(3)


# %%
display(projected(CHAPTER.parents[1] / "benchmarks" / "results" / "curation_scale.json"))


# %% tags=["define"]
def measured_step(config: ACAVConfig, pool: Pool, count: int, run: training.World) -> tuple[int, float, int]:
    """Samples, seconds and peak memory of a process whose step is ``count`` clips, after two steps to warm up."""
    tiny = replace(config, samples_per_step=2 * count * run.world_size, warmup_steps=0, workers=0, cache=False)
    _, fitted = learn_from_pairs(pool, tiny, 0, run, 3)
    ends = fitted.history["wall_s"].to_numpy()
    return 2 * count, float(ends[-1] - ends[-2]), fitted.peak_memory


def dry_run(config: ACAVConfig) -> dict[str, object]:
    """Steps on two and on three made-up clips a process: shapes, and the cost of learning at the real size."""
    check_values(config)
    run = training.join(None if config.device == "auto" or not torch.cuda.is_available() else config.device)
    seconds = config.num_frames / config.fps
    recipe = Correspondence(**(RECIPE | {"duration_s": max(2.0, seconds + 0.5)}))
    with run.main_first():
        folder = build_playground(recipe, clips=3 * run.world_size, seed=0, progress=False)
    corpus, rows = avdata.Corpus.load(folder), torch.arange(3 * run.world_size)
    pool = Pool(corpus, None, rows, torch.zeros(len(rows), dtype=torch.float64), torch.ones(len(rows)).bool(), corpus)
    windows = avdata.UniformDataset(corpus, window_spec(config, config.windows))
    batch = next(iter(avdata.make_loader(windows, 2)))
    report: dict[str, object] = {
        name: f"{tuple(batch[name].shape)} {batch[name].dtype}" for name in ("frames", "waveform")
    }
    report["parameters"] = sum(p.numel() for p in build_model(config, 0).parameters())
    small, large = (measured_step(config, pool, count, run) for count in (2, 3))
    peaks = {size: peak for size, _, peak in (small, large)}
    cost = reporting.MeasuredTraining(config.samples_per_step, config.steps, large[1] / large[0], peaks)
    report["measured"] = f"{1e3 * cost.seconds:.1f} ms a sample on {run.device.type}"
    others = (8, 64) if config.device == "cuda" else ()
    return report | reporting.projection_lines([cost], world_size=run.world_size, others=others)


# %% [markdown]
# ## Exercises
#
# 1. In the heat map above some rows have no dark cell. Which events are they? Choose with `scheme="bipartite"` and look
#    again.
# 2. Give `torn` only one modality to tear. Which schemes still leak?
# 3. Replace the objective by information adjusted for chance. Does a larger number of clusters still hurt? What does a
#    pick cost now?
# 4. A pool with *two* languages: half of the classes never heard with the other half's sounds. Draw it with
#    `ClusterWorld`, and find how many clips of each the choice keeps.
# 5. Set `slides=0.3` and remove them first, by clustering sight alone and dropping the largest cluster. What does the
#    choice keep then, and what have you thrown away besides?
# 6. The rival learns from bad pairs. Let it learn from what information has chosen, and choose again by its scores. Is
#    the second choice better than either?
# 7. Point `data` at a folder of your own videos with `features="pool"`. Which of the exchanged clips were not found,
#    and can you find them by eye and ear?

# %%
reporting.finish_run(ledgers, results, is_main=run.is_main)
