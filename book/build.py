"""Build the site: gather pages and committed notebooks, render them, and check that nothing needs a network.

``book.yml`` is the table of contents. Pages lie beside this file, notebooks in the chapters' folders; Sphinx wants one
tree, so both are copied to ``book/_build/source``. The page that lists the chapters is made from the manifest, the one
of what was measured from the files of the benchmarks.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from avssl.manifest import Manifest, costs, load_manifest
from avssl.measured import measured_page

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "benchmarks" / "results"

CHAPTERS_PAGE = """\
# The chapters

Thirteen papers in six parts. A chapter *runs* when its notebook is committed with its outputs; a *draft* can be run,
but its claims are not recorded; the others are planned, in this order. Minutes are for the hardware named beside them.
"""

# What a browser would fetch by itself. Links that a reader clicks may lead anywhere.
_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|audio|video|embed)\b[^>]*\bsrc=["']?(?:https?:)?//"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|icon|preconnect|modulepreload))[^>]*\bhref=["']?(?:https?:)?//""",
    re.IGNORECASE,
)
_FETCHED_CSS = re.compile(r"""@import\s+(?:url\()?["']?(?:https?:)?//|url\(\s*["']?(?:https?:)?//""", re.IGNORECASE)


def stage(manifest: Manifest, source: Path) -> list[Path]:
    """Gather everything Sphinx reads.

    Args:
        manifest: the book; its root holds ``book.yml`` and ``chapters/``.
        source: folder to write; emptied first.

    Returns:
        Chapters of the table of contents whose notebook is not committed yet; they are left out of the site.

    Raises:
        FileNotFoundError, ValueError: of a benchmark's file, as :func:`~avssl.measured.measured_page`.
    """
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for page in HERE.glob("*.md"):
        shutil.copy(page, source)
    (source / "chapters.md").write_text(chapters_page(manifest), encoding="utf-8")
    (source / "what-was-measured.md").write_text(measured_page(RESULTS), encoding="utf-8")
    toc = yaml.safe_load((manifest.root / "book.yml").read_text(encoding="utf-8"))
    missing: list[Path] = []
    for part in toc["parts"]:
        kept = []
        for entry in part["chapters"]:
            notebook = manifest.root / f"{entry['file']}.ipynb"
            if notebook.is_file():
                target = source / notebook.relative_to(manifest.root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(notebook, target)
            elif not (source / f"{entry['file']}.md").is_file():
                missing.append(notebook)
                continue
            kept.append(entry)
        part["chapters"] = kept
    toc["parts"] = [part for part in toc["parts"] if part["chapters"]]
    (source / "_toc.yml").write_text(yaml.safe_dump(toc, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return missing


def chapters_page(manifest: Manifest) -> str:
    """The page that lists the chapters, part by part; the ones that run link to their notebook."""
    lines = [CHAPTERS_PAGE]
    for part, name in manifest.parts.items():
        lines.append(f"## {part} · {name}\n")
        for chapter in (chapter for chapter in manifest.chapters if chapter.part == part):
            there = chapter.notebook.is_file()
            target = chapter.notebook.relative_to(manifest.root).with_suffix("")
            title = f"{{doc}}`{chapter.title} <{target}>`" if there else chapter.title
            state = {"runs": f"Runs: {costs(chapter.budgets)}.", "draft": "A draft: it runs, nothing is recorded yet."}
            lines.append(
                f"**{title}** (`{chapter.name}`)\n: [{chapter.paper}]({chapter.url}), {chapter.venue}.\n  "
                f"{state.get(chapter.state, 'Planned.')}\n"
            )
    return "\n".join(lines)


def fetched_from_elsewhere(site: Path) -> list[str]:
    """Tags and style rules of a built site that would load something from a network, as ``file: tag``."""
    found = []
    for page in sorted(site.rglob("*.html")):
        found += [
            f"{page.relative_to(site)}: {match[0]}" for match in _FETCHED.finditer(page.read_text(encoding="utf-8"))
        ]
    for sheet in sorted(site.rglob("*.css")):
        found += [f"{sheet.relative_to(site)}: {match[0]}" for match in _FETCHED_CSS.finditer(sheet.read_text("utf-8"))]
    return found


def main() -> int:
    """Build; returns the exit code."""
    parser = argparse.ArgumentParser(description="Build the book.")
    parser.add_argument("--book", type=Path, default=HERE.parent / "book.yml")
    parser.add_argument("--out", type=Path, default=HERE / "_build")
    parser.add_argument("--draft", action="store_true", help="leave out chapters whose notebook is not committed yet")
    given = parser.parse_args()
    source, site = given.out / "source", given.out / "html"
    missing = stage(load_manifest(given.book), source)
    for notebook in missing:
        print(f"not committed: {notebook}", file=sys.stderr)
    if missing and not given.draft:
        print(
            "Execute it with `make notebook NAME=…`, or build a draft without it: book/build.py --draft",
            file=sys.stderr,
        )
        return 1
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        "-c",
        str(HERE),
        str(source),
        str(site),
    ]
    if code := subprocess.call(command):
        return code
    if elsewhere := fetched_from_elsewhere(site):
        print("The site would load from a network:", *elsewhere, sep="\n  ", file=sys.stderr)
        return 1
    print(f"open {site / 'index.html'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
