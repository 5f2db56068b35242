"""Blinking balls: which colour did this ball have? After Jiang et al. 2024 (SlotSSM, arXiv:2406.12272).

White balls move in a box, and in each frame one of them has a colour. In the last frame all are white but for the
ball that is asked for, which is grey. The paper's generator was not published; this one is ours.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rimlit.checks import require_at_least, require_known
from rimlit.data.balls import BOX, BallSet, draw_motion, parse_ball_set, render, simulate
from rimlit.data.base import DataModule, Split
from rimlit.data.drawn import DrawnDataset
from rimlit.errors import ConfigError

Question = Literal["first", "most"]
QUESTIONS = ("first", "most")

RADIUS = 1.0
"""Radius of every ball, units of a box of 10; all have the same mass."""

WHITE, GREY = 1, 2
PALETTE = (
    *((0, 0, 0), (255, 255, 255), (128, 128, 128)),  # nothing, a ball, the ball that is asked for
    *((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255)),
)
MOST_COLOURS = len(PALETTE) - 3


class Blinks(NamedTuple):
    """What happens in a sequence, and the answer."""

    balls: np.ndarray  # (T,): which ball has a colour in each frame
    colours: np.ndarray  # (T,): which one, 0 to num_colours − 1
    asked: int  # the ball that is asked for
    answer: int  # its first or its most frequent colour


def draw_blinks(
    num_balls: int, length: int, num_colours: int, question: Question, generator: np.random.Generator
) -> Blinks:
    """Draw balls and colours evenly, and ask for a ball that has an answer.

    With ``first`` that is any ball that had a colour; with ``most`` one that had a colour more often than each of
    the others.

    Example:
        >>> blinks = draw_blinks(3, 5, 4, "first", np.random.default_rng(0))
        >>> bool(blinks.colours[blinks.balls.tolist().index(blinks.asked)] == blinks.answer)
        True
    """
    while True:
        balls, colours = generator.integers(0, num_balls, length), generator.integers(0, num_colours, length)
        answers = {}
        for ball in sorted(set(balls.tolist())):
            own = colours[balls == ball]
            counts = np.bincount(own, minlength=num_colours)
            if question == "first":
                answers[ball] = int(own[0])
            elif (counts == counts.max()).sum() == 1:
                answers[ball] = int(counts.argmax())
        if answers:
            asked = int(generator.choice(list(answers)))
            return Blinks(balls, colours, asked, answers[asked])


class BlinkingBallsDataset(DrawnDataset[tuple[Tensor, Tensor]]):
    """Sequences of blinking balls; sample i is a function of (seed, split, i) and of nothing else.

    Args:
        balls: How many balls.
        length: Frames T in which a ball has a colour; one more follows, which asks.
        question: ``first`` or ``most``.
        num_colours: Colours.
        speed: Norm of the velocities of all balls together, units a frame.
        frame_size: Pixels of a side.
        split: Split, part of each sample's seed.
        seed: Part of each sample's seed.
        size: Samples; None for an endless stream.
    """

    def __init__(
        self,
        balls: BallSet,
        length: int,
        *,
        question: Question,
        num_colours: int,
        speed: float,
        frame_size: int,
        split: Split,
        seed: int,
        size: int | None,
    ) -> None:
        super().__init__(split, seed, size)
        self.balls = balls
        self.length = length
        self.question: Question = question
        self.num_colours = num_colours
        self.speed = speed
        self.frame_size = frame_size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return frames (T + 1, 3, size, size) uint8, 0 to 255, and the answer (), a colour."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Return the samples of a batch, whose balls are moved and drawn together."""
        blinks, starts = zip(*(self._draw(index) for index in indices), strict=True)
        positions, velocities, radii = (np.stack(parts) for parts in zip(*starts, strict=True))
        positions, _ = simulate(positions, velocities, radii, np.ones_like(radii), self.length + 1)
        shades = np.full((*positions.shape[:2], positions.shape[2]), WHITE)  # (B, T + 1, balls)
        for sample, (balls, colours, asked, _) in enumerate(blinks):
            shades[sample, np.arange(self.length), balls] = GREY + 1 + colours
            shades[sample, -1, asked] = GREY
        scale = self.frame_size / BOX
        frames = paint(
            torch.from_numpy(positions * scale).float(),
            torch.from_numpy(radii * scale).float(),
            torch.from_numpy(shades),
            self.frame_size,
        )
        return [(frames[sample], torch.tensor(own.answer)) for sample, own in enumerate(blinks)]

    def unbound_accuracy(self) -> float:
        """Return how often an answer is right that knows all colours shown and not whose they were.

        That is the first colour of all, or the most frequent one of all, of equals the one that was there first.
        """
        right = 0
        for index in range(len(self)):
            _, colours, _, answer = self._draw(index)[0]
            counts = np.bincount(colours, minlength=self.num_colours)
            guess = colours[0] if self.question == "first" else colours[counts[colours] == counts.max()][0]
            right += int(guess) == answer
        return right / len(self)

    def _draw(self, index: int) -> tuple[Blinks, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Draw a sequence: its blinks, and how it starts: centres, velocities and radii, units."""
        generator = self.generator(index)
        most = self.balls.most
        count = int(generator.integers(self.balls.fewest, most + 1))
        blinks = draw_blinks(count, self.length, self.num_colours, self.question, generator)
        radii = np.zeros(most)
        radii[:count] = RADIUS
        positions, velocities = draw_motion(radii, count, self.speed, generator)
        return blinks, (positions, velocities, radii)


def paint(positions: Tensor, radii: Tensor, shades: Tensor, frame_size: int) -> Tensor:
    """Draw balls in colours, later ones over earlier ones.

    Args:
        positions: (B, T, balls, 2), pixels.
        radii: (B, balls), pixels; 0 for a ball that is not there.
        shades: (B, T, balls): rows of ``PALETTE``.
        frame_size: Pixels of a side.

    Returns:
        Pictures (B, T, 3, frame_size, frame_size) uint8, 0 to 255.
    """
    canvas = torch.zeros((*positions.shape[:2], frame_size, frame_size), dtype=torch.long)
    for ball in range(positions.shape[2]):
        own = slice(ball, ball + 1)
        lit = render(positions[:, :, own], radii[:, own], torch.zeros(len(positions), 3), frame_size) > 0
        canvas = shades[:, :, ball, None, None].where(lit, canvas)
    return torch.tensor(PALETTE, dtype=torch.uint8)[canvas].permute(0, 1, 4, 2, 3).contiguous()


class BlinkingBalls(DataModule):
    """Predict which colour a ball had first, or most often, among balls that move and blink in turn.

    In each frame one ball, drawn evenly, has one of the colours, and the others are white. In a last frame the
    ball that is asked for is grey; the answer belongs there. The balls look alike: a model has to follow each and
    to keep its colour. The floors' ``unbound_accuracy`` is that of knowing the colours and not whose they were.

    Args:
        train_balls: Balls in training and validation: a number from 1 to 8, or a range such as ``2-4``.
        test_balls: Sets tested in one run, each at every one of ``test_lengths``.
        question: What is asked: the ``first`` colour of the ball, or the one it had ``most`` often. Balls without
            one most frequent colour are not asked for.
        num_colours: Colours, 2 to 6.
        train_length: Frames before the question in training and validation, at least 1.
        test_lengths: The same in tests.
        speed: Norm of the velocities of all balls together, units of a box of 10 a frame, above 0 and at most 2.
        frame_size: Pixels of a side, a multiple of 8.
        train_size: Sequences in an epoch; None for an endless stream of fresh ones.
        val_size: Validation sequences.
        test_size: Test sequences of each group.
        batch_size: Sequences in a batch over all processes, at least 1 and a multiple of their number.
        num_workers: Loader processes, 0 to load in the training process.
        seed: Seed of all samples; None takes the run's ``seed_everything``, or 0.

    Raises:
        ConfigError: A value is out of its range, or a set is none.

    Example:
        >>> data = BlinkingBalls(test_balls=[3, 6], test_lengths=[10], batch_size=2)
        >>> data.group_names("test"), data.frame_shape, data.output_size
        (['balls_3_length_10', 'balls_6_length_10'], (3, 32, 32), 5)
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch.inputs.shape, batch.targets.shape
        (torch.Size([2, 11, 3, 32, 32]), torch.Size([2]))
    """

    name = "blinking_balls"

    def __init__(
        self,
        *,
        train_balls: int | str = 3,
        test_balls: Sequence[int | str] = (3, 6),
        question: Question = "first",
        num_colours: int = 5,
        train_length: int = 10,
        test_lengths: Sequence[int] = (10, 20),
        speed: float = 1.0,
        frame_size: int = 32,
        train_size: int | None = None,
        val_size: int = 256,
        test_size: int = 256,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        require_known(question=(question, QUESTIONS))
        require_at_least(2, num_colours=num_colours)
        if num_colours > MOST_COLOURS:
            raise ConfigError(f"num_colours must be at most {MOST_COLOURS}; got num_colours={num_colours}.")
        require_at_least(1, train_length=train_length, test_lengths=test_lengths)
        require_at_least(1, val_size=val_size, test_size=test_size, train_size=train_size)
        if not 0 < speed <= 2:
            raise ConfigError(f"speed must be above 0 and at most 2 units a frame; got speed={speed}.")
        if frame_size < 8 or frame_size % 8:
            raise ConfigError(f"frame_size must be a multiple of 8; got frame_size={frame_size}.")
        if not test_balls:
            raise ConfigError("test_balls must name at least one set; got test_balls=[].")
        if not test_lengths:
            raise ConfigError("test_lengths must name at least one length; got test_lengths=[].")
        self.train_balls = _numbers_of_balls(train_balls, "train_balls")
        sets = [_numbers_of_balls(given, f"test_balls[{index}]") for index, given in enumerate(test_balls)]
        self.test_balls = tuple(dict.fromkeys(sets))
        self.question: Question = question
        self.output_size = num_colours
        self.train_length = train_length
        self.test_lengths = tuple(dict.fromkeys(test_lengths))
        self.speed = speed
        self.frame_shape = (3, frame_size, frame_size)
        self._sizes = {"train": train_size, "val": val_size, "test": test_size, "predict": test_size}

    def datasets(self, split: Split) -> Mapping[str, BlinkingBallsDataset]:
        """Return one dataset for training and validation, and one per set and length for test and predict."""
        if split in ("train", "val"):
            return {"": self._dataset(split, self.train_balls, self.train_length)}
        return {
            f"{balls.name}_length_{length}": self._dataset(split, balls, length)
            for balls in self.test_balls
            for length in self.test_lengths
        }

    def _dataset(self, split: Split, balls: BallSet, length: int) -> BlinkingBallsDataset:
        return BlinkingBallsDataset(
            balls,
            length,
            question=self.question,
            num_colours=self.output_size,
            speed=self.speed,
            frame_size=self.frame_shape[1],
            split=split,
            seed=self.seed,
            size=self._sizes[split],
        )

    def floors(self) -> dict[str, float]:
        """Return the scores of guessing; ``unbound_accuracy`` knows the colours and not whose they were."""
        unbound = {
            f"{name}/unbound_accuracy": dataset.unbound_accuracy()
            for name, dataset in self.datasets("test").items()
        }
        return {"accuracy": 1 / self.output_size, "cross_entropy": math.log(self.output_size), **unbound}


def _numbers_of_balls(given: int | str, name: str) -> BallSet:
    balls = parse_ball_set(given, name)
    if balls.has_curtain:
        raise ConfigError(
            f"{name} must be a number of balls from 1 to 8, or a range such as 6-8; got {name}={given!r}."
        )
    return balls
