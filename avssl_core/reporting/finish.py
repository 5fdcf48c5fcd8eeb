"""The last cell of a chapter: what this run found and what the ledgers say, for the program that started it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from avssl_core.reporting.ledger import Ledger
from avssl_core.reporting.tables import claims_table

RUN_DIR_VARIABLE = "AVSSL_RUN_DIR"  # set by ``avssl run``: the folder of the executed notebook
CLAIMS_FILE = "claims.json"
NO_CLAIMS = "no claims recorded yet"
_SHOWN = ["claim", "effect", "seeds", "verdict"]


def finish_run(
    ledgers: Sequence[Ledger], results: Mapping[str, Mapping[str, float]], *, is_main: bool = True
) -> pd.DataFrame | str:
    """Check this run's figures, leave them with the recorded claims for ``avssl run``, and return the claims to show.

    Args:
        ledgers: of the chapter; may be empty.
        results: metrics of this run, by the name of what was trained.
        is_main: whether this process is the one that writes (rank 0).

    Returns:
        The claims of all ledgers, a row each, or a sentence where none was recorded.

    Raises:
        ValueError: a metric of this run is not finite; the message names it.
    """
    broken = {
        f"{name}: {key}": x for name, found in results.items() for key, x in found.items() if not math.isfinite(x)
    }
    if broken:
        raise ValueError(f"metrics of this run are not finite: {broken}; look at its loss curve and lower lr")
    table = claims_table(ledgers)
    if is_main and RUN_DIR_VARIABLE in os.environ:
        text = json.dumps({"claims": table.to_dict("records"), "this run": results}, indent=1)
        Path(os.environ[RUN_DIR_VARIABLE], CLAIMS_FILE).write_text(text, encoding="utf-8")
    return table[_SHOWN] if ledgers else NO_CLAIMS
