"""Stop a run before a loss, a gradient or a weight that is not finite reaches an update."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, distributed
from torch.optim import Optimizer

from rimlit.errors import NonFiniteError


class FiniteGuard(L.Callback):
    """End the run, on every process, where the gradient of an update is NaN or infinite.

    A loss that is not finite makes its gradients so, and an update with a finite gradient from finite weights
    leaves finite weights unless it overflows, which the next step's gradients and the checkpoints' own check tell.
    Under ``16-mixed`` the loss scale shrinks at such steps, and the run ends when it has become tiny.

    Args:
        patience: Consecutive steps that may be left out before the run ends, at least 0.

    Raises:
        NonFiniteError: It happened once more than ``patience`` allows.
    """

    def __init__(self, *, patience: int = 0) -> None:
        if patience < 0:
            raise ValueError(f"patience must be at least 0; got patience={patience}.")
        self.patience = patience
        self._in_a_row = 0
        self._loss: Tensor | None = None

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Keep the loss for the message."""
        self._loss = loss.detach()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at the gradients, which Lightning has unscaled and not yet clipped."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            self._watch_scale(trainer)
            return
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        is_bad = ~norm.isfinite()
        if self._loss is not None:
            is_bad = is_bad | ~self._loss.isfinite()
        if trainer.world_size > 1:  # averaged gradients agree; parameters of FSDP do not
            flag = is_bad.to(torch.int32)
            distributed.all_reduce(flag, distributed.ReduceOp.MAX)
            is_bad = flag.bool()
        if not is_bad:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._in_a_row > self.patience:
            raise NonFiniteError(self._describe(trainer, pl_module, optimizer, norm))
        for parameter in pl_module.parameters():
            parameter.grad = None  # the optimiser passes over it: nothing changes

    def _watch_scale(self, trainer: L.Trainer) -> None:
        scaler: Any = trainer.precision_plugin.scaler  # type: ignore[attr-defined]
        scale = scaler.get_scale()
        if scale < 2.0**-14:
            raise NonFiniteError(
                f"The loss scale has collapsed to {scale:g} at step {trainer.global_step}: gradients are infinite "
                "whatever their scale. Lower the learning rate, clip, or use bf16-mixed."
            )

    def _describe(self, trainer: L.Trainer, task: L.LightningModule, optimizer: Optimizer, norm: Tensor) -> str:
        named = [name for name, weight in task.named_parameters() if not weight.isfinite().all()]
        what = f"weight {named[0]} is" if named else "gradient is" if not norm.isfinite() else "loss is"
        loss = "unknown" if self._loss is None else f"{self._loss.item():g}"
        rates = ", ".join(f"{group['lr']:g}" for group in optimizer.param_groups)
        return (
            f"The {what} not finite at step {trainer.global_step} (epoch {trainer.current_epoch}, batch "
            f"{trainer.fit_loop.epoch_loop.batch_idx}, process {trainer.global_rank}): loss {loss}, gradient norm "
            f"{norm.item():g}, learning rate {rates}. Nothing was updated; the checkpoints hold finite steps."
        )
