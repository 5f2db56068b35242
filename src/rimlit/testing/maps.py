"""Laws of heads and encoders, which map every step by itself."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from rimlit.encoders import Encoder
from rimlit.heads import Head
from rimlit.testing.laws import check_laws, law, require, require_close
from rimlit.testing.modules import exact, inputs_for

MAPS = ("head", "encoder")


def check_head(
    build: Callable[[], Head] | Head,
    features: Tensor | None = None,
    *,
    slow: bool = False,
    gpu: bool = False,
    skip: Iterable[str] = (),
) -> None:
    """Run every law of heads; see :func:`rimlit.testing.check_laws`.

    Args:
        build: Builds a head; a head is copied instead.
        features: (B, T, input_size), at least 2 samples and 5 steps; by default random ones.
        slow: Whether to run the slow laws too.
        gpu: Whether to run the laws that need a CUDA device too.
        skip: Names of laws that are not run.

    Example:
        >>> from rimlit.heads import LinearHead
        >>> check_head(lambda: LinearHead(8, 3))
    """
    check_laws("head", build, features, slow=slow, gpu=gpu, skip=skip)


def check_encoder(
    build: Callable[[], Encoder] | Encoder,
    inputs: Tensor,
    *,
    slow: bool = False,
    gpu: bool = False,
    skip: Iterable[str] = (),
) -> None:
    """Run every law of encoders; see :func:`rimlit.testing.check_laws`.

    Args:
        build: Builds an encoder; an encoder is copied instead.
        inputs: What it reads, (B, T, …), at least 2 samples and 5 steps.
        slow: Whether to run the slow laws too.
        gpu: Whether to run the laws that need a CUDA device too.
        skip: Names of laws that are not run.

    Example:
        >>> import torch
        >>> from rimlit.encoders import Embedding
        >>> check_encoder(lambda: Embedding(6, 4), torch.arange(20).view(2, 10) % 6)
    """
    check_laws("encoder", build, inputs, slow=slow, gpu=gpu, skip=skip)


@law(*MAPS)
def check_outputs_have_the_declared_size(build: Any, inputs: Tensor | None = None) -> None:
    """Outputs are (B, T, output_size), an encoder's also slots (B, T, N, output_size)."""
    module = exact(build)
    inputs = inputs_for(module, inputs)
    outputs = module(inputs)
    shape, declared = tuple(outputs.shape), module.output_size
    dimensions = (3, 4) if isinstance(module, Encoder) else (3,)
    is_right = len(shape) in dimensions and shape[:2] == inputs.shape[:2] and shape[-1] == declared
    expected = f"({inputs.shape[0]}, {inputs.shape[1]}, output_size={declared})"
    require(is_right, f"outputs have shape {shape}; expected {expected}")


@law(*MAPS)
def check_empty_inputs_give_empty_outputs(build: Any, inputs: Tensor | None = None) -> None:
    """A batch of no samples, or of sequences of no steps, gives outputs of that shape and of the same size."""
    module = exact(build)
    inputs = inputs_for(module, inputs)
    declared = tuple(module(inputs).shape[2:])
    for empty in (inputs[:0], inputs[:, :0]):
        shape, expected = tuple(module(empty).shape), (*empty.shape[:2], *declared)
        require(shape == expected, f"outputs have shape {shape}; expected {expected}")


@law(*MAPS)
def check_steps_are_mapped_one_by_one(build: Any, inputs: Tensor | None = None) -> None:
    """A step alone gives what it gives inside its sequence."""
    module = exact(build)
    inputs = inputs_for(module, inputs)
    expected = module(inputs)[1:, 2:3]
    require_close("outputs of step 2 alone", module(inputs[1:, 2:3]), expected)
