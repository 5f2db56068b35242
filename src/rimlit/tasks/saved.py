"""A task from what a file holds of it: built, then given its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from rimlit.errors import CheckpointError, ConfigError
from rimlit.nn.resizing import resize_weights
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


def fit_mechanisms(task: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a task for one whose backbone has another number of mechanisms.

    Args:
        task: The task that is to get the weights.
        weights: The state dict of the task as it was trained.

    Raises:
        ConfigError: Weights belong to one mechanism each, or the head has weights for each mechanism.
    """
    before, heads = (
        {key.removeprefix(part): value for key, value in weights.items() if str(key).startswith(part)}
        for part in ("backbone.", "head.")
    )
    adapted = task.backbone.adapt_weights(before)
    if all(adapted[key] is before[key] for key in before):
        return dict(weights)
    heads = resize_weights(task.head, heads)
    for key, value in task.head.state_dict().items():
        if key in heads and heads[key].shape != value.shape:
            raise ConfigError(
                f"num_mechanisms={task.backbone.num_mechanisms} needs a head that reads any number of mechanisms, "
                f"such as AttentionHead, MixtureHead or SlotMixtureHead; got {type(task.head).__name__}, whose "
                f"{key} was trained with shape {tuple(heads[key].shape)} and would have {tuple(value.shape)}."
            )
    parts = (("backbone", adapted), ("head", heads))
    return {**weights, **{f"{name}.{key}": value for name, part in parts for key, value in part.items()}}
