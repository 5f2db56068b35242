"""Files that a user names: opened without waiting, bounded before they are read, named where they are wrong.

All of :mod:`rimlit.data` opens such paths here. Each fault is a :class:`DataError` of one line.
"""

import contextlib
import gzip
import io
import os
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import psutil

from rimlit.errors import ConfigError, DataError

Read = TypeVar("Read")

MOST_BYTES = 64 * 2**30
"""Upper limit of what is read from one file, however much memory is free."""
LIMIT = "RIMLIT_READ_LIMIT"
"""Environment variable with another limit, in bytes."""
BLOCK = 2**22
LONGEST = 200
_BYTE_ORDER_MARKS = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a pipe that no process writes to would block
_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def shown(path: str | os.PathLike[str]) -> str:
    r"""Return a path, or another text of the user's, for a message: printable, on one line, cut where it is long.

    Example:
        >>> shown("two\nlines.csv"), shown("x" * 5000)[-17:]
        ('two\\nlines.csv', '(5000 characters)')
    """
    text = os.fspath(path)
    if not text.isprintable():
        text = repr(text)[1:-1]
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(os.fspath(path))} characters)"


def kind_of(path: Path) -> Literal["file", "folder"] | None:
    """Return what is at a path, through links; None where there is nothing.

    Raises:
        DataError: It is a pipe, a socket or a device, or the system denies access.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise DataError(f"{shown(path)} is a link to nothing.") from None
        return None
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    raise _no_file(path, mode)


def _no_file(path: Path, mode: int) -> DataError:
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
    return DataError(f"{shown(path)} must be a file; it is {kind}.")


def unreadable(path: Path, error: Exception) -> DataError:
    """Return the error for a path that the system does not let us read."""
    return DataError(f"{shown(path)} cannot be read: {one_line(error)}.")


def one_line(error: Exception) -> str:
    """Return an error's text on one line, without its full stop."""
    said = getattr(error, "strerror", None) or str(error)
    return shown(" ".join(said.split()).rstrip(".") or type(error).__name__)


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder, sorted.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise unreadable(folder, error) from error


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading.

    Raises:
        DataError: There is none, it cannot be read, it does not fit into memory, or another program changed it
            meanwhile.
    """
    kind = kind_of(path)
    if kind != "file":
        raise DataError(f"{shown(path)} must be a file; it {'is a folder' if kind else 'does not exist'}.")
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | _NO_WAIT | getattr(os, "O_BINARY", 0)), "rb") as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):  # it was replaced a moment ago
                raise _no_file(path, before.st_mode)
            yield file
            after = os.fstat(file.fileno())
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise DataError(f"{shown(path)} was changed while it was read. Start again when it is complete.")
    except MemoryError as error:
        raise DataError(f"{shown(path)} does not fit into memory.") from error
    except OSError as error:
        raise unreadable(path, error) from error


def most_bytes() -> int:
    """Return how many bytes one file may take in memory: half of what is free, at most ``MOST_BYTES``.

    Raises:
        ConfigError: ``RIMLIT_READ_LIMIT`` is not a number of bytes.
    """
    given = os.environ.get(LIMIT)
    if not given:
        return min(MOST_BYTES, int(psutil.virtual_memory().available) // 2)
    if not given.isdecimal():
        raise ConfigError(f"{LIMIT} must be a number of bytes; got {given!r}.")
    return int(given)


def require_fits(path: Path, size: int) -> None:
    """Raise a DataError where ``size`` bytes of a file are more than may be read."""
    limit = most_bytes()
    if size > limit:
        why = f"{LIMIT} says" if os.environ.get(LIMIT) else "half of the free memory, or 64 GiB,"
        raise DataError(
            f"{shown(path)} would take more than {limit:,} bytes in memory, the most that {why} allows. Use less "
            f"of the data, or set {LIMIT} to another number of bytes."
        )


def blocks_of(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """Yield the content of an open file in blocks, decompressed where its name ends in ``.gz``.

    Raises:
        DataError: A compressed file is damaged.
    """
    source = gzip.GzipFile(fileobj=file) if path.name.endswith(".gz") else file
    try:
        while block := source.read(BLOCK):
            yield block
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error


def read_bytes(path: Path) -> bytes:
    """Return the content of a file, decompressed where its name ends in ``.gz``.

    Raises:
        DataError: It cannot be read, or is larger than :func:`most_bytes`; no more than that is ever read.
    """
    content = io.BytesIO()
    with open_file(path) as file:
        require_fits(path, os.fstat(file.fileno()).st_size)
        for block in blocks_of(path, file):
            content.write(block)
            require_fits(path, content.tell())
    return content.getvalue()


def read_picture(path: Path, read: Callable[[Any], Read]) -> Read:
    """Return what ``read`` makes of a picture that Pillow has opened.

    Raises:
        DataError: It cannot be read.
    """
    from PIL import Image

    with open_file(path) as file, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file) as picture:
                return read(picture)
        except (DataError, MemoryError):
            raise
        except Exception as error:  # the decoders raise their own kinds
            raise DataError(f"{shown(path)} cannot be read as a picture: {one_line(error)}.") from error


def decode(path: Path, content: bytes) -> str:
    """Return the text of a file's content, without a byte order mark.

    Raises:
        DataError: It is not UTF-8.
    """
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise not_utf8(path, content, error) from error


def not_utf8(path: Path, content: bytes, error: UnicodeDecodeError) -> DataError:
    """Return the error for content that is not UTF-8, with the place of the wrong byte."""
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), None)
    line = content.count(b"\n", 0, error.start) + 1
    what = (
        f"it is {encoding}" if encoding else f"byte {error.start}, in line {line}, is {content[error.start]:#04x}"
    )
    return DataError(f"{shown(path)} is not UTF-8 text: {what}. Save it as UTF-8.")


def read_text(path: Path) -> str:
    """Return the text of a file; see :func:`read_bytes` and :func:`decode`."""
    return decode(path, read_bytes(path))
