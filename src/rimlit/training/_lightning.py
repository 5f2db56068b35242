"""Everything of Lightning that is private and used here, each name once; a test asks a trainer for each of them.

Imports nothing of rimlit: data modules and tasks use it too.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import lightning as L
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torch import Tensor

CACHE = "_forward_cache"
"""Where a logged result keeps the value of the last step."""


def uses_distributed_sampler(trainer: L.Trainer) -> bool:
    """Return whether the trainer would shard the data a second time."""
    return bool(trainer._accelerator_connector.use_distributed_sampler)


def start_method(strategy: Strategy) -> str | None:
    """Return how a strategy copies this process for its training, None where it does not."""
    launcher = strategy.launcher
    return launcher._start_method if isinstance(launcher, _MultiProcessingLauncher) else None


def starts_commands(launcher: Any) -> TypeGuard[_SubprocessScriptLauncher]:
    """Return whether a launcher starts the other processes of a node, each with this command line."""
    return isinstance(launcher, _SubprocessScriptLauncher)


def spare_this_process() -> None:
    """Keep Lightning's observers from killing this process with its children."""
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []


def replace_signal_handlers(trainer: L.Trainer, listen: Callable[[], None]) -> None:
    """Let ``listen`` register signal handlers in place of Lightning's, which restores the earlier ones."""
    connector = trainer._signal_connector

    def register() -> None:
        connector._original_handlers = connector._get_current_signal_handlers()
        listen()

    connector.register_signal_handlers = register  # type: ignore[method-assign]


def fresh_optimizers(task: L.LightningModule) -> tuple[Any, Any]:
    """Return the optimisers and the schedules that a module configures, as a trainer would make them."""
    optimizers, schedules = _init_optimizers_and_lr_schedulers(task)
    return optimizers, schedules


def flat_parameters(params: Any) -> dict[str, Any]:
    """Return hyper-parameters, of any form that Lightning's loggers take, by names with slashes between."""
    flat: dict[str, Any] = _flatten_dict(_convert_params(params))
    return flat


def batches_that_stepped(trainer: L.Trainer) -> int:
    """Return the steps by which Lightning counts what it logs."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def resume_counting(trainer: L.Trainer, batches: int) -> None:
    """Continue that count; schedules that react to a metric then see this epoch's."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = batches
    trainer.fit_loop._restarting = False


def logged_results(trainer: L.Trainer) -> Any:
    """Return what the training has logged in this epoch, by key: a mapping that may be written to."""
    return trainer.fit_loop.epoch_loop._results


def shown_metrics(trainer: L.Trainer) -> dict[str, Tensor]:
    """Return the metrics that schedules and callbacks look at, to be written to."""
    metrics: dict[str, Tensor] = trainer._logger_connector._callback_metrics
    return metrics


def keep_sums(trainer: L.Trainer) -> None:
    """Keep Lightning from taking the next batch for the epoch's first and starting its sums again."""
    trainer._logger_connector._first_loop_iter = True


def make_result(
    trainer: L.Trainer,
    settings: Mapping[str, Any],
    reduction: Callable[..., Any],
    *,
    is_added_up: bool,
    rank_zero_only: bool,
) -> Any:
    """Return a logged result that was updated once, without its values.

    Args:
        trainer: The trainer, whose strategy adds up over processes.
        settings: The other fields of Lightning's description of it.
        reduction: How values are reduced.
        is_added_up: Whether over processes, too.
        rank_zero_only: Whether the first process alone logs it.
    """
    meta = _Metadata(**settings, reduce_fx=reduction)
    meta.sync = _Sync(_should=is_added_up, fn=trainer.strategy.reduce, rank_zero_only=rank_zero_only)
    result = _ResultMetric(meta, is_tensor=meta.metric_attribute is None)
    result._update_count = 1
    return result
