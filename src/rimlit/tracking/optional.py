"""Errors in figures and loggers become one warning each, and the run continues."""

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
    """Turn an error into one warning with its cause. Other threads do not import large libraries meanwhile.

    Args:
        what: What may fail, as the subject of the warning: ``figures/activity.png``.
    """
    try:
        with import_lock:
            yield
    except StoppedError:  # a signal to stop
        raise
    except Exception as error:
        log.warning("%s could not be written, and the run continues: %s", what, reason_of(error))


class Gate:
    """Holds back what loggers are told until a run begins: one that is refused leaves no file and no tracked run.

    Until :meth:`open` is called, what would be logged is kept in memory, and requests to write or to close do
    nothing.
    """

    def __init__(self) -> None:
        self.is_open = False
        self._waiting: list[Callable[[], Any]] = []

    def hold(self, logger: AnyLogger) -> AnyLogger:
        """Put the gate before a logger; returns the same logger."""

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
        """Log what was held back, in its order, and everything from now on at once."""
        self.is_open = True
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()


def protect(logger: AnyLogger) -> AnyLogger:
    """Let a logger's errors become one warning, so that no run ends and no result is lost by them.

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
