"""Write the tables of README.md and of docs from the JSON files in benchmarks/results.

python benchmarks/tables.py            rewrites what stands between the table markers
python benchmarks/tables.py --check    only says whether anything would change; exit 1 if so
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from rimlit.comparison import Comparison
from rimlit.comparison.results import SIZES, floor_of, number, title, written

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NAMES = {"rim": "RIM", "lstm": "LSTM"}
Result = dict[str, Any]


def load(*parts: str) -> Result | None:
    path = RESULTS.joinpath(*parts).with_suffix(".json")
    return json.loads(path.read_text()) if path.is_file() else None


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def promise() -> str:
    """What `make train` ends with, in a sentence."""
    result = load("copying", "rim")
    if result is None:
        return "(not recorded)"
    test = result["test"]
    copied = [f"{100 * test[f'span_{span}/sequence_accuracy']:.1f} %" for span in (50, 100, 200, 400)]
    minutes = result["train_seconds"] / 60
    return (
        f"**{copied[0]} of the sequences copied whole at span 50, and {copied[1]}, {copied[2]} and {copied[3]} "
        f"at 100, 200 and 400**, spans it was never trained on: that is what `make train` reaches in "
        f"{result['steps']:,} steps with {result['parameters']:,} parameters (seed {result['seed']}). "
        f"It took {minutes:.0f} minutes on {result['machine']}."
    )


def seeds_of(dataset: str, name: str) -> list[Result]:
    """Return a config's recorded runs of all seeds, those of the same size and budget."""
    first = load(dataset, name)
    others = [
        json.loads(path.read_text()) for path in sorted((RESULTS / dataset / "seeds").glob(f"{name}-seed*.json"))
    ]
    if first is None:
        return []
    return [run for run in (first, *others) if all(run[key] == first[key] for key in ("parameters", "steps"))]


def copying() -> str:
    """A row per model and metric, a column per span."""
    results = {name: result for name in NAMES if (result := load("copying", name))}
    if not results:
        return "(not recorded)"
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
            scores = [f"{result['test'][f'span_{span}/{metric}']:.{digits}f}" for span in spans]
            rows.append([f"{NAMES[name]}, {result['parameters']:,} parameters", metric.replace("_", " "), *scores])
        seeds = seeds_of("copying", "rim")
        if len(seeds) > 1:
            names = ", ".join(str(seed["seed"]) for seed in seeds)
            scores = [[seed["test"][f"span_{span}/{metric}"] for seed in seeds] for span in spans]
            cells = [f"{sum(own) / len(own):.3f} ({min(own):.3f} to {max(own):.3f})" for own in scores]
            rows.append([f"RIM, mean of seeds {names}", metric.replace("_", " "), *cells])
        floor = next(iter(results.values()))["floor"][metric]
        rows.append(
            ["floor: format known, symbols guessed", metric.replace("_", " "), *[f"{floor:.3f}"] * len(spans)]
        )
    return table(["copying, last 10 steps", "metric", *(f"span {span}" for span in spans)], rows)


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


PAPER_MNIST = ("RIM 600, 6 mechanisms, 4 active", "LSTM 600", "LSTM 300")  # those shown


def published(dataset: str, model: str) -> dict[str, str]:
    """Return a model's published scores, in the digits they were published in."""
    text = (ROOT / "src" / "rimlit" / "comparison" / "published.yaml").read_text()
    figures = yaml.load(text, Loader=yaml.BaseLoader)[dataset]["rows"]  # numbers stay text
    scores: dict[str, str] = next(row["scores"] for row in figures if row["model"] == model)
    return scores


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


MODELS = {
    "rim": "RIM",
    "lstm": "LSTM",
    "gru": "GRU",
    "rnn": "RNN",
    "ntm": "NTM",
    "dnc": "DNC",
    "rmc": "RMC",
    "entnet": "EntNet",
    "transformer": "Transformer",
    "ablations-rim_without_communication": "RIM without communication",
    "ablations-rim_without_input_attention": "RIM without input attention",
}
PAPER_COPYING = {  # table 1: trained at span 50, not at equal size
    "rim": "RIM 600, 6 mechanisms, 2 to 4 active",
    "lstm": "LSTM 600",
    "ntm": "NTM",
    "rmc": "RMC",
    "transformer": "Transformer",
    "ablations-rim_without_communication": "RIM without communication, 6 mechanisms, 4 active",
    "ablations-rim_without_input_attention": "RIM without input attention, 6 mechanisms",
}


