"""What a comparison will run: configs read, checked against each other and matched in size."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rimlit.cli.arguments import words_of
from rimlit.cli.configs import find_config
from rimlit.cli.parser import SettingsReader
from rimlit.cli.settings import (
    build_data,
    build_task,
    find_target,
    first_rim,
    require_same_data,
)
from rimlit.comparison.entrants import Entrant, Model
from rimlit.comparison.matching import MEASURES, Match, Measure, match_parameters
from rimlit.comparison.optuna_search import OptunaSearch, StudyPlace
from rimlit.comparison.space import Space
from rimlit.comparison.tuning import (
    Grid,
    GridSearch,
    Search,
    Trial,
    changes_model,
    read_grid,
    require_same_budget,
)
from rimlit.data import DataModule
from rimlit.errors import ConfigError
from rimlit.tasks import Task
from rimlit.tracking.recording import sizes_of
from rimlit.tracking.run_folder import RunFolder

log = logging.getLogger(__name__)

NOT_HERE = ("--seed_everything", "--resume", "--ckpt_path", "--test_after_fit", "--trainer.default_root_dir")
EVERY_RUN = ("--trainer.enable_progress_bar=false",)


def override_words(overrides: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Return overrides as words of a command line; refuse what a comparison sets itself."""
    words = words_of(overrides) if isinstance(overrides, Mapping) else list(overrides)
    for word in words:
        if word.partition("=")[0] in NOT_HERE:
            raise ConfigError(f"{word.partition('=')[0]} is set by compare itself, for each of its runs.")
    return words


class Tune(NamedTuple):
    """What is tuned for every model.

    Args:
        grid: A setting and its values, None where a space is searched.
        space: A space, None where there is none.
        num_trials: Trials of each model in a space.
        storage: Where a search of a space is kept; by default a journal in the comparison's folder.
        prune: Whether hopeless trials are stopped.
    """

    grid: Grid | None = None
    space: Space | None = None
    num_trials: int = 0
    storage: str | None = None
    prune: bool = True


class Plan(NamedTuple):
    """What a comparison will run: its entrants, their data, and the config that others are matched to."""

    entrants: list[Entrant]
    data: DataModule
    target: str


def plan(
    configs: list[str],
    overrides: list[str],
    seeds: list[int],
    match: Measure | None,
    match_to: str | None,
    tolerance: float,
    name: str | None,
    tune: Tune | None = None,
    kind: str = "compare",
) -> Plan:
    """Read, tune and match the configs.

    Args:
        configs: Their names.
        overrides: Words that hold for all runs.
        seeds: Seeds.
        match: What is matched.
        match_to: Config that is matched.
        tolerance: How much larger a matched model may be, as a share.
        name: Name of the comparison.
        tune: What is tuned.
        kind: What its folder's name begins with.

    Raises:
        ConfigError: The configs cannot be compared, tuned or matched.
    """
    if name is not None and (not name or Path(name).name != name):
        raise ConfigError(f"name must be that of a folder, without a way to it; got name={name!r}.")
    reader = SettingsReader()
    paths = [find_config(config) for config in configs]

    def settings_of(path: Path, words: Sequence[str] = ()) -> tuple[dict[str, Any], Path]:
        return reader.read(["--config", str(path), *EVERY_RUN, *overrides, *words])

    read = {path: settings_of(path) for path in paths}
    target = paths[0]
    if match:
        target = find_target(match_to, paths, first_rim({path: read[path][0] for path in paths}))
        read[target] = read[target] if target in read else settings_of(target)
    resolved = {config: read[path][0] for config, path in zip(configs, paths, strict=True)}
    require_same_data(resolved)
    require_same_data({configs[0]: read[paths[0]][0], f"match_to={match_to or str(target)!r}": read[target][0]})
    tunes = tunes_of(resolved, tune, overrides)
    data = build_data(read[paths[0]][0])
    aim = build_task(read[target][0], data) if match else None

    def sized(path: Path, settings: dict[str, Any]) -> tuple[Task, Match | None]:
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

    def builder(entrant: str, config: str, path: Path) -> Callable[[Trial | None], Model]:
        own: list[tuple[Task, Match | None]] = []  # of the config as it is

        def build(trial: Trial | None) -> Model:
            words = [] if trial is None else words_of(trial.values)
            settings = settings_of(path, words)[0] if words else copy.deepcopy(read[path][0])
            words = [*EVERY_RUN, *overrides, *words]
            if trial is not None:
                require_validations(config, settings)
            if trial is not None and changes_model(list(trial.values)):
                task, found = sized(path, settings)
            else:
                if not own:
                    own.append(sized(path, settings))
                task, found = own[0]
            model = entrant if trial is None else f"{entrant}-{trial.label}"
            if found is not None:
                settings["model"]["init_args"]["backbone"]["init_args"]["hidden_size"] = found.width
                words.append(f"--model.backbone.hidden_size={found.width}")
                log.info("%s: %s.", model, found)
            return Model(model, config, words, settings, task, found)

        return build

    entrants: list[Entrant] = []
    folder = read[paths[0]][1].parent / kind
    for config, path in zip(configs, paths, strict=True):
        settings, run_folder = read[path]
        if "match" in settings:
            raise ConfigError(f"{config} holds match={settings['match']!r}: give it to compare, for all configs.")
        entrant = run_folder.name.removesuffix(f"-seed{settings['seed_everything']}")
        if entrant in [other.name for other in entrants]:
            raise ConfigError(
                f"Two configs are called {entrant!r}: {', '.join(configs)}. Give one another file name."
            )
        if not entrants:  # a search alone is named after its config
            folder = folder.with_name(f"{kind}-{name or entrant}" if name or kind == "tune" else kind)
        build, tuned = builder(entrant, config, path), tunes[config]
        search = None
        if tuned is not None:
            require_validations(config, settings)
            search = search_of(entrant, tuned, seeds[0], folder, build(None), settings_of, path)
        entrants.append(Entrant(entrant, seeds, folder, build, search))
    for each in entrants:  # a mistake is found before anything runs
        each.first_runs()
    return Plan(entrants, data, match_to or "/".join(target.with_suffix("").parts[-2:]))


