"""The tables of docs/results.md."""

import re
import statistics
from typing import Any

from benchmarks.results_queue.entries import Entry
from benchmarks.tables.shared import (
    NAMES,
    Tables,
    entries,
    load,
    mean_and_deviation,
    plain,
    published,
    runs_of_entry,
    seeds_of,
    table,
    two_threads,
)

COPYING = {
    "rim": "RIM, `preset: sparse`",
    "rim_dynamic": "RIM, `preset: dynamic`",
    "rim_paper": "RIM, the paper's rule",
    "gru": "GRU",
    "lstm": "LSTM",
}
PAPER_MNIST = ("RIM 600, 6 mechanisms, 4 active", "LSTM 600", "LSTM 300")  # those shown


def copying() -> str:
    """A row per model and metric, a column per span."""
    results = {name: result for name in COPYING if (result := load("copying", name))}
    spans = sorted(
        {
            int(found[1])
            for result in results.values()
            for key in result["test"]
            if (found := re.match(r"span_(\d+)/", key))
        }
    )
    rows = []
    for metric, digits in (("cross_entropy", 3), ("sequence_accuracy", 3)):
        for name, result in results.items():
            seeds = seeds_of("copying", name)
            found = [[seed["test"][f"span_{span}/{metric}"] for seed in seeds] for span in spans]
            rows.append(
                [
                    COPYING[name],
                    f"{result['parameters']:,}",
                    str(len(seeds)),
                    metric.replace("_", " "),
                    *(_mean_and_range(scores, digits) for scores in found),
                ]
            )
        floor = next(iter(results.values()))["floor"][metric]
        rows.append(
            [
                "floor: format known, symbols guessed",
                "",
                "",
                metric.replace("_", " "),
                *[f"{floor:.3f}"] * len(spans),
            ]
        )
    return table(
        ["copying, last 10 steps", "parameters", "seeds", "metric", *(f"span {span}" for span in spans)], rows
    )


def _mean_and_range(scores: list[float], digits: int) -> str:
    mean = f"{statistics.mean(scores):.{digits}f}"
    return mean if len(scores) == 1 else f"{mean} ({min(scores):.{digits}f} to {max(scores):.{digits}f})"


def make_train() -> str:
    """A row per seed and number of threads of `make train`: the sequences copied without an error at each span."""
    spans = (50, 100, 200, 400)
    rows = []
    for run in [*seeds_of("copying", "rim"), *two_threads()]:
        machine, _, threads = run["machine"].rpartition(", ")
        scores = [f"{run['test'][f'span_{span}/sequence_accuracy']:.4f}" for span in spans]
        rows.append([str(run["seed"]), threads.split()[0], machine, f"{run['train_seconds']:.0f} s", *scores])
    return table(["seed", "threads", "machine", "training", *(f"span {span}" for span in spans)], rows)


def language() -> str:
    """A row per text and model."""
    rows = []
    for dataset, text in (
        ("tinyshakespeare", "tiny Shakespeare, characters"),
        ("wikitext-2", "WikiText-2, words"),
    ):
        for name, model in NAMES.items():
            if result := load(dataset, name):
                bits = result["test"].get("bits_per_character")
                rows.append(
                    [
                        text,
                        model,
                        f"{result['parameters']:,}",
                        f"{result['steps']:,} steps, {result['train_seconds'] / 60:.0f} min",
                        f"{result['test']['perplexity']:.2f}",
                        "" if bits is None else f"{bits:.3f}",
                        f"{result['floor']['perplexity']:.1f}",
                    ]
                )
    return table(
        [
            "text",
            "model",
            "parameters",
            "budget",
            "test perplexity",
            "bits per character",
            "perplexity of token frequencies",
        ],
        rows,
    )


def by_group(dataset: str, prefix: str, metric: str, digits: int) -> tuple[list[int], list[list[str]]]:
    """Return the sizes or lengths tested, and a row per model, then of the floor, with a column for each."""
    results = {name: result for name in NAMES if (result := load(dataset, name))}
    keys = {key for result in results.values() for key in result["test"]}
    groups = sorted({int(found[1]) for key in keys if (found := re.match(rf"{prefix}_(\d+)/", key))})
    rows = []
    for name, result in results.items():
        scores = [f"{result['test'][f'{prefix}_{group}/{metric}']:.{digits}f}" for group in groups]
        rows.append([NAMES[name], f"{result['parameters']:,}", f"{result['steps']:,} steps", *scores])
    if results:
        floor = next(iter(results.values()))["floor"][metric]
        rows.append(["floor", "", "", *[f"{floor:.{digits}f}"] * len(groups)])
    return groups, rows


