"""Tasks: LightningModules that join encoder, backbone, head, loss and metrics."""

import rimlit._train  # noqa: F401
from rimlit.backbones import BackboneFactory
from rimlit.encoders import EncoderFactory
from rimlit.heads import HeadFactory
from rimlit.tasks.base import Task
from rimlit.tasks.classification import ClassificationTask
from rimlit.tasks.copying import CopyingTask
from rimlit.tasks.exporting import export
from rimlit.tasks.forecasting import ForecastTask
from rimlit.tasks.frame_classification import FrameClassificationTask
from rimlit.tasks.frame_prediction import FramePredictionTask
from rimlit.tasks.language_modeling import LanguageModelingTask
from rimlit.tasks.loading import load_checkpoint
from rimlit.tasks.regression import RegressionTask
from rimlit.tasks.signatures import OptimizerFactory, SchedulerFactory

__all__ = [
    "BackboneFactory",
    "ClassificationTask",
    "CopyingTask",
    "EncoderFactory",
    "ForecastTask",
    "FrameClassificationTask",
    "FramePredictionTask",
    "HeadFactory",
    "LanguageModelingTask",
    "OptimizerFactory",
    "RegressionTask",
    "SchedulerFactory",
    "Task",
    "export",
    "load_checkpoint",
]
