"""Figures that several chapters draw, in one style: labelled axes with units, readable without colour."""

from avssl_core.figures.attention import attention_tubes, curves_with_bands
from avssl_core.figures.clips import contact_sheet, filmstrip, sight_and_sound, spectrogram, waveform
from avssl_core.figures.compressed import (
    cell_shares,
    group_of_pictures,
    motion_arrows,
    motion_colours,
    predicted_cells,
    pyramid_labels,
    residual_picture,
)
from avssl_core.figures.ledgers import claims_plot, recorded_arms, recorded_pairs
from avssl_core.figures.maps import embedding_scatter, feature_maps
from avssl_core.figures.pathways import pathways_diagram
from avssl_core.figures.relations import pull_push, relation_grid, relation_matrices, roles_of, sampling_tree
from avssl_core.figures.seeds import (
    arms_over_seeds,
    learning_curves,
    paper_and_ours,
    sensitivity_histogram,
    variance_plot,
)
from avssl_core.figures.style import COLOURS, bar_style, figure_of, line_style, reference_line, use_style

__all__ = [
    "COLOURS",
    "arms_over_seeds",
    "attention_tubes",
    "bar_style",
    "cell_shares",
    "claims_plot",
    "contact_sheet",
    "curves_with_bands",
    "embedding_scatter",
    "feature_maps",
    "figure_of",
    "filmstrip",
    "group_of_pictures",
    "learning_curves",
    "line_style",
    "motion_arrows",
    "motion_colours",
    "paper_and_ours",
    "pathways_diagram",
    "predicted_cells",
    "pull_push",
    "pyramid_labels",
    "recorded_arms",
    "recorded_pairs",
    "reference_line",
    "relation_grid",
    "relation_matrices",
    "residual_picture",
    "roles_of",
    "sampling_tree",
    "sensitivity_histogram",
    "sight_and_sound",
    "spectrogram",
    "use_style",
    "variance_plot",
    "waveform",
]
