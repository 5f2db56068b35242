"""Names and arguments that still work and will be removed; ``RELEASING.md`` has the policy."""

import functools
import inspect
import re
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from rimlit._version import __version__

Deprecated = TypeVar("Deprecated", bound=Callable[..., Any])


def deprecated(
    argument: str | None = None, *, instead: str, removed_in: str
) -> Callable[[Deprecated], Deprecated]:
    """Decorator: warn where a function, a class or one of its keyword arguments is used.

    Args:
        argument: A keyword argument that has another name now; its value is passed on under ``instead``. By
            default the function or class itself is deprecated.
        instead: What to use in its place.
        removed_in: The version without it, for example ``0.4``.

    Raises:
        ValueError: ``removed_in`` is not a version above the present one.
        TypeError: The old and the new argument are both given.

    Example:
        >>> @deprecated("topk", instead="num_active", removed_in="99.0")
        ... def count(*, num_active=4):
        ...     return num_active
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     count(topk=3)
        3
        >>> str(caught[0].message)
        'count: topk is deprecated and will be removed in version 99.0. Use num_active.'
    """
    if not re.fullmatch(r"\d+\.\d+", removed_in) or _numbers(removed_in) <= _numbers(__version__):
        raise ValueError(f"removed_in must be a version X.Y above {__version__}; got removed_in={removed_in!r}.")

    def decorate(target: Deprecated) -> Deprecated:
        name = target.__name__
        subject = name if argument is None else f"{name}: {argument}"
        message = f"{subject} is deprecated and will be removed in version {removed_in}. Use {instead}."

        def warning(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:
                if argument is None:
                    warnings.warn(message, FutureWarning, stacklevel=2)
                elif argument in kwargs:
                    warnings.warn(message, FutureWarning, stacklevel=2)
                    if instead in kwargs:
                        raise TypeError(f"{name} got {argument} and {instead}, its new name; give {instead} only.")
                    kwargs[instead] = kwargs.pop(argument)
                return function(*args, **kwargs)

            return call

        if inspect.isclass(target):
            setattr(target, "__init__", warning(target.__init__))  # noqa: B010, no assignment to a method
            return target
        return warning(target)  # type: ignore[return-value]

    return decorate


def _numbers(version: str) -> tuple[int, int]:
    first, second = version.split(".")[:2]
    return int(first), int(second)