def paper_copying(model: str) -> str:
    """Return the paper's cross-entropies at spans 50 and 200, empty where it has none."""
    if model not in PAPER_COPYING:
        return ""
    scores = published("copying", PAPER_COPYING[model])
    width = " (600 wide)" if model == "lstm" else ""
    return ", ".join(scores[f"span_{span}/cross_entropy"] for span in (50, 200)) + width


def comparison(shown_sizes: tuple[str, ...] = tuple(SIZES)) -> str:
    """A row per model: sizes, mean ± standard deviation over seeds, the best in bold; the paper's figures."""
    result = load("comparison", "copying-small")
    if result is None:
        return "(not recorded)"
    found = Comparison(result)
    best = {name: found.best(name, digits=2) for name in found.score_names}
    rows = []
    for model, facts in found.models.items():
        cells = {name: written(found.score(model, name), digits=2) for name in best}
        scores = [f"**{cell}**" if model in best[name] else cell for name, cell in cells.items()]
        sizes = [f"{facts[size]:,}" for size in shown_sizes]
        seeds = ", ".join(str(run["seed"]) for run in facts["runs"]) or "none"
        rows.append([MODELS[model], seeds, *sizes, *scores, paper_copying(model)])
    floors = [number(floor_of(result["floors"], name), 2) for name in best]
    rows.append(["floor: format known, symbols guessed", "", *([""] * len(shown_sizes)), *floors, ""])
    columns = [title(name).replace(",", "") for name in best]
    header = ["", "seeds", *(SIZES[size] for size in shown_sizes), *columns, "paper, spans 50, 200"]
    return table(header, rows)


ROLLOUT_FRAMES = (1, 5, 10, 20)
ROLLOUT_METRICS = {"bce": "BCE", "f1": "F1", "position_error": "position error, px"}
PREDICTORS = {"copy": "copy of the last frame", "constant_velocity": "constant velocity, told by an oracle"}


PAPER_SIZE = {
    "rim": ("RIM, span 50 only", "rim"),
    "rim-without-dropout": ("RIM, span 50 only, no dropout, learned initial state, forget bias 1", "rim"),
    "rim-spans-1-to-50": (
        "RIM, spans 1 to 50, cosine decay, no dropout, learned initial state, forget bias 1",
        "rim",
    ),
    "lstm": ("LSTM, span 50 only", "lstm"),
    "lstm-spans-1-to-50": ("LSTM, spans 1 to 50, cosine decay, learned initial state, forget bias 1", "lstm"),
}
"""Runs at the paper's size → what they are called, and whose figures of the paper's stand beside them."""


def paper_size() -> str:
    """A row per run at the paper's size: how far it went, what it reached, the paper's figures."""
    rows = []
    for name, (label, model) in PAPER_SIZE.items():
        result = load("paper", f"copying-{name}")
        if result is None:
            continue
        test = result["test"]
        scores = [f"{test[f'span_{span}/cross_entropy']:.3f}" for span in (50, 100, 200)]
        copied = [f"{test[f'span_{span}/sequence_accuracy']:.3f}" for span in (50, 100, 200)]
        best = 1 + min(result["val_curve"], key=lambda entry: entry[1])[0]
        sizes = [f"{number:,}" for number in (result["parameters"], result["steps"], best)]
        rows.append([label, *sizes, *scores, *copied, paper_copying(model)])
    header = ["", "parameters", "steps", "best of them, tested"]
    header += [f"{metric} span {span}" for metric in ("cross entropy", "copied whole") for span in (50, 100, 200)]
    return table([*header, "paper, 150 epochs, spans 50, 200"], rows)


def rollouts() -> dict[str, dict[str, Any]]:
    """Scores frame by frame of every model and floor, by test set."""
    found: dict[str, dict[str, Any]] = {}
    for name, model in NAMES.items():
        if result := load("bouncing_balls", name):
            for group, predictors in result["rollout"].items():
                for predictor, curves in predictors.items():
                    label = f"{model}, {result['parameters']:,} parameters"
                    found.setdefault(group, {})[PREDICTORS.get(predictor, label)] = curves
    return found


def group_name(group: str) -> str:
    if group == "curtain":
        return "3 balls, curtain"
    count = group.removeprefix("balls_").replace("-", "–")
    return f"{count} ball{'' if count == '1' else 's'}"


