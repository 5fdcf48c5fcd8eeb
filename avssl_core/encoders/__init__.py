"""Encoders: clips, spectrograms and words to features; projection heads; released weights under our names."""

from __future__ import annotations

from avssl_core.encoders.checkpoints import (
    GDT_IGNORED,
    TORCHVISION_IGNORED,
    CheckpointError,
    gdt_key_map,
    load_gdt_checkpoint,
    load_torchvision_r2plus1d,
    r2plus1d_key_map,
    read_state_dict,
)
from avssl_core.encoders.factorised import FactorisedVideoNet
from avssl_core.encoders.heads import ProjectionHead
from avssl_core.encoders.imr_heads import COVIAR_WEIGHTS, CTPHead, LateFusion, PMSPHead
from avssl_core.encoders.imrnet import LATERAL_DEPTHS, IMRNet, Lateral, LateralGate, StreamMaps
from avssl_core.encoders.layers import NormKind, kaiming_fan_out_, make_norm, seeded_init
from avssl_core.encoders.macs import count_macs
from avssl_core.encoders.r2plus1d import R2Plus1D, mid_channels
from avssl_core.encoders.resnet3d import ResNet3D
from avssl_core.encoders.spectrogram_resnet import ResNet9Audio, SpectrogramResNet
from avssl_core.encoders.text import BagOfWordsText, random_word_table
from avssl_core.encoders.two_tower import AudioVisualModel, Encoder, Tower, full_gdt, small

__all__ = [
    "COVIAR_WEIGHTS",
    "GDT_IGNORED",
    "LATERAL_DEPTHS",
    "TORCHVISION_IGNORED",
    "AudioVisualModel",
    "BagOfWordsText",
    "CTPHead",
    "CheckpointError",
    "Encoder",
    "FactorisedVideoNet",
    "IMRNet",
    "LateFusion",
    "Lateral",
    "LateralGate",
    "NormKind",
    "PMSPHead",
    "ProjectionHead",
    "R2Plus1D",
    "ResNet3D",
    "ResNet9Audio",
    "SpectrogramResNet",
    "StreamMaps",
    "Tower",
    "count_macs",
    "full_gdt",
    "gdt_key_map",
    "kaiming_fan_out_",
    "load_gdt_checkpoint",
    "load_torchvision_r2plus1d",
    "make_norm",
    "mid_channels",
    "r2plus1d_key_map",
    "random_word_table",
    "read_state_dict",
    "seeded_init",
    "small",
]
