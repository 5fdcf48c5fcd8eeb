"""The ledger: one JSON file a chapter, budget and device, holding what was claimed, what came out, and every cell
behind it.

``results/<chapter>/<budget>-<device>.json`` is written by ``avssl record``, atomically, and committed; ``avssl keep``
alone may say that an edit of the code left its figures as they are. Devices never mix: each has a file of its own.
Playground and real corpora share the file and are told apart by ``corpus`` (:meth:`Ledger.of_corpus`). Intervals that
are not known yet (fewer than two seeds) are ``null`` in JSON and infinite here. Claims and controls without a seed are
*not recorded*; ledgers written before that was said call them undecided, and are read as if they said it.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from avssl_core.reporting.verdicts import NOT_RECORDED

Metrics = Mapping[str, float | list[Any]]

# in words, in every entry of ``kept``: what the comparison behind it is worth
KEPT_NOTE = "a few short cells gave equal figures on a CPU: evidence that the edit changes none, not proof"


class KeptCheck(TypedDict):
    """A cell that the old and the new code both ran, with equal figures: its overrides of the budget, its metrics."""

    arm: str
    seed: int
    overrides: dict[str, Any]
    metrics: list[str]


# An edit of the code across which the cells were kept: ``commit`` holds the code that hashes to ``from``, and the
# definitions ``changed`` lie between it and ``to``; ``added`` are parameters that the chapter gained, with defaults.
# Written as a call because ``from`` is a keyword.
KeptEdit = TypedDict(
    "KeptEdit",
    {
        "from": str,
        "to": str,
        "commit": str,
        "reason": str,
        "changed": list[str],
        "checked": list[KeptCheck],
        "note": str,
        "added": NotRequired[dict[str, Any]],
    },
)


class LedgerError(ValueError):
    """A file that should be a ledger or a cell is not; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class CellRecord:
    """One cell = (arm, seed): its figures, and the hashes of the configuration and code that made them."""

    arm: str
    seed: int
    config_hash: str
    code_hash: str
    metrics: Metrics
    wall_s: float
    device: str  # "cpu" or "cuda"
    corpus: str = "playground"
    hardware: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ControlResult:
    """A claim's control as measured: ``outcome`` says whether ``expectation`` was met."""

    statement: str
    expectation: str
    effect: float
    ci: tuple[float, float]
    n_seeds: int
    outcome: str


@dataclass(frozen=True)
class ClaimResult:
    """A claim as judged: ``effect`` is the mean paired difference, positive in the paper's favour."""

    id: str
    statement: str
    paper: Mapping[str, str]
    metric: str
    effect: float
    ci: tuple[float, float]
    n_seeds: int
    verdict: str
    control: ControlResult | None
    corpus: str
    extended: bool
    better: str
    worse: str
    minimum_effect: float
    differences: tuple[float, ...] = ()


