"""Settings and data that differ from those a run was started with: used and logged, or refused."""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning as L
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from rimlit.data import DataModule
from rimlit.data.base import PLACES
from rimlit.errors import ConfigError
from rimlit.spec import flat_settings, with_defaults
from rimlit.tasks import Task
from rimlit.training._lightning import fresh_optimizers

MEANING = ("accumulate_grad_batches", "precision")
"""Settings of the trainer that change what a step is."""
COURSE = ("max_steps", "max_epochs", "gradient_clip_val", "gradient_clip_algorithm")
"""Settings of the trainer that a resumed run may change."""

_USED = (
    "model.init_args.optimizer.init_args.",
    "model.init_args.scheduler.init_args.",
    "data.init_args.total_steps",
    *(f"trainer.{name}" for name in COURSE),
)
_REBUILDS = ("model.init_args.optimizer.", "model.init_args.scheduler.")
LENGTHS = ("trainer.max_steps", "trainer.max_epochs", "data.init_args.total_steps")
"""Settings of the length of a run."""
_FREE = ("data.init_args.num_workers",)  # how it runs, not what
_PLACES = tuple(f"data.init_args.{name}" for name in PLACES)


class Change(NamedTuple):
    """A setting that differs from an earlier one."""

    key: str
    before: Any
    now: Any

    @property
    def is_harmless(self) -> bool:
        """Whether a resumed run may change it: rates, schedules, lengths, clipping."""
        return self.key.startswith(_USED)

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{self.key} was {self.before!r} and is {self.now!r} from here on."


def run_settings(trainer: L.Trainer, seed: int) -> dict[str, Any]:
    """Return the settings in a checkpoint besides those of task and data."""
    data = getattr(trainer, "datamodule", None)
    return {
        "seed_everything": seed,
        "trainer": {name: getattr(trainer, name) for name in (*MEANING, *COURSE)},
        "data_digest": digest_of(data),
    }


def digest_of(data: Any) -> str | None:
    """Return the digest of the content that a data module reads, None where the settings alone decide it."""
    return getattr(data, "digest", None) if isinstance(data, DataModule) else None


def find_changes(
    checkpoint: Mapping[str, Any], trainer: L.Trainer, task: L.LightningModule, data: Any, seed: int
) -> list[Change]:
    """Return the settings that differ from those of a checkpoint, by their dotted names in a config.

    Only settings known on both sides are compared: a module that is no :class:`Task`, or data that are no
    :class:`DataModule`, have none.
    """
    named = checkpoint.get("rimlit", {})
    before = {**checkpoint.get("rimlit_run", {}), "data": named.get("data"), "model": named.get("task")}
    now = {
        **run_settings(trainer, seed),
        "data_digest": digest_of(data),  # the trainer need not have the data yet
        "data": data.spec if isinstance(data, DataModule) else None,
        "model": task.spec if isinstance(task, Task) else None,
    }
    # a place is free where the content is compared; a checkpoint of 0.1 has no digest of the content
    is_known = before.get("data_digest", "") is not None and now["data_digest"] is not None
    free = (*_FREE, *_PLACES) if is_known or "data_digest" not in before else _FREE
    changes: list[Change] = []
    for part in ("seed_everything", "data", "data_digest", "model", "trainer"):
        if before.get(part) is None or now[part] is None:
            continue
        old, new = (flat_settings(with_defaults(settings[part]), part) for settings in (before, now))
        # a setting of the trainer that a checkpoint does not name is unknown
        known = old.keys() if part == "trainer" else old.keys() | new.keys()
        differing = (key for key in sorted(known) if old.get(key) != new.get(key))
        changes.extend(Change(key, old.get(key), new.get(key)) for key in differing if key not in free)
    return changes


def refuse_changes(changes: list[Change], run: str, *, are_allowed: bool) -> None:
    """Raise a ConfigError for the first change that a resumed run may not make, unless all are allowed."""
    for change in changes:
        if change.key == "model.init_args.optimizer.class_path":
            raise ConfigError(
                f"{run} was trained with {change.before}, whose state {change.now} cannot use. Give the same "
                "optimizer, another --name, or --resume never, which archives the earlier run."
            )
        if change.is_harmless or are_allowed:
            continue
        started = f"was started with {change.key}={change.before!r}; got {change.now!r}. Give the same"
        if change.key == "data_digest":
            started = (
                "was trained on data of other content (SHA-256 "
                f"{change.before[:12]}…; the data now have {change.now[:12]}…). Give the same data"
            )
        raise ConfigError(
            f"{run} {started}, another --name, --allow_changes true to resume with it all the same, or "
            "--resume never, which archives the earlier run."
        )


def adopt(changes: list[Change], trainer: L.Trainer, task: L.LightningModule) -> None:
    """Replace the settings of optimiser and schedule that a checkpoint has restored by the new ones.

    A schedule is where it would be had it been the run's from the start; one that reacts to a metric keeps its
    changes of the rate, as a factor. A schedule that takes its length from the run is stretched with the run.
    """
    by_key = {change.key: change for change in changes}
    has_length = any("total_steps" in config.scheduler.state_dict() for config in trainer.lr_scheduler_configs)
    if not any(key.startswith(_REBUILDS + (LENGTHS if has_length else ())) for key in by_key):
        return
    optimizers, schedules = fresh_optimizers(task)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in trainer.optimizers]
    for fresh, optimizer in zip(optimizers, trainer.optimizers, strict=True):
        for new, group in zip(fresh.param_groups, optimizer.param_groups, strict=True):
            group.update({name: value for name, value in new.items() if name != "params"})
    for fresh_schedule, schedule in zip(schedules, trainer.lr_scheduler_configs, strict=True):
        if isinstance(schedule.scheduler, ReduceLROnPlateau):
            assert isinstance(fresh_schedule.scheduler, ReduceLROnPlateau)  # another class is refused
            rate = by_key.get("model.init_args.optimizer.init_args.lr")
            _scale(trainer.optimizers, rates, 1.0 if rate is None else rate.now / rate.before)
            _take_settings(fresh_schedule.scheduler, schedule.scheduler)
        elif isinstance(schedule.scheduler, LRScheduler):
            _replay(fresh_schedule.scheduler, schedule.scheduler)


def _scale(optimizers: list[Optimizer], rates: list[list[float]], factor: float) -> None:
    for optimizer, before in zip(optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = rate * factor


def _take_settings(fresh: ReduceLROnPlateau, schedule: ReduceLROnPlateau) -> None:
    progress = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr", "optimizer")
    vars(schedule).update({name: value for name, value in vars(fresh).items() if name not in progress})


def _replay(fresh: LRScheduler, schedule: LRScheduler) -> None:
    """Step ``fresh`` as often as ``schedule`` has been stepped, and copy its state into ``schedule``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its optimizer has made no step
        while fresh.last_epoch < schedule.last_epoch:
            fresh.step()
    schedule.load_state_dict(fresh.state_dict())
    for new, group in zip(fresh.optimizer.param_groups, schedule.optimizer.param_groups, strict=True):
        group.update({name: value for name, value in new.items() if name != "params"})