def images(dataset: str, paper: tuple[str, ...] = ()) -> str:
    """A row per model, a column per size of the test images."""
    sizes, rows = by_group(dataset, "size", "accuracy", 3)
    if not rows:
        return "(not recorded)"
    for model in paper:
        scores = published(dataset, model)
        cells = [scores.get(f"size_{size}/accuracy", "") for size in sizes]
        rows.append([f"{model} (paper)", "", "100 epochs", *cells])
    return table(["accuracy", "parameters", "budget", *(f"{size} × {size}" for size in sizes)], rows)


def adding() -> str:
    """A row per model, a column per length."""
    lengths, rows = by_group("adding", "length", "mse", 5)
    if not rows:
        return "(not recorded)"
    return table(["mean squared error", "parameters", "budget", *(f"{length} steps" for length in lengths)], rows)


QUEUE_SCORES = {
    "copying": [f"span_{span}/cross_entropy" for span in (50, 100, 200, 400)],
    "sequential_mnist": [f"size_{size}/accuracy" for size in (8, 9, 11, 14, 16, 19, 24)],
    "mnist": [f"size_{size}/accuracy" for size in (14, 16, 19, 24)],
    "bouncing_balls": [f"balls_{balls}/f1_at_{frame}" for balls in ("4", "6-8") for frame in (1, 5, 10)],
    "blinking_balls": [f"balls_{balls}_length_{length}/accuracy" for balls in (3, 6) for length in (10, 20)],
    "adding": [f"length_{length}/mse" for length in (50, 100, 200, 500, 1000)],
    "doorkey": [f"MiniGrid-DoorKey-{size}x{size}-v0/episode_return" for size in (5, 6, 8)],
    "repeat_previous": ["episode_return"],
    "cartpole": ["episode_return"],
    "tinyshakespeare": ["perplexity", "bits_per_character"],
    "language": ["perplexity"],
    "wikitext-2": ["perplexity"],
}
"""Scores of the queue's runs that are shown, by the folder of the config."""


def queue() -> str:
    """A row per entry with a finished run at the best of its rates, mean ± standard deviation; POPGym not."""
    shown = (entry for entry in entries().values() if "popgym" not in entry.results.parts)
    rows = [row for entry in shown if (row := _queue_row(entry))]
    if not rows:
        return "(nothing yet)"
    return table(["entry", "parameters", "learning rate, if tuned", "seeds", "test scores", "minutes a run"], rows)


def _queue_row(entry: Entry) -> list[str] | None:
    runs, value = runs_of_entry(entry)
    if not runs:
        return None
    keys = QUEUE_SCORES[entry.config.removeprefix("paper/").split("/")[0]]
    scores = [f"{key}: {_spread(found)}" for key in keys if (found := _scores(runs, key))]
    minutes = [run["train_seconds"] / 60 for run in runs]
    seeds = ", ".join(str(run["seed"]) for run in runs)
    return [
        f"`{entry.name}`",
        f"{runs[0]['parameters']:,}",
        "" if value is None else f"{value:g}",
        seeds,
        " · ".join(scores),
        " to ".join(dict.fromkeys(f"{time:.0f}" for time in (min(minutes), max(minutes)))),
    ]


def _scores(runs: list[dict[str, Any]], key: str) -> list[float]:
    return [run["test"][key] for run in runs if key in run["test"]]


def _spread(scores: list[float]) -> str:
    mean = statistics.mean(scores)
    return plain(mean, 3) if len(scores) < 2 else mean_and_deviation(mean, statistics.stdev(scores))


TABLES: Tables = {
    "queue": queue,
    "copying": copying,
    "make_train": make_train,
    "language": language,
    "digits": lambda: images("sequential_mnist"),
    "mnist": lambda: images("mnist", PAPER_MNIST),
    "adding": adding,
}
