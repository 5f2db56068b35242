"""Training: checkpoints and exact resume, guards, schedules, signals, several processes.

Names are imported when they are first used: data modules and tasks import :mod:`rimlit.training._lightning`.
"""

from typing import TYPE_CHECKING

import rimlit._train  # noqa: F401
from rimlit._lazy import lazy

if TYPE_CHECKING:
    from rimlit.training.checkpointing import Checkpointer, VerifiedCheckpointIO
    from rimlit.training.finite import FiniteGuard
    from rimlit.training.outcome import OutcomeCheck
    from rimlit.training.predictions import PredictionFile
    from rimlit.training.processes import ProcessWatch
    from rimlit.training.progress import ProgressBar
    from rimlit.training.schedules import LinearDecay, WarmupCosine

__all__ = [
    "Checkpointer",
    "FiniteGuard",
    "LinearDecay",
    "OutcomeCheck",
    "PredictionFile",
    "ProcessWatch",
    "ProgressBar",
    "VerifiedCheckpointIO",
    "WarmupCosine",
]

_HOMES = {
    "Checkpointer": "rimlit.training.checkpointing",
    "FiniteGuard": "rimlit.training.finite",
    "LinearDecay": "rimlit.training.schedules",
    "OutcomeCheck": "rimlit.training.outcome",
    "PredictionFile": "rimlit.training.predictions",
    "ProcessWatch": "rimlit.training.processes",
    "ProgressBar": "rimlit.training.progress",
    "VerifiedCheckpointIO": "rimlit.training.checkpointing",
    "WarmupCosine": "rimlit.training.schedules",
}
__getattr__ = lazy(__name__, _HOMES)
