"""The noise-contrastive family that the chapters share: one positive, both directions, a joint softmax, several
positives.

Every function takes embeddings (or logits), works in float32 islands under autocast and in log space, and meets other
processes only through the collectives it is handed. The papers' releases carry one copy of these formulas per script,
some with ``log(softmax)``, some on one process only; here each formula stands once:

* :func:`info_nce`: cross-entropy of a row against its own key (GDT, STiCA; with a queue or bank: CoCLR, AVID).
* :func:`symmetric_info_nce`: the mean of both directions (CLIP, GDT's code, support sets).
* :func:`joint_nce`: both directions in *one* softmax of ``2B - 1`` terms (movie negatives, multilingual pre-training).
* :func:`multi_positive_nce`: several positives, their probabilities summed inside the log or their logs averaged
(CoCLR).

**Many processes.** Each process computes the rows of its own anchors against everybody's keys. All reductions obey one
rule: *the mean over processes of what they return is the loss of the joint batch*, which is what averaging parameter
gradients (``DistributedDataParallel``) expects. Every process must hold the same number of rows.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from avssl_core.collectives import LOCAL, Collectives

Reduction = Literal["mean", "sum", "none"]
REDUCTIONS = ("mean", "sum", "none")


def similarity(a: Tensor, b: Tensor, *, temperature: float) -> Tensor:
    """Inner products of all rows, divided by the temperature, in float32 whatever autocast says.

    With a temperature of 0.07 the logits span about 30; the 8 bits of a bfloat16 mantissa would leave steps of 0.1.

    Args:
        a: rows, shape ``(B, d)``.
        b: rows, shape ``(N, d)``.
        temperature: positive.

    Returns:
        Logits of shape ``(B, N)``, float32 (float64 if either input is).

    Raises:
        ValueError: for a temperature that is not positive, or rows that do not fit.
    """
    check_temperature(temperature)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"expected embeddings (B, d) and (N, d) with the same d, got {tuple(a.shape)} and {tuple(b.shape)}; "
            "flatten clips and variants into rows first"
        )
    with torch.autocast(a.device.type, enabled=False):
        # Scaling the (B, d) operand saves a pass over the (B, N) product.
        return (upcast(a) / temperature) @ upcast(b).T


def info_nce(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float,
    extra_keys: Tensor | None = None,
    batch_negatives: bool = True,
    detach_keys: bool = False,
    reduction: Reduction = "mean",
    collectives: Collectives = LOCAL,
) -> Tensor:
    """Cross-entropy of each query against its own key, among the keys of the whole batch and any extra ones.

    CPC (https://arxiv.org/abs/1807.03748, eq. 4). One direction; see :func:`symmetric_info_nce` for both.

    Args:
        query: anchors, shape ``(B, d)``.
        key: row ``i`` is the positive of query ``i``, shape ``(B, d)``.
        temperature: divides the inner products; positive. Embeddings are used as they are: normalise them first.
        extra_keys: further negatives, ``(M, d)`` shared by all queries (a queue) or ``(B, M, d)``, one set a query
            (drawn from a memory bank). They stay on their process and are not gathered.
        batch_negatives: whether keys of other rows (of all processes) are negatives. ``False`` needs ``extra_keys``.
        detach_keys: stop the gradient into all keys, as STiCA's and GDT's code do.
        reduction: ``"mean"`` or ``"sum"`` over the anchors of all processes, or ``"none"``: the local ``(B,)`` losses.
        collectives: how to reach other processes.

    Returns:
        A scalar, or ``(B,)`` for ``"none"``. ``log(number of keys)`` for a constant embedding.

    Raises:
        ValueError: for shapes that do not fit, or when there is no negative at all.
    """
    _check_pair(query, key)
    if detach_keys:
        key = key.detach()
        extra_keys = None if extra_keys is None else extra_keys.detach()
    if not batch_negatives:
        if extra_keys is None:
            raise ValueError("batch_negatives=False leaves no negatives: pass extra_keys (a queue or bank)")
        positive = _row_products(query, key, temperature=temperature)
        logits = torch.cat([positive[:, None], _extra_logits(query, extra_keys, temperature)], dim=1)  # (B, 1 + M)
    else:
        if extra_keys is None:
            _check_has_negatives(query, collectives)
        # Gathered in float32: the backward pass sums one gradient a process, which bfloat16 would round away.
        logits = similarity(query, collectives.gather(upcast(key)), temperature=temperature)  # (B, W * B)
        positive = logits.diagonal(collectives.rank * len(query))
        if extra_keys is not None:
            logits = torch.cat([logits, _extra_logits(query, extra_keys, temperature)], dim=1)
    return reduce_anchors(row_logsumexp(logits) - positive, reduction, collectives)


def symmetric_info_nce(
    a: Tensor,
    b: Tensor,
    *,
    temperature: float,
    reduction: Reduction = "mean",
    collectives: Collectives = LOCAL,
) -> Tensor:
    """Mean of the two directions of :func:`info_nce`; equal to both at half the price.

    Args:
        a: one modality, shape ``(B, d)``.
        b: the other; row ``i`` belongs to row ``i`` of ``a``, shape ``(B, d)``.
        temperature: positive.
        reduction: over pairs, as in :func:`info_nce`.
        collectives: how to reach other processes.

    Returns:
        A scalar, or the ``(B,)`` losses of the local pairs. ``log B`` for a constant embedding, ``B`` counting all
        pairs.

    Raises:
        ValueError: for shapes that do not fit, or a joint batch of one pair.
    """
    _check_pair(a, b)
    _check_has_negatives(a, collectives)
    a_to_b, b_to_a = _both_directions(a, b, temperature, collectives)
    positive = a_to_b.diagonal(collectives.rank * len(a))
    losses = (row_logsumexp(a_to_b) + row_logsumexp(b_to_a)) / 2 - positive
    return reduce_anchors(losses, reduction, collectives)


def joint_nce(
    a: Tensor,
    b: Tensor,
    *,
    temperature: float = 1.0,
    positive_twice: bool = False,
    reduction: Reduction = "mean",
    collectives: Collectives = LOCAL,
) -> Tensor:
    """One softmax over both directions: pair ``i`` against all ``(i, j)`` and all ``(j, i)``.

    Term ``i`` is ``-S_ii + log(sum_j exp S_ij + sum_{j != i} exp S_ji)``: ``2B - 1`` logits. Movie negatives (eq. 1,
    raw products, temperature 1) and multilingual multimodal pre-training (eqs. 1-2, cosines, temperature 0.1).

    Args:
        a: one modality, shape ``(B, d)``.
        b: the other, shape ``(B, d)``.
        temperature: positive.
        positive_twice: count the positive in both halves (``2B`` terms), as the code of MIL-NCE does.
        reduction: over pairs, as in :func:`info_nce`.
        collectives: how to reach other processes.

    Returns:
        A scalar, or the ``(B,)`` losses of the local pairs. ``log(2B - 1)`` for a constant embedding.

    Raises:
        ValueError: for shapes that do not fit, or a joint batch of one pair.
    """
    _check_pair(a, b)
    _check_has_negatives(a, collectives)
    a_to_b, b_to_a = _both_directions(a, b, temperature, collectives)
    own = collectives.rank * len(a)
    positive = a_to_b.diagonal(own)
    if not positive_twice:
        b_to_a = b_to_a.clone()
        b_to_a.diagonal(own).fill_(float("-inf"))
    joint = torch.logaddexp(row_logsumexp(a_to_b), row_logsumexp(b_to_a))
    return reduce_anchors(joint - positive, reduction, collectives)


def multi_positive_nce(
    logits: Tensor,
    mask: Tensor,
    *,
    variant: Literal["sum_in_log", "mean_of_logs"] = "sum_in_log",
    reduction: Reduction = "mean",
    collectives: Collectives = LOCAL,
) -> Tensor:
    """Cross-entropy with several positives a row.

    ``sum_in_log``: minus the log of the positives' summed probability (MIL-NCE, CoCLR); can reach 0.
    ``mean_of_logs``: minus the mean of the positives' log-probabilities (supervised contrastive, GDT eq. 1); cannot go
    below ``log P`` with ``P`` positives, and is never smaller than the other.

    Args:
        logits: scaled similarities, shape ``(B, N)``. Columns that shall not take part hold ``-inf``.
        mask: which columns are positives, bool, shape ``(B, N)``.
        variant: where the sum over positives stands.
        reduction: ``"mean"`` is over the rows that have a positive; rows without one contribute 0.
        collectives: how to reach other processes (only their row counts are needed here).

    Returns:
        A scalar, or ``(B,)`` for ``"none"``.

    Raises:
        ValueError: for shapes that differ, a mask that is not bool, or an unknown variant.
    """
    if logits.ndim != 2 or logits.shape != mask.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"expected logits (B, N) and a bool mask (B, N), got {tuple(logits.shape)} and {tuple(mask.shape)} "
            f"{mask.dtype}"
        )
    logits = upcast(logits)
    count = mask.sum(dim=1)
    has_positive = count > 0
    everything = row_logsumexp(logits)
    if variant == "sum_in_log":
        # A row without positives would be -inf, with NaN gradients: give it all columns, so that its loss is 0.
        positives = masked_logsumexp(logits, mask | ~has_positive[:, None])
    elif variant == "mean_of_logs":
        positives = torch.where(mask, logits, 0).sum(dim=1) / count.clamp(min=1)
    else:
        raise ValueError(f"unknown variant {variant!r}; use 'sum_in_log' or 'mean_of_logs'")
    losses = torch.where(has_positive, everything - positives, 0)
    return reduce_weighted(losses, has_positive.sum(), reduction, collectives)


def row_logsumexp(logits: Tensor) -> Tensor:
    """Log-sum-exp over columns, ``(B, N) -> (B,)``, with a backward pass of one ``(B, N)`` temporary instead of three.

    A row of ``-inf`` gives ``-inf``, and a gradient of 0 instead of NaN.
    """
    result: Tensor = _RowLogSumExp.apply(logits)
    return result


def masked_logsumexp(logits: Tensor, mask: Tensor) -> Tensor:
    """Log-sum-exp over the columns that ``mask`` admits, ``(B, N) -> (B,)``; a row that admits none gives ``-inf``."""
    return row_logsumexp(torch.where(mask, logits, float("-inf")))  # filled before the row maximum is taken


def reduce_anchors(losses: Tensor, reduction: Reduction, collectives: Collectives = LOCAL) -> Tensor:
    """Reduce ``(B,)`` losses of the local anchors so that the mean over processes is the reduction of the joint batch.

    Raises:
        ValueError: for an unknown reduction.
    """
    if reduction == "mean":
        return losses.mean()
    return reduce_weighted(losses, losses.new_tensor(len(losses)), reduction, collectives)


def reduce_weighted(losses: Tensor, count: Tensor, reduction: Reduction, collectives: Collectives = LOCAL) -> Tensor:
    """As :func:`reduce_anchors`, for a mean over ``count`` terms, a number that may differ between processes.

    Raises:
        ValueError: for an unknown reduction.
    """
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum() * collectives.world_size
    if reduction == "mean":
        return losses.sum() / collectives.mean(count.to(losses.dtype)).clamp(min=torch.finfo(losses.dtype).tiny)
    raise ValueError(f"unknown reduction {reduction!r}; use one of {REDUCTIONS}")


def upcast(x: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 stay as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def check_temperature(temperature: float) -> None:
    """Raise ``ValueError`` unless the temperature is positive (a printed "1/0.07" means a division by 0.07)."""
    if not temperature > 0:
        raise ValueError(
            f"temperature must be positive, got {temperature}; logits are divided by it, typically 0.07 to 1"
        )


class _RowLogSumExp(torch.autograd.Function):
    """See :func:`row_logsumexp`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        result = logits.logsumexp(dim=1)
        ctx.save_for_backward(logits, result)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        logits, result = ctx.saved_tensors
        # exp(-inf - -inf) would be NaN; exp(-inf - 0) is 0.
        return (logits - result.masked_fill(result.isneginf(), 0)[:, None]).exp_().mul_(grad[:, None])


def _both_directions(a: Tensor, b: Tensor, temperature: float, collectives: Collectives) -> tuple[Tensor, Tensor]:
    """Logits of local ``a`` against all ``b``, and of local ``b`` against all ``a``: ``(B, W * B)`` each."""
    if collectives.world_size == 1:
        logits = similarity(a, b, temperature=temperature)
        return logits, logits.T  # the same numbers as below, without a second product
    both = collectives.gather(torch.cat([upcast(a), upcast(b)], dim=1))  # (W * B, 2d): one message for both
    all_a, all_b = both.chunk(2, dim=1)
    return similarity(a, all_b, temperature=temperature), similarity(b, all_a, temperature=temperature)


def _row_products(a: Tensor, b: Tensor, *, temperature: float) -> Tensor:
    check_temperature(temperature)
    with torch.autocast(a.device.type, enabled=False):
        return (upcast(a) * upcast(b)).sum(dim=-1) / temperature


def _extra_logits(query: Tensor, extra_keys: Tensor, temperature: float) -> Tensor:
    """Logits of extra keys, ``(M, d)`` or ``(B, M, d)``, for queries ``(B, d)``: shape ``(B, M)``."""
    if extra_keys.ndim == 2:
        return similarity(query, extra_keys, temperature=temperature)
    if extra_keys.ndim != 3 or extra_keys.shape[0] != len(query) or extra_keys.shape[2] != query.shape[1]:
        raise ValueError(
            f"extra_keys must be (M, d) or (B, M, d) for queries {tuple(query.shape)}, got {tuple(extra_keys.shape)}"
        )
    return _row_products(query[:, None], extra_keys, temperature=temperature)


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"expected two matching batches (B, d), got {tuple(a.shape)} and {tuple(b.shape)}")


def _check_has_negatives(a: Tensor, collectives: Collectives) -> None:
    if len(a) * collectives.world_size < 2:
        raise ValueError(
            f"a joint batch of {len(a) * collectives.world_size} pair(s) has no negatives, so that any constant "
            "embedding is optimal; use a larger batch (and drop the last incomplete one) or pass extra_keys"
        )
