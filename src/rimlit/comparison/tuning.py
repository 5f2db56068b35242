"""Trials of a model's settings with one seed: a grid, or any search. The best in validation is compared."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from rimlit.errors import ConfigError
from rimlit.tracking.run_folder import RunFolder

SHORT = {"lr": "model.optimizer.init_args.lr", "model.optimizer.lr": "model.optimizer.init_args.lr"}
"""Settings that have a short name."""

EXAMPLE = "such as lr=0.001,0.003,0.01"

Value = TypeVar("Value", bound=Hashable)


def full_setting(key: str) -> str:
    """Return the full name of a setting that may have a short one."""
    return SHORT.get(key, key)


def require_tunable(setting: str, key: str, whose: str, example: str) -> None:
    """Refuse a setting that is not the model's or the trainer's.

    Raises:
        ConfigError: It is another one.
    """
    path = setting.replace(".init_args", "")
    if not path.startswith(("model.", "trainer.")) and path != "data.batch_size":
        raise ConfigError(
            f"{whose} must name lr, data.batch_size, or a setting that begins with model. or trainer., "
            f"{example}; got {key!r}."
        )


def changes_model(settings: Sequence[str]) -> bool:
    """Return whether the values of settings may lead to models of different sizes."""
    optimization = ("model.optimizer", "model.scheduler", "model.init_args.optimizer", "model.init_args.scheduler")
    return any(each.startswith("model.") and not each.startswith(optimization) for each in settings)


class Grid(NamedTuple):
    """A setting and the values it is tried at."""

    setting: str
    values: tuple[Any, ...]

    @property
    def name(self) -> str:
        """The last part of the setting."""
        return self.setting.rpartition(".")[2]

    def label(self, value: Any) -> str:
        """Return what distinguishes a value's runs by name."""
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
    grid = Grid(full_setting(key), tuple(values))
    require_tunable(grid.setting, key, f"{whose}tune", EXAMPLE)
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


def require_same_budget(budgets: Mapping[str, int]) -> None:
    """Refuse to give models different numbers of trials.

    Args:
        budgets: Trials by the name of their config, 0 without any.

    Raises:
        ConfigError: They differ.
    """
    if len(set(budgets.values())) > 1:
        counted = ", ".join(f"{name} {budget or 'none'}" for name, budget in budgets.items())
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


class Trial(NamedTuple):
    """Values of the settings that are searched, and what distinguishes their runs by name."""

    label: str
    values: dict[str, Any]


class Outcome(NamedTuple):
    """How a trial ended: ``finished``, ``pruned``, ``diverged`` or ``refused``; the score of a finished one."""

    ended: str
    score: float | None = None
    metric: str | None = None
    higher_is_better: bool = False


class Search(ABC):
    """The trials of one model, each a run with the first seed.

    Args:
        seed: The seed.
        folder_of: Returns the folder of a trial's run, given the trial's label.
    """

    def __init__(self, seed: int, folder_of: Callable[[str], RunFolder]) -> None:
        self.seed = seed
        self.folder_of = folder_of
        self.trials: list[Trial] = []

    @property
    @abstractmethod
    def budget(self) -> int:
        """How many trials there will be."""

    @property
    @abstractmethod
    def settings(self) -> tuple[str, ...]:
        """The full names of the settings that are searched."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return as plain data what is searched, by setting."""

    def open(self) -> None:  # noqa: B027, a grid has nothing to note
        """Restore the trials of an earlier search; called once, by the only process that uses it."""

    def ask(self) -> Trial | None:
        """Choose one more trial; None where all have been chosen."""
        return None

    def is_hopeless(self, trial: Trial) -> bool:
        """Return whether a trial that runs is to be stopped."""
        return False

    def refuse(self, trial: Trial, reason: str) -> None:  # noqa: B027, a grid has nothing to note
        """Take note of a trial whose values make no model."""

    def note_end(self, trial: Trial) -> None:  # noqa: B027, a grid has nothing to note
        """Take note of a trial whose run has ended."""

    def outcome(self, trial: Trial) -> Outcome | None:
        """Return how a trial ended, None before its end.

        The score is the best validation of the run: what its checkpoint is chosen by.
        """
        folder = self.folder_of(trial.label)
        if folder.has_diverged():
            return Outcome("diverged")
        if folder.is_finished() and (found := folder.best_validation()) is not None:
            return Outcome("finished", found["score"], found["metric"], bool(found.get("higher_is_better")))
        return None

    def outcomes(self) -> dict[str, Outcome]:
        """Return how each trial ended that has ended, by label."""
        found = ((trial.label, self.outcome(trial)) for trial in self.trials)
        return {label: outcome for label, outcome in found if outcome is not None}

    def is_over(self) -> bool:
        """Return whether all trials have ended."""
        return len(self.trials) >= self.budget and len(self.outcomes()) == len(self.trials)

    def best(self) -> Trial | None:
        """Return the trial that is best in validation; None before the end, and where none has a score."""
        outcomes = self.outcomes()
        if len(self.trials) < self.budget or len(outcomes) < len(self.trials):
            return None
        is_higher = any(outcome.higher_is_better for outcome in outcomes.values())
        label = best_value({k: outcome.score for k, outcome in outcomes.items()}, higher_is_better=is_higher)
        return next((trial for trial in self.trials if trial.label == label), None)

    def report(self) -> dict[str, Any]:
        """Return what is recorded: what is searched, seed, metric, each trial so far, and the best values."""
        outcomes, best = self.outcomes(), self.best()
        known = next((each for each in outcomes.values() if each.metric is not None), Outcome("finished"))
        return {
            "space": self.describe(),
            "trials": self.budget,
            "seed": self.seed,
            "metric": known.metric,
            "higher_is_better": known.higher_is_better,
            "tried": [
                {"label": trial.label, "values": trial.values, **_entry(outcomes[trial.label])}
                for trial in self.trials
                if trial.label in outcomes
            ],
            "best": None if best is None else best.values,
        }


