"""``rimlit fit|validate|test|predict``: LightningCLI with rimlit's run folder, loggers, callbacks and errors."""

import inspect
import logging
import sys
from pathlib import Path
from typing import Any, Literal

import lightning as L
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger

from rimlit.checkpoints import KEPT, kept_checkpoint, read_checkpoint
from rimlit.cli._jsonargparse import parsing
from rimlit.cli.arguments import resolve_configs, value_of
from rimlit.cli.checks import check_length, check_run, refuse_settings
from rimlit.cli.failures import cause_of, one_message
from rimlit.cli.match import match_width
from rimlit.cli.mechanisms import keep_size_of_mechanisms
from rimlit.cli.parser import build_parser, parse
from rimlit.cli.places import (
    checkpoint_of,
    checkpoint_path,
    choose_folder,
    dataset_of,
    find_start,
    with_config_of,
)
from rimlit.cli.quiet import quieten_loading
from rimlit.cli.report import idle_gpu, print_report, print_warnings
from rimlit.cli.settings import own_settings, with_sizes
from rimlit.cli.setup import prepare
from rimlit.cli.starting import AlreadyDone, is_inside, lock_folder, require_alone, require_same_run
from rimlit.cli.surroundings import Surroundings, name_logger, surround
from rimlit.console import say
from rimlit.data import DataModule
from rimlit.errors import ConfigError
from rimlit.spec import find_class, to_plain
from rimlit.tasks import Task
from rimlit.tasks.initializing import initialize
from rimlit.tasks.signatures import FACTORIES, declared_sizes
from rimlit.tracking import MLflowTracker
from rimlit.tracking.optional import Gate, optional
from rimlit.tracking.process_names import is_rank_zero
from rimlit.tracking.run_folder import RunLock
from rimlit.training.checkpointing import Checkpointer
from rimlit.training.processes import ProcessWatch

log = logging.getLogger(__name__)


def run(
    arguments: list[str], objects: tuple[Task, DataModule] | None = None, command: str | None = None
) -> "Command | AlreadyDone":
    """Run ``fit``, ``validate``, ``test`` or ``predict``.

    Args:
        arguments: Words of the command line.
        objects: A task and a data module to use; by default they are built as the arguments say.
        command: What is recorded as the command; by default the arguments.

    Returns:
        What was run, or that it had been done before.

    Raises:
        ConfigError, DataError, CheckpointError: What the user can fix.
    """
    typed = command or " ".join(["rimlit", *arguments])
    arguments = resolve_configs(prepare(arguments))
    checkpoint = checkpoint_of(arguments)
    if checkpoint is not None:
        arguments = with_config_of(checkpoint, arguments)
    # written for Lightning, which starts the other processes of a node with this command line
    sys.argv[1:] = arguments
    with parsing():
        try:
            return Command(arguments, typed, checkpoint, objects)
        except AlreadyDone as done:
            say(str(done))
            return done


