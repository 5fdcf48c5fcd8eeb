"""The rival of the clustering-based estimate: two linear heads trained with InfoNCE, clips ranked by similarity.

ACAV100M (https://arxiv.org/abs/2101.10803, eq. 4.1). On the last layer of each frozen network stands a linear map into
a common space; cosine similarities over a temperature of 0.1 go through a cross-entropy in both directions. A clip's
score is the cosine of its own two embeddings, and the best are kept.

The released training never clears the gradients, so that every step follows the sum of all gradients so far: a rival
with a handicap. Here they are cleared; ``accumulate=True`` reproduces the release. It uses AdamW with AMSGrad (the
paper says Adam), and a rate that is constant within an epoch: see :func:`epoch_rate_factor`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl_core.losses.nce import check_temperature, similarity, symmetric_info_nce

SCORE_CHUNK = 1 << 14  # clips embedded at once

Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
"""Given the epoch, its batches: visual features ``(B, d_v)`` and audio features ``(B, d_a)`` of the same clips."""


@dataclass(frozen=True)
class HeadTraining:
    """How the heads are trained. Defaults: the paper's retrieval experiments, with what only the release states.

    Attributes:
        epochs: passes; the paper says 100 for retrieval and 3 for the 100 million random videos.
        warmup: epochs of linear rise of the rate.
        lr: highest learning rate (paper: 2e-4).
        weight_decay: of AdamW.
        eps: of AdamW.
        accumulate: never clear the gradients, as released.

    Raises:
        ValueError: for fewer than one epoch, or a warm-up that is not within ``[0, epochs]``.
    """

    epochs: int = 100
    warmup: int = 3
    lr: float = 2e-4
    weight_decay: float = 0.01
    eps: float = 1e-6
    accumulate: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.warmup < 0:
            raise ValueError(f"need epochs >= 1 and warmup >= 0, got {self.epochs} and {self.warmup}")


class CorrespondenceHeads(nn.Module):
    """Two linear maps into one space, with the symmetric InfoNCE of eq. 4.1.

    Args:
        visual_dim: ``d_v``, dimension of the frozen visual features.
        audio_dim: ``d_a``, of the audio features.
        dim: of the common space; the smaller of both if None, as released.
        temperature: positive; 0.1 in the paper.

    Raises:
        ValueError: for a temperature that is not positive.
    """

    def __init__(self, visual_dim: int, audio_dim: int, *, dim: int | None = None, temperature: float = 0.1) -> None:
        super().__init__()
        check_temperature(temperature)
        shared = min(visual_dim, audio_dim) if dim is None else dim
        self.visual = nn.Linear(visual_dim, shared)
        self.audio = nn.Linear(audio_dim, shared)
        self.temperature = temperature

    def forward(self, visual: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings, ``(B, d_v)`` and ``(B, d_a)`` to ``(B, dim)`` each."""
        return F.normalize(self.visual(visual), dim=1), F.normalize(self.audio(audio), dim=1)

    def loss(self, visual: Tensor, audio: Tensor) -> Tensor:
        """Mean of both cross-entropies over a batch of at least two clips, in nats; a scalar."""
        return symmetric_info_nce(*self(visual, audio), temperature=self.temperature)

    @torch.no_grad()
    def accuracy(self, visual: Tensor, audio: Tensor) -> float:
        """Share of clips whose partner is the most similar one of the batch, mean of both directions."""
        logits = similarity(*self(visual, audio), temperature=self.temperature)  # (B, B)
        own = torch.arange(len(logits), device=logits.device)
        hits = [(logits.argmax(dim=dim) == own).double().mean().item() for dim in (0, 1)]
        return sum(hits) / 2

    @torch.no_grad()
    def scores(self, visual: Tensor, audio: Tensor) -> Tensor:
        """Cosine of each clip's two embeddings, ``(N,)`` in [-1, 1]; computed in chunks.

        Raises:
            ValueError: for numbers of clips that differ.
        """
        if len(visual) != len(audio):
            raise ValueError(f"visual and audio must be of the same clips, got {len(visual)} and {len(audio)} rows")
        chunks = zip(torch.split(visual, SCORE_CHUNK), torch.split(audio, SCORE_CHUNK), strict=True)
        pairs = (self(v, a) for v, a in chunks)
        return torch.cat([(v * a).sum(dim=1) for v, a in pairs])


def train_heads(heads: CorrespondenceHeads, batches: Batches, training: HeadTraining) -> list[float]:
    """Train the heads in place.

    Args:
        heads: on any device, in training mode or not (they hold nothing that cares).
        batches: the batches of an epoch, on the device of the heads. In the paper's retrieval experiments a batch holds
            one clip a class, or 10 random clips. What mismatched clips the batches contain is learned as correct.
        training: how.

    Returns:
        The loss of every step, in nats, before the step.

    Raises:
        ValueError: if an epoch has no batch.
    """
    optimiser = torch.optim.AdamW(
        heads.parameters(), lr=training.lr, eps=training.eps, weight_decay=training.weight_decay, amsgrad=True
    )
    losses: list[float] = []
    for epoch in range(training.epochs):
        rate = training.lr * epoch_rate_factor(epoch, epochs=training.epochs, warmup=training.warmup)
        for group in optimiser.param_groups:
            group["lr"] = rate
        before = len(losses)
        for visual, audio in batches(epoch):
            if not training.accumulate:
                optimiser.zero_grad()
            loss = heads.loss(visual, audio)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.item())
        if len(losses) == before:
            raise ValueError(f"epoch {epoch} has no batch; batches() must give fresh ones for every epoch")
    return losses


def epoch_rate_factor(epoch: int, *, epochs: int, warmup: int) -> float:
    """Factor of the learning rate in an epoch, from 0: linear warm-up, then linear decay, as released.

    With ``t = epoch + 1``: ``t / warmup`` below the warm-up, ``(E + 1 - t) / (E + 1 - warmup)`` from then on; the last
    epoch still moves. A training shorter than its warm-up ends while the rate rises.

    Raises:
        ValueError: for an epoch outside ``[0, epochs)``, or a negative warm-up.
    """
    if not 0 <= epoch < epochs or warmup < 0:
        raise ValueError(f"need 0 <= epoch < epochs and warmup >= 0, got {epoch}, {epochs} and {warmup}")
    turn = epoch + 1
    return turn / warmup if turn < warmup else (epochs + 1 - turn) / (epochs + 1 - warmup)
