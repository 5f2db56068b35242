"""``rimlit fit|validate|test|predict``: LightningCLI with rimlit's run folder, loggers, callbacks and errors."""

import atexit
import logging
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import Callback, ModelSummary
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

import rimlit.rl  # noqa: F401, its classes are then known by their names
from rimlit.checkpoints import read_checkpoint
from rimlit.cli.arguments import named_configs, read_yaml, resolve_configs, shared_options, value_of
from rimlit.cli.checks import check_run, refuse_callbacks, refuse_settings
from rimlit.cli.failures import cause_of, one_message
from rimlit.cli.messages import DEEP_IN_THE_PARSER, explain, trusted_imports
from rimlit.cli.report import idle_gpu, print_report, print_warnings
from rimlit.cli.settings import (
    build_data,
    build_task,
    find_target,
    own_settings,
    require_same_data,
    with_sizes,
    yaml_of,
)
from rimlit.cli.setup import prepare
from rimlit.comparison.matching import TOLERANCE, match_parameters
from rimlit.console import say
from rimlit.data import DataModule
from rimlit.errors import CheckpointError, ConfigError
from rimlit.files import require_folder
from rimlit.spec import find_class, to_plain
from rimlit.tasks import Task
from rimlit.tasks.base import build_saved, declared_sizes
from rimlit.tasks.initializing import initialize
from rimlit.tasks.signatures import FACTORIES
from rimlit.tracking import LocalMetrics, MLflowTracker
from rimlit.tracking.process_names import is_of_this_machine, is_rank_zero
from rimlit.training.activity import MechanismActivity
from rimlit.training.agreement import RankAgreement
from rimlit.training.changes import find_changes, refuse_changes
from rimlit.training.checkpointing import Checkpointer, VerifiedCheckpointIO, newest_checkpoint
from rimlit.training.episodes import EpisodePictures
from rimlit.training.finite import FiniteGuard
from rimlit.training.optional import protect
from rimlit.training.outcome import OutcomeCheck
from rimlit.training.predictions import PredictionFile
from rimlit.training.processes import ProcessWatch
from rimlit.training.progress import ProgressBar
from rimlit.training.recording import RunRecorder
from rimlit.training.rollouts import RolloutPictures
from rimlit.training.run_folder import RunFolder, RunLock
from rimlit.training.summary import PartsTable
from rimlit.training.trial import TrialBatch

log = logging.getLogger(__name__)

