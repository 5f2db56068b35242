"""Checkpoints and exact resume: a resumed run is bit-identical to an uninterrupted one.

Lightning saves in the middle of its bookkeeping: a run resumed from such a file trains some steps twice, in
another order and with other random numbers. Here a checkpoint is written at one instant only, when everything
about the last batch is done and nothing of the next one is: at the next batch's start.
"""

import logging
import math
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import distributed

from rimlit.checkpoints import read_checkpoint, write_checkpoint
from rimlit.data import DataModule
from rimlit.errors import CheckpointError, RimlitError, StorageError
from rimlit.files import require_folder, try_folder, write_file
from rimlit.training._lightning import batches_that_stepped, replace_signal_handlers, resume_counting
from rimlit.training.changes import MEANING, Change, adopt, find_changes, refuse_changes, run_settings
from rimlit.training.epoch_sums import collect, restore
from rimlit.training.signals import SignalFlag

log = logging.getLogger(__name__)


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning's access to :mod:`rimlit.checkpoints`: whole files with a digest that hold plain data only."""

    def __init__(self) -> None:
        self._folders: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; see :func:`rimlit.checkpoints.write_checkpoint`.

        A folder is made once: where it has vanished since, the files in it are lost, and that is an error.
        """
        folder = Path(path).parent
        if folder not in self._folders:
            try_folder(folder)
            self._folders.add(folder)
        write_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, always with ``weights_only=True``."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file."""
        Path(path).unlink(missing_ok=True)


