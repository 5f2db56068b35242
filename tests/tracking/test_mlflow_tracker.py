"""MLflow, which never stops a training."""

import contextlib
import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning_utilities.core.rank_zero import rank_zero_only
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from rimlit.data import Copying
from rimlit.errors import ConfigError, DataError, StoppedError, TrackingError
from rimlit.pictures.activity import MechanismActivity
from rimlit.pictures.episodes import EpisodePictures
from rimlit.pictures.files import save_figure
from rimlit.pictures.rollouts import RolloutPictures
from rimlit.tracking import LocalMetrics, MLflowTracker, mlflow_tracker
from rimlit.tracking.mlflow_sender import MLflowSender
from rimlit.tracking.process_names import is_gone, is_rank_zero, process_name
from rimlit.tracking.recording import RunRecorder
from rimlit.tracking.run_folder import RunFolder
from tests.conftest import rows_of
from tests.rl.corridor import make_experience, make_task
from tests.tasks.running import make_copying, make_copying_task, make_trainer, quiet
from tests.tasks.test_frame_prediction import make_data as make_frame_data
from tests.tasks.test_frame_prediction import make_task as make_frame_task

FIGURES = ["figures/activity.png", "figures/mechanisms.png"]

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
        monkeypatch.setenv(name, "1")  # and restored: the tracker sets them
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


class Broken:
    """A client whose every call fails, as of a server that is down."""

    def __getattr__(self, name: str) -> Any:
        def fail(*arguments: Any, **options: Any) -> None:
            raise MlflowException(f"{name}: the disk is full")

        return fail


def metrics_of(store: str, run_id: str | None, name: str) -> list[tuple[int, float]]:
    """Steps and values of a metric, in order of their steps."""
    return sorted((metric.step, metric.value) for metric in MlflowClient(store).get_metric_history(run_id, name))


def status_of(store: str, run_id: str | None) -> str:
    status: str = MlflowClient(store).get_run(run_id).info.status
    return status


