"""Attention between the tokens of a clip, over all of space-time at once or along one axis after the other.

What trajectory attention (:mod:`avssl_core.encoders.trajectory_attention`) is compared with: eqs. 2 and 3 of Patrick et
al., NeurIPS 2021. All three take tokens ``(B, 1 + T * S, D)``, the class token first, then ``S`` tokens a frame, frame
by frame, and return as many. Divided attention follows that paper's release, not TimeSformer: the class token is a key
along either axis, and its own query looks at all tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Axis = Literal["time", "space"]


class SpaceTimeAttention(nn.Module):
    """What the three kinds share: queries, keys and values of all tokens, and the projection at the end.

    Args:
        dim: channels ``D`` of a token.
        heads: number ``h`` of heads, a divisor of ``dim``. Head ``i`` owns ``D / h`` consecutive channels.
        qkv_bias: whether queries, keys and values (not the output) have a bias.

    Raises:
        ValueError: if ``heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, heads: int = 12, *, qkv_bias: bool = True) -> None:
        super().__init__()
        if heads < 1 or dim < 1 or dim % heads:
            raise ValueError(f"the number of heads must divide dim, got {heads} heads for dim {dim}")
        self.dim, self.heads = dim, heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.out = nn.Linear(dim, dim)

    def frame_size(self, x: Tensor, num_frames: int) -> int:
        """Tokens a frame, ``S``, of ``x``.

        Raises:
            ValueError: unless ``x`` is ``(B, 1 + T * S, D)`` for ``T = num_frames`` and this module's ``D``.
        """
        if x.ndim != 3 or x.shape[2] != self.dim:
            raise ValueError(f"expected tokens (B, 1 + T * S, {self.dim}), got shape {tuple(x.shape)}")
        patches = x.shape[1] - 1
        if num_frames < 1 or patches < 1 or patches % num_frames:
            raise ValueError(
                f"{x.shape[1]} tokens are not one class token and {num_frames} frames of equal size; "
                "put the class token first and give the number of frames after tokenisation"
            )
        return patches // num_frames

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens ``(B, n, D)`` to three views ``(B, h, n, d)`` of one tensor."""
        q, k, v = torch.unflatten(self.qkv(x), 2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, h, n, d)
        return q, k, v


class JointAttention(SpaceTimeAttention):
    """Every token looks at all tokens of the clip (eq. 2), class token included: plain multi-head attention."""

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """Tokens ``(B, 1 + T * S, D)`` to as many.

        Raises:
            ValueError: as :meth:`frame_size`.
        """
        self.frame_size(x, num_frames)
        return self.out(merge_heads(F.scaled_dot_product_attention(*self.queries_keys_values(x))))

    def attention_maps(self, x: Tensor, num_frames: int) -> Tensor:
        """Weights between patches in float32, without the class token's, as the other kinds order them.

        Returns:
            ``(B, h, T * S, T, S)``. A query's weights sum to less than 1 by what it gives to the class token; divide
            by the sum over ``S`` to compare with trajectory attention, frame by frame.
        """
        space = self.frame_size(x, num_frames)
        q, k, _ = self.queries_keys_values(x)
        logits = q[:, :, 1:] @ k.transpose(2, 3) * q.shape[3] ** -0.5  # (B, h, N, 1 + N)
        return torch.unflatten(torch.softmax(logits, dim=3, dtype=torch.float32)[..., 1:], 3, (num_frames, space))


class DividedAttention(SpaceTimeAttention):
    """A patch looks along one axis: at its place in all frames, or at all places of its frame (eq. 3).

    Two of them make a divided block, time first. A patch also sees the class token, whose query sees everything.

    Args:
        dim: see :class:`SpaceTimeAttention`.
        heads: see :class:`SpaceTimeAttention`.
        axis: ``"time"`` or ``"space"``.
        qkv_bias: see :class:`SpaceTimeAttention`.

    Raises:
        ValueError: for an unknown axis, or as :class:`SpaceTimeAttention`.
    """

    def __init__(self, dim: int, heads: int = 12, *, axis: Axis = "space", qkv_bias: bool = True) -> None:
        super().__init__(dim, heads, qkv_bias=qkv_bias)
        if axis not in ("time", "space"):
            raise ValueError(f"unknown axis {axis!r}: use 'time' or 'space'")
        self.axis: Axis = axis

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        """Tokens ``(B, 1 + T * S, D)`` to as many.

        Raises:
            ValueError: as :meth:`SpaceTimeAttention.frame_size`.
        """
        space = self.frame_size(x, num_frames)
        q, k, v = self.queries_keys_values(x)
        class_token = F.scaled_dot_product_attention(q[:, :, :1], k, v)  # (B, h, 1, d)
        query, key, value = (self._lines(y, num_frames) for y in (q, k, v))
        key, value = (_with_class(lines, y[:, :, :1]) for lines, y in ((key, k), (value, v)))
        patches = F.scaled_dot_product_attention(query, key, value)  # (B * lines, h, length, d)
        lines = space if self.axis == "time" else num_frames
        patches = torch.unflatten(merge_heads(patches), 0, (x.shape[0], lines))  # (B, lines, length, D)
        if self.axis == "time":
            patches = patches.transpose(1, 2)  # tokens lie frame by frame
        return self.out(torch.cat([merge_heads(class_token), patches.flatten(1, 2)], dim=1))

    def _lines(self, x: Tensor, num_frames: int) -> Tensor:
        """Patches of ``(B, h, 1 + T * S, d)``, each line along the axis an element of the batch."""
        x = torch.unflatten(x[:, :, 1:], 2, (num_frames, -1))  # (B, h, T, S, d)
        x = x.permute(0, 3, 1, 2, 4) if self.axis == "time" else x.permute(0, 2, 1, 3, 4)
        return x.flatten(0, 1)  # (B * S, h, T, d) or (B * T, h, S, d)


def merge_heads(x: Tensor) -> Tensor:
    """``(B, h, n, d)`` to ``(B, n, h * d)``."""
    return x.transpose(1, 2).flatten(2)


def _with_class(lines: Tensor, class_token: Tensor) -> Tensor:
    """The class token ``(B, h, 1, d)`` in front of every line of its clip, ``(B * lines, h, 1 + length, d)``."""
    number = lines.shape[0] // class_token.shape[0]
    return torch.cat([class_token.repeat_interleave(number, dim=0), lines], dim=2)
