"""Pictures of rolled out frames: a GIF of truth, prediction and mechanisms, curves of error, and their numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor

from rimlit.data import BouncingBalls, Frames
from rimlit.data.bouncing_balls import FrameBatch
from rimlit.heads import MixtureHead, SlotMixtureHead
from rimlit.pictures.activity import COLOURS
from rimlit.pictures.files import encode_gif, font, save_figure, write_and_track
from rimlit.pictures.schemata import NO_BALL, SchemaScene, draw_schemata, enlarge, owners_by_attention
from rimlit.tasks import FramePredictionTask
from rimlit.tracking.optional import optional
from rimlit.types import Watched

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

MOST_ROWS = 3
"""Test sets in the GIF, one sequence of each."""

Curves = Mapping[str, Mapping[str, Mapping[str, Tensor]]]
"""Scores (rollout_length,) by test set, predictor and metric."""

NAMES = {
    "bce": "cross-entropy (nats a pixel)",
    "f1": "F1 of pixels",
    "position_error": "position error (pixels)",
    "mse": "squared error (a pixel)",
}


class Film(NamedTuple):
    """The true and the predicted frames of one sequence, from its second frame on."""

    name: str
    truth: Tensor  # (T, height, width): 0 to 1
    prediction: Tensor  # (T, height, width): probabilities
    context_length: int  # number of frames that were predicted from true ones
    active: Tensor | None  # (T, M) bool: mechanisms that were active
    owners: Tensor | None  # (T, height, width): the mechanism with the greatest mask
    scene: SchemaScene | None = None  # where mechanisms follow schemata


class RolloutPictures(L.Callback):
    """At the end of a test of a frame task, draw its rollouts.

    ``figures/rollout.gif`` shows the first sequence of the first three test sets, its prediction, when each
    mechanism was active and, with a :class:`rimlit.heads.SlotMixtureHead` or a
    :class:`rimlit.heads.MixtureHead`, the mechanism with the greatest mask at each pixel. Where mechanisms follow
    schemata, ``figures/schemata.png`` shows which one each state followed and which one drives which ball: that of
    the state with the greatest mask at the ball's centre or, without masks, of the one that attends most to it.
    ``figures/rollout_curves.png`` shows the scores by frame ahead, with those of copying the last
    frame and of an oracle with constant velocity. ``rollout.json`` has the numbers. All are logged to MLflow.
    Nothing is drawn for other tasks.
    """

    def __init__(self) -> None:
        self._firsts: dict[int, FrameBatch] = {}

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop the sequences of an earlier test."""
        self._firsts = {}

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the first sequence of a test set."""
        if isinstance(pl_module, FramePredictionTask) and batch_idx == 0 and dataloader_idx < MOST_ROWS:
            self._firsts[dataloader_idx] = FrameBatch(*(part[:1] for part in batch))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the pictures and the numbers."""
        if not isinstance(pl_module, FramePredictionTask) or not self._firsts:
            return
        with optional("The pictures of rollouts"):
            self._write(trainer, pl_module)

    def _write(self, trainer: L.Trainer, task: FramePredictionTask) -> None:
        curves: dict[str, dict[str, Mapping[str, Tensor]]] = {}
        data = getattr(trainer, "datamodule", None)
        floors = data.floor_curves() if isinstance(data, BouncingBalls | Frames) else {}
        for name, scores in task.rollout_curves().items():
            curves[name] = {"model": scores, **floors.get(name, {})}
        if trainer.is_global_zero:
            numbers = {
                name: {
                    predictor: {
                        metric: [round(value, 5) for value in curve.tolist()] for metric, curve in of.items()
                    }
                    for predictor, of in predictors.items()
                }
                for name, predictors in curves.items()
            }
            write_and_track(trainer, "rollout.json", json.dumps(numbers) + "\n")
            save_figure(trainer, draw_curves(curves), "rollout_curves.png")
            with trainer.precision_plugin.forward_context():
                films = [
                    predict_film(task, first, task.prefix("test", index).partition("/")[2])
                    for index, first in self._firsts.items()
                ]
            write_and_track(trainer, "figures/rollout.gif", draw_gif(films))
            scenes = [film.scene for film in films if film.scene is not None]
            if scenes:
                figure = draw_schemata(scenes, Path(trainer.default_root_dir).name)
                save_figure(trainer, figure, "schemata.png")


