"""The input of a policy: normalised and encoded observations and, on request, the previous action and reward."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, distributed, nn

from rimlit.checks import require_positive
from rimlit.data.sampling import rank_and_world_size
from rimlit.encoders import Encoder
from rimlit.errors import ConfigError
from rimlit.nn import direct
from rimlit.rl.policies import Policy

Previous = Literal["hidden", "concatenated", "slot"]
PREVIOUS = ("hidden", "concatenated", "slot")


class PolicyInput(NamedTuple):
    """What a policy reads at each step."""

    observations: Tensor  # (B, T, …)
    actions: Tensor  # (B, T) or (B, T, size): the previous ones; arbitrary where an episode starts
    rewards: Tensor  # (B, T): the previous ones
    starts: Tensor  # (B, T) bool: an episode starts at this step


class Normalization(nn.Module):
    """Observations less their mean, over their standard deviation, cut at ±10.

    Mean and deviation are those of all observations up to the start of a rollout. They are constant while the
    rollout is collected and trained on, so that training computes the same outputs as collecting did.

    Args:
        shape: Shape of an observation.

    Example:
        >>> normalization = Normalization([1])
        >>> normalization.add(torch.tensor([[[2.0], [4.0]]]))
        >>> normalization(torch.tensor([[[4.0]]])).item()
        4.0
        >>> normalization.update_scale()
        >>> round(normalization(torch.tensor([[[4.0]]])).item(), 3)
        1.0
    """

    mean: Tensor
    deviation: Tensor
    count: Tensor
    sums: Tensor
    squares: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(*shape))
        self.register_buffer("deviation", torch.ones(*shape))
        # in float64: differences of large sums
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(*shape, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(*shape, dtype=torch.float64))

    def forward(self, observations: Tensor) -> Tensor:
        """Map observations (B, T, …) to the common scale."""
        scaled = observations - self.mean
        return scaled.div_(self.deviation).clamp_(-10, 10)

    @torch.no_grad()
    def add(self, observations: Tensor) -> None:
        """Add observations (B, T, …) of all processes to the sums; see :meth:`update_scale`."""
        rows = observations.flatten(0, 1).to(self.sums)
        added = torch.stack([torch.full_like(self.sums, len(rows)), rows.sum(dim=0), rows.square().sum(dim=0)])
        if rank_and_world_size()[1] > 1:
            distributed.all_reduce(added)
        self.count += added[0].flatten()[0]
        self.sums += added[1]
        self.squares += added[2]

    def update_scale(self) -> None:
        """Set mean and deviation to those of all observations added so far."""
        if self.count > 0:
            mean = self.sums / self.count
            variance = (self.squares / self.count - mean.square()).clamp(min=0)
            self.mean.copy_(mean)
            self.deviation.copy_((variance + 1e-8).sqrt())


class VectorEncoder(Encoder):
    """Dense layers with tanh over a flattened observation; without layers, the flattened observation.

    Args:
        observation_shape: Shape of an observation.
        hidden_sizes: Widths of the layers, each at least 1.

    Raises:
        ValueError: A size is below 1.

    Example:
        >>> VectorEncoder([4], hidden_sizes=[8])(torch.zeros(2, 5, 4)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, observation_shape: Sequence[int], *, hidden_sizes: Sequence[int] = (64,)) -> None:
        super().__init__()
        require_positive(hidden_sizes=hidden_sizes)
        before = 1
        for size in observation_shape:
            before *= size
        layers: list[nn.Module] = []
        for width in hidden_sizes:
            linear = nn.Linear(before, width)
            nn.init.orthogonal_(linear.weight, 2**0.5)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.Tanh()]
            before = width
        self.layers = nn.Sequential(*layers)
        self.input_size = list(observation_shape)
        self.output_size = before

    def forward(self, observations: Tensor) -> Tensor:
        """Map observations (B, T, …) to (B, T, output_size)."""
        encoded: Tensor = self.layers(observations.flatten(2).float())
        return encoded


