"""From the errors of jsonargparse and of constructors to one message that names key, value and what is allowed."""

import inspect
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rimlit.backbones import Backbone
from rimlit.cli._jsonargparse import setting_names
from rimlit.data import DataModule
from rimlit.errors import ConfigError, RimlitError
from rimlit.heads import Head
from rimlit.spec import check_trusted, subclasses
from rimlit.tasks import Task

DEEP_IN_THE_PARSER = (AttributeError, KeyError, TypeError, ValueError, RecursionError)
"""What jsonargparse raises besides its own error where settings are of a shape that it does not expect."""


def explain(error: BaseException, parser: Any) -> str:
    """Return one message for a parsing error, with the nearest known names for a typo.

    Args:
        error: What jsonargparse raised: a message that nests one level per key, each with all alternatives.
        parser: Parser of the subcommand.
    """
    if isinstance(error, RimlitError):
        return str(error)
    if isinstance(error, RecursionError):
        return "The settings are nested too deeply, or hold themselves."
    text = str(error)
    denied = re.search(r"Importing '([\w.]+)' is not allowed", text)
    if denied:
        return _denied(denied[1])
    keys = re.findall(r'Parser key "([^"]+)":', text)
    for pattern in UNKNOWN_KEY:
        found = re.search(pattern, text)
        if found:
            classes = re.findall(r"class_path[= ]'([\w.]+)'", text)
            return _unknown_key(".".join(found.groups()), classes[-1] if classes else None, parser)
    missing = re.search(r"arguments are required: (.+)", text)
    if missing:
        names = ", ".join(name.split(".")[-1] for name in missing[1].split(", "))
        return f"{names} must be given, by --config FILE_OR_NAME ('rimlit configs' lists names) or as options."
    # a number may also be given as the path of a tensor: that was not meant
    takes_class = (keys and keys[-1] in BASES) or not re.search(r"Expected a <class '(?:int|float)'>", text)
    for pattern in UNKNOWN_CLASS if takes_class else ():
        found = re.search(pattern, text)
        if found:
            return _unknown_class(found[1], ".".join(keys))
    return _wrong_value(text, keys)


def _denied(class_path: str) -> str:
    try:
        check_trusted(class_path)
    except ConfigError as error:
        return str(error)
    return f"class_path={class_path!r} cannot be used in settings: it runs or loads what it is given."


UNKNOWN_KEY = (
    r"Group '([\w.]+)' does not accept option '([\w.+-]+)'",
    r"Option '([\w.+-]+)' is not accepted",
    r"Key '([\w.+-]+)' is not expected",
    r"[Uu]nrecognized arguments: (?:--)?([\w.+-]+)",
    r"[Gg]roup '([\w.+-]+)' does not accept nested key",
    r"No action for key '([\w.+-]+)'",
    r"does not accept option '([\w.+-]+)'",
)
UNKNOWN_CLASS = (
    r"Expected a dot import path string: ([\w.]+)",
    r"Expected a path but ([\w.]+) either not accessible",
    r"Not a valid subclass of \w+\. Got value: ([\w.]+)",
    r"Problem with given class_path '([\w.]+)':\s+(?:module '[\w.]+' has no attribute|No module named)",
    r"module '[\w.]+' has no attribute '(\w+)'",
)
BASES = {
    "model": Task,
    "data": DataModule,
    "backbone": Backbone,
    "head": Head,
    "optimizer": Optimizer,
    "scheduler": LRScheduler,
    "callbacks": Callback,
    "logger": Logger,
}


def _unknown_key(key: str, class_path: str | None, parser: Any) -> str:
    cls = None if class_path is None else _class_named(class_path)
    if cls is None:
        names, where, allowed = setting_names(parser), "", ""
        top = key.split(".")[0]
        key = key if any(name.split(".")[0] == top for name in names) else top
    else:
        names = list(inspect.signature(cls).parameters)
        where, allowed = f" of {cls.__name__}", f" It has {', '.join(names)}."
        key = key.split(".")[-1]
    return f"{key!r} is not a setting{where}.{_hint(key, names)}{allowed}"


def _unknown_class(value: str, key: str) -> str:
    base = BASES.get(key.split(".")[-1])
    bases = BASES.values() if base is None else (base,)
    names = sorted({cls.__name__ for base in bases for cls in subclasses(base) if _is_usable(cls)})
    allowed = f" There are {', '.join(names)}." if base is not None and len(names) < 20 else ""
    return f"{key}: {value!r} is not a known class.{_hint(value.split('.')[-1], names)}{allowed}"


def _is_usable(cls: type) -> bool:
    is_built_by_keyword = getattr(cls, "bidirectional", False) is True
    return not inspect.isabstract(cls) and not cls.__name__.startswith("_") and not is_built_by_keyword


def _hint(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=3, cutoff=0.6)
    return f" Did you mean {', '.join(near)}?" if near else ""


def _class_named(class_path: str) -> type | None:
    name = class_path.split(".")[-1]
    return next((cls for base in BASES.values() for cls in subclasses(base) if cls.__name__ == name), None)


def _wrong_value(text: str, keys: Sequence[str]) -> str:
    """Say what was expected and what was given, without the levels between."""
    expected = dict.fromkeys(
        re.findall(r"Expected a (?:<class '(?:[\w.]+\.)?(\w+)'>|typing\.Literal\[(.+?)\])", text)
    )
    words = {"Sequence": "list", "tuple": "list"}
    allowed = [words.get(kind, kind) or f"one of {values}" for kind, values in expected if kind != "NoneType"]
    given = re.search(r"(?:Got|Given) value: (.+?)(?:\. Got value: .*)?$", text, re.MULTILINE)
    if keys and allowed and given:
        return f"{'.'.join(keys)} must be {', or '.join(allowed)}; got {_short(given[1])}."
    given = re.search(
        r"(?:Given value: |but got |Unable to load config )(.+?)(?:\.? Got value: .*|\.? - .*)?$", text, re.M
    )
    if keys and given and keys[-1] in BASES:
        value = _short(given[1])
        return f"{'.'.join(keys)} must be the name of a class, or class_path and init_args; got {value}."
    if set(keys) == {"trainer"} and given:
        return f"trainer must be a mapping such as {{max_steps: 100}}; got {_short(given[1])}."
    lines = " ".join(line.strip() for line in text.splitlines() if line.strip())
    return lines if len(lines) < 500 else f"{'.'.join(keys) or 'A setting'} cannot be used: {lines[-400:]}"


def _short(value: str) -> str:
    """Return a value as it was given, cut to what fits into a line."""
    nested = re.search(r"NestedArg\(key='([^']+)', val='([^']*)'\)", value)
    value = f"{nested[1]}={nested[2]} without a class" if nested else value
    return value if len(value) <= 100 else f"{value[:100]} …"
