"""What a comparison will run: configs read, checked against each other and matched in size."""

import logging
from collections.abc import Mapping, Sequence
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
from rimlit.comparison.matching import Match, Measure, match_parameters
from rimlit.comparison.runs import Run
from rimlit.data import DataModule
from rimlit.errors import ConfigError
from rimlit.tasks import Task
from rimlit.tracking.run_folder import RunFolder

log = logging.getLogger(__name__)

NOT_HERE = ("--seed_everything", "--resume", "--ckpt_path", "--test_after_fit", "--trainer.default_root_dir")
EVERY_RUN = ("--trainer.enable_progress_bar=false",)


class Model(NamedTuple):
    """One config of a comparison."""

    name: str
    config: str
    arguments: list[str]
    settings: dict[str, Any]
    task: Task
    match: Match | None


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


def run_of(model: Model, seed: int, folder: Path) -> Run:
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
