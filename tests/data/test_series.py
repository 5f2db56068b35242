"""Long series: splits in the order of time, windows, times, what is known ahead, and what is refused."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rimlit.data import Series
from rimlit.errors import ConfigError, DataError

COUNT = np.arange(40.0)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def table(rows: int = 40, *, name: str = "time") -> str:
    return "\n".join([f"{name},level", *(f"{row},{row * 2}" for row in range(rows)), ""])


def make(path: str | Path, **arguments: Any) -> Series:
    defaults: dict[str, Any] = {"window": 4, "horizon": 2, "batch_size": 4, "seed": 1}
    return Series(str(path), **{"standardize": False, "center": False, **defaults, **arguments})


def targets_of(data: Series, split: Any) -> list[list[float]]:
    """What each window's forecast is compared with."""
    dataset = data.datasets(split)[""]
    return [dataset[place].targets[-data.horizon :, 0].tolist() for place in range(len(dataset))]


@pytest.fixture
def counting(tmp_path: Path) -> Path:
    """One series 0, 1, 2, …, 39."""
    np.save(tmp_path / "count.npy", COUNT)
    return tmp_path / "count.npy"


def test_splits_follow_each_other_in_time_and_keep_the_gap(counting: Path) -> None:
    data = make(counting, gap=3, val_fraction=0.1, test_fraction=0.2)
    assert targets_of(data, "test") == [[float(step), step + 1.0] for step in range(32, 39)]
    assert targets_of(data, "val") == [[25.0, 26.0], [26.0, 27.0], [27.0, 28.0]]
    train = data.datasets("train")[""]
    assert max(train[place].targets.max().item() for place in range(len(train))) == 21
    assert train[0].inputs[:, 0].tolist() == [0, 1, 2, 3, 4] and train[0].scored.all()


def test_a_window_of_validation_reads_what_came_before_and_is_scored_in_its_split_alone(counting: Path) -> None:
    data = make(counting, val_fraction=0.1, test_fraction=0.2)
    first = data.datasets("val")[""][0]
    assert first.inputs[:, 0].tolist() == [24, 25, 26, 27, 28]
    assert first.targets[first.scored][:, 0].tolist() == [28, 29]


@pytest.mark.parametrize(("stride", "eval_stride", "number"), [(1, None, 7), (5, None, 2), (1, 3, 3)])
def test_a_stride_lets_windows_begin_further_apart_and_the_last_rows_are_always_scored(
    counting: Path, stride: int, eval_stride: int | None, number: int
) -> None:
    data = make(counting, stride=stride, eval_stride=eval_stride, val_fraction=0.1, test_fraction=0.2)
    forecasts = targets_of(data, "test")
    assert len(forecasts) == number and forecasts[-1] == [38.0, 39.0]
    assert len(data.datasets("train")[""]) == len(range(28, 5, -stride))


def test_values_are_standardised_by_training_alone_and_turned_back(counting: Path) -> None:
    data = make(counting, standardize=True)
    end = data._rows()[0]["train"].end  # type: ignore[index]
    assert data.learned["scale"].mean == [COUNT[:end].mean()]
    batch = data.collate([data.datasets("test")[""][0]])
    assert data.own_units(batch.targets)[0, -1, 0].item() == pytest.approx(33.0, abs=1e-4)
    other = make(counting, standardize=True)
    other.load_state_dict(data.state_dict())
    assert other.learned == data.learned


def test_a_centred_window_has_the_mean_of_what_is_read_taken_from_it(counting: Path) -> None:
    sample = make(counting, center=True).datasets("test")[""][0]
    assert sample.level.tolist() == [29.5]
    assert sample.inputs[:, 0].tolist() == [-1.5, -0.5, 0.5, 1.5, 2.5]
    assert (sample.targets[:, 0] + sample.level).tolist() == [29, 30, 31, 32, 33]


def test_naive_forecasts_repeat_the_last_value_or_the_last_season(tmp_path: Path) -> None:
    np.save(tmp_path / "seasons.npy", np.tile([0.0, 1.0, 5.0], 20))
    data = make(tmp_path / "seasons.npy", season=3)
    floors = data.floors()
    assert floors["mae"] == floors["mse"] == 0
    assert floors["last_value_mae"] > 1
    guess, truth = make(tmp_path / "seasons.npy").naive("test")
    assert (guess[:, 0] == guess[:, 1]).all() and not torch.equal(guess, truth)
    assert set(make(tmp_path / "seasons.npy").floors()) == {"mae", "mse"}


