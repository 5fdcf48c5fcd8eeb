"""The live curve in a real kernel: one growing figure, or, in recorded runs, one finished figure."""

from __future__ import annotations

from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

CELL = """
import os
os.environ["AVSSL_QUIET"] = {quiet!r}
from avssl_core.training import LiveCurve
drawn = []
class Counting(LiveCurve):
    def svg(self):
        drawn.append(len(self.rows))
        return super().svg()
with Counting("loss", "val", label="loss (nats)", every_s=0.0) as curve:
    for step in range(1, 4):
        curve({{"step": float(step), "loss": 1.0 / step}})
        curve._next_draw = 0.0
"""


@pytest.fixture(scope="module")
def cells() -> list[Any]:
    """Both cases in one kernel, which takes seconds to import what it draws with."""
    sources = [source for quiet in "01" for source in (CELL.format(quiet=quiet), "print(drawn)")]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    return list(notebook.cells)


@pytest.mark.parametrize(("case", "drawn"), [(0, "[1, 2, 3, 3]"), (1, "[3]")], ids=["live", "quiet"])
def test_a_notebook_shows_one_vector_figure(cells: list[Any], case: int, drawn: str) -> None:
    shown, counts = cells[2 * case].outputs, cells[2 * case + 1].outputs[0].text.strip()
    assert counts == drawn
    pictures = [output for output in shown if output.output_type == "display_data"]
    assert len(pictures) == 1
    assert "<svg" in pictures[0].data["image/svg+xml"]
