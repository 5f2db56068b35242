"""The contract of every backbone: a sequence and a state in, features and a state out."""

import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import PackedSequence
from torch.utils.flop_counter import FlopCounterMode

from rimlit.backbones import layouts
from rimlit.backbones.layouts import Run, require_resets
from rimlit.errors import ConfigError
from rimlit.nn.surroundings import is_symbolic, is_traced
from rimlit.types import State, conform_state, flat_state, loads_as_data, replace_state


class Backbone(nn.Module, ABC):
    """A drop-in replacement for ``nn.LSTM(batch_first=True)``; ``docs/from_lstm.md`` shows how.

    Subclasses set ``input_size``, ``output_size`` and ``hidden_size`` and override the two abstract methods.
    Running a sequence step by step, with the state passed on, equals running it whole.

    A ``forward`` is written for a batch (B, T, …). A call ``backbone(inputs, state, resets, lengths=lengths)``
    also accepts

    - ``lengths``, (B,) integers from 0 to T: features after a sequence's end are zero, and the state is the one at
      its end. The padding has no influence.
    - a ``PackedSequence``; the features are one too. State and resets (B, T) have the samples in the order in
      which they were packed.
    - one sequence (T, input_size); features and state have no batch dimension.
    - no samples, B = 0.

    Args:
        bidirectional: Whether a second backbone of the same kind reads each sequence from its end:
            :class:`Bidirectional`. A keyword of every subclass.
    """

    input_size: int
    output_size: int
    hidden_size: int
    """Total width of a layer, as the constructor takes it."""
    num_layers: int = 1
    batch_first: bool = True
    """As ``nn.LSTM`` names it: always, for inputs, features and states alike."""
    bidirectional: bool = False
    """Whether it is :class:`Bidirectional`."""
    num_mechanisms: int = 1
    """Equal parts into which the features fall, mechanism by mechanism."""
    unordered_state: tuple[str, ...] = ()
    """Fields of the state whose entries may be in another order without an effect on any feature."""

    def __new__(cls, *args: Any, bidirectional: bool = False, **kwargs: Any) -> Self:
        """Build two in one where ``bidirectional``; subclasses name the keyword for readers and YAML only."""
        if bidirectional:  # no instance of cls, so that Python does not call __init__
            return Bidirectional(functools.partial(cls, *args, **kwargs))  # type: ignore[return-value]
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let a subclass accept the layouts that its ``forward`` is not written for."""
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            cls.forward = layouts.accept_layouts(cls.forward)  # type: ignore[method-assign]

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

    def final_features(
        self, features: Tensor | PackedSequence, lengths: Tensor | Sequence[int] | None = None
    ) -> Tensor:
        """Return the features of each sequence's last step, which are ``h_n[-1]`` of an ``nn.LSTM``.

        Args:
            features: What a call returned: (B, T, output_size), (T, output_size) or a PackedSequence.
            lengths: As in that call.

        Returns:
            (B, output_size), or (output_size,) for one sequence; zeros for a sequence of no steps.
        """
        return layouts.ends_of(features, lengths)[1]

    def run_lengths(
        self, run: Run, inputs: Tensor, state: State | None, resets: Tensor | None, lengths: Tensor
    ) -> tuple[Tensor, State]:
        """Run over sequences (B, T, …) that end at ``lengths`` (B,), by ``run``, which is the forward."""
        return layouts.run_lengths(self, run, inputs, state, resets, lengths)

    def run_empty(self, run: Run, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """Run over no samples, (0, T, …), by ``run``, which is the forward."""
        return layouts.run_empty(self, run, inputs, state)

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


@loads_as_data
class BidirectionalState(NamedTuple):
    """State of a bidirectional backbone."""

    forward: State  # at each sequence's end
    backward: State  # at each sequence's start


class Bidirectional(Backbone):
    """Two backbones of one kind, of which the second reads each sequence from its end.

    ``bidirectional=True`` of any backbone builds one. Features are (B, T, 2·hidden_size), those of ``forwards``
    first. A reset cuts a sequence in two for both directions. Each direction has all its layers to itself; in an
    ``nn.LSTM`` the second layer reads both directions of the first.

    Args:
        build: Builds one direction.

    Example:
        >>> from rimlit import RIM
        >>> rim = RIM(10, 60, bidirectional=True)
        >>> features, state = rim(torch.ones(2, 5, 10), lengths=[5, 3])
        >>> features.shape, state.backward.hidden.shape
        (torch.Size([2, 5, 120]), torch.Size([2, 1, 6, 10]))
    """

    bidirectional = True

    def __init__(self, build: Callable[[], Backbone]) -> None:
        super().__init__()
        self.forwards, self.backwards = build(), build()
        one = self.forwards
        self.input_size, self.hidden_size, self.output_size = one.input_size, one.hidden_size, 2 * one.output_size
        self.num_layers, self.num_mechanisms = one.num_layers, 2 * one.num_mechanisms

    def initial_state(self, batch_size: int) -> BidirectionalState:
        """Return the states from which both directions start."""
        return BidirectionalState(*(one.initial_state(batch_size) for one in self._directions))

    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, BidirectionalState]:
        """Run over (B, T, …) in both directions; see :meth:`Backbone.forward`.

        The backward state that is given belongs to the sequences' ends, the one that is returned to their starts.
        """
        return self._run(inputs, state, resets, None)

    def run_lengths(
        self, run: Run, inputs: Tensor, state: State | None, resets: Tensor | None, lengths: Tensor
    ) -> tuple[Tensor, BidirectionalState]:
        """See :meth:`Backbone.run_lengths`; backwards, a sequence starts at its own end."""
        return self._run(inputs, state, resets, lengths)

    def _run(
        self, inputs: Tensor, state: State | None, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, BidirectionalState]:
        first, second = (None, None) if state is None else self.starting_state(inputs, state)[0]
        features, first = self.forwards(inputs, first, resets, lengths=lengths)
        turned = layouts.reverse(inputs, lengths)
        turned_resets = None if resets is None else layouts.reverse_resets(resets, lengths)
        others, second = self.backwards(turned, second, turned_resets, lengths=lengths)
        return torch.cat([features, layouts.reverse(others, lengths)], -1), BidirectionalState(first, second)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Raise a ConfigError: a single step cannot read later steps."""
        raise ConfigError(
            "bidirectional=True reads whole sequences: single steps need bidirectional=False; got inputs of "
            f"shape {tuple(inputs.shape)}."
        )

    def stepper(self, batch_size: int = 1) -> Callable[[Tensor, State], tuple[Tensor, State]]:
        """Return :meth:`step`, which raises a ConfigError."""
        return self.step

    def final_features(
        self, features: Tensor | PackedSequence, lengths: Tensor | Sequence[int] | None = None
    ) -> Tensor:
        """Return what each direction has after its last step: at a sequence's end, and at its start."""
        first, last = layouts.ends_of(features, lengths)
        size = self.forwards.output_size
        return torch.cat([last[..., :size], first[..., size:]], dim=-1)

    def penalty(self, mask: Tensor | None = None) -> Tensor | None:
        """Return the sum of both directions' penalties."""
        turned = None if mask is None else mask.flip(1)
        given = zip(self._directions, (mask, turned), strict=True)
        found = [penalty for one, own in given if (penalty := one.penalty(own)) is not None]
        return torch.stack(found).sum() if found else None

    def after_step(self, rate: float = 1.0) -> None:
        """Run both directions' own."""
        for one in self._directions:
            one.after_step(rate)

    def active_parameters(self) -> int:
        """Return the sum of both directions."""
        return sum(one.active_parameters() for one in self._directions)

    def flops_per_step(self) -> int:
        """Return the sum of both directions."""
        return sum(one.flops_per_step() for one in self._directions)

    @property
    def _directions(self) -> tuple[Backbone, Backbone]:
        return self.forwards, self.backwards


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
        require_resets(inputs, resets)


