"""Policies: from a network's outputs to actions, their log-probabilities and the entropy."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rimlit.checks import require_positive


class Policy(nn.Module, ABC):
    """A distribution over actions, given by a network's outputs.

    Args:
        size: Number of outputs for each step.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    @abstractmethod
    def sample(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Draw an action for each row of ``outputs`` (B, size)."""

    @abstractmethod
    def mode(self, outputs: Tensor) -> Tensor:
        """Return the most likely action for each row of ``outputs`` (B, size)."""

    @abstractmethod
    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Return the log-probability (log-density) of ``actions`` given ``outputs`` (…, size): (…), nats."""

    @abstractmethod
    def entropy(self, outputs: Tensor) -> Tensor:
        """Return the entropy given ``outputs`` (…, size): (…), nats."""

    @abstractmethod
    def encode(self, actions: Tensor) -> Tensor:
        """Return ``actions`` as vectors (…, size) that a network can read."""


class Categorical(Policy):
    """One of ``size`` actions; the outputs are logits.

    Example:
        >>> policy, logits = Categorical(3), torch.tensor([[0.0, 0.0, 9.0]])
        >>> policy.mode(logits), policy.encode(torch.tensor([1]))
        (tensor([2]), tensor([[0., 1., 0.]]))
    """

    def sample(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Draw actions (B,)."""
        probabilities = outputs.softmax(dim=-1)
        # as torch.multinomial, without its checks, which synchronise with the device
        return probabilities.div_(torch.empty_like(probabilities).exponential_(generator=generator)).argmax(dim=-1)

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the most likely actions (B,)."""
        return outputs.argmax(dim=-1)

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Return the log-probability of ``actions`` (…)."""
        return outputs.log_softmax(dim=-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return the entropy."""
        logs = outputs.log_softmax(dim=-1)
        return -(logs.exp() * logs).sum(dim=-1)

    def encode(self, actions: Tensor) -> Tensor:
        """Return one-hot vectors."""
        return functional.one_hot(actions, self.size).float()


class MultiCategorical(Policy):
    """An action of several parts, each one of some choices, drawn independently; the outputs are their logits.

    Args:
        choices: Choices of each part, each at least 1.

    Example:
        >>> policy, logits = MultiCategorical([2, 3]), torch.tensor([[0.0, 9.0, 9.0, 0.0, 0.0]])
        >>> policy.mode(logits), policy.encode(torch.tensor([1, 2]))
        (tensor([[1, 0]]), tensor([0., 1., 0., 0., 1.]))
    """

    def __init__(self, choices: Sequence[int]) -> None:
        require_positive(num_parts=len(choices), num_choices=choices)
        super().__init__(sum(choices))
        self.parts = [Categorical(number) for number in choices]
        self.choices = list(choices)

    def _each(self, outputs: Tensor) -> Iterator[tuple[Categorical, Tensor]]:
        """Yield each part with its logits."""
        return zip(self.parts, torch.split(outputs, self.choices, dim=-1), strict=True)

    def sample(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Draw actions (B, parts)."""
        return torch.stack([part.sample(logits, generator) for part, logits in self._each(outputs)], dim=-1)

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the most likely actions (B, parts)."""
        return torch.stack([part.mode(logits) for part, logits in self._each(outputs)], dim=-1)

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Return the log-probability of ``actions`` (…, parts), the sum over the parts."""
        pairs = zip(self._each(outputs), actions.unbind(dim=-1), strict=True)
        return torch.stack([part.log_prob(logits, each) for (part, logits), each in pairs]).sum(dim=0)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return the entropy, the sum over the parts."""
        return torch.stack([part.entropy(logits) for part, logits in self._each(outputs)]).sum(dim=0)

    def encode(self, actions: Tensor) -> Tensor:
        """Return one one-hot vector after the other."""
        pairs = zip(self.parts, actions.unbind(dim=-1), strict=True)
        return torch.cat([part.encode(each) for part, each in pairs], dim=-1)


class Gaussian(Policy):
    """A vector of ``size`` independent normal numbers; the outputs are means, the deviations are learned.

    Example:
        >>> policy, means = Gaussian(2), torch.zeros(1, 2)
        >>> round(policy.log_prob(means, torch.zeros(1, 2)).item(), 4)  # −log 2π
        -1.8379
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.log_deviation = nn.Parameter(torch.zeros(size))

    def sample(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Draw actions (B, size)."""
        noise = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype, device=outputs.device)
        return outputs + noise * self.log_deviation.exp()

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the means (B, size)."""
        return outputs

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Return the log-density of ``actions`` (…, size)."""
        distance = (actions - outputs) / self.log_deviation.exp()
        return -(distance.square() / 2 + self.log_deviation + math.log(2 * math.pi) / 2).sum(dim=-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return the entropy, the same in every state."""
        total = (self.log_deviation + math.log(2 * math.pi * math.e) / 2).sum()
        return total.expand(outputs.shape[:-1])

    def encode(self, actions: Tensor) -> Tensor:
        """Return the actions."""
        return actions.float()
