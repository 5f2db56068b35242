"""Windows of long series: where they lie in the splits, and a dataset of them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rimlit.errors import DataError


class WindowBatch(NamedTuple):
    """Windows of window + horizon steps; V values are forecast, K are known ahead."""

    inputs: Tensor  # (B, window + horizon − 1, V + K): values of a step, and what is known of the next one
    targets: Tensor  # (B, window + horizon − 1, V): values of the next step; NaN after the last observation
    scored: Tensor  # (B, window + horizon − 1) bool: next steps whose forecast is scored
    level: Tensor  # (B, V): what was taken from values and targets
    starts: Tensor | None = None  # the same shape, bool: the step a short series begins at; None: all are whole


class Window(NamedTuple):
    """Where a window lies."""

    series: int
    end: int  # row after its last one; the forecast is of the ``horizon`` rows before


class SplitRows(NamedTuple):
    """Rows of a series that a split has: it may read earlier ones, too."""

    first: int
    end: int


def split_rows(
    length: int, horizon: int, gap: int, val_fraction: float, test_fraction: float
) -> dict[str, SplitRows] | None:
    """Divide the rows of a series in the order of time; None where it is too short.

    Args:
        length: Rows.
        horizon: Rows of a forecast: validation and test have at least as many.
        gap: Rows between two splits that belong to none.
        val_fraction: Share of the rows for validation.
        test_fraction: Share of the rows for the test.

    Example:
        >>> {split: tuple(rows) for split, rows in split_rows(20, 2, 1, 0.1, 0.2).items()}
        {'train': (0, 12), 'val': (13, 15), 'test': (16, 20)}
    """
    val, test = round(val_fraction * length), round(test_fraction * length)
    first_test = length - test
    end_val = first_test - gap
    end_train = end_val - val - gap
    if min(val, test) < horizon or end_train < 2:
        return None
    return {
        "train": SplitRows(0, end_train),
        "val": SplitRows(end_val - val, end_val),
        "test": SplitRows(first_test, length),
    }


def training_ends(rows: SplitRows, size: int, stride: int) -> list[int]:
    """Return where windows of ``size`` rows in ``rows`` end; of fewer rows there is one, cut at its start.

    Example:
        >>> training_ends(SplitRows(0, 10), size=4, stride=3), training_ends(SplitRows(0, 3), size=4, stride=3)
        ([4, 7, 10], [3])
    """
    return sorted(range(rows.end, rows.first + size - 1, -stride)) or [rows.end]


def scored_ends(rows: SplitRows, horizon: int, stride: int) -> list[int]:
    """Return where windows end whose forecasts lie in ``rows``, the last one at their end.

    Example:
        >>> scored_ends(SplitRows(10, 20), horizon=4, stride=5)
        [15, 20]
    """
    return sorted(range(rows.end, rows.first + horizon - 1, -stride))


class WindowSet(Dataset[WindowBatch]):
    """Windows of series of any lengths.

    A sample is a :class:`WindowBatch` without its first dimension. Rows before a series begins are zeros and are
    not scored; a window that reaches beyond the last observation has NaN as targets there.

    Args:
        values: (rows, V) for each series.
        known: (rows or more, K) for each series.
        windows: Where the windows lie.
        window: Rows that are read before a forecast.
        horizon: Rows of a forecast.
        score_all: Whether all next steps are scored, as in training, and not those of the forecast alone.
        center: Whether the mean of the rows that are read is taken from the values.

    Example:
        >>> series = np.arange(8, dtype=np.float32)[:, None]
        >>> options = {"window": 3, "horizon": 2, "score_all": False, "center": False}
        >>> data = WindowSet([series], [series[:, :0]], [Window(0, 5)], **options)
        >>> data[0].inputs[:, 0].tolist(), data[0].targets[:, 0].tolist(), data[0].scored.tolist()
        ([0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], [False, False, True, True])
    """

    def __init__(
        self,
        values: Sequence[np.ndarray],
        known: Sequence[np.ndarray],
        windows: Sequence[Window],
        *,
        window: int,
        horizon: int,
        score_all: bool,
        center: bool,
    ) -> None:
        self.values = values
        self.known = known
        self.windows = list(windows)
        self.window = window
        self.horizon = horizon
        self.score_all = score_all
        self.center = center

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.windows)

    def __getitem__(self, index: int) -> WindowBatch:
        """Return a window."""
        series, end = self.windows[index]
        values, known = self.values[series], self.known[series]
        size = self.window + self.horizon
        first = max(0, end - size)
        rows = np.full((size, values.shape[1]), np.nan, np.float32)
        ahead = np.zeros((size, known.shape[1]), np.float32)
        rows[size - (end - first) :][: len(values) - first] = values[first:end]
        ahead[size - (end - first) :] = known[first:end]
        level = np.zeros(values.shape[1], np.float32)
        if self.center:  # of a series that is shorter than the horizon, of what there is
            read = values[first : max(first + 1, min(end - self.horizon, len(values)))]
            level = read.mean(axis=0, dtype=np.float64).astype(np.float32)
            rows -= level
        inputs = np.concatenate([np.nan_to_num(rows[:-1]), ahead[1:]], axis=1)
        scored = np.arange(1, size) >= (1 if self.score_all else self.window)
        starts = np.zeros(size - 1, bool)
        if (missing := size - (end - first)) > 0:
            scored &= np.arange(1, size) > missing
            starts[min(missing, size - 2)] = True
        return WindowBatch(*map(torch.from_numpy, (inputs, rows[1:], scored, level, starts)))


def collate_windows(samples: list[WindowBatch]) -> WindowBatch:
    """Put windows into a batch; ``starts`` is left out where every series is whole."""
    parts: Any = zip(*samples, strict=True)
    inputs, targets, scored, level, starts = (torch.stack(part) for part in parts)
    return WindowBatch(inputs, targets, scored, level, starts if bool(starts.any()) else None)


def cut_future(name: str | int, values: np.ndarray) -> np.ndarray:
    """Return observed rows (rows, V): those at the end without any value are the future.

    Raises:
        DataError: A row before the last observation lacks a value.
    """
    is_empty = np.isnan(values)
    observed = len(values) - int(np.argmin(is_empty.all(axis=1)[::-1])) if len(values) else 0
    if is_empty.all():
        raise DataError(f"series {name} has no observation: all cells are empty.")
    if is_empty[:observed].any():
        row, column = np.argwhere(is_empty[:observed])[0]
        raise DataError(
            f"series {name} lacks value {column + 1} of its step {row + 1}, which is before its last observation. "
            "Only the rows after it may be empty."
        )
    return values[:observed]


def each_series(inputs: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of each series."""
    ends = np.cumsum(lengths)
    for start, end in zip(ends - lengths, ends, strict=True):
        yield inputs[start:end]
