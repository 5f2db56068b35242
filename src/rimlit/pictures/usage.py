"""How much each mechanism is used, how evenly, and in which steps: counts over batches, and a figure of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEAD_BELOW = 0.01
"""A mechanism used in a smaller share of steps counts as dead."""
MOST_LABELS = 16
"""Kinds of steps for which activity is counted apart; of more, such as letters, each would be too rare."""


class Usage(NamedTuple):
    """How the mechanisms of one layer were used. p is the share of each among all updates.

    Both measures of collapse are those of Mittal et al. 2022 (arXiv:2206.02713).
    """

    share: Tensor  # (M,): share of steps in which each was active
    entropy: float  # of p; 1 when all are used alike, 0 when only one is
    dead: int  # mechanisms used in under 1 % of steps
    switch_rate: float  # share of mechanisms whose activity changes from a step to the next
    collapse_average: float = (
        0.0  # M / (M − 1) · Σ max(0, 1/M − p) (Mittal et al. 2022); 0: even use, 1: one alone
    )
    collapse_worst: float = 0.0  # 1 − M · min p (Mittal et al. 2022); 0: even use, 1: one is never used
    turnover: float = 0.0  # 1 − mean Jaccard index of the sets active in consecutive steps; 0: always the same set
    similarity: float | None = None  # mean cosine of the states of two mechanisms
    information: Tensor | None = None  # (M,): mutual information of activity and the step's label, nats
    by_label: dict[str, Tensor] | None = None  # (M,) for each label: share of its steps in which each was active

    def numbers(self) -> dict[str, float]:
        """Return what is logged, by name."""
        found = {f"usage_{m}": share for m, share in enumerate(self.share.tolist())}
        found |= {"usage_entropy": self.entropy, "dead": self.dead, "dead_share": self.dead / len(self.share)}
        found |= {"collapse_average": self.collapse_average, "collapse_worst": self.collapse_worst}
        found |= {"switch_rate": self.switch_rate, "turnover": self.turnover}
        if self.similarity is not None:
            found["state_similarity"] = self.similarity
        if self.information is not None:
            found["label_information"] = float(self.information.mean())
            found |= {f"label_information_{m}": value for m, value in enumerate(self.information.tolist())}
        return found


class UsageCounter:
    """Add up the activity of one layer over batches."""

    summed: ClassVar[tuple[str, ...]] = (
        "active",
        "steps",
        "switches",
        "transitions",
        "overlap",
        "cosine",
        "compared",
    )
    """What processes add up. Labels are counted by each for itself."""

    def __init__(self, num_mechanisms: int, device: torch.device) -> None:
        real = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.active = torch.zeros(num_mechanisms, dtype=torch.long, device=device)
        self.steps = torch.zeros((), dtype=torch.long, device=device)
        self.switches = torch.zeros((), dtype=torch.long, device=device)
        self.transitions = torch.zeros((), dtype=torch.long, device=device)
        self.overlap = torch.zeros((), dtype=real, device=device)
        self.cosine = torch.zeros((), dtype=real, device=device)
        self.compared = torch.zeros((), dtype=torch.long, device=device)
        self.labelled: dict[str, Tensor] = {}  # (M + 1,): active in steps of this label, and their number
        self.has_many_labels = False

    def add(
        self,
        active: Tensor,
        mask: Tensor | None = None,
        *,
        hidden: Tensor | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            active: (B, T, M) bool.
            mask: (B, T) bool: steps that are not padding; None where all count.
            hidden: States after each step, (B, T, M, d).
            labels: What each step of the first sequence is.
        """
        if mask is None:
            mask = torch.ones_like(active[..., 0])
        self.active += (active & mask[..., None]).sum(dim=(0, 1))
        self.steps += mask.sum()
        both = mask[:, 1:] & mask[:, :-1]
        before, after = active[:, :-1], active[:, 1:]
        self.switches += ((after != before) & both[..., None]).sum()
        self.transitions += both.sum()
        shared, either = (before & after).sum(dim=-1), (before | after).sum(dim=-1)
        # two empty sets are the same
        self.overlap += (torch.where(either > 0, shared / either.clamp(min=1), 1) * both).sum()
        if hidden is not None and hidden.shape[2] > 1:
            self.cosine += (mean_cosine(hidden) * mask).sum()
            self.compared += mask.sum()
        if labels:
            self._add_labels(active[0, : len(labels)].cpu(), labels[: active.shape[1]])

    def _add_labels(self, active: Tensor, labels: Sequence[str]) -> None:
        kinds = list(dict.fromkeys(labels))
        self.has_many_labels |= len({*self.labelled, *kinds}) > MOST_LABELS
        for kind in () if self.has_many_labels else kinds:
            flags = active[torch.tensor([label == kind for label in labels])]
            counts = torch.cat([flags.sum(dim=0), torch.tensor([len(flags)])])
            self.labelled[kind] = self.labelled.get(kind, 0) + counts

    def usage(self) -> Usage:
        """Return the usage over everything added."""
        share = self.active.cpu().double() / int(self.steps.clamp(min=1))
        parts = share / share.sum().clamp(min=1e-12)
        num_mechanisms = len(share)
        entropy = -(parts * parts.clamp(min=1e-12).log()).sum()
        lacks = (1 / num_mechanisms - parts).clamp(min=0).sum()
        if num_mechanisms > 1:
            entropy = entropy / torch.tensor(float(num_mechanisms)).log()
            lacks = lacks * num_mechanisms / (num_mechanisms - 1)
        transitions = self.transitions.clamp(min=1)
        is_labelled = len(self.labelled) > 1 and not self.has_many_labels
        return Usage(
            share,
            entropy.item(),
            int((share < DEAD_BELOW).sum()),
            float(self.switches / (transitions * num_mechanisms)),
            float(lacks.clamp(max=1)),  # where none is used
            float(1 - num_mechanisms * parts.min()),
            float((self.transitions - self.overlap) / transitions),
            float(self.cosine / self.compared) if self.compared > 0 else None,
            label_information(torch.stack([*self.labelled.values()])) if is_labelled else None,
            {label: counts[:-1] / counts[-1] for label, counts in self.labelled.items()} if is_labelled else None,
        )


