"""The command line and an MLflow that is not there."""

import json
import logging
import os
import re
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rimlit.tracking import MLflowTracker
from rimlit.tracking.process_names import process_name
from tests.cli.running import COPYING, read_json, rimlit, scores_of, succeed

NO_SERVER = "http://127.0.0.1:9"
FIGURELESS = "--trainer.callbacks+={class_path: rimlit.pictures.MechanismActivity, init_args: {figure: false}}"


def test_a_run_that_requires_its_tracker_does_not_start_without_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NO_SERVER)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    answer = rimlit("fit", *COPYING, "--require_tracking=true")
    assert answer.code == 1
    assert answer.err.startswith(f"rimlit: error: MLflow at {NO_SERVER} cannot be reached (")
    assert answer.err.count("\n") == 1
    assert "MLFLOW_TRACKING_URI" in answer.err and "require_tracking" in answer.err
    assert list(folder.iterdir()) == []


def test_a_run_without_its_server_ends_well_and_is_sent_by_the_command_sync(
    folder: Path, store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="rimlit"):
        patch.setenv("MLFLOW_TRACKING_URI", NO_SERVER)
        succeed("fit", *COPYING, FIGURELESS)
        assert f"MLflow at {NO_SERVER} does not take what is logged" in caplog.text
        run = folder / "runs/copying/rim-seed0"
        assert read_json(run / "run_state.json")["status"] == "finished"
        answer = rimlit("sync")
        assert answer.code == 1
        assert answer.err == (
            "rimlit: error: MLflow did not take all of runs/copying/rim-seed0; the rest is kept there.\n"
        )
        assert answer.out.startswith("runs/copying/rim-seed0: not sent: MlflowException: ")
        assert "Connection refused" in answer.out and answer.out.count("\n") == 1

    answer = succeed("sync")
    assert re.fullmatch(
        rf"runs/copying/rim-seed0: sent to {store}: \d+ tags, \d+ parameters, 1 file, \d+ metrics\n", answer.out
    )
    client = MlflowClient(store)
    mlflow_run = client.get_run(read_json(run / "tracking.json")["mlflow_run_id"])
    assert mlflow_run.info.status == "FINISHED"
    assert client.get_experiment(mlflow_run.info.experiment_id).name == "copying", "the dataset"
    assert mlflow_run.data.metrics["test/span_5/cross_entropy"] == scores_of(run)["span_5/cross_entropy"]
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
    assert answer.out.startswith(f"{folder}: not sent: tracking.json is damaged or missing")
    assert answer.err == f"rimlit: error: MLflow did not take all of {folder}; the rest is kept there.\n"


def test_sync_of_a_folder_that_is_not_there_is_one_message(folder: Path) -> None:
    answer = rimlit("sync", "rnus")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("rimlit: error: rnus is not a folder; rimlit sync takes folders of runs")


def test_an_archived_run_keeps_what_it_could_not_send(copying: Path, store: str) -> None:
    first = MLflowTracker("copying", folder=copying).run_id
    succeed("fit", *COPYING, FIGURELESS, "--resume=never", "--test_after_fit=false", "--trainer.max_steps=1")
    second = MLflowTracker("copying", folder=copying).run_id
    assert first != second
    assert MLflowTracker("copying", folder=copying.with_name("rim-seed0.1")).run_id == first
    assert MlflowClient(store).get_run(second).info.status == "FINISHED"
    shutil.rmtree(copying)


