"""What surrounds a task while it runs: callbacks, loggers, schedules, the run's folder."""

from rimlit.tracking import LocalMetrics, MLflowTracker
from rimlit.training.activity import MechanismActivity
from rimlit.training.checkpointing import Checkpointer, VerifiedCheckpointIO
from rimlit.training.episodes import EpisodePictures
from rimlit.training.finite import FiniteGuard
from rimlit.training.outcome import OutcomeCheck
from rimlit.training.predictions import PredictionFile
from rimlit.training.processes import ProcessWatch
from rimlit.training.progress import ProgressBar
from rimlit.training.recording import RunRecorder
from rimlit.training.rollouts import RolloutPictures
from rimlit.training.schedules import LinearDecay, WarmupCosine

__all__ = [
    "Checkpointer",
    "EpisodePictures",
    "FiniteGuard",
    "LinearDecay",
    "LocalMetrics",
    "MLflowTracker",
    "MechanismActivity",
    "OutcomeCheck",
    "PredictionFile",
    "ProcessWatch",
    "ProgressBar",
    "RolloutPictures",
    "RunRecorder",
    "VerifiedCheckpointIO",
    "WarmupCosine",
]
