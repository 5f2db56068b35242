"""Balances: they keep the same mechanisms from always winning the competition, or add noise to it."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from rimlit.mechanisms.base import Part, part_factory


class Balance(Part):
    """Influence on who wins. A subclass gives any of the methods; by default none has an effect.

    A time loop adds the offset and returns the relevance that a penalty reads. Penalties and counts follow a
    forward in training with gradients. Of padded sequences they get the steps that count, all of them as T with
    B = 1.

    Args:
        num_mechanisms: Mechanisms M.
        num_active: The most mechanisms that are active in a step.
    """

    sizes: ClassVar[tuple[str, ...]] = ("num_mechanisms", "num_active")
    several: ClassVar[str | None] = "combined"

    def __init__(self, num_mechanisms: int, num_active: int) -> None:
        super().__init__()
        self.num_mechanisms = num_mechanisms
        self.num_active = num_active

    def offset(self, num_steps: int, batch_size: int) -> Tensor | None:
        """Return what is added to the relevance for the ranking only, (T or 1, M, B or 1), or None.

        It carries no gradient; −∞ keeps a mechanism inactive.
        """
        return None

    def penalty(self, relevance: Tensor, active: Tensor) -> Tensor | None:
        """Return a term of the loss, a scalar, from the relevance in a training forward, or None.

        Args:
            relevance: Log-odds of reading the input against null, before any offset (T, M, B), with a gradient.
            active: Who was active (T, M, B), bool.
        """
        return None

    def observe(self, active: Tensor) -> None:
        """Note who was active (T, M, B), bool, in a training forward."""

    def after_step(self, layer: nn.Module, rate: float) -> None:
        """Run after each optimiser step.

        Args:
            layer: The :class:`rimlit.mechanisms.RIMLayer` that this part belongs to.
            rate: The learning rate as a share of the highest of its schedule, 0 to 1.
        """

    def resize(self, num_mechanisms: int) -> None:
        """Serve another number of mechanisms, whose sizes :meth:`rimlit.RIM.with_mechanisms` has set."""

    @property
    def has_offset(self) -> bool:
        """Whether there is an offset in the present mode, training or evaluation."""
        return type(self).offset is not Balance.offset

    @property
    def has_penalty(self) -> bool:
        """Whether there is a penalty."""
        return type(self).penalty is not Balance.penalty

    @property
    def has_counts(self) -> bool:
        """Whether it notes who was active."""
        return type(self).observe is not Balance.observe

    @property
    def is_noisy(self) -> bool:
        """Whether the offset of training is drawn at random and that of evaluation is not there."""
        return False

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self._arguments.items() if name not in self.sizes)


class NoBalance(Balance):
    """No influence (the paper)."""


class CombinedBalance(Balance):
    """Several balances at once, what a list stands for: offsets and penalties are added up.

    Args:
        num_mechanisms: Mechanisms M.
        num_active: The most mechanisms that are active in a step.
        parts: Balances, each as the RIM takes one.

    Example:
        >>> from rimlit import RIM
        >>> both = ["loss_free_bias", {"z_loss": {"coefficient": 0.1}}]
        >>> rim = RIM(3, 20, num_mechanisms=5, num_active=2, balance=both)
        >>> [type(part).__name__ for part in rim.layers[0].balance.parts]
        ['LossFreeBias', 'ZLoss']
    """

    def __init__(self, num_mechanisms: int, num_active: int, *, parts: Sequence[Any] = ()) -> None:
        super().__init__(num_mechanisms, num_active)
        default = {"class_path": "none", "init_args": {}}
        self.parts = nn.ModuleList(
            part_factory(part, Balance, f"balance[{index}]", default)(num_mechanisms, num_active)
            for index, part in enumerate(parts)
        )

    @property
    def balances(self) -> list[Balance]:
        """The balances, in their order."""
        return cast("list[Balance]", list(self.parts))

    def offset(self, num_steps: int, batch_size: int) -> Tensor | None:
        """See :meth:`Balance.offset`."""
        return added_up(part.offset(num_steps, batch_size) for part in self.balances)

    def penalty(self, relevance: Tensor, active: Tensor) -> Tensor | None:
        """See :meth:`Balance.penalty`."""
        return added_up(part.penalty(relevance, active) for part in self.balances)

    def observe(self, active: Tensor) -> None:
        """See :meth:`Balance.observe`."""
        for part in self.balances:
            part.observe(active)

    def after_step(self, layer: nn.Module, rate: float) -> None:
        """See :meth:`Balance.after_step`."""
        for part in self.balances:
            part.after_step(layer, rate)

    def resize(self, num_mechanisms: int) -> None:
        """See :meth:`Balance.resize`."""
        for part in self.balances:
            part.resize(num_mechanisms)

    @property
    def has_offset(self) -> bool:
        """See :attr:`Balance.has_offset`."""
        return any(part.has_offset for part in self.balances)

    @property
    def has_penalty(self) -> bool:
        """See :attr:`Balance.has_penalty`."""
        return any(part.has_penalty for part in self.balances)

    @property
    def has_counts(self) -> bool:
        """See :attr:`Balance.has_counts`."""
        return any(part.has_counts for part in self.balances)

    @property
    def is_noisy(self) -> bool:
        """See :attr:`Balance.is_noisy`."""
        return any(part.is_noisy for part in self.balances)


class Noise(Balance, ABC):
    """An offset that is drawn in training alone. A subclass gives :meth:`draw`."""

    def __init__(self, num_mechanisms: int, num_active: int) -> None:
        super().__init__(num_mechanisms, num_active)
        self.place: Tensor
        self.register_buffer("place", torch.empty(0), persistent=False)  # knows device and type

    @abstractmethod
    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """Return an offset of this shape, with device and type of ``self.place``."""

    def offset(self, num_steps: int, batch_size: int) -> Tensor | None:
        """See :meth:`Balance.offset`."""
        return self.draw((num_steps, self.num_mechanisms, batch_size)) if self.training else None

    @property
    def has_offset(self) -> bool:
        """See :attr:`Balance.has_offset`."""
        return self.training

    @property
    def is_noisy(self) -> bool:
        """See :attr:`Balance.is_noisy`."""
        return True


class Counting(Balance, ABC):
    """Counts over all processes in how many steps each mechanism was active. A subclass gives :meth:`follow`.

    The counts are saved, so that a run which was stopped between two steps is resumed bit for bit.
    """

    def __init__(self, num_mechanisms: int, num_active: int) -> None:
        super().__init__(num_mechanisms, num_active)
        self.counts: Tensor
        self.register_buffer("counts", torch.zeros(num_mechanisms + 1, dtype=torch.long))  # last: steps

    def observe(self, active: Tensor) -> None:
        """See :meth:`Balance.observe`."""
        num_steps, _, batch_size = active.shape
        self.counts[:-1] += active.sum(dim=(0, 2))
        self.counts[-1] += num_steps * batch_size

    def resize(self, num_mechanisms: int) -> None:
        """See :meth:`Balance.resize`."""
        self.counts = self.counts.new_zeros(num_mechanisms + 1)

    def after_step(self, layer: nn.Module, rate: float) -> None:
        """See :meth:`Balance.after_step`."""
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(self.counts)
        self.follow(self.counts[:-1].clone(), self.counts[-1].clone(), layer, rate)
        self.counts.zero_()

    @abstractmethod
    def follow(self, counts: Tensor, total: Tensor, layer: nn.Module, rate: float) -> None:
        """Follow an optimiser step.

        Args:
            counts: In how many steps of all samples and processes each mechanism was active since the last
                optimiser step, (M,) integers.
            total: How many steps these were, a scalar.
            layer: As in :meth:`Balance.after_step`.
            rate: As in :meth:`Balance.after_step`.
        """


def resized(values: Tensor, size: int) -> Tensor:
    """Return the first ``size`` of ``values``, or all of them and zeros."""
    return functional.pad(values, (0, size - len(values))).clone()


def added_up(terms: Iterable[Tensor | None]) -> Tensor | None:
    """Return the sum of the terms that there are, or None."""
    found = [term for term in terms if term is not None]
    return functools.reduce(torch.add, found) if found else None
