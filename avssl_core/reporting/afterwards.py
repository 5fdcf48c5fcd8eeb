"""Contrasts between recorded arms that no claim names: for looking, and never a verdict.

A claim is written down before its cells run. Whoever has seen the cells and then compares two arms has chosen them, and
an interval does not know that. So these tables carry no verdict, and say in their title what they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from avssl_core.reporting.ledger import Ledger
from avssl_core.reporting.tables import interval_text, signed
from avssl_core.reporting.verdicts import t_interval

TITLE = "computed afterwards, not written down first"


def contrasts_table(ledgers: Iterable[Ledger], contrasts: Sequence[tuple[str, str, str]]) -> pd.DataFrame:
    """Paired differences over seeds, with 95 % t intervals, one row a contrast, in the order given.

    Args:
        ledgers: of one chapter; a contrast is computed within each ledger that holds both arms, never across two.
        contrasts: ``(metric, first arm, second arm)``; the difference is first minus second, seed by seed.

    Returns:
        A frame of text, named by :data:`TITLE`; without a row where no ledger holds a contrast.
    """
    rows = []
    for metric, first, second in contrasts:
        for ledger in ledgers:
            x, y = ledger.values(first, metric), ledger.values(second, metric)
            pairs = [x[seed] - y[seed] for seed in sorted(x) if seed in y]
            if pairs:
                mean, low, high = t_interval(pairs)
                words = {"metric": metric, "first": first, "second": second, "difference": signed(mean)}
                rows.append(words | {"95 % interval": interval_text((low, high)), "seeds": len(pairs)})
    columns = pd.Index(["metric", "first", "second", "difference", "95 % interval", "seeds"], name=TITLE)
    return pd.DataFrame(rows, columns=columns)
