"""What the screen runs: tasks, variants, and the order in which their runs are wanted; where results are kept."""

import functools
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from benchmarks import sharing

from rimlit.comparison.tuning import best_value
from rimlit.files import write_json

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results" / "screen"
LOCKS = HERE.parents[1] / "runs" / "screen"
SEEDS = (0, 1, 2)


class Run(NamedTuple):
    """One training."""

    task: str
    variant: str
    rate: float
    seed: int

    def __str__(self) -> str:
        return f"{self.task}, {self.variant}, learning rate {self.rate:g}, seed {self.seed}"


class Setting(NamedTuple):
    """A backbone and its learning rate."""

    variant: str
    rate: float


@functools.cache
def tasks() -> dict[str, dict[str, Any]]:
    """Return the tasks by name, as ``tasks.yaml`` has them."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "tasks.yaml").read_text())
    return found


def is_less_better(task_name: str) -> bool:
    """Return whether a smaller score is a better one on a task."""
    better: str = tasks()[task_name]["is_better"]
    return better == "less"


@functools.cache
def variants() -> dict[str, dict[str, Any]]:
    """Return the backbones by name: ``is`` (a line of words), ``class_path``, ``init_args``, perhaps ``shows``."""
    models: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "variants.yaml").read_text())["models"]
    return {name: {"class_path": "RIM", **model} for name, model in models.items()}


def results_of(variant: str) -> dict[str, Any]:
    """Return what is known of a variant: its arguments, and by task the width, parameters and runs.

    Raises:
        SystemExit: It was recorded with other arguments.
    """
    path = RESULTS / f"{variant}.json"
    now = {key: value for key, value in variants()[variant].items() if key not in ("is", "shows")}
    if not path.exists():
        return {"variant": now, "tasks": {}}
    found: dict[str, Any] = json.loads(path.read_text())
    if found["variant"] != now:
        raise SystemExit(f"{variant} was recorded with other arguments: give the new one another name.")
    return found


def write_run(run: Run, size: dict[str, int], result: dict[str, Any]) -> None:
    """Add a finished run to its variant's file; processes take turns."""
    with locked(run.variant):
        found = results_of(run.variant)
        task = found["tasks"].setdefault(run.task, {**size, "runs": []})
        task["runs"] = [each for each in task["runs"] if (each["rate"], each["seed"]) != (run.rate, run.seed)]
        task["runs"].append({"rate": run.rate, "seed": run.seed, **result})
        task["runs"].sort(key=lambda each: (each["rate"], each["seed"]))
        RESULTS.mkdir(parents=True, exist_ok=True)
        write_json(RESULTS / f"{run.variant}.json", found)


def locked(name: str, *, wait: bool = True) -> AbstractContextManager[bool]:
    """Hold the lock ``name`` of the screen inside the ``with`` block."""
    return sharing.locked(LOCKS / f"{name}.lock", wait=wait)


def runs_of(variant: str, task_name: str) -> list[dict[str, Any]]:
    """Return the finished runs of a variant on a task."""
    runs: list[dict[str, Any]] = results_of(variant)["tasks"].get(task_name, {}).get("runs", [])
    return runs


def runs_at(setting: Setting, task_name: str) -> dict[int, dict[str, Any]]:
    """Return the finished runs of a setting by seed."""
    return {run["seed"]: run for run in runs_of(setting.variant, task_name) if run["rate"] == setting.rate}


def settings_of(variant: str, task_name: str) -> list[Setting]:
    """Return what the screen tries of a variant on a task."""
    return [Setting(variant, rate) for rate in tasks()[task_name]["rates"]]


def best_of(settings: Sequence[Setting], task_name: str) -> Setting | None:
    """Return the setting whose first seed is best in validation, None until all have been tried."""
    firsts = {
        Setting(variant, run["rate"]): run["val"]
        for variant in dict.fromkeys(setting.variant for setting in settings)
        for run in runs_of(variant, task_name)
        if run["seed"] == SEEDS[0]
    }
    if not firsts.keys() >= set(settings):
        return None
    scores = {setting: firsts[setting] for setting in settings}
    best = best_value(scores, higher_is_better=not is_less_better(task_name))
    return settings[0] if best is None else best


def lacking(
    settings: Sequence[Setting], task_name: str, seeds: Sequence[int], *, with_usage: bool = False
) -> list[Run]:
    """Return the runs that are missing, the first seed of every setting before the other seeds of the best.

    Args:
        settings: What is tried.
        task_name: The task.
        seeds: Of the best setting.
        with_usage: Whether a RIM's run of the best setting is missing, too, if its use of mechanisms is not noted.
    """
    best = best_of(settings, task_name)
    wanted = [(setting, SEEDS[0]) for setting in settings] if best is None else [(best, seed) for seed in seeds]
    needs_usage = with_usage and best is not None and variants()[best.variant]["class_path"] == "RIM"
    missing = []
    for setting, seed in wanted:
        run = runs_at(setting, task_name).get(seed)
        if run is None or (needs_usage and "mechanisms" not in run):
            missing.append(Run(task_name, *setting, seed))
    return missing


def wanted(
    names: Sequence[str], of_tasks: Sequence[str], seeds: int = len(SEEDS), *, with_usage: bool = False
) -> list[Run]:
    """Return the runs that variants lack, with as many seeds at the best rate; see :func:`lacking`."""
    return [
        run
        for name in names
        for task in of_tasks
        for run in lacking(settings_of(name, task), task, SEEDS[:seeds], with_usage=with_usage)
    ]
