"""Loggers: MLflow, which never stops a training, and a CSV file beside the checkpoints."""

import csv
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning_utilities.core.rank_zero import rank_zero_only

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

DEFAULT_STORE = "sqlite:///mlflow.db"
FAILURES_ALLOWED = 3


def is_rank_zero() -> bool:
    """Whether this process is the first of the run."""
    return getattr(rank_zero_only, "rank", 0) == 0


class _AppendingWriter(ExperimentWriter):
    """Lightning's writer, which deletes an earlier file, made to go on with it."""

    def _check_log_dir_exists(self) -> None:
        if os.path.isfile(self.metrics_file_path):
            with open(self.metrics_file_path, newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])


class LocalMetrics(CSVLogger):
    """All metrics in ``metrics.csv`` of a folder; a later run in the same folder adds to it.

    Args:
        folder: The run's folder.
        flush_logs_every_n_steps: How often the file is written, in logged steps.
    """

    def __init__(self, folder: str | Path, *, flush_logs_every_n_steps: int = 20) -> None:
        super().__init__(str(folder), name="", version="", flush_logs_every_n_steps=flush_logs_every_n_steps)

    @property
    def experiment(self) -> Any:
        """The writer; a dummy on other ranks than 0."""
        if is_rank_zero() and self._experiment is None:
            os.makedirs(self.log_dir, exist_ok=True)
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        return super().experiment


class MLflowTracker(MLFlowLogger):
    """Lightning's MLflow logger, guarded: tracking never stops a training.

    A call that fails costs a warning; after three failures in a row tracking is given up for this run, whose
    metrics are still in ``metrics.csv``.

    Args:
        experiment_name: MLflow experiment; rimlit names it after the task.
        run_name: Name of the run.
        run_id: An existing run to go on with.
        tracking_uri: Store or server; None takes ``MLFLOW_TRACKING_URI``, or ``mlflow.db`` in the working
            directory.
    """

    def __init__(
        self,
        experiment_name: str,
        run_name: str | None = None,
        *,
        run_id: str | None = None,
        tracking_uri: str | None = None,
    ) -> None:
        # a server that is down answers in seconds, not in the four minutes of MLflow's own retries
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        for name in ("alembic", "mlflow.store", "lightning.pytorch.loggers.mlflow"):
            logging.getLogger(name).setLevel(logging.ERROR)  # what they say when a store or an experiment is new
        self._failures = 0
        self._tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE
        self._experiment_name, self._run_name, self._run_id = experiment_name, run_name, run_id
        try:
            with self._one_process():
                super().__init__(
                    experiment_name, run_name=run_name, run_id=run_id, tracking_uri=self._tracking_uri
                )
        except Exception as error:  # a damaged file, one of a newer MLflow, a folder that cannot be written to
            self._failures = FAILURES_ALLOWED
            self._mlflow_client = None
            log.warning(
                "MLflow could not open %s (%s: %s); nothing is tracked in this run.",
                self._tracking_uri,
                type(error).__name__,
                error,
            )

    @property
    def is_given_up(self) -> bool:
        """Whether tracking has failed too often."""
        return self._failures >= FAILURES_ALLOWED

    @property
    def save_dir(self) -> str | None:
        """No folder of its own: checkpoints lie in the run's folder."""
        return None

    @property
    def name(self) -> str:
        """The experiment's name, without asking the server."""
        return self._experiment_name

    @property
    def version(self) -> str | None:
        """The run's name, without asking the server."""
        return self._run_name

    @property
    def experiment(self) -> Any:
        """The MLflow client; creates or reopens the run when first asked."""
        if is_rank_zero() and not self.is_given_up and not self._initialized:
            with self._one_process():
                self._guard("open the run", self._open)
        return self._mlflow_client

    def _open(self) -> None:
        MLFlowLogger.experiment.fget(self)  # type: ignore[attr-defined]
        # or MLflow shows the experiment in its view for language-model applications
        self._mlflow_client.set_experiment_tag(
            self._experiment_id, "mlflow.experimentKind", "custom_model_development"
        )

    def _one_process(self) -> AbstractContextManager[Any]:
        """Let one process at a time open a local store: a fresh one breaks if two create it at once."""
        if not self._tracking_uri.startswith("sqlite:///"):
            return nullcontext()
        from filelock import FileLock

        return FileLock(f"{self._tracking_uri.removeprefix('sqlite:///')}.lock", timeout=300)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics; a failure costs a warning."""
        self._guard("log metrics", lambda: super(MLflowTracker, self).log_metrics(metrics, step))

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log parameters; a failure costs a warning."""
        self._guard("log parameters", lambda: super(MLflowTracker, self).log_hyperparams(params))

    @rank_zero_only
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run; a failure costs a warning."""
        for key, value in tags.items():
            self._guard("set a tag", partial(self._set_tag, key, value))

    def _set_tag(self, key: str, value: str) -> None:
        self.experiment.set_tag(self.run_id, key, value)

    @rank_zero_only
    def log_figure(self, figure: "Figure", name: str) -> None:
        """Log a figure under ``figures/``; a failure costs a warning."""
        self._guard("log a figure", lambda: self.experiment.log_figure(self.run_id, figure, f"figures/{name}"))

    @rank_zero_only
    def log_file(self, path: str | Path) -> None:
        """Log a small file; a failure costs a warning."""
        self._guard("log a file", lambda: self.experiment.log_artifact(self.run_id, str(path)))

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Close the run; a failure costs a warning."""
        self._guard("close the run", lambda: super(MLflowTracker, self).finalize(status))

    def _guard(self, what: str, call: Callable[[], Any]) -> None:
        if self.is_given_up:
            return
        try:
            call()
            self._failures = 0
        except Exception as error:
            if self.is_given_up:  # inside this very call, while the run was opened: said already
                return
            self._failures += 1
            end = "; no more is tracked in this run" if self.is_given_up else ""
            log.warning("MLflow could not %s (%s: %s)%s.", what, type(error).__name__, error, end)


def save_figure(trainer: L.Trainer, figure: "Figure", name: str) -> None:
    """Write a figure to ``figures/`` of the run's folder and to the trackers that take figures."""
    folder = Path(trainer.default_root_dir) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / name, dpi=150)
    for logger in trainer.loggers:
        if isinstance(logger, MLflowTracker):
            logger.log_figure(figure, name)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(Path(name).stem, figure, trainer.global_step)