CHECKPOINT_KEYS = ("best", "last")


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
    checkpoint = _checkpoint_of(arguments)
    if checkpoint is not None:
        arguments = _with_config_of(checkpoint, arguments)
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
        """Return the settings as far as they have been parsed, and the checkpoint that was loaded."""
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
        parser.add_argument(
            "--name", type=str | None, default=None, help="Name of the run; by default the config's and the seed."
        )
        parser.add_argument(
            "--resume",
            type=str,
            default="auto",
            help="What fit does where there is a run of this name: 'auto' goes on with it, 'never' sets it aside "
            "and starts anew; the PATH of a checkpoint, or of a run, goes on from there.",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="PATH of a checkpoint, a run or an exported folder whose weights a new run of fit starts from: "
            "those that fit by name and shape, and nothing else.",
        )
        parser.add_argument(
            "--allow_changes",
            type=bool,
            default=False,
            help="Whether fit goes on with a run whose task, data, seed or batches are not what they were.",
        )
        parser.add_argument(
            "--test_after_fit",
            type=bool,
            default=True,
            help="Whether fit ends with a test of the best checkpoint.",
        )
        parser.add_argument(
            "--require_tracking",
            type=bool,
            default=False,
            help="Whether to refuse to start where MLflow cannot be reached; otherwise what it does not take is "
            "kept in the run's folder and sent later.",
        )
        parser.add_argument(
            "--match",
            type=Literal["params", "flops", "state"] | None,
            default=None,
            help="Give the backbone the smallest hidden_size with no fewer parameters (FLOPs a step, numbers of "
            "state) than the model of match_to has.",
        )
        parser.add_argument(
            "--match_to",
            type=str | None,
            default=None,
            help="Config that is matched, with this command's --model and --data options but those of the "
            "backbone; by default the rim.yaml beside the config.",
        )
        parser.add_argument(
            "--match_tolerance",
            type=float,
            default=TOLERANCE,
            help="How much larger the matched model may be, as a share.",
        )

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
            self._match(self.config.subcommand, config)

    def _match(self, subcommand: str, config: Namespace) -> None:
        """Solve the backbone's width and put it into the settings, as if it had been given."""
        target = find_target(config.match_to, named_configs(sys.argv))
        config.match_to = str(target)
        if any(re.match(r"--model\..*\bhidden_size\b", word) for word in sys.argv):
            raise ConfigError("hidden_size is what match solves: leave out one of the two.")
        parser = self._parser(subcommand)
        try:
            of_target = self.parser.parse_args([subcommand, "--config", str(target), *shared_options(sys.argv)])
        except ArgumentError as error:
            raise ConfigError(f"match_to: {explain(error, parser)}") from error
        ours, theirs = (
            yaml.safe_load(parser.dump(settings, skip_none=True)) for settings in (config, of_target[subcommand])
        )
        is_itself = any(Path(path).resolve() == target.resolve() for path in named_configs(sys.argv))
        if is_itself and ours["model"]["init_args"]["backbone"] == theirs["model"]["init_args"]["backbone"]:
            raise ConfigError(f"match_to={str(target)!r} is the config itself; name another one.")
        require_same_data({"this config": ours, f"match_to={str(target)!r}": theirs})
        try:
            data = build_data(ours)
            found = match_parameters(
                build_task(ours, data),
                build_task(theirs, data),
                measure=config.match,
                tolerance=config.match_tolerance,
            )
        except Exception as error:
            cause = cause_of(error)
            if cause is None:
                raise
            raise cause from error
        config.model.init_args.backbone.init_args["hidden_size"] = found.width
        if is_rank_zero():
            log.info("Matched to %s: %s.", target, found)

    def _set_seed(self) -> None:
        seed = self.config[self.subcommand].seed_everything
        if seed < 0 or seed > 2**32 - 1:
            raise ConfigError(f"seed_everything must be between 0 and 2**32 - 1; got seed_everything={seed}.")
        super()._set_seed()

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let the checkpoint's hyper-parameters beat the command line."""

    def before_instantiate_classes(self) -> None:
        """Choose the run's folder and its loggers."""
        config = self.config[self.subcommand]
        refuse_settings(config)
        if config.init_from is not None and self.subcommand != "fit":
            raise ConfigError(f"init_from={config.init_from!r} is for fit; {self.subcommand} takes --ckpt_path.")
        if config.init_from is not None and (config.ckpt_path or config.resume not in ("auto", "never")):
            raise ConfigError(
                f"init_from={config.init_from!r} starts a new run, and "
                f"resume={config.ckpt_path or config.resume!r} resumes one: give one of the two."
            )
        self.folder = self._choose_folder(config)
        self._is_trial = bool(config.trainer.fast_dev_run)
        # not checked again: Timer and others of Lightning have defaults of another type than they take
        text: str = self._parser(self.subcommand).dump(config, skip_none=True, skip_validation=True)
        self._settings = own_settings(text)
        config.trainer.default_root_dir = str(self.folder.path)
        self._saved = self.folder.saved()
        self._going_on_from = self._find_start(config) if self.subcommand == "fit" else None
        kept = self.folder.checkpoints / f"{config.ckpt_path or 'best'}.ckpt"
        if self.subcommand != "fit" and config.ckpt_path in (None, *CHECKPOINT_KEYS) and kept.is_file():
            self.checkpoint = read_checkpoint(kept)

    def _find_start(self, config: Namespace) -> str | None:
        """Return the checkpoint that fit goes on from, None for a new run."""
        named = config.resume if config.ckpt_path is None else config.ckpt_path
        is_file = named not in ("auto", "never") and not Path(named).is_dir()
        if is_file or config.ckpt_path is not None:
            return self._checkpoint_path(named)
        if named == "never" or config.trainer.fast_dev_run:
            return None
        folder = self.folder.checkpoints if named == "auto" else Path(named)
        if (folder / "checkpoints").is_dir():
            folder = folder / "checkpoints"
        # all processes look before the first checkpoint of a new run can be there
        newest = newest_checkpoint(folder)
        for damaged in newest.passed_over:
            log.warning("Passed over: %s", damaged)
        if newest.path is not None:
            log.info(
                "Going on with %s from %s.", self.folder.path, newest.path if named != "auto" else newest.path.name
            )
        elif named != "auto":
            raise CheckpointError(f"resume={named!r}: there is no whole checkpoint in {folder}.")
        return None if newest.path is None else str(newest.path)

    @property
    def _is_same_run(self) -> bool:
        """Whether fit goes on from a file of this run's own folder."""
        start = self._going_on_from
        return start is not None and self.folder.path.resolve() in Path(start).resolve().parents

    def _require_same_run(self, start: str) -> None:
        """Refuse to go on with a run of other settings, and to train one that is done."""
        config, checkpoint = self.config[self.subcommand], read_checkpoint(start)
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
            raise AlreadyDone(
                f"{self.folder.path} is done, {step} steps. Test it with rimlit test --ckpt_path "
                f"{self.folder.checkpoints / 'best.ckpt'}, train on with more --{length}, or start anew "
                "with --resume never, which sets it aside.",
                self.folder,
            )

    def _choose_folder(self, config: Namespace) -> RunFolder:
        if config.trainer.default_root_dir is not None:
            return RunFolder(Path(config.trainer.default_root_dir))
        given = config.get("ckpt_path")
        if self.subcommand != "fit" and config.name is None:
            if given and Path(given).is_file():
                folder = Path(given).resolve().parent
                if folder.name == "checkpoints":
                    return RunFolder(folder.parent)
            for saved in (Path(str(path)) for path in config.config or []):  # a run's own config names the run
                if saved.name == "config.yaml" and (saved.parent / "checkpoints").is_dir():
                    return RunFolder(saved.parent)
        dataset, name = find_class(config.data.class_path, DataModule).name or "data", "run"
        paths = [Path(str(given)).resolve() for given in config.config or []]
        naming = [path for path in paths if path.parent.name != "trainer"]  # configs/trainer names no run
        if naming:
            path = naming[0]
            parts = path.with_suffix("").parts
            name = path.stem
            if "configs" in parts:
                inside = parts[len(parts) - parts[::-1].index("configs") :]
                if len(inside) > 1:
                    dataset, name = inside[-2], "-".join([*inside[:-2], inside[-1]])
        return RunFolder(Path("runs") / dataset / (config.name or f"{name}-seed{config.seed_everything}"))

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
        """Build a data module that knows what the checkpoint knows (a vocabulary), before sizes are asked for."""
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
            config["logger"] = False if self._is_trial else self._default_loggers()
        elif logger:
            config["logger"] = self._with_metrics_file(list(logger) if isinstance(logger, list) else [logger])
        own: list[Callback] = [MechanismActivity(figure=not self._is_trial), PredictionFile(), FiniteGuard()]
        if not self._is_trial:
            own += [RolloutPictures(), EpisodePictures()]
            recorder = RunRecorder(
                self.folder, self.command, yaml_of(self._settings), archive=not self._is_same_run
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
            own += [recorder, OutcomeCheck(self.folder)]
        own += [ProcessWatch(), RankAgreement(self._settings), TrialBatch()]
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
        config["callbacks"] = [*(callback for callback in own if type(callback) not in names), *given]
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ImportError, ValueError, TypeError) as error:
            raise ConfigError(f"trainer: {error}") from error

    def _default_loggers(self) -> list[Logger]:
        tracker = MLflowTracker(
            dataset_of(self.folder.path, self._get(self.config, "data").class_path),
            self.folder.path.name,
            folder=self.folder.path,
            required=self.config[self.subcommand].require_tracking,
            test_metrics=self.model.headline,
        )
        return self._with_metrics_file([tracker])

    def _with_metrics_file(self, loggers: list[Logger]) -> list[Logger]:
        """Return loggers whose errors end no run, and before them the one that writes ``metrics.csv``."""
        if self._is_trial or any(isinstance(logger, LocalMetrics) for logger in loggers):
            own = []
        else:
            own = [LocalMetrics(self.folder.path)]
        return [*own, *(logger if isinstance(logger, LocalMetrics) else protect(logger) for logger in loggers)]

    def after_instantiate_classes(self) -> None:
        """Refuse a run that would never end, and batches that cannot be dealt to the processes."""
        trainer, data = self.trainer, self.datamodule
        check_run(trainer, self.model, data, is_fit=self.subcommand == "fit")
        if is_rank_zero() and (note := idle_gpu(trainer)):
            log.info("%s", note)
        data.check_shares(trainer.world_size)
        overfit, limit = trainer.overfit_batches, trainer.limit_train_batches  # type: ignore[attr-defined]
        if overfit or (isinstance(limit, float) and limit != 1.0):  # only then is the data looked at
            asked = f"trainer.overfit_batches={overfit}" if overfit else f"trainer.limit_train_batches={limit}"
            if data.is_endless:
                raise ConfigError(
                    f"{asked} needs training data with an end, and this has none: set data.train_size."
                )
            if data.num_epochs is not None:
                raise ConfigError(
                    f"{asked} needs epochs of known length, and those of {type(data).__name__} have none."
                )
        has_end = trainer.max_steps != -1 or self._get(self.config, "trainer").get("max_time") is not None
        if self.subcommand != "fit" or has_end:
            return
        if data.num_epochs is not None and trainer.max_epochs is None:
            trainer.fit_loop.max_epochs = data.num_epochs
        if data.is_endless:
            raise ConfigError(
                "The training stream has no end: set trainer.max_steps, trainer.max_time or data.train_size; "
                "got max_steps=-1."
            )

    def before_fit(self) -> None:
        """Lock the run and refuse what cannot be trained; nothing is created yet (see :class:`RunRecorder`)."""
        if is_rank_zero() and not self._is_trial:
            require_folder(self.folder.path, 0)
            self._lock = RunLock(self.folder.path)
            self._lock.acquire()
            self._require_nobody_else()
            if self.folder.saved() != self._saved:
                raise ConfigError(
                    f"{self.folder.path} was trained by another process while this one started; start again."
                )
        if self._going_on_from is not None:
            self._require_same_run(self._going_on_from)
        self._initialize()

    def _before_evaluation(self) -> None:
        """Refuse a folder that cannot be written, before any work."""
        if is_rank_zero() and not self._is_trial:
            require_folder(self.folder.path, 0)

    before_validate = before_test = before_predict = _before_evaluation

    def _initialize(self) -> None:
        """Take the weights that a new run starts from."""
        source = self.config[self.subcommand].init_from
        if source is None:
            return
        if self._going_on_from is None:
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
        kwargs["ckpt_path"] = self._going_on_from if is_fit else self._checkpoint_path(kwargs.get("ckpt_path"))
        self._loaded_from = kwargs["ckpt_path"]
        kwargs["weights_only"] = True
        if subcommand in ("validate", "test"):
            kwargs["verbose"] = False
        return kwargs

    def _checkpoint_path(self, given: Any) -> str | None:
        if given is None or given in CHECKPOINT_KEYS:
            path = self.folder.checkpoints / f"{given or 'best'}.ckpt"
            if not path.is_file():
                if given != "last" and (last := path.with_name("last.ckpt")).is_file():
                    raise CheckpointError(
                        f"ckpt_path={given!r}: there is no {path}, as this run was not validated. Use "
                        f"--ckpt_path last, which is {last}."
                    )
                raise CheckpointError(
                    f"ckpt_path={given!r}: there is no {path}. Train first, or name a file with --ckpt_path."
                )
            return str(path)
        read_checkpoint(given)
        return str(given)

    def after_fit(self) -> None:
        """Test the best checkpoint, or the last one where nothing was validated."""
        config = self.config[self.subcommand]
        if self.model.init_from is not None and is_rank_zero() and not self._is_trial:
            self.folder.write_results(init_from=self.model.init_from)
        if not config.test_after_fit or self._is_trial or self.trainer.interrupted:
            if self.trainer.is_global_zero and not self._is_trial:
                print_warnings(self.folder)
            return
        saved = [self.folder.checkpoints / f"{key}.ckpt" for key in CHECKPOINT_KEYS]
        path = next((str(path) for path in saved if path.is_file()), None)
        self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=path, weights_only=True, verbose=False)
        self.after_test()

    def after_test(self) -> None:
        """Print the table."""
        if self.trainer.is_global_zero:
            print_report(self.trainer, self.model, self.folder, "test")

    def after_validate(self) -> None:
        """Print the table."""
        if self.trainer.is_global_zero:
            print_report(self.trainer, self.model, self.folder, "val")


