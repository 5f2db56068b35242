"""Send a run's entries to MLflow, and find or create the MLflow run that they belong to."""

import contextlib
import logging
import re
import sqlite3
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from rimlit.errors import TrackingError
from rimlit.tracking.entries import Entry
from rimlit.tracking.imports import import_mlflow
from rimlit.tracking.outbox import Outbox, Refused
from rimlit.tracking.process_names import is_gone, process_name

log = logging.getLogger(__name__)

KEY_TAG = "rimlit.key"
PROCESS_TAG = "rimlit.process"


class MLflowSender:
    """Sends entries to one MLflow run, which it finds or creates. Its methods are called in the outbox's thread.

    What can be repaired (a server that is down, a deleted experiment, a database of another version) raises an
    ordinary error, so that the entries wait. Only an entry that MLflow can never take is refused.

    Args:
        uri: Store or server. It is the user's: nothing in a run's folder names one.
        experiment: Name of the experiment.
        run: Name of the run.
        run_id: An existing run that the user names; None finds it by the folder's notes, or creates it.
    """

    def __init__(self, uri: str, experiment: str, run: str | None, run_id: str | None = None) -> None:
        self.uri, self.experiment, self.run = uri, experiment, run
        self.run_id = self._given_id = run_id
        self.outbox: Outbox | None = None
        self._client: Any = None

    @property
    def is_local(self) -> bool:
        """Whether the store is a file of this machine."""
        return "://" not in self.uri or self.uri.startswith("sqlite:")

    @property
    def name(self) -> str:
        """The store, for messages: without a password."""
        return f"MLflow at {self._shown_uri}"

    @property
    def _shown_uri(self) -> str:
        return re.sub(r"//[^/@]*@", "//***@", self.uri)

    def connect(self) -> Any:
        """Return a client.

        Raises:
            TrackingError: A local store cannot be opened.
        """
        import_mlflow()
        from mlflow.tracking import MlflowClient

        if (path := self._database()) is not None:
            try:  # MLflow itself would try for an hour
                with closing(sqlite3.connect(path, timeout=10)) as database:
                    database.execute("PRAGMA schema_version")
            except sqlite3.Error as error:
                reason = "it is a folder" if Path(path).is_dir() else str(error)
                raise TrackingError(f"{path} cannot be opened as a database: {reason}") from error
        return MlflowClient(self.uri)

    def one_process(self) -> AbstractContextManager[Any]:
        """Let one process at a time open a local store: it is damaged if two create it at once."""
        path = self._database()
        if path is None:
            return nullcontext()
        from filelock import FileLock

        return FileLock(f"{path}.lock", timeout=300)

    def _database(self) -> str | None:
        path = self.uri.removeprefix("sqlite:///")
        return None if path == self.uri or "?" in path else path

    def send(self, entries: list[Entry]) -> None:
        """Send entries of one kind.

        Raises:
            Refused: MLflow can never take one of them.
            Exception: It does not take them now.
        """
        import_mlflow()
        from mlflow.exceptions import MlflowException

        if not self._find_run():
            return  # everything is sent once more, and these entries with it
        for call in self._calls(entries):
            try:
                call()
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # the run was deleted for good
                    self._client = None
                elif error.error_code == "INVALID_PARAMETER_VALUE":
                    self._require_active(self._client, self._client.get_run(self.run_id))
                    raise Refused(error.message) from error
                raise

    def _calls(self, entries: list[Entry]) -> Iterable[Any]:
        from mlflow.entities import Metric, Param, RunTag

        client, run_id, kind = self._client, self.run_id, entries[0]["kind"]
        if kind == "metrics":
            metrics = [
                Metric(name, value, entry["time"], entry["step"])
                for entry in entries
                for name, value in entry["values"].items()
            ]
            yield partial(client.log_batch, run_id, metrics=metrics)
        elif kind == "params":
            known = client.get_run(run_id).data.params
            for entry in entries:
                params, tags = [], []
                for name, value in entry["values"].items():
                    if known.setdefault(name, value) == value:
                        params.append(Param(name, value))
                    else:  # MLflow accepts no second value of a parameter
                        tags.append(RunTag(f"changed.{name}", value))
                yield partial(client.log_batch, run_id, params=params, tags=tags)
        elif kind == "tags":
            for entry in entries:
                tags = [RunTag(name, value) for name, value in entry["values"].items()]
                yield partial(client.log_batch, run_id, tags=tags)
        elif kind == "file":
            for entry in entries:
                path = self._file(entry["path"])
                yield partial(client.log_artifact, run_id, str(path), entry["folder"] or None)
        else:
            (*_, last) = entries
            if last["status"] == "RUNNING":
                yield partial(client.update_run, run_id, status="RUNNING")
            else:
                yield partial(client.set_terminated, run_id, last["status"], last.get("time"))

    def _file(self, name: str) -> Path:
        """Return a file of the run's folder, which may come from another person and name any file of this machine.

        Raises:
            Refused: It is not in the folder, itself or by a link, or it is not there.
        """
        assert self.outbox is not None
        folder = self.outbox.path.parent.resolve()
        try:
            path = (folder / name).resolve()
            if not path.is_relative_to(folder):
                raise Refused(f"it is not in {folder}: only files in the run's folder are sent")
            if not path.is_file():
                raise Refused("there is no such file")
        except (OSError, ValueError, RuntimeError) as error:  # a link to itself, a name with a null byte
            raise Refused(f"it is no path: {error}") from error
        return path

    def _find_run(self) -> bool:
        """Find or create the run; return False where everything is to be sent again, to an empty run."""
        if self._client is not None:
            return True
        assert self.outbox is not None
        with self.one_process():
            client = self.connect()
            is_known = self._knows_run(client)
            if not is_known:
                self.run_id = self._create(client)
            if self.outbox.notes.get("mlflow_run_id") != self.run_id:
                self.outbox.note(mlflow_run_id=self.run_id)
        mark_killed(client)
        self._client = client
        if is_known or not self.outbox.notes.get("sent"):
            return True
        self.outbox.start_again()
        return False

    def _knows_run(self, client: Any) -> bool:
        """Whether the store has the run that the user or the folder names."""
        from mlflow.exceptions import MlflowException

        assert self.outbox is not None
        self.run_id = self._given_id or self.outbox.notes.get("mlflow_run_id")
        if self.run_id is None:
            return False
        try:
            run = client.get_run(self.run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return False  # of another store, deleted there for good, or no id
        key = run.data.tags.get(KEY_TAG)
        if self._given_id is None and key != self.outbox.notes.get("key"):
            return False  # another run: the folder may come from another person, and name any
        self._require_active(client, run)
        if key is None:
            client.set_tag(self.run_id, KEY_TAG, self.outbox.notes["key"])
        elif key != self.outbox.notes.get("key"):
            self.outbox.note(key=key)
        return True

    def _create(self, client: Any) -> str:
        """Create the run, unless a process did so and was killed before it could record that."""
        from mlflow.exceptions import MlflowException
        from mlflow.tracking.context.registry import resolve_tags

        assert self.outbox is not None
        experiment = client.get_experiment_by_name(self.experiment)
        try:
            experiment_id = experiment.experiment_id if experiment else client.create_experiment(self.experiment)
        except MlflowException:  # another process has created it
            experiment = client.get_experiment_by_name(self.experiment)
            if experiment is None:
                raise
            experiment_id = experiment.experiment_id
        if experiment is not None:
            self._require_active_experiment(experiment)
        # or MLflow shows the experiment in its view for language-model applications
        client.set_experiment_tag(experiment_id, "mlflow.experimentKind", "custom_model_development")
        key = self.outbox.notes["key"]
        for run in client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'"):
            return str(run.info.run_id)
        tags = resolve_tags({KEY_TAG: key, PROCESS_TAG: process_name()})
        return str(client.create_run(experiment_id, tags=tags, run_name=self.run).info.run_id)

    def _require_active(self, client: Any, run: Any) -> None:
        """Raise a TrackingError with MLflow's own remedy where a run, or its experiment, was deleted."""
        self._require_active_experiment(client.get_experiment(run.info.experiment_id))
        if run.info.lifecycle_stage != "active":
            raise TrackingError(
                f"the run {run.info.run_name!r} was deleted in MLflow. Restore it: MLFLOW_TRACKING_URI="
                f"{self._shown_uri} mlflow runs restore --run-id {run.info.run_id}; or delete it permanently with "
                "'mlflow gc', and it is created again"
            )

    def _require_active_experiment(self, experiment: Any) -> None:
        if experiment.lifecycle_stage != "active":
            number = experiment.experiment_id
            raise TrackingError(
                f"the experiment {experiment.name!r} was deleted in MLflow. Restore it: MLFLOW_TRACKING_URI="
                f"{self._shown_uri} mlflow experiments restore --experiment-id {number}; or delete it permanently "
                "with 'mlflow gc', and it is created again"
            )


def mark_killed(client: Any) -> None:
    """Mark runs as KILLED that a process of this machine left RUNNING when it was killed."""
    from mlflow.exceptions import MlflowException

    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    running = client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=1000)
    for run in running:
        process = run.data.tags.get(PROCESS_TAG)
        if process is not None and is_gone(process):
            with contextlib.suppress(MlflowException):  # another user's, for example
                client.set_terminated(run.info.run_id, "KILLED")
                log.info("MLflow's run %s: its process was killed, and it is marked as KILLED.", run.info.run_name)


def now() -> int:
    """Return the time in MLflow's unit, ms."""
    return time.time_ns() // 1_000_000
