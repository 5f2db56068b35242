"""The words of a command line before they are parsed: trust, names of configs, YAML files."""

import itertools
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rimlit.cli.configs import find_config
from rimlit.errors import ConfigError
from rimlit.spec import to_plain, trust
from rimlit.yaml_files import UnusableError, load_yaml


def take_trust(arguments: list[str]) -> list[str]:
    """Take ``--trust`` from the command line, the only place besides the environment that may hold it."""
    rest, named = [], []
    pending = iter(arguments)
    for argument in pending:
        if argument == "--trust":
            package = next(pending, None)
            if package is None:
                raise ConfigError("--trust needs the name of a package.")
            named.append(package)
        elif argument.startswith("--trust="):
            named.append(argument.removeprefix("--trust="))
        else:
            rest.append(argument)
    for package in named:
        trust(package)
    if named:  # for the processes this one starts
        os.environ["RIMLIT_TRUST"] = ",".join([*named, os.environ.get("RIMLIT_TRUST", "")]).strip(",")
    return rest


def resolve_configs(arguments: list[str]) -> list[str]:
    """Name configs by ``--config``, put the first one first, and replace names of shipped ones by their files.

    ``fit copying/rim trainer/quick --name a`` is ``fit --config copying/rim --config trainer/quick --name a``. An
    option given before the first config is moved behind it: the config decides which classes it belongs to.
    """
    options = next((index for index, word in enumerate(arguments) if index and word.startswith("-")), None)
    named = arguments[1:options]
    resolved = [*arguments[:1], *(f"--config={name}" for name in named), *arguments[len(named) + 1 :]]
    for index, argument in enumerate(resolved):
        if argument in ("--config", "-c") and index + 1 < len(resolved):
            resolved[index + 1] = str(_readable(resolved[index + 1]))
        elif argument.startswith("--config="):
            resolved[index] = f"--config={_readable(argument.removeprefix('--config='))}"
    first = next((index for index, word in enumerate(resolved) if word.partition("=")[0] in ("--config", "-c")), 0)
    if first > 1:
        words = 1 if "=" in resolved[first] else 2
        config = resolved[first : first + words]
        resolved = [*resolved[:1], *config, *resolved[1:first], *resolved[first + words :]]
    return resolved


def _readable(name: str) -> Path:
    """Refuse a config that is not YAML while its name is known: the parser sees only its text."""
    if name.endswith(".ckpt"):
        raise ConfigError(f"config={name!r} is a checkpoint: name it by --ckpt_path.")
    path = find_config(name)
    try:
        content = load_yaml(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # a date of month 13 is a ValueError
        reason = " ".join(str(error).split()).replace('"<unicode string>"', "it").rstrip(".")
        what = "cannot be used" if isinstance(error, UnusableError) else "is not valid YAML"
        raise ConfigError(f"config={str(path)!r} {what}: {reason[:500]}.") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        shown = repr(content)
        raise ConfigError(
            f"config={str(path)!r} must hold keys such as model, data and trainer; got "
            f"{shown if len(shown) < 100 else shown[:100] + ' …'}."
        )
    if not isinstance(content.get("trainer", {}), dict):
        raise ConfigError(
            f"config={str(path)!r}: trainer must be a mapping of settings; got {content['trainer']!r}."
        )
    return path


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as words of a command line, values as YAML in one line."""
    plain = {key: to_plain(value, key) for key, value in settings.items()}
    return [f"--{key}={value if isinstance(value, str) else _one_line(value)}" for key, value in plain.items()]


def _one_line(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize).removesuffix("...\n").strip()


def value_of(arguments: list[str], option: str) -> str | None:
    """Return what follows ``option``, None where it is not given."""
    for index, argument in enumerate(arguments):
        if argument == option and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{option}="):
            return argument.removeprefix(f"{option}=")
    return None


def named_configs(arguments: list[str]) -> list[str]:
    """Return the config files named on the command line."""
    following = [value for option, value in itertools.pairwise(arguments) if option in ("--config", "-c")]
    return following + [word.removeprefix("--config=") for word in arguments if word.startswith("--config=")]


def shared_options(arguments: list[str]) -> list[str]:
    """Return the options of a command line that also hold for the model it is matched to."""
    shared = []
    for index, word in enumerate(arguments):
        is_shared = word.startswith(("--model.", "--data.")) and ".backbone" not in word.partition("=")[0]
        if is_shared or word.partition("=")[0] in ("--model", "--data"):
            shared.append(word)
            if "=" not in word and index + 1 < len(arguments):
                shared.append(arguments[index + 1])
    return shared


def read_yaml(path: str) -> dict[str, Any]:
    """Return the mapping in a YAML file, empty where it holds none."""
    try:
        content = load_yaml(Path(path))
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # the parser says what is wrong with it
    return content if isinstance(content, dict) else {}
