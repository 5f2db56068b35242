"""MLflow as a logger that never delays training."""

import contextlib
import logging
import os
import re
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only

from rimlit.errors import StoppedError, TrackingError
from rimlit.files import storage_error, write_file
from rimlit.tracking.imports import prepare_mlflow
from rimlit.tracking.logged import Logged, numbers
from rimlit.tracking.mlflow_sender import PROCESS_TAG, MLflowSender, mark_killed, now
from rimlit.tracking.outbox import Outbox, read_notes, reason_of
from rimlit.tracking.process_names import process_name
from rimlit.training._lightning import flat_parameters

log = logging.getLogger(__name__)

DEFAULT_STORE = "sqlite:///mlflow.db"
SERVER_PATIENCE = 10.0
"""Seconds that a process waits at its end until a server has received all entries."""
LOCAL_PATIENCE = 60.0
"""The same for a local store: creating one takes seconds, and only one process at a time does it."""


class Delivery(NamedTuple):
    """The result of :meth:`MLflowTracker.send_rest`."""

    sent: Counter[str]  # items by kind: metrics, params, tags, file, status
    left_out: dict[tuple[str, str], str]  # entries that MLflow refuses: the reason, by kind and name
    failure: str | None  # why the rest waits; None where all is sent


class MLflowTracker(Logger):
    """An MLflow logger that never delays training.

    What is logged is written to ``tracking.jsonl`` in the run's folder, and sent from there by a thread (see
    :class:`~rimlit.tracking.outbox.Outbox`). A server that is down, slow or full costs a warning; what it did not
    take is sent when it answers again, when the run is resumed, or by ``rimlit sync``. A resumed run continues in
    the same MLflow run, and steps that are logged already are not logged twice.

    The status is that of the run: RUNNING, FINISHED, FAILED after an error, KILLED after a signal. A process that
    is killed cannot report it; the next one on the same machine marks its run as KILLED.

    Floors, which do not change, become parameters. MLflow's usage telemetry is off unless the user sets
    ``MLFLOW_DISABLE_TELEMETRY`` or ``DO_NOT_TRACK``.

    Args:
        experiment_name: MLflow experiment; rimlit names it after the dataset.
        run_name: Name of the run.
        folder: The run's folder; None takes one that is thrown away, with what could not be sent.
        run_id: An existing run to continue; by default the one noted in ``folder``.
        tracking_uri: Store or server; None takes ``MLFLOW_TRACKING_URI``, or ``mlflow.db`` in the working
            directory.
        test_metrics: Which metrics of a test in several groups (spans, environments) are sent, by the last part of
            their names; None sends all.
    """

    def __init__(
        self,
        experiment_name: str,
        run_name: str | None = None,
        *,
        folder: str | Path | None = None,
        run_id: str | None = None,
        tracking_uri: str | None = None,
        test_metrics: Collection[str] | None = None,
    ) -> None:
        super().__init__()
        prepare_mlflow()
        self.tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE
        self.folder = None if folder is None else Path(folder)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._sender = MLflowSender(self.tracking_uri, experiment_name, run_name, run_id)
        self._test_metrics = test_metrics
        self._outbox: Outbox | None = None
        self._logged = Logged()
        self._is_open = False  # whether the run's last status is RUNNING
        self._has_said_rest = False
        self._patience = LOCAL_PATIENCE if self._sender.is_local else SERVER_PATIENCE

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._sender.experiment

    @property
    def version(self) -> str | None:
        """The run's name."""
        return self._sender.run

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None until it is created, which happens in the background."""
        if self._sender.run_id is None and self.folder is not None:
            return read_notes(self.folder).get("mlflow_run_id")
        return self._sender.run_id

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers, without those that an earlier part of the run has logged."""
        values = {re.sub(r"[^\w/. -]", "", name): value for name, value in numbers(metrics).items()}
        floors = {name: f"{value:.6g}" for name, value in values.items() if name.startswith("floor/")}
        if floors:  # constants
            self.log_hyperparams(floors)
        values = {name: value for name, value in values.items() if name not in floors and self._is_sent(name)}
        self._start()
        if new := self._logged.new(values, step or 0):
            self._add("metrics", values=new, step=step or 0)

    def _is_sent(self, name: str) -> bool:
        parts = name.split("/")
        is_of_group = parts[0] == "test" and len(parts) > 2
        return name != "epoch" and not (
            is_of_group and self._test_metrics is not None and parts[-1] not in self._test_metrics
        )

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Log parameters, cut to 250 characters; one that differs from an earlier part's becomes a tag."""
        flat = flat_parameters(params)
        self._add_in_parts("params", {name: str(value)[:250] for name, value in flat.items()})

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._add_in_parts("tags", {name: str(value) for name, value in tags.items()})

    @rank_zero_only
    def log_file(self, path: str | Path, folder: str = "") -> None:
        """Log a small file as an artifact; it is read when it is sent.

        Args:
            path: File. Only files in the run's folder are ever sent: one from elsewhere is copied there first.
            folder: Its folder among the artifacts.

        Raises:
            OSError: The file cannot be read, or not be copied.
        """
        self._start()
        assert self.folder is not None
        root, path = self.folder.resolve(), Path(path).resolve()
        if not path.is_relative_to(root):
            copy = root / "artifacts" / folder / path.name
            write_file(copy, path.read_bytes())
            path = copy
        self._add("file", path=str(path.relative_to(root)), folder=folder)  # the folder may be renamed

    @rank_zero_only
    def save(self) -> None:
        """Do nothing: all entries are already written."""

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Close the run, and wait some seconds at most until MLflow has received all entries."""
        if self._is_open:
            end = sys.exception()  # Lightning calls this while it handles the error that ended the run
            if isinstance(end, StoppedError | KeyboardInterrupt):
                state = "KILLED"
            else:
                state = "FINISHED" if status in ("success", "finished") else "FAILED"
            if end is not None:
                self.set_tags({"end": reason_of(end)[:250]})
            self._add("status", status=state)
            self._is_open = False
            self._start().note(process="")
        patience = self._patience
        if not self.flush() and self._outbox is not None and not self._has_said_rest:
            self._has_said_rest = True
            if self._outbox.failure is None:  # or it has been reported
                log.warning(
                    "%s has not taken everything within %.0f seconds: %s.",
                    self._sender.name,
                    patience,
                    f"the rest is kept in {self._outbox.path}; send it with 'rimlit sync {self.folder}'"
                    if self._temporary is None
                    else "the rest is lost, for this tracker was given no folder",
                )

    def flush(self) -> bool:
        """Wait until MLflow has received all entries; return whether it has."""
        if self._outbox is None:
            return True
        before = time.monotonic()
        is_done = self._outbox.flush(self._patience)
        self._patience = max(0.0, self._patience - (time.monotonic() - before))
        return is_done

    def send_rest(self, timeout: float) -> Delivery:
        """Send the entries an earlier process could not send, within ``timeout`` seconds; report, do not warn."""
        outbox = self._start()
        outbox.report = log.debug
        outbox.start()
        is_done = outbox.flush(timeout)
        if is_done and outbox.sent:
            with contextlib.suppress(Exception):  # everything is sent
                mark_killed(self._sender.connect())  # the status that the earlier process sent last may be RUNNING
        failure = None if is_done else outbox.failure or f"no answer within {timeout:.0f} seconds"
        return Delivery(outbox.sent, outbox.left_out, failure)

    def close(self) -> None:
        """End the sending thread; entries that were not sent stay in the run's folder."""
        if self._outbox is not None:
            self._outbox.close()

    def _start(self) -> Outbox:
        """Open the outbox, when something is logged for the first time."""
        if self._outbox is None:
            if self.folder is None:
                self._temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
                self.folder = Path(self._temporary.name)
            try:
                outbox = Outbox(self.folder, self._sender.send, name=self._sender.name)
            except OSError as error:
                raise storage_error(self.folder, 0, error) from error
            for entry in outbox.entries():
                if entry["kind"] == "metrics":
                    self._logged.note(entry["values"], entry["step"])
            outbox.note(
                key=outbox.notes.get("key", uuid.uuid4().hex),
                experiment=self._sender.experiment,
                run=self._sender.run,
            )
            self._outbox = self._sender.outbox = outbox
        return self._outbox

    def _add(self, kind: str, **entry: Any) -> None:
        outbox = self._start()
        if not self._is_open:
            self._is_open = True
            outbox.note(process=process_name())
            outbox.append({"kind": "tags", "values": {PROCESS_TAG: process_name()}})
            outbox.append({"kind": "status", "status": "RUNNING", "time": now()})
        outbox.append({"kind": kind, "time": now(), **entry})

    def _add_in_parts(self, kind: str, values: Mapping[str, str]) -> None:
        items = list(values.items())
        for start in range(0, len(items), 100):  # MLflow's limit
            self._add(kind, values=dict(items[start : start + 100]))

    def require(self) -> None:
        """Raise a TrackingError unless MLflow answers within some seconds."""
        failure = [f"no answer in {self._patience:g} seconds"]

        def ask() -> None:
            try:
                with self._sender.one_process():
                    self._sender.connect().search_experiments(max_results=1)
                failure.clear()
            except Exception as error:  # clients raise errors of any kind
                failure[:] = [reason_of(error)]

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(self._patience)
        if failure:
            raise TrackingError(
                f"{self._sender.name} cannot be reached ({failure[0]}). Start it, name another by "
                "MLFLOW_TRACKING_URI, or train without require_tracking: what is logged is then kept in the run's "
                "folder and sent later."
            )
