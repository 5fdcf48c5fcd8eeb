"""Trajectory attention: find a token's content in every frame, then attend along the path that this makes.

Patrick et al., NeurIPS 2021, eqs. 4 to 6. Stage 1 is a softmax over the places of one frame at a time, which gives a
query one pooled token a frame, its trajectory; stage 2 is attention over those, with the trajectory token of the
query's own frame as the new query. Patches do not see the class token, which sees all tokens. In the code behind the
paper's numbers, the new values are the trajectory tokens themselves (``value_proj=False``), not their projection.

The release writes the definition down: a matrix of all tokens by all tokens, and keys and values projected from every
one of the ``S * T * T`` trajectory tokens. The same numbers are had for less:

- Stage 1 is an ordinary attention for every frame, for which fused kernels exist. No matrix is kept.
- Stage 2 is linear in the trajectory tokens, so the query is projected back through ``W_k``, head by head, and the
  tokens are pooled before ``W_v``. The key bias cancels in the softmax; the value bias comes back once, as the weights
  sum to 1.
- Queries are independent of each other. They are taken a few frames at a time, and in training what a part needs for
  its gradient is computed again when it is needed, so that memory grows with ``S * T``, not with its square.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from avssl_core.encoders.orthogonal_subset import Selection
from avssl_core.encoders.space_time_attention import SpaceTimeAttention, merge_heads
from avssl_core.encoders.trajectory_tokens import (
    ApproximateTokens,
    Candidates,
    Kind,
    StageOne,
    exact_tokens,
    space_time_tokens,
)

Normalise = Literal["space", "spacetime"]
Temporal = Literal["attention", "average"]

KEEP_BYTES = 32 * 2**20  # what stage 2 may keep for the backward pass of one layer before it is recomputed instead
PART_ROWS = 256  # queries (times clips) handled at once; more was no faster on a CPU and needs more memory
# A GPU needs enough of them to be busy between two launches: with 256, four clips of 8x14x14 tokens took 1.8 times as
# long as the plain definition on an H200 (benchmarks/results/attention_cuda_float32.json, recorded before this line).
GPU_PART_ROWS = 8192


@dataclass(frozen=True)
class TrajectoryMaps:
    """What a layer looks at, for the queries asked for.

    Attributes:
        space: weights of stage 1, ``(B, h, Q, T, S)``. Exact and Orthoformer's are positive and sum to 1 in every
            frame (over all frames, if normalised over space-time).
        time: weights of stage 2, ``(B, h, Q, T)``, positive, sum 1.
        tokens: trajectory tokens, ``(B, Q, T, D)``.
    """

    space: Tensor
    time: Tensor
    tokens: Tensor


class TrajectoryAttention(SpaceTimeAttention):
    """Attention along soft trajectories, exact or through prototypes.

    Args:
        dim: channels ``D`` of a token.
        heads: number of heads, a divisor of ``dim``. Stage 2 has as many, over the merged channels of stage 1.
        qkv_bias: whether all queries, keys and values have a bias.
        value_proj: ``True`` for the values of eq. 5, ``False`` for the released reading. The parameters are the same
            (released weights hold the projection); it just goes unused.
        normalise: ``"space"``, one softmax a frame (eq. 4); ``"spacetime"``, one over all frames, for the ablation,
            which does keep the matrix of all tokens by all tokens.
        temporal: ``"attention"`` (eqs. 5 and 6), or ``"average"`` over the trajectory, for the ablation, which has no
            further parameters.
        approx: of stage 1: ``None``, ``"orthoformer"``, ``"nystrom"`` or ``"performer"``. No parameters of its own.
        num_prototypes: prototypes or landmarks; random features for the Performer.
        selection: how Orthoformer's prototypes are chosen: ``"orthogonal"``, ``"random"``, or ``"segment-means"``.
        candidates: tokens they are chosen from: ``"queries"`` (the release) or ``"both"``, keys too (the text).
        per_frame: a set of prototypes for every frame of keys, used in both factors, instead of one for all. (The
            release mixes the sets of two frames.)
        seed: of the draws in a forward pass without a generator, so that it is a function of its input.
        recompute: whether to compute parts again in the backward pass instead of keeping them, for a tenth to a third
            more time; ``None`` for when they are larger than 32 MiB.

    Raises:
        ValueError: for an unknown option, options that exclude each other, or as :class:`SpaceTimeAttention`.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 12,
        *,
        qkv_bias: bool = True,
        value_proj: bool = True,
        normalise: Normalise = "space",
        temporal: Temporal = "attention",
        approx: Kind | None = None,
        num_prototypes: int = 128,
        selection: Selection = "orthogonal",
        candidates: Candidates = "queries",
        per_frame: bool = False,
        seed: int = 0,
        recompute: bool | None = None,
    ) -> None:
        super().__init__(dim, heads, qkv_bias=qkv_bias)
        _check_options(normalise, temporal, approx, selection, candidates, per_frame, num_prototypes)
        self.value_proj, self.normalise, self.temporal, self.recompute = value_proj, normalise, temporal, recompute
        self.approx = (
            None
            if approx is None
            else ApproximateTokens(approx, num_prototypes, selection, candidates, per_frame, seed)
        )
        self.trajectory_q: nn.Linear | None = None
        self.trajectory_kv: nn.Linear | None = None
        if temporal == "attention":
            self.trajectory_q = nn.Linear(dim, dim, bias=qkv_bias)
            self.trajectory_kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)  # keys first
            if qkv_bias and not value_proj:
                # Its gradient is 0, but would be None here, over which distributed training stumbles.
                self.trajectory_kv.bias.requires_grad_(False)

    def forward(
        self,
        x: Tensor,
        num_frames: int,
        *,
        prototype_index: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Tokens ``(B, 1 + T * S, D)``, class token first, to as many.

        Args:
            x: the tokens, frame by frame.
            num_frames: ``T``.
            prototype_index: which patches are Orthoformer's prototypes, ``(B, h, R)`` int64 in ``[0, T * S)``, or
                ``(B, h, T, R)`` in ``[0, S)`` for one set a frame; chosen by the module if absent.
            generator: source of the random draws (first prototype, random prototypes, random features), on the CPU.

        Raises:
            ValueError: for tokens that do not fit, see :meth:`frame_size`, more prototypes than tokens, or indices of
                another shape.
        """
        self.frame_size(x, num_frames)
        q, k, v = self.queries_keys_values(x)
        class_token = F.scaled_dot_product_attention(q[:, :, :1], k, v)  # (B, h, 1, d)
        q, k, v = (y[:, :, 1:] for y in (q, k, v))  # patches do not see the class token
        stage_one = self._stage_one(q, k, v, num_frames, prototype_index, generator)
        patches = self._all_parts(q, num_frames, stage_one)
        return self.out(torch.cat([merge_heads(class_token), patches], dim=1))

    @torch.no_grad()
    def attention_maps(
        self,
        x: Tensor,
        num_frames: int,
        *,
        queries: Tensor | None = None,
        prototype_index: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> TrajectoryMaps:
        """What :meth:`forward` attends to on the same arguments, which it does not keep.

        Args:
            x: as :meth:`forward`.
            num_frames: as :meth:`forward`.
            queries: patches asked for, ``(Q,)`` int64 in ``[0, T * S)``; all if absent.
            prototype_index: as :meth:`forward`.
            generator: as :meth:`forward`, in the same state for the same draws.
        """
        space = self.frame_size(x, num_frames)
        batch = len(x)
        q, k, v = (y[:, :, 1:] for y in self.queries_keys_values(x))
        wanted = torch.arange(q.shape[2], device=x.device) if queries is None else queries.to(x.device)
        # Stage 1 is linear in the values: for one-hot values it returns its weights.
        places = torch.eye(space, dtype=v.dtype, device=x.device).repeat(num_frames, 1).expand(*v.shape[:3], space)
        state = None if generator is None else generator.get_state()
        weights = self._stage_one(q, k, places, num_frames, prototype_index, generator)(q[:, :, wanted].flatten(0, 1))
        if generator is not None and state is not None:
            generator.set_state(state)
        tokens = self._stage_one(q, k, v, num_frames, prototype_index, generator)(q[:, :, wanted].flatten(0, 1))
        tokens = tokens.reshape(num_frames, len(wanted), batch, self.dim)
        own = tokens[wanted // space, torch.arange(len(wanted), device=x.device)]  # (Q, B, D)
        rows = tokens.flatten(1, 2)
        time = torch.unflatten(self._time_weights(own.flatten(0, 1), rows), 0, (len(wanted), batch))  # (Q, B, h, T)
        maps = torch.unflatten(weights, 2, (batch, -1)).permute(2, 3, 1, 0, 4)  # from (T, Q, B, h, S)
        return TrajectoryMaps(maps, time.permute(1, 2, 0, 3), tokens.permute(2, 1, 0, 3))

    def _stage_one(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        num_frames: int,
        index: Tensor | None,
        generator: torch.Generator | None,
    ) -> StageOne:
        """Eq. 4 or its approximation, ready for any of the queries; ``q``, ``k``, ``v`` are ``(B, h, T * S, d)``."""
        if self.approx is None:
            if index is not None:
                raise ValueError("prototype_index is for approx='orthoformer', and this module is exact")
            return (exact_tokens if self.normalise == "space" else space_time_tokens)(k, v, num_frames)
        if index is not None and index.shape[:2] != q.shape[:2]:
            raise ValueError(f"expected prototype_index for (B, h) = {tuple(q.shape[:2])}, got {tuple(index.shape)}")
        index = None if index is None else index.flatten(0, 1)
        q, k, v = (y.flatten(0, 1) for y in (q, k, v))
        return self.approx.tokens(q, k, v, num_frames, index=index, generator=generator)

    def _all_parts(self, q: Tensor, num_frames: int, stage_one: StageOne) -> Tensor:
        """Both stages for all queries ``(B, h, T * S, d)``, a few frames of them at a time: ``(B, T * S, D)``."""
        batch, heads, n, _ = q.shape
        space = n // num_frames
        kept = n * batch * self.dim * (num_frames + 2 * heads) * q.element_size()
        recompute = kept > KEEP_BYTES if self.recompute is None else self.recompute
        rows = GPU_PART_ROWS if q.is_cuda else PART_ROWS
        step = max(1, rows // (batch * space)) if recompute else num_frames
        outputs = []
        for first in range(0, num_frames, step):
            part = q[:, :, first * space : (first + step) * space].permute(2, 0, 1, 3).flatten(1, 2)  # (M, B * h, d)
            part = part.transpose(0, 1)  # laid out so that what stage 1 returns has its heads side by side
            if recompute and torch.is_grad_enabled():
                # One thing is random, the choice of prototypes, and that has been made.
                out = checkpoint(
                    self._part, part, first, space, stage_one, use_reentrant=False, preserve_rng_state=False
                )
            else:
                out = self._part(part, first, space, stage_one)
            outputs.append(torch.unflatten(out, 0, (-1, batch)))  # (M, B, D)
        return torch.cat(outputs).transpose(0, 1)

    def _part(self, q: Tensor, first: int, space: int, stage_one: StageOne) -> Tensor:
        """Queries ``(B * h, M, d)`` of whole frames, the earliest being ``first``, to ``(M * B, D)``."""
        tokens = stage_one(q)  # (T, M, B * h, d)
        rows = tokens.reshape(tokens.shape[0], -1, self.dim)  # (T, M * B, D), heads merged
        if self.temporal == "average":
            return rows.mean(dim=0)
        frames = q.shape[1] // space
        # A query's own trajectory token is that of the frame it comes from.
        by_frame = torch.unflatten(rows[first : first + frames], 1, (frames, -1))  # (frames, frames, S * B, D)
        own = by_frame.diagonal(dim1=0, dim2=1)  # (S * B, D, frames)
        weights = self._time_weights(own.permute(2, 0, 1).flatten(0, 1), rows)  # (M * B, h, T)
        return self._pool_time(weights.to(rows.dtype), rows)

    def _time_weights(self, own: Tensor, rows: Tensor) -> Tensor:
        """Weights over time ``(M * B, h, T)``, float32, of tokens ``(T, M * B, D)`` whose own ones are ``own``."""
        if self.trajectory_q is None or self.trajectory_kv is None:
            return rows.new_full((rows.shape[1], self.heads, rows.shape[0]), 1 / rows.shape[0])
        query = torch.unflatten(self.trajectory_q(own), 1, (self.heads, -1)).transpose(0, 1)  # (h, M * B, d)
        w_k = torch.unflatten(self.trajectory_kv.weight[: self.dim], 0, (self.heads, -1))  # (h, d, D)
        back = torch.bmm(query * query.shape[2] ** -0.5, w_k).transpose(0, 1)  # W_k^T W_q y, (M * B, h, D)
        logits = torch.bmm(back, rows.permute(1, 2, 0))  # (M * B, h, T)
        return torch.softmax(logits, dim=2, dtype=torch.promote_types(logits.dtype, torch.float32))

    def _pool_time(self, weights: Tensor, rows: Tensor) -> Tensor:
        """Weighted sum over time (eq. 6) of ``rows`` ``(T, M * B, D)``: ``(M * B, D)``."""
        tokens = rows.transpose(0, 1)  # (M * B, T, D)
        if not self.value_proj or self.trajectory_kv is None:  # each head pools its own channels
            by_head = torch.unflatten(tokens, 2, (self.heads, -1)).transpose(1, 2)  # (M * B, h, T, d)
            return (weights.unsqueeze(2) @ by_head).flatten(1)
        pooled = torch.bmm(weights, tokens).transpose(0, 1)  # (h, M * B, D)
        w_v = torch.unflatten(self.trajectory_kv.weight[self.dim :], 0, (self.heads, -1))  # (h, d, D)
        out = torch.bmm(pooled, w_v.transpose(1, 2)).transpose(0, 1).flatten(1)
        bias = self.trajectory_kv.bias
        return out if bias is None else out + bias[self.dim :].to(out.dtype)


def _check_options(
    normalise: str,
    temporal: str,
    approx: str | None,
    selection: str,
    candidates: str,
    per_frame: bool,
    num_prototypes: int,
) -> None:
    for name, value, allowed in (
        ("normalise", normalise, ("space", "spacetime")),
        ("temporal", temporal, ("attention", "average")),
        ("approx", approx, (None, "orthoformer", "nystrom", "performer")),
        ("selection", selection, ("orthogonal", "random", "segment-means")),
        ("candidates", candidates, ("queries", "both")),
    ):
        if value not in allowed:
            raise ValueError(f"unknown {name} {value!r}: use one of {allowed}")
    if approx is not None and normalise == "spacetime":
        raise ValueError(f"approx={approx!r} pools frame by frame; use it with normalise='space'")
    if per_frame and approx != "orthoformer":
        raise ValueError(f"per_frame is for approx='orthoformer', got approx={approx!r}")
    if num_prototypes < 1:
        raise ValueError(f"num_prototypes must be positive, got {num_prototypes}")
