"""Loggers: MLflow, which training never waits for, and a CSV file beside the checkpoints."""

import csv
import logging
import math
import os
import re
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_only

from rimlit.errors import StoppedError, TrackingError
from rimlit.files import storage_error
from rimlit.training.outbox import Entry, Outbox, Refused, read_notes, reason_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

DEFAULT_STORE = "sqlite:///mlflow.db"
SERVER_PATIENCE = 10.0
"""Seconds that the end of a process waits for a server to take what is left."""
LOCAL_PATIENCE = 60.0
"""The same for a local store: a new one takes seconds to make, and only one process at a time makes it."""


def is_rank_zero() -> bool:
    """Whether this process is the first of the run."""
    return getattr(rank_zero_only, "rank", 0) == 0


class Logged:
    """What earlier parts of a run have logged, which the part that goes on from a checkpoint trains again.

    Example:
        >>> logged = Logged()
        >>> logged.note({"train/loss": 0.5}, step=300)
        >>> logged.new({"train/loss": 0.6}, step=250), logged.new({"train/loss": 0.4}, step=301)
        ({}, {'train/loss': 0.4})
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, float]] = {}

    def note(self, values: Mapping[str, float], step: int) -> None:
        """Remember what was logged."""
        for name, value in values.items():
            if step >= self._last.get(name, (step, 0.0))[0]:
                self._last[name] = step, value

    def new(self, values: Mapping[str, float], step: int) -> dict[str, float]:
        """Return what of ``values`` is not logged yet; a test may be repeated with another result."""
        return {name: value for name, value in values.items() if self._is_new(name, value, step)}

    def _is_new(self, name: str, value: float, step: int) -> bool:
        last_step, last_value = self._last.get(name, (-1, 0.0))
        is_same = value == last_value or (math.isnan(value) and math.isnan(last_value))
        return step > last_step or (name.startswith("test/") and not is_same)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


class LocalMetrics(Logger):
    """All metrics in ``metrics.csv`` of a folder, a row for each call.

    A run that goes on from a checkpoint adds what the file does not hold yet.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns: list[str] | None = None
        self._logged = Logged()

    @property
    def name(self) -> str:
        """Nothing: the folder is the run's."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: the folder is the run's."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ``config.yaml`` holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row."""
        if self._columns is None:
            self._columns = self._read()
        step = step or 0
        row: dict[str, Any] = dict(self._logged.new(_numbers(metrics), step))
        if not row:
            return
        row["step"] = step
        try:
            if set(row) - set(self._columns):
                self._columns = sorted({*self._columns, *row})
                self._rewrite()
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        except OSError as error:
            raise storage_error(self.path, 0, error) from error

    def _read(self) -> list[str]:
        """Remember what an earlier part of the run has written; return the columns."""
        rows = self._rows()
        for row in rows:
            values = {name: float(text) for name, text in row.items() if text and name != "step"}
            self._logged.note(values, int(row["step"]))
        return list(rows[0]) if rows else []

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        text = self.path.read_text()
        whole = text[: text.rfind("\n") + 1]  # a process that was killed may have left half a row
        if whole != text:
            self._replace(whole)
        return list(csv.DictReader(whole.splitlines()))

    def _rewrite(self) -> None:
        rows = self._rows()
        lines = [",".join(self._columns or ())]
        lines += [",".join(row.get(name, "") for name in self._columns or ()) for row in rows]
        self._replace("".join(f"{line}\r\n" for line in lines))

    def _replace(self, text: str) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        temporary.write_text(text, newline="")
        os.replace(temporary, self.path)


