"""Set-up of a process before a command runs: console, YAML, trust, the time loop."""

import enum
import os
import sys

import yaml

from rimlit.cli.arguments import take_trust
from rimlit.cli.quiet import quieten
from rimlit.errors import ConfigError
from rimlit.kernels import overriding_backend


def prepare(arguments: list[str]) -> list[str]:
    """Set the process up for a command; return its arguments without ``--trust``.

    Raises:
        ConfigError: ``--trust`` or ``RIMLIT_BACKEND`` is wrong.
    """
    quieten()
    # a setting of Lightning's may be an enum: a config holds its value
    yaml.SafeDumper.add_multi_representer(enum.Enum, lambda dumper, member: dumper.represent_data(member.value))
    arguments = take_trust(arguments)
    if os.environ.get("RIMLIT_TRUST"):
        sys.path.append(os.getcwd())  # a console script does not see modules beside the user; last: shadow nothing
    try:
        overriding_backend()
    except ValueError as error:  # RIMLIT_BACKEND
        raise ConfigError(str(error)) from error
    return arguments
