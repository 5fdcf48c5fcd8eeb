"""Weights of other people's networks, under our names: GDT's release and torchvision's R(2+1)D-18.

Every key of the target has exactly one source key, written down by the rules below, and every source key is used, with
the exceptions named in :data:`GDT_IGNORED` and :data:`TORCHVISION_IGNORED`. Anything else is an error that names the
keys, never a partial load: ``strict=False`` is how a network ends up half random without anyone noticing. Files are
read without executing what they contain (``weights_only=True``, or safetensors).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avssl_core.encoders.r2plus1d import R2Plus1D
from avssl_core.encoders.two_tower import AudioVisualModel, full_gdt

GDT_IGNORED = ("audio_network.base.fc.weight", "audio_network.base.fc.bias")
"""The audio trunk of the release owns a 1000-way classifier that its forward pass never reaches."""

TORCHVISION_IGNORED = ("fc.weight", "fc.bias")
"""torchvision's Kinetics-400 classifier; :class:`R2Plus1D` is a trunk."""

WRAPPERS = ("model", "state_dict", "model_state")
"""Keys under which checkpoints keep the state dict beside optimiser, epoch and arguments."""

Rules = tuple[tuple[str, str], ...]

# (pattern of our key, the source's key). The first rule that matches a whole key applies.
R2PLUS1D_RULES: Rules = (
    (r"stem\.spatial\.(.*)", r"stem.0.\1"),
    (r"stem\.norm\.(.*)", r"stem.1.\1"),
    (r"stem\.temporal\.(.*)", r"stem.3.\1"),
    (r"stem_norm\.(.*)", r"stem.4.\1"),
    (r"stages\.(\d+)\.(\d+)\.conv(\d)\.spatial\.(.*)", r"layer{\1}.\2.conv\3.0.0.\4"),
    (r"stages\.(\d+)\.(\d+)\.conv(\d)\.norm\.(.*)", r"layer{\1}.\2.conv\3.0.1.\4"),
    (r"stages\.(\d+)\.(\d+)\.conv(\d)\.temporal\.(.*)", r"layer{\1}.\2.conv\3.0.3.\4"),
    (r"stages\.(\d+)\.(\d+)\.norm(\d)\.(.*)", r"layer{\1}.\2.conv\3.1.\4"),
    (r"stages\.(\d+)\.(\d+)\.shortcut\.(.*)", r"layer{\1}.\2.downsample.\3"),
)
RESNET_RULES: Rules = (
    (r"stem\.(.*)", r"conv1.\1"),
    (r"stem_norm\.(.*)", r"bn1.\1"),
    (r"stages\.(\d+)\.(\d+)\.(conv\d)\.(.*)", r"layer{\1}.\2.\3.\4"),
    (r"stages\.(\d+)\.(\d+)\.norm(\d)\.(.*)", r"layer{\1}.\2.bn\3.\4"),
    (r"stages\.(\d+)\.(\d+)\.shortcut\.(.*)", r"layer{\1}.\2.downsample.\3"),
)
HEAD_RULES: Rules = (
    (r"hidden\.(.*)", r"block_forward.2.\1"),
    (r"norm\.(.*)", r"block_forward.4.\1"),
    (r"out\.(.*)", r"block_forward.8.\1"),
)
GDT_PARTS: tuple[tuple[str, str, Rules], ...] = (
    ("video.encoder.", "video_network.base.", R2PLUS1D_RULES),
    ("audio.encoder.", "audio_network.base.", RESNET_RULES),
    ("video.head.", "mlp_v.", HEAD_RULES),
    ("audio.head.", "mlp_a.", HEAD_RULES),
)


class CheckpointError(ValueError):
    """A checkpoint that does not fit; the message lists the keys or shapes that disagree."""


def source_key(key: str, rules: Rules) -> str:
    """Name that the source gives to our ``key``. Stages count from 0 here and from 1 there (``{n}`` in a rule).

    Raises:
        CheckpointError: if no rule covers ``key``, which then belongs to a network the source does not know.
    """
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, key)
        if match:
            return re.sub(r"\{(\d+)\}", lambda m: str(int(m[1]) + 1), match.expand(replacement))
    raise CheckpointError(f"the source has no counterpart of {key!r}: its weights fit another architecture")


def gdt_key_map(model: AudioVisualModel) -> dict[str, str]:
    """Our key to the release's key, for every tensor of ``model`` (R(2+1)D and ResNet towers)."""
    mapping = {}
    for key in model.state_dict():
        ours, theirs, rules = next(part for part in GDT_PARTS if key.startswith(part[0]))
        mapping[key] = theirs + source_key(key.removeprefix(ours), rules)
    return mapping


