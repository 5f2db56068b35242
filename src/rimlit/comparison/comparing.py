"""Several configs, several seeds, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console

from rimlit.checks import require_positive
from rimlit.cli.failures import cause_of
from rimlit.cli.places import dataset_of
from rimlit.cli.setup import prepare
from rimlit.comparison.gathering import differing, facts_of, recipe_of
from rimlit.comparison.matching import MEASURES, TOLERANCE, WORDS, Measure
from rimlit.comparison.planning import Model, override_words, plan, run_of
from rimlit.comparison.results import Comparison
from rimlit.comparison.runs import Run, cores, run_all, threads_of_a_run
from rimlit.data import DataModule
from rimlit.errors import ConfigError
from rimlit.files import try_folder
from rimlit.tracking import MLflowTracker
from rimlit.tracking.optional import protect
from rimlit.tracking.recording import data_of, git_commit, machine, sizes_of


def compare(
    configs: str | Path | Sequence[str | Path],
    *,
    seeds: int | Sequence[int] = 3,
    match: Measure | None = None,
    match_to: str | Path | None = None,
    match_tolerance: float = TOLERANCE,
    jobs: int | None = None,
    name: str | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    command: str = "rimlit.compare",
) -> Comparison:
    """Train every config with every seed and put them side by side.

    Each run is a ``rimlit fit`` in a process of its own. Finished runs are not repeated, interrupted ones
    are resumed, and a run that fails does not stop the others. Everything is kept in ``runs/<dataset>/compare``.

    Args:
        configs: Files or names of shipped configs, one or more, all about the same data.
        seeds: How many (0, 1, …), at least 1, or which.
        match: Give every other model the smallest width with no fewer parameters (``params``), FLOPs a step
            (``flops``) or state size (``state``) than that of ``match_to``.
        match_to: Config that is matched; by default the first of the configs whose backbone is a RIM, or else the
            ``rim.yaml`` beside the first config.
        match_tolerance: How much larger a matched model may be, as a share.
        jobs: Runs at a time, at least 1; by default as many as there are cores, or one on a GPU. Results do not
            depend on it: every run has one thread, or ``OMP_NUM_THREADS``.
        name: Keep it in ``compare-<name>``.
        overrides: Settings for all runs: ``{"trainer.max_steps": 500}``, or words as on the command line.
        command: What is recorded as the command.

    Returns:
        Rows, table and figures; ``failed`` names the runs that failed.

    Raises:
        ConfigError: A setting is wrong, the configs are about different data, or there are runs with other
            settings.
        DataError: The data cannot be read.
        StorageError: The folder cannot be written.
        StoppedError: A signal came; the runs have been saved.
    """
    prepare([])
    configs = [configs] if isinstance(configs, str | Path) else configs
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    if not configs:
        raise ConfigError("compare needs the files or names of configs, before its options; got none.")
    if not numbers or min(numbers) < 0:
        raise ConfigError(
            f"seeds must be at least 1, or a list of seeds that are at least 0; got seeds={seeds!r}."
        )
    if jobs is not None:
        require_positive(jobs=jobs)
    if match is not None and match not in MEASURES:
        raise ConfigError(f"match must be one of {', '.join(MEASURES)}; got match={match!r}.")
    try:
        models, data, folder, target = plan(
            [str(config) for config in configs],
            override_words(overrides),
            match,
            None if match_to is None else str(match_to),
            match_tolerance,
            name,
        )
    except Exception as error:
        cause = cause_of(error)
        if cause is None:
            raise
        raise cause from error
    runs = [run_of(model, seed, folder) for seed in numbers for model in models]
    try_folder(folder, 0)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(f"Another comparison is at work in {folder}: give another --name.") from error
    try:
        return _execute(models, data, runs, folder, jobs, command, match and (match, target))
    finally:
        lock.release()


def _execute(
    models: list[Model],
    data: DataModule,
    runs: list[Run],
    folder: Path,
    jobs: int | None,
    command: str,
    matched: tuple[Measure, str] | None,
) -> Comparison:
    first = models[0]
    console = Console()
    parent = _parent(first, folder)
    commit = git_commit()
    done = sum(run.status == "finished" for run in runs)
    jobs = jobs or _default_jobs(first.settings)
    console.print(
        f"{len(models)} configs × {len(runs) // len(models)} seeds, {done} of {len(runs)} runs are done; "
        f"{jobs} at a time, threads of each: {threads_of_a_run()}. Everything goes to {folder}.",
        highlight=False,
    )
    try:
        run_all(runs, jobs, console=console, parent=None if parent is None else parent.run_id)
    finally:  # also of what was done before a signal came
        comparison = Comparison(_results(models, data, runs, command, commit, matched), folder)
        has_runs = any(model["runs"] for model in comparison.models.values())
        if has_runs:
            comparison.save(folder)
        if parent is not None:
            if has_runs:
                _describe(parent, comparison, models, folder)
            parent.finalize("failed" if comparison.failed else "success")
    return comparison


def _parent(model: Model, folder: Path) -> MLflowTracker | None:
    """Open the comparison's own run in MLflow, unless its runs are tracked elsewhere."""
    if model.settings["trainer"].get("logger") not in (None, True):
        return None
    dataset = dataset_of(folder, model.settings["data"]["class_path"])
    tracker = protect(MLflowTracker(dataset, folder.name, folder=folder))
    tracker.set_tags({"run_folder": str(folder)})
    tracker.flush()  # the runs are given its id
    return tracker


