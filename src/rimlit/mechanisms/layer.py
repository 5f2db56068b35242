"""One layer of a RIM: its parts, their parameters and dropout; :mod:`rimlit.kernels` runs it over time."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rimlit.mechanisms.balance import Balance, added_up
from rimlit.mechanisms.communication import AttentionCommunication, Communication, NoCommunication
from rimlit.mechanisms.dynamics import Dynamics
from rimlit.mechanisms.selection import Selection
from rimlit.mechanisms.sharing import Sharing
from rimlit.nn.dropout import draw_dropout_factors
from rimlit.nn.surroundings import first_weight, is_autocast_enabled, without_autocast
from rimlit.types import MaybeTensor


class LayerWeights(NamedTuple):
    """Parameters of one layer, formed once per sequence. A leading 1 in place of M: shared by all mechanisms.

    Once the input is projected, the weights that it was multiplied by are None.
    """

    input_query: MaybeTensor  # (M, d, I·key)
    input_key: MaybeTensor  # (1 or M, D, I·key)
    input_value: MaybeTensor  # (1 or M, D, I·value)
    cell_input: MaybeTensor  # (M, I·value, gates): input, forget, output, new (LSTM); reset, update, new (GRU)
    score_bias: Tensor | None  # (M,)
    dynamics: tuple[Tensor, ...]  # (M, d, gates) and (M, 4·d): the GRU's last quarter is the bias inside the reset
    communication: tuple[Tensor | None, ...]

    def tensors(self) -> list[Tensor]:
        """Return all weights that there are."""
        everything = (*self[:5], *self.dynamics, *self.communication)
        return [weight for weight in everything if weight is not None]


class RIMLayer(nn.Module):
    """The parts of one layer.

    The time loops read the weights of the modules inside and call none of them: hooks belong on the layer.

    Args:
        input_size: Features D of each input slot.
        size: Features d of each mechanism.
        selection: The competition.
        dynamics: Builds the cells from M, the size of what they read, d and ``sharing``.
        communication: Builds the communication from M, d and ``sharing``.
        sharing: Builds a weight of all mechanisms from (M, inner, outer, init_scale).
        input_sharing: The same for the input's keys and values.
        balance: Influence on who wins.
        input_heads: Heads I of the input attention.
        input_key_size: Key size of each input head.
        input_value_size: Value size of each input head.
        input_attention: Whether mechanisms attend to the input; without, each reads all of it.
        soft_cap: Bound c of the scores, c·tanh(score / c), or None.
        score_bias: Start of a learned bias per mechanism, added to its scores, or None.
        normalize_scores: Whether queries and keys are scaled to length ⁴√key_size, so that a score is the cosine
            of their angle.
        input_dropout: Dropout on the input attention; it never touches the selection.
        communication_dropout: Dropout of the communication.
        project_in_bf16: Whether the products before the loop are computed in bfloat16.
    """

    mechanism_rows: ClassVar[Mapping[str, int]] = {"score_bias": 0, "no_query": 0}

    def __init__(
        self,
        input_size: int,
        size: int,
        *,
        selection: Selection,
        dynamics: Callable[..., Dynamics],
        communication: Callable[..., Communication],
        sharing: Callable[..., Sharing],
        input_sharing: Callable[..., Sharing],
        balance: Balance,
        input_heads: int,
        input_key_size: int,
        input_value_size: int,
        input_attention: bool,
        soft_cap: float | None,
        score_bias: float | None,
        normalize_scores: bool,
        input_dropout: float,
        communication_dropout: float,
        project_in_bf16: bool,
    ) -> None:
        super().__init__()
        num_mechanisms = selection.num_mechanisms
        self.size = size
        self.num_mechanisms = num_mechanisms
        self.num_active = selection.num_active
        self.input_heads = input_heads
        self.input_attention = input_attention
        self.soft_cap = soft_cap
        self.normalize_scores = normalize_scores
        self.input_dropout = input_dropout
        self.communication_dropout = communication_dropout
        self.project_in_bf16 = project_in_bf16
        self.selection = selection
        self.balance = balance
        if input_attention:
            self.input_query = sharing(num_mechanisms, size, input_heads * input_key_size)
            self.input_key = input_sharing(num_mechanisms, input_size, input_heads * input_key_size)
        else:  # all scores are 0, whatever the state
            self.no_query: Tensor
            self.no_key: Tensor
            self.register_buffer("no_query", torch.zeros(num_mechanisms, size, input_heads), persistent=False)
            self.register_buffer("no_key", torch.zeros(1, input_size, input_heads), persistent=False)
        self.score_bias = (
            nn.Parameter(torch.full((num_mechanisms,), score_bias)) if score_bias is not None else None
        )
        self.input_value = input_sharing(num_mechanisms, input_size, input_heads * input_value_size)
        self.dynamics = dynamics(num_mechanisms, input_heads * input_value_size, size, sharing)
        self.communication = communication(num_mechanisms, size, sharing)
        self._stores_its_weights: bool | None = None
        self._has_warned = False
        self._handles_at_look: int | None = None

    def forward(self, run: Callable[..., Any], inputs: Any) -> Any:
        """Return ``run(self, self.weights(), inputs)``: a time loop over a sequence."""
        self.look_for_hooks()
        return run(self, self.weights(), inputs)

    def look_for_hooks(self) -> None:
        """Warn once where a hook is registered on a module whose weight alone is read."""
        # checking every module takes as long as a small step: only after some hook was registered somewhere
        if not torch.compiler.is_compiling() and self._handles_at_look != RemovableHandle.next_id:
            self._handles_at_look = RemovableHandle.next_id
            if not self._has_warned:
                self._warn_of_hooks()

    def _warn_of_hooks(self) -> None:
        for name, module in self.named_modules():
            if name and (
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
                return

    def weights(self) -> LayerWeights:
        """Return the parameters as the time loops read them."""
        device = self.like.device.type
        if is_autocast_enabled(device):  # what is formed of shared weights keeps their type
            with without_autocast(device):
                return self.weights()
        value = self.input_value.groups()
        return LayerWeights(
            input_query=self.input_query.expand() if self.input_attention else self.no_query,
            input_key=self.input_key.groups() if self.input_attention else self.no_key,
            input_value=value if self.input_attention else 2 * value,  # a score of 0 halves what is read
            cell_input=self.dynamics.input.expand(),
            score_bias=self.score_bias,
            dynamics=self.dynamics.weights(),
            communication=self.communication.weights(),
        )

    @property
    def like(self) -> Tensor:
        """A parameter whose device and type are the layer's."""
        weight = first_weight(self.dynamics)
        assert weight is not None
        return weight

    @property
    def communicates(self) -> bool:
        """Whether mechanisms read each other."""
        return type(self.communication) is not NoCommunication

    @property
    def computes_all(self) -> bool:
        """Whether inactive mechanisms are computed too, since others read what they would have become."""
        talk = self.communication
        return isinstance(talk, AttentionCommunication) and talk.inactive == "candidate"

    @property
    def is_followed(self) -> bool:
        """Whether balance or communication adds to the loss, or the balance counts."""
        return self.balance.has_penalty or self.balance.has_counts or self.communication.is_penalised

    @property
    def gives_relevance(self) -> bool:
        """Whether a penalty reads the relevance in the present mode, training or evaluation."""
        return self.training and self.balance.has_penalty

    @property
    def has_offset(self) -> bool:
        """Whether something is added to the ranking in the present mode, training or evaluation."""
        return self.balance.has_offset or (self.training and self.selection.is_noisy)

    @property
    def is_noisy(self) -> bool:
        """Whether the ranking of training is noisy."""
        return self.balance.is_noisy or self.selection.is_noisy

    def offset(self, num_steps: int, batch_size: int) -> Tensor | None:
        """Return what is added to the relevance for the ranking, (T or 1, M, B or 1), or None."""
        return added_up(
            (self.selection.noise(num_steps, batch_size, self.like), self.balance.offset(num_steps, batch_size))
        )

    def initial_carried(self, batch_size: int) -> Tensor | None:
        """Return what selection and communication carry, (B, …), at the start of a sequence, or None."""
        return self.join_carried(
            self.selection.initial_carried(batch_size), self.communication.initial_carried(batch_size)
        )

    def join_carried(self, of_selection: Tensor | None, of_communication: Tensor | None) -> Tensor | None:
        """Return what the two parts carry in one tensor: flat where both carry something."""
        if of_selection is None or of_communication is None:
            return of_communication if of_selection is None else of_selection
        return torch.cat([of_selection.flatten(1), of_communication.flatten(1)], dim=1)

    def split_carried(self, carried: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return what selection and communication carry, from what :meth:`join_carried` returned."""
        like = None if carried is None else self.selection.initial_carried(1)
        if carried is None or like is None:
            return None, carried
        other = self.communication.initial_carried(1)
        if other is None:
            return carried, None
        size = like.numel()
        return carried[:, :size].view(-1, *like.shape[1:]), carried[:, size:].view(-1, *other.shape[1:])

    @property
    def stores_its_weights(self) -> bool:
        """Whether the time loops read the parameters themselves, and not what is formed of shared ones."""
        if self._stores_its_weights is None:
            own = {id(parameter) for parameter in self.parameters()}
            self._stores_its_weights = all(
                (id(weight) in own or id(weight._base) in own) and weight.is_contiguous()
                for weight in self.weights().tensors()
            )
        return self._stores_its_weights

    def parameters_of_mechanisms(self) -> int:
        """Return the number of parameters of the dynamics and communication that belong to one mechanism each."""
        own = [module for part in (self.dynamics, self.communication) for module in part.modules()]
        weights = [weight for module in own if isinstance(module, Sharing) for weight in module.parameters()]
        return sum(weight.numel() for weight in weights if weight.shape[0] == self.num_mechanisms > 1)

    def flops_per_step(self) -> int:
        """Return the multiplications and additions of a step; see :meth:`rimlit.RIM.flops_per_step`."""
        weights = self.weights()
        computed = self.num_mechanisms if self.computes_all else self.num_active
        products: int = 0  # multiplications, each with an addition
        if self.input_attention:
            keys = weights.input_key.shape[-1]  # of all heads
            products += weights.input_key.numel() + weights.input_query.numel() + self.num_mechanisms * keys
        groups = weights.input_value.shape[0]
        products += weights.input_value[0].numel() * (1 if groups == 1 else computed)
        products += computed * weights.cell_input[0].numel()
        products += computed * self.dynamics.products()
        products += self.communication.products(computed, self.num_active)
        return 2 * products

    def draw_dropout(self, batch_size: int, num_steps: int, num_slots: int) -> tuple[Tensor | None, Tensor | None]:
        """Draw the dropout factors of a sequence: of the input attention and of the communication."""
        keep_input = keep_communication = None
        like = self.like
        if self.training and self.input_dropout:
            shape = (num_steps, self.num_mechanisms, batch_size, self.input_heads, num_slots)
            keep_input = draw_dropout_factors(shape, self.input_dropout, like)
        if self.training and self.communication_dropout:
            keep_communication = self.communication.draw_dropout(
                num_steps, batch_size, self.communication_dropout, like
            )
        return keep_input, keep_communication

    @property
    def drops(self) -> bool:
        """Whether dropout is drawn in training."""
        return self.input_dropout > 0 or (self.communication_dropout > 0 and self.communicates)
