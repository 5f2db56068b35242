"""A trained task as two files that need nothing of this package to be read: safetensors and JSON."""

import hashlib
import json
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import load, save

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
    path = checkpoint_in(Path(source)) if Path(source).is_dir() else Path(source)
    checkpoint = read_checkpoint(source if "://" in str(source) else path)
    named = checkpoint["rimlit"]
    if "task" not in named:
        raise CheckpointError(f"{path} holds weights of a module that is not a task of rimlit.")
    # a copy of each tensor: safetensors refuses shared memory
    weights = save(
        {name: tensor.detach().clone().contiguous() for name, tensor in checkpoint["state_dict"].items()}
    )
    config = {
        "format": FORMAT,
        "task": named["task"],
        "data": named.get("data"),
        "sizes": named.get("sizes", {}),
        "data_state": _data_state(checkpoint),
        "step": checkpoint.get("global_step"),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "versions": {"rimlit": __version__, "torch": str(torch.__version__), "lightning": L.__version__},
    }
    try:
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} holds a state of its data module that JSON cannot hold: {error}."
        ) from error
    for name, content in ((WEIGHTS, weights), (CONFIG, text.encode())):
        write_file(Path(folder) / name, content)
    return path


def load_exported(folder: str | Path) -> Task:
    """Load the task from a folder that :func:`export` wrote, in evaluation mode.

    Raises:
        CheckpointError: A file is missing, damaged or of another kind.
        ConfigError: The config names a class outside the trusted packages.
    """
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        weights = (Path(folder) / WEIGHTS).read_bytes()
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder} is not what rimlit export wrote: {error}.") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not what rimlit export wrote: it must say format {FORMAT}.")
    for key in ("task", "sha256"):
        if key not in config:
            raise CheckpointError(f"{path} is not what rimlit export wrote: {key} is missing.")
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


def checkpoint_in(folder: Path) -> Path:
    """Return the best checkpoint of a run's folder, or the last where nothing was validated."""
    path = kept_checkpoint(folder)
    if path is None:
        best = folder / "checkpoints/best.ckpt"
        raise CheckpointError(f"{folder} is not a run with a checkpoint: there is no {best}.")
    return path


def _data_state(checkpoint: dict[str, Any]) -> Any:
    """Return what the data module has learned, a vocabulary for example; None where it keeps nothing."""
    data = checkpoint["rimlit"].get("data")
    return None if data is None else checkpoint.get(data["class_path"].rpartition(".")[2])
