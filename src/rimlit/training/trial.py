"""One sequence through the whole model before a run begins: a task that does not fit its data is refused."""

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from rimlit.causes import is_out_of_memory, place_in_user_code
from rimlit.data import DataModule
from rimlit.errors import ConfigError, RimlitError
from rimlit.tasks import Task


class TrialBatch(L.Callback):
    """Run the first sample of training and validation through model, loss and metrics, before anything is written.

    It runs without gradients, in evaluation mode, and draws no random number of the run. Tasks whose steps are not
    those of :mod:`rimlit.tasks` are left alone, and so are models that a strategy shards.

    Raises:
        ConfigError: The task does not fit the data: other shapes, other types, classes out of range.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Run the trial."""
        data = getattr(trainer, "datamodule", None)
        is_whole = type(trainer.strategy) in (SingleDeviceStrategy, DDPStrategy)
        if not (isinstance(pl_module, Task) and isinstance(data, DataModule) and is_whole):
            return
        was_training = pl_module.training
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad(), trainer.precision_plugin.forward_context():
            pl_module.eval()
            try:
                for split in ("train", "val"):
                    batch = data.example(split)
                    if batch is not None:
                        batch = trainer.precision_plugin.convert_input(batch)
                        pl_module.trial(trainer.strategy.batch_to_device(batch))
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                is_known = isinstance(error, RimlitError) or place_in_user_code(error)  # and needs no other words
                if is_known or is_out_of_memory(error):
                    raise
                raise ConfigError(
                    f"{type(pl_module).__name__} does not fit the data of {type(data).__name__}: "
                    f"{type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}."
                ) from error
            finally:
                pl_module.train(was_training)
