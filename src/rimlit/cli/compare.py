"""``rimlit compare``: the words of its command line."""

import contextlib
import shlex
from typing import Any

from rimlit.cli.setup import prepare
from rimlit.comparison.comparing import compare
from rimlit.comparison.matching import TOLERANCE
from rimlit.comparison.study import study_of
from rimlit.comparison.tuning import EXAMPLE
from rimlit.console import say, show
from rimlit.errors import ConfigError, RunsFailedError

OWN = ("--seeds", "--match", "--match_to", "--match_tolerance", "--tune", "--jobs", "--name")


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
        tune=None if "tune" not in own else _grid(own["tune"]),
        command=command,
    )
    show(comparison.rich())
    for note in comparison.notes():
        say(note)
    if (study := study_of(comparison)) is not None:
        show(study.rich())
        for note in study.notes():
            say(note)
    say(f"Everything about this comparison: {comparison.folder}")
    if comparison.failed:
        names = "; ".join(f"{run['name']} ({run['reason']}; {run['log']})" for run in comparison.failed)
        raise RunsFailedError(f"{len(comparison.failed)} of the runs failed: {names}")


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


def _grid(text: str) -> dict[str, list[Any]]:
    key, is_grid, values = text.partition("=")
    words = [word.strip() for word in values.strip("[] ").split(",")]
    if not is_grid or not key or not all(words):
        raise ConfigError(f"tune must be a setting and its values, {EXAMPLE}; got {text!r}.")
    return {key.removeprefix("--"): [_value(word) for word in words]}


def _value(word: str) -> Any:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(word)
    return {"true": True, "false": False}.get(word.lower(), word)


def _number(name: str, value: Any, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        raise ConfigError(
            f"{name} must be {'a whole number' if kind is int else 'a number'}; got {value!r}."
        ) from error