# Tables


def test_a_table_has_a_row_per_step_and_times_that_are_not_forecast(tmp_path: Path) -> None:
    data = make(write(tmp_path / "a.csv", table()), time_column="time")
    assert (data.input_size, data.output_size, data.value_names) == (1, 1, ["level"])
    assert data.forecast_times("predict", 0) == [40, 41]
    assert data.forecast_times("test", 0) == [32, 33]
    assert targets_of(data, "test")[0] == [64.0, 66.0]


def test_calendar_months_are_continued(tmp_path: Path) -> None:
    months = [f"{1949 + month // 12}-{month % 12 + 1:02d}" for month in range(40)]
    text = "\n".join(["month,passengers", *(f"{month},{row}" for row, month in enumerate(months)), ""])
    assert make(write(tmp_path / "a.csv", text), time_column="month").forecast_times("predict", 0) == [
        "1952-05",
        "1952-06",
    ]
    days = text.replace(",", "-01,").replace("month-01,", "month,")
    assert make(write(tmp_path / "b.csv", days), time_column="month").forecast_times("predict", 0) == [
        "1952-05-01",
        "1952-06-01",
    ]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("1,5\n3,5\n2,5", "row 3 has 2 in 'time', row 2 of the same sequence 3. Sort the rows by time"),
        ("1,5\n1,5\n2,5", "row 2 has 1 in 'time', row 1 of the same sequence 1"),
        ("2020-01-02,5\n2020-01-01,5", "row 2 has 2020-01-01 in 'time', row 1 of the same sequence 2020-01-02"),
        ("2020-01-02,5\nyesterday,5", "row 2, column 'time' must be a number, or a date such as 2024-01-31"),
        ("1,5\n,5", "row 2, column 'time' must be a number, or a date .* got nothing"),
    ],
)
def test_times_that_do_not_grow_are_refused(tmp_path: Path, rows: str, words: str) -> None:
    data = make(write(tmp_path / "a.csv", f"time,level\n{rows}\n"), time_column="time")
    with pytest.raises(DataError, match=words):
        data.setup("fit")


def test_times_at_different_distances_are_a_doubt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = table().replace("\n39,", "\n77,")
    path = write(tmp_path / "a.csv", text)
    with caplog.at_level(logging.WARNING):
        assert make(path, time_column="time").forecast_times("predict", 0) is None
    assert "the times of series a follow each other at different distances" in caplog.text
    with pytest.raises(DataError, match=r"different distances.*strict=True"):
        make(path, time_column="time", strict=True).setup("fit")


def test_several_series_are_named_by_a_column_or_by_their_files(tmp_path: Path) -> None:
    folder = tmp_path / "shops"
    folder.mkdir()
    for name in ("north", "south"):
        write(folder / f"{name}.csv", table(30 if name == "north" else 40))
    apart = make(folder, time_column="time")
    rows = [
        f"{name},{line}"
        for name in ("north", "south")
        for line in table(30 if name == "north" else 40).split()[1:]
    ]
    together = make(
        write(tmp_path / "a.csv", "\n".join(["shop,time,level", *rows, ""])),
        series_column="shop",
        time_column="time",
    )
    for data in (apart, together):
        assert [data.sample_name("predict", "", place) for place in range(2)] == ["north", "south"]
        assert data.forecast_times("predict", 0) == [30, 31]
    assert targets_of(apart, "train") == targets_of(together, "train")


