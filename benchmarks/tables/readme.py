"""The tables of README.md: what to expect, the reasons, the results in short, and what the package contains."""

import inspect
import statistics
from collections.abc import Iterable

from benchmarks.screen.pools import best_score, pools
from benchmarks.screen.runs import is_less_better
from benchmarks.screen.table import Score, score_of
from benchmarks.tables.shared import Tables, load, mean_and_deviation, seeds_of, table, two_threads

import rimlit.backbones
import rimlit.data
import rimlit.encoders
import rimlit.heads
import rimlit.rl
import rimlit.tasks
from rimlit.backbones import Backbone
from rimlit.backbones.rim_parts import KINDS
from rimlit.data import DataModule
from rimlit.encoders import Encoder
from rimlit.heads import Head
from rimlit.mechanisms import known_parts
from rimlit.tasks import Task

MODELS = {
    "chosen": "**RIM**, `preset: dynamic` or `sparse`",
    "gru": "GRU",
    "lstm": "LSTM",
    "paper": "RIM, the paper's rule",
}
"""Models of the screen that the front page shows: pools, and the paper's rule with its smaller search."""
SCORES = {
    "copying": "copying, cross-entropy",
    "digits": "digits, accuracy",
    "adding": "adding, squared error",
    "bouncing_balls": "bouncing balls, F1",
    "repeat_previous": "RepeatPrevious, return",
}


def promise() -> str:
    """What `make train` ends with, in a sentence."""
    by_default = two_threads()
    runs = [*seeds_of("copying", "rim"), *by_default]
    worst = [min(run["test"][f"span_{span}/sequence_accuracy"] for run in runs) for span in (50, 100, 200, 400)]
    copied = [f"{100 * share:.1f} %" for share in worst]
    minutes = [run["train_seconds"] / 60 for run in by_default]
    result = by_default[0]
    return (
        f"**Copied without an error in the worst of {len(runs)} runs (five seeds, one and two threads): "
        f"{copied[0]} of the sequences at span 50, {copied[1]} at 100, {copied[2]} at 200 and {copied[3]} at "
        f"400.** Spans above 50 are never trained on. `make train` reaches this in {result['steps']:,} steps with "
        f"{result['parameters']:,} parameters. It took {min(minutes):.1f} to {max(minutes):.1f} minutes on "
        f"{result['machine']}. "
        "Other processors and numbers of threads round differently; expect at least 99 % at span 50."
    )


def reasons() -> str:
    """Return the claims of the front page, each with a measured figure and a link."""
    lines = [competition_that_learns(), speed(), checks(), resume(), comparison()]
    return "\n".join(f"- {line}" for line in lines if line)


def competition_that_learns() -> str:
    runs, paper = seeds_of("copying", "rim"), load("copying", "rim_paper")
    if not runs or paper is None:
        return ""
    whole = statistics.mean(run["test"]["span_400/sequence_accuracy"] for run in runs)
    of_paper = paper["test"]["span_400/sequence_accuracy"]
    return (
        "**[A competition that learns.](docs/competition.md)** Each mechanism decides by itself whether the input "
        "is relevant to it. At 8 times the trained span this RIM copies "
        f"{100 * whole:.1f} % of the sequences without an error (mean of {len(runs)} seeds), "
        f"the paper's rule {100 * of_paper:.0f} % (one seed)."
    )


def speed() -> str:
    measured = load("layer")
    if measured is None:
        return ""
    arms = measured["speed"]["result"][0]["arms"]
    return (
        "**[Faster than `nn.LSTM`.](docs/performance.md)** On a CPU a layer of the paper's size takes "
        f"{arms['RIM, cpu']['ratio']:.2f} of the time of `nn.LSTM(600)`; the authors' code, "
        f"re-created, takes {arms[AUTHORS]['ratio']:.1f} times the LSTM's."
    )


def checks() -> str:
    return (
        "**[Checked.](docs/paper_map.md)** Every time loop is tested against a slow reference, written from the "
        "equations, in outputs and all gradients."
    )


def resume() -> str:
    chaos = load("chaos")
    if chaos is None:
        return ""
    return (
        f"**[Exact resume.](docs/reliability.md)** {chaos['kills']} runs killed by `kill -9` and resumed: "
        f"{chaos['corrupt']} damaged files, {chaos['differing_bits']} different bits, at most "
        f"{chaos['most_steps_lost']} steps lost."
    )


def comparison() -> str:
    return (
        "**[Fair comparison in one command.](docs/comparing.md)** `rimlit compare copying/rim copying/lstm "
        "--seeds 5 --match params --tune lr=0.002,0.004,0.008` gives each model the same size, the same budget "
        "and its own best learning rate."
    )


AUTHORS = "the authors' code, re-created"


def screen_in_short() -> str:
    """Return mean ± standard deviation over seeds on the tasks of the screen, in and out of distribution."""
    rows = []
    for place, words in (("inside", "as in training"), ("outside", "longer, larger or more")):
        found = {
            name: [(best_score if name in pools() else score_of)(name, task, place) for task in SCORES]
            for name in MODELS
        }
        best = [_best(task, [scores[column] for scores in found.values()]) for column, task in enumerate(SCORES)]
        for name, scores in found.items():
            if any(scores):
                cells = [_cell(score, best[column]) for column, score in enumerate(scores)]
                rows.append([words, MODELS[name], *cells])
    return table(["tested on data", "model", *SCORES.values()], rows)


def _best(task: str, scores: Iterable[Score | None]) -> float | None:
    means = [score.mean for score in scores if score is not None]
    if not means:
        return None
    return min(means) if is_less_better(task) else max(means)


def _cell(score: Score | None, best: float | None) -> str:
    if score is None:
        return ""
    deviation = statistics.stdev(score.by_seed.values()) if len(score.by_seed) > 1 else 0.0
    text = mean_and_deviation(score.mean, deviation)
    return f"**{text}**" if score.mean == best else text


def catalogue() -> str:
    """Return the names of what can be put together, found in the package."""
    rows = [
        ["backbones", "[backbones](docs/backbones.md)", _classes(rimlit.backbones, Backbone)],
        *(
            [f"`{argument}` of a RIM", "[mechanisms](docs/mechanisms.md)", _names(known_parts(base))]
            for argument, base in KINDS.items()
            if argument != "input_sharing"
        ),
        ["encoders", "[extending](docs/extending.md)", _classes(rimlit.encoders, Encoder)],
        ["heads", "[extending](docs/extending.md)", _classes(rimlit.heads, Head)],
        ["tasks", "[tasks](docs/tasks.md)", f"{_classes(rimlit.tasks, Task)}, `PPOTask`"],
        ["data", "[tasks](docs/tasks.md)", f"{_classes(rimlit.data, DataModule)}, `Experience`"],
    ]
    return table(["what", "page", "names"], [[what, page, names] for what, page, names in rows])


def _classes(module: object, base: type) -> str:
    found = [
        name
        for name in module.__all__  # type: ignore[attr-defined]
        if inspect.isclass(value := getattr(module, name)) and issubclass(value, base) and value is not base
        if not inspect.isabstract(value)
    ]
    return _names(found)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


TABLES: Tables = {
    "promise": promise,
    "reasons": reasons,
    "screen_in_short": screen_in_short,
    "catalogue": catalogue,
}
