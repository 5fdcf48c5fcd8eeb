"""Whole Motionformers against numbers of the official code: tokens, logits, weights by name, start from a ViT."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from avssl_core.encoders import (
    EPIC_CLASSES,
    MOTIONFORMER_IGNORED,
    VideoTransformer,
    init_from_image_vit,
    load_motionformer_checkpoint,
    motionformer_key_map,
)

TINY = ("trajectory_a", "joint_a", "divided_a", "trajectory_joint_pos_a", "trajectory_two_heads_a")
CASES = [
    (name, reading)
    for name in TINY
    for reading in (("value_identity", "value_projected") if name.startswith("trajectory") else ("",))
] + [("trajectory_a", "ortho_value_identity"), ("trajectory_a", "ortho_value_projected")]


@pytest.fixture(scope="module")
def folder(fixtures_dir: Path) -> Path:
    return fixtures_dir / "motionformer"


def read(folder: Path, name: str) -> tuple[dict[str, Tensor], dict]:
    path = folder / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        return load_file(path), json.loads(file.metadata()["params"])


def build(p: dict, reading: str = "") -> VideoTransformer:
    options: dict = {}
    if p["ATTN"] == "trajectory":
        options["value_proj"] = "projected" in reading
    if reading.startswith("ortho"):
        options |= {"approx": "orthoformer", "num_prototypes": p["LM"]}
    return VideoTransformer(
        EPIC_CLASSES if p["DATASET"] == "Epickitchens" else p["CLASSES"],
        attention=p["ATTN"],
        num_frames=p["T"],
        patch=p["PATCH"],
        tubelet=p["PATCH_T"],
        dim=p["DIM"],
        depth=p["DEPTH"],
        heads=p["HEADS"],
        mlp_ratio=p["MLP"],
        qkv_bias=p["BIAS"],
        position=p["POS"],
        pre_logits=p["MLPHEAD"],
        attention_options=options,
    )


def block_outputs(model: VideoTransformer) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, __, out, i=i: found.__setitem__(f"tokens_block{i}", out))
    return found


def head_input(model: VideoTransformer, features: Tensor) -> Tensor:
    return features if model.pre_logits is None else torch.tanh(model.pre_logits(features))


@pytest.mark.parametrize(("name", "reading"), CASES)
def test_tiny_models(folder: Path, name: str, reading: str) -> None:
    fixture, p = read(folder, f"model_{name}")
    state = {key.removeprefix("state."): value for key, value in fixture.items() if key.startswith("state.")}
    # The release saves weights beside everything else.
    model = load_motionformer_checkpoint({"epoch": 35, "model_state": state, "cfg": "TRAIN: {}"}, build(p, reading))
    enlarged = fixture["video_small"].repeat_interleave(8, 3).repeat_interleave(8, 4) if "video" not in fixture else 0
    clip = fixture.get("video", enlarged)
    prefix = f"{reading}." if reading else ""
    index = fixture.get(f"{prefix}selection_order")
    found = block_outputs(model)
    with torch.no_grad():
        features = model.features(clip, prototype_index=index)
        found |= {
            "tokens_in": model.embed(clip),
            "features_norm_cls": features,
            "features": head_input(model, features),
        }
        logits = model(clip, prototype_index=index)
    torch.testing.assert_close(found.pop("tokens_in"), fixture["tokens_in"], rtol=0, atol=1e-4)
    for key, value in found.items():
        torch.testing.assert_close(value, fixture[f"{prefix}{key}"], rtol=0, atol=1e-4)
    named = {"": logits} if isinstance(logits, Tensor) else {f"_head{i}": x for i, x in enumerate(logits.values())}
    for suffix, value in named.items():
        torch.testing.assert_close(value, fixture[f"{prefix}logits{suffix}"], rtol=0, atol=2e-5)
        probabilities = fixture[f"{prefix}probabilities{suffix}"]
        torch.testing.assert_close(value.softmax(dim=1), probabilities, rtol=0, atol=2e-5)


def fill(key: str, shape: list[int]) -> Tensor:
    """The fixture's deterministic weights: a function of the tensor's name and shape."""
    g = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    values = torch.randn(shape, generator=g)
    if key.endswith("bias"):
        return 0.1 * values
    if len(shape) == 1 and key.endswith("weight"):
        return 1 + 0.1 * values
    return values / (values.numel() / shape[0]) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("case", ["full_k400_motionformer_224_16x4", "full_k400_divided_224_16x4"])
def test_full_size(folder: Path, case: str) -> None:
    fixture, p = read(folder, case)
    keys = json.loads((folder / f"{case}.keys.json").read_text())
    divided = "divided" in case
    model = VideoTransformer(
        attention="divided" if divided else "trajectory", attention_options=None if divided else {"value_proj": False}
    )
    state = {key: fill(key, shape) for key, shape in keys}
    assert sum(x.numel() for x in state.values()) == p["num_params"]
    load_motionformer_checkpoint(state, model)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{case}.video".encode()))
    clip = torch.randn(p["video_shape"], generator=generator)
    assert torch.equal(clip[0, :, 0, :4, :4], fixture["video_sample"])
    found = block_outputs(model)
    with torch.no_grad():
        features = model.features(clip)
        found["tokens_in"] = model.embed(clip)
        logits = model.classify(features)
    for key, value in found.items():
        expected = fixture[f"{key}.sample"]
        rows = fixture["token_index"] if expected.shape[1] > 1 else torch.zeros(1, dtype=torch.int64)
        torch.testing.assert_close(value[:, rows], expected, rtol=0, atol=2e-4)
    torch.testing.assert_close(features, fixture["features_norm_cls"], rtol=0, atol=2e-4)
    torch.testing.assert_close(head_input(model, features), fixture["features"], rtol=0, atol=5e-5)
    torch.testing.assert_close(logits, fixture["logits"], rtol=0, atol=5e-5)
    torch.testing.assert_close(logits.softmax(dim=1), fixture["probabilities"], rtol=0, atol=5e-5)


def test_key_map_covers_all_published_configurations_exactly(folder: Path) -> None:
    published = json.loads((folder / "official_state_dict_keys.json").read_text())
    shapes = {name: dict(each["keys"]) for each in published["state_dicts"] for name in each["used_by"]}
    assert len(published["configurations"]) == 20 == len(shapes)
    for name, c in published["configurations"].items():
        classes = c["classes"] if isinstance(c["classes"], int) else dict(zip(EPIC_CLASSES, c["classes"], strict=True))
        with torch.device("meta"):
            model = VideoTransformer(
                classes,
                attention=c["attention"],
                num_frames=c["tokens_in_time"],
                patch=c["patch"],
                tubelet=c["tubelet_frames"],
                dim=c["dim"],
                depth=c["depth"],
                heads=c["heads"],
                position=c["position"],
                pre_logits=c["head_mlp"],
            )
        mapping, own = motionformer_key_map(model), model.state_dict()
        assert set(mapping) == set(own), name
        assert len(set(mapping.values())) == len(mapping), name
        assert set(shapes[name]) - set(mapping.values()) == set(MOTIONFORMER_IGNORED), name
        for ours, theirs in mapping.items():
            assert list(own[ours].shape) == shapes[name][theirs], (name, ours, theirs)


@pytest.mark.parametrize("attention", ["trajectory", "divided"])
@pytest.mark.parametrize("position", ["separate", "joint"])
def test_start_from_an_image_transformer(folder: Path, attention: str, position: str) -> None:
    fixture, p = read(folder, f"imagenet_init_{attention}")
    vit = {key.removeprefix("vit."): value for key, value in fixture.items() if key.startswith("vit.")}
    model = build({**p, "POS": position})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    left = init_from_image_vit(model, vit)
    mapping, after = motionformer_key_map(model), model.state_dict()
    expected_left = set(p["left_at_random_init"]) - ({"temp_embed"} if position == "joint" else set())
    assert {mapping[key] for key in left} == expected_left
    for key, theirs in mapping.items():
        if key in left:
            assert torch.equal(after[key], before[key]), key
        elif theirs == "st_embed":
            place = vit["pos_embed"]
            assert torch.equal(after[key], torch.cat([place[:, :1], *[place[:, 1:]] * p["T"]], dim=1))
        else:
            assert torch.equal(after[key], fixture[f"video.{theirs}"]), key
