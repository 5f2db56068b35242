"""The table at the end of a run: its scores beside the floor and the recorded results on the same data."""

from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from rich import box
from rich.table import Table

from rimlit.cli.configs import shipped_folder
from rimlit.console import say, show
from rimlit.data import DataModule
from rimlit.data.base import PLACES
from rimlit.files import read_json
from rimlit.spec import default_arguments
from rimlit.tasks import Task
from rimlit.tracking.recording import data_of, scores_of, sizes_of
from rimlit.tracking.run_folder import RunFolder

TITLES = {"val": "validation", "test": "test"}

_NOT_COMPARED = ("num_workers", "batch_size", "eval_batch_size", "seed", *PLACES)
"""Arguments of data that do not decide what they are. The digest stands for what a path leads to."""
_NOT_SHOWN = ("comparison", "paper", "screen")
"""Folders of recorded results whose models have another size than the shipped configs."""


def recorded_results(data: DataModule) -> dict[str, dict[str, Any]]:
    """Return the recorded results on the same data, by the name of their config."""
    found = {}
    for path in sorted(shipped_folder("results", "benchmarks/results").glob("*/*.json")):
        if path.parent.name not in _NOT_SHOWN:
            result = read_json(path)
            if isinstance(result.get("test"), dict) and is_same_data(result.get("data"), data):
                found[f"{path.parent.name}/{path.stem}"] = result
    return found


def is_same_data(recorded: Any, data: DataModule) -> bool:
    """Return whether a recorded result is about ``data``.

    Class, arguments and the digest of the files must be equal; workers, batch sizes, the seed and the path may
    differ. An argument that one of the two does not have counts as the class's default: one that was added after
    a record must leave earlier data as they were by default. Files without a digest are equal to nothing.

    Args:
        recorded: ``data`` of a ``results.json``: ``class_path``, ``init_args`` and ``digest``.
        data: The data of this run.
    """
    now = data_of(data)
    if not isinstance(recorded, dict) or not isinstance(recorded.get("init_args"), dict):
        return False
    if any(recorded.get(name) != now[name] for name in ("class_path", "digest")):
        return False
    before, after = recorded["init_args"], now["init_args"]
    if now["digest"] is None and (before.get("path") or after.get("path")):
        return False
    defaults = default_arguments(type(data))
    known, ours = {**defaults, **before}, {**defaults, **after}
    names = known.keys() | ours.keys()
    return all(known.get(name) == ours.get(name) for name in names if name not in _NOT_COMPARED)


def print_report(trainer: L.Trainer, task: Task, folder: RunFolder, stage: Literal["val", "test"]) -> None:
    """Print a row for each test group and headline metric: this run, the floor, recorded results."""
    data = getattr(trainer, "datamodule", None)
    is_test = stage == "test"
    # an int is a number of batches, and a share below 1 is a part of them
    is_whole = isinstance(trainer.limit_test_batches, float) and trainer.limit_test_batches == 1
    show(
        build_table(
            scores_of(trainer, stage),
            task.headline,
            task.floors() if is_test else {},  # floors are those of the test data
            recorded_results(data) if is_test and is_whole and isinstance(data, DataModule) else {},
            folder.path.name,
            TITLES[stage],
        )
    )
    say(describe_sizes(sizes_of(task)))
    print_warnings(folder)
    say(f"Everything about this run: {folder.path}")


def idle_gpu(trainer: L.Trainer) -> str | None:
    """Return a note about a run on the CPU where torch finds a GPU, None elsewhere."""
    if not isinstance(trainer.accelerator, CPUAccelerator) or not torch.cuda.is_available():
        return None
    return (
        f"This run is on the CPU; torch finds {torch.cuda.get_device_name()}. --trainer.accelerator auto uses it. "
        "Which is faster at this size has not been measured."
    )


def print_warnings(folder: RunFolder) -> None:
    """Print the warnings about the training of a run, a line each."""
    for warning in folder.read_results().get("warnings", []):
        say(f"Warning: {warning}")


def describe_sizes(sizes: dict[str, int | None]) -> str:
    """Return the sizes of a model in words."""
    flops = sizes["flops_per_step"]
    counted = "" if flops is None else f" · {flops:,} FLOPs per step"
    return (
        f"{sizes['parameters']:,} parameters, {sizes['active_parameters']:,} active per step{counted} · "
        f"state size {sizes['state_size']:,}"
    )


def build_table(
    scores: dict[str, float],
    headline: tuple[str, ...],
    floors: dict[str, float],
    recorded: dict[str, dict[str, Any]],
    title: str,
    stage: str = "test",
) -> Table:
    """Build the table; a column without a number is left out.

    Args:
        scores: Scores by ``group/metric``, or ``metric`` where there is one unnamed group.
        headline: Metrics to show.
        floors: Floors by metric, or ``group/metric``.
        recorded: Contents of recorded results by name.
        title: Name of the run.
        stage: Header of the first column, which names the groups.
    """
    groups = dict.fromkeys(name.rpartition("/")[0] for name in scores)
    rows = [
        (group, metric, key)
        for metric in headline
        for group in groups
        if (key := f"{group}/{metric}" if group else metric) in scores
    ]
    columns: dict[str, list[float | None]] = {
        "this run": [scores[key] for _, _, key in rows],
        "floor": [floors.get(key, floors.get(metric)) for _, metric, key in rows],
        **{name: [result["test"].get(key) for _, _, key in rows] for name, result in recorded.items()},
    }
    columns = {header: values for header, values in columns.items() if any(value is not None for value in values)}
    known = [_describe(name, result) for name, result in recorded.items() if name in columns]
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.caption, table.caption_justify = "\n".join(["recorded:", *known]) if known else None, "left"
    table.add_column(stage)
    table.add_column("metric")
    for header in columns:  # a recorded result by its config's last name, so that the table fits 80 columns
        table.add_column(header.rpartition("/")[2], justify="right")
    above = None
    for (group, metric, _), *values in zip(rows, *columns.values(), strict=True):
        if metric != above:
            table.add_section()
        above = metric
        table.add_row(group.replace("_", " "), metric.replace("_", " "), *map(_number, values))
    return table


def _describe(name: str, result: dict[str, Any]) -> str:
    sizes = [f"{result[key]:,} {key}" for key in ("parameters", "steps") if isinstance(result.get(key), int)]
    return name + (f": {', '.join(sizes)}" if sizes else "")


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if 0 < abs(value) < 0.00005:
        return "< 0.0001" if value > 0 else "> -0.0001"
    if abs(value) < 10:
        return f"{value:.4f}"
    return f"{value:.2f}" if abs(value) < 1e6 else f"{value:.2e}"