class Checkpointer(Checkpoint):
    """Keep ``last.ckpt`` and ``best.ckpt`` in a folder, from each of which a run resumes exactly.

    A resumed run has the losses, metrics and weights of an uninterrupted one, bit for bit on a CPU: the position
    in the data, the loop's counters and the recurrent state are restored, and every batch draws its random numbers
    from the run's seed, the process and the number of the batch. Only ``best`` may be written while gradients wait
    for their update (accumulation); a run that is resumed from it would lose those.

    Args:
        folder: Where the files are kept.
        monitor: Metric that decides which is best.
        higher_is_better: Whether the best is the one where it is highest, of equal ones the latest: a return
            often has a limit.
        seed: The run's seed.
        interval: Seconds between two saves of ``last``, at least 0; it is also saved after each validation.
        allow_changes: Whether a run is resumed with another task, other data or another seed than it was started
            with. Another learning rate, schedule, length or clipping is always used, and logged.
        on_saved: Called with each file that was written, in the first process.
        clock: Returns the time, seconds.

    Raises:
        ConfigError: The settings are not those of the run that is resumed.
        StorageError: The folder cannot be written, has too little space or has vanished.
        StoppedError: A signal asked the run to stop (see :class:`SignalFlag`); ``last`` has been saved.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        monitor: str = "val/loss",
        higher_is_better: bool = False,
        seed: int = 0,
        interval: float = 120.0,
        allow_changes: bool = False,
        on_saved: Callable[[L.Trainer, Path], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = Path(folder)
        self.monitor = monitor
        self.higher_is_better = higher_is_better
        self.seed = seed
        self.interval = interval
        self.allow_changes = allow_changes
        self.best_score: float | None = None
        self._on_saved = on_saved
        self._clock = clock
        self._saved_at = clock()
        self._due: set[str] = set()
        self._restored: dict[str, Any] | None = None
        self._sums_restored: list[dict[str, Any]] = []
        self._sums_at_end: dict[str, Any] | None = None
        self._changes: list[Change] = []
        self._meaning: dict[str, Any] = {}
        self._schedules: list[dict[str, Any]] = []
        self._paused: list[LRSchedulerConfig] = []
        self._is_between_batches = False
        self._has_ended = False
        self._signals = SignalFlag()

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation."""
        return self.folder / "best.ckpt"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Replace Lightning's signal handlers, which save, requeue and wait for other processes at once."""
        replace_signal_handlers(
            trainer, lambda: self._signals.listen(at_once=trainer.state.fn != TrainerFn.FITTING)
        )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the folder before any work is done, and give the data module the position to resume at."""
        self._has_ended = False
        self._saved_at = self._clock()
        self._meaning = {name: getattr(trainer, name) for name in MEANING}  # as given: a callback may change it
        failure: RimlitError | None = None
        if trainer.is_global_zero:
            # last, best and the one being written; in each the weights and what an optimiser keeps of them
            missing = 3 - sum(path.is_file() for path in (self.last, self.best))
            needed = missing * 3 * sum(parameter.nbytes for parameter in pl_module.parameters())
            try:
                require_folder(self.folder, needed)
            except StorageError as error:
                failure = error
        _raise_together(trainer, failure)
        data = getattr(trainer, "datamodule", None)
        states, self._schedules = self._schedules, []
        for index, (state, config) in enumerate(zip(states, trainer.lr_scheduler_configs, strict=False)):
            fresh = config.scheduler.state_dict()
            odd = next((key for key in fresh if key in state and not _is_alike(fresh[key], state[key])), None)
            if odd is not None:
                raise _unusable(trainer, f"lr_schedulers[{index}].{odd}")
        if self._restored is not None and isinstance(data, DataModule):
            data.start_training_at(self._restored["epoch"], self._restored["batches_in_epoch"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Apply what was restored from the checkpoint."""
        if self.best_score is not None and not trainer.strategy.broadcast(self.best.is_file()):
            log.info("There is no %s: the best is chosen among the validations that follow.", self.best)
            self.best_score = None
        if trainer.is_global_zero:
            for left in self.folder.glob(".*.ckpt.*.tmp"):  # of a process that was killed while it wrote
                left.unlink(missing_ok=True)
        if self._restored is not None:
            # Lightning passes the end of the last batch once more, and would show them its score twice
            configs = trainer.lr_scheduler_configs
            self._paused = [config for config in configs if config.reduce_on_plateau and config.interval == "step"]
            for config in self._paused:
                config.interval = "paused"
        for change in self._changes:
            log.info("%s", change)
        adopt(self._changes, trainer, pl_module)
        self._changes = []
        self._sums_at_end = None
        if self._restored is not None and len(self._sums_restored) == trainer.world_size:
            in_epoch = self._restored["batches_in_epoch"] > 0
            try:
                restore(trainer, pl_module, self._sums_restored[trainer.global_rank], in_epoch=in_epoch)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise _unusable(trainer, "rimlit_sums") from error
        self._sums_restored = []

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the signal handlers."""
        self._signals.listen_no_more()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save a checkpoint that is due, then seed this batch's random numbers from its number."""
        loop = trainer.fit_loop.epoch_loop
        if self._restored is not None:
            resume_counting(trainer, self._restored["batches_that_stepped"])
            for config in self._paused:
                config.interval = "step"
            self._restored = None
        done = loop.batch_progress.current.ready - 1  # Lightning has counted the batch that starts
        self._is_between_batches = True
        if "best" in self._due:
            self._save(trainer, "best")
        if done % trainer.accumulate_grad_batches == 0:  # no gradient is waiting for its update
            is_late, signum = self._agree(trainer)
            if "last" in self._due or is_late or signum:
                self._save(trainer, "last")
            if signum:
                raise self._signals.error(signum, trainer.global_step, self.last)
        self._is_between_batches = False
        number = loop.batch_progress.total.ready - 1
        seed_batch(self.seed, trainer.global_rank, number, trainer.strategy.root_device)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the sums of an epoch that ``max_steps`` cuts short: Lightning discards them now."""
        self._sums_at_end = collect(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that a checkpoint is due; it is saved at the start of the next batch, or at the end of training."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        self._due.add("last")
        metric = trainer.callback_metrics.get(self.monitor)
        score = None if metric is None else float(metric)
        if trainer.world_size > 1:  # processes that decide differently would wait for each other forever
            score = trainer.strategy.broadcast(score)
        if score is not None and math.isfinite(score) and self._is_best(score):
            self.best_score = score
            self._due.add("best")

    def _is_best(self, score: float) -> bool:
        if self.best_score is None:
            return True
        return score >= self.best_score if self.higher_is_better else score < self.best_score

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last step."""
        self._has_ended = True
        for name in sorted(self._due | {"last"}):
            self._save(trainer, name)
        self._require_requested_files(trainer)
        if signum := self._agree(trainer)[1]:
            raise self._signals.error(signum, trainer.global_step, self.last)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Complete a run that was killed between writing its last two files, with nothing left to train."""
        is_from_best = trainer.ckpt_path is not None and Path(trainer.ckpt_path).resolve() == self.best.resolve()
        if trainer.is_global_zero and is_from_best and not self._has_ended:
            write_file(self.last, self.best.read_bytes())

    def _agree(self, trainer: L.Trainer) -> tuple[bool, int]:
        """Return whether it is time to save, and the signal that any process got, 0 for none: the same in all."""
        is_late, signum = self._clock() - self._saved_at >= self.interval, self._signals.received
        if trainer.world_size == 1:
            return is_late, signum
        both = torch.tensor([is_late, signum], dtype=torch.int64, device=trainer.strategy.root_device)
        distributed.all_reduce(both, distributed.ReduceOp.MAX)
        return bool(both[0]), int(both[1])

    def _save(self, trainer: L.Trainer, name: str) -> None:
        self._due.discard(name)
        path = self.folder / f"{name}.ckpt"
        failure: RimlitError | None = None
        try:
            trainer.save_checkpoint(path)
        except RimlitError as error:
            failure = error
        if failure is not None and trainer.world_size > 1:
            trainer.strategy.barrier()  # where the others wait
        _raise_together(trainer, failure)
        self._saved_at = self._clock()
        if self._on_saved is not None and trainer.is_global_zero:
            self._on_saved(trainer, path)

    def _require_requested_files(self, trainer: L.Trainer) -> None:
        """Raise where a file that the run must leave is gone: the run must not end with exit code 0."""
        failure: StorageError | None = None
        for path in (self.last, *([self.best] if self.best_score is not None else [])):
            if trainer.is_global_zero and not path.is_file():
                failure = StorageError(f"{path} is gone: the run wrote it, and something has removed it since.")
        _raise_together(trainer, failure)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write the loop's counters as an uninterrupted run would have them here."""
        loops = checkpoint["loops"]["fit_loop"]
        progress, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
        for counts in (progress["total"], progress["current"]):
            if self._is_between_batches:
                counts["ready"] = counts["started"] = counts["processed"] = counts["completed"]
        if self._is_between_batches:  # the batch that starts may be the epoch's last, but none that is done was
            progress["is_last_batch"] = False
        if self._has_ended and progress["is_last_batch"]:
            # the next epoch has trained on nothing: Lightning would count an empty one
            progress["current"] = dict.fromkeys(progress["current"], 0)
            progress["is_last_batch"] = False
        elif self._has_ended:
            # the number of steps cut the epoch short; with more steps it would continue
            for counts in (epochs["total"], epochs["current"]):
                counts["processed"] = counts["completed"] = counts["started"] - 1
        checkpoint["rimlit_position"] = {
            "epoch": epochs["current"]["processed"],
            "batches_in_epoch": progress["current"]["completed"],
            "batches_that_stepped": batches_that_stepped(trainer),
        }
        checkpoint["rimlit_run"] = run_settings(trainer, self.seed)
        checkpoint["rimlit_run"]["trainer"] |= self._meaning
        checkpoint.setdefault("rimlit", {})  # where the module is not a Task, which stores more
        is_cut_short = self._has_ended and checkpoint["rimlit_position"]["batches_in_epoch"] > 0
        mine = self._sums_at_end if is_cut_short else collect(trainer, pl_module)
        everyone: list[Any] = [mine]
        if trainer.world_size > 1:
            everyone = [None] * trainer.world_size
            distributed.all_gather_object(everyone, mine)
        checkpoint["rimlit_sums"] = everyone

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember where the run resumes, and refuse to resume another one.

        Lightning calls this for tests, too.
        """
        states = checkpoint.get("callbacks") or {}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            own, state = callback.state_dict(), states.get(callback.state_key)
            if state is not None and own and type(callback).__module__.startswith("rimlit."):
                is_known = isinstance(state, dict) and own.keys() <= state.keys()
                if not is_known or not all(isinstance(state[name], int | float | None) for name in own):
                    raise _unusable(trainer, f"callbacks.{callback.state_key}")
        if trainer.state.fn != TrainerFn.FITTING:
            return
        position = checkpoint.get("rimlit_position")
        counts = ("epoch", "batches_in_epoch", "batches_that_stepped")
        if position is not None and not all(type(position.get(name)) is int for name in counts):
            raise _unusable(trainer, "rimlit_position")
        self._restored = position
        self._schedules = checkpoint.get("lr_schedulers", [])
        self._sums_restored = checkpoint.get("rimlit_sums", [])
        data = getattr(trainer, "datamodule", None)
        self._changes = find_changes(checkpoint, trainer, pl_module, data, self.seed)
        refuse_changes(self._changes, str(self.folder.parent), are_allowed=self.allow_changes)

    def state_dict(self) -> dict[str, Any]:
        """Return the best score so far."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score so far."""
        self.best_score = state_dict["best_score"]


