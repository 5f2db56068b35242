"""``rimlit fit|validate|test|predict``: LightningCLI with rimlit's run folder, loggers, callbacks and errors."""

import inspect
import logging
import sys
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import Callback, ModelSummary
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

import rimlit.rl  # noqa: F401, its classes are then known by their names
from rimlit.checkpoints import KEPT, kept_checkpoint, read_checkpoint
from rimlit.cli.arguments import resolve_configs, value_of
from rimlit.cli.checks import check_length, check_run, refuse_callbacks, refuse_settings
from rimlit.cli.failures import cause_of, one_message
from rimlit.cli.match import match_width
from rimlit.cli.messages import DEEP_IN_THE_PARSER, explain, trusted_imports
from rimlit.cli.options import add_options
from rimlit.cli.places import (
    checkpoint_of,
    checkpoint_path,
    choose_folder,
    dataset_of,
    find_start,
    with_config_of,
)
from rimlit.cli.report import idle_gpu, print_report, print_warnings
from rimlit.cli.settings import config_text, own_settings, with_sizes
from rimlit.cli.setup import prepare
from rimlit.console import say
from rimlit.data import DataModule
from rimlit.errors import CheckpointError, ConfigError
from rimlit.files import require_folder
from rimlit.pictures.activity import MechanismActivity
from rimlit.pictures.episodes import EpisodePictures
from rimlit.pictures.rollouts import RolloutPictures
from rimlit.spec import find_class, to_plain
from rimlit.tasks import Task
from rimlit.tasks.initializing import initialize
from rimlit.tasks.signatures import FACTORIES, declared_sizes
from rimlit.tracking import LocalMetrics, MLflowTracker
from rimlit.tracking.optional import Gate, optional, protect
from rimlit.tracking.process_names import is_of_this_machine, is_rank_zero
from rimlit.tracking.recording import RunRecorder
from rimlit.tracking.run_folder import RunFolder, RunLock
from rimlit.training.agreement import RankAgreement
from rimlit.training.changes import LENGTHS, find_changes, refuse_changes
from rimlit.training.checkpointing import Checkpointer, VerifiedCheckpointIO
from rimlit.training.finite import FiniteGuard
from rimlit.training.outcome import OutcomeCheck
from rimlit.training.predictions import PredictionFile
from rimlit.training.processes import ProcessWatch
from rimlit.training.progress import ProgressBar
from rimlit.training.summary import PartsTable
from rimlit.training.trial import TrialBatch

log = logging.getLogger(__name__)


def run(
    arguments: list[str], objects: tuple[Task, DataModule] | None = None, command: str | None = None
) -> "RimlitCLI | AlreadyDone":
    """Run a subcommand of LightningCLI.

    Args:
        arguments: Words of the command line.
        objects: A task and a data module to use; by default they are built as the arguments say.
        command: What is recorded as the command; by default the arguments.

    Returns:
        What was run, or that it had been done before.

    Raises:
        ConfigError, DataError, CheckpointError: What the user can fix.
    """
    command = command or " ".join(["rimlit", *arguments])
    arguments = resolve_configs(prepare(arguments))
    checkpoint = checkpoint_of(arguments)
    if checkpoint is not None:
        arguments = with_config_of(checkpoint, arguments)
    # Lightning starts the other processes of a node with this command line
    sys.argv[1:] = arguments
    with trusted_imports():
        try:
            return RimlitCLI(command, checkpoint, objects)
        except AlreadyDone as done:
            say(str(done))
            return done


