"""Metrics of predicted frames, for each frame ahead: cross-entropy, F1 of pixels, position errors of balls."""

import math
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

FRAMES_LOGGED = (1, 5, 10, 20)
"""Frames ahead whose scores are logged by themselves, beside the mean over all."""

FRAME_METRICS = ("bce", "f1", "position_error")

Sums = dict[str, tuple[Tensor, Tensor]]
"""By metric what is added up and what it is divided by at the end, each (T,): one for each frame ahead."""


def frame_scores(logits: Tensor, frames: Tensor, found: Tensor, positions: Tensor, visible: Tensor) -> Sums:
    """Score predicted frames.

    Args:
        logits: Predictions (B, T, height, width) before the sigmoid.
        frames: True frames (B, T, height, width), 0 to 1.
        found: Where the prediction has its balls (B, T, any number, 2), pixels; NaN for one it lacks.
        positions: Where they are (B, T, balls, 2), pixels.
        visible: (B, T, balls) bool: balls that are scored.

    Returns:
        ``bce``: nats a pixel. ``f1``: of the pixels that are lit, counted over all sequences together.
        ``position_error``: pixels, from each ball to the one it is matched with, so that their sum is least.
    """
    losses = functional.binary_cross_entropy_with_logits(logits, frames.to(logits.dtype), reduction="none")
    pixels = torch.full_like(losses[0, :, 0, 0], losses[:, 0].numel())
    return {
        "bce": (losses.sum(dim=(0, 2, 3), dtype=torch.float64), pixels),
        "f1": _f1(logits > 0, frames > 0.5),
        "position_error": _position_errors(found, positions, visible),
    }


def drawn_frame_scores(drawn: Tensor, frames: Tensor, found: Tensor, positions: Tensor, visible: Tensor) -> Sums:
    """Score frames that are drawn and not predicted, ``drawn`` (B, T, height, width), 0 or 1.

    For their cross-entropy a lit pixel counts as a probability of .99 and a dark one as one of .01. All else is as
    in :func:`frame_scores`.
    """
    wrong = (drawn != frames).sum(dim=(0, 2, 3))
    pixels = torch.full_like(wrong, frames[:, 0].numel())
    return {
        "bce": (-math.log(0.01) * wrong.double() - math.log(0.99) * (pixels - wrong), pixels),
        "f1": _f1(drawn > 0, frames > 0),
        "position_error": _position_errors(found, positions, visible),
    }


def copied_frame_scores(last: Tensor, frames: Tensor) -> Sums:
    """Score the repetition of a frame; its pixels count as probabilities of .01 to .99.

    Args:
        last: The last true frame (B, [channels,] height, width), 0 to 1.
        frames: True frames after it (B, T, [channels,] height, width).

    Returns:
        ``bce``, ``f1`` as in :func:`frame_scores`, and ``mse``, a pixel.
    """
    drawn = last[:, None].expand_as(frames)
    logits = drawn.double().clamp(0.01, 0.99).logit()
    losses = functional.binary_cross_entropy_with_logits(logits, frames.double(), reduction="none")
    pixels = torch.full((frames.shape[1],), frames[:, 0].numel())
    return {
        "bce": (losses.transpose(0, 1).flatten(1).sum(dim=1), pixels),
        "f1": _f1((drawn > 0.5).flatten(2, -2), (frames > 0.5).flatten(2, -2)),
        "mse": ((drawn - frames).double().square().transpose(0, 1).flatten(1).sum(dim=1), pixels),
    }


