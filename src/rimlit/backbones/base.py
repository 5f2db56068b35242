"""The contract of every backbone: a sequence and a state in, features and a state out."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rimlit.errors import ConfigError
from rimlit.nn.surroundings import is_traced
from rimlit.types import State, conform_state, flat_state, replace_state


class Backbone(nn.Module, ABC):
    """A drop-in replacement for ``nn.LSTM(batch_first=True)``.

    Subclasses set ``input_size``, ``output_size`` and ``hidden_size`` and override the two abstract methods.
    Running a sequence step by step, with the state passed on, equals running it whole.
    """

    input_size: int
    output_size: int
    hidden_size: int
    """Total width of a layer, as the constructor takes it."""
    num_layers: int = 1
    batch_first: bool = True
    """As ``nn.LSTM`` names it: always, for inputs, features and states alike."""
    num_mechanisms: int = 1
    """Equal parts into which the features fall, mechanism by mechanism."""

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """Return the state a sequence starts from; device and dtype follow the weights.

        Returns:
            A NamedTuple of tensors whose first dimension is ``batch_size``.
        """

    @abstractmethod
    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run over a sequence.

        Args:
            inputs: (B, T, input_size), or (B, T, N, input_size) where the backbone reads N slots.
            state: State to start from, by default the initial one: what :meth:`initial_state` or a forward
                returned, or its tensors in a plain tuple or list; a bare tensor where the state has one field.
            resets: (B, T) bool: samples whose state is replaced by the initial one before a step.

        Returns:
            Features (B, T, output_size) and the state after the last step.
        """

    def forward_tokens(
        self, tokens: Tensor, table: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run over the rows of ``table`` that ``tokens`` name.

        Args:
            tokens: (B, T) integers from 0 to V − 1.
            table: (V, input_size): an embedding.
            state: As in :meth:`forward`.
            resets: As in :meth:`forward`.

        Returns:
            What :meth:`forward` returns for ``table[tokens]``; a backbone may get there on a shorter way.
        """
        features, state = self(functional.embedding(tokens, table), state, resets)
        return features, state

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one step.

        Args:
            inputs: (B, input_size), or (B, N, input_size) where the backbone reads N slots.
            state: State to continue from.

        Returns:
            Features (B, output_size) and the state after the step, as a sequence of one step gives them.
        """
        features, state = self(inputs.unsqueeze(1), state)
        return features.squeeze(1), state

    def stepper(self, batch_size: int = 1) -> Callable[[Tensor, State], tuple[Tensor, State]]:
        """Return what runs single steps fastest, without a graph, while weights and mode stay as they are.

        By default :meth:`step`. A backbone may have a faster one, whose features may share memory with the state:
        write to neither.

        Args:
            batch_size: Samples of every step, at least 1.
        """
        without_graph: Callable[[Tensor, State], tuple[Tensor, State]] = torch.no_grad()(self.step)
        return without_graph

    def penalty(self, mask: Tensor | None = None) -> Tensor | None:
        """Return what a backbone adds to the loss after its last training forward, a scalar, or None.

        Args:
            mask: (B, T) bool: steps that are not padding; by default all.
        """
        return None

    def after_step(self, rate: float = 1.0) -> None:
        """Run after each step of the optimiser; by default nothing.

        Args:
            rate: The learning rate as a share of the highest of its schedule, 0 to 1.
        """

    def adapt_weights(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return ``weights``, a state dict of a backbone of other sizes, for this one; by default as they are."""
        return weights

    def active_parameters(self) -> int:
        """Return how many parameters take part in one step of one sequence; by default all."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_step(self) -> int:
        """Return the multiplications and additions of one step of one sequence, forward.

        Counted are the products of matrices in a first step as torch runs it on a zero input, two operations for
        each weight that is multiplied; sums, gates and other elementwise work are not. A subclass that computes
        less than what torch would count says so itself.
        """
        device = flat_state(self.initial_state(1))[0].device
        return count_flops(self, torch.zeros(1, 1, self.input_size, device=device))

    def state_size(self) -> int:
        """Return how many numbers are carried from step to step for one sequence, its masks and counters aside."""
        parts = flat_state(self.initial_state(1))
        return sum(part.numel() for part in parts if part.is_floating_point())

    def starting_state(self, inputs: Tensor, state: State | None) -> tuple[State, State]:
        """Return the state to start from and the initial state, both for the batch in ``inputs``.

        A given state may be a plain tuple, a list or, where it has one field, a tensor.

        Learned initial states stay in the graph also when ``state`` is given, so that they get a gradient
        of zeros and not None: plain DDP waits for every parameter.
        """
        initial = self.initial_state(inputs.shape[0])
        if state is None:
            return initial, initial
        nowhere = torch.zeros(inputs.shape[0], dtype=torch.bool, device=inputs.device)
        return replace_state(conform_state(state, initial), initial, nowhere), initial


BackboneFactory: TypeAlias = Callable[[int], Backbone]
"""Builds a backbone from its input size. In YAML: ``class_path`` and ``init_args`` without the input size."""


def count_flops(module: nn.Module, inputs: Tensor) -> int:
    """Return the multiplications and additions of the matrix products in ``module(inputs)``.

    Example:
        >>> count_flops(nn.Linear(3, 5), torch.zeros(1, 3))
        30
    """
    with (
        warnings.catch_warnings(action="ignore", category=UserWarning),  # about TF32, as mkldnn is switched
        torch.random.fork_rng(devices=[]),  # dropout draws
        # fused kernels hide their products from the counter: LSTMs, attention, the encoder without gradients
        torch.backends.mkldnn.flags(enabled=False),
        torch.backends.cudnn.flags(enabled=False),
        sdpa_kernel(SDPBackend.MATH),
        torch.enable_grad(),
        FlopCounterMode(display=False) as counter,
    ):
        module(inputs)
    return int(counter.get_total_flops())


def require_input(
    backbone: Backbone, inputs: Tensor, resets: Tensor | None = None, *, allow_slots: bool = False
) -> None:
    """Raise a ConfigError if ``inputs`` or ``resets`` are not what ``backbone`` reads."""
    if not isinstance(inputs, Tensor):
        raise ConfigError(
            f"inputs must be a tensor (B, T, input_size); got a {type(inputs).__name__}. Of a PackedSequence pass "
            "the padded tensor, torch.nn.utils.rnn.pad_packed_sequence(inputs, batch_first=True)[0], and read "
            "each sequence's features at its last step."
        )
    if is_traced():  # sizes are tensors or symbols there, and a comparison would be a warning or a guard
        return
    if inputs.dim() == 4 and not allow_slots:
        raise ConfigError(
            f"This {type(backbone).__name__} reads one vector per step, (B, T, input_size), and no input slots; "
            f"got shape {tuple(inputs.shape)}. An encoder with position_wise=True gives slots, which a RIM with "
            "input_attention=True reads."
        )
    dimensions = (3, 4) if allow_slots else (3,)
    shapes = "(B, T, input_size)" + (" or (B, T, N, input_size)" if allow_slots else "")
    if inputs.dim() not in dimensions or inputs.shape[-1] != backbone.input_size or 0 in inputs.shape:
        raise ConfigError(
            f"inputs must be non-empty, {shapes}; got shape {tuple(inputs.shape)}, "
            f"input_size={backbone.input_size}."
        )
    if resets is not None:
        _require_resets(inputs, resets)


def require_tokens(backbone: Backbone, tokens: Tensor, table: Tensor, resets: Tensor | None = None) -> None:
    """Raise a ConfigError if ``tokens``, ``table`` or ``resets`` do not have the shape ``backbone`` reads."""
    if tokens.dim() != 2 or 0 in tokens.shape or tokens.is_floating_point():
        raise ConfigError(
            f"tokens must be non-empty integers, (B, T); got {tokens.dtype} of shape {tuple(tokens.shape)}."
        )
    if table.dim() != 2 or table.shape[1] != backbone.input_size:
        raise ConfigError(
            f"table must be (V, input_size); got shape {tuple(table.shape)}, input_size={backbone.input_size}."
        )
    if resets is not None:
        _require_resets(tokens, resets)


def _require_resets(inputs: Tensor, resets: Tensor) -> None:
    if resets.shape != inputs.shape[:2] or resets.dtype != torch.bool:
        raise ConfigError(
            f"resets must be bool of shape (B, T) = {tuple(inputs.shape[:2])}; "
            f"got {resets.dtype} of shape {tuple(resets.shape)}."
        )


class LearnedState(nn.Module):
    """Initial states of a backbone: zeros, or learned vectors that start small and random.

    Args:
        shape: Shape of each tensor for one sample.
        names: Fields of the state.
        learn: Whether the vectors are parameters.
    """

    def __init__(self, shape: tuple[int, ...], names: tuple[str, ...], *, learn: bool) -> None:
        super().__init__()
        self.shape = shape
        self.names = names
        self.learn = learn
        self.mechanism_rows: dict[str, int] = {}  # a backbone with mechanisms says in which dimension they are
        if learn:
            bound = shape[-1] ** -0.5
            for name in names:
                self.register_parameter(name, nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))

    def forward(self, batch_size: int, like: Tensor) -> tuple[Tensor, ...]:
        """Return one tensor (batch_size, *shape) for each name, with the device and dtype of ``like``."""
        if self.learn:
            return tuple(getattr(self, name).expand(batch_size, *self.shape) for name in self.names)
        # not new_zeros: FSDP may have sharded ``like``
        zeros = torch.zeros(batch_size, *self.shape, dtype=like.dtype, device=like.device)
        return tuple(zeros for _ in self.names)


def segments(resets: Tensor) -> list[tuple[int, int]]:
    """Split T steps at every step in which some sample of ``resets`` (B, T) is reset."""
    cuts = resets.any(dim=0).nonzero().flatten().tolist()
    starts = sorted({0, *cuts})
    return list(zip(starts, [*starts[1:], resets.shape[1]], strict=True))


def layers_first(state: State) -> State:
    """Turn the tensors (B, L, H) of a state into the (L, B, H) of ``torch.nn``, and back."""
    parts = [part.transpose(0, 1).contiguous() for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
