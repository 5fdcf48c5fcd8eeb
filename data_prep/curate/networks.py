"""Frozen networks that describe clips, by name and with their weights; several layers of each.

ACAV100M describes clips by five layers of a SlowFast network and five of VGGish, both trained with labels on other
data. By default the networks here are the book's own, with weights that you give: a checkpoint of a chapter's run
brings the sizes of both networks and how their inputs were made. torchvision's video networks go by name. Nothing is
fetched: weights that are not on this machine are an error that says where they belong.

A network of your own is ``package.module:function``: the function takes a :class:`Choice` and returns an
:class:`Extractor`. Changes of its code are not noticed; delete ``stages/features`` after one.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from avssl_core.encoders import (
    CheckpointError,
    FactorisedVideoNet,
    R2Plus1D,
    SpectrogramResNet,
    load_gdt_checkpoint,
    load_torchvision_r2plus1d,
    read_state_dict,
    seeded_init,
)
from avssl_core.media import MediaReader
from avssl_core.transforms import ClipEval, LogMelSpectrogram
from data_prep.curate.stages import CurateError, unknown

Modality = Literal["video", "audio"]
VIDEO = ("r2plus1d", "factorised", "r2plus1d_18", "r3d_18", "mc3_18")
AUDIO = ("resnet9",)
TORCHVISION = ("r2plus1d_18", "r3d_18", "mc3_18")
RANDOM_WIDTH = 16  # of networks without training, whose quality is no question


@dataclass(frozen=True)
class Choice:
    """Which network, and with what weights.

    Attributes:
        modality: ``"video"`` or ``"audio"``.
        name: one of :data:`VIDEO` or :data:`AUDIO`, or ``package.module:function``; by default the one that the weights
            are of.
        weights: a checkpoint file.
        random: without training. What such features say is little: for trials, and as a control.
        seed: of random weights.
        content: digest of the weights, so that another file of that name is noticed; see :func:`chosen`.
    """

    modality: Modality
    name: str | None = None
    weights: str | None = field(default=None, repr=False)
    random: bool = False
    seed: int = 0
    content: str = ""


class Extractor(Protocol):
    """What describes clips."""

    @property
    def layers(self) -> Sequence[str]:
        """Names, from shallow to deep."""

    @property
    def window_s(self) -> float:
        """Seconds that are looked at."""

    def read(self, reader: MediaReader, start_s: float) -> Tensor:
        """A window, as the network is given it."""

    def __call__(self, windows: Tensor) -> Mapping[str, Tensor]:
        """Features of every layer, ``(B, D)`` each, of windows ``(B, …)``."""


@dataclass(frozen=True)
class Inputs:
    """How windows are made; the defaults are those of the GDT chapter's small budget.

    Attributes:
        num_frames: pictures.
        fps: pictures a second.
        decode_size: short side of what is read, in pixels.
        crop: side of the square that the network sees.
        sample_rate: of the sound, in Hz.
        n_mels: filters.
        n_fft: samples.
        snap: filters as in GDT's release, see :class:`~avssl_core.transforms.LogMelSpectrogram`.
        kinetics: pictures normalised as torchvision's networks expect them, channel by channel.
    """

    num_frames: int = 8
    fps: float = 8.0
    decode_size: int = 56
    crop: int = 48
    sample_rate: int = 16_000
    n_mels: int = 40
    n_fft: int = 512
    snap: bool = False
    kinetics: bool = False


# thesis chapter 2: one second of 30 pictures, 24 kHz
_RELEASED_GDT = Inputs(30, 30.0, 128, 112, 24_000, 40, 1024, snap=True)
_KINETICS = Inputs(16, 15.0, 128, 112, kinetics=True)
_KINETICS_MEAN, _KINETICS_STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)  # torchvision's


def chosen(choice: Choice) -> Choice:
    """Check a choice before any work, and note what its weights hold.

    Raises:
        CurateError: an unknown name, no weights, or weights that are not there.
    """
    names = VIDEO if choice.modality == "video" else AUDIO
    option, weights = f"--{choice.modality}-weights", choice.weights
    if choice.name is not None and ":" in choice.name:
        _function(choice.name)
    elif choice.name is not None and choice.name not in names:
        raise unknown(f"{choice.modality} network", choice.name, names)
    elif weights is None and not choice.random:
        if choice.name not in TORCHVISION:
            raise CurateError(
                f"the {choice.modality} network has no weights: give {option} FILE (a checkpoint of `avssl run gdt` "
                "holds both networks), or --random-features for a trial without training"
            )
        weights = str(_torchvision_file(choice.name))
    if weights is None:
        return choice
    path = Path(weights).expanduser()
    if not path.is_file():
        raise CurateError(f"{option}: there is no file {path}")
    with open(path, "rb") as file:
        content = hashlib.file_digest(file, hashlib.sha256).hexdigest()
    return replace(choice, weights=str(path.resolve()), content=content)


def build_extractor(choice: Choice) -> Extractor:
    """The network of a choice, ready to describe clips.

    Raises:
        CurateError: the weights are not of such a network.
    """
    if choice.name is not None and ":" in choice.name:
        return _function(choice.name)(choice)
    try:
        if choice.name in TORCHVISION:
            return VideoExtractor(*_torchvision_network(choice), ("stem", "layer1", "layer2", "layer3", "layer4"))
        network, inputs = _random_network(choice) if choice.weights is None else _book_network(choice)
    except CheckpointError as error:
        raise CurateError(str(error)) from error
    return (VideoExtractor if choice.modality == "video" else AudioExtractor)(network, inputs, book_layers(network))


class _Layers:
    """Pooled outputs of named modules, noted while the network runs."""

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        self.network, self.layers = network.eval(), tuple(layers)
        self._seen: dict[str, Tensor] = {}
        for name in self.layers:
            network.get_submodule(name).register_forward_hook(self._noting(name))

    def _noting(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._seen[name] = output.flatten(2).mean(dim=2)

        return note

    @torch.no_grad()
    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Of inputs ``(B, …)``: the mean over time and space of every layer, ``(B, D)``, on the CPU."""
        self.network(x)
        seen, self._seen = self._seen, {}
        # Networks on merged axes have rows of frames: (B T, C) -> (B, C).
        return {name: seen[name].float().cpu().reshape(len(x), -1, seen[name].shape[1]).mean(1) for name in self.layers}


