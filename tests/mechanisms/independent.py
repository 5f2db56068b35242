"""A RIM layer once more, from the equations: loops over samples, steps, mechanisms and heads, in plain torch.

It reads the weights of a RIM with one layer, one input slot and hard top-K, and shares no code with the package.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rimlit import RIM

Cell = Callable[[int, Tensor, list[Tensor]], tuple[list[Tensor], Tensor]]
"""(mechanism, what is read, its state) → (the candidate state, the gate for new content)."""
Talk = Callable[[list[Tensor], list[Tensor], list[bool], list[Tensor], Any], tuple[list[Tensor], Any]]
"""(candidates, old states, active, gates, carried) → (what is added, carried)."""


def silent(
    candidates: list[Tensor], old: list[Tensor], active: list[bool], gates: list[Tensor], carried: Any
) -> tuple[list[Tensor], Any]:
    return [torch.zeros_like(candidate) for candidate in candidates], carried


def gru(weight: Tensor, bias: Tensor, read: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """One GRU cell of d features: ``read`` (3·d) and ``weight`` (d, 3·d) have reset, update, new; bias (4·d)."""
    size = len(hidden)
    own = [weight[:, part * size : (part + 1) * size].T @ hidden for part in range(3)]
    b = [bias[part * size : (part + 1) * size] for part in range(4)]
    r = torch.sigmoid(read[:size] + own[0] + b[0])
    z = torch.sigmoid(read[size : 2 * size] + own[1] + b[1])
    n = torch.tanh(read[2 * size :] + b[2] + r * (own[2] + b[3]))
    return (1 - z) * n + z * hidden, 1 - z


def gru_of(rim: RIM) -> Cell:
    hidden, bias = rim.layers[0].dynamics.weights()

    def cell(m: int, read: Tensor, state: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        new, gate = gru(hidden[m], bias[m], read, state[0])
        return [new], gate

    return cell


def run(rim: RIM, inputs: Tensor, cell: Cell, talk: Talk = silent, carried: Any = None) -> Tensor:
    """Return the features (B, T, H) of a RIM whose state is the hidden one alone."""
    layer, mechanisms = rim.layers[0], range(rim.num_mechanisms)
    query, cell_input = layer.input_query.expand(), layer.dynamics.input.expand()
    key, value = layer.input_key.expand(), layer.input_value.expand()
    samples = []
    for sample in inputs:
        hidden = [rim.initial.hidden[0, m] for m in mechanisms]
        memory, steps = carried, []
        for x in sample:
            scores = [(query[m].T @ hidden[m]) @ (key[m].T @ x) / math.sqrt(key.shape[-1]) for m in mechanisms]
            order = sorted(mechanisms, key=lambda m: -scores[m].item())
            active = [m in order[: rim.num_active] for m in mechanisms]
            found = [
                cell(m, cell_input[m].T @ (torch.sigmoid(scores[m]) * (value[m].T @ x)), [hidden[m]])
                for m in mechanisms
            ]
            candidates, gates = [new[0] for new, _ in found], [gate for _, gate in found]
            added, memory = talk(candidates, hidden, active, gates, memory)
            hidden = [candidates[m] + added[m] if active[m] else hidden[m] for m in mechanisms]
            steps.append(torch.cat(hidden))
        samples.append(torch.stack(steps))
    return torch.stack(samples)


def gradients(rim: RIM, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradient of every parameter by its name."""
    names = [name for name, _ in rim.named_parameters()]
    found = torch.autograd.grad(loss, [*rim.parameters()], materialize_grads=True)
    return dict(zip(names, found, strict=True))


def require_same(rim: RIM, features: Tensor, expected: Tensor, more: tuple[Any, Any] = (0, 0)) -> None:
    """Compare features and the gradients of all parameters; ``more`` is what else either loss holds."""
    torch.testing.assert_close(features, expected)
    weight = torch.linspace(-1, 2, features.numel(), dtype=features.dtype).view_as(features)
    found, wanted = (
        gradients(rim, (weight * each).sum() + other)
        for each, other in zip((features, expected), more, strict=True)
    )
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], msg=lambda text, name=name: f"{name}: {text}")
