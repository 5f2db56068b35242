"""Times of steps: every kind that a table may hold, and how they continue."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pytest

from rimlit.data import Sequences
from rimlit.data.times import has_equal_steps, read_times, time_text, times_after
from rimlit.errors import DataError

PATH = Path("a.csv")


def read(values: list[Any], kind: Any = None) -> np.ndarray:
    return read_times(PATH, "time", pa.chunked_array([pa.array(values, kind)]))


@pytest.mark.parametrize(
    ("values", "following"),
    [
        (["1", "3", "5"], [7, 9]),
        ([1.5, 2.0, 2.5], [3, 3.5]),
        (["1700", "1701"], [1702, 1703]),
        (["2024-02-28", "2024-02-29"], ["2024-03-01", "2024-03-02"]),
        (["2024-01-01 22:00", "2024-01-01 23:00"], ["2024-01-02T00:00", "2024-01-02T01:00"]),
        (["2024-01-31", "2024-02-29"], ["2024-03-29", "2024-04-27"]),  # 29 days each
        (["2023-01-15", "2023-04-15", "2023-07-15"], ["2023-10-15", "2024-01-15"]),
    ],
)
def test_times_go_on_at_their_distance(values: list[Any], following: list[Any]) -> None:
    later = times_after(read(values), 2)
    assert later is not None and [time_text(time) for time in later] == following


@pytest.mark.parametrize("values", [["5"], ["1", "2", "4"], ["2024-01-01", "2024-02-01", "2024-02-05"]])
def test_times_without_one_distance_do_not_go_on(values: list[str]) -> None:
    assert times_after(read(values), 2) is None
    assert has_equal_steps(read(values)) is (len(values) == 1)


def test_dates_and_timestamps_of_parquet_are_read_as_they_are() -> None:
    stamps = pandas.date_range("2024-01-01", periods=3, freq="h").to_numpy()
    assert np.array_equal(read(list(stamps), pa.timestamp("us")), stamps)
    assert read([0, 1], pa.date32()).tolist() == [
        np.datetime64("1970-01-01").tolist(),
        np.datetime64("1970-01-02").tolist(),
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["1", "two"], "row 2, column 'time' must be a number, or a date such as 2024-01-31.* got 'two'"),
        (["2024-13-01"], "row 1, column 'time' must be .* got '2024-13-01'"),
        (["2024-01-01T00:00Z"], "got '2024-01-01T00:00Z'"),
        (["2024-01-01", "5"], "row 2, column 'time' must be .* got '5'"),
        (["1", None], "row 2, column 'time' must be .* got nothing"),
        ([1.0, float("nan")], "row 2, column 'time' must be .* got nan"),
    ],
)
def test_what_is_no_time_is_named(values: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(values)


def test_times_of_sequences_must_grow_within_each_and_are_no_input(tmp_path: Path) -> None:
    rows = [
        "b,1,5,0",
        "a,1,6,1",
        "b,2,7,0",
        "a,2,8,1",
        *(f"{name},{step},{step},0" for name in "cdefgh" for step in (1, 2)),
    ]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["sequence,time,level,target", *rows, ""]))
    data = Sequences(str(path), time_column="time", val_fraction=0.2, test_fraction=0.2, seed=1)
    assert data.input_size == 1
    path.write_text(path.read_text().replace("b,2,7", "b,0,7"))
    with pytest.raises(
        DataError, match=r"row 3 has 0 in 'time', row 1 of the same sequence 1. Sort the rows by time"
    ):
        Sequences(str(path), time_column="time", seed=1).setup("fit")
