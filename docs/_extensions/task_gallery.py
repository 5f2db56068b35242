"""The directive ``task-gallery``: the shipped configs by dataset, with what their headers say to expect."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

PICTURES = {
    "copying": ("images/copying_activity.png", "Which mechanisms are active when, while a RIM copies"),
    "bouncing_balls": ("images/bouncing_balls.gif", "A RIM's predictions of bouncing balls after 15 true frames"),
    "doorkey": ("images/doorkey.gif", "An agent with a RIM opens the door"),
}
LEFT_OUT = ("trainer",)


class TaskGallery(SphinxDirective):
    """Describe every shipped config."""

    def run(self) -> list[nodes.Node]:
        """Return a section for each dataset."""
        root = Path(self.env.srcdir) / "configs"
        for path in root.rglob("*.yaml"):
            self.env.note_dependency(str(path))
        container = nodes.Element()
        content = StringList(list(describe(root)), source=self.env.doc2path(self.env.docname))
        self.state.nested_parse(content, 0, container, match_titles=True)
        return list(container.children)


def describe(root: Path) -> Iterator[str]:
    """Yield the lines of the page in Markdown."""
    folders = sorted({path.parent.relative_to(root).as_posix() for path in root.rglob("*.yaml")} - set(LEFT_OUT))
    order = [*PICTURES, *folders]
    for folder in sorted(folders, key=lambda name: (name.count("/"), order.index(name))):
        yield from ("", f"## {folder}", "")
        if folder in PICTURES:
            picture, what = PICTURES[folder]
            yield from (f"![{what}]({picture})", "")
        for path in sorted((root / folder).glob("*.yaml"), key=lambda path: (path.stem != "rim", path.stem)):
            yield from entry(root, path)


def entry(root: Path, path: Path) -> Iterator[str]:
    """Yield a config: its name, what it is, how to run it, what to expect."""
    header = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        header.append(line.removeprefix("#").strip())
    name = path.relative_to(root).with_suffix("").as_posix()
    what = [line for line in header if not line.startswith(("rimlit ", "→"))]
    expected = [line.removeprefix("→").strip() for line in header if line.startswith("→")]
    yield from (f"[`{name}`](../configs/{name}.yaml)", f": {escaped(' '.join(what))}", "")
    if expected:
        yield from (f"  Expect: {escaped('; '.join(expected))}", "")
    yield from ("  ```bash", f"  rimlit fit {name}", "  ```", "")


def escaped(text: str) -> str:
    """Return a text without what Markdown would read."""
    return text.replace("*", "\\*").replace("<", "&lt;").replace("_", "\\_")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("task-gallery", TaskGallery)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
