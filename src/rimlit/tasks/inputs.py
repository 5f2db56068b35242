"""What the tasks of sequences share: an encoder for tokens or vectors, the last step that is no padding, units."""

import lightning as L
import torch
from torch import Tensor

from rimlit.data.sequences import Sequences
from rimlit.encoders import Embedding, Encoder, EncoderFactory, Identity
from rimlit.errors import ConfigError
from rimlit.spec import build, to_spec


def input_encoder(
    vocabulary_size: int | None,
    input_size: int | None,
    embedding_size: int,
    encoder: EncoderFactory | None = None,
) -> Encoder:
    """Return what ``encoder`` builds; by default an embedding for tokens, and no encoding of vectors.

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
    """Return the outputs (B, …) of each sequence's last step that is no padding.

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
