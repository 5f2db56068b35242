"""Doubtful results of a finished training: a loss that is finite and far too large."""

from collections import deque
from typing import Any

import lightning as L
from torch import Tensor

from rimlit.tasks import Task
from rimlit.tracking.run_folder import RunFolder

TIMES_THE_START = 2
TIMES_THE_FLOOR = 10
LAST_STEPS = 100


class OutcomeCheck(L.Callback):
    """Write one warning into ``results.json`` where training made the loss worse, or left it far above the floor.

    The loss has become worse where its mean over the later half of the last 100 batches is more than twice that of
    the run's first batch. It is far above the floor where the last validation's monitored metric is more than ten
    times the floor. Neither is checked where a higher score is better, as in reinforcement learning, or where
    the number compared with is not above 0.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._first: Tensor | float | None = None
        self._last: deque[Tensor] = deque(maxlen=LAST_STEPS)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch's loss, on its device."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            loss = loss.detach()
            self._first = loss if self._first is None else self._first
            self._last.append(loss)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the warnings; an empty list replaces those of an earlier part of the run."""
        if trainer.is_global_zero and isinstance(pl_module, Task):
            self.folder.write_results(warnings=self._warnings(trainer, pl_module))

    def _warnings(self, trainer: L.Trainer, task: Task) -> list[str]:
        if task.higher_is_better:
            return []
        last = [loss.item() for loss in self._last][len(self._last) // 2 :]
        if self._first is not None and last:
            first, end = float(self._first), sum(last) / len(last)
            if 0 < TIMES_THE_START * first < end:
                return [
                    f"Training made the loss worse: {end:.4g} over the last {len(last)} batches, {first:.4g} in "
                    "the first one. Try a lower learning rate, or clip gradients."
                ]
        score = trainer.callback_metrics.get(task.monitor)
        floor = task.floors().get(task.monitor.removeprefix("val/"))
        if score is not None and floor is not None and 0 < TIMES_THE_FLOOR * floor < float(score):
            return [
                f"The last {task.monitor} is {float(score):.4g}, more than {TIMES_THE_FLOOR} times the floor of "
                f"{floor:.4g} (the score of a trivial baseline)."
            ]
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return the loss of the run's first batch."""
        return {"first": None if self._first is None else float(self._first)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the first batch of the run, not with that of its resumed part."""
        self._first = state_dict["first"]
