"""Choosing what to learn from: clips whose clusterings agree, found by mutual information; tensors in, tensors out."""

from avssl_core.curation.batch_selection import (
    BatchPlan,
    BatchState,
    batch_greedy_rounds,
    batch_greedy_select,
    uniform_draw,
)
from avssl_core.curation.contingency import ContingencyTables, contingency_table
from avssl_core.curation.contrastive import CorrespondenceHeads, HeadTraining, epoch_rate_factor, train_heads
from avssl_core.curation.kmeans import (
    CentreState,
    SGDKMeans,
    assign_clusters,
    capped_rate,
    cluster_features,
    kmeans_rate,
    kmeans_step,
    reinitialised,
    sgd_kmeans,
    unit_variance,
)
from avssl_core.curation.mutual_information import (
    adjusted_mutual_information,
    entropy,
    expected_mutual_information,
    independence_bias,
    miller_madow_information,
    mutual_information,
    normalised_mutual_information,
)
from avssl_core.curation.negatives import CorrespondenceSet, class_level_set, mismatched, sample_level_set
from avssl_core.curation.objective import PairwiseInformation, RunningInformation
from avssl_core.curation.pairings import layer_weights, pair_weights, pairing
from avssl_core.curation.ranking import (
    precision,
    precision_curve,
    principal_components,
    rank_scores,
    top_share,
)
from avssl_core.curation.selection import Selection, Start, greedy_select, lazy_greedy_select

__all__ = [
    "BatchPlan",
    "BatchState",
    "CentreState",
    "ContingencyTables",
    "CorrespondenceHeads",
    "CorrespondenceSet",
    "HeadTraining",
    "PairwiseInformation",
    "RunningInformation",
    "SGDKMeans",
    "Selection",
    "Start",
    "adjusted_mutual_information",
    "assign_clusters",
    "batch_greedy_rounds",
    "batch_greedy_select",
    "capped_rate",
    "class_level_set",
    "cluster_features",
    "contingency_table",
    "entropy",
    "epoch_rate_factor",
    "expected_mutual_information",
    "greedy_select",
    "independence_bias",
    "kmeans_rate",
    "kmeans_step",
    "layer_weights",
    "lazy_greedy_select",
    "miller_madow_information",
    "mismatched",
    "mutual_information",
    "normalised_mutual_information",
    "pair_weights",
    "pairing",
    "precision",
    "precision_curve",
    "principal_components",
    "rank_scores",
    "reinitialised",
    "sample_level_set",
    "sgd_kmeans",
    "top_share",
    "train_heads",
    "uniform_draw",
    "unit_variance",
]
