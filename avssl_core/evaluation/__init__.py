"""Evaluation protocols: frozen features, probes, retrieval, few-shot, time sensitivity, fine-tuning."""

from __future__ import annotations

from avssl_core.evaluation.clustering import (
    ClusteringScores,
    clustering_scores,
    contingency_table,
    label_agreement,
    shuffled_scores,
)
from avssl_core.evaluation.features import evaluating, extract_features
from avssl_core.evaluation.few_shot import FewShotResult, few_shot_1nn
from avssl_core.evaluation.finetune import (
    Classifier,
    FinetuneConfig,
    finetune,
    predict_videos,
    repeat_epochs,
    score_classifier,
    tensor_batches,
)
from avssl_core.evaluation.knn import knn_classify
from avssl_core.evaluation.multi_view import joint_accuracy, multi_view_scores
from avssl_core.evaluation.probe import RepeatedProbe, linear_probe, repeated_probe
from avssl_core.evaluation.retrieval import Recall, cross_modal_recall, pair_similarity, retrieval_recall
from avssl_core.evaluation.scores import ProbeResult, bootstrap_interval, score_predictions, wilson_interval
from avssl_core.evaluation.time_sensitivity import TimeSensitivity, time_sensitivity

__all__ = [
    "Classifier",
    "ClusteringScores",
    "FewShotResult",
    "FinetuneConfig",
    "ProbeResult",
    "Recall",
    "RepeatedProbe",
    "TimeSensitivity",
    "bootstrap_interval",
    "clustering_scores",
    "contingency_table",
    "cross_modal_recall",
    "evaluating",
    "extract_features",
    "few_shot_1nn",
    "finetune",
    "joint_accuracy",
    "knn_classify",
    "label_agreement",
    "linear_probe",
    "multi_view_scores",
    "pair_similarity",
    "predict_videos",
    "repeat_epochs",
    "repeated_probe",
    "retrieval_recall",
    "score_classifier",
    "score_predictions",
    "shuffled_scores",
    "tensor_batches",
    "time_sensitivity",
    "wilson_interval",
]
