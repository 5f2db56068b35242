"""Settings that Lightning takes and then stumbles over, or trains nothing with: refused by name."""

from pathlib import Path

import torch
from jsonargparse import Namespace

from rimlit.errors import ConfigError


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
