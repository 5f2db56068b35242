"""From the errors of jsonargparse and of constructors to one message that names key, value and what is allowed."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import jsonargparse
from jsonargparse import _actions, _typehints
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rimlit.backbones import Backbone
from rimlit.data import DataModule
from rimlit.errors import CheckpointError, ConfigError, DataError
from rimlit.spec import check_trusted, find_class, path_of, subclasses
from rimlit.tasks import Task

BASES = (Task, DataModule, Backbone, Optimizer, LRScheduler)


@contextmanager
def trusted_imports() -> Iterator[None]:
    """Let the parser import class paths of trusted packages only, whatever a config says."""
    original: Callable[..., Any] = _typehints.import_object

    def import_trusted(name: Any, check_path: bool = True) -> Any:
        if isinstance(name, str) and "." in name:
            check_trusted(name)
        return original(name, check_path)

    modules = (_typehints, _actions)
    for module in modules:
        module.import_object = import_trusted  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in modules:
            module.import_object = original  # type: ignore[attr-defined]


def cause_of(error: BaseException) -> ConfigError | DataError | CheckpointError | None:
    """Return what a constructor complained about, found in the chain of causes of ``error``.

    Returns:
        One of rimlit's errors, or a ConfigError with the text of a ValueError or TypeError raised while objects
        were built; None where the error is of another kind.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for link in chain:
        if isinstance(link, (ConfigError, DataError, CheckpointError)):
            return link
    innermost = next((link for link in reversed(chain) if isinstance(link, (ValueError, TypeError))), None)
    return None if innermost is None else ConfigError(str(innermost))


def explain(error: BaseException, parsers: Mapping[str, Any]) -> str:
    """Return one message for a parsing error, with the nearest known names for a typo."""
    known = cause_of(error)
    text = str(error)
    untrusted = re.search(r"class_path='[^']+' is outside the trusted packages.*", text)
    if untrusted:
        return untrusted[0]
    if isinstance(known, (ConfigError, DataError)) and not isinstance(error.__cause__, ValueError):
        pass
    for pattern, kind in (
        (r"Option '([\w.+-]+)' is not accepted", "key"),
        (r"Key '([\w.+-]+)' is not expected", "key"),
        (r"[Uu]nrecognized arguments: (?:--)?([\w.+-]+)", "key"),
        (r"[Gg]roup '([\w.+-]+)' does not accept nested key", "key"),
        (r"No action for key \"([\w.+-]+)\"", "key"),
    ):
        found = re.search(pattern, text)
        if found:
            return _unknown_key(found[1], text, parsers)
    name = _unknown_class(text)
    if name is not None:
        return name
    return _shorten(text)


def _unknown_key(key: str, text: str, parsers: Mapping[str, Any]) -> str:
    classes = [path for path in re.findall(r"class_path[= ]'([\w.]+)'", text)]
    leaf = key.split(".")[-1]
    where, names = "", []
    if classes:
        cls = _class_at(classes[-1])
        if cls is not None:
            where = f" of {cls.__name__}"
            names = [name for name in inspect.signature(cls).parameters]
    if not names:
        parser = next((parser for parser in parsers.values() if parser.prog.split()[-1] in text), None)
        parser = parser or next(iter(parsers.values()))
        names = [action.dest for action in parser._actions]
        leaf = key
    near = get_close_matches(leaf, names, n=3, cutoff=0.6) or get_close_matches(
        leaf, [name.split(".")[-1] for name in names], n=3, cutoff=0.6
    )
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    allowed = f" Known: {', '.join(names)}." if classes and names else ""
    return f"{key!r} is not a setting{where}.{hint}{allowed}"


def _unknown_class(text: str) -> str | None:
    """Explain a class name that leads nowhere."""
    candidates = re.findall(
        r"Not a valid subclass of (\w+)\. Got value: ([\w.]+)|Expected an import path[^:]*: ([\w.]+)", text
    )
    found = re.search(r"(?:class_path '?|Got value: |No module named '|cannot be imported: )([\w.]+)'?", text)
    if "ot a valid subclass" not in text and "mport" not in text and "class path" not in text:
        return None
    if not candidates and found is None:
        return None
    value = next((part for groups in candidates for part in groups[1:] if part), None) or (found and found[1])
    if not value:
        return None
    base = next((base for base in BASES if base.__name__ in text), None)
    bases = BASES if base is None else (base,)
    names = sorted({cls.__name__ for base in bases for cls in subclasses(base) if not inspect.isabstract(cls)})
    near = get_close_matches(value.split(".")[-1], names, n=3, cutoff=0.5)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    allowed = f" Known: {', '.join(names)}." if base is not None and len(names) < 30 else ""
    kind = f" of {base.__name__}" if base is not None else ""
    return f"{value!r} is no known class{kind}.{hint}{allowed}"


def _class_at(path: str) -> type | None:
    for base in BASES:
        for cls in subclasses(base):
            if path in (path_of(cls), f"{cls.__module__}.{cls.__qualname__}", cls.__name__):
                return cls
    return None


def _shorten(text: str) -> str:
    """Keep of a nested message what names the key and what is wrong with it."""
    keys = re.findall(r"Parser key \"([\w.+-]+)\":", text)
    lines = [line.strip() for line in text.splitlines()]
    details = [
        line
        for line in lines
        if line and not re.match(r"Parser key|Subtypes:|Errors:|Given value|Does not validate|- Problem with|Expected a <class 'NoneType'>|- Expected a <class 'NoneType'>", line)
    ]
    reason = " ".join(details) if details else " ".join(lines)
    given = re.search(r"Given value: (.+)", text)
    value = f" (got {given[1]})" if given and given[1] not in reason else ""
    return f"{'.'.join(dict.fromkeys(keys))}: {reason}{value}" if keys else reason


__all__ = ["cause_of", "explain", "find_class", "jsonargparse", "trusted_imports"]
