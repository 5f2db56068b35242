"""Shared by the tasks of sequences: an encoder for tokens or vectors, the last step before the padding, units."""

import lightning as L
import torch
from torch import Tensor

from rimlit.backbones import BackboneFactory
from rimlit.data.sequences import Sequences
from rimlit.encoders import Embedding, Encoder, EncoderFactory, Identity
from rimlit.errors import ConfigError
from rimlit.heads import HeadFactory
from rimlit.spec import build, to_spec
from rimlit.tasks.base import Task
from rimlit.tasks.signatures import OptimizerFactory, SchedulerFactory


class SequenceTask(Task):
    """Base of the tasks that predict a target for each sequence, or for each of its steps.

    Args:
        backbone: Factory of the backbone, called with the encoder's output size.
        output_size: Outputs of each step; from the data module.
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
    """

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


def input_encoder(
    vocabulary_size: int | None,
    input_size: int | None,
    embedding_size: int,
    encoder: EncoderFactory | None = None,
) -> Encoder:
    """Build an encoder; by default an embedding for tokens, and no encoding of vectors.

    Raises:
        ConfigError: Neither or both of the sizes are given, or the factory is wrong.
    """
    if (vocabulary_size is None) == (input_size is None):
        raise ConfigError(
            "Inputs are tokens, and need vocabulary_size, or vectors, and need input_size; got "
            f"vocabulary_size={vocabulary_size}, input_size={input_size}."
        )
    if encoder is not None:
        size = input_size if vocabulary_size is None else vocabulary_size
        built: Encoder = build(to_spec(encoder, "encoder"), Encoder, size)
        return built
    if vocabulary_size is not None:
        return Embedding(vocabulary_size, embedding_size)
    assert input_size is not None
    return Identity(input_size)


def last_step(outputs: Tensor, lengths: Tensor) -> Tensor:
    """Return the outputs (B, …) of each sequence's last unpadded step.

    Example:
        >>> last_step(torch.arange(6).view(2, 3), torch.tensor([2, 3])).tolist()
        [1, 5]
    """
    return outputs[torch.arange(len(outputs), device=outputs.device), lengths - 1]


def own_sequences(task: L.LightningModule) -> Sequences | None:
    """Return the data module of a user's own sequences that ``task`` runs on; None for any other."""
    try:
        data = getattr(task.trainer, "datamodule", None)
    except RuntimeError:  # it is attached to none
        return None
    return data if isinstance(data, Sequences) else None
