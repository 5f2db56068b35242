"""Short runs of tasks on the CPU."""

from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer
from torch import Tensor
from torchmetrics import Metric

from rimlit.backbones import BackboneFactory
from rimlit.data import Copying
from rimlit.encoders import Identity
from rimlit.tasks import CopyingTask, Task

quiet = [
    # Lightning 2.6 asks torch's pytree in a way that torch 2.13 deprecates
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),
    # what Lightning advises on runs this short
    pytest.mark.filterwarnings(r"ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings(
        r"ignore:The number of training batches \(\d+\) is smaller than the logging interval"
    ),
]

SMALL_RIM: dict[str, Any] = {
    "class_path": "rimlit.backbones.RIM",
    "init_args": {
        "hidden_size": 12,
        "num_mechanisms": 3,
        "num_active": 2,
        "input_key_size": 4,
        "communication": {"key_size": 4, "value_size": 4},
    },
}
SMALL_LSTM: dict[str, Any] = {"class_path": "rimlit.backbones.LSTM", "init_args": {"hidden_size": 12}}


class Named(Task):
    """A task that names the backbone and a size only."""

    def __init__(self, backbone: BackboneFactory, input_size: int) -> None:
        super().__init__(Identity(input_size), backbone, output_size=1)

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return (outputs - batch.targets).square().mean()

    def metrics(self) -> dict[str, Metric]:
        return {}


def make_trainer(folder: Path, **options: Any) -> Trainer:
    """A trainer that writes into ``folder`` only and shows nothing."""
    defaults: dict[str, Any] = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_steps": 2,
    }
    return Trainer(**{**defaults, **options})


def make_copying(**arguments: Any) -> Copying:
    """A small copying data module."""
    defaults: dict[str, Any] = {
        "train_span": 3,
        "test_spans": [3, 6],
        "recall_length": 4,
        "train_size": 16,
        "val_size": 8,
        "test_size": 8,
        "batch_size": 4,
        "seed": 1,
    }
    return Copying(**{**defaults, **arguments})


def make_copying_task(**arguments: Any) -> CopyingTask:
    """A task for :func:`make_copying`."""
    defaults: dict[str, Any] = {
        "backbone": SMALL_RIM,
        "vocabulary_size": 10,
        "recall_length": 4,
        "embedding_size": 6,
    }
    return CopyingTask(**{**defaults, **arguments})
