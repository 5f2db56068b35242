"""Runs that are stopped and resumed, and how they are compared."""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import CatMetric, MeanMetric

from rimlit.checkpoints import read_checkpoint
from rimlit.data import Copying, DataModule, Text
from rimlit.tasks import CopyingTask, LanguageModelingTask, Task
from rimlit.training import Checkpointer, VerifiedCheckpointIO, WarmupCosine
from tests.tasks.running import SMALL_RIM

STEPS = 11


class InterruptedRunError(Exception):
    """What the tests stop a run with."""


class Watch(L.Callback):
    """Write every loss and validation down, exactly, and stop the run when requested."""

    def __init__(self, stop: Callable[[int, str], bool] = lambda batch, when: False) -> None:
        self.losses: dict[int, str] = {}
        self.scores: dict[int, dict[str, str]] = {}
        self.means: dict[int, dict[str, str]] = {}
        self.stop = stop

    def _maybe_stop(self, trainer: L.Trainer, when: str) -> None:
        batch = trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1
        if self.stop(batch, when):
            raise InterruptedRunError

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._maybe_stop(trainer, "before the step")

    def on_train_batch_end(self, trainer: L.Trainer, task: Any, outputs: Any, *_: Any) -> None:
        batch = trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1
        assert batch not in self.losses
        self.losses[batch] = outputs["loss"].item().hex()
        self._maybe_stop(trainer, "after the step")

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._maybe_stop(trainer, "in validation")

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        values = {name: value.item().hex() for name, value in trainer.callback_metrics.items() if "val/" in name}
        self.scores[trainer.global_step] = values

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.means[trainer.current_epoch] = {
                name: value.item().hex() for name, value in trainer.callback_metrics.items() if "mean/" in name
            }