def r2plus1d_key_map(model: R2Plus1D) -> dict[str, str]:
    """Our key to torchvision's key, for every tensor of ``model``."""
    return {key: source_key(key, R2PLUS1D_RULES) for key in model.state_dict()}


def _listing(label: str, items: Collection[str], limit: int = 8) -> str:
    shown = ", ".join(sorted(items)[:limit])
    more = f", and {len(items) - limit} more" if len(items) > limit else ""
    return f"{len(items)} {label}: {shown}{more}" if items else ""


def load_mapped(
    model: nn.Module, state: Mapping[str, Tensor], key_map: Mapping[str, str], *, ignored: Collection[str], name: str
) -> None:
    """Copy ``state`` into ``model`` through ``key_map``, all of it or nothing.

    Args:
        model: target; untouched when anything is wrong.
        state: the source's tensors by the source's keys.
        key_map: our key to the source's key, covering every tensor of ``model``.
        ignored: source keys that may be present and are not wanted.
        name: what the error message calls the source.

    Raises:
        CheckpointError: if keys are missing or unexpected, or shapes differ.
    """
    target = model.state_dict()
    missing = [theirs for theirs in key_map.values() if theirs not in state]
    unexpected = [key for key in state if key not in set(key_map.values()) and key not in ignored]
    shapes = [
        f"{theirs} {tuple(state[theirs].shape)} instead of {tuple(target[ours].shape)}"
        for ours, theirs in key_map.items()
        if theirs in state and state[theirs].shape != target[ours].shape
    ]
    problems = [
        _listing("missing", missing),
        _listing("unexpected", unexpected),
        _listing("of another shape", shapes),
    ]
    if missing or unexpected or shapes:
        found = "; ".join(problem for problem in problems if problem)
        raise CheckpointError(f"{name} does not fit {type(model).__name__}: {found}. Nothing was loaded")
    model.load_state_dict({ours: state[theirs] for ours, theirs in key_map.items()}, strict=True)


def read_state_dict(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of a checkpoint, unwrapped: ``{"model": ...}`` or ``{"state_dict": ...}``, and DDP's ``module.`` prefix.

    Args:
        source: a ``.safetensors`` file, a file of ``torch.save`` (read with ``weights_only=True``), or a loaded dict.

    Raises:
        CheckpointError: if the file is missing or unreadable without pickle, or holds no state dict of tensors.
    """
    content, name = (source, "the given dict") if isinstance(source, Mapping) else (_read(Path(source)), str(source))
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{name} holds no state dict, but {type(content).__name__}")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(
            f"{name} holds entries that are not tensors ({', '.join(others[:8])}); "
            f"pass the state dict itself, or wrap it under one of {', '.join(WRAPPERS)}"
        )
    if all(key.startswith("module.") for key in content):
        return {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


def _read(path: Path) -> object:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises whatever the bytes make it raise
        raise CheckpointError(
            f"{path} cannot be read as tensors alone ({type(error).__name__}: {error}). "
            "Convert it to safetensors where you trust it; pickled code is never executed here"
        ) from error


def load_gdt_checkpoint(
    source: str | Path | Mapping[str, Any], model: AudioVisualModel | None = None
) -> AudioVisualModel:
    """Load weights of the official GDT release.

    Args:
        source: checkpoint file or state dict, see :func:`read_state_dict`.
        model: an :class:`AudioVisualModel` of R(2+1)D and spectrogram ResNet, or ``None`` for :func:`full_gdt`.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: if the checkpoint does not fit, see :func:`load_mapped`; only :data:`GDT_IGNORED` is ignored.
    """
    state = read_state_dict(source)
    model = full_gdt() if model is None else model
    name = "the given dict" if isinstance(source, Mapping) else str(source)
    load_mapped(model, state, gdt_key_map(model), ignored=GDT_IGNORED, name=name)
    return model.eval()


def load_torchvision_r2plus1d(source: str | Path | Mapping[str, Any], model: R2Plus1D | None = None) -> R2Plus1D:
    """Load weights of torchvision's ``r2plus1d_18`` (Kinetics-400 supervised), without its classifier.

    Args:
        source: checkpoint file or state dict, see :func:`read_state_dict`.
        model: a trunk of the same sizes, or ``None`` for R(2+1)D-18.

    Returns:
        The trunk, in evaluation mode.

    Raises:
        CheckpointError: if the weights do not fit; only :data:`TORCHVISION_IGNORED` is ignored.
    """
    state = read_state_dict(source)
    model = R2Plus1D() if model is None else model
    name = "the given dict" if isinstance(source, Mapping) else str(source)
    load_mapped(model, state, r2plus1d_key_map(model), ignored=TORCHVISION_IGNORED, name=name)
    return model.eval()
