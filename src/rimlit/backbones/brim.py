"""Layers of mechanisms that read upwards and downwards (BRIMs, Mittal et al. 2020, arXiv:2006.16981)."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from rimlit.backbones.balanced import BalancedBackbone
from rimlit.backbones.base import LearnedState, require_input
from rimlit.backbones.rim_parts import fill, make_layer, refuse_frozen_states, size_of
from rimlit.checks import require_dropout, require_known, require_positive
from rimlit.errors import ConfigError
from rimlit.kernels.eager import activity_of
from rimlit.kernels.step import StepInputs, StepResult, step
from rimlit.mechanisms import LayerWeights, PartLike, Sharing
from rimlit.nn.surroundings import is_autocast_enabled, without_autocast
from rimlit.types import State, carried_of, replace_state, with_carried

TopDown = Literal["above", "top"]
TOP_DOWN: tuple[TopDown, ...] = ("above", "top")


class BRIM(BalancedBackbone):
    """Bidirectional recurrent independent mechanisms (Mittal et al. 2020): layers with top-down connections.

    Each layer is that of a :class:`rimlit.RIM`. In a step, from the lowest layer up, its mechanisms attend over a
    null slot, the layer below in this step (the lowest: the input), and a layer above as it was after the step
    before, which has keys and values of its own; the top layer has no such slot. Features are the states of the
    top layer. All parts of a RIM fit; the loop is that of ``backend="eager"``.

    Args:
        input_size: Features of each step, or of each input slot, at least 1.
        hidden_size: Width H of a layer, divisible by every number of ``num_mechanisms``.
        num_mechanisms: Mechanisms of each layer, the lowest first; as many numbers as layers (published: 6, 3).
        num_active: The most mechanisms updated per step, of each layer; None for two thirds (published: 4, 2) with
            ``preset="paper"`` or ``"official"``, and for all with the others.
        top_down: Which higher layer is read: the one ``above`` (the paper's text) or the ``top`` one (its code).
        preset: Fills what is not given, as in :class:`rimlit.RIM`.
        selection: How mechanisms compete.
        cell: Dynamics of each mechanism.
        communication: How the mechanisms of a layer read each other.
        sharing: How the mechanisms of a layer share their weights.
        input_sharing: The same for keys and values of what they read.
        balance: Influence on who wins.
        input_heads: Heads of the attention to the slots (published: 4).
        input_key_size: Key size of each head (published: 64).
        input_value_size: Value size of each head (published: 4·d).
        soft_cap: Bound of the scores, above 0, or None.
        score_bias: Start of a learned bias of each mechanism's scores, or None.
        normalize_scores: Whether queries and keys are normalised before they meet.
        input_dropout: Dropout on the attention to the slots, 0 to 1.
        communication_dropout: Dropout on the communication, 0 to 1.
        dropout: Dropout on what a layer reads of the layer below, 0 to 1 (published, sequential MNIST: .5).
        learn_initial_state: Whether initial states are learned.
        bidirectional: Whether a second BRIM reads each sequence from its end; see :class:`Bidirectional`.

    Raises:
        ConfigError: An argument is out of its range or unknown.

    Example:
        >>> brim = BRIM(10, 24, num_mechanisms=(6, 3), num_active=(4, 2))
        >>> with brim.record_activity() as activities:
        ...     features, state = brim(torch.ones(2, 5, 10))
        >>> features.shape, state.hidden.shape  # (B, T, H) and (B, layers, H)
        (torch.Size([2, 5, 24]), torch.Size([2, 2, 24]))
        >>> [activity.slot_attention.shape for activity in activities]  # (B, T, M, slots), the way down last
        [torch.Size([2, 5, 6, 2]), torch.Size([2, 5, 3, 1])]
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_mechanisms: Sequence[int] = (6, 3),
        num_active: Sequence[int] | None = None,
        top_down: TopDown = "above",
        preset: Literal["paper", "official", "dynamic", "sparse"] = "paper",
        selection: PartLike | None = None,
        cell: PartLike | None = None,
        communication: PartLike | None = None,
        sharing: PartLike | None = None,
        input_sharing: PartLike | None = None,
        balance: PartLike | None = None,
        input_heads: int = 4,
        input_key_size: int | None = None,
        input_value_size: int | None = None,
        soft_cap: float | None = None,
        score_bias: float | None = None,
        normalize_scores: bool = False,
        input_dropout: float | None = None,
        communication_dropout: float | None = None,
        dropout: float = 0.0,
        learn_initial_state: bool | None = None,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        require_positive(input_size=input_size, hidden_size=hidden_size, input_heads=input_heads)
        require_dropout(dropout=dropout)
        require_known(top_down=(top_down, TOP_DOWN))
        numbers, active = _numbers(num_mechanisms, num_active, preset)
        recipes = [
            fill(
                preset,
                mechanisms,
                size_of(hidden_size, mechanisms),
                num_active=most,
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
            for mechanisms, most in zip(numbers, active, strict=True)
        ]
        self.layers = nn.ModuleList(
            make_layer(
                recipe,
                hidden_size if index else input_size,
                hidden_size // mechanisms,
                mechanisms,
                input_heads=input_heads,
                input_attention=True,
                soft_cap=soft_cap,
                normalize_scores=normalize_scores,
                project_in_bf16=False,
            )
            for index, (recipe, mechanisms) in enumerate(zip(recipes, numbers, strict=True))
        )
        below_top = list(zip(recipes, numbers, strict=True))[:-1]
        self.top_down_key = nn.ModuleList(
            recipe.input_sharing(mechanisms, hidden_size, input_heads * recipe.input_key_size)
            for recipe, mechanisms in below_top
        )
        self.top_down_value = nn.ModuleList(
            recipe.input_sharing(mechanisms, hidden_size, input_heads * recipe.input_value_size)
            for recipe, mechanisms in below_top
        )
        self.input_size = input_size
        self.output_size = self.hidden_size = hidden_size
        self.num_layers = len(numbers)
        self.num_mechanisms = numbers[-1]  # of the layer that features are of
        self.mechanisms_of_layers = numbers
        self.top_down = top_down
        self.input_heads = input_heads
        self.dropout = dropout
        self.state_type = self._layers[0].dynamics.state_type
        learns = recipes[0].learn_initial_state
        self.initial = nn.ModuleList(
            LearnedState((layer.num_mechanisms, layer.size), self.state_type._fields, learn=learns)
            for layer in self._layers
        )
        for layer in self._layers:
            refuse_frozen_states(layer, learns)

    def initial_state(self, batch_size: int) -> State:
        """Return the state a sequence starts from: (B, layers, H) for each field.

        What communications carry is one more field, ``carried`` (B, numbers), of all layers side by side.
        """
        like = self._layers[0].like
        layers = [[part.flatten(1) for part in initial(batch_size, like)] for initial in self.initial]
        state = self.state_type(*(torch.stack(parts, dim=1) for parts in zip(*layers, strict=True)))
        return with_carried(state, _beside([layer.initial_carried(batch_size) for layer in self._layers]))

    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run over (B, T, input_size) or (B, T, N, input_size); see :meth:`Backbone.forward`.

        Returns:
            Features (B, T, hidden_size), those of the top layer, and the state after the last step.
        """
        require_input(self, inputs, resets, allow_slots=True)
        self._forget()
        sequence = inputs if inputs.dim() == 4 else inputs.unsqueeze(2)  # (B, T, N, D)
        like = self._layers[0].like
        device = like.device.type
        if sequence.dtype != like.dtype and not is_autocast_enabled(device):
            raise ConfigError(f"inputs must be {like.dtype}, as the weights are; got {sequence.dtype}.")
        state, initial = self.starting_state(inputs, state)
        for layer in self._layers:
            layer.look_for_hooks()
        weights = [layer.weights() for layer in self._layers]
        # the input's keys and values do not depend on the state: all steps at once
        key = self._project(sequence, weights[0].input_key).to(like.dtype)  # (1 or M, B, T, N, I, key)
        value = self._project(sequence, weights[0].input_value).to(like.dtype)
        with without_autocast(device):
            features, states, carried = self._run(weights, key, value, state, initial, resets)
        parts = zip(*([part.transpose(0, 1).flatten(1) for part in layer] for layer in states), strict=True)
        last = self.state_type(*(torch.stack(layers, dim=1) for layers in parts))
        return features, with_carried(last, _beside(carried))

    def _run(
        self,
        weights: list[LayerWeights],
        key: Tensor,
        value: Tensor,
        state: State,
        initial: State,
        resets: Tensor | None,
    ) -> tuple[Tensor, list[State], list[Tensor | None]]:
        """Return features (B, T, H), and the states (M, B, d) and what is carried of every layer at the end."""
        batch_size, num_steps, num_slots = key.shape[1:4]
        layers = self._layers
        states, firsts = (list(self._by_layer(given)) for given in (state, initial))
        carried, first_carried = (list(self._carried_by_layer(given)) for given in (state, initial))
        dropouts = [
            layer.draw_dropout(batch_size, num_steps, (num_slots, 1)[index > 0] + (index + 1 < self.num_layers))
            for index, layer in enumerate(layers)
        ]
        offsets = [layer.offset(num_steps, batch_size) for layer in layers]
        top_down = [
            (own_key.groups(), own_value.groups())
            for own_key, own_value in zip(
                cast(list[Sharing], self.top_down_key), cast(list[Sharing], self.top_down_value), strict=True
            )
        ]
        records: list[list[StepResult]] = [[] for _ in layers]
        features: list[Tensor] = []
        follows = self.training and torch.is_grad_enabled()
        is_followed = [follows and layer.is_followed for layer in layers]
        for t in range(num_steps):
            if resets is not None:
                for index in range(self.num_layers):
                    states[index] = _replaced(states[index], firsts[index], resets[:, t, None])
                    if carried[index] is not None:
                        carried[index] = replace_state(carried[index], first_carried[index], resets[:, t])
            read_key, read_value = key[:, :, t], value[:, :, t]
            for index, (layer, own) in enumerate(zip(layers, weights, strict=True)):
                if index:
                    below = functional.dropout(_joined(states[index - 1].hidden), self.dropout, self.training)
                    read_key = self._project(below[:, None], own.input_key)  # (1 or M, B, 1, I, key)
                    read_value = self._project(below[:, None], own.input_value)
                if index + 1 < self.num_layers:  # that layer has not made this step yet
                    higher = states[index + 1 if self.top_down == "above" else -1]
                    above = _joined(higher.hidden)[:, None]
                    down_key, down_value = (self._project(above, weight) for weight in top_down[index])
                    read_key = torch.cat([read_key, down_key], dim=2)
                    read_value = torch.cat([read_value, down_value], dim=2)
                keep_input, keep_communication = dropouts[index]
                offset = offsets[index]
                inputs = StepInputs(
                    read_key,
                    read_value,
                    None if keep_input is None else keep_input[t],
                    None if keep_communication is None else keep_communication[t],
                    None if offset is None else offset[t if len(offset) > 1 else 0],
                )
                result = step(layer, own, inputs, states[index], carried[index])
                states[index] = result.state
                carried[index] = result.carried
                if self.is_watched or is_followed[index]:
                    records[index].append(result)
            features.append(_joined(states[-1].hidden))
        self._report(records, is_followed)
        return torch.stack(features, dim=1), states, carried

    def _report(self, records: list[list[StepResult]], is_followed: list[bool]) -> None:
        """Keep what balances count and penalise, and call the hooks with what the mechanisms did."""
        activities = []
        for layer, own, follows in zip(self._layers, records, is_followed, strict=True):
            if not own:
                continue
            hidden = torch.stack([result.state.hidden for result in own]).permute(2, 0, 1, 3)
            activities.append(self._follow(layer, activity_of(own), hidden, is_followed=follows))
        if self.is_watched:
            self.report_activity(tuple(activities))

    def _project(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Return rows (B, …, D) times weights (1 or M, D, I·size), (1 or M, B, …, I, size)."""
        projected = torch.matmul(rows.flatten(0, -2), weight)
        return projected.view(len(weight), *rows.shape[:-1], self.input_heads, -1)

    def _by_layer(self, state: State) -> Iterator[State]:
        """Yield what the cells of each layer carry, (M, B, d)."""
        fields = state[: len(self.state_type._fields)]
        for index, layer in enumerate(self._layers):
            shape = (-1, layer.num_mechanisms, layer.size)
            yield self.state_type(*(part[:, index].reshape(shape).transpose(0, 1).contiguous() for part in fields))

    def _carried_by_layer(self, state: State) -> Iterator[Tensor | None]:
        """Yield what selection and communication of each layer carry, (B, …)."""
        carried, start = carried_of(state), 0
        for layer in self._layers:
            like = layer.initial_carried(1)
            if like is None or carried is None:
                yield None
            else:
                stop = start + like.numel()
                yield carried[:, start:stop].view(-1, *like.shape[1:])
                start = stop

    def flops_per_step(self) -> int:
        """Return the operations of one step that are needed; see :meth:`rimlit.RIM.flops_per_step`."""
        total = super().flops_per_step()
        modules = zip(self._layers, self.top_down_key, self.top_down_value, strict=False)
        for layer, *shared in modules:  # the top layer has none
            key, value = (cast(Sharing, each).groups() for each in shared)
            total += 2 * (key.numel() + value.numel() + layer.num_mechanisms * key.shape[-1])
        return total

    def extra_repr(self) -> str:
        """Return the sizes for ``repr``."""
        counts = [(layer.num_mechanisms, layer.num_active) for layer in self._layers]
        return f"{self.input_size}, {self.output_size}, mechanisms and active ones of each layer: {counts}"


def _numbers(
    num_mechanisms: Sequence[int], num_active: Sequence[int] | None, preset: str
) -> tuple[list[int], list[int | None]]:
    """Return the mechanisms and the active ones of each layer, None for those of the preset."""
    numbers: Any = num_mechanisms
    if not isinstance(numbers, Sequence) or not numbers:
        raise ConfigError(
            f"num_mechanisms must have a number for each layer, such as (6, 3); got num_mechanisms={numbers!r}."
        )
    for number in numbers:
        require_positive(num_mechanisms=number)
    if num_active is None:
        bounded = preset in ("paper", "official")
        return list(numbers), [max(1, round(2 * m / 3)) if bounded else None for m in numbers]
    if not isinstance(num_active, Sequence) or len(num_active) != len(numbers):
        raise ConfigError(
            f"num_active must have as many numbers as num_mechanisms={tuple(numbers)}; got "
            f"num_active={num_active!r}."
        )
    return list(numbers), list(num_active)


def _joined(hidden: Tensor) -> Tensor:
    """Return hidden states (M, B, d) as (B, M·d)."""
    return hidden.transpose(0, 1).flatten(1)


def _beside(carried: Sequence[Tensor | None]) -> Tensor | None:
    """Return what all layers carry, side by side: (B, numbers)."""
    parts = [part.flatten(1) for part in carried if part is not None]
    return torch.cat(parts, dim=1) if parts else None


def _replaced(state: State, initial: State, where: Tensor) -> State:
    """Return tensors (M, B, d), the initial ones for the samples that ``where`` (B, 1) marks."""
    return type(state)(*(torch.where(where, new, old) for old, new in zip(state, initial, strict=True)))
