"""The words of a command line before they are parsed: trust, names of configs, YAML files."""

import itertools
import os
from pathlib import Path
from typing import Any

import yaml

from rimlit.cli.configs import find_config
from rimlit.errors import ConfigError
from rimlit.spec import trust


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
    """Replace names of shipped configs by their files."""
    resolved = list(arguments)
    for index, argument in enumerate(resolved):
        if argument in ("--config", "-c") and index + 1 < len(resolved):
            resolved[index + 1] = str(_readable(find_config(resolved[index + 1])))
        elif argument.startswith("--config="):
            resolved[index] = f"--config={_readable(find_config(argument.removeprefix('--config=')))}"
    return resolved


def _readable(path: Path) -> Path:
    """Refuse a config that is no YAML while its name is known: the parser sees only its text."""
    try:
        content = yaml.load(path.read_text(), _UniqueKeys)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # a date of month 13 is a ValueError
        reason = " ".join(str(error).split()).replace('"<unicode string>"', "it")
        raise ConfigError(f"config={str(path)!r} is not valid YAML: {reason}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config={str(path)!r} must hold keys such as model, data and trainer; got {content!r}.")
    return path


class _UniqueKeys(yaml.SafeLoader):
    """Refuse a key that stands twice: YAML would take the second without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping."""
        seen: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.append(key)  # a list or mapping as a key is refused below
        return super().construct_mapping(node, deep)


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
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return {}  # the parser says what is wrong with it
    return content if isinstance(content, dict) else {}
