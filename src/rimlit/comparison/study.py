"""Several datasets, several models, several seeds: interquartile means, who is better how often, profiles.

Runs of different datasets are put on one scale: 0 is the floor of the dataset (the worst run where it has none), 1
its best run of any model. A run's score is the mean over the groups of its test, as groups share a training.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from rich.table import Table
from rich.text import Text

from rimlit.comparison.figures import draw_intervals, draw_profiles
from rimlit.comparison.results import Comparison
from rimlit.comparison.scores import floor_of
from rimlit.comparison.statistics import (
    Interval,
    Profile,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)
from rimlit.errors import DataError
from rimlit.files import encode_png, write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Scores = dict[str, dict[int, float]]
"""Scores of one dataset, by model and seed."""


class Study:
    """The runs of one or more comparisons on one scale.

    Args:
        comparisons: What each holds, one per dataset. The first metric of each is taken, and the models that all
            of them have.

    Raises:
        DataError: A metric has no direction, or no model has a run in each comparison.

    Example:
        >>> sizes = {"parameters": 10, "active_parameters": 10, "flops_per_step": 20, "state_size": 4}
        >>> def runs(*losses):
        ...     return {**sizes, "runs": [{"seed": k, "test": {"loss": x}} for k, x in enumerate(losses)]}
        >>> comparison = Comparison(
        ...     {
        ...         "dataset": "mine",
        ...         "metrics": ["loss"],
        ...         "higher_is_better": {"loss": False},
        ...         "floors": {"loss": 1.0},
        ...         "models": {"rim": runs(0.0, 0.25), "lstm": runs(0.5, 0.25)},
        ...     }
        ... )
        >>> study = Study([comparison])
        >>> study.scores["mine"]["lstm"]
        {0: 0.5, 1: 0.75}
        >>> study.mean("rim").value, study.improvement("rim", "lstm").value
        (0.875, 0.75)
    """

    def __init__(self, comparisons: Sequence[Comparison]) -> None:
        self.scores: dict[str, Scores] = {}
        self.metrics: dict[str, str] = {}
        for comparison in comparisons:
            name = _name(comparison, taken=self.scores)
            self.metrics[name] = comparison.results["metrics"][0]
            self.scores[name] = scores_of(comparison)
        by_task = list(self.scores.values())
        everywhere = [
            model for model in (by_task[0] if by_task else {}) if all(each.get(model) for each in by_task)
        ]
        if not everywhere:
            raise DataError(f"No model has finished runs in each of {', '.join(self.scores) or 'no comparison'}.")
        self.models = everywhere
        self.left_out = sorted({model for each in by_task for model in each} - set(everywhere))

    @classmethod
    def load(cls, folders: Sequence[str | Path]) -> Self:
        """Load the comparisons in ``folders``.

        Raises:
            DataError: A folder is given twice or holds none, or they cannot be put together.
        """
        for index, folder in enumerate(folders):
            if any(Path(folder).resolve() == Path(other).resolve() for other in folders[:index]):
                raise DataError(f"{folder} is given twice.")
        return cls([Comparison.load(folder) for folder in folders])

    def by_task(self, model: str) -> list[dict[int, float]]:
        """Return a model's scores on the common scale by seed, one mapping per dataset."""
        return [each[model] for each in self.scores.values()]

    def mean(self, model: str) -> Interval:
        """Return a model's interquartile mean over datasets and seeds."""
        return interquartile_mean([list(each.values()) for each in self.by_task(model)])

    def improvement(self, first: str, second: str) -> Interval | None:
        """Return how often the first model is better than the second with the same seed; None without one."""
        return probability_of_improvement(self.by_task(first), self.by_task(second))

    def profile(self, model: str) -> Profile:
        """Return the share of a model's runs above each threshold from the worst run's score to 1."""
        every = [score for each in self.scores.values() for runs in each.values() for score in runs.values()]
        least = min([0.0, *(score for score in every if math.isfinite(score))])
        thresholds = np.linspace(least, 1, 51).tolist()
        return performance_profile([list(each.values()) for each in self.by_task(model)], thresholds)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One flat dict per model: runs, interquartile mean and its interval, and against the first model."""
        first = self.models[0]
        rows = []
        for model in self.models:
            mean, better = self.mean(model), self.improvement(model, first)
            row = {"model": model, "runs": sum(map(len, self.by_task(model)))}
            row |= {"iqm": mean.value, "iqm_low": mean.low, "iqm_high": mean.high}
            is_other = model != first and better is not None
            row |= {
                f"better_than_{first}{end}": getattr(better, name) if is_other else None
                for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))
            }
            rows.append(row)
        return rows

    def header(self) -> list[str]:
        """Return the table's columns."""
        return ["model", "runs", "interquartile mean", f"better than {self.models[0]}"]

    def body(self) -> list[list[str]]:
        """Return the table's rows."""
        first = self.models[0]
        return [
            [
                model,
                str(sum(map(len, self.by_task(model)))),
                _written(self.mean(model)),
                "–" if model == first else _written(self.improvement(model, first)),
            ]
            for model in self.models
        ]

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [self.header(), ["---"] * len(self.header()), *self.body()]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def rich(self) -> Table:
        """Return the table for the terminal."""
        table = Table()
        for index, column in enumerate(self.header()):
            table.add_column(column, justify="right" if index else "left")
        for line in self.body():
            table.add_row(*map(Text, line))
        return table

    def notes(self) -> list[str]:
        """Return what a reader of the table must know."""
        shown = ", ".join(f"{name} ({metric.replace('_', ' ')})" for name, metric in self.metrics.items())
        notes = [
            f"Over {shown}: interquartile mean of all runs, 0 at the floor (or the worst run) and 1 at the best "
            "run, mean over the groups of a test. 'Better than' is the probability that a run is better than that "
            "model's with the same seed; a tie counts one half.",
            "Brackets: 95 % intervals by bootstrap, in which each dataset's seeds are drawn again; none with a "
            "single seed. Of fewer than four runs the interquartile mean is the mean.",
        ]
        if self.left_out:
            notes.append(f"Left out, as they have no finished run in a dataset: {', '.join(self.left_out)}.")
        return notes

    def report(self) -> dict[str, Any]:
        """Return everything as plain data: scores, interquartile means, all pairs, profiles."""
        return {
            "metrics": self.metrics,
            "models": self.models,
            "left_out": self.left_out,
            "scores": {
                task: {model: {str(seed): score for seed, score in each[model].items()} for model in self.models}
                for task, each in self.scores.items()
            },
            "interquartile_mean": {model: self.mean(model)._asdict() for model in self.models},
            "probability_of_improvement": {
                model: {
                    other: better._asdict()
                    for other in self.models
                    if other != model and (better := self.improvement(model, other)) is not None
                }
                for model in self.models
            },
            "profiles": {model: self.profile(model)._asdict() for model in self.models},
            "notes": self.notes(),
        }

    def figures(self) -> dict[str, "Figure"]:
        """Return ``profile``, runs above each score, and ``intervals``, interquartile means."""
        return {
            "profile": draw_profiles({model: self.profile(model) for model in self.models}),
            "intervals": draw_intervals(
                {model: self.mean(model) for model in self.models},
                {model: [x for each in self.by_task(model) for x in each.values()] for model in self.models},
            ),
        }

    def save(self, folder: Path) -> None:
        """Write ``statistics.json``, ``statistics.md`` and two figures.

        Raises:
            StorageError: The folder cannot be written.
        """
        write_file(folder / "statistics.json", json.dumps(self.report(), indent=2) + "\n")
        notes = "\n".join(f"- {note}" for note in self.notes())
        write_file(folder / "statistics.md", f"{self.markdown()}\n{notes}\n")
        for name, figure in self.figures().items():
            write_file(folder / "figures" / f"{name}.png", encode_png(figure))


