"""A pool of tiny clips whose sight and sound are of known classes, and extractors that read the classes off the files.

Sight is a grey level, sound a tone. In half of the pool they belong together; the sound tracks of the other half have
been exchanged, so that every wrong combination of classes occurs once.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avssl_core.media import MediaReader, write_clip
from data_prep.curate import Choice, Settings
from data_prep.curate.candidates import Film
from data_prep.curate.clips import Clip, as_hex

CLASSES = 5
RATE = 8000
TONES = (300.0, 600.0, 1000.0, 1600.0, 2500.0)
SECONDS = 1.2

SIGHT, SOUND = Choice("video", "helpers_curate:sight"), Choice("audio", "helpers_curate:sound")


def write_pair(path: Path, sight: int, sound: int, *, number: int = 0, seconds: float = SECONDS) -> Path:
    """A clip of one grey, with noise of its own, and one tone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(number)
    noise = torch.randint(-15, 16, (1, 3, 8, 9), generator=generator).float()
    picture = (40 + 40 * sight + F.interpolate(noise, size=(32, 36))).byte()
    frames = picture.expand(round(10 * seconds), 3, 32, 36).contiguous()
    time = np.arange(round(seconds * RATE)) / RATE
    wave = 0.3 * np.sin(2 * np.pi * TONES[sound] * time + number)
    write_clip(path, frames, torch.from_numpy(wave.astype(np.float32)), fps=10, sample_rate=RATE)
    return path


def write_pool(folder: Path, classes: int = CLASSES) -> set[str]:
    """Write the pool; names of the clips whose sight and sound belong together."""
    true = [(label, label) for label in range(classes) for _ in range(classes - 1)]
    false = list(itertools.permutations(range(classes), 2))
    for number, (sight, sound) in enumerate([*true, *false]):
        write_pair(folder / f"{number:02d}.mp4", sight, sound, number=number)
    return {f"{number:02d}.mp4" for number in range(len(true))}


def settings(**changes: object) -> Settings:
    """Of a curation by the true classes."""
    chosen = {"keep": 0.5, "video": SIGHT, "audio": SOUND, "clusters": CLASSES, "windows": 1, "shard": 4, "shown": 2}
    return Settings(**{**chosen, **changes})  # type: ignore[arg-type]


class Sight:
    """The class of the grey level."""

    layers = ("grey",)
    window_s = 0.5

    def read(self, reader: MediaReader, start_s: float) -> Tensor:
        return reader.frames(start_s, num_frames=2, fps=4, size=16).frames.float().mean()

    def __call__(self, windows: Tensor) -> dict[str, Tensor]:
        return {"grey": F.one_hot(((windows - 40) / 40).round().long(), CLASSES).float()}


class Sound:
    """The class of the tone."""

    layers = ("tone",)
    window_s = 0.5

    def read(self, reader: MediaReader, start_s: float) -> Tensor:
        wave = reader.samples(start_s, num_samples=RATE // 2, sample_rate=RATE)
        return torch.fft.rfft(wave).abs().argmax() * 2.0  # Hz

    def __call__(self, windows: Tensor) -> dict[str, Tensor]:
        nearest = (windows[:, None] - torch.tensor(TONES)).abs().argmin(dim=1)
        return {"tone": F.one_hot(nearest, CLASSES).float()}


def sight(choice: Choice) -> Sight:
    return Sight()


def sound(choice: Choice) -> Sound:
    return Sound()


def made_up(
    name: str, *, content: str = "", picture: Tensor | None = None, sound: Tensor | None = None, **film: Any
) -> Clip:
    """A clip that no file stands behind."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    picture = torch.rand(256, generator=generator) > 0.5 if picture is None else picture
    sound = torch.rand(64, generator=generator) > 0.5 if sound is None else sound
    made = Film(
        **{"film_id": name, "uri": name, "source": Path(name), "usable_s": 1.0, "size": 1, "mtime_ns": 1} | film
    )
    return Clip(name, made, 0.0, 1.0, content or name, as_hex(picture), as_hex(sound))