def _entry(outcome: Outcome) -> dict[str, Any]:
    return {"score": outcome.score, "ended": outcome.ended}


class GridSearch(Search):
    """A trial at each value of a grid.

    Args:
        grid: The setting and its values.
        seed: The seed.
        folder_of: Returns the folder of a trial's run, given the trial's label.
    """

    def __init__(self, grid: Grid, seed: int, folder_of: Callable[[str], RunFolder]) -> None:
        super().__init__(seed, folder_of)
        self.grid = grid
        self.trials = [Trial(grid.label(value), {grid.setting: value}) for value in grid.values]

    @property
    def budget(self) -> int:
        """How many values there are."""
        return len(self.grid.values)

    @property
    def settings(self) -> tuple[str, ...]:
        """The setting."""
        return (self.grid.setting,)

    def describe(self) -> dict[str, Any]:
        """Return the values of the setting."""
        return {self.grid.setting: {"choice": list(self.grid.values)}}


def short_names(settings: Sequence[str]) -> dict[str, str]:
    """Return the last part of each setting's name, or the whole name where two have the same last part."""
    last = {setting: setting.rpartition(".")[2] for setting in settings}
    return {
        setting: name if list(last.values()).count(name) == 1 else setting.replace(".init_args", "")
        for setting, name in last.items()
    }


def tuning_notes(model: str, report: Mapping[str, Any]) -> list[str]:
    """Return in words what :meth:`Search.report` says of a model: best values, scores, a best at an end.

    Example:
        >>> lr = "model.optimizer.init_args.lr"
        >>> tried = [
        ...     {"values": {lr: 0.001}, "score": 0.5, "ended": "finished"},
        ...     {"values": {lr: 0.003}, "score": None, "ended": "diverged"},
        ... ]
        >>> report = {"space": {lr: {"choice": [0.001, 0.003]}}, "trials": 2, "metric": "val/loss", "seed": 0}
        >>> for note in tuning_notes("rim", {**report, "tried": tried, "best": {lr: 0.001}}):
        ...     print(note)
        rim has lr 0.001. Best val/loss of seed 0: 0.5 at 0.001, diverged at 0.003.
        The best lr of rim is the smallest of its grid: give smaller ones.
    """
    best, tried, names = report["best"], report["tried"], short_names(list(report["space"]))
    words = " and ".join(names.values())
    if best is not None:
        found = "has " + ", ".join(f"{names[setting]} {short_value(value)}" for setting, value in best.items())
    elif len(tried) == report["trials"]:
        found = f"diverged at every {words} of its grid" if len(names) == 1 else "has no trial with a score"
    else:
        found = f"has no best {words} yet"
    is_grid = len(names) == 1 and "choice" in next(iter(report["space"].values()))
    if is_grid:
        scores = ", ".join(
            f"{trial['ended'] if trial['score'] is None else format(trial['score'], '.4g')} at {value}"
            for trial in tried
            for value in trial["values"].values()
        )
        notes = [f"{model} {found}. Best {report['metric']} of seed {report['seed']}: {scores or 'none yet'}."]
    else:
        counts = {ended: sum(trial["ended"] == ended for trial in tried) for ended in ENDINGS}
        counted = ", ".join(f"{count} {ended}" for ended, count in counts.items() if count)
        score = _best_score(report)
        shown = "" if score is None else f" Best {report['metric']} of seed {report['seed']}: {score:.4g}."
        notes = [f"{model} {found}. {len(tried)} of {report['trials']} trials: {counted or 'none ended'}.{shown}"]
    if best is not None:
        notes += [
            f"The best {names[setting]} of {model} is {end} of its {kind}: give {more} ones."
            for setting, value in best.items()
            for end, more, kind in _ends(report["space"][setting], value)
        ]
    return notes


ENDINGS = ("finished", "pruned", "diverged", "refused")
"""How trials end."""


def _best_score(report: Mapping[str, Any]) -> float | None:
    scores = [trial["score"] for trial in report["tried"] if trial["score"] is not None]
    return (max if report["higher_is_better"] else min)(scores) if scores and report["best"] is not None else None


def _ends(described: Mapping[str, Any], value: Any) -> list[tuple[str, str, str]]:
    """Return at which ends of its values or range a value lies: which end, what to give more of, of what."""
    ((kind, values),) = described.items()
    if kind == "choice":
        if not all(type(each) in (int, float) for each in values):
            return []
        places = (
            ("the largest", "larger", value == max(values)),
            ("the smallest", "smaller", value == min(values)),
        )
        return [(end, more, "grid") for end, more, is_there in places if is_there]
    low, high, at = (math.log(x) if kind.startswith("log_") else x for x in (*values, value))
    share = (at - low) / (high - low)
    places = (("near the largest", "larger", share > 0.95), ("near the smallest", "smaller", share < 0.05))
    return [(end, more, "range") for end, more, is_there in places if is_there]


def short_value(value: Any) -> str:
    """Return a tuned value to be read: a number with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
