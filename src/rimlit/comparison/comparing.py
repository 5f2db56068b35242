"""Several configs, several seeds, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console

from rimlit.checks import require_known, require_positive
from rimlit.cli.failures import cause_of
from rimlit.cli.places import dataset_of
from rimlit.cli.setup import prepare
from rimlit.comparison.cluster import Submitit
from rimlit.comparison.entrants import Entrant, Model
from rimlit.comparison.gathering import differing, facts_of, recipe_of
from rimlit.comparison.job_queue import refuse_live_jobs
from rimlit.comparison.job_settings import read_job_settings
from rimlit.comparison.matching import MEASURES, TOLERANCE, WORDS, Measure
from rimlit.comparison.optuna_search import OptunaSearch, import_optuna
from rimlit.comparison.planning import Tune, override_words, plan
from rimlit.comparison.results import Comparison
from rimlit.comparison.runners import LocalProcesses, Runner
from rimlit.comparison.running import run_all, start_waiting
from rimlit.comparison.runs import cores, threads_of_a_run
from rimlit.comparison.schedule import Schedule
from rimlit.comparison.searching import save_searches
from rimlit.comparison.space import read_space
from rimlit.comparison.study import study_of
from rimlit.comparison.tuning import read_grid, short_names
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
    tune: Mapping[str, Any] | str | Path | None = None,
    trials: int | None = None,
    storage: str | None = None,
    prune: bool = True,
    on: str | Path | None = None,
    wait: bool = True,
    collect: bool = False,
    command: str = "rimlit.compare",
    kind: str = "compare",
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
        jobs: Runs at a time, at least 1; by default as many as there are cores, one on a GPU, or on a cluster all
            (8 where a space is searched). Results do not depend on it: every run has one thread, or
            ``OMP_NUM_THREADS``.
        name: Keep it in ``compare-<name>``.
        overrides: Settings for all runs: ``{"trainer.max_steps": 500}``, or words as on the command line.
        tune: A setting and its values: ``{"lr": [0.001, 0.003, 0.01]}``, where ``lr`` is short for
            ``model.optimizer.init_args.lr``. Each model is trained with the first seed at each value, and with the
            other seeds at the value of the best validation. A config's own ``tune`` wins over this one. With
            ``trials``, a space, or the YAML file that holds it: see :func:`rimlit.comparison.space.read_space`.
        trials: How often each model is trained with the first seed at values of the space, at least 1.
        storage: Where the search of a space is kept: a journal file, ``sqlite:///FILE`` or the URL of a database;
            by default a journal in the comparison's folder.
        prune: Whether trials of a space are stopped early where others were better at the same step.
        on: YAML file of submitit's keys: the runs are jobs of a cluster, see
            :func:`rimlit.comparison.job_settings.read_job_settings`.
        wait: Whether to wait for the jobs, or only to submit them.
        collect: Whether to submit nothing, and read what jobs of an earlier call have done.
        command: What is recorded as the command.
        kind: What the folder's name begins with.

    Returns:
        Rows, table and figures; ``failed`` names the runs that failed, ``pending`` and ``missing`` those of a
        cluster that have not ended or have not been submitted.

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
    require_positive(jobs=jobs)
    if match is not None:
        require_known(match=(match, MEASURES))
    tuned = _tune(tune, trials, storage, prune)
    if on is None and (collect or not wait):
        raise ConfigError("no-wait and collect are for jobs of a cluster: give --on slurm.yaml as well.")
    cluster = None if on is None else read_job_settings(on)
    if cluster is not None and cluster.cluster == "debug" and not wait:
        raise ConfigError("cluster 'debug' runs in this process, which waits: leave out --no-wait.")
    try:
        planned = plan(
            [str(config) for config in configs],
            override_words(overrides),
            numbers,
            match,
            None if match_to is None else str(match_to),
            match_tolerance,
            name,
            tuned,
            kind,
        )
    except Exception as error:
        cause = cause_of(error)
        if cause is None:
            raise
        raise cause from error
    folder = planned.entrants[0].folder
    try_folder(folder)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(f"Another comparison is running in {folder}: give another --name.") from error
    try:
        if cluster is None:
            refuse_live_jobs(folder)
            runner: Runner = LocalProcesses(jobs or _default_jobs(planned.entrants[0].example().settings))
        else:
            is_searched = tuned is not None and tuned.space is not None
            runner = Submitit(cluster, folder, jobs or (PLACES_OF_A_SEARCH if is_searched else None))
        matched = match and (match, planned.target)
        return _execute(Schedule(planned.entrants), planned.data, runner, command, matched, wait, collect)
    finally:
        lock.release()


PLACES_OF_A_SEARCH = 8
"""Trials at a time on a cluster: each is chosen by what was found before, which many at once would not know."""


def _tune(tune: Any, trials: int | None, storage: str | None, prune: bool) -> Tune | None:
    """Return what is tuned."""
    if trials is None:
        if isinstance(tune, str | Path):
            raise ConfigError(f"tune={str(tune)!r} is a space, which needs --trials N: how many each model gets.")
        if storage is not None:
            raise ConfigError(f"storage keeps the search of a space; got storage={storage!r} without --trials.")
        return None if tune is None else Tune(read_grid(tune))
    require_positive(trials=trials)
    if tune is None:
        raise ConfigError(f"trials={trials} needs a space: --tune space.yaml.")
    import_optuna()
    return Tune(None, read_space(tune), trials, storage, prune)


def _execute(
    schedule: Schedule,
    data: DataModule,
    runner: Runner,
    command: str,
    matched: tuple[Measure, str] | None,
    wait: bool,
    collect: bool,
) -> Comparison:
    entrants, runs = schedule.entrants, schedule.runs
    first, folder = entrants[0].example(), entrants[0].folder
    console = Console()
    parent = _parent(first, folder)
    commit = git_commit()
    done = sum(run.status == "finished" for run in runs)
    search = entrants[0].search
    values = "" if search is None else f" × {search.budget} trials with the first seed"
    console.print(
        f"{len(entrants)} configs{values} × {len(entrants[0].seeds)} seeds, {done} of {schedule.total} runs are "
        f"done; {runner.places or 'all'} at a time, threads of each: {threads_of_a_run()}. Everything goes to "
        f"{folder}.",
        highlight=False,
    )
    parent_run = None if parent is None else parent.run_id
    try:
        if isinstance(runner, Submitit):
            runner.attach(schedule.runs)
        if collect and isinstance(runner, Submitit):
            runner.name_ended(schedule.runs)
        elif wait:
            run_all(schedule, runner, console=console, parent=parent_run)
        else:
            start_waiting(schedule, runner, parent_run)
    finally:  # also of what was done before a signal came
        comparison = Comparison(_results(schedule, data, command, commit, matched), folder)
        if isinstance(runner, Submitit):
            comparison.results |= {
                "pending": [runner.words_of(run) for run in schedule.runs if run.status == "running"],
                "missing": [run.name for run in schedule.runs if run.status == "waiting"],
            }
        has_runs = any(
            model["runs"] or model.get("tuning", {}).get("tried") for model in comparison.models.values()
        )
        if has_runs:
            comparison.save(folder)
            if (study := study_of(comparison)) is not None:
                study.save(folder)
            save_searches(entrants, folder)
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
        model = entrant.example()
        facts = {"config": model.config, **sizes_of(model.task)}
        if entrant.search is not None:
            best = entrant.search.best()
            facts |= {
                name: best and best.values[key] for key, name in short_names(entrant.search.settings).items()
            }
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
    models = {entrant.name: entrant.example() for entrant in entrants}
    task = next(iter(models.values())).task
    metrics = task.metrics()
    better = {name: getattr(metrics.get(name), "higher_is_better", None) for name in task.headline}
    better |= {name: False for name in task.headline if name == "loss"}
    facts = {run.name: facts_of(run, task.headline) for run in runs if run.status == "finished"}
    for run in runs:
        if run.status == "finished" and facts[run.name] is None:
            run.status, run.reason = "failed", f"{run.folder.path / 'results.json'} holds no test scores"
        if run.status == "finished" and schedule.is_trial(run) and run.folder.best_validation() is None:
            run.status, run.reason = "failed", f"{run.folder.path / 'results.json'} holds no best validation"
    failed = [run for run in runs if schedule.is_lost(run)]
    recipes = {
        entrant.name: recipe_of(
            models[entrant.name].settings, without=entrant.search.settings if entrant.search else ()
        )
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
            "reason": "none of its trials has a score"
            if isinstance(entrant.search, OptunaSearch)
            else f"it diverged at every {next(iter(short_names(entrant.search.settings).values()))} of its grid",
            "log": str(entrants[0].folder / "logs"),
        }
        for entrant in entrants
        if entrant.search is not None and entrant.has_no_best()
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
            **({} if entrant.search is None else {"tuning": entrant.search.report()}),
            "runs": [facts[run.name] for run in own],
        }
    return results


def _default_jobs(settings: dict[str, Any]) -> int:
    on_gpu = torch.cuda.is_available() and settings["trainer"].get("accelerator") != "cpu"
    return 1 if on_gpu else max(1, cores() // threads_of_a_run())
