"""Attention at a cost linear in the number of tokens: Orthoformer, Nystromformer, Performer.

Orthoformer (Patrick et al., NeurIPS 2021, eq. 10, algorithm 1) goes through ``R`` prototypes: what every token takes
from them, times what they take from every token. It is no better at ``R = n`` than its bias allows; Nystromformer
(algorithm 2; Xiong et al. 2021) puts an inverse in between, which makes it exact there and fragile elsewhere; Performer
(Choromanski et al. 2021) draws random features of the softmax kernel.

With ``num_frames``, as trajectory attention needs it, keys are normalised within each frame and each frame is pooled
apart: the result has an axis for it. (The release's own Nystrom and Performer branches cannot run: they expect tensors
of another rank.) Every scale ``1 / sqrt(d)`` is applied once.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl_core.encoders.orthogonal_subset import without_autocast

InverseInit = Literal["exact", "global", "general"]

STABILISER = 1e-6  # of the random features, as in the Performer's code: no weight becomes exactly 0


def orthoformer_attention(
    q: Tensor, k: Tensor, v: Tensor, prototypes: Tensor, *, num_frames: int | None = None
) -> Tensor:
    """Attention through prototypes: ``softmax(q p^T) (softmax(p k^T) v)``, evaluated from the right.

    Args:
        q: queries, ``(B, n, d)``.
        k: keys, ``(B, m, d)``.
        v: values, ``(B, m, e)``.
        prototypes: ``(B, R, d)``; pass them detached, as the paper's release does.
        num_frames: ``T`` if the keys are ``T`` frames to be pooled apart.

    Returns:
        ``(B, n, e)``, or ``(B, n, T, e)`` with ``num_frames``. The weights behind it are positive and sum to 1 (in
        every frame).
    """
    return read_prototypes(q, prototypes, pool_by_prototypes(prototypes, k, v, num_frames), num_frames)


def pool_by_prototypes(prototypes: Tensor, k: Tensor, v: Tensor, num_frames: int | None = None) -> Tensor:
    """What prototypes ``(B, R, d)`` take from the tokens: ``(B, R, e)``, or frame by frame ``(B, R, T * e)``."""
    if num_frames is None:
        return F.scaled_dot_product_attention(prototypes, k, v)
    frames_k, frames_v = (torch.unflatten(x, 1, (num_frames, -1)).transpose(0, 1) for x in (k, v))  # (T, B, S, d)
    pooled = F.scaled_dot_product_attention(prototypes.expand(num_frames, -1, -1, -1), frames_k, frames_v)
    return pooled.permute(1, 2, 0, 3).flatten(2)


def read_prototypes(q: Tensor, prototypes: Tensor, pooled: Tensor, num_frames: int | None = None) -> Tensor:
    """What queries ``(B, n, d)`` take from the prototypes' ``pooled`` values; keeps ``n * R`` weights."""
    out = softmax_rows(q, prototypes) @ pooled
    return out if num_frames is None else torch.unflatten(out, 2, (num_frames, -1))


def nystrom_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_landmarks: Tensor,
    k_landmarks: Tensor,
    *,
    num_frames: int | None = None,
    iterations: int = 6,
    init: InverseInit = "exact",
) -> Tensor:
    """Nystrom's approximation: ``softmax(q k_L^T) softmax(q_L k_L^T)^+ softmax(q_L k^T) v``.

    Rows need not be positive and sum to 1 only as far as the iterative inverse has converged.

    Args:
        q: queries, ``(B, n, d)``.
        k: keys, ``(B, m, d)``.
        v: values, ``(B, m, e)``.
        q_landmarks: ``(B, R, d)``, e.g. :func:`~avssl_core.encoders.segment_means` of ``q``.
        k_landmarks: the same of ``k``.
        num_frames: as :func:`orthoformer_attention`; the last factor is normalised frame by frame.
        iterations: steps of :func:`iterative_pinv`.
        init: see :func:`iterative_pinv`.

    Returns:
        ``(B, n, e)``, or ``(B, n, T, e)`` with ``num_frames``.
    """
    pooled = pool_by_landmarks(q_landmarks, k_landmarks, k, v, num_frames, iterations=iterations, init=init)
    return read_prototypes(q, k_landmarks, pooled, num_frames)


def pool_by_landmarks(
    q_landmarks: Tensor,
    k_landmarks: Tensor,
    k: Tensor,
    v: Tensor,
    num_frames: int | None = None,
    *,
    iterations: int = 6,
    init: InverseInit = "exact",
) -> Tensor:
    """The last two factors of :func:`nystrom_attention` times the values; shapes as :func:`pool_by_prototypes`."""
    pooled = pool_by_prototypes(q_landmarks, k, v, num_frames)
    with without_autocast(k):  # the iteration amplifies rounding
        core = softmax_rows(_full(q_landmarks), _full(k_landmarks))
        return (iterative_pinv(core, iterations, init=init) @ _full(pooled)).to(pooled.dtype)


