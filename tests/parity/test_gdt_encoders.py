"""Encoders against numbers of the official GDT code, weights filled by name as the fixtures' description says."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from avssl_core.encoders import (
    GDT_IGNORED,
    AudioVisualModel,
    ProjectionHead,
    full_gdt,
    gdt_key_map,
    load_gdt_checkpoint,
)
from avssl_core.encoders.checkpoints import HEAD_RULES, load_mapped, source_key

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


def fill(key: str, shape: list[int]) -> Tensor:
    """The fixture's deterministic weights: a function of the tensor's name and shape."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("running_var"):
        return torch.rand(shape, generator=generator) + 0.5
    if key.endswith(("running_mean", "bias")):
        return 0.1 * torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 1 + 0.1 * torch.randn(shape, generator=generator)
    weight = torch.randn(shape, generator=generator)
    return weight / (weight.numel() / shape[0]) ** 0.5


@pytest.fixture(scope="module")
def keys(fixtures_dir: Path) -> list[tuple[str, list[int]]]:
    return [(key, shape) for key, shape in json.loads((fixtures_dir / "gdt" / "encoder.keys.json").read_text())]


@pytest.fixture(scope="module")
def fixture(fixtures_dir: Path) -> dict[str, Tensor]:
    return load_file(fixtures_dir / "gdt" / "encoder.safetensors")


@pytest.fixture(scope="module")
def model(keys: list[tuple[str, list[int]]]) -> AudioVisualModel:
    return load_gdt_checkpoint({key: fill(key, shape) for key, shape in keys})


def test_key_map_covers_the_release_exactly(keys: list[tuple[str, list[int]]]) -> None:
    with torch.device("meta"):
        model = full_gdt()
        mapping = gdt_key_map(model)
    shapes = dict(keys)
    assert len(mapping) == len(set(mapping.values())) == len(model.state_dict())
    assert set(shapes) - set(mapping.values()) == set(GDT_IGNORED)
    assert set(mapping.values()) <= set(shapes)
    for ours, theirs in mapping.items():
        assert list(model.state_dict()[ours].shape) == shapes[theirs], (ours, theirs)


def layers(model: AudioVisualModel) -> dict[str, nn.Module]:
    """Where the fixture's intermediates leave our modules."""
    video, audio = model.video.encoder, model.audio.encoder
    return {
        "video.stem": video.stem_norm,
        **{f"video.layer{i}": stage for i, stage in enumerate(video.stages, start=1)},
        "audio.maxpool": audio.pool,
        **{f"audio.layer{i}": stage for i, stage in enumerate(audio.stages, start=1)},
    }


def test_features_embeddings_and_intermediates(model: AudioVisualModel, fixture: dict[str, Tensor]) -> None:
    found: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, name=name: found.__setitem__(name, out.clone()))
        for name, layer in layers(model).items()
    ]
    with torch.no_grad():
        video = model.video.encoder(fixture["in.video"])
        audio = model.audio.encoder(fixture["in.audio"])
        found["video.stem"] = found["video.stem"].relu()
        outputs = {
            "out.video_feature": video[0],  # the release squeezes the batch axis away when it is 1
            "out.audio_feature": audio[0],
            "out.video_embedding": model.video.head(video),
            "out.audio_embedding": model.audio.head(audio),
        }
    for hook in hooks:
        hook.remove()
    names = {key.split(".", 1)[1] for key in fixture if key.startswith("mid.") and key.count(".") == 2}
    assert names == set(found)
    for name in names:
        assert list(found[name].shape) == fixture[f"mid.{name}.shape"].tolist()
        stride = int(fixture[f"mid.{name}.stride"])
        torch.testing.assert_close(found[name].flatten()[::stride][:512], fixture[f"mid.{name}"], **TOLERANCE)
    for name, value in outputs.items():
        torch.testing.assert_close(value, fixture[name], **TOLERANCE)


def test_two_towers_in_one_call(model: AudioVisualModel, fixture: dict[str, Tensor]) -> None:
    with torch.no_grad():
        z_v, z_a = model(fixture["in.video"], fixture["in.audio"])
    torch.testing.assert_close(z_v, fixture["out.video_embedding"], **TOLERANCE)
    torch.testing.assert_close(z_a, fixture["out.audio_embedding"], **TOLERANCE)


def released_head(fixture: dict[str, Tensor], *, dropout: float, normalise: bool) -> ProjectionHead:
    head = ProjectionHead(12, 10, 6, dropout=dropout, normalise=normalise)
    state = {key.removeprefix("state."): value for key, value in fixture.items() if key.startswith("state.")}
    load_mapped(
        head, state, {key: source_key(key, HEAD_RULES) for key in head.state_dict()}, ignored=(), name="fixture"
    )
    return head


def test_projection_head(fixtures_dir: Path) -> None:
    fixture = load_file(fixtures_dir / "gdt" / "projection_head_0.safetensors")
    for normalise, name in ((False, "out.eval"), (True, "out.eval_normalised")):
        head = released_head(fixture, dropout=0.3, normalise=normalise).eval()
        torch.testing.assert_close(head(fixture["in.x"]), fixture[name], **TOLERANCE)
    head = released_head(fixture, dropout=0.0, normalise=False).train()
    torch.testing.assert_close(head(fixture["in.x"]), fixture["out.train_no_dropout"], **TOLERANCE)
    torch.testing.assert_close(head.norm.running_mean, fixture["out.running_mean_after"], **TOLERANCE)
    torch.testing.assert_close(head.norm.running_var, fixture["out.running_var_after"], **TOLERANCE)
