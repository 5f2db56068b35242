"""What every part of a RIM layer has in common, and how a part is built from what a user wrote."""

import copy
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias, TypeVar

from torch import Tensor, nn

from rimlit.errors import ConfigError
from rimlit.spec import Rebuildable, Spec, build, find_class, path_of, subclasses, to_spec

PartT = TypeVar("PartT", bound="Part")


class Choice(NamedTuple):
    """Which mechanisms update in a step, and how far."""

    active: Tensor  # (M, B) bool
    gate: Tensor | None = None  # (M, B) in [0, 1], 0 where inactive; None: 1 for every active mechanism
    soft: Tensor | None = None  # (M, B): stands for ``active`` in the gradient (straight-through)
    carried: Tensor | None = None  # (B, …): what a rule carries to the next step


class Part(Rebuildable, nn.Module):
    """A replaceable piece of a RIM layer.

    A subclass anywhere is found by its class path, or by its short name once it is imported. The layer passes the
    arguments named in ``sizes``; all others come from the user.
    """

    sizes: ClassVar[tuple[str, ...]] = ()
    """Arguments of the constructor that the layer passes, in their order."""
    several: ClassVar[str | None] = None
    """Short name of the part that a list of parts of this kind stands for, if it may be one."""
    mechanism_rows: ClassVar[Mapping[str, int]] = {}
    """Own parameters and buffers with a row per mechanism, and the dimension of the rows: they are resized where
    the number of mechanisms changes after training (:mod:`rimlit.nn.resizing`)."""

    @property
    def spec(self) -> Spec:
        """How to make this part again for another layer, as plain data."""
        spec = super().spec
        arguments = {name: value for name, value in spec["init_args"].items() if name not in self.sizes}
        return {**spec, "init_args": arguments}


if TYPE_CHECKING:
    PartLike: TypeAlias = str | Mapping[str, Any] | "Part" | Callable[..., "Part"]
    PartsLike: TypeAlias = PartLike | Sequence[PartLike]
else:  # what a parser of options reads: it is to build no part, whose sizes only the layer knows
    PartLike = str | dict[str, Any]
    PartsLike = str | dict[str, Any] | list[str | dict[str, Any]]
"""A part: a short name, a class path, a mapping of its arguments alone (of the default part), of its short name to
its arguments or of ``class_path`` and ``init_args``, a class, a ``functools.partial`` of one, or an instance. The
name of its class is a short name, too."""


def short_name(cls: type[Part], base: type[Part]) -> str:
    """Return the short name of ``cls``: in snake case and without the name of its kind.

    Example:
        >>> from rimlit.mechanisms import GRUDynamics, Dynamics
        >>> short_name(GRUDynamics, Dynamics)
        'gru'
    """
    name = cls.__name__.removesuffix(base.__name__) or cls.__name__
    name = "None" if name == "No" else name
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def known_parts(base: type[PartT]) -> dict[str, type[PartT]]:
    """Return the imported parts of a kind by their short names."""
    parts: dict[str, type[PartT]] = {}
    for cls in subclasses(base)[1:]:
        if not inspect.isabstract(cls):
            parts.setdefault(short_name(cls, base), cls)
    return parts


def part_factory(given: Any, base: type[PartT], name: str, default: Mapping[str, Any]) -> Callable[..., PartT]:
    """Return what builds a part from the sizes that a layer passes.

    Args:
        given: A short name, a class, a ``functools.partial`` of one, a mapping of a short name to arguments, a
            spec (``class_path`` and ``init_args``), the arguments of the default part alone, or an instance, of
            which each layer gets a copy; a list of these where the kind of part has :attr:`Part.several`.
        base: The kind of part.
        name: The argument it was given as, for messages.
        default: The spec of the default part, which fills the arguments that ``given`` leaves out.

    Raises:
        ConfigError: There is no such part, or it is of another kind.
    """
    if isinstance(given, Part):
        if not isinstance(given, base):
            raise ConfigError(f"{name} must be a {base.__name__}; got a {type(given).__name__}.")
        return lambda *_: copy.deepcopy(given)
    if given is None or isinstance(given, bool):
        raise ConfigError(f"{name} must be one of {', '.join(sorted(known_parts(base)))}; got {name}={given!r}.")
    if isinstance(given, list | tuple) and base.several:
        given = {"class_path": base.several, "init_args": {"parts": list(given)}}
    if isinstance(given, str):
        given = {"class_path": given}
    if isinstance(given, Mapping) and len(given) == 1:
        given = _spelled_out(given, base, name)
    if isinstance(given, Mapping):
        given = {"class_path": default["class_path"], **given}
        if "init_args" not in given:
            path = given.pop("class_path")
            given = {"class_path": path, "init_args": given}
    spec = to_spec(given, name)
    if "." not in str(spec["class_path"]):
        spec["class_path"] = path_of(_find(spec["class_path"], base, name))
    if spec["class_path"] == path_of(_find(default["class_path"], base, name)):
        spec["init_args"] = {**default.get("init_args", {}), **spec["init_args"]}
    cls: Any = find_class(spec["class_path"], base)
    parameters = inspect.signature(cls).parameters
    known = [key for key in parameters if key not in cls.sizes]
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if wrong := [key for key in spec["init_args"] if key not in known and not takes_any]:
        takes = f"takes {', '.join(known)}" if known else "takes no arguments"
        raise ConfigError(f"{name}: {cls.__name__} {takes}; got {wrong[0]}={spec['init_args'][wrong[0]]!r}.")
    return functools.partial(_build, name, spec, base)


def _spelled_out(given: Mapping[str, Any], base: type[Part], name: str) -> Mapping[str, Any]:
    """Return the spec that ``{short name: arguments}`` stands for; other mappings stay as they are."""
    ((short, arguments),) = given.items()
    if short not in known_parts(base):
        return given
    if not isinstance(arguments, Mapping | None):
        raise ConfigError(f"{name}: {short} takes a mapping of arguments; got {short}={arguments!r}.")
    return {"class_path": short, "init_args": dict(arguments or {})}


def _build(name: str, spec: Spec, base: type[PartT], *sizes: Any) -> PartT:
    """Build a part; what is wrong with an argument names the part that it belongs to."""
    try:
        part: PartT = build(spec, base, *sizes)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error
    return part


def _find(short: str, base: type[PartT], name: str) -> type[PartT]:
    parts = known_parts(base)
    parts |= {cls.__name__: cls for cls in parts.values()} if short[:1].isupper() else {}
    if short not in parts:
        known = ", ".join(sorted(known_parts(base)))
        raise ConfigError(f"{name} must be one of {known}, or a class path; got {name}={short!r}.")
    return parts[short]
