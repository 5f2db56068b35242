"""Results of the runs of a comparison, and how their training recipes differ."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rimlit.comparison.runs import Run
from rimlit.spec import non_default_arguments
from rimlit.tracking.metrics_file import read_metrics
from rimlit.yaml_files import load_yaml

log = logging.getLogger(__name__)

RECIPE = (
    "max_steps",
    "max_epochs",
    "max_time",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "accumulate_grad_batches",
    "precision",
)
"""Settings of the trainer that decide how a model is trained."""


def recipe_of(settings: Mapping[str, Any], without: Sequence[str] = ()) -> dict[str, str]:
    """Return how a config trains its model, in words: optimiser, schedule, batch size, clipping, steps.

    Args:
        settings: Its resolved settings.
        without: Settings that are left out, as they were tuned.
    """
    for setting in without:
        settings = _without(settings, [part for part in setting.split(".") if part != "init_args"])
    model, data = (settings[part].get("init_args", {}) for part in ("model", "data"))
    optimizer, scheduler = model.get("optimizer"), model.get("scheduler")
    return {
        "optimizer": "the task's default" if optimizer is None else _call(optimizer, always=("lr",)),
        "scheduler": "none" if scheduler is None else _call(scheduler),
        "batch_size": str(data.get("batch_size", "the default")),
        **{name: str(settings["trainer"].get(name, "the default")) for name in RECIPE},
    }


def _without(settings: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """Return nested settings without one of them; ``init_args`` on its way is understood."""
    first, *rest = path
    if first not in settings and isinstance(settings.get("init_args"), Mapping):
        return {**settings, "init_args": _without(settings["init_args"], path)}
    if not rest or not isinstance(settings.get(first), Mapping):
        return {name: value for name, value in settings.items() if name != first or rest}
    return {**settings, first: _without(settings[first], rest)}


def _call(spec: Mapping[str, Any], always: Sequence[str] = ()) -> str:
    """Return a spec as a call with the arguments that are not the class's defaults."""
    given = spec.get("init_args", {})
    shown = {name: given[name] for name in always if name in given}
    shown |= non_default_arguments({**spec, "init_args": given})
    arguments = ", ".join(f"{name}={value!r}" for name, value in shown.items())
    return f"{spec['class_path'].split('.')[-1]}({arguments})"


def differing(recipes: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Return the entries in which recipes differ, each by model."""
    names = next(iter(recipes.values()), {})
    columns = {name: {model: recipe[name] for model, recipe in recipes.items()} for name in names}
    return {name: column for name, column in columns.items() if len(set(column.values())) > 1}


def facts_of(run: Run, metrics: Sequence[str]) -> dict[str, Any] | None:
    """Return the results of a run; None where it has no test scores, or they are damaged."""
    written = run.folder.read_results()
    if not isinstance(written.get("test"), dict):
        return None
    names = (
        "seed",
        "command",
        "commit",
        "machine",
        "steps",
        "train_seconds",
        "best_validation",
        "test",
        "warnings",
    )
    curves = {metric: read_curve(run.folder.path / "metrics.csv", f"val/{metric}") for metric in metrics}
    return {
        "seed": run.seed,
        **{name: written[name] for name in names if name in written},
        "folder": str(run.folder.path),
        "val": {name: curve for name, curve in curves.items() if curve},
    }


def read_curve(path: Path, name: str) -> list[tuple[int, float]]:
    """Return the steps and values of a column of ``metrics.csv``, the last value of each step."""
    points = {int(row["step"]): float(row[name]) for row in read_metrics(path).rows if row.get(name)}
    return sorted(points.items())


def read_settings(path: Path) -> dict[str, Any] | None:
    """Return the settings in a run's ``config.yaml``; None where there is none, or a damaged one (logged)."""
    try:
        content = load_yaml(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        content = None
    if isinstance(content, dict):
        return content
    log.warning("%s is damaged and counts as absent.", path)
    return None
