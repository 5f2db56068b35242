"""Tasks: LightningModules that join encoder, backbone, head, loss and metrics."""

from rimlit.tasks.base import Task, load_checkpoint
from rimlit.tasks.copying import CopyingTask
from rimlit.tasks.language_modeling import LanguageModelingTask

__all__ = ["CopyingTask", "LanguageModelingTask", "Task", "load_checkpoint"]
