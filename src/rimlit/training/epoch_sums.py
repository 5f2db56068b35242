"""The sums of an epoch so far as plain data, so that its means are exact after a stop in the middle.

Lightning keeps the sums behind ``self.log(..., on_epoch=True)`` and the states of metrics in memory only: a run
that resumes in the middle of an epoch would report the mean of the rest of it.
"""

from operator import attrgetter
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from rimlit.training._lightning import CACHE, keep_sums, logged_results, make_result, shown_metrics

_SETTINGS = (
    "fx",
    "name",
    "prog_bar",
    "logger",
    "on_step",
    "on_epoch",
    "enable_graph",
    "add_dataloader_idx",
    "dataloader_idx",
    "metric_attribute",
)
# Lightning takes no others, and tells min and torch.min apart, though they do the same
_REDUCTIONS = {
    **{(True, function.__name__): function for function in (sum, max, min)},
    **{(False, function.__name__): function for function in (torch.mean, torch.sum, torch.max, torch.min)},
}
_VALUES = ("value", "cumulated_batch_size", CACHE)


def collect(trainer: L.Trainer, task: nn.Module) -> dict[str, Any]:
    """Return copies of the values that this process has logged in the epoch and of its metrics' states."""
    logged = {
        key: {
            "settings": {name: getattr(result.meta, name) for name in _SETTINGS},
            "reduction": result.meta.reduce_fx.__name__,
            "is_builtin": result.meta.reduce_fx in (sum, max, min),
            "is_added_up": result.meta.sync.should,
            "rank_zero_only": result.meta.sync.rank_zero_only,
            "values": {
                name: _kept(value) for name in _VALUES if isinstance(value := getattr(result, name, None), Tensor)
            },
        }
        for key, result in logged_results(trainer).items()
        # what is logged at an epoch's end belongs to no resumed epoch
        if not result.has_reset and result.meta.fx != "on_train_epoch_end"
    }
    metrics = {
        name: {"updates": metric.update_count, "states": _copied(metric.metric_state)}
        for name, metric in task.named_modules()
        if isinstance(metric, Metric)
    }
    shown = {name: _kept(value) for name, value in shown_metrics(trainer).items()}
    return {"logged": logged, "metrics": metrics, "shown": shown}


def restore(trainer: L.Trainer, task: nn.Module, sums: dict[str, Any], *, in_epoch: bool) -> None:
    """Restore what :func:`collect` returned, before the first batch.

    Args:
        trainer: Trainer that is about to train.
        task: Its module.
        sums: What :func:`collect` returned in the earlier process.
        in_epoch: Whether batches of this epoch were trained on already.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: ``sums`` is not what :func:`collect` returns.
    """
    device = trainer.strategy.root_device
    for name, value in sums["shown"].items():  # schedules and callbacks may read these early
        shown_metrics(trainer)[name] = value.to(device)
    results = logged_results(trainer)
    for key, entry in sums["logged"].items():
        reduction = _REDUCTIONS[entry["is_builtin"], entry["reduction"]]
        results[key] = result = make_result(
            trainer,
            entry["settings"],
            reduction,
            is_added_up=entry["is_added_up"],
            rank_zero_only=entry["rank_zero_only"],
        )
        if result.meta.metric_attribute is not None:
            result.value = attrgetter(result.meta.metric_attribute)(task)
        for name, value in entry["values"].items():
            if name not in _VALUES:
                raise KeyError(name)
            setattr(result, name, value.to(device))
    metrics = dict(task.named_modules())
    for name, entry in sums["metrics"].items():
        metric = metrics.get(name)
        if isinstance(metric, Metric):
            for state, value in _copied(entry["states"]).items():
                if state not in metric._defaults:
                    raise KeyError(state)
                setattr(metric, state, _to(value, metric.device))
            metric._update_count = entry["updates"]
    if in_epoch:
        keep_sums(trainer)


def _copied(states: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [_kept(item) for item in value] if isinstance(value, list) else _kept(value)
        for name, value in states.items()
    }


def _kept(value: Tensor) -> Tensor:
    return value.detach().clone().cpu()


def _to(value: Any, device: torch.device) -> Any:
    return [item.to(device) for item in value] if isinstance(value, list) else value.to(device)
