"""A backbone's balance in a task: its penalty is part of the training loss, and it follows each optimiser step."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rimlit import RIM
from rimlit.mechanisms import Balance
from tests.tasks.running import make_copying, make_copying_task, make_trainer, quiet

pytestmark = quiet


class Counting(Balance):
    """A penalty of 3, and a count of steps."""

    def __init__(self, num_mechanisms: int, num_active: int) -> None:
        super().__init__(num_mechanisms, num_active)
        self.steps = 0

    def penalty(self, relevance: Tensor, active: Tensor) -> Tensor:
        return 3 + 0 * relevance.sum()

    def after_step(self, layer: nn.Module, rate: float) -> None:
        self.steps += 1


def backbone(**arguments: Any) -> Any:
    return partial(RIM, hidden_size=12, num_mechanisms=3, num_active=2, **arguments)


def test_it_follows_each_step_of_the_optimiser_and_no_batch(tmp_path: Path) -> None:
    task = make_copying_task(backbone=backbone(balance=Counting))
    trainer = make_trainer(tmp_path, max_steps=3, accumulate_grad_batches=2, limit_val_batches=0)
    trainer.fit(task, make_copying())
    assert trainer.global_step == 3
    assert task.backbone.layers[0].balance.steps == 3
    assert float(trainer.callback_metrics["train/penalty"]) == 3


def test_the_penalty_is_added_in_training_alone(tmp_path: Path) -> None:
    losses = []
    for balance in ("none", Counting):
        torch.manual_seed(0)
        task = make_copying_task(backbone=backbone(balance=balance, input_dropout=0.0, communication_dropout=0.0))
        seen: list[Tensor] = []
        step = task.training_step
        task.training_step = lambda *words, step=step, seen=seen: seen.append(step(*words)) or seen[-1]  # type: ignore[method-assign]
        trainer = make_trainer(tmp_path, max_steps=1, limit_val_batches=1, val_check_interval=1)
        trainer.fit(task, make_copying())
        losses.append((float(seen[0].detach()), float(trainer.callback_metrics["train/loss"])))
    (plain, logged), (penalised, logged_too) = losses
    torch.testing.assert_close(penalised, plain + 3, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logged, logged_too, rtol=1e-5, atol=1e-5)