def bouncing_balls() -> str:
    """A row per test set and predictor, a column per metric and frame ahead."""
    found = rollouts()
    if not found:
        return "(not recorded)"
    rows = []
    for group in ("balls_4", "balls_6-8", "curtain"):
        for predictor in sorted(found[group], key=lambda name: list(PREDICTORS.values()).count(name)):
            curves = found[group][predictor]
            cells = [
                " · ".join(f"{curves[metric][frame - 1]:.2f}" for frame in ROLLOUT_FRAMES)
                for metric in ROLLOUT_METRICS
            ]
            rows.append([group_name(group), predictor, *cells])
    frames = " · ".join(map(str, ROLLOUT_FRAMES))
    header = [f"{label} at frame {frames}" for label in ROLLOUT_METRICS.values()]
    return table(["rolled out on", "by", *header], rows)


def numbers_of_balls() -> str:
    """A row per number of balls: every model beside the floors, ten frames ahead."""
    found = rollouts()
    if not found:
        return "(not recorded)"
    groups = [f"balls_{count}" for count in range(1, 9)]
    predictors = sorted(found[groups[0]], key=lambda name: list(PREDICTORS.values()).count(name))
    rows = [
        [
            group_name(group),
            *(
                f"{found[group][name]['f1'][9]:.2f} · {found[group][name]['position_error'][9]:.1f}"
                for name in predictors
            ),
        ]
        for group in groups
    ]
    return table(["F1 · position error, px, at frame 10", *predictors], rows)


def ahead(scores: list[float], others: list[float], metric: str) -> list[bool]:
    """Whether a model is better, frame by frame."""
    is_less_better = metric != "f1"
    return [(own < other) == is_less_better and own != other for own, other in zip(scores, others, strict=True)]


def frames_ahead() -> str:
    """A row per model, test set and metric: in which frames it beats the floors."""
    found = rollouts()
    if not found:
        return "(not recorded)"
    rows = []
    for group in ("balls_4", "balls_6-8", "curtain"):
        models = [name for name in found[group] if name not in PREDICTORS.values()]
        for model in models:
            for metric, label in ROLLOUT_METRICS.items():
                cells = []
                for predictor in PREDICTORS.values():
                    is_ahead = ahead(found[group][model][metric], found[group][predictor][metric], metric)
                    cells.append(runs_of(is_ahead))
                rows.append([group_name(group), model, label, *cells])
    return table(
        ["rolled out on", "model", "by", *(f"beats {name} in frames" for name in PREDICTORS.values())], rows
    )


def runs_of(flags: list[bool]) -> str:
    """Write down where flags are set, counted from 1: ``1–10, 12``."""
    parts = []
    for at, flag in enumerate(flags, start=1):
        if flag and at > 1 and flags[at - 2]:
            parts[-1][1] = at
        elif flag:
            parts.append([at, at])
    return ", ".join(f"{first}" if first == last else f"{first}–{last}" for first, last in parts) or "none"


def part_of_layer(name: str) -> Any:
    result = load("layer")
    return None if result is None or name not in result else result[name]["result"]


def ratio(arm: Result) -> str:
    return f"{arm['ratio']:.2f} ({arm['least']:.2f} to {arm['greatest']:.2f})"


def side_by_side(results: list[Result], header: str, base: str) -> str:
    """A row per arm, a column per number of threads."""
    rows = []
    for name, arm in results[0]["arms"].items():
        error = arm.get("gradient_error")
        row = [name, f"{arm['parameters']:,}"] if "parameters" in arm else [name]
        row += [ratio(result["arms"][name]) for result in results]
        if "gradient_error" in arm:
            row.append("" if error is None else f"{error:.0e}")
        rows.append(row)
    first = results[0]["arms"][base]
    columns = [header, "parameters"] if "parameters" in first else [header]
    columns += [
        f"time over {base}, {result['threads']} thread{'s'[: result['threads'] - 1]}" for result in results
    ]
    return table(columns + (["gradient error"] if "gradient_error" in first else []), rows)


def layer() -> str:
    """A row per layer: its time over that of nn.LSTM(600)."""
    results = part_of_layer("speed")
    if results is None:
        return "(not measured)"
    return side_by_side(results, "layer, forward + backward", "nn.LSTM(600)")


def tokens() -> str:
    results = part_of_layer("tokens")
    if results is None:
        return "(not measured)"
    return side_by_side(results, "from tokens, forward + backward", "embedding + nn.LSTM(600)")


