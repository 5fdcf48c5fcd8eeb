"""Features of clips, shard by shard: several layers of a video and of an audio network, means over a few windows.

Windows of pictures and sound begin together. A clip that cannot be read, or is shorter than a window, is refused with
its reason; it never becomes another clip.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from avssl_core.media import MediaReader
from data_prep.curate.candidates import Refusal, as_reason
from data_prep.curate.clips import Clip, fatal
from data_prep.curate.networks import Choice, Extractor, build_extractor
from data_prep.curate.stages import ShardJob

BATCH = 8  # clips that go through the networks together


@dataclass(frozen=True)
class Describing:
    """How clips are described.

    Attributes:
        video: network for pictures.
        audio: network for sound.
        windows: evenly spaced in a clip, averaged.
    """

    video: Choice
    audio: Choice
    windows: int = 3


@dataclass(frozen=True)
class Described:
    """What a shard, or all of them, came to.

    Attributes:
        clips: ids, in order.
        layers: names ``video/…`` and ``audio/…``, from shallow to deep, pictures first.
        refused: ``(clip, reason)``.
    """

    clips: tuple[str, ...]
    layers: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]


def describe_clips(job: ShardJob) -> None:
    """Do a shard of clips: a safetensors file with a matrix a layer, and with ids and refusals in its metadata."""
    extractors = {"video": build_extractor(job.spec.video), "audio": build_extractor(job.spec.audio)}
    refused: list[tuple[str, str]] = []
    ids: list[str] = []
    rows: list[dict[str, Tensor]] = []
    for begin in range(0, len(job.items), BATCH):
        windows: list[tuple[Clip, dict[str, Tensor]]] = []
        for clip in job.items[begin : begin + BATCH]:
            try:
                reason = job.skip.get(clip.key)
                if reason is None:
                    windows.append((clip, _read(clip, extractors, job.spec.windows)))
            except Exception as error:  # whatever it is, it concerns this clip alone
                if fatal(error):
                    raise
                reason = as_reason(error)
            if reason is not None:
                refused.append((clip.clip_id, reason))
        for clip, row in _forward(windows, extractors):
            if all(bool(values.isfinite().all()) for values in row.values()):
                ids.append(clip.clip_id)
                rows.append(row)
            else:
                refused.append((clip.clip_id, "a network gives it features that are not finite"))
    layers = [f"{modality}/{layer}" for modality, network in extractors.items() for layer in network.layers]
    tensors = {layer: torch.stack([row[layer] for row in rows]) for layer in layers} if rows else {}
    _save(job.path, tensors, {"clips": ids, "layers": layers, "refused": refused})


def read_described(files: Iterable[Path]) -> Described:
    """What all shards say beside their numbers."""
    clips: list[str] = []
    refused: list[tuple[str, str]] = []
    layers: tuple[str, ...] = ()
    for file in files:
        with safe_open(file, "pt") as shard:
            found = shard.metadata()
        clips += json.loads(found["clips"])
        refused += [(clip, reason) for clip, reason in json.loads(found["refused"])]
        layers = tuple(json.loads(found["layers"]))
    return Described(tuple(clips), layers, tuple(refused))


def read_layer(files: Iterable[Path], layer: str) -> Tensor:
    """Features of one layer, of all clips of all shards, ``(N, D)``."""
    parts = []
    for file in files:
        with safe_open(file, "pt") as shard:
            if layer in shard.keys():  # noqa: SIM118  (it is no mapping)
                parts.append(shard.get_tensor(layer))
    return torch.cat(parts)


def refusals(described: Described, clips: Sequence[Clip]) -> list[Refusal]:
    """As the other stages say it."""
    uris = {clip.clip_id: clip.film.uri for clip in clips}
    return [(clip_id, uris[clip_id], "features", reason) for clip_id, reason in described.refused]


def _read(clip: Clip, extractors: dict[str, Extractor], count: int) -> dict[str, Tensor]:
    """Windows of each modality, ``(count, …)``, from the same starts."""
    slack = clip.length_s - max(network.window_s for network in extractors.values())
    if slack < -1e-6:
        raise ValueError(f"lasts {clip.length_s:.2f} s, the networks look at {clip.length_s - slack:.2f} s")
    slack = max(slack, 0.0)
    starts = [slack / 2] if count == 1 else torch.linspace(0, slack, count, dtype=torch.float64).tolist()
    with MediaReader(clip.film.source) as reader:
        return {
            modality: torch.stack([network.read(reader, clip.start_s + start) for start in starts])
            for modality, network in extractors.items()
        }


def _forward(
    windows: list[tuple[Clip, dict[str, Tensor]]], extractors: dict[str, Extractor]
) -> list[tuple[Clip, dict[str, Tensor]]]:
    """Features of each clip: means over its windows, ``(D,)`` a layer."""
    rows: list[dict[str, Tensor]] = [{} for _ in windows]
    for modality, network in extractors.items() if windows else ():
        found = network(torch.cat([read[modality] for _, read in windows]))
        for layer in network.layers:
            means = found[layer].reshape(len(windows), -1, found[layer].shape[1]).mean(dim=1)  # (clips, D)
            for row, mean in zip(rows, means, strict=True):
                row[f"{modality}/{layer}"] = mean.clone()
    return [(clip, row) for (clip, _), row in zip(windows, rows, strict=True)]


def _save(path: Path, tensors: dict[str, Tensor], about: dict[str, object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, {name: json.dumps(value) for name, value in about.items()})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
