"""A task from what a file holds of it: built, then given its weights."""

from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from rimlit.errors import CheckpointError, ConfigError
from rimlit.spec import Spec, build

T = TypeVar("T")


def build_saved(spec: Spec, path: str | Path, base: type[T]) -> T:
    """Build the task that a file describes, a subclass of ``base``.

    Raises:
        CheckpointError: It cannot be built.
        ConfigError: It names a class outside the trusted packages.
    """
    try:
        built: T = build(spec, base)
        return built
    except Exception as error:
        if isinstance(error, ConfigError) and "outside the trusted" in str(error):
            raise
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise CheckpointError(f"{path} describes a task that cannot be built: {reason}.") from error


def load_weights(task: nn.Module, state: dict[str, Tensor], path: str | Path, *, strict: bool = True) -> None:
    """Put the weights of a file into a task.

    Raises:
        CheckpointError: They are not those of the task.
    """
    try:
        task.load_state_dict(state, strict=strict)
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        first = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} does not hold the weights of its task: {first}") from error
