"""Training: checkpoints and exact resume, guards, schedules, signals, several processes."""

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
