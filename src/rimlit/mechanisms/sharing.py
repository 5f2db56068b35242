"""How the mechanisms of a layer share a weight: each has its own, or one serves all."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from rimlit.mechanisms.base import Part


class Sharing(Part, ABC):
    """One weight (inner, outer) for each of M mechanisms, from what is stored.

    A subclass stores what it likes, starts uniform in ±``init_scale``, and gives :meth:`groups`.

    Args:
        num_mechanisms: Mechanisms M, at least 1.
        inner: Features read.
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
        return self.groups().expand(self.num_mechanisms, -1, -1)

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
    """One weight serves all mechanisms: learned initial states alone tell them apart.

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
