"""Learning-rate schedules that end with the run."""

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rimlit.checks import require_at_least, require_share
from rimlit.errors import ConfigError


class _ToTheEnd(LRScheduler):
    """A schedule that ends with the run.

    Args:
        optimizer: Optimiser whose rates it sets.
        final_ratio: Rate at the end over the first, 0 to 1.
        total_steps: Steps of the schedule in all.
    """

    def __init__(self, optimizer: Optimizer, final_ratio: float, total_steps: int | None) -> None:
        require_share(final_ratio=final_ratio)
        if total_steps is None or total_steps < 1:
            raise ConfigError(
                f"{type(self).__name__} needs a run of known length; got total_steps={total_steps}. "
                "Set trainer.max_steps or trainer.max_epochs."
            )
        self.final_ratio = final_ratio
        self.total_steps = total_steps
        super().__init__(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return the state without the run's length: a resumed run may be longer."""
        return {name: value for name, value in super().state_dict().items() if name != "total_steps"}

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0 to 1."""
        return min(1.0, self.last_epoch / self.total_steps)


class LinearDecay(_ToTheEnd):
    """Lower the rate linearly to the end of the run.

    Args:
        optimizer: Optimiser whose rates are those of the start.
        final_ratio: Rate at the end over that at the start, 0 to 1.
        total_steps: How often it advances in all; the task fills in the run's own number.

    Raises:
        ConfigError: A value is out of its range.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> schedule = LinearDecay(optimizer, total_steps=4)
        >>> optimizer.step(), schedule.step(), schedule.get_last_lr()
        (None, None, [0.75])
    """

    def __init__(self, optimizer: Optimizer, *, final_ratio: float = 0.0, total_steps: int | None = None) -> None:
        super().__init__(optimizer, final_ratio, total_steps)

    def get_lr(self) -> list[float | Tensor]:
        """Return the rates of the step to come."""
        return [base * (1 - (1 - self.final_ratio) * self.progress) for base in self.base_lrs]


class WarmupCosine(_ToTheEnd):
    """Raise the rate linearly, then lower it along half a cosine to the last step of the run.

    Args:
        optimizer: Optimiser whose rates are the peak.
        warmup_steps: Optimiser steps of the linear rise, at least 0.
        final_ratio: Rate at the end over the peak, 0 to 1.
        total_steps: Optimiser steps in all; the task fills in the run's own number.

    Raises:
        ConfigError: A value is out of its range.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> schedule = WarmupCosine(optimizer, warmup_steps=2, total_steps=10)
        >>> schedule.get_last_lr()
        [0.5]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        warmup_steps: int = 0,
        final_ratio: float = 0.0,
        total_steps: int | None = None,
    ) -> None:
        require_at_least(0, warmup_steps=warmup_steps)
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, final_ratio, total_steps)

    def get_lr(self) -> list[float | Tensor]:
        """Return the rates of the step to come."""
        rise = min(1.0, (self.last_epoch + 1) / max(self.warmup_steps, 1))
        fall = self.final_ratio + (1 - self.final_ratio) * (1 + math.cos(math.pi * self.progress)) / 2
        return [base * rise * fall for base in self.base_lrs]
