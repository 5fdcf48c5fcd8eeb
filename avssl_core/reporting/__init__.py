"""Claims, verdicts, the ledger and cost lines: what reproduced, what did not, and what cannot be told."""

from avssl_core.reporting.afterwards import contrasts_table
from avssl_core.reporting.checking import check_fields
from avssl_core.reporting.claims import Claim, ClaimsError, ClaimSheet, Control, Side, load_claim_sheet, load_claims
from avssl_core.reporting.codehash import CodeHash, code_hash
from avssl_core.reporting.cost import Cost, MeasuredTraining, Projection, duration, project, projection_lines
from avssl_core.reporting.definitions import load_definitions
from avssl_core.reporting.environment import commit, hardware, versions
from avssl_core.reporting.finish import finish_run
from avssl_core.reporting.judging import MissingMetricError, judge, needed_cells, select_claims
from avssl_core.reporting.ledger import (
    CellRecord,
    ClaimResult,
    ControlResult,
    KeptCheck,
    KeptEdit,
    Ledger,
    LedgerError,
    ledger_path,
    read_ledgers,
)
from avssl_core.reporting.parameters import build_config, chapter_dir, notebook_parameters, read_budget
from avssl_core.reporting.tables import (
    arms_table,
    cells_frame,
    claims_for_terminal,
    claims_table,
    edits_text,
    listed_claims,
    shortfalls,
    to_markdown,
    to_rich,
    verdicts_text,
)
from avssl_core.reporting.verdicts import Verdict, control_outcome, t_interval, verdict

__all__ = [
    "CellRecord",
    "Claim",
    "ClaimResult",
    "ClaimSheet",
    "ClaimsError",
    "CodeHash",
    "Control",
    "ControlResult",
    "Cost",
    "KeptCheck",
    "KeptEdit",
    "Ledger",
    "LedgerError",
    "MeasuredTraining",
    "MissingMetricError",
    "Projection",
    "Side",
    "Verdict",
    "arms_table",
    "build_config",
    "cells_frame",
    "chapter_dir",
    "check_fields",
    "claims_for_terminal",
    "claims_table",
    "code_hash",
    "commit",
    "contrasts_table",
    "control_outcome",
    "duration",
    "edits_text",
    "finish_run",
    "hardware",
    "judge",
    "ledger_path",
    "listed_claims",
    "load_claim_sheet",
    "load_claims",
    "load_definitions",
    "needed_cells",
    "notebook_parameters",
    "project",
    "projection_lines",
    "read_budget",
    "read_ledgers",
    "select_claims",
    "shortfalls",
    "t_interval",
    "to_markdown",
    "to_rich",
    "verdict",
    "verdicts_text",
    "versions",
]
