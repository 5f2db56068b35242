"""The copying task (Goyal et al. 2021, sec. 4.1, arXiv:1909.10893)."""

from typing import Any

from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from rimlit.backbones import BackboneFactory
from rimlit.encoders import EncoderFactory
from rimlit.heads import HeadFactory
from rimlit.metrics import IGNORED, CrossEntropy, SequenceAccuracy, SymbolAccuracy
from rimlit.tasks.base import Task
from rimlit.tasks.inputs import input_encoder
from rimlit.tasks.signatures import OptimizerFactory, SchedulerFactory
from rimlit.types import SequenceBatch


class CopyingTask(Task):
    """Emit the symbols shown at the start once the marker has appeared.

    The loss is the cross-entropy over all steps; ``cross_entropy`` and the accuracies score the last
    ``recall_length`` steps, ``cross_entropy_all`` all of them.

    Args:
        backbone: Factory of the backbone, called with the encoder's output size.
        vocabulary_size: Token ids; from the data module.
        recall_length: Symbols to emit; from the data module.
        embedding_size: Features of each token's embedding, at least 1.
        encoder: Factory of the encoder, called with ``vocabulary_size``; by default an embedding.
        head: Factory of the head; by default a linear map of all features.
        optimizer: Factory, called with the parameters; by default Adam at 7e-4.
        scheduler: Factory, called with the optimiser; none by default.

    Raises:
        ConfigError: A factory is of a kind that a checkpoint could not hold, or a size is missing.
        ValueError: A size is below 1.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from rimlit import LSTM
        >>> task = CopyingTask(partial(LSTM, hidden_size=16), vocabulary_size=10, recall_length=10)
        >>> logits, state = task(torch.zeros(2, 25, dtype=torch.long))
        >>> logits.shape
        torch.Size([2, 25, 10])
    """

    monitor = "val/cross_entropy"
    headline = ("cross_entropy", "sequence_accuracy")

    def __init__(
        self,
        backbone: BackboneFactory,
        vocabulary_size: int,
        recall_length: int,
        *,
        embedding_size: int = 64,
        encoder: EncoderFactory | None = None,
        head: HeadFactory | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(
            input_encoder(vocabulary_size, None, embedding_size, encoder),
            backbone,
            vocabulary_size,
            head=head,
            optimizer=optimizer,
            scheduler=scheduler,
        )
        self.recall_length = recall_length

    def loss(self, outputs: Tensor, batch: SequenceBatch) -> Tensor:
        """Return the mean cross-entropy over all unpadded steps, nats."""
        return functional.cross_entropy(outputs.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)

    def weight(self, batch: SequenceBatch) -> Tensor:
        """Return the number of unpadded steps."""
        return (batch.targets != IGNORED).sum()

    def metrics(self) -> dict[str, Metric]:
        """Return the metrics of the recall and, for comparison with the literature, of all steps."""
        return {
            "cross_entropy": CrossEntropy(self.recall_length),
            "cross_entropy_all": CrossEntropy(),
            "symbol_accuracy": SymbolAccuracy(self.recall_length),
            "sequence_accuracy": SequenceAccuracy(self.recall_length),
        }

    def predict_step(
        self, batch: SequenceBatch, batch_index: int, dataloader_idx: int = 0
    ) -> list[dict[str, Any]]:
        """Return for each sequence the symbols shown and the symbols emitted."""
        outputs, _ = self(batch.inputs)
        emitted = outputs.argmax(dim=-1)
        return [
            {
                "span": length - 2 * self.recall_length,
                "symbols": inputs[: self.recall_length].tolist(),
                "emitted": tokens[length - self.recall_length : length].tolist(),
            }
            for inputs, tokens, length in zip(batch.inputs, emitted, batch.lengths.tolist(), strict=True)
        ]

    def step_labels(self, batch: SequenceBatch) -> list[str]:
        """Name the steps of the first sequence: symbols, blank, marker, recall."""
        recall = self.recall_length
        span = int(batch.lengths[0]) - 2 * recall
        return ["symbols"] * recall + ["blank"] * (span - 1) + ["marker"] + ["recall"] * recall
