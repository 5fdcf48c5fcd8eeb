"""claims.yaml is read strictly; verdicts follow the rule of three ends; ledgers survive a round trip."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console
from scipy import stats

from avssl_core.reporting import (
    CellRecord,
    ClaimsError,
    Cost,
    KeptEdit,
    Ledger,
    LedgerError,
    MissingMetricError,
    arms_table,
    cells_frame,
    claims_for_terminal,
    claims_table,
    control_outcome,
    judge,
    ledger_path,
    listed_claims,
    load_claim_sheet,
    load_claims,
    needed_cells,
    project,
    read_ledgers,
    select_claims,
    shortfalls,
    t_interval,
    to_markdown,
    to_rich,
    verdict,
    verdicts_text,
)
from avssl_core.reporting.cost import duration
from avssl_core.reporting.ledger import write_json

CLAIM = {
    "id": "mix",
    "statement": "One distinctive factor beats none.",
    "paper": {"figure": "61.4 against 59.9", "source": "Table 1"},
    "metric": "event",
    "better": "l",
    "worse": "h",
    "minimum_effect": 0.02,
    "corpus": "playground",
}


def write(tmp_path: Path, *claims: dict, **top: object) -> Path:
    path = tmp_path / "01_toy" / "claims.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({"claims": list(claims), **top}), encoding="utf-8")
    return path


def cell(arm: str, seed: int, device: str = "cpu", corpus: str = "playground", **metrics: float) -> CellRecord:
    return CellRecord(arm, seed, "c", "k", metrics, 10.0, device, corpus)


def test_defaults_and_arms(tmp_path: Path) -> None:
    control = {"statement": "s", "better": "l_static", "worse": "h", "expectation": "not_reproduced"}
    path = write(tmp_path, {**CLAIM, "control": control, "arms": ["random"]})
    (claim,) = load_claims(path)
    assert claim.arms == ("l", "h", "l_static", "random")
    assert claim.seeds == (0, 1, 2, 3, 4) and claim.ordering == "higher" and not claim.extended
    assert claim.control is not None and claim.control.better.metric == "event"
    sheet = load_claim_sheet(path)
    assert sheet.chapter == "toy" and len(sheet.sha256) == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"minimum_efect": 0.1}, "did you mean 'minimum_effect'"),
        ({"corpus": "gridd"}, "did you mean 'grid'"),
        ({"ordering": "bigger"}, "unknown ordering 'bigger'"),
        ({"minimum_effect": -1}, "must not be negative"),
        ({"minimum_effect": "2 %"}, "must be a number"),
        ({"minimum_effect": True}, "must be a number"),
        ({"worse": "l"}, "nothing could differ"),
        ({"better": "a/b"}, "cannot name an arm"),
        ({"better": True}, "cannot name an arm"),
        ({"better": {"value": 1}, "worse": {"value": 2}}, "at least one must name an arm"),
        ({"better": {"value": 1, "arm": "l"}}, "either 'arm'"),
        ({"better": {"arms": "l"}}, "did you mean 'arm'"),
        ({"seeds": 0}, "seeds must be"),
        ({"seeds": [1, 1]}, "seeds must be"),
        ({"extended": "yes"}, "true or false"),
        ({"statement": " "}, "statement must be a non-empty text"),
        ({"paper": {"figure": "1"}}, "missing source"),
        ({"control": {"statement": "s", "better": "l", "worse": "h", "expectation": "none"}}, "unknown expectation"),
        ({"control": {"statement": "s", "better": "l", "worse": "h"}}, "missing expectation"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    path = write(tmp_path, {**CLAIM, **change})
    with pytest.raises(ClaimsError, match=message) as caught:
        load_claims(path)
    assert "claims.yaml" in str(caught.value)


def test_missing_keys_are_named(tmp_path: Path) -> None:
    incomplete = {key: value for key, value in CLAIM.items() if key not in ("metric", "paper")}
    with pytest.raises(ClaimsError, match="missing paper, metric"):
        load_claims(write(tmp_path, incomplete))


def test_claims_are_checked_together(tmp_path: Path) -> None:
    with pytest.raises(ClaimsError, match="two claims have the id 'mix'"):
        load_claims(write(tmp_path, CLAIM, CLAIM))
    with pytest.raises(ClaimsError, match="arms of its own"):
        load_claims(write(tmp_path, CLAIM, {**CLAIM, "id": "real", "corpus": "grid"}))
    with pytest.raises(ClaimsError, match="unknown arm 'h'"):
        load_claims(write(tmp_path, CLAIM, arms={"l": "mix", "hh": "invariant"}))
    with pytest.raises(ClaimsError, match=r"unknown key of claims\.yaml 'claim'"):
        load_claims(write(tmp_path, CLAIM, claim=[]))
    with pytest.raises(ClaimsError, match="non-empty list"):
        load_claims(write(tmp_path))


def test_invalid_yaml_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text("claims: [", encoding="utf-8")
    with pytest.raises(ClaimsError, match=r"claims\.yaml: not valid YAML"):
        load_claims(path)


# ---- verdicts


def test_t_interval_is_scipys() -> None:
    values = np.random.default_rng(0).normal(0.3, 1.0, 7)
    mean, low, high = t_interval(values.tolist())
    expected = stats.t.interval(0.95, 6, loc=values.mean(), scale=stats.sem(values))
    assert (mean, low, high) == pytest.approx((values.mean(), *expected), rel=1e-12)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1).normal(1.0, 2.0, (2000, 5))
    covered = [low <= 1.0 <= high for _, low, high in (t_interval(row.tolist()) for row in draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("differences", "min_effect", "end"),
    [
        ([0.05, 0.06, 0.04, 0.05, 0.05], 0.02, "reproduced"),
        ([0.05, 0.06, 0.04, 0.05], 0.02, "undecided at this size"),  # four seeds are never enough
        ([0.5, -0.4, 0.1, 0.3, -0.2], 0.02, "undecided at this size"),
        ([-0.05, -0.06, -0.04, -0.05, -0.05], 0.02, "not reproduced"),
        ([0.001, 0.002, 0.001, 0.002, 0.001], 0.02, "not reproduced"),  # surely positive, surely too small
        ([0.001, 0.002, 0.001, 0.002, 0.001], 0.0, "reproduced"),
        ([0.0, 0.0, 0.0, 0.0, 0.0], 0.02, "not reproduced"),
        ([0.0, 0.0, 0.0, 0.0, 0.0], 0.0, "undecided at this size"),
        ([-0.5], 0.02, "undecided at this size"),
        ([], 0.02, "not recorded"),
    ],
)
def test_three_ends(differences: list[float], min_effect: float, end: str) -> None:
    result = verdict(differences, min_effect=min_effect)
    assert result.verdict == end and result.n == len(differences)
    if len(differences) < 2:
        assert result.ci == (-math.inf, math.inf)


def test_runs_that_diverged_are_not_averaged() -> None:
    with pytest.raises(ValueError, match="nan among 5"):
        verdict([0.1, math.nan, 0.1, 0.1, 0.1])
    with pytest.raises(ValueError, match="negative"):
        verdict([0.1], min_effect=-0.1)
    with pytest.raises(ValueError, match="confidence"):
        t_interval([0.1], confidence=95)


@pytest.mark.parametrize(
    ("differences", "expectation", "outcome"),
    [
        ([0.0, 0.001, -0.001, 0.0, 0.0], "not_reproduced", "as expected"),
        ([0.1, 0.11, 0.09, 0.1, 0.1], "not_reproduced", "not as expected"),
        ([0.1, 0.11, 0.09, 0.1, 0.1], "reproduced", "as expected"),
        ([-0.1, -0.11, -0.09, -0.1, -0.1], "reverses", "as expected"),
        ([0.1, 0.11, 0.09, 0.1, 0.1], "reverses", "not as expected"),
        ([0.4, -0.4, 0.3, -0.3, 0.0], "reverses", "undecided at this size"),
        ([0.1, 0.11, 0.09, 0.1, 0.1], "undecided", "no prediction"),
        ([], "undecided", "not recorded"),
        ([], "reverses", "not recorded"),
    ],
)
def test_controls(differences: list[float], expectation: str, outcome: str) -> None:
    assert control_outcome(differences, expectation=expectation, min_effect=0.02)[1] == outcome
    with pytest.raises(ValueError, match="got 'reversed'"):
        control_outcome(differences, expectation="reversed", min_effect=0.02)


# ---- claims and cells together


def test_cells_are_shared_and_whole_seeds_come_first(tmp_path: Path) -> None:
    claims = load_claims(
        write(
            tmp_path,
            CLAIM,
            {**CLAIM, "id": "two", "worse": "j"},
            {**CLAIM, "id": "x", "better": "m", "extended": True},
            seeds=2,
        )
    )
    assert list(needed_cells(claims)) == [("l", 0), ("h", 0), ("j", 0), ("l", 1), ("h", 1), ("j", 1)]
    assert ("m", 0) in needed_cells(claims, extended=True)


def test_selection_by_claim_or_arm(tmp_path: Path) -> None:
    claims = load_claims(write(tmp_path, CLAIM, {**CLAIM, "id": "two", "better": "k", "worse": "j"}))
    assert select_claims(claims, None) == (claims, None)
    assert select_claims(claims, "two") == ([claims[1]], {"k", "j"})
    assert select_claims(claims, ["l"]) == ([claims[0]], {"l"})
    with pytest.raises(KeyError, match="did you mean 'mix'"):
        select_claims(claims, "mixx")


def test_judging_pairs_by_seed(tmp_path: Path) -> None:
    (claim,) = load_claims(write(tmp_path, CLAIM))
    cells = [cell("l", seed, event=0.5 + 0.1 * seed) for seed in range(5)]
    cells += [cell("h", seed, event=0.4 + 0.1 * seed) for seed in (4, 3, 2, 1)]  # seed 0 still missing
    result = judge(claim, cells)
    assert result.n_seeds == 4 and result.effect == pytest.approx(0.1) and result.verdict == "undecided at this size"
    result = judge(claim, [*cells, cell("h", 0, event=0.41), cell("h", 77, event=9.0)])
    assert result.n_seeds == 5 and result.effect == pytest.approx(0.098) and result.verdict == "reproduced"


def test_lower_is_better_turns_the_sign(tmp_path: Path) -> None:
    (claim,) = load_claims(write(tmp_path, {**CLAIM, "ordering": "lower"}))
    cells = [cell("l", seed, event=1.0 + 0.01 * seed) for seed in range(5)] + [
        cell("h", s, event=2.0) for s in range(5)
    ]
    result = judge(claim, cells)
    assert result.effect == pytest.approx(0.98) and result.verdict == "reproduced"


def test_sides_may_be_numbers_means_and_other_metrics(tmp_path: Path) -> None:
    sides = {"better": {"arm": ["l", "j"], "metric": "other"}, "worse": {"value": 0.25}}
    (claim,) = load_claims(write(tmp_path, {**CLAIM, **sides}, seeds=1))
    result = judge(claim, [cell("l", 0, other=0.5), cell("j", 0, other=0.7)])
    assert result.effect == pytest.approx(0.35)
    assert (result.better, result.worse) == ("mean(l, j): other", "0.25")


def test_control_is_judged_on_its_own_sides(tmp_path: Path) -> None:
    control = {"statement": "s", "better": "x", "worse": "h", "expectation": "not_reproduced"}
    (claim,) = load_claims(write(tmp_path, {**CLAIM, "control": control}))
    cells = [cell(arm, s, event=v + 0.001 * s) for arm, v in (("l", 0.6), ("h", 0.5), ("x", 0.5)) for s in range(5)]
    result = judge(claim, cells)
    assert result.verdict == "reproduced"
    assert result.control is not None and result.control.outcome == "as expected" and result.control.n_seeds == 5


def test_misspelt_metric_and_mixed_devices_are_errors(tmp_path: Path) -> None:
    (claim,) = load_claims(write(tmp_path, CLAIM))
    with pytest.raises(MissingMetricError, match="did you mean 'events'"):
        judge(claim, [cell("l", 0, events=0.5), cell("h", 0, events=0.5)])
    with pytest.raises(ValueError, match="cpu and cuda"):
        judge(claim, [cell("l", 0, event=0.5), cell("h", 0, device="cuda", event=0.4)])


# ---- ledger and tables


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    control = {"statement": "a | b <c>", "better": "x", "worse": "h", "expectation": "not_reproduced"}
    real = {**CLAIM, "id": "real", "corpus": "grid", "better": "gl", "worse": "gh"}
    claims = load_claims(write(tmp_path, real, {**CLAIM, "control": control}))
    cells = [cell(a, s, event=v + 0.01 * s) for a, v in (("l", 0.6), ("h", 0.5)) for s in range(5)]
    cells += [cell("gl", 0, corpus="grid", event=0.9)]
    results = tuple(judge(claim, cells) for claim in claims)
    return Ledger(
        "toy", "record", "cpu", None, {"torch": "2"}, {"steps": 1}, "ab", (0, 1), 110.0, results, tuple(cells)
    )


def test_ledger_round_trip_and_corpora_apart(ledger: Ledger, tmp_path: Path) -> None:
    path = ledger_path(tmp_path, "toy", "record", "cuda:1")
    assert path == tmp_path / "results" / "toy" / "record-cuda.json"
    ledger.write(path)
    assert repr(Ledger.read(path)) == repr(ledger)  # by text: nan is not equal to itself
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert set(raw) == {
        "chapter",
        "budget",
        "device",
        "commit",
        "versions",
        "config",
        "claims_sha256",
        "seeds",
        "wall_s",
        "claims",
        "cells",
    }
    assert {"id", "statement", "paper", "metric", "effect", "ci", "n_seeds", "verdict", "control"} <= set(
        raw["claims"][0]
    )
    assert raw["claims"][0]["ci"] == [None, None] and raw["claims"][0]["effect"] is None
    assert {"arm", "seed", "config_hash", "code_hash", "metrics", "wall_s", "device"} <= set(raw["cells"][0])
    assert "kept" not in raw  # as before there was such a list
    assert [p.name for p in path.parent.iterdir()] == ["record-cuda.json"]
    grid = ledger.of_corpus("grid")
    assert [c.id for c in grid.claims] == ["real"] and grid.wall_s == 10.0 and len(grid.cells) == 1
    assert [each.chapter for each in read_ledgers(tmp_path, "toy")] == ["toy"]
    with pytest.raises(KeyError, match="it has real, mix"):
        ledger.claim("none")


def test_a_ledger_tells_across_which_edits_it_was_kept(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "record-cpu.json"
    edit: KeptEdit = {
        "from": "ab",
        "to": "cd",
        "commit": "0123",
        "reason": "a clearer error",
        "changed": ["chapter:run_cell"],
        "checked": [{"arm": "l", "seed": 0, "overrides": {"steps": 1}, "metrics": ["event"]}],
        "note": "evidence, not proof",
    }
    replace(ledger, kept=(edit,)).write(path)
    assert json.loads(path.read_text(encoding="utf-8"))["kept"] == [edit]
    kept = Ledger.read(path)
    assert kept.kept == (edit,) and kept.of_corpus("grid").kept == (edit,)
    first = "Recorded on unnamed hardware (`record`, cpu, kept across 1 edit of the code):"
    assert verdicts_text(kept, corpus="playground").splitlines()[0] == first
    assert "2 edits of the code" in verdicts_text(replace(kept, kept=(edit, edit)), corpus="playground")
    for broken in ({**edit, "why": "?"}, {key: value for key, value in edit.items() if key != "reason"}):
        write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "kept": [broken]})
        with pytest.raises(LedgerError, match=r"an edit in 'kept' has .*reason"):
            Ledger.read(path)


def test_without_a_seed_a_claim_and_its_control_are_not_recorded(ledger: Ledger, tmp_path: Path) -> None:
    """In the file, not only in tables; ledgers of before, which said undecided, are read as if they said so."""
    path = tmp_path / "record-cpu.json"
    ledger.write(path)
    raw = json.loads(path.read_text(encoding="utf-8"))
    real, mix = raw["claims"]
    assert (real["n_seeds"], real["verdict"]) == (0, "not recorded") and mix["verdict"] == "reproduced"
    assert (mix["control"]["n_seeds"], mix["control"]["outcome"]) == (0, "not recorded")
    real["verdict"] = mix["control"]["outcome"] = "undecided at this size"
    write_json(path, raw)
    assert repr(Ledger.read(path)) == repr(ledger)
    assert list(claims_table(Ledger.read(path))["verdict"]) == ["reproduced", "not recorded yet"]


def test_broken_ledgers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text in ("{", "[]", '{"chapter": "toy"}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(LedgerError, match=r"x\.json"):
            Ledger.read(path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]


def interval_of(frame: pd.DataFrame) -> str:
    return str(frame.iloc[0]["95 % interval"])


def test_tables(ledger: Ledger) -> None:
    frame = claims_table(ledger)
    assert list(frame["claim"]) == ["mix", "real"]  # playground first
    row = frame.iloc[0]
    assert row["effect"] == "+0.100" and row["verdict"] == "reproduced" and row["ordering"] == "l > h"
    assert frame.iloc[1]["effect"] == "–" and frame.iloc[1]["seeds"] == 0
    assert frame.iloc[1]["verdict"] == "not recorded yet"  # no seed, no verdict
    assert list(claims_table(ledger, corpus="grid")["claim"]) == ["real"]
    markdown = to_markdown(frame).splitlines()
    assert len(markdown) == 4 and "a \\| b &lt;c>" in markdown[2]
    assert all(line.replace("\\|", "").count("|") == markdown[0].count("|") for line in markdown)
    assert to_rich(frame).row_count == 2
    for width, expected in ((80, "claim effect 95 % interval seeds verdict"), (200, "claim corpus ordering")):
        console = Console(width=width, file=io.StringIO())
        console.print(claims_for_terminal(frame, width=width))
        shown = console.file.getvalue().splitlines()
        assert expected in " ".join(shown[1].replace("┃", " ").split())
        assert interval_of(frame) in shown[3]  # numbers are not broken, whatever the width
    assert claims_for_terminal(frame[["paper"]], width=80).row_count == 2
    text = verdicts_text(ledger, corpus="playground")
    lines = text.splitlines()
    assert len(lines) == 5 and "+0.100" in lines[4] and verdicts_text([], corpus="playground") == ""
    assert lines[0] == "Recorded on unnamed hardware (`record`, cpu):"  # these cells do not say what they ran on
    waiting = verdicts_text(replace(ledger, claims=(replace(ledger.claim("mix"), n_seeds=0),)), corpus="playground")
    assert waiting.startswith("Not recorded yet:") and "undecided" not in waiting


def test_a_claim_recorded_on_one_device_is_not_missing_on_another(ledger: Ledger) -> None:
    """Of two ledgers the second holds all seeds of `real`, the first all of `mix`: each speaks of its own claim."""
    (mix, real), cells = (ledger.claim("mix"), ledger.claim("real")), ledger.cells
    ran = tuple(replace(c, hardware="a GPU") for c in cells)
    elsewhere = replace(ledger, device="cuda", claims=(replace(mix, n_seeds=0), replace(real, n_seeds=5)), cells=ran)
    here = replace(ledger, claims=(mix, replace(real, n_seeds=0)))
    listed = [(each.device, claim.id) for each, claim in listed_claims([here, elsewhere])]
    assert listed == [("cpu", "mix"), ("cuda", "real")]
    assert list(claims_table([here, elsewhere])["budget"]) == ["record-cpu", "record-cuda"]
    assert verdicts_text([here, elsewhere], corpus="grid").startswith("Recorded on a GPU (`record`, cuda):")
    nowhere = replace(elsewhere, claims=(replace(mix, n_seeds=0), replace(real, n_seeds=0)))
    assert [(each.device, claim.id) for each, claim in listed_claims([here, nowhere])] == [
        ("cpu", "mix"),
        ("cpu", "real"),  # missing everywhere: told once
    ]


def test_what_fell_short_is_told(tmp_path: Path) -> None:
    """One claim holds, one is refuted, one is open, one has no cells; the first one's control goes wrong."""
    control = {"statement": "must be <equal>", "better": "x", "worse": "h", "expectation": "not_reproduced"}
    arms = {"good": 0.6, "bad": 0.4, "open": 0.5, "none": None}
    claims = load_claims(write(tmp_path, *({**CLAIM, "id": name, "better": name, "control": control} for name in arms)))
    noise = [0.3, -0.3, 0.2, -0.2, 0.1]
    cells = [cell(a, s, event=v) for a, v in (("good", 0.6), ("bad", 0.4), ("h", 0.5), ("x", 0.7)) for s in range(5)]
    cells += [cell("open", s, event=0.5 + noise[s]) for s in range(5)]
    results = tuple(judge(claim, cells) for claim in claims)
    ledger = Ledger("toy", "record", "cpu", None, {}, {}, "ab", (0,), 1.0, results, tuple(cells))
    lines = shortfalls(ledger).splitlines()
    assert sum("Not reproduced." in line and "bad over h" in line for line in lines) == 1
    assert sum("Undecided at this size." in line and "open over h" in line for line in lines) == 1
    assert sum("A control that surprises" in line and "`good`" in line and "&lt;equal" in line for line in lines) == 1
    assert not any("good over h" in line for line in lines)
    assert lines[-1] == "- **Not recorded yet**: 1 of 4 claims."
    assert shortfalls([]) == ""


