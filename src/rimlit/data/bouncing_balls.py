"""Bouncing balls: frames of a box in which balls collide (Goyal et al. 2021, sec. 4.2, arXiv:1909.10893).

The data are those of van Steenkiste et al. 2018 (Relational Neural Expectation Maximization, arXiv:1802.10353),
whose generator was never published: this one, :mod:`rimlit.data.balls`, follows measurements of their frames.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rimlit.checks import require_at_least
from rimlit.data.balls import (
    BOX,
    CURTAIN_RADIUS,
    CURTAIN_SHARE,
    CURTAIN_SPEED,
    SPEED,
    BallSet,
    draw_motion,
    parse_ball_set,
    render,
    simulate,
)
from rimlit.data.base import DataModule, Split
from rimlit.data.drawn import DrawnDataset
from rimlit.errors import ConfigError
from rimlit.metrics.frames import drawn_frame_scores, summarise

COPY, ORACLE = "copy", "constant_velocity"


class Scene(NamedTuple):
    """One sequence, in pixels; balls that a scene lacks have radius 0."""

    positions: Tensor  # (T, balls, 2): x to the right, y down; pixel i has its centre at i + .5
    velocities: Tensor  # (T, balls, 2): pixels a frame
    radii: Tensor  # (balls,)
    curtain: Tensor  # (3,): left, top and width of the black square; width 0 for none


class FrameBatch(NamedTuple):
    """A batch of sequences of frames, with what is in them."""

    frames: Tensor  # (B, T, height, width) uint8, 0 or 1
    positions: Tensor  # (B, T, balls, 2), pixels
    velocities: Tensor  # (B, T, balls, 2), pixels a frame
    radii: Tensor  # (B, balls), pixels; 0 for a ball that is not there
    curtain: Tensor  # (B, 3), pixels: left, top, width

    @property
    def inputs(self) -> Tensor:
        """All frames but the last: (B, T − 1, height, width)."""
        return self.frames[:, :-1]

    @property
    def targets(self) -> Tensor:
        """All frames but the first: (B, T − 1, height, width)."""
        return self.frames[:, 1:]

    @property
    def visible(self) -> Tensor:
        """Balls that are there and whose centre no curtain hides: (B, T, balls) bool."""
        corner, width = self.curtain[:, None, None, :2], self.curtain[:, None, None, 2:]
        inside = (self.positions >= corner) & (self.positions <= corner + width)
        return (self.radii > 0)[:, None] & ~(inside.all(dim=-1) & (width[..., 0] > 0))


class BouncingBallsDataset(DrawnDataset[Scene]):
    """Scenes of bouncing balls; sample i is a function of (seed, split, i) and of nothing else.

    Nothing is kept: the scenes of a batch are simulated together when they are asked for, each from its own draws.

    Args:
        balls: Which scenes.
        radii: Radii of the kinds of balls, units.
        masses: Their masses.
        num_frames: Frames of a sequence.
        frame_size: Pixels of a side.
        split: Split, part of each sample's seed.
        seed: Part of each sample's seed.
        size: Samples; None for an endless stream.
    """

    def __init__(
        self,
        balls: BallSet,
        *,
        radii: Sequence[float],
        masses: Sequence[float],
        num_frames: int,
        frame_size: int,
        split: Split,
        seed: int,
        size: int | None,
    ) -> None:
        super().__init__(split, seed, size)
        self.balls = balls
        self.radii, self.masses = ((CURTAIN_RADIUS,), (1.0,)) if balls.has_curtain else (radii, masses)
        self.num_frames = num_frames
        self.frame_size = frame_size

    def __getitem__(self, index: int) -> Scene:
        """Return the scene of one index."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Scene]:
        """Return the scenes of a batch, which the loader asks for at once."""
        starts = [self._draw(index) for index in indices]
        positions, velocities, radii, masses, curtain = (np.stack(parts) for parts in zip(*starts, strict=True))
        scale = self.frame_size / BOX
        positions, velocities = simulate(positions, velocities, radii, masses, self.num_frames)
        parts = (positions * scale, velocities * scale, radii * scale, curtain)
        tensors = [torch.from_numpy(part.astype(np.float32)) for part in parts]
        return [Scene(*scene) for scene in zip(*tensors, strict=True)]

    def _draw(self, index: int) -> tuple[np.ndarray, ...]:
        """Draw how a scene starts: centres, velocities, radii, masses (units) and curtain (pixels)."""
        generator = self.generator(index)
        most = self.balls.most
        count = int(generator.integers(self.balls.fewest, most + 1))
        kinds = generator.integers(0, len(self.radii), count)
        radii, masses = np.zeros(most), np.ones(most)
        radii[:count], masses[:count] = np.asarray(self.radii)[kinds], np.asarray(self.masses)[kinds]
        speed = CURTAIN_SPEED if self.balls.has_curtain else SPEED
        positions, velocities = draw_motion(radii, count, speed, generator)
        curtain = np.zeros(3)
        if self.balls.has_curtain:
            width = round(CURTAIN_SHARE * self.frame_size)
            curtain[:] = (*generator.integers(0, self.frame_size - width + 1, 2), width)
        return positions, velocities, radii, masses, curtain


