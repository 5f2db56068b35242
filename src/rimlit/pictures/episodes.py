"""An episode to look at: a GIF of what the environment showed and which mechanisms were active."""

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
from rimlit.pictures.files import font, gif_of, write_for_people
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
"""Steps that the panel of mechanisms holds; it moves on with longer episodes."""
LEAST_HEIGHT = 160
"""Pictures are enlarged to this height by a whole factor."""
GREATEST_HEIGHT = 320
"""Pictures above this height are reduced."""


class Take(NamedTuple):
    """The first steps of an episode."""

    pictures: list[Array]  # T of (height, width, 3) uint8: what was acted on
    scores: list[float]  # T: the reward of each step
    active: Tensor | None  # (T, M) bool: mechanisms of the lowest layer that were active


class EpisodePictures(L.Callback):
    """At the end of a test of a :class:`rimlit.rl.PPOTask`, write an episode that it plays.

    ``figures/episode.gif``, in MLflow too: the pictures of the environment in an episode's first 250 steps, and
    beside them when each mechanism was active. It is played in an environment of its own, always from the same
    seed. Environments without pictures, and other tasks, are left alone; what fails is a warning.
    """

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Play and write."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, PPOTask) or not isinstance(data, Experience):
            return
        for driver in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):
            os.environ.setdefault(driver, "dummy")  # pygame is to draw, and needs no screen for it
        try:
            # gymnasium warns where there are no pictures
            with warnings.catch_warnings(action="ignore"):
                environments = data.make(data.environment, 1, can_render=True)
        except Exception as error:
            log.info("No picture of an episode: %s", error)
            return
        with optional("figures/episode.gif"):
            quiet, precision = warnings.catch_warnings(action="ignore"), trainer.precision_plugin.forward_context()
            with quiet, closing(environments), precision:
                take = take_of(pl_module, environments, data.seed_for(split="predict"))
            if take is not None and trainer.is_global_zero:
                write_for_people(trainer, "figures/episode.gif", draw_episode(take))


def take_of(task: PPOTask, environments: Environments, seed: int, *, most_steps: int = MOST_STEPS) -> Take | None:
    """Play an episode in a single environment and note what is seen of it; None where there are no pictures."""
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
    return Take(pictures, scores, torch.cat(active).cpu() if active else None)


def draw_episode(take: Take, *, milliseconds: int = 60) -> bytes:
    """Draw the steps as a GIF that repeats.

    Args:
        take: The steps.
        milliseconds: Time of a step.
    """
    frames = [_frame(take, step) for step in range(len(take.pictures))]
    return gif_of(frames, [milliseconds] * (len(frames) - 1) + [20 * milliseconds])


def _frame(take: Take, step: int) -> "Image":
    """Draw a step: its picture, the mechanisms until then, and what was won."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(take.pictures[step])
    if picture.height > GREATEST_HEIGHT:
        picture = picture.reduce(-(-picture.height // GREATEST_HEIGHT))
    elif picture.height < LEAST_HEIGHT:
        factor = -(-LEAST_HEIGHT // picture.height)
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    panels = [("environment", picture)]
    if take.active is not None:
        palette = gif_colours()
        start = max(0, min(step + 1, len(take.active)) - WINDOW)
        window = take.active[start : start + WINDOW]
        window = functional.pad(window, (0, 0, 0, WINDOW - len(window)))
        places = active_panel(window, step - start, picture.height, palette)
        colours = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in palette], np.uint8)
        panels.append(("active mechanisms", Image.fromarray(colours[places])))
    width = GAP + sum(panel.width + GAP for _, panel in panels)
    image = Image.new("RGB", (width, picture.height + 2 * LABEL + GAP), DARK)
    draw, letters = ImageDraw.Draw(image), font(11)
    left = GAP
    for title, panel in panels:
        draw.text((left, 3), title, fill=INK, font=letters)
        image.paste(panel, (left, LABEL))
        left += panel.width + GAP
    text = f"step {step + 1}, won before {sum(take.scores[:step]):g}"
    draw.text((GAP, LABEL + picture.height + 4), text, fill=INK, font=letters)
    return image
