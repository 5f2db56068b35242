"""What of logs and warnings a command shows, and how."""

import logging
import sys
import warnings
from typing import Any

from rimlit.console import ConsoleHandler, UnfailingStream, say

ADVERTISERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.pytorch",
)
"""Loggers of Lightning that also advertise."""


class _NoAdverts(logging.Filter):
    """Drop what Lightning logs about other products."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is shown."""
        message = record.getMessage()
        return "💡" not in message and "TPU available" not in message and "`weights_only`" not in message


def _show_warning(message: Any, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    """Print a warning as Python does, above a progress bar."""
    say(warnings.formatwarning(message, category, filename, lineno).rstrip("\n"), sys.stderr)


def _silence(filterer: logging.Filterer) -> None:
    if not any(isinstance(kept, _NoAdverts) for kept in filterer.filters):
        filterer.addFilter(_NoAdverts())


def quieten() -> None:
    """Show rimlit's log and what matters of others' on the console, above a progress bar."""
    for name in ADVERTISERS:
        _silence(logging.getLogger(name))
    for name in ("lightning.pytorch", "lightning.fabric"):
        lightning_log = logging.getLogger(name)
        for handler in list(lightning_log.handlers):
            if isinstance(sys.stderr, UnfailingStream) and type(handler) is logging.StreamHandler:
                lightning_log.removeHandler(handler)
                handler = ConsoleHandler()
                lightning_log.addHandler(handler)
            _silence(handler)
    if isinstance(sys.stderr, UnfailingStream):  # the process is the command's own: others may record warnings
        warnings.showwarning = _show_warning  # type: ignore[assignment]
    rimlit_log = logging.getLogger("rimlit")
    if not rimlit_log.handlers:
        handler = ConsoleHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        rimlit_log.addHandler(handler)
        rimlit_log.setLevel(logging.INFO)
    # loading from memory or by arithmetic is not the bottleneck that more workers would widen
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # torchmetrics adds the processes' sums up itself
    warnings.filterwarnings("ignore", message=".*recommended to use .*sync_dist=True.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    # the summary of a model counts megabytes at 32 bits
    warnings.filterwarnings("ignore", message=".*is not supported by the model summary.*")
    # rimlit says it in its own words, with the option of the command line
    warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
    # on a login node a run is meant to be where it was started; cluster.md says how to submit one
    warnings.filterwarnings("ignore", message=".*`srun` command is available on your system.*")
    # Lightning's own, about torch's pytree
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")


def quieten_loading() -> None:
    """Hide that callbacks of the training are missing, which a test or a prediction does not need."""
    warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided.*")
