"""A vision transformer for clips, with the attention between its tokens chosen by name: Motionformer and its rivals.

Patrick et al., NeurIPS 2021. Cubes of pixels with positions (:mod:`avssl_core.encoders.tubelets`), pre-norm blocks
(eq. 1), the class token to a hidden layer with tanh and to one or several classifiers. The release's classifiers return
probabilities in evaluation; here they are always logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl_core.encoders.space_time_attention import DividedAttention, JointAttention, SpaceTimeAttention
from avssl_core.encoders.trajectory_attention import TrajectoryAttention
from avssl_core.encoders.tubelets import INIT_STD, Inflation, PositionKind, SpaceTimePositions, TubeletEmbedding

AttentionKind = Literal["trajectory", "joint", "divided"]
Pool = Literal["class", "mean"]

EPIC_CLASSES = {"verb": 97, "noun": 300}
"""EPIC-Kitchens-100: two classifiers on one class token, in the order of the released weights."""


class MLP(nn.Module):
    """Two linear layers with an (exact) GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, hidden)
        self.out = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)`` to ``(..., D)``."""
        return self.out(F.gelu(self.hidden(x)))


class StochasticDepth(nn.Module):
    """In training, drops a residual branch for some clips of the batch, and scales it up for the others.

    Args:
        rate: probability of being dropped, in ``[0, 1)``.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """``(B, ...)`` to as many; the same in evaluation, and in expectation."""
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


