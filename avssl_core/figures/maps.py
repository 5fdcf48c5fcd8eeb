"""Features in a plane: PCA and t-SNE of windows, coloured by the video they are from (GDT, figure A.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from avssl_core.figures.style import COLOURS, MARKERS, WIDTH, axes_of


def embedding_scatter(
    points: npt.NDArray[np.floating], groups: Sequence[object], *, title: str = "", ax: Axes | None = None
) -> Axes:
    """Samples in a plane (PCA, t-SNE), one colour and marker a group; the axes have no unit.

    Args:
        points: ``(N, 2)``.
        groups: one a point, e.g. the video it is from.
        title: above the plot.
        ax: where to draw.
    """
    if points.ndim != 2 or points.shape[1] != 2 or len(points) != len(groups):
        raise ValueError(f"expected (N, 2) points and N groups, got {points.shape} and {len(groups)}")
    ax = axes_of(ax, width=3.6, height=3.4)
    for number, group in enumerate(dict.fromkeys(groups)):
        chosen = np.array([each == group for each in groups])
        # colour turns over faster than marker: up to 64 groups differ in one or the other
        marker = MARKERS[number // len(COLOURS) % len(MARKERS)]
        ax.scatter(
            points[chosen, 0],
            points[chosen, 1],
            s=22,
            color=COLOURS[number % len(COLOURS)],
            marker=marker,
            edgecolor="white",
            linewidth=0.4,
        )
    ax.set(xticks=[], yticks=[], title=title, xlabel="first axis", ylabel="second axis")
    ax.grid(False)
    return ax


def feature_maps(
    features: Mapping[str, npt.NDArray[np.floating]], groups: Sequence[object], *, seed: int = 0
) -> Figure:
    """A row a network, PCA on the left and t-SNE on the right; the same windows in each.

    Args:
        features: name → ``(N, D)``, N ≥ 3.
        groups: one a window, e.g. the video it is from.
        seed: of t-SNE.

    Raises:
        ValueError: there is no network, or fewer than three windows.
    """
    if not features or len(groups) < 3:
        raise ValueError(f"{len(features)} networks, {len(groups)} windows: give at least one and three")
    figure, axes = plt.subplots(len(features), 2, figsize=(WIDTH, 2.9 * len(features)), squeeze=False)
    for (name, points), (left, right) in zip(features.items(), axes, strict=True):
        pca = PCA(2, random_state=seed).fit(points)
        # t-SNE asks for a perplexity below the number of points; 30 is its usual value
        near = TSNE(perplexity=min(30.0, (len(points) - 1) / 3), init="pca", random_state=seed)
        embedding_scatter(pca.transform(points), groups, title=f"{name} PCA", ax=left)
        embedding_scatter(near.fit_transform(points), groups, title=f"{name} t-SNE", ax=right)
        kept = 100 * pca.explained_variance_ratio_
        left.set(xlabel=f"first axis, {kept[0]:.0f} % of the variance", ylabel=f"second axis, {kept[1]:.0f} %")
    return figure
