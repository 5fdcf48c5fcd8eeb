"""The mathematics of the methods' losses: tensors in, tensors out; other processes only through collectives."""

from avssl_core.losses.compositional_nce import CompositionalNCE, batch_matrices, loss_floor
from avssl_core.losses.compositions import BatchCounts, contrast_matrix, validate_batch, weight_matrix
from avssl_core.losses.correspondence import (
    BINARY_TYPES,
    CTP_TYPES,
    CTPDraw,
    CTPType,
    apply_ctp,
    ctp_loss,
    draw_ctp,
    is_rotation,
)
from avssl_core.losses.hierarchical_sampler import (
    Factor,
    HierarchicalSampler,
    Transformation,
    TransformationBatch,
    path_codes,
)
from avssl_core.losses.hypotheses import HYPOTHESES, Hypothesis, find_hypothesis
from avssl_core.losses.motion_statistics import PMSPLabels, pmsp_labels, pmsp_loss
from avssl_core.losses.nce import info_nce, joint_nce, multi_positive_nce, similarity, symmetric_info_nce
from avssl_core.losses.pairwise_variants import PairwiseGDTLoss
from avssl_core.losses.variance import (
    GaussianStrata,
    PairMoments,
    StratifiedVariance,
    VarianceReport,
    estimate_moments,
)

__all__ = [
    "BINARY_TYPES",
    "CTP_TYPES",
    "HYPOTHESES",
    "BatchCounts",
    "CTPDraw",
    "CTPType",
    "CompositionalNCE",
    "Factor",
    "GaussianStrata",
    "HierarchicalSampler",
    "Hypothesis",
    "PMSPLabels",
    "PairMoments",
    "PairwiseGDTLoss",
    "StratifiedVariance",
    "Transformation",
    "TransformationBatch",
    "VarianceReport",
    "apply_ctp",
    "batch_matrices",
    "contrast_matrix",
    "ctp_loss",
    "draw_ctp",
    "estimate_moments",
    "find_hypothesis",
    "info_nce",
    "is_rotation",
    "joint_nce",
    "loss_floor",
    "multi_positive_nce",
    "path_codes",
    "pmsp_labels",
    "pmsp_loss",
    "similarity",
    "symmetric_info_nce",
    "validate_batch",
    "weight_matrix",
]
