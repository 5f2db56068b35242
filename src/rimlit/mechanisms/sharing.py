"""How the mechanisms of a layer share a weight: each has its own, one serves all, or one with a part of their own.

Compiled time loops read the weights that come out, so that any sharing runs in every loop.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from rimlit.checks import require_positive
from rimlit.mechanisms.base import Part


class Sharing(Part, ABC):
    """One weight (inner, outer) for each of M mechanisms, from what is stored.

    A subclass stores what it likes, starts uniform in ±``init_scale``, and gives :meth:`groups`.

    Args:
        num_mechanisms: Mechanisms M, at least 1.
        inner: Features read; 1 for a bias.
        outer: Features written.
        init_scale: Bound of the weights at the start; by default 1/√inner.
    """

    sizes: ClassVar[tuple[str, ...]] = ("num_mechanisms", "inner", "outer", "init_scale")
    is_resizable: ClassVar[bool] = False
    """Whether what is stored serves any number of mechanisms."""

    def __init__(self, num_mechanisms: int, inner: int, outer: int, init_scale: float | None = None) -> None:
        super().__init__()
        self.num_mechanisms = num_mechanisms
        self.inner = inner
        self.outer = outer
        self.init_scale = 1 / math.sqrt(inner) if init_scale is None else init_scale

    @abstractmethod
    def groups(self) -> Tensor:
        """Return the weights (M, inner, outer), or (1, inner, outer) where one serves all mechanisms."""

    def expand(self) -> Tensor:
        """Return the weights (M, inner, outer)."""
        groups = self.groups()
        return groups if len(groups) == self.num_mechanisms else groups.expand(self.num_mechanisms, -1, -1)

    @torch.no_grad()
    def add(self, values: Tensor) -> None:
        """Add ``values`` (outer,) to the weights of every mechanism, in place."""
        for parameter in self.parameters():
            parameter.add_(values)

    def new_weight(self, num_groups: int) -> nn.Parameter:
        """Return a parameter (num_groups, inner, outer) drawn uniformly in ±``init_scale``."""
        weight = torch.empty(num_groups, self.inner, self.outer)
        return nn.Parameter(weight.uniform_(-self.init_scale, self.init_scale))

    def extra_repr(self) -> str:
        """Return the sizes for ``repr``."""
        return f"{self.num_mechanisms}, {self.inner}, {self.outer}"


class IndependentSharing(Sharing):
    """Every mechanism has a weight of its own (the paper's rule for mechanisms).

    Example:
        >>> IndependentSharing(3, 4, 5).expand().shape
        torch.Size([3, 4, 5])
    """

    def __init__(self, num_mechanisms: int, inner: int, outer: int, init_scale: float | None = None) -> None:
        super().__init__(num_mechanisms, inner, outer, init_scale)
        self.weight = self.new_weight(num_mechanisms)

    def groups(self) -> Tensor:
        """See :meth:`Sharing.groups`."""
        return self.weight


class SharedSharing(Sharing):
    """One weight serves all mechanisms: learned initial states alone distinguish them.

    Example:
        >>> shared = SharedSharing(3, 4, 5)
        >>> shared.groups().shape, shared.expand().shape
        (torch.Size([1, 4, 5]), torch.Size([3, 4, 5]))
    """

    is_resizable = True

    def __init__(self, num_mechanisms: int, inner: int, outer: int, init_scale: float | None = None) -> None:
        super().__init__(num_mechanisms, inner, outer, init_scale)
        self.weight = self.new_weight(1)

    def groups(self) -> Tensor:
        """See :meth:`Sharing.groups`."""
        return self.weight


class EmbeddedSharing(SharedSharing):
    """One weight serves all mechanisms, and an embedding of each enters through the bias.

    The bias of mechanism m is b + e_m W with an embedding e_m (E,) of its own and one matrix W (E, outer). Weights
    that are not a bias are shared alone, so that mechanisms differ only by their embedding and their initial
    state. More mechanisms than were trained get embeddings drawn like the learned ones.

    Args:
        num_mechanisms: Mechanisms M.
        inner: Features read; the embedding enters where it is 1.
        outer: Features written.
        init_scale: Bound of the weights at the start.
        embedding_size: Size E of an embedding, at least 1.

    Raises:
        ConfigError: ``embedding_size`` is below 1.

    Example:
        >>> EmbeddedSharing(3, 4, 5).groups().shape, EmbeddedSharing(3, 1, 5).groups().shape
        (torch.Size([1, 4, 5]), torch.Size([3, 1, 5]))
    """

    mechanism_rows: ClassVar = {"embedding": 0}

    def __init__(
        self,
        num_mechanisms: int,
        inner: int,
        outer: int,
        init_scale: float | None = None,
        *,
        embedding_size: int = 8,
    ) -> None:
        super().__init__(num_mechanisms, inner, outer, init_scale)
        require_positive(embedding_size=embedding_size)
        self.embedding = self.map = None
        if inner == 1:  # e_m W varies as much as the bias of an independent mechanism
            self.embedding = nn.Parameter(torch.empty(num_mechanisms, embedding_size).uniform_(-1, 1))
            bound = self.init_scale * math.sqrt(3 / embedding_size)
            self.map = nn.Parameter(torch.empty(1, embedding_size, outer).uniform_(-bound, bound))

    def groups(self) -> Tensor:
        """See :meth:`Sharing.groups`."""
        if self.embedding is None or self.map is None:
            return self.weight
        return self.weight + (self.embedding @ self.map[0]).unsqueeze(1)

    @torch.no_grad()
    def add(self, values: Tensor) -> None:
        """See :meth:`Sharing.add`."""
        self.weight.add_(values)


class LowRankSharing(Sharing):
    """One weight serves all mechanisms, and each adds a product of two thin matrices of its own: W + A_m B_m.

    Every mechanism has rank · (inner + outer) numbers of its own in place of inner · outer.

    Args:
        num_mechanisms: Mechanisms M.
        inner: Features read.
        outer: Features written.
        init_scale: Bound of the weights at the start; W and A_m B_m each start with half of its variance.
        rank: Columns of A_m and rows of B_m, at least 1; never more than ``inner`` or ``outer``.

    Raises:
        ConfigError: ``rank`` is below 1.

    Example:
        >>> low_rank = LowRankSharing(3, 4, 5, rank=2)
        >>> low_rank.expand().shape, [tuple(weight.shape) for weight in low_rank.parameters()]
        (torch.Size([3, 4, 5]), [(1, 4, 5), (3, 4, 2), (3, 2, 5)])
    """

    def __init__(
        self, num_mechanisms: int, inner: int, outer: int, init_scale: float | None = None, *, rank: int = 4
    ) -> None:
        super().__init__(num_mechanisms, inner, outer, init_scale)
        require_positive(rank=rank)
        rank = min(rank, inner, outer)
        self.weight = self.new_weight(1)
        bound = (3 / rank) ** 0.5  # a row of A_m then has length 1
        self.left = nn.Parameter(torch.empty(num_mechanisms, inner, rank).uniform_(-bound, bound))
        bound = self.init_scale
        self.right = nn.Parameter(torch.empty(num_mechanisms, rank, outer).uniform_(-bound, bound))
        with torch.no_grad():
            self.weight.mul_(0.5**0.5)
            self.right.mul_(0.5**0.5)

    def groups(self) -> Tensor:
        """See :meth:`Sharing.groups`."""
        return torch.baddbmm(self.weight.expand(self.num_mechanisms, -1, -1), self.left, self.right)

    @torch.no_grad()
    def add(self, values: Tensor) -> None:
        """See :meth:`Sharing.add`."""
        self.weight.add_(values)
