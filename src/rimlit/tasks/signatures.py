"""The arguments that every task's constructor accepts, whether its author named them or not.

:class:`rimlit.tasks.Task` publishes for each subclass a signature that the command line reads. It has the four
factories that every task accepts, and it leaves out no argument that the data module may fill in.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rimlit.backbones import BackboneFactory
from rimlit.data import DataModule
from rimlit.encoders import EncoderFactory
from rimlit.errors import ConfigError
from rimlit.heads import HeadFactory
from rimlit.spec import to_plain

OptimizerFactory: TypeAlias = Callable[[Iterable[nn.Parameter]], Optimizer]
"""Builds an optimiser from the parameters. In YAML: ``class_path`` and ``init_args`` without them."""
SchedulerFactory: TypeAlias = Callable[[Optimizer], LRScheduler]
"""Builds a learning rate schedule from the optimiser. In YAML: ``class_path`` and ``init_args`` without it."""

SHARED: dict[str, Any] = {
    "encoder": EncoderFactory | None,
    "head": HeadFactory | None,
    "optimizer": OptimizerFactory | None,
    "scheduler": SchedulerFactory | None,
}
"""Factories that every task accepts by keyword, with their types."""

FACTORIES = {"backbone": BackboneFactory, **SHARED}
"""Types of these arguments where an author gave none."""

_EMPTY = inspect.Parameter.empty


def complete(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap a task's ``__init__`` so that it accepts all of :data:`SHARED`.

    What the author's ``__init__`` does not name is kept in ``self._shared`` for :class:`rimlit.tasks.Task`, whose
    ``__init__`` prefers it to what it is called with. In the published signature an argument without a default,
    such as a size, has None: the data module may have it, and what is still missing is refused when called.
    """
    signature = inspect.signature(init)
    declared = signature.parameters
    added = [name for name in SHARED if name not in declared]
    required = [name for name, parameter in declared.items() if _is_required(parameter)][1:]  # without self
    hints = _hints(init)

    @functools.wraps(init)
    def completed(self: Any, *args: Any, **kwargs: Any) -> None:
        shared = vars(self).setdefault("_shared", {})
        for name in added:
            value = kwargs.pop(name, None)
            if value is not None:
                shared.setdefault(name, value)  # the outermost class was called first
        given = signature.bind_partial(self, *args, **kwargs).arguments
        for name in required:
            if given.get(name) is None and not _allows_none(hints.get(name)):
                raise ConfigError(f"{type(self).__name__} needs {name}{_reason(name)}.")
        init(self, *args, **kwargs)

    published: list[inspect.Parameter] = []
    for parameter in declared.values():
        follows_default = bool(published) and published[-1].default is not _EMPTY
        published.append(_published(parameter, hints, follows_default))
    extra = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=SHARED[n]) for n in added
    ]
    end = len(published) - any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in published)
    published[end:end] = extra
    completed.__signature__ = signature.replace(parameters=published)  # type: ignore[attr-defined]
    completed.__annotations__ = {p.name: p.annotation for p in published if p.annotation is not _EMPTY}
    return completed


def _reason(name: str) -> str:
    if name in FACTORIES:
        return ": a class, functools.partial(Class, key=value, …) or a dict of class_path and init_args"
    return ", which the data module does not declare"


def _is_required(parameter: inspect.Parameter) -> bool:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is _EMPTY and parameter.kind not in variable


def _hints(init: Callable[..., None]) -> dict[str, Any]:
    """Return the annotations, evaluated where they can be now."""
    try:
        return typing.get_type_hints(init)
    except (
        NameError,
        TypeError,
        AttributeError,
        SyntaxError,
    ):  # of a name that is imported for type checkers only
        return dict(init.__annotations__)


def _allows_none(hint: Any) -> bool:
    return hint is None or hint is Any or type(None) in typing.get_args(hint)


def _published(parameter: inspect.Parameter, hints: dict[str, Any], follows_default: bool) -> inspect.Parameter:
    name, hint = parameter.name, hints.get(parameter.name, _EMPTY)
    if name in FACTORIES and (hint is _EMPTY or hint is Any):
        hint = FACTORIES[name]
    # a factory is never the data module's: the parser asks for it where it can
    may_come_later = name not in ("self", *FACTORIES) or follows_default
    if not (_is_required(parameter) and may_come_later):
        return parameter.replace(annotation=hint)
    if hint is not _EMPTY:
        hint = f"{hint} | None" if isinstance(hint, str) else hint | None
    return parameter.replace(default=None, annotation=hint)


def declared_sizes(data: DataModule, names: Iterable[str]) -> dict[str, Any]:
    """Return what a data module declares of ``names``, arguments of a task: its plain attributes.

    The factories, and what every data module has (``batch_size``, ``seed``, …), are not sizes.
    """
    everywhere = {*FACTORIES, *inspect.signature(DataModule.__init__).parameters}
    values = {
        name: getattr(data, name, None)
        for name in names
        if name not in everywhere and not hasattr(DataModule, name)
    }
    return {name: to_plain(value, name) for name, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str)
