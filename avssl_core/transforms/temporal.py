"""Transformations of time: where a clip starts (shift), which way it plays (reversal), and which modality is looked at.

In GDT (thesis chapter 2, section on video) these are the factors τ, r and m of the composed transformation T = (i, τ,
m, r, g). The release draws the two starts of a video independently, so that they may coincide: a distinctive time
shift then asks the network to tell a clip from itself. ``min_gap_s`` rules that out; its default, 0, is the release's
behaviour.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The axis of time in a video (B, 3, T, H, W) and in a spectrogram (B, 1, F, T).
VIDEO_TIME = 2
SPECTROGRAM_TIME = 3


def time_reverse(x: Tensor, dim: int) -> Tensor:
    """Play ``x`` backwards along ``dim``; twice gives ``x`` again."""
    return x.flip(dim)


class TimeReversal:
    """Reverse both modalities of a clip together: a reversed video is paired with reversed sound.

    The frames are flipped along T and the spectrogram along its time axis (the waveform is not reversed before the
    spectrogram is
    computed: the release's choice, which keeps every spectrogram frame as it was).
    """

    def __call__(self, video: Tensor, spectrogram: Tensor, reverse: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reverse a batch.

        Args:
            video: ``(B, 3, T, H, W)``.
            spectrogram: ``(B, 1, F, T')``.
            reverse: bool ``(B,)``, which clips to reverse; all of them if ``None``.

        Returns:
            Both modalities, same shapes. Applying the same call twice gives the input.
        """
        if video.dim() != 5 or spectrogram.dim() != 4:
            raise ValueError(
                f"expected (B, 3, T, H, W) and (B, 1, F, T), got {tuple(video.shape)} and {tuple(spectrogram.shape)}"
            )
        backwards = time_reverse(video, VIDEO_TIME), time_reverse(spectrogram, SPECTROGRAM_TIME)
        if reverse is None:
            return backwards
        return (
            torch.where(reverse[:, None, None, None, None], backwards[0], video),
            torch.where(reverse[:, None, None, None], backwards[1], spectrogram),
        )


class TimeShift:
    """Draw the start times of ``count`` windows of one clip, uniformly over all placements that keep the gap.

    Args:
        clip_s: length of a window in seconds.
        min_gap_s: smallest distance between the *starts* of two windows. ``min_gap_s=clip_s`` forbids overlap, 0
            allows even the same window twice (the release).
        count: number of windows; GDT's K_τ is 2.
    """

    def __init__(self, clip_s: float, min_gap_s: float = 0.0, count: int = 2) -> None:
        if clip_s <= 0 or min_gap_s < 0 or count < 1:
            raise ValueError(f"need clip_s > 0, min_gap_s >= 0, count >= 1; got {clip_s=}, {min_gap_s=}, {count=}")
        self.clip_s, self.min_gap_s, self.count = clip_s, min_gap_s, count

    @property
    def required_s(self) -> float:
        """Shortest clip that can hold the windows."""
        return self.clip_s + (self.count - 1) * self.min_gap_s

    def __call__(self, duration_s: float, generator: torch.Generator) -> Tensor:
        """Draw starts for a clip of ``duration_s`` seconds.

        Returns:
            float64 ``(count,)``, in random order, each in [0, duration_s − clip_s].

        Raises:
            ValueError: if the clip is shorter than ``required_s``.
        """
        slack = duration_s - self.required_s
        if slack < -1e-6:  # durations are sums of rounded timestamps
            raise ValueError(
                f"a clip of {duration_s:.3f} s cannot hold {self.count} windows of {self.clip_s:.3f} s whose starts "
                "are "
                f"{self.min_gap_s:.3f} s apart: that takes {self.required_s:.3f} s"
            )
        # Sorted uniform draws on the slack, then spread by the gap: uniform over all admissible placements.
        draws = torch.rand(self.count, generator=generator, dtype=torch.float64).mul_(max(0.0, slack))
        if self.count == 1 or self.min_gap_s == 0:
            return draws
        ranks = draws.argsort().argsort()
        return draws + ranks * self.min_gap_s


def modality_split(video: Tensor, spectrogram: Tensor) -> dict[str, Tensor]:
    """The factor m: a clip seen (``"video"``) and heard (``"audio"``), as a mapping from modality to batch.

    Raises:
        ValueError: if the two batches differ in length, which means that rows no longer belong to the same clips.
    """
    if len(video) != len(spectrogram):
        raise ValueError(f"{len(video)} videos but {len(spectrogram)} spectrograms: rows must be the same clips")
    return {"video": video, "audio": spectrogram}
