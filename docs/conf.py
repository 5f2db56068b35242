"""Settings of the documentation site: ``make site`` builds it into build/site.

The source folder is the repository's root, so that the links of the Markdown files lead to the same places here
and on a code host: pages, notebooks, and source files, which the site shows too.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "docs" / "_extensions")]

from rimlit._version import __version__  # noqa: E402

project = "rimlit"
author = "The rimlit developers"
copyright = "The rimlit developers"
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "api_reference",
    "command_line",
    "navigation",
    "source_pages",
]
root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/*.ipynb", "*.md"]
exclude_patterns = [
    ".venv",
    ".git",
    "build",
    "dist",
    "runs",
    "data",
    "mlruns",
    "src",
    "tests",
    "**/.ipynb_checkpoints",
]

smartquotes = False  # --match would become –match
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
nb_execution_mode = "off"  # `make outputs` stores their outputs
nb_merge_streams = True

autodoc_member_order = "groupwise"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
nitpicky = True
nitpick_ignore = [("py:class", "Figure")]  # matplotlib's, imported for type checkers only
suppress_warnings = ["misc.highlighting_failure"]  # the shell commands of a notebook are not Python

html_theme = "furo"
html_title = f"rimlit {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_search_scorer = str(ROOT / "docs" / "_extensions" / "search.js")
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#1c5f8a", "color-brand-content": "#1c5f8a"},
    "dark_css_variables": {"color-brand-primary": "#7cc0ea", "color-brand-content": "#7cc0ea"},
}
