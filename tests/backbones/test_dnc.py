"""The differentiable neural computer, against its equations written out."""

import torch
from torch import Tensor
from torch.nn import functional

from rimlit.backbones import DNC
from rimlit.backbones.dnc import DNCState, allocation
from tests.conftest import random_tensor

WORD, HEADS = 3, 2


def content(memory: Tensor, key: Tensor, strength: Tensor) -> Tensor:
    return (strength * torch.stack([functional.cosine_similarity(key, row, dim=0) for row in memory])).softmax(
        dim=0
    )


def written_out(dnc: DNC, hidden: Tensor, state: DNCState) -> tuple[Tensor, ...]:
    """Memory, usage, link, precedence and weights after a step, for one sample and what the controller emits."""
    vectors, scalars = dnc.vectors(hidden).view(-1, WORD), dnc.scalars(hidden)
    strengths = 1 + functional.softplus(scalars[: HEADS + 1])
    free, (allocate, write) = (
        scalars[HEADS + 1 : 2 * HEADS + 1].sigmoid(),
        scalars[2 * HEADS + 1 : -3 * HEADS].sigmoid(),
    )
    modes = scalars[-3 * HEADS :].view(HEADS, 3).softmax(dim=-1)
    locations = len(state.usage)

    usage = torch.zeros_like(state.usage)
    for i in range(locations):
        retained = torch.stack([1 - free[head] * state.read_weights[head, i] for head in range(HEADS)]).prod()
        old, last = state.usage[i], state.write_weights[i]
        usage[i] = (old + last - old * last) * retained
    free_weights, product = torch.zeros_like(usage), torch.tensor(1.0, dtype=usage.dtype)
    for i in usage.argsort(stable=True):
        free_weights[i] = (1 - usage[i]) * product
        product = product * usage[i]
    found = content(state.memory, vectors[HEADS], strengths[HEADS])
    write_weights = write * (allocate * free_weights + (1 - allocate) * found)
    erase, add = vectors[HEADS + 1].sigmoid(), vectors[HEADS + 2]
    memory = state.memory * (1 - torch.outer(write_weights, erase)) + torch.outer(write_weights, add)

    link = torch.zeros_like(state.link)
    for i in range(locations):
        for j in range(locations):
            if i != j:
                link[i, j] = (1 - write_weights[i] - write_weights[j]) * state.link[i, j]
                link[i, j] += write_weights[i] * state.precedence[j]
    precedence = (1 - write_weights.sum()) * state.precedence + write_weights
    read_weights = torch.stack(
        [
            modes[head, 0] * (link.T @ state.read_weights[head])
            + modes[head, 1] * content(memory, vectors[head], strengths[head])
            + modes[head, 2] * (link @ state.read_weights[head])
            for head in range(HEADS)
        ]
    )
    return memory, usage, link, precedence, write_weights, read_weights, (read_weights @ memory).flatten()


def test_a_step_follows_the_equations() -> None:
    dnc = DNC(4, 8, num_locations=5, word_size=WORD, num_read_heads=HEADS).double()
    inputs = 2 * random_tensor(1, 6, 4, seed=1, dtype=torch.float64)
    # an empty memory has no direction: the cosine's guard against a division by 0 would show
    state = dnc.initial_state(1)._replace(memory=random_tensor(1, 5, WORD, seed=2, dtype=torch.float64))
    for step in range(6):
        previous = state
        _, state = dnc(inputs[:, step : step + 1], state)
        expected = written_out(dnc, state.hidden[0], DNCState(*(part[0] for part in previous)))
        for part, other in zip(state[2:], expected, strict=True):
            torch.testing.assert_close(part[0], other, rtol=1e-5, atol=5e-6)


def test_free_space_goes_to_the_least_used_location_and_ties_to_the_lowest_index() -> None:
    torch.testing.assert_close(allocation(torch.zeros(1, 3)), torch.tensor([[1.0, 0.0, 0.0]]), rtol=0, atol=2e-6)
    torch.testing.assert_close(allocation(torch.ones(1, 3)), torch.zeros(1, 3))
    usage = torch.tensor([[0.9, 0.5, 0.2]])
    torch.testing.assert_close(allocation(usage), torch.tensor([[0.1 * 0.5 * 0.2, 0.5 * 0.2, 0.8]]))


def test_weights_and_links_stay_within_their_bounds_over_a_long_sequence() -> None:
    dnc = DNC(3, 8, num_locations=5, word_size=2)
    with torch.no_grad():
        _, state = dnc(5 * random_tensor(2, 400, 3, seed=1))
    for part in (state.usage, state.link, state.precedence, state.write_weights, state.read_weights):
        assert part.min() >= -1e-6
        assert part.max() <= 1 + 1e-5
    for part in (state.precedence, state.write_weights, state.read_weights, state.link, state.link.mT):
        assert part.sum(dim=-1).max() <= 1 + 1e-5


def test_a_tracer_gets_the_same_allocation_without_a_sort() -> None:
    usage = torch.cat([random_tensor(3, 6).sigmoid(), torch.tensor([[0.5, 0.2, 0.5, 0.5, 0.2, 1.0]])])  # with ties
    traced = torch.export.export(_Allocation(), (usage,)).module()
    assert not any("sort" in str(node.target) for node in traced.graph.nodes)
    torch.testing.assert_close(traced(usage), allocation(usage))


class _Allocation(torch.nn.Module):
    def forward(self, usage: Tensor) -> Tensor:
        return allocation(usage)
