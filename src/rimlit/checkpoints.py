"""Checkpoint files: written whole or not at all, with a digest that is checked when they are read.

A file is what ``torch.save`` writes, a zip archive, with the SHA-256 of all before it as the archive's comment:
one file, which ``torch.load`` opens as it is. A flipped bit in a weight would otherwise load silently.
"""

import hashlib
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rimlit.errors import CheckpointError, ConfigError, NonFiniteError
from rimlit.files import storage_error, whole_file
from rimlit.spec import Rebuildable, check_spec

KEPT = ("best", "last")
"""Names of the checkpoints that a run keeps, the preferred one first."""

_PREFIX = b"sha256:"
_COMMENT_SIZE = len(_PREFIX) + 64
_KINDS: dict[str, type] = {
    "rimlit": dict,
    "state_dict": dict,
    "hyper_parameters": dict,
    "rimlit_position": dict,
    "rimlit_sums": list,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "global_step": int,
    "epoch": int,
    "rimlit_run": dict,
    "pytorch-lightning_version": str,
}


def write_checkpoint(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write ``checkpoint`` to ``path``; what was there before stays until all of it is on the disk.

    Raises:
        NonFiniteError: A weight, the optimiser's state or the carried state holds NaN or infinity.
        StorageError: The folder cannot be written or has too little space.
    """
    non_finite = _not_finite(checkpoint)
    if non_finite is not None:
        raise NonFiniteError(
            f"{path} is not written: {non_finite} holds NaN or infinity. Earlier checkpoints stay."
        )
    path = Path(path)
    try:
        with whole_file(path) as file:
            torch.save(checkpoint, file)
            _append_digest(file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        needed = sum(tensor.nbytes for _, tensor in _tensors(checkpoint))
        raise storage_error(path, needed, error) from error


def kept_checkpoint(run: Path) -> Path | None:
    """Return the best checkpoint in a run's folder, or the last where nothing was validated; None of neither."""
    paths = (run / "checkpoints" / f"{name}.ckpt" for name in KEPT)
    return next((path for path in paths if path.is_file()), None)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that rimlit wrote, with ``weights_only=True``.

    Raises:
        CheckpointError: The path is a URL, is missing, cannot be read, is damaged, holds a number that is not
            finite, or is not a checkpoint of rimlit.
        ConfigError: It names a class outside the trusted packages.
    """
    if "://" in str(path):
        raise CheckpointError(f"Checkpoints are local files; got {path}.")
    if not Path(path).is_file():
        raise CheckpointError(f"No checkpoint at {path}.")
    try:
        verify(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}).") from error
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds
        # torch's text recommends weights_only=False, which would run whatever the file holds
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}): it is damaged, or holds more than "
            "tensors and plain values."
        ) from error
    if (fault := _fault(checkpoint)) is not None:
        raise CheckpointError(f"{path} is not a checkpoint that rimlit wrote: {fault}.")
    check_specs(checkpoint, path)
    non_finite = _not_finite(checkpoint)
    if non_finite is not None:
        raise CheckpointError(f"{path} cannot be used: {non_finite} holds NaN or infinity.")
    return dict(checkpoint)


def _fault(checkpoint: Any) -> str | None:
    """Return what of a checkpoint's structure is missing or of another type than what is read later, or None."""
    if not isinstance(checkpoint, Mapping):
        return f"it holds a {type(checkpoint).__name__}"
    for key in ("rimlit", "state_dict"):
        if key not in checkpoint:
            return f"{key} is missing"
    for key, kind in _KINDS.items():
        if key in checkpoint and (type(checkpoint[key]) is bool or not isinstance(checkpoint[key], kind)):
            return f"{key} must be a {kind.__name__}; it holds a {type(checkpoint[key]).__name__}"
    for key in ("epoch", "global_step"):
        if checkpoint.get(key, 0) < 0:
            return f"{key} must be at least 0; it holds {checkpoint[key]}"
    if not re.match(r"\d+\.\d+", checkpoint.get("pytorch-lightning_version", "0.0")):
        return "pytorch-lightning_version must be a version"
    for name, value in checkpoint["state_dict"].items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            return f"state_dict.{name} must be a tensor; it holds a {type(value).__name__}"
    if not _is_carried(checkpoint["rimlit"].get("carried")):
        return "rimlit.carried must be the tensors of each process"
    for index, state in enumerate(checkpoint.get("optimizer_states", [])):
        groups = state.get("param_groups") if isinstance(state, Mapping) else None
        if not isinstance(groups, list) or not isinstance(state.get("state"), Mapping):
            return f"optimizer_states[{index}] must hold state and param_groups"
        if not all(isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups):
            return f"optimizer_states[{index}].param_groups must hold params"
    for index, state in enumerate(checkpoint.get("lr_schedulers", [])):
        if not isinstance(state, Mapping):
            return f"lr_schedulers[{index}] must be a dict; it holds a {type(state).__name__}"
    run = checkpoint.get("rimlit_run", {})
    if "rimlit_run" in checkpoint and type(run.get("seed_everything")) is not int:
        return "rimlit_run.seed_everything must be an int"
    if "rimlit_run" in checkpoint and not isinstance(run.get("trainer"), Mapping):
        return "rimlit_run.trainer must be a dict"
    steps = run.get("trainer", {}).get("accumulate_grad_batches", 1)
    if type(steps) is not int or steps < 1 or not isinstance(run.get("trainer", {}).get("precision", ""), str):
        return "rimlit_run.trainer must hold accumulate_grad_batches, at least 1, and precision, a text"
    for name, value in run.get("trainer", {}).items():
        if not isinstance(value, str | int | float | None):
            return f"rimlit_run.trainer.{name} must be a plain value; it holds a {type(value).__name__}"
    return _fault_of_loops(checkpoint.get("loops", {}))


def _fault_of_loops(loops: Mapping[str, Any]) -> str | None:
    """Return what of Lightning's loops cannot be restored: each is flat, its progress nested numbers."""
    for loop in ("fit_loop", "validate_loop", "test_loop", "predict_loop") if loops else ():
        entries = loops.get(loop)
        if not isinstance(entries, Mapping):
            return f"loops.{loop} must be a dict; it holds a {type(entries).__name__}"
        for name, entry in entries.items():
            if not isinstance(entry, Mapping):
                return f"loops.{loop}.{name} must be a dict; it holds a {type(entry).__name__}"
            waiting: list[Any] = [entry] if name.endswith("progress") else []
            while waiting:
                value = waiting.pop()
                if isinstance(value, Mapping):
                    if ("total" in value) != ("current" in value) or not value:
                        return f"loops.{loop}.{name} must hold total and current"
                    waiting.extend(value.values())
                elif type(value) not in (int, bool):
                    return f"loops.{loop}.{name} must hold numbers; it holds a {type(value).__name__}"
    return None


def check_specs(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Refuse what is named in a file and would be imported, before anything is done with the file.

    Optimiser and scheduler are built, and their classes checked, by a training alone.
    """
    bases = (Rebuildable, torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)
    named = checkpoint["rimlit"]
    specs = [{"class_path": "rimlit", "init_args": checkpoint.get("hyper_parameters", {})}]
    specs += [named["task"]] if "task" in named else []  # a module that is not a task of rimlit has none
    specs += [named["data"]] if named.get("data") is not None else []
    for spec in specs:
        try:
            check_spec(spec, bases, built_later=("optimizer", "scheduler", "wrappers"))
        except ConfigError as error:
            if "outside the trusted" in str(error):
                raise
            raise CheckpointError(f"{path} is not a checkpoint that rimlit wrote: {error}") from error


def verify(path: str | Path) -> None:
    """Compare a file with the digest it carries, or, where another program wrote it, with the archive's own sums.

    Raises:
        CheckpointError: They differ.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - _COMMENT_SIZE))
        comment = file.read()
        if comment.startswith(_PREFIX):
            file.seek(0)
            if _digest(file, size - _COMMENT_SIZE - 2) != comment[len(_PREFIX) :].decode(errors="replace"):
                raise CheckpointError(f"{path} is damaged: its SHA-256 is not the one it was written with.")
            return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint (no whole zip archive): it is damaged, or something else."
        ) from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: the sum of {damaged} is not the one it was written with.")


