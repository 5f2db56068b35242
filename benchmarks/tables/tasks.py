"""The gallery of docs/tasks.md: each shipped config with what it reaches and how long it takes."""

import statistics
from typing import NamedTuple

from benchmarks.tables.shared import Tables, entries, plain, runs_of_entry, seeds_of, table


class Shown(NamedTuple):
    """A row: config, what is learned, and a score by its key in the recorded JSON."""

    config: str
    learns: str
    key: str
    words: str
    figure: str = ""
    entry: str = ""  # of the queue, where the runs are not in the folder of the config's name


SHOWN = (
    Shown(
        "copying/rim",
        "repeat 10 symbols after 1 to 50 blanks",
        "span_200/sequence_accuracy",
        "copied without an error at span 200",
        "[activity](images/copying_activity.png)",
    ),
    Shown("adding/rim", "add two marked numbers of 50", "length_200/mse", "squared error at 200 steps"),
    Shown("sequential_mnist/rim", "scikit-learn's digits, pixel by pixel", "size_8/accuracy", "accuracy at 8 × 8"),
    Shown("mnist/rim", "MNIST, pixel by pixel", "size_14/accuracy", "accuracy at 14 × 14"),
    Shown(
        "bouncing_balls/rim",
        "predict frames of four balls",
        "balls_4/f1_at_5",
        "F1 at frame 5",
        "[rollout](images/bouncing_balls.gif)",
    ),
    Shown("tinyshakespeare/rim", "characters of a text", "perplexity", "perplexity"),
    Shown("wikitext-2/rim", "words of a text", "perplexity", "perplexity"),
    Shown(
        "language/rim",
        "bytes of Python's sources",
        "perplexity",
        "perplexity",
        entry="language-rim",
    ),
    Shown("sequences/rim", "your own sequences", "accuracy", "accuracy"),
    Shown("series/rim", "your own time series", "mse", "squared error"),
    Shown("cartpole/rim", "balance a pole without velocities", "episode_return", "return, of 500"),
    Shown("repeat_previous/rim", "name the suit of an earlier card", "episode_return", "return, of 1"),
    Shown(
        "doorkey/rim",
        "fetch a key, open a door",
        "MiniGrid-DoorKey-5x5-v0/episode_return",
        "return at 5 × 5, of 1",
        "[episode](images/doorkey.gif)",
    ),
    Shown("atari/rim", "Pong from the screen", "episode_return", "return, −21 to 21"),
)


def gallery() -> str:
    rows = []
    for row in SHOWN:
        recorded = runs_of_entry(entries()[row.entry])[0] if row.entry else seeds_of(*row.config.split("/"))
        runs = [run for run in recorded if row.key in run["test"]]
        score = time = ""
        if runs:
            score = f"{row.words}: {plain(statistics.mean(run['test'][row.key] for run in runs), 3)}"
            time = f"{max(1, round(statistics.mean(run['train_seconds'] for run in runs) / 60))} min"
        seeds = str(len(runs) or "")
        rows.append(
            [f"[`{row.config}`](../configs/{row.config}.yaml)", row.learns, score, seeds, time, row.figure]
        )
    return table(["config", "task", "recorded, mean of the seeds", "seeds", "training, 1 thread", "figure"], rows)


TABLES: Tables = {"gallery": gallery}
