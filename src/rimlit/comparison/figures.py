"""A metric of several models over training and over test groups, with bands over seeds."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rimlit.comparison.scores import mean_and_deviation
from rimlit.comparison.statistics import Interval, Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB", "#000000")
MARKERS = "osD^v<>P"


Curve = Sequence[Sequence[float]]
"""``[step, value]`` of one run."""


def draw_metric(
    metric: str,
    curves: Mapping[str, Sequence[Curve]],
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    floor: float | None,
) -> "Figure":
    """Draw a metric: on validation data over training steps, and on test data over the groups' number.

    Lines are means over seeds, bands and bars standard deviations, small points the seeds. Groups whose names end
    in a number, such as ``span_50``, are drawn on a numeric axis, others side by side.

    Args:
        metric: Its name.
        curves: Validation scores of each run, by model.
        scores: Test scores of each run, by model and group; ``""`` is the group where there is only one.
        floor: The metric's floor.
    """
    from matplotlib.figure import Figure

    groups = list(next(iter(scores.values()), {}))
    has_curves = any(curves.values())
    panels = int(has_curves) + int(bool(groups))
    figure = Figure(figsize=(max(panels, 1) * 5.2, 4.4), layout="constrained")
    axes = list(figure.subplots(1, max(panels, 1), squeeze=False)[0])
    words = metric.replace("_", " ")
    if has_curves:
        axis = axes.pop(0)
        for index, runs in enumerate(curves.values()):
            _draw_curve(axis, runs, index)
        _draw_floor(axis, floor)
        axis.set(xlabel="training step", ylabel=words, title=f"validation, {words}")
        axis.xaxis.get_major_locator().set_params(integer=True)
    if groups:
        _draw_groups(axes.pop(0), metric, scores, floor)
    handles = [_line(index, model) for index, model in enumerate(curves)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), frameon=False)
    return figure


def _style(index: int) -> dict[str, str]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": "-" if index < len(COLOURS) else "--",
    }


def _line(index: int, label: str):  # type: ignore[no-untyped-def]
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, markersize=4, **_style(index))  # type: ignore[arg-type]


def _draw_curve(axis: "Axes", runs: Sequence[Curve], index: int) -> None:
    """Draw the mean over runs at the steps that all of them have."""
    by_step: dict[float, list[float]] = {}
    for run in runs:
        for step, value in run:
            by_step.setdefault(step, []).append(value)
    steps = sorted(step for step, values in by_step.items() if len(values) == len(runs))
    scores = [score for step in steps if (score := mean_and_deviation(by_step[step]))]
    means = [score.mean for score in scores]
    widths = [score.deviation or 0.0 for score in scores]
    style = _style(index)
    axis.plot(steps, means, markersize=3, **style)  # type: ignore[arg-type]
    low = [mean - width for mean, width in zip(means, widths, strict=True)]
    high = [mean + width for mean, width in zip(means, widths, strict=True)]
    axis.fill_between(steps, low, high, color=style["color"], alpha=0.2, linewidth=0)


def _draw_groups(
    axis: "Axes", metric: str, scores: Mapping[str, Mapping[str, Sequence[float]]], floor: float | None
) -> None:
    groups = list(next(iter(scores.values())))
    numbers = [re.search(r"^(.*?)_?(\d+)$", group) for group in groups]
    kinds = {found[1] for found in numbers if found}
    is_numeric = all(numbers) and len(kinds) == 1
    places = (
        [float(found[2]) for found in numbers if found] if is_numeric else list(map(float, range(len(groups))))
    )
    for index, by_group in enumerate(scores.values()):
        pairs = list(zip(places, by_group.values(), strict=True))
        points = [(place, score) for place, values in pairs if (score := mean_and_deviation(values)) is not None]
        style = _style(index) if is_numeric else {**_style(index), "linestyle": "none"}
        axis.errorbar(
            [place for place, _ in points],
            [score.mean for _, score in points],
            [score.deviation or 0.0 for _, score in points],
            capsize=3,
            markersize=5,
            **style,  # type: ignore[arg-type]
        )
        every = [(place, value) for place, values in pairs for value in values]
        axis.scatter([x for x, _ in every], [y for _, y in every], s=8, alpha=0.5, color=style["color"])
    _draw_floor(axis, floor)
    words = metric.replace("_", " ")
    axis.set(xlabel=kinds.pop().replace("_", " ") if is_numeric else "", ylabel=words, title=f"test, {words}")
    labels = [f"{place:g}" for place in places] if is_numeric else [group.replace("_", " ") for group in groups]
    axis.set_xticks(places, labels)


def _draw_floor(axis: "Axes", floor: float | None) -> None:
    if floor is not None:
        axis.axhline(floor, color="#888888", linestyle=":", linewidth=1)
        axis.annotate("floor", (1, floor), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)


def draw_profiles(profiles: Mapping[str, Profile]) -> "Figure":
    """Draw the share of runs above each score, a line per model with its 95 % band.

    Args:
        profiles: Profiles by model.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.4), layout="constrained")
    axis = figure.subplots()
    for index, (model, profile) in enumerate(profiles.items()):
        style = {**_style(index), "marker": ""}
        axis.plot(profile.thresholds, profile.shares, label=model, **style)  # type: ignore[arg-type]
        if profile.low is not None and profile.high is not None:
            axis.fill_between(
                profile.thresholds, profile.low, profile.high, color=style["color"], alpha=0.15, linewidth=0
            )
    axis.set(xlabel="score: 0 floor, 1 best run", ylabel="share of runs above", title="performance profile")
    axis.set_ylim(-0.02, 1.02)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def draw_intervals(means: Mapping[str, Interval], points: Mapping[str, Sequence[float]]) -> "Figure":
    """Draw interquartile means with their 95 % intervals, and every run as a point.

    Args:
        means: Interquartile means by model.
        points: Scores of each run by model.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 1.2 + 0.45 * len(means)), layout="constrained")
    axis = figure.subplots()
    for index, (model, mean) in enumerate(means.items()):
        colour = _style(index)["color"]
        axis.scatter(points[model], [index] * len(points[model]), s=10, alpha=0.4, color=colour)
        low, high = (mean.value if end is None else end for end in (mean.low, mean.high))
        axis.plot([low, high], [index, index], color=colour, linewidth=2)
        axis.plot([mean.value], [index], marker="|", markersize=14, markeredgewidth=2, color=colour)
    axis.set_yticks(range(len(means)), list(means))
    axis.invert_yaxis()
    axis.set(xlabel="score: 0 floor, 1 best run", title="interquartile mean, 95 % interval")
    return figure
