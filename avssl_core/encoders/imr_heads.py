"""What sits on the pathways of compressed video: the heads of the two pretext tasks, and CoViAR's late fusion.

The pretext heads are two-layer perceptrons and are thrown away after pre-training. Their hidden width is not given in
the paper; 512 here. Which cell of a grid moves most cannot be read off a globally pooled vector, so the heads of motion
statistics see the maps pooled over the GOPs of a window and, in space, only down to that grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl_core.encoders.imrnet import IMRNet, StreamMaps

COVIAR_WEIGHTS = (2.0, 1.0, 1.0)  # of the scores of I, M, R in the combination that CoViAR's authors released


class PMSPHead(nn.Module):
    """Pyramidal motion statistics prediction: one classifier for each level ``(s, t)`` of the pyramid (eq. 2.4).

    Level ``(s, t)`` has ``t`` windows, window ``q`` covering the GOPs ``q`` to ``q + T - t``. Each stream's map is
    averaged over the frames of the window and over the cells of an ``s x s`` grid; the three are concatenated and the
    grid is flattened, so that the classifier knows what lies where. The paper only speaks of the "(q, r)-th feature".

    Args:
        in_channels: channels of the three maps together, ``IMRNet.dim``.
        hidden_dim: width of the hidden layer.
        spatial: grids ``s``, each ``s x s`` cells.
        temporal: numbers of windows ``t``.

    Attributes:
        levels: all ``(s, t)``, in the order of the loops over ``spatial`` and ``temporal``.

    Raises:
        ValueError: if a size is below 1.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_dim: int = 512,
        *,
        spatial: Sequence[int] = (2, 3, 4),
        temporal: Sequence[int] = (1, 3, 5),
    ) -> None:
        super().__init__()
        if not spatial or not temporal or min(in_channels, hidden_dim, *spatial, *temporal) < 1:
            raise ValueError(
                f"expected positive sizes, got in_channels={in_channels}, hidden_dim={hidden_dim}, "
                f"spatial={tuple(spatial)}, temporal={tuple(temporal)}"
            )
        self.in_channels = in_channels
        self.levels = tuple((s, t) for s in spatial for t in temporal)
        self.classifiers = nn.ModuleDict(
            {f"s{s}t{t}": _perceptron(in_channels * s * s, hidden_dim, s * s) for s, t in self.levels}
        )

    def forward(self, maps: StreamMaps) -> dict[tuple[int, int], Tensor]:
        """Maps of ``T`` GOPs to the logits of every level: ``(s, t)`` → ``(B, t, s * s)``, cells row by row.

        Raises:
            ValueError: if the channels do not add up to ``in_channels``, the P-frames are not a multiple of the GOPs,
                or a level has more windows than there are GOPs.
        """
        num_gops = self._check(maps)
        logits = {}
        for s in sorted({s for s, _ in self.levels}):
            cells = _gop_cells(maps, num_gops, s)  # (B, T, C * s * s)
            for t in (t for level_s, t in self.levels if level_s == s):
                windows = cells.unfold(1, num_gops - t + 1, 1).mean(dim=-1)  # (B, t, C * s * s)
                logits[s, t] = self.classifiers[f"s{s}t{t}"](windows)
        return {level: logits[level] for level in self.levels}

    def _check(self, maps: StreamMaps) -> int:
        streams = (maps.iframes, maps.motion, maps.residual)
        num_gops, channels = maps.iframes.shape[2], sum(x.shape[1] for x in streams)
        if channels != self.in_channels:
            raise ValueError(f"expected maps of {self.in_channels} channels together, got {channels}")
        if any(x.shape[2] % num_gops for x in streams):
            raise ValueError(
                f"P-frames must be a multiple of {num_gops} GOPs, got {[x.shape[2] for x in streams]} frames"
            )
        most = max(t for _, t in self.levels)
        if most > num_gops:
            raise ValueError(
                f"{most} windows need at least {most} GOPs, got {num_gops}: leave the level out of temporal"
            )
        return num_gops


