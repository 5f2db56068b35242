"""What a law is: a function that raises an AssertionError naming the class, the law and the values.

No test runner is imported. A law that does not apply to an object raises ``unittest.SkipTest``, which pytest and
unittest report as skipped.
"""

import copy
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar
from unittest import SkipTest

import torch
from torch import Tensor, nn

from rimlit.spec import subclasses

T = TypeVar("T")
P = ParamSpec("P")
Law: TypeAlias = Callable[..., None]


class BrokenError(Exception):
    """A law does not hold; the law's decorator adds the names of class and law."""


class GivenError(ValueError):
    """What was given to a law is not what it needs; says nothing about the law."""


class _Entry(NamedTuple):
    law: Law
    is_slow: bool
    needs_gpu: bool


_laws: dict[str, list[_Entry]] = {}


def law(*kinds: str, slow: bool = False, gpu: bool = False) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Decorator: make a function a law of these kinds.

    The function's first argument is the object, or a callable without arguments that builds one. Randomness is
    seeded while the law runs, and the caller's is left alone.

    Args:
        kinds: For example ``backbone``; :func:`laws_of` finds the law by them.
        slow: Whether it takes more than a few seconds, so that it runs only where it is asked for.
        gpu: Whether it needs a CUDA device, so that it runs only where it is asked for.
    """

    def decorate(check: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(check)
        def checked(*args: P.args, **kwargs: P.kwargs) -> None:
            bound = inspect.signature(check).bind(*args, **kwargs)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                subject = f"{type(make(next(iter(bound.arguments.values())))).__name__} breaks the law {title!r}"
                try:
                    check(*args, **kwargs)
                except BrokenError as error:
                    raise AssertionError(f"{subject}: {error}") from None
                except (SkipTest, GivenError):
                    raise
                except Exception as error:
                    text = " ".join(str(error).split())
                    raise AssertionError(f"{subject}: {type(error).__name__}: {text}") from error

        title = check.__name__.removeprefix("check_").replace("_", " ")
        for kind in kinds:
            _laws.setdefault(kind, []).append(_Entry(checked, slow, gpu))
        return checked

    return decorate


def laws_of(kind: str, *, slow: bool = False, gpu: bool = False) -> list[Law]:
    """Return the laws of a kind, for a test that is parametrised by them.

    Args:
        kind: ``backbone``, ``head``, ``encoder``, ``task`` or ``data_module``.
        slow: Whether to add the slow ones.
        gpu: Whether to add those that need a CUDA device.

    Raises:
        ValueError: There is no such kind.

    Example:
        >>> "check_step_equals_sequence" in [law.__name__ for law in laws_of("backbone")]
        True
    """
    if kind not in _laws:
        raise ValueError(f"kind must be one of {', '.join(_laws)}; got kind={kind!r}.")
    return [entry.law for entry in _laws[kind] if slow >= entry.is_slow and gpu >= entry.needs_gpu]


def check_laws(
    kind: str, subject: Any, *given: Any, slow: bool = False, gpu: bool = False, skip: Iterable[str] = ()
) -> None:
    """Run every law of a kind.

    Args:
        kind: As in :func:`laws_of`.
        subject: The object, or a callable without arguments that builds one.
        given: Further arguments of every law.
        slow: Whether to run the slow ones too.
        gpu: Whether to run those that need a CUDA device too.
        skip: Names of laws that are not run, for example ``check_empty_batch``.

    Raises:
        AssertionError: At least one law is broken; the message has a line for each.
        ValueError: There is no such kind, or no law of a name in ``skip``.
    """
    known = [entry.law.__name__ for entry in _laws.get(kind, [])]
    unknown = [name for name in skip if name not in known]
    if unknown:
        raise ValueError(f"{kind} has no law {unknown[0]!r}; it has {', '.join(known)}.")
    broken = []
    for each in laws_of(kind, slow=slow, gpu=gpu):
        if each.__name__ in skip:
            continue
        try:
            each(subject, *given)
        except AssertionError as error:
            broken.append(str(error))
        except SkipTest:
            pass
    if broken:
        raise AssertionError("\n".join(broken))


def classes_in(package: str, base: type[T]) -> list[type[T]]:
    """Import every module of a package and return the concrete subclasses of ``base`` that it defines, by name.

    Example:
        >>> from rimlit.backbones import Backbone
        >>> [cls.__name__ for cls in classes_in("rimlit.backbones.gru", Backbone)]
        ['GRU']
    """
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(getattr(root, "__path__", []), f"{package}."):
        if not module.name.endswith(".__main__"):  # its import is a program's start
            importlib.import_module(module.name)
    return sorted(
        {
            cls
            for cls in subclasses(base)
            if cls is not base and not inspect.isabstract(cls) and f"{cls.__module__}.".startswith(f"{package}.")
        },
        key=lambda cls: cls.__name__,
    )


def make(subject: Any) -> Any:
    """Return a fresh object: what a callable builds, or a copy of a given one."""
    # a module is callable, and so is every class
    is_builder = callable(subject) and (isinstance(subject, type) or not isinstance(subject, nn.Module))
    return subject() if is_builder else copy.deepcopy(subject)


def require(holds: bool, text: str) -> None:
    """Raise a :class:`BrokenError` with ``text`` unless the condition holds."""
    if not holds:
        raise BrokenError(text)


def require_close(what: str, actual: Any, expected: Any, *, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    """Raise a :class:`BrokenError` that names the first difference between two values.

    Args:
        what: Name of the value.
        actual: Tensors, inside mappings, tuples and lists; other values must be equal.
        expected: The same.
        rtol: Relative tolerance of floating-point tensors.
        atol: Absolute tolerance of floating-point tensors.
    """
    if isinstance(expected, Tensor) and isinstance(actual, Tensor):
        _require_close_tensors(what, actual, expected, rtol, atol)
        return
    require(type(actual) is type(expected), f"{what}: got a {_kind(actual)}, expected a {_kind(expected)}")
    if isinstance(expected, Mapping | tuple | list):
        require(len(actual) == len(expected), f"{what}: got {len(actual)} parts, expected {len(expected)}")
        for (name, one), (_, other) in zip(_parts(what, actual), _parts(what, expected), strict=True):
            require_close(name, one, other, rtol=rtol, atol=atol)
    else:
        is_nan = actual != actual and expected != expected
        require(is_nan or actual == expected, f"{what}: got {actual!r}, expected {expected!r}")


def _require_close_tensors(what: str, actual: Tensor, expected: Tensor, rtol: float, atol: float) -> None:
    for name in ("shape", "dtype", "device"):
        got, wanted = getattr(actual, name), getattr(expected, name)
        got, wanted = (tuple(got), tuple(wanted)) if name == "shape" else (got, wanted)
        require(got == wanted, f"{what}: got {name} {got}, expected {wanted}")
    if not actual.is_floating_point():
        rtol = atol = 0
    is_close = torch.isclose(actual, expected, rtol=rtol, atol=atol, equal_nan=True)
    if not is_close.all():
        place = (~is_close).nonzero()[0].tolist()
        one, other = actual[tuple(place)].item(), expected[tuple(place)].item()
        where = f"{what} at {place}" if place else what
        raise BrokenError(
            f"{where}: got {one:.6g}, expected {other:.6g}; {int((~is_close).sum())} of "
            f"{is_close.numel()} numbers differ (tolerance {rtol:g} relative, {atol:g} absolute)"
        )


def _parts(what: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"{what}[{key!r}]", part) for key, part in value.items())
    elif hasattr(value, "_fields"):
        yield from zip((f"{what}.{name}" for name in value._fields), value, strict=True)
    else:
        yield from ((f"{what}[{index}]", part) for index, part in enumerate(value))


def _kind(value: Any) -> str:
    return type(value).__name__


def tensors_in(what: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor inside mappings, tuples and lists with its name."""
    if isinstance(value, Tensor):
        yield what, value
    elif isinstance(value, Mapping | tuple | list):
        for name, part in _parts(what, value):
            yield from tensors_in(name, part)
