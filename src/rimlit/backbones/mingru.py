"""The minimal GRU (Feng et al. 2024, sec. 3.1 and app. B, arXiv:2410.01201): gates that read the input alone."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from rimlit.backbones.base import Backbone, LearnedState, require_input
from rimlit.checks import require_dropout, require_positive
from rimlit.types import GRUState, State, conform_state


class MinGRU(Backbone):
    """A GRU without a reset gate, whose gates do not read the state: all steps of a layer are computed at once.

    h_t = (1 − z_t) h_{t−1} + z_t g(c_t), with z = σ(W_z x) and c = W_c x. g(c) is c + 1/2 from 0 on and σ(c)
    below, so that states are positive and the recurrence can be run in logarithms.

    Departs from the paper: the scan combines neighbouring stretches of steps (:func:`scan`), where the paper
    subtracts cumulative sums, whose rounding grows with the length; a carried state is added behind the scan, so
    that it may be zero. Layers follow each other directly, without convolutions, norms and residuals between them.
    One layer writes whatever its gates say of the present input alone; a step's writing depends on the past from
    the second layer on, and the paper's models have two or more.

    Args:
        input_size: Features of each step, at least 1.
        hidden_size: Width of each layer, at least 1.
        num_layers: Layers, at least 1.
        dropout: Dropout between layers, 0 to 1.
        learn_initial_state: Whether the initial state is learned; otherwise it is zero.
        forget_bias: What is subtracted from the update gates' bias at the start: greater values keep more.
        bidirectional: Whether a second one reads each sequence from its end; see :class:`Bidirectional`.

    Raises:
        ConfigError: A size is below 1 or the dropout out of range.

    Example:
        >>> features, state = MinGRU(3, 8, num_layers=2)(torch.ones(2, 5, 3))
        >>> features.shape, state.hidden.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 2, 8]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        dropout: float = 0.0,
        learn_initial_state: bool = False,
        forget_bias: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        require_positive(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        require_dropout(dropout=dropout)
        self.input_size = input_size
        self.output_size = self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.dropout = nn.Dropout(dropout)
        sizes = [input_size] + [hidden_size] * (num_layers - 1)
        layers = [nn.Linear(size, 2 * hidden_size) for size in sizes]  # of update gates and candidates
        for layer in layers:
            layer.bias.data[:hidden_size] -= forget_bias
        self.layers = nn.ModuleList(layers)
        self.initial = LearnedState((num_layers, hidden_size), GRUState._fields, learn=learn_initial_state)

    def initial_state(self, batch_size: int) -> GRUState:
        """Return the hidden state (B, num_layers, hidden_size), zero or, where it is learned, positive."""
        (hidden,) = self.initial(batch_size, self.layers[0].weight)
        return GRUState(positive(hidden) if self.initial.learn else hidden)

    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, GRUState]:
        """Run over (B, T, input_size); see :meth:`Backbone.forward`."""
        require_input(self, inputs, resets)
        state, initial = self.starting_state(inputs, state)
        features, lasts = inputs, []
        for index, layer in enumerate(self.layers):
            gates, candidate = _parts(layer(self.dropout(features) if index else features))
            log_keep, log_new = (
                functional.logsigmoid(-gates),
                functional.logsigmoid(gates) + log_positive(candidate),
            )
            if resets is not None:
                at = resets.unsqueeze(-1)
                begin = initial.hidden[:, index, None].to(log_new.dtype)
                log_new = torch.logaddexp(log_new, log_keep + begin.log()).where(at, log_new)
                log_keep = log_keep.masked_fill(at, -torch.inf)
            log_keep, log_new = scan(log_keep, log_new)
            hidden = log_new.exp() + log_keep.exp() * state.hidden[:, index, None]
            features = hidden.to(state.hidden.dtype)
            lasts.append(features[:, -1])
        return features, GRUState(torch.stack(lasts, dim=1))

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one step, without logarithms where no gradient is needed; see :meth:`Backbone.step`."""
        if torch.is_grad_enabled():  # learned initial states then stay in the graph
            return super().step(inputs, state)
        require_input(self, inputs.unsqueeze(1))
        state = state if isinstance(state, GRUState) else conform_state(state, self.initial_state(len(inputs)))
        features, news = inputs, []
        for index, layer in enumerate(self.layers):
            gates, candidate = _parts(layer(self.dropout(features) if index else features))
            new = torch.lerp(state.hidden[:, index].to(gates.dtype), positive(candidate), gates.sigmoid())
            features = new.to(state.hidden.dtype)
            news.append(features)
        return features, GRUState(torch.stack(news, dim=1))


def _parts(projected: Tensor) -> tuple[Tensor, Tensor]:
    """Return the update gates before the sigmoid and the candidates, in 32 bits or more."""
    gates, candidate = projected.to(torch.promote_types(projected.dtype, torch.float32)).chunk(2, dim=-1)
    return gates, candidate


def positive(values: Tensor) -> Tensor:
    """Return g(c) (app. B.2): c + 1/2 from 0 on, σ(c) below."""
    return torch.where(values >= 0, values + 0.5, values.sigmoid())


def log_positive(values: Tensor) -> Tensor:
    """Return log g(c), exact also where g(c) is next to 0.

    Example:
        >>> log_positive(torch.tensor([0.5, -200.0]))
        tensor([   0., -200.])
    """
    return torch.where(values >= 0, (values.relu() + 0.5).log(), functional.logsigmoid(values))


def scan(log_keep: Tensor, log_new: Tensor) -> tuple[Tensor, Tensor]:
    """Run h_t = keep_t · h_{t−1} + new_t over all steps at once, in logarithms (Hillis and Steele 1986).

    In log2 T rounds each step is combined with one that is 1, 2, 4, … before it. Nothing is subtracted, so that
    ``keep`` may be 0 and rounding does not grow with the length.

    Args:
        log_keep: (B, T, H): −∞ where a step keeps nothing.
        log_new: (B, T, H).

    Returns:
        For each step the logarithms of the share kept of a state before the first step, and of the sum of what
        came since.

    Example:
        >>> kept, total = scan(torch.full((1, 3, 1), 0.5).log(), torch.ones(1, 3, 1).log())
        >>> kept.exp().flatten(), total.exp().flatten()
        (tensor([0.5000, 0.2500, 0.1250]), tensor([1.0000, 1.5000, 1.7500]))
    """
    distance = 1
    while distance < log_keep.shape[1]:
        keep, earlier = log_keep[:, distance:], (log_keep[:, :-distance], log_new[:, :-distance])
        combined = torch.logaddexp(log_new[:, distance:], keep + earlier[1])
        log_new = torch.cat([log_new[:, :distance], combined], dim=1)
        log_keep = torch.cat([log_keep[:, :distance], keep + earlier[0]], dim=1)
        distance *= 2
    return log_keep, log_new
