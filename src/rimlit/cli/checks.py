"""Settings that Lightning or torch accepts and then fails with, or trains nothing with: refused beforehand."""

import inspect
import math
import os
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
)
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from rimlit.data import DataModule
from rimlit.errors import ConfigError
from rimlit.spec import Spec, find_class, flat_settings, non_default_arguments
from rimlit.tasks import Task
from rimlit.training._lightning import start_method
from rimlit.types import Looped


def refuse_settings(config: Namespace) -> None:
    """Refuse settings that Lightning accepts and then fails with, or trains nothing with."""
    trainer = config.trainer
    if config.name is not None and (config.name in ("", ".", "..") or Path(config.name).name != config.name):
        raise ConfigError(f"name must be that of a folder, without a way to it; got name={config.name!r}.")
    if "://" in str(trainer.default_root_dir):
        raise ConfigError(
            f"trainer.default_root_dir must be a local folder; got trainer.default_root_dir="
            f"{str(trainer.default_root_dir)!r}."
        )
    has_gpu = torch.cuda.is_available()
    _refuse_devices(trainer, has_gpu)
    if str(trainer.precision) in ("16", "16-mixed") and not (has_gpu and trainer.accelerator != "cpu"):
        raise ConfigError(
            f"trainer.precision={trainer.precision!r} needs a GPU; on a CPU Lightning would train in bfloat16 "
            "instead: ask for bf16-mixed."
        )
    for key, value in flat_settings(config.as_dict()).items():
        if isinstance(value, float) and math.isnan(value):
            raise ConfigError(f"{key.replace('init_args.', '')} must be a number; got nan.")
    for name in ("max_steps", "max_epochs"):
        if (value := trainer.get(name)) is not None and (value == 0 or value < -1):
            raise ConfigError(f"trainer.{name} must be at least 1, or -1 for no limit; got {value}.")
    if (seconds := seconds_of(trainer.get("max_time"))) is not None and seconds <= 0:
        raise ConfigError(f"trainer.max_time must be longer than 0 seconds; got {trainer.max_time}.")
    if trainer.barebones:
        raise ConfigError(
            "trainer.barebones=True leaves out the checkpoints and logs that a run keeps. For a short trial use "
            "trainer.fast_dev_run=true; for speed use trainer.logger=false."
        )
    least = {
        "accumulate_grad_batches": 1,
        "check_val_every_n_epoch": 1,
        "gradient_clip_val": 0,
        "log_every_n_steps": 0,
        "num_nodes": 1,
    }
    for name, bound in least.items():
        if (value := trainer.get(name)) is not None and value < bound:
            raise ConfigError(f"trainer.{name} must be at least {bound}; got {value}.")
    for name in ("limit_train_batches", "val_check_interval"):
        if (value := trainer.get(name)) is not None and value == 0:
            raise ConfigError(f"trainer.{name} must be above 0; got {value}.")


def seconds_of(duration: Any) -> float | None:
    """Return a duration as ``trainer.max_time`` takes it, in seconds; None where it is none or of another form."""
    try:
        if isinstance(duration, str):
            days, hours, minutes, seconds = (int(part) for part in duration.split(":"))
            duration = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        elif isinstance(duration, dict | Namespace):
            duration = timedelta(**dict(duration.items()))
        return duration.total_seconds() if isinstance(duration, timedelta) else None
    except (ValueError, TypeError):  # Lightning says what is wrong with it
        return None


def _refuse_devices(trainer: Namespace, has_gpu: bool) -> None:
    accelerator, devices = trainer.accelerator, str(trainer.devices)
    if accelerator in ("gpu", "cuda") and not has_gpu:
        raise ConfigError(
            f"trainer.accelerator={accelerator!r} needs a GPU, and torch finds none here; allowed are auto "
            "and cpu."
        )
    is_cpu = accelerator == "cpu" or (accelerator == "auto" and not has_gpu)
    most = max(8, os.cpu_count() or 1)
    if is_cpu and devices.isdigit() and int(devices) > most:  # each is a process
        raise ConfigError(f"trainer.devices must be at most {most} on this CPU; got trainer.devices={devices}.")


def refuse_callbacks(callbacks: Sequence[Callback]) -> None:
    """Refuse callbacks that set what the run's record and its checkpoints would not hold."""
    for callback in callbacks:
        if isinstance(callback, LearningRateFinder | BatchSizeFinder):
            key = "model.optimizer.lr" if isinstance(callback, LearningRateFinder) else "data.batch_size"
            raise ConfigError(
                f"trainer.callbacks: {type(callback).__name__} changes {key} while it runs, which neither config "
                f"nor checkpoint would hold. Give {key} instead."
            )


