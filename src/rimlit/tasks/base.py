"""The base of every task: encoder → backbone → head, one shared step, metrics, checkpoints of plain data."""

import inspect
import math
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Literal, Self

import lightning as L
import torch
from torch import Tensor, distributed, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau
from torchmetrics import MeanMetric, Metric, MetricCollection

from rimlit._version import __version__
from rimlit.backbones import Backbone, BackboneFactory
from rimlit.checkpoints import read_checkpoint
from rimlit.data import DataModule
from rimlit.data.sampling import rank_and_world_size
from rimlit.encoders import Embedding, Encoder
from rimlit.errors import CheckpointError, ConfigError, SpecError
from rimlit.heads import Head, HeadFactory, LinearHead
from rimlit.spec import Rebuildable, Spec, build, find_class, non_default_arguments, to_spec
from rimlit.tasks.rates import rate_share
from rimlit.tasks.saved import build_saved, fit_mechanisms, load_weights
from rimlit.tasks.signatures import OptimizerFactory, SchedulerFactory, complete, declared_sizes
from rimlit.types import SequenceBatch, State

Stage = Literal["train", "val", "test"]


class Task(Rebuildable, L.LightningModule, ABC):
    """Base of all tasks. A subclass gives :meth:`loss` and :meth:`metrics`.

    Head, optimiser and scheduler are factories, as the backbone is: a class, a ``functools.partial`` of one, or a
    dict of ``class_path`` and ``init_args``. A subclass accepts ``encoder``, ``head``, ``optimizer`` and
    ``scheduler`` by keyword even where its own ``__init__`` does not name them; they replace what it passes here.
    On the command line its other arguments are taken from the data module's attributes of the same name.

    The scheduler advances with every optimiser step, ReduceLROnPlateau after each validation, in the direction in
    which ``monitor`` is better.

    Args:
        encoder: Maps a batch's inputs to what the backbone reads; its ``output_size`` is the backbone's input
            size. To a subclass, a factory is given instead, which is called with the ``input_size`` of the encoder
            that it replaces.
        backbone: Factory of the backbone, called with the encoder's output size.
        output_size: Outputs of each step.
        head: Factory of the head, called with the backbone's and the task's output size and the backbone's
            number of mechanisms; by default :class:`rimlit.heads.LinearHead`, of all features.
        optimizer: Factory, called with the parameters; by default Adam at 7e-4 (paper, table 3).
        scheduler: Factory, called with the optimiser; none by default.

    Raises:
        ConfigError: A factory is of a kind that a checkpoint could not hold, or a size is missing.
    """

    monitor: ClassVar[str] = "val/loss"
    """Metric that decides which checkpoint is best. In-distribution validation only."""

    higher_is_better: ClassVar[bool] = False
    """Whether the best checkpoint is the one where ``monitor`` is highest."""

    headline: ClassVar[tuple[str, ...]] = ("loss",)
    """Test metrics that the table at the end of a run shows."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let a subclass accept the factories that its author did not name."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = complete(cls.__init__)  # type: ignore[method-assign]

    def __init__(
        self,
        encoder: nn.Module,
        backbone: BackboneFactory,
        output_size: int,
        *,
        head: HeadFactory | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = vars(self).pop("_shared", {})
        if "encoder" in shared:
            encoder = _replace_encoder(encoder, shared["encoder"], type(self).__name__)
        head, optimizer = shared.get("head", head), shared.get("optimizer", optimizer)
        scheduler = shared.get("scheduler", scheduler)
        self.save_hyperparameters(self.spec["init_args"], logger=False)
        self.encoder = encoder
        self.backbone: Backbone = build(to_spec(backbone, "backbone"), Backbone, encoder.output_size)
        if self.backbone.bidirectional:  # it would read what is to be predicted, and the padding
            raise ConfigError(
                f"bidirectional must be False in a {type(self).__name__}, which reads sequences from their start; "
                "got bidirectional=True. A module of your own can pass it the lengths (docs/from_lstm.md)."
            )
        sizes = (self.backbone.output_size, output_size, self.backbone.num_mechanisms)
        self.head: nn.Module = build(to_spec(LinearHead if head is None else head, "head"), Head, *sizes)
        self._optimizer = to_spec(Adam if optimizer is None else optimizer, "optimizer")
        if optimizer is None:
            self._optimizer["init_args"]["lr"] = 7e-4
        self._scheduler = None if scheduler is None else to_spec(scheduler, "scheduler")
        # not submodules: their float64 sums stay exact whatever the model is cast to
        self._metrics: dict[str, MetricCollection] = {}
        self._losses: dict[str, MeanMetric] = {}
        self._has_logged_floors = False
        self.init_from: dict[str, Any] | None = None
        """The file whose weights the run started from, with its digest; see :mod:`rimlit.tasks.initializing`."""

    def save_hyperparameters(
        self, *args: Any, ignore: Any = None, frame: FrameType | None = None, logger: bool = True
    ) -> None:
        """Keep the values in ``args``; a task keeps its own arguments, as plain data, without being asked."""
        values = [value for value in args if not isinstance(value, str)]
        if values:
            # of the outermost frame: Lightning would look for arguments in those that call it, by the signatures
            # that their classes publish, and would take encoders, which are modules
            super().save_hyperparameters(*values, ignore=ignore, frame=_outermost_frame(), logger=logger)

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        """Return the loss, a scalar, of ``outputs`` (B, T, output_size) for a batch."""

    @abstractmethod
    def metrics(self) -> dict[str, Metric]:
        """Return fresh metrics by name, each updated with what :meth:`scored` returns."""

    def weight(self, batch: Any) -> Tensor:
        """Return how many values of a batch the loss is the mean of, a scalar; by default its sequences.

        The loss of a batch that several processes share is the mean of theirs, weighted so.
        """
        return torch.tensor(len(batch.inputs), device=self.device)

    def scored(self, outputs: Tensor, batch: Any) -> tuple[Tensor, ...]:
        """Return predictions and targets as the metrics take them; by default outputs and targets."""
        return outputs, batch.targets

    def forward(
        self, inputs: Any, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run over a sequence.

        Args:
            inputs: What the encoder reads, (B, T, …).
            state: The backbone's state to continue from.
            resets: (B, T) bool: where the state is replaced by the initial one before a step.

        Returns:
            Outputs (B, T, output_size) and the backbone's state after the last step.
        """
        # not for a subclass: its forward may do more than look up
        if type(self.encoder) is Embedding and not self.encoder.drops:
            features, state = self.backbone.forward_tokens(inputs, self.encoder.table.weight, state, resets)
        else:
            features, state = self.backbone(self.encoder(inputs), state, resets)
        outputs: Tensor = self.head(features)
        return outputs, state

    def shared_step(self, batch: Any, stage: Stage, group: int = 0) -> Tensor:
        """Run a batch of any stage: forward, loss, metrics, logs."""
        outputs, _ = self(batch.inputs)
        return self.log_step(outputs, batch, stage, group)

    def log_step(self, outputs: Tensor, batch: Any, stage: Stage, group: int = 0) -> Tensor:
        """Log the loss and, outside training, the metrics of a batch; return the loss."""
        loss, weight = self.loss(outputs, batch), self.weight(batch)
        if stage == "train":
            loss, whole = over_processes(loss, weight)
            self.log("train/loss", whole, prog_bar=True)
            return self.penalised(loss, batch)
        prefix = self.prefix(stage, group)
        self._losses[prefix].update(loss.detach(), weight=weight)
        self._metrics[prefix].update(*self.scored(outputs, batch))
        return loss

    def penalised(self, loss: Tensor, batch: Any) -> Tensor:
        """Return a training loss with what the backbone adds to it, such as a balance of mechanisms."""
        penalty = self.backbone.penalty(batch.mask if isinstance(batch, SequenceBatch) else None)
        if penalty is None:
            return loss
        self.log("train/penalty", penalty.detach())
        return loss + penalty

    def trial(self, batch: Any) -> None:
        """Compute loss and metrics of a batch and keep nothing; raises where the batch does not fit the task."""
        if any(
            not method.__module__.startswith("rimlit.tasks")
            for method in (type(self).shared_step, type(self).training_step)
        ):
            return  # the steps of a subclass may take another kind of batch
        outputs, _ = self(batch.inputs)
        self.loss(outputs, batch)
        self.weight(batch)
        scored = self.scored(outputs, batch)
        for metric in self.metrics().values():
            metric.to(self.device).update(*scored)

    def prefix(self, stage: Stage, group: int) -> str:
        """Return the prefix of a metric's name: ``val``, or ``test/span_200`` for a named group."""
        names = self.group_names(stage)
        name = names[group] if group < len(names) else f"group_{group}"
        return f"{stage}/{name}" if name else stage

    def group_names(self, stage: Stage) -> list[str]:
        """Return the name of each group of a stage, ``""`` where there is only one."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, DataModule):
            return data.group_names(stage)
        loaders = self.trainer.val_dataloaders if stage == "val" else self.trainer.test_dataloaders
        count = len(loaders) if isinstance(loaders, list) else 1
        return [""] if count == 1 else [f"group_{index}" for index in range(count)]

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """Run a training batch."""
        return self.shared_step(batch, "train")

    def validation_step(self, batch: Any, batch_index: int, dataloader_idx: int = 0) -> None:
        """Run a validation batch."""
        self.shared_step(batch, "val", dataloader_idx)

    def test_step(self, batch: Any, batch_index: int, dataloader_idx: int = 0) -> None:
        """Run a test batch."""
        self.shared_step(batch, "test", dataloader_idx)

    def predict_step(self, batch: Any, batch_index: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Return one plain record per sequence: inputs, targets, outputs."""
        outputs, _ = self(batch.inputs)
        rows = zip(batch.inputs.tolist(), batch.targets.tolist(), outputs.tolist(), strict=True)
        return [{"inputs": read, "targets": target, "outputs": output} for read, target, output in rows]

    def on_validation_epoch_start(self) -> None:
        """Start the validation metrics."""
        self._start_metrics("val")

    def on_test_epoch_start(self) -> None:
        """Start the test metrics."""
        self._start_metrics("test")

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_metrics(show=True)

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_metrics(show=False)

    def _start_metrics(self, stage: Stage) -> None:
        # not in groups: torchmetrics would take two metrics whose sums are alike after one batch for one
        self._metrics = {
            self.prefix(stage, group): MetricCollection(dict(self.metrics()), compute_groups=False).to(self.device)
            for group in range(len(self.group_names(stage)))
        }
        self._losses = {prefix: MeanMetric().to(self.device) for prefix in self._metrics}

    def _log_metrics(self, *, show: bool) -> None:
        for prefix, metrics in self._metrics.items():
            losses = self._losses[prefix]
            values = {**({"loss": losses.compute()} if losses.update_called else {}), **metrics.compute()}
            for name, value in values.items():
                self.log(
                    f"{prefix}/{name}",
                    value.float(),
                    prog_bar=show and name in self.headline,
                    # torchmetrics has already added up the processes' sums
                    sync_dist=False,
                )

    def on_train_start(self) -> None:
        """Log the floors."""
        self._log_floors()

    def on_test_start(self) -> None:
        """Log the floors."""
        self._log_floors()

    def _log_floors(self) -> None:
        floors = {f"floor/{name}": value for name, value in self.floors().items()}
        for logger in self.loggers:
            if floors and not self._has_logged_floors:
                logger.log_metrics(floors, step=0)
        self._has_logged_floors = True

    def floors(self) -> dict[str, float]:
        """Return the scores of a model that learned only the format; by default what the data module says."""
        data = getattr(self.trainer, "datamodule", None)
        return data.floors() if isinstance(data, DataModule) else {}

    def step_labels(self, batch: Any) -> list[str] | None:
        """Return what each step of a batch's first sequence is, for the activity figure; None if unnamed."""
        return None

    def configure_optimizers(self) -> Any:
        """Build optimiser and scheduler from their factories."""
        optimizer = self._built(self._optimizer, Optimizer, self.parameters())
        optimizer.register_step_post_hook(lambda stepped, *_: self.backbone.after_step(rate_share(stepped)))
        if self._scheduler is None:
            return optimizer
        spec = self._scheduler
        parameters = inspect.signature(find_class(spec["class_path"], LRScheduler)).parameters
        is_open = not any(spec["init_args"].get(name) for name in ("total_steps", "epochs"))
        if "total_steps" in parameters and is_open:
            spec = {**spec, "init_args": {**spec["init_args"], "total_steps": self.schedule_length()}}
        if issubclass(find_class(spec["class_path"], LRScheduler), ReduceLROnPlateau):
            spec = {**spec, "init_args": {**spec["init_args"], "mode": self._plateau_mode(spec)}}
        scheduler = self._built(spec, LRScheduler, optimizer)
        length = self.schedule_length()
        if isinstance(scheduler, OneCycleLR) and length is not None and scheduler.total_steps < length:
            raise ConfigError(
                f"OneCycleLR: total_steps must be at least the {length} of the run; got {scheduler.total_steps}. "
                "Leave it out, and it is the run's."
            )
        options: dict[str, Any] = {"scheduler": scheduler, "interval": self.schedule_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            validates_every = self.trainer.check_val_every_n_epoch or 1
            monitor = getattr(scheduler, "monitor", self.monitor)  # Lightning's class of this name takes one
            options |= {"interval": "epoch", "frequency": validates_every, "monitor": monitor}
            data, every = getattr(self.trainer, "datamodule", None), self.trainer.val_check_interval
            if isinstance(data, DataModule) and data.is_endless and isinstance(every, int):
                options |= {"interval": "step", "frequency": every}  # after each validation: no epoch ever ends
        return {"optimizer": optimizer, "lr_scheduler": options}

    def _plateau_mode(self, spec: Spec) -> str:
        """Return where ``monitor`` is better; torch's default, min, counts as none given."""
        if spec["init_args"].get("monitor", self.monitor) != self.monitor:
            return str(spec["init_args"].get("mode", "min"))
        mode = "max" if self.higher_is_better else "min"
        given = spec["init_args"].get("mode", "min")
        if given not in (mode, "min"):
            raise ConfigError(
                f"ReduceLROnPlateau: mode must be {mode!r}, as {self.monitor} is better there; got mode={given!r}."
            )
        return mode

    @property
    def schedule_interval(self) -> Literal["step", "epoch"]:
        """When a schedule advances: with every optimiser step, or with every epoch."""
        return "step"

    def schedule_length(self) -> int | None:
        """Return how often a schedule advances until the run's end, None where that is unknown."""
        steps = self.trainer.estimated_stepping_batches
        return None if math.isinf(steps) else int(steps)

    @staticmethod
    def _built(spec: Spec, base: type, *args: Any) -> Any:
        """Build; what a constructor of torch refuses is a setting too."""
        try:
            return build(spec, base, *args)
        except SpecError:
            raise
        except (ValueError, TypeError) as error:
            given = ", ".join(f"{name}={value!r}" for name, value in non_default_arguments(spec).items())
            values = f"; got {given}" if given and "got" not in str(error) else ""
            raise ConfigError(f"{spec['class_path'].split('.')[-1]}: {str(error).rstrip('.')}{values}.") from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds task and data from the file alone."""
        data = getattr(self.trainer, "datamodule", None)
        task = self.spec
        checkpoint["rimlit"] = {
            "version": __version__,
            "task": task,
            "data": data.spec if isinstance(data, DataModule) else None,
            "init_from": self.init_from,
            "sizes": declared_sizes(data, task["init_args"]) if isinstance(data, DataModule) else {},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore where the weights came from; outside training, fit them to another number of mechanisms."""
        self.init_from = checkpoint.get("rimlit", {}).get("init_from")
        if self._trainer is None or not self.trainer.training:
            checkpoint["state_dict"] = fit_mechanisms(self, checkpoint["state_dict"])

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, *, map_location: Any = None, strict: bool = True, **kwargs: Any
    ) -> Self:
        """Load a task from a checkpoint alone, always with ``weights_only=True``.

        Args:
            checkpoint_path: A local file.
            map_location: Device of the task; the CPU by default.
            strict: Whether the weights in the file must be exactly those of the task.
            **kwargs: Arguments of the task that replace the checkpoint's.

        Returns:
            A task of the class that the file names, in evaluation mode.

        Raises:
            CheckpointError: The file is missing, is no checkpoint of rimlit, or is one of another class.
            ConfigError: The file names a class outside the trusted packages.
        """
        checkpoint = read_checkpoint(checkpoint_path)
        if "task" not in checkpoint["rimlit"]:
            raise CheckpointError(f"{checkpoint_path} holds weights of a module that is no task of rimlit.")
        named = find_class(checkpoint["rimlit"]["task"]["class_path"], Task)
        if not issubclass(named, cls):
            raise CheckpointError(f"{checkpoint_path} holds a {named.__name__}, which is no {cls.__name__}.")
        # not by Lightning's loader, which would read the file again and instantiate what it names
        spec = checkpoint["rimlit"]["task"]
        changed = {**spec, "init_args": {**spec["init_args"], **kwargs}}
        task: Any = build(changed, Task) if kwargs else build_saved(spec, checkpoint_path, Task)
        task.on_load_checkpoint(checkpoint)
        load_weights(task, checkpoint["state_dict"], checkpoint_path, strict=strict)
        loaded: Self = task.eval() if map_location is None else task.to(map_location).eval()
        return loaded


def _outermost_frame() -> FrameType:
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
    return frame


def _replace_encoder(encoder: nn.Module, factory: Any, task: str) -> nn.Module:
    """Build an encoder in place of the one that a task made, for the same inputs."""
    spec = to_spec(factory, "encoder")
    size = getattr(encoder, "input_size", None)
    if size is None:
        raise ConfigError(
            f"{task} cannot be given encoder={spec['class_path']!r}: its own {type(encoder).__name__} has no "
            "attribute input_size, with which a factory is called."
        )
    replaced: nn.Module = build(spec, Encoder, size)
    return replaced


def over_processes(loss: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Make the loss of this process's share one of the whole batch.

    Args:
        loss: Mean over the share, a scalar.
        weight: How many values it is the mean of.

    Returns:
        The share's part of the loss, whose gradient, averaged over the processes, is that of the whole batch, and
        the whole batch's loss, without a gradient.
    """
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return loss, loss.detach()
    sums = torch.stack([loss.detach().double() * weight, weight.double()])
    distributed.all_reduce(sums)
    total = sums[1].clamp(min=1)
    return loss * (weight * world_size / total).to(loss.dtype), (sums[0] / total).to(loss.dtype)
