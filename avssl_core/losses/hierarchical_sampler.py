"""Compositions of transformations drawn from a tree, so that every batch holds positives and hard negatives.

GDT (https://arxiv.org/abs/2003.04298) writes every ingredient of a contrastive formulation (which video, which start
time, which modality, which direction, which augmentation) as a factor ``t_m`` of a composed transformation
``T = (t_1 .. t_M)``. For each factor one chooses whether the representation shall be *invariant* to it or
*distinctive*. Independent draws of ``T`` give no usable batch; a tree of draws does (Lemmas 6 and 7), and holds SimCLR
as a special case.

The release has no sampler: its data set returns the four clips that its nine hard-coded hypotheses need.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["invariant", "distinctive"]
KINDS = ("invariant", "distinctive")
Space = int | Sequence[Hashable] | Callable[[torch.Generator], Hashable]

_MAX_REDRAWS = 1000  # for samplers of an endless space: a value that keeps repeating means that the space is too small


@dataclass(frozen=True)
class Factor:
    """One ingredient ``t_m`` of a composed transformation.

    Attributes:
        name: for messages and figures, e.g. ``"time_shift"``.
        space: the values: a size ``n`` (values ``0 .. n-1``), a finite sequence, or a function of a generator that
            draws one value (hashable) from an endless space, such as a start time.
        count: ``K_m``, how many different values each branch of the tree gets. At least 1.
        kind: ``"invariant"`` or ``"distinctive"``.

    Raises:
        ValueError: for an unknown kind, repeated values, or a count below 1 or above the size of the space.
    """

    name: str
    space: Space
    count: int
    kind: Kind

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"factor {self.name!r}: kind must be one of {KINDS}, got {self.kind!r}")
        if self.count < 1:
            raise ValueError(f"factor {self.name!r}: count must be at least 1, got {self.count}")
        if not callable(self.space) and not isinstance(self.space, int) and len(set(self.space)) < len(self.space):
            raise ValueError(f"factor {self.name!r}: the values of its space must differ")
        if self.size is not None and self.count > self.size:
            raise ValueError(
                f"factor {self.name!r}: cannot draw {self.count} different values from {self.size}; lower count or "
                "widen space"
            )

    @property
    def size(self) -> int | None:
        """Number of values, or ``None`` for an endless space."""
        if callable(self.space):
            return None
        return self.space if isinstance(self.space, int) else len(self.space)

    @property
    def exhaustive(self) -> bool:
        """Whether every branch gets the whole space, as both modalities or both directions are."""
        return self.count == self.size

    def draw(self, generator: torch.Generator) -> list[Hashable]:
        """Draw ``count`` different values; all of them, in their order, if the factor is exhaustive."""
        if callable(self.space):
            return self._draw_endless(self.space, generator)
        values: Sequence[Hashable] = range(self.space) if isinstance(self.space, int) else self.space
        if self.exhaustive:
            return list(values)
        return [values[i] for i in torch.randperm(len(values), generator=generator)[: self.count].tolist()]

    def _draw_endless(
        self, draw_one: Callable[[torch.Generator], Hashable], generator: torch.Generator
    ) -> list[Hashable]:
        drawn: dict[Hashable, None] = {}
        for _ in range(self.count + _MAX_REDRAWS):
            drawn.setdefault(draw_one(generator))
            if len(drawn) == self.count:
                return list(drawn)
        raise ValueError(
            f"factor {self.name!r}: its sampler gave only {len(drawn)} different values in "
            f"{self.count + _MAX_REDRAWS} draws, {self.count} are needed"
        )


@dataclass(frozen=True)
class Transformation:
    """One leaf of the tree: ``values[m]`` of each factor, and ``path[m]``, the branch taken at each level."""

    values: tuple[Hashable, ...]
    path: tuple[int, ...]


@dataclass(frozen=True)
class TransformationBatch:
    """What :class:`HierarchicalSampler` draws.

    Attributes:
        transformations: the leaves, in depth-first order (the first factor varies slowest).
        codes: value codes, int64, shape ``(|T|, M)``: two leaves agree in column ``m`` if and only if they share the
            value of factor ``m``.
        factors: the factors, in sampling order.
    """

    transformations: tuple[Transformation, ...]
    codes: Tensor
    factors: tuple[Factor, ...]

    def __len__(self) -> int:
        return len(self.transformations)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kind of each factor."""
        return tuple(factor.kind for factor in self.factors)


