"""Model cards: the README.md of a shared model, from what its files say."""

from collections.abc import Mapping
from typing import Any

SHOWN = 24
"""Test scores in a card; of more the first ones."""


def model_card(
    config: Mapping[str, Any],
    results: Mapping[str, Any],
    *,
    title: str,
    about: str | None = None,
    limits: str | None = None,
    license: str | None = None,
    load: str,
) -> str:
    """Return a model card in Markdown, with the header that the hub reads.

    Args:
        config: ``config.json`` of an export.
        results: ``results.json`` of the run, or nothing.
        title: Heading.
        about: What the model is; by default its task and backbone.
        limits: What it does not do.
        license: Identifier of its licence, such as ``mit``; None where its owner has not chosen one.
        load: Code that loads it.
    """
    task = class_name(config["task"])
    backbone = class_name(config["task"]["init_args"].get("backbone"))
    header = ["---", *([f"license: {license}"] if license else []), "library_name: rimlit", "tags:"]
    tags = dict.fromkeys(["rimlit", "recurrent-independent-mechanisms", task, backbone])
    header += [f"- {tag}" for tag in tags if tag] + ["---"]
    parts = [
        "\n".join(header),
        f"# {title}",
        about or f"A {task} with a {backbone or 'backbone of its own'}, trained with rimlit.",
        f"```python\n{load}\n```",
        _origin(config, results),
        *(["## Test scores", _scores(results["test"])] if results.get("test") else []),
        *(["## Limits", limits] if limits else []),
        *([f"Licence: {license.upper()}."] if license else []),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def class_name(spec: Any) -> str:
    """Return the class's name in a spec, empty where there is none.

    Example:
        >>> class_name({"class_path": "rimlit.backbones.RIM", "init_args": {}})
        'RIM'
    """
    path = spec.get("class_path", "") if isinstance(spec, Mapping) else ""
    return str(path).rpartition(".")[2]


def _origin(config: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Return how a model was trained, one line each."""
    seconds, tested = results.get("train_seconds"), results.get("tested", {})
    rows = {
        "command": f"`{results['command']}`" if "command" in results else None,
        "tested by": None if tested.get("after_fit", True) else f"`{tested['command']}`",
        "commit": results.get("commit"),
        "seed": results.get("seed"),
        "steps": results.get("steps", config.get("step")),
        "parameters": f"{results['parameters']:,}" if "parameters" in results else None,
        "machine": results.get("machine"),
        "training time": None if seconds is None else f"{round(seconds)} s",
        "data": f"`{class_name(config['data'])}`" if config.get("data") else None,
        "versions": ", ".join(f"{name} {version}" for name, version in config.get("versions", {}).items()),
    }
    return "## Training\n\n" + "\n".join(f"- {name}: {value}" for name, value in rows.items() if value is not None)


def _scores(scores: Mapping[str, float]) -> str:
    """Return a table of test scores."""
    names = list(scores)[:SHOWN]
    rows = [f"| {name} | {scores[name]:.4g} |" for name in names]
    more = f"\n\n{len(scores) - SHOWN} more are not shown." if len(scores) > SHOWN else ""
    return "\n".join(["| score | value |", "| --- | --- |", *rows]) + more
