"""One long series, or several, from files: windows in the order of time, for forecasts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from rimlit.checks import require_at_least, require_fractions
from rimlit.data.base import DataModule, Split
from rimlit.data.identity import digest_parts
from rimlit.data.naive import naive_forecasts, true_values
from rimlit.data.sequence_layout import Layout, SequenceData
from rimlit.data.sequence_sets import Scale
from rimlit.data.sequence_sources import digest_files, read_file
from rimlit.data.times import has_equal_steps, time_text, times_after
from rimlit.data.windows import (
    SplitRows,
    Window,
    WindowBatch,
    WindowSet,
    collate_windows,
    cut_future,
    each_series,
    scored_ends,
    split_rows,
    training_ends,
)
from rimlit.errors import ConfigError, DataError

MOST_NAMED = 20


class SeriesFile(NamedTuple):
    """The series of a file."""

    values: list[np.ndarray]  # (rows, V) for each series, observed
    known: list[np.ndarray]  # (rows or more, K) for each series
    times: list[np.ndarray | None]  # (rows,) of those observed
    names: list[str | int]
    columns: tuple[str, ...] | None  # V + K names


class Series(DataModule):
    r"""Long series from files, for :class:`rimlit.tasks.ForecastTask`; ``docs/forecasting.md`` shows how.

    A table (.csv, .csv.gz, .parquet) has a row per step, in the order of time; an array file (.npy, .npz, .pt)
    holds (steps,), (steps, values) or (series, steps, values). A sample is a window: ``window`` steps that are
    read and the ``horizon`` steps after them. The splits follow each other in time: training first, then
    validation, then the test. A window of validation or test reads steps before its split and is scored in its
    split alone.

    Args:
        path: A file, or a folder with one file for each series, whose name is the series'.
        window: Steps that are read before a forecast, at least 1. A shorter series is read from its start.
        horizon: Steps of a forecast, at least 1.
        stride: Steps between two windows of training, at least 1.
        eval_stride: Steps between two windows of validation and test; None for ``stride``.
        gap: Steps between two splits that belong to none, at least 0.
        season: Steps of a season, for the seasonal naive floor; None for the last value alone.
        series_column: Column of a table that names the series a row belongs to; None where a file is one series.
        time_column: Column of a table with the times, numbers or dates, which must grow; it is not forecast.
        value_columns: Columns of a table that are forecast; None for all that are nothing else.
        known_columns: Columns of a table whose values are known ahead, such as a holiday or a price: they are read
            one step early. Forecasts after the last observation need rows in which the others are empty.
        delimiter: The character between the cells of a .csv file; ``\t`` for tabs.
        decimal: Decimal mark of the numbers in a .csv file, a point or a comma.
        predict_path: Other series to forecast; None for those of ``path``. With a checkpoint's scales the files of
            ``path`` need not exist.
        val_fraction: Share of each series' steps for validation, 0 to 1, at least ``horizon`` steps.
        test_fraction: Share of each series' steps for the test, 0 to 1, at least ``horizon`` steps.
        standardize: Whether numbers are scaled to mean 0 and deviation 1, measured in training. Scores are then in
            deviations; forecasts are in the file's own units.
        center: Whether the mean of the steps that are read is taken from each window and added to its forecast, so
            that a series whose level drifts looks alike everywhere.
        strict: Whether doubtful data are an error and not a warning: times at different distances.
        batch_size: Windows in a batch over all processes, at least 1 and a multiple of their number.
        num_workers: Loader processes, 0 to load in the training process.
        seed: Seed of the order in training; None takes the run's ``seed_everything``, or 0.

    Raises:
        ConfigError: A value is out of its range.
        DataError: A file cannot be read, does not hold what it should, or is too short. Raised when the series are
            first needed.

    Example:
        >>> import tempfile
        >>> path = f"{tempfile.mkdtemp()}/waves.npy"
        >>> np.save(path, np.sin(np.arange(200) / 5))
        >>> data = Series(path, window=20, horizon=5, batch_size=4)
        >>> data.input_size, data.output_size, next(iter(data.train_dataloader())).inputs.shape
        (1, 1, torch.Size([4, 24, 1]))
    """

    name = "series"

    def __init__(
        self,
        path: str,
        *,
        window: int = 48,
        horizon: int = 12,
        stride: int = 1,
        eval_stride: int | None = None,
        gap: int = 0,
        season: int | None = None,
        series_column: str | None = None,
        time_column: str | None = None,
        value_columns: Sequence[str] | None = None,
        known_columns: Sequence[str] = (),
        delimiter: str = ",",
        decimal: str = ".",
        predict_path: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        standardize: bool = True,
        center: bool = True,
        strict: bool = False,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        require_at_least(1, window=window, horizon=horizon, stride=stride)
        require_at_least(0, gap=gap)
        require_at_least(1, eval_stride=eval_stride, season=season)
        require_fractions(val_fraction, test_fraction)
        if known_columns and value_columns is None:
            raise ConfigError(
                "known_columns need value_columns, the columns that are forecast; got value_columns=None, "
                f"known_columns={list(known_columns)}."
            )
        if both := sorted(set(known_columns) & set(value_columns or ())):
            raise ConfigError(
                f"A column is forecast or known ahead; value_columns and known_columns both name {both}."
            )
        self.path, self.predict_path = path, predict_path
        self.window, self.horizon = window, horizon
        self.stride, self.eval_stride = stride, stride if eval_stride is None else eval_stride
        self.gap, self.season = gap, season
        self.fractions = (val_fraction, test_fraction)
        self.standardize, self.center, self.strict = standardize, center, strict
        self.num_known = len(known_columns)
        columns = None if value_columns is None else (*value_columns, *known_columns)
        self.layout = Layout(
            target="next_step",
            target_per_step=False,
            tokens=False,
            sequence_column=series_column,
            input_columns=columns,
            target_columns=(),
            split_column=None,
            delimiter="\t" if delimiter == r"\t" else delimiter,
            decimal=decimal,
            time_column=time_column,
            may_be_empty=None if value_columns is None else tuple(value_columns),
            options=("series_column", "value_columns", "known_columns", "time_column"),
        )
        self.layout.check()
        self._files: dict[str, SeriesFile] = {}
        self._digest: str | None = None
        self._learned: dict[str, Any] | None = None
        self._datasets: dict[str, WindowSet] = {}

    # Sizes

    @property
    def input_size(self) -> int:
        """Numbers read in each step: the values, and what is known of the next step."""
        return len(self.learned["scale"].mean)

    @property
    def output_size(self) -> int:
        """Values that are forecast."""
        return self.input_size - self.num_known

    @property
    def learned(self) -> dict[str, Any]:
        """Scale of values and known columns, measured in training, and the names of both."""
        if self._learned is None:
            file = self.series()
            rows = [
                np.concatenate([values[:end], known[:end]], axis=1)
                for values, known, split in zip(file.values, file.known, self._rows(), strict=True)
                if split is not None
                for end in [split["train"].end]
            ]
            size = rows[0].shape[1]
            scale = Scale.of(np.concatenate(rows)) if self.standardize else Scale([0.0] * size, [1.0] * size)
            self._learned = {"scale": scale, "columns": None if file.columns is None else list(file.columns)}
        return self._learned

    def state_dict(self) -> dict[str, Any]:
        """Return the scale and the names of the columns, for the checkpoint."""
        return {"scale": list(self.learned["scale"]), "columns": self.learned["columns"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the scale and the names of the columns of a checkpoint."""
        self._learned = {"scale": Scale(*state_dict["scale"]), "columns": state_dict["columns"]}
        self._datasets.clear()
        known = state_dict["columns"]
        # what was read in another order is read again
        self._files = {
            path: file for path, file in self._files.items() if list(file.columns or ()) == (known or [])
        }

    # Reading

    @property
    def digest(self) -> str:
        """A SHA-256 of the content of the files; see :attr:`DataModule.digest`."""
        if self._digest is None:
            self._digest = digest_parts({"": digest_files(Path(self.path))})
        return self._digest

    def series(self, split: Split = "train") -> SeriesFile:
        """Return the series of the file, in its own units; for ``predict`` those of ``predict_path``."""
        path = self.predict_path if split == "predict" and self.predict_path is not None else self.path
        if path not in self._files:
            known = (self._learned or {}).get("columns")
            layout = self.layout._replace(known_columns=tuple(known) if known else None)
            self._files[path] = self._parted(path, read_file(Path(path), layout))
        return self._files[path]

    def _parted(self, path: str, read: SequenceData) -> SeriesFile:
        size = read.inputs.shape[1]
        if self.num_known and read.columns is None:
            raise DataError(f"{path} has no names of columns: known_columns are those of a table.")
        if self._learned is not None and size != self.input_size:
            raise DataError(f"{path} has {size} values in each step; the model expects {self.input_size}.")
        names = [name if isinstance(name, str) else int(name) for name in read.names]
        parts = list(each_series(read.inputs, read.lengths))
        try:
            values = [
                cut_future(name, rows[:, : size - self.num_known]) for name, rows in zip(names, parts, strict=True)
            ]
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        times: list[np.ndarray | None] = [None] * len(names)
        if read.times is not None:
            whole = list(each_series(read.times, read.lengths))
            times = [each[: len(rows)] for each, rows in zip(whole, values, strict=True)]
            for name, each in zip(names, whole, strict=True):
                if len(each) > 1 and not has_equal_steps(each):
                    self.report_doubt(
                        f"{path}: the times of series {name} follow each other at different distances; a step is "
                        "a row, whatever its time."
                    )
        return SeriesFile(values, [rows[:, size - self.num_known :] for rows in parts], times, names, read.columns)

    def _rows(self) -> list[dict[str, SplitRows] | None]:
        """Return the rows of each series that each split has; None for one that is too short."""
        file = self.series()
        found = [split_rows(len(each), self.horizon, self.gap, *self.fractions) for each in file.values]
        short = [str(name) for name, rows in zip(file.names, found, strict=True) if rows is None]
        if len(short) == len(found):
            raise DataError(
                f"{self.path}: no series is long enough. Each of validation and test needs horizon={self.horizon} "
                f"steps: the longest series has {max(map(len, file.values))}, with "
                f"val_fraction={self.fractions[0]}, test_fraction={self.fractions[1]}, gap={self.gap}."
            )
        if short:
            self.warn_once(
                f"{self.path}: {len(short)} series ({', '.join(short[:MOST_NAMED])}"
                f"{', …' if len(short) > MOST_NAMED else ''}) too short for horizon={self.horizon} are left out."
            )
        return found

    def windows(self, split: Split) -> list[Window]:
        """Return where the windows of a split lie."""
        if split == "predict":
            file = self.series("predict")
            return [Window(index, len(values) + self.horizon) for index, values in enumerate(file.values)]
        found = []
        for index, rows in enumerate(self._rows()):
            if rows is not None and split == "train":
                ends = training_ends(rows["train"], self.window + self.horizon, self.stride)
                found += [Window(index, end) for end in ends]
            elif rows is not None:
                found += [Window(index, end) for end in scored_ends(rows[split], self.horizon, self.eval_stride)]
        return found

    def setup(self, stage: str) -> None:
        """Read and check the series before any work is done."""
        splits: tuple[Split, ...] = ("predict",) if stage == "predict" else ("train", "val", "test")
        for split in splits:
            self.datasets(split)

    def datasets(self, split: Split) -> Mapping[str, WindowSet]:
        """Return the one dataset of a split."""
        if split not in self._datasets:
            mean, deviation = (np.array(part) for part in self.learned["scale"])
            file, size = self.series(split), self.output_size
            if split == "predict" and self.num_known:
                self._require_future(file)
            self._datasets[split] = WindowSet(
                [((rows - mean[:size]) / deviation[:size]).astype(np.float32) for rows in file.values],
                [self._known(rows, mean[size:], deviation[size:]) for rows in file.known],
                self.windows(split),
                window=self.window,
                horizon=self.horizon,
                score_all=split == "train",
                center=self.center,
            )
        return {"": self._datasets[split]}

    def _known(self, rows: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
        """Return what is known ahead, standardised, with rows for a forecast after the last one."""
        if not self.num_known:
            return np.zeros((len(rows) + self.horizon, 0), np.float32)
        scaled: np.ndarray = ((rows - mean) / deviation).astype(np.float32)
        return scaled

    def _require_future(self, file: SeriesFile) -> None:
        for name, values, known in zip(file.names, file.values, file.known, strict=True):
            if len(known) < len(values) + self.horizon:
                raise DataError(
                    f"{self.predict_path or self.path}: a forecast needs the known_columns of "
                    f"{self.horizon} steps after the last observation, in rows whose values are empty; "
                    f"series {name} has {len(known) - len(values)}."
                )

    def group_names(self, split: Split) -> list[str]:
        """Return the one unnamed group."""
        return [""]

    def collate(self, samples: list[WindowBatch]) -> WindowBatch:
        """Put windows into a batch."""
        return collate_windows(samples)

    # What forecasts are called and measured in

    def sample_name(self, split: Split, group: str, index: int) -> str | int:
        """Return the name of the series a window is of, or its index in its file of arrays."""
        return self.series(split).names[self.datasets(split)[""].windows[index].series]

    def forecast_times(self, split: Split, index: int) -> list[str | int | float] | None:
        """Return the times of a window's forecast; None where the file has none, or they cannot be continued."""
        series, end = self.datasets(split)[""].windows[index]
        times = self.series(split).times[series]
        if times is None:
            return None
        later = times_after(times, max(0, end - len(times)))
        if end > len(times) and later is None:
            return None
        whole = times if later is None else np.concatenate([times, later])
        return [time_text(time) for time in whole[end - self.horizon : end]]

    def sample_details(self, split: Split, group: str, index: int) -> dict[str, Any]:
        """Return the names of the values and the times of a forecast."""
        times = self.forecast_times(split, index)
        return {"values": self.value_names} | ({} if times is None else {"time": times})

    @property
    def value_names(self) -> list[str]:
        """Names of the values that are forecast."""
        columns = self.learned["columns"]
        return columns[: self.output_size] if columns else [f"value {index}" for index in range(self.output_size)]

    def own_units(self, values: torch.Tensor) -> torch.Tensor:
        """Return standardised values (…, V) in the file's units."""
        mean, deviation = (values.new_tensor(part[: self.output_size]) for part in self.learned["scale"])
        return values * deviation + mean

    # Floors

    def naive(self, split: Split, season: int = 1, most: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return forecasts that repeat the last season, and true values, standardised: (windows, horizon, V) each.

        Args:
            split: Which windows.
            season: Steps of a season; 1 repeats the last value.
            most: Most windows, evenly spaced; None for all.
        """
        data = self.datasets(split)[""]
        windows = [each for each in data.windows if each.end > self.horizon]
        windows = windows[:: max(1, len(windows) // most)] if most else windows
        guess = naive_forecasts(data.values, windows, self.horizon, season)
        return torch.from_numpy(guess), torch.from_numpy(true_values(data.values, windows, self.horizon))

    def seasons(self) -> dict[str, int]:
        """Return the season of each naive forecast by the prefix of its floors, ``""`` for the main one."""
        return {"": 1} if self.season is None else {"": self.season, "last_value_": 1}

    def floors(self) -> dict[str, float]:
        """Return ``mse`` and ``mae`` of repeating the last season; with ``season`` also of the last value."""
        floors = {}
        for prefix, season in self.seasons().items():
            guess, truth = self.naive("test", season)
            errors = (guess - truth).double()
            floors[f"{prefix}mse"] = errors.square().mean().item()
            floors[f"{prefix}mae"] = errors.abs().mean().item()
        return floors