def _is_alike(fresh: Any, given: Any) -> bool:
    """Whether a value of a schedule's state is of the kind that a fresh schedule has in its place."""
    if isinstance(fresh, list | tuple) and fresh:
        return isinstance(given, list | tuple) and all(_is_alike(fresh[0], item) for item in given)
    if isinstance(fresh, int | float):
        return isinstance(given, int | float)
    return (
        fresh is None or isinstance(given, type(fresh)) or isinstance(fresh, Mapping) is isinstance(given, Mapping)
    )


def _unusable(trainer: L.Trainer, key: str) -> CheckpointError:
    return CheckpointError(
        f"{trainer.ckpt_path} is not a checkpoint that rimlit wrote: {key} holds something else."
    )


def _raise_together(trainer: L.Trainer, failure: RimlitError | None) -> None:
    """Raise in every process if one failed: the others would wait for it."""
    if trainer.world_size > 1:
        failed = torch.tensor(failure is not None, dtype=torch.int32, device=trainer.strategy.root_device)
        distributed.all_reduce(failed, distributed.ReduceOp.MAX)
        if failed and failure is None:
            failure = StorageError("Another process cannot save the run; it says why.")
    if failure is not None:
        raise failure


def seed_batch(seed: int, rank: int, batch: int, device: torch.device) -> None:
    """Seed the global random numbers of torch, NumPy and Python, for what draws from them inside a step.

    Args:
        seed: The run's seed.
        rank: This process.
        batch: Number of the batch in the whole run.
        device: Where the model is.
    """
    mixed = hash((seed, rank, batch)) % 2**63
    # torch.manual_seed would keep it for every kind of device, each with a formatted stack: half a millisecond
    torch.default_generator.manual_seed(mixed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(mixed)
    np.random.seed(mixed % 2**32)
    random.seed(mixed)


class Newest(NamedTuple):
    """The checkpoint of the most steps in a folder."""

    path: Path | None
    step: int
    passed_over: list[str]  # what is damaged, and how


def newest_checkpoint(folder: Path) -> Newest:
    """Return the intact checkpoint of the most steps in ``folder``, ``last`` before others of as many."""
    found: list[tuple[int, bool, Path]] = []
    passed_over = []
    for path in sorted(folder.glob("*.ckpt")):
        try:
            found.append((int(read_checkpoint(path)["global_step"]), path.stem == "last", path))
        except CheckpointError as error:
            passed_over.append(str(error))
    if not found:
        return Newest(None, 0, passed_over)
    step, _, path = max(found)
    return Newest(path, step, passed_over)
