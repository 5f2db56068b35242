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


@functools.cache
def tasks() -> dict[str, dict[str, Any]]:
    """Return the tasks by name, as ``tasks.yaml`` has them."""
    found: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "tasks.yaml").read_text())
    return found


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


def best_rate(task: dict[str, Any], runs: Sequence[dict[str, Any]]) -> float | None:
    """Return the learning rate whose first seed is best in validation, None until all have been tried.

    Args:
        task: The task.
        runs: The variant's runs of it.
    """
    by_rate = {run["rate"]: run["val"] for run in runs if run["seed"] == SEEDS[0]}
    if set(by_rate) < set(task["rates"]):
        return None
    scores = {rate: by_rate[rate] for rate in task["rates"]}
    best = best_value(scores, higher_is_better=task["is_better"] != "less")
    return task["rates"][0] if best is None else best


def wanted(
    names: Sequence[str], of_tasks: Sequence[str], seeds: int = len(SEEDS), *, with_usage: bool = False
) -> list[Run]:
    """Return the runs that are missing, the first seed of every rate before the other seeds of the best.

    Args:
        names: Variants.
        of_tasks: Tasks.
        seeds: How many seeds at the best rate.
        with_usage: Whether a RIM's run at the best rate is missing, too, if it did not note the use of mechanisms.
    """
    missing = []
    for name in names:
        found = results_of(name)
        for task_name in of_tasks:
            task, runs = tasks()[task_name], found["tasks"].get(task_name, {}).get("runs", [])
            best = best_rate(task, runs)
            is_noted = not with_usage or found["variant"]["class_path"] != "RIM"
            done = {
                (run["rate"], run["seed"])
                for run in runs
                if is_noted or run["rate"] != best or "mechanisms" in run
            }
            if best is None:
                of_first = [(rate, SEEDS[0]) for rate in task["rates"]]
            else:
                of_first = [(best, seed) for seed in SEEDS[:seeds]]
            missing += [Run(task_name, name, *each) for each in of_first if each not in done]
    return missing
