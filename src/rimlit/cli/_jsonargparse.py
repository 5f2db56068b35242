"""What jsonargparse may import, and everything of it that is private and used here; a test asks for each name."""

import argparse
import functools
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jsonargparse import ArgumentParser, Namespace, _common, _paths, _typehints, set_parsing_settings

from rimlit.errors import ConfigError
from rimlit.spec import trusted_packages

DENIED = (
    "rimlit.kernels.cpu.__main__",
    "torch._inductor.compile_worker.__main__",
    "torch.utils.model_dump.__main__",
    "torch.classes",
    "torch.hub",
    "torch.jit",
    "torch.load",
    "torch.ops",
    "torch.package",
    "torch.serialization",
    "torch.utils.cpp_extension",
)
"""What trusted packages hold that runs, compiles or unpickles what it is given, and programs."""


def _allow_trusted() -> None:
    """Let class paths in settings name what is in trusted packages, and nothing else.

    jsonargparse refuses other paths before it imports them, also what is reached through a trusted module and has
    its home elsewhere, such as ``torch.os.system``.
    """
    trusted = {package for package in trusted_packages() if package.isidentifier() and package != "jsonargparse"}
    denied = {"*", *DENIED, *(f"{package}.__main__" for package in trusted)}
    set_parsing_settings(import_path_denylist=sorted(denied), import_path_allowlist=sorted(trusted))


def refuse_functions(settings: Any) -> None:
    """Raise a ConfigError where parsed settings name a function: it may do anything with what it is given.

    Args:
        settings: What the parser returned.
    """
    if isinstance(settings, Namespace | Mapping):
        entries = vars(settings) if isinstance(settings, Namespace) else dict(settings)
        path = entries.get("class_path")
        cls = _imported(path) if isinstance(path, str) else None
        if cls is not None and not isinstance(cls, type):
            raise ConfigError(f"class_path={path!r} is not a class.")
        arguments = entries.get("init_args")
        if isinstance(cls, type) and isinstance(arguments, Namespace):
            given = {name: value for name, value in vars(arguments).items() if not _is_default(cls, name, value)}
            entries = {**entries, "init_args": given}
        for value in entries.values():
            refuse_functions(value)
    elif isinstance(settings, list | tuple | set):
        for value in settings:
            refuse_functions(value)
    elif inspect.isroutine(settings) or isinstance(settings, functools.partial):
        name = f"{getattr(settings, '__module__', '')}.{getattr(settings, '__qualname__', settings)}"
        raise ConfigError(f"class_path={name!r} is not a class.")


def _imported(path: str) -> Any:
    """Return what a path names, None where the parser has not imported it: it is data then."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _is_default(cls: type, name: str, value: Any) -> bool:
    """Whether an argument has the value that a class, or one that it extends, gives it."""
    initializers = (vars(base).get("__init__") for base in cls.__mro__)
    signatures = (inspect.signature(each) for each in initializers if inspect.isfunction(each))
    return any(name in each.parameters and each.parameters[name].default is value for each in signatures)


@contextmanager
def parsing() -> Iterator[None]:
    """Set jsonargparse up for a command: trusted class paths, one class for each short name, configs in UTF-8.

    All is as before afterwards: another program of this process may parse settings too.
    """
    before = dict(_common.parsing_settings)
    _allow_trusted()
    all_paths, opens = _typehints.get_all_subclass_paths, vars(_paths).get("open")
    class_parser: Any = _typehints.cached_get_class_parser

    def one_path_each(*args: Any, **kwargs: Any) -> list[str]:
        """Let a short name stand for one class: Lightning has a ReduceLROnPlateau besides torch's."""
        paths = all_paths(*args, **kwargs)
        firsts = {path.rpartition(".")[2]: path for path in sorted(paths, key=_preference, reverse=True)}
        return [path for path in paths if firsts[path.rpartition(".")[2]] == path]

    def parser_of_class(*, val_class: Any, **options: Any) -> Any:
        """Return the parser of a class; of a part by its short name, which is data here, one without arguments."""
        if isinstance(val_class, str) and "." not in val_class:
            return ArgumentParser(exit_on_error=False)
        return class_parser(val_class=val_class, **options)

    def read_as_utf8(file: Any, mode: str = "r", **options: Any) -> Any:
        return open(file, mode, encoding=None if "b" in mode else "utf-8-sig", **options)

    _typehints.get_all_subclass_paths = one_path_each
    _typehints.cached_get_class_parser = parser_of_class
    _paths.open = read_as_utf8  # type: ignore[attr-defined]
    try:
        yield
    finally:
        _common.parsing_settings.clear()
        _common.parsing_settings.update(before)
        _typehints.get_all_subclass_paths = all_paths
        _typehints.cached_get_class_parser = class_parser
        if opens is None:
            del _paths.open  # type: ignore[attr-defined]


def _preference(path: str) -> int:
    """Return a class's place among those of the same name, the one that is meant first."""
    order = ("rimlit.", "torch.", "lightning.")
    return next((index for index, package in enumerate(order) if path.startswith(package)), -1)


def setting_names(parser: argparse.ArgumentParser) -> list[str]:
    """Return the names of a parser's settings."""
    return [action.dest for action in parser._actions]
