"""Importing this module fails in one line where the extra ``train`` is not installed.

Packages that need Lightning import it first. Mechanisms, kernels, backbones, encoders and heads need torch alone.
"""

from rimlit._lazy import missing_module
from rimlit.errors import CORE_EXTRA, MissingExtraError, install_command

if (_name := missing_module()) is not None:
    raise MissingExtraError(
        f"This needs {_name}, which the extra '{CORE_EXTRA}' installs: {install_command(CORE_EXTRA)}."
    )