class AveragingTask(CopyingTask):
    """Copying that logs over whole training epochs, in the ways there are."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.seen = MeanMetric()
        self.all_losses = CatMetric()

    def on_train_epoch_start(self) -> None:
        self.all_losses.reset()
        self.log("mean/rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        loss = super().training_step(batch, batch_index)
        self.seen.update(loss.detach())
        self.all_losses.update(loss.detach())
        self.log("mean/loss", loss, on_step=True, on_epoch=True)
        self.log("mean/largest", loss, on_step=False, on_epoch=True, reduce_fx="max")
        self.log("mean/sum", loss, on_step=False, on_epoch=True, reduce_fx=sum)
        self.log("mean/metric", self.seen, on_step=False, on_epoch=True)
        if batch_index == 0:
            self.log("mean/first", loss, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("mean/median", self.all_losses.compute().median())


class Case(NamedTuple):
    task: Callable[[DataModule], Task]
    data: Callable[[], DataModule]
    trainer: dict[str, Any]


DROPPED = {
    **SMALL_RIM,
    "init_args": {**SMALL_RIM["init_args"], "input_dropout": 0.3, "communication_dropout": 0.3, "dropout": 0.3},
}


def copying(data: DataModule, backbone: Any = DROPPED) -> Task:
    return CopyingTask(
        backbone,
        data.vocabulary_size,
        data.recall_length,
        embedding_size=8,
        optimizer=partial(Adam, lr=0.01),
        scheduler=partial(WarmupCosine, warmup_steps=3, total_steps=STEPS),
    )


def balanced(data: DataModule) -> Task:
    parts = [
        {"loss_free_bias": {"step": 0.1, "follows_schedule": True}},
        "noisy_top_k",
        {"dead_reset": {"every": 2, "below": 0.6}},
        "random_activation",
    ]
    backbone = {
        **SMALL_RIM,
        "init_args": {**SMALL_RIM["init_args"], "balance": parts, "selection": "gumbel_top_k"},
    }
    return copying(data, backbone)


def averaging(data: DataModule) -> Task:
    return AveragingTask(
        backbone=DROPPED,
        vocabulary_size=data.vocabulary_size,
        recall_length=data.recall_length,
        embedding_size=8,
        optimizer=partial(SGD, lr=0.5),
        scheduler=partial(ReduceLROnPlateau, factor=0.5, patience=0, threshold=0.1),
    )


def language(data: DataModule) -> Task:
    return LanguageModelingTask(
        DROPPED,
        data.vocabulary_size,
        "byte",
        embedding_size=8,
        dropout=0.2,
        optimizer=partial(SGD, lr=0.1, momentum=0.9),
    )


def copying_data(**options: Any) -> Copying:
    return Copying(train_span=4, min_train_span=1, test_spans=[4], batch_size=4, val_size=6, seed=3, **options)


CASES = {
    "endless": Case(copying, copying_data, {"val_check_interval": 3}),
    "workers": Case(copying, partial(copying_data, num_workers=2), {"val_check_interval": 4}),
    "accumulation": Case(copying, copying_data, {"val_check_interval": 3, "accumulate_grad_batches": 2}),
    # 4 batches an epoch, shuffled
    "epochs": Case(copying, partial(copying_data, train_size=16), {"val_check_interval": 1.0}),
    "epochs_with_workers": Case(
        copying, partial(copying_data, train_size=16, num_workers=2), {"val_check_interval": 0.5}
    ),
    "balanced": Case(balanced, copying_data, {"val_check_interval": 3, "accumulate_grad_batches": 2}),
    # scores and means that a schedule and logs need come from before the stop
    "means": Case(averaging, partial(copying_data, train_size=16), {"val_check_interval": 0.5}),
    "endless_plateau": Case(averaging, copying_data, {"val_check_interval": 2}),
    # 5 chunks an epoch, the state carried from one to the next
    "carried_state": Case(
        language, partial(Text, size_limit=1000, chunk_length=32, batch_size=6), {"val_check_interval": 2}
    ),
}


def fit(
    case: Case,
    folder: Path,
    *,
    stop: Any = None,
    ckpt_path: Path | None = None,
    steps: int = STEPS,
    **options_of_checkpointer: Any,
) -> Watch:
    """Train; saves after every step."""
    L.seed_everything(5, verbose=False)
    data = case.data()
    data.setup("fit")
    task = case.task(data)
    torch.manual_seed(hash(folder) % 1000)  # where another program left the global random numbers is no matter
    watch = Watch() if stop is None else Watch(stop)
    options = {"gradient_clip_val": 1.0, **case.trainer}
    saving = Checkpointer(folder, monitor="val/cross_entropy", seed=5, interval=0, **options_of_checkpointer)
    if isinstance(options["val_check_interval"], int):
        options["check_val_every_n_epoch"] = None
    trainer = L.Trainer(
        accelerator=options.pop("accelerator", "cpu"),
        max_steps=steps // options.get("accumulate_grad_batches", 1),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[watch, saving],
        plugins=[VerifiedCheckpointIO()],
        **options,
    )
    with contextlib.suppress(InterruptedRunError):
        trainer.fit(task, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return watch


def weights(folder: Path, name: str = "last") -> dict[str, Tensor]:
    checkpoint = read_checkpoint(folder / f"{name}.ckpt")
    return {
        **checkpoint["state_dict"],
        **{
            f"optimizer.{index}.{key}": value
            for index, state in checkpoint["optimizer_states"][0]["state"].items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        },
    }


def assert_same(folder: Path, expected: Path) -> None:
    for name in ("last", "best"):
        mine, theirs = weights(folder, name), weights(expected, name)
        assert mine.keys() == theirs.keys()
        for key, tensor in mine.items():
            assert torch.equal(tensor, theirs[key]), (name, key)
    mine, theirs = (read_checkpoint(path / "last.ckpt") for path in (folder, expected))
    assert mine["global_step"] == theirs["global_step"]
    assert mine["rimlit_position"] == theirs["rimlit_position"]
