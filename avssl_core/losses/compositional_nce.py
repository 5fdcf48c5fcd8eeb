"""The published objective of GDT (eq. 1): NCE over a batch of composed transformations.

For every anchor ``T`` and every admissible positive ``T'``, a log-softmax over all admissible ``T''``, negatives and
the other positives alike. SimCLR's NT-Xent and symmetric InfoNCE are special cases (other ``c`` and ``w``).

The release never evaluates it: it sums InfoNCE terms over pairs of variants (``pairwise_variants``). Here it is
evaluated on the whole matrix, in one product, in log space, over all processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avssl_core.collectives import LOCAL, Collectives
from avssl_core.losses.compositions import WeightMode, check_matrices, contrast_matrix, weight_matrix
from avssl_core.losses.hierarchical_sampler import Kind
from avssl_core.losses.nce import REDUCTIONS, Reduction, check_temperature, reduce_weighted, similarity, upcast


class CompositionalNCE(nn.Module):
    """Eq. (1) of GDT (https://arxiv.org/abs/2003.04298).

    Args:
        temperature: ``rho``, divides the inner products. The paper prints "1/0.07"; it means 0.07.
        reduction: ``"mean"`` over the pairs with ``c w = 1`` (independent of the batch size); ``"sum"``, the printed
            formula; ``"none"``: one value an anchor, the sum over its positives.
        collectives: how to reach other processes. Each computes its own anchors against all samples; the mean over
            processes of the result is the loss of the joint batch.

    Raises:
        ValueError: for a temperature that is not positive or an unknown reduction.
    """

    def __init__(
        self, temperature: float = 0.07, *, reduction: Reduction = "mean", collectives: Collectives = LOCAL
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        if reduction not in REDUCTIONS:
            raise ValueError(f"unknown reduction {reduction!r}; use one of {REDUCTIONS}")
        self.temperature = temperature
        self.reduction: Reduction = reduction
        self.collectives = collectives

    def forward(self, embeddings: Tensor, contrast: Tensor, weight: Tensor) -> Tensor:
        """Evaluate the loss.

        Args:
            embeddings: unit rows, one a transformation, shape ``(B, d)``.
            contrast: ``c``, bool, shape ``(B, W * B)``: local anchors against the samples of all ``W`` processes.
            weight: ``w``, bool, same shape.

        Returns:
            A scalar, or ``(B,)`` for ``"none"``. An anchor without positives contributes 0.

        Raises:
            ValueError: for matrices that do not fit the joint batch.
        """
        check_matrices(contrast, weight)
        expected = (len(embeddings), len(embeddings) * self.collectives.world_size)
        if tuple(contrast.shape) != expected:
            raise ValueError(
                f"{len(embeddings)} embeddings on each of {self.collectives.world_size} process(es) need matrices "
                f"{expected}, got {tuple(contrast.shape)}; with several processes, build them against the gathered "
                "codes (from_codes does)"
            )
        logits = similarity(embeddings, self.collectives.gather(upcast(embeddings)), temperature=self.temperature)
        positive = contrast & weight
        count = positive.sum(dim=1, dtype=torch.int32)  # (B,): P; int32 sums twice as fast as int64
        losses = _EquationOne.apply(logits, positive, weight, count)
        return reduce_weighted(losses, count.sum(), self.reduction, self.collectives)

    def from_codes(
        self, embeddings: Tensor, codes: Tensor, kinds: Sequence[Kind], mode: WeightMode, *, modality: int | None = None
    ) -> Tensor:
        """Evaluate the loss for transformation codes, gathered here.

        Args:
            embeddings: unit rows, shape ``(B, d)``.
            codes: int64, shape ``(B, M)``. Codes of different videos must differ *between* processes too:
                :func:`~avssl_core.losses.hierarchical_sampler.path_codes` with the rank, or row numbers of the corpus.
            kinds: kind of each factor.
            mode: weight mode.
            modality: column of the modality, for ``"cross_modal"``.

        Returns:
            As :meth:`forward`.
        """
        codes = codes.to(embeddings.device)
        contrast, weight = batch_matrices(codes, kinds, mode, modality=modality, collectives=self.collectives)
        return self(embeddings, contrast, weight)

    def extra_repr(self) -> str:
        """Settings, for ``print(loss)``."""
        return f"temperature={self.temperature}, reduction={self.reduction!r}"


def batch_matrices(
    codes: Tensor,
    kinds: Sequence[Kind],
    mode: WeightMode,
    *,
    modality: int | None = None,
    collectives: Collectives = LOCAL,
) -> tuple[Tensor, Tensor]:
    """Contrast and weight of the local transformations against those of all processes, bool ``(B, W * B)`` each."""
    others = collectives.gather(codes)
    contrast = contrast_matrix(codes, kinds, others=others)
    return contrast, weight_matrix(codes, mode, modality=modality, others=others)


def loss_floor(contrast: Tensor, weight: Tensor, *, same_sample: Tensor | None = None) -> Tensor:
    """Smallest mean value of an anchor's terms in eq. (1) that any embedding can reach (an infimum over all logits).

    With ``P`` positives: ``log P``, as the positives share one softmax. If transformations do not change the sample (a
    static clip under time shift, a palindromic one under reversal, a bag of words under reordering), an identical
    sample is positive and negative at once. Where each group of identical samples holds the same share of positives,
    the floor is ``log(P + H)`` with ``H`` such hard negatives; in general a group of ``p`` positives and ``h``
    negatives gives each of its terms ``log(P (p + h) / p)``, whose mean is at most ``log(P + H)``.

    Args:
        contrast: bool, shape ``(B, N)``.
        weight: bool, shape ``(B, N)``.
        same_sample: which columns hold identical samples: an equivalence relation, bool, shape ``(N, N)``. All
            different by default (Lemma 3's hypothesis).

    Returns:
        Floors, float64, shape ``(B,)``; ``nan`` for an anchor without positives. Unit embeddings come as near as ``2 /
        rho`` in logits allows.

    Raises:
        ValueError: for matrices that do not fit.
    """
    check_matrices(contrast, weight)
    n = contrast.shape[1]
    same = torch.eye(n, dtype=torch.bool, device=contrast.device) if same_sample is None else same_sample
    if same.shape != (n, n) or same.dtype != torch.bool:
        raise ValueError(f"same_sample must be bool ({n}, {n}), got {tuple(same.shape)} {same.dtype}")
    positive = (contrast & weight).double()
    negative = (~contrast & weight).double()
    group = same.double()
    p = positive @ group  # (B, N): positives identical with column T'
    h = negative @ group  # (B, N): negatives identical with column T'
    total = positive.sum(dim=1, keepdim=True)  # (B, 1): P
    terms = torch.where(positive > 0, torch.log(total * (p + h) / p.clamp(min=1)), 0.0)
    return terms.sum(dim=1) / total[:, 0]


class _EquationOne(torch.autograd.Function):
    """Per-anchor sum of eq. (1) from logits, with the gradient written out: ``P_T softmax_w(s) - c w``.

    Autograd would pass through several more ``(B, N)`` temporaries, which is where the time goes.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, positive: Tensor, weight: Tensor, count: Tensor) -> Tensor:
        # -inf before the row maximum, so that an excluded logit can neither overflow nor shift the others.
        admitted = torch.where(weight, logits, float("-inf"))
        # A row that admits nobody has no maximum: any finite number does, as its count is 0.
        lse = admitted.logsumexp(dim=1)
        lse.masked_fill_(lse.isneginf(), 0)
        ctx.save_for_backward(admitted, lse, positive, count)
        # `where` before the sum: multiplying by c would be 0 * inf where an excluded logit is infinite.
        return count * lse - torch.where(positive, logits, 0).sum(dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        admitted, lse, positive, count = ctx.saved_tensors
        gradient = (admitted - lse[:, None]).exp_().mul_((count * grad)[:, None])
        return gradient.sub_(positive.to(grad.dtype).mul_(grad[:, None])), None, None, None
