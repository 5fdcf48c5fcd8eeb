"""The site: built from a notebook, readable without a network, and honest about what is missing."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from toy_book import write_book

from avssl.manifest import load_manifest
from avssl.notebooks import clean, execute_chapter, read_script, source_hash, write_notebook

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "book" / "build.py"
PAGES = ("how-to-read", "chapters", "what-was-measured")
EQUATION = """
# %% [markdown]
# The loss, with $\\tau = 0.07$:
#
# $$ \\mathcal{L} = -\\log \\frac{e^{s / \\tau}}{\\sum_k e^{s_k / \\tau}} $$

# %%
print("an output of the", "notebook")
"""

pytest.importorskip("sphinx_book_theme", reason="pip install -e '.[book]'")


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("book_build", BUILD)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def book_with_toc(root: Path) -> Path:
    book = write_book(root, EQUATION)
    content = yaml.safe_load(book.read_text())
    pages = {"caption": "The book", "chapters": [{"file": name} for name in PAGES]}
    content["parts"] = [pages, {"caption": "I · Toys", "chapters": [{"file": "chapters/01_toy/toy"}]}]
    book.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
    return book


def run(book: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BUILD), "--book", str(book), "--out", str(out), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_the_site_shows_committed_outputs_and_equations_without_a_network(tmp_path: Path) -> None:
    book = book_with_toc(tmp_path)
    toy = load_manifest(book).chapter("toy")
    write_notebook(toy, execute_chapter(toy, budget="smoke"))
    ran = run(book, tmp_path / "site")
    assert ran.returncode == 0, ran.stderr
    site = tmp_path / "site" / "html"
    page = (site / "chapters" / "01_toy" / "toy.html").read_text()
    assert "an output of the notebook" in page  # the output, not the source
    assert "budget=smoke" in page  # shown as committed: not executed again
    assert r"\tau = 0.07" in page
    script = re.search(r'<script[^>]*src="([^"]*mathjax/[^"?]*)', page)[1]
    assert (site / "chapters" / "01_toy" / script).resolve().is_file()
    chapters = (site / "chapters.html").read_text()
    assert "Planned." in chapters
    assert 'href="chapters/01_toy/toy.html"' in chapters
    assert "Goals that were missed" in (site / "what-was-measured.html").read_text()


def test_a_chapter_without_its_notebook_stops_the_build_or_is_left_out_of_a_draft(tmp_path: Path) -> None:
    book = book_with_toc(tmp_path)
    ran = run(book, tmp_path / "site")
    assert ran.returncode == 1
    assert "not committed" in ran.stderr
    assert "toy.ipynb" in ran.stderr
    draft = run(book, tmp_path / "site", "--draft")
    assert draft.returncode == 0, draft.stderr
    assert not (tmp_path / "site" / "html" / "chapters" / "01_toy").exists()


def test_a_warning_stops_the_build(tmp_path: Path) -> None:
    book = book_with_toc(tmp_path)
    toy = load_manifest(book).chapter("toy")
    toy.script.write_text(toy.script.read_text() + "\n# %% [markdown]\n# {doc}`no-such-page`\n")
    write_notebook(toy, clean(read_script(toy.script), source=source_hash(toy)))
    ran = run(book, tmp_path / "site")
    assert ran.returncode != 0
    assert "no-such-page" in ran.stderr


@pytest.mark.parametrize(
    ("name", "text", "seen"),
    [
        ("a.html", '<script async src="https://cdn.jsdelivr.net/npm/mathjax@3"></script>', True),
        ("a.html", '<script src="//cdn.example.org/x.js"></script>', True),
        ("a.html", '<link href="https://fonts.googleapis.com/css" rel="stylesheet">', True),
        ("a.html", "<link rel=stylesheet href=http://x.org/y.css>", True),
        ("a.html", '<img src="https://example.org/x.png">', True),
        ("a.html", '<a href="https://arxiv.org/abs/2003.04298">the paper</a>', False),
        ("a.html", '<link rel="canonical" href="https://example.org/">', False),
        ("a.html", '<script src="_static/x.js"></script>', False),
        ("a.css", "@import url(https://fonts.example.org/x.css);", True),
        ("a.css", "src: url('//fonts.example.org/x.woff2')", True),
        ("a.css", "src: url(../fonts/x.woff2)", False),
    ],
)
def test_what_a_browser_would_fetch_is_found(
    build: ModuleType, tmp_path: Path, name: str, text: str, seen: bool
) -> None:
    (tmp_path / name).write_text(text)
    assert bool(build.fetched_from_elsewhere(tmp_path)) == seen
