"""``rimlit summarize``: statistics over the runs of several comparisons."""

from pathlib import Path

from rimlit.cli.arguments import value_of
from rimlit.comparison.study import Study
from rimlit.console import say, show, wrapped
from rimlit.errors import ConfigError


def run_summarize(arguments: list[str]) -> None:
    """Run the command.

    Raises:
        ConfigError: A word is not an option of it.
        DataError: A folder holds no comparison, or they cannot be put together.
    """
    start = next((index for index, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    folders, options = arguments[:start], arguments[start:]
    to = value_of(options, "--to")
    if options and (to is None or len(options) != (1 if "=" in options[0] else 2)):
        raise ConfigError(f"summarize takes FOLDER... --to FOLDER, folders first; got {options[0]!r}.")
    if not folders:
        raise ConfigError("summarize needs the folders of comparisons, such as runs/copying/compare; got none.")
    study = Study.load(folders)
    show(study.rich())
    for note in study.notes():
        say(wrapped(note))
    if to is not None:
        study.save(Path(to))
        say(f"Table, figures and all pairs: {to}")
