"""The public names and the options, as text: what a user's code, configs and commands rely on.

Refresh them only on purpose:  make golden, or python -m tests.golden.names
"""

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rimlit
from rimlit.cli import SUBCOMMANDS
from rimlit.cli.listing import options_of

FOLDER = Path(__file__).parent
MODULES = ("errors", "spec", "types", "deprecation", "integrations.torchrl")
CONFIGURED = (
    "backbones",
    "mechanisms",
    "encoders",
    "heads",
    "tasks",
    "data",
    "rl",
    "training",
    "pictures",
    "tracking",
)
"""Packages whose classes a config builds: their constructors' arguments are its keys."""


def packages() -> list[str]:
    """Return the public packages."""
    found = [path.parent.name for path in Path(rimlit.__file__).parent.glob("*/__init__.py")]
    modules = {name: importlib.import_module(f"rimlit.{name}") for name in sorted(found) if name[0] != "_"}
    return [name for name, module in modules.items() if name != "cli" and hasattr(module, "__all__")]


def public_names() -> Iterator[str]:
    """Yield the dotted public names."""
    yield from (f"rimlit.{name}" for name in sorted(rimlit.__all__))
    for package in packages():
        names = sorted(importlib.import_module(f"rimlit.{package}").__all__)
        yield from (f"rimlit.{package}.{name}" for name in names)
    for name in MODULES:
        module = importlib.import_module(f"rimlit.{name}")
        own = [each for each, found in vars(module).items() if getattr(found, "__module__", "") == module.__name__]
        yield from (f"{module.__name__}.{each}" for each in sorted(own) if each[0] != "_")


def options() -> Iterator[str]:
    """Yield the options of each command, but for Lightning's own, and the arguments of each class of a config."""
    for command in SUBCOMMANDS:
        names = sorted(option.name for option in options_of(command) if not option.name.startswith("--trainer."))
        yield " ".join([f"rimlit {command}:", *names])
    seen: set[Any] = set()
    for package in CONFIGURED:
        module = importlib.import_module(f"rimlit.{package}")
        for name in sorted(getattr(module, "__all__", ())):
            found = getattr(module, name)
            if inspect.isclass(found) and found.__module__.startswith("rimlit.") and found not in seen:
                seen.add(found)
                parameters = [shown(each) for each in inspect.signature(found).parameters.values()]
                yield f"rimlit.{package}.{name}: {', '.join(parameters)}"


def shown(parameter: inspect.Parameter) -> str:
    """Return an argument with its default, without its type."""
    star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    default = parameter.default
    if default is parameter.empty:
        return f"{star}{parameter.name}"
    plain = isinstance(default, (str, int, float, bool, tuple, type(None)))
    return f"{star}{parameter.name}={default!r}" if plain else f"{star}{parameter.name}=…"


FILES = {"public_names.txt": public_names, "options.txt": options}


def text_of(name: str) -> str:
    """Return what a golden file should hold."""
    return "".join(f"{line}\n" for line in FILES[name]())


if __name__ == "__main__":
    for name in FILES:
        (FOLDER / name).write_text(text_of(name), encoding="utf-8")
        print(FOLDER / name)