class HierarchicalSampler:
    """Draw a batch of transformations from a tree (GDT section 3.2).

    Each of the ``K_1`` values of the first factor branches into ``K_2`` values of the second, drawn afresh and without
    replacement in every branch, and so on: ``|T| = K_1 .. K_M`` leaves without duplicates. Every leaf has
    ``prod_{m in I} K_m`` partners with contrast 1 (itself included) and ``|T|`` minus that with contrast 0 (Lemmas 6,
    7).

    Args:
        factors: in sampling order, which need not be the order of application. Distinctive factors first, or
            exhaustive.
        check: refuse compositions that cannot give a usable batch. Switch off only to look at one.

    Raises:
        ValueError: naming the degenerate case: no distinctive factor with two values (collapse), no invariant factor
            with two values (no positives), or a distinctive, non-exhaustive factor below an invariant one (lost
            positives).
    """

    def __init__(self, factors: Sequence[Factor], *, check: bool = True) -> None:
        self.factors = tuple(factors)
        if not self.factors:
            raise ValueError("HierarchicalSampler needs at least one factor")
        names = [factor.name for factor in self.factors]
        if len(set(names)) < len(names):
            raise ValueError(f"factor names must differ, got {names}")
        if check:
            _check_composition(self.factors)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kind of each factor."""
        return tuple(factor.kind for factor in self.factors)

    def __len__(self) -> int:
        return math.prod(factor.count for factor in self.factors)

    def sample(self, generator: torch.Generator) -> TransformationBatch:
        """Draw one batch; a function of the generator's state alone."""
        leaves = [Transformation((), ())]
        for factor in self.factors:
            leaves = [
                Transformation((*leaf.values, value), (*leaf.path, branch))
                for leaf in leaves
                for branch, value in enumerate(factor.draw(generator))
            ]
        return TransformationBatch(tuple(leaves), _value_codes(leaves), self.factors)

    def path_codes(self, *, rank: int = 0) -> Tensor:
        """Codes of the branches taken, without drawing anything: see :func:`path_codes`."""
        return path_codes([factor.count for factor in self.factors], rank=rank)


def path_codes(counts: Sequence[int], *, rank: int = 0) -> Tensor:
    """Branch numbers of every leaf of a tree with ``counts`` branches a level, int64, shape ``(prod(counts), M)``.

    For every composition that :class:`HierarchicalSampler` accepts, the contrast computed from these equals the one
    computed from the values, so that a training step needs no values: embeddings laid out ``(K_1, .., K_M, d)`` and
    flattened have them.

    Args:
        counts: branches a level, in sampling order.
        rank: index of this process. It shifts the first column, so that videos of different processes stay different.
    """
    grid = torch.cartesian_prod(*(torch.arange(count) for count in counts)).reshape(-1, len(counts))  # (|T|, M)
    grid[:, 0] += rank * counts[0]
    return grid


def _check_composition(factors: Sequence[Factor]) -> None:
    wide = {kind: [f.name for f in factors if f.kind == kind and f.count >= 2] for kind in KINDS}
    described = ", ".join(f"{f.name} ({f.kind}, K={f.count})" for f in factors)
    if not wide["distinctive"]:
        raise ValueError(
            f"no distinctive factor has two values in [{described}]: there would be no negatives and a constant "
            "embedding would be optimal (collapse); make a factor distinctive with count >= 2"
        )
    if not wide["invariant"]:
        raise ValueError(
            f"no invariant factor has two values in [{described}]: the only positives would be T = T'; give one count "
            ">= 2"
        )
    branching: str | None = None
    for factor in factors:
        if factor.kind == "invariant" and factor.count >= 2:
            branching = branching or factor.name
        elif factor.kind == "distinctive" and branching is not None and not factor.exhaustive:
            raise ValueError(
                f"distinctive factor {factor.name!r} is drawn below the invariant factor {branching!r} and is not "
                f"exhaustive (K={factor.count} of {factor.size or 'endless'}): the branches of {branching!r} would "
                "not share its values and positives would be lost; put distinctive factors first, or draw the whole "
                "space"
            )


def _value_codes(leaves: Sequence[Transformation]) -> Tensor:
    """Number the values of each factor in order of appearance: ``(|T|, M)``."""
    columns = zip(*(leaf.values for leaf in leaves), strict=True)
    coded = []
    for column in columns:
        numbers: dict[Hashable, int] = {}
        coded.append([numbers.setdefault(value, len(numbers)) for value in column])
    return torch.tensor(coded, dtype=torch.int64).T.contiguous()