def in_a_process_of_its_own(work: Callable[[], None]) -> int:
    """Fork, work, and leave without cleaning up; return the status that the process ended with."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(pid, 0)[1]


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


# MLflow


def test_a_run_has_config_parameters_metrics_figure_and_tags_and_is_finished(tmp_path: Path, store: str) -> None:
    tracker = MLflowTracker("copying", "mine-seed0", folder=tmp_path, tracking_uri=store)
    train(tmp_path, tracker)
    client = MlflowClient(store)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "mine-seed0"
    assert client.get_experiment(run.info.experiment_id).name == "copying"
    assert run.data.params["backbone"] == "RIM"
    assert run.data.params["backbone.num_active"] == "2"
    assert {"parameters", "active_parameters", "seed", "precision", "backend"} <= set(run.data.params)
    for name in ("train/loss", "val/cross_entropy", "val/mechanisms/usage_entropy", "test/span_6/cross_entropy"):
        assert name in run.data.metrics
    assert not [name for name in run.data.metrics if "usage_0" in name or name.startswith("floor")]
    assert float(run.data.params["floor/cross_entropy"]) == pytest.approx(2.0794, abs=1e-3), "constants"
    assert {"git_commit", "mlflow.note.content"} <= set(run.data.tags)
    assert "rimlit fit --config mine" in run.data.tags["mlflow.note.content"]
    paths = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert paths == {"config.yaml", "figures", "mechanisms.json"}, "no clutter"
    assert [file.path for file in client.list_artifacts(run.info.run_id, "figures")] == FIGURES
    assert RunFolder(tmp_path).read_state()["status"] == "finished"


def test_rollouts_of_frames_are_in_the_run_as_film_curves_and_numbers(tmp_path: Path, store: str) -> None:
    tracker = MLflowTracker("bouncing_balls", "film", folder=tmp_path, tracking_uri=store)
    trainer = make_trainer(tmp_path, logger=tracker, callbacks=[RolloutPictures()])
    trainer.test(make_frame_task(), make_frame_data(), verbose=False)
    client = MlflowClient(store)
    assert "rollout.json" in {file.path for file in client.list_artifacts(tracker.run_id)}
    figures = {file.path for file in client.list_artifacts(tracker.run_id, "figures")}
    assert figures == {"figures/rollout.gif", "figures/rollout_curves.png"}


def test_an_episode_is_in_the_run_as_a_film(tmp_path: Path, store: str) -> None:
    data = make_experience("CartPole-v1", options={"max_episode_steps": 3}, test_episodes=1)
    tracker = MLflowTracker("cartpole", "film", folder=tmp_path, tracking_uri=store)
    make_trainer(tmp_path, logger=tracker, callbacks=[EpisodePictures()]).test(
        make_task(data), data, verbose=False
    )
    figures = MlflowClient(store).list_artifacts(tracker.run_id, "figures")
    assert [file.path for file in figures] == ["figures/episode.gif"]


def test_a_run_is_resumed_by_its_id(store: str) -> None:
    first = MLflowTracker("copying", "mine", tracking_uri=store)
    first.log_metrics({"train/loss": 2.0}, step=1)
    assert first.flush()
    second = MLflowTracker("copying", "other", run_id=first.run_id, tracking_uri=store)
    second.log_metrics({"train/loss": 1.0}, step=2)
    assert second.flush()
    assert second.run_id == first.run_id
    assert metrics_of(store, first.run_id, "train/loss") == [(1, 2.0), (2, 1.0)]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("on purpose"), "FAILED"),
        (ConfigError("on purpose"), "FAILED"),
        (StoppedError("by SIGTERM", 143), "KILLED"),
    ],
)
def test_the_status_says_how_a_training_ended(tmp_path: Path, store: str, error: Exception, status: str) -> None:
    class Fails(MechanismActivity):
        def on_train_batch_end(self, *arguments: Any) -> None:
            raise error

    tracker = MLflowTracker("copying", "mine", folder=tmp_path, tracking_uri=store)
    trainer = make_trainer(tmp_path, logger=tracker, callbacks=[Fails()])
    with pytest.raises(type(error), match=r"on purpose|SIGTERM"):
        trainer.fit(make_copying_task(), make_copying())
    assert status_of(store, tracker.run_id) == status
    assert str(error) in MlflowClient(store).get_run(tracker.run_id).data.tags["end"]


def test_a_start_that_is_refused_leaves_neither_a_folder_nor_a_run(tmp_path: Path, store: str) -> None:
    class Refuses(Copying):
        def setup(self, stage: str) -> None:
            raise DataError("no such data")

    before = len(MlflowClient(store).search_runs(["0", "1"]))
    folder = tmp_path / "run"
    tracker = MLflowTracker("copying", "mine", folder=folder, tracking_uri=store)
    recorder = RunRecorder(RunFolder(folder), "rimlit fit", "model: mine\n")
    trainer = make_trainer(folder, logger=[LocalMetrics(folder), tracker], callbacks=[recorder])
    with pytest.raises(DataError, match="no such data"):
        trainer.fit(make_copying_task(), Refuses())
    assert not folder.exists()
    assert len(MlflowClient(store).search_runs(["0", "1"])) == before
    assert tracker.run_id is None


def test_the_store_is_a_file_here_unless_the_environment_or_the_caller_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert MLflowTracker("copying").tracking_uri == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert MLflowTracker("copying").tracking_uri == "http://127.0.0.1:9"
    assert MLflowTracker("copying", tracking_uri="sqlite:///b.db").tracking_uri == "sqlite:///b.db"


def test_a_store_that_fails_costs_a_warning_and_gets_everything_when_it_works_again(
    tmp_path: Path, store: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = MLflowTracker("copying", "mine", folder=tmp_path, tracking_uri=store)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, logger="rimlit"):
        patch.setattr(tracker._sender, "connect", Broken)
        train(tmp_path, tracker)
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("rimlit")]
    assert len(warnings) == 1
    assert "the disk is full" in warnings[0] and str(tmp_path / "tracking.jsonl") in warnings[0]
    results = RunFolder(tmp_path).read_results()
    assert results["steps"] == 2 and results["test"]
    assert {"train/loss", "val/cross_entropy"} <= set(rows_of(tmp_path / "metrics.csv")[0])
    assert (tmp_path / "figures/activity.png").is_file()
    assert tracker.run_id is None

    assert tracker.send_rest(30).failure is None
    rows = rows_of(tmp_path / "metrics.csv")
    assert tracker.run_id == MLflowTracker("copying", folder=tmp_path).run_id
    for name in ("train/loss", "val/cross_entropy", "test/span_6/cross_entropy"):
        kept = [(int(row["step"]), pytest.approx(float(row[name]))) for row in rows if row[name]]
        assert kept and metrics_of(store, tracker.run_id, name) == kept
    paths = [file.path for file in MlflowClient(store).list_artifacts(tracker.run_id, "figures")]
    assert paths == FIGURES
    assert status_of(store, tracker.run_id) == "FINISHED"


def test_a_store_that_hangs_is_not_waited_for_and_one_line_says_where_the_rest_is(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = threading.Event()
    tracker = MLflowTracker("copying", "mine", folder=tmp_path, tracking_uri=store)
    connect = tracker._sender.connect
    monkeypatch.setattr(tracker._sender, "connect", lambda: answers.wait(60) and connect())
    monkeypatch.setattr(tracker, "_patience", 0.5)
    start = time.monotonic()
    for step in range(100):
        tracker.log_metrics({"train/loss": 1.0}, step=step)
    assert time.monotonic() - start < 1
    for _ in range(5):
        tracker.finalize("success")
    assert time.monotonic() - start < 2, "the end waits once, however often it comes"
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("rimlit")]
    assert "has not taken everything within" in said and f"send it with 'rimlit sync {tmp_path}'" in said
    answers.set()
    assert tracker.send_rest(30).failure is None
    assert len(metrics_of(store, tracker.run_id, "train/loss")) == 100


@pytest.mark.parametrize("path", ["broken.db", "broken.db/mlflow.db", "folder.db"])
def test_a_store_that_cannot_even_be_opened_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    (tmp_path / "broken.db").write_text("this is not a database" * 100)
    (tmp_path / "folder.db").mkdir()
    with caplog.at_level(logging.WARNING, logger="rimlit"):
        uri = f"sqlite:///{tmp_path}/{path}"
        tracker = MLflowTracker("copying", "mine", folder=tmp_path, tracking_uri=uri)
        train(tmp_path, tracker)
    assert RunFolder(tmp_path).read_results()["test"]
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("rimlit.tra")]
    assert f"MLflow at sqlite:///{tmp_path}/{path} does not take what is logged" in warning
    assert (tracker.name, tracker.version, tracker.run_id) == ("copying", "mine", None)


def test_a_tracker_that_is_required_and_cannot_be_reached_refuses_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.db").write_text("this is not a database" * 100)
    uri = f"sqlite:///{tmp_path}/broken.db"
    with pytest.raises(TrackingError, match=rf"MLflow at {uri} cannot be reached \(.*\)\. Start it, name another"):
        MLflowTracker("copying", folder=tmp_path / "run", tracking_uri=uri).require()
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(mlflow_tracker, "LOCAL_PATIENCE", 0.2)
    monkeypatch.setattr(MLflowSender, "connect", lambda self: time.sleep(2))
    with pytest.raises(TrackingError, match=r"cannot be reached \(no answer in 0.2 seconds\)"):
        MLflowTracker("copying", tracking_uri=uri).require()


def test_a_tracker_that_is_required_and_can_be_reached_starts(store: str) -> None:
    tracker = MLflowTracker("copying", tracking_uri=store)
    tracker.require()
    assert tracker.run_id is None


# What a store does not take


def write_outbox(folder: Path, *entries: dict[str, Any], **notes: Any) -> Path:
    """A run folder as another person may have written it."""
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps({"time": 1, **entry}) + "\n" for entry in entries)
    (folder / "tracking.jsonl").write_text(lines)
    (folder / "tracking.json").write_text(json.dumps({"key": "theirs", "experiment": "copying", **notes}))
    return folder


@pytest.mark.parametrize("path", ["{secret}", "../secret.txt", "link.txt", "linked/secret.txt", "loop", "a\0b"])
def test_only_files_in_the_run_folder_are_ever_sent(tmp_path: Path, store: str, path: str) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    named = path.format(secret=tmp_path / "secret.txt")
    files = [{"kind": "file", "path": name, "folder": ""} for name in (named, "own.txt")]
    run = write_outbox(tmp_path / "run", *files)
    (run / "own.txt").write_text("own")
    (run / "link.txt").symlink_to("../secret.txt")
    (run / "linked").symlink_to(tmp_path)
    (run / "loop").symlink_to("loop")
    tracker = MLflowTracker("copying", "mine", folder=run, tracking_uri=store)
    delivery = tracker.send_rest(30)
    assert delivery.failure is None and list(delivery.left_out) == [("file", named)]
    assert [file.path for file in MlflowClient(store).list_artifacts(tracker.run_id)] == ["own.txt"]


def test_a_file_from_elsewhere_is_copied_into_the_folder_before_it_is_sent(tmp_path: Path, store: str) -> None:
    (tmp_path / "elsewhere.txt").write_text("mine")
    tracker = MLflowTracker("copying", "mine", folder=tmp_path / "run", tracking_uri=store)
    tracker.log_file(tmp_path / "elsewhere.txt", "texts")
    assert tracker.flush()
    assert (tmp_path / "run/artifacts/texts/elsewhere.txt").read_text() == "mine"
    files = MlflowClient(store).list_artifacts(tracker.run_id, "texts")
    assert [file.path for file in files] == ["texts/elsewhere.txt"]


def test_a_folder_that_names_the_run_of_another_does_not_write_into_it(tmp_path: Path, store: str) -> None:
    victim = MLflowTracker("copying", "victim", folder=tmp_path / "victim", tracking_uri=store)
    victim.log_metrics({"train/loss": 1.0}, step=1)
    assert victim.flush()
    entry = {"kind": "metrics", "values": {"train/loss": 9.0}, "step": 2}
    run = write_outbox(tmp_path / "run", entry, mlflow_run_id=victim.run_id, tracking_uri="http://127.0.0.1:9")
    stranger = MLflowTracker("copying", "stranger", folder=run, tracking_uri=store)
    assert stranger.send_rest(30).failure is None
    assert metrics_of(store, victim.run_id, "train/loss") == [(1, 1.0)]
    assert stranger.run_id != victim.run_id
    assert metrics_of(store, stranger.run_id, "train/loss") == [(2, 9.0)]


@pytest.mark.parametrize("what", ["experiment", "run"])
def test_what_was_deleted_in_mlflow_waits_until_it_is_restored(
    tmp_path: Path, store: str, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    client = MlflowClient(store)
    first = MLflowTracker(f"deleted-{what}", "mine", folder=tmp_path, tracking_uri=store)
    first.log_metrics({"train/loss": 1.0}, step=1)
    assert first.flush()
    number = client.get_experiment_by_name(f"deleted-{what}").experiment_id
    delete, restore, given = {
        "experiment": (client.delete_experiment, client.restore_experiment, number),
        "run": (client.delete_run, client.restore_run, first.run_id),
    }[what]
    delete(given)
    remedy = f"MLFLOW_TRACKING_URI={store} mlflow {what}s restore --{what}-id {given}"
    first.log_metrics({"train/loss": 2.0}, step=2)  # in the process that was sending
    assert not first.flush()
    assert remedy in caplog.text
    first.close()
    second = MLflowTracker(f"deleted-{what}", "mine", folder=tmp_path, tracking_uri=store)  # a later fit, or sync
    second.log_metrics({"train/loss": 3.0}, step=3)
    failure = second.send_rest(30).failure
    assert failure is not None and remedy in failure
    restore(given)
    assert second.send_rest(30).failure is None
    assert metrics_of(store, first.run_id, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_database_of_another_version_waits_and_the_whole_remedy_is_said(tmp_path: Path, store: str) -> None:
    path = tmp_path / "old.db"
    shutil.copy(store.removeprefix("sqlite:///"), path)

    def set_version(version: str) -> str:
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            ((before,),) = database.execute("select version_num from alembic_version").fetchall()
            database.execute("update alembic_version set version_num = ?", (version,))
        return str(before)

    version = set_version("0123456789ab")
    tracker = MLflowTracker("copying", "mine", folder=tmp_path / "run", tracking_uri=f"sqlite:///{path}")
    tracker.log_metrics({"train/loss": 1.0}, step=1)
    failure = tracker.send_rest(30).failure
    assert failure is not None and "mlflow db upgrade <database_uri>" in failure
    set_version(version)
    delivery = tracker.send_rest(30)
    assert delivery.failure is None and delivery.sent["metrics"] == 1


def test_a_name_that_mlflow_forbids_is_left_out_alone(
    tmp_path: Path, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = MLflowTracker("copying", "mine", folder=tmp_path, tracking_uri=store)
    for step in range(3):
        tracker.log_metrics({"a//b": 1.0, "train/loss": step / 8}, step=step)
    assert tracker.flush()
    assert metrics_of(store, tracker.run_id, "train/loss") == [(step, step / 8) for step in range(3)]
    assert caplog.text.count("can never take the metric 'a//b'") == 1


def test_a_test_in_groups_sends_its_headline_only(tmp_path: Path, store: str) -> None:
    tracker = MLflowTracker("copying", folder=tmp_path, tracking_uri=store, test_metrics=("cross_entropy",))
    names = ("test/span_5/cross_entropy", "test/span_5/loss", "test/loss", "val/loss", "epoch")
    tracker.log_metrics(dict.fromkeys(names, 1.0), step=1)
    assert tracker.flush()
    sent = MlflowClient(store).get_run(tracker.run_id).data.metrics
    assert set(sent) == {"test/span_5/cross_entropy", "test/loss", "val/loss"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "true"), ({"MLFLOW_DISABLE_TELEMETRY": "false"}, "false"), ({"DO_NOT_TRACK": "false"}, None)],
)
def test_telemetry_of_mlflow_is_off_unless_the_user_decides(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str | None
) -> None:
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        monkeypatch.setenv(name, "")  # and restored
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    MLflowTracker("copying")
    assert os.environ.get("MLFLOW_DISABLE_TELEMETRY") == expected


def test_mlflow_is_not_imported_before_its_defaults_are_set() -> None:
    program = "import rimlit.training, rimlit.tracking, sys; assert 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


# Resumed runs


def test_a_run_that_was_killed_is_marked_at_the_next_start_and_goes_on_without_a_step_twice(
    tmp_path: Path, store: str
) -> None:
    tracker = MLflowTracker("copying", "mine", folder=tmp_path / "run", tracking_uri=store)
    local = LocalMetrics(tmp_path / "run")

    def part(first: int, last: int) -> None:
        for step in range(first, last + 1):
            for logger in (local, tracker):
                logger.log_metrics({"train/loss": step / 8}, step=step)
                if step % 100 == 0:
                    logger.log_metrics({"val/loss": step / 4}, step=step)

    def killed() -> None:
        part(1, 300)
        assert tracker.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_process_of_its_own(killed) == signal.SIGKILL
    assert status_of(store, tracker.run_id) == "RUNNING"

    other = MLflowTracker("copying", "other", tracking_uri=store)
    other.log_metrics({"a": 1.0})
    assert other.flush()
    assert status_of(store, tracker.run_id) == "KILLED"
    assert status_of(store, other.run_id) == "RUNNING", "of a process that lives"

    part(201, 400)  # from the checkpoint at step 200
    assert tracker.flush()
    assert status_of(store, tracker.run_id) == "RUNNING"
    assert metrics_of(store, tracker.run_id, "train/loss") == [(step, step / 8) for step in range(1, 401)]
    assert metrics_of(store, tracker.run_id, "val/loss") == [(step, step / 4) for step in (100, 200, 300, 400)]
    rows = rows_of(tmp_path / "run/metrics.csv")
    assert [int(row["step"]) for row in rows if row["train/loss"]] == list(range(1, 401))
    assert [int(row["step"]) for row in rows if row["val/loss"]] == [100, 200, 300, 400]
    tracker.finalize("success")
    assert status_of(store, tracker.run_id) == "FINISHED"


def test_what_a_process_that_was_killed_could_not_send_is_sent_by_the_next_one(tmp_path: Path, store: str) -> None:
    tracker = MLflowTracker("copying", "mine", folder=tmp_path, tracking_uri=store)

    def killed() -> None:
        tracker._sender.connect = Broken  # type: ignore[method-assign]
        for step in range(5):
            tracker.log_metrics({"train/loss": step / 8}, step=step)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_process_of_its_own(killed) == signal.SIGKILL
    tracker.log_metrics({"train/loss": 5 / 8}, step=5)
    assert tracker.flush()
    assert metrics_of(store, tracker.run_id, "train/loss") == [(step, step / 8) for step in range(6)]


def test_what_was_sent_and_not_noted_is_sent_again_and_does_no_harm(tmp_path: Path, store: str) -> None:
    first = MLflowTracker("copying", "mine", folder=tmp_path, tracking_uri=store)
    for step in range(5):
        first.log_metrics({"train/loss": step / 8}, step=step)
    assert first.flush()
    notes = json.loads((tmp_path / "tracking.json").read_text())
    # killed after the run was made, before anything of that was noted
    (tmp_path / "tracking.json").write_text(json.dumps({"key": notes["key"], "process": ""}))
    second = MLflowTracker("copying", "mine", folder=tmp_path, tracking_uri=store)
    second.log_metrics({"train/loss": 5 / 8}, step=5)
    assert second.flush()
    assert second.run_id == first.run_id
    assert metrics_of(store, first.run_id, "train/loss") == [(step, step / 8) for step in range(6)]


def test_a_run_that_the_store_does_not_know_is_made_there_with_all_that_was_logged_before(
    tmp_path: Path, store: str
) -> None:
    first = MLflowTracker("copying", "mine", folder=tmp_path, tracking_uri=store)
    first.log_hyperparams({"lr": 0.1})
    for step in range(3):
        first.log_metrics({"train/loss": step / 8}, step=step)
    assert first.flush()
    notes = json.loads((tmp_path / "tracking.json").read_text())
    (tmp_path / "tracking.json").write_text(json.dumps({**notes, "key": "other", "mlflow_run_id": "0" * 32}))
    second = MLflowTracker("copying", "mine", folder=tmp_path, tracking_uri=store)
    second.log_metrics({"train/loss": 3 / 8}, step=3)
    assert second.flush()
    assert second.run_id not in (first.run_id, "0" * 32)
    assert metrics_of(store, second.run_id, "train/loss") == [(step, step / 8) for step in range(4)]
    assert MlflowClient(store).get_run(second.run_id).data.params["lr"] == "0.1"


def test_a_parameter_that_changed_is_a_tag(tmp_path: Path, store: str, caplog: pytest.LogCaptureFixture) -> None:
    for steps in (4, 6):
        tracker = MLflowTracker("copying", "mine", folder=tmp_path, tracking_uri=store)
        tracker.log_hyperparams({"max_steps": steps, "task": "Copying"})
        assert tracker.flush()
    data = MlflowClient(store).get_run(tracker.run_id).data
    assert data.params == {"max_steps": "4", "task": "Copying"}
    assert data.tags["changed.max_steps"] == "6" and "changed.task" not in data.tags
    assert "refuses" not in caplog.text


def test_a_test_may_be_repeated_with_another_result(tmp_path: Path, store: str) -> None:
    for value in (1.0, 1.0, 2.0):
        tracker = MLflowTracker("copying", "mine", folder=tmp_path, tracking_uri=store)
        tracker.log_metrics({"test/loss": value}, step=4)
        assert tracker.flush()
    assert metrics_of(store, tracker.run_id, "test/loss") == [(4, 1.0), (4, 2.0)]


@pytest.mark.slow
def test_several_processes_open_a_fresh_store_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/fresh.db"
    trackers = [MLflowTracker("copying", f"run{n}", folder=tmp_path / str(n), tracking_uri=uri) for n in range(3)]
    children = []
    for tracker in trackers:
        children.append(os.fork())
        if children[-1] == 0:
            for step in range(10):
                tracker.log_metrics({"train/loss": step / 8}, step=step)
            tracker.finalize("success")
            os._exit(0)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    for tracker in trackers:
        assert status_of(uri, tracker.run_id) == "FINISHED"
        assert metrics_of(uri, tracker.run_id, "train/loss") == [(step, step / 8) for step in range(10)]


def test_a_process_is_gone_when_it_has_ended_and_never_one_of_another_machine() -> None:
    assert not is_gone(process_name())
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = process_name(child.pid)
    assert not is_gone(name)
    child.kill()
    while not is_gone(name):  # a zombie counts as gone
        time.sleep(0.01)
    child.communicate()
    assert is_gone(name)
    host, space, pid, start = process_name().split("/")
    assert is_gone(f"{host}/{space}/{pid}/{start}0"), "the number is another process's by now"
    assert not is_gone(f"elsewhere/{space}/{pid}/{start}0")


def test_the_local_store_is_a_database_that_mlflow_ui_reads(store: str) -> None:
    tracker = MLflowTracker("copying", "mine", tracking_uri=store)
    tracker.log_metrics({"a": 1.0})
    assert tracker.flush()
    connection = sqlite3.connect(store.removeprefix("sqlite:///"))
    try:
        names = [name for (name,) in connection.execute("select name from experiments")]
    finally:
        connection.close()
    assert "copying" in names


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
    assert is_rank_zero()
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    assert not is_rank_zero()
