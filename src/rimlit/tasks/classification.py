"""Classification of sequences: one label after the last step, or one at every step."""

from typing import Any

from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from rimlit.backbones import BackboneFactory
from rimlit.encoders import EncoderFactory
from rimlit.errors import ConfigError
from rimlit.heads import HeadFactory
from rimlit.metrics import IGNORED, CrossEntropy, SymbolAccuracy
from rimlit.tasks.base import Task
from rimlit.tasks.inputs import input_encoder, last_step, own_sequences
from rimlit.tasks.signatures import OptimizerFactory, SchedulerFactory
from rimlit.types import SequenceBatch


class ClassificationTask(Task):
    """Say which class a sequence belongs to, from the outputs of its last unpadded step.

    Targets (B,) are one class per sequence; targets (B, T) are one per step, with ``IGNORED`` where a step is not
    scored, as when the next token is to be predicted.

    Args:
        backbone: Factory of the backbone, called with the encoder's output size.
        output_size: Classes; from the data module.
        vocabulary_size: Token ids, where the inputs are tokens; from the data module.
        input_size: Features of each step, where the inputs are vectors; from the data module.
        embedding_size: Features of each token's embedding, at least 1; not used for vectors, or with another
            encoder.
        encoder: Factory of the encoder, called with ``vocabulary_size`` or ``input_size``; by default an embedding
            of tokens, and no encoding of vectors.
        head: Factory of the head; by default a linear map of all features.
        optimizer: Factory, called with the parameters; by default Adam at 7e-4.
        scheduler: Factory, called with the optimiser; none by default.

    Raises:
        ConfigError: Neither or both of ``vocabulary_size`` and ``input_size`` are given, or a factory is of a kind
            that a checkpoint could not hold.
        ValueError: A size is below 1.

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

    def __init__(
        self,
        backbone: BackboneFactory,
        output_size: int,
        vocabulary_size: int | None = None,
        input_size: int | None = None,
        *,
        embedding_size: int = 64,
        encoder: EncoderFactory | None = None,
        head: HeadFactory | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(
            input_encoder(vocabulary_size, input_size, embedding_size, encoder),
            backbone,
            output_size,
            head=head,
            optimizer=optimizer,
            scheduler=scheduler,
        )

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
