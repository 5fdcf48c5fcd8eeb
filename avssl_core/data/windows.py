"""Windows: which second of a clip is looked at, as a pure function of (seed, epoch, index).

In GDT these are the draws of τ: ``WindowSpec(windows=2)`` gives the two time shifts of every video. Because nothing but
(seed, epoch, index) decides, a resumed run, another number of workers or a replaced clip cannot change what the other
clips of a batch look like.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avssl_core.data.corpus import Corpus
from avssl_core.data.errors import NoUsableClipsError
from avssl_core.transforms import TimeShift, generator_for


@dataclass(frozen=True)
class WindowSpec:
    """What one item of a data set holds.

    Attributes:
        num_frames: frames of a window (T).
        fps: frames a second that are asked for, whatever the files have.
        size: ``(height, width)``, or the length of the shorter side, or ``None`` for the size of the files.
        sample_rate: of the sound, in Hz; ``None`` for video alone.
        audio_s: length of the sound in seconds, from the same start; by default that of the video.
        windows: windows per clip (K).
        min_gap_s: smallest distance between the starts of two windows of a clip.
        square: cut the middle square of ``size`` out of every frame, so that clips of any shape fit one batch. Needs
            ``size`` as the length of the shorter side.
    """

    num_frames: int
    fps: float
    size: int | tuple[int, int] | None = None
    sample_rate: int | None = None
    audio_s: float | None = None
    windows: int = 1
    min_gap_s: float = 0.0
    square: bool = False

    def __post_init__(self) -> None:
        if self.square and not isinstance(self.size, int):
            raise ValueError(f"square needs size as the length of the shorter side, in pixels; got size={self.size!r}")
        if self.num_frames < 1 or self.fps <= 0 or self.windows < 1 or self.min_gap_s < 0:
            raise ValueError(f"need num_frames >= 1, fps > 0, windows >= 1, min_gap_s >= 0; got {self}")
        if self.sample_rate is not None and self.sample_rate < 1:
            raise ValueError(f"sample_rate must be positive or None, got {self.sample_rate}")
        if self.audio_s is not None and (self.sample_rate is None or self.audio_s <= 0):
            raise ValueError(f"audio_s must be positive and needs a sample_rate, got {self}")

    @property
    def clip_s(self) -> float:
        """Length of the video of a window in seconds."""
        return self.num_frames / self.fps

    @property
    def span_s(self) -> float:
        """Length of a window: the longer of its video and its sound."""
        return max(self.clip_s, self.audio_s or 0.0)

    @property
    def num_samples(self) -> int:
        """Samples of the sound of a window (L); 0 without sound."""
        return 0 if self.sample_rate is None else round((self.audio_s or self.clip_s) * self.sample_rate)

    @property
    def shift(self) -> TimeShift:
        """The draw of the start times."""
        return TimeShift(self.span_s, self.min_gap_s, self.windows)


def draw_starts(spec: WindowSpec, duration_s: float, *, seed: int, epoch: int, index: int) -> Tensor:
    """Start times of the windows of one clip, float64 ``(K,)``, a function of (seed, epoch, index) alone.

    Raises:
        ValueError: if the clip is too short for the windows.
    """
    return spec.shift(duration_s, generator_for(seed, epoch, index))


def uniform_starts(spec: WindowSpec, duration_s: float) -> Tensor:
    """``spec.windows`` starts spread evenly from the first admissible one to the last, float64 ``(K,)``; one: the
    middle."""
    slack = max(0.0, duration_s - spec.span_s)
    if spec.windows == 1:
        return torch.tensor([slack / 2], dtype=torch.float64)
    return torch.linspace(0, slack, spec.windows, dtype=torch.float64)


def usable_seconds(corpus: Corpus, spec: WindowSpec) -> NDArray[np.float64]:
    """Seconds of each clip that can hold windows.

    The shorter of video and sound where both are known and asked for, in whole frames at ``spec.fps``: what a reader
    of whole clips gives, so that windows from files and from the decoded cache start at the same times.
    """
    seconds = corpus.index["duration_s"].to_numpy(dtype=np.float64)
    if spec.sample_rate is not None and "audio_duration_s" in corpus.index:
        sound = corpus.index["audio_duration_s"].to_numpy(dtype=np.float64)
        seconds = np.where(np.isnan(sound), seconds, np.minimum(seconds, sound))
    whole: NDArray[np.float64] = np.floor(seconds * spec.fps + 1e-6) / spec.fps
    return whole


def fitting_rows(corpus: Corpus, spec: WindowSpec) -> tuple[NDArray[np.int64], list[tuple[str, str]]]:
    """Split the rows of a corpus into those that can hold the windows and those that cannot.

    Returns:
        The row numbers that fit, and ``(uri, reason)`` for each of the others.

    Raises:
        NoUsableClipsError: if none fits; it lists reasons.
    """
    seconds, needed = usable_seconds(corpus, spec), spec.shift.required_s
    short = seconds < needed - 1e-6
    silent = (
        (corpus.index["audio_codec"] == "").to_numpy() if spec.sample_rate is not None else np.zeros(len(corpus), bool)
    )
    refused = []
    for row in np.flatnonzero(short | silent):
        reason = "has no sound" if silent[row] else f"lasts {seconds[row]:.3f} s, the windows need {needed:.3f} s"
        refused.append((str(corpus.index["uri"].iat[row]), reason))
    rows = np.flatnonzero(~(short | silent))
    if len(rows) == 0:
        raise NoUsableClipsError(
            f"none of the {len(corpus)} clips of {corpus.root} can be used with {spec}; ask for shorter or fewer "
            "windows, a smaller "
            f"min_gap_s, or sample_rate=None for clips without sound",
            refused,
        )
    return rows, refused
