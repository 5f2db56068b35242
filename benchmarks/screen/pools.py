"""Models that are tuned over several settings each, as many as the others: variants and learning rates."""

import functools
from collections.abc import Sequence
from typing import Any

import yaml
from benchmarks.screen.runs import HERE, Run, Setting, best_of, lacking, runs_at, tasks
from benchmarks.screen.table import Score, scored

SEEDS = (0, 1, 2, 3, 4)


@functools.cache
def pools() -> dict[str, dict[str, Any]]:
    """Return the pools by name: ``is`` (a line of words) and ``of`` (lists of learning rates by variant)."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "pools.yaml").read_text())
    return found


def settings(pool: str, task_name: str) -> list[Setting]:
    """Return what a pool tries on a task."""
    task = tasks()[task_name]
    return [
        Setting(variant, rate)
        for variant, lists in pools()[pool]["of"].items()
        for name in lists
        for rate in task[name]
    ]


def best_setting(pool: str, task_name: str) -> Setting | None:
    """Return the setting whose first seed is best in validation, None until all have been tried."""
    return best_of(settings(pool, task_name), task_name)


def best_runs(pool: str, task_name: str) -> dict[int, dict[str, Any]]:
    """Return the runs of the best setting by seed, none before it is known."""
    best = best_setting(pool, task_name)
    return {} if best is None else runs_at(best, task_name)


def best_score(pool: str, task_name: str, place: str) -> Score | None:
    """Return the scores of the best setting, None before it is known."""
    return scored(best_runs(pool, task_name), task_name, place)


def wanted_by(names: Sequence[str], of_tasks: Sequence[str]) -> list[Run]:
    """Return the runs that pools lack, each once; see :func:`lacking`."""
    missing = [run for name in names for task in of_tasks for run in lacking(settings(name, task), task, SEEDS)]
    return list(dict.fromkeys(missing))
