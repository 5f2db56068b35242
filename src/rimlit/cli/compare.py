"""``rimlit compare`` and ``rimlit tune``: the words of their command lines."""

import contextlib
import shlex
from typing import Any

from rimlit.cli.setup import prepare
from rimlit.comparison.comparing import compare
from rimlit.comparison.matching import TOLERANCE
from rimlit.comparison.results import Comparison
from rimlit.comparison.study import study_of
from rimlit.comparison.tuning import EXAMPLE
from rimlit.console import say, show, wrapped
from rimlit.errors import ConfigError, RunsFailedError

OWN = (
    *("--seeds", "--match", "--match_to", "--match_tolerance", "--jobs", "--name"),
    *("--tune", "--trials", "--storage", "--prune", "--on"),
)
FLAGS = ("--no-wait", "--collect")
TUNE_OWN = ("--space", "--trials", "--storage", "--prune", "--seed", "--jobs", "--name", "--on")


def run_compare(arguments: list[str]) -> None:
    """Run the command ``compare``.

    Raises:
        RunsFailedError: A run failed.
        ConfigError, DataError, StoppedError: As :func:`compare`.
    """
    command = shlex.join(["rimlit", "compare", *arguments])
    configs, own, overrides = _split(prepare(arguments), "compare", OWN)
    comparison = compare(
        configs,
        seeds=_seeds(own.get("seeds", "3")),
        match=own.get("match"),  # type: ignore[arg-type]
        match_to=own.get("match_to"),
        match_tolerance=_number("match_tolerance", own.get("match_tolerance", TOLERANCE), float),
        tune=None if "tune" not in own else _tune(own["tune"]),
        overrides=overrides,
        command=command,
        **_shared(own),
    )
    _show(comparison)


def run_tune(arguments: list[str]) -> None:
    """Run the command ``tune``: a comparison of one config with one seed, whose space is searched.

    Raises:
        RunsFailedError: A run failed.
        ConfigError, DataError, StoppedError: As :func:`compare`.
    """
    command = shlex.join(["rimlit", "tune", *arguments])
    configs, own, overrides = _split(prepare(arguments), "tune", TUNE_OWN)
    if len(configs) != 1:
        raise ConfigError(f"tune takes one config, before its options; got {', '.join(configs) or 'none'}.")
    for name, what in (("space", "--space space.yaml: what is searched"), ("trials", "--trials N: how many")):
        if name not in own:
            raise ConfigError(f"tune needs {what}.")
    comparison = compare(
        configs,
        seeds=[_number("seed", own.get("seed", "0"), int)],
        tune=own["space"],
        overrides=overrides,
        command=command,
        kind="tune",
        **_shared(own),
    )
    _show(comparison)
    for name, facts in comparison.models.items():
        if facts["tuning"]["best"] is not None and comparison.folder is not None:
            best = comparison.folder / "best" / f"{name}.yaml"
            say(f"The best settings are in {best}: rimlit fit --config {best}")


def _shared(own: dict[str, str]) -> dict[str, Any]:
    """Return the arguments of :func:`compare` that both commands have."""
    if own.get("prune", "true").lower() not in ("true", "false"):
        raise ConfigError(f"prune must be true or false; got prune={own['prune']!r}.")
    if "no-wait" in own and "collect" in own:
        raise ConfigError("--no-wait submits runs and --collect reads them later: give one of the two.")
    return {
        "jobs": None if "jobs" not in own else _number("jobs", own["jobs"], int),
        "name": own.get("name"),
        "trials": None if "trials" not in own else _number("trials", own["trials"], int),
        "storage": own.get("storage"),
        "prune": own.get("prune", "true").lower() == "true",
        "on": own.get("on"),
        "wait": "no-wait" not in own,
        "collect": "collect" in own,
    }


def _show(comparison: Comparison) -> None:
    """Print what was found; raise where runs failed."""
    if any(facts["runs"] for facts in comparison.models.values()):
        show(comparison.rich())
        for note in comparison.notes():
            say(wrapped(note))
    if (study := study_of(comparison)) is not None:
        show(study.rich())
        for note in study.notes():
            say(wrapped(note))
    say(f"Everything about this comparison: {comparison.folder}")
    for what, which in (("Pending", comparison.pending), ("Not submitted", comparison.missing)):
        if which:
            say(f"{what}: {', '.join(which)}.")
    if comparison.failed:
        names = "; ".join(f"{run['name']} ({run['reason']}; {run['log']})" for run in comparison.failed)
        raise RunsFailedError(f"{len(comparison.failed)} of the runs failed: {names}")


def _split(
    arguments: list[str], command: str, options: tuple[str, ...]
) -> tuple[list[str], dict[str, str], list[str]]:
    """Split a command line into configs, which come first, the command's own options, and what is for all runs.

    Raises:
        ConfigError: An option has no value, or a word belongs to no option.
    """
    start = next((index for index, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    configs = arguments[:start]
    own: dict[str, str] = {}
    overrides: list[str] = []
    pending = iter(arguments[start:])
    takes_value = False
    for word in pending:
        option, is_joined, value = word.partition("=")
        if option in FLAGS:
            if is_joined:
                raise ConfigError(f"{option} takes no value; got {value!r}.")
            own[option.removeprefix("--")] = ""
            takes_value = False
            continue
        if option not in options:
            if not word.startswith("-") and not takes_value:
                raise ConfigError(
                    f"{word!r} follows an option that takes no more values. Configs come first: "
                    f"rimlit {command} {' '.join([*configs, word])}{' --seeds 3' if command == 'compare' else ''}."
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


def _tune(text: str) -> dict[str, list[Any]] | str:
    """Return a grid, ``lr=0.001,0.003``, or the file of a space."""
    if text.endswith((".yaml", ".yml")):
        return text
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
