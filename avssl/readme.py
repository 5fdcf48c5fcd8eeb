"""``python -m avssl.readme``: put the chapters of ``book.yml`` into the README, between its two comments."""

from __future__ import annotations

import sys
from pathlib import Path

from avssl.manifest import Manifest, chapters_markdown, load_manifest

BEGIN = "<!-- chapters: made from book.yml by `make readme` -->\n"
END = "<!-- end of chapters -->"


def with_chapters(text: str, manifest: Manifest) -> str:
    """The README with its table of chapters as the manifest has it.

    Raises:
        ValueError: one of the two comments is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README lacks {BEGIN.strip()!r} or {END!r}")
    return f"{before}{BEGIN}{chapters_markdown(manifest)}\n{END}{after}"


def main() -> None:
    """Rewrite README.md beside book.yml."""
    manifest = load_manifest(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    readme = manifest.root / "README.md"
    readme.write_text(with_chapters(readme.read_text(encoding="utf-8"), manifest), encoding="utf-8")


if __name__ == "__main__":
    main()
