"""A setting that is tuned for each model, often its learning rate: its values, and which is best in validation."""

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from rimlit.errors import ConfigError
from rimlit.tracking.run_folder import RunFolder

SHORT = {"lr": "model.optimizer.init_args.lr"}
"""Settings that have a short name."""

EXAMPLE = "such as lr=0.001,0.003,0.01"

Value = TypeVar("Value", bound=Hashable)


class Grid(NamedTuple):
    """A setting and the values it is tried at."""

    setting: str
    values: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The last part of the setting."""
        return self.setting.rpartition(".")[2]

    @property
    def changes_model(self) -> bool:
        """Whether the values may lead to models of different sizes."""
        return self.setting.startswith("model.") and not self.setting.startswith(
            ("model.optimizer", "model.scheduler", "model.init_args.optimizer", "model.init_args.scheduler")
        )

    def label(self, value: Any) -> str:
        """Return what tells a value's runs apart by their names."""
        return re.sub(r"[^\w.+-]", "_", f"{self.name}-{value}")


def read_grid(given: Any, whose: str = "") -> Grid:
    """Return a grid from a mapping of one setting to its values.

    Args:
        given: ``{"lr": [0.001, 0.003]}``.
        whose: What the messages begin with.

    Raises:
        ConfigError: It is something else, or has a setting or value that cannot be tuned.
    """
    if not isinstance(given, Mapping) or len(given) != 1:
        raise ConfigError(f"{whose}tune must hold one setting and its values, {EXAMPLE}; got tune={given!r}.")
    ((name, values),) = given.items()
    key = str(name)
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ConfigError(f"{whose}tune must give {key} a list of values, {EXAMPLE}; got {key}={values!r}.")
    grid = Grid(SHORT.get(key, key), tuple(values))
    path = grid.setting.replace(".init_args", "")
    if not path.startswith(("model.", "trainer.")) and path != "data.batch_size":
        raise ConfigError(
            f"{whose}tune must name lr, data.batch_size, or a setting that begins with model. or trainer., "
            f"{EXAMPLE}; got {key!r}."
        )
    if not all(isinstance(value, str | int | float) and str(value) for value in values):
        raise ConfigError(f"{whose}tune must give {key} numbers or words as values; got {key}={list(values)!r}.")
    if len(values) < 2 or len({grid.label(value) for value in values}) < len(values):
        raise ConfigError(f"{whose}tune must give {key} two or more different values; got {key}={list(values)!r}.")
    wrong = [value for value in values if grid.setting == SHORT["lr"] and not _is_rate(value)]
    if wrong:
        raise ConfigError(f"{whose}tune must give {key} numbers above 0; got {key}={wrong[0]!r}.")
    return grid


def _is_rate(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def require_same_budget(grids: Mapping[str, Grid | None]) -> None:
    """Refuse to give models different numbers of values to try.

    Args:
        grids: Grids by the name of their config.

    Raises:
        ConfigError: The grids have different lengths, or a model has none while another has one.
    """
    lengths = {name: 0 if grid is None else len(grid.values) for name, grid in grids.items()}
    if len(set(lengths.values())) > 1:
        counted = ", ".join(f"{name} {length or 'none'}" for name, length in lengths.items())
        raise ConfigError(
            f"tune must give every model as many values; got {counted}. --tune holds for the configs without a "
            "grid of their own."
        )


def best_value(scores: Mapping[Value, float | None], *, higher_is_better: bool) -> Value | None:
    """Return the value of the best score, the first of equal ones; None where no score is a number.

    Args:
        scores: Scores by value, None where the training diverged.
        higher_is_better: Whether the best is the highest.

    Example:
        >>> best_value({0.001: 0.5, 0.003: 0.25, 0.01: None}, higher_is_better=False)
        0.003
    """
    finite = {value: score for value, score in scores.items() if score is not None and math.isfinite(score)}
    sign = -1 if higher_is_better else 1
    return min(finite, key=lambda value: sign * finite[value], default=None)


@dataclass
class Tuning:
    """One seed at each value of a grid.

    Args:
        grid: The setting and its values.
        seed: The seed.
        folders: The folder of the run at each value.
    """

    grid: Grid
    seed: int
    folders: list[RunFolder]

    def validations(self) -> dict[Any, dict[str, Any]]:
        """Return the best validation of each run that has ended, by value: ``metric``, ``score`` and direction.

        It is that by which the run's checkpoint is chosen. The score of a training that diverged is None.
        """
        found = {}
        for value, folder in zip(self.grid.values, self.folders, strict=True):
            if folder.has_diverged():
                found[value] = {"score": None}
            elif folder.is_finished() and (validation := folder.best_validation()) is not None:
                found[value] = validation
        return found

    def is_over(self) -> bool:
        """Return whether the run at each value has ended."""
        return len(self.validations()) == len(self.grid.values)

    def best(self) -> Any:
        """Return the value that is best in validation; None before all have been tried, and where all diverged."""
        return self.report()["best"]

    def report(self) -> dict[str, Any]:
        """Return what is recorded: setting, seed, metric, the score of each value so far, and the best value."""
        found = self.validations()
        known = next((validation for validation in found.values() if "metric" in validation), {})
        is_higher = bool(known.get("higher_is_better"))
        scores = {value: validation["score"] for value, validation in found.items()}
        is_over = len(found) == len(self.grid.values)
        return {
            "setting": self.grid.setting,
            "values": list(self.grid.values),
            "seed": self.seed,
            "metric": known.get("metric"),
            "higher_is_better": is_higher,
            "tried": [{"value": value, "score": score} for value, score in scores.items()],
            "best": best_value(scores, higher_is_better=is_higher) if is_over else None,
        }


def tuning_notes(model: str, report: Mapping[str, Any]) -> list[str]:
    """Return in words what :meth:`Tuning.report` says of a model: its best value, each score, a best at an end.

    Example:
        >>> tried = [{"value": 0.001, "score": 0.5}, {"value": 0.003, "score": None}]
        >>> report = {"setting": "model.optimizer.init_args.lr", "metric": "val/loss", "seed": 0}
        >>> for note in tuning_notes("rim", {**report, "tried": tried, "values": [0.001, 0.003], "best": 0.001}):
        ...     print(note)
        rim has lr 0.001. Best val/loss of seed 0: 0.5 at 0.001, diverged at 0.003.
        The best lr of rim is the smallest of its grid: give smaller ones.
    """
    best, values = report["best"], report["values"]
    name = report["setting"].rpartition(".")[2]
    scores = ", ".join(
        f"{'diverged' if trial['score'] is None else format(trial['score'], '.4g')} at {trial['value']}"
        for trial in report["tried"]
    )
    found = f"has {name} {best}" if best is not None else f"has no best {name} yet"
    if best is None and len(report["tried"]) == len(values):
        found = f"diverged at every {name} of its grid"
    notes = [f"{model} {found}. Best {report['metric']} of seed {report['seed']}: {scores or 'none yet'}."]
    if best is not None and all(type(value) in (int, float) for value in values):
        for end, more, is_there in (
            ("largest", "larger", best == max(values)),
            ("smallest", "smaller", best == min(values)),
        ):
            if is_there:
                notes.append(f"The best {name} of {model} is the {end} of its grid: give {more} ones.")
    return notes
