"""The record of a run in its folder: config, state, results."""

import logging
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_only

from rimlit._version import __version__
from rimlit.backbones import Backbone
from rimlit.backbones.base import count_flops
from rimlit.data import DataModule
from rimlit.errors import DataError, StoppedError, StorageError
from rimlit.files import write_file
from rimlit.spec import non_default_arguments
from rimlit.tasks import Task
from rimlit.tracking.mlflow_tracker import MLflowTracker
from rimlit.tracking.optional import Gate
from rimlit.tracking.process_names import process_name
from rimlit.tracking.run_folder import RunFolder
from rimlit.types import Looped

log = logging.getLogger(__name__)


class RunRecorder(L.Callback):
    """Record a run: its config and parameter counts when training begins, its results when it ends.

    Nothing is written before the first training step: a run that Lightning, the optimiser or a checkpoint refuses
    leaves no file, and an earlier run of this name stays in its folder.

    Args:
        folder: The run's folder.
        command: Command that started the run.
        config: The resolved config as YAML.
        archive: Whether this is a new run, before which an earlier one of the same name is archived.
        gate: Delays the loggers' calls; opened when the run begins.
    """

    def __init__(
        self, folder: RunFolder, command: str, config: str, *, archive: bool = False, gate: Gate | None = None
    ) -> None:
        self.folder = folder
        self.command = command
        self.config = config
        self.archive = archive
        self.gate = gate
        self._sizes: dict[str, int | None] = {}
        self._started: float | None = None
        self._has_begun = False
        self._seconds_before = 0.0  # trained before the checkpoint that was resumed
        self._commit = git_commit()  # now: the checkout may change before the end

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Archive an earlier run, write the config and describe the run to the trackers, once a training."""
        if self._has_begun:
            return
        self._has_begun = True
        self._prepare_folder()
        if self.gate is not None:
            self.gate.open()
        if isinstance(pl_module, Task):
            self._describe(trainer, pl_module)

    @rank_zero_only
    def _describe(self, trainer: L.Trainer, task: Task) -> None:
        path = self.folder.path / "config.yaml"
        write_file(path, self.config)
        parameters = describe(trainer, task)
        self._sizes = sizes_of(task)
        backend = {"backend": task.backbone.resolve_backend()[0]} if isinstance(task.backbone, Looped) else {}
        for logger in trainer.loggers:
            logger.log_hyperparams({**parameters, **self._sizes, **backend})
            if isinstance(logger, MLflowTracker):
                parent = os.environ.get("RIMLIT_PARENT_RUN")  # of a comparison
                logger.set_tags(
                    {
                        **({"mlflow.parentRunId": parent} if parent else {}),
                        "mlflow.note.content": f"`{self.command}`",
                        "git_commit": self._commit,
                        "run_folder": str(self.folder.path),
                    }
                )
                logger.log_file(path)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the record: everything has been built, checked and restored."""
        self._begin(trainer, pl_module)
        self._started = time.monotonic()
        self._write_status(trainer, "running")

    @rank_zero_only
    def _prepare_folder(self) -> None:
        """Archive an earlier run, or log whether the resumed one was killed and remove its temporary files."""
        if self.archive:
            self.folder.archive_earlier_run()
        state, elsewhere = self.folder.read_state(), self.folder.running_process()
        step, when = state.get("step"), state.get("written")
        if elsewhere is not None:
            log.warning(
                "An earlier process of this run, on %s, has not recorded its end (last seen after step %s, at "
                "%s): two processes must not train one run at the same time.",
                elsewhere.split("/")[0],
                step,
                when,
            )
        elif state.get("status") == "running":
            killed = {"process": state.get("process"), "step": step, "written": when}
            self.folder.write_state(killed=[*state.get("killed", []), killed])
            log.warning("An earlier process of this run was killed after step %s (last seen at %s).", step, when)
        self.folder.remove_leftovers()

    def note_saved(self, trainer: L.Trainer, path: Path) -> None:
        """Record that a checkpoint was saved."""
        if path.stem == "last":
            self._write_state(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Record why the run ended."""
        if trainer.state.fn == TrainerFn.FITTING and self._has_begun:  # a start that is refused leaves no file
            status = "stopped" if isinstance(exception, StoppedError | KeyboardInterrupt) else "failed"
            try:
                kind = type(exception).__name__
                self._write_status(trainer, status, str(exception) or kind, kind)
            except StorageError as error:  # the first error is the one to report, and this disk may have caused it
                log.warning("%s", error)

    def _write_status(
        self, trainer: L.Trainer, status: str, reason: str | None = None, error: str | None = None
    ) -> None:
        self._write_state(trainer, status=status, reason=reason, error=error, process=process_name())

    @rank_zero_only
    def _write_state(self, trainer: L.Trainer, **entries: Any) -> None:
        last = self.folder.checkpoints / "last.ckpt"
        self.folder.write_state(
            **entries,
            step=trainer.global_step,
            checkpoint="checkpoints/last.ckpt" if last.is_file() else None,
            written=time.strftime("%Y-%m-%d %H:%M:%S"),
        )

    def _seconds(self) -> float:
        now = 0.0 if self._started is None else time.monotonic() - self._started
        return self._seconds_before + now

    def state_dict(self) -> dict[str, Any]:
        """Return how long the run has trained, for the checkpoint."""
        return {"seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the count of a checkpoint."""
        self._seconds_before = state_dict["seconds"]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the training."""
        if trainer.is_global_zero and isinstance(pl_module, Task):
            data = getattr(trainer, "datamodule", None)
            self.folder.write_results(
                command=self.command,
                commit=self._commit,
                seed=int(os.environ.get("PL_GLOBAL_SEED", 0)),
                machine=machine(),
                versions={"rimlit": __version__, "torch": torch.__version__, "lightning": L.__version__},
                **self._sizes,
                steps=trainer.global_step,
                train_seconds=round(self._seconds(), 1),
                floor=pl_module.floors(),
                **({"data": data_of(data)} if isinstance(data, DataModule) else {}),
            )

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record that the run is finished, after the last checkpoint."""
        self._begin(trainer, pl_module)  # a resumed run may have no step left
        self._write_status(trainer, "finished")

    @rank_zero_only
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the test and the command it was run by: a later test may be of another checkpoint."""
        tested = {"after_fit": self._has_begun, "command": self.command, "commit": self._commit}
        self.folder.write_results(test=scores_of(trainer, "test"), tested=tested)


def scores_of(trainer: L.Trainer, stage: str) -> dict[str, float]:
    """Return the scores that a stage logged last, by their names without the stage."""
    return {
        name.removeprefix(f"{stage}/"): value.item()
        for name, value in trainer.callback_metrics.items()
        if name.startswith(f"{stage}/")
    }


def data_of(data: DataModule) -> dict[str, Any]:
    """Return what identifies data: ``class_path``, ``init_args`` and ``digest``, None where there are no files."""
    try:
        digest = getattr(data, "digest", None)
    except DataError as error:  # files that were removed after they had been read
        log.warning("The data have no digest: %s", error)
        digest = None
    return {**data.spec, "digest": digest}


def describe(trainer: L.Trainer, task: Task) -> dict[str, Any]:
    """Return a run's settings by short names: all of backbone and data, of other classes the non-default ones."""
    described: dict[str, Any] = {"task": type(task).__name__}
    spec = task.spec

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and "class_path" in value:
            described[prefix] = value["class_path"].split(".")[-1]
            is_whole = prefix in ("backbone", "data")  # runs are compared by these
            given = value.get("init_args", {}) if is_whole else non_default_arguments(value)
            for name, inner in given.items():
                add(f"{prefix}.{name}", inner)
        else:
            described[prefix] = value

    for name, value in non_default_arguments(spec).items():
        add(name, value)
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, DataModule):
        add("data", data.spec)
    described["seed"] = os.environ.get("PL_GLOBAL_SEED", "none")
    described["max_steps"] = trainer.max_steps
    described["precision"] = trainer.precision
    return described


