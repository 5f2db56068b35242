"""Errors in figures and loggers are logged as one warning each, and the run continues."""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from lightning.pytorch.loggers import Logger

from rimlit.errors import StoppedError
from rimlit.tracking.imports import import_lock
from rimlit.tracking.outbox import reason_of

log = logging.getLogger(__name__)

AnyLogger = TypeVar("AnyLogger", bound=Logger)
LOGGER_METHODS = (
    "log_metrics",
    "log_hyperparams",
    "log_graph",
    "log_file",
    "set_tags",
    "save",
    "after_save_checkpoint",
    "finalize",
)


@contextmanager
def optional(what: str) -> Iterator[None]:
    """Log an error as one warning with its cause. Meanwhile no other thread imports large libraries.

    Args:
        what: Subject of the warning, such as ``figures/activity.png``.
    """
    try:
        with import_lock:
            yield
    except StoppedError:  # a signal to stop
        raise
    except Exception as error:
        log.warning("%s could not be written, and the run continues: %s", what, reason_of(error))


class Gate:
    """Delays all calls of loggers until a run begins: a run that is refused leaves no file and no tracked run.

    Until :meth:`open` is called, what is logged is kept in memory, and calls that write or close do nothing.
    """

    def __init__(self) -> None:
        self.is_open = False
        self._waiting: list[Callable[[], Any]] = []

    def hold(self, logger: AnyLogger) -> AnyLogger:
        """Delay the calls of a logger; returns the same logger."""

        def gated(method: Callable[..., Any], *, is_kept: bool) -> Callable[..., Any]:
            @functools.wraps(method)
            def call(*args: Any, **kwargs: Any) -> Any:
                if self.is_open:
                    return method(*args, **kwargs)
                if is_kept:
                    self._waiting.append(functools.partial(method, *args, **kwargs))
                return None

            return call

        for method in LOGGER_METHODS:
            if hasattr(logger, method):
                is_kept = method not in ("save", "finalize", "after_save_checkpoint")
                setattr(logger, method, gated(getattr(logger, method), is_kept=is_kept))
        return logger

    def open(self) -> None:
        """Make the delayed calls, in their order, and let all later ones through."""
        self.is_open = True
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()


def protect(logger: AnyLogger) -> AnyLogger:
    """Log the errors of a logger as warnings, one for each method, so that none ends a run or loses a result.

    Returns:
        The same logger.
    """
    name, failed = type(logger).__name__, set[str]()

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            except StoppedError:
                raise
            except Exception as error:
                if method.__name__ not in failed:
                    failed.add(method.__name__)
                    log.warning(
                        "The logger %s fails in %s, and the run continues without what it would log: %s",
                        name,
                        method.__name__,
                        reason_of(error),
                    )
                return None

        return call

    for method in LOGGER_METHODS:
        if hasattr(logger, method):
            setattr(logger, method, guarded(getattr(logger, method)))
    return logger
