"""Scores over seeds, and how they are written."""

import statistics
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Score(NamedTuple):
    """Mean and standard deviation (n − 1) over seeds, None for a single one."""

    mean: float
    deviation: float | None


def mean_and_deviation(values: Iterable[float]) -> Score | None:
    """Return mean and standard deviation (n − 1) of ``values``; None of none."""
    values = list(values)
    if not values:
        return None
    return Score(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def floor_of(floors: Mapping[str, float], name: str) -> float | None:
    """Return the floor of a score, the group's own or that of all."""
    return floors.get(name, floors.get(name.rpartition("/")[2]))


def title(name: str) -> str:
    """Return a score's name for people: ``cross entropy, span 50``."""
    group, _, metric = name.rpartition("/")
    words = f"{metric}, {group}" if group else metric
    return words.replace("_", " ").replace("/", ", ")


def number(value: float, digits: int = 3) -> str:
    """Write a number so that the table stays readable: with ``digits`` behind the point where it is small."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}f}" if abs(value) < 10 else f"{value:.2f}"


def written(score: Score | None, *, digits: int = 3) -> str:
    """Write a score."""
    if score is None:
        return "–"
    return " ± ".join(number(part, digits) for part in score if part is not None)
