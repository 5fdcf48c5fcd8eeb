"""Time sensitivity: how much a video's feature changes when the window moves (GDT, figure 3; protocol 4).

The paper takes ten shifted clips of each of 3000 videos, and averages "the per-video standard deviation of the
L2-normalised features". It does not say over which axis; here the standard deviation is over shifts, of each feature
separately, and the mean over features is the video's value. It scales as ``1 / sqrt(D)``: compare encoders of equal
width only.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from avssl_core.evaluation.labels import as_features, cosine_ready


@dataclass(frozen=True)
class TimeSensitivity:
    """Outcome of the probe.

    Attributes:
        mean: mean over videos.
        per_video: ``(V,)`` float64, for the histogram.
    """

    mean: float
    per_video: Tensor


def time_sensitivity(features: Tensor) -> TimeSensitivity:
    """Spread of L2-normalised features over time shifts.

    Args:
        features: ``(V, S, D)``: S shifted clips of each of V videos.

    Returns:
        0 for features that do not see the shift; at most about ``1 / sqrt(D)``.

    Raises:
        ValueError: if the shape is another, a value is not finite, or there are fewer than two shifts.
    """
    values = as_features(features, name="features", ndim=3)
    if values.shape[1] < 2:
        raise ValueError(f"the spread over shifts needs at least 2 clips a video, got {values.shape[1]}")
    per_video = cosine_ready(values).std(dim=1).mean(dim=1)  # over shifts, then over features
    return TimeSensitivity(mean=float(per_video.mean()), per_video=per_video)
