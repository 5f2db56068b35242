"""The command line and an MLflow that is not there."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rimlit.tracking import MLflowTracker
from rimlit.tracking.process_names import process_name
from tests.cli.running import COPYING, read_json, rimlit, succeed

NOBODY = "http://127.0.0.1:9"
FIGURELESS = "--trainer.callbacks+={class_path: rimlit.training.MechanismActivity, init_args: {figure: false}}"


def test_a_run_that_requires_its_tracker_does_not_start_without_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    answer = rimlit("fit", *COPYING, "--require_tracking=true")
    assert answer.code == 1
    assert answer.err.startswith(f"rimlit: error: MLflow at {NOBODY} cannot be reached (")
    assert answer.err.count("\n") == 1
    assert "MLFLOW_TRACKING_URI" in answer.err and "require_tracking" in answer.err
    assert list(folder.iterdir()) == []


def test_a_run_without_its_server_ends_well_and_is_sent_by_the_command_sync(
    folder: Path, store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="rimlit"):
        patch.setenv("MLFLOW_TRACKING_URI", NOBODY)
        succeed("fit", *COPYING, FIGURELESS)
        assert f"MLflow at {NOBODY} does not take what is logged" in caplog.text
        run = folder / "runs/copying/rim-seed0"
        assert read_json(run / "run_state.json")["status"] == "finished"
        answer = rimlit("sync")
        assert answer.code == 1
        assert (
            answer.err == "rimlit: error: MLflow did not take all of runs/copying/rim-seed0; it is kept there.\n"
        )

    answer = succeed("sync")
    assert answer.out == f"runs/copying/rim-seed0: sent to {store}\n"
    mlflow_run = MlflowClient(store).get_run(read_json(run / "tracking.json")["mlflow_run_id"])
    assert mlflow_run.info.status == "FINISHED"
    assert mlflow_run.data.metrics["test/span_5/loss"] == read_json(run / "results.json")["test"]["span_5/loss"]
    assert succeed("sync", run).out == "", "there is nothing left"


def test_sync_leaves_a_run_to_the_process_that_trains_it(copying: Path) -> None:
    notes = read_json(copying / "tracking.json")
    name = process_name()
    (copying / "tracking.json").write_text(json.dumps({**notes, "sent": 0, "process": name}))
    machine = name.split("/")[0]
    assert f"its process on {machine} may still run" in succeed("sync").out
    assert "may still run" in succeed("sync", copying).out
    # of a process on another machine only the user knows whether it ended
    (copying / "tracking.json").write_text(json.dumps({**notes, "sent": 0, "process": f"far{name}"}))
    assert f"its process on far{machine} may still run" in succeed("sync").out
    assert "sent to" in succeed("sync", copying).out


@pytest.mark.parametrize("text", ["", "[1]", '{"sent": 3'])
def test_a_damaged_file_of_notes_is_named_by_sync_and_stops_nothing(folder: Path, text: str) -> None:
    (folder / "tracking.jsonl").write_text('{"kind": "tags", "values": {}}\n')
    (folder / "tracking.json").write_text(text)
    assert MLflowTracker("copying", folder=folder).run_id is None
    answer = rimlit("sync", folder)
    assert answer.code == 1
    assert f"{folder}: tracking.json is damaged" in answer.out
    assert answer.err == f"rimlit: error: MLflow did not take all of {folder}; it is kept there.\n"


def test_sync_of_a_folder_that_is_not_there_is_one_message(folder: Path) -> None:
    answer = rimlit("sync", "rnus")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("rimlit: error: rnus is no folder; rimlit sync takes folders of runs")


def test_a_run_set_aside_keeps_what_it_could_not_send(copying: Path, store: str) -> None:
    first = MLflowTracker("copying", folder=copying).run_id
    succeed("fit", *COPYING, FIGURELESS, "--resume=never", "--test_after_fit=false", "--trainer.max_steps=1")
    second = MLflowTracker("copying", folder=copying).run_id
    assert first != second
    assert MLflowTracker("copying", folder=copying.with_name("rim-seed0.1")).run_id == first
    assert MlflowClient(store).get_run(second).info.status == "FINISHED"
    shutil.rmtree(copying)
