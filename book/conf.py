"""Sphinx: renders the committed outputs of the notebooks, never executes; what pages need is in the built folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

HERE = Path(__file__).resolve().parent

project = "Audio-visual self-supervised learning, reproduced"
author = "the contributors"
copyright = "the contributors; text CC BY 4.0, code Apache-2.0"
language = "en"

extensions = ["myst_nb", "sphinx_external_toc", "sphinx.ext.mathjax"]
external_toc_path = "_toc.yml"  # book.yml, put beside the pages by build.py
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # tables of claims among the outputs
nb_ipywidgets_js = {}  # these come from a CDN; no chapter uses widgets
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath", "deflist"]
myst_dmath_double_inline = True
suppress_warnings = ["mystnb.unknown_mime_type"]
numfig = False


def _mathjax() -> str:
    """The folder that holds ``mathjax/``: MathJax 3 from a Python package; equations show without a network."""
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("MathJax is missing: pip install sphinx-mathjax-offline")
    return str(Path(spec.submodule_search_locations[0]) / "static")


html_theme = "sphinx_book_theme"
html_title = project
html_static_path = [str(HERE / "_static"), _mathjax()]
html_css_files = ["book.css"]
# SVG output draws its own glyphs: browsers do not load fonts for pages opened from a disk.
mathjax_path = "mathjax/tex-svg.js"
html_theme_options = {
    "navbar_persistent": [],  # the sidebar has the search field already
    "show_navbar_depth": 2,
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "use_download_button": True,
    "use_fullscreen_button": False,
}
html_copy_source = False
html_show_sourcelink = False
