"""What surrounds a task while it runs: callbacks, loggers, schedules, the run's folder.

Names are imported when they are first used: data modules and tasks import :mod:`rimlit.training._lightning`.
"""

from typing import TYPE_CHECKING

from rimlit._lazy import lazy

if TYPE_CHECKING:
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

_HOMES = {
    "Checkpointer": "rimlit.training.checkpointing",
    "EpisodePictures": "rimlit.training.episodes",
    "FiniteGuard": "rimlit.training.finite",
    "LinearDecay": "rimlit.training.schedules",
    "LocalMetrics": "rimlit.tracking",
    "MLflowTracker": "rimlit.tracking",
    "MechanismActivity": "rimlit.training.activity",
    "OutcomeCheck": "rimlit.training.outcome",
    "PredictionFile": "rimlit.training.predictions",
    "ProcessWatch": "rimlit.training.processes",
    "ProgressBar": "rimlit.training.progress",
    "RolloutPictures": "rimlit.training.rollouts",
    "RunRecorder": "rimlit.training.recording",
    "VerifiedCheckpointIO": "rimlit.training.checkpointing",
    "WarmupCosine": "rimlit.training.schedules",
}
__getattr__ = lazy(__name__, _HOMES)