class Command(LightningCLI):
    """A command for tasks and data modules of rimlit: LightningCLI parses and builds, and this class runs.

    Args:
        arguments: Words of the command line, from the command on.
        typed: What the user typed, for the record.
        checkpoint: Contents of the checkpoint the run starts from, if it is a file.
        objects: A task and a data module to use; by default they are built.
    """

    config: Namespace
    model: Task
    datamodule: DataModule

    def __init__(
        self,
        arguments: list[str],
        typed: str,
        checkpoint: dict[str, Any] | None,
        objects: tuple[Task, DataModule] | None = None,
    ) -> None:
        self.name, self.words = arguments[0], arguments[1:]
        self.typed = typed
        self.checkpoint = checkpoint
        self.loaded_from: str | None = None
        self._objects = objects
        self._lock: RunLock | None = None
        try:
            with one_message(
                self._given, lambda: self.folder.path if hasattr(self, "folder") else None, (AlreadyDone,)
            ):
                super().__init__(
                    Task,
                    DataModule,
                    save_config_callback=None,
                    seed_everything_default=0,
                    args=self.words,
                    run=False,
                    auto_configure_optimizers=False,
                    # checkpoints hold specs of their own, see rimlit.spec
                    load_from_checkpoint_support=False,
                )
                self._run()
        finally:
            if self._lock is not None:
                self._lock.release()

    @property
    def is_fit(self) -> bool:
        """Whether a model is trained."""
        return self.name == "fit"

    def _given(self) -> dict[str, Any]:
        """Return the settings that have been parsed so far, and the checkpoint that was loaded."""
        settings = self.config.as_dict() if hasattr(self, "config") else {}
        return settings | {"subcommand": self.name, "loaded_from": self.loaded_from}

    # What LightningCLI calls, in this order

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Build the parser of this command."""
        self.parser = build_parser(self.name)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a mistake becomes one message."""
        if value_of(self.words, "--tune") is not None:
            raise ConfigError(
                f"--tune is for rimlit compare; {self.name} trains or reads one run, with one value."
            )
        self.config = parse(parser, args)
        seed = self.config.seed_everything
        if self.config.match is not None:
            match_width(parser, self.words, self.config)
        if type(seed) is not int or seed < 0 or seed > 2**32 - 1:
            raise ConfigError(f"seed_everything must be between 0 and 2**32 - 1; got seed_everything={seed}.")

    def before_instantiate_classes(self) -> None:
        """Choose the run's folder and its loggers."""
        config = self.config
        refuse_settings(config)
        if config.init_from is not None and not self.is_fit:
            if value_of(self.words, "--init_from") is not None:
                raise ConfigError(f"init_from={config.init_from!r} is for fit; {self.name} takes --ckpt_path.")
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
        self.folder = choose_folder(self.name, config)
        kept = self.folder.checkpoints / f"{config.ckpt_path or 'best'}.ckpt"
        if not self.is_fit and config.ckpt_path in (None, *KEPT) and kept.is_file():
            self.checkpoint = read_checkpoint(kept)
        if not self.is_fit:
            quieten_loading()
        if not self.is_fit and self.checkpoint is not None:
            keep_size_of_mechanisms(config, self.checkpoint)
        self.is_trial = bool(config.trainer.fast_dev_run)
        # not checked again: Timer and others of Lightning have defaults of another type than they take
        text: str = self.parser.dump(config, skip_none=True, skip_validation=True)
        self._settings = own_settings(text)
        config.trainer.default_root_dir = str(self.folder.path)
        self._gate = Gate()
        if not self.is_fit or self.is_trial:  # nothing is refused later, or nothing is recorded
            self._gate.open()
        self._saved = self.folder.saved()
        self._start = find_start(self.folder, config) if self.is_fit else None
        self._is_same_run = is_inside(self._start, self.folder)

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
        name_logger(class_type, kwargs, self._dataset, self.folder.path.name)
        return class_type(*args, **kwargs)

    @property
    def _dataset(self) -> str:
        return dataset_of(self.folder.path, self.config.data.class_path)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer with rimlit's loggers and callbacks."""
        arguments = dict(self.config_init.trainer.items())
        around = Surroundings(
            folder=self.folder,
            dataset=self._dataset,
            settings=self._settings,
            command=self.typed,
            start=self._start,
            is_same_run=self._is_same_run,
            is_trial=self.is_trial,
            allow_changes=self.config.allow_changes,
            seed=int(self.config.seed_everything),
            gate=self._gate,
        )
        surround(arguments, self.model, around)
        try:
            return L.Trainer(**arguments)
        except (MisconfigurationException, ImportError, ValueError, TypeError) as error:
            raise ConfigError(f"trainer: {error}") from error

    def after_instantiate_classes(self) -> None:
        """Refuse a run that would never end, and batches that cannot be divided among the processes."""
        trainer, data = self.trainer, self.datamodule
        check_run(trainer, self.model, data, is_fit=self.is_fit)
        if is_rank_zero() and (note := idle_gpu(trainer)):
            log.info("%s", note)
        data.check_shares(trainer.world_size)
        check_length(trainer, data, is_fit=self.is_fit, is_limited=self._is_limited)

    @property
    def _is_limited(self) -> bool:
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        return any(isinstance(callback, Timer) for callback in callbacks)  # max_time is one

    # The run

    def _run(self) -> None:
        """Watch the processes from here on, refuse what cannot be run, run, and print the results."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ProcessWatch):
                callback.begin(self.trainer)
        writes = is_rank_zero() and not self.is_trial
        if writes:
            self._lock = lock_folder(self.folder)
        if self.is_fit:
            self._prepare_fit(writes=writes)
        self._require_tracking()
        path = self._start if self.is_fit else checkpoint_path(self.folder, self.config.ckpt_path)
        self.loaded_from = path
        options: dict[str, Any] = {"datamodule": self.datamodule, "ckpt_path": path, "weights_only": True}
        if self.name in ("validate", "test"):
            options["verbose"] = False
        if self.name == "predict":
            options["return_predictions"] = self.config.return_predictions
        getattr(self.trainer, self.name)(self.model, **options)
        if self.is_fit:
            self._finish_fit()
        elif self.name != "predict":
            self._print_report("val" if self.name == "validate" else "test")

    def _prepare_fit(self, *, writes: bool) -> None:
        """Refuse what cannot be trained, and load the first weights; nothing is created yet."""
        config = self.config
        if writes:
            require_alone(self.folder, self._saved)
        if self._start is not None:
            require_same_run(
                self._start,
                self.folder,
                self.trainer,
                self.model,
                self.datamodule,
                seed=config.seed_everything,
                allow_changes=config.allow_changes,
                test_after_fit=config.test_after_fit,
                is_named=config.ckpt_path is not None,
                is_limited=self._is_limited,
            )
            if is_rank_zero():
                place = Path(self._start).name if self._is_same_run else self._start
                log.info("Resuming %s from %s.", self.folder.path, place)
        if config.init_from is not None and self._start is None:
            self.model.init_from = initialize(self.model, config.init_from, self.datamodule)
        elif config.init_from is not None and is_rank_zero():
            log.info("init_from=%s is not loaded again: the run has weights of its own.", config.init_from)

    def _require_tracking(self) -> None:
        """Refuse to start where MLflow is required and does not answer; asking may create a local store."""
        if self.config.require_tracking and is_rank_zero():
            for logger in self.trainer.loggers:
                if isinstance(logger, MLflowTracker):
                    logger.require()

    def _finish_fit(self) -> None:
        """Record the best validation, then test its checkpoint, or the last one where nothing was validated."""
        if is_rank_zero() and not self.is_trial:
            self._record_best_validation()
        if self.model.init_from is not None and is_rank_zero() and not self.is_trial:
            self.folder.write_results(init_from=self.model.init_from)
        if not self.config.test_after_fit or self.is_trial or self.trainer.interrupted:
            if self.trainer.is_global_zero and not self.is_trial:
                print_warnings(self.folder)
            return
        path = kept_checkpoint(self.folder.path)
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=path, weights_only=True, verbose=False)
        self._print_report("test")

    def _record_best_validation(self) -> None:
        """Record the score that chose the checkpoint."""
        task = self.model
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpointer) and callback.best_score is not None:
                best = {
                    "metric": task.monitor,
                    "score": callback.best_score,
                    "higher_is_better": task.higher_is_better,
                }
                self.folder.write_results(best_validation=best)

    def _print_report(self, stage: Literal["val", "test"]) -> None:
        if self.trainer.is_global_zero:
            with optional("The table"):
                print_report(self.trainer, self.model, self.folder, stage)