class CTPHead(nn.Module):
    """Correspondence type prediction: embedding to the logits of the types (eq. 2.5).

    Args:
        in_dim: width of the embedding, ``IMRNet.dim``.
        hidden_dim: width of the hidden layer.
        num_types: 4 (aligned, random, shuffle, shift), or 2 for the binary ablation (aligned, random).

    Raises:
        ValueError: if a size is below 1.
    """

    def __init__(self, in_dim: int, hidden_dim: int = 512, num_types: int = 4) -> None:
        super().__init__()
        if min(in_dim, hidden_dim, num_types) < 1:
            raise ValueError(f"expected positive sizes, got {in_dim}, {hidden_dim} and {num_types}")
        self.layers = _perceptron(in_dim, hidden_dim, num_types)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings ``(B, in_dim)`` to logits ``(B, num_types)``."""
        logits: Tensor = self.layers(x)
        return logits


class LateFusion(nn.Module):
    """CoViAR's fusion: three networks that never meet, each with a classifier of its own; their scores are added.

    How this differs from a linear classifier on :class:`IMRNet` with ``connections="none"``, whose pooled features are
    concatenated: *as a function, with equal weights, not at all*, since a linear map of a concatenation is a sum of
    linear maps. What differs is the training. CoViAR trains each stream alone, on its own scores
    (:meth:`stream_scores`, one loss each), and adds them only to predict; the concatenation is trained as one. Any head
    with a hidden layer breaks the equality. Its networks were 2-D (ResNet-152 for I, -18 for M and R); here they are
    IMRNet's pathways, so that only the fusion is compared.

    Args:
        num_classes: length of the scores.
        trunk: an :class:`IMRNet` without connections.
        weights: of the scores of I, M and R; CoViAR's released code uses ``COVIAR_WEIGHTS``, (2, 1, 1).

    Raises:
        ValueError: if the trunk has connections.
    """

    def __init__(
        self, num_classes: int, trunk: IMRNet, *, weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ) -> None:
        super().__init__()
        if trunk.links:
            raise ValueError(
                f"late fusion needs streams that never meet, but the trunk has {len(trunk.links)} connections: "
                "build it with connections='none'"
            )
        self.trunk, self.weights = trunk, weights
        pathways = (trunk.iframes, trunk.motion, trunk.residual)
        self.classifiers = nn.ModuleList(nn.Linear(pathway.dim, num_classes) for pathway in pathways)

    def stream_scores(self, iframes: Tensor, motion: Tensor, residual: Tensor) -> Tensor:
        """Scores of I, M and R apart, ``(3, B, num_classes)``, from streams as in :meth:`IMRNet.feature_maps`."""
        maps = self.trunk.feature_maps(iframes, motion, residual)
        streams = (maps.iframes, maps.motion, maps.residual)
        return torch.stack([f(x.mean(dim=(2, 3, 4))) for f, x in zip(self.classifiers, streams, strict=True)])

    def forward(self, iframes: Tensor, motion: Tensor, residual: Tensor) -> Tensor:
        """Weighted sum of the streams' scores, ``(B, num_classes)``."""
        scores = self.stream_scores(iframes, motion, residual)
        return torch.einsum("sbc,s->bc", scores, scores.new_tensor(self.weights))


def _perceptron(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, out_dim))


def _gop_cells(maps: StreamMaps, num_gops: int, s: int) -> Tensor:
    """Means of all streams over each GOP's frames and each cell of an ``s x s`` grid, ``(B, T, C * s * s)``.

    Equally many frames a GOP make the mean over a window the mean of its GOPs' means.
    """
    pooled = []
    for x in (maps.iframes, maps.motion, maps.residual):
        batch, channels, _, height, width = x.shape
        gops = x.reshape(batch, channels, num_gops, -1, height, width).mean(dim=3).transpose(1, 2)
        cells = F.adaptive_avg_pool2d(gops.flatten(0, 1), s)  # (B * T, C_x, s, s)
        pooled.append(cells.reshape(batch, num_gops, channels * s * s))
    return torch.cat(pooled, dim=2)
