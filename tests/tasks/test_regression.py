"""Regression: numbers after the last step or at every step, metrics, predictions, that it learns."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import Adam

from rimlit.data import Adding
from rimlit.tasks import RegressionTask
from rimlit.types import SequenceBatch
from tests.conftest import random_tensor
from tests.tasks.running import SMALL_LSTM, SMALL_RIM, make_trainer, quiet

pytestmark = quiet


def make_task(**arguments: Any) -> RegressionTask:
    return RegressionTask(**{"backbone": SMALL_RIM, "output_size": 1, "input_size": 2, **arguments})


def make_adding(**arguments: Any) -> Adding:
    sizes = {"test_size": 6, "val_size": 4, "batch_size": 4}
    return Adding(**{"train_length": 4, "test_lengths": [4, 7], "seed": 1, **sizes, **arguments})


INPUTS = random_tensor(2, 4, 2, seed=5)
LENGTHS = torch.tensor([4, 2])


def test_numbers_of_a_sequence_are_scored_at_the_last_step_that_is_no_padding() -> None:
    task, outputs, targets = make_task(output_size=3), random_tensor(2, 4, 3), random_tensor(2, 3, seed=2)
    batch = SequenceBatch(INPUTS, targets, LENGTHS)
    errors = torch.stack([outputs[0, 3], outputs[1, 1]]) - targets
    torch.testing.assert_close(task.loss(outputs, batch), errors.square().mean())
    scores = {}
    for name, metric in task.metrics().items():
        metric.update(*task.scored(outputs, batch))
        scores[name] = metric.compute().item()
    assert scores == pytest.approx({"mse": errors.square().mean().item(), "mae": errors.abs().mean().item()})


def test_numbers_of_every_step_are_scored_without_the_padding() -> None:
    task, outputs, targets = make_task(output_size=3), random_tensor(2, 4, 3), random_tensor(2, 4, 3, seed=2)
    targets[1, 2:] = torch.nan  # padding may hold anything
    batch = SequenceBatch(INPUTS, targets, LENGTHS)
    errors = torch.cat([outputs[0] - targets[0], (outputs - targets)[1, :2]])
    torch.testing.assert_close(task.loss(outputs, batch), errors.square().mean())
    metric = task.metrics()["mse"]
    metric.update(*task.scored(outputs, batch))
    assert (metric.compute().item(), metric.count.item()) == (pytest.approx(errors.square().mean().item()), 18)


@pytest.mark.parametrize("per_step", [False, True])
def test_prediction_gives_target_and_prediction_of_every_sequence_without_the_padding(per_step: bool) -> None:
    task = make_task().eval()
    targets = random_tensor(2, 4, 1) if per_step else random_tensor(2, 1)
    first, second = task.predict_step(SequenceBatch(INPUTS, targets, LENGTHS), 0)
    outputs, _ = task(INPUTS)
    if per_step:
        assert (len(first["predicted"]), len(second["predicted"])) == (4, 2)
        assert second == {"target": targets[1, :2].tolist(), "predicted": outputs[1, :2].tolist()}
    else:
        assert second == {"target": targets[1].tolist(), "predicted": outputs[1, 1].tolist()}


def test_tokens_can_be_read_too() -> None:
    numbers, _ = RegressionTask(SMALL_LSTM, 3, vocabulary_size=5, embedding_size=4)(torch.tensor([[0, 4, 2]]))
    assert numbers.shape == (1, 3, 3)


def test_a_test_scores_every_length(tmp_path: Path) -> None:
    task, data, scores = make_task(), make_adding(), {}
    for result in make_trainer(tmp_path).test(task, data, verbose=False):
        scores.update(result)
    names = ("loss", "mse", "mae")
    assert set(scores) == {f"test/length_{length}/{name}" for length in (4, 7) for name in names}
    assert scores["test/length_7/loss"] == pytest.approx(scores["test/length_7/mse"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["RIM", "LSTM"])
def test_training_gets_below_the_floor_of_short_sums(tmp_path: Path, backbone: str) -> None:
    wide = {"class_path": f"rimlit.backbones.{backbone}", "init_args": {"hidden_size": 36}}
    task = make_task(backbone=wide, optimizer=partial(Adam, lr=0.01))
    data = make_adding(batch_size=32, val_size=64)
    make_trainer(tmp_path, max_steps=200, limit_val_batches=0).fit(task, data)
    (scores,) = make_trainer(tmp_path).validate(task, data, verbose=False)
    assert scores["val/mse"] < data.floors()["mse"] / 2
