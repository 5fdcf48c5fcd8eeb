"""The matrix that Sinkhorn–Knopp scales, in float32 without under- or overflow.

What is held is ``softmax(λ scores + absorbed)``, rows summing to 1, for potentials ``absorbed`` of some iterations ago;
later ones are multiplied on as ``exp(v - absorbed)`` while that is harmless, and absorbed when it is not (Schmitzer,
https://arxiv.org/abs/1610.06519).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from avssl_core.collectives import Collectives

CPU_CHUNK = 2**18  # elements: 1 MiB of float32, half the second-level cache of a common server core
DEVICE_CHUNK = 2**26  # elsewhere a launch costs more than the memory of a large temporary
ABSORB_AT = 20.0  # largest spread of potentials multiplied on, in nats
FLUSH = 1e-25  # entries below about this are 0: e^20 of it is 5e-17 of the row; denormal products take tenfold time
UNDERFLOW = 1e-12  # a smaller column sum may have lost something to that: sum it in log space


class ScaledMatrix:
    """The rows of this process, and sums over those of all.

    Args:
        scores: finite, ``(N, K)``.
        weights: ``c``, float64 ``(N,)``, summing to 1 over all processes.
        sharpness: λ; may be changed before the next :meth:`absorb`.
        precision: of the matrix.
        collectives: how to reach other processes.
    """

    def __init__(
        self, scores: Tensor, weights: Tensor, sharpness: float, precision: torch.dtype, collectives: Collectives
    ) -> None:
        self.scores, self.weights, self.sharpness = scores, weights, sharpness
        self._collectives = collectives
        self._values = torch.empty(scores.shape, dtype=precision, device=scores.device)
        self._absorbed = torch.zeros(scores.shape[1], dtype=torch.float64, device=scores.device)
        budget = CPU_CHUNK if scores.device.type == "cpu" else DEVICE_CHUNK
        self._step = max(1, budget // scores.shape[1])
        # Relative to equal weights, so that float32 products stay near 1 however many rows there are.
        self._mean = 1 / float(collectives.sum(weights.new_tensor(float(len(scores)))))
        self._relative = (weights / self._mean).to(precision)

    def absorb(self, potentials: Tensor) -> None:
        """Rebuild the matrix with these potentials multiplied in."""
        self._absorbed = potentials
        for rows in self._chunks():
            # A softmax, four times as fast as torch's: exponentials that underflow are slow, so there are none.
            block = self._logits(rows, potentials, self._values.dtype)
            block -= block.amax(dim=1, keepdim=True)
            block.clamp_(min=math.log(FLUSH)).exp_()
            F.threshold(block, 2 * FLUSH, 0.0, inplace=True)
            torch.div(block, block.sum(dim=1, keepdim=True), out=self._values[rows])

    def needs_absorbing(self, potentials: Tensor) -> bool:
        """Whether the change of potentials since the last rebuild is too large to be multiplied on."""
        change = potentials - self._absorbed
        return float(change.max() - change.min()) > ABSORB_AT

    def log_column_sums(self, potentials: Tensor) -> Tensor:
        """Logarithms of the column sums of the plan with exact rows, over all processes, float64 ``(K,)``."""
        change = potentials - self._absorbed
        factors = (change - (change.max() + change.min()) / 2).exp().to(self._values.dtype)
        total = torch.zeros_like(potentials)
        with torch.autocast(total.device.type, enabled=False):  # bfloat16 would round the sums to two digits
            for rows in self._chunks():
                block = self._values[rows]  # (n, K)
                total += (self._relative[rows] / (block @ factors)) @ block
        total = self._collectives.sum(total) * self._mean * factors
        if float(total.min()) > UNDERFLOW:
            return total.log()
        return self._log_column_sums_in_log_space(potentials)

    def _log_column_sums_in_log_space(self, potentials: Tensor) -> Tensor:
        total = torch.full_like(potentials, -math.inf)
        for rows in self._chunks():
            plan = self._logits(rows, potentials, torch.float64).log_softmax(dim=1) + self.weights[rows, None].log()
            total = torch.logaddexp(total, plan.logsumexp(dim=0))
        return self._collectives.gather(total[None]).logsumexp(dim=0)  # (W, K) -> (K,)

    def labels(self, potentials: Tensor) -> tuple[Tensor, Tensor, float]:
        """Row maxima of the plan ``(N,)``, their counts ``(K,)`` and mean cost over all processes."""
        labels = torch.empty(len(self.scores), dtype=torch.int64, device=self.scores.device)
        cost = potentials.new_zeros(())
        for rows in self._chunks():
            labels[rows] = self._logits(rows, potentials, self._values.dtype).argmax(dim=1)
            cost -= self.scores[rows].gather(1, labels[rows, None]).double().sum()
        counts = self._collectives.sum(torch.bincount(labels, minlength=len(potentials)))
        return labels, counts, float(self._collectives.sum(cost) / counts.sum())

    def score_range(self) -> float:
        """Largest difference between two scores of a row, over all processes."""
        widest = torch.zeros(1, dtype=torch.float64, device=self.scores.device)
        for rows in self._chunks():
            low, high = self.scores[rows].double().aminmax(dim=1)
            widest = torch.maximum(widest, (high - low).max())
        return float(self._collectives.gather(widest).max())

    def _logits(self, rows: slice, potentials: Tensor, dtype: torch.dtype) -> Tensor:
        """``λ scores + v`` up to a constant a row, with the rounding of numbers near 0 where it matters."""
        block = self.scores[rows].to(dtype)
        return (block - block.amax(dim=1, keepdim=True)) * self.sharpness + potentials.to(dtype)

    def _chunks(self) -> Iterator[slice]:
        for first in range(0, len(self.scores), self._step):
            yield slice(first, first + self._step)