def _f1(predicted: Tensor, lit: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each frame ahead twice the hits, and all pixels predicted and lit: their ratio is F1."""
    hits = 2 * (predicted & lit).sum(dim=(0, 2, 3))
    return hits, predicted.sum(dim=(0, 2, 3)) + lit.sum(dim=(0, 2, 3))


def _position_errors(found: Tensor, positions: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each frame ahead the distances of matched balls, added up, and their number."""
    distances = torch.cdist(positions.double(), found.double())  # (B, T, balls, found)
    totals = [0.0] * positions.shape[1]
    every = distances.cpu().numpy()
    is_scored, is_found = visible.cpu().numpy(), ~found.isnan().any(dim=-1).cpu().numpy()
    for sequence in range(positions.shape[0]):
        for step in range(positions.shape[1]):
            part = every[sequence, step][is_scored[sequence, step]][:, is_found[sequence, step]]
            totals[step] += float(part[linear_sum_assignment(part)].sum())
    return distances.new_tensor(totals), visible.sum(dim=(0, 2))


def locate_balls(frames: Tensor, radii: Tensor) -> Tensor:
    """Find balls of known radii in frames, the largest first.

    A ball is where a disk of its radius covers most light; its centre is then moved to the centre of the light
    under the disk until it rests, and the light under it is removed before the next ball is located. How many
    balls there are and how large is known, where they are is not. On true frames the error is a tenth of a pixel,
    more where a curtain cuts a ball. Its limits: a ball that has faded is found where most of what is left shines,
    and a frame of nothing has all its balls in one corner.

    Args:
        frames: Probabilities (frames, height, width), 0 to 1.
        radii: (frames, balls), pixels; 0 for a ball that is not looked for.

    Returns:
        Centres (frames, balls, 2), x and y in pixels; NaN for a ball that is not looked for.

    Example:
        >>> frame = torch.zeros(1, 9, 9)
        >>> frame[0, 3:6, 4:7] = 1.0
        >>> locate_balls(frame, torch.tensor([[1.5]])).tolist()
        [[[5.5, 4.5]]]
    """
    if radii.shape[1] == 0:
        return radii.new_zeros(len(radii), 0, 2)
    radii, order = radii.sort(dim=1, descending=True)
    reach = int(radii.max().ceil()) + 2
    rest = functional.pad(frames.float(), (reach,) * 4)
    offsets = torch.arange(-reach, reach + 1, device=frames.device)
    centres = torch.full((*radii.shape, 2), torch.nan, device=frames.device)
    for ball in range(radii.shape[1]):
        for radius in torch.unique(radii[:, ball]).tolist():
            rows = (radii[:, ball] == radius).nonzero()[:, 0]
            if radius > 0:
                centres[rows, ball] = _take_ball(rest, rows, radius, offsets) - reach
    return torch.empty_like(centres).scatter_(1, order[..., None].expand_as(centres), centres)


def _take_ball(rest: Tensor, rows: Tensor, radius: float, offsets: Tensor) -> Tensor:
    """Find one ball in some frames of ``rest`` and remove its light; returns centres (rows, 2)."""
    margin = len(offsets) // 2
    best = _light_under_disks(rest[rows], radius, margin).flatten(1).argmax(dim=1)
    width = rest.shape[2] - 2 * margin
    y, x = best // width + margin, best % width + margin
    at = rows[:, None, None], (y[:, None] + offsets)[:, :, None], (x[:, None] + offsets)[:, None, :]
    light = rest[at]
    where = torch.stack([at[2].expand_as(light), at[1].expand_as(light)], dim=-1) + 0.5  # (rows, side, side, 2)
    centre = torch.stack([x, y], dim=-1) + 0.5
    for _ in range(8):
        under = light * ((where - centre[:, None, None]).square().sum(dim=-1) < radius**2)
        amount = under.sum(dim=(1, 2))[:, None]
        moved = (under[..., None] * where).sum(dim=(1, 2)) / amount.clamp(min=1e-6)
        centre = torch.where(amount > 1e-6, moved, centre)
    rest[at] = light * ((where - centre[:, None, None]).square().sum(dim=-1) >= radius**2)
    return centre


def _light_under_disks(frames: Tensor, radius: float, margin: int) -> Tensor:
    """Return the light under a disk around every pixel that is not in the margin of ``frames``."""
    height, width = (side - 2 * margin for side in frames.shape[1:])
    sums = functional.pad(frames, (1, 0)).cumsum(dim=2)  # of a row, up to a column: a disk is a stack of rows
    light = frames.new_zeros(len(frames), height, width)
    for y in range(-margin, margin + 1):
        # pixels at x with x² + y² < radius²
        half = sum(x**2 + y**2 < radius**2 for x in range(1, margin + 1)) if abs(y) < radius else -1
        if half >= 0:
            row = sums[:, margin + y : margin + y + height]
            light += row[:, :, margin + half + 1 :][:, :, :width] - row[:, :, margin - half :][:, :, :width]
    return light


def summarise(metric: str, curve: Tensor) -> dict[str, Tensor]:
    """Return the mean of ``curve`` (T,) and its values at some frames ahead, by name.

    Example:
        >>> summarise("f1", torch.tensor([1.0, 0.5]))
        {'f1': tensor(0.7500), 'f1_at_1': tensor(1.)}
    """
    reached = {f"{metric}_at_{frame}": curve[frame - 1] for frame in FRAMES_LOGGED if frame <= len(curve)}
    return {metric: curve.mean(), **reached}


def summary_names(metric: str, num_frames: int) -> tuple[str, ...]:
    """Return the names that :func:`summarise` gives for a curve (num_frames,)."""
    return tuple(summarise(metric, torch.zeros(num_frames)))


class FrameScores(Metric):
    """Scores of rolled-out frames, for each frame ahead; see :func:`frame_scores`.

    :meth:`compute` gives each score's mean over all frames ahead and its value at some, by the ``names`` (the ones
    of ``position_error`` where a ball is known); ``curves`` then holds each score of every frame (T,).

    Args:
        num_frames: Frames ahead.
    """

    full_state_update = False
    num_balls: Tensor

    def __init__(self, num_frames: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(name for metric in FRAME_METRICS for name in summary_names(metric, num_frames))
        self.curves: dict[str, Tensor] = {}
        # where no ball is known, none has an error
        self.add_state("num_balls", torch.tensor(0), dist_reduce_fx="sum")
        for metric in FRAME_METRICS:
            for part in ("total", "count"):
                zeros = torch.zeros(num_frames, dtype=torch.float64)
                self.add_state(f"{metric}_{part}", zeros, dist_reduce_fx="sum")

    def update(self, logits: Tensor, frames: Tensor, radii: Tensor, positions: Tensor, visible: Tensor) -> None:
        """Add predictions; shapes as in :func:`frame_scores`, radii (B, balls) in pixels."""
        self.num_balls += radii.shape[1]
        logits = logits.float()
        sought = (radii[:, None] * visible).flatten(0, 1)  # (B · T, balls)
        found = locate_balls(logits.sigmoid().flatten(0, 1), sought).view(*logits.shape[:2], sought.shape[1], 2)
        for metric, (total, count) in frame_scores(logits, frames, found, positions, visible).items():
            for part, value in (("total", total), ("count", count)):
                getattr(self, f"{metric}_{part}").add_(value)

    def compute(self) -> dict[str, Tensor]:
        """Return means and values at some frames, by name."""
        # here the states hold all processes' sums
        self.curves = {
            metric: getattr(self, f"{metric}_total") / getattr(self, f"{metric}_count").clamp(min=1)
            for metric in FRAME_METRICS
            if metric != "position_error" or bool(self.num_balls > 0)
        }
        summaries = [summarise(metric, curve) for metric, curve in self.curves.items()]
        return {name: value for summary in summaries for name, value in summary.items()}


class FrameSquaredError(Metric):
    """Mean squared error of rolled-out frames with shades, a pixel, for each frame ahead.

    :meth:`compute` gives the mean over all frames ahead and its value at some, by the ``names``; ``curve`` then
    holds that of every frame (T,).

    Args:
        num_frames: Frames ahead.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, num_frames: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = summary_names("mse", num_frames)
        self.curve: Tensor | None = None
        self.add_state("total", torch.zeros(num_frames, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, frames: Tensor, *balls: Tensor) -> None:
        """Add predictions (B, T, height, width) before the sigmoid, and true frames; balls are not read."""
        errors = (logits.float().sigmoid() - frames.float()).square()
        self.total += errors.sum(dim=(0, 2, 3), dtype=self.total.dtype)
        self.count += errors[:, 0].numel()

    def compute(self) -> dict[str, Tensor]:
        """Return the mean and the values at some frames, by name."""
        self.curve = self.total / self.count
        return summarise("mse", self.curve)
