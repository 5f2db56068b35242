"""Resolved settings: what differs between two, and the task and data they describe."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from torch import nn

from rimlit.backbones import RIM
from rimlit.cli.configs import find_config
from rimlit.data import DataModule
from rimlit.errors import ConfigError
from rimlit.spec import build, find_class, flat_settings, to_plain, to_spec
from rimlit.tasks import Task
from rimlit.tasks.signatures import declared_sizes
from rimlit.training.agreement import OWN_TO_A_PROCESS

OF_ONE_RUN = (
    "name",
    "resume",
    "ckpt_path",
    "allow_changes",
    "match",
    "match_to",
    "match_tolerance",
    "tune",
    "return_predictions",
    "config",
)
"""Settings that belong to one run, or to one command, and not to what is trained."""


WHERE = ("default_root_dir", "accelerator", "devices")
"""Settings of the trainer that say where a run computes, and not what."""


def own_settings(text: str) -> dict[str, Any]:
    """Return the resolved settings of a command, as YAML, without those that belong to one run only."""
    settings: dict[str, Any] = {key: value for key, value in yaml.safe_load(text).items() if key not in OF_ONE_RUN}
    settings.get("trainer", {}).pop("default_root_dir", None)
    return settings


def config_text(settings: dict[str, Any]) -> str:
    """Return settings as the text of a config."""
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def changed_setting(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first setting that differs, with both values: one of what is run, not where."""
    # what is in the places of data, each run compares itself
    free = (*OWN_TO_A_PROCESS, *(f"trainer.{name}" for name in WHERE))
    old, new = flat_settings(before), flat_settings(now)
    for key in sorted((old.keys() | new.keys()) - set(free)):
        if key.startswith(("data.", "model.", "seed_everything", "trainer.")) and old.get(key) != new.get(key):
            return key, old.get(key), new.get(key)
    return None


def first_rim(settings: Mapping[Path, Mapping[str, Any]]) -> Path | None:
    """Return the first config whose backbone is a :class:`rimlit.backbones.RIM`, None where there is none."""
    for path, each in settings.items():
        backbone = each["model"].get("init_args", {}).get("backbone")
        if isinstance(backbone, Mapping) and issubclass(find_class(backbone["class_path"], nn.Module), RIM):
            return path
    return None


def find_target(given: str | None, configs: Sequence[str | Path], default: Path | None = None) -> Path:
    """Return the config that others are matched to.

    Args:
        given: What the user named.
        configs: The configs of the command.
        default: What is taken where the user named none; by default the ``rim.yaml`` beside the first config.

    Raises:
        ConfigError: There is none.
    """
    if given is not None:
        return find_config(given)
    beside = default or (Path(configs[0]).with_name("rim.yaml") if configs else Path("rim.yaml"))
    if not beside.is_file():
        raise ConfigError(f"There is no {beside} to match: give --match_to CONFIG.")
    return beside


def require_same_data(settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to compare what is about different data.

    Args:
        settings: Resolved settings by the name of their config.

    Raises:
        ConfigError: Two of them name different data modules, or the same with different arguments.
    """
    free = ("init_args.num_workers", "init_args.batch_size", "init_args.eval_batch_size", "init_args.seed")
    flat = {
        name: {k: v for k, v in flat_settings(each["data"]).items() if k not in free}
        for name, each in settings.items()
    }
    first, *others = flat
    for other in others:
        for key in sorted(flat[first].keys() | flat[other].keys()):
            values = [flat[name].get(key) for name in (first, other)]
            if values[0] != values[1]:
                raise ConfigError(
                    f"{first} and {other} are about different data: data.{key.removeprefix('init_args.')} is "
                    f"{values[0]!r} and {values[1]!r}."
                )


def build_data(settings: Mapping[str, Any]) -> DataModule:
    """Build the data module of resolved settings."""
    data: DataModule = build(to_spec(settings["data"], "data"), DataModule)
    return data


def build_task(settings: Mapping[str, Any], data: DataModule) -> Task:
    """Build the task of resolved settings, for the sizes of ``data``."""
    spec = to_spec(settings["model"], "model")
    init_args = with_sizes(find_class(spec["class_path"], Task), spec["init_args"], data)
    task: Task = build({**spec, "init_args": init_args}, Task)
    return task


def with_sizes(task: type[Task], init_args: Mapping[str, Any], data: DataModule) -> dict[str, Any]:
    """Return a task's arguments with those that the data module declares.

    Args:
        task: Its class.
        init_args: What is given.
        data: The data module.

    Raises:
        ConfigError: Another value is given than the data module declares.
    """
    defaults = _defaults(task)
    sizes = declared_sizes(data, defaults)
    for name, declared in sizes.items():
        given = to_plain(init_args.get(name), name)
        if given is not None and given not in (declared, defaults[name]):
            raise ConfigError(
                f"model.{name} comes from the data module, which says {declared!r}; remove {name}={given!r}."
            )
    return {**init_args, **sizes}


def _defaults(task: type[Task]) -> dict[str, Any]:
    """Return the default of each argument of a class, through ``**kwargs`` to those of its bases."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(task, "task", fail_untyped=False)
    return dict(vars(parser.get_defaults().task))
