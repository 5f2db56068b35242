"""Single steps of a RIM without a graph, by way of the C++ loop where it runs."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rimlit.backbones.base import Backbone
from rimlit.kernels import cpu
from rimlit.mechanisms import NoBalance
from rimlit.nn.surroundings import is_plain
from rimlit.types import State, conform_state, map_state

if TYPE_CHECKING:
    from rimlit.backbones.rim import RIM


def can_step_fast(rim: "RIM", weights: list[nn.Parameter]) -> bool:
    """Return whether single steps may run in the C++ loop on these weights, whatever the inputs are."""
    first = rim._first
    return (
        not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and not rim.is_watched
        and not (rim.training and (rim.dropout > 0 or first.drops))
        and not first.project_in_bf16
        and rim.input_attention  # without, the values' weights are doubled: a copy, which would grow old
        and _is_in_loop(rim)
        and all(is_plain(weight) and weight.is_contiguous() for weight in weights)
    )


def _is_in_loop(rim: "RIM") -> bool:
    return type(rim._first.balance) is NoBalance and rim.resolve_backend()[0] == "cpu"


class Stepper:
    """Single steps of a RIM: no graph, no dropout, no activity, and what can be folded is folded ahead.

    It belongs to the weights as they were when it was built: build another after a step of the optimiser. Where
    the C++ loop does not run, it steps the RIM itself.

    Args:
        rim: The RIM to step.
        batch_size: Samples of every step.
        fold: Whether products of weights are formed when it is built, where that makes a step cheaper.

    Example:
        >>> from rimlit import RIM
        >>> rim = RIM(10, 60).eval()
        >>> step, state = rim.stepper(), rim.initial_state(1)
        >>> features, state = step(torch.ones(1, 10), state)
        >>> features.shape
        torch.Size([1, 60])
    """

    def __init__(self, rim: "RIM", batch_size: int, *, fold: bool = True) -> None:
        self.rim = rim
        self.batch_size = batch_size
        first = rim._first
        self._dtype = first.like.dtype
        self._state_shape = batch_size, rim.num_layers, rim.num_mechanisms, first.size
        self._state_parts = len(rim.state_type._fields)
        self._steps = []
        if _is_in_loop(rim) and all(map(is_plain, rim.parameters())):
            self._steps = [cpu.LayerStep(layer, batch_size, fold=fold) for layer in rim._layers]

    def __call__(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one step on ``inputs`` (B, input_size); see :meth:`Backbone.step`.

        Raises:
            ValueError: ``inputs`` or ``state`` do not have the shape that the stepper was built for.
        """
        rim = self.rim
        if inputs.shape != (self.batch_size, rim.input_size):
            raise ValueError(
                f"inputs must be (batch_size, input_size) = ({self.batch_size}, {rim.input_size}); "
                f"got shape {tuple(inputs.shape)}."
            )
        if not self._steps:
            with torch.no_grad():
                return Backbone.step(rim, inputs, state)
        fits = isinstance(state, tuple | list) and len(state) == self._state_parts
        for part in state:
            fits = fits and getattr(part, "shape", None) == self._state_shape and part.dtype is self._dtype
        if not fits:
            state = conform_state(state, rim.initial_state(self.batch_size))
        if inputs.dtype is not self._dtype:
            inputs = inputs.to(self._dtype)
        if len(self._steps) == 1:
            return self._steps[0](inputs, state)
        states = []
        for index, step in enumerate(self._steps):
            inputs, new = step(inputs, map_state(lambda tensor, at=index: tensor[:, at : at + 1], state))
            states.append(new)
        return inputs, map_state(lambda *tensors: torch.cat(tensors, dim=1), *states)
