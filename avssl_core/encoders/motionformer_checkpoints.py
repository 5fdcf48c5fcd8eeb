"""Released Motionformer weights, and weights of an image ViT, under our names; strict, as in ``checkpoints.py``.

All 20 published configurations (Kinetics-400 and -600, Something-Something, EPIC-Kitchens; trajectory, joint and
divided attention) share one naming. A state dict also holds a 2-D patch projection that nothing uses. The released
weights were trained with ``value_proj=False``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avssl_core.encoders.checkpoints import CheckpointError, Rules, load_mapped, read_state_dict, source_key
from avssl_core.encoders.tubelets import Inflation, inflate_patch_kernel, resize_positions, tile_positions
from avssl_core.encoders.video_transformer import VideoTransformer

MOTIONFORMER_IGNORED = ("patch_embed.proj.weight", "patch_embed.proj.bias")
"""The release builds an image ViT, then replaces its patch projection; the old one stays in the state dict."""

VIT_IGNORED = ("head.weight", "head.bias", "pre_logits.fc.weight", "pre_logits.fc.bias")
"""Classifier of an image ViT, and the hidden layer that some have."""

ATTENTION_RULES: Rules = (
    (r"qkv\.(.*)", r"qkv.\1"),
    (r"out\.(.*)", r"proj.\1"),
    (r"trajectory_q\.(.*)", r"proj_q.\1"),
    (r"trajectory_kv\.(.*)", r"proj_kv.\1"),
)
BLOCK_RULES: Rules = (
    *((rf"attention\.{ours}", rf"attn.{theirs}") for ours, theirs in ATTENTION_RULES),
    *((rf"time_attention\.{ours}", rf"timeattn.{theirs}") for ours, theirs in ATTENTION_RULES),
    (r"attention_norm\.(.*)", r"norm1.\1"),
    (r"mlp_norm\.(.*)", r"norm2.\1"),
    (r"time_norm\.(.*)", r"norm3.\1"),
    (r"mlp\.hidden\.(.*)", r"mlp.fc1.\1"),
    (r"mlp\.out\.(.*)", r"mlp.fc2.\1"),
)
TRUNK_RULES: Rules = (
    (r"embedding\.proj\.(.*)", r"patch_embed_3d.proj.\1"),
    (r"positions\.class_token", r"cls_token"),
    (r"positions\.time", r"temp_embed"),
    (r"norm\.(.*)", r"norm.\1"),
    (r"pre_logits\.(.*)", r"pre_logits.fc.\1"),
)


def motionformer_key_map(model: VideoTransformer) -> dict[str, str]:
    """Our key to the release's key, for every tensor of ``model``.

    Several classifiers are ``head0``, ``head1``, ... in the order in which ``model`` names them.
    """
    names = list(model.classifiers)
    heads = tuple(
        (rf"classifiers\.{name}\.(.*)", rf"head{i if model.several else ''}.\1") for i, name in enumerate(names)
    )
    place = "pos_embed" if model.positions.kind == "separate" else "st_embed"
    rules = (*TRUNK_RULES, *heads, (r"positions\.place", place))
    mapping = {}
    for key in model.state_dict():
        if key.startswith("blocks."):
            _, number, rest = key.split(".", 2)
            mapping[key] = f"blocks.{number}.{source_key(rest, BLOCK_RULES)}"
        else:
            mapping[key] = source_key(key, rules)
    return mapping


def load_motionformer_checkpoint(
    source: str | Path | Mapping[str, Any], model: VideoTransformer | None = None
) -> VideoTransformer:
    """Load weights of the official release.

    Args:
        source: checkpoint file (weights under ``model_state``), or a state dict, see
            :func:`~avssl_core.encoders.read_state_dict`.
        model: a :class:`VideoTransformer` of the same sizes; ``None`` for Kinetics-400's Motionformer in the reading
            it was trained in (``value_proj=False``).

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: if the checkpoint does not fit, see :func:`~avssl_core.encoders.checkpoints.load_mapped`.
    """
    name = "the given dict" if isinstance(source, Mapping) else str(source)
    state = read_state_dict(source)
    model = VideoTransformer(attention_options={"value_proj": False}) if model is None else model
    ignored = [*MOTIONFORMER_IGNORED]
    if model.embedding.tubelet == 1 and "patch_embed.proj.weight" in state:
        # Squares go through the image ViT's projection; the 3-D one is then the unused one.
        state["patch_embed_3d.proj.weight"] = state["patch_embed.proj.weight"].unsqueeze(2)
        state["patch_embed_3d.proj.bias"] = state["patch_embed.proj.bias"]
    if model.positions.kind == "joint":
        ignored.append("pos_embed")
    load_mapped(model, state, motionformer_key_map(model), ignored=ignored, name=name)
    return model.eval()


def init_from_image_vit(
    model: VideoTransformer, source: str | Path | Mapping[str, Any], *, inflation: Inflation = "central"
) -> list[str]:
    """Start a video transformer from an image ViT (timm's names), as the paper does from ImageNet.

    The kernel of the patches is inflated over time, positions of places are resized if the grids differ, joint ones
    tiled over time. Divided attention takes the ViT's for space. A classifier, and the layer before it, are copied
    where they have the same name and sizes, as in the release: that of ImageNet into one of 1000 classes.

    Args:
        model: changed in place, as a whole or not at all.
        source: checkpoint file or state dict of a ViT of the same width, depth and patch.
        inflation: see :func:`inflate_patch_kernel`.

    Returns:
        Keys of ``model`` that have no counterpart in an image, left as they were: positions in time (zero unless
        trained), the projections of stage 2, attention along time, most classifiers.

    Raises:
        CheckpointError: if the ViT does not fit ``model``.
    """
    name = "the given dict" if isinstance(source, Mapping) else str(source)
    state = read_state_dict(source)
    for key, axes in (("patch_embed.proj.weight", 4), ("pos_embed", 3)):
        if key not in state or state[key].ndim != axes:
            raise CheckpointError(f"{name} is no image ViT: it has no {key!r} with {axes} axes")
    kernel = state.pop("patch_embed.proj.weight")
    state["patch_embed_3d.proj.weight"] = inflate_patch_kernel(kernel, model.embedding.tubelet, inflation)
    state["patch_embed_3d.proj.bias"] = state.pop("patch_embed.proj.bias")
    place = _fit_positions(state.pop("pos_embed"), model.positions.side)
    joint = model.positions.kind == "joint"
    state["st_embed" if joint else "pos_embed"] = tile_positions(place, model.positions.num_frames) if joint else place
    key_map = motionformer_key_map(model)
    own = model.state_dict()
    fits = {key for key in VIT_IGNORED if key in state}  # what the ViT says of pictures, if anything
    left = [
        key
        for key, theirs in key_map.items()
        if _without_counterpart(theirs) and not (theirs in fits and state[theirs].shape == own[key].shape)
    ]
    for key in left:  # a strict load needs all: these load themselves
        state[key_map[key]] = own[key]
    ignored = [key for key in VIT_IGNORED if key not in key_map.values()]
    load_mapped(model, state, key_map, ignored=ignored, name=name)
    return left


def _without_counterpart(key: str) -> bool:
    """Whether an image ViT has nothing for the release's ``key``."""
    new = (".timeattn.", ".norm3.", ".proj_q.", ".proj_kv.")
    return key == "temp_embed" or key.startswith(("head", "pre_logits.")) or any(part in key for part in new)


def _fit_positions(place: Tensor, side: int) -> Tensor:
    """Positions ``(1, 1 + s * s, D)`` of a ViT on our grid, ``(1, 1 + side * side, D)``."""
    found = round((place.shape[1] - 1) ** 0.5)
    if found * found != place.shape[1] - 1:
        raise CheckpointError(f"{place.shape[1]} positions are not one class token and a square grid")
    return torch.cat([place[:, :1], resize_positions(place[:, 1:], found, side, side)], dim=1)
