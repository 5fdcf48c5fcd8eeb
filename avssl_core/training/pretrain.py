"""What audio-visual pre-training chapters share between the loader and their objective.

The objective stays in the chapter, where it is taught; here is only the way from decoded windows to network inputs, in
whole batches on the device. The releases augment clip by clip in the workers; on two cores that costs more than the
network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avssl_core.data import Loader, SeededOrder, WindowDataset, make_loader
from avssl_core.training.distributed import World
from avssl_core.transforms import LogMelSpectrogram

RandomTransform = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class AVBatch:
    """``K`` windows of each of ``B`` clips, ready for the networks.

    Attributes:
        video: ``(B, K, 3, T, H, W)``, normalised.
        audio: ``(B, K, 1, F, T')`` log-mel spectrograms.
        row: ``(B,)`` row of the corpus, the identity of the clip.
        group: ``(B,)`` group of the clip (film, talker).
        start_s: ``(B, K)`` start of each window in seconds.
    """

    video: Tensor
    audio: Tensor
    row: Tensor
    group: Tensor
    start_s: Tensor

    def views(self) -> tuple[Tensor, Tensor]:
        """Video ``(B·K, 3, T, H, W)`` and audio ``(B·K, 1, F, T')``; the windows of a clip follow each other."""
        return self.video.flatten(0, 1), self.audio.flatten(0, 1)


@torch.no_grad()
def prepare_windows(
    batch: Mapping[str, Any],
    *,
    clip_augment: RandomTransform,
    log_mel: LogMelSpectrogram,
    generator: torch.Generator,
    waveform_augment: RandomTransform | None = None,
    spec_augment: RandomTransform | None = None,
) -> AVBatch:
    """Augment the windows of a batch, each on its own, and compute their spectrograms; in float32 also under autocast.

    Args:
        batch: of a :class:`~avssl_core.data.WindowDataset`, already on the device: ``frames`` uint8 ``(B, K, T, 3, H,
            W)``, ``waveform`` ``(B, K, L)``, ``row``, ``group``, ``start_s``.
        clip_augment: on ``(B·K, 3, T, H, W)`` uint8, such as :class:`~avssl_core.transforms.ClipAugment`.
        log_mel: moved to the device of the batch.
        generator: source of all draws.
        waveform_augment: on ``(B·K, L)``, such as ``VolumeJitter``.
        spec_augment: on ``(B·K, 1, F, T')``, such as ``SpecAugment``.

    Raises:
        ValueError: the batch has no sound.
    """
    frames, waveform = batch["frames"], batch.get("waveform")
    if waveform is None:
        raise ValueError("the batch has no waveform: set WindowSpec.sample_rate")
    B, K = frames.shape[:2]
    with torch.autocast(frames.device.type, enabled=False):
        video = clip_augment(frames.flatten(0, 1).transpose(1, 2), generator)  # (B·K, T, 3, …) -> (B·K, 3, T, …)
        sound = waveform.flatten(0, 1)
        if waveform_augment is not None:
            sound = waveform_augment(sound, generator)
        audio = log_mel.to(frames.device)(sound)
        if spec_augment is not None:
            audio = spec_augment(audio, generator)
    return AVBatch(
        video=video.view(B, K, *video.shape[1:]),  # (B·K, 3, T, …) -> (B, K, 3, T, …)
        audio=audio.view(B, K, *audio.shape[1:]),
        row=batch["row"],
        group=batch["group"],
        start_s=batch["start_s"],
    )


def window_loader(
    dataset: WindowDataset, batch_size: int, *, seed: int, world: World | None = None, workers: int = 0
) -> Loader:
    """Batches of ``dataset`` in a seeded order, this rank's share of each; hand ``.batches`` to ``fit``.

    Args:
        dataset: windows of a corpus.
        batch_size: clips a batch on this rank.
        seed: of the order.
        world: this process among its peers.
        workers: worker processes; 0 reads in this process, which is fastest from a decoded cache on few cores.
    """
    world = world or World.single()
    order = SeededOrder(len(dataset), batch_size, seed=seed, rank=world.rank, world_size=world.world_size)
    return make_loader(dataset, order, workers=workers)