class SlotEncoder(Encoder):
    """A dense layer with tanh for each slot of an observation, for backbones that read slots.

    Slots mean different things, such as the entries of a dictionary: each has weights of its own.

    Args:
        observation_shape: (N, D): slots, and numbers of each.
        output_size: Features of each slot, at least 1.

    Raises:
        ConfigError: Observations are not slots.
        ValueError: A size is below 1.

    Example:
        >>> SlotEncoder([3, 4], output_size=8)(torch.zeros(2, 5, 3, 4)).shape
        torch.Size([2, 5, 3, 8])
    """

    def __init__(self, observation_shape: Sequence[int], *, output_size: int = 32) -> None:
        super().__init__()
        require_positive(output_size=output_size)
        if len(observation_shape) != 2:
            raise ConfigError(
                "SlotEncoder reads slots (N, D), as has_slots=True gives them; got "
                f"observation_shape={list(observation_shape)}."
            )
        number, size = observation_shape
        self.input_size = list(observation_shape)
        self.output_size = output_size
        self.weight = nn.Parameter(torch.empty(number, output_size, size))
        self.bias = nn.Parameter(torch.zeros(number, output_size))
        for slot in self.weight:
            nn.init.orthogonal_(slot, 2**0.5)

    def forward(self, observations: Tensor) -> Tensor:
        """Map slots (B, T, N, D) to (B, T, N, output_size)."""
        return torch.tanh(torch.einsum("btnd,nod->btno", observations.float(), self.weight) + self.bias)


class PolicyEncoder(Encoder):
    """Normalise and encode observations, and add the previous action and reward.

    Args:
        encoder: Encoder of the observations.
        policy: Turns actions into vectors.
        previous: How the previous action and reward are read: not at all (``hidden``), ``concatenated`` to the
            encoded observation (to each of its slots), or as an additional ``slot``.
        normalization: Scale of the observations; None where they already have one, as frames do.
    """

    def __init__(
        self, encoder: Encoder, policy: Policy, previous: Previous, normalization: Normalization | None
    ) -> None:
        super().__init__()
        self.observations = encoder
        self.encode_actions = policy.encode  # not the policy itself: its parameters are registered elsewhere
        self._most_likely, self._num_outputs = policy.mode, policy.size
        self.unread = ("actions", "rewards") if previous == "hidden" else ()
        self.previous = previous
        self.normalization = normalization
        added = policy.size + 1
        self.output_size = encoder.output_size + (added if previous == "concatenated" else 0)
        self.slot = nn.Linear(added, encoder.output_size) if previous == "slot" else None

    def stepper(self) -> Callable[[PolicyInput], Tensor]:
        """Return the fast path of :meth:`forward`, valid while the modules stay as they are."""
        whole = direct(self)
        if self.previous != "hidden" or whole is self:
            return whole
        encode = direct(self.observations)
        if self.normalization is None:
            return lambda inputs: encode(inputs.observations)
        normalize = direct(self.normalization)
        return lambda inputs: encode(normalize(inputs.observations))

    def example_inputs(self, batch_size: int, num_steps: int, generator: torch.Generator) -> PolicyInput:
        """Return random observations, actions and rewards; no episode starts after the first step."""
        outputs = torch.randn(batch_size, num_steps, self._num_outputs, generator=generator)
        actions = self._most_likely(outputs.flatten(0, 1))
        starts = torch.zeros(batch_size, num_steps, dtype=torch.bool)
        starts[:, 0] = True
        return PolicyInput(
            self.observations.example_inputs(batch_size, num_steps, generator),
            actions.view(batch_size, num_steps, *actions.shape[1:]),
            torch.randn(batch_size, num_steps, generator=generator),
            starts,
        )

    def forward(self, inputs: PolicyInput) -> Tensor:
        """Map (B, T, …) to (B, T, output_size), or to slots (B, T, N, output_size)."""
        normalization = self.normalization
        normalized = inputs.observations if normalization is None else normalization(inputs.observations)
        encoded: Tensor = self.observations(normalized)
        if self.previous == "hidden":
            return encoded
        before = torch.cat([self.encode_actions(inputs.actions), inputs.rewards.unsqueeze(-1)], dim=-1)
        before = before.masked_fill(inputs.starts.unsqueeze(-1), 0)
        if self.slot is not None:
            slots = encoded if encoded.dim() == 4 else encoded.unsqueeze(2)
            return torch.cat([slots, self.slot(before).unsqueeze(2)], dim=2)
        if encoded.dim() == 4:
            before = before.unsqueeze(2).expand(-1, -1, encoded.shape[2], -1)
        return torch.cat([encoded, before], dim=-1)