def mean_cosine(hidden: Tensor) -> Tensor:
    """Return the mean cosine of the angle between two mechanisms' states (B, T), from states (B, T, M, d).

    Example:
        >>> mean_cosine(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])[None, None]).tolist()  # 1, 0 and 0
        [[0.3333333432674408]]
    """
    directions = functional.normalize(hidden.float(), dim=-1)
    lengths = directions.square().sum(dim=(-2, -1))  # M, but for states of zeros
    number = hidden.shape[-2]
    return (directions.sum(dim=-2).square().sum(dim=-1) - lengths) / (number * (number - 1))


def label_information(counts: Tensor) -> Tensor:
    """Return the mutual information (M,) of each mechanism's activity and the label, nats.

    Args:
        counts: Steps of each label in which each mechanism was active and, last, steps of the label, (L, M + 1).

    Example:
        >>> label_information(torch.tensor([[4, 0, 2, 4], [0, 0, 2, 4]])).tolist()  # log(2), 0, 0
        [0.6931471805599453, 0.0, 0.0]
    """
    on, steps = counts[:, :-1].double(), counts[:, -1:].double()
    joint = torch.stack([on, steps - on]) / steps.sum()  # (2, L, M)
    independent = joint.sum(dim=1, keepdim=True) * (steps / steps.sum())
    information: Tensor = torch.special.xlogy(joint, joint / independent.clamp(min=1e-300)).sum(dim=(0, 1))
    return information.clamp(min=0)


def draw_usage(usages: Sequence[Usage], *, run: str = "") -> "Figure":
    """Draw how much each mechanism was used and, where steps have labels, in which steps.

    Args:
        usages: One for each layer.
        run: Name of the run, for the title.

    Returns:
        A matplotlib figure, a row of panels per layer.
    """
    from matplotlib.figure import Figure

    num_mechanisms = len(usages[0].share)
    has_labels = any(usage.by_label for usage in usages)
    width = 2.5 + 0.45 * max(num_mechanisms, 6)
    figure = Figure(figsize=(width * (2 if has_labels else 1), 0.5 + 3.1 * len(usages)), layout="constrained")
    panels = figure.subplots(len(usages), 2 if has_labels else 1, squeeze=False)
    figure.suptitle(f"{f'{run}: ' if run else ''}use of {num_mechanisms} mechanisms", fontsize=11)
    for layer, usage in enumerate(usages):
        prefix = f"layer {layer}: " if len(usages) > 1 else ""
        _draw_shares(panels[layer, 0], usage, prefix)
        if has_labels:
            _draw_by_label(figure, panels[layer, 1], usage, prefix)
    return figure


def _draw_shares(axis: Any, usage: Usage, prefix: str) -> None:
    shares = usage.share.tolist()
    colours = ["#EE6677" if share < DEAD_BELOW else "#4477AA" for share in shares]
    axis.bar(range(len(shares)), shares, color=colours)
    axis.axhline(sum(shares) / len(shares), color="#222222", linestyle="--", linewidth=1)
    axis.set_ylim(0, 1)
    axis.set_xticks(range(len(shares)))
    axis.set_xlabel(_summary(usage), fontsize=8)
    axis.set_ylabel("share of steps active")
    dead = f", {usage.dead} dead" if usage.dead else ""
    axis.set_title(f"{prefix}use of each mechanism{dead} (dashed: even use)", fontsize=10, loc="left")


def _summary(usage: Usage) -> str:
    first = f"mechanism\nentropy {usage.entropy:.2f} · collapse {usage.collapse_average:.2f}, worst "
    lines = [
        f"{first}{usage.collapse_worst:.2f}",
        f"switches {usage.switch_rate:.2f} · turnover {usage.turnover:.2f}",
    ]
    if usage.similarity is not None:
        lines[-1] += f" · state similarity {usage.similarity:.2f}"
    return "\n".join(lines)


def _draw_by_label(figure: "Figure", axis: Any, usage: Usage, prefix: str) -> None:
    if usage.by_label is None or usage.information is None:
        axis.set_axis_off()
        return
    shares = torch.stack([*usage.by_label.values()])
    image = axis.imshow(shares.numpy(), aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    axis.set_yticks(range(len(shares)), [*usage.by_label])
    axis.set_xticks(range(shares.shape[1]))
    axis.set_xlabel("mechanism", fontsize=8)
    mean, most = float(usage.information.mean()), float(usage.information.max())
    axis.set_title(f"{prefix}by kind of step: {mean:.2f} nats, at most {most:.2f}", fontsize=10, loc="left")
    figure.colorbar(image, ax=axis, pad=0.01, label="share active")
