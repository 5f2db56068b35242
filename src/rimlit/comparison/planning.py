"""What a comparison will run: configs read, checked against each other and matched in size."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rimlit.cli.arguments import words_of
from rimlit.cli.configs import find_config
from rimlit.cli.parser import SettingsReader
from rimlit.cli.settings import (
    build_data,
    build_task,
    changed_setting,
    find_target,
    first_rim,
    require_same_data,
)
from rimlit.comparison.gathering import read_settings
from rimlit.comparison.matching import MEASURES, Match, Measure, match_parameters
from rimlit.comparison.runs import Run
from rimlit.comparison.tuning import Grid, Tuning, read_grid, require_same_budget
from rimlit.data import DataModule
from rimlit.errors import ConfigError
from rimlit.tasks import Task
from rimlit.tracking.recording import sizes_of
from rimlit.tracking.run_folder import RunFolder

log = logging.getLogger(__name__)

NOT_HERE = ("--seed_everything", "--resume", "--ckpt_path", "--test_after_fit", "--trainer.default_root_dir")
EVERY_RUN = ("--trainer.enable_progress_bar=false",)


class Model(NamedTuple):
    """A config of a comparison, at one value of what is tuned."""

    name: str
    config: str
    arguments: list[str]
    settings: dict[str, Any]
    task: Task
    match: Match | None


@dataclass
class Entrant:
    """A config of a comparison, with its models: one for each value of what is tuned, or a single one.

    Args:
        name: Its name in the comparison.
        models: The models, in the order of the grid.
        seeds: Seeds that the best of them is trained with; the first one is also that of the tuning.
        folder: The comparison's folder.
        grid: What is tuned.
    """

    name: str
    models: list[Model]
    seeds: list[int]
    folder: Path
    grid: Grid | None = None

    def __post_init__(self) -> None:
        self.tuning: Tuning | None = None
        if self.grid is not None:
            folders = [folder_of(model, self.seeds[0], self.folder) for model in self.models]
            self.tuning = Tuning(self.grid, self.seeds[0], folders)

    def chosen(self) -> Model | None:
        """Return the model that is compared; None before its value is known, and where all diverged."""
        if self.tuning is None or self.grid is None:
            return self.models[0]
        best = self.tuning.best()
        return None if best is None else self.models[self.grid.values.index(best)]

    def first_runs(self) -> list[Run]:
        """Return the runs that do not depend on a choice."""
        seeds = self.seeds if self.grid is None else self.seeds[:1]
        return [
            run_of(model, seed, self.folder, is_trial=self.grid is not None)
            for seed in seeds
            for model in self.models
        ]

    def further_runs(self) -> list[Run]:
        """Return the runs of the other seeds, once the best value is known."""
        model = None if self.grid is None else self.chosen()
        return [] if model is None else [run_of(model, seed, self.folder) for seed in self.seeds[1:]]

    @property
    def num_runs(self) -> int:
        """How many runs there will be; fewer where all diverge."""
        if self.tuning is None:
            return len(self.seeds)
        return len(self.models) + (0 if self.has_diverged() else len(self.seeds) - 1)

    def has_diverged(self) -> bool:
        """Return whether the training diverged at every value."""
        return self.tuning is not None and self.tuning.is_over() and self.tuning.best() is None


def override_words(overrides: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Return overrides as words of a command line; refuse what a comparison sets itself."""
    words = words_of(overrides) if isinstance(overrides, Mapping) else list(overrides)
    for word in words:
        if word.partition("=")[0] in NOT_HERE:
            raise ConfigError(f"{word.partition('=')[0]} is set by compare itself, for each of its runs.")
    return words


