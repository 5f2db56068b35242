"""Recurrent Independent Mechanisms (Goyal et al. 2021, arXiv:1909.10893)."""

import functools
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from rimlit.backbones.base import LearnedState, require_input, require_tokens
from rimlit.backbones.layered import LayeredBackbone, state_of_layer
from rimlit.backbones.rim_parts import fill, make_layer, refuse_frozen_states, size_of
from rimlit.backbones.rim_resizing import fit_weights, with_mechanisms
from rimlit.checks import require_dropout, require_known, require_positive
from rimlit.errors import ConfigError
from rimlit.kernels import BACKENDS, LayerInputs, run_layer
from rimlit.mechanisms import PartLike, PartsLike
from rimlit.nn.surroundings import is_autocast_enabled, is_traced
from rimlit.types import State, map_state, with_carried


class RIM(LayeredBackbone):
    """M recurrent modules that compete for the input.

    At each step every mechanism attends over the input slots and a null slot of zeros; the ``num_active``
    mechanisms that attend least to the null slot update their state from what they read and then read each other
    through attention. The others keep their state bit for bit.

    The rules are parts (:mod:`rimlit.mechanisms`): ``selection="across_mechanisms"`` names one, ``{"margin":
    "scores"}`` gives the default part other arguments, and a class, a ``functools.partial``, an instance or
    ``{"class_path": "my_package.MySelection", "init_args": {…}}`` names your own.

    Args:
        input_size: Features of each step, or of each input slot, at least 1.
        hidden_size: Total width H of a layer, divisible by ``num_mechanisms``; each has d = H / M features.
        num_mechanisms: Mechanisms M, at least 1.
        num_active: The most mechanisms updated per step, 1 to ``num_mechanisms`` (``paper`` and
            ``official``: 4; the other presets: all).
        num_layers: Layers, at least 1; each reads the concatenated features of the one below as one slot.
        preset: The recipe that fills what is not given (None): ``paper``; ``official`` (the authors' code:
            inactive mechanisms are read through their candidate state, without gradient; gated communication
            output shared over mechanisms; communication keys and values of 16); ``dynamic``, which we recommend
            (a mechanism is active where it attends to the input more than to null, and is gated; GRU cells,
            communication through the update gate, attention in proportion to d, learned initial states, no
            dropout); or ``sparse`` (the same with a penalty for more activity than half of all mechanisms and
            steps, which tasks add to the loss; your own training loop adds :meth:`penalty`).
        selection: How mechanisms compete, :class:`rimlit.mechanisms.LeastNull` in all presets.
        cell: Dynamics of each mechanism: ``lstm`` (paper), ``gru`` or ``schemata``, or a
            :class:`rimlit.mechanisms.Dynamics`.
        communication: How active mechanisms read the others: ``attention``, ``workspace``, ``quantized`` or
            ``none``, or the arguments of :class:`rimlit.mechanisms.AttentionCommunication`, such as
            ``{"output": "tanh"}``.
        sharing: How mechanisms share their weights: ``independent`` (all presets), ``shared``, ``embedded`` or
            ``low_rank``.
        input_sharing: The same for the input's keys and values: ``shared`` (all presets; the paper's main text)
            or ``independent`` (appendix C.1).
        balance: Influence on who wins, or a list of several; none by default (sparse: a penalty on activity).
        input_heads: Heads of the input attention; what they read is concatenated.
        input_key_size: Key size of each input head (paper, table 3: 64).
        input_value_size: Value size of each input head (paper, table 3: 4·d).
        input_attention: Whether mechanisms attend to the input. Without (the paper's ablation) each reads all of
            it in every step: one vector as input and ``num_active`` equal to ``num_mechanisms``.
        soft_cap: Bound c of the scores of the input, c·tanh(score / c), above 0; None: no bound.
        score_bias: Start of a learned bias per mechanism that is added to its scores, so that it reads the input
            more often than null (paper: no bias; dynamic: 2).
        normalize_scores: Whether input queries and keys are normalised before they meet; runs in the ``eager``
            loop.
        input_dropout: Dropout on the input attention, 0 to 1 (paper: .1). It never touches the selection.
        communication_dropout: Dropout on the communication attention, 0 to 1 (paper: .1).
        dropout: Dropout on the features between layers, 0 to 1.
        learn_initial_state: Whether initial states are learned. Zeros (paper) tie all scores in the first step:
            the first mechanisms always win it, and the others may never become active.
        bidirectional: Whether a second RIM reads each sequence from its end; see :class:`Bidirectional`.
        backend: Time loop: ``auto`` (the fastest that can run this RIM where the weights are), ``cpu`` (C++,
            built on first use), ``function`` (one autograd.Function; on CUDA devices captured in CUDA graphs),
            ``eager`` (autograd; runs every part, and alone under ``torch.export``, ``torch.jit.trace``,
            ``torch.func`` and on the meta device), ``reference``, or ``triton`` (for CUDA devices; checked in
            Triton's interpreter only). A loop that cannot run the RIM is an error with the reason.
            ``RIMLIT_BACKEND`` in the environment overrides it.
        checkpoint_every: Steps of a part whose intermediate results are computed again in the backward pass
            instead of kept, at least 1: a fraction of the memory, the same results up to the order of sums.
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
        num_active: int | None = None,
        num_layers: int = 1,
        preset: Literal["paper", "official", "dynamic", "sparse"] = "paper",
        selection: PartLike | None = None,
        cell: PartLike | None = None,
        communication: PartLike | None = None,
        sharing: PartLike | None = None,
        input_sharing: PartLike | None = None,
        balance: PartsLike | None = None,
        input_heads: int = 1,
        input_key_size: int | None = None,
        input_value_size: int | None = None,
        input_attention: bool = True,
        soft_cap: float | None = None,
        score_bias: float | None = None,
        normalize_scores: bool = False,
        input_dropout: float | None = None,
        communication_dropout: float | None = None,
        dropout: float = 0.0,
        learn_initial_state: bool | None = None,
        bidirectional: bool = False,
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
            checkpoint_every=checkpoint_every,
        )
        require_dropout(dropout=dropout)
        require_known(backend=(backend, BACKENDS))
        size = size_of(hidden_size, num_mechanisms)
        recipe = fill(
            preset,
            num_mechanisms,
            size,
            num_active=num_active,
            selection=selection,
            cell=cell,
            communication=communication,
            sharing=sharing,
            input_sharing=input_sharing,
            balance=balance,
            input_key_size=input_key_size,
            input_value_size=input_value_size,
            score_bias=score_bias,
            input_dropout=input_dropout,
            communication_dropout=communication_dropout,
            learn_initial_state=learn_initial_state,
        )
        self.layers = nn.ModuleList(
            make_layer(
                recipe,
                input_size if layer == 0 else hidden_size,
                size,
                num_mechanisms,
                input_heads=input_heads,
                input_attention=input_attention,
                soft_cap=soft_cap,
                normalize_scores=normalize_scores,
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
        self.num_active = recipe.num_active
        self.input_attention = input_attention
        self.dropout = dropout
        self.state_type = self._first.dynamics.state_type
        self.initial = LearnedState(
            (num_layers, num_mechanisms, size), self.state_type._fields, learn=recipe.learn_initial_state
        )
        self.initial.mechanism_rows = dict.fromkeys(self.initial.names, 1)
        refuse_frozen_states(self._first, recipe.learn_initial_state)

    def initial_state(self, batch_size: int) -> State:
        """Return the state (B, num_layers, M, d) a sequence starts from."""
        state = self.state_type(*self.initial(batch_size, self._first.like))
        all_carried = [layer.initial_carried(batch_size) for layer in self._layers]
        carried = [tensor for tensor in all_carried if tensor is not None]
        return with_carried(state, torch.stack(carried, dim=1) if carried else None)

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
        # a graph for batches of any size may not depend on their size
        if is_traced() or tokens.numel() <= table.shape[0] or self._first.normalize_scores:
            return super().forward_tokens(tokens, table, state, resets)
        return self._run(table[None, :, None], tokens, state, resets)

    def _run(
        self, sequence: Tensor, tokens: Tensor | None, state: State | None, resets: Tensor | None
    ) -> tuple[Tensor, State]:
        """Run over ``sequence`` (B, T, N, D), or over the rows ``tokens`` (B, T) of a table (1, V, 1, D)."""
        backend = self.announce_backend(sequence.shape[2])
        if backend != "eager" and torch.compiler.is_compiling():
            from rimlit.kernels.graph_break import run_outside_graph

            outside: tuple[Tensor, State] = run_outside_graph(self._run, sequence, tokens, state, resets)
            return outside
        dtype, is_cast = self._first.like.dtype, self._first.project_in_bf16
        if sequence.dtype != dtype and not (is_cast or is_autocast_enabled(sequence.device.type)):
            raise ConfigError(f"inputs must be {dtype}, as the weights are; got {sequence.dtype}.")
        state, initial = self.starting_state(sequence if tokens is None else tokens, state)
        initial = map_state(Tensor.detach, initial) if resets is None else initial  # nothing reads it then
        batch_size, num_steps = (sequence if tokens is None else tokens).shape[:2]
        self._forget()
        states, activities = [], []
        features = sequence
        for index, layer in enumerate(self._layers):
            if index > 0:
                # contiguous: a mask is drawn in the order in which features lie in memory, which loops differ in
                features = functional.dropout(features.contiguous(), self.dropout, self.training)
                sequence, tokens = features.unsqueeze(2), None
            is_followed = self.training and torch.is_grad_enabled() and layer.is_followed
            inputs = LayerInputs(
                sequence,
                tokens,
                state_of_layer(state, index),
                state_of_layer(initial, index),
                resets,
                *layer.draw_dropout(batch_size, num_steps, sequence.shape[2]),
                layer.offset(num_steps, batch_size),
                self.is_watched or is_followed,
                self.checkpoint_every,
            )
            features, last, activity = layer(functools.partial(run_layer, backend), inputs)
            if activity is not None:
                activities.append(self._follow(layer, activity, features, is_followed=is_followed))
            features = features.flatten(2)
            states.append(last)
        self.report_activity(tuple(activities))
        state = map_state(lambda *tensors: torch.stack(tensors, dim=1), *states)
        return features, state

    def with_mechanisms(self, num_mechanisms: int, num_active: int | None = None) -> "RIM":
        """Return a copy with another number of mechanisms of the same size.

        Weights must be shared by all mechanisms (``sharing`` ``shared`` or ``embedded``; ``cell="schemata"``
        shares the cells' by itself). What a mechanism has of its own, such as a learned initial state, a score
        bias or an embedding, is drawn for those that are new from a normal distribution with the mean and spread
        of the learned ones.

        Args:
            num_mechanisms: Mechanisms of the copy, at least 1.
            num_active: Mechanisms that may be active in a step, by default as many as here, or all where all are.

        Raises:
            ConfigError: Weights belong to one mechanism each, or there are several layers.
        """
        if num_active is None:
            num_active = num_mechanisms if self.num_active == self.num_mechanisms else self.num_active
        resized: RIM = with_mechanisms(self, num_mechanisms, num_active)
        return resized

    def adapt_weights(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return weights of a RIM with another number of mechanisms for this one; see :meth:`with_mechanisms`."""
        return fit_weights(self, weights)

    def extra_repr(self) -> str:
        """Return the sizes for ``repr``."""
        return (
            f"{self.input_size}, {self.output_size}, num_mechanisms={self.num_mechanisms}, "
            f"num_active={self.num_active}, backend={self.backend!r}"
        )
