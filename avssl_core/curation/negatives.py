"""Known good and bad pairs, to ask whether a selection finds the good ones; and the leak that makes it too easy.

ACAV100M's correspondence retrieval (https://arxiv.org/abs/2101.10803) mixes pairs that belong together with as many
that do not: at *sample level* the negatives exchange their sound tracks; at *class level* half of the classes are
paired with items of their own class, the other half with items of another class.

The release keeps features by layer, and permutes the negatives **independently for every layer** of every modality. The
first and the last layer of a negative's picture then come from two different clips, while those of a positive come from
one. Pairs of layers *within* a modality, which cannot know anything about correspondence, become a detector of
negatives, and the pairing scheme that includes them wins. Here a modality's layers move together (honest);
``per_layer=True`` reproduces the leak. The release also lets permutations map a clip onto itself, or onto one of the
same class; honest negatives are mismatched without exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from avssl_core.curation.ranking import whole_share
from avssl_core.transforms import generator_for

_SWAP_ROUNDS = 16  # each offers half of the places a swap; after a few, starts and ends are unrelated


@dataclass(frozen=True)
class CorrespondenceSet:
    """Which clip's features stand at each place.

    Attributes:
        source: int64 ``(K, N)``: the clip whose features of column ``k`` (a layer of a modality) stand at a place.
        is_positive: bool ``(N,)``.
        layers: number of layers of each modality, in the order of the columns.

    Raises:
        ValueError: for shapes that do not fit.
    """

    source: Tensor
    is_positive: Tensor
    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.source.shape != (sum(self.layers), len(self.is_positive)) or self.is_positive.dtype != torch.bool:
            raise ValueError(
                f"expected source ({sum(self.layers)}, N) and a bool mask (N,), got {tuple(self.source.shape)} and "
                f"{tuple(self.is_positive.shape)} {self.is_positive.dtype}"
            )

    def rearranged(self, labels: Tensor) -> Tensor:
        """Cluster labels of the clips, ``(N, K)``, as labels of the places, ``(N, K)``.

        Raises:
            ValueError: for labels of another number of columns.
        """
        if labels.ndim != 2 or labels.shape[1] != len(self.source):
            raise ValueError(f"labels must be (N, {len(self.source)}), got {tuple(labels.shape)}")
        return labels.gather(0, self.source.T)

    def features(self, column: int, features: Tensor) -> Tensor:
        """Features of the clips in one column, ``(N, ...)``, as those of the places."""
        return features[self.source[column]]

    def torn(self) -> float:
        """Share of negatives in which layers of one modality come from different clips: 0 unless the set leaks."""
        together = torch.ones(len(self.is_positive), dtype=torch.bool)
        for rows in torch.split(self.source, list(self.layers)):
            together &= (rows == rows[0]).all(dim=0)
        return _share(~together[~self.is_positive])

    def accidental(self, classes: Tensor | None = None) -> float:
        """Share of negatives whose modalities belong together after all, judged by their deepest layers.

        Args:
            classes: of the clips, ``(N,)``: negatives of equal class count. Those of the same clip if None.
        """
        deepest = torch.tensor(self.layers).cumsum(0) - 1
        found = self.source[deepest]  # (modalities, N)
        found = found if classes is None else classes[found]
        return _share((found == found[0]).all(dim=0)[~self.is_positive])


def sample_level_set(
    clips: int, layers: Sequence[int], *, positives: float = 0.5, per_layer: bool = False, seed: int = 0
) -> CorrespondenceSet:
    """Clips with their own sound, and clips with another's.

    Args:
        clips: ``N``.
        layers: number of layers of each modality, e.g. ``(5, 5)``.
        positives: share of the clips that stay as they are; rounded down.
        per_layer: permute the negatives of every layer on their own, as released: a leak. The layers of a modality stay
            together otherwise, the first modality at its place, and no negative keeps its partner.
        seed: of the set.

    Returns:
        Positives stand at their own places.

    Raises:
        ValueError: for a share outside [0, 1], or too few negatives to be mismatched.
    """
    _check(layers, positives)
    generator = generator_for(seed, 0)
    order = torch.randperm(clips, generator=generator)
    negatives = order[whole_share(clips, positives) :]
    source = torch.arange(clips).repeat(sum(layers), 1)
    _exchange(source, negatives, negatives, layers, per_layer=per_layer, generator=generator)
    return CorrespondenceSet(source, _without(clips, negatives), tuple(layers))


def class_level_set(
    classes: Tensor, layers: Sequence[int], *, positives: float = 0.5, per_layer: bool = False, seed: int = 0
) -> CorrespondenceSet:
    """Pairs of different items of one class, and pairs of items of different classes.

    Args:
        classes: of the clips, integers ``(N,)``.
        layers: number of layers of each modality.
        positives: share of the *classes* whose items are paired among themselves; the others are rounded down.
        per_layer: as in :func:`sample_level_set`; equal classes then meet by accident (a quarter and more of the
            negatives with five classes), as released.
        seed: of the set.

    Returns:
        The first modality stands at its place, unless ``per_layer``.

    Raises:
        ValueError: for a share outside [0, 1], a positive class of too few items to pair different ones, or a negative
            class so large that its items cannot all be paired with others.
    """
    _check(layers, positives)
    if classes.ndim != 1 or classes.is_floating_point():
        raise ValueError(f"classes must be integers (N,), got {tuple(classes.shape)} {classes.dtype}")
    generator = generator_for(seed, 0)
    names = torch.unique(classes)
    order = torch.randperm(len(names), generator=generator)
    share = len(names) - whole_share(len(names), 1 - positives)
    kept, exchanged = order[:share], order[share:]
    source = torch.arange(len(classes)).repeat(sum(layers), 1)
    for name in names[kept]:
        members = (classes == name).nonzero()[:, 0]
        _exchange(source, members, members, layers, per_layer=False, generator=generator)
    negatives = torch.isin(classes, names[exchanged]).nonzero()[:, 0]
    _exchange(source, negatives, classes[negatives], layers, per_layer=per_layer, generator=generator)
    return CorrespondenceSet(source, _without(len(classes), negatives), tuple(layers))


def mismatched(groups: Tensor, modalities: int, *, generator: torch.Generator) -> Tensor:
    """Arrange the same items once a modality so that no place holds two items of one group.

    Begins with the items in order of their groups, rotated by the largest group's size, which never matches, and swaps
    pairs of places at random where nothing matches afterwards. With groups of one this is a random derangement.

    Args:
        groups: of the items, integers ``(n,)``.
        modalities: ``M``, at least 1.
        generator: of the draw.

    Returns:
        int64 ``(M, n)``, items by place; the first modality is ``0 .. n-1``.

    Raises:
        ValueError: if a group has more than ``n / M`` items.
    """
    n = len(groups)
    if not n:
        return torch.empty(modalities, 0, dtype=torch.int64)
    _, group, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    largest = int(sizes.max())
    if modalities * largest > n:
        raise ValueError(
            f"{largest} of {n} negatives belong to one group: they cannot be mismatched in {modalities} modalities; "
            "use more negatives, or more balanced ones"
        )
    order = torch.randperm(n, generator=generator)
    turn = torch.randperm(len(sizes), generator=generator)[group]  # the groups in random order, too
    order = order[turn[order].argsort(stable=True)]
    items = torch.empty(modalities, n, dtype=torch.int64)
    for modality in range(modalities):
        items[modality, order] = order.roll(-modality * largest)
    for _ in range(_SWAP_ROUNDS):
        for modality in range(1, modalities):
            _swap_some(items, groups, modality, generator)
    return items


def _swap_some(items: Tensor, groups: Tensor, modality: int, generator: torch.Generator) -> None:
    """Swap half of the places of a modality with a random other, where nothing matches afterwards."""
    n = items.shape[1]
    a, b = torch.randperm(n, generator=generator)[: n - n % 2].view(2, -1)
    others = [other for other in range(len(items)) if other != modality]
    at = groups[items]  # (M, n)
    fits = torch.rand(len(a), generator=generator) < 0.5  # taking every swap would favour even numbers of them
    fits &= (at[others][:, a] != at[modality, b]).all(dim=0) & (at[others][:, b] != at[modality, a]).all(dim=0)
    a, b = a[fits], b[fits]
    items[modality, a], items[modality, b] = items[modality, b], items[modality, a]


def _exchange(
    source: Tensor,
    places: Tensor,
    groups: Tensor,
    layers: Sequence[int],
    *,
    per_layer: bool,
    generator: torch.Generator,
) -> None:
    """Rearrange the clips of some places, in all columns of ``source``: by modality, or by layer as released."""
    if per_layer:
        for row in source:
            row[places] = places[torch.randperm(len(places), generator=generator)]
        return
    arranged = mismatched(groups, len(layers), generator=generator)
    for rows, items in zip(torch.split(source, list(layers)), arranged, strict=True):
        rows[:, places] = places[items]


def _without(clips: int, negatives: Tensor) -> Tensor:
    is_positive = torch.ones(clips, dtype=torch.bool)
    is_positive[negatives] = False
    return is_positive


def _share(mask: Tensor) -> float:
    return mask.double().mean().item() if len(mask) else 0.0


def _check(layers: Sequence[int], positives: float) -> None:
    if not layers or min(layers) < 1:
        raise ValueError(f"every modality needs at least one layer, got {tuple(layers)}")
    if not 0 <= positives <= 1:
        raise ValueError(f"the share of positives must lie in [0, 1], got {positives}")
