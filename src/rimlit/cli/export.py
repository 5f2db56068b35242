"""``rimlit export``: a checkpoint as safetensors and JSON, or as a program of torch or ONNX."""

import argparse

from rimlit.console import say
from rimlit.errors import ConfigError
from rimlit.integrations import export_task
from rimlit.integrations.exporting import FORMATS
from rimlit.integrations.programs import CHECKED_STEPS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise instead of leaving."""
        raise ConfigError(
            f"rimlit export RUN_OR_CHECKPOINT --to FOLDER [--format {'|'.join(FORMATS)} ...] [--sequence STEPS]: "
            f"{message}."
        )


def run_export(arguments: list[str]) -> None:
    """Export what the arguments name.

    Raises:
        ConfigError: The arguments are not those that export takes, or the task cannot be written in a format.
        CheckpointError: There is no intact checkpoint.
        MissingExtraError: A format needs packages that are not installed.
        StorageError: The folder cannot be written.
    """
    parser = _Parser(prog="rimlit export", add_help=False, allow_abbrev=False)
    parser.add_argument("source")
    parser.add_argument("--to", required=True)
    parser.add_argument("--format", nargs="+", action="extend", default=[])
    parser.add_argument("--sequence", type=int)
    given = parser.parse_args(arguments)
    formats = [name for word in given.format for name in word.split(",") if name] or ["safetensors"]
    report = export_task(given.source, given.to, formats=formats, sequence=given.sequence)
    steps = given.sequence or CHECKED_STEPS
    for name, difference in report.differences.items():
        say(f"{name}: the greatest difference from backbone.step over {steps} steps is {difference:.1e}.")
    hint = f"; from Python: rimlit.load_checkpoint({given.to!r})" if "safetensors" in formats else ""
    say(f"{report.checkpoint} is now in {given.to}, with a README.md that says how to run it{hint}")
