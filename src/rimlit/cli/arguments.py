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


MOST_BYTES, MOST_VALUES, MOST_LEVELS = 2**20, 20_000, 50
"""Bounds of a config: bytes of the file, values with all aliases written out, and levels of nesting."""


def _readable(name: str) -> Path:
    """Refuse a config that is no YAML while its name is known: the parser sees only its text."""
    if name.endswith(".ckpt"):
        raise ConfigError(f"config={name!r} is a checkpoint: name it by --ckpt_path.")
    path = find_config(name)
    try:
        content = load_yaml(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # a date of month 13 is a ValueError
        reason = " ".join(str(error).split()).replace('"<unicode string>"', "it").rstrip(".")
        what = "cannot be used" if isinstance(error, _UnusableError) else "is not valid YAML"
        raise ConfigError(f"config={str(path)!r} {what}: {reason[:500]}.") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        shown = repr(content)
        raise ConfigError(
            f"config={str(path)!r} must hold keys such as model, data and trainer; got "
            f"{shown if len(shown) < 100 else shown[:100] + ' …'}."
        )
    return path


class _UnusableError(ValueError):
    """A config is valid YAML perhaps, but too large, nested too deeply, or no UTF-8."""


def load_yaml(path: Path) -> Any:
    """Return what a config holds.

    Raises:
        OSError: It cannot be read.
        ValueError, yaml.YAMLError: It is not UTF-8 or YAML, has a key twice, or is larger than a config may be.
    """
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise _UnusableError(f"it has more than {MOST_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _UnusableError(f"it is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}") from error
    _require_bounds(text)
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _require_unique_keys(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _require_bounds(text: str) -> None:
    """Raise where a text is nested deeper, or holds more, than a config may; aliases count in full.

    Reads events only, which takes time and memory in proportion to the text's length.
    """
    sizes: dict[str | None, int] = {}
    opened: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in opened):
                raise _UnusableError(f"the alias *{event.anchor} stands inside what it names")
            total += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
        if len(opened) > MOST_LEVELS:
            raise _UnusableError(f"it is nested deeper than {MOST_LEVELS} levels")
        if total > MOST_VALUES:
            raise _UnusableError(
                f"it holds more than {MOST_VALUES:,} values, those of its aliases counted each time"
            )


def _require_unique_keys(node: yaml.Node) -> None:
    """Raise where a key occurs twice in a mapping: YAML would silently use the second."""
    waiting, seen = [node], {id(node)}
    while waiting:
        node = waiting.pop()
        children = list(node.value) if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            keys = set()
            for key, value in node.value:
                children += [key, value]
                if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in keys:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands twice", key.start_mark
                    )
                keys.add((key.tag, str(key.value)))
        new = [child for child in children if id(child) not in seen]
        seen.update(map(id, new))
        waiting += new


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