def test_arms_table_and_cells_frame(ledger: Ledger) -> None:
    frame = arms_table(ledger, ["event"])
    row = frame[frame["arm"] == "l"].iloc[0]
    mean, low, high = t_interval([0.6, 0.61, 0.62, 0.63, 0.64])
    assert (row["mean"], row["low"], row["high"], row["seeds"]) == (
        pytest.approx(mean),
        pytest.approx(low),
        pytest.approx(high),
        5,
    )
    assert frame[frame["arm"] == "gl"].iloc[0]["low"] == -math.inf
    assert len(cells_frame(ledger)) == 11 and "–" in to_markdown(frame)


# ---- cost


def test_projection_is_linear_in_time_and_memory() -> None:
    result = project(seconds_per_sample=0.01, batch=512, steps=1000, memory_bytes={2: 3 << 30, 4: 4 << 30}, devices=64)
    assert result.hours == pytest.approx(0.01 * 8 * 1000 / 3600) and result.device_hours == pytest.approx(
        64 * result.hours
    )
    assert result.memory_gib == pytest.approx(6.0)  # 2 GiB of weights + 0.5 GiB a sample
    assert "lower the batch" in result.line(limit_gib=4) and "lower" not in result.line(limit_gib=8)
    with pytest.raises(ValueError, match="steps must be positive"):
        project(seconds_per_sample=0.01, batch=1, steps=0, memory_bytes={1: 1})
    with pytest.raises(ValueError, match="memory_bytes is empty"):
        project(seconds_per_sample=0.01, batch=1, steps=1, memory_bytes={})


def test_cost_line_and_durations() -> None:
    assert (
        Cost("two CPU cores", 35, "event probe 0.8").line() == "Cost: 35 min on two CPU cores. Expect: event probe 0.8."
    )
    assert [duration(s) for s in (40, 89, 90, 210, 3600, 8640, 86400)] == [
        "40 s",
        "89 s",
        "1.5 min",
        "3.5 min",
        "60 min",
        "2.4 h",
        "24 h",
    ]
