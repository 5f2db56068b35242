"""The directive ``command-line``: every command with its options, from the parsers themselves."""

from collections.abc import Iterator
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from rimlit.cli import SUBCOMMANDS
from rimlit.cli.completion import PARSED
from rimlit.cli.listing import HELP_OF, Option, options_of
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
                yield from ("", f"### {heading(group)} of {command}", "")
            default = f" Default: `{option.default}`." if option.default else ""
            text = option.help.replace("*", "\\*").replace("<", "&lt;").replace("`", "")
            text = text.partition(" (type:")[0].rstrip(".")
            yield from (f"`{option.name}`", f": {text or 'See the class'}.{default}", "")


HEADINGS = {
    "options": "Settings",
    "positional arguments": "Arguments",
    "Customize every aspect of training via flags": "Trainer",
    "Base of all tasks": "Task",
    "Base of all data modules": "Data module",
    "Runs the full": "Run",
    "Perform one evaluation": "Run",
    "Run inference": "Run",
}
"""Headings of the page by the beginning of those that the parser has."""


def heading(group: str) -> str:
    """Return the heading of a group of options."""
    return next((short for start, short in HEADINGS.items() if group.startswith(start)), group)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
