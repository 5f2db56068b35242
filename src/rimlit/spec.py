"""Plain descriptions of objects: what a YAML holds, what a checkpoint holds, and which of it may be imported.

A spec is ``{"class_path": "rimlit.backbones.RIM", "init_args": {"hidden_size": 600}}``. Checkpoints hold specs and
never objects, so that they load with ``weights_only=True``.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Self, TypeAlias, TypeVar

from rimlit.errors import ConfigError, SpecError

Spec: TypeAlias = dict[str, Any]
T = TypeVar("T")

TRUSTED_PACKAGES = ("rimlit", "torch", "lightning", "torchmetrics")
_trusted_here: set[str] = set()


def trust(package: str) -> None:
    """Allow class paths of ``package`` in configs and checkpoints for the rest of this process."""
    _trusted_here.add(package)


def trusted_packages() -> tuple[str, ...]:
    """Return the packages whose class paths are imported: rimlit's own list, plugins and what the user named."""
    named = os.environ.get("RIMLIT_TRUST", "").split(",")
    everything = (*TRUSTED_PACKAGES, *_plugins(), *named, *sorted(_trusted_here))
    return tuple(dict.fromkeys(name.strip().split(".")[0] for name in everything if name.strip()))


@functools.cache
def _plugins() -> tuple[str, ...]:
    """Return the modules of installed plugins; reading every package's metadata takes over ten milliseconds."""
    return tuple(point.module for point in importlib.metadata.entry_points(group="rimlit.plugins"))


def check_trusted(class_path: str) -> None:
    """Raise a ConfigError unless ``class_path`` lies in a trusted package. Nothing is imported."""
    package, *rest = class_path.split(".")
    if "__main__" in rest:  # its import is a program's start
        raise SpecError(f"class_path={class_path!r} is a program.")
    if package not in trusted_packages():
        raise SpecError(
            f"class_path={class_path!r} is outside the trusted packages ({', '.join(trusted_packages())}). "
            f"If it is yours, pass --trust {package} or set RIMLIT_TRUST={package}; "
            f"from Python: rimlit.trust({package!r})."
        )


def find_class(class_path: str, base: type[T]) -> type[T]:
    """Return the class at ``class_path``.

    Args:
        class_path: Dotted path, in a trusted package or of an already imported subclass of ``base``.
        base: What the class must be a subclass of.

    Raises:
        ConfigError: The path is not trusted, does not exist or is not a subclass of ``base``.
    """
    for known in subclasses(base):
        if path_of(known) == class_path:
            return known
    check_trusted(class_path)
    module_name, _, name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SpecError(f"class_path={class_path!r} cannot be imported: {error}.") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise SpecError(f"class_path={class_path!r} must be a subclass of {path_of(base)}.")
    return found


def check_spec(spec: Any, bases: Iterable[type], built_later: Iterable[str] = ()) -> None:
    """Raise a ConfigError unless the class paths in ``spec``, at any depth, may be used. Nothing is imported.

    Args:
        spec: What a file that anybody may have written holds.
        bases: Their subclasses may be used where they are imported already, wherever they come from.
        built_later: Arguments whose class paths are checked when they are built, and not here.
    """
    if not (isinstance(spec, Mapping) and "class_path" in spec and isinstance(spec.get("init_args"), Mapping)):
        raise ConfigError("a spec must have the keys class_path and init_args.")
    later = [spec["init_args"][name] for name in built_later if name in spec["init_args"]]
    waiting: list[tuple[Any, bool]] = [(spec, True)]
    seen: set[int] = set()
    while waiting:
        value, is_built = waiting.pop()
        is_built = is_built and not any(value is other for other in later if isinstance(other, Mapping | list))
        if isinstance(value, Mapping | list | tuple):
            if id(value) in seen and value:  # it would never end, or grow without bound, when it is written out
                raise ConfigError("a spec must not hold the same list or mapping twice.")
            seen.add(id(value))
            if is_built and isinstance(value, Mapping) and "class_path" in value:
                _check_class(value["class_path"], bases)
            inner = value.values() if isinstance(value, Mapping) else value
            waiting.extend((item, is_built) for item in inner)
        elif value is not None and not isinstance(value, bool | int | float | str):
            raise ConfigError(f"a spec must hold plain values only; got a {type(value).__name__}.")


def _check_class(class_path: Any, bases: Iterable[type]) -> None:
    if not isinstance(class_path, str):
        raise ConfigError(f"class_path must be a dotted path; got a {type(class_path).__name__}.")
    if class_path.isidentifier():  # a part's short name: find_class imports no path without a dot
        return
    try:
        check_trusted(class_path)
    except ConfigError:
        if not any(path_of(known) == class_path for base in bases for known in subclasses(base)):
            raise


