"""Start from the weights of another run: fine-tuning."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor

from rimlit.checkpoints import kept_checkpoint, read_checkpoint
from rimlit.data import DataModule
from rimlit.errors import CheckpointError
from rimlit.files import sha256_of
from rimlit.tasks.base import Task
from rimlit.tasks.exporting import CONFIG, WEIGHTS, load_exported

log = logging.getLogger(__name__)

SHOWN = 3
"""Names of tensors that a line lists; of more it gives the number."""


def initialize(task: Task, source: str | Path, data: DataModule | None = None) -> dict[str, Any]:
    """Copy into ``task`` the weights of ``source`` that fit by name and shape, and log what does not fit.

    Nothing else is taken: no optimiser, step, epoch or state of the data.

    Args:
        task: What is to be trained.
        source: A checkpoint, a run's folder (its best checkpoint, or the last where nothing was validated), or a
            folder that ``rimlit export`` wrote.
        data: Its data module; a state that differs from the one in ``source``, such as another vocabulary, is
            logged.

    Returns:
        The file, its SHA-256, and how many tensors were taken.

    Raises:
        CheckpointError: There is no such file, it is damaged, or none of its tensors fits.
        ConfigError: It names a class outside the trusted packages.
    """
    path, weights, checkpoint = _read(Path(source))
    own = task.state_dict()
    there = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    fitting = {name: value for name, value in there.items() if name in own and value.shape == own[name].shape}
    if not fitting:
        first = [next(iter(names), "none") for names in (there, own)]
        raise CheckpointError(
            f"init_from={str(source)!r}: none of the {len(there)} tensors in {path} has the name and shape of one "
            f"of this task's {len(own)}. The first there is {first[0]}, the first here {first[1]}."
        )
    task.load_state_dict(fitting, strict=False)
    record = {
        "path": str(path),
        "sha256": sha256_of(path),
        "tensors": len(fitting),
        "of": len(own),
    }
    _report(record, own, there)
    state = None if data is None else checkpoint.get(type(data).__qualname__)
    if state is not None and data is not None and repr(state) != repr(data.state_dict()):
        what = f"What {type(data).__name__} derives from its data (a vocabulary, scales)"
        _say(f"{what} differs from what {path} was trained with.")
    return record


def _read(source: Path) -> tuple[Path, Mapping[str, Any], Mapping[str, Any]]:
    """Return the file that is read, its weights, and all of it where it is a checkpoint."""
    if (source / CONFIG).is_file():
        return source / WEIGHTS, load_exported(source).state_dict(), {}
    if source.is_dir():
        found = kept_checkpoint(source)
        if found is None:
            raise CheckpointError(
                f"init_from={str(source)!r} is a folder with neither checkpoints/best.ckpt, as a run has, nor "
                f"{CONFIG}, as an export has."
            )
        source = found
    checkpoint = read_checkpoint(source)
    return source, checkpoint["state_dict"], checkpoint


def _report(record: Mapping[str, Any], own: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> None:
    _say(
        f"Starting from {record['path']} (SHA-256 {record['sha256'][:12]}…): {record['tensors']} of "
        f"{record['of']} tensors."
    )
    missing = [name for name in own if name not in there]
    unexpected = [name for name in there if name not in own]
    others = [
        f"{name} {tuple(there[name].shape)} there, {tuple(own[name].shape)} here"
        for name in own
        if name in there and there[name].shape != own[name].shape
    ]
    for words, names in (
        ("Not in the file, and as initialised", missing),
        ("In the file only", unexpected),
        ("Of another shape, and as initialised", others),
    ):
        if names:
            _say(f"{words}: {_listed(names)}.")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} ({'; '.join(names[:SHOWN])}{more})"


@rank_zero_only
def _say(text: str) -> None:
    log.info(text)
