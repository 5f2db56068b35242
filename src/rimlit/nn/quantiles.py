"""Draw from a distribution that is known by some quantiles, and read quantiles from draws."""

from collections.abc import Sequence

import torch
from torch import Tensor


def sample_quantiles(quantiles: Tensor, levels: Sequence[float], uniform: Tensor) -> Tensor:
    """Return the quantile function at ``uniform``: straight between the levels and beyond the outermost.

    Args:
        quantiles: (…, Q), not falling.
        levels: Q levels, rising, between 0 and 1.
        uniform: Numbers from 0 to 1, of a shape that broadcasts with (…).

    Returns:
        (…).

    Example:
        >>> sample_quantiles(torch.tensor([0.0, 2.0]), [0.25, 0.75], torch.tensor([0.5, 1.0]))
        tensor([1., 3.])
    """
    shape = (quantiles[..., 0] + uniform).shape
    table, uniform = quantiles.expand(*shape, -1), uniform.expand(shape).contiguous()
    if len(levels) == 1:
        return table[..., 0]
    at = quantiles.new_tensor(levels)
    place = torch.bucketize(uniform, at).clamp(1, len(levels) - 1)  # the segment's upper end
    share = (uniform - at[place - 1]) / (at[place] - at[place - 1])
    place = place.unsqueeze(-1)
    lower, upper = table.gather(-1, place - 1).squeeze(-1), table.gather(-1, place).squeeze(-1)
    return lower + share * (upper - lower)


def quantiles_of_draws(draws: Tensor, levels: Sequence[float]) -> Tensor:
    """Return quantiles (…, Q) of equally likely draws (S, …): the k-th of S is at the level (k − ½) / S.

    Example:
        >>> quantiles_of_draws(torch.tensor([3.0, 1.0]), [0.25, 0.5])
        tensor([1., 2.])
    """
    number = len(draws)
    ordered = draws.sort(dim=0).values
    found = []
    for level in levels:
        place = min(max(level * number - 0.5, 0.0), number - 1.0)
        below = int(place)
        above = min(below + 1, number - 1)
        found.append(ordered[below] + (place - below) * (ordered[above] - ordered[below]))
    return torch.stack(found, dim=-1)


def stratified_uniform(number: int, shape: Sequence[int], seed: int) -> Tensor:
    """Return numbers from 0 to 1, (number, *shape), the middles of ``number`` equal strata in a random order.

    Args:
        number: Draws, each stratum once.
        shape: Shape of each.
        seed: Decides the order.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand((number, *shape), generator=generator).argsort(dim=0)
    return (order + 0.5) / number