def iterative_pinv(a: Tensor, iterations: int = 6, *, init: InverseInit = "exact") -> Tensor:
    """Pseudo-inverse by Razavi's cubic iteration: ``Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4``.

    Args:
        a: matrices, ``(..., n, n)`` float32 or float64.
        iterations: steps; 6 in Nystromformer, more for ill-conditioned matrices.
        init: the start, a multiple of ``A^T``: divided by each matrix's largest column sum (``"exact"``), by the
            largest of the whole batch (``"global"``), both for rows that are positive and sum to 1; or by the product
            of the largest absolute column and row sums (``"general"``), for any matrix.

    Returns:
        ``(..., n, n)``.

    Raises:
        ValueError: for an unknown ``init``, or half precision, in which the iteration does not converge.
    """
    if a.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"expected matrices of float32 or float64, got {a.dtype}; convert them with .float()")
    columns = a.abs().sum(dim=-2).amax(dim=-1)[..., None, None]
    if init == "exact":
        scale = columns
    elif init == "global":
        scale = columns.amax()
    elif init == "general":
        scale = columns * a.abs().sum(dim=-1).amax(dim=-1)[..., None, None]
    else:
        raise ValueError(f"unknown start {init!r}: use 'exact', 'global' or 'general'")
    z = a.transpose(-2, -1) / scale
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    for _ in range(iterations):
        az = a @ z
        z = z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4
    return z


def performer_attention(
    q: Tensor, k: Tensor, v: Tensor, projection: Tensor, *, num_frames: int | None = None
) -> Tensor:
    """Attention by positive random features of the softmax kernel (FAVOR+): ``phi(q) (phi(k)^T v)``, normalised.

    Args:
        q: queries, ``(..., n, d)``.
        k: keys, ``(..., m, d)``.
        v: values, ``(..., m, e)``.
        projection: ``(f, d)``, see :func:`orthogonal_projection`. The error falls like ``f ** -0.5``.
        num_frames: as :func:`orthoformer_attention`.

    Returns:
        ``(..., n, e)``, or ``(..., n, T, e)`` with ``num_frames``.
    """
    return read_features(q, projection, *pool_by_features(projection, k, v, num_frames))


def pool_by_features(projection: Tensor, k: Tensor, v: Tensor, num_frames: int | None = None) -> tuple[Tensor, Tensor]:
    """Sums over tokens of ``phi(k) v^T``, ``(..., T, f, e)``, and of ``phi(k)``, ``(..., T, f)``, in float32.

    Without ``num_frames`` there is no axis ``T``.
    """
    with without_autocast(k):  # exponentials, and sums of many small weights
        phi, values = performer_features(_full(k), projection, keys=True), _full(v)
        if num_frames is not None:
            phi, values = (torch.unflatten(x, -2, (num_frames, -1)) for x in (phi, values))  # (..., T, S, f)
        return phi.transpose(-2, -1) @ values, phi.sum(dim=-2)


def read_features(q: Tensor, projection: Tensor, sums: Tensor, normaliser: Tensor) -> Tensor:
    """What queries ``(..., n, d)`` take from what :func:`pool_by_features` returns: ``(..., n, e)`` or with ``T``."""
    with without_autocast(q):
        phi = performer_features(_full(q), projection, keys=False)  # (..., n, f)
        if normaliser.ndim < phi.ndim:
            return (phi @ sums / (phi @ normaliser.unsqueeze(-1))).to(q.dtype)
        weighted = torch.einsum("...nf,...tfe->...nte", phi, sums)
        return (weighted / (phi @ normaliser.transpose(-2, -1)).unsqueeze(-1)).to(q.dtype)


def performer_features(x: Tensor, projection: Tensor, *, keys: bool) -> Tensor:
    """``phi(x) = (exp(W x' - |x'|^2 / 2 - c) + 1e-6) / sqrt(f)`` with ``x' = x / d^(1/4)``, shape ``(..., n, f)``.

    ``c`` keeps the exponential in range and cancels in the normalised result: the largest ``W x'`` of the token for a
    query, of all tokens for keys.

    Args:
        x: ``(..., n, d)``.
        projection: ``W``, ``(f, d)``.
        keys: whether ``x`` are keys.
    """
    scaled = x * x.shape[-1] ** -0.25
    projected = scaled @ projection.to(x).T
    largest = projected.detach().amax(dim=(-2, -1) if keys else -1, keepdim=True)
    exponent = projected - scaled.square().sum(dim=-1, keepdim=True) / 2 - largest
    return (exponent.exp() + STABILISER) / projection.shape[0] ** 0.5


def orthogonal_projection(num_features: int, dim: int, *, generator: torch.Generator) -> Tensor:
    """Random directions ``(f, d)``, orthogonal in blocks of ``d``, with the lengths of Gaussian vectors.

    Each row alone is a Gaussian vector, so that the kernel estimate is unbiased; orthogonal ones have less variance.
    """
    blocks = -(-num_features // dim)
    q, r = torch.linalg.qr(torch.randn(blocks, dim, dim, generator=generator))
    q = q * torch.diagonal(r, dim1=1, dim2=2).sign().unsqueeze(1)  # without the signs, not evenly distributed
    lengths = torch.randn(num_features, dim, generator=generator).norm(dim=1, keepdim=True)
    return q.transpose(1, 2).flatten(0, 1)[:num_features] * lengths


def softmax_rows(q: Tensor, k: Tensor) -> Tensor:
    """Attention weights ``(..., n, m)`` of queries ``(..., n, d)`` over keys, normalised in float32."""
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return torch.softmax(_full(logits), dim=-1).to(q.dtype)


def _full(x: Tensor) -> Tensor:
    """Half precision to float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
