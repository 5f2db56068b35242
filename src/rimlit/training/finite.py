"""Stop a run before a loss, a gradient or a weight that is not finite reaches an update."""

import logging
from typing import Any

import lightning as L
import torch
from torch import Tensor, distributed
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from rimlit.checks import require_at_least
from rimlit.errors import NonFiniteError

log = logging.getLogger(__name__)

SMALLEST_SCALE = 2.0**-14


class FiniteGuard(L.Callback):
    """End the run, on every process, where an update would be made with numbers that are NaN or infinite.

    Before each update it looks at the losses of its batches, the gradients and the weights. Under ``16-mixed``
    gradients overflow now and then, and the loss scale shrinks in response: there the run ends when the scale has
    collapsed. Weights that an update makes non-finite are found before the next one, and no checkpoint is written
    with them.

    Args:
        skip: Updates that may be left out before the run ends, at least 0; a weight that is not finite ends it at
            once.

    Raises:
        NonFiniteError: It happened once more than ``skip`` allows.
        ConfigError: ``skip`` is below 0.
    """

    def __init__(self, *, skip: int = 0) -> None:
        require_at_least(0, skip=skip)
        self.skip = skip
        self.skipped = 0
        self._losses: list[Tensor] = []

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        """Keep the loss until the update."""
        self._losses.append(loss.detach())

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Check losses, gradients and weights; Lightning has unscaled the gradients and not yet clipped them."""
        losses, self._losses = self._losses, []
        weights: list[Tensor] = [weight for group in optimizer.param_groups for weight in group["params"]]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        looked_at: list[list[Tensor]] = [losses, gradients, weights]
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            self._require_scale(trainer)
            looked_at = [[], [], weights]
        is_good = _total([tensor for group in looked_at for tensor in group]).isfinite()
        if trainer.world_size > 1:
            agreed = is_good.to(torch.int32)
            distributed.all_reduce(agreed, distributed.ReduceOp.MIN)
            is_good = agreed.bool()
        if is_good:  # one synchronisation with the device per step
            return
        # a sum of finite numbers may overflow
        are_finite = torch.tensor([all(bool(tensor.isfinite().all()) for tensor in group) for group in looked_at])
        everyone = self._of_everyone(trainer, are_finite.to(is_good.device))
        if everyone.all():
            return
        message = self._describe(trainer, pl_module, optimizer, losses, get_total_norm(gradients), everyone)
        are_weights_finite = bool(everyone[:, 2].all())
        if self.skipped >= self.skip or not are_weights_finite:
            raise NonFiniteError(f"{message} Nothing was updated; the checkpoints hold finite steps.")
        self.skipped += 1
        log.warning("%s The update is left out, %d of %d that may be.", message, self.skipped, self.skip)
        for weight in weights:
            weight.grad = None  # the optimiser skips it: nothing changes

    def state_dict(self) -> dict[str, Any]:
        """Return the number of skipped updates."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of skipped updates."""
        self.skipped = state_dict["skipped"]

    @staticmethod
    def _of_everyone(trainer: L.Trainer, are_finite: Tensor) -> Tensor:
        """Return whether loss, gradient and weights are finite, a row for each process."""
        if trainer.world_size == 1:
            return are_finite[None]
        rows = [torch.empty_like(are_finite, dtype=torch.int32) for _ in range(trainer.world_size)]
        distributed.all_gather(rows, are_finite.to(torch.int32))
        return torch.stack(rows).bool()

    @staticmethod
    def _require_scale(trainer: L.Trainer) -> None:
        scaler: Any = trainer.precision_plugin.scaler  # type: ignore[attr-defined]
        scale = scaler.get_scale()
        if scale < SMALLEST_SCALE:
            raise NonFiniteError(
                f"The loss scale has collapsed to {scale:g} at step {trainer.global_step}: gradients are infinite "
                "whatever their scale. Lower the learning rate, clip, or use bf16-mixed."
            )

    @staticmethod
    def _describe(
        trainer: L.Trainer,
        task: L.LightningModule,
        optimizer: Optimizer,
        losses: list[Tensor],
        norm: Tensor,
        everyone: Tensor,
    ) -> str:
        named = [name for name, weight in task.named_parameters() if not weight.isfinite().all()]
        of_loss, _, of_weights = everyone.all(dim=0).tolist()
        what = "loss is" if not of_loss else "gradient is"
        if not of_weights:
            what = f"weight {named[0]} is" if named else "weights are"
        column = 2 if not of_weights else 0 if not of_loss else 1
        processes = [str(rank) for rank, is_good in enumerate(everyone[:, column].tolist()) if not is_good]
        last = trainer.fit_loop.epoch_loop.batch_idx
        first = last - max(len(losses) - 1, 0)
        batches = f"batch {last}" if first == last else f"batches {first} to {last}"
        # Lightning divides by the batches of an update
        shown = ", ".join(f"{loss.item() * trainer.accumulate_grad_batches:g}" for loss in losses) or "unknown"
        rates = ", ".join(f"{group['lr']:g}" for group in optimizer.param_groups)
        return (
            f"The {what} not finite at step {trainer.global_step} (epoch {trainer.current_epoch}, {batches}, "
            f"process {', '.join(processes)}): loss {shown}, gradient norm {norm.item():g}, learning rate {rates}."
        )


def _total(tensors: list[Tensor]) -> Tensor:
    """Return a number that is not finite where one of the tensors is not, read the fastest way."""
    if tensors[0].device.type == "cpu":
        return torch.stack([tensor.sum(dtype=torch.float32) for tensor in tensors]).sum()
    return get_total_norm(tensors)  # few kernels for all of them
