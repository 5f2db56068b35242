"""A progress bar that ends where the run ends."""

import math

from lightning.pytorch.callbacks import TQDMProgressBar


class ProgressBar(TQDMProgressBar):
    """Lightning's bar; over an endless stream it counts to ``max_steps``.

    Args:
        refresh_rate: Batches between two updates.
    """

    def __init__(self, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate)

    @property
    def total_train_batches(self) -> int | float:
        """Batches of the epoch, or those to ``max_steps`` where the epoch has no end."""
        total = super().total_train_batches
        if math.isinf(total) and self.trainer.max_steps > 0:
            return self.trainer.max_steps * self.trainer.accumulate_grad_batches
        return total

    def get_metrics(self, trainer, pl_module):  # type: ignore[no-untyped-def]
        """Return what the bar shows, without the run's version."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
