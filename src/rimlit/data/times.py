"""Times of steps: numbers, or dates and times of ISO 8601, read from a column, checked, continued."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rimlit.data.reading import shown
from rimlit.errors import DataError

NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
"""A number as a table holds it."""

WANTED = "a number, or a date such as 2024-01-31 or 2024-01-31T18:00:00"


def read_times(path: Path, name: str, column: Any) -> np.ndarray:
    """Return a column of times (rows,) as float64 or datetime64.

    Args:
        path: The file, for messages.
        name: The column's name.
        column: A ``pyarrow.ChunkedArray`` of numbers, dates, timestamps or text.

    Raises:
        DataError: A cell is not a time.
    """
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        column = column.cast(pa.timestamp(kind.unit)) if pa.types.is_timestamp(kind) else column
        times: np.ndarray = column.to_numpy()
        _refuse(path, name, column, np.isnat(times))
        return times
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        times = column.cast(pa.float64(), safe=False).to_numpy()
        _refuse(path, name, column, ~np.isfinite(times))
        return times
    texts = [str(value if value is not None else "").strip() for value in column.to_pylist()]
    if texts and re.match(NUMBER, texts[0]):
        _refuse(path, name, column, np.array([re.match(NUMBER, text) is None for text in texts]))
        return np.array(texts, dtype=np.float64)
    parsed = [_parse(text) for text in texts]
    _refuse(path, name, column, np.array([time is None for time in parsed]))
    return np.array(parsed)


def _parse(text: str) -> np.datetime64 | None:
    """Return a date or a time of ISO 8601, without a time zone; None for any other text."""
    if not re.match(r"^\d{4}-\d\d", text) or re.search(r"(Z|[+-]\d\d:?\d\d)$", text[10:]):
        return None
    try:
        return np.datetime64(text)
    except ValueError:
        return None


def _refuse(path: Path, name: str, column: Any, wrong: np.ndarray) -> None:
    places = np.flatnonzero(wrong)
    if len(places):
        value = column[int(places[0])].as_py()
        raise DataError(
            f"{shown(path)}: row {places[0] + 1}, column {name!r} must be {WANTED}, as the others are; got "
            f"{'nothing' if value is None else shown(repr(value))}."
        )


def require_increasing(path: Path, name: str, times: np.ndarray, codes: np.ndarray, rows: np.ndarray) -> None:
    """Refuse times that do not grow within a sequence.

    Args:
        path: The file, for messages.
        name: The column's name.
        times: Times (steps,), sequence by sequence.
        codes: Number of the sequence of each.
        rows: Row of the file of each, from 0.

    Raises:
        DataError: A time is not later than the one before it.
    """
    wrong = np.flatnonzero((times[1:] <= times[:-1]) & (codes[1:] == codes[:-1]))
    if len(wrong):
        at = int(wrong[0])
        raise DataError(
            f"{shown(path)}: row {rows[at + 1] + 1} has {time_text(times[at + 1])} in {name!r}, row "
            f"{rows[at] + 1} of the same sequence {time_text(times[at])}. Sort the rows by time; each time must "
            "occur once."
        )


def time_text(time: Any) -> str | int | float:
    """Return a time as plain data: an integer, a number, or text of ISO 8601.

    Example:
        >>> time_text(np.float64(1700.0)), time_text(np.datetime64("2024-01"))
        (1700, '2024-01')
    """
    if isinstance(time, np.datetime64):
        return str(time)
    return int(time) if float(time).is_integer() else float(time)


def has_equal_steps(times: np.ndarray) -> bool:
    """Return whether times (T,) follow each other at one distance, a calendar month counted as one."""
    steps = np.diff(times)
    if times.dtype.kind == "f":
        return bool(np.allclose(steps, steps[:1], rtol=1e-6, atol=0))
    return bool((steps == steps[:1]).all()) or _months(times) is not None


def times_after(times: np.ndarray, number: int) -> np.ndarray | None:
    """Return the ``number`` times that follow; None where there are fewer than two, or their steps differ.

    Args:
        times: (T,), increasing.
        number: How many follow.

    Example:
        >>> months = np.array(["2023-11-01", "2023-12-01", "2024-01-01"], dtype="datetime64[D]")
        >>> times_after(months, 2)
        array(['2024-02-01', '2024-03-01'], dtype='datetime64[D]')
    """
    if len(times) < 2 or not has_equal_steps(times):
        return None
    ahead = np.arange(1, number + 1)
    steps = np.diff(times)
    if times.dtype.kind != "f" and not (steps == steps[0]).all():
        months = _months(times)
        assert months is not None
        later = months[-1] + (months[-1] - months[-2]) * ahead
        moved: np.ndarray = later.astype(times.dtype) + (times[-1] - months[-1].astype(times.dtype))
        return moved
    continued: np.ndarray = times[-1] + steps[-1] * ahead
    return continued


def _months(times: np.ndarray) -> np.ndarray | None:
    """Return the month of each time where these follow at one distance and all stand at one place in theirs."""
    months = times.astype("datetime64[M]")
    places, steps = times - months.astype(times.dtype), np.diff(months)
    is_equal = (places == places[0]).all() and (steps == steps[:1]).all() and (steps.astype(int) > 0).all()
    return months if is_equal else None
