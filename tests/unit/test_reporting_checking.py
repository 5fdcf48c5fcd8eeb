"""Fields of a configuration, each checked by itself: what is taken, what is refused, and what the message says."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest

from avssl_core.reporting import check_fields


@dataclass(frozen=True)
class Config:
    depth: int = 18
    steps: int = 300
    workers: int = 0
    leak: float = 0.5
    arms: str = "joint,divided"


KINDS = {
    "choices": {"depth": (18, 50)},
    "positive": ("steps",),
    "not_negative": ("workers",),
    "shares": ("leak",),
    "lists": {"arms": ("joint", "divided", "trajectory")},
}


@pytest.mark.parametrize(
    "changes", [{}, {"leak": 0}, {"leak": 1.0}, {"depth": 50}, {"arms": "trajectory"}, {"workers": 8}]
)
def test_what_fits_passes(changes: dict[str, object]) -> None:
    check_fields(replace(Config(), **changes), **KINDS)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"depth": 34}, "depth=34: use one of 18, 50"),
        ({"steps": 0}, "steps=0: must be positive"),
        ({"steps": math.nan}, "steps=nan: must be positive"),
        ({"workers": -1}, "workers=-1: must be 0 or more"),
        ({"leak": 1.5}, "leak=1.5: it is a share, between 0 and 1"),
        ({"leak": math.nan}, "leak=nan: it is a share, between 0 and 1"),
        ({"arms": "joint,divide"}, "arms='joint,divide': unknown arm 'divide'; did you mean 'divided'"),
        ({"arms": ""}, "unknown arm ''"),
        ({"arms": "joint, divided"}, "unknown arm ' divided'"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_fields(replace(Config(), **changes), **KINDS)
    assert told in str(caught.value)


def test_a_field_that_is_not_named_is_not_looked_at() -> None:
    check_fields(replace(Config(), steps=-1, depth=7, arms="x"), shares=("leak",))
