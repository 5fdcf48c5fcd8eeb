"""What is done to a clip before a network sees it: batched, on the device of the input, constant over the frames of a
clip."""

from __future__ import annotations

from avssl_core.transforms.audio import LogMelSpectrogram, SpecAugment, VolumeJitter
from avssl_core.transforms.compressed import (
    CompressedAugment,
    CropDraw,
    fixed_crop,
    normalise_motion,
    normalise_pictures,
    normalise_residual,
)
from avssl_core.transforms.degradation import degrade_nearest, hold_samples
from avssl_core.transforms.rand_augment import RandAugment
from avssl_core.transforms.randomness import generator_for, mix
from avssl_core.transforms.stream_turns import quarter_turns, reverse_order
from avssl_core.transforms.temporal import TimeReversal, TimeShift, modality_split, time_reverse
from avssl_core.transforms.video import ClipAugment, ClipEval, GaussianBlur, to_float

__all__ = [
    "ClipAugment",
    "ClipEval",
    "CompressedAugment",
    "CropDraw",
    "GaussianBlur",
    "LogMelSpectrogram",
    "RandAugment",
    "SpecAugment",
    "TimeReversal",
    "TimeShift",
    "VolumeJitter",
    "degrade_nearest",
    "fixed_crop",
    "generator_for",
    "hold_samples",
    "mix",
    "modality_split",
    "normalise_motion",
    "normalise_pictures",
    "normalise_residual",
    "quarter_turns",
    "reverse_order",
    "time_reverse",
    "to_float",
]
