"""Errors that a user can fix, each with the exit code of the command line.

Exit codes: 0 done, 1 anything else, 2 configuration, 3 data, 4 checkpoint, 5 not finite, 6 storage,
7 another process, 130 interrupted, 143 terminated.
"""

import importlib.metadata
import re

CORE_EXTRA = "train"
"""The extra that every other one contains: Lightning, MLflow, data and the command line."""


def install_command(extra: str) -> str:
    """Return the command that installs what an optional extra of this package needs.

    The extra itself is named for a checkout only: on an index, anyone could register this package's name.

    Args:
        extra: For example ``rl``.

    Example:
        >>> install_command("completion")
        "pip install 'shtab>=1.7' (in a checkout: pip install '.[completion]')"
    """
    in_checkout = f"pip install '.[{extra}]'"
    if extra == CORE_EXTRA:  # too many packages to name
        return f"{in_checkout} in a checkout, or pip install 'PATH_OF_THE_WHEEL[{extra}]'"
    known = set(_packages(CORE_EXTRA))  # who misses this extra has that one
    packages = " ".join(f"'{package}'" for package in _packages(extra) if package not in known)
    return f"pip install {packages} (in a checkout: {in_checkout})" if packages else in_checkout


def _packages(extra: str) -> list[str]:
    try:
        required = importlib.metadata.requires("rimlit") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    packages: list[str] = []
    for requirement in required:
        package, _, marker = requirement.partition(";")
        if not re.search(rf"extra == ['\"]{extra}['\"]", marker):
            continue
        other = re.fullmatch(r"rimlit\[(\w+)\]", package.strip())
        if other is None:
            packages.append(package.strip())
        else:
            packages += _packages(other[1])
    return packages


class RimlitError(Exception):
    """Base of what the command line answers with one message and an exit code."""

    exit_code = 1


class ConfigError(RimlitError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""

    exit_code = 2


class MissingExtraError(RimlitError, ImportError):
    """What was asked for needs packages that one of the extras installs."""

    exit_code = 2


class SpecError(ConfigError):
    """A spec names a class or an argument that does not exist or cannot be used."""


class DataError(RimlitError, ValueError):
    """The data cannot be found, read or used."""

    exit_code = 3


class CheckpointError(RimlitError, ValueError):
    """A checkpoint cannot be found or is not one that can be used."""

    exit_code = 4


class NonFiniteError(RimlitError, ArithmeticError):
    """A loss, a gradient or a weight is NaN or infinite."""

    exit_code = 5


class StorageError(RimlitError, OSError):
    """A folder cannot be written or has too little space."""

    exit_code = 6


class RunsFailedError(RimlitError):
    """Some runs of a comparison failed; the others are done."""


class ProcessError(RimlitError, SystemExit):
    """Another process of the run died, failed, froze or hung; uncaught, it ends this one with code 7."""

    exit_code = 7

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = self.exit_code


class StoppedError(RimlitError):
    """A signal asked the run to stop; it was saved and can be resumed.

    Args:
        message: What happened.
        exit_code: 129 for SIGHUP, 130 for SIGINT, 143 for SIGTERM and SIGUSR1.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class TrackingError(RimlitError, ConnectionError):
    """The tracker cannot be reached, and the run is not to start without it."""
