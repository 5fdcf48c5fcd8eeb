"""From decoded windows to network inputs, and a whole small run on real encoded files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from avssl_core.data import Corpus, WindowDataset, WindowSpec, index_folder
from avssl_core.losses import symmetric_info_nce
from avssl_core.media import write_clip
from avssl_core.training import FitConfig, World, fit, prepare_windows, window_loader
from avssl_core.transforms import ClipAugment, LogMelSpectrogram, SpecAugment

RATE = 16000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Six clips of one second, each of its own colour and pitch."""
    folder = tmp_path_factory.mktemp("clips")
    seconds = np.arange(RATE) / RATE
    for clip in range(6):
        colour = [40 + 170 * ((clip + 1) >> bit & 1) for bit in range(3)]
        frames = np.broadcast_to(np.array(colour, np.uint8), (25, 32, 32, 3)).copy()
        sound = (0.4 * np.sin(2 * np.pi * 300 * (clip + 1) * seconds)).astype(np.float32)
        write_clip(folder / f"{clip}.mp4", torch.from_numpy(frames).permute(0, 3, 1, 2), torch.from_numpy(sound))
    corpus, refused = index_folder(folder, workers=1, progress=False)
    assert len(corpus) == 6 and len(refused) == 0
    return corpus


def windows(corpus: Corpus) -> WindowDataset:
    return WindowDataset(corpus, WindowSpec(6, 12, (32, 32), RATE, windows=2), seed=0)


def small_mel() -> LogMelSpectrogram:
    return LogMelSpectrogram(sample_rate=RATE, n_fft=512, n_mels=20)


def test_windows_become_inputs_of_each_window_alone(corpus: Corpus) -> None:
    batch = next(window_loader(windows(corpus), 3, seed=0).batches(0))
    mel = small_mel()
    settings: dict[str, Any] = {"log_mel": mel, "spec_augment": SpecAugment(max_freq=3, max_time=6)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, again = (
            prepare_windows(batch, clip_augment=ClipAugment(28), generator=torch.Generator().manual_seed(1), **settings)
            for _ in range(2)
        )
    frames = mel.num_frames(batch["waveform"].shape[-1])
    assert ours.video.shape == (3, 2, 3, 6, 28, 28) and ours.audio.shape == (3, 2, 1, 20, frames)
    assert ours.video.dtype == ours.audio.dtype == torch.float32
    assert torch.equal(ours.video, again.video) and torch.equal(ours.audio, again.audio)
    assert torch.equal(ours.row, batch["row"]) and torch.equal(ours.start_s, batch["start_s"])
    plain = ClipAugment(32, scale=None, flip=0.0, jitter=0.0, mean=0.0, std=1.0)
    exact = prepare_windows(batch, clip_augment=plain, log_mel=mel, generator=torch.Generator())
    expected = batch["frames"].float().transpose(2, 3) / 255  # (B, K, T, 3, …) -> (B, K, 3, T, …)
    torch.testing.assert_close(exact.video, expected)
    torch.testing.assert_close(exact.audio[2, 1], mel(batch["waveform"][2, 1:2])[0])
    video, audio = exact.views()
    assert torch.equal(video[3], exact.video[1, 1]) and torch.equal(audio[3], exact.audio[1, 1])


def test_windows_without_sound_are_refused(corpus: Corpus) -> None:
    dataset = WindowDataset(corpus, WindowSpec(6, 12, (32, 32)), seed=0)
    batch = next(window_loader(dataset, 2, seed=0).batches(0))
    with pytest.raises(ValueError, match=r"no waveform: set WindowSpec\.sample_rate"):
        prepare_windows(batch, clip_augment=ClipAugment(28), log_mel=small_mel(), generator=torch.Generator())


def test_ranks_share_out_the_joint_batch(corpus: Corpus) -> None:
    dataset = windows(corpus)
    whole = next(window_loader(dataset, 4, seed=3).batches(5))["row"].tolist()
    parts = [
        next(window_loader(dataset, 2, seed=3, world=World(rank, 2)).batches(5))["row"].tolist() for rank in (0, 1)
    ]
    assert parts[0] + parts[1] == whole


class Towers(nn.Module):
    """Mean colour and mean spectrum, each through a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sight = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 8))
        self.sound = nn.Linear(20, 8)

    def forward(self, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        one = self.sight(video.mean(dim=(2, 3, 4)) * 3)
        two = self.sound(audio.mean(dim=(1, 3)) * 3)
        return nn.functional.normalize(one, dim=1), nn.functional.normalize(two, dim=1)


def test_a_run_on_encoded_files_learns_which_sound_belongs_to_which_sight(corpus: Corpus, tmp_path: Path) -> None:
    """Unlike a fall of the loss, retrieval on fresh windows has a chance level: 1/6 here."""
    mel = small_mel()
    augment = ClipAugment(28, jitter=0.0)

    def loss_fn(model: nn.Module, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float | Tensor]]:
        video, audio = prepare_windows(batch, clip_augment=augment, log_mel=mel, generator=generator).views()
        a, b = model(video[::2], audio[::2])  # one window of each clip
        return symmetric_info_nce(a, b, temperature=0.1), {}

    def recall(model: nn.Module) -> float:
        hits = 0
        for _, batch in zip(range(4), window_loader(windows(corpus), 6, seed=9).batches(1000), strict=False):
            inputs = prepare_windows(batch, clip_augment=augment, log_mel=mel, generator=torch.Generator())
            a, b = model(inputs.video[:, 1], inputs.audio[:, 0])
            hits += int(((a @ b.T).argmax(dim=1) == torch.arange(6)).sum())
        return hits / 24

    loader, model = window_loader(windows(corpus), 6, seed=0), Towers()
    assert recall(model) < 0.5
    config = FitConfig(steps=80, lr=0.02, optimiser="adamw", weight_decay=0.0)
    result = fit(model, loader.batches, loss_fn, config, run_dir=tmp_path, in_memory_steps=2)
    assert recall(model) > 0.9
    assert result.loading_share is not None and 0 < result.wait_share < 1