class AlreadyDone(Exception):  # noqa: N818, no error
    """The run that fit was asked for has been trained."""

    def __init__(self, message: str, folder: RunFolder) -> None:
        super().__init__(message)
        self.folder = folder


def dataset_of(folder: Path, class_path: str) -> str:
    """Return the dataset of a run: the folder under ``runs``, or else the name of the data module's class.

    MLflow's experiments are named so.

    Args:
        folder: The run's folder, ``runs/<dataset>/<name>`` or another.
        class_path: Class of the data module.
    """
    parts = folder.parts
    inside = parts[len(parts) - parts[::-1].index("runs") :] if "runs" in parts else ()
    return inside[0] if len(inside) > 1 else find_class(class_path, DataModule).name or "data"


def _checkpoint_of(arguments: list[str]) -> dict[str, Any] | None:
    """Return the contents of the checkpoint that a command other than fit names as a file."""
    path = value_of(arguments, "--ckpt_path")
    if arguments[0] == "fit" or path is None or path in CHECKPOINT_KEYS:
        return None
    return read_checkpoint(path)


def _with_config_of(checkpoint: dict[str, Any], arguments: list[str]) -> list[str]:
    """Put the checkpoint's own task and data before what the user gave, unless that is a config."""
    if value_of(arguments, "--model") or any("model" in read_yaml(path) for path in named_configs(arguments)):
        return arguments
    saved, given = checkpoint["rimlit"], str(value_of(arguments, "--ckpt_path"))
    if "task" not in saved:
        raise CheckpointError(f"{given} holds weights of a module that is no task of rimlit.")
    build_saved(saved["task"], given)  # what the parser refuses later would be taken for the user's
    if saved.get("data") is None:
        raise CheckpointError(
            "The checkpoint was written without a data module: give --config or --model and --data."
        )
    # optimiser and scheduler are for training: a command that only reads the weights needs neither's class
    init_args = {k: v for k, v in saved["task"]["init_args"].items() if k not in ("optimizer", "scheduler")}
    config = {"model": {**saved["task"], "init_args": init_args}, "data": saved["data"]}
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # named like the checkpoint, as a run is named after its config
    path = Path(folder, Path(value_of(arguments, "--ckpt_path") or "checkpoint").stem).with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    return [arguments[0], "--config", str(path), *arguments[1:]]
