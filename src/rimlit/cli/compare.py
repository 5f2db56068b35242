"""``rimlit compare``, and the same from Python: several configs, several seeds, side by side."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from filelock import FileLock, Timeout
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console

from rimlit.checks import require_positive
from rimlit.cli.arguments import resolve_configs, words_of
from rimlit.cli.configs import find_config
from rimlit.cli.failures import cause_of
from rimlit.cli.messages import DEEP_IN_THE_PARSER, explain, trusted_imports
from rimlit.cli.places import choose_folder, dataset_of
from rimlit.cli.run import RimlitCLI
from rimlit.cli.settings import (
    build_data,
    build_task,
    changed_setting,
    find_target,
    first_rim,
    require_same_data,
)
from rimlit.cli.setup import prepare
from rimlit.comparison.gathering import differing, facts_of, read_settings, recipe_of
from rimlit.comparison.matching import MEASURES, TOLERANCE, WORDS, Match, Measure, match_parameters
from rimlit.comparison.results import Comparison
from rimlit.comparison.runs import Run, cores, run_all, threads_of_a_run
from rimlit.console import say, show
from rimlit.data import DataModule
from rimlit.errors import ConfigError, RunsFailedError
from rimlit.files import try_folder
from rimlit.tasks import Task
from rimlit.tracking import MLflowTracker
from rimlit.tracking.optional import protect
from rimlit.tracking.recording import data_of, git_commit, machine, sizes_of
from rimlit.tracking.run_folder import RunFolder

log = logging.getLogger(__name__)

OWN = ("--seeds", "--match", "--match_to", "--match_tolerance", "--jobs", "--name")
NOT_HERE = ("--seed_everything", "--resume", "--ckpt_path", "--test_after_fit", "--trainer.default_root_dir")
EVERY_RUN = ("--trainer.enable_progress_bar=false",)


class SettingsReader(RimlitCLI):
    """The settings that :class:`RimlitCLI` resolves from the arguments of ``fit``, without a run."""

    def __init__(self) -> None:
        super().__init__("", None)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse nothing yet."""
        self.config = Namespace(subcommand="fit")  # type: ignore[no-untyped-call]

    def _set_seed(self) -> None:
        """Do nothing."""

    def before_instantiate_classes(self) -> None:
        """Do nothing."""

    def instantiate_classes(self) -> None:
        """Do nothing."""

    def after_instantiate_classes(self) -> None:
        """Do nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Do nothing."""

    def read(self, arguments: list[str]) -> tuple[dict[str, Any], Path]:
        """Return the resolved settings and the folder of the run that ``rimlit fit`` would start.

        Args:
            arguments: What would follow ``fit``.

        Raises:
            ConfigError: They are wrong.
        """
        parser = self._parser("fit")
        try:
            with trusted_imports():
                config = self.parser.parse_args(resolve_configs(["fit", *arguments]))["fit"]
        except (ArgumentError, *DEEP_IN_THE_PARSER) as error:
            raise ConfigError(explain(error, parser)) from error
        settings: dict[str, Any] = yaml.safe_load(parser.dump(config, skip_none=True))
        return settings, choose_folder("fit", config).path


class Model(NamedTuple):
    """One config of a comparison."""

    name: str
    config: str
    arguments: list[str]
    settings: dict[str, Any]
    task: Task
    match: Match | None


