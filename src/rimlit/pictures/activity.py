"""When each mechanism was active: usage on validation and test, and a figure (Goyal et al. 2021, fig. 4)."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from rimlit.pictures.files import save_figure, write_and_track
from rimlit.pictures.usage import Usage, UsageCounter, draw_usage
from rimlit.tasks import Task
from rimlit.tracking.mlflow_tracker import MLflowTracker
from rimlit.tracking.optional import optional
from rimlit.types import MechanismsActivity, Watched, mechanisms_of_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Sample(NamedTuple):
    """Activity in one sequence, and its average over the sequences of the batch that have the same length."""

    active: list[Tensor]  # (T, M) for each layer, 0 or 1
    average: list[Tensor]  # (T, M) for each layer: share of sequences
    num_averaged: int
    labels: list[str] | None  # (T,): what each step is
    inputs: Tensor | None  # (T, D): shown where the steps have no labels


class MechanismActivity(L.Callback):
    """Log how the mechanisms of a task's backbone are used and draw when each was active.

    Logs the numbers of :class:`rimlit.pictures.usage.Usage` as ``mechanisms/usage_<m>``, ``mechanisms/dead`` and
    so on, with the prefix ``layer_<l>/`` where there are several layers: of each validation, and of each named
    group of a test (a span, an environment) with the group's name as prefix. In MLflow these are
    ``usage_entropy``, ``dead`` and ``switch_rate`` of a validation, as ``val/mechanisms/…``, and all of a test in
    the file ``mechanisms.json``. Activity is recorded in the ordinary forward passes, without a second one. The
    callback does nothing for backbones without mechanisms.

    Args:
        figure: Whether to draw figures at the end of training and of a test, and to write ``mechanisms.json``.
            ``figures/activity.png`` shows when each mechanism was active, in a sequence of the first validation or
            test group and on average over its batch; ``figures/mechanisms.png`` how much each was used, and in
            which kind of step.
    """

    def __init__(self, *, figure: bool = True) -> None:
        self.figure = figure
        self._watching = ExitStack()
        self._counters: dict[str, list[UsageCounter]] = {}  # by group
        self._group = ""
        self._mask: Tensor | None = None
        self._labels: list[str] | None = None
        self._inputs: Tensor | None = None
        self._wants_sample = False
        self._sample: Sample | None = None
        self._usages: list[Usage] = []  # of the first group, by layer

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting."""
        self._start(pl_module, [""])

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting."""
        self._start(pl_module, pl_module.group_names("test") if isinstance(pl_module, Task) else [""])

    def _start(self, module: L.LightningModule, groups: list[str]) -> None:
        self._watching.close()
        backbone = getattr(module, "backbone", None)
        if isinstance(backbone, Watched):
            self._watching.enter_context(backbone.watch(self._add))
            self._counters = {
                group: [UsageCounter(number, module.device) for number in mechanisms_of_layers(backbone)]
                for group in groups
            }
            self._wants_sample = True

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *indices: int
    ) -> None:
        """Remember which steps are padding."""
        self._note_batch(pl_module, batch, 0)

    def on_test_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Remember which steps are padding, and the group of the batch."""
        self._note_batch(pl_module, batch, dataloader_idx)

    def _note_batch(self, module: L.LightningModule, batch: Any, group: int) -> None:
        self._group = dict(enumerate(self._counters)).get(group, "")
        mask = getattr(batch, "mask", None)
        self._mask = mask if isinstance(mask, Tensor) else None
        self._labels = None
        wants_labels = any(not counter.has_many_labels for counter in self._counters.get(self._group, ()))
        if isinstance(module, Task) and (wants_labels or self._wants_sample):
            self._labels = module.step_labels(batch)
        if self._wants_sample and isinstance(module, Task):
            inputs = getattr(batch, "inputs", None)
            self._inputs = inputs if isinstance(inputs, Tensor) and inputs.dim() >= 2 else None

    def _add(self, activities: tuple[MechanismsActivity, ...]) -> None:
        for counter, activity in zip(self._counters[self._group], activities, strict=True):
            hidden = getattr(activity, "hidden", None)
            counter.add(activity.active, self._mask, hidden=hidden, labels=self._labels)
        if self._wants_sample:
            self._wants_sample = False
            active = [activity.active.float() for activity in activities]
            length = active[0].shape[1] if self._mask is None else int(self._mask[0].sum())
            shown = [layer[0, :length].cpu() for layer in active]
            # sequences of the same length as the first one, so that the average is over corresponding steps
            everything = torch.ones(len(active[0]), dtype=torch.bool)
            alike = everything if self._mask is None else self._mask.sum(dim=1) == length
            averages = [layer[alike, :length].mean(dim=0).cpu() for layer in active]
            inputs = None
            if self._labels is None and self._inputs is not None and self._inputs.shape[1] >= length:
                inputs = self._inputs[0, :length].detach().reshape(length, -1).float().cpu()
            self._sample = Sample(shown, averages, int(alike.sum()), self._labels, inputs)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the usage."""
        self._finish(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the usage in named groups, and draw the figure."""
        self._finish(trainer, pl_module)
        self._draw(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the figure."""
        self._draw(trainer)

    def _finish(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._watching.close()
        if trainer.sanity_checking:
            return
        metrics: dict[str, float] = {}
        counted = [
            (group, layer, counter)
            for group, counters in self._counters.items()
            for layer, counter in enumerate(counters)
        ]
        for group, layer, counter in counted:
            for name in counter.summed:
                setattr(counter, name, trainer.strategy.reduce(getattr(counter, name), reduce_op="sum"))
            usage = counter.usage()
            parts = ["mechanisms", group, f"layer_{layer}" if len(self._counters[group]) > 1 else ""]
            prefix = "/".join(filter(None, parts))
            metrics |= {f"{prefix}/{name}": value for name, value in usage.numbers().items()}
            if group == next(iter(self._counters)):
                self._usages = [*self._usages[:layer], usage]
        if trainer.testing and metrics and self.figure and trainer.is_global_zero:
            with optional("mechanisms.json"):
                write_and_track(trainer, "mechanisms.json", json.dumps(metrics, indent=2) + "\n")
        if trainer.testing and "" in self._counters:
            return  # their names are those of a validation
        trainer.callback_metrics.update({name: torch.tensor(float(value)) for name, value in metrics.items()})
        with optional("The use of mechanisms"):
            self._log(trainer, metrics)

    def _log(self, trainer: L.Trainer, metrics: Mapping[str, float]) -> None:
        for logger in trainer.loggers if metrics else []:
            if not isinstance(logger, MLflowTracker):
                logger.log_metrics(dict(metrics), step=trainer.global_step)
            elif not trainer.testing:  # the numbers by which runs are compared
                few = {f"val/{name}": value for name, value in metrics.items() if name.split("/")[-1] in COMPARED}
                logger.log_metrics(few, step=trainer.global_step)

    def _draw(self, trainer: L.Trainer) -> None:
        if self.figure and self._sample is not None and trainer.is_global_zero:
            with optional("figures/activity.png"):
                sample, run = self._sample, Path(trainer.default_root_dir).name
                figure = draw_activity(
                    sample.active,
                    sample.average,
                    sample.labels,
                    run=run,
                    num_averaged=sample.num_averaged,
                    inputs=sample.inputs,
                )
                save_figure(trainer, figure, "activity.png")
        if self.figure and self._usages and trainer.is_global_zero:
            with optional("figures/mechanisms.png"):
                figure = draw_usage(self._usages, run=Path(trainer.default_root_dir).name)
                save_figure(trainer, figure, "mechanisms.png")


COMPARED = ("usage_entropy", "dead", "switch_rate")
"""Numbers of a validation by which MLflow compares runs."""
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")


MOST_INPUTS = 8
"""Features of the input that the strip shows."""


def draw_activity(
    active: Tensor | Sequence[Tensor],
    average: list[Tensor] | None = None,
    labels: list[str] | None = None,
    *,
    run: str = "",
    num_averaged: int | None = None,
    inputs: Tensor | None = None,
) -> "Figure":
    """Draw when each mechanism was active.

    Args:
        active: Activity of one sequence, (T, M) for each layer, 0 or 1.
        average: Share of sequences in which each mechanism was active, (T, M) for each layer.
        labels: Kind of each step. Few kinds, such as ``blank`` and ``recall``, are drawn as a coloured strip;
            many, such as letters, are written below the axis.
        run: Name of the run, for the title.
        num_averaged: Sequences that ``average`` is over.
        inputs: The sequence's input (T, D), whose first features are drawn where there are no labels.

    Returns:
        A matplotlib figure, one row of panels per layer.
    """
    from matplotlib.figure import Figure

    num_layers, num_steps = len(active), len(active[0])
    numbers = [layer.shape[1] for layer in active]
    num_mechanisms = max(numbers)
    rows = num_layers * (1 if average is None else 2)
    kinds = list(dict.fromkeys(labels or []))
    has_strip = labels is not None and 0 < len(kinds) <= len(COLOURS)
    has_inputs = labels is None and inputs is not None and inputs.numel() > 0
    heights = ([0.12] if has_strip else [0.4] if has_inputs else []) + [1.0] * rows
    height = 1.2 + (0.25 * num_mechanisms + 0.45) * (rows + (0.4 if has_inputs else 0))
    figure = Figure(figsize=(min(max(4 + 0.09 * num_steps, 7), 16), height), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0].tolist()
    if has_strip and labels is not None:
        _draw_labels(figure, axes.pop(0), labels[:num_steps], kinds)
    elif has_inputs and inputs is not None:
        _draw_inputs(axes.pop(0), inputs[:num_steps])
    counts = [_counts(layer) for layer in active] if len(set(numbers)) > 1 else [_counts(torch.stack([*active]))]
    figure.suptitle(f"{f'{run}: ' if run else ''}{' and '.join(counts)} mechanisms active per step", fontsize=11)
    averaged = "" if num_averaged is None else f"{num_averaged} "
    for layer in range(num_layers):
        prefix = f"layer {layer}: " if num_layers > 1 else ""
        for title, picture in (
            ("one sequence", active[layer]),
            (f"average over {averaged}sequences", None if average is None else average[layer]),
        ):
            if picture is None:
                continue
            axis = axes.pop(0)
            image = axis.imshow(
                picture.T.numpy(), aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest"
            )
            axis.set_title(f"{prefix}active mechanisms, {title}", fontsize=10, loc="left")
            axis.set_ylabel("mechanism")
            axis.set_yticks(range(numbers[layer]))
            last = axis
            if title.startswith("average"):
                figure.colorbar(image, ax=axis, pad=0.01, label="share active")
    last.set_xlabel("step")
    last.xaxis.get_major_locator().set_params(integer=True)
    if labels and not has_strip and num_steps <= 120:
        shown = [label if label.isprintable() and label.strip() else "·" for label in labels[:num_steps]]
        last.set_xticks(range(num_steps), shown, fontsize=6)
    return figure


def _counts(active: Tensor) -> str:
    """Return how many of how many mechanisms (…, M) are active, in words."""
    counts = sorted({int(count) for count in active.sum(dim=-1).flatten().tolist()})
    some = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{some} of {active.shape[-1]}"


def _draw_labels(figure: "Figure", axis: Any, labels: list[str], kinds: list[str]) -> None:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    codes = torch.tensor([[kinds.index(label) for label in labels]])
    colours = ListedColormap(COLOURS[: len(kinds)])
    axis.imshow(codes.numpy(), aspect="auto", cmap=colours, vmin=-0.5, vmax=len(kinds) - 0.5)
    axis.set_yticks([])
    patches = [Patch(color=colour, label=kind) for kind, colour in zip(kinds, COLOURS, strict=False)]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(kinds), frameon=False)


def _draw_inputs(axis: Any, inputs: Tensor) -> None:
    """Draw the first features of the input, each from its least value (dark) to its greatest (bright)."""
    shown = inputs[:, :MOST_INPUTS].nan_to_num()
    low, high = shown.amin(dim=0), shown.amax(dim=0)
    shown = (shown - low) / (high - low).clamp(min=1e-12)
    axis.imshow(shown.T.numpy(), aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    axis.set_yticks([])
    total = inputs.shape[1]
    which = "" if total == shown.shape[1] else f", the first {shown.shape[1]} of {total}"
    axis.set_title(f"input{which} (each from its least to its greatest value)", fontsize=10, loc="left")