def plan(
    configs: list[str],
    overrides: list[str],
    seeds: list[int],
    match: Measure | None,
    match_to: str | None,
    tolerance: float,
    name: str | None,
    tune: Any = None,
) -> tuple[list[Entrant], DataModule, str]:
    """Read, tune and match the configs.

    Returns:
        The entrants, their data and the config that was matched.
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
    grids = grids_of({config: read[path][0] for config, path in zip(configs, paths, strict=True)}, tune, overrides)
    data = build_data(read[paths[0]][0])
    aim = build_task(read[target][0], data) if match else None
    folder = read[paths[0]][1].parent / ("compare" if name is None else f"compare-{name}")
    if name is not None and (not name or Path(name).name != name):
        raise ConfigError(f"name must be that of a folder, without a way to it; got name={name!r}.")

    def matched(path: Path, settings: dict[str, Any]) -> tuple[Task, Match | None]:
        task = build_task(settings, data)
        if aim is None or match is None:
            return task, None
        if path.resolve() == target.resolve():
            if sizes_of(task)[MEASURES[match]] != sizes_of(aim)[MEASURES[match]]:
                raise ConfigError(
                    f"tune changes the size of {target}, which others are matched to: leave out --match."
                )
            return task, None
        found = match_parameters(task, aim, measure=match, tolerance=tolerance)
        return found.model, found

    entrants: list[Entrant] = []
    for config, path in zip(configs, paths, strict=True):
        settings, run_folder = read[path]
        if "match" in settings:
            raise ConfigError(f"{config} holds match={settings['match']!r}: give it to compare, for all configs.")
        entrant = run_folder.name.removesuffix(f"-seed{settings['seed_everything']}")
        if entrant in [other.name for other in entrants]:
            raise ConfigError(
                f"Two configs are called {entrant!r}: {', '.join(configs)}. Give one another file name."
            )
        grid, models, pair = grids[config], [], None
        for value in (None,) if grid is None else grid.values:
            words = [*EVERY_RUN, *overrides]
            model = entrant
            if grid is not None:
                words += words_of({grid.setting: value})
                model = f"{entrant}-{grid.label(value)}"
                settings = reader.read(["--config", str(path), *words])[0]
                require_validations(config, settings)
            if pair is None or (grid is not None and grid.changes_model):
                pair = matched(path, settings)
            task, found = pair
            if found is not None:
                settings["model"]["init_args"]["backbone"]["init_args"]["hidden_size"] = found.width
                words.append(f"--model.backbone.hidden_size={found.width}")
                log.info("%s: %s.", model, found)
            models.append(Model(model, config, words, settings, task, found))
        entrants.append(Entrant(entrant, models, seeds, folder, grid))
    return entrants, data, match_to or "/".join(target.with_suffix("").parts[-2:])


def grids_of(
    settings: Mapping[str, Mapping[str, Any]], tune: Any, overrides: Sequence[str]
) -> dict[str, Grid | None]:
    """Return the grid of each config: its own, or else the one that is given for all.

    Args:
        settings: Resolved settings by the name of their config.
        tune: What is given for all, None where nothing is.
        overrides: Words that hold for all runs.

    Raises:
        ConfigError: A grid cannot be used, they are of different lengths, or an override sets what is tuned.
    """
    shared = None if tune is None else read_grid(tune)
    grids = {
        config: read_grid(each["tune"], f"{config}: ") if "tune" in each else shared
        for config, each in settings.items()
    }
    require_same_budget(grids)
    given = {word.partition("=")[0].removeprefix("--").replace(".init_args", "") for word in overrides}
    for grid in grids.values():
        if grid is not None and grid.setting.replace(".init_args", "") in given:
            raise ConfigError(
                f"{grid.setting} is tuned, and cannot be given for all runs as well: leave out one of the two."
            )
    return grids


def require_validations(config: str, settings: Mapping[str, Any]) -> None:
    """Refuse to tune what is never validated, or keeps no best checkpoint."""
    for name, off in (("limit_val_batches", 0), ("enable_checkpointing", False)):
        value = settings["trainer"].get(name)
        if value is not None and value == off:
            raise ConfigError(f"{config}: tune chooses by the best validation; got trainer.{name}={value!r}.")


def folder_of(model: Model, seed: int, folder: Path) -> RunFolder:
    """Return the folder of a model's run."""
    return RunFolder(folder / f"{model.name}-seed{seed}")


def run_of(model: Model, seed: int, folder: Path, *, is_trial: bool = False) -> Run:
    """Describe a run; look whether it is done.

    Args:
        model: The model.
        seed: The seed.
        folder: The comparison's folder.
        is_trial: Whether a training that diverged is done: it says what a value is worth.

    Raises:
        ConfigError: There is one of this name with other settings.
    """
    name = f"{model.name}-seed{seed}"
    arguments = ["fit", "--config", model.config, *model.arguments, f"--seed_everything={seed}"]
    arguments.append(f"--trainer.default_root_dir={folder / name}")
    run = Run(model.name, seed, arguments, folder_of(model, seed, folder), folder / "logs" / f"{name}.log")
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
    if run.folder.is_finished():
        run.status = "finished"
    elif is_trial and run.folder.has_diverged():
        run.status, run.reason = "failed", "it diverged"
    return run