@dataclass(frozen=True)
class Ledger:
    """Everything recorded for one chapter at one budget on one kind of device.

    ``kept`` lists, oldest first, the edits of the code that the cells outlived without being run again.
    """

    chapter: str
    budget: str
    device: str
    commit: str | None
    versions: Mapping[str, str]
    config: Mapping[str, Any]
    claims_sha256: str
    seeds: tuple[int, ...]
    wall_s: float
    claims: tuple[ClaimResult, ...]
    cells: tuple[CellRecord, ...]
    kept: tuple[KeptEdit, ...] = ()

    def claim(self, claim_id: str) -> ClaimResult:
        """The result of one claim.

        Raises:
            KeyError: it has none in this ledger.
        """
        for claim in self.claims:
            if claim.id == claim_id:
                return claim
        raise KeyError(f"no claim {claim_id!r} in this ledger; it has {', '.join(c.id for c in self.claims) or 'none'}")

    def of_corpus(self, corpus: str) -> Ledger:
        """The claims and cells of one corpus only: a playground verdict never stands for a real one."""
        claims = tuple(claim for claim in self.claims if claim.corpus == corpus)
        cells = tuple(cell for cell in self.cells if cell.corpus == corpus)
        return replace(self, claims=claims, cells=cells, wall_s=math.fsum(cell.wall_s for cell in cells))

    def values(self, arm: str, metric: str) -> dict[int, float]:
        """A scalar metric of an arm by seed; empty when nothing was recorded."""
        found: dict[int, float] = {}
        for cell in self.cells:
            value = cell.metrics.get(metric)
            if cell.arm == arm and isinstance(value, int | float):
                found[cell.seed] = float(value)
        return found

    def write(self, path: str | Path) -> None:
        """Write atomically: readers see the old file or the whole new one."""
        data = asdict(self)
        if not self.kept:
            del data["kept"]  # most ledgers have none, and are written as they were before there was such a list
        write_json(path, data)

    @classmethod
    def read(cls, path: str | Path) -> Ledger:
        """Read a ledger back.

        Raises:
            FileNotFoundError: nothing was recorded there yet.
            LedgerError: the file is not a ledger.
        """
        data = read_json(path)
        try:
            claims = tuple(_claim(entry) for entry in data.pop("claims"))
            cells = tuple(CellRecord(**entry) for entry in data.pop("cells"))
            kept = tuple(_kept(entry) for entry in data.pop("kept", ()))
            return cls(**{**data, "seeds": tuple(data["seeds"])}, claims=claims, cells=cells, kept=kept)
        except (KeyError, TypeError) as error:
            raise LedgerError(f"{path} is not a ledger of this version ({error}); record the chapter again") from error


def ledger_path(root: str | Path, chapter: str, budget: str, device: str) -> Path:
    """``results/<chapter>/<budget>-<device>.json`` under the book's root; ``cuda:1`` counts as ``cuda``."""
    return Path(root) / "results" / chapter / f"{budget}-{device.split(':')[0]}.json"


def read_ledgers(root: str | Path, chapter: str) -> list[Ledger]:
    """Every ledger of a chapter, in the order of their file names; empty when nothing was recorded."""
    return [Ledger.read(path) for path in sorted((Path(root) / "results" / chapter).glob("*.json"))]


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON atomically (temporary file, flush, rename), creating folders. Non-finite numbers become ``null``."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_finite(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp gives 0600, which others could not read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: no such file.
        LedgerError: not JSON, or not an object.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LedgerError(f"{path} is not valid JSON ({error}); delete it and record again") from error
    if not isinstance(data, dict):
        raise LedgerError(f"{path} holds a {type(data).__name__}, expected an object; delete it and record again")
    return data


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def _claim(entry: Mapping[str, Any]) -> ClaimResult:
    control = entry["control"]
    if control is not None:
        control = ControlResult(**{**control, **_interval(control), **_without_seed(control, "outcome")})
    known = {**entry, **_interval(entry), **_without_seed(entry, "verdict")}
    return ClaimResult(**{**known, "control": control, "differences": tuple(entry["differences"])})


def _without_seed(entry: Mapping[str, Any], end: str) -> dict[str, str]:
    return {} if entry["n_seeds"] else {end: NOT_RECORDED}


def _kept(entry: Mapping[str, Any]) -> KeptEdit:
    if not KeptEdit.__required_keys__ <= set(entry) <= KeptEdit.__required_keys__ | KeptEdit.__optional_keys__:
        raise KeyError(f"an edit in 'kept' has {', '.join(sorted(KeptEdit.__required_keys__))}, got {sorted(entry)}")
    return cast(KeptEdit, entry)


def _interval(entry: Mapping[str, Any]) -> dict[str, Any]:
    low, high = entry["ci"]
    return {
        "effect": math.nan if entry["effect"] is None else entry["effect"],
        "ci": (-math.inf if low is None else low, math.inf if high is None else high),
    }
