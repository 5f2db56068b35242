"""Predictions as JSON lines."""

import json
from pathlib import Path

import pytest

from rimlit.data import Text
from rimlit.tasks import LanguageModelingTask
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
