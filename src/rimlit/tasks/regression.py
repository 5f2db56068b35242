"""Regression on sequences: numbers after the last step, or at every step."""

from typing import Any

from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from rimlit.errors import ConfigError
from rimlit.metrics import MeanAbsoluteError, MeanSquaredError
from rimlit.tasks.inputs import SequenceTask, last_step, own_sequences
from rimlit.types import SequenceBatch


class RegressionTask(SequenceTask):
    """Predict numbers: from the outputs of the last unpadded step, or at every unpadded step.

    Targets (B, output_size) belong to a sequence, targets (B, T, output_size) to each of its steps, as when the
    next step is to be predicted. The loss is the mean squared error.

    Args:
        output_size: Numbers to predict; from the data module.

    The other arguments are those of :class:`rimlit.tasks.inputs.SequenceTask`.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from rimlit import LSTM
        >>> task = RegressionTask(partial(LSTM, hidden_size=16), output_size=1, input_size=2)
        >>> numbers, state = task(torch.zeros(3, 25, 2))
        >>> numbers.shape
        torch.Size([3, 25, 1])
    """

    monitor = "val/mse"
    headline = ("mse", "mae")

    def scored(self, outputs: Tensor, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Return numbers and targets (n, output_size), a row per sequence or per unpadded step."""
        if not batch.targets.is_floating_point():
            raise ConfigError("RegressionTask needs numbers to predict; the data has classes: ClassificationTask.")
        if batch.targets.dim() == 2:
            return last_step(outputs, batch.lengths), batch.targets
        return outputs[batch.mask], batch.targets[batch.mask]

    def loss(self, outputs: Tensor, batch: SequenceBatch) -> Tensor:
        """Return the mean squared error."""
        return functional.mse_loss(*self.scored(outputs, batch))

    def weight(self, batch: SequenceBatch) -> Tensor:
        """Return the number of sequences, or of steps where each has a target."""
        return super().weight(batch) if batch.targets.dim() == 2 else batch.lengths.sum()

    def metrics(self) -> dict[str, Metric]:
        """Return metrics counted once per number."""
        return {"mse": MeanSquaredError(), "mae": MeanAbsoluteError()}

    def predict_step(
        self, batch: SequenceBatch, batch_index: int, dataloader_idx: int = 0
    ) -> list[dict[str, Any]]:
        """Return for each sequence its target and what was predicted; lists over steps where each has a target.

        A user's own values are in the units of the file. The target is None, or NaN in a step, where the file has
        none: the step after the last one.
        """
        outputs, _ = self(batch.inputs)
        targets, data = batch.targets, own_sequences(self)
        if data is not None:
            outputs, targets = data.own_units(outputs), data.own_units(targets)
        records = []
        for index, length in enumerate(batch.lengths.tolist()):
            if batch.targets.dim() == 2:
                target, predicted = targets[index], outputs[index, length - 1]
            else:
                target, predicted = targets[index, :length], outputs[index, :length]
            is_known = bool(target.isfinite().any())
            records.append({"target": target.tolist() if is_known else None, "predicted": predicted.tolist()})
        return records
