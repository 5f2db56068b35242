"""``rimlit export``: a checkpoint as safetensors and JSON."""

import argparse

from rimlit.console import say
from rimlit.errors import ConfigError
from rimlit.tasks.exporting import export


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise instead of leaving."""
        raise ConfigError(f"rimlit export RUN_OR_CHECKPOINT --to FOLDER: {message}.")


def run_export(arguments: list[str]) -> None:
    """Export what the arguments name.

    Raises:
        ConfigError: The arguments are not those that export takes.
        CheckpointError: There is no intact checkpoint.
        StorageError: The folder cannot be written.
    """
    parser = _Parser(prog="rimlit export", add_help=False)
    parser.add_argument("source")
    parser.add_argument("--to", required=True)
    given = parser.parse_args(arguments)
    path = export(given.source, given.to)
    say(f"{path} is now in {given.to}; from Python: rimlit.load_checkpoint({given.to!r})")
