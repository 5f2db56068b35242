"""YAML files that anyone may have written: UTF-8, bounded in size, depth and aliases, no key twice."""

from pathlib import Path
from typing import Any

import yaml

from rimlit.errors import ConfigError

MOST_BYTES, MOST_VALUES, MOST_LEVELS = 2**20, 20_000, 50
"""Bounds of a config: bytes of the file, values with all aliases written out, and levels of nesting."""


class UnusableError(ValueError):
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
        raise UnusableError(f"it has more than {MOST_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableError(f"it is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}") from error
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


def load_given(path: Path, whose: str, what: str) -> Any:
    """Return what a YAML file that a user named holds.

    Args:
        path: The file.
        whose: What messages begin with.
        what: What the file is to hold, with an example.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return load_yaml(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{whose}: there is no such file. It holds {what}.") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{whose} is not valid YAML: {' '.join(str(error).split())[:300]}.") from error


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
                raise UnusableError(f"the alias *{event.anchor} refers to a node that contains it")
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
            raise UnusableError(f"it is nested deeper than {MOST_LEVELS} levels")
        if total > MOST_VALUES:
            raise UnusableError(
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
                        None, None, f"the key {key.value!r} occurs twice", key.start_mark
                    )
                keys.add((key.tag, str(key.value)))
        new = [child for child in children if id(child) not in seen]
        seen.update(map(id, new))
        waiting += new