def test_a_series_that_is_too_short_is_named_and_one_that_is_short_is_padded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arrays = np.zeros((3, 40, 1))
    arrays[:] = COUNT[:, None]
    np.savez(tmp_path / "a.npz", inputs=arrays, lengths=np.array([40, 11, 4]))
    data = make(tmp_path / "a.npz", window=10, val_fraction=0.2, test_fraction=0.2)
    with caplog.at_level(logging.WARNING):
        train = data.datasets("train")[""]
    assert "1 series (2) too short for horizon=2 are left out" in caplog.text
    short = train[len(train) - 1]
    assert short.starts.sum() == 1 and short.scored.sum() == 11 - 4 - 1
    assert short.inputs[short.starts].tolist() == [[0.0]]
    assert short.targets[short.scored][:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert data.collate([train[0]]).starts is None


# What is known ahead


def known_table(future: int = 2) -> str:
    lines = [f"{row},{row * 2},{row % 7}" for row in range(40)]
    lines += [f"{row},,{row % 7}" for row in range(40, 40 + future)]
    return "\n".join(["time,level,weekday", *lines, ""])


KNOWN: dict[str, Any] = {"time_column": "time", "value_columns": ["level"], "known_columns": ["weekday"]}


def test_what_is_known_ahead_is_read_one_step_early_and_up_to_the_end_of_a_forecast(tmp_path: Path) -> None:
    data = make(write(tmp_path / "a.csv", known_table()), **KNOWN)
    assert (data.input_size, data.output_size) == (2, 1)
    sample = data.datasets("predict")[""][0]
    assert sample.inputs[:, 1].tolist() == [row % 7 for row in range(37, 42)]
    assert sample.inputs[:4, 0].tolist() == [72, 74, 76, 78]
    assert sample.targets[-2:].isnan().all() and not sample.targets[:-2].isnan().any()
    assert data.forecast_times("predict", 0) == [40, 41]
    assert targets_of(data, "test")[-1] == [76.0, 78.0], "rows of the future belong to no split"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (known_table(future=1), "known_columns of 2 steps after the last observation.* series a has 1"),
        (known_table().replace("5,10,", "5,,"), "series a lacks value 1 of its step 6, which is before its last"),
        (known_table().replace("5,10,5", "5,10,"), "row 6, column 'weekday' must be a finite number"),
        ("time,level,weekday\n1,,1\n2,,2\n", "series a has no observation"),
    ],
)
def test_a_table_that_lacks_what_is_known_or_observed_is_refused(tmp_path: Path, text: str, words: str) -> None:
    data = make(write(tmp_path / "a.csv", text), **KNOWN)
    with pytest.raises(DataError, match=words):
        data.datasets("predict")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"window": 0}, "window must be at least 1; got window=0"),
        ({"horizon": 0}, "horizon must be at least 1; got horizon=0"),
        ({"season": 0}, "season must be at least 1; got season=0"),
        ({"gap": -1}, "gap must be at least 0; got gap=-1"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "val_fraction=0.5, test_fraction=0.5"),
        ({"known_columns": ["a"]}, r"known_columns need value_columns.*known_columns=\['a'\]"),
        (
            {"value_columns": ["a"], "time_column": "a"},
            "^value_columns names 'a', which time_column names already",
        ),
        ({"series_column": "a", "time_column": "a"}, "^time_column names 'a', which series_column names already"),
        (
            {"value_columns": ["a", "b"], "known_columns": ["b"]},
            r"value_columns and known_columns both name \['b'\]",
        ),
    ],
)
def test_a_setting_out_of_its_range_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make("a.csv", **arguments)


def test_messages_name_the_arguments_of_series(tmp_path: Path) -> None:
    file = make(write(tmp_path / "a.csv", table()), time_column="week")
    with pytest.raises(DataError, match="series_column, value_columns, known_columns and time_column name them"):
        file.series()
    words = make(write(tmp_path / "b.csv", table().replace("4,8", "4,many")), time_column="time")
    with pytest.raises(DataError, match=r"\(value_columns names those that are read\); got 'many'"):
        words.series()


def test_a_file_that_is_too_short_says_what_is_needed(counting: Path) -> None:
    with pytest.raises(DataError, match=r"no series is long enough.* horizon=30 steps: the longest series has 40"):
        make(counting, horizon=30).setup("fit")


def test_a_new_file_needs_the_values_of_training(tmp_path: Path, counting: Path) -> None:
    data = make(counting)
    assert data.output_size == 1
    np.save(tmp_path / "two.npy", np.zeros((40, 2)))
    other = make(counting, predict_path=str(tmp_path / "two.npy"))
    other.load_state_dict(data.state_dict())
    with pytest.raises(DataError, match="has 2 values in each step; the model expects 1"):
        other.datasets("predict")
