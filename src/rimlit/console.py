"""Printing: on separate lines, above a progress bar, and never a reason for a run to fail."""

import contextlib
import logging
import os
import shutil
import sys
import textwrap
from typing import Any, TextIO


class UnfailingStream:
    """A text stream whose writes never raise.

    Characters that the encoding lacks are written as escapes; text that the device does not take (a full disk, a
    closed pipe) is dropped. Everything else is the wrapped stream's.

    Args:
        stream: The stream, for example ``sys.stdout``.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):  # ValueError: the stream is closed
            pass
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_streams() -> None:
    """Let no print of this process raise, be it by Lightning, a progress bar or a warning."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started the process; a progress bar writes all the same
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, for the life of the process
        if not isinstance(stream, UnfailingStream):
            setattr(sys, name, UnfailingStream(stream))


def in_columns(name: str, text: str, width: int) -> str:
    """Return a name and a text beside it, wrapped at the width of the terminal, or 80 columns without one.

    Args:
        name: Longer than ``width`` it pushes the text to the right.
        text: The text; words and paths are not broken.
        width: Columns before the text.
    """
    return wrapped(f"{name:<{width - 1}} {text}", " " * width)


def wrapped(text: str, indent: str = "") -> str:
    """Return a text wrapped at the width of the terminal, or 80 columns without one.

    Args:
        text: The text; words and paths are not broken.
        indent: What later lines begin with.
    """
    columns = shutil.get_terminal_size().columns
    return textwrap.fill(text, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a text and a line's end, above a progress bar where there is one; never raises.

    Args:
        text: One or more lines.
        stream: Where to; by default stdout.
    """
    stream = sys.stdout if stream is None else stream
    if stream is None:  # a process without a console
        return
    safe: Any = stream if isinstance(stream, UnfailingStream) else UnfailingStream(stream)
    tqdm = sys.modules.get("tqdm")
    if tqdm is None:  # no bar without it
        safe.write(f"{text}\n")
        safe.flush()
        return
    # the bar's own stream may fail, too
    with contextlib.suppress(OSError, ValueError), tqdm.tqdm.external_write_mode(file=stream):
        safe.write(f"{text}\n")
        safe.flush()


def show(*renderables: Any) -> None:
    """Print tables and texts of rich; never raises."""
    from rich.console import Console

    if sys.stdout is None:
        return
    stream: Any = UnfailingStream(sys.stdout)
    console = Console(file=stream)
    with console.capture() as captured:
        for renderable in renderables:
            console.print(renderable, highlight=False)
    say(captured.get().removesuffix("\n"))


class ConsoleHandler(logging.Handler):
    """Log to stderr as it is at that moment, above a progress bar, one line for each record."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        try:
            say(self.format(record), sys.stderr)
        except Exception:
            self.handleError(record)
