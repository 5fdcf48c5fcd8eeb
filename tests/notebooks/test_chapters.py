"""Every chapter that runs: its committed notebook is fresh, and passes nbval at ``smoke`` within the budget's time."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from toy_book import write_book

from avssl.manifest import Chapter, load_manifest
from avssl.notebooks import clean, execute_chapter, read_script, source_hash, stale_reasons, write_notebook
from avssl_core import reporting

ROOT = Path(__file__).resolve().parents[2]
SMOKE_S = 75.0  # for two cores of their own
SMOKE_BYTES = 2 * 2**30
LIMIT_S = 4 * SMOKE_S  # the rest of the suite runs beside it
RUNNING = [chapter for chapter in load_manifest(ROOT / "book.yml").chapters if chapter.runs]
# Runs a command and tells the memory of the largest process among it and what it started and waited for.
MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(f"peak_kib={resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}", flush=True)
sys.exit(code)
"""
chapters = pytest.mark.parametrize("chapter", RUNNING, ids=lambda chapter: chapter.name)


def nbval(notebook: Path, *, cwd: Path, timeout_s: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
    """``pytest --nbval-lax`` as a reader would run it, at ``smoke``, apart from this project's pytest settings."""
    options = ["--nbval-lax", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov", "--rootdir", str(cwd)]
    options += ["-c", os.devnull, "--nbval-cell-timeout", "300", "--nbval-kernel-name", "python3"]
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "COV_", "AVSSL_RUN"))
    }
    return subprocess.run(
        [sys.executable, "-c", MEASURED, sys.executable, "-m", "pytest", *options, str(notebook)],
        cwd=cwd,
        # Beside other tests, torch's threads wait for each other all the time: asleep, so that processor time says what
        # the chapter computes and not how busy its neighbours are.
        env=inherited | {"AVSSL_BUDGET": "smoke", "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


@chapters
def test_the_committed_notebook_is_that_of_the_script(chapter: Chapter) -> None:
    assert stale_reasons(chapter) == []


@chapters
def test_a_cell_checks_its_output(chapter: Chapter) -> None:
    """nbval compares nothing unless a cell is tagged for it, and compares with nothing unless it has an output."""
    if not chapter.notebook.is_file():
        pytest.fail(stale_reasons(chapter)[0])
    cells = nbformat.read(chapter.notebook, as_version=4).cells
    checked = [cell for cell in cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert checked
    assert all(cell.outputs for cell in checked)


@chapters
def test_the_committed_verdicts_are_those_of_the_ledgers(chapter: Chapter) -> None:
    """A ledger that is recorded further, or carried across an edit, must be shown again."""
    if not chapter.notebook.is_file():
        pytest.fail(stale_reasons(chapter)[0])
    ledgers = reporting.read_ledgers(ROOT, chapter.name)
    shown = 0
    for cell in nbformat.read(chapter.notebook, as_version=4).cells:
        texts = [output["data"].get("text/markdown", "") for output in cell.get("outputs", []) if "data" in output]
        for corpus in re.findall(r'verdicts_text\(ledgers, corpus="(\w+)"\)', cell.source):
            expected = reporting.verdicts_text(ledgers, corpus=corpus)
            assert not expected or texts == [expected], f"{chapter.name}: verdicts on {corpus} are not the ledger's"
            shown += bool(expected)
        if "reporting.shortfalls(ledgers)" in cell.source:
            assert texts == [reporting.shortfalls(ledgers)], f"{chapter.name}: shortfalls are not the ledger's"
            shown += 1
    assert shown >= 2


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 60)
@chapters
def test_nbval_at_smoke(chapter: Chapter) -> None:
    """On the committed notebook, in the chapter's folder."""
    if not chapter.notebook.is_file():
        pytest.fail(stale_reasons(chapter)[0])
    started, children = time.perf_counter(), os.times().children_user
    ran = nbval(chapter.notebook, cwd=chapter.folder)
    wall_s, cpu_s = time.perf_counter() - started, os.times().children_user - children
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert re.search(r"\d+ passed", ran.stdout)
    print(f"{chapter.name}: {wall_s:.0f} s, {cpu_s:.0f} s of processor time")
    # Two cores of their own have twice this much processor time in 75 s; wall time here is shared with other tests.
    assert cpu_s < 2 * SMOKE_S
    largest = 1024 * int(re.findall(r"peak_kib=(\d+)", ran.stdout)[0])
    assert largest < SMOKE_BYTES, f"a process of the chapter took {largest / 2**30:.2f} GiB"


def test_nbval_here_sees_changed_outputs_and_errors(tmp_path: Path) -> None:
    """The check above can fail: an output that has changed, and a cell that raises, are both seen."""
    cells = '\n# %% tags=["nbval-check-output"]\nprint("seven")\n'
    toy = load_manifest(write_book(tmp_path, cells)).chapter("toy")
    write_notebook(toy, execute_chapter(toy))
    assert nbval(toy.notebook, cwd=toy.folder).returncode == 0  # the untagged cell prints another budget: not compared
    notebook = nbformat.read(toy.notebook, as_version=4)
    notebook.cells[-1].outputs[0].text = "eight\n"
    write_notebook(toy, notebook)
    seen = nbval(toy.notebook, cwd=toy.folder)
    assert seen.returncode == 1
    assert "eight" in seen.stdout
    shutil.copy(toy.script, tmp_path / "good.py")
    toy.script.write_text(toy.script.read_text() + '\n# %%\nraise ValueError("stop here")\n')
    write_notebook(toy, clean(read_script(toy.script), source=source_hash(toy)))
    assert "stop here" in nbval(toy.notebook, cwd=toy.folder).stdout


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 60)
def test_a_chapter_on_a_folder_of_real_clips(real_data: Path, tmp_path: Path) -> None:
    """The whole notebook by the command line, on files of many shapes and codecs and one that is no video."""
    folder = tmp_path / "my clips"
    folder.mkdir()
    files = sorted((real_data / "av_events").rglob("*.mp4"))[::5][:12]
    for file in files:
        shutil.copy(file, folder)
    (folder / "notes.mp4").write_text("this is no video")
    command = ["run", "gdt", "--budget", "smoke", "--data", str(folder), "--out", str(tmp_path / "run")]
    small = {"width": 4, "audio_width": 4, "embed_dim": 8, "samples_per_step": 16, "steps": 2, "variance_batches": 2}
    command += [word for name, value in (small | {"warmup_steps": 0}).items() for word in ("-p", f"{name}={value}")]
    environment = {**os.environ, "AVSSL_CACHE": str(tmp_path / "cache"), "OMP_WAIT_POLICY": "PASSIVE"}
    ran = subprocess.run(
        [sys.executable, "-m", "avssl", *command],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env=environment,
        cwd=ROOT,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    figures = json.loads((tmp_path / "run" / "claims.json").read_text())["this run"]
    assert set(figures) == {"random", "a", "l"}
    asked = {"time_sensitivity", "sound_from_sight_r1", "sound_from_sight_r5"}  # all that can be asked without a label
    assert all(set(metrics) == asked for metrics in figures.values())
    notebook = nbformat.read(next((tmp_path / "run").glob("*.ipynb")), as_version=4)
    said = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    found = re.search(r"(\d+) videos to learn from, (\d+) held out", said)
    assert found is not None and int(found[1]) + int(found[2]) == len(files)  # all, and not the one that is none