def sizes_of(task: Task) -> dict[str, int | None]:
    """Return the sizes of a task's model by which models are compared.

    Returns:
        ``parameters``: of encoder, backbone and head. ``active_parameters``: those that are used in one step of
        one sequence. ``flops_per_step``: multiplications and additions of backbone and head in one step of one
        sequence, forward, products of matrices only; None where backbone or head cannot be run by themselves.
        ``state_size``: numbers carried from step to step.
    """
    total = sum(parameter.numel() for parameter in task.parameters())
    backbone: Backbone = task.backbone
    inside = sum(parameter.numel() for parameter in backbone.parameters())
    weight = next(task.parameters())
    features = torch.zeros(1, 1, backbone.output_size, dtype=weight.dtype, device=weight.device)
    try:
        flops = backbone.flops_per_step() + count_flops(task.head, features)
    except (ValueError, RuntimeError, TypeError) as error:
        log.info("FLOPs are not counted: %s", error)
        flops = None
    return {
        "parameters": total,
        "active_parameters": total - inside + backbone.active_parameters(),
        "flops_per_step": flops,
        "state_size": backbone.state_size(),
    }


def git_commit() -> str:
    """Return the commit of the working directory, with ``+`` where it has uncommitted changes."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def machine() -> str:
    """Describe the machine: processor, cores and accelerator."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    parts = [f"{os.cpu_count()} cores ({model})", f"{torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)