def growth() -> str:
    results = part_of_layer("growth")
    if results is None:
        return "(not measured)"
    rows = []
    for name, result in results.items():
        sizes = [f"{size}: {arm['ratio']:.2f}" for size, arm in result["arms"].items()]
        rows.append([name, " · ".join(sizes)])
    return table(["C++ loop, growing in", "time over that of the first size"], rows)


def memory() -> str:
    results = part_of_layer("memory")
    if results is None:
        return "(not measured)"
    rows = [
        [name, ratio(arm), f"{arm['saved_bytes'] / 2**20:.1f} MiB"]
        for result in results.values()
        for name, arm in result["arms"].items()
    ]
    return table(["220 steps", "time over keeping everything", "kept for the backward"], rows)


def streaming() -> str:
    result = part_of_layer("streaming")
    if result is None:
        return "(not measured)"
    rows = [[name, ratio(arm), f"{arm['microseconds_a_step']:.0f} µs"] for name, arm in result["arms"].items()]
    return table(["one step, batch 1, no graph", "time over nn.LSTMCell(600)", "here"], rows)


def training() -> str:
    result = load("training")
    if result is None:
        return "(not measured)"
    rows = [
        [
            name,
            f"{config['steps_per_second']:.1f}",
            f"{config['time_over_lstm']:.2f}",
            f"{100 * config['share_outside_the_model']:.1f} % "
            f"({' to '.join(f'{100 * share:.1f}' for share in config['least_and_greatest_share'])})",
            f"{100 * config['share_of_cpu_outside_the_model']:.1f} %",
        ]
        for name, config in result["configs"].items()
    ]
    header = [
        "config",
        "training steps a second",
        "time over the LSTM's",
        "of a step not the model",
        "of its processor time",
    ]
    return table(header, rows)


def goals() -> str:
    """What was aimed at, beside what was measured."""
    speeds, from_tokens = part_of_layer("speed"), part_of_layer("tokens")
    sizes, kept, steps = part_of_layer("growth"), part_of_layer("memory"), part_of_layer("streaming")
    if None in (speeds, from_tokens, sizes, kept, steps):
        return "(not measured)"
    one, two = (result["arms"] for result in speeds)
    cpu, authors = "RIM, cpu", "the authors' code, re-created"
    saved = kept["cpu"]["arms"]
    all_kept, again = saved["cpu, everything kept"], saved["cpu, checkpoint_every=20"]
    rows = [
        ["`cpu` to nn.LSTM(600), 1 thread", "0.60", "0.45", f"{one[cpu]['ratio']:.2f}"],
        ["`cpu` to nn.LSTM(600), 2 threads", "0.60", "0.45", f"{two[cpu]['ratio']:.2f}"],
        [
            "`cpu` to the re-created authors' code, 1 thread",
            "9 times faster",
            "14",
            f"{one[authors]['ratio'] / one[cpu]['ratio']:.1f}",
        ],
        [
            "`cpu` to the re-created authors' code, 2 threads",
            "9 times faster",
            "14",
            f"{two[authors]['ratio'] / two[cpu]['ratio']:.1f}",
        ],
        ["`function` to nn.LSTM(600), 1 thread", "1.15", "1.0", f"{one['RIM, function']['ratio']:.2f}"],
        [
            "tokens, embedding included, 1 thread",
            "0.40",
            "0.25",
            f"{from_tokens[0]['arms']['embedding + RIM, cpu']['ratio']:.2f}",
        ],
        [
            "mechanisms 4 → 32 at 4 active",
            "3.2",
            "2",
            f"{sizes['mechanisms, 4 active']['arms']['32']['ratio']:.2f}",
        ],
        [
            "one step, batch 1, `rim.stepper()`",
            "0.55",
            "0.35",
            f"{steps['arms']['RIM, rim.stepper()']['ratio']:.2f}",
        ],
        [
            "recomputation at 220 steps: kept, time",
            "1/6, 1.35",
            "1/10",
            f"1/{all_kept['saved_bytes'] / again['saved_bytes']:.0f}, {again['ratio']:.2f}",
        ],
        [
            "`cpu`, 2 threads to 1",
            "1.35 times faster",
            "1.7",
            f"{one[cpu]['milliseconds'] / two[cpu]['milliseconds']:.2f}",
        ],
    ]
    return table(["", "must", "aim", "measured"], rows)


