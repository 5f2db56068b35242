"""Write the README's tables from the JSON files in benchmarks/results.

python benchmarks/tables.py            rewrites what stands between the table markers of README.md
python benchmarks/tables.py --check    only says whether anything would change; exit 1 if so
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
        f"It took {minutes:.0f} minutes on {result['machine']}, while the other core trained something else."
    )


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


def layer() -> str:
    """A row per layer: its time over that of nn.LSTM(600)."""
    result = load("layer")
    if result is None:
        return "(not measured)"
    rows = [
        [
            name,
            f"{arm['parameters']:,}",
            f"{arm['median_ratio']:.2f}",
            f"{arm['least']:.2f} to {arm['greatest']:.2f}",
        ]
        for name, arm in result["arms"].items()
    ]
    return table(["layer, forward + backward", "parameters", "time over nn.LSTM(600)", "range"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "promise": promise,
    "copying": copying,
    "language": language,
    "layer": layer,
}


def fill(text: str) -> str:
    """Return ``text`` with every marked table written anew."""
    for name, build in TABLES.items():
        pattern = rf"(<!-- table:{name} -->\n).*?(\n<!-- end -->)"
        text = re.sub(pattern, lambda found, build=build: found[1] + build() + found[2], text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is stale")
    arguments = parser.parse_args()
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = fill(old)
    if arguments.check:
        sys.exit(0 if new == old else "README.md: a table is stale; run `make docs`.")
    readme.write_text(new)
