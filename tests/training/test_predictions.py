"""Predictions as JSON lines."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rimlit.data import Sequences, Text
from rimlit.errors import ConfigError
from rimlit.tasks import LanguageModelingTask, RegressionTask
from rimlit.training import PredictionFile
from tests.tasks.running import SMALL_LSTM, make_copying, make_copying_task, make_trainer, quiet

pytestmark = quiet


def test_each_sequence_is_a_line_in_the_order_of_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, data = make_copying_task(), make_copying()
    trainer = make_trainer(tmp_path, callbacks=[PredictionFile()])
    trainer.predict(task, data, return_predictions=False)
    records = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [record["span"] for record in records] == [3] * 8 + [6] * 8
    assert [record["sequence"] for record in records] == [*range(8)] * 2
    assert [record["group"] for record in records] == ["span_3"] * 8 + ["span_6"] * 8
    shown = [inputs[:4].tolist() for batch in data.predict_dataloader()[0] for inputs in batch.inputs]
    assert [record["symbols"] for record in records[:8]] == shown
    assert f"Predictions: {tmp_path / 'predictions.jsonl'}" in capsys.readouterr().out


def test_a_second_prediction_replaces_the_first(tmp_path: Path) -> None:
    for _ in range(2):
        trainer = make_trainer(tmp_path / "new", callbacks=[PredictionFile()])
        trainer.predict(make_copying_task(), make_copying(), return_predictions=False)
    assert len((tmp_path / "new/predictions.jsonl").read_text().splitlines()) == 16


def test_texts_are_printed_after_their_prompt_and_written_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("aé\n" * 40)
    data = Text(path=str(tmp_path / "a.txt"), level="character", batch_size=2, prompt="éa")
    task = LanguageModelingTask(SMALL_LSTM, data.vocabulary_size, "character", num_tokens=6, embedding_size=4)
    trainer = make_trainer(tmp_path, callbacks=[PredictionFile()])
    trainer.predict(task, data, return_predictions=False)
    line = (tmp_path / "predictions.jsonl").read_text()
    record = json.loads(line)
    assert record["prompt"] == "éa" and len(record["text"]) == 6
    assert "éa" in line  # not \\u00e9
    assert capsys.readouterr().out.startswith(f"éa{record['text']}\n")


def records_of(folder: Path, data: Any, task: Any) -> list[dict[str, Any]]:
    trainer = make_trainer(folder, callbacks=[PredictionFile()])
    trainer.predict(task, data, return_predictions=False)
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_a_sequence_has_the_name_of_its_table_or_its_index_in_its_file(tmp_path: Path) -> None:
    rows = [f"s{number:02d},{step},{number / 2}" for number in range(20) for step in range(3)]
    (tmp_path / "a.csv").write_text("\n".join(["sequence,x,target", *rows, ""]))
    np.savez(tmp_path / "a.npz", inputs=np.arange(60.0).reshape(20, 3), targets=np.arange(20) / 2)
    found = []
    for name in ("a.csv", "a.npz"):
        data = Sequences(str(tmp_path / name), target="value", batch_size=2, seed=1, test_fraction=0.25)
        records = records_of(tmp_path, data, RegressionTask(SMALL_LSTM, 1, input_size=1))
        assert len(records) == 5
        for record in records:
            index = int(str(record["sequence"]).removeprefix("s"))
            assert record["target"] == pytest.approx([index / 2], abs=1e-5)
        found.append([record["sequence"] for record in records])
    assert found[0] == [f"s{index:02d}" for index in found[1]]
    assert found[1] == sorted(found[1])


def test_the_step_after_the_last_is_predicted_without_a_target_and_no_sequence_is_left_out(tmp_path: Path) -> None:
    lengths = {"a": 3, "b": 1, "c": 2}
    rows = [
        f"{name}{part},{step},{part}"
        for part in ("train", "val", "test")
        for name in lengths
        for step in range(lengths[name])
    ]
    (tmp_path / "a.csv").write_text("\n".join(["sequence,x,part", *rows, ""]))
    data = Sequences(
        str(tmp_path / "a.csv"), target="next_step", split_column="part", batch_size=2, standardize=False
    )
    records = records_of(tmp_path, data, RegressionTask(SMALL_LSTM, 1, input_size=1))
    assert [record["sequence"] for record in records] == ["atest", "btest", "ctest"]
    assert [record["target"] for record in records] == [[[1.0], [2.0], [None]], None, [[1.0], [None]]]
    assert [len(record["predicted"]) for record in records] == [3, 1, 2]


class StoppedInTheMiddleError(Exception):
    """What happens in the middle of a prediction."""


def test_a_prediction_that_ends_early_leaves_the_earlier_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, data = make_copying_task(), make_copying()
    records_of(tmp_path, data, task)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    steps = iter([task.predict_step])

    def interrupted(*arguments: Any) -> Any:
        step = next(steps, None)
        if step is None:
            raise StoppedInTheMiddleError
        return step(*arguments)

    monkeypatch.setattr(task, "predict_step", interrupted)
    with pytest.raises(StoppedInTheMiddleError):
        records_of(tmp_path, data, task)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_is_no_record_is_refused_with_the_name_of_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_copying_task()
    monkeypatch.setattr(task, "predict_step", lambda *_: 3)
    with pytest.raises(ConfigError, match=r"predict_step of CopyingTask must return a list .*; it returned a int"):
        records_of(tmp_path, make_copying(), task)


def test_a_link_in_the_place_of_the_file_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/predictions.jsonl").symlink_to(tmp_path / "other")
    assert len(records_of(tmp_path / "run", make_copying(), make_copying_task())) == 16
    assert (tmp_path / "other").read_text() == "mine"
