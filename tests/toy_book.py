"""A book of one tiny chapter, written into a test's temporary folder: what the command line is tested on."""

from __future__ import annotations

from pathlib import Path

HEAD = """# %% [markdown]
# # A toy chapter

# %% tags=["parameters"]
steps: int = 3  # how many numbers to add
rate: float = 0.5  # what to multiply by
flip: bool = False
note: str | None = None
data: str = "playground"  # a folder, or the name of a corpus
dry_run: bool = False

# %%
import json
import os
from pathlib import Path

run_dir = Path(os.environ["AVSSL_RUN_DIR"]) if "AVSSL_RUN_DIR" in os.environ else None
total = sum(range(steps)) * rate
print(f"budget={os.environ.get('AVSSL_BUDGET')} steps={steps} total={total} data={data} dry_run={dry_run} note={note}")
"""

CLAIMS = """
# %%
if run_dir is not None and int(os.environ.get("RANK", 0)) == 0:
    claim = {"id": "adds-up", "statement": "numbers add up [really]", "paper": {"figure": "6", "source": "Table 1"},
             "effect": 0.25, "ci": [0.125, 0.375], "n_seeds": 5, "verdict": "reproduced"}
    (run_dir / "claims.json").write_text(json.dumps({"claims": [claim]}))
"""


def write_book(root: Path, cells: str = CLAIMS, *, head: str = HEAD) -> Path:
    """Write ``book.yml`` and the chapter ``toy`` with these cells after its head; returns the path of ``book.yml``."""
    folder = root / "chapters" / "01_toy"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "toy.py").write_text(head + cells)
    (folder / "smoke.yaml").write_text("steps: 4\nrate: 2\n")
    (folder / "small.yaml").write_text("steps: 5\nrate: 1.0e-1\n")
    (folder / "full-big.yaml").write_text("steps: 1000\n")
    (folder / "claims.yaml").write_text("chapter: toy\nclaims: []\n")
    book = root / "book.yml"
    book.write_text(
        """\
format: jb-book
root: index
meta:
  parts: {I: Toys, II: Later}
  chapters:
    - {name: toy, folder: chapters/01_toy, part: I, title: A toy, paper: On Toys, venue: ICTT 2021, url: "https://example.org",
       state: runs, budgets: {smoke: {minutes: 0.5, hardware: 1 CPU core}, full-big: {minutes: 600, hardware: 8 GPUs}}}
    - {name: later, folder: chapters/02_later, part: II, title: Later, paper: On Later, venue: ICTT 2022,
       url: "https://example.org", state: planned}
"""
    )
    return book