def require_tokens(backbone: Backbone, tokens: Tensor, table: Tensor, resets: Tensor | None = None) -> None:
    """Raise a ConfigError if ``tokens``, ``table`` or ``resets`` do not have the shape ``backbone`` reads."""
    if tokens.dim() != 2 or tokens.shape[1] == 0 or tokens.is_floating_point():
        raise ConfigError(
            f"tokens must be integers (B, T), with T above 0; got {tokens.dtype} of shape {tuple(tokens.shape)}."
        )
    if table.dim() != 2 or table.shape[1] != backbone.input_size:
        raise ConfigError(
            f"table must be (V, input_size); got shape {tuple(table.shape)}, input_size={backbone.input_size}."
        )
    if resets is not None:
        require_resets(tokens, resets)


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
    """Split T steps at every step in which some sample of ``resets`` (B, T) is reset, or may be."""
    if is_symbolic():
        return [(step, step + 1) for step in range(resets.shape[1])]
    cuts = resets.any(dim=0).nonzero().flatten().tolist()
    starts = sorted({0, *cuts})
    return list(zip(starts, [*starts[1:], resets.shape[1]], strict=True))


def layers_first(state: State) -> State:
    """Turn the tensors (B, L, H) of a state into the (L, B, H) of ``torch.nn``, and back."""
    parts = [part.transpose(0, 1).contiguous() for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
