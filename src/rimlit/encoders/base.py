"""What every encoder is: a module that says how many features it gives, and what it reads."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import nn

from rimlit.errors import ConfigError


class Encoder(nn.Module):
    """Base of the encoders, which turn each step's input into features for the backbone.

    It names the kind in configs: with any module allowed there, the command line would list, and complete, all of
    torch and the tasks themselves inside each other without end.
    """

    input_size: Any
    """What its factory is called with: the number of features or tokens, the pixels of a side, or a shape."""

    output_size: int
    """Features of each step."""

    unread: tuple[str, ...] = ()
    """Fields of its inputs, where these are a named tuple, that do not change what it returns."""

    def example_inputs(self, batch_size: int, num_steps: int, generator: torch.Generator) -> Any:
        """Return random inputs of the shape and type that :meth:`forward` reads, which an export is traced with.

        By default normal numbers (B, T, ...), the last dimensions those of ``input_size``. An encoder that reads
        something else overrides this.

        Args:
            batch_size: Sequences B.
            num_steps: Steps T.
            generator: Draws the numbers.

        Raises:
            ConfigError: ``input_size`` is neither a number nor a list of numbers.
        """
        size = getattr(self, "input_size", None)
        shape = [size] if isinstance(size, int) else size
        if not isinstance(shape, list | tuple) or not all(isinstance(side, int) for side in shape):
            raise ConfigError(
                f"{type(self).__name__} must have an input_size or override example_inputs; "
                f"got input_size={size!r}."
            )
        return torch.randn(batch_size, num_steps, *shape, generator=generator)


EncoderFactory: TypeAlias = Callable[[Any], Encoder]
"""Builds an encoder from the size or the shape of what it reads. In YAML: ``class_path`` and ``init_args`` without
it."""