def _append_digest(file: Any) -> None:
    """Put the digest of all but the length of the comment, the archive's last two bytes, into that comment."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    digest = _digest(file, end - 2)
    file.seek(end - 2)
    file.write(_COMMENT_SIZE.to_bytes(2, "little") + _PREFIX + digest.encode())


def _digest(file: Any, count: int) -> str:
    digest = hashlib.sha256()
    while count > 0 and (block := file.read(min(count, 1 << 20))):
        digest.update(block)
        count -= len(block)
    return digest.hexdigest()


def _not_finite(checkpoint: Mapping[str, Any]) -> str | None:
    """Return the way to the first tensor that was learned, or is carried on, and holds NaN or infinity."""
    used = {key: checkpoint.get(key) for key in ("state_dict", "optimizer_states")}
    # a metric's state may begin at infinity; what a backbone remembers never holds it
    if isinstance(own := checkpoint.get("rimlit"), Mapping):
        used["rimlit"] = {"carried": own.get("carried")}
    for name, tensor in _tensors(used):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            return name
    return None


def _is_carried(value: Any) -> bool:
    """Whether it is a state that a task may carry on: for each process its tensors, or None."""
    if not isinstance(value, list):
        return value is None
    states = [state for state in value if state is not None]
    return all(
        isinstance(state, list) and state and all(isinstance(part, Tensor) and part.ndim for part in state)
        for state in states
    )


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor inside nested mappings and sequences with the way to it."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _tensors(inner, f"{name}.{index}")
