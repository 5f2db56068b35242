"""Which mechanisms were active when: usage on validation, and a figure of it (Goyal et al. 2021, fig. 4)."""

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

from rimlit.backbones import RIM
from rimlit.kernels import Activity
from rimlit.tasks import Task
from rimlit.training.tracking import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEAD_BELOW = 0.01
"""A mechanism used in a smaller share of steps counts as dead."""


class Usage(NamedTuple):
    """How the mechanisms of one layer were used."""

    share: Tensor  # (M,): share of steps in which each was active
    entropy: float  # of the shares, normalised to sum to 1; 1 when all are used alike, 0 when only one is
    dead: int  # mechanisms used in under 1 % of steps
    switch_rate: float  # share of mechanisms whose activity changes from a step to the next


class UsageCounter:
    """Add up the activity of one layer over batches."""

    def __init__(self, num_mechanisms: int, device: torch.device) -> None:
        self.active = torch.zeros(num_mechanisms, dtype=torch.long, device=device)
        self.switches = torch.zeros((), dtype=torch.long, device=device)
        self.steps = torch.zeros((), dtype=torch.long, device=device)
        self.transitions = torch.zeros((), dtype=torch.long, device=device)

    def add(self, active: Tensor, mask: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            active: (B, T, M) bool.
            mask: (B, T) bool: steps that are not padding; None where all count.
        """
        if mask is None:
            mask = torch.ones_like(active[..., 0])
        self.active += (active & mask[..., None]).sum(dim=(0, 1))
        self.steps += mask.sum()
        both = mask[:, 1:] & mask[:, :-1]
        self.switches += ((active[:, 1:] != active[:, :-1]) & both[..., None]).sum()
        self.transitions += both.sum()

    def usage(self) -> Usage:
        """Return the usage over everything added."""
        share = self.active.double() / self.steps.clamp(min=1)
        parts = share / share.sum().clamp(min=1e-12)
        num_mechanisms = len(share)
        entropy = -(parts * parts.clamp(min=1e-12).log()).sum()
        if num_mechanisms > 1:
            entropy = entropy / torch.tensor(float(num_mechanisms)).log()
        rate = self.switches.double() / (self.transitions * num_mechanisms).clamp(min=1)
        return Usage(share.cpu(), entropy.item(), int((share < DEAD_BELOW).sum()), rate.item())


class MechanismActivity(L.Callback):
    """Log how the mechanisms of a task's RIM are used and draw when each was active.

    Logs ``mechanisms/usage_<m>``, ``mechanisms/usage_entropy`` (1: all alike, 0: only one),
    ``mechanisms/dead`` (used in under 1 % of steps) and ``mechanisms/switch_rate``, with ``layer_<l>/`` before
    the name where there are several layers: those of a validation, and of each named group of a test (a span, an
    environment) with its name before. It reads what ordinary forwards report, without a second pass, and does
    nothing for backbones that have no mechanisms.

    Args:
        figure: Whether to draw the figure, ``figures/activity.png``, at the end of training and of a test. It
            shows a sequence of the first validation or test group and the average over its batch.
    """

    def __init__(self, *, figure: bool = True) -> None:
        self.figure = figure
        self._watching = ExitStack()
        self._counters: dict[str, list[UsageCounter]] = {}  # by group
        self._group = ""
        self._mask: Tensor | None = None
        self._labels: list[str] | None = None
        self._wants_sample = False
        self._sample: tuple[list[str] | None, Tensor, list[Tensor]] | None = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting."""
        self._start(pl_module, [""])

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start counting."""
        self._start(pl_module, pl_module.group_names("test") if isinstance(pl_module, Task) else [""])

    def _start(self, module: L.LightningModule, groups: list[str]) -> None:
        self._watching.close()
        backbone = getattr(module, "backbone", None)
        if isinstance(backbone, RIM):
            self._watching.enter_context(backbone.watch(self._add))
            self._counters = {
                group: [UsageCounter(backbone.num_mechanisms, module.device) for _ in backbone.layers]
                for group in groups
            }
            self._wants_sample = True

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *indices: int
    ) -> None:
        """Remember which steps are padding."""
        self._look_at(pl_module, batch, 0)

    def on_test_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Remember which steps are padding, and whose they are."""
        self._look_at(pl_module, batch, dataloader_idx)

    def _look_at(self, module: L.LightningModule, batch: Any, group: int) -> None:
        self._group = dict(enumerate(self._counters)).get(group, "")
        mask = getattr(batch, "mask", None)
        self._mask = mask if isinstance(mask, Tensor) else None
        if self._wants_sample and isinstance(module, Task):
            self._labels = module.step_labels(batch)

    def _add(self, activities: tuple[Activity, ...]) -> None:
        for counter, activity in zip(self._counters[self._group], activities, strict=True):
            counter.add(activity.active, self._mask)
        if self._wants_sample:
            self._wants_sample = False
            active = [activity.active.float() for activity in activities]
            length = active[0].shape[1] if self._mask is None else int(self._mask[0].sum())
            shown = torch.stack([layer[0, :length].cpu() for layer in active])  # (layers, T, M)
            # sequences as long as the first one, so that the average is over like steps
            alike = slice(None) if self._mask is None else self._mask.sum(dim=1) == length
            averages = [layer[alike, :length].mean(dim=0).cpu() for layer in active]
            self._sample = (self._labels, shown, averages)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the usage."""
        self._finish(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the usage in named groups, and draw the figure."""
        self._counters.pop("", None)
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
            for name in ("active", "switches", "steps", "transitions"):
                setattr(counter, name, trainer.strategy.reduce(getattr(counter, name), reduce_op="sum"))
            usage = counter.usage()
            parts = ["mechanisms", group, f"layer_{layer}" if len(self._counters[group]) > 1 else ""]
            prefix = "/".join(filter(None, parts))
            metrics |= {f"{prefix}/usage_{m}": share for m, share in enumerate(usage.share.tolist())}
            metrics[f"{prefix}/usage_entropy"] = usage.entropy
            metrics[f"{prefix}/dead"] = usage.dead
            metrics[f"{prefix}/switch_rate"] = usage.switch_rate
        trainer.callback_metrics.update({name: torch.tensor(float(value)) for name, value in metrics.items()})
        for logger in trainer.loggers if metrics else []:
            logger.log_metrics(metrics, step=trainer.global_step)

    def _draw(self, trainer: L.Trainer) -> None:
        if self.figure and self._sample is not None and trainer.is_global_zero:
            labels, shown, averages = self._sample
            save_figure(trainer, draw_activity(shown, averages, labels), "activity.png")


COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")


def draw_activity(
    active: Tensor, average: list[Tensor] | None = None, labels: list[str] | None = None
) -> "Figure":
    """Draw when each mechanism was active.

    Args:
        active: Activity of one sequence (layers, T, M), 0 or 1.
        average: Share of sequences in which each mechanism was active, (T, M) for each layer.
        labels: What each step is: few kinds, such as ``blank`` and ``recall``, become a coloured strip; many,
            such as letters, are written below.

    Returns:
        A matplotlib figure, one row of panels per layer.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    num_layers, num_steps, num_mechanisms = active.shape
    panels = [(f"layer {layer}: " if num_layers > 1 else "", layer) for layer in range(num_layers)]
    rows = num_layers * (1 if average is None else 2)
    kinds = list(dict.fromkeys(labels or []))
    has_strip = 0 < len(kinds) <= len(COLOURS)
    heights = ([0.12] if has_strip else []) + [1.0] * rows
    height = 0.9 + (0.25 * num_mechanisms + 0.45) * rows
    figure = Figure(figsize=(min(4 + 0.09 * num_steps, 16), height), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0].tolist()
    if has_strip and labels is not None:
        strip = axes.pop(0)
        codes = torch.tensor([[kinds.index(label) for label in labels[:num_steps]]])
        from matplotlib.colors import ListedColormap

        strip.imshow(
            codes.numpy(),
            aspect="auto",
            cmap=ListedColormap(COLOURS[: len(kinds)]),
            vmin=-0.5,
            vmax=len(kinds) - 0.5,
        )
        strip.set_yticks([])
        patches = [Patch(color=colour, label=kind) for kind, colour in zip(kinds, COLOURS, strict=False)]
        figure.legend(handles=patches, loc="outside upper center", ncols=len(kinds), frameon=False)
    for prefix, layer in panels:
        for title, picture in (
            ("one sequence", active[layer]),
            ("average over sequences", None if average is None else average[layer]),
        ):
            if picture is None:
                continue
            axis = axes.pop(0)
            image = axis.imshow(
                picture.T.numpy(), aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest"
            )
            axis.set_title(f"{prefix}active mechanisms, {title}", fontsize=10, loc="left")
            axis.set_ylabel("mechanism")
            axis.set_yticks(range(num_mechanisms))
            last = axis
            if title.startswith("average"):
                figure.colorbar(image, ax=axis, pad=0.01, label="share active")
    last.set_xlabel("step")
    last.xaxis.get_major_locator().set_params(integer=True)
    if labels and not has_strip and num_steps <= 120:
        shown = [label if label.isprintable() and label.strip() else "·" for label in labels[:num_steps]]
        last.set_xticks(range(num_steps), shown, fontsize=6)
    return figure
