"""Claims and cells together: which cells the claims need, and what the cells say about the claims.

A cell is (arm, seed). Arms are shared: a cell is needed once, however many claims compare it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from avssl_core.reporting.claims import Claim, Control, Side
from avssl_core.reporting.ledger import CellRecord, ClaimResult, ControlResult
from avssl_core.reporting.names import unknown_name
from avssl_core.reporting.verdicts import control_outcome, verdict


class MissingMetricError(KeyError):
    """A claim asks a metric of an arm whose cells did not report it."""

    def __str__(self) -> str:
        return str(self.args[0])


def needed_cells(claims: Iterable[Claim], *, extended: bool = False) -> dict[tuple[str, int], str]:
    """Every (arm, seed) that the claims need, with its corpus.

    The order is by seed first, then by claim: after the first fifth of the work every claim has its first paired
    difference, and a sitting that ends early leaves whole seeds behind.

    Args:
        claims: of one chapter.
        extended: also those marked ``extended``.
    """
    wanted = [claim for claim in claims if extended or not claim.extended]
    pairs = {
        (arm, seed): (claim.seeds.index(seed), claim.corpus)
        for claim in wanted
        for arm in claim.arms
        for seed in claim.seeds
    }
    order = sorted(pairs, key=lambda pair: pairs[pair][0])  # stable: claims keep their order within a seed
    return {pair: pairs[pair][1] for pair in order}


def select_claims(claims: Sequence[Claim], only: str | Iterable[str] | None) -> tuple[list[Claim], set[str] | None]:
    """Narrow claims by names of claims or arms.

    Args:
        claims: of one chapter.
        only: ids of claims (all their arms), names of arms, or both; ``None`` for everything.

    Returns:
        The claims to record, and the arms to record (``None``: all arms of these claims).

    Raises:
        KeyError: a name is neither a claim nor an arm; the nearest are named.
    """
    if only is None:
        return list(claims), None
    names = [only] if isinstance(only, str) else list(only)
    by_id = {claim.id: claim for claim in claims}
    arms = {arm for claim in claims for arm in claim.arms}
    for name in names:
        if name not in by_id and name not in arms:
            raise KeyError(unknown_name("claim or arm", name, [*by_id, *sorted(arms)]))
    chosen = {arm for name in names for arm in (by_id[name].arms if name in by_id else (name,))}
    return [claim for claim in claims if chosen & set(claim.arms)], chosen


def judge(claim: Claim, cells: Iterable[CellRecord]) -> ClaimResult:
    """A claim's result from the cells recorded so far; seeds that lack a cell on either side are left out.

    Raises:
        MissingMetricError: a cell of one of the claim's arms has no number under the claim's metric.
        ValueError: the cells come from different devices.
    """
    table = {(cell.arm, cell.seed): cell for cell in cells if cell.arm in claim.arms}
    devices = {cell.device for cell in table.values()}
    if len(devices) > 1:
        raise ValueError(
            f"claim {claim.id!r}: cells from {' and '.join(sorted(devices))}; devices never mix in a claim"
        )
    differences = _differences(claim, claim.ordering, claim.seeds, table)
    result = verdict(differences, min_effect=claim.minimum_effect)
    return ClaimResult(
        id=claim.id,
        statement=claim.statement,
        paper=asdict(claim.paper),
        metric=claim.metric,
        effect=result.effect,
        ci=result.ci,
        n_seeds=result.n,
        verdict=result.verdict,
        control=_control(claim, claim.control, table) if claim.control is not None else None,
        corpus=claim.corpus,
        extended=claim.extended,
        better=claim.better.label(claim.metric),
        worse=claim.worse.label(claim.metric),
        minimum_effect=claim.minimum_effect,
        differences=tuple(differences),
    )


def _control(claim: Claim, control: Control, table: Mapping[tuple[str, int], CellRecord]) -> ControlResult:
    differences = _differences(control, control.ordering, claim.seeds, table)
    result, outcome = control_outcome(differences, expectation=control.expectation, min_effect=claim.minimum_effect)
    return ControlResult(control.statement, control.expectation, result.effect, result.ci, result.n, outcome)


def _differences(
    sides: Claim | Control, ordering: str, seeds: Sequence[int], table: Mapping[tuple[str, int], CellRecord]
) -> list[float]:
    sign = 1.0 if ordering == "higher" else -1.0
    pairs = ((_value(sides.better, seed, table), _value(sides.worse, seed, table)) for seed in seeds)
    return [sign * (better - worse) for better, worse in pairs if better is not None and worse is not None]


def _value(side: Side, seed: int, table: Mapping[tuple[str, int], CellRecord]) -> float | None:
    """A side's number for a seed; ``None`` while one of its cells is missing."""
    if side.value is not None:
        return side.value
    numbers = []
    for arm in side.arms:
        cell = table.get((arm, seed))
        if cell is None:
            return None
        number = cell.metrics.get(side.metric)
        if not isinstance(number, int | float):
            scalars = [name for name, value in cell.metrics.items() if isinstance(value, int | float)]
            raise MissingMetricError(f"arm {arm!r}, seed {seed}: {unknown_name('metric', side.metric, scalars)}")
        numbers.append(float(number))
    return math.fsum(numbers) / len(numbers)
