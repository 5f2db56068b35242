"""Tasks: LightningModules that join encoder, backbone, head, loss and metrics."""

from rimlit.tasks.base import Task, load_checkpoint
from rimlit.tasks.classification import ClassificationTask
from rimlit.tasks.copying import CopyingTask
from rimlit.tasks.exporting import export
from rimlit.tasks.frame_prediction import FramePredictionTask
from rimlit.tasks.language_modeling import LanguageModelingTask
from rimlit.tasks.regression import RegressionTask

__all__ = [
    "ClassificationTask",
    "CopyingTask",
    "FramePredictionTask",
    "LanguageModelingTask",
    "RegressionTask",
    "Task",
    "export",
    "load_checkpoint",
]
