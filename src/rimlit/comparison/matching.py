"""The width at which a model is as large as another one."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from rimlit.backbones import Backbone, BackboneFactory
from rimlit.checks import require_at_least, require_known
from rimlit.errors import ConfigError, SpecError
from rimlit.spec import Spec, build, find_class, to_spec
from rimlit.tasks import Task
from rimlit.tracking.recording import sizes_of

Measure: TypeAlias = Literal["params", "flops", "state"]
MEASURES = {"params": "parameters", "flops": "flops_per_step", "state": "state_size"}
WORDS = {"params": "parameters", "flops": "FLOPs a step", "state": "state values"}
TOLERANCE = 0.05
TRIES = 1024  # widths tried upwards until one can be built: a RIM takes multiples of its mechanisms only


@dataclass(frozen=True)
class Match:
    """A width and what it leads to.

    Args:
        width: The width found.
        size: Size of the model at that width, in units of ``measure``.
        target: The size aimed at.
        measure: What was compared.
        model: The task or backbone of that width, freshly built.
    """

    width: int
    size: int
    target: int
    measure: Measure
    model: Any

    @property
    def difference(self) -> float:
        """How much larger than the target it is, as a share of the target."""
        return (self.size - self.target) / self.target

    def __str__(self) -> str:
        """Say what was found."""
        return (
            f"hidden_size={self.width}: {self.size:,} {WORDS[self.measure]}, {100 * self.difference:.2f} % more "
            f"than {self.target:,}"
        )


def match_parameters(
    model: Task | BackboneFactory | Spec,
    to: Task | Backbone | int,
    *,
    measure: Measure = "params",
    input_size: int | None = None,
    tolerance: float = TOLERANCE,
) -> Match:
    """Find the smallest ``hidden_size`` at which ``model`` is no smaller than ``to``.

    Whole tasks are compared with whole tasks, embedding and head included: what a wider backbone asks of the head
    counts too.

    Args:
        model: A task, whose backbone's width is varied; or a factory of a backbone, with ``input_size``.
        to: What to be as large as: a task or a backbone, as ``model`` is, or a number.
        measure: ``params``: parameters. ``flops``: multiplications and additions of backbone and head in one step
            of one sequence. ``state``: numbers carried from step to step.
        input_size: Features of each step that a backbone reads.
        tolerance: How much larger than ``to`` the result may be, as a share of it, at least 0.

    Returns:
        The width, the size it gives, and the model of that width.

    Raises:
        ConfigError: ``measure`` is unknown, a task meets a backbone, no width can be built, the size does not grow
            with the width, or the smallest width with no less is too large by more than ``tolerance``.

    Example:
        >>> from functools import partial
        >>> from rimlit import LSTM, RIM
        >>> rim = RIM(64, 384, num_mechanisms=6, num_active=4)
        >>> match = match_parameters(LSTM, rim, input_size=64)
        >>> match.width, match.size, match.target
        (397, 735244, 734720)
        >>> print(match_parameters(partial(RIM, num_mechanisms=6), 100_000, input_size=64, tolerance=0.2))
        hidden_size=102: 102,288 parameters, 2.29 % more than 100,000
    """
    require_known(match=(measure, MEASURES))
    require_at_least(0, match_tolerance=tolerance)
    spec = model.spec if isinstance(model, Task) else to_spec(model, "model")
    is_task = issubclass(find_class(spec["class_path"], nn.Module), Task)
    if not isinstance(to, int) and isinstance(to, Task) is not is_task:
        raise ConfigError(
            "A task is matched to a task and a backbone to a backbone, as embedding and head count; "
            f"got {spec['class_path'].split('.')[-1]} and {type(to).__name__}."
        )
    target = to if isinstance(to, int) else size_of(to, measure)
    make, name = _maker(spec, is_task, input_size)
    with torch.random.fork_rng(devices=[]):  # matching draws weights that are never trained
        return _solve(make, name, target, measure, tolerance)


def size_of(model: Task | Backbone, measure: Measure) -> int:
    """Return the size of a task or of a backbone alone.

    Raises:
        ConfigError: It cannot be measured.
    """
    if isinstance(model, Task):
        size = sizes_of(model)[MEASURES[measure]]
        if size is None:
            raise ConfigError(f"The {WORDS[measure]} of {type(model).__name__} cannot be counted.")
        return size
    if measure == "params":
        return sum(parameter.numel() for parameter in model.parameters())
    return model.flops_per_step() if measure == "flops" else model.state_size()


def _maker(spec: Spec, is_task: bool, input_size: int | None) -> tuple[Callable[[int], Task | Backbone], str]:
    """Return what builds the model of ``spec`` at a width, and its backbone's name."""
    if is_task:
        backbone = to_spec(spec["init_args"]["backbone"], "backbone")

        def make_task(width: int) -> Task:
            arguments = {**spec["init_args"], "backbone": _widened(backbone, width)}
            task: Task = build({**spec, "init_args": arguments}, Task)
            return task

        return make_task, backbone["class_path"].split(".")[-1]
    if input_size is None:
        raise ConfigError("input_size must be given to match a backbone by itself; got input_size=None.")

    def make_backbone(width: int) -> Backbone:
        made: Backbone = build(_widened(spec, width), Backbone, input_size)
        return made

    return make_backbone, spec["class_path"].split(".")[-1]


def _widened(backbone: Spec, width: int) -> Spec:
    return {**backbone, "init_args": {**backbone["init_args"], "hidden_size": width}}


def _solve(
    make: Callable[[int], Task | Backbone], name: str, target: int, measure: Measure, tolerance: float
) -> Match:
    refused: set[int] = set()

    @functools.cache
    def at(width: int) -> tuple[int, int]:
        """Return the smallest width from ``width`` on that can be built, and its size."""
        refusal: ValueError | None = None
        for tried in range(width, width + TRIES):
            if tried in refused:
                continue
            try:
                made = make(tried)
            except SpecError:  # not about the width
                raise
            except ValueError as error:
                refused.add(tried)
                refusal = refusal or error
                continue
            return tried, size_of(made, measure)
        raise ConfigError(
            f"{name} cannot be built at any hidden_size from {width} to {width + TRIES - 1}: {refusal}"
        ) from refusal

    low, high = 0, 1  # low is too small
    while at(high)[1] < target:
        if high >= 64 and at(high)[1] == at(high // 16)[1]:
            raise ConfigError(
                f"{name} has {at(high)[1]:,} {WORDS[measure]} at any hidden_size; {target:,} cannot be matched."
            )
        low = at(high)[0]
        high = 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        size = at(middle)[1]
        low, high = (middle, high) if size < target else (low, middle)
    width, size = at(high)
    found = Match(width, size, target, measure, make(width))
    if found.difference > tolerance:
        enough = math.ceil(100 * found.difference) / 100
        raise ConfigError(
            f"{name} does not come within {100 * tolerance:g} % of {target:,} {WORDS[measure]}: the smallest "
            f"width with no fewer is {found}. Allow it with match_tolerance={enough:g}."
        )
    return found
