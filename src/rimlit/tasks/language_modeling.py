"""Language modelling: predict the next token, state carried from chunk to chunk."""

import logging
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional
from torchmetrics import Metric

from rimlit.backbones import BackboneFactory
from rimlit.checks import require_at_least, require_positive
from rimlit.data.sampling import rank_and_world_size
from rimlit.data.text import Prompt, Text
from rimlit.encoders import Embedding, EncoderFactory
from rimlit.errors import CheckpointError, ConfigError
from rimlit.heads import HeadFactory, LinearHead, TiedHead
from rimlit.metrics import IGNORED, BitsPerCharacter, CrossEntropy, Perplexity
from rimlit.spec import to_spec
from rimlit.tasks.base import Stage, Task
from rimlit.tasks.inputs import input_encoder
from rimlit.tasks.signatures import OptimizerFactory, SchedulerFactory
from rimlit.types import SequenceBatch, State, detach_state, flat_state, map_state

log = logging.getLogger(__name__)


class LanguageModelingTask(Task):
    """Predict the next character, byte or word of a text.

    Batches are chunks of contiguous rows of text. The state after a chunk, cut from its graph, starts the
    next one (truncated backpropagation), in training and in evaluation; each epoch starts from the initial
    state. Prediction continues a prompt.

    Args:
        backbone: Factory of the backbone, called with the encoder's output size.
        vocabulary_size: Tokens; from the data module.
        level: Unit of the text, ``character``, ``byte`` or ``word``; from the data module. At the first two
            bits per character are logged too (a byte counts as a character).
        embedding_size: Features of each token's embedding, at least 1.
        tie_embeddings: Whether the head scores tokens by their embedding.
        dropout: Dropout on embeddings and on the backbone's features, 0 to 1; an encoder or a head that is given
            has its own instead.
        encoder: Factory of the encoder, called with ``vocabulary_size``; by default an embedding. Not with
            ``tie_embeddings``.
        head: Factory of the head; by default a linear map of all features. Not with ``tie_embeddings``.
        carry_state: Whether training carries the state over chunks; evaluation always does.
        num_tokens: Tokens with which prediction continues a prompt, at least 1.
        temperature: Divides the scores before sampling; 0 takes the most likely token.
        top_k: Sample among the k most likely tokens only; None among all.
        sample_seed: Seed of the sampling.
        optimizer: Factory, called with the parameters; by default Adam at 7e-4.
        scheduler: Factory, called with the optimiser; none by default.

    Raises:
        ConfigError: A value is out of its range, or a factory of a kind that a checkpoint could not hold.
        ConfigError: A size is below 1.

    Example:
        >>> from functools import partial
        >>> from rimlit import LSTM
        >>> task = LanguageModelingTask(partial(LSTM, hidden_size=16), vocabulary_size=256, level="byte")
        >>> logits, state = task(torch.zeros(2, 25, dtype=torch.long))
        >>> logits.shape
        torch.Size([2, 25, 256])
    """

    monitor = "val/cross_entropy"
    headline = ("cross_entropy", "perplexity", "bits_per_character")

    def __init__(
        self,
        backbone: BackboneFactory,
        vocabulary_size: int,
        level: str,
        *,
        embedding_size: int = 128,
        tie_embeddings: bool = False,
        dropout: float = 0.0,
        encoder: EncoderFactory | None = None,
        head: HeadFactory | None = None,
        carry_state: bool = True,
        num_tokens: int = 400,
        temperature: float = 1.0,
        top_k: int | None = None,
        sample_seed: int = 0,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        require_positive(num_tokens=num_tokens)
        require_at_least(0, temperature=temperature)
        if top_k is not None and top_k < 1:
            raise ConfigError(f"top_k must be at least 1 or null; got top_k={top_k}.")
        if tie_embeddings and head is not None:
            raise ConfigError(
                "tie_embeddings scores tokens by their embedding and leaves no head to choose; got "
                f"tie_embeddings={tie_embeddings} and head={to_spec(head, 'head')['class_path']}. Remove one."
            )
        if tie_embeddings and encoder is not None:
            raise ConfigError(
                "tie_embeddings scores tokens by the task's own embedding and leaves no encoder to choose; got "
                f"tie_embeddings={tie_embeddings} and encoder={to_spec(encoder, 'encoder')['class_path']}. Remove "
                "one."
            )
        embedding = partial(Embedding, output_size=embedding_size, dropout=dropout)
        super().__init__(
            input_encoder(vocabulary_size, None, embedding_size, embedding if encoder is None else encoder),
            backbone,
            vocabulary_size,
            head=partial(LinearHead, dropout=dropout) if head is None else head,
            optimizer=optimizer,
            scheduler=scheduler,
        )
        if tie_embeddings:
            assert isinstance(self.encoder, Embedding)
            table = self.encoder.table
            self.head = TiedHead(self.backbone.output_size, table, dropout=dropout)
            torch.nn.init.normal_(table.weight, std=embedding_size**-0.5)
        self.level = level
        self.carry_state = carry_state
        self.num_tokens = num_tokens
        self.temperature = temperature
        self.top_k = top_k
        self.sample_seed = sample_seed
        # neither parameter nor buffer: it belongs to the rows of this process, and DDP would broadcast it
        self._carried: State | None = None
        self._is_restored = False  # from a checkpoint, not used yet

    def shared_step(self, batch: SequenceBatch, stage: Stage, group: int = 0) -> Tensor:
        """Run a chunk from the state the last one left."""
        if stage == "train" and not self.carry_state:
            self._carried = None
        if stage == "train" and self._is_restored:
            self._is_restored = False
            self._drop_other_rows(len(batch.inputs))
        outputs, state = self(batch.inputs, self._carried)
        self._carried = detach_state(state)
        return self.log_step(outputs, batch, stage, group)

    def _drop_other_rows(self, rows: int) -> None:
        """Start from the initial state where a checkpoint's state is that of another number of rows."""
        before = rows if self._carried is None else len(flat_state(self._carried)[0])
        if before != rows:
            log.info("The state of %d rows of text is not restored: a batch has %d from here on.", before, rows)
            self._carried = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the carried state of every process."""
        super().on_save_checkpoint(checkpoint)
        carried = None if self._carried is None else [part.cpu() for part in flat_state(self._carried)]
        everyone: list[list[Tensor] | None] = [carried]
        if distributed.is_available() and distributed.is_initialized():
            everyone = [None] * distributed.get_world_size()
            distributed.all_gather_object(everyone, carried)
        checkpoint["rimlit"]["carried"] = everyone

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the carried state of the rows of text that this process has now."""
        super().on_load_checkpoint(checkpoint)
        everyone = checkpoint.get("rimlit", {}).get("carried")
        self._carried = None
        if everyone is None or any(state is None for state in everyone):
            return
        shapes = [tensor.shape[1:] for tensor in flat_state(self.backbone.initial_state(1))]
        if any(
            [tensor.shape[1:] for tensor in state] != shapes or len({len(tensor) for tensor in state}) > 1
            for state in everyone
        ):
            raise CheckpointError("The state carried in the checkpoint is of another model, or damaged.")
        rank, world_size = rank_and_world_size()
        if sum(len(state[0]) for state in everyone) % world_size:
            return  # of another batch size: its rows cannot be divided among the processes
        parts = [
            torch.cat(states).chunk(world_size)[rank].to(self.device) for states in zip(*everyone, strict=True)
        ]
        left = iter(parts)
        self._carried = map_state(lambda _: next(left), self.backbone.initial_state(len(parts[0])))
        self._is_restored = True

    def loss(self, outputs: Tensor, batch: SequenceBatch) -> Tensor:
        """Return the mean cross-entropy over unpadded tokens, nats."""
        targets = batch.targets.flatten()
        total = functional.cross_entropy(outputs.flatten(0, 1), targets, ignore_index=IGNORED, reduction="sum")
        # a process whose rows all end before the last chunk has nothing to score: 0, where the mean is NaN
        return total / (targets != IGNORED).sum().clamp(min=1)

    def weight(self, batch: SequenceBatch) -> Tensor:
        """Return the number of unpadded tokens."""
        return (batch.targets != IGNORED).sum()

    def metrics(self) -> dict[str, Metric]:
        """Return metrics counted once per token."""
        metrics: dict[str, Metric] = {"cross_entropy": CrossEntropy(), "perplexity": Perplexity()}
        if self.level != "word":
            metrics["bits_per_character"] = BitsPerCharacter()
        return metrics

    def on_train_epoch_start(self) -> None:
        """Start the text from the initial state."""
        self._carried = None

    def on_validation_epoch_start(self) -> None:
        """Store the training state and start the text from the initial state."""
        super().on_validation_epoch_start()
        self._training_state, self._carried = self._carried, None

    def on_validation_epoch_end(self) -> None:
        """Restore the training state."""
        super().on_validation_epoch_end()
        self._carried = self._training_state

    def on_test_epoch_start(self) -> None:
        """Start the text from the initial state."""
        super().on_test_epoch_start()
        self._carried = None

    def predict_step(self, batch: Prompt, batch_index: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Continue a prompt; returns one record with ``prompt`` and ``text``."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, Text)
        tokens = self.continue_tokens(batch.inputs)
        return [{"prompt": batch.text, "text": data.vocabulary.decode(tokens[0])}]

    @torch.no_grad()
    def continue_tokens(self, tokens: Tensor) -> Tensor:
        """Sample ``num_tokens`` tokens after ``tokens`` (B, T), T at least 1; returns (B, num_tokens)."""
        generator = torch.Generator(tokens.device).manual_seed(self.sample_seed)
        logits, state = self(tokens)
        sampled = []
        for _ in range(self.num_tokens):
            choice = self._choose(logits[:, -1], generator)
            sampled.append(choice)
            logits, state = self(choice, state)
        return torch.cat(sampled, dim=1)

    def _choose(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Return one token (B, 1) for scores (B, V)."""
        if self.temperature == 0:
            return logits.argmax(dim=-1, keepdim=True)
        logits = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)

    def step_labels(self, batch: SequenceBatch) -> list[str] | None:
        """Return the tokens of the first row as text."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, Text):
            return None
        length = int(batch.lengths[0])
        return [data.vocabulary.decode(token[None]) for token in batch.inputs[0, :length]]
