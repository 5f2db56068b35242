"""The table at the end of a run: its scores beside the floor and what the repository recorded."""

import json
from typing import Any

import lightning as L
from rich.console import Console
from rich.table import Table

from rimlit.cli.configs import shipped_folder
from rimlit.tasks import Task
from rimlit.tasks.base import Stage
from rimlit.training.recording import scores_of, sizes_of
from rimlit.training.run_folder import RunFolder


def recorded_results(dataset: str) -> dict[str, dict[str, Any]]:
    """Return the results that the repository recorded for a dataset, by config name."""
    folder = shipped_folder("results", "benchmarks/results") / dataset
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def print_report(trainer: L.Trainer, task: Task, folder: RunFolder, stage: Stage) -> None:
    """Print a line per test group and headline metric: this run, the floor, the recorded runs."""
    scores = scores_of(trainer, stage)
    floors = task.floors() if stage == "test" else {}  # they are those of the test data
    recorded = recorded_results(folder.path.parent.name) if stage == "test" else {}
    console = Console()
    console.print(build_table(scores, task.headline, floors, recorded, folder.path.name))
    console.print(describe_sizes(sizes_of(task)), highlight=False)
    console.print(f"Everything about this run: {folder.path}", highlight=False)


def describe_sizes(sizes: dict[str, int | None]) -> str:
    """Return the sizes of a model in words."""
    flops = sizes["flops_per_step"]
    counted = "" if flops is None else f" · {flops:,} FLOPs a step"
    return (
        f"{sizes['parameters']:,} parameters, {sizes['active_parameters']:,} active in a step{counted} · "
        f"{sizes['state_size']:,} numbers of state"
    )


def build_table(
    scores: dict[str, float],
    headline: tuple[str, ...],
    floors: dict[str, float],
    recorded: dict[str, dict[str, Any]],
    title: str,
) -> Table:
    """Build the table.

    Args:
        scores: Scores by ``group/metric``, or ``metric`` where there is one unnamed group.
        headline: Metrics to show.
        floors: Floors by metric, or ``group/metric``.
        recorded: Contents of recorded results by name.
        title: Name of the run.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("test")
    table.add_column("metric")
    table.add_column("this run", justify="right")
    table.add_column("floor", justify="right")
    for name, result in recorded.items():
        table.add_column(f"{name}, recorded\n({result['parameters']:,} parameters)", justify="right")
    groups = dict.fromkeys(name.rpartition("/")[0] for name in scores)
    for metric in headline:
        for group in groups:
            key = f"{group}/{metric}" if group else metric
            if key in scores:
                floor = floors.get(key, floors.get(metric))
                cells = [result["test"].get(key) for result in recorded.values()]
                table.add_row(
                    group.replace("_", " "),
                    metric.replace("_", " "),
                    *(_number(value) for value in (scores[key], floor, *cells)),
                )
        table.add_section()
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if value and abs(value) < 1e-4:
        return f"{value:.0e}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"
