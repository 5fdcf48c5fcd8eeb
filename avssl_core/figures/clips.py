"""Clips to look at: film strips, sound beside sight on one time axis, and sheets of many clips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from avssl_core.figures.style import BLUE, GREY, WIDTH, axes_of

Pictures = Tensor | npt.NDArray[np.uint8]


def filmstrip(
    frames: Pictures,
    *,
    fps: float = 25.0,
    start_s: float = 0.0,
    count: int = 8,
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Frames side by side, evenly spaced over the clip, each with its time in seconds.

    Args:
        frames: uint8 ``(T, 3, H, W)``, or float in [0, 1] of that shape.
        fps: frames a second.
        start_s: time of the first frame.
        count: how many to show; fewer if the clip is shorter.
        title: above the strip.
        ax: where to draw.

    Raises:
        ValueError: the shape is not ``(T, 3, H, W)``, or there is no frame.
    """
    pictures = _pictures(frames)
    chosen = np.unique(np.linspace(0, len(pictures) - 1, min(count, len(pictures))).round().astype(int))
    height, width = pictures.shape[1:3]
    gap = max(1, width // 24)
    strip = np.full((height, len(chosen) * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for place, number in enumerate(chosen):
        strip[:, place * (width + gap) : place * (width + gap) + width] = pictures[number]
    ax = axes_of(ax, height=WIDTH * strip.shape[0] / strip.shape[1] + 0.5)
    ax.imshow(strip, interpolation="antialiased")
    ax.set_xticks([place * (width + gap) + width / 2 for place in range(len(chosen))])
    ax.set_xticklabels([f"{start_s + number / fps:.2f} s" for number in chosen])
    ax.tick_params(length=0)
    ax.set_yticks([])
    ax.set_title(title, loc="left")
    _bare(ax)
    return ax


def waveform(
    samples: Tensor, *, sample_rate: int, start_s: float = 0.0, title: str = "", ax: Axes | None = None
) -> Axes:
    """A sound track as the range between its extremes in each of 1,000 steps (drawing every sample would be a large
    file).

    Args:
        samples: float ``(L,)`` in [−1, 1].
        sample_rate: in Hz.
        start_s: time of the first sample.
        title: above the plot.
        ax: where to draw.
    """
    values = samples.detach().float().cpu().numpy().reshape(-1)
    if not len(values):
        raise ValueError("there are no samples to draw")
    steps = np.array_split(values, min(1000, len(values)))
    times = start_s + np.cumsum([0, *map(len, steps)])[:-1] / sample_rate
    ax = axes_of(ax, height=1.6)
    ax.fill_between(times, [s.min() for s in steps], [s.max() for s in steps], color=BLUE, linewidth=0.4)
    ax.set(xlim=(start_s, start_s + len(values) / sample_rate), ylim=(-1, 1), yticks=(-1, 0, 1))
    ax.set(xlabel="time (s)", ylabel="amplitude", title=title)
    return ax


def spectrogram(
    bands: Tensor,
    *,
    hop_s: float,
    start_s: float = 0.0,
    title: str = "",
    ax: Axes | None = None,
    label: str = "mel band",
) -> Axes:
    """A log spectrogram, low bands below, time in seconds.

    Args:
        bands: float ``(F, T)`` or ``(1, F, T)``.
        hop_s: seconds from one column to the next.
        start_s: time of the first column.
        title: above the plot.
        ax: where to draw.
        label: of the vertical axis.
    """
    values = bands.detach().float().cpu().squeeze(0).numpy()
    if values.ndim != 2:
        raise ValueError(f"a spectrogram has shape (F, T) or (1, F, T), got {tuple(bands.shape)}")
    ax = axes_of(ax, height=1.8)
    extent = (start_s, start_s + values.shape[1] * hop_s, -0.5, values.shape[0] - 0.5)
    # digital silence is minus infinity in dB: without a floor at the 2nd percentile it would eat the colour scale
    ax.imshow(values, origin="lower", aspect="auto", extent=extent, vmin=float(np.percentile(values, 2)))
    ax.grid(False)
    ax.set(xlabel="time (s)", ylabel=label, title=title)
    return ax


def sight_and_sound(
    frames: Pictures,
    samples: Tensor,
    bands: Tensor | None = None,
    *,
    fps: float,
    sample_rate: int,
    hop_s: float = 0.01,
    start_s: float = 0.0,
    events_s: Iterable[float] = (),
    count: int = 8,
    title: str = "",
) -> Figure:
    """One clip: film strip above, waveform and spectrogram below on the same seconds, events marked across.

    Args:
        frames: uint8 ``(T, 3, H, W)``.
        samples: float ``(L,)`` in [−1, 1].
        bands: log spectrogram ``(F, T')``; left out when not given.
        fps: frames a second.
        sample_rate: in Hz.
        hop_s: of the spectrogram.
        start_s: beginning of the clip.
        events_s: times to mark.
        count: frames in the strip.
        title: above everything.
    """
    pictures = _pictures(frames)
    strip_height = WIDTH / min(count, len(pictures)) * pictures.shape[1] / pictures.shape[2]
    heights = [strip_height + 0.35, 1.2] + ([1.5] if bands is not None else [])
    figure, axes = plt.subplots(len(heights), 1, figsize=(WIDTH, sum(heights) + 0.4), height_ratios=heights)
    filmstrip(frames, fps=fps, start_s=start_s, count=count, title=title, ax=axes[0])
    waveform(samples, sample_rate=sample_rate, start_s=start_s, ax=axes[1])
    if bands is not None:
        spectrogram(bands, hop_s=hop_s, start_s=start_s, ax=axes[2])
        axes[1].set_xlabel("")
        axes[2].set_xlim(axes[1].get_xlim())
    for time in events_s:
        for ax in axes[1:]:
            ax.axvline(time, color=GREY if ax is axes[1] else "white", linestyle=":", linewidth=1.2)
    return figure


def contact_sheet(
    clips: Sequence[Pictures], *, titles: Sequence[str] = (), columns: int = 3, count: int = 4, width: float = WIDTH
) -> Figure:
    """Many clips at once, each as a short strip with its title.

    Args:
        clips: each uint8 ``(T, 3, H, W)``.
        titles: one a clip, or none.
        columns: clips side by side.
        count: frames of each.
        width: of the figure, in inches.

    Raises:
        ValueError: no clips, or another number of titles.
    """
    if not clips or (titles and len(titles) != len(clips)):
        raise ValueError(f"{len(clips)} clips and {len(titles)} titles; expected clips, and a title for each or none")
    columns = min(columns, len(clips))
    rows = -(-len(clips) // columns)
    height, breadth = _pictures(clips[0]).shape[1:3]
    each = width / columns / min(count, len(clips[0])) * height / breadth
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, rows * (each + (0.3 if titles else 0.08))), squeeze=False
    )
    for place, ax in enumerate(axes.flat):
        if place < len(clips):
            filmstrip(clips[place], count=count, ax=ax)
            ax.set_title(titles[place] if titles else "", loc="left", fontsize="small")
        ax.set_xticks([])
        ax.set_yticks([])
        _bare(ax)
    return figure


def _pictures(frames: Pictures) -> npt.NDArray[np.uint8]:
    """Frames as uint8 ``(T, H, W, 3)``."""
    tensor = frames if isinstance(frames, Tensor) else torch.from_numpy(np.asarray(frames))
    if tensor.ndim != 4 or tensor.shape[1] != 3 or not len(tensor):
        raise ValueError(f"frames have shape (T, 3, H, W) with T of at least 1, got {tuple(tensor.shape)}")
    if tensor.is_floating_point():
        tensor = tensor.detach().clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.ascontiguousarray(tensor.cpu().permute(0, 2, 3, 1).numpy())


def _bare(ax: Axes) -> None:
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
