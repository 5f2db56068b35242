"""A linear map per group: the parameters that belong to one mechanism each."""

import math

import torch
from torch import Tensor, nn


class GroupedLinear(nn.Module):
    """Apply to each of ``num_groups`` groups a linear map of its own.

    Args:
        num_groups: Groups, at least 1. One group serves a map that all mechanisms share.
        input_size: Features read by each group.
        output_size: Features written by each group.
        bias: Whether each group adds a bias.
        init_scale: Weights and biases start uniform in ±``init_scale``; by default 1/√input_size.

    Example:
        >>> GroupedLinear(3, 4, 5)(torch.ones(3, 2, 4)).shape
        torch.Size([3, 2, 5])
    """

    def __init__(
        self,
        num_groups: int,
        input_size: int,
        output_size: int,
        *,
        bias: bool = False,
        init_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.init_scale = 1 / math.sqrt(input_size) if init_scale is None else init_scale
        self.weight = nn.Parameter(torch.empty(num_groups, input_size, output_size))
        self.bias = nn.Parameter(torch.empty(num_groups, output_size)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters again."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -self.init_scale, self.init_scale)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (groups, rows, input_size) to (groups, rows, output_size)."""
        if self.bias is None:
            return torch.bmm(inputs, self.weight)
        return torch.baddbmm(self.bias[:, None], inputs, self.weight)