def cartpole() -> str:
    """A row per model: its seeds, when they were solved, what they reached."""
    rows = []
    for name, model in NAMES.items():
        runs = seeds_of("cartpole", name)
        if runs:
            returns = [run["test"]["episode_return"] for run in runs]
            seconds = [run["train_seconds"] for run in runs]
            seeds = ", ".join(str(run["seed"]) for run in runs)
            cells = " · ".join(f"{score:.1f}" for score in returns)
            rows.append(
                [
                    model,
                    f"{runs[0]['parameters']:,}",
                    seeds,
                    cells,
                    f"{min(seconds):.0f} to {max(seconds):.0f} s",
                ]
            )
    if not rows:
        return "(not recorded)"
    floors = [run["floor"]["episode_return"] for run in seeds_of("cartpole", "rim")]
    rows.append(["random actions", "", "", " · ".join(f"{floor:.1f}" for floor in floors), ""])
    return table(["model", "parameters", "seeds", "return over 100 episodes, of 500", "training"], rows)


def outside() -> str:
    """What sb3-contrib's agent reached beside ours, and the processor time of each."""
    theirs, speed = load("sb3"), load("sb3_speed")
    if theirs is None or speed is None:
        return "(not recorded)"

    def solved(curve: list[list[float]]) -> str:
        steps = [step for step, score in curve if score >= 475]
        return f"{min(steps):,.0f}" if steps else "never"

    micro = speed["cpu_microseconds_per_env_step"]
    rows = [
        [
            "sb3-contrib, LSTM",
            f"{theirs['runs'][0]['parameters']:,}",
            " · ".join(solved(run["val"]) for run in theirs["runs"]),
            " · ".join(f"{run['test']['episode_return']:.1f}" for run in theirs["runs"]),
            f"{micro['sb3-contrib, LSTM']:.0f} µs",
        ]
    ]
    for name, model in NAMES.items():
        runs = seeds_of("cartpole", name)
        rows.append(
            [
                f"rimlit, {model}",
                f"{runs[0]['parameters']:,}",
                " · ".join(solved(run["val_curve"]) for run in runs),
                " · ".join(f"{run['test']['episode_return']:.1f}" for run in runs),
                f"{micro[f'rimlit, {model}']:.0f} µs",
            ]
        )
    header = [
        "agent",
        "parameters",
        "steps to a validation of 475, by seed",
        "return over 100 episodes, by seed",
        "processor time a step",
    ]
    return table(header, rows)


def collecting() -> str:
    """A row per config: the parts of a step, and what the package adds."""
    result, hurried = load("collecting"), load("collecting-shortcuts")
    if result is None or hurried is None:
        return "(not recorded)"
    rows = []
    for name, facts in result["configs"].items():
        micro = facts["microseconds_per_env_step"]
        cells = [f"{micro[part]:.1f} µs" for part in ("network", "environments", "package")]
        shares = facts["overhead"], facts["overhead_of_first_rollouts"], hurried["configs"][name]["overhead"]
        adds = [f"{100 * share:.1f} %" for share in shares]
        rows.append([f"`{name}`", *cells, *adds, f"{micro['learning']:.1f} µs"])
    header = [
        "config",
        "network, a step of one environment",
        "environments",
        "all that collecting takes",
        "the package adds",
        "in the first ten rollouts",
        "beside a loop with its shortcuts",
        "learning, for comparison",
    ]
    return table(header, rows)


def env_steps(dataset: str, name: str, run: Result) -> int:
    """Return the steps of all environments that a run of reinforcement learning was trained on."""
    settings = yaml.safe_load((ROOT / "configs" / dataset / f"{name}.yaml").read_text())["data"]["init_args"]
    return int(run["steps"] * settings["rollout_length"] * settings["batch_size"] / settings["num_passes"])


def spread(scores: list[float], digits: int) -> str:
    """Return the mean of scores, and the least and the greatest where they differ."""
    mean, least, greatest = (
        f"{score:.{digits}f}" for score in (statistics.fmean(scores), min(scores), max(scores))
    )
    return mean if least == greatest else f"{mean} ({least} to {greatest})"


REPORTED_DOORKEY = {
    "RIM, reported by users": (0.90, 0.68, 0.38, 0.18),
    "LSTM, reported by users": (0.90, 0.63, 0.35, 0.12),
}


