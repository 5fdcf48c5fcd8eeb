"""Script and notebook: stable cell ids, clean metadata, and knowing when a committed notebook is stale."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from toy_book import write_book

from avssl.errors import UsageError
from avssl.manifest import Chapter, load_manifest
from avssl.notebooks import clean, execute_chapter, read_script, source_hash, stale_reasons, write_notebook

TAGGED = """
# %% tags=["nbval-check-output"]
print(1 + 1)

# %% tags=["nbval-check-output"]
print(1 + 1)
"""


@pytest.fixture
def toy(tmp_path: Path) -> Chapter:
    return load_manifest(write_book(tmp_path, TAGGED)).chapter("toy")


def test_cell_ids_depend_on_the_cells_alone(toy: Chapter) -> None:
    first = read_script(toy.script).cells
    assert [cell.id for cell in first] == [cell.id for cell in read_script(toy.script).cells]
    assert len({cell.id for cell in first}) == len(first)  # also for two equal cells
    toy.script.write_text(toy.script.read_text().replace("print(f", "print('changed', f"))
    changed = [a.id != b.id for a, b in zip(first, read_script(toy.script).cells, strict=True)]
    assert changed == [False, False, True, False, False]


def test_tags_survive_and_nothing_else_of_the_metadata(toy: Chapter) -> None:
    notebook = read_script(toy.script)
    for cell in notebook.cells:
        cell.metadata["papermill"] = {"duration": 1.0}
    notebook.metadata["widgets"] = {"state": 1}
    cleaned = clean(notebook, source="abc")
    assert [cell.metadata.get("tags") for cell in cleaned.cells].count(["nbval-check-output"]) == 2
    assert all(set(cell.metadata) <= {"tags"} for cell in cleaned.cells)
    assert set(cleaned.metadata) == {"kernelspec", "language_info", "avssl"}


def test_executing_twice_gives_the_same_file(toy: Chapter) -> None:
    path = write_notebook(toy, execute_chapter(toy))
    first = path.read_bytes()
    write_notebook(toy, execute_chapter(toy))
    assert path.read_bytes() == first
    notebook = nbformat.read(path, as_version=4)
    assert "budget=small" in notebook.cells[2].outputs[0].text
    assert stale_reasons(toy) == []
    assert not list(path.parent.glob("*.part"))


def test_a_failing_cell_leaves_the_old_notebook(toy: Chapter) -> None:
    path = write_notebook(toy, execute_chapter(toy))
    before = path.read_bytes()
    toy.script.write_text(toy.script.read_text() + "\n# %%\nraise ValueError('no')\n")
    with pytest.raises(CellExecutionError, match="raise ValueError"):
        execute_chapter(toy)
    assert path.read_bytes() == before


@pytest.mark.parametrize("changed", ["script", "budget", "notebook"])
def test_a_notebook_is_stale_when_script_budget_or_cells_have_changed(toy: Chapter, changed: str) -> None:
    notebook = clean(read_script(toy.script), source=source_hash(toy))
    write_notebook(toy, notebook)
    assert stale_reasons(toy) == []
    if changed == "script":
        toy.script.write_text(toy.script.read_text() + "\n# a comment\n")
    elif changed == "budget":
        toy.budget_file("small").write_text("steps: 6\n")
    else:
        notebook.cells[2].source += "\nprint('edited in Jupyter')"
        write_notebook(toy, notebook)
    reasons = stale_reasons(toy)
    assert reasons
    assert all("make notebook NAME=toy" in reason for reason in reasons)


def test_a_missing_notebook_and_one_with_an_error_are_stale(toy: Chapter) -> None:
    assert "does not exist" in stale_reasons(toy)[0]
    notebook = clean(read_script(toy.script), source=source_hash(toy))
    notebook.cells[2].outputs = [nbformat.v4.new_output("error", ename="E", evalue="x", traceback=[])]
    write_notebook(toy, notebook)
    assert "holds an error" in stale_reasons(toy)[0]


def test_only_percent_scripts_are_chapters(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("x = 1\n")
    with pytest.raises(UsageError, match="py:percent"):
        read_script(tmp_path / "plain.py")
