"""Labels without people: optimal transport, sizes of clusters, one label for several modalities."""

from avssl_core.clustering.alignment import Alignment, align_modalities, alignment_costs, permute_outputs_
from avssl_core.clustering.marginals import (
    Arrangement,
    arrange_sizes,
    cluster_mass,
    effective_number,
    gaussian_sizes,
    uniform_sizes,
    zipf_sizes,
)
from avssl_core.clustering.released import ReleasedResult, released_sinkhorn
from avssl_core.clustering.rounds import clustering_rounds
from avssl_core.clustering.sinkhorn import CollapseError, SinkhornResult, sinkhorn, transport_plan
from avssl_core.clustering.splicing import ClusterHeads, fuse_log_probs, head_groups, self_label_loss
from avssl_core.clustering.warmup import warmup_batchnorm

__all__ = [
    "Alignment",
    "Arrangement",
    "ClusterHeads",
    "CollapseError",
    "ReleasedResult",
    "SinkhornResult",
    "align_modalities",
    "alignment_costs",
    "arrange_sizes",
    "cluster_mass",
    "clustering_rounds",
    "effective_number",
    "fuse_log_probs",
    "gaussian_sizes",
    "head_groups",
    "permute_outputs_",
    "released_sinkhorn",
    "self_label_loss",
    "sinkhorn",
    "transport_plan",
    "uniform_sizes",
    "warmup_batchnorm",
    "zipf_sizes",
]