@torch.no_grad()
def predict_film(task: FramePredictionTask, batch: FrameBatch, name: str) -> Film:
    """Roll a task out over the first sequence of a batch and record the activity of its mechanisms."""
    was_training = task.training
    task.eval()
    context, active = batch.frames[:1, : task.context_length], None
    schema = attention = scene = None
    if isinstance(task.backbone, Watched):
        with task.backbone.record_activity() as activities:
            rollout = task.rollout(context)
        lowest = activities[:: task.backbone.num_layers]
        active = torch.cat([activity.active[0] for activity in lowest]).cpu()
        if all(getattr(activity, "schema", None) is not None for activity in lowest):
            schema = torch.cat([activity.schema[0] for activity in lowest]).cpu()  # type: ignore[attr-defined]
            attention = torch.cat([activity.slot_attention[0] for activity in lowest])  # type: ignore[attr-defined]
    else:
        rollout = task.rollout(context)
    owners = None
    side = rollout.logits.shape[-1]
    if isinstance(task.head, SlotMixtureHead | MixtureHead):
        masks = task.head.masks(rollout.features)[0]  # (T, M, places)
        if round(masks.shape[-1] ** 0.5) ** 2 == masks.shape[-1]:
            owners = enlarge(masks.argmax(dim=1), side).cpu()
    if schema is not None and attention is not None and active is not None:
        found = owners_by_attention(attention, side) if owners is None else owners
        ahead = slice(1, 1 + len(schema)) if owners is not None else slice(0, len(schema))
        scene = SchemaScene(
            name,
            torch.where(active, schema, NO_BALL),
            task.context_length,
            None if found is None else found.cpu(),
            batch.positions[0, ahead].cpu(),
            batch.radii[0].cpu(),
        )
    task.train(was_training)
    predicted = rollout.logits[0].float().sigmoid().cpu()
    truth = batch.frames[0, 1 : 1 + len(predicted)].cpu()
    if truth.dim() == 4:  # colours are drawn as their mean
        predicted, truth = predicted.mean(dim=1), truth.mean(dim=1)
    return Film(name, truth, predicted, task.context_length, active, owners, scene)


def draw_curves(curves: Curves) -> "Figure":
    """Draw scores by frame ahead: a column for each of the first four test sets, a row for each metric."""
    from matplotlib.figure import Figure

    shown = list(curves)[:4]
    known = next(iter(curves[shown[0]].values())).keys()
    names = {metric: label for metric, label in NAMES.items() if metric in known}
    figure = Figure(figsize=(1.5 + 3 * len(shown), 7), layout="constrained")
    axes = figure.subplots(len(names), len(shown), squeeze=False, sharex=True, sharey="row")
    for column, group in enumerate(shown):
        for row, (metric, label) in enumerate(names.items()):
            axis = axes[row, column]
            for (predictor, scores), colour in zip(curves[group].items(), COLOURS, strict=False):
                curve = scores[metric].cpu()
                axis.plot(range(1, len(curve) + 1), curve, label=predictor.replace("_", " "), color=colour)
            axis.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axis.set_ylabel(label)
        axes[0, column].set_title(group.replace("_", " "), fontsize=10)
        axes[-1, column].set_xlabel("frame ahead")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


# Colours of the GIF: the probability that a pixel is lit, in four levels, where it is dark and where it is lit
DARK, INK, PALE = "#15171C", "#E8E6E1", "#5A606C"
FALSE = ("#15171C", "#57361B", "#A15F22", "#F08A24")
MISSED = ("#2F6DB5", "#6E97C9", "#ABC0D6", "#E8E6E1")
LEVELS = 4
SCALE = 3
GAP, LABEL = 12, 18


def draw_gif(films: list[Film], *, milliseconds: int = 90) -> bytes:
    """Draw films below each other as one repeating GIF.

    A lit pixel that is predicted is white, one that is missed blue, and one that is predicted and dark orange.

    Args:
        films: Films of the same length.
        milliseconds: Duration of a frame.
    """
    frames = [_frame(films, step) for step in range(len(films[0].truth))]
    return encode_gif(frames, [milliseconds] * (len(frames) - 1) + [12 * milliseconds])


def gif_colours() -> list[str]:
    """Return the colours of the GIFs, those of mechanisms bright and then dimmed."""
    return [DARK, INK, PALE, *FALSE, *MISSED, *COLOURS, *(_dimmed(colour) for colour in COLOURS)]


