"""What a command puts around a task: callbacks, loggers and plugins of the trainer."""

from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import Callback, ModelSummary
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from rimlit.cli.checks import refuse_callbacks
from rimlit.cli.settings import config_text
from rimlit.pictures.activity import MechanismActivity
from rimlit.pictures.episodes import EpisodePictures
from rimlit.pictures.forecasts import ForecastPictures
from rimlit.pictures.rollouts import RolloutPictures
from rimlit.tasks import Task
from rimlit.tracking import LocalMetrics, MLflowTracker
from rimlit.tracking.optional import Gate, protect
from rimlit.tracking.recording import RunRecorder
from rimlit.tracking.run_folder import RunFolder
from rimlit.training.agreement import RankAgreement
from rimlit.training.checkpointing import Checkpointer, VerifiedCheckpointIO
from rimlit.training.finite import FiniteGuard
from rimlit.training.outcome import OutcomeCheck
from rimlit.training.predictions import PredictionFile
from rimlit.training.processes import ProcessWatch
from rimlit.training.progress import ProgressBar
from rimlit.training.summary import PartsTable
from rimlit.training.trial import TrialBatch


class Surroundings(NamedTuple):
    """What a run's callbacks and loggers need to know."""

    folder: RunFolder
    dataset: str
    settings: dict[str, Any]  # of the run, resolved
    command: str  # what the user typed
    start: str | None  # the checkpoint that fit resumes from
    is_same_run: bool  # whether that is one of this folder
    is_trial: bool  # fast_dev_run: nothing is kept
    allow_changes: bool
    seed: int
    gate: Gate  # holds the loggers back until the run begins


def surround(trainer: dict[str, Any], task: Task, run: Surroundings) -> None:
    """Add rimlit's loggers, callbacks and plugins to the arguments of a trainer."""
    if trainer.get("accelerator") == "auto" and MPSAccelerator.is_available():
        trainer["accelerator"] = "cpu"  # Apple's GPUs lack float64, in which metrics are added up
    logger = trainer.get("logger")
    if logger is None or logger is True:
        trainer["logger"] = False if run.is_trial else _with_metrics_file([_tracker(task, run)], run)
    elif logger:
        trainer["logger"] = _with_metrics_file(_listed(logger), run)
    given = _listed(trainer.get("callbacks") or [])
    refuse_callbacks(given)
    first, last = _own_callbacks(trainer, task, run)
    if trainer.get("enable_progress_bar") is not False and not _has(given, LightningProgressBar):
        first.append(ProgressBar())
    if trainer.get("enable_model_summary") is not False and not _has(given, ModelSummary):
        first.append(PartsTable())
    trainer["enable_model_summary"] = False  # of Lightning's own
    names = {type(callback) for callback in given}
    trainer["plugins"] = [*_listed(trainer.get("plugins") or []), VerifiedCheckpointIO()]
    trainer["callbacks"] = [*(callback for callback in first if type(callback) not in names), *given, *last]


def _own_callbacks(
    trainer: dict[str, Any], task: Task, run: Surroundings
) -> tuple[list[Callback], list[Callback]]:
    """Return rimlit's callbacks; what the last ones write comes after all that may refuse the run."""
    first: list[Callback] = [MechanismActivity(figure=not run.is_trial), PredictionFile(), FiniteGuard()]
    last: list[Callback] = []
    if not run.is_trial:
        first += [RolloutPictures(), ForecastPictures(), EpisodePictures()]
        recorder = RunRecorder(
            run.folder, run.command, config_text(run.settings), archive=not run.is_same_run, gate=run.gate
        )
        if trainer.get("enable_checkpointing") is not False:
            checkpointer = Checkpointer(
                run.folder.checkpoints,
                monitor=task.monitor,
                higher_is_better=task.higher_is_better,
                seed=run.seed,
                allow_changes=run.allow_changes,
                on_saved=recorder.note_saved,
            )
            first.append(checkpointer)
        last = [recorder, OutcomeCheck(run.folder)]
    agreement = RankAgreement(run.settings, name=run.folder.path.name, start=run.start)
    return [*first, ProcessWatch(), agreement, TrialBatch()], last


def _has(callbacks: list[Any], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list) else [given]


def _tracker(task: Task, run: Surroundings) -> Logger:
    return MLflowTracker(run.dataset, run.folder.path.name, folder=run.folder.path, test_metrics=task.headline)


def _with_metrics_file(loggers: list[Logger], run: Surroundings) -> list[Logger]:
    """Return loggers whose errors end no run, and before them the one that writes ``metrics.csv``."""
    has_file = run.is_trial or any(isinstance(logger, LocalMetrics) for logger in loggers)
    own = [] if has_file else [LocalMetrics(run.folder.path)]
    guarded = (logger if isinstance(logger, LocalMetrics) else protect(logger) for logger in loggers)
    return [run.gate.hold(logger) for logger in (*own, *guarded)]


def name_logger(class_type: type[Logger], arguments: dict[str, Any], dataset: str, run: str) -> None:
    """Let the folder of a user's logger carry the dataset's and the run's name, not a number."""
    if class_type not in (TensorBoardLogger, CSVLogger):
        return
    if arguments.get("name") == "lightning_logs":
        arguments["name"] = dataset
    if arguments.get("version") is None:
        number, arguments["version"] = 1, run
        # in an earlier folder, Lightning's CSVLogger would replace what the run has written there
        while (
            class_type is CSVLogger
            and Path(arguments["save_dir"], arguments["name"], arguments["version"]).exists()
        ):
            number += 1
            arguments["version"] = f"{run}.{number}"
