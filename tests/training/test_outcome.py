"""What is said of a training that made the loss worse, or left it far above the floor."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rimlit.tasks import CopyingTask
from rimlit.tracking.recording import RunFolder
from rimlit.training import OutcomeCheck
from tests.tasks.running import SMALL_LSTM, make_copying, make_trainer, quiet

pytestmark = quiet


class GivenLosses(CopyingTask):
    """Reports a loss of its own for each step, whatever the model does."""

    losses: tuple[float, ...] = ()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss - loss.detach() + self.losses[self.global_step]


def warnings_of(folder: Path, *losses: float, factor: float = 1.0, higher: bool = False) -> list[str]:
    """Train a step for each loss; ``factor`` multiplies the floor."""
    task = GivenLosses(backbone=SMALL_LSTM, vocabulary_size=10, recall_length=4, embedding_size=6)
    task.losses = losses
    task.higher_is_better = higher  # type: ignore[misc]
    task.floors = lambda: {"cross_entropy": factor * 2.08}  # type: ignore[method-assign]
    check = OutcomeCheck(RunFolder(folder))
    trainer = make_trainer(folder, callbacks=[check], max_steps=len(losses), val_check_interval=1)
    trainer.fit(task, make_copying())
    found: list[str] = RunFolder(folder).read_results()["warnings"]
    return found


def test_a_loss_that_grew_to_more_than_twice_the_first_is_named(tmp_path: Path) -> None:
    (warning,) = warnings_of(tmp_path, 2.0, 2.0, 3.0, 6.0)
    assert "made the loss worse: 4.5 over the last 2 batches, 2 in the first one" in warning


@pytest.mark.parametrize("losses", [(2.0, 2.0, 1.0, 1.0), (2.0, 9.0, 4.0, 4.0), (-1.0, 1.0, 5.0, 5.0)])
def test_a_loss_of_at_most_twice_the_first_or_of_any_sign_is_not(tmp_path: Path, losses: Any) -> None:
    assert warnings_of(tmp_path, *losses) == []


def test_a_validation_far_above_the_floor_is_named(tmp_path: Path) -> None:
    (warning,) = warnings_of(tmp_path, 2.0, 2.0, factor=0.01)
    assert "val/cross_entropy" in warning and "more than 10 times the floor of 0.0208" in warning
    assert warnings_of(tmp_path, 2.0, 2.0, factor=0.0) == []


def test_nothing_is_said_where_a_higher_score_is_better(tmp_path: Path) -> None:
    assert warnings_of(tmp_path, 2.0, 9.0, 9.0, factor=0.01, higher=True) == []


def test_a_resumed_part_is_compared_with_the_first_batch_of_the_run(tmp_path: Path) -> None:
    check = OutcomeCheck(RunFolder(tmp_path))
    check.on_train_batch_end(None, None, {"loss": torch.tensor(2.0)}, None, 0)  # type: ignore[arg-type]
    resumed = OutcomeCheck(RunFolder(tmp_path))
    resumed.load_state_dict(check.state_dict())
    resumed.on_train_batch_end(None, None, {"loss": torch.tensor(9.0)}, None, 1)  # type: ignore[arg-type]
    assert resumed.state_dict() == {"first": 2.0}