class Block(nn.Module):
    """Pre-norm block: attention, then MLP, each added to what comes in (eq. 1).

    Divided attention is two modules, along time and along space, each with its own norm and residual; the one along
    time is never dropped, as in the release, and has no layer behind it, unlike TimeSformer's.

    Args:
        dim: channels of a token.
        heads: heads of each attention.
        attention: ``"trajectory"``, ``"joint"`` or ``"divided"``.
        mlp_ratio: width of the MLP's hidden layer over ``dim``.
        qkv_bias: see :class:`SpaceTimeAttention`.
        drop_path: rate of :class:`StochasticDepth`.
        options: further arguments of :class:`TrajectoryAttention`.

    Raises:
        ValueError: for an unknown attention, or options for one that has none.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        attention: AttentionKind = "trajectory",
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if options and attention != "trajectory":
            raise ValueError(f"{attention} attention has no options, got {sorted(options)}")
        self.time_norm: nn.LayerNorm | None = None
        self.time_attention: DividedAttention | None = None
        self.attention: SpaceTimeAttention
        if attention == "divided":
            self.time_norm = nn.LayerNorm(dim, eps=1e-6)
            self.time_attention = DividedAttention(dim, heads, axis="time", qkv_bias=qkv_bias)
            self.attention = DividedAttention(dim, heads, axis="space", qkv_bias=qkv_bias)
        elif attention == "trajectory":
            self.attention = TrajectoryAttention(dim, heads, qkv_bias=qkv_bias, **(options or {}))
        elif attention == "joint":
            self.attention = JointAttention(dim, heads, qkv_bias=qkv_bias)
        else:
            raise ValueError(f"unknown attention {attention!r}: use 'trajectory', 'joint' or 'divided'")
        self.attention_norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp_norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, int(mlp_ratio * dim))
        self.drop = StochasticDepth(drop_path)

    def forward(self, x: Tensor, num_frames: int, **draws: Any) -> Tensor:
        """Tokens ``(B, 1 + T * S, D)`` to as many; ``draws`` as in :meth:`TrajectoryAttention.forward`."""
        if self.time_attention is not None and self.time_norm is not None:
            x = x + self.time_attention(self.time_norm(x), num_frames)
        given = draws if isinstance(self.attention, TrajectoryAttention) else {}
        x = x + self.drop(self.attention(self.attention_norm(x), num_frames, **given))
        return x + self.drop(self.mlp(self.mlp_norm(x)))


class VideoTransformer(nn.Module):
    """Clip to logits; the defaults are Motionformer's (ViT-B/16, 16 frames, 400 classes).

    Args:
        classes: number of classes; or a name and a number for each of several classifiers, e.g. :data:`EPIC_CLASSES`;
            or ``None`` for no classifier: then :meth:`forward` returns its input.
        attention: ``"trajectory"``, ``"joint"`` or ``"divided"``.
        num_frames: frames ``T`` after tokenisation: clips have ``T * tubelet``.
        img_size: side in pixels that positions are learnt for. Clips may have others, see :class:`SpaceTimePositions`;
            Motionformer-HR is a table for 224 pixels and clips of 336.
        patch: side of a cube.
        tubelet: frames of a cube; 1 for squares.
        dim: channels of a token.
        depth: number of blocks.
        heads: heads of each.
        mlp_ratio: see :class:`Block`.
        qkv_bias: see :class:`SpaceTimeAttention`.
        position: ``"separate"`` or ``"joint"``.
        inflation: see :class:`TubeletEmbedding`.
        pre_logits: whether a linear layer and tanh stand before the classifiers.
        pool: features are the class token's, as in the paper, or the mean of the patches'. The class token looks at
            keys and values directly: with it, the last block's stage 2, and all of it in a model of one block, is idle.
        drop_path: rate of stochastic depth at the last block; it grows from 0 in equal steps.
        in_channels: channels of a clip.
        attention_options: further arguments of :class:`TrajectoryAttention`, e.g. ``{"value_proj": False}`` for
            released weights. Each block gets a ``seed`` of its own, counted from the one given.

    Attributes:
        dim: width of the features.

    Raises:
        ValueError: for sizes that do not fit each other, or unknown options.
    """

    def __init__(
        self,
        classes: int | Mapping[str, int] | None = 400,
        *,
        attention: AttentionKind = "trajectory",
        num_frames: int = 8,
        img_size: int = 224,
        patch: int = 16,
        tubelet: int = 2,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        position: PositionKind = "separate",
        inflation: Inflation = "central",
        pre_logits: bool = True,
        pool: Pool = "class",
        drop_path: float = 0.2,
        in_channels: int = 3,
        attention_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if depth < 1 or img_size % patch or not 0 <= drop_path < 1:
            raise ValueError(
                "depth must be positive, patch must divide img_size and drop_path lie in [0, 1), got "
                f"{depth}, {patch} for {img_size}, and {drop_path}"
            )
        if pool not in ("class", "mean"):
            raise ValueError(f"unknown pool {pool!r}: use 'class' or 'mean'")
        self.dim, self.num_frames, self.attention, self.pool = dim, num_frames, attention, pool
        self.embedding = TubeletEmbedding(
            dim, tubelet=tubelet, patch=patch, in_channels=in_channels, inflation=inflation
        )
        self.positions = SpaceTimePositions(dim, num_frames, img_size // patch, kind=position)
        self.blocks = nn.ModuleList()
        for i in range(depth):
            options = dict(attention_options or {})
            if attention == "trajectory":
                options["seed"] = options.get("seed", 0) + i
            rate = drop_path * i / max(1, depth - 1)
            self.blocks.append(
                Block(dim, heads, attention, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, drop_path=rate, options=options)
            )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pre_logits = nn.Linear(dim, dim) if pre_logits and classes is not None else None
        self.several = isinstance(classes, Mapping)
        named = {} if classes is None else dict(classes) if isinstance(classes, Mapping) else {"class": classes}
        self.classifiers = nn.ModuleDict({name: nn.Linear(dim, number) for name, number in named.items()})
        self.apply(_init_linear)

    def embed(self, clip: Tensor) -> Tensor:
        """Clips to the first block's tokens, ``(B, 1 + T * S, D)``, class token first, then frame by frame."""
        return self.positions(self.embedding(clip))

    def tokens(
        self,
        clip: Tensor,
        *,
        prototype_index: Sequence[Tensor] | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Clips to the last block's tokens, normalised.

        Args:
            clip: ``(B, C, T * tubelet, H, W)``; the release's pixels lie in ``[-1, 1]``.
            prototype_index: prototypes of each block, see :meth:`TrajectoryAttention.forward`.
            generator: source of the draws for prototypes, block after block.

        Returns:
            ``(B, 1 + T * S, D)``.

        Raises:
            ValueError: for clips of another size, or prototypes for another number of blocks.
        """
        x = self.embed(clip)
        if prototype_index is not None and len(prototype_index) != len(self.blocks):
            raise ValueError(f"expected prototypes for {len(self.blocks)} blocks, got {len(prototype_index)}")
        for i, block in enumerate(self.blocks):
            index = None if prototype_index is None else prototype_index[i]
            x = block(x, self.num_frames, prototype_index=index, generator=generator)
        return self.norm(x)

    def features(self, clip: Tensor, **draws: Any) -> Tensor:
        """The class token (or the patches' mean) after the last norm, ``(B, D)``; arguments as :meth:`tokens`."""
        tokens = self.tokens(clip, **draws)
        return tokens[:, 0] if self.pool == "class" else tokens[:, 1:].mean(dim=1)

    def classify(self, features: Tensor) -> Tensor | dict[str, Tensor]:
        """Features ``(B, D)`` to logits: ``(B, classes)``, or by name where there are several classifiers."""
        if not self.classifiers:
            return features
        x = features if self.pre_logits is None else torch.tanh(self.pre_logits(features))
        logits = {name: classifier(x) for name, classifier in self.classifiers.items()}
        return logits if self.several else logits["class"]

    def forward(self, clip: Tensor, **draws: Any) -> Tensor | dict[str, Tensor]:
        """Clips to logits, see :meth:`classify`; arguments as :meth:`tokens`."""
        return self.classify(self.features(clip, **draws))


def motionformer(classes: int | Mapping[str, int] | None = 400, **options: Any) -> VideoTransformer:
    """Motionformer: 16 frames of 224 pixels, 8 x 196 tokens; options as :class:`VideoTransformer`."""
    return VideoTransformer(classes, **options)


def motionformer_l(classes: int | Mapping[str, int] | None = 400, **options: Any) -> VideoTransformer:
    """Motionformer-L: 32 frames of 224 pixels, 16 x 196 tokens."""
    return VideoTransformer(classes, **{"num_frames": 16, **options})


def motionformer_hr(classes: int | Mapping[str, int] | None = 400, **options: Any) -> VideoTransformer:
    """Motionformer-HR: 16 frames of 336 pixels, 8 x 441 tokens; positions are learnt for 224 pixels and resized."""
    return VideoTransformer(classes, **options)


def _init_linear(module: nn.Module) -> None:
    """Every linear map as in a ViT; this includes the new projections of stage 2 and of attention along time."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
