"""One step of an LSTM whose input is known before the loop, but for what it read from a memory."""

import torch
from torch import Tensor, nn


class LSTMController(nn.Module):
    """An LSTM cell that reads an input and vectors from a memory.

    Args:
        input_size: Features of the input.
        read_size: Features read from the memory.
        hidden_size: Width.
        forget_bias: What is added to the forget gates' bias at the start.

    Example:
        >>> controller = LSTMController(3, 4, 5)
        >>> projected = controller.project(torch.ones(2, 3))
        >>> hidden, memory = controller(projected, torch.ones(2, 4), torch.zeros(2, 5), torch.zeros(2, 5))
        >>> hidden.shape
        torch.Size([2, 5])
    """

    def __init__(self, input_size: int, read_size: int, hidden_size: int, forget_bias: float = 0.0) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.project = nn.Linear(input_size, 4 * hidden_size)
        self.recur = nn.Linear(read_size + hidden_size, 4 * hidden_size, bias=False)
        for parameter in self.parameters():  # as nn.LSTM starts
            nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5)
        with torch.no_grad():
            self.project.bias[hidden_size : 2 * hidden_size] += forget_bias

    def forward(self, projected: Tensor, reads: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden and memory after a step, each (B, hidden_size).

        Args:
            projected: What :attr:`project` made of the input, (B, 4·hidden_size).
            reads: (B, read_size).
            hidden: (B, hidden_size).
            memory: (B, hidden_size): the cell's own, not the one that is read.
        """
        gates = projected + self.recur(torch.cat([reads, hidden], dim=-1))
        size = self.hidden_size
        enter_forget, new, output = torch.split(gates, [2 * size, size, size], dim=-1)
        enter, forget = enter_forget.sigmoid().chunk(2, dim=-1)
        memory = forget * memory + enter * new.tanh()
        return output.sigmoid() * memory.tanh(), memory