def agents(dataset: str, scores: dict[str, str], others: dict[str, list[str]], digits: int = 2) -> str:
    """A row per model, then random actions, then what others reached; a column per score."""
    rows = []
    for name, model in NAMES.items():
        runs = seeds_of(dataset, name)
        if runs:
            seeds = ", ".join(str(run["seed"]) for run in runs)
            minutes = [round(run["train_seconds"] / 60) for run in runs]
            time = f"{min(minutes)} to {max(minutes)}" if min(minutes) != max(minutes) else f"{minutes[0]}"
            budget = f"{env_steps(dataset, name, runs[0]):,} steps, {time} min"
            cells = [spread([run["test"][key] for run in runs], digits) for key in scores]
            rows.append([model, f"{runs[0]['parameters']:,}", seeds, budget, *cells])
    if not rows:
        return "(not recorded)"
    floors = [run["floor"] for name in NAMES for run in seeds_of(dataset, name)]
    rows.append(
        ["random actions", "", "", "", *[spread([floor[key] for floor in floors], digits) for key in scores]]
    )
    rows += [[model, "", "", "", *cells] for model, cells in others.items()]
    return table(["mean return", "parameters", "seeds", "budget", *scores.values()], rows)


def repeat_previous() -> str:
    return agents("repeat_previous", {"episode_return": "100 episodes"}, {})


def doorkey() -> str:
    sizes = (5, 6, 8, 16)
    reported = {model: [f"{score:.2f}" for score in scores] for model, scores in REPORTED_DOORKEY.items()}
    scores = {f"MiniGrid-DoorKey-{n}x{n}-v0/episode_return": f"{n} × {n}" for n in sizes}
    return agents("doorkey", scores, reported)


def atari() -> str:
    cleanrl = "PPO with an LSTM, CleanRL, 10 M steps"
    others = {cleanrl: [published("atari", cleanrl)["episode_return"]]}
    return agents("atari", {"episode_return": "Pong, 30 episodes"}, others, digits=1)


def atari_speed() -> str:
    """A row per config: how much longer than the emulator alone."""
    result = load("atari_speed")
    if result is None:
        return "(not measured)"
    rows = []
    for name, facts in result["configs"].items():
        over, rate = facts["time_over_emulator"], facts["steps_per_second"]
        parts = [f"{over[part]:.1f}" for part in ("environments", "collecting", "training")]
        rows.append(
            [f"`{name}`", f"{facts['parameters']:,}", *parts, f"{rate['emulator']:,.0f}, {rate['training']:,.0f}"]
        )
    header = [
        "time over the emulator's",
        "parameters",
        "rimlit's environments",
        "collecting",
        "collecting and learning",
        "steps a second: emulator, training",
    ]
    return table(header, rows)


TABLES: dict[str, Callable[[], str]] = {
    "promise": promise,
    "copying": copying,
    "language": language,
    "digits": lambda: images("sequential_mnist"),
    "mnist": lambda: images("mnist", PAPER_MNIST),
    "adding": adding,
    "comparison": comparison,
    "paper_size": paper_size,
    "comparison_in_short": partial(comparison, ("parameters",)),
    "bouncing_balls": bouncing_balls,
    "numbers_of_balls": numbers_of_balls,
    "frames_ahead": frames_ahead,
    "layer": layer,
    "goals": goals,
    "tokens": tokens,
    "growth": growth,
    "memory": memory,
    "streaming": streaming,
    "training": training,
    "cartpole": cartpole,
    "outside": outside,
    "collecting": collecting,
    "repeat_previous": repeat_previous,
    "doorkey": doorkey,
    "atari": atari,
    "atari_speed": atari_speed,
}
PAGES = (
    "README.md",
    "docs/bouncing_balls.md",
    "docs/performance.md",
    "docs/comparing.md",
    "docs/reinforcement_learning.md",
    "docs/games.md",
)


def fill(text: str) -> str:
    """Return ``text`` with every marked table written anew."""
    for name, build in TABLES.items():
        pattern = rf"(<!-- table:{name} -->\n).*?(<!-- end -->)"  # an empty table ends at its own end
        text = re.sub(
            pattern, lambda found, build=build: f"{found[1]}{build()}\n{found[2]}", text, flags=re.DOTALL
        )
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is stale")
    arguments = parser.parse_args()
    pages = "".join((ROOT / page).read_text() for page in PAGES)
    if lost := [name for name in TABLES if f"<!-- table:{name} -->" not in pages]:
        sys.exit(f"No page has a place for the table {lost[0]!r}.")
    for page in PAGES:
        path = ROOT / page
        old = path.read_text()
        new = fill(old)
        if not arguments.check:
            path.write_text(new)
        elif new != old:
            sys.exit(f"{page}: a table is stale; run `make docs`.")