class RimlitCLI(LightningCLI):
    """LightningCLI for tasks and data modules of rimlit.

    Args:
        command: What the user typed, for the record.
        checkpoint: Contents of the checkpoint the run starts from, if it is a file.
        objects: A task and a data module to use; by default they are built.
    """

    def __init__(
        self,
        command: str,
        checkpoint: dict[str, Any] | None,
        objects: tuple[Task, DataModule] | None = None,
    ) -> None:
        self.command = command
        self.checkpoint = checkpoint
        self._objects = objects
        subparsers = {name: {"exit_on_error": False, "allow_abbrev": False} for name in self.subcommands()}
        self._lock: RunLock | None = None
        try:
            with one_message(
                self._given, lambda: self.folder.path if hasattr(self, "folder") else None, (AlreadyDone,)
            ):
                self._run_all(subparsers)
        finally:
            if self._lock is not None:
                self._lock.release()

    def _run_all(self, subparsers: dict[str, dict[str, Any]]) -> None:
        """Parse, build and run: LightningCLI does all of it in its constructor."""
        super().__init__(
            Task,
            DataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={"use_distributed_sampler": False, "num_sanity_val_steps": 0, "devices": 1},
            auto_configure_optimizers=False,
            # checkpoints hold specs of their own, see rimlit.spec
            load_from_checkpoint_support=False,
            parser_kwargs={"prog": "rimlit", "exit_on_error": False, "allow_abbrev": False, **subparsers},
        )

    def _given(self) -> dict[str, Any]:
        """Return the settings that have been parsed so far, and the checkpoint that was loaded."""
        config = getattr(self, "config", {})
        part = config.get(config.get("subcommand") or "")
        settings = {} if part is None else part.as_dict()
        return settings | {
            "subcommand": config.get("subcommand"),
            "loaded_from": getattr(self, "_loaded_from", None),
        }

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the subcommands and what of the trainer's methods is not for the user."""
        ours = {"weights_only", "verbose"}
        return {name: hidden | ours for name, hidden in LightningCLI.subcommands().items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add rimlit's own settings and hand the data module's sizes to the task."""
        add_options(parser)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add trainer, data and task: they are built in this order, and the task is given the data's sizes."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{name}": value for name, value in self.trainer_defaults.items()})
        parser.add_lightning_class_args(DataModule, "data", subclass_mode=True)
        parser.add_lightning_class_args(Task, "model", subclass_mode=True)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a mistake becomes one message."""
        try:
            super().parse_arguments(parser, args)
        except (ArgumentError, *DEEP_IN_THE_PARSER) as error:
            subcommand = sys.argv[1] if sys.argv[1] in self.subcommands() else None
            raise ConfigError(explain(error, self._parser(subcommand))) from error
        config = self.config[self.config.subcommand]
        if config.match is not None:
            match_width(self.parser, self._parser(self.config.subcommand), config)

    def _set_seed(self) -> None:
        seed = self.config[self.subcommand].seed_everything
        if type(seed) is not int or seed < 0 or seed > 2**32 - 1:
            raise ConfigError(f"seed_everything must be between 0 and 2**32 - 1; got seed_everything={seed}.")
        super()._set_seed()

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let the checkpoint's hyper-parameters beat the command line."""

    def before_instantiate_classes(self) -> None:
        """Choose the run's folder and its loggers."""
        config = self.config[self.subcommand]
        refuse_settings(config)
        if config.init_from is not None and self.subcommand != "fit":
            if value_of(sys.argv, "--init_from") is not None:
                raise ConfigError(
                    f"init_from={config.init_from!r} is for fit; {self.subcommand} takes --ckpt_path."
                )
            config.init_from = None  # of a saved config: how its run began
        if config.init_from is not None and (config.ckpt_path or config.resume not in ("auto", "never")):
            raise ConfigError(
                f"init_from={config.init_from!r} starts a new run, and "
                f"resume={config.ckpt_path or config.resume!r} resumes one: give one of the two."
            )
        if (
            config.strict
            and "strict" in inspect.signature(find_class(config.data.class_path, DataModule)).parameters
        ):
            config.data.init_args["strict"] = True
        self.folder = choose_folder(str(self.subcommand), config)
        self.is_trial = bool(config.trainer.fast_dev_run)
        # not checked again: Timer and others of Lightning have defaults of another type than they take
        text: str = self._parser(self.subcommand).dump(config, skip_none=True, skip_validation=True)
        self._settings = own_settings(text)
        config.trainer.default_root_dir = str(self.folder.path)
        self._gate = Gate()
        if self.subcommand != "fit" or self.is_trial:  # nothing is refused later, or nothing is recorded
            self._gate.open()
        self._saved = self.folder.saved()
        self._start = find_start(self.folder, config) if self.subcommand == "fit" else None
        kept = self.folder.checkpoints / f"{config.ckpt_path or 'best'}.ckpt"
        if self.subcommand != "fit" and config.ckpt_path in (None, *KEPT) and kept.is_file():
            self.checkpoint = read_checkpoint(kept)

    @property
    def _is_same_run(self) -> bool:
        """Whether fit resumes from a file in this run's own folder."""
        if self._start is None:
            return False
        start, folder = Path(self._start), self.folder.path
        # as it is written, too: checkpoints may be a link to another disk
        return folder.absolute() in start.absolute().parents or folder.resolve() in start.resolve().parents

    def _require_same_run(self, start: str) -> None:
        """Refuse to resume a run of other settings, and to train one that is done."""
        config, checkpoint = self.config[self.subcommand], read_checkpoint(start)
        for key in ("global_step", "loops", "optimizer_states"):
            if key not in checkpoint:
                raise CheckpointError(f"{start} cannot be resumed: {key} is missing.")
        changes = find_changes(checkpoint, self.trainer, self.model, self.datamodule, config.seed_everything)
        refuse_changes(
            changes, str(self.folder.path if self._is_same_run else start), are_allowed=config.allow_changes
        )
        step, epoch = checkpoint["global_step"], checkpoint.get("rimlit_position", {}).get("epoch", 0)
        state = self.folder.read_state()
        is_trained = self._is_same_run and state.get("status") == "finished"
        is_tested = self.folder.has_own_test() or not config.test_after_fit
        limits = (self.trainer.max_steps, step), (self.trainer.max_epochs, epoch)
        is_long_enough = any(limit is not None and 0 <= limit <= reached for limit, reached in limits)
        if state.get("step") == step and self._get(self.config, "trainer").get("max_time") is None:
            # what ended it before these limits, EarlyStopping for example, would do so again
            lengths = ("trainer.max_steps", "trainer.max_epochs")
            # Lightning turns None into a number when it trains
            is_long_enough |= not any(change.key in lengths and change.now is not None for change in changes)
        if is_trained and is_tested and is_long_enough and config.ckpt_path is None:
            length = "trainer.max_steps" if self.datamodule.num_epochs is None else "data.total_steps"
            other = next((change for change in changes if change.key not in LENGTHS), None)
            if other is not None:
                raise ConfigError(
                    f"{self.folder.path} is done, {step} steps, with {other.key}={other.before!r}; got "
                    f"{other.now!r}, with which no step would be made. Give another --name, train longer with "
                    f"--{length}, or start from scratch with --resume never, which archives it."
                )
            kept = kept_checkpoint(self.folder.path) or self.folder.checkpoints / "best.ckpt"
            raise AlreadyDone(
                f"{self.folder.path} is done, {step} steps. Test it with rimlit test --ckpt_path {kept}, train "
                f"longer with --{length}, or start from scratch with --resume never, which archives it.",
                self.folder,
            )

    def instantiate_classes(self) -> None:
        """Build everything; a mistake in an argument becomes one message."""
        self.parser.add_instantiator(self._build_data, DataModule, subclasses=True)
        self.parser.add_instantiator(self._build_task, Task, subclasses=True)
        self.parser.add_instantiator(self._build_logger, Logger, subclasses=True)
        try:
            super().instantiate_classes()
        except Exception as error:
            cause = cause_of(error)
            if cause is None:
                raise
            raise cause from error

    def _build_data(self, class_type: type[DataModule], *args: Any, **kwargs: Any) -> DataModule:
        """Build the data module and restore its state (a vocabulary), before sizes are read from it."""
        self._data = class_type(*args, **kwargs) if self._objects is None else self._objects[1]
        if self.checkpoint is not None and class_type.__qualname__ in self.checkpoint:
            self._data.load_state_dict(self.checkpoint[class_type.__qualname__])
        return self._data

    def _build_task(self, class_type: type[Task], *args: Any, **kwargs: Any) -> Task:
        """Build the task for the data module's sizes."""
        if self._objects is not None:
            return self._objects[0]
        if environment := getattr(self._data, "environment", None):
            sizes = declared_sizes(self._data, kwargs)
            for name, value in kwargs.items():
                given = None if name in FACTORIES else to_plain(value, name)
                has_none = hasattr(self._data, name) and getattr(self._data, name) is None
                is_other = self.checkpoint is not None and name in sizes and given != sizes[name]
                if given is not None and (has_none or is_other):
                    raise ConfigError(
                        f"environment={environment!r} has {name}={sizes.get(name)!r}; the model was made for "
                        f"{name}={given!r}."
                    )
        return class_type(*args, **with_sizes(class_type, kwargs, self._data))

    def _build_logger(self, class_type: type[Logger], *args: Any, **kwargs: Any) -> Logger:
        """Build a logger of the user's; folders carry the dataset's and the run's name, not a number."""
        if class_type in (TensorBoardLogger, CSVLogger):
            if kwargs.get("name") == "lightning_logs":
                kwargs["name"] = dataset_of(self.folder.path, self._get(self.config, "data").class_path)
            if kwargs.get("version") is None:
                run, number = self.folder.path.name, 1
                kwargs["version"] = run
                # in an earlier folder, Lightning's CSVLogger would replace what the run has written there
                while (
                    class_type is CSVLogger
                    and Path(kwargs["save_dir"], kwargs["name"], kwargs["version"]).exists()
                ):
                    number += 1
                    kwargs["version"] = f"{run}.{number}"
        return class_type(*args, **kwargs)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Add rimlit's loggers and callbacks to the trainer."""
        config = self._get(self.config_init, "trainer")
        if config.get("accelerator") == "auto" and MPSAccelerator.is_available():
            config["accelerator"] = "cpu"  # Apple's GPUs lack float64, in which metrics are added up
        logger = config.get("logger")
        if logger is None or logger is True:
            config["logger"] = False if self.is_trial else self._default_loggers()
        elif logger:
            config["logger"] = self._with_metrics_file(list(logger) if isinstance(logger, list) else [logger])
        last: list[Callback] = []  # what they write comes after all that may refuse the run
        own: list[Callback] = [MechanismActivity(figure=not self.is_trial), PredictionFile(), FiniteGuard()]
        if not self.is_trial:
            own += [RolloutPictures(), EpisodePictures()]
            recorder = RunRecorder(
                self.folder,
                self.command,
                config_text(self._settings),
                archive=not self._is_same_run,
                gate=self._gate,
            )
            if config.get("enable_checkpointing") is not False:
                seed = int(self.config[self.subcommand].seed_everything)
                checkpointer = Checkpointer(
                    self.folder.checkpoints,
                    monitor=self.model.monitor,
                    higher_is_better=self.model.higher_is_better,
                    seed=seed,
                    allow_changes=self.config[self.subcommand].allow_changes,
                    on_saved=recorder.note_saved,
                )
                own.append(checkpointer)
            last = [recorder, OutcomeCheck(self.folder)]
        own += [
            ProcessWatch(),
            RankAgreement(self._settings, name=self.folder.path.name, start=self._start),
            TrialBatch(),
        ]
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        refuse_callbacks(given)
        has_bar = any(isinstance(callback, LightningProgressBar) for callback in given)
        if config.get("enable_progress_bar") is not False and not has_bar:
            own.append(ProgressBar())
        if config.get("enable_model_summary") is not False and not any(isinstance(c, ModelSummary) for c in given):
            own.append(PartsTable())
        config["enable_model_summary"] = False  # of Lightning's own
        names = {type(callback) for callback in given}
        plugins = config.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        config["plugins"] = [*plugins, VerifiedCheckpointIO()]
        config["callbacks"] = [*(callback for callback in own if type(callback) not in names), *given, *last]
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ImportError, ValueError, TypeError) as error:
            raise ConfigError(f"trainer: {error}") from error

    def _default_loggers(self) -> list[Logger]:
        tracker = MLflowTracker(
            dataset_of(self.folder.path, self._get(self.config, "data").class_path),
            self.folder.path.name,
            folder=self.folder.path,
            test_metrics=self.model.headline,
        )
        return self._with_metrics_file([tracker])

    def _with_metrics_file(self, loggers: list[Logger]) -> list[Logger]:
        """Return loggers whose errors end no run, and before them the one that writes ``metrics.csv``."""
        if self.is_trial or any(isinstance(logger, LocalMetrics) for logger in loggers):
            own = []
        else:
            own = [LocalMetrics(self.folder.path)]
        guarded = (logger if isinstance(logger, LocalMetrics) else protect(logger) for logger in loggers)
        return [self._gate.hold(logger) for logger in (*own, *guarded)]

    def after_instantiate_classes(self) -> None:
        """Refuse a run that would never end, and batches that cannot be divided among the processes."""
        trainer, data = self.trainer, self.datamodule
        check_run(trainer, self.model, data, is_fit=self.subcommand == "fit")
        if is_rank_zero() and (note := idle_gpu(trainer)):
            log.info("%s", note)
        data.check_shares(trainer.world_size)
        is_limited = self._get(self.config, "trainer").get("max_time") is not None
        check_length(trainer, data, is_fit=self.subcommand == "fit", is_limited=is_limited)

    def before_fit(self) -> None:
        """Lock the run and refuse what cannot be trained; nothing is created yet (see :class:`RunRecorder`)."""
        if self._lock_folder():
            self._require_nobody_else()
            if self.folder.saved() != self._saved:
                raise ConfigError(
                    f"{self.folder.path} was trained by another process while this one started; start again."
                )
        if self._start is not None:
            self._require_same_run(self._start)
            if is_rank_zero():
                start = Path(self._start)
                log.info("Resuming %s from %s.", self.folder.path, start.name if self._is_same_run else start)
        self._initialize()
        self._require_tracking()

    def _before_evaluation(self) -> None:
        """Refuse a folder that cannot be written, or that another process writes to, before any work."""
        self._lock_folder()
        self._require_tracking()

    def _lock_folder(self) -> bool:
        """Lock the run's folder until the command ends; return whether this process writes to it."""
        if not is_rank_zero() or self.is_trial:
            return False
        require_folder(self.folder.path, 0)
        self._lock = RunLock(self.folder.path)
        self._lock.acquire()
        return True

    def _require_tracking(self) -> None:
        """Refuse to start where MLflow is required and does not answer; asking may create a local store."""
        if self.config[self.subcommand].require_tracking and is_rank_zero():
            for logger in self.trainer.loggers:
                if isinstance(logger, MLflowTracker):
                    logger.require()

    before_validate = before_test = before_predict = _before_evaluation

    def _initialize(self) -> None:
        """Take the weights that a new run starts from."""
        source = self.config[self.subcommand].init_from
        if source is None:
            return
        if self._start is None:
            self.model.init_from = initialize(self.model, source, self.datamodule)
        elif is_rank_zero():
            log.info("init_from=%s is not loaded again: the run has weights of its own.", source)

    def _require_nobody_else(self) -> None:
        """Refuse a folder in which another process of this machine trains, also where files cannot be locked."""
        process = self.folder.running_process()
        if process is not None and is_of_this_machine(process):
            host, _, pid, _ = process.split("/")
            raise ConfigError(
                f"{self.folder.path} is being trained by process {pid} on {host}. Wait until it ends, stop it, or "
                "give another --name."
            )

    def _run_subcommand(self, subcommand: str) -> None:
        """Watch the processes from here on, then run."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ProcessWatch):
                callback.begin(self.trainer)
        super()._run_subcommand(subcommand)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        is_fit = subcommand == "fit"
        kwargs["ckpt_path"] = self._start if is_fit else checkpoint_path(self.folder, kwargs.get("ckpt_path"))
        self._loaded_from = kwargs["ckpt_path"]
        kwargs["weights_only"] = True
        if subcommand in ("validate", "test"):
            kwargs["verbose"] = False
        return kwargs

    def after_fit(self) -> None:
        """Test the best checkpoint, or the last one where nothing was validated."""
        config = self.config[self.subcommand]
        if self.model.init_from is not None and is_rank_zero() and not self.is_trial:
            self.folder.write_results(init_from=self.model.init_from)
        if not config.test_after_fit or self.is_trial or self.trainer.interrupted:
            if self.trainer.is_global_zero and not self.is_trial:
                print_warnings(self.folder)
            return
        path = kept_checkpoint(self.folder.path)
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=path, weights_only=True, verbose=False)
        self.after_test()

    def after_test(self) -> None:
        """Print the table."""
        self._print_report("test")

    def after_validate(self) -> None:
        """Print the table."""
        self._print_report("val")

    def _print_report(self, stage: Literal["val", "test"]) -> None:
        if self.trainer.is_global_zero:
            with optional("The table"):
                print_report(self.trainer, self.model, self.folder, stage)


class AlreadyDone(Exception):  # noqa: N818, no error
    """The run that fit was asked for has been trained."""

    def __init__(self, message: str, folder: RunFolder) -> None:
        super().__init__(message)
        self.folder = folder
