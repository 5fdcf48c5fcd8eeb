"""What a paper claims, written down before any cell is run: ``claims.yaml`` as frozen dataclasses.

A claim is an *ordering* of two arms by one metric: ``better`` should beat ``worse``. Its effect is the paired
difference over seeds, with its sign turned so that positive always supports the paper. A control is a second pair for
which the paper's explanation predicts an end of its own (no difference, the reverse): it makes the claim one that
could have failed.

The papers of this book report single runs; the minimum effect and the control are ours, and are committed with the
claim. Everything unknown in the file is an error that names the nearest valid key: a misspelt ``minimum_efect`` must
not quietly become the default.

The file::

    chapter: gdt
    seeds: 5                               # default of the claims; a number n means 0..n-1
    arms: {l: "time shift distinctive", h: "invariant to all", random: "untrained"}
    claims:
      - id: mix_beats_invariance
        statement: One distinctive factor is better than invariance to all.
        paper: {figure: "61.4 against 59.9", source: "Table 1, rows (l) and (h)"}
        metric: event_accuracy
        ordering: higher                   # or lower: the smaller metric is the better one
        better: l                          # an arm | a list of arms (their mean) | {arm:, metric:} | {value: 0.25}
        worse: h
        minimum_effect: 0.02               # in units of the metric
        corpus: playground                 # or grid, photographs
        arms: [random]                     # further arms to record beside the two
        control: {statement: "where events never change, shift cannot help", better: l_static, worse: h_static,
                  expectation: not_reproduced}   # or reproduced | reverses | undecided (no prediction)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from avssl_core.reporting.names import unknown_name

CORPORA = ("playground", "grid", "photographs")
ORDERINGS = ("higher", "lower")
EXPECTATIONS = ("reproduced", "not_reproduced", "reverses", "undecided")
_ARM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


class ClaimsError(ValueError):
    """``claims.yaml`` says something that cannot be meant; the message names file, claim, key and remedy."""


@dataclass(frozen=True)
class Side:
    """One side of an ordering: the mean over ``arms`` of ``metric``, or a fixed ``value`` (chance, a floor)."""

    arms: tuple[str, ...] = ()
    metric: str = ""
    value: float | None = None

    def label(self, metric: str = "") -> str:
        """How the side reads in a table: ``l``, ``mean(g, h)`` or ``0.25``; ``l: shape`` if not of ``metric``."""
        if self.value is not None:
            return f"{self.value:g}"
        arms = self.arms[0] if len(self.arms) == 1 else f"mean({', '.join(self.arms)})"
        return f"{arms}: {self.metric}" if metric not in ("", self.metric) else arms


@dataclass(frozen=True)
class PaperFigure:
    """What the paper reports for this claim (``figure``, as printed) and where (``source``: table, figure, section)."""

    figure: str
    source: str


@dataclass(frozen=True)
class Control:
    """A pair for which ``expectation`` is predicted if the paper's explanation is right.

    ``reproduced`` and ``not_reproduced`` are the verdicts of the same rule; ``reverses``: the difference is surely
    negative; ``undecided``: measured for the reader, nothing predicted.
    """

    statement: str
    expectation: str
    ordering: str
    better: Side
    worse: Side


@dataclass(frozen=True)
class Claim:
    """One pre-registered claim. ``minimum_effect``: the smallest difference that matters, in its units."""

    id: str
    statement: str
    paper: PaperFigure
    metric: str
    ordering: str
    better: Side
    worse: Side
    minimum_effect: float
    corpus: str
    seeds: tuple[int, ...]
    extended: bool = False
    extra_arms: tuple[str, ...] = ()
    control: Control | None = None

    @property
    def arms(self) -> tuple[str, ...]:
        """Every arm whose cells this claim needs, without repetition, the ordering's own first."""
        named = [*self.better.arms, *self.worse.arms]
        if self.control is not None:
            named += [*self.control.better.arms, *self.control.worse.arms]
        return tuple(dict.fromkeys([*named, *self.extra_arms]))


@dataclass(frozen=True)
class ClaimSheet:
    """A whole ``claims.yaml``: the chapter, what each arm is, the claims, and the SHA-256 of the file's bytes."""

    chapter: str
    arms: Mapping[str, str]
    claims: tuple[Claim, ...]
    sha256: str