def test_sync_of_the_folder_of_another_person_sends_nothing_but_its_own_files(folder: Path, store: str) -> None:
    (folder / "secret.txt").write_text("secret")
    run = folder / "runs/copying/theirs"
    run.mkdir(parents=True)
    (run / "link.txt").symlink_to(folder / "secret.txt")
    paths = (str(folder / "secret.txt"), "../../../secret.txt", "link.txt")
    lines = [json.dumps({"kind": "file", "path": path, "folder": "", "time": 1}) for path in paths]
    (run / "tracking.jsonl").write_text("\n".join([*lines, "{}", '{"kind": "metrics"}', "[" * 100_000, ""]))
    notes = {
        "key": "theirs",
        "experiment": "copying",
        "run": 5,
        "sent": "all",
        "tracking_uri": NO_SERVER,
        "process": "",
    }
    (run / "tracking.json").write_text(json.dumps(notes))
    answer = rimlit("sync")
    assert answer.code == 1
    assert answer.err == "rimlit: error: MLflow can never take some of runs/copying/theirs: it was left out.\n"
    for path in paths:
        assert f"left out, MLflow can never take the file {path!r}: it is not in {run}" in answer.out
    client = MlflowClient(store)
    assert not client.list_artifacts(read_json(run / "tracking.json")["mlflow_run_id"])
    assert succeed("sync").out == "", "there is nothing left"


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_sync_reads_no_outbox_that_is_not_a_file_of_the_folder(folder: Path, kind: str) -> None:
    run = folder / "runs/copying/theirs"
    run.mkdir(parents=True)
    path = run / "tracking.jsonl"
    if kind == "link":
        path.symlink_to("/etc/hostname")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    answer = rimlit("sync")
    assert (answer.code, answer.out) == (
        1,
        "runs/copying/theirs: not sent: tracking.jsonl is a link or no regular file\n",
    )


def test_other_loggers_write_beside_metrics_csv_into_folders_with_the_name_of_the_run(folder: Path) -> None:
    logger = "--trainer.logger={class_path: CSVLogger, init_args: {save_dir: logs}}"
    options = (*COPYING, logger, FIGURELESS, "--test_after_fit=false")
    succeed("fit", *options, "--trainer.max_steps=2")
    succeed("fit", *options, "--trainer.max_steps=3")  # resumed: nothing that was written is replaced
    assert "train/loss" in (folder / "logs/copying/rim-seed0.2/metrics.csv").read_text()
    ours = (folder / "runs/copying/rim-seed0/metrics.csv").read_text()
    theirs = (folder / "logs/copying/rim-seed0/metrics.csv").read_text()
    assert "train/loss" in ours and "train/loss" in theirs
    assert not (folder / "mlflow.db").exists()
    assert not (folder / "runs/copying/rim-seed0/tracking.jsonl").exists()


BROKEN_LOGGER = """
from lightning.pytorch.loggers import CSVLogger
class Broken(CSVLogger):
    def log_metrics(self, metrics, step=None):
        raise ConnectionError("no network")
    finalize = log_metrics
"""


def test_a_logger_and_a_figure_that_fail_are_warnings_and_the_run_is_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "broken_logger.py").write_text(BROKEN_LOGGER)
    monkeypatch.syspath_prepend(str(folder))
    (folder / "own").mkdir()
    (folder / "own/figures").write_text("in the way")
    logger = "--trainer.logger={class_path: broken_logger.Broken, init_args: {save_dir: logs}}"
    answer = succeed(
        "fit", "--trust=broken_logger", *COPYING, logger, f"--trainer.default_root_dir={folder / 'own'}"
    )
    assert answer.err.count("The logger Broken fails in log_metrics") == 1
    assert "figures/activity.png could not be written, and the run continues" in answer.err
    assert read_json(folder / "own/run_state.json")["status"] == "finished"
    assert read_json(folder / "own/results.json")["test"]


def test_a_copying_run_has_some_twenty_metrics_in_mlflow_with_the_headline_first(
    trained_copying: Path, store: str
) -> None:
    run_id = read_json(trained_copying / "runs/copying/rim-seed0/tracking.json")["mlflow_run_id"]
    run = MlflowClient(store).get_run(run_id)
    names = sorted(run.data.metrics)
    assert len(names) <= 20
    assert names[0] == "test/span_5/cross_entropy"
    assert {name.split("/")[0] for name in names} == {"test", "train", "val"}
    assert {"floor/cross_entropy", "parameters", "flops_per_step"} <= set(run.data.params)
    usage = read_json(trained_copying / "runs/copying/rim-seed0/mechanisms.json")
    assert "mechanisms/span_5/usage_0" in usage
