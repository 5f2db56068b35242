"""Models that are tuned over several settings each, as many as the others: variants and learning rates."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml
from benchmarks.screen.runs import HERE, Run, results_of, tasks

from rimlit.comparison.tuning import best_value

SEEDS = (0, 1, 2, 3, 4)


class Setting(NamedTuple):
    """One of a pool."""

    variant: str
    rate: float


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


def runs_at(setting: Setting, task_name: str) -> dict[int, dict[str, Any]]:
    """Return the finished runs of a setting by seed."""
    runs = results_of(setting.variant)["tasks"].get(task_name, {}).get("runs", [])
    return {run["seed"]: run for run in runs if run["rate"] == setting.rate and run["seed"] in SEEDS}


def best_setting(pool: str, task_name: str) -> Setting | None:
    """Return the setting whose first seed is best in validation, None until all have been tried."""
    found = settings(pool, task_name)
    firsts = [runs_at(setting, task_name).get(SEEDS[0]) for setting in found]
    scores = {setting: run["val"] for setting, run in zip(found, firsts, strict=True) if run is not None}
    if len(scores) < len(found):
        return None
    best = best_value(scores, higher_is_better=tasks()[task_name]["is_better"] != "less")
    return found[0] if best is None else best


def best_runs(pool: str, task_name: str) -> dict[int, dict[str, Any]]:
    """Return the runs of the best setting by seed, none before it is known."""
    best = best_setting(pool, task_name)
    return {} if best is None else runs_at(best, task_name)


def wanted_by(names: Sequence[str], of_tasks: Sequence[str]) -> list[Run]:
    """Return the runs that pools lack, the first seed of every setting before the other seeds of the best."""
    missing: list[Run] = []
    for name in names:
        for task_name in of_tasks:
            best = best_setting(name, task_name)
            if best is None:
                wanted = [(setting, SEEDS[0]) for setting in settings(name, task_name)]
            else:
                wanted = [(best, seed) for seed in SEEDS]
            missing += [
                Run(task_name, *setting, seed)
                for setting, seed in wanted
                if seed not in runs_at(setting, task_name)
            ]
    return list(dict.fromkeys(missing))