def _dimmed(colour: str) -> str:
    from PIL import ImageColor

    red, green, blue = (part // 3 for part in ImageColor.getrgb(colour))
    return f"#{red:02X}{green:02X}{blue:02X}"


def _frame(films: list[Film], step: int) -> "Image":
    """Draw all films at a step."""
    from PIL import Image, ImageColor, ImageDraw

    palette = gif_colours()
    panels = [_panels(film, step, palette) for film in films]
    rows = [np.concatenate(_with_gaps([panel for _, panel in row]), axis=1) for row in panels]
    width = max(row.shape[1] for row in rows)
    height = LABEL + sum(row.shape[0] + LABEL + GAP for row in rows)
    canvas = np.full((height, width + 2 * GAP), palette.index(DARK), dtype=np.uint8)
    image = Image.fromarray(canvas, mode="P")
    image.putpalette([part for colour in palette for part in ImageColor.getrgb(colour)])
    draw, letters = ImageDraw.Draw(image), font(11)
    top = 0
    for row, titles in zip(rows, panels, strict=True):
        left = GAP
        for title, panel in titles:
            draw.text((left, top + 3), title, fill=palette.index(INK), font=letters)
            left += panel.shape[1] + GAP
        image.paste(Image.fromarray(row, mode="P"), (GAP, top + LABEL))
        top += row.shape[0] + LABEL + GAP
    ahead = step + 2 - films[0].context_length
    text = f"predicted frame {ahead}" if ahead > 0 else "reads true frames"
    draw.text((GAP, top), text, fill=palette.index(MISSED[1] if ahead <= 0 else FALSE[3]), font=letters)
    return image


def _with_gaps(panels: list[np.ndarray]) -> list[np.ndarray]:
    gap = np.zeros((panels[0].shape[0], GAP), dtype=np.uint8)
    return [part for panel in panels for part in (gap, panel)][1:]


def _panels(film: Film, step: int, palette: list[str]) -> list[tuple[str, np.ndarray]]:
    """Return the panels of a film at a step, with their titles, as indices into the palette."""
    lit = film.truth[step].numpy() > 0.5
    levels = (film.prediction[step].numpy() * LEVELS).astype(int).clip(0, LEVELS - 1)
    truth = np.where(lit, palette.index(INK), palette.index(DARK))
    missed = palette.index(MISSED[0])  # the four levels of each kind are consecutive
    predicted = np.where(lit, missed + levels, palette.index(FALSE[1]) - 1 + levels)
    panels = [(f"truth, {film.name.replace('_', ' ')}", _enlarged(truth)), ("prediction", _enlarged(predicted))]
    if film.owners is not None:
        owners = film.owners[step].numpy() % len(COLOURS)
        bright = palette.index(COLOURS[0])
        panels.append(("masks", _enlarged(bright + owners + np.where(levels < LEVELS // 2, len(COLOURS), 0))))
    if film.active is not None:
        panel = active_panel(film.active, step, lit.shape[0] * SCALE, palette)
        # a line before the first frame that is predicted from a predicted one
        panel[:, (film.context_length - 1) * SCALE] = palette.index(PALE)
        panels.append(("active mechanisms", panel))
    return panels


def _enlarged(indices: np.ndarray) -> np.ndarray:
    """Return every pixel as a square of ``SCALE`` × ``SCALE`` pixels."""
    return indices.astype(np.uint8).repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def active_panel(active: Tensor, step: int, height: int, palette: list[str]) -> np.ndarray:
    """Draw when each mechanism was active: a row for each and a column for each step until now.

    Args:
        active: (T, M) bool.
        step: The last step that is drawn; later ones stay dark.
        height: Height of the panel, pixels.
        palette: Colours, as :func:`gif_colours` returns them.

    Returns:
        (height, T · 3): indices into the palette.
    """
    num_steps, num_mechanisms = active.shape
    shown = np.full((num_mechanisms, num_steps), palette.index(DARK))
    for mechanism in range(num_mechanisms):
        colour = palette.index(COLOURS[mechanism % len(COLOURS)])
        shown[mechanism, : step + 1] = np.where(
            active[: step + 1, mechanism].numpy(), colour, colour + len(COLOURS)
        )
    tall = shown.repeat(max(1, height // num_mechanisms), axis=0).repeat(SCALE, axis=1)
    panel = np.full((height, num_steps * SCALE), palette.index(DARK))
    panel[: len(tall)] = tall[:height]
    for mechanism in range(1, num_mechanisms):  # a line between mechanisms
        panel[mechanism * max(1, height // num_mechanisms) - 1] = palette.index(DARK)
    return panel.astype(np.uint8)
