"""Several configs, several seeds, side by side."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
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
from rimlit.comparison.planning import Entrant, Model, override_words, plan
from rimlit.comparison.results import Comparison
from rimlit.comparison.runs import Run, Work, cores, run_all, threads_of_a_run
from rimlit.comparison.study import study_of
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
    tune: Mapping[str, Sequence[Any]] | None = None,
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
        tune: A setting and its values: ``{"lr": [0.001, 0.003, 0.01]}``, where ``lr`` is short for
            ``model.optimizer.init_args.lr``. Each model is trained with the first seed at each value, and with the
            other seeds at the value of the best validation. A config's own ``tune`` wins over this one.
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
        entrants, data, target = plan(
            [str(config) for config in configs],
            override_words(overrides),
            numbers,
            match,
            None if match_to is None else str(match_to),
            match_tolerance,
            name,
            tune,
        )
    except Exception as error:
        cause = cause_of(error)
        if cause is None:
            raise
        raise cause from error
    schedule, folder = Schedule(entrants), entrants[0].folder
    try_folder(folder, 0)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(f"Another comparison is at work in {folder}: give another --name.") from error
    try:
        return _execute(schedule, data, jobs, command, match and (match, target))
    finally:
        lock.release()


class Schedule(Work):
    """The runs of a comparison: those that do not depend on a choice, seed by seed, then those that do.

    Args:
        entrants: The configs.
    """

    def __init__(self, entrants: list[Entrant]) -> None:
        by_entrant = [entrant.first_runs() for entrant in entrants]
        super().__init__([run for runs in zip_longest(*by_entrant) for run in runs if run is not None])
        self.entrants = entrants
        self.trials = {
            run.name for entrant, runs in zip(entrants, by_entrant, strict=True) if entrant.tuning for run in runs
        }
        self._is_waiting = list(entrants)
        self._add()

    @property
    def total(self) -> int:
        """How many runs there will be, as far as is known."""
        return sum(entrant.num_runs for entrant in self.entrants)

    def take(self) -> Run | None:
        """Return the run that starts next."""
        self._add()
        return super().take()

    def is_lost(self, run: Run) -> bool:
        """Return whether a run has failed, and not as a trial that diverged."""
        return run.status == "failed" and not (run.name in self.trials and run.folder.has_diverged())

    def _add(self) -> None:
        for entrant in list(self._is_waiting):
            if entrant.grid is None or entrant.chosen() is not None:
                self._is_waiting.remove(entrant)
                self.runs += entrant.further_runs()


def _execute(
    schedule: Schedule, data: DataModule, jobs: int | None, command: str, matched: tuple[Measure, str] | None
) -> Comparison:
    entrants, runs = schedule.entrants, schedule.runs
    first, folder = entrants[0].models[0], entrants[0].folder
    console = Console()
    parent = _parent(first, folder)
    commit = git_commit()
    done = sum(run.status == "finished" for run in runs)
    jobs = jobs or _default_jobs(first.settings)
    values = "" if first.name == entrants[0].name else f" × {len(entrants[0].models)} values with the first seed"
    console.print(
        f"{len(entrants)} configs{values} × {len(entrants[0].seeds)} seeds, {done} of {schedule.total} runs are "
        f"done; {jobs} at a time, threads of each: {threads_of_a_run()}. Everything goes to {folder}.",
        highlight=False,
    )
    try:
        run_all(schedule, jobs, console=console, parent=None if parent is None else parent.run_id)
    finally:  # also of what was done before a signal came
        comparison = Comparison(_results(schedule, data, command, commit, matched), folder)
        has_runs = any(
            model["runs"] or model.get("tuning", {}).get("tried") for model in comparison.models.values()
        )
        if has_runs:
            comparison.save(folder)
            if (study := study_of(comparison)) is not None:
                study.save(folder)
        if parent is not None:
            if has_runs:
                _describe(parent, comparison, entrants)
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


def _describe(parent: MLflowTracker, comparison: Comparison, entrants: list[Entrant]) -> None:
    """Put table, figures and means into the comparison's own run."""
    results, folder = comparison.results, entrants[0].folder
    parent.set_tags({"mlflow.note.content": f"`{results['command']}`", "git_commit": results["commit"]})
    for entrant in entrants:
        model = entrant.chosen() or entrant.models[0]
        facts = {"config": model.config, **sizes_of(model.task)}
        if entrant.tuning is not None and entrant.grid is not None:
            facts[entrant.grid.name] = entrant.tuning.best()
        parent.log_hyperparams({f"{entrant.name}.{name}": fact for name, fact in facts.items()})
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


def _results(
    schedule: Schedule, data: DataModule, command: str, commit: str, matched: tuple[Measure, str] | None
) -> dict[str, Any]:
    """Gather the results of the runs."""
    entrants, runs = schedule.entrants, schedule.runs
    models = {entrant.name: entrant.chosen() or entrant.models[0] for entrant in entrants}
    task = next(iter(models.values())).task
    metrics = task.metrics()
    better = {name: getattr(metrics.get(name), "higher_is_better", None) for name in task.headline}
    better |= {name: False for name in task.headline if name == "loss"}
    facts = {run.name: facts_of(run, task.headline) for run in runs if run.status == "finished"}
    for run in runs:
        if run.status == "finished" and facts[run.name] is None:
            run.status, run.reason = "failed", f"{run.folder.path / 'results.json'} holds no test scores"
        if run.status == "finished" and run.name in schedule.trials and run.folder.best_validation() is None:
            run.status, run.reason = "failed", f"{run.folder.path / 'results.json'} holds no best validation"
    failed = [run for run in runs if schedule.is_lost(run)]
    recipes = {
        entrant.name: recipe_of(models[entrant.name].settings, without=entrant.grid and entrant.grid.setting)
        for entrant in entrants
    }
    results: dict[str, Any] = {
        "dataset": entrants[0].folder.parent.name,
        "command": command,
        "commit": commit,
        "machine": machine(),
        "seeds": entrants[0].seeds,
        "match": None
        if matched is None
        else {"measure": matched[0], "words": WORDS[matched[0]], "to": matched[1]},
        "data": data_of(data),
        "differing": differing(recipes),
        "metrics": list(task.headline),
        "higher_is_better": better,
        "floors": data.floors(),
        "models": {},
        "failed": [{"name": run.name, "reason": run.reason, "log": str(run.log)} for run in failed],
    }
    results["failed"] += [
        {
            "name": entrant.name,
            "reason": f"it diverged at every {entrant.grid.name} of its grid",
            "log": str(entrants[0].folder / "logs"),
        }
        for entrant in entrants
        if entrant.grid is not None and entrant.has_diverged()
    ]
    for entrant in entrants:
        model, is_chosen = models[entrant.name], entrant.chosen() is not None
        own = [run for run in runs if run.config == model.name and run.status == "finished" and is_chosen]
        backbone = model.settings["model"]["init_args"]["backbone"]
        results["models"][entrant.name] = {
            "config": model.config,
            "arguments": model.arguments,
            "backbone": backbone["class_path"].split(".")[-1],
            "hidden_size": backbone.get("init_args", {}).get("hidden_size"),
            **sizes_of(model.task),
            **({} if entrant.tuning is None else {"tuning": entrant.tuning.report()}),
            "runs": [facts[run.name] for run in own],
        }
    return results


def _default_jobs(settings: dict[str, Any]) -> int:
    on_gpu = torch.cuda.is_available() and settings["trainer"].get("accelerator") != "cpu"
    return 1 if on_gpu else max(1, cores() // threads_of_a_run())
