"""One label for sight and sound: modalities as augmentations of one sample, and the loss of many heads.

SeLaVi (https://arxiv.org/abs/2006.13662, section 3.3) calls "drop the sound" and "drop the picture" augmentations
(*modality splicing*). The label of a video is assigned from the mean of both log-probabilities (eq. 6), and each
modality must then predict it alone. Nothing compares the modalities directly: they meet in the label.

Several heads share the trunks. They are *decorrelated* by clustering random groups of them on different augmentations
of the data (:func:`head_groups`); there is no penalty between heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avssl_core.encoders.heads import ProjectionHead
from avssl_core.losses.nce import upcast

FUSE_CHUNK = 2**22  # elements of a temporary


class ClusterHeads(nn.Module):
    """``H`` heads on one trunk, each a two-layer MLP with parameters of its own (as released, with dropout 0.3 twice).

    Args:
        in_dim: width of the trunk's feature.
        clusters: ``K``, outputs of each head.
        heads: ``H``; ten in the paper.
        hidden_dim: width of the hidden layers.
        dropout: before each linear layer.

    Raises:
        ValueError: for fewer than one head or cluster.
    """

    def __init__(
        self, in_dim: int = 512, clusters: int = 309, heads: int = 10, *, hidden_dim: int = 512, dropout: float = 0.3
    ) -> None:
        super().__init__()
        if heads < 1 or clusters < 1:
            raise ValueError(f"need at least 1 head and 1 cluster, got {heads} and {clusters}")
        self.heads = nn.ModuleList(
            ProjectionHead(in_dim, hidden_dim, clusters, dropout=dropout, normalise=False) for _ in range(heads)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits of all heads: ``(B, in_dim)`` to ``(H, B, K)``."""
        return torch.stack([head(features) for head in self.heads])

    def head(self, index: int) -> ProjectionHead:
        """One head; its ``out`` is the linear layer that :func:`~avssl_core.clustering.permute_outputs_` reorders.

        Raises:
            IndexError: if there is no such head.
        """
        module = self.heads[index]
        assert isinstance(module, ProjectionHead)
        return module


def fuse_log_probs(
    logits: Sequence[Tensor], *, weights: Sequence[float] | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Mean over modalities of ``log softmax(logits)`` (eq. 6): the scores that :func:`sinkhorn` labels by.

    Args:
        logits: of each modality (or augmentation), ``(N, K)`` each.
        weights: of each modality, not negative; normalised to sum 1. ``None``: equal, so that for two modalities
            ``exp`` of the result is ``sqrt(p_v p_a)``.
        dtype: of the result; sums are float32, or float64 where that is asked for.

    Returns:
        ``(N, K)``, without gradient; made in chunks, so that it is the only new table of that size. Rows are not
        normalised. The argmax is the label of a sample at test time, where nothing is balanced.

    Raises:
        ValueError: without modalities, for shapes that differ, or weights that do not fit.
    """
    if not logits or any(table.ndim != 2 or table.shape != logits[0].shape for table in logits):
        raise ValueError(f"expected tables (N, K) of one shape, got {[tuple(table.shape) for table in logits]}")
    shares = [1.0] * len(logits) if weights is None else [float(weight) for weight in weights]
    if len(shares) != len(logits) or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        raise ValueError(f"expected {len(logits)} weights, none negative and not all 0, got {shares}")
    rows, clusters = logits[0].shape
    inner = torch.float64 if dtype == torch.float64 else torch.float32
    fused = torch.empty(rows, clusters, dtype=dtype, device=logits[0].device)
    step = max(1, FUSE_CHUNK // max(clusters, 1))
    for first in range(0, rows, step):
        chunk = slice(first, first + step)
        parts = [table[chunk].detach().to(inner).log_softmax(dim=1) for table in logits]
        fused[chunk] = torch.stack([p * (s / sum(shares)) for p, s in zip(parts, shares, strict=True)]).sum(dim=0)
    return fused


def self_label_loss(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Mean over modalities and heads of the cross-entropy with the head's labels (as released).

    Args:
        logits: of each modality, ``(H, B, K)`` each.
        labels: cluster of each sample in each head, int64 ``(B, H)``, as stored in a table ``(N, H)``.

    Returns:
        A scalar, a mean over the batch: averaged gradients of many processes are those of the joint batch. ``log K``
        for constant logits.

    Raises:
        ValueError: for shapes that do not fit; on the CPU also for a label outside ``0..K-1`` (a sample that was never
            labelled; a GPU stops at it, too, but does not say where).
    """
    if not logits or any(part.ndim != 3 or part.shape != logits[0].shape for part in logits):
        raise ValueError(f"expected logits (H, B, K) of one shape, got {[tuple(part.shape) for part in logits]}")
    heads, batch, clusters = logits[0].shape
    if labels.shape != (batch, heads) or labels.dtype != torch.int64 or not labels.numel():
        raise ValueError(f"expected int64 labels ({batch}, {heads}), got {tuple(labels.shape)} {labels.dtype}")
    if labels.device.type == "cpu" and not 0 <= int(labels.min()) <= int(labels.max()) < clusters:
        raise ValueError(
            f"labels must lie in 0..{clusters - 1}, got {int(labels.min())} to {int(labels.max())}: was every sample "
            "clustered?"
        )
    targets = labels.T.reshape(-1)  # (H B,)
    with torch.autocast(labels.device.type, enabled=False):
        # torch would skip labels of -100, its default: here nothing may be skipped silently.
        losses = [F.cross_entropy(upcast(part).flatten(0, 1), targets, ignore_index=-(2**31)) for part in logits]
    return torch.stack(losses).mean()


def head_groups(heads: int, groups: int, *, generator: torch.Generator) -> tuple[tuple[int, ...], ...]:
    """Random partition of heads, drawn anew at each clustering: each group labels from an augmentation of its own.

    Args:
        heads: ``H``.
        groups: how many; 2 in the paper. Each costs a pass over the data.
        generator: the partition is a function of its state.

    Returns:
        ``groups`` tuples of head indices, their sizes within 1 of each other.

    Raises:
        ValueError: unless ``1 <= groups <= heads``.
    """
    if not 1 <= groups <= heads:
        raise ValueError(f"need 1 <= groups <= heads, got {groups} groups of {heads} heads")
    order = torch.randperm(heads, generator=generator, device=generator.device).tolist()
    return tuple(tuple(order[group::groups]) for group in range(groups))
