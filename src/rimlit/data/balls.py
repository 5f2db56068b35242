"""Balls in a box: which scenes there are, how they begin, move and look.

The box is 10 units wide; a pixel is lit if its centre lies inside a ball.
"""

import math
import re
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rimlit.errors import ConfigError

BOX = 10.0
"""Width of the box, units."""

MOST_BALLS = 8
SUBSTEPS = 2
"""Steps of the dynamics in a frame."""

CURTAIN_SHARE = 28 / 64
"""Width of the curtain over that of the frame."""

CURTAIN_BALLS, CURTAIN_RADIUS = 3, 1.2
SPEED, CURTAIN_SPEED = 1 / 3, 1 / 2
"""Norm of the velocities of all balls together, units a frame."""


class BallSet(NamedTuple):
    """Which scenes a set holds."""

    name: str
    fewest: int  # balls
    most: int
    has_curtain: bool


def parse_ball_set(given: int | str, name: str = "balls") -> BallSet:
    """Return the set that ``given`` names: a number of balls, a range such as ``6-8``, or ``curtain``.

    Raises:
        ConfigError: It names none.

    Example:
        >>> parse_ball_set("6-8")
        BallSet(name='balls_6-8', fewest=6, most=8, has_curtain=False)
    """
    if given == "curtain":
        return BallSet("curtain", CURTAIN_BALLS, CURTAIN_BALLS, True)
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", str(given).strip())
    fewest, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= fewest <= most <= MOST_BALLS:
        raise ConfigError(
            f"{name} must be a number of balls from 1 to {MOST_BALLS}, a range such as 6-8, or curtain; "
            f"got {name}={given!r}."
        )
    return BallSet(f"balls_{fewest}" if fewest == most else f"balls_{fewest}-{most}", fewest, most, False)


