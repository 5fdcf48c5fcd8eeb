"""Which part of an input, or which channels of a layer, the answer of a network rests on: tensors in, maps out."""

from avssl_core.attribution.area import (
    CountRegulariser,
    area_regulariser,
    count_regulariser,
    is_monotone,
    optimal_area,
    reference_zeros,
)
from avssl_core.attribution.channels import (
    PAPER_COUNTS,
    ChannelMasks,
    channel_attribution,
    channel_heat_map,
    class_channel_profile,
)
from avssl_core.attribution.excitation import contrastive_excitation_backprop, excitation_backprop
from avssl_core.attribution.extremal import ExtremalConfig, ExtremalPerturbations, extremal_perturbation
from avssl_core.attribution.inversion import feature_inversion, turned
from avssl_core.attribution.mask_geometry import axis_geometry, kernel_profile
from avssl_core.attribution.meaningful import meaningful_perturbation, total_variation
from avssl_core.attribution.networks import frozen, split_model_at
from avssl_core.attribution.occlusion import occlusion, occlusion_windows
from avssl_core.attribution.perturbations import BlurPyramid, FadePyramid, Perturbation, gaussian_blur
from avssl_core.attribution.pointing import (
    PointingGame,
    centre_point,
    pointing_hit,
    saliency_point,
    summed_masks,
)
from avssl_core.attribution.rewards import contrastive_reward, simple_reward
from avssl_core.attribution.rise import rise, rise_masks, upsample_grid
from avssl_core.attribution.saliency import (
    deconvnet,
    grad_cam,
    gradient_saliency,
    guided_backprop,
    linear_approximation,
    output_gradient,
    resize_and_smooth,
    ruled_relu,
)
from avssl_core.attribution.sanity import layers_from_the_top, randomised
from avssl_core.attribution.smooth_masks import SmoothMaskGenerator, SmoothMasks, smooth_max

__all__ = [
    "PAPER_COUNTS",
    "BlurPyramid",
    "ChannelMasks",
    "CountRegulariser",
    "ExtremalConfig",
    "ExtremalPerturbations",
    "FadePyramid",
    "Perturbation",
    "PointingGame",
    "SmoothMaskGenerator",
    "SmoothMasks",
    "area_regulariser",
    "axis_geometry",
    "centre_point",
    "channel_attribution",
    "channel_heat_map",
    "class_channel_profile",
    "contrastive_excitation_backprop",
    "contrastive_reward",
    "count_regulariser",
    "deconvnet",
    "excitation_backprop",
    "extremal_perturbation",
    "feature_inversion",
    "frozen",
    "gaussian_blur",
    "grad_cam",
    "gradient_saliency",
    "guided_backprop",
    "is_monotone",
    "kernel_profile",
    "layers_from_the_top",
    "linear_approximation",
    "meaningful_perturbation",
    "occlusion",
    "occlusion_windows",
    "optimal_area",
    "output_gradient",
    "pointing_hit",
    "randomised",
    "reference_zeros",
    "resize_and_smooth",
    "rise",
    "rise_masks",
    "ruled_relu",
    "saliency_point",
    "simple_reward",
    "smooth_max",
    "split_model_at",
    "summed_masks",
    "total_variation",
    "turned",
    "upsample_grid",
]