def run_compare(arguments: list[str]) -> None:
    """Run the command.

    Raises:
        RunsFailedError: A run failed.
        ConfigError, DataError, StoppedError: As :func:`compare`.
    """
    command = shlex.join(["rimlit", "compare", *arguments])
    configs, own, overrides = _split(prepare(arguments))
    comparison = compare(
        configs,
        seeds=_seeds(own.get("seeds", "3")),
        match=own.get("match"),  # type: ignore[arg-type]
        match_to=own.get("match_to"),
        match_tolerance=_number("match_tolerance", own.get("match_tolerance", TOLERANCE), float),
        jobs=None if "jobs" not in own else _number("jobs", own["jobs"], int),
        name=own.get("name"),
        overrides=overrides,
        command=command,
    )
    show(comparison.rich())
    for note in comparison.notes():
        say(note)
    say(f"Everything about this comparison: {comparison.folder}")
    if comparison.failed:
        names = "; ".join(f"{run['name']} ({run['reason']}; {run['log']})" for run in comparison.failed)
        raise RunsFailedError(f"{len(comparison.failed)} of the runs failed: {names}")


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
            (``flops``) or numbers of state (``state``) than that of ``match_to``.
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
        models, data, folder, target = _plan(
            [str(config) for config in configs],
            _words(overrides),
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
    runs = [_run(model, seed, folder) for seed in numbers for model in models]
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


def _plan(
    configs: list[str],
    overrides: list[str],
    match: Measure | None,
    match_to: str | None,
    tolerance: float,
    name: str | None,
) -> tuple[list[Model], DataModule, Path, str]:
    """Read and match the configs.

    Returns:
        The models, their data, the comparison's folder and the config that was matched.
    """
    reader = SettingsReader()
    paths = [find_config(config) for config in configs]

    def settings_of(path: Path) -> tuple[dict[str, Any], Path]:
        return reader.read(["--config", str(path), *EVERY_RUN, *overrides])

    read = {path: settings_of(path) for path in paths}
    target = paths[0]
    if match:
        target = find_target(match_to, paths, first_rim({path: read[path][0] for path in paths}))
        read[target] = read[target] if target in read else settings_of(target)
    require_same_data({config: read[path][0] for config, path in zip(configs, paths, strict=True)})
    require_same_data({configs[0]: read[paths[0]][0], f"match_to={match_to or str(target)!r}": read[target][0]})
    data = build_data(read[paths[0]][0])
    aim = build_task(read[target][0], data) if match else None
    models: list[Model] = []
    for config, path in zip(configs, paths, strict=True):
        settings, run_folder = read[path]
        if "match" in settings:
            raise ConfigError(f"{config} holds match={settings['match']!r}: give it to compare, for all configs.")
        model = run_folder.name.removesuffix(f"-seed{settings['seed_everything']}")
        if model in [other.name for other in models]:
            raise ConfigError(
                f"Two configs are called {model!r}: {', '.join(configs)}. Give one another file name."
            )
        arguments, task, found = [*EVERY_RUN, *overrides], build_task(settings, data), None
        if aim is not None and match is not None and path.resolve() != target.resolve():
            found = match_parameters(task, aim, measure=match, tolerance=tolerance)
            task = found.model
            settings["model"]["init_args"]["backbone"]["init_args"]["hidden_size"] = found.width
            arguments.append(f"--model.backbone.hidden_size={found.width}")
            log.info("%s: %s.", model, found)
        models.append(Model(model, config, arguments, settings, task, found))
    folder = read[paths[0]][1].parent / ("compare" if name is None else f"compare-{name}")
    if name is not None and (not name or Path(name).name != name):
        raise ConfigError(f"name must be that of a folder, without a way to it; got name={name!r}.")
    return models, data, folder, match_to or "/".join(target.with_suffix("").parts[-2:])


def _run(model: Model, seed: int, folder: Path) -> Run:
    """Describe a run; look whether it is done.

    Raises:
        ConfigError: There is one of this name with other settings.
    """
    name = f"{model.name}-seed{seed}"
    arguments = ["fit", "--config", model.config, *model.arguments, f"--seed_everything={seed}"]
    arguments.append(f"--trainer.default_root_dir={folder / name}")
    run = Run(model.name, seed, arguments, RunFolder(folder / name), folder / "logs" / f"{name}.log")
    steps = model.settings["trainer"].get("max_steps", -1)
    run.steps = steps if steps > 0 else None
    before = read_settings(run.folder.path / "config.yaml")
    if before is not None:
        now = {**model.settings, "seed_everything": seed}
        changed = changed_setting(before, now, ("data.", "model.", "seed_everything", "trainer."))
        if changed is not None:
            key, old, value = changed
            raise ConfigError(
                f"{run.folder.path} was started with {key}={old!r}; got {value!r}. Give the same, or another "
                "--name for this comparison."
            )
    is_trained = run.folder.read_state().get("status") == "finished"
    if is_trained and run.folder.has_own_test():
        run.status = "finished"
    return run


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


def _words(overrides: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Return overrides as words of a command line; refuse what a comparison sets itself."""
    words = words_of(overrides) if isinstance(overrides, Mapping) else list(overrides)
    for word in words:
        if word.partition("=")[0] in NOT_HERE:
            raise ConfigError(f"{word.partition('=')[0]} is set by compare itself, for each of its runs.")
    return words


def _split(arguments: list[str]) -> tuple[list[str], dict[str, str], list[str]]:
    """Split a command line into configs, which come first, compare's own options, and what is for all runs.

    Raises:
        ConfigError: An option has no value, or a word is no option's.
    """
    start = next((index for index, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    configs = arguments[:start]
    own: dict[str, str] = {}
    overrides: list[str] = []
    pending = iter(arguments[start:])
    takes_value = False
    for word in pending:
        option, is_joined, value = word.partition("=")
        if option not in OWN:
            if not word.startswith("-") and not takes_value:
                raise ConfigError(
                    f"{word!r} stands behind an option that takes no more words. Configs come first: "
                    f"rimlit compare {' '.join([*configs, word])} --seeds 3."
                )
            takes_value = word.startswith("-") and not is_joined
            overrides.append(word)
            continue
        takes_value = False
        given = value if is_joined else next(pending, None)
        if given is None:
            raise ConfigError(f"{option} needs a value.")
        own[option.removeprefix("--")] = given
    return configs, own, overrides


def _seeds(text: str) -> int | list[int]:
    parts = [part.strip() for part in text.strip("[]").split(",")]
    if not all(part.isdigit() for part in parts):
        raise ConfigError(f"seeds must be a number, or a list such as 0,5,7; got seeds={text!r}.")
    return int(parts[0]) if len(parts) == 1 and "[" not in text else [int(part) for part in parts]


def _number(name: str, value: Any, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        raise ConfigError(
            f"{name} must be {'a whole number' if kind is int else 'a number'}; got {value!r}."
        ) from error
