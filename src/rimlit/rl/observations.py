"""What a policy reads: observations on a common scale, encoded, and the action and reward before, if wanted."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, distributed, nn

from rimlit.checks import require_positive
from rimlit.data.sampling import rank_and_world_size
from rimlit.encoders import Encoder
from rimlit.nn import direct
from rimlit.rl.policies import Policy

Previous = Literal["hidden", "concatenated", "slot"]
PREVIOUS = ("hidden", "concatenated", "slot")


class Seen(NamedTuple):
    """What a policy knows at each step, (B, T, …)."""

    observations: Tensor  # (B, T, …)
    actions: Tensor  # (B, T) or (B, T, size): those before; any where an episode starts
    rewards: Tensor  # (B, T): those before
    starts: Tensor  # (B, T) bool: an episode starts here


class Normalization(nn.Module):
    """Observations less their mean, over their standard deviation, cut at ±10.

    Means and deviations are those of all observations seen so far when a rollout begins; they stay as they are
    while it is collected and trained on, so that replaying it gives what collecting gave.

    Args:
        shape: Shape of an observation.

    Example:
        >>> normalization = Normalization([1])
        >>> normalization.add(torch.tensor([[[2.0], [4.0]]]))
        >>> normalization(torch.tensor([[[4.0]]])).item()
        4.0
        >>> normalization.adopt()
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
        """Count observations (B, T, …), those of all processes, for the next rollout."""
        seen = observations.flatten(0, 1).to(self.sums)
        added = torch.stack([torch.full_like(self.sums, len(seen)), seen.sum(dim=0), seen.square().sum(dim=0)])
        if rank_and_world_size()[1] > 1:
            distributed.all_reduce(added)
        self.count += added[0].flatten()[0]
        self.sums += added[1]
        self.squares += added[2]

    def adopt(self) -> None:
        """Take up what was counted."""
        if self.count > 0:
            mean = self.sums / self.count
            variance = (self.squares / self.count - mean.square()).clamp(min=0)
            self.mean.copy_(mean)
            self.deviation.copy_((variance + 1e-8).sqrt())


class VectorEncoder(Encoder):
    """Dense layers with tanh over a flattened observation; without any, the observation as it is.

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
        require_positive(**{f"hidden_sizes[{index}]": width for index, width in enumerate(hidden_sizes)})
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


class PolicyEncoder(Encoder):
    """Normalise and encode observations, and add the action and the reward before them.

    Args:
        encoder: Encoder of the observations.
        policy: Turns actions into vectors.
        previous: What becomes of the action and reward before: ``hidden``; ``concatenated`` to the encoded
            observation (to each of its slots); or a ``slot`` of its own beside it.
        normalization: Scale of the observations; None where they have a common one, as frames do.
    """

    def __init__(
        self, encoder: Encoder, policy: Policy, previous: Previous, normalization: Normalization | None
    ) -> None:
        super().__init__()
        self.observations = encoder
        self.encode_actions = policy.encode  # a method: the policy's parameters stay its own
        self.previous = previous
        self.normalization = normalization
        added = policy.size + 1
        self.output_size = encoder.output_size + (added if previous == "concatenated" else 0)
        self.slot = nn.Linear(added, encoder.output_size) if previous == "slot" else None

    def stepping(self) -> Callable[[Seen], Tensor]:
        """Return what encodes fastest while the modules stay as they are; see :meth:`forward`."""
        whole = direct(self)
        if self.previous != "hidden" or whole is self:
            return whole
        encode = direct(self.observations)
        if self.normalization is None:
            return lambda seen: encode(seen.observations)
        normalize = direct(self.normalization)
        return lambda seen: encode(normalize(seen.observations))

    def forward(self, seen: Seen) -> Tensor:
        """Map (B, T, …) to (B, T, output_size), or to slots (B, T, N, output_size)."""
        normalization = self.normalization
        normalized = seen.observations if normalization is None else normalization(seen.observations)
        encoded: Tensor = self.observations(normalized)
        if self.previous == "hidden":
            return encoded
        before = torch.cat([self.encode_actions(seen.actions), seen.rewards.unsqueeze(-1)], dim=-1)
        before = before.masked_fill(seen.starts.unsqueeze(-1), 0)
        if self.slot is not None:
            slots = encoded if encoded.dim() == 4 else encoded.unsqueeze(2)
            return torch.cat([slots, self.slot(before).unsqueeze(2)], dim=2)
        if encoded.dim() == 4:
            before = before.unsqueeze(2).expand(-1, -1, encoded.shape[2], -1)
        return torch.cat([encoded, before], dim=-1)
