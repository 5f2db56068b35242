"""The folder of a run and what is written there: config, state, results."""

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

import rimlit
from rimlit.backbones import RIM, Backbone
from rimlit.backbones.base import count_flops
from rimlit.data import DataModule
from rimlit.errors import StoppedError, StorageError
from rimlit.files import read_json, write_file, write_json
from rimlit.spec import non_default_arguments
from rimlit.tasks import Task
from rimlit.training.tracking import MLflowTracker, is_gone, process_name

log = logging.getLogger(__name__)


class RunFolder:
    """Where a run lives: ``checkpoints/``, ``config.yaml``, ``metrics.csv``, ``run_state.json``, ``figures/``.

    Args:
        path: ``runs/<dataset>/<name>``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        """Folder of ``best.ckpt`` and ``last.ckpt``."""
        return self.path / "checkpoints"

    def read_state(self) -> dict[str, Any]:
        """Return ``run_state.json``, empty for a new run."""
        return read_json(self.path / "run_state.json")

    def write_state(self, **entries: Any) -> None:
        """Add entries to ``run_state.json``."""
        write_json(self.path / "run_state.json", {**self.read_state(), **entries})

    def running_process(self) -> str | None:
        """Return the other process that trains this run, by its :func:`process_name`; None where it has ended.

        Of one on another machine nothing is known but that it did not write down its end.
        """
        state = self.read_state()
        process = state.get("process")
        if state.get("status") != "running" or not isinstance(process, str):
            return None
        return None if process == process_name() or is_gone(process) else process

    def read_results(self) -> dict[str, Any]:
        """Return ``results.json``, empty before the end of a run."""
        return read_json(self.path / "results.json")

    def write_results(self, **entries: Any) -> None:
        """Add entries to ``results.json``."""
        write_json(self.path / "results.json", {**self.read_results(), **entries})

    def has_own_test(self) -> bool:
        """Return whether the scores in ``results.json`` are those of the test that ended the training."""
        results = self.read_results()
        return "test" in results and bool(results.get("tested", {}).get("after_fit", True))

    def set_aside_earlier_run(self) -> None:
        """Rename an earlier run of this name, so that a new one neither mixes with it nor destroys it."""
        if not any((self.path / name).exists() for name in ("checkpoints", "run_state.json", "results.json")):
            return
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        for left in self.path.rglob(".*.tmp"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        self.path.rename(aside)
        log.info(
            "An earlier run in %s now lies in %s; go on with it by --name %s.",
            self.path,
            aside,
            aside.name,
        )


class RunRecorder(L.Callback):
    """Write down what a run was: its config and parameter counts before it, its results after it.

    Args:
        folder: The run's folder.
        command: Command that started the run.
        config: The resolved config as YAML.
    """

    def __init__(self, folder: RunFolder, command: str, config: str) -> None:
        self.folder = folder
        self.command = command
        self.config = config
        self._sizes: dict[str, int | None] = {}
        self._started: float | None = None
        self._has_begun = False
        self._seconds_before = 0.0  # in the parts of a run that was gone on with
        self._commit = git_commit()  # now, not at the end: the checkout may have moved on by then

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the config and describe the run to the trackers, now that everything could be built."""
        self._has_begun = True
        self._name_killed()
        if isinstance(pl_module, Task):
            self._describe(trainer, pl_module)

    @rank_zero_only
    def _describe(self, trainer: L.Trainer, task: Task) -> None:
        path = self.folder.path / "config.yaml"
        write_file(path, self.config)
        parameters = describe(trainer, task)
        self._sizes = sizes_of(task)
        backend = {"backend": task.backbone.resolve_backend()[0]} if isinstance(task.backbone, RIM) else {}
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
        """Start the clock."""
        self._started = time.monotonic()
        self._write_status(trainer, "running")

    @rank_zero_only
    def _name_killed(self) -> None:
        """Say so where an earlier process of this run ended without a word, and clear away what it left."""
        state, elsewhere = self.folder.read_state(), self.folder.running_process()
        step, when = state.get("step"), state.get("written")
        if elsewhere is not None:
            log.warning(
                "An earlier process of this run, on %s, has not written down its end (last heard of after step "
                "%s, at %s): two must not train it at a time.",
                elsewhere.split("/")[0],
                step,
                when,
            )
        elif state.get("status") == "running":
            killed = {"process": state.get("process"), "step": step, "written": when}
            self.folder.write_state(killed=[*state.get("killed", []), killed])
            log.warning(
                "An earlier process of this run was killed after step %s (last heard of at %s).", step, when
            )
        for left in self.folder.path.glob(".*.tmp"):
            left.unlink(missing_ok=True)

    def note_saved(self, trainer: L.Trainer, path: Path) -> None:
        """Write down that a checkpoint was saved."""
        if path.stem == "last":
            self._write_state(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write down why the run ended."""
        if trainer.state.fn == TrainerFn.FITTING and self._has_begun:  # a start that is refused leaves nothing
            status = "stopped" if isinstance(exception, StoppedError | KeyboardInterrupt) else "failed"
            try:
                self._write_status(trainer, status, str(exception) or type(exception).__name__)
            except StorageError as error:  # what ended the run is what counts, and it may be this very disk
                log.warning("%s", error)

    def _write_status(self, trainer: L.Trainer, status: str, reason: str | None = None) -> None:
        self._write_state(trainer, status=status, reason=reason, process=process_name())

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
        """Go on counting from a checkpoint."""
        self._seconds_before = state_dict["seconds"]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write down the training."""
        if trainer.is_global_zero and isinstance(pl_module, Task):
            self.folder.write_results(
                command=self.command,
                commit=self._commit,
                seed=int(os.environ.get("PL_GLOBAL_SEED", 0)),
                machine=machine(),
                versions={"rimlit": rimlit.__version__, "torch": torch.__version__, "lightning": L.__version__},
                **self._sizes,
                steps=trainer.global_step,
                train_seconds=round(self._seconds(), 1),
                floor=pl_module.floors(),
            )

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write down that the run is finished, after the last checkpoint."""
        self._write_status(trainer, "finished")

    @rank_zero_only
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write down the test and where it comes from: a later one may be of another checkpoint."""
        tested = {"after_fit": self._has_begun, "command": self.command, "commit": self._commit}
        self.folder.write_results(test=scores_of(trainer, "test"), tested=tested)


def scores_of(trainer: L.Trainer, stage: str) -> dict[str, float]:
    """Return the scores that a stage logged last, without its name before theirs."""
    return {
        name.removeprefix(f"{stage}/"): value.item()
        for name, value in trainer.callback_metrics.items()
        if name.startswith(f"{stage}/")
    }


def describe(trainer: L.Trainer, task: Task) -> dict[str, Any]:
    """Return what a reader wants to know of a run, by short names: settings that are not a class's default."""
    described: dict[str, Any] = {"task": type(task).__name__}
    spec = task.spec

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and "class_path" in value:
            described[prefix] = value["class_path"].split(".")[-1]
            for name, inner in non_default_arguments(value).items():
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
    """Return how large a task's model is, in the terms in which models are compared.

    Returns:
        ``parameters``: of encoder, backbone and head. ``active_parameters``: those that take part in one step of
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