class BouncingBalls(DataModule):
    """Frames of balls in a box, and tests with other numbers of balls and behind a curtain.

    Sets are named by a number of balls (1 to 8), a range (``6-8``), or ``curtain``: three equal balls of radius
    1.2 and a black square of 28 × 28 pixels (of 64 × 64) at a random place, over the balls.

    Args:
        train_balls: Set of training and validation.
        test_balls: Sets tested in one run.
        radii: Radii of the kinds of balls, units of a box of 10; a ball is of each kind with the same probability.
        masses: Their masses, as many.
        num_frames: Frames of a sequence.
        frame_size: Pixels of a side, a multiple of 8.
        context_length: True frames before a rollout, at least 1.
        rollout_length: Frames of a rollout, the model's own, that are scored, at least 1.
        train_size: Sequences in an epoch (paper: 50,000); None for an endless stream of fresh ones.
        val_size: Validation sequences.
        test_size: Test sequences for each set (paper: 10,000).
        batch_size: Sequences in a batch over all processes, at least 1 and a multiple of their number.
        eval_batch_size: The same outside training. Rollouts go step by step, where small batches are slow.
        num_workers: Loader processes, 0 to load in the training process.
        seed: Seed of all samples; None takes the run's ``seed_everything``, or 0.

    Raises:
        ConfigError: A value is out of its range, or a set is none.

    Example:
        >>> data = BouncingBalls(test_balls=[4, "6-8", "curtain"], batch_size=2)
        >>> data.group_names("test")
        ['balls_4', 'balls_6-8', 'curtain']
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch.frames.shape, batch.positions.shape
        (torch.Size([2, 51, 64, 64]), torch.Size([2, 51, 4, 2]))
    """

    name = "bouncing_balls"

    def __init__(
        self,
        *,
        train_balls: int | str = 4,
        test_balls: Sequence[int | str] = (4, "6-8", "curtain"),
        radii: Sequence[float] = (0.8, 1.0),
        masses: Sequence[float] = (1.0, 6.0),
        num_frames: int = 51,
        frame_size: int = 64,
        context_length: int = 15,
        rollout_length: int = 35,
        train_size: int | None = 50_000,
        val_size: int = 256,
        test_size: int = 256,
        batch_size: int = 64,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        require_at_least(1, context_length=context_length, rollout_length=rollout_length)
        require_at_least(1, val_size=val_size, test_size=test_size, eval_batch_size=eval_batch_size)
        require_at_least(context_length + rollout_length, num_frames=num_frames)
        require_at_least(1, train_size=train_size)
        if frame_size < 8 or frame_size % 8:
            raise ConfigError(f"frame_size must be a multiple of 8; got frame_size={frame_size}.")
        if not radii or len(radii) != len(masses):
            raise ConfigError(f"masses must be as many as radii, at least one; got {radii=}, {masses=}.")
        for radius in radii:
            if not 0 < radius <= 1.25:  # eight of them still find room
                raise ConfigError(f"radii must be above 0 and at most 1.25 units; got {radius}.")
        for mass in masses:
            if not 0 < mass < math.inf:
                raise ConfigError(f"masses must be above 0 and finite; got {mass}.")
        if not test_balls:
            raise ConfigError("test_balls must name at least one set; got test_balls=[].")
        self.train_balls = parse_ball_set(train_balls, "train_balls")
        sets = [parse_ball_set(given, f"test_balls[{index}]") for index, given in enumerate(test_balls)]
        self.test_balls = tuple(dict.fromkeys(sets))
        self.radii = tuple(radii)
        self.masses = tuple(masses)
        self.num_frames = num_frames
        self.frame_size = frame_size
        self.context_length = context_length
        self.rollout_length = rollout_length
        self.eval_batch_size: int = eval_batch_size
        self._sizes = {"train": train_size, "val": val_size, "test": test_size, "predict": test_size}
        self._floor_curves: dict[str, dict[str, dict[str, Tensor]]] | None = None

    def datasets(self, split: Split) -> Mapping[str, BouncingBallsDataset]:
        """Return one dataset for training and validation, and one per set for test and predict."""
        if split in ("train", "val"):
            return {"": self._dataset(split, self.train_balls)}
        return {balls.name: self._dataset(split, balls) for balls in self.test_balls}

    def _dataset(self, split: Split, balls: BallSet) -> BouncingBallsDataset:
        return BouncingBallsDataset(
            balls,
            radii=self.radii,
            masses=self.masses,
            num_frames=self.num_frames,
            frame_size=self.frame_size,
            split=split,
            seed=self.seed,
            size=self._sizes[split],
        )

    def collate(self, samples: list[Scene]) -> FrameBatch:
        """Draw the frames of a batch of scenes."""
        positions, velocities, radii, curtain = (torch.stack(parts) for parts in zip(*samples, strict=True))
        frames = render(positions, radii, curtain, self.frame_size)
        return FrameBatch(frames, positions, velocities, radii, curtain)

    def floor_curves(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """Return the scores of two predictions without a model by test set, prediction, metric: (rollout_length,).

        ``copy`` repeats the last true frame. ``constant_velocity`` is given true positions and velocities in the
        last true frame and moves every ball in a straight line, through others and walls: an oracle, since models
        see no velocities. For their cross-entropy a lit pixel is predicted with .99 and a dark one with .01.
        """
        if self._floor_curves is None:
            self._floor_curves = {
                name: self._floor_curves_of(dataset) for name, dataset in self.datasets("test").items()
            }
        return self._floor_curves

    def _floor_curves_of(self, dataset: BouncingBallsDataset) -> dict[str, dict[str, Tensor]]:
        totals: dict[str, dict[str, Tensor]] = {COPY: {}, ORACLE: {}}
        for start in range(0, len(dataset), self.eval_batch_size):
            indices = list(range(start, min(start + self.eval_batch_size, len(dataset))))
            batch = self.collate(dataset.__getitems__(indices))
            ahead = slice(self.context_length, self.context_length + self.rollout_length)
            truth = (part[:, ahead] for part in (batch.frames, batch.positions, batch.visible))
            frames, true_positions, visible = truth
            for name, positions in self._straight_on(batch).items():
                drawn = render(positions, batch.radii, batch.curtain, self.frame_size)
                found = positions.where(batch.radii[:, None, :, None] > 0, torch.nan)
                scores = drawn_frame_scores(drawn, frames, found, true_positions, visible)
                for metric, (total, count) in scores.items():
                    before = totals[name].get(metric, torch.zeros(2, len(total), dtype=torch.float64))
                    totals[name][metric] = before + torch.stack([total, count])
        return {
            name: {metric: total / count for metric, (total, count) in metrics.items()}
            for name, metrics in totals.items()
        }

    def _straight_on(self, batch: FrameBatch) -> dict[str, Tensor]:
        """Return the positions (B, T, balls, 2) of both predictions in the frames after the context."""
        last = self.context_length - 1
        start, velocity = batch.positions[:, last : last + 1], batch.velocities[:, last : last + 1]
        steps = torch.arange(1, self.rollout_length + 1)[:, None, None]
        return {COPY: start.expand(-1, len(steps), -1, -1), ORACLE: start + steps * velocity}

    def floors(self) -> dict[str, float]:
        """Return what copying the last frame and, under ``constant_velocity_…``, the oracle score."""
        floors = {}
        for group, predictions in self.floor_curves().items():
            for prediction, prefix in ((COPY, ""), (ORACLE, f"{ORACLE}_")):
                for metric, curve in predictions[prediction].items():
                    for name, value in summarise(metric, curve).items():
                        floors[f"{group}/{prefix}{name}"] = value.item()
        return floors