def search_of(
    entrant: str,
    tune: Tune,
    seed: int,
    folder: Path,
    model: Model,
    settings_of: Callable[[Path, Sequence[str]], Any],
    path: Path,
) -> Search:
    """Return the search of a model; a setting or a value of a space that no config may have is refused.

    Args:
        entrant: Name of the model.
        tune: What is tuned.
        seed: Seed of the trials.
        folder: The comparison's folder.
        model: The model as its config has it.
        settings_of: Reads the config at further words.
        path: The config.

    Raises:
        ConfigError: It is.
    """

    def folder_at(label: str) -> RunFolder:
        return RunFolder(folder / f"{entrant}-{label}-seed{seed}")

    if tune.grid is not None:
        return GridSearch(tune.grid, seed, folder_at)
    assert tune.space is not None
    for dimension in tune.space.dimensions:
        for value in dimension.values:
            settings_of(path, words_of({dimension.setting: value}))
    steps = model.settings["trainer"].get("max_steps", -1)
    return OptunaSearch(
        tune.space,
        tune.num_trials,
        seed,
        folder_at,
        StudyPlace(
            tune.storage or str(folder / "trials.journal"), f"{folder.parent.name}/{folder.name}/{entrant}"
        ),
        monitor=model.task.monitor,
        higher_is_better=model.task.higher_is_better,
        steps=steps if steps > 0 else None,
        prune=tune.prune,
    )


def tunes_of(
    settings: Mapping[str, Mapping[str, Any]], tune: Tune | None, overrides: Sequence[str]
) -> dict[str, Tune | None]:
    """Return what is tuned for each config: its own grid, or else what is given for all.

    Args:
        settings: Resolved settings by the name of their config.
        tune: What is given for all, None where nothing is.
        overrides: Words that hold for all runs.

    Raises:
        ConfigError: A grid cannot be used, numbers of trials differ, or an override sets what is tuned.
    """
    tunes = {
        config: Tune(read_grid(each["tune"], f"{config}: ")) if "tune" in each else tune
        for config, each in settings.items()
    }
    require_same_budget(
        {
            config: 0 if each is None else len(each.grid.values) if each.grid else each.num_trials
            for config, each in tunes.items()
        }
    )
    given = {word.partition("=")[0].removeprefix("--").replace(".init_args", "") for word in overrides}
    for each in tunes.values():
        for setting in () if each is None else (each.grid.setting,) if each.grid else each.space.settings:  # type: ignore[union-attr]
            if setting.replace(".init_args", "") in given:
                raise ConfigError(
                    f"{setting} is tuned, and cannot be given for all runs as well: leave out one of the two."
                )
    return tunes


def require_validations(config: str, settings: Mapping[str, Any]) -> None:
    """Refuse to tune what is never validated, or keeps no best checkpoint."""
    for name, off in (("limit_val_batches", 0), ("enable_checkpointing", False)):
        value = settings["trainer"].get(name)
        if value is not None and value == off:
            raise ConfigError(f"{config}: tune chooses by the best validation; got trainer.{name}={value!r}.")
