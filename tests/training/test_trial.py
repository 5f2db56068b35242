"""One sequence through the model before a run begins: what does not fit is refused, the rest is left alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from rimlit.data import Copying
from rimlit.data.base import Split
from rimlit.errors import ConfigError
from rimlit.tasks import CopyingTask
from rimlit.training.trial import TrialBatch
from tests.tasks.running import make_copying, make_copying_task, make_trainer, quiet

pytestmark = quiet


class Stream(IterableDataset[Any]):
    """Samples without indices."""

    def __iter__(self) -> Any:
        yield torch.zeros(3), torch.zeros(3)


class Streamed(Copying):
    """Data whose samples have no indices."""

    def datasets(self, split: Split) -> dict[str, Dataset[Any]]:
        return {"": Stream()}


class Empty(Copying):
    """Data without validation."""

    def datasets(self, split: Split) -> dict[str, Dataset[Any]]:
        return {} if split == "val" else dict(super().datasets(split))


def test_samples_without_indices_and_splits_without_samples_have_no_example() -> None:
    assert Streamed(train_span=3, test_spans=[3]).example("train") is None
    assert Empty(train_span=3, test_spans=[3]).example("val") is None
    assert len(Empty(train_span=3, test_spans=[3]).example("train").inputs) == 1


class Wide(CopyingTask):
    """A task whose loss does not fit its outputs."""

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return torch.cat([outputs, outputs[..., :3]], dim=1).mean()


class OwnStep(Wide):
    """The same with a step of its own, which takes what it likes."""

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        return self(batch.inputs)[0].mean()


def task_of(kind: type[CopyingTask]) -> CopyingTask:
    arguments = make_copying_task().spec["init_args"]
    return kind(**arguments)


def test_a_loss_that_does_not_fit_is_refused_before_a_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callbacks=[TrialBatch()])
    with pytest.raises((ConfigError, RuntimeError), match="Sizes of tensors must match"):
        trainer.fit(task_of(Wide), make_copying())
    assert trainer.global_step == 0


def test_a_task_with_steps_of_its_own_is_not_tried(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callbacks=[TrialBatch()], limit_val_batches=0)
    trainer.fit(task_of(OwnStep), make_copying())
    assert trainer.global_step > 0


def test_a_trial_draws_no_random_number_and_leaves_the_model_in_training(tmp_path: Path) -> None:
    torch.manual_seed(3)
    task, trainer = make_copying_task(), make_trainer(tmp_path)
    trainer.fit(task, make_copying())
    torch.manual_seed(3)
    tried, trainer = make_copying_task(), make_trainer(tmp_path, callbacks=[TrialBatch()])
    trainer.fit(tried, make_copying())
    for before, after in zip(task.parameters(), tried.parameters(), strict=True):
        assert torch.equal(before, after)