class MLflowTracker(Logger):
    """MLflow, which training never waits for.

    Whatever is logged is written to ``tracking.jsonl`` in the run's folder, and sent from there by a thread (see
    :class:`~rimlit.training.outbox.Outbox`). A server that is down, slow or full costs a warning; what it did not
    take is sent when it answers again, when the run goes on, or by ``rimlit sync``. A run that goes on from a
    checkpoint goes on in the same MLflow run, and steps that are logged already are not logged twice.

    The status is that of the run: RUNNING, FINISHED, FAILED after an error, KILLED after a signal. A process that
    is killed cannot say so; the next one on the same machine marks its run as KILLED.

    Args:
        experiment_name: MLflow experiment; rimlit names it after the task.
        run_name: Name of the run.
        folder: The run's folder; None takes one that is thrown away, with what could not be sent.
        run_id: An existing run to go on with; by default the one that ``folder`` knows.
        tracking_uri: Store or server; None takes ``MLFLOW_TRACKING_URI``, or ``mlflow.db`` in the working
            directory.
        required: Whether to refuse to start where MLflow cannot be reached.

    Raises:
        TrackingError: MLflow is required and cannot be reached within some seconds.
    """

    def __init__(
        self,
        experiment_name: str,
        run_name: str | None = None,
        *,
        folder: str | Path | None = None,
        run_id: str | None = None,
        tracking_uri: str | None = None,
        required: bool = False,
    ) -> None:
        super().__init__()
        # a request to a server that is down fails in seconds, not in the four minutes of MLflow's own retries
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        for name in ("alembic", "mlflow.store"):
            # what they say when a store is new or cannot be opened; the last of it is in our own warning
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE
        self.folder = None if folder is None else Path(folder)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._experiment_name, self._run_name, self._run_id = experiment_name, run_name, run_id
        self._client: Any = None
        self._outbox: Outbox | None = None
        self._logged = Logged()
        self._is_open = False  # the run, as far as its status tells
        self._patience = LOCAL_PATIENCE if self._is_local else SERVER_PATIENCE
        if required and is_rank_zero():
            self._require()

    @property
    def _is_local(self) -> bool:
        return "://" not in self.tracking_uri or self.tracking_uri.startswith("sqlite:")

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._experiment_name

    @property
    def version(self) -> str | None:
        """The run's name."""
        return self._run_name

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None until it is created, which happens in the background."""
        if self._run_id is None and self.folder is not None:
            return (read_notes(self.folder) or {}).get("mlflow_run_id")
        return self._run_id

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers; those that an earlier part of the run has logged are left out."""
        values = {re.sub(r"[^\w/. -]", "", name): value for name, value in _numbers(metrics).items()}
        self._start()
        if new := self._logged.new(values, step or 0):
            self._add("metrics", values=new, step=step or 0)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Log parameters, cut to 250 characters; one that differs from an earlier part's becomes a tag."""
        flat = _flatten_dict(_convert_params(params))
        self._add_in_parts("params", {name: str(value)[:250] for name, value in flat.items()})

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._add_in_parts("tags", {name: str(value) for name, value in tags.items()})

    @rank_zero_only
    def log_file(self, path: str | Path, folder: str = "") -> None:
        """Log a small file as an artifact; it is read when it is sent.

        Args:
            path: File, in the run's folder or elsewhere.
            folder: Where it lies among the artifacts.
        """
        path = Path(path).resolve()
        if self.folder is not None and path.is_relative_to(self.folder.resolve()):
            path = path.relative_to(self.folder.resolve())  # the folder may be renamed
        self._add("file", path=str(path), folder=folder)

    @rank_zero_only
    def save(self) -> None:
        """Do nothing: what was logged is written already."""

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Close the run, and wait for MLflow to take what is left, for some seconds in all."""
        if self._is_open:
            end = sys.exception()  # Lightning calls this while it handles what ended the run
            if isinstance(end, StoppedError | KeyboardInterrupt):
                state = "KILLED"
            else:
                state = "FINISHED" if status in ("success", "finished") else "FAILED"
            if end is not None:
                self.set_tags({"end": reason_of(end)})
            self._add("status", status=state)
            self._is_open = False
            self._start().note(process="")
        self.flush()

    def flush(self) -> bool:
        """Wait for MLflow to take what is left; return whether it did."""
        if self._outbox is None:
            return True
        before = time.monotonic()
        is_done = self._outbox.flush(self._patience)
        self._patience = max(0.0, self._patience - (time.monotonic() - before))
        return is_done

    def send_rest(self, timeout: float) -> bool:
        """Send what an earlier process could not, ``timeout`` seconds at most; return whether all is sent now."""
        outbox = self._start()
        outbox.start()
        is_done = outbox.flush(timeout)
        if is_done and self._client is not None:
            mark_killed(self._client)  # what the earlier process sent last may be that it runs
        return is_done

    # In the process that trains

    def _start(self) -> Outbox:
        """Open the outbox, when something is logged for the first time."""
        if self._outbox is None:
            if self.folder is None:
                self._temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
                self.folder = Path(self._temporary.name)
            try:
                self._outbox = Outbox(self.folder, self._send, name=f"MLflow at {self.tracking_uri}")
            except OSError as error:
                raise storage_error(self.folder, 0, error) from error
            for entry in self._outbox.entries():
                if entry["kind"] == "metrics":
                    self._logged.note(entry["values"], entry["step"])
            self._run_id = self._run_id or self._outbox.notes.get("mlflow_run_id")
            self._outbox.note(
                key=self._outbox.notes.get("key", uuid.uuid4().hex),
                experiment=self._experiment_name,
                run=self._run_name,
            )
        return self._outbox

    def _add(self, kind: str, **entry: Any) -> None:
        outbox = self._start()
        if not self._is_open:
            self._is_open = True
            outbox.note(process=process_name())
            outbox.append({"kind": "tags", "values": {PROCESS_TAG: process_name()}})
            outbox.append({"kind": "status", "status": "RUNNING", "time": _now()})
        outbox.append({"kind": kind, "time": _now(), **entry})

    def _add_in_parts(self, kind: str, values: Mapping[str, str]) -> None:
        items = list(values.items())
        for start in range(0, len(items), 100):  # the most that MLflow takes
            self._add(kind, values=dict(items[start : start + 100]))

    def _require(self) -> None:
        """Raise a TrackingError unless MLflow answers."""
        failure = [f"no answer in {self._patience:g} seconds"]

        def ask() -> None:
            try:
                with self._one_process():
                    self._connect().search_experiments(max_results=1)
                failure.clear()
            except Exception as error:  # whatever a client comes up with
                failure[:] = [reason_of(error)]

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(self._patience)
        if failure:
            raise TrackingError(
                f"MLflow at {self.tracking_uri} cannot be reached ({failure[0]}). Start it, name another by "
                "MLFLOW_TRACKING_URI, or train without require_tracking: what is tracked is then kept in the "
                "run's folder and sent later."
            )

    # In the outbox's thread

    def _send(self, entries: list[Entry]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            if self._open():
                for call in self._calls(entries):
                    call()
        except MlflowException as error:
            if error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                raise Refused(error.message) from error
            raise

    def _calls(self, entries: list[Entry]) -> Iterable[Any]:
        from mlflow.entities import Metric, Param, RunTag

        client, run_id, kind = self._client, self._run_id, entries[0]["kind"]
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
                    else:  # MLflow takes no second value of a parameter
                        tags.append(RunTag(f"changed.{name}", value))
                yield partial(client.log_batch, run_id, params=params, tags=tags)
        elif kind == "tags":
            for entry in entries:
                tags = [RunTag(name, value) for name, value in entry["values"].items()]
                yield partial(client.log_batch, run_id, tags=tags)
        elif kind == "file":
            assert self.folder is not None
            for entry in entries:
                path = self.folder / entry["path"]
                if path.is_file():
                    yield partial(client.log_artifact, run_id, str(path), entry["folder"] or None)
        else:
            (*_, last) = entries
            if last["status"] == "RUNNING":
                yield partial(client.update_run, run_id, status="RUNNING")
            else:
                yield partial(client.set_terminated, run_id, last["status"], last["time"])

    def _connect(self) -> Any:
        from mlflow.tracking import MlflowClient

        return MlflowClient(self.tracking_uri)

    def _open(self) -> bool:
        """Find or create the run; False where all is to be sent anew, to a run that has nothing yet."""
        from mlflow.exceptions import MlflowException

        if self._client is not None:
            return True
        assert self._outbox is not None
        with self._one_process():
            client = self._connect()
            if self._run_id is not None:
                try:
                    client.get_run(self._run_id)
                except MlflowException as error:
                    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                        raise
                    self._run_id = None  # of another store, or deleted there
            is_known = self._run_id is not None
            if not is_known:
                self._run_id = self._create(client, str(self._outbox.notes["key"]))
                self._outbox.note(mlflow_run_id=self._run_id)
        mark_killed(client)
        self._client = client
        if is_known or not self._outbox.notes.get("sent"):
            return True
        self._outbox.start_again()
        return False

    def _create(self, client: Any, key: str) -> str:
        """Create the run, unless a process that was killed has done so just before it could note that."""
        from mlflow.exceptions import MlflowException
        from mlflow.tracking.context.registry import resolve_tags

        experiment = client.get_experiment_by_name(self._experiment_name)
        try:
            experiment_id = (
                experiment.experiment_id if experiment else client.create_experiment(self._experiment_name)
            )
        except MlflowException:  # another process was faster
            experiment = client.get_experiment_by_name(self._experiment_name)
            if experiment is None:
                raise
            experiment_id = experiment.experiment_id
        # or MLflow shows the experiment in its view for language-model applications
        client.set_experiment_tag(experiment_id, "mlflow.experimentKind", "custom_model_development")
        for run in client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'"):
            return str(run.info.run_id)
        tags = resolve_tags({KEY_TAG: key, PROCESS_TAG: process_name()})
        return str(client.create_run(experiment_id, tags=tags, run_name=self._run_name).info.run_id)

    def _one_process(self) -> AbstractContextManager[Any]:
        """Let one process at a time open a local store: a fresh one breaks if two create it at once."""
        if not self.tracking_uri.startswith("sqlite:///"):
            return nullcontext()
        from filelock import FileLock

        return FileLock(f"{self.tracking_uri.removeprefix('sqlite:///')}.lock", timeout=300)


KEY_TAG = "rimlit.key"
PROCESS_TAG = "rimlit.process"


def _now() -> int:
    """Return the time as MLflow has it, ms."""
    return time.time_ns() // 1_000_000


def process_name(pid: int | None = None) -> str:
    """Name a process as no other one is ever named: machine, process space, number, time of its start.

    Args:
        pid: A process of this machine, by default this one.

    Raises:
        OSError: There is no such process.
    """
    pid = os.getpid() if pid is None else pid
    space = start = ""
    if sys.platform == "linux":
        space = os.readlink("/proc/self/ns/pid").strip("pid:[]")
        # behind the command's name, which may hold spaces and brackets
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] in "ZX":
            raise ProcessLookupError(pid)
        start = fields[19]
    else:
        os.kill(pid, 0)
    return f"{socket.gethostname()}/{space}/{pid}/{start}"


def is_of_this_machine(process: str) -> bool:
    """Whether :func:`process_name` named a process of this machine, and of this container."""
    return process.split("/")[:2] == process_name().split("/")[:2]


def is_gone(process: str) -> bool:
    """Whether a process has ended that :func:`process_name` named; False for one of another machine."""
    if not is_of_this_machine(process):
        return False
    try:
        return process_name(int(process.split("/")[2])) != process
    except (OSError, ValueError):
        return True


def mark_killed(client: Any) -> None:
    """Mark runs as KILLED that a process of this machine left RUNNING when it was killed."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    running = client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=1000)
    for run in running:
        process = run.data.tags.get(PROCESS_TAG)
        if process is not None and is_gone(process):
            client.set_terminated(run.info.run_id, "KILLED")
            log.info("MLflow's run %s of a process that was killed is now marked as such.", run.info.run_name)


def save_figure(trainer: L.Trainer, figure: "Figure", name: str) -> None:
    """Write a figure to ``figures/`` of the run's folder and to the trackers that take figures."""
    folder = Path(trainer.default_root_dir) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / name, dpi=150)
    for logger in trainer.loggers:
        if isinstance(logger, MLflowTracker):
            logger.log_file(folder / name, "figures")
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(Path(name).stem, figure, trainer.global_step)
