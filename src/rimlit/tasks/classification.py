"""Classification of sequences: one label after the last step, or one at every step."""

from typing import Any

from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from rimlit.errors import ConfigError
from rimlit.metrics import IGNORED, CrossEntropy, SymbolAccuracy
from rimlit.tasks.inputs import SequenceTask, last_step, own_sequences
from rimlit.types import SequenceBatch


class ClassificationTask(SequenceTask):
    """Classify a sequence from the outputs of its last unpadded step.

    Targets (B,) are one class per sequence; targets (B, T) are one per step, with ``IGNORED`` where a step is not
    scored, as when the next token is to be predicted.

    Args:
        output_size: Classes; from the data module.

    The other arguments are those of :class:`rimlit.tasks.inputs.SequenceTask`.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from rimlit import LSTM
        >>> task = ClassificationTask(partial(LSTM, hidden_size=16), output_size=10, vocabulary_size=2)
        >>> logits, state = task(torch.zeros(2, 25, dtype=torch.long))
        >>> logits.shape
        torch.Size([2, 25, 10])
    """

    monitor = "val/cross_entropy"
    headline = ("accuracy", "cross_entropy")

    def scored(self, outputs: Tensor, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Return logits (B, T, classes) and targets (B, T); T is 1 where a sequence has one label."""
        if batch.targets.is_floating_point():
            raise ConfigError("ClassificationTask needs classes; the data has numbers to predict: RegressionTask.")
        if batch.targets.dim() == 1:
            return last_step(outputs, batch.lengths)[:, None], batch.targets[:, None]
        return outputs, batch.targets

    def loss(self, outputs: Tensor, batch: SequenceBatch) -> Tensor:
        """Return the mean cross-entropy, nats, over sequences, or over the scored steps."""
        logits, targets = self.scored(outputs, batch)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    def weight(self, batch: SequenceBatch) -> Tensor:
        """Return the number of labels."""
        return (batch.targets != IGNORED).sum()

    def metrics(self) -> dict[str, Metric]:
        """Return metrics counted once per label."""
        return {"cross_entropy": CrossEntropy(), "accuracy": SymbolAccuracy()}

    def predict_step(
        self, batch: SequenceBatch, batch_index: int, dataloader_idx: int = 0
    ) -> list[dict[str, Any]]:
        """Return for each sequence its target, what was predicted, and the probabilities of the classes.

        Where there is one target per step, all three are lists over the steps. A user's own labels are given as
        they are in the file; the probabilities have their order. The target is None where the file has none.
        """
        outputs, _ = self(batch.inputs)
        logits, targets = self.scored(outputs, batch)
        probabilities, predicted = logits.float().softmax(dim=-1), logits.argmax(dim=-1)
        data = own_sequences(self)
        records = []
        for index, length in enumerate(batch.lengths.tolist()):
            steps: Any = 0 if batch.targets.dim() == 1 else slice(length)
            target: Any = targets[index, steps].tolist()
            guess: Any = predicted[index, steps].tolist()
            if data is not None:
                target, guess = data.class_names(target), data.class_names(guess)
            elif target == IGNORED:
                target = None
            records.append(
                {"target": target, "predicted": guess, "probabilities": probabilities[index, steps].tolist()}
            )
        return records
