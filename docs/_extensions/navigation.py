"""The contents: a page that ``docs/index.md`` does not list yet is added under *More*."""

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx


def add_unlisted_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Add a list of the pages in ``docs`` and ``notebooks`` that the index does not name."""
    if docname != app.config.root_doc:
        return
    root = Path(app.srcdir)
    listed = set(re.findall(r"^(?:.*<)?([\w./-]+?)>?$", source[0], flags=re.MULTILINE))
    pages = [path.stem for path in sorted(root.glob("docs/*.md"))]
    pages += [f"../notebooks/{path.stem}" for path in sorted(root.glob("notebooks/*.ipynb"))]
    unlisted = [page for page in pages if page not in listed and page != "index"]
    if unlisted:
        lines = "\n".join(unlisted)
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: More\n\n{lines}\n```\n"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the addition."""
    app.connect("source-read", add_unlisted_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