class VideoExtractor(_Layers):
    """Pictures of a window, cropped and normalised, through a video network."""

    def __init__(self, network: nn.Module, inputs: Inputs, layers: Sequence[str]) -> None:
        super().__init__(network, layers)
        self.inputs, self.window_s = inputs, inputs.num_frames / inputs.fps
        mean, std = (_KINETICS_MEAN, _KINETICS_STD) if inputs.kinetics else ((0.45,) * 3, (0.225,) * 3)
        self._mean, self._std = (torch.tensor(values)[:, None, None, None] for values in (mean, std))
        self._clip = ClipEval(inputs.crop, scale=128 / 112 if inputs.kinetics else 1.0, mean=0.0, std=1.0)

    def read(self, reader: MediaReader, start_s: float) -> Tensor:
        """uint8 ``(3, T, size, size)``: the middle square."""
        asked = self.inputs
        frames = reader.frames(start_s, num_frames=asked.num_frames, fps=asked.fps, size=asked.decode_size).frames
        top, left = ((side - asked.decode_size) // 2 for side in frames.shape[2:])
        square = frames[..., top : top + asked.decode_size, left : left + asked.decode_size]
        return square.transpose(0, 1).contiguous()

    def __call__(self, windows: Tensor) -> dict[str, Tensor]:
        """Features of windows ``(B, 3, T, size, size)``."""
        return self.features((self._clip(windows) - self._mean) / self._std)


class AudioExtractor(_Layers):
    """Sound of a window, as a spectrogram, through an image network."""

    def __init__(self, network: nn.Module, inputs: Inputs, layers: Sequence[str]) -> None:
        super().__init__(network, layers)
        self.inputs, self.window_s = inputs, inputs.num_frames / inputs.fps
        self._log_mel = LogMelSpectrogram(
            sample_rate=inputs.sample_rate, n_mels=inputs.n_mels, n_fft=inputs.n_fft, snap=inputs.snap
        )

    def read(self, reader: MediaReader, start_s: float) -> Tensor:
        """float32 ``(L,)``."""
        rate = self.inputs.sample_rate
        return reader.samples(start_s, num_samples=round(self.window_s * rate), sample_rate=rate)

    def __call__(self, windows: Tensor) -> dict[str, Tensor]:
        """Features of windows ``(B, L)``."""
        return self.features(self._log_mel(windows))


def _random_network(choice: Choice) -> tuple[nn.Module, Inputs]:
    with seeded_init(choice.seed):
        if choice.modality == "audio":
            return SpectrogramResNet(RANDOM_WIDTH, (1, 1, 1, 1)), Inputs()
        if choice.name == "factorised":
            return FactorisedVideoNet(RANDOM_WIDTH), Inputs()
        return R2Plus1D(RANDOM_WIDTH, (1, 1, 1, 1)), Inputs()


def _book_network(choice: Choice) -> tuple[nn.Module, Inputs]:
    """One of the book's networks, with the sizes that its weights have."""
    path = Path(str(choice.weights))
    state = read_state_dict(path)
    if any(key.startswith("video_network.base.") for key in state):
        return getattr(load_gdt_checkpoint(state), choice.modality).encoder, _RELEASED_GDT
    if choice.modality == "video" and "layer1.0.conv1.0.0.weight" in state:
        return load_torchvision_r2plus1d(state), _KINETICS
    state = _of_encoder(state, choice.modality)
    network = _sized(state, choice.modality, path)
    kind = {R2Plus1D: "r2plus1d", FactorisedVideoNet: "factorised"}.get(type(network), "resnet9")
    if choice.name not in (None, kind):
        raise CurateError(f"{path} holds the weights of {kind}, not of {choice.name}; leave the name out")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CurateError(f"{path} does not fit {kind}: {error}") from error
    return network, _inputs_of(path)


def _of_encoder(state: dict[str, Tensor], modality: str) -> dict[str, Tensor]:
    """The encoder's part of the weights of a model of two towers, or of one tower, or the encoder's own."""
    for prefix in (f"{modality}.encoder.", "encoder."):
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if part:
            return part
    return state


def _sized(state: Mapping[str, Tensor], modality: str, path: Path) -> nn.Module:
    """A network of the sizes that show in the shapes of its weights; strides, which do not, are the usual ones."""
    norm: Any = "bn" if any(key.endswith("running_mean") for key in state) else "gn"
    blocks = _counts(state, r"stages\.(\d+)\.(\d+)\.")
    if modality == "audio" and "stem.weight" in state and state["stem.weight"].ndim == 4:
        return SpectrogramResNet(len(state["stem.weight"]), blocks, norm)
    if modality == "video" and "stem.spatial.weight" in state:
        strides = (1, *[2] * (len(blocks) - 1))
        return R2Plus1D(len(state["stem.temporal.weight"]), blocks, norm, temporal_strides=strides)
    if modality == "video" and "final.conv.weight" in state:
        stem, dim = state["stem.weight"], len(state["final.conv.weight"])
        convs = _counts(state, r"stages\.(\d+)\.(?:spatial\.(\d+)|temporal)\.")
        return FactorisedVideoNet(len(stem), stem.shape[-1], dim, blocks=convs, norm=norm)
    raise CurateError(
        f"{path} does not hold a {modality} network of this book; its weights are {', '.join(list(state)[:3])}, …"
    )


def _counts(state: Mapping[str, Tensor], pattern: str) -> list[int]:
    """Blocks of each stage."""
    counts: dict[int, int] = {}
    for match in (re.match(pattern, key) for key in state):
        if match:
            number = -1 if match[2] is None else int(match[2])
            counts[int(match[1])] = max(counts.get(int(match[1]), 0), number + 1)
    return [counts[stage] for stage in sorted(counts)]


def _inputs_of(path: Path) -> Inputs:
    """How the run that wrote a checkpoint made its inputs; the defaults, where the file does not say."""
    found = {} if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    identity = found.get("identity") if isinstance(found, dict) else None
    identity = identity if isinstance(identity, dict) else {}
    names = Inputs.__dataclass_fields__
    return Inputs(**{name: identity[f"context.{name}"] for name in names if f"context.{name}" in identity})


def book_layers(network: nn.Module) -> tuple[str, ...]:
    """Five layers of a network of four stages: its stem, or else its last convolution, and each stage."""
    stages = tuple(f"stages.{number}" for number in range(len(network.get_submodule("stages")._modules)))
    return (*stages, "final") if isinstance(network, FactorisedVideoNet) else ("stem_norm", *stages)


def _torchvision_network(choice: Choice) -> tuple[nn.Module, Inputs]:
    from torchvision.models import get_model

    with seeded_init(choice.seed):
        network: nn.Module = get_model(choice.name)
    if choice.weights is not None:
        state = read_state_dict(choice.weights)
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise CurateError(f"{choice.weights} does not fit {choice.name}: {error}") from error
    return network, _KINETICS


def _torchvision_file(name: str) -> Path:
    """Where torchvision keeps the weights of a network on this machine."""
    from torchvision.models import get_model_weights

    url = get_model_weights(name).DEFAULT.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        raise CurateError(f"the weights of {name} are not on this machine; get {url} and put it at {path}")
    return path


def _function(name: str) -> Callable[[Choice], Extractor]:
    module, _, function = name.partition(":")
    try:
        found: Callable[[Choice], Extractor] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise CurateError(
            f"no extractor {name} ({error}); it must be importable, as package.module:function"
        ) from error
    return found
