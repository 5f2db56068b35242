"""Errors a user can mend, each with the exit code of the command line.

Exit codes: 0 done, 1 anything else, 2 configuration, 3 data, 4 checkpoint.
"""


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type or out of range."""

    exit_code = 2


class DataError(ValueError):
    """The data cannot be found, read or used."""

    exit_code = 3


class CheckpointError(ValueError):
    """A checkpoint cannot be found or is not one that can be used."""

    exit_code = 4
