"""Small real video files whose pictures and sound tell the time, for tests of everything that reads corpora."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from avssl_core.data import Corpus
from avssl_core.media import write_clip

FPS = 25
RATE = 16000
# Grey levels between two frames: more than coding errors, little enough for two seconds in eight bits.
LEVELS = 4


def write_ramp(path: Path, *, frames: int = 50, height: int = 32, width: int = 40, sound: bool = True) -> Path:
    """A clip that is uniformly grey, ``LEVELS`` brighter with every frame; its sound is a tone whose loudness rises
    the same way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    level = (20 + LEVELS * torch.arange(frames)).clamp(max=255).to(torch.uint8)
    picture = level[:, None, None, None].expand(frames, 3, height, width).contiguous()
    time = np.arange(round(frames / FPS * RATE)) / RATE
    wave = torch.from_numpy((0.2 * time * np.sin(2 * np.pi * 440 * time)).astype(np.float32)) if sound else None
    write_clip(path, picture, wave, fps=FPS, sample_rate=RATE, quantiser=2)
    return path


def first_level(frames: torch.Tensor) -> float:
    """Number of the frame in its clip, read off the first picture of a window ``(T, 3, H, W)``."""
    return (float(frames[0].float().mean()) - 20) / LEVELS


def write_corpus(root: Path, *, clips: int = 6, frames: int = 50, groups: int = 2) -> Corpus:
    """Ramps with an index that carries labels, groups, splits and timed words."""
    rows, timed = [], []
    for number in range(clips):
        write_ramp(root / f"clip_{number}.mp4", frames=frames)
        rows.append(
            {
                "clip_id": f"c{number}",
                "uri": f"clip_{number}.mp4",
                "duration_s": frames / FPS,
                "fps": FPS,
                "width": 40,
                "height": 32,
                "video_codec": "mpeg4",
                "audio_codec": "aac",
                "sample_rate": RATE,
                "split": "test" if number % 3 == 2 else "train",
                "group": f"g{number % groups}",
                "label_parity": "odd" if number % 2 else "even",
            }
        )
        middle = frames / FPS / 2
        timed.append({"clip_id": f"c{number}", "start_s": 0.0, "end_s": 0.1, "kind": "word", "label": "early"})
        timed.append(
            {"clip_id": f"c{number}", "start_s": middle - 0.1, "end_s": middle + 0.1, "kind": "word", "label": "middle"}
        )
        timed.append({"clip_id": f"c{number}", "start_s": 0.3, "end_s": 0.3, "kind": "event", "label": "bang"})
    corpus = Corpus(root, pd.DataFrame(rows), pd.DataFrame(timed))
    corpus.save()
    return corpus
