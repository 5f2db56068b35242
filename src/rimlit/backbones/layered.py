"""What every backbone of RIM layers has: a time loop, costs, and single steps without a graph."""

import logging
from typing import Any, cast

import torch
from torch import Tensor

from rimlit.backbones.balanced import BalancedBackbone
from rimlit.backbones.base import Backbone
from rimlit.checks import require_positive
from rimlit.kernels import Where, choose_loop, cpu
from rimlit.mechanisms import RIMLayer
from rimlit.nn.surroundings import is_plain, weights_in
from rimlit.types import State, conform_state, map_state

log = logging.getLogger(__name__)


class LayeredBackbone(BalancedBackbone):
    """A backbone whose ``layers`` are :class:`rimlit.mechanisms.RIMLayer`.

    A subclass sets ``layers``, ``backend``, ``state_type``, ``num_active``, ``dropout`` and ``input_attention``.
    """

    backend: str
    state_type: Any
    num_active: int
    dropout: float
    input_attention: bool

    def __init__(self) -> None:
        super().__init__()
        self._stepper: tuple[Any, Stepper] | None = None
        self._announced: tuple[str, str] | None = None

    @property
    def _first(self) -> RIMLayer:
        return cast(RIMLayer, next(iter(self.layers)))

    def resolve_backend(self, num_slots: int = 1, device: torch.device | None = None) -> tuple[str, str]:
        """Return the time loop that a forward over ``num_slots`` input slots takes now, and why.

        Args:
            num_slots: Input slots N.
            device: Where the weights will be, by default where they are.

        Raises:
            ConfigError: The loop that was asked for cannot run this RIM there.
        """
        first = self._first
        where = Where.of(first.like, num_slots)
        return choose_loop(self.backend, first, where if device is None else where._replace(device=device))

    def announce_backend(self, num_slots: int) -> str:
        """Return the time loop that runs now; log it where it is another than before."""
        chosen = self.resolve_backend(num_slots)
        if not torch.compiler.is_compiling() and chosen[0] != (self._announced or ("",))[0]:
            log.info("RIM time loop: %s (%s).", *chosen)
            self._announced = chosen
        return chosen[0]

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one step; see :meth:`Backbone.step`. Without a graph it takes the C++ loop's fast path."""
        weights = weights_in(self)
        is_short = inputs.dim() == 2 and inputs.device.type == "cpu" and can_step_fast(self, weights)
        if not is_short:
            return super().step(inputs, state)
        # nothing is folded: it reads the weights where they are, until they are moved
        key = (len(inputs), *(weight.data_ptr() for weight in weights))
        if self._stepper is None or self._stepper[0] != key:
            self._stepper = key, Stepper(self, len(inputs), fold=False)
        return self._stepper[1](inputs, state)

    def stepper(self, batch_size: int = 1) -> "Stepper":
        """Return what runs single steps fastest, without a graph, on the weights as they are now.

        Args:
            batch_size: Samples of every step, at least 1.
        """
        require_positive(batch_size=batch_size)
        return Stepper(self, batch_size, fold=True)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what holds addresses or a graph: a copy builds its own."""
        return {**super().__getstate__(), "_stepper": None}


def state_of_layer(state: State, index: int) -> State:
    """Return the tensors (B, …) that one layer has in a state of tensors (B, num_layers, …)."""

    def pick(tensor: Tensor) -> Tensor:
        # the derivative of a view of all is the cheaper one
        return tensor.squeeze(1) if tensor.shape[1] == 1 else tensor[:, index]

    return map_state(pick, state)


def can_step_fast(rim: "LayeredBackbone", weights: list[Tensor]) -> bool:
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
        and first.stores_its_weights  # what is formed of shared weights is such a copy, too
        and _is_in_loop(rim, first)
        and all(is_plain(weight) and weight.is_contiguous() for weight in weights)
    )


def _is_in_loop(rim: "LayeredBackbone", first: RIMLayer) -> bool:
    return not first.has_offset and rim.resolve_backend()[0] == "cpu"


class Stepper:
    """Single steps of a RIM: no graph, no dropout, no activity, and what can be folded is folded ahead.

    It belongs to the weights as they were when it was built: build another after a step of the optimiser. Where
    the C++ loop does not run, or products are to be computed in bfloat16, it steps the RIM itself.

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

    def __init__(self, rim: "LayeredBackbone", batch_size: int, *, fold: bool = True) -> None:
        self.rim = rim
        self.batch_size = batch_size
        first = rim._first
        self._dtype = first.like.dtype
        self._state_shape = batch_size, rim.num_layers, rim.num_mechanisms, first.size
        self._state_parts = len(rim.state_type._fields)
        self._steps = []
        in_low_precision = first.project_in_bf16 or torch.is_autocast_enabled("cpu")
        if _is_in_loop(rim, first) and not in_low_precision and all(map(is_plain, rim.parameters())):
            self._steps = [cpu.LayerStep(layer, batch_size, fold=fold) for layer in rim._layers]

    def __call__(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one step on ``inputs`` (B, input_size) or, without the C++ loop, (B, N, input_size).

        Raises:
            ValueError: ``inputs`` or ``state`` do not have the shape that the stepper was built for.
        """
        rim = self.rim
        if inputs.dim() == 3:  # slots
            with torch.no_grad():
                return Backbone.step(rim, inputs, state)
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
