"""A GIF of an episode: the rendered environment and which mechanisms were active."""

import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rimlit.errors import DataError
from rimlit.pictures.files import encode_gif, font, write_and_track
from rimlit.pictures.rollouts import DARK, GAP, INK, LABEL, active_panel, gif_colours
from rimlit.rl import Experience, PPOTask
from rimlit.rl.environments import Array, Environments
from rimlit.rl.rollouts import Player
from rimlit.tracking.optional import optional
from rimlit.types import MechanismsActivity, Watched

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

MOST_STEPS = 250
"""Steps of the episode that are shown."""
WINDOW = 80
"""Steps that the panel of mechanisms shows; with longer episodes it shows the last ones."""
LEAST_HEIGHT = 160
"""Smaller pictures are enlarged to at least this height, by a whole factor."""
GREATEST_HEIGHT = 320
"""Larger pictures are reduced to at most this height, by a whole factor."""


class EpisodeClip(NamedTuple):
    """The first steps of an episode."""

    pictures: list[Array]  # T of (height, width, 3) uint8: before each action
    scores: list[float]  # T: the reward of each step
    active: Tensor | None  # (T, M) bool: mechanisms of the lowest layer that were active


class EpisodePictures(L.Callback):
    """At the end of a test of a :class:`rimlit.rl.PPOTask`, play an episode and draw it.

    ``figures/episode.gif``, also logged to MLflow, shows the rendered environment in the first 250 steps of an
    episode, and when each mechanism was active. The episode is played in a separate environment, always from the
    same seed. Nothing is drawn for other tasks and for environments that do not render; an error is a warning.
    """

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Play and write."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, PPOTask) or not isinstance(data, Experience):
            return
        for driver in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):
            os.environ.setdefault(driver, "dummy")  # pygame renders without a screen
        try:
            # gymnasium warns about environments that do not render
            with warnings.catch_warnings(action="ignore"):
                environments = data.make(data.environment, 1, can_render=True)
        except Exception as error:
            log.info("No picture of an episode: %s", error)
            return
        with optional("figures/episode.gif"):
            quiet, precision = warnings.catch_warnings(action="ignore"), trainer.precision_plugin.forward_context()
            with quiet, closing(environments), precision:
                clip = play_episode(pl_module, environments, data.seed_for(split="predict"))
            if clip is not None and trainer.is_global_zero:
                write_and_track(trainer, "figures/episode.gif", draw_episode(clip))


def play_episode(
    task: PPOTask, environments: Environments, seed: int, *, most_steps: int = MOST_STEPS
) -> EpisodeClip | None:
    """Play an episode in a single environment and keep its pictures; None where it does not render."""
    player = Player(environments, seed, greedy=task.evaluate_greedily)
    pictures: list[Array] = []
    scores: list[float] = []
    num_layers = task.backbone.num_layers
    with ExitStack() as watching:
        activities: Sequence[MechanismsActivity] = []
        if isinstance(task.backbone, Watched):
            watching.enter_context(task.backbone.unwatched())  # these steps have been counted already
            activities = watching.enter_context(task.backbone.record_activity())
        while len(pictures) < most_steps and not player.ended:
            picture = environments.render()
            if picture is None:
                return None
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
                raise DataError(
                    f"{environments.name} renders {picture.dtype} of shape {picture.shape}; pictures are uint8 of "
                    "(height, width, 3)."
                )
            pictures.append(picture.copy())
            scores.append(float(player.play(task).step.scores[0]))
        active = [activity.active[0] for activity in activities[::num_layers]] if activities else []
    return EpisodeClip(pictures, scores, torch.cat(active).cpu() if active else None)


def draw_episode(clip: EpisodeClip, *, milliseconds: int = 60) -> bytes:
    """Draw the steps as a repeating GIF.

    Args:
        clip: The steps.
        milliseconds: Duration of a step.
    """
    frames = [_frame(clip, step) for step in range(len(clip.pictures))]
    return encode_gif(frames, [milliseconds] * (len(frames) - 1) + [20 * milliseconds])


def _frame(clip: EpisodeClip, step: int) -> "Image":
    """Draw a step: its picture, the mechanisms until then, and the return so far."""
    from PIL import Image, ImageColor, ImageDraw

    picture = Image.fromarray(clip.pictures[step])
    if picture.height > GREATEST_HEIGHT:
        picture = picture.reduce(-(-picture.height // GREATEST_HEIGHT))
    elif picture.height < LEAST_HEIGHT:
        factor = -(-LEAST_HEIGHT // picture.height)
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    panels = [("environment", picture)]
    if clip.active is not None:
        palette = gif_colours()
        start = max(0, min(step + 1, len(clip.active)) - WINDOW)
        window = clip.active[start : start + WINDOW]
        window = functional.pad(window, (0, 0, 0, WINDOW - len(window)))
        places = active_panel(window, step - start, picture.height, palette)
        colours = np.array([ImageColor.getrgb(colour) for colour in palette], np.uint8)
        panels.append(("active mechanisms", Image.fromarray(colours[places])))
    width = GAP + sum(panel.width + GAP for _, panel in panels)
    image = Image.new("RGB", (width, picture.height + 2 * LABEL + GAP), DARK)
    draw, letters = ImageDraw.Draw(image), font(11)
    left = GAP
    for title, panel in panels:
        draw.text((left, 3), title, fill=INK, font=letters)
        image.paste(panel, (left, LABEL))
        left += panel.width + GAP
    text = f"step {step + 1}, return so far {sum(clip.scores[:step]):g}"
    draw.text((GAP, LABEL + picture.height + 4), text, fill=INK, font=letters)
    return image
