"""Links from pages to files of the repository: a file gets a page that shows it, a folder one that lists it."""

import html
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.osutil import relative_uri

log = logging.getLogger(__name__)
FOLDER = "source"


def shown_files(env: BuildEnvironment) -> dict[str, set[str]]:
    """Return the pages that link to a path of the repository, by path."""
    if not hasattr(env, "rimlit_shown_files"):
        env.rimlit_shown_files = {}
    return env.rimlit_shown_files


def link_source_pages(app: Sphinx, document: nodes.document) -> None:
    """Turn links to files and folders that are not pages of the site into links to their source pages."""
    env, root = app.env, Path(app.srcdir)
    here = root / env.docname
    for node in list(document.findall(addnodes.download_reference)) + list(
        document.findall(addnodes.pending_xref)
    ):
        if node.get("reftype") not in ("myst", None) and not isinstance(node, addnodes.download_reference):
            continue
        target = (here.parent / node["reftarget"].partition("#")[0]).resolve()
        if target == root or not target.is_relative_to(root) or not target.exists():
            continue
        path = target.relative_to(root).as_posix()
        if env.path2doc(str(target)) in env.found_docs:
            continue
        shown_files(env).setdefault(path, set()).add(env.docname)
        here_uri = app.builder.get_target_uri(env.docname)
        link = nodes.reference("", "", internal=True, refuri=relative_uri(here_uri, f"{FOLDER}/{path}.html"))
        link += node.children
        node.replace_self(link)


def forget_page(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Forget the links of a page that is read again."""
    for pages in shown_files(env).values():
        pages.discard(docname)


def merge_pages(app: Sphinx, env: BuildEnvironment, docnames: set[str], other: BuildEnvironment) -> None:
    """Join what processes read that worked side by side."""
    for path, pages in shown_files(other).items():
        shown_files(env).setdefault(path, set()).update(pages & docnames)


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield a page for each file and folder that is linked, and for the files of those folders."""
    root = Path(app.srcdir)
    listed = subprocess.run(
        ["git", "ls-files"], cwd=root, capture_output=True, text=True, check=False
    ).stdout.split()
    linked = {path for path, pages in shown_files(app.env).items() if pages}
    folders = {path for path in linked if (root / path).is_dir()}
    for folder in sorted(folders):
        inside = [path for path in listed if path.startswith(f"{folder}/")]
        linked |= set(inside)
        links = {path: relative_uri(f"{FOLDER}/{folder}.html", page_of(app, path)) for path in inside}
        rows = "".join(f'<li><a href="{link}">{html.escape(path)}</a></li>' for path, link in links.items())
        yield page(folder, f"<ul>{rows}</ul>")
    for path in sorted(linked - folders):
        if app.env.path2doc(str(root / path)) not in app.env.found_docs:
            yield page(path, highlighted(app, root / path))


def page_of(app: Sphinx, path: str) -> str:
    """Return the address of a file: its page in the site, or its source page."""
    docname = app.env.path2doc(str(Path(app.srcdir) / path))
    return app.builder.get_target_uri(docname) if docname in app.env.found_docs else f"{FOLDER}/{path}.html"


def page(path: str, body: str) -> tuple[str, dict[str, Any], str]:
    """Return what Sphinx needs to write a page that is not a document."""
    title = f"<h1><code>{html.escape(path)}</code></h1>"
    return f"{FOLDER}/{path}", {"title": path, "body": title + body, "parents": []}, "page.html"


LANGUAGES = {".h": "cpp", ".cpp": "cpp", ".py": "python", ".yaml": "yaml", ".json": "json", ".toml": "toml"}


def highlighted(app: Sphinx, path: Path) -> str:
    """Return a file's text as highlighted HTML."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return f"<p>{path.stat().st_size:,} bytes, not text.</p>"
    language = "make" if path.name == "Makefile" else LANGUAGES.get(path.suffix, "text")
    try:
        return str(app.builder.highlighter.highlight_block(text, language, linenos=False))
    except ClassNotFound:
        return f"<pre>{html.escape(text)}</pre>"


def front_door(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Write ``index.html``, which leads to the start page, after the build."""
    target = app.builder.get_target_uri(app.config.root_doc)
    text = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={target}">'
    (Path(app.outdir) / "index.html").write_text(f'{text}<a href="{target}">{app.config.project}</a>\n')
    yield from ()


LINK = re.compile(r'(?:href|src)="([^"]+)"')


def check_links(app: Sphinx, exception: Exception | None) -> None:
    """Warn of each link of a written page that leads to no file or to no place in it."""
    if exception is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir)
    texts = {path: path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}
    places = {path: set(re.findall(r'\b(?:id|name)="([^"]+)"', text)) for path, text in texts.items()}
    for path, text in texts.items():
        if FOLDER in path.relative_to(folder).parts[:1]:
            text = text.partition("<article")[0]  # code may contain what looks like a link
        for link in sorted(set(LINK.findall(text))):
            name, _, place = html.unescape(link).partition("#")
            name = name.partition("?")[0]
            if re.match(r"[a-z]+:|//", name) or "{{" in name:
                continue
            target = (path.parent / name).resolve() if name else path
            if not target.exists():
                log.warning("%s: link to %s, which does not exist", path.relative_to(folder), link)
            elif place and target in places and place not in places[target]:
                log.warning("%s: link to %s, where there is no such place", path.relative_to(folder), link)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the links, the pages and their check."""
    app.connect("doctree-read", link_source_pages, priority=100)  # before Sphinx collects downloads
    app.connect("env-purge-doc", forget_page)
    app.connect("env-merge-info", merge_pages)
    app.connect("html-collect-pages", source_pages)
    app.connect("html-collect-pages", front_door)
    app.connect("build-finished", check_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
