"""Features of a frozen encoder: evaluation mode, no gradient, batch by batch, left as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from avssl_core.encoders import Encoder
from avssl_core.training.steps import to_device

Pool = Literal["mean", "max"]


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout, running statistics) inside the block; afterwards every submodule is as before.

    A partly frozen network, whose batch norms were put into evaluation mode one by one, comes back partly frozen.
    """
    modes = [(module, module.training) for root in modules for module in root.modules()]
    for root in modules:
        root.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def extract_features(
    encoder: nn.Module,
    batches: Tensor | Iterable[Any],
    *,
    device: str | torch.device | None = None,
    batch_size: int = 64,
    pool: Pool = "mean",
    prepare: Callable[[Any], Tensor] | None = None,
) -> Tensor:
    """Pooled features of every item.

    Args:
        encoder: any encoder of :mod:`avssl_core.encoders`, or with ``pool="mean"`` any module that maps a batch to
            ``(B, D)``.
        batches: one tensor of inputs ``(N, ...)``, cut into batches here, or an iterable of batches (a loader).
        device: where to compute; default: where the encoder's parameters are. The encoder is not moved.
        batch_size: for a tensor; the result does not depend on it.
        pool: ``"mean"`` takes the encoder's own feature; ``"max"`` the maximum of ``feature_map`` over its grid, as
            GDT's retrieval protocol does.
        prepare: makes the encoder's input from a batch on the device (crop, normalise, spectrogram). Default: the batch
            is the input.

    Returns:
        Features ``(N, D)``, float32, on the CPU, in the order of the input.

    Raises:
        ValueError: if there is no batch, a batch is not a tensor after ``prepare``, or ``pool`` is unknown.
    """
    if pool not in ("mean", "max"):
        raise ValueError(f"pool must be 'mean' or 'max', got {pool!r}")
    device = torch.device(device) if device is not None else _device_of(encoder)
    chunks: Iterable[Any] = torch.split(batches, batch_size) if isinstance(batches, Tensor) else batches
    features = []
    with evaluating(encoder):
        for batch in chunks:
            x = to_device(batch, device)
            x = prepare(x) if prepare is not None else x
            if not isinstance(x, Tensor):
                raise ValueError(f"a batch is a {type(x).__name__}, not a tensor: pass prepare= to pick the input")
            y = encoder(x) if pool == "mean" else cast(Encoder, encoder).feature_map(x).flatten(2).amax(dim=2)
            features.append(y.float().cpu())
    if not features:
        raise ValueError("there are no batches to extract features from")
    return torch.cat(features)


def _device_of(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))
