"""Recurrent Independent Mechanisms (Goyal et al. 2021, arXiv:1909.10893)."""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from rimlit.backbones.base import Backbone, LearnedState, require_input, require_tokens
from rimlit.backbones.rim_parts import make_layer, preset_parts
from rimlit.backbones.rim_stepper import Stepper, can_step_fast
from rimlit.checks import require_dropout, require_known, require_positive
from rimlit.errors import ConfigError
from rimlit.kernels import BACKENDS, Activity, LayerInputs, Where, choose_loop, run_layer
from rimlit.mechanisms import Part, RIMLayer
from rimlit.nn.surroundings import is_autocast_enabled
from rimlit.types import State, carrying_type, map_state

log = logging.getLogger(__name__)

ActivityHook = Callable[[tuple[Activity, ...]], None]
PartLike = str | Mapping[str, Any] | Part | Callable[..., Part]
"""A part: a short name, a class path, a mapping of its arguments alone (of the default part) or of ``class_path``
and ``init_args``, a class, a ``functools.partial`` of one, or an instance."""


class RIM(Backbone):
    """M recurrent modules that compete for the input.

    At each step every mechanism attends over the input slots and a null slot of zeros; the ``num_active``
    mechanisms that attend least to the null slot update their state from what they read and then read each other
    through attention. The others keep their state bit for bit.

    The rules are parts (:mod:`rimlit.mechanisms`). ``selection="across_mechanisms"`` names one,
    ``selection={"margin": "scores"}`` gives the default part other arguments, and a class, a
    ``functools.partial``, an instance or ``{"class_path": "my_package.MySelection", "init_args": {…}}`` brings
    one of your own.

    Args:
        input_size: Features of each step, or of each input slot, at least 1.
        hidden_size: Total width H of a layer, divisible by ``num_mechanisms``; each has d = H / M features.
        num_mechanisms: Mechanisms M, at least 1.
        num_active: Mechanisms updated per step, 1 to ``num_mechanisms``.
        num_layers: Layers, at least 1; each reads the concatenated features of the one below as one slot.
        preset: Which published variant fills what is not given: ``paper``, or ``official`` (the authors' code:
            inactive mechanisms are read through their candidate state, without gradient; gated communication
            output shared over mechanisms; communication keys and values of 16).
        selection: How mechanisms compete, :class:`rimlit.mechanisms.LeastNull` by default.
        cell: Dynamics of each mechanism: ``lstm`` or ``gru``, or a :class:`rimlit.mechanisms.Dynamics`.
        communication: How active mechanisms read the others: ``attention`` or ``none``, or the arguments of
            :class:`rimlit.mechanisms.AttentionCommunication`, such as ``{"output": "tanh"}``.
        sharing: How mechanisms share their weights: ``independent`` (paper) or ``shared``.
        input_sharing: The same for the input's keys and values: ``shared`` (main text) or ``independent``
            (appendix C.1).
        balance: Influence on who wins, none by default.
        input_heads: Heads of the input attention; what they read is concatenated.
        input_key_size: Key size of each input head (paper, table 3: 64).
        input_value_size: Value size of each input head; by default 4·d (paper, table 3).
        input_attention: Whether mechanisms attend to the input. Without (the paper's ablation) each reads all of
            it in every step: one vector as input and ``num_active`` equal to ``num_mechanisms``.
        soft_cap: Bound c of the scores of the input, c·tanh(score / c), above 0; None: no bound.
        score_bias: Start of a learned bias per mechanism that is added to its scores, so that it reads the input
            more often than null; None: no bias.
        normalize_scores: Whether input queries and keys are normalised before they meet; runs in the ``eager``
            loop.
        input_dropout: Dropout on the input attention, 0 to 1 (paper: .1). It never touches the selection.
        communication_dropout: Dropout on the communication attention, 0 to 1 (paper: .1).
        dropout: Dropout on the features between layers, 0 to 1.
        learn_initial_state: Whether initial states are learned. Zeros tie all scores in the first step, so
            the first mechanisms always win it and the others may never wake up: learn them unless you
            reproduce the paper.
        backend: Time loop: ``auto`` (the fastest that can run this RIM where the weights are), ``cpu`` (C++,
            built on first use), ``function`` (one autograd.Function; on CUDA devices captured in CUDA graphs),
            ``eager`` (autograd; runs every part, and alone under ``torch.export``, ``torch.jit.trace``,
            ``torch.func`` and on the meta device), ``reference``, or ``triton`` (for CUDA devices; checked in
            Triton's interpreter only). A loop that cannot run the RIM is an error with the reason.
            ``RIMLIT_BACKEND`` in the environment overrides it.
        checkpoint_every: Steps of a part whose intermediate results are computed again in the backward pass
            instead of kept, at least 1. Long sequences then take a fraction of the memory; results are the same
            up to the order of sums.
        project_in_bf16: Whether the products before the loop are computed in bfloat16, as under autocast;
            the recurrence, scores and selection stay in the weights' type.

    Raises:
        ConfigError: An argument is out of its range or unknown.

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
        num_layers: int = 1,
        preset: Literal["paper", "official"] = "paper",
        selection: PartLike = "least_null",
        cell: PartLike = "lstm",
        communication: PartLike = "attention",
        sharing: PartLike = "independent",
        input_sharing: PartLike = "shared",
        balance: PartLike = "none",
        input_heads: int = 1,
        input_key_size: int = 64,
        input_value_size: int | None = None,
        input_attention: bool = True,
        soft_cap: float | None = None,
        score_bias: float | None = None,
        normalize_scores: bool = False,
        input_dropout: float = 0.1,
        communication_dropout: float = 0.1,
        dropout: float = 0.0,
        learn_initial_state: bool = False,
        backend: str = "auto",
        checkpoint_every: int | None = None,
        project_in_bf16: bool = False,
    ) -> None:
        super().__init__()
        require_positive(
            input_size=input_size,
            hidden_size=hidden_size,
            num_mechanisms=num_mechanisms,
            num_layers=num_layers,
            input_heads=input_heads,
            input_key_size=input_key_size,
        )
        if hidden_size % num_mechanisms:
            near = hidden_size - hidden_size % num_mechanisms
            raise ConfigError(
                f"hidden_size must be divisible by num_mechanisms; got hidden_size={hidden_size}, "
                f"num_mechanisms={num_mechanisms} (near: {near or num_mechanisms}, {near + num_mechanisms})."
            )
        if input_value_size is not None:
            require_positive(input_value_size=input_value_size)
        if checkpoint_every is not None:
            require_positive(checkpoint_every=checkpoint_every)
        if soft_cap is not None and not 0 < soft_cap < torch.inf:
            raise ConfigError(f"soft_cap must be above 0 and finite, or None; got soft_cap={soft_cap}.")
        require_dropout(input_dropout=input_dropout, communication_dropout=communication_dropout, dropout=dropout)
        require_known(backend=(backend, BACKENDS))
        size = hidden_size // num_mechanisms
        parts = preset_parts(
            preset,
            selection=selection,
            cell=cell,
            communication=communication,
            sharing=sharing,
            input_sharing=input_sharing,
            balance=balance,
        )
        self.layers = nn.ModuleList(
            make_layer(
                parts,
                input_size if layer == 0 else hidden_size,
                size,
                num_mechanisms,
                num_active,
                input_heads=input_heads,
                input_key_size=input_key_size,
                input_value_size=4 * size if input_value_size is None else input_value_size,
                input_attention=input_attention,
                soft_cap=soft_cap,
                score_bias=score_bias,
                normalize_scores=normalize_scores,
                input_dropout=input_dropout,
                communication_dropout=communication_dropout,
                project_in_bf16=project_in_bf16,
            )
            for layer in range(num_layers)
        )
        self.input_size = input_size
        self.output_size = self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.backend = backend
        self.checkpoint_every = checkpoint_every
        self.num_mechanisms = num_mechanisms
        self.num_active = num_active
        self.input_attention = input_attention
        self.dropout = dropout
        self.state_type = self._first.dynamics.state_type
        self.initial = LearnedState(
            (num_layers, num_mechanisms, size), self.state_type._fields, learn=learn_initial_state
        )
        self._refuse_frozen_states(learn_initial_state)
        self._stepper: tuple[Any, Stepper] | None = None
        self._activity_hooks: list[ActivityHook] = []
        self._announced: tuple[str, str] | None = None
        self._penalties: list[Tensor] = []

    def _refuse_frozen_states(self, learns: bool) -> None:
        selection = self._first.selection
        has_margin = getattr(selection, "margin", "none") != "none" and self.num_active < self.num_mechanisms
        if has_margin and not learns and self.input_attention:
            raise ConfigError(
                "learn_initial_state must be true where selection has a margin: initial states of zeros tie all "
                "scores, every gate is 0, and the state stays zero for ever; got learn_initial_state=False, "
                f"selection={selection}."
            )

    @property
    def _layers(self) -> list[RIMLayer]:
        return cast(list[RIMLayer], list(self.layers))

    @property
    def _first(self) -> RIMLayer:
        return self._layers[0]

    def initial_state(self, batch_size: int) -> State:
        """Return the state (B, num_layers, M, d) a sequence starts from."""
        state = self.state_type(*self.initial(batch_size, self._first.like))
        all_carried = [layer.communication.initial_carried(batch_size) for layer in self._layers]
        carried = [tensor for tensor in all_carried if tensor is not None]
        if not carried:
            return state
        return carrying_type(self.state_type)(*state, torch.stack(carried, dim=1))

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
        if tokens.numel() <= table.shape[0] or self._first.normalize_scores:
            return super().forward_tokens(tokens, table, state, resets)
        return self._run(table[None, :, None], tokens, state, resets)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one step; see :meth:`Backbone.step`. Without a graph it takes the C++ loop's fast path."""
        weights = list(self.parameters())
        is_short = inputs.dim() == 2 and inputs.device.type == "cpu" and can_step_fast(self, weights)
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
        is_fast = can_step_fast(self, list(self.parameters()))
        return Stepper(self, batch_size, fold=False) if is_fast else self.step

    def stepper(self, batch_size: int = 1) -> Stepper:
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
        backend = self._announce_backend(sequence.shape[2])
        if backend != "eager" and torch.compiler.is_compiling():
            from rimlit.kernels.graph_break import run_outside_graph

            outside: tuple[Tensor, State] = run_outside_graph(self._run, sequence, tokens, state, resets)
            return outside
        dtype, is_cast = self._first.like.dtype, self._first.project_in_bf16
        if sequence.dtype != dtype and not (is_cast or is_autocast_enabled(sequence.device.type)):
            raise ConfigError(f"inputs must be {dtype}, as the weights are; got {sequence.dtype}.")
        state, initial = self.starting_state(sequence if tokens is None else tokens, state)
        batch_size, num_steps = (sequence if tokens is None else tokens).shape[:2]
        self._penalties.clear()
        run = functools.partial(run_layer, backend)
        states, activities = [], []
        features = sequence
        for index, layer in enumerate(self._layers):
            if index > 0:
                # contiguous: a mask is drawn in the order in which features lie in memory, which loops differ in
                features = functional.dropout(features.contiguous(), self.dropout, self.training)
                sequence, tokens = features.unsqueeze(2), None
            inputs = LayerInputs(
                sequence,
                tokens,
                map_state(lambda tensor, at=index: tensor[:, at], state),
                map_state(lambda tensor, at=index: tensor[:, at], initial),
                resets,
                layer.draw_keep(batch_size, num_steps, sequence.shape[2]),
                layer.balance.offset(num_steps, batch_size),
                bool(self._activity_hooks),
                self.checkpoint_every,
            )
            result = layer(run, inputs)
            features = result.features.flatten(2)
            states.append(result.state)
            if result.activity is not None:
                activities.append(result.activity)
        for hook in self._activity_hooks:
            hook(tuple(activities))
        state = map_state(lambda *tensors: torch.stack(tensors, dim=1), *states)
        return features, state

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

    def resolve_backend(self, num_slots: int = 1, device: torch.device | None = None) -> tuple[str, str]:
        """Return the time loop that a forward over ``num_slots`` input slots takes now, and why.

        Args:
            num_slots: Input slots N.
            device: Where the weights will be, by default where they are.

        Raises:
            ConfigError: The loop that was asked for cannot run this RIM there.
        """
        weight = self._first.like
        where = Where.of(weight, num_slots)
        return choose_loop(self.backend, self._first, where._replace(device=device or weight.device))

    def _announce_backend(self, num_slots: int) -> str:
        chosen = self.resolve_backend(num_slots)
        if not torch.compiler.is_compiling() and chosen[0] != (self._announced or ("",))[0]:
            log.info("RIM time loop: %s (%s).", *chosen)
            self._announced = chosen
        return chosen[0]

    def active_parameters(self) -> int:
        """Return how many parameters take part in one step of one sequence.

        Dynamics and communication belong to a mechanism and count for the K active ones; where others read the
        candidates of inactive ones, all mechanisms compute them. Everything else counts in full.
        """
        idle_share = 1 - self.num_active / self.num_mechanisms
        own = sum(layer.parameters_of_mechanisms() for layer in self._layers if not layer.computes_all)
        return super().active_parameters() - round(idle_share * own)

    def flops_per_step(self) -> int:
        """Return the multiplications and additions of one step of one sequence with one input slot, forward.

        Counted are the products of matrices that a step needs, which are those that the C++ loop runs: queries,
        input keys and values and the scores of all mechanisms; dynamics and communication of the K active ones
        (of all where others read candidates), since what others read of an inactive one stays as it was.
        """
        return sum(layer.flops_per_step() for layer in self._layers)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what holds addresses: a copy builds its own."""
        return {**self.__dict__, "_stepper": None}

    def extra_repr(self) -> str:
        """Return the sizes for ``repr``."""
        return (
            f"{self.input_size}, {self.output_size}, num_mechanisms={self.num_mechanisms}, "
            f"num_active={self.num_active}, backend={self.backend!r}"
        )
