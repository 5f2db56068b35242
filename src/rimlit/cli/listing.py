"""What the parsers take, as plain rows: for the command-line reference and the frozen list of options."""

import argparse
import re
from collections.abc import Iterator
from typing import NamedTuple

from rimlit.cli.completion import OPTIONS, PARSED
from rimlit.cli.parser import build_parser


class Option(NamedTuple):
    """One option of a command."""

    group: str
    """Heading under which the help shows it."""
    name: str
    """With its dashes; the longest of its names."""
    default: str
    """Empty where there is none."""
    help: str
    """In one line."""


def options_of(command: str) -> list[Option]:
    """Return the options of a command in the order of its help.

    Args:
        command: One that ``rimlit --help`` lists.
    """
    if command in PARSED:
        return list(_parsed_options(command))
    names = [word for word in OPTIONS[command].split() if word.startswith("--") and word != "--help"]
    return [Option("", name, "", "") for name in names]


def _parsed_options(command: str) -> Iterator[Option]:
    for group in build_parser(command)._action_groups:
        title = (group.title or "").partition(":")[0]
        for action in group._group_actions:
            if action.option_strings and action.help != argparse.SUPPRESS:
                default = action.default
                yield Option(
                    group=re.sub(r"^<class '(.+)'>$", r"\1", title),
                    name=max((name.removesuffix("+") for name in action.option_strings), key=len),
                    default="" if default in (None, argparse.SUPPRESS) else str(default),
                    help=" ".join((action.help or "").split()).replace("%%", "%"),
                )
