"""What is kept of a search: the best config as YAML, the trials as JSON, and a figure."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rimlit.cli.settings import config_text
from rimlit.comparison.entrants import Entrant, Model
from rimlit.comparison.tuning import short_names, short_value
from rimlit.files import encode_png, write_file, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOUR, BEST = "#4477AA", "#EE6677"


def save_searches(entrants: Sequence[Entrant], folder: Path) -> None:
    """Write ``search-<model>.json``, ``figures/search-<model>.png`` and ``best/<model>.yaml`` of each search.

    Args:
        entrants: The entrants of a comparison; those without a search are left out.
        folder: The comparison's folder.

    Raises:
        StorageError: It cannot be written.
    """
    for entrant in entrants:
        if entrant.search is None:
            continue
        report = entrant.search.report()
        write_json(folder / f"search-{entrant.name}.json", report)
        if any(trial["score"] is not None for trial in report["tried"]):
            png = encode_png(draw_search(report))
            write_file(folder / "figures" / f"search-{entrant.name}.png", png)
        if (model := entrant.chosen()) is not None:
            write_file(best_config(entrant, folder), _text(model))


def best_config(entrant: Entrant, folder: Path) -> Path:
    """Return the file of a search's best config."""
    return folder / "best" / f"{entrant.name}.yaml"


def _text(model: Model) -> str:
    settings = {key: value for key, value in model.settings.items() if key != "config"}
    settings.get("trainer", {}).pop("enable_progress_bar", None)
    return f"# {model.name}: best in validation. rimlit fit --config THIS_FILE\n{config_text(settings)}"


def draw_search(report: Mapping[str, Any]) -> "Figure":
    """Draw a search: scores in the order of the trials, with the best so far, and scores over each setting.

    Trials without a score (pruned, diverged, refused) are marks on the lower edge.

    Args:
        report: What :meth:`rimlit.comparison.tuning.Search.report` returns.
    """
    from matplotlib.figure import Figure

    names = short_names(list(report["space"]))
    figure = Figure(figsize=(3.6 * (1 + len(names)), 3.4), layout="constrained")
    axes = list(figure.subplots(1, 1 + len(names), squeeze=False)[0])
    tried = report["tried"]
    metric = str(report["metric"]).replace("_", " ")
    axes[0].set(xlabel="trial", ylabel=metric, title="search")
    _draw_points(axes[0], range(len(tried)), tried)
    best, so_far = None, []
    for number, trial in enumerate(tried):
        score = trial["score"]
        if score is not None and math.isfinite(score):
            better = max if report["higher_is_better"] else min
            best = score if best is None else better(best, score)
        if best is not None:
            so_far.append((number, best))
    axes[0].step([number for number, _ in so_far], [score for _, score in so_far], where="post", color=BEST)
    for axis, (setting, name) in zip(axes[1:], names.items(), strict=True):
        ((kind, values),) = report["space"][setting].items()
        given = [trial["values"][setting] for trial in tried]
        places = [_places(values).index(str(each)) for each in given] if kind == "choice" else given
        _draw_points(axis, places, tried)
        if kind == "choice":
            axis.set_xticks(range(len(values)), _places(values))
        elif kind.startswith("log_"):
            axis.set_xscale("log")
        found = report["best"]
        axis.set(xlabel=name, title="not known yet" if found is None else f"best {short_value(found[setting])}")
    return figure


def _places(values: Sequence[Any]) -> list[str]:
    return [str(value) for value in values]


def _draw_points(axis: "Axes", places: Sequence[Any], tried: Sequence[Mapping[str, Any]]) -> None:
    known = [
        (place, trial["score"]) for place, trial in zip(places, tried, strict=True) if trial["score"] is not None
    ]
    lost = [place for place, trial in zip(places, tried, strict=True) if trial["score"] is None]
    axis.scatter([place for place, _ in known], [score for _, score in known], s=14, color=COLOUR, alpha=0.8)
    if lost:
        axis.plot(lost, [0.02] * len(lost), "|", color="#888888", transform=axis.get_xaxis_transform())
