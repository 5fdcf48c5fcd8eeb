"""The last cell of a chapter, contrasts computed afterwards, and what a dry run says of several trainings."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from avssl_core.reporting import MeasuredTraining, contrasts_table, finish_run, projection_lines, read_ledgers

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30


def test_figures_and_claims_are_left_for_the_program_that_started_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVSSL_RUN_DIR", str(tmp_path))
    ledgers = read_ledgers(ROOT, "gdt")
    shown = finish_run(ledgers, {"l": {"r1": 0.5}})
    written = json.loads((tmp_path / "claims.json").read_text())
    assert written["this run"] == {"l": {"r1": 0.5}}
    assert isinstance(shown, pd.DataFrame) and len(shown) == len(written["claims"])
    assert list(shown) == ["claim", "effect", "seeds", "verdict"]
    recorded = {claim["claim"] for claim in written["claims"] if claim["seeds"]}
    assert recorded and len({claim["claim"] for claim in written["claims"]}) == len(shown)


def test_only_the_main_process_writes_and_only_within_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVSSL_RUN_DIR", str(tmp_path))
    assert finish_run([], {"l": {"r1": 0.5}}, is_main=False) == "no claims recorded yet"
    monkeypatch.delenv("AVSSL_RUN_DIR")
    finish_run([], {"l": {"r1": 0.5}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_not_finite_is_named_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setenv("AVSSL_RUN_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"'l: r1': (nan|inf)"):
        finish_run([], {"a": {"r1": 0.1}, "l": {"r1": value}})
    assert not list(tmp_path.iterdir())


def test_hours_of_trainings_add_up_and_memory_is_the_largest() -> None:
    """1 GiB of weights and 1 GiB a clip, so that devices share the second and not the first."""
    first = MeasuredTraining(64, 3600, 0.5, {2: 3 * GIB, 3: 4 * GIB})
    second = MeasuredTraining(64, 1800, 0.5, {2: GIB, 3: GIB})
    lines = projection_lines([first, second], others=(8, 64))
    assert lines["projection"] == "48.0 h (48 device-hours), 65.0 GiB a device"
    assert lines["projection, 8 such devices"] == "6.0 h (48 device-hours), 9.0 GiB a device"
    assert lines["projection, 64 such devices"] == "0.8 h (48 device-hours), 2.0 GiB a device"
    assert set(projection_lines([first], world_size=8, others=(8, 64))) == {
        "projection",
        "projection, 64 such devices",
    }


def test_no_training_is_no_projection() -> None:
    with pytest.raises(ValueError, match="nothing to project"):
        projection_lines([])


def test_contrasts_afterwards_agree_with_a_claim_about_the_same_arms_and_carry_no_verdict() -> None:
    """A pair that is also a claim's: the same mean and interval, from cells alone."""
    ledgers = read_ledgers(ROOT, "imr")
    (ledger,) = (each for each in ledgers if each.device == "cuda")
    (claim,) = (claim for claim in ledger.claims if claim.id == "pretraining-helps")
    table = contrasts_table(ledgers, [(claim.metric, claim.better, claim.worse), ("no such metric", "pmsp", "ctp")])
    assert len(table) == 1 and "verdict" not in table and "not written down first" in str(table.columns.name)
    row = table.iloc[0]
    assert row["seeds"] == claim.n_seeds == 5
    assert float(row["difference"].replace("−", "-")) == pytest.approx(claim.effect, abs=5e-4)
    ends = [float(end) for end in row["95 % interval"].strip("[]").replace("−", "-").split(",")]
    assert ends == pytest.approx(claim.ci, abs=5e-4)
    flipped = contrasts_table([ledger], [(claim.metric, claim.worse, claim.better)]).iloc[0]
    assert float(flipped["difference"].replace("−", "-")) == pytest.approx(-claim.effect, abs=5e-4)
