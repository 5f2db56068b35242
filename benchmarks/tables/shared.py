"""What the tables of several pages share: recorded results, and a table in Markdown."""

import functools
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from benchmarks.results_queue.entries import Entry, read_queue

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"

NAMES = {"rim": "RIM", "rim_paper": "RIM, the paper's rule", "lstm": "LSTM"}
Result = dict[str, Any]

Tables = dict[str, Callable[[], str]]
"""The tables of a page, by the names in its markers."""


def load(*parts: str) -> Result | None:
    path = RESULTS.joinpath(*parts).with_suffix(".json")
    return json.loads(path.read_text()) if path.is_file() else None


def load_all(folder: Path, pattern: str) -> list[Result]:
    """Return the results in the files of a folder that match, by name."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(pattern))]


def seeds_of(dataset: str, name: str) -> list[Result]:
    """Return a config's recorded runs of all seeds, those of the same size and budget."""
    first = load(dataset, name)
    others = load_all(RESULTS / dataset / "seeds", f"{name}-seed*.json")
    if first is None:
        return []
    return [run for run in (first, *others) if all(run[key] == first[key] for key in ("parameters", "steps"))]


def two_threads() -> list[Result]:
    """Return the recorded runs of `make train` with two threads."""
    return load_all(RESULTS / "copying" / "two_threads", "rim-seed*.json")


def runs_of_entry(entry: Entry) -> tuple[list[Result], float | None]:
    """Return the recorded runs of an entry of the queue and their value of its grid: the best in validation.

    There are no runs while some values are not yet tried, and no value without a grid.
    """
    folder = ROOT / entry.results
    if entry.grid is None:
        return load_all(folder, "*seed*.json"), None
    tuning = load(*entry.results.relative_to("benchmarks/results").parts, "tuning")
    if tuning is None or tuning["best"] is None:
        return [], None
    (value,) = tuning["best"].values()
    return load_all(folder, f"{entry.grid.label(value)}-seed*.json"), value


@functools.cache
def entries() -> dict[str, Entry]:
    """Return the entries of the queue, by name."""
    return {entry.name: entry for entry in read_queue(ROOT / "benchmarks" / "queue.yaml")}


def published(dataset: str, model: str) -> dict[str, str]:
    """Return a model's published scores, in the digits they were published in."""
    text = (ROOT / "src" / "rimlit" / "comparison" / "published.yaml").read_text()
    figures = yaml.load(text, Loader=yaml.BaseLoader)[dataset]["rows"]  # numbers stay text
    scores: dict[str, str] = next(row["scores"] for row in figures if row["model"] == model)
    return scores


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(value: float, digits: int) -> str:
    """Return a number with so many significant digits, never with a power of ten."""
    return f"{Decimal(f'{value:.{digits}g}'):f}"


def mean_and_deviation(mean: float, deviation: float) -> str:
    """Return both, the mean with two significant digits or as many decimals as the deviation has."""
    spread = plain(deviation, 1)
    decimals = max(len(text.partition(".")[2]) for text in (spread, plain(mean, 2)))
    return f"{mean:.{decimals}f} ± {spread}"