def check_run(trainer: L.Trainer, task: Task, data: DataModule, *, is_fit: bool) -> None:
    """Refuse, before anything is written, what would fail only in the first steps of the run.

    Raises:
        ConfigError: The strategy copies this process, the time loop does not run on the device, a callback watches
            a metric that the task does not have, or the optimiser or its schedule cannot make a step.
    """
    strategy: Any = trainer.strategy
    if (method := start_method(strategy)) is not None:
        raise ConfigError(
            f"trainer.strategy: {type(strategy).__name__} with start_method={method!r} "
            "runs the training in copies of this process, which keep neither log nor checkpoint here. Use ddp."
        )
    for module in task.modules():
        if isinstance(module, Looped) and module.backend != "auto":
            module.resolve_backend(device=strategy.root_device)
    if is_fit:
        _check_monitors(trainer, task, data)
        _try_optimizer(task, strategy.root_device)


def _check_monitors(trainer: L.Trainer, task: Task, data: DataModule) -> None:
    """Compare what callbacks watch in validation with the metrics of the task, where all of these are known."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if not all(type(part).__module__.startswith(("rimlit.", "lightning.")) for part in (task, *callbacks)):
        return  # it may log any name
    known = [
        f"val/{group}/{name}" if group else f"val/{name}"
        for group in data.group_names("val")
        for name in ("loss", *metric_names(task))
    ]
    for callback in callbacks:
        monitor = callback.monitor if isinstance(callback, EarlyStopping | ModelCheckpoint) else None
        if monitor is not None and monitor not in known and not _is_logged_else(monitor, task):
            raise ConfigError(
                f"{type(callback).__name__}: monitor={monitor!r} is not a metric of {type(task).__name__}; there "
                f"are train/loss, {', '.join(known)}."
            )


def metric_names(task: Task) -> list[str]:
    """Return the names that a task's metrics are logged by; a metric of several values has them as ``names``."""
    return [name for key, metric in task.metrics().items() for name in getattr(metric, "names", (key,))]


def _is_logged_else(name: str, task: Task) -> bool:
    """Return whether a metric may be logged in another place than validation."""
    is_in_training = name == "train/loss" or (name.startswith("train/") and hasattr(task, "losses"))  # an agent's
    return is_in_training or name.startswith("mechanisms/")


def _try_optimizer(task: Task, device: torch.device) -> None:
    """Let the optimiser and its schedule make a step with one weight, whose gradient is zero."""
    specs = [spec for spec in (task._optimizer, task._scheduler) if spec is not None]
    if not all(spec["class_path"].startswith(("torch.", "rimlit.", "lightning.")) for spec in specs):
        return  # what another package's class needs is not known
    weight = nn.Parameter(torch.zeros(2, 2, device=device))
    weight.grad = torch.zeros_like(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer: Optimizer = task._built(task._optimizer, Optimizer, [weight])
        _try_step(task._optimizer, lambda: optimizer.step(lambda: 0.0))
        if task._scheduler is None:
            return
        spec = task._scheduler
        if "total_steps" in inspect.signature(find_class(spec["class_path"], LRScheduler)).parameters:
            spec = {**spec, "init_args": {"total_steps": 1000} | _without_none(spec["init_args"])}
        schedule: Any = task._built(spec, LRScheduler, optimizer)
        if not isinstance(schedule, ReduceLROnPlateau):
            _try_step(task._scheduler, schedule.step)


def _without_none(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


def _try_step(spec: Spec, step: Callable[[], Any]) -> None:
    try:
        step()
    except Exception as error:
        given = ", ".join(f"{name}={value!r}" for name, value in non_default_arguments(spec).items())
        raise ConfigError(
            f"{spec['class_path'].rpartition('.')[2]} cannot make a step"
            f"{f' with {given}' if given else ''}: {' '.join(str(error).split())}."
        ) from error


def check_length(trainer: L.Trainer, data: DataModule, *, is_fit: bool, is_limited: bool) -> None:
    """Refuse a share of data that have no end, and a training without one; take the epochs that the data declare.

    Args:
        trainer: The trainer, whose number of epochs is set where only the data know it.
        data: The data module.
        is_fit: Whether a model is trained.
        is_limited: Whether ``trainer.max_time`` or a ``Timer`` ends the training.

    Raises:
        ConfigError: The data have no end, or no epochs of known length.
    """
    overfit, limit = trainer.overfit_batches, trainer.limit_train_batches  # type: ignore[attr-defined]
    if overfit or (isinstance(limit, float) and limit != 1.0):  # only then is the data needed
        asked = f"trainer.overfit_batches={overfit}" if overfit else f"trainer.limit_train_batches={limit}"
        if data.is_endless:
            raise ConfigError(f"{asked} needs training data with an end, and this has none: set data.train_size.")
        if data.num_epochs is not None:
            raise ConfigError(
                f"{asked} needs epochs of known length, and those of {type(data).__name__} have none."
            )
    has_end = trainer.max_steps != -1 or is_limited
    if not is_fit or has_end:
        return
    if data.num_epochs is not None and trainer.max_epochs is None:
        trainer.fit_loop.max_epochs = data.num_epochs
    if data.is_endless:
        raise ConfigError(
            "The training stream has no end: set trainer.max_steps, trainer.max_time or data.train_size; "
            "got max_steps=-1."
        )
