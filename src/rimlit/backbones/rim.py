"""Recurrent Independent Mechanisms (Goyal et al. 2021, arXiv:1909.10893)."""

import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from rimlit.backbones.base import Backbone, LearnedState, require_input, require_tokens
from rimlit.checks import require_dropout, require_known, require_positive
from rimlit.kernels import (
    BACKENDS,
    Activity,
    Keep,
    LayerInputs,
    LayerOptions,
    LayerResult,
    LayerWeights,
    cpu,
    resolve_backend,
    run_layer,
)
from rimlit.kernels.layer import Cell, CommunicationOutput, Inactive, Selection
from rimlit.nn import GroupedLinear
from rimlit.nn.surroundings import is_autocast_enabled, is_plain
from rimlit.types import GRUState, LSTMState, State, conform_state, map_state

log = logging.getLogger(__name__)

ActivityHook = Callable[[tuple[Activity, ...]], None]

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "inactive": "preserved",
        "communication_output": "linear",
        "communication_key_size": 32,  # table 3
        "communication_value_size": 32,
    },
    "official": {  # what the authors' released code does
        "inactive": "candidate",
        "communication_output": "gated",
        "communication_key_size": 16,
        "communication_value_size": 16,
    },
}


class RIM(Backbone):
    """Mechanisms that compete for the input, of which the K best are active in a step, and that talk.

    In each step every mechanism attends over the input slots and a null slot of zeros; the ``num_active``
    mechanisms that attend least to the null slot update their state from what they read and then read each
    other. The others keep their state bit for bit.

    Args:
        input_size: Features of each step, or of each input slot, at least 1.
        hidden_size: Total width H of a layer, divisible by ``num_mechanisms``; each has d = H / M features.
        num_mechanisms: Mechanisms M, at least 1.
        num_active: Mechanisms updated per step, 1 to ``num_mechanisms``.
        cell: Dynamics of each mechanism, ``lstm`` or ``gru``, with parameters of its own.
        num_layers: Layers, at least 1; each reads the concatenated features of the one below as one slot.
        preset: Which published variant fills the arguments left None: ``paper`` or ``official`` (the
            authors' code: inactive mechanisms are read through their candidate state, without gradient;
            gated communication output shared over mechanisms; communication keys and values of 16).
        input_heads: Heads of the input attention; what they read is concatenated.
        input_key_size: Key size of each input head (paper, table 3: 64).
        input_value_size: Value size of each input head; by default 4·d (paper, table 3).
        input_attention: Whether mechanisms attend to the input. Without (the paper's ablation) each reads all of
            it in every step: one vector as input and ``num_active`` equal to ``num_mechanisms``.
        share_input_projection: Whether input keys and values share one projection over mechanisms (main
            text) or have one each (appendix C.1).
        selection: How mechanisms compete. ``least_null``: softmax over slots and null, the K with the least
            attention to null. ``across_mechanisms``: softmax over mechanisms, the K with the most
            (appendix C.1).
        communication: Whether active mechanisms read the others.
        communication_heads: Heads of the communication attention (paper, table 3: 4).
        communication_key_size: Key size of each communication head; paper 32, official 16.
        communication_value_size: Value size of each communication head; paper 32, official 16.
        communication_output: What is added to the hidden state. ``linear`` (paper): the concatenated heads through
            a bias-free matrix per mechanism. ``tanh``: tanh of that. ``gated`` (official): σ(gate)·tanh(content),
            both layers shared over mechanisms. The linear one has no bound: what a mechanism read is read again
            by others once it is inactive, which at large learning rates can grow until training fails.
        inactive: Through which state others read an inactive mechanism: ``preserved`` (the one it keeps) or
            ``candidate`` (the one it would have had, without gradient).
        input_dropout: Dropout on the input attention, 0 to 1 (paper: .1). It never touches the selection.
        communication_dropout: Dropout on the communication attention, 0 to 1 (paper: .1).
        dropout: Dropout on the features between layers, 0 to 1.
        learn_initial_state: Whether initial states are learned. Zeros tie all scores in the first step, so
            the first mechanisms always win it and the others may never wake up: learn them unless you
            reproduce the paper.
        forget_bias: What is added to the LSTM's forget gates' bias at the start.
        backend: Time loop: ``auto`` (the fastest that runs where the weights are), ``cpu`` (C++, built on
            first use), ``function`` (one autograd.Function; on CUDA devices captured in CUDA graphs), ``eager``
            (autograd; the only one that ``torch.export``, ``torch.jit.trace``, ``torch.func`` and the meta device
            can run, for which ``auto`` takes it, and that ``torch.compile`` traces), ``reference``, or ``triton``
            (for CUDA devices; checked in Triton's interpreter only, so that ``auto`` does not take it); the
            environment variable ``RIMLIT_BACKEND`` overrides it.
        checkpoint_every: Steps of a part whose intermediate results are computed again in the backward instead of
            kept, at least 1. Long sequences then take a fraction of the memory; results are the same up to the
            order of sums.
        project_in_bf16: Whether the products before the loop are computed in bfloat16, as under autocast;
            the recurrence, scores and selection stay in the weights' type.

    Raises:
        ValueError: An argument is out of its range or unknown.

    Example:
        >>> rim = RIM(10, 60, num_mechanisms=6, num_active=4)
        >>> features, state = rim(torch.ones(2, 5, 10))
        >>> features.shape, state.hidden.shape
        (torch.Size([2, 5, 60]), torch.Size([2, 1, 6, 10]))
        >>> with rim.record_activity() as activities:
        ...     features, state = rim(torch.ones(2, 5, 10), state)
        >>> activities[0].active.sum(dim=-1).unique().tolist()
        [4]
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_mechanisms: int = 6,
        num_active: int = 4,
        cell: Cell = "lstm",
        num_layers: int = 1,
        preset: Literal["paper", "official"] = "paper",
        input_heads: int = 1,
        input_key_size: int = 64,
        input_value_size: int | None = None,
        input_attention: bool = True,
        share_input_projection: bool = True,
        selection: Selection = "least_null",
        communication: bool = True,
        communication_heads: int = 4,
        communication_key_size: int | None = None,
        communication_value_size: int | None = None,
        communication_output: CommunicationOutput | None = None,
        inactive: Inactive | None = None,
        input_dropout: float = 0.1,
        communication_dropout: float = 0.1,
        dropout: float = 0.0,
        learn_initial_state: bool = False,
        forget_bias: float = 0.0,
        backend: str = "auto",
        checkpoint_every: int | None = None,
        project_in_bf16: bool = False,
    ) -> None:
        super().__init__()
        require_known(preset=(preset, tuple(PRESETS)))
        defaults = PRESETS[preset]
        communication_key_size = _given(communication_key_size, defaults["communication_key_size"])
        communication_value_size = _given(communication_value_size, defaults["communication_value_size"])
        communication_output = _given(communication_output, defaults["communication_output"])
        inactive = _given(inactive, defaults["inactive"])
        require_positive(
            input_size=input_size,
            hidden_size=hidden_size,
            num_mechanisms=num_mechanisms,
            num_layers=num_layers,
            input_heads=input_heads,
            input_key_size=input_key_size,
            communication_heads=communication_heads,
            communication_key_size=communication_key_size,
            communication_value_size=communication_value_size,
        )
        if hidden_size % num_mechanisms:
            near = hidden_size - hidden_size % num_mechanisms
            raise ValueError(
                f"hidden_size must be divisible by num_mechanisms; got hidden_size={hidden_size}, "
                f"num_mechanisms={num_mechanisms} (near: {near or num_mechanisms}, {near + num_mechanisms})."
            )
        options = LayerOptions(
            cell=cell,
            num_mechanisms=num_mechanisms,
            num_active=num_active,
            input_heads=input_heads,
            selection=selection,
            communication_heads=communication_heads if communication else 0,
            communication_key_size=communication_key_size,
            inactive=inactive,
            communication_output=communication_output,
            project_in_bf16=project_in_bf16,
        )
        if not input_attention and (num_active, selection) != (num_mechanisms, "least_null"):
            raise ValueError(
                "input_attention=False leaves nothing to select by: it needs num_active=num_mechanisms and "
                f"selection='least_null'; got num_active={num_active}, num_mechanisms={num_mechanisms}, "
                f"selection={selection!r}."
            )
        if input_value_size is not None:
            require_positive(input_value_size=input_value_size)
        if checkpoint_every is not None:
            require_positive(checkpoint_every=checkpoint_every)
        require_dropout(input_dropout=input_dropout, communication_dropout=communication_dropout, dropout=dropout)
        require_known(backend=(backend, BACKENDS))
        if forget_bias and cell != "lstm":
            raise ValueError(f"forget_bias needs cell='lstm'; got forget_bias={forget_bias}, cell={cell!r}.")

        self.input_size = input_size
        self.output_size = self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.backend = backend
        self.checkpoint_every = checkpoint_every
        self.num_mechanisms = num_mechanisms
        self.num_active = num_active
        self.input_attention = input_attention
        self.dropout = dropout
        size = hidden_size // num_mechanisms
        self.layers = nn.ModuleList(
            RIMLayer(
                input_size if layer == 0 else hidden_size,
                size,
                options,
                input_key_size=input_key_size,
                input_value_size=_given(input_value_size, 4 * size),
                input_attention=input_attention,
                share_input_projection=share_input_projection,
                communication_value_size=communication_value_size,
                input_dropout=input_dropout,
                communication_dropout=communication_dropout,
                forget_bias=forget_bias,
            )
            for layer in range(num_layers)
        )
        self.state_type = LSTMState if cell == "lstm" else GRUState
        self.initial = LearnedState(
            (num_layers, num_mechanisms, size), self.state_type._fields, learn=learn_initial_state
        )
        self._stepper: tuple[Any, Stepper] | None = None
        self._activity_hooks: list[ActivityHook] = []
        self._announced_backend: str | None = None

    @property
    def _layers(self) -> list["RIMLayer"]:
        return cast(list[RIMLayer], list(self.layers))

    def initial_state(self, batch_size: int) -> LSTMState | GRUState:
        """Return the state (B, num_layers, M, d) a sequence starts from."""
        return self.state_type(*self.initial(batch_size, self._layers[0].cell_bias))

    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run over (B, T, input_size) or (B, T, N, input_size); see :meth:`Backbone.forward`.

        Returns:
            Features (B, T, hidden_size), mechanism by mechanism, and the state after the last step.
        """
        require_input(self, inputs, resets, allow_slots=self.input_attention)
        sequence = inputs if inputs.dim() == 4 else inputs.unsqueeze(2)  # (B, T, N, D)
        return self._run(sequence, None, state, resets)

    def forward_tokens(
        self, tokens: Tensor, table: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run over ``table[tokens]``; see :meth:`Backbone.forward_tokens`.

        What does not depend on the state is computed once per row of the table and not per token, wherever
        the batch holds more tokens than the table has rows.
        """
        require_tokens(self, tokens, table, resets)
        if tokens.numel() <= table.shape[0]:
            return super().forward_tokens(tokens, table, state, resets)
        return self._run(table[None, :, None], tokens, state, resets)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one step; see :meth:`Backbone.step`. Without a graph it takes the C++ loop's shortest way."""
        weights = list(self.parameters())
        is_short = inputs.dim() == 2 and inputs.device.type == "cpu" and self._takes_the_shortest_way(weights)
        if not is_short:
            return super().step(inputs, state)
        # nothing is folded: it reads the weights where they are, until they are moved
        key = (len(inputs), *(weight.data_ptr() for weight in weights))
        if self._stepper is None or self._stepper[0] != key:
            self._stepper = key, Stepper(self, len(inputs), fold=False)
        return self._stepper[1](inputs, state)

    def stepping(self, batch_size: int) -> Callable[[Tensor, State], tuple[Tensor, State]]:
        """Return :meth:`step` without its look at every weight, for as long as the weights stay where they are.

        It gives what :meth:`step` gives; mode, gradients and autocast are those of now.

        Args:
            batch_size: Samples of every step, at least 1.
        """
        weights = list(self.parameters())
        return Stepper(self, batch_size, fold=False) if self._takes_the_shortest_way(weights) else self.step

    def _takes_the_shortest_way(self, weights: list[nn.Parameter]) -> bool:
        """Whether single steps may run in the C++ loop on these weights, whatever the inputs are."""
        return (
            not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled("cpu")
            and not self._activity_hooks
            and not (self.training and self._drops())
            and not self._layers[0].options.project_in_bf16
            and self.input_attention  # without, the values' weights are doubled: a copy, which would grow old
            and self.resolve_backend()[0] == "cpu"
            and all(is_plain(weight) and weight.is_contiguous() for weight in weights)
        )

    def _drops(self) -> bool:
        return self.dropout > 0 or any(
            layer.input_dropout or layer.communication_dropout for layer in self._layers
        )

    def stepper(self, batch_size: int = 1) -> "Stepper":
        """Return what runs single steps fastest, without a graph, on the weights as they are now.

        Args:
            batch_size: Samples of every step, at least 1.
        """
        require_positive(batch_size=batch_size)
        return Stepper(self, batch_size, fold=True)

    def _run(
        self, sequence: Tensor, tokens: Tensor | None, state: State | None, resets: Tensor | None
    ) -> tuple[Tensor, State]:
        """Run over ``sequence`` (B, T, N, D), or over the rows ``tokens`` (B, T) of a table (1, V, 1, D)."""
        backend = self._announce_backend()
        if backend != "eager" and torch.compiler.is_compiling():
            from rimlit.kernels.graph_break import run_outside_graph

            outside: tuple[Tensor, State] = run_outside_graph(self._run, sequence, tokens, state, resets)
            return outside
        layer = self._layers[0]
        dtype, is_cast = layer.cell_bias.dtype, layer.options.project_in_bf16
        if sequence.dtype != dtype and not (is_cast or is_autocast_enabled(sequence.device.type)):
            raise ValueError(f"inputs must be {dtype}, as the weights are; got {sequence.dtype}.")
        state, initial = self.starting_state(sequence if tokens is None else tokens, state)
        states, activities = [], []
        features = sequence
        for index, layer in enumerate(self._layers):
            if index > 0:
                # contiguous: a mask is drawn in the order in which features lie in memory, which loops differ in
                features = functional.dropout(features.contiguous(), self.dropout, self.training)
                sequence, tokens = features.unsqueeze(2), None
            num_steps = (sequence if tokens is None else tokens).shape[1]
            layer_inputs = LayerInputs(
                sequence,
                tokens,
                map_state(lambda tensor, at=index: tensor[:, at], state),
                map_state(lambda tensor, at=index: tensor[:, at], initial),
                resets,
                layer.draw_keep(state[0].shape[0], num_steps, sequence.shape[2]),
                bool(self._activity_hooks),
            )
            result = layer(backend, layer_inputs, self.checkpoint_every)
            features = result.features.flatten(2)
            states.append(result.state)
            if result.activity is not None:
                activities.append(result.activity)
        for hook in self._activity_hooks:
            hook(tuple(activities))
        state = map_state(lambda *tensors: torch.stack(tensors, dim=1), *states)
        return features, state

    def _state_shape(self, batch_size: int) -> tuple[int, int, int, int]:
        return batch_size, len(self.layers), self.num_mechanisms, self.output_size // self.num_mechanisms

    @contextmanager
    def record_activity(self) -> Iterator[list[Activity]]:
        """Collect what the mechanisms do in the forwards inside the ``with`` block.

        Yields:
            A list to which each forward adds one :class:`Activity` per layer.
        """
        activities: list[Activity] = []
        with self.watch(activities.extend):
            yield activities

    @contextmanager
    def watch(self, hook: ActivityHook) -> Iterator[None]:
        """Call ``hook`` with the activity of every layer in each forward inside the ``with`` block."""
        self._activity_hooks.append(hook)
        try:
            yield
        finally:
            self._activity_hooks.remove(hook)

    @property
    def is_watched(self) -> bool:
        """Whether the activity of forward passes is being recorded."""
        return bool(self._activity_hooks)

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Record no activity inside the ``with`` block; single steps then take the fast path."""
        hooks, self._activity_hooks = self._activity_hooks, []
        try:
            yield
        finally:
            self._activity_hooks = hooks

    def resolve_backend(self) -> tuple[str, str]:
        """Return the time loop that a forward takes now, and why."""
        weight = self._layers[0].cell_bias
        return resolve_backend(self.backend, weight.device, weight.dtype)

    def active_parameters(self) -> int:
        """Return how many parameters take part in one step of one sequence.

        Dynamics and communication belong to a mechanism and count for the K active ones; with
        ``inactive="candidate"`` all mechanisms compute them. Everything else counts in full.
        """
        idle = 0.0
        for layer in self._layers:
            if layer.options.inactive == "preserved":
                idle_share = 1 - self.num_active / self.num_mechanisms
                idle += idle_share * layer.parameters_of_mechanisms()
        return super().active_parameters() - round(idle)

    def flops_per_step(self) -> int:
        """Return the multiplications and additions of one step of one sequence with one input slot, forward.

        Counted are the products of matrices that a step needs, which are those that the C++ loop runs: queries,
        input keys and values and the scores of all mechanisms; dynamics and communication of the K active ones
        (with ``inactive="candidate"`` of all), since what others read of an inactive one stays as it was.
        """
        return sum(layer.flops_per_step(self.num_active) for layer in self._layers)

    def _announce_backend(self) -> str:
        name, reason = self.resolve_backend()
        if not torch.compiler.is_compiling() and name != self._announced_backend:
            log.info("RIM time loop: %s (%s).", name, reason)
            self._announced_backend = name
        return name

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what holds addresses: a copy builds its own."""
        return {**self.__dict__, "_stepper": None}

    def extra_repr(self) -> str:
        """Return the sizes for ``repr``."""
        return (
            f"{self.input_size}, {self.output_size}, num_mechanisms={self.num_mechanisms}, "
            f"num_active={self.num_active}, backend={self.backend!r}"
        )


class Stepper:
    """Single steps of a RIM: no graph, no dropout, no activity, and what can be folded is folded ahead.

    It belongs to the weights as they were when it was built: build another after a step of the optimiser. Where
    the C++ loop does not run, it steps the RIM itself.

    Args:
        rim: The RIM to step.
        batch_size: Samples of every step.
        fold: Whether products of weights are formed when it is built, where that makes a step cheaper.

    Example:
        >>> rim = RIM(10, 60).eval()
        >>> step, state = rim.stepper(), rim.initial_state(1)
        >>> features, state = step(torch.ones(1, 10), state)
        >>> features.shape
        torch.Size([1, 60])
    """

    def __init__(self, rim: RIM, batch_size: int, *, fold: bool = True) -> None:
        self.rim = rim
        self.batch_size = batch_size
        self._dtype = rim._layers[0].cell_bias.dtype
        self._state_shape = rim._state_shape(batch_size)
        self._state_parts = len(rim.state_type._fields)
        self._steps = []
        if rim.resolve_backend()[0] == "cpu" and all(map(is_plain, rim.parameters())):
            self._steps = [
                cpu.Stepper(layer.weights(), layer.options, batch_size, fold=fold) for layer in rim._layers
            ]

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


class RIMLayer(nn.Module):
    """The parameters of one layer and its dropout; the computation is in :mod:`rimlit.kernels`.

    The time loops read the weights of the modules inside and call none of them: hooks belong on the layer.
    """

    def __init__(
        self,
        input_size: int,
        size: int,
        options: LayerOptions,
        *,
        input_key_size: int,
        input_value_size: int,
        input_attention: bool,
        share_input_projection: bool,
        communication_value_size: int,
        input_dropout: float,
        communication_dropout: float,
        forget_bias: float,
    ) -> None:
        super().__init__()
        self.options = options
        self._has_warned = False
        self.input_dropout = input_dropout
        self.communication_dropout = communication_dropout
        num_mechanisms, heads = options.num_mechanisms, options.input_heads
        groups = 1 if share_input_projection else num_mechanisms
        num_gates = 4 if options.cell == "lstm" else 3
        scale = size**-0.5  # as nn.LSTM and nn.GRU start
        self.input_attention = input_attention
        if input_attention:
            self.input_query = GroupedLinear(num_mechanisms, size, heads * input_key_size)
            self.input_key = GroupedLinear(groups, input_size, heads * input_key_size)
        else:  # all scores are 0, whatever the state
            self.no_query: Tensor
            self.no_key: Tensor
            self.register_buffer("no_query", torch.zeros(num_mechanisms, size, heads), persistent=False)
            self.register_buffer("no_key", torch.zeros(1, input_size, heads), persistent=False)
        self.input_value = GroupedLinear(groups, input_size, heads * input_value_size)
        self.cell_input = GroupedLinear(
            num_mechanisms, heads * input_value_size, num_gates * size, init_scale=scale
        )
        self.cell_hidden = GroupedLinear(num_mechanisms, size, num_gates * size, init_scale=scale)
        self.cell_bias = nn.Parameter(torch.empty(num_mechanisms, 4 * size).uniform_(-scale, scale))
        with torch.no_grad():
            self.cell_bias[:, size : 2 * size] += forget_bias
        if options.communication_heads:
            head_size = 2 * options.communication_key_size + communication_value_size
            read_size = options.communication_heads * communication_value_size
            is_gated = options.communication_output == "gated"
            self.communication = GroupedLinear(num_mechanisms, size, options.communication_heads * head_size)
            self.communication_output = GroupedLinear(
                1 if is_gated else num_mechanisms, read_size, 2 * size if is_gated else size, bias=is_gated
            )

    def forward(self, backend: str, inputs: LayerInputs, checkpoint_every: int | None = None) -> LayerResult:
        """Run over a sequence; see :func:`rimlit.kernels.run_layer`."""
        if not torch.compiler.is_compiling() and not self._has_warned:
            self._warn_of_hooks()
        return run_layer(backend, self.weights(), self.options, inputs, checkpoint_every)

    def _warn_of_hooks(self) -> None:
        for name, module in self._modules.items():
            if module is not None and (
                module._forward_hooks
                or module._forward_pre_hooks
                or module._backward_hooks
                or module._backward_pre_hooks
            ):
                self._has_warned = True
                warnings.warn(
                    f"Hooks on {name} of a RIM's layer are never called, since the time loop reads its weight "
                    "alone: register them on the RIM or its layers, or change weights by "
                    "torch.nn.utils.parametrize.",
                    stacklevel=2,
                )

    def weights(self) -> LayerWeights:
        """Return the parameters as the time loops read them."""
        communicates, attends = self.options.communication_heads > 0, self.input_attention
        return LayerWeights(
            input_query=self.input_query.weight if attends else self.no_query,
            input_key=self.input_key.weight if attends else self.no_key,
            # a score of 0 halves what is read
            input_value=self.input_value.weight if attends else 2 * self.input_value.weight,
            cell_input=self.cell_input.weight,
            cell_hidden=self.cell_hidden.weight,
            cell_bias=self.cell_bias,
            communication=self.communication.weight if communicates else None,
            communication_output=self.communication_output.weight if communicates else None,
            communication_bias=self.communication_output.bias if communicates else None,
        )

    def parameters_of_mechanisms(self) -> int:
        """Return the number of parameters of all mechanisms' dynamics and communication."""
        weights = self.weights()
        own = (
            weights.cell_input,
            weights.cell_hidden,
            weights.cell_bias,
            weights.communication,
            weights.communication_output,
        )
        return sum(w.numel() for w in own if w is not None and w.shape[0] == self.options.num_mechanisms)

    def flops_per_step(self, num_active: int) -> int:
        """Return the multiplications and additions of a step; see :meth:`RIM.flops_per_step`."""
        weights, options = self.weights(), self.options
        num_mechanisms, heads = options.num_mechanisms, options.communication_heads
        computed = num_active if options.inactive == "preserved" else num_mechanisms
        products = 0  # multiplications, each with an addition
        if self.input_attention:
            keys = weights.input_key.shape[-1]  # of all heads
            products += weights.input_key.numel() + weights.input_query.numel() + num_mechanisms * keys
        groups = weights.input_value.shape[0]
        products += weights.input_value[0].numel() * (1 if groups == 1 else computed)
        products += computed * (weights.cell_input[0].numel() + weights.cell_hidden[0].numel())
        if weights.communication is not None and weights.communication_output is not None:
            value_size = weights.communication_output.shape[1] // heads
            read = num_mechanisms * heads * (options.communication_key_size + value_size)
            products += computed * weights.communication[0].numel()
            products += num_active * (read + weights.communication_output[0].numel())
        return 2 * products

    def draw_keep(self, batch_size: int, num_steps: int, num_slots: int) -> Keep:
        """Draw the dropout factors of a sequence."""
        num_mechanisms, heads = self.options.num_mechanisms, self.options.communication_heads
        # not like the bias, which FSDP may have sharded here
        ones = functools.partial(torch.ones, dtype=self.cell_bias.dtype, device=self.cell_bias.device)
        input_keep = communication_keep = None
        if self.training and self.input_dropout:
            shape = (num_steps, num_mechanisms, batch_size, self.options.input_heads, num_slots)
            input_keep = functional.dropout(ones(shape), self.input_dropout)
        if self.training and self.communication_dropout and heads:
            shape = (num_steps, batch_size, heads, num_mechanisms, num_mechanisms)
            communication_keep = functional.dropout(ones(shape), self.communication_dropout)
        return Keep(input_keep, communication_keep)


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value
