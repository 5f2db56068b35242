"""A trained task as two files that need nothing of this package to be read: safetensors and JSON."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import load, save
from torch import Tensor

from rimlit._version import __version__
from rimlit.checkpoints import check_specs, kept_checkpoint, read_checkpoint
from rimlit.errors import CheckpointError
from rimlit.files import write_file
from rimlit.tasks.base import Task
from rimlit.tasks.saved import build_saved, load_weights

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = 1


def export(source: str | Path, folder: str | Path) -> Path:
    """Write the weights of a checkpoint to ``model.safetensors`` and what rebuilds the task to ``config.json``.

    Args:
        source: A checkpoint, or a run's folder, of which the best one is taken, or the last where nothing was
            validated.
        folder: Where to write; files of an earlier export there are replaced.

    Returns:
        The checkpoint that was exported.

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged or holds no task.
        StorageError: The folder cannot be written.
    """
    path, checkpoint = read_task(source)
    weights = weights_file(checkpoint["state_dict"])
    config = {**describe_checkpoint(checkpoint), "sha256": hashlib.sha256(weights).hexdigest()}
    text = config_file(config, path)
    for name, content in ((WEIGHTS, weights), (CONFIG, text)):
        write_file(Path(folder) / name, content)
    return path


def read_task(source: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return the checkpoint that ``source``, a file or a run's folder, leads to, and what it holds.

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged or holds no task.
    """
    path = checkpoint_in(Path(source)) if Path(source).is_dir() else Path(source)
    checkpoint = read_checkpoint(source if "://" in str(source) else path)
    if "task" not in checkpoint["rimlit"]:
        raise CheckpointError(f"{path} holds weights of a module that is not a task of rimlit.")
    return path, checkpoint


def weights_file(state: Mapping[str, Tensor]) -> bytes:
    """Return the content of ``model.safetensors`` for a state dict."""
    # a copy of each tensor: safetensors refuses shared memory
    return save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()})


def describe_checkpoint(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``config.json`` says of a checkpoint: the task, its data, and where it comes from."""
    named = checkpoint["rimlit"]
    return {
        "format": FORMAT,
        "task": named["task"],
        "data": named.get("data"),
        "sizes": named.get("sizes", {}),
        "data_state": _data_state(checkpoint),
        "step": checkpoint.get("global_step"),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions that a file was written with."""
    return {"rimlit": __version__, "torch": str(torch.__version__), "lightning": L.__version__}


def config_file(config: Mapping[str, Any], path: str | Path) -> bytes:
    """Return the content of ``config.json``.

    Raises:
        CheckpointError: It holds something that is no plain value; the message names ``path``.
    """
    try:
        return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} holds a state of its data module that JSON cannot hold: {error}."
        ) from error


def load_exported(folder: str | Path) -> Task:
    """Load the task from a folder that :func:`export` wrote, in evaluation mode.

    Raises:
        CheckpointError: A file is missing, damaged or of another kind.
        ConfigError: The config names a class outside the trusted packages.
    """
    path = Path(folder) / CONFIG
    config = read_config(folder)
    if "sha256" not in config and not (Path(folder) / WEIGHTS).exists():
        raise CheckpointError(
            f"{folder} holds no {WEIGHTS}, from which a task is loaded: rimlit export RUN --format safetensors."
        )
    if "sha256" not in config:
        raise CheckpointError(f"{path} is not what rimlit export wrote: sha256 is missing.")
    try:
        weights = (Path(folder) / WEIGHTS).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder} is not what rimlit export wrote: {error}.") from error
    if hashlib.sha256(weights).hexdigest() != config["sha256"]:
        raise CheckpointError(f"{Path(folder) / WEIGHTS} is damaged: its SHA-256 is not the one in {CONFIG}.")
    check_specs({"rimlit": config}, path)
    task = build_saved(config["task"], path, Task)
    try:
        state = load(weights)
    except Exception as error:  # safetensors has an error of its own
        raise CheckpointError(f"{Path(folder) / WEIGHTS} is not what rimlit export wrote: {error}.") from error
    load_weights(task, state, Path(folder) / WEIGHTS)
    return task.eval()


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return ``config.json`` of a folder that an export wrote.

    Raises:
        CheckpointError: It is missing, or of another kind.
    """
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder} is not what rimlit export wrote: {error}.") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not what rimlit export wrote: it must say format {FORMAT}.")
    if "task" not in config:
        raise CheckpointError(f"{path} is not what rimlit export wrote: task is missing.")
    return config


def checkpoint_in(folder: Path) -> Path:
    """Return the best checkpoint of a run's folder, or the last where nothing was validated."""
    path = kept_checkpoint(folder)
    if path is None:
        best = folder / "checkpoints/best.ckpt"
        raise CheckpointError(f"{folder} is not a run with a checkpoint: there is no {best}.")
    return path


def _data_state(checkpoint: Mapping[str, Any]) -> Any:
    """Return what the data module has learned, a vocabulary for example; None where it keeps nothing."""
    data = checkpoint["rimlit"].get("data")
    return None if data is None else checkpoint.get(data["class_path"].rpartition(".")[2])
