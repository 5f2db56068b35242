"""The table of the screen: scores in and out of distribution at the best rate, and mean ranks over the tasks."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.screen.runs import SEEDS, best_of, is_less_better, runs_at, settings_of, tasks
from benchmarks.tables.shared import plain

PLACES = {"inside": "In distribution", "outside": "Out of distribution"}


class Score(NamedTuple):
    """Of one model on one task, in or out of distribution."""

    mean: float
    by_seed: dict[int, float]


def score_of(name: str, task_name: str, place: str) -> Score | None:
    """Return the scores at the best rate, None before the first seed of each rate is done."""
    best = best_of(settings_of(name, task_name), task_name)
    if best is None:
        return None
    return scored({seed: run for seed, run in runs_at(best, task_name).items() if seed in SEEDS}, task_name, place)


def scored(runs: Mapping[int, dict[str, Any]], task_name: str, place: str) -> Score | None:
    """Return the scores of runs by seed, the worst there is for one that diverged; None without runs."""
    worst = math.inf if is_less_better(task_name) else -math.inf
    found = {}
    for seed, run in runs.items():
        values = [run["scores"].get(key) for key in tasks()[task_name][place]]
        found[seed] = worst if None in values else statistics.mean(values)
    return Score(statistics.mean(found.values()), found) if found else None


def ranks(names: Sequence[str], task_name: str, place: str) -> dict[str, float]:
    """Return the rank of each model that has a score, 1 for the best; equal means share a rank."""
    sign = 1 if is_less_better(task_name) else -1
    found = {name: score_of(name, task_name, place) for name in names}
    means = {name: sign * score.mean for name, score in found.items() if score is not None}
    return {
        name: 1 + sum(other < mean for other in means.values()) + (list(means.values()).count(mean) - 1) / 2
        for name, mean in means.items()
    }


def rows(names: Sequence[str], of_tasks: Sequence[str], place: str) -> list[list[str]]:
    """Return head and rows of the table of a place: scores by task, and the mean rank where all tasks are done."""
    table = [["model", *(task.replace("_", " ") for task in of_tasks), "mean rank"]]
    ranked = {task: ranks(names, task, place) for task in of_tasks}
    for name in names:
        cells = [_cell(score_of(name, task, place)) for task in of_tasks]
        own = [ranked[task][name] for task in of_tasks if name in ranked[task]]
        if own:
            mean = f"{statistics.mean(own):.1f}" if len(own) == len(of_tasks) else ""
            table.append([name, *cells, mean])
    return table


def as_text(names: Sequence[str], of_tasks: Sequence[str]) -> str:
    """Return the tables for a terminal."""
    texts = []
    for place, title in PLACES.items():
        table = rows(names, of_tasks, place)
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        texts.append("\n".join([title, *lines]))
    return "\n\n".join(texts)


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    seeds = "" if len(score.by_seed) == 3 else f" ({len(score.by_seed)})"
    return f"{plain(score.mean, 3)}{seeds}"
