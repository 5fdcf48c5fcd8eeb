"""Chapters as scripts and as notebooks: pairing with stable cell ids, executing, and telling when a committed
notebook is stale.

The py:percent script is the source. The committed ``.ipynb`` is that script executed at ``small``, its volatile
metadata removed, with the hash of what it was run from in its metadata. Git then shows what a change of the source
changed, and nothing else.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import jupytext
import nbformat

from avssl.errors import UsageError
from avssl.kernels import kernel_config, kernel_home
from avssl.manifest import Chapter
from avssl.places import places

HASH_KEY = "source_sha256"
COMMITTED_BUDGET = "small"
_KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
_KEPT_CELL_METADATA = ("tags",)


def read_script(script: Path) -> nbformat.NotebookNode:
    """The notebook a py:percent script stands for, unexecuted, with cell ids that depend on nothing but the cells.

    Raises:
        UsageError: the file is not a py:percent script.
    """
    text = script.read_text(encoding="utf-8")
    if "# %%" not in text:
        raise UsageError(f"{script} is not a py:percent script: it has no '# %%' cell.")
    notebook = jupytext.reads(text, fmt="py:percent")
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        cell.id = f"{digest}-{seen[digest]}" if seen[digest] else digest
        seen[digest] += 1
    notebook.metadata = nbformat.from_dict({"kernelspec": _KERNEL, "language_info": {"name": "python"}})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def source_hash(chapter: Chapter) -> str:
    """SHA-256 of what the committed notebook is run from: the script, and the budget it is run at if there is one."""
    digest = hashlib.sha256(chapter.script.read_bytes())
    if COMMITTED_BUDGET in chapter.budget_names():
        digest.update(b"\0" + chapter.budget_file(COMMITTED_BUDGET).read_bytes())
    return digest.hexdigest()


def execute_chapter(
    chapter: Chapter, *, budget: str = COMMITTED_BUDGET, timeout_s: int = 7200
) -> nbformat.NotebookNode:
    """Run a chapter's script with nbclient, in the chapter's folder, at a budget; returns the cleaned notebook,
    nothing is written.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    from nbclient import NotebookClient

    notebook = read_script(chapter.script)
    with kernel_home({"AVSSL_BUDGET": budget, "AVSSL_QUIET": "1"} | places(chapter.root)) as home:
        client = NotebookClient(
            notebook,
            timeout=timeout_s,
            kernel_name="python3",
            resources={"metadata": {"path": str(chapter.folder)}},
            config=kernel_config(home),
        )
        client.execute()
    return clean(notebook, source=source_hash(chapter))


def clean(notebook: nbformat.NotebookNode, *, source: str) -> nbformat.NotebookNode:
    """Remove what changes from run to run and means nothing (timings, versions), and note the source."""
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict(
            {key: cell.metadata[key] for key in _KEPT_CELL_METADATA if key in cell.metadata}
        )
        for output in cell.get("outputs", []):
            output.pop("transient", None)
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": _KERNEL, "language_info": {"name": "python"}, "avssl": {HASH_KEY: source}}
    )
    return notebook


def write_notebook(chapter: Chapter, notebook: nbformat.NotebookNode) -> Path:
    """Write a chapter's notebook beside its script; whole, or not at all."""
    nbformat.validate(notebook)
    temporary = chapter.notebook.with_suffix(".ipynb.part")
    temporary.write_text(nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n", encoding="utf-8")
    temporary.replace(chapter.notebook)
    return chapter.notebook


def stale_reasons(chapter: Chapter) -> list[str]:
    """Why a committed notebook does not stand for its script; empty when it does."""
    remedy = f"run `make notebook NAME={chapter.name}` and commit the result"
    if not chapter.notebook.is_file():
        return [f"{chapter.notebook.name} does not exist: {remedy}"]
    notebook = nbformat.read(chapter.notebook, as_version=nbformat.NO_CONVERT)
    reasons = []
    if notebook.metadata.get("avssl", {}).get(HASH_KEY) != source_hash(chapter):
        reasons.append(f"{chapter.notebook.name} was executed from another {chapter.script.name}: {remedy}")
    expected = [(cell.id, cell.source) for cell in read_script(chapter.script).cells]
    if [(cell.get("id"), cell.source) for cell in notebook.cells] != expected:
        reasons.append(f"the cells of {chapter.notebook.name} are not those of {chapter.script.name}: {remedy}")
    if any(output.output_type == "error" for cell in notebook.cells for output in cell.get("outputs", [])):
        reasons.append(f"{chapter.notebook.name} holds an error: mend the chapter, then {remedy}")
    return reasons
