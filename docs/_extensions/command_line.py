"""The directive ``command-line``: every command with its options, from the parsers themselves."""

import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from rimlit.cli import SUBCOMMANDS
from rimlit.cli.completion import PARSED
from rimlit.cli.help import HELP_OF
from rimlit.cli.listing import Option, options_of
from rimlit.cli.setup import prepare


class CommandLine(SphinxDirective):
    """Describe all commands; options that several commands share are shown once, under the first."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        prepare([])
        for module in ("rimlit.cli", "rimlit.cli.options", "rimlit.cli.parser"):
            self.env.note_dependency(__import__(module, fromlist=["_"]).__file__)
        lines = list(describe())
        content = StringList(lines, source=self.env.doc2path(self.env.docname))
        return self.parse_content_to_nodes(content)

    def parse_content_to_nodes(self, content: StringList) -> list[nodes.Node]:  # type: ignore[override]
        """Parse Markdown with headings."""
        container = nodes.Element()
        self.state.nested_parse(content, 0, container, match_titles=True)
        return list(container.children)


def describe() -> Iterator[str]:
    """Yield the lines of the page in Markdown."""
    shown: set[Option] = set()
    for command, what in SUBCOMMANDS.items():
        yield from ("", f"## rimlit {command}", "", f"{what[:1].upper()}{what[1:]}.".replace("..", "."), "")
        if command in HELP_OF:
            yield from ("```text", *HELP_OF[command].splitlines(), "```")
        if command not in PARSED:
            continue
        options = options_of(command)
        new = [option for option in options if option not in shown]
        if len(new) < len(options):
            yield from ("The options of `rimlit fit`, and these:" if new else "The options of `rimlit fit`.", "")
        shown.update(options)
        group = None
        for option in new:
            if option.group != group:
                group = option.group
                yield from ("", f"### {'Settings' if group == 'options' else group.capitalize()} of {command}", "")
            default = f" Default: `{option.default}`." if option.default else ""
            yield from (f"`{option.name}`", f": {plain(option.help) or 'See the class'}.{default}", "")


def plain(text: str) -> str:
    """Return a help text as Markdown, without roles, its type and its default, which is shown apart."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"\1", text.partition(" (type:")[0]).replace("`", "")
    text = re.sub(r" Default: (\"[^\"]*\"|'[^']*'|[^ ]+?)\.?$", "", text)
    text = text.replace("*", "\\*").replace("<", "&lt;").rstrip(".")
    return f"{text[:1].upper()}{text[1:]}"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
