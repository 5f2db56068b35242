"""``metrics.csv``: whatever names and damage there are, what can be read is kept."""

import logging
import math
from pathlib import Path

import pytest

from rimlit.comparison.runs import last_step
from rimlit.errors import StorageError
from rimlit.tracking import LocalMetrics, MLflowTracker
from rimlit.tracking.metrics_file import read_metrics
from tests.conftest import rows_of


def test_a_later_run_in_the_folder_adds_to_the_metrics(tmp_path: Path) -> None:
    first = LocalMetrics(tmp_path)
    first.log_metrics({"train/loss": 2.0}, step=1)
    second = LocalMetrics(tmp_path)
    second.log_metrics({"train/loss": 1.0}, step=2)
    second.log_metrics({"val/loss": 1.5}, step=2)
    rows = rows_of(tmp_path / "metrics.csv")
    assert [(row["step"], row["train/loss"]) for row in rows if row["train/loss"]] == [("1", "2.0"), ("2", "1.0")]
    assert [row["val/loss"] for row in rows if row["val/loss"]] == ["1.5"]


def test_metrics_are_on_disk_at_once_and_a_row_cut_short_is_dropped(tmp_path: Path) -> None:
    logger = LocalMetrics(tmp_path)
    logger.log_metrics({"train/loss": 2.0}, step=0)
    assert rows_of(tmp_path / "metrics.csv")[0]["train/loss"] == "2.0"
    logger.log_metrics({"train/loss": 3.0, "val/loss": math.nan}, step=1)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("2,1")
    LocalMetrics(tmp_path).log_metrics({"train/loss": 4.0}, step=2)
    rows = [(row["step"], row["train/loss"], row["val/loss"]) for row in rows_of(tmp_path / "metrics.csv")]
    assert rows == [("0", "2.0", ""), ("1", "3.0", "nan"), ("2", "4.0", "")]


def test_a_folder_that_cannot_hold_the_metrics_is_said_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"file/metrics.csv cannot be written"):
        LocalMetrics(tmp_path / "file").log_metrics({"a": 1.0}, step=0)
    with pytest.raises(StorageError, match="file cannot be written"):
        MLflowTracker("copying", folder=tmp_path / "file").log_metrics({"a": 1.0}, step=0)


@pytest.mark.parametrize("name", ["f1, macro", 'the "best" f1', "f1\nmacro", "f1\r", "précision µ", " f1 "])
def test_a_metric_of_any_name_is_read_back_by_every_reader(tmp_path: Path, name: str) -> None:
    path = tmp_path / "metrics.csv"
    LocalMetrics(tmp_path).log_metrics({"train/loss": 1.0}, step=1)
    LocalMetrics(tmp_path).log_metrics({name: 0.5}, step=2)
    resumed = LocalMetrics(tmp_path)
    resumed.log_metrics({name: 0.25, "another": 1.0}, step=3)
    resumed.log_metrics({name: 0.7}, step=2)  # trained again: logged already
    table = read_metrics(path)
    assert not table.is_damaged and not table.is_cut
    assert [row.get(name) for row in table.rows] == ["", "0.5", "0.25"]
    assert rows_of(path)[1][name] == "0.5"
    assert last_step(path) == 3


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"step,train/loss\r\n1,2.0\r\n\0\0\0\0\r\n", ["2.0"]),  # after a loss of power
        (b"step,train/loss\r\n1,2.0\r\n2,two\r\n3,\r\n", ["2.0", ""]),
        (b"step,train/loss\r\n1,2.0\r\n,5\r\n2,1,1\r\n", ["2.0"]),
        (b"stp,train/loss\r\n1,2.0\r\n", []),
        (b"step,step,train/loss\r\n1,1,2.0\r\n", []),
        (b'step,"train/loss\r\n1,2.0\r\n', []),
        (b"\xff\xfe\0\n\0", []),
        (b"no line", []),
    ],
)
def test_a_damaged_file_is_archived_once_and_what_can_be_read_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, kept: list[str]
) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    assert last_step(path) >= 0
    with caplog.at_level(logging.WARNING, logger="rimlit"):
        for step in (5, 6):
            LocalMetrics(tmp_path).log_metrics({"train/loss": 0.5}, step=step)
    assert (tmp_path / "metrics.damaged.csv").read_bytes() == content
    assert [row["train/loss"] for row in rows_of(path)] == [*kept, "0.5", "0.5"]
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"{path} is damaged" in message and "metrics.damaged.csv" in message
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.csv", "metrics.damaged.csv"]


def test_nothing_is_read_or_written_through_a_link(tmp_path: Path) -> None:
    target, run = tmp_path / "target.csv", tmp_path / "run"
    run.mkdir()
    target.write_text("theirs")
    (run / "metrics.csv").symlink_to(target)
    LocalMetrics(run).log_metrics({"train/loss": 0.5}, step=1)
    assert target.read_text() == "theirs"
    assert not (run / "metrics.csv").is_symlink()
    assert [row["train/loss"] for row in rows_of(run / "metrics.csv")] == ["0.5"]


def test_a_file_that_was_removed_meanwhile_has_its_columns_again(tmp_path: Path) -> None:
    logger = LocalMetrics(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, step=1)
    (tmp_path / "metrics.csv").unlink()
    logger.log_metrics({"train/loss": 2.0}, step=2)
    assert [row["train/loss"] for row in rows_of(tmp_path / "metrics.csv")] == ["2.0"]


def test_the_last_step_is_read_from_the_end_of_a_long_file(tmp_path: Path) -> None:
    lines = ["step,train/loss", *(f"{step},0.123456789" for step in range(5000))]
    (tmp_path / "metrics.csv").write_text("\r\n".join(lines) + "\r\n50")
    assert last_step(tmp_path / "metrics.csv") == 4999
    assert last_step(tmp_path / "missing.csv") == 0
