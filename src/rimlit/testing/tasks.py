"""Laws of tasks, each tried with a data module in a training of one step on the CPU."""

import json
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from unittest import SkipTest

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from rimlit.data import DataModule
from rimlit.tasks import Task
from rimlit.testing import data as data_laws
from rimlit.testing.laws import BrokenError, check_laws, law, make, require, require_close
from rimlit.testing.modules import gradients_of

Subject: TypeAlias = Task | Callable[[], Task]
"""A task, which is copied, or what builds one."""

Data: TypeAlias = DataModule | Callable[[], DataModule]
"""Data for the task: a data module, which is copied, or what builds one."""

LOG_NAME = re.compile(r"(train|val|test)(/[\w.-]+)+")


def check_task(
    build: Subject, build_data: Data, *, slow: bool = False, gpu: bool = False, skip: Iterable[str] = ()
) -> None:
    """Run every law of tasks; see :func:`rimlit.testing.check_laws`.

    Args:
        build: Builds a small task; a task is copied instead.
        build_data: Builds a small data module for it; a data module is copied instead.
        slow: Whether to run the slow laws too.
        gpu: Whether to run the laws that need a CUDA device too.
        skip: Names of laws that are not run.
    """
    check_laws("task", build, build_data, slow=slow, gpu=gpu, skip=skip)


@contextmanager
def quiet_trainer(**options: Any) -> Iterator[L.Trainer]:
    """A trainer for one step on the CPU that writes into a temporary folder, without Lightning's advice on it."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 1,
        "limit_train_batches": 1,  # the epoch then ends, and is validated
        "limit_val_batches": 2,
        "limit_test_batches": 2,
        "limit_predict_batches": 1,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        for message in (".*does not have many workers", ".*is smaller than the logging interval", ".*LeafSpec"):
            warnings.filterwarnings("ignore", message)
        yield L.Trainer(**{**defaults, "default_root_dir": folder, **options})


class _Gradients(L.Callback):
    """Keep the loss and the gradients of a training step."""

    loss: Any = None
    gradients: dict[str, Tensor] | None = None
    fault: BrokenError | None = None

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        try:
            self.gradients = {name: each.clone() for name, each in gradients_of(pl_module).items()}
        except BrokenError as error:
            self.fault = error

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.loss = outputs["loss"] if isinstance(outputs, dict) else outputs


@law("task")
def check_training_step_reaches_every_parameter(build: Subject, build_data: Data) -> None:
    """A training step has a finite loss and a finite gradient of every parameter."""
    seen = _Gradients()
    with quiet_trainer(limit_val_batches=0, callbacks=[seen]) as trainer:
        trainer.fit(make(build), datamodule=make(build_data))
    require(seen.loss is not None and bool(seen.loss.isfinite()), f"the loss of a training step is {seen.loss}")
    if seen.fault is not None:
        raise seen.fault
    require(bool(seen.gradients), "a training step runs no backward pass")


@law("task")
def check_stages_log_their_names(build: Subject, build_data: Data) -> None:
    """Training, validation and test log ``stage/quantity``; ``monitor`` is among them, and one of ``headline``."""
    task, data = make(build), make(build_data)
    with quiet_trainer() as trainer:
        trainer.fit(task, datamodule=data)
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        trainer.test(task, datamodule=data, verbose=False)
        tested = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for stage, names in (("train", logged), ("val", logged), ("test", tested)):
        require(any(name.startswith(f"{stage}/") for name in names), f"{stage} logs nothing; logged is {[*names]}")
    for name in (*logged, *tested):
        require(LOG_NAME.fullmatch(name) is not None, f"{name!r} is logged, and no stage/quantity")
    require(task.monitor in logged, f"monitor={task.monitor!r} is not logged; logged is {[*logged]}")
    require(math.isfinite(logged[task.monitor]), f"{task.monitor} is {logged[task.monitor]}")
    quantities = {name.rpartition("/")[2] for name in tested}
    require(
        not quantities.isdisjoint(task.headline), f"headline={task.headline} is not logged by test: {[*tested]}"
    )


@law("task")
def check_saved_task_predicts_the_same(build: Subject, build_data: Data) -> None:
    """A task loaded from a checkpoint alone has the same class, outputs and predictions, which are plain data."""
    task, data = make(build), make(build_data)
    with quiet_trainer(limit_val_batches=0) as trainer:
        trainer.fit(task, datamodule=data)
        path = Path(trainer.default_root_dir) / "law.ckpt"
        trainer.save_checkpoint(path)
        loaded = Task.load_from_checkpoint(path)
        require(type(loaded) is type(task), f"a checkpoint gives a {type(loaded).__name__}")
        batch = next(iter(data_laws.loaders_of(data, "val")[0]))
        task.eval()
        with torch.no_grad():
            expected = task(batch.inputs)[0]
            require_close("outputs after loading", loaded(batch.inputs)[0], expected, rtol=0, atol=0)
        records = trainer.predict(task, datamodule=data)
        require_close("predictions after loading", trainer.predict(loaded, datamodule=data), records)
    try:
        json.dumps(records)
    except (TypeError, ValueError) as error:
        raise BrokenError(f"predictions are not plain data ({error})") from error


@law("task")
def check_batch_scores_as_its_sequences(build: Subject, build_data: Data, rtol: float = 1e-5) -> None:
    """Loss, gradients and metrics of a batch are those of its sequences one by one: padding changes nothing.

    The loss is their mean, weighted by :meth:`rimlit.tasks.Task.weight`.
    """
    task, data = make(build).double().eval(), data_laws.ready(build_data)
    steps = (type(task).shared_step, type(task).training_step)
    if any(not method.__module__.startswith("rimlit.tasks") for method in steps):
        raise SkipTest("the task has a step of its own")
    dataset = next(iter(data.datasets("train").values()))
    loader = data_laws.loaders_of(data, "train")[0]
    if isinstance(dataset, IterableDataset) or (loader.batch_size is None and loader.batch_sampler is None):
        raise SkipTest("the dataset has batches and no samples")
    samples = [dataset[index] for index in range(min(data.batch_size, data.size_of(dataset) or data.batch_size))]
    together, alone = _doubled(data.collate(samples)), [_doubled(data.collate([sample])) for sample in samples]
    weights = [task.weight(batch) for batch in alone]
    require_close("weight", task.weight(together), torch.stack(weights).sum())
    loss = task.loss(task(together.inputs)[0], together)
    losses = [
        task.loss(task(batch.inputs)[0], batch) * weight for batch, weight in zip(alone, weights, strict=True)
    ]
    total = torch.stack(losses).sum() / torch.stack(weights).sum()
    require_close("loss", loss, total, rtol=rtol, atol=rtol / 100)
    names = [name for name, _ in task.named_parameters()]
    gradients = [
        dict(zip(names, torch.autograd.grad(each, [*task.parameters()], materialize_grads=True), strict=True))
        for each in (loss, total)
    ]
    require_close("gradients", *gradients, rtol=rtol, atol=rtol / 100)
    require_close("metrics", _scores(task, [together]), _scores(task, alone), rtol=rtol, atol=rtol / 100)


def _doubled(batch: Any) -> Any:
    parts = (part.double() if isinstance(part, Tensor) and part.is_floating_point() else part for part in batch)
    return type(batch)(*parts)


@torch.no_grad()
def _scores(task: Task, batches: list[Any]) -> dict[str, Any]:
    metrics = task.metrics()
    for batch in batches:
        scored = task.scored(task(batch.inputs)[0], batch)
        for metric in metrics.values():
            metric.update(*scored)
    return {name: metric.compute() for name, metric in metrics.items()}
