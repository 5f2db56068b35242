"""Which schema drives which state, and through it which ball, when (Goyal et al. 2021, arXiv:2006.16225)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rimlit.pictures.activity import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_BALL = -1
INACTIVE = "#EEEEEE"


class SchemaScene(NamedTuple):
    """The schemata of one rolled-out sequence, and where its balls were."""

    name: str
    schema: Tensor  # (T, M): which schema each state followed, −1 where it was inactive
    context_length: int  # frames that were predicted from true ones
    owners: Tensor | None  # (T, height, width): the state that a pixel belongs to
    positions: Tensor  # (T, balls, 2), pixels: x to the right, y down
    radii: Tensor  # (balls,), pixels; 0 for a ball that is not there


def owners_by_attention(attention: Tensor, side: int) -> Tensor | None:
    """Return the state that attends most to each position of a square map, as pixels (T, side, side), or None.

    Args:
        attention: Attention to the input slots (T, M, N).
        side: Pixels of a side of the frame.
    """
    cells = round(attention.shape[-1] ** 0.5)
    if cells < 2 or cells**2 != attention.shape[-1] or side % cells:
        return None
    return enlarge(attention.argmax(dim=1), side)


def enlarge(owners: Tensor, side: int) -> Tensor:
    """Return places (T, places) of a square map as pixels (T, side, side)."""
    cells = round(owners.shape[-1] ** 0.5)
    square = owners.view(-1, cells, cells)
    return square.repeat_interleave(side // cells, dim=1).repeat_interleave(side // cells, dim=2)


def schema_of_balls(scene: SchemaScene) -> Tensor:
    """Return the schema of the state that each ball's centre belongs to, (T, balls there), −1 for none."""
    assert scene.owners is not None
    there = scene.radii > 0
    side = torch.tensor([scene.owners.shape[2] - 1, scene.owners.shape[1] - 1])
    x, y = scene.positions[:, there].floor().long().clamp(min=0).minimum(side).unbind(dim=-1)
    steps = torch.arange(len(scene.owners))[:, None]
    return scene.schema.gather(1, scene.owners[steps, y, x])


def draw_schemata(scenes: Sequence[SchemaScene], run: str = "") -> "Figure":
    """Draw which schema each state followed and, where pixels have owners, which one drives which ball.

    Args:
        scenes: Sequences, drawn below each other.
        run: Name of the run, for the title.

    Returns:
        A matplotlib figure; a line marks the first frame that is predicted from a predicted one.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    panels: list[tuple[str, str, Tensor, list[str], int]] = []
    for scene in scenes:
        name, states = scene.name.replace("_", " "), scene.schema
        numbers = [str(state) for state in range(states.shape[1])]
        panels.append((f"{name}: schema of each state", "state", states, numbers, scene.context_length))
        if scene.owners is not None:
            radii = [f"{number + 1} (r {r:.1f})" for number, r in enumerate(scene.radii[scene.radii > 0].tolist())]
            title = f"{name}: schema of the state that each ball belongs to"
            panels.append((title, "ball (radius, px)", schema_of_balls(scene), radii, scene.context_length))
    num_schemata = 1 + max(int(panel[2].max()) for panel in panels)
    heights = [0.6 + 0.25 * len(panel[3]) for panel in panels]
    figure = Figure(figsize=(9, 1 + 0.5 * len(panels) + sum(heights)), layout="constrained")
    axes: Any = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    palette = [COLOURS[schema % len(COLOURS)] for schema in range(num_schemata)]
    colours = ListedColormap([INACTIVE, *palette])
    for axis, (title, label, rows, names, context) in zip(axes, panels, strict=True):
        axis.imshow(
            np.ascontiguousarray(rows.T.numpy()),
            aspect="auto",
            cmap=colours,
            vmin=NO_BALL - 0.5,
            vmax=num_schemata - 0.5,
            interpolation="nearest",
        )
        axis.axvline(context - 0.5, color="black", linewidth=1)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_ylabel(label)
        axis.set_yticks(range(len(names)), names)
    axes[-1].set_xlabel("step")
    patches = [Patch(color=colour, label=f"schema {schema}") for schema, colour in enumerate(palette)]
    patches.append(Patch(color=INACTIVE, label="inactive"))
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 6), frameon=False)
    figure.suptitle(
        f"{run}: which schema drives which ball" if run else "Which schema drives which ball", fontsize=11
    )
    return figure