_SHEET_KEYS = ("chapter", "seeds", "arms", "claims")
_CLAIM_KEYS = (
    "id",
    "statement",
    "paper",
    "metric",
    "ordering",
    "better",
    "worse",
    "minimum_effect",
    "corpus",
    "seeds",
    "extended",
    "arms",
    "control",
)
_CONTROL_KEYS = ("statement", "expectation", "metric", "ordering", "better", "worse")


def load_claims(path: str | Path) -> list[Claim]:
    """The claims of a chapter's ``claims.yaml``, checked strictly; see :func:`load_claim_sheet` for the whole file."""
    return list(load_claim_sheet(path).claims)


def load_claim_sheet(path: str | Path) -> ClaimSheet:
    """Read and check ``claims.yaml``.

    Raises:
        ClaimsError: unknown or missing keys, a wrong type, a repeated id, an arm that the file's ``arms`` does not
            describe, or an arm used by claims about two corpora (their verdicts must stay apart).
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    raw = path.read_bytes()
    try:
        data = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise ClaimsError(f"{path}: not valid YAML: {error}") from error
    where = str(path)
    table = _mapping(data, where, "the file")
    _check_keys(table, _SHEET_KEYS, ("claims",), where, "key of claims.yaml")
    arms = _arm_descriptions(table.get("arms", {}), where)
    entries = table["claims"]
    if not isinstance(entries, list) or not entries:
        raise ClaimsError(f"{where}: 'claims' must be a non-empty list, got {entries!r}")
    claims = tuple(_claim(entry, table.get("seeds", 5), f"{where}, claim {n + 1}") for n, entry in enumerate(entries))
    _check_together(claims, arms, where)
    chapter = str(table.get("chapter", path.parent.name.split("_", 1)[-1]))
    return ClaimSheet(chapter, arms, claims, hashlib.sha256(raw).hexdigest())


def _claim(entry: Any, default_seeds: Any, where: str) -> Claim:
    table = _mapping(entry, where, "a claim")
    where = f"{where} ({table['id']!r})" if "id" in table else where
    required = ("id", "statement", "paper", "metric", "better", "worse", "minimum_effect", "corpus")
    _check_keys(table, _CLAIM_KEYS, required, where, "key of a claim")
    metric = _text(table["metric"], where, "metric")
    ordering = _choice(table.get("ordering", "higher"), ORDERINGS, where, "ordering")
    better, worse = _sides(table, metric, where)
    minimum = _number(table["minimum_effect"], where, "minimum_effect")
    if minimum < 0:
        raise ClaimsError(
            f"{where}: minimum_effect must not be negative, got {minimum}; the sign comes from 'ordering'"
        )
    extended = table.get("extended", False)
    if not isinstance(extended, bool):
        raise ClaimsError(f"{where}: extended must be true or false, got {extended!r}")
    return Claim(
        id=_text(table["id"], where, "id"),
        statement=_text(table["statement"], where, "statement"),
        paper=_paper(table["paper"], where),
        metric=metric,
        ordering=ordering,
        better=better,
        worse=worse,
        minimum_effect=minimum,
        corpus=_choice(table["corpus"], CORPORA, where, "corpus"),
        seeds=_seeds(table.get("seeds", default_seeds), where),
        extended=extended,
        extra_arms=_arm_names(table.get("arms", []), where),
        control=_control(table["control"], metric, ordering, where) if table.get("control") is not None else None,
    )


def _control(entry: Any, metric: str, ordering: str, where: str) -> Control:
    where = f"{where}, control"
    table = _mapping(entry, where, "a control")
    _check_keys(table, _CONTROL_KEYS, ("statement", "expectation", "better", "worse"), where, "key of a control")
    better, worse = _sides(table, _text(table.get("metric", metric), where, "metric"), where)
    return Control(
        statement=_text(table["statement"], where, "statement"),
        expectation=_choice(table["expectation"], EXPECTATIONS, where, "expectation"),
        ordering=_choice(table.get("ordering", ordering), ORDERINGS, where, "ordering"),
        better=better,
        worse=worse,
    )


def _sides(table: Mapping[str, Any], metric: str, where: str) -> tuple[Side, Side]:
    better, worse = (_side(table[name], metric, f"{where}, {name}") for name in ("better", "worse"))
    if better.value is not None and worse.value is not None:
        raise ClaimsError(f"{where}: better and worse are both numbers; at least one must name an arm")
    if better == worse:
        raise ClaimsError(f"{where}: better and worse are the same ({better.label()}, {metric}); nothing could differ")
    return better, worse


def _side(entry: Any, metric: str, where: str) -> Side:
    if not isinstance(entry, dict):
        return Side(_arm_names(entry, where), metric)
    _check_keys(entry, ("arm", "metric", "value"), (), where, "key of a side")
    if ("value" in entry) == ("arm" in entry):
        raise ClaimsError(f"{where}: give either 'arm' (with an optional 'metric') or 'value', got {entry!r}")
    if "value" in entry:
        return Side(value=_number(entry["value"], where, "value"))
    return Side(_arm_names(entry["arm"], where), _text(entry.get("metric", metric), where, "metric"))


def _paper(entry: Any, where: str) -> PaperFigure:
    table = _mapping(entry, where, "'paper'")
    _check_keys(table, ("figure", "source"), ("figure", "source"), where, "key of 'paper'")
    return PaperFigure(str(table["figure"]), _text(table["source"], where, "paper.source"))


def _seeds(entry: Any, where: str) -> tuple[int, ...]:
    if isinstance(entry, int) and not isinstance(entry, bool) and entry > 0:
        return tuple(range(entry))
    if isinstance(entry, list) and entry and all(type(each) is int for each in entry) and len(set(entry)) == len(entry):
        return tuple(entry)
    raise ClaimsError(f"{where}: seeds must be a positive number or a list of different whole numbers, got {entry!r}")


def _arm_names(entry: Any, where: str) -> tuple[str, ...]:
    names = entry if isinstance(entry, list) else [entry]
    for name in names:
        if not isinstance(name, str) or not _ARM.fullmatch(name):
            raise ClaimsError(
                f"{where}: {name!r} cannot name an arm; use letters, digits and _ . + - "
                "(arms become file names), and quote names that YAML reads as something else"
            )
    return tuple(names)


def _arm_descriptions(entry: Any, where: str) -> dict[str, str]:
    if isinstance(entry, list):
        return dict.fromkeys(_arm_names(entry, where), "")
    table = _mapping(entry, where, "'arms'")
    return dict(zip(_arm_names(list(table), where), (str(each) for each in table.values()), strict=True))


def _check_together(claims: tuple[Claim, ...], arms: Mapping[str, str], where: str) -> None:
    """What no claim can be checked for alone: ids, described arms, and one corpus an arm."""
    corpus_of: dict[str, str] = {}
    ids: set[str] = set()
    for claim in claims:
        if claim.id in ids:
            raise ClaimsError(f"{where}: two claims have the id {claim.id!r}")
        ids.add(claim.id)
        for arm in claim.arms:
            if arms and arm not in arms:
                raise ClaimsError(f"{where}, claim {claim.id!r}: {unknown_name('arm', arm, arms)}")
            if corpus_of.setdefault(arm, claim.corpus) != claim.corpus:
                raise ClaimsError(
                    f"{where}, claim {claim.id!r}: arm {arm!r} is used with the corpora {corpus_of[arm]!r} and "
                    f"{claim.corpus!r}; give each corpus arms of its own, so that their verdicts stay apart"
                )


def _check_keys(
    table: Mapping[str, Any], valid: tuple[str, ...], required: tuple[str, ...], where: str, kind: str
) -> None:
    for key in table:
        if key not in valid:
            raise ClaimsError(f"{where}: {unknown_name(kind, key, valid)}")
    missing = [key for key in required if key not in table]
    if missing:
        raise ClaimsError(f"{where}: missing {', '.join(missing)}")


def _mapping(value: Any, where: str, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ClaimsError(f"{where}: {what} must be a mapping of keys to values, got {value!r}")
    return value


def _text(value: Any, where: str, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ClaimsError(f"{where}: {key} must be a non-empty text, got {value!r}")
    return value.strip()


def _number(value: Any, where: str, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ClaimsError(f"{where}: {key} must be a number, got {value!r}")
    return float(value)


def _choice(value: Any, valid: tuple[str, ...], where: str, key: str) -> str:
    if value not in valid:
        raise ClaimsError(f"{where}: {unknown_name(key, value, valid)}")
    return str(value)
