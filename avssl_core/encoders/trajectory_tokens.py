"""Stage 1 of trajectory attention: from every query one pooled token a frame, exactly or through prototypes.

Each function takes keys and values of all patches and returns a function of the queries, so that what does not depend
on the queries is computed once, however few of them are asked at a time (Patrick et al., NeurIPS 2021, eq. 4 and
section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl_core.encoders.orthogonal_subset import Selection, most_orthogonal_subset, random_subset, segment_means
from avssl_core.encoders.prototype_attention import (
    orthogonal_projection,
    pool_by_features,
    pool_by_landmarks,
    pool_by_prototypes,
    read_features,
    read_prototypes,
)

Kind = Literal["orthoformer", "nystrom", "performer"]
Candidates = Literal["queries", "both"]
StageOne = Callable[[Tensor], Tensor]  # queries (B * h, M, d) to trajectory tokens (T, M, B * h, d)


def exact_tokens(k: Tensor, v: Tensor, num_frames: int) -> StageOne:
    """Eq. 4: an ordinary attention for every frame, of which no matrix is kept.

    Args:
        k: keys, ``(B, h, T * S, d)``.
        v: values, ``(B, h, T * S, e)``.
        num_frames: ``T``.
    """

    def frames(x: Tensor) -> Tensor:  # the kernel's batch; clips and heads are its heads
        return torch.unflatten(x, 2, (num_frames, -1)).permute(2, 0, 1, 3, 4).flatten(1, 2)  # (T, B * h, S, d)

    keys, values = frames(k), frames(v)
    # The same queries for all frames: an axis of stride 0, not T copies.
    return lambda q: F.scaled_dot_product_attention(q.expand(num_frames, -1, -1, -1), keys, values).transpose(1, 2)


def space_time_tokens(k: Tensor, v: Tensor, num_frames: int) -> StageOne:
    """The ablation "Norm-ST": one softmax over all patches, pooled frame by frame; arguments as :func:`exact_tokens`.

    The tokens of a trajectory are the parts of what joint attention would give. Keeps the matrix.
    """
    keys = k.flatten(0, 1)  # (B * h, N, d)
    values = torch.unflatten(v.flatten(0, 1), 1, (num_frames, -1))  # (B * h, T, S, e)

    def stage(q: Tensor) -> Tensor:
        logits = q @ keys.transpose(1, 2) * q.shape[2] ** -0.5
        weights = torch.softmax(logits, dim=2, dtype=torch.promote_types(logits.dtype, torch.float32)).to(values.dtype)
        return torch.einsum("gmts,gtsd->tmgd", torch.unflatten(weights, 2, (num_frames, -1)), values)

    return stage


@dataclass(frozen=True)
class ApproximateTokens:
    """Eq. 4 approximated, for ``G = B * h`` groups of queries, keys and values ``(G, T * S, d)``.

    Attributes:
        kind: ``"orthoformer"``, ``"nystrom"`` or ``"performer"``.
        num_prototypes: prototypes, landmarks or random features.
        selection: how Orthoformer's prototypes are chosen.
        candidates: tokens they are chosen from.
        per_frame: whether every frame of keys has prototypes of its own.
        seed: of random draws without a generator.
    """

    kind: Kind
    num_prototypes: int
    selection: Selection
    candidates: Candidates
    per_frame: bool
    seed: int

    def tokens(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        num_frames: int,
        *,
        index: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> StageOne:
        """The function of the queries; ``q`` are those that prototypes are chosen from.

        Args:
            q: all queries.
            k: keys.
            v: values.
            num_frames: ``T``.
            index: Orthoformer's prototypes, ``(G, R)``, or ``(G, T, R)`` within each frame; chosen if absent.
            generator: source of random draws, one seeded with ``seed`` if absent.

        Raises:
            ValueError: for more landmarks than tokens (Orthoformer takes all then), or an ``index`` that does not fit.
        """
        generator = torch.Generator().manual_seed(self.seed) if generator is None else generator
        if index is not None:
            self._check(index, len(q), num_frames, q.shape[1])
        if self.kind == "performer":
            features = orthogonal_projection(self.num_prototypes, q.shape[2], generator=generator).to(q.device)
            sums, normaliser = pool_by_features(features, k, v, num_frames)
            return lambda part: _time_first(read_features(part, features, sums, normaliser))
        if self.kind == "nystrom":
            q_means, k_means = (
                segment_means(y.detach(), self.num_prototypes, num_frames=num_frames, order="space") for y in (q, k)
            )
            pooled = pool_by_landmarks(q_means, k_means, k, v, num_frames)
            return lambda part: _time_first(read_prototypes(part, k_means, pooled, num_frames))
        if self.per_frame:
            return self._each_frame(q, k, v, num_frames, index, generator)
        prototypes = self._prototypes(q, k, num_frames, index, generator)
        pooled = pool_by_prototypes(prototypes, k, v, num_frames)
        return lambda part: _time_first(read_prototypes(part, prototypes, pooled, num_frames))

    def _each_frame(
        self, q: Tensor, k: Tensor, v: Tensor, num_frames: int, index: Tensor | None, generator: torch.Generator
    ) -> StageOne:
        """Prototypes of the keys' frame in both factors (the release takes one set for each, and multiplies them)."""
        q, k, v = (torch.unflatten(y, 1, (num_frames, -1)).flatten(0, 1) for y in (q, k, v))  # (G * T, S, d)
        flat = self._prototypes(q, k, 1, None if index is None else index.flatten(0, 1), generator)
        pooled, prototypes = (
            torch.unflatten(y, 0, (-1, num_frames)) for y in (pool_by_prototypes(flat, k, v), flat)
        )  # (G, T, R, d)
        return lambda part: read_prototypes(part.unsqueeze(1), prototypes, pooled).permute(1, 2, 0, 3)

    def _prototypes(
        self, q: Tensor, k: Tensor, num_frames: int, index: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """Prototypes ``(G, R, d)`` for groups of queries and keys ``(G, n, d)``, constants for autograd."""
        pool = q if self.candidates == "queries" or index is not None else torch.cat([q, k], dim=1)
        pool = pool.detach()
        if index is None and self.selection == "segment-means":
            frames = num_frames if pool is q else pool.shape[1] // (q.shape[1] // num_frames)
            return segment_means(pool, self.num_prototypes, num_frames=frames, order="space")
        if index is None:
            choose = most_orthogonal_subset if self.selection == "orthogonal" else random_subset
            index = choose(pool, min(self.num_prototypes, pool.shape[1]), generator=generator)
        return pool.gather(1, index.to(pool.device).unsqueeze(2).expand(-1, -1, pool.shape[2]))

    def _check(self, index: Tensor, groups: int, num_frames: int, patches: int) -> None:
        expected = (groups, num_frames) if self.per_frame else (groups,)
        if self.kind != "orthoformer":
            raise ValueError(f"prototype_index is for approx='orthoformer', got one for approx={self.kind!r}")
        if index.shape[:-1] != expected:
            raise ValueError(
                f"expected prototype indices {(*expected, 'R')} with clips and heads merged, got {tuple(index.shape)}; "
                "give a set for each clip and head" + (" and frame" if self.per_frame else "")
            )
        limit = patches // num_frames if self.per_frame else patches
        if index.min() < 0 or index.max() >= limit:
            raise ValueError(
                f"prototype indices must lie in [0, {limit}), got {int(index.min())} to {int(index.max())}"
            )


def _time_first(x: Tensor) -> Tensor:
    return x.permute(2, 1, 0, 3)  # (B * h, M, T, d) to (T, M, B * h, d)
