"""Every law of tasks can fail, and the message names class, law and values."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from rimlit.encoders import Identity
from rimlit.metrics import MeanSquaredError
from rimlit.tasks import Task
from rimlit.testing import check_task, laws_of
from rimlit.types import State
from tests.laws.cases import law_cases
from tests.tasks.running import SMALL_LSTM, quiet
from tests.testing.test_data import WaveData

pytestmark = quiet


class WaveTask(Task):
    """Keeps every law; what is below breaks one each."""

    headline = ("mse",)

    def __init__(self, input_size: int = 3, output_size: int = 2) -> None:
        super().__init__(Identity(input_size), SMALL_LSTM, output_size)

    def scored(self, outputs: Tensor, batch: Any) -> tuple[Tensor, ...]:
        return outputs[:, -1], batch.targets

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return (outputs[:, -1] - batch.targets).square().mean()

    def metrics(self) -> dict[str, Metric]:
        return {"mse": MeanSquaredError()}


class HasAnIdleLayer(WaveTask):
    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Linear(3, 3)


class LogsWithoutAStage(WaveTask):
    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        self.log("accuracy", 0.5)
        return super().training_step(batch, batch_index)


class CountsItsSteps(WaveTask):
    steps = 0

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        self.steps += 1
        return super().training_step(batch, batch_index)

    def forward(self, inputs: Any, state: State | None = None, resets: Any = None) -> tuple[Tensor, State]:
        outputs, state = super().forward(inputs, state, resets)
        return outputs + self.steps, state


class SumsTheLoss(WaveTask):
    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return super().loss(outputs, batch) * len(batch.inputs)


NUMBERS = r"got -?[\d.]+, expected -?[\d.]+;"

BROKEN: dict[str, tuple[type[WaveTask], str]] = {
    "training_step_reaches_every_parameter": (HasAnIdleLayer, r"the gradient of idle\.weight is None"),
    "stages_log_their_names": (LogsWithoutAStage, "'accuracy' is logged, and no stage/quantity"),
    "saved_task_predicts_the_same": (CountsItsSteps, rf"outputs after loading at \[0, 0, 0\]: {NUMBERS}"),
    "batch_scores_as_its_sequences": (SumsTheLoss, rf"loss: {NUMBERS}"),
}


def test_every_law_has_a_class_that_breaks_it() -> None:
    laws = laws_of("task", slow=True, gpu=True)
    assert {law.__name__.removeprefix("check_") for law in laws} == set(BROKEN)


@pytest.mark.parametrize("law", law_cases("task"))
def test_a_law_catches_what_breaks_it_and_says_what_it_saw(law: Any) -> None:
    cls, message = BROKEN[law.__name__.removeprefix("check_")]
    with pytest.raises(AssertionError, match=f"^{cls.__name__} breaks the law '[a-z ]+': {message}"):
        law(cls, WaveData)


def test_a_plain_task_keeps_every_law() -> None:
    check_task(WaveTask, WaveData)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"monitor": "val/f1"},
            r"monitor='val/f1' is not logged; logged is \['train/loss', 'val/loss', 'val/mse'\]",
        ),
        ({"headline": ("f1",)}, r"headline=\('f1',\) is not logged by test: \['test/loss', 'test/mse'\]"),
        ({"on_validation_epoch_end": lambda self: None}, "val logs nothing; logged is "),
        ({"metrics": lambda self: {"of error": MeanSquaredError()}}, "'val/of error' is logged, and no stage"),
    ],
)
def test_names_that_are_declared_and_not_logged_are_caught(changed: dict[str, Any], message: str) -> None:
    law = next(law for law in laws_of("task") if "log" in law.__name__)
    with pytest.raises(AssertionError, match=message):
        law(type("Other", (WaveTask,), changed), WaveData)


def test_a_loss_that_is_not_finite_and_predictions_that_are_no_data_are_caught() -> None:
    reaches, _, saved, _ = laws_of("task")
    infinite = type("Infinite", (WaveTask,), {"loss": lambda self, outputs, _: outputs.sum() * torch.inf})
    with pytest.raises(AssertionError, match=r"Infinite breaks .*: the loss of a training step is -?inf|nan"):
        reaches(infinite, WaveData)
    tensors = type("Tensors", (WaveTask,), {"predict_step": lambda self, batch, _: [{"inputs": batch.inputs}]})
    with pytest.raises(AssertionError, match=r"Tensors breaks .*: predictions are not plain data \(.* not JSON"):
        saved(tensors, WaveData)
