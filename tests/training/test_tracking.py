"""MLflow that never stops a training, and metrics kept beside the checkpoints."""

import csv
import logging
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from rimlit.training import tracking
from rimlit.training.activity import MechanismActivity
from rimlit.training.recording import RunFolder, RunRecorder
from rimlit.training.tracking import FAILURES_ALLOWED, LocalMetrics, MLflowTracker, save_figure
from tests.tasks.running import make_copying, make_copying_task, make_trainer, quiet

pytestmark = [
    *quiet,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # MLflow's own, of SQLAlchemy and others
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # connections that MLflow's store keeps
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")  # and put back: the tracker sets them


class Broken:
    """A client whose every call fails."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def fail(*arguments: Any, **options: Any) -> None:
            self.calls.append(name)
            raise MlflowException(f"{name}: the disk is full")

        return fail


def train(folder: Path, tracker: MLflowTracker, **options: Any) -> None:
    """Train and test a small copying run as the command line would."""
    callbacks = [MechanismActivity(), RunRecorder(RunFolder(folder), "rimlit fit --config mine", "model: mine\n")]
    trainer = make_trainer(
        folder,
        logger=[LocalMetrics(folder), tracker],
        callbacks=callbacks,
        log_every_n_steps=1,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        **options,
    )
    task, data = make_copying_task(), make_copying()
    trainer.fit(task, data)
    trainer.test(task, data, verbose=False)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# MLflow


def test_a_run_has_config_parameters_metrics_figure_and_tags_and_is_finished(tmp_path: Path, store: str) -> None:
    tracker = MLflowTracker("copying", "mine-seed0", tracking_uri=store)
    train(tmp_path, tracker)
    client = MlflowClient(store)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "mine-seed0"
    assert client.get_experiment(run.info.experiment_id).name == "copying"
    assert run.data.params["backbone"] == "RIM"
    assert run.data.params["backbone.num_active"] == "2"
    assert {"parameters", "active_parameters", "seed", "precision", "backend"} <= set(run.data.params)
    for name in ("train/loss", "val/cross_entropy", "floor/cross_entropy", "test/span_6/cross_entropy"):
        assert name in run.data.metrics
    assert "mechanisms/usage_0" in run.data.metrics
    assert {"git_commit", "mlflow.note.content"} <= set(run.data.tags)
    assert "rimlit fit --config mine" in run.data.tags["mlflow.note.content"]
    paths = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert paths == {"config.yaml", "figures"}, "no clutter"
    assert [file.path for file in client.list_artifacts(run.info.run_id, "figures")] == ["figures/activity.png"]
    state = RunFolder(tmp_path).read_state()
    assert state["mlflow_run_id"] == tracker.run_id
    assert state["status"] == "finished"


def test_a_run_is_gone_on_with_by_its_id(tmp_path: Path, store: str) -> None:
    first = MLflowTracker("copying", "mine", tracking_uri=store)
    first.log_metrics({"train/loss": 2.0}, step=1)
    second = MLflowTracker("copying", "other", run_id=first.run_id, tracking_uri=store)
    second.log_metrics({"train/loss": 1.0}, step=2)
    history = MlflowClient(store).get_metric_history(first.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2.0), (2, 1.0)]


def test_a_failed_training_is_marked_as_failed(tmp_path: Path, store: str) -> None:
    class Fails(MechanismActivity):
        def on_train_batch_end(self, *arguments: Any) -> None:
            raise RuntimeError("on purpose")

    tracker = MLflowTracker("copying", "mine", tracking_uri=store)
    trainer = make_trainer(tmp_path, logger=tracker, callbacks=[Fails()])
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(make_copying_task(), make_copying())
    assert MlflowClient(store).get_run(tracker.run_id).info.status == "FAILED"


def test_the_store_is_a_file_here_unless_the_environment_or_the_caller_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow.MlflowClient", Broken, raising=False)
    monkeypatch.setattr("mlflow.tracking.MlflowClient", Broken)
    assert MLflowTracker("copying")._tracking_uri == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert MLflowTracker("copying")._tracking_uri == "http://127.0.0.1:9"
    assert MLflowTracker("copying", tracking_uri="sqlite:///b.db")._tracking_uri == "sqlite:///b.db"


def test_a_store_that_fails_costs_warnings_and_never_the_training(
    tmp_path: Path, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = MLflowTracker("copying", "mine", tracking_uri=store)
    broken = Broken()
    tracker._mlflow_client = broken
    with caplog.at_level(logging.WARNING, logger="rimlit"):
        train(tmp_path, tracker)
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("rimlit")]
    assert len(warnings) == FAILURES_ALLOWED
    assert all("the disk is full" in warning for warning in warnings)
    assert "no more is tracked in this run" in warnings[-1]
    assert tracker.is_given_up
    results = RunFolder(tmp_path).read_results()
    assert results["steps"] == 2 and results["test"]
    assert {"train/loss", "val/cross_entropy"} <= set(rows_of(tmp_path / "metrics.csv")[0])
    assert (tmp_path / "figures/activity.png").is_file()
    assert "mlflow_run_id" not in RunFolder(tmp_path).read_state()
    given_up = len(broken.calls)
    tracker.log_metrics({"a": 1.0})
    assert len(broken.calls) == given_up, "a store given up is not asked again"


def test_a_store_that_breaks_in_the_middle_does_not_stop_the_training(
    tmp_path: Path, store: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = MLflowTracker("copying", "mine", tracking_uri=store)
    tracker.log_metrics({"before": 1.0}, step=0)
    monkeypatch.setattr(tracker, "_mlflow_client", Broken())
    train(tmp_path, tracker)
    assert RunFolder(tmp_path).read_results()["test"]
    assert "MLflow could not" in caplog.text


@pytest.mark.parametrize("path", ["broken.db", "broken.db/mlflow.db"])
def test_a_store_that_cannot_even_be_opened_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    (tmp_path / "broken.db").write_text("this is no database" * 100)
    with caplog.at_level(logging.WARNING, logger="rimlit"):
        tracker = MLflowTracker("copying", "mine", tracking_uri=f"sqlite:///{tmp_path}/{path}")
        train(tmp_path, tracker)
    assert RunFolder(tmp_path).read_results()["test"]
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("rimlit.training")]
    assert f"MLflow could not open sqlite:///{tmp_path}/{path}" in warning
    assert (tracker.name, tracker.version, tracker.run_id) == ("copying", "mine", None)


def test_one_success_forgives_earlier_failures(store: str) -> None:
    tracker = MLflowTracker("copying", "mine", tracking_uri=store)
    client = tracker.experiment
    for _ in range(3):
        for _ in range(FAILURES_ALLOWED - 1):
            tracker._mlflow_client = Broken()
            tracker.log_metrics({"a": 1.0})
        tracker._mlflow_client = client
        tracker.log_metrics({"a": 1.0})
    assert not tracker.is_given_up


def test_the_local_store_is_a_database_that_mlflow_ui_reads(store: str) -> None:
    MLflowTracker("copying", "mine", tracking_uri=store).log_metrics({"a": 1.0})
    connection = sqlite3.connect(store.removeprefix("sqlite:///"))
    try:
        names = [name for (name,) in connection.execute("select name from experiments")]
    finally:
        connection.close()
    assert "copying" in names


# Metrics beside the checkpoints


def test_a_later_run_in_the_folder_adds_to_the_metrics(tmp_path: Path) -> None:
    first = LocalMetrics(tmp_path)
    first.log_metrics({"train/loss": 2.0}, step=1)
    first.finalize("success")
    second = LocalMetrics(tmp_path)
    second.log_metrics({"train/loss": 1.0}, step=2)
    second.log_metrics({"val/loss": 1.5}, step=2)
    second.finalize("success")
    rows = rows_of(tmp_path / "metrics.csv")
    assert [(row["step"], row["train/loss"]) for row in rows if row["train/loss"]] == [("1", "2.0"), ("2", "1.0")]
    assert [row["val/loss"] for row in rows if row["val/loss"]] == ["1.5"]


def test_metrics_are_on_disk_before_the_end(tmp_path: Path) -> None:
    logger = LocalMetrics(tmp_path, flush_logs_every_n_steps=1)
    logger.log_metrics({"train/loss": 2.0}, step=0)
    logger.save()
    assert rows_of(tmp_path / "metrics.csv")[0]["train/loss"] == "2.0"


# Figures


def test_a_figure_goes_to_the_folder_and_to_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(str(tmp_path / "logs"))
    seen: list[str] = []
    trainer = make_trainer(tmp_path, logger=logger)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(logger.experiment), "add_figure", lambda self, name, *rest: seen.append(name))
        save_figure(trainer, Figure(), "activity.png")
    assert seen == ["activity"]
    assert (tmp_path / "figures/activity.png").read_bytes().startswith(b"\x89PNG")


def test_the_first_process_is_the_one_that_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking.is_rank_zero()
    monkeypatch.setattr(tracking.rank_zero_only, "rank", 1, raising=False)
    assert not tracking.is_rank_zero()
