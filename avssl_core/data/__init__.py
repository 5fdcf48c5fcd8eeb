"""Corpora on disk, windows of their clips, and the order they come in: everything a pure function of (seed, epoch,
index)."""

from __future__ import annotations

from avssl_core.data.cache import DecodedCache
from avssl_core.data.corpus import Corpus
from avssl_core.data.coviar_segments import GopPlace, gop_place, segment_centre, segment_range
from avssl_core.data.dataset import Item, TimedDataset, UniformDataset, WindowDataset, collate
from avssl_core.data.errors import ClipError, CorpusError, NoUsableClipsError, TooManyBadClipsError
from avssl_core.data.gop_dataset import ClipMemory, GopDataset, PlacedGopDataset, find_structures
from avssl_core.data.indexing import index_folder, open_corpus, refusal_report
from avssl_core.data.loader import BadClips, Loader, make_loader
from avssl_core.data.locations import cache_home
from avssl_core.data.order import GroupedBatchSampler, InOrder, Order, SeededOrder
from avssl_core.data.windows import WindowSpec, draw_starts, uniform_starts

__all__ = [
    "BadClips",
    "ClipError",
    "ClipMemory",
    "Corpus",
    "CorpusError",
    "DecodedCache",
    "GopDataset",
    "GopPlace",
    "GroupedBatchSampler",
    "InOrder",
    "Item",
    "Loader",
    "NoUsableClipsError",
    "Order",
    "PlacedGopDataset",
    "SeededOrder",
    "TimedDataset",
    "TooManyBadClipsError",
    "UniformDataset",
    "WindowDataset",
    "WindowSpec",
    "cache_home",
    "collate",
    "draw_starts",
    "find_structures",
    "gop_place",
    "index_folder",
    "make_loader",
    "open_corpus",
    "refusal_report",
    "segment_centre",
    "segment_range",
    "uniform_starts",
]
