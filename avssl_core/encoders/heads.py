"""Projection heads: what the contrastive loss sees, and what downstream tasks throw away.

GDT's text speaks of two fully connected layers. The release has dropout before both, no bias in the first, and batch
normalisation between them; that is what the published weights fit, so it is the default here.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

NORMALISE_EPS = 1e-12  # torch's default; only an exactly zero embedding is affected


class ProjectionHead(nn.Module):
    """Dropout, linear, batch norm, ReLU, dropout, linear, and optionally L2 normalisation (GDT, released head).

    Args:
        in_dim: width of the encoder's feature.
        hidden_dim: width of the hidden layer (no bias before the batch norm, which has its own).
        out_dim: width of the embedding.
        dropout: probability of dropping a feature, before each linear layer, in ``[0, 1)``. Zero makes a head that
            draws no random numbers.
        normalise: return unit rows.

    Raises:
        ValueError: if ``dropout`` lies outside ``[0, 1)``.
    """

    def __init__(
        self,
        in_dim: int = 512,
        hidden_dim: int = 512,
        out_dim: int = 256,
        *,
        dropout: float = 0.3,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.in_dim, self.dim, self.normalise = in_dim, out_dim, normalise
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(in_dim, hidden_dim, bias=False)
        self.norm = nn.BatchNorm1d(hidden_dim)
        self.out = nn.Linear(hidden_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Project features.

        Args:
            x: ``(B, in_dim)``.

        Returns:
            ``(B, out_dim)``; unit rows (in float32 whatever the autocast dtype) if ``normalise``.

        Raises:
            ValueError: if the shape is wrong, or in training mode with a single row, whose variance does not exist.
        """
        if x.ndim != 2 or x.shape[1] != self.in_dim:
            raise ValueError(f"expected features (B, {self.in_dim}), got shape {tuple(x.shape)}")
        if self.training and x.shape[0] < 2:
            raise ValueError(
                "batch normalisation cannot train on a batch of 1: use at least 2 clips a process, or call .eval()"
            )
        x = F.relu(self.norm(self.hidden(self.dropout(x))))
        x = self.out(self.dropout(x))
        # Cosines over 0.07 are exponentiated by the loss: bfloat16's three digits are not enough.
        return F.normalize(x.float(), dim=1, eps=NORMALISE_EPS) if self.normalise else x
