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
from avssl_core.encoders.imrnet import LATERAL_DEPTHS, IMRNet, StreamMaps
from avssl_core.encoders.lateral_gates import Lateral, LateralGate
from avssl_core.encoders.layers import NormKind, kaiming_fan_out_, make_norm, seeded_init
from avssl_core.encoders.macs import count_macs
from avssl_core.encoders.motionformer_checkpoints import (
    MOTIONFORMER_IGNORED,
    init_from_image_vit,
    load_motionformer_checkpoint,
    motionformer_key_map,
)
from avssl_core.encoders.orthogonal_subset import most_orthogonal_subset, random_subset, segment_means
from avssl_core.encoders.prototype_attention import (
    iterative_pinv,
    nystrom_attention,
    orthoformer_attention,
    orthogonal_projection,
    performer_attention,
    performer_features,
)
from avssl_core.encoders.r2plus1d import R2Plus1D, mid_channels
from avssl_core.encoders.resnet3d import ResNet3D
from avssl_core.encoders.space_time_attention import DividedAttention, JointAttention
from avssl_core.encoders.spectrogram_resnet import ResNet9Audio, SpectrogramResNet
from avssl_core.encoders.text import BagOfWordsText, random_word_table
from avssl_core.encoders.trajectory_attention import TrajectoryAttention, TrajectoryMaps
from avssl_core.encoders.tubelets import SpaceTimePositions, TubeletEmbedding, inflate_patch_kernel
from avssl_core.encoders.two_tower import AudioVisualModel, Encoder, Tower, full_gdt, small
from avssl_core.encoders.video_transformer import (
    EPIC_CLASSES,
    VideoTransformer,
    motionformer,
    motionformer_hr,
    motionformer_l,
)
from avssl_core.encoders.video_transformer_macs import macs_video_transformer

__all__ = [
    "COVIAR_WEIGHTS",
    "EPIC_CLASSES",
    "GDT_IGNORED",
    "LATERAL_DEPTHS",
    "MOTIONFORMER_IGNORED",
    "TORCHVISION_IGNORED",
    "AudioVisualModel",
    "BagOfWordsText",
    "CTPHead",
    "CheckpointError",
    "DividedAttention",
    "Encoder",
    "FactorisedVideoNet",
    "IMRNet",
    "JointAttention",
    "LateFusion",
    "Lateral",
    "LateralGate",
    "NormKind",
    "PMSPHead",
    "ProjectionHead",
    "R2Plus1D",
    "ResNet3D",
    "ResNet9Audio",
    "SpaceTimePositions",
    "SpectrogramResNet",
    "StreamMaps",
    "Tower",
    "TrajectoryAttention",
    "TrajectoryMaps",
    "TubeletEmbedding",
    "VideoTransformer",
    "count_macs",
    "full_gdt",
    "gdt_key_map",
    "inflate_patch_kernel",
    "init_from_image_vit",
    "iterative_pinv",
    "kaiming_fan_out_",
    "load_gdt_checkpoint",
    "load_motionformer_checkpoint",
    "load_torchvision_r2plus1d",
    "macs_video_transformer",
    "make_norm",
    "mid_channels",
    "most_orthogonal_subset",
    "motionformer",
    "motionformer_hr",
    "motionformer_key_map",
    "motionformer_l",
    "nystrom_attention",
    "orthoformer_attention",
    "orthogonal_projection",
    "performer_attention",
    "performer_features",
    "r2plus1d_key_map",
    "random_subset",
    "random_word_table",
    "read_state_dict",
    "seeded_init",
    "segment_means",
    "small",
]