def draw_motion(
    radii: np.ndarray, count: int, speed: float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw where the first ``count`` balls are and how they move; those that are not there stay at 0.

    Args:
        radii: Radii of all balls, units.
        count: How many are there.
        speed: Norm of their velocities together, units a frame.
        generator: What draws.

    Returns:
        Centres and velocities, each (balls, 2).
    """
    positions, velocities = np.zeros((len(radii), 2)), np.zeros((len(radii), 2))
    drawn = generator.normal(size=(count, 2))
    velocities[:count] = drawn * (speed / math.sqrt((drawn**2).sum()))
    positions[:count] = place_balls(radii[:count].tolist(), generator)
    return positions, velocities


def place_balls(radii: list[float], generator: np.random.Generator) -> list[tuple[float, float]]:
    """Put balls at random into the box, one after the other, without overlap; start again where none fits."""
    while True:
        placed: list[tuple[float, float, float]] = []
        for u, v in generator.random((64, 2)).tolist():
            radius = radii[len(placed)]
            x, y = (radius + share * (BOX - 2 * radius) for share in (u, v))
            if all((x - a) ** 2 + (y - b) ** 2 > (radius + other) ** 2 for a, b, other in placed):
                placed.append((x, y, radius))
                if len(placed) == len(radii):
                    return [(a, b) for a, b, _ in placed]


def simulate(
    positions: np.ndarray, velocities: np.ndarray, radii: np.ndarray, masses: np.ndarray, num_frames: int
) -> tuple[np.ndarray, np.ndarray]:
    """Let balls move, reflect at the walls and collide elastically; energy is conserved.

    What happens in a scene does not depend, bit for bit, on the scenes beside it.

    Args:
        positions: Centres in the first frame (B, balls, 2), units.
        velocities: Velocities in the first frame (B, balls, 2), units a frame.
        radii: (B, balls), units; 0 for a ball that is not there.
        masses: (B, balls).
        num_frames: Frames T, the first included.

    Returns:
        Positions and velocities (B, T, balls, 2).

    Example:
        >>> at, speed = np.array([[[5.0, 5.0]]]), np.array([[[0.25, 0.0]]])
        >>> simulate(at, speed, np.ones((1, 1)), np.ones((1, 1)), 3)[0][0, :, 0].tolist()
        [[5.0, 5.0], [5.25, 5.0], [5.5, 5.0]]
    """
    positions, velocities = positions.astype(np.float64), velocities.astype(np.float64)
    all_positions, all_velocities = [positions.copy()], [velocities.copy()]
    least, greatest = radii[..., None], BOX - radii[..., None]
    firsts, seconds = np.triu_indices(radii.shape[1], k=1)
    reach = radii[:, firsts] + radii[:, seconds]
    both = (radii[:, firsts] > 0) & (radii[:, seconds] > 0)
    for _ in range(num_frames - 1):
        for _ in range(SUBSTEPS):
            positions += velocities / SUBSTEPS
            below, above = positions < least, positions > greatest
            positions = np.where(
                below, 2 * least - positions, np.where(above, 2 * greatest - positions, positions)
            )
            velocities = np.where(below | above, -velocities, velocities)
            between = positions[:, firsts] - positions[:, seconds]
            distances = between[..., 0] ** 2 + between[..., 1] ** 2
            touching = both & (distances < reach**2)
            for pair in np.flatnonzero(touching.any(axis=0)):
                scenes = np.flatnonzero(touching[:, pair])
                _collide(velocities, scenes, firsts[pair], seconds[pair], between[scenes, pair], masses)
        all_positions.append(positions.copy())
        all_velocities.append(velocities.copy())
    return np.stack(all_positions, axis=1), np.stack(all_velocities, axis=1)


def _collide(
    velocities: np.ndarray, scenes: np.ndarray, i: int, j: int, between: np.ndarray, masses: np.ndarray
) -> None:
    """Exchange momentum along the line of centres ``between`` (scenes, 2), where the balls approach."""
    relative = velocities[scenes, i] - velocities[scenes, j]
    approach = relative[:, 0] * between[:, 0] + relative[:, 1] * between[:, 1]
    squares = between[:, 0] ** 2 + between[:, 1] ** 2
    approaching = (approach < 0) & (squares > 0)
    scenes, between = scenes[approaching], between[approaching]
    first, second = masses[scenes, i], masses[scenes, j]
    impulse = 2 * first * second / (first + second) * approach[approaching] / squares[approaching]
    velocities[scenes, i] -= (impulse / first)[:, None] * between
    velocities[scenes, j] += (impulse / second)[:, None] * between


def render(positions: Tensor, radii: Tensor, curtain: Tensor, frame_size: int) -> Tensor:
    """Draw balls.

    Args:
        positions: (B, T, balls, 2), pixels.
        radii: (B, balls), pixels; 0 for a ball that is not there.
        curtain: (B, 3), pixels: left, top and width of a black square over the balls.
        frame_size: Pixels of a side.

    Returns:
        Frames (B, T, frame_size, frame_size) uint8: 1 where a pixel's centre is inside a ball.

    Example:
        >>> ball = torch.tensor([[[[2.0, 2.0]]]])
        >>> render(ball, torch.tensor([[1.0]]), torch.zeros(1, 3), 4)[0, 0].tolist()
        [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    # only the square around a ball is looked at, not the whole frame for every ball
    reach = int(radii.max().ceil())
    offsets = torch.arange(-reach, reach + 1, device=positions.device)
    pixels = positions.floor().long().unsqueeze(-1) + offsets  # (B, T, balls, 2, side)
    squares = (pixels + 0.5 - positions.unsqueeze(-1)).square()
    is_inside = (pixels >= 0) & (pixels < frame_size)
    lit = squares[..., 0, None, :] + squares[..., 1, :, None] < radii.square()[:, None, :, None, None]
    lit &= is_inside[..., 0, None, :] & is_inside[..., 1, :, None]
    num_frames = positions.shape[0] * positions.shape[1]
    first = torch.arange(num_frames, device=positions.device).view(*positions.shape[:2], 1, 1, 1) * frame_size
    places = (first + pixels[..., 1, :, None]) * frame_size + pixels[..., 0, None, :]
    frames = torch.zeros(num_frames * frame_size**2, dtype=torch.uint8, device=positions.device)
    frames[places[lit]] = 1
    frames = frames.view(*positions.shape[:2], frame_size, frame_size)
    if (curtain[:, 2] > 0).any():
        centres = torch.arange(frame_size, device=positions.device) + 0.5
        start, stop = curtain[:, :2, None], curtain[:, :2, None] + curtain[:, 2, None, None]
        hidden = (centres > start) & (centres < stop)  # (B, 2, size)
        frames *= ~(hidden[:, 1, :, None] & hidden[:, 0, None, :])[:, None]
    return frames