def study_of(comparison: Comparison) -> Study | None:
    """Return the statistics of one comparison; None where no model has two runs or no direction is known."""
    results = comparison.results
    metrics = results["metrics"][:1]
    if not metrics or results["higher_is_better"].get(metrics[0]) is None or not comparison.score_names:
        return None
    return Study([comparison]) if any(len(facts["runs"]) > 1 for facts in comparison.models.values()) else None


def scores_of(comparison: Comparison) -> Scores:
    """Return the scores of each model's runs by seed, 0 at the floor and 1 at the best run.

    Raises:
        DataError: It is not known whether a high or a low score is better.
    """
    results = comparison.results
    metric = results["metrics"][0]
    is_higher = results["higher_is_better"].get(metric)
    if is_higher is None:
        raise DataError(f"{results['dataset']}: it is not known whether a high or a low {metric} is better.")
    sign = 1 if is_higher else -1
    names = [name for name in comparison.score_names if name.rpartition("/")[2] == metric]
    parts: dict[str, dict[int, list[float]]] = {model: {} for model in comparison.models}
    for name in names:
        values = {
            (model, run["seed"]): sign * run["test"][name]
            for model, facts in comparison.models.items()
            for run in facts["runs"]
            if name in run["test"]
        }
        floor = floor_of(results["floors"], name)
        for (model, seed), share in _scaled(values, None if floor is None else sign * floor).items():
            parts[model].setdefault(seed, []).append(share)
    return {
        model: {seed: float(np.mean(shares)) for seed, shares in by_seed.items()}
        for model, by_seed in parts.items()
    }


def _scaled(values: Mapping[tuple[str, int], float], floor: float | None) -> dict[tuple[str, int], float]:
    """Return values, of which higher ones are better, as shares of the way from the floor to the best."""
    known = [value for value in values.values() if math.isfinite(value)]
    best, worst = max(known, default=0.0), min(known, default=0.0)
    start = worst if floor is None or floor >= best else floor
    width = best - start
    return {key: (value - start) / width if width else 1.0 for key, value in values.items()}


def _name(comparison: Comparison, taken: Mapping[str, Any]) -> str:
    """Return a comparison's name: its dataset, or dataset and folder where another one has that name."""
    name: str = comparison.results["dataset"]
    if name in taken and comparison.folder is not None:
        name = f"{name}/{comparison.folder.name}"
    if name in taken:
        raise DataError(f"Two comparisons are called {name}: give each once.")
    return name


def _written(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    value, low, high = (None if part is None else f"{round(part, 2) + 0.0:.2f}" for part in interval)  # no -0.00
    return f"{value}" if low is None else f"{value} [{low}, {high}]"
