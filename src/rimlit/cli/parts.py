"""``rimlit mechanisms``: the parts that a RIM's mechanisms are made of, by kind."""

import inspect
import re

from rimlit.backbones.rim_parts import KINDS
from rimlit.checks import require_known
from rimlit.console import in_columns, say
from rimlit.mechanisms import known_parts

NAME_COLUMNS = 22


def run_mechanisms(arguments: list[str]) -> None:
    """Print the short name of each part and the first sentence about it.

    Args:
        arguments: Kinds of parts; none for all.

    Raises:
        ConfigError: There is no such kind.
    """
    for kind in arguments:
        require_known(kind=(kind, KINDS))
    for kind in arguments or KINDS:
        say(f"{kind}:")
        for name, cls in known_parts(KINDS[kind]).items():
            say(in_columns(f"  {name}", first_sentence(cls), NAME_COLUMNS))


def first_sentence(cls: type) -> str:
    """Return the first sentence of a class's docstring, without markup."""
    text = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
    text = re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "")
    return re.split(r"\. (?=[A-Z][a-z])", text)[0].removesuffix(".")
