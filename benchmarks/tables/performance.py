"""The tables of docs/performance.md."""

from functools import partial
from typing import Any

from benchmarks.tables.shared import Result, Tables, load, table


def part_of_layer(name: str) -> Any:
    result = load("layer")
    return None if result is None or name not in result else result[name]["result"]


def ratio(arm: Result) -> str:
    return f"{arm['ratio']:.2f} ({arm['least']:.2f} to {arm['greatest']:.2f})"


def side_by_side(part: str, header: str, base: str) -> str:
    """A row per arm of a part of the layer's benchmark, a column per number of threads."""
    results = part_of_layer(part)
    if results is None:
        return "(not measured)"
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
    return table(["", "required", "target", "measured"], rows)


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
            str(config["steps"]),
            f"{config['steps_per_second']:.1f}",
            *(f"{config[key]:.2f}" if key in config else "" for key in ("time_over_lstm", "bare_time_over_lstm")),
            f"{100 * config['share_outside_the_model']:.1f} % "
            f"({' to '.join(f'{100 * share:.1f}' for share in config['least_and_greatest_share'])})",
            f"{100 * config['share_of_cpu_outside_the_model']:.1f} %",
        ]
        for name, config in result["configs"].items()
    ]
    header = [
        "config",
        "steps timed",
        "training steps a second",
        "time over the LSTM's",
        "the same of the model alone",
        "share of a step outside the model",
        "share of its processor time",
    ]
    return table(header, rows)


TABLES: Tables = {
    "layer": partial(side_by_side, "speed", "layer, forward + backward", "nn.LSTM(600)"),
    "goals": goals,
    "tokens": partial(side_by_side, "tokens", "from tokens, forward + backward", "embedding + nn.LSTM(600)"),
    "narrow": partial(side_by_side, "narrow", "narrow layers, forward + backward", "nn.LSTM(198)"),
    "growth": growth,
    "memory": memory,
    "streaming": streaming,
    "training": training,
}
