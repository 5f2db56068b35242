"""The task in a checkpoint or an exported folder."""

from pathlib import Path
from typing import Any

from rimlit.tasks.base import Task
from rimlit.tasks.exporting import checkpoint_in, load_exported


def load_checkpoint(path: str | Path, **kwargs: Any) -> Task:
    """Load the task that a checkpoint names, in evaluation mode.

    Args:
        path: A checkpoint, a folder that ``rimlit export`` wrote, or a run's folder, of which the best checkpoint
            is taken, or the last where nothing was validated.
        **kwargs: For a checkpoint; see :meth:`Task.load_from_checkpoint`.
    """
    if Path(path).is_dir():
        if not (Path(path) / "checkpoints").is_dir():
            return load_exported(path)
        path = checkpoint_in(Path(path))
    return Task.load_from_checkpoint(path, **kwargs)
