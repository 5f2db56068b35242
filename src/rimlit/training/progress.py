"""A progress bar that ends where the run ends."""

import math

from lightning.pytorch.callbacks import TQDMProgressBar

from rimlit.data import DataModule


class ProgressBar(TQDMProgressBar):
    """Lightning's bar; over an endless stream it counts to ``max_steps``, in environments to the steps of the run.

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

    @property
    def _progress(self) -> tuple[int, int] | None:
        """Progress as counted by the data module."""
        data = getattr(self.trainer, "datamodule", None)
        return data.progress if isinstance(data, DataModule) else None

    def on_train_epoch_start(self, trainer, *_):  # type: ignore[no-untyped-def]
        """Start the epoch's bar, or continue the one of the whole run."""
        if self._progress is None:
            super().on_train_epoch_start(trainer, *_)
        else:
            done, self.train_progress_bar.total = self._progress
            self.train_progress_bar.initial = self.train_progress_bar.initial or done
            self.train_progress_bar.n = done  # below `initial` the bar would show a negative rate
            self.train_progress_bar.unit = " steps"
            self.train_progress_bar.set_description("Environment steps", refresh=False)

    def on_train_batch_end(self, trainer, pl_module, *_):  # type: ignore[no-untyped-def]
        """Count the batch."""
        if self._progress is None:
            super().on_train_batch_end(trainer, pl_module, *_)

    def on_train_epoch_end(self, trainer, pl_module):  # type: ignore[no-untyped-def]
        """Show the epoch's metrics."""
        if self._progress is not None:
            self.train_progress_bar.n = self._progress[0]
        super().on_train_epoch_end(trainer, pl_module)

    def get_metrics(self, trainer, pl_module):  # type: ignore[no-untyped-def]
        """Return the metrics in the bar, without the run's version; Lightning would print "nan.0"."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {name: "undefined" if value != value else value for name, value in metrics.items()}
