"""What a curation can be told, and what it reports."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from avssl_core.curation.pairings import SCHEMES
from data_prep.curate.candidates import Refusal
from data_prep.curate.clips import Cutting
from data_prep.curate.duplicates import RULES, Rule
from data_prep.curate.networks import Choice
from data_prep.curate.select import Selecting
from data_prep.curate.stages import CurateError, unknown


@dataclass(frozen=True)
class Settings:
    """How a folder is curated.

    Attributes:
        keep: share of the usable clips, in (0, 1].
        video: network for pictures.
        audio: network for sound.
        min_s: shortest film in seconds (the paper: 30).
        max_s: longest film in seconds (the paper: 600).
        cutting: how films become clips.
        duplicates: what counts as the same clip.
        windows: of a clip, whose features are averaged.
        clusters: of a layer; by the number of kept clips if None: :func:`~data_prep.curate.select.default_clusters`.
        selecting: how clips are chosen.
        seed: of clusters.
        shard: films or clips of a shard: what a killed run may lose, for each process.
        shown: best and worst clips on the page, of each.

    Raises:
        CurateError: something is out of range.
    """

    keep: float
    video: Choice = field(default_factory=lambda: Choice("video"))
    audio: Choice = field(default_factory=lambda: Choice("audio"))
    min_s: float = 1.0
    max_s: float = math.inf
    cutting: Cutting = field(default_factory=Cutting)
    duplicates: Rule = "near"
    windows: int = 3
    clusters: int | None = None
    selecting: Selecting = field(default_factory=Selecting)
    seed: int = 0
    shard: int = 16
    shown: int = 12

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise CurateError(
                f"--keep is the share of clips to keep, above 0 and at most 1, e.g. 0.25; got {self.keep}"
            )
        if not 0 < self.min_s <= self.max_s:
            raise CurateError(
                f"films must last between {self.min_s} and {self.max_s} s: give 0 < --min-seconds <= --max-seconds"
            )
        if self.cutting.length_s <= 0 or self.cutting.most < 1 or not 0 < self.cutting.threshold < 1:
            raise CurateError(
                f"clips need a positive length, one a film or more, a threshold in (0, 1); got {self.cutting}"
            )
        if self.clusters is not None and self.clusters < 2:
            raise CurateError(f"--clusters must be at least 2, got {self.clusters}; one cluster knows nothing")
        if min(self.windows, self.shard, self.selecting.batch, self.selecting.picks, self.selecting.chunk) < 1:
            raise CurateError(f"windows, shard, batch, picks and chunk must be positive, got {self}")
        for kind, given, valid in (
            ("--duplicates", self.duplicates, RULES),
            ("--pairs", self.selecting.pairs, SCHEMES),
        ):
            if given not in valid:
                raise unknown(kind, given, valid)


@dataclass(frozen=True)
class Report:
    """What came of a folder.

    Attributes:
        out: where everything is.
        films: candidates of a fitting length, with sound.
        usable: clips that were described.
        kept: clips that were chosen.
        clusters: of a layer.
        information: of the kept clips, mean over pairs of layers, in nats.
        refused: ``(id, uri, stage, reason)``.
        untrained: the features are those of random weights.
        ran: stages that were done by this run.
        skipped: stages that an earlier run had done.
    """

    out: Path
    films: int
    usable: int
    kept: int
    clusters: int
    information: float
    refused: tuple[Refusal, ...]
    untrained: bool
    ran: tuple[str, ...]
    skipped: tuple[str, ...]
