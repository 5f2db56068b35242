"""Settings that Lightning takes and then stumbles over, or trains nothing with: refused by name."""

import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from rimlit.errors import ConfigError
from rimlit.spec import flat_settings


def refuse_settings(config: Namespace) -> None:
    """Refuse what Lightning takes and then stumbles over, or trains nothing with."""
    trainer = config.trainer
    if config.name is not None and (config.name in ("", ".", "..") or Path(config.name).name != config.name):
        raise ConfigError(f"name must be that of a folder, without a way to it; got name={config.name!r}.")
    has_gpu = torch.cuda.is_available()
    if trainer.accelerator in ("gpu", "cuda") and not has_gpu:
        raise ConfigError(
            f"trainer.accelerator={trainer.accelerator!r} needs a GPU, and torch finds none here; allowed are "
            "auto and cpu."
        )
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
    least = {
        "accumulate_grad_batches": 1,
        "check_val_every_n_epoch": 1,
        "gradient_clip_val": 0,
        "log_every_n_steps": 0,
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
