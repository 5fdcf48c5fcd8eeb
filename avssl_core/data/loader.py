"""Batches: a torch ``DataLoader`` around a data set and an order, resumable at any step, that counts the clips which
failed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, cast

import torch
from torch.utils.data import DataLoader, Dataset

from avssl_core.data.dataset import Item, collate
from avssl_core.data.errors import TooManyBadClipsError
from avssl_core.data.order import InOrder, Order

Batch = dict[str, Any]


class Clips(Protocol):
    """A data set whose items are clips: any of this package's, or one of your own with items of the same form."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Item: ...


class BadClips:
    """The clips of a data set that failed to decode, each counted once, whichever worker or epoch met it.

    Attributes:
        reasons: row of the corpus → ``(uri, reason)``.
    """

    def __init__(self, total: int, max_share: float) -> None:
        self.total, self.max_share = total, max_share
        self.reasons: dict[int, tuple[str, str]] = {}

    def add(self, bad: list[tuple[int, str, str]]) -> None:
        """Record ``(row, uri, reason)`` entries of a batch.

        Raises:
            TooManyBadClipsError: if more than the allowed share of the clips has failed by now; it lists reasons.
        """
        for row, uri, reason in bad:
            self.reasons.setdefault(row, (uri, reason))
        if len(self.reasons) > self.max_share * self.total:
            raise TooManyBadClipsError.counted(list(self.reasons.values()), self.total, self.max_share)


class _From:
    """A batch sampler that starts at a step which can be set between two iterations of the same ``DataLoader``."""

    def __init__(self, order: Order | InOrder) -> None:
        self.order = order

    def __iter__(self) -> Iterator[Any]:
        return iter(self.order)


class Loader:
    """Collated batches of a data set in an order; see :func:`make_loader`.

    One iteration at a time: workers are kept between iterations and serve the newest one.

    Attributes:
        bad: the clips that failed so far.
    """

    def __init__(self, dataset: Clips, order: Order | InOrder, *, workers: int = 0, pin: bool | None = None) -> None:
        if workers < 0:
            raise ValueError(f"workers must be zero or more, got {workers}")
        self.dataset, self.order = dataset, order
        self.bad = BadClips(len(dataset), getattr(dataset, "max_bad_share", 0.0))
        self._sampler = _From(order)
        self._loader: DataLoader[Item] = DataLoader(
            cast(Dataset[Item], dataset),
            batch_sampler=self._sampler,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available() if pin is None else pin,
            persistent_workers=workers > 0,
            generator=torch.Generator().manual_seed(0),  # else every iteration would draw from the global generator
        )

    def __iter__(self) -> Iterator[Batch]:
        self._sampler.order = self.order
        return self._counted()

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """The batches from a step on: equal to those that an uninterrupted run sees from there.

        Raises:
            TypeError: if the order is one for evaluation, which has no steps.
        """
        if isinstance(self.order, InOrder):
            raise TypeError("an order for evaluation has no steps to resume at; iterate over the loader")
        self._sampler.order = self.order.starting_at(start_step)
        return self._counted()

    def __len__(self) -> int:
        if not isinstance(self.order, InOrder):
            raise TypeError("training batches are endless; the length of an epoch is order.steps_per_epoch")
        return len(self.order)

    def _counted(self) -> Iterator[Batch]:
        for batch in self._loader:
            self.bad.add(batch["bad"])
            yield batch


def make_loader(dataset: Clips, order: Order | InOrder | int, *, workers: int = 0, pin: bool | None = None) -> Loader:
    """Batches of ``dataset`` in the order of ``order``.

    Args:
        dataset: a clip data set of this package.
        order: a ``SeededOrder`` or ``GroupedBatchSampler`` for training; for evaluation the batch size, or an
            ``InOrder``.
        workers: worker processes, kept alive between iterations; 0 reads in this process.
        pin: page-locked batches for quick transfers to a GPU; by default where there is one.

    Returns:
        An iterable of batches ``{"frames": (B, K, T, 3, H, W), "waveform": (B, K, L), "start_s": (B, K), "row": (B,),
        "group": (B,), "bad": [(row, uri, reason), …]}`` with ``batches(start_step)`` for resuming. Iterating raises
        ``TooManyBadClipsError`` when more clips fail than the data set allows.
    """
    if isinstance(order, int):
        order = InOrder(len(dataset), order)
    return Loader(dataset, order, workers=workers, pin=pin)