def path_of(cls: type) -> str:
    """Return the dotted path of ``cls``, the shortest public one for rimlit's own classes."""
    package = ".".join(cls.__module__.split(".")[:2])
    if cls.__module__.startswith("rimlit.") and hasattr(importlib.import_module(package), cls.__name__):
        return f"{package}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def to_spec(factory: Any, name: str) -> Spec:
    """Describe a factory as plain data.

    Args:
        factory: A class, a ``functools.partial`` of a class with keyword arguments, or a spec.
        name: Argument it was given as, for the message.

    Raises:
        ConfigError: The factory is something else, which a checkpoint could not hold.
    """
    if isinstance(factory, Mapping):
        if "class_path" not in factory or set(factory) - {"class_path", "init_args"}:
            raise ConfigError(f"{name} must have the keys class_path and init_args; got {sorted(factory)}.")
        return {"class_path": factory["class_path"], "init_args": dict(factory.get("init_args") or {})}
    if isinstance(factory, type):
        return {"class_path": path_of(factory), "init_args": {}}
    if isinstance(factory, functools.partial):
        # jsonargparse passes the class as the last positional argument of a partial of its own
        candidates = [part for part in (factory.func, *factory.args) if isinstance(part, type)]
        if len(candidates) == 1:
            init_args = {key: to_plain(value, f"{name}.{key}") for key, value in factory.keywords.items()}
            return {"class_path": path_of(candidates[0]), "init_args": init_args}
    raise ConfigError(
        f"{name} must be a class, functools.partial(Class, key=value, …) or a dict of class_path and init_args, "
        f"so that a checkpoint can hold it; got {factory!r}."
    )


def to_plain(value: Any, name: str) -> Any:
    """Turn an argument into plain data: numbers, strings, lists and dicts stay, factories become specs.

    Raises:
        ConfigError: The value is none of these.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        return [to_plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", None) == 0:  # a number of NumPy or torch
        return to_plain(value.item(), name)
    return to_spec(value, name)


def build(spec: Spec, base: type, *args: Any) -> Any:
    """Build what ``spec`` describes, with ``args`` before its keyword arguments.

    Raises:
        SpecError: The class cannot be used or an argument is not one of its own.
    """
    cls: type[Any] = find_class(spec["class_path"], base)
    init_args = spec["init_args"]
    signature = inspect.signature(cls)
    parameters = signature.parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    known = list(parameters)
    unknown = [name for name in init_args if name not in known]
    if unknown and not takes_any:
        raise SpecError(f"{cls.__name__} has no argument {unknown[0]!r}; it has {', '.join(known)}.")
    try:
        signature.bind(*args, **init_args)
    except TypeError as error:
        raise SpecError(f"{cls.__name__}: {error}; it has {', '.join(known)}.") from error
    return cls(*args, **init_args)


def given_arguments(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of ``cls`` by name, defaults filled in.

    Raises:
        ConfigError: A positional argument has no name, because the class takes it as ``*args``.
    """
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    bound = signature.bind_partial(None, *args, **kwargs)
    bound.apply_defaults()
    arguments = {}
    for name, value in list(bound.arguments.items())[1:]:  # without self
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(value)
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            arguments[name] = value
        elif value:
            raise ConfigError(
                f"{cls.__name__} takes *{name}, whose values have no names that a checkpoint could hold; "
                f"pass them by keyword. Got {', '.join(map(repr, value))}."
            )
    return arguments


class Rebuildable:
    """Mixin that keeps the arguments an object was made with, so that its :attr:`spec` builds it again."""

    _arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remember the arguments; copying calls this without any."""
        self = super().__new__(cls)
        object.__setattr__(self, "_arguments", given_arguments(cls, args, kwargs))
        return self

    @property
    def spec(self) -> Spec:
        """How to make this object again, as plain data."""
        arguments = {name: to_plain(value, name) for name, value in self._arguments.items()}
        return {"class_path": path_of(type(self)), "init_args": arguments}


def non_default_arguments(spec: Spec) -> dict[str, Any]:
    """Return the arguments of ``spec``, of a class in use, that differ from its defaults, for people to read."""
    given: dict[str, Any] = spec.get("init_args") or {}
    module_name, _, name = spec["class_path"].rpartition(".")
    if module_name not in sys.modules:  # a short name
        return dict(given)
    plain = default_arguments(getattr(sys.modules[module_name], name))
    return {name: value for name, value in given.items() if name not in plain or value != plain[name]}


def default_arguments(cls: type) -> dict[str, Any]:
    """Return the default of each argument of ``cls`` that has one, as a spec holds it."""
    found = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.default is not parameter.empty:
            with contextlib.suppress(ConfigError):  # of a kind that no spec holds
                found[name] = to_plain(parameter.default, name)
    return found


def with_defaults(spec: Any) -> Any:
    """Return a spec, and those inside it, with the defaults of their classes for arguments that are not given.

    A spec of an earlier version lacks the arguments that were added since; their defaults change nothing. Classes
    that are not imported are left as they are.
    """
    if isinstance(spec, list | tuple):
        return [with_defaults(item) for item in spec]
    if not isinstance(spec, Mapping):
        return spec
    if not isinstance(spec.get("class_path"), str) or not isinstance(spec.get("init_args"), Mapping):
        return {key: with_defaults(value) for key, value in spec.items()}
    module_name, _, name = spec["class_path"].rpartition(".")
    cls = getattr(sys.modules.get(module_name), name, None)
    defaults = default_arguments(cls) if isinstance(cls, type) else {}
    return {**spec, "init_args": {**defaults, **with_defaults(spec["init_args"])}}


def flat_settings(settings: Any, name: str = "") -> dict[str, Any]:
    """Return nested settings by dotted names, below ``name``."""
    if isinstance(settings, dict) and settings:
        return {
            key: value
            for part, inner in settings.items()
            for key, value in flat_settings(inner, f"{name}.{part}").items()
        }
    return {name.lstrip("."): settings}


def subclasses(base: type[Any]) -> list[type[Any]]:
    """Return ``base`` and all its subclasses that are imported."""
    found: list[type[Any]] = [base]
    for child in base.__subclasses__():
        found.extend(subclasses(child))
    return found