def _describe(parent: MLflowTracker, comparison: Comparison, models: list[Model], folder: Path) -> None:
    """Put table, figures and means into the comparison's own run."""
    results = comparison.results
    parent.set_tags({"mlflow.note.content": f"`{results['command']}`", "git_commit": results["commit"]})
    parent.log_hyperparams({f"{model.name}.{size}": count for model in models for size, count in _sizes(model)})
    scores = {
        f"test/{model}/{name}": score.mean
        for model in comparison.models
        for name in comparison.score_names
        if (score := comparison.score(model, name)) is not None
    }
    parent.log_metrics(scores)
    for file in ("results.json", "table.md", "table.csv"):
        parent.log_file(folder / file)
    for metric in results["metrics"]:
        parent.log_file(folder / "figures" / f"{metric}.png", "figures")


def _sizes(model: Model) -> list[tuple[str, Any]]:
    return [("config", model.config), *sizes_of(model.task).items()]


def _results(
    models: list[Model],
    data: DataModule,
    runs: list[Run],
    command: str,
    commit: str,
    matched: tuple[Measure, str] | None,
) -> dict[str, Any]:
    """Gather the results of the runs."""
    task = models[0].task
    metrics = task.metrics()
    better = {name: getattr(metrics.get(name), "higher_is_better", None) for name in task.headline}
    better |= {name: False for name in task.headline if name == "loss"}
    facts = {run.name: facts_of(run, task.headline) for run in runs if run.status == "finished"}
    for run in runs:
        if run.status == "finished" and facts[run.name] is None:
            run.status, run.reason = "failed", f"{run.folder.path / 'results.json'} holds no test scores"
    results: dict[str, Any] = {
        "dataset": runs[0].folder.path.parents[1].name,
        "command": command,
        "commit": commit,
        "machine": machine(),
        "seeds": list(dict.fromkeys(run.seed for run in runs)),
        "match": None
        if matched is None
        else {"measure": matched[0], "words": WORDS[matched[0]], "to": matched[1]},
        "data": data_of(data),
        "differing": differing({model.name: recipe_of(model.settings) for model in models}),
        "metrics": list(task.headline),
        "higher_is_better": better,
        "floors": data.floors(),
        "models": {},
        "failed": [
            {"name": run.name, "reason": run.reason, "log": str(run.log)} for run in runs if run.status == "failed"
        ],
    }
    for model in models:
        own = [run for run in runs if run.config == model.name and run.status == "finished"]
        backbone = model.settings["model"]["init_args"]["backbone"]
        results["models"][model.name] = {
            "config": model.config,
            "arguments": model.arguments,
            "backbone": backbone["class_path"].split(".")[-1],
            "hidden_size": backbone.get("init_args", {}).get("hidden_size"),
            **sizes_of(model.task),
            "runs": [facts[run.name] for run in own],
        }
    return results


def _default_jobs(settings: dict[str, Any]) -> int:
    on_gpu = torch.cuda.is_available() and settings["trainer"].get("accelerator") != "cpu"
    return 1 if on_gpu else max(1, cores() // threads_of_a_run())
