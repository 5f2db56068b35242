"""Make the trained models that ship with the package from finished runs, and their cards from their JSON files.

python -m benchmarks.pretrained FOLDER    exports FOLDER/copying/rim-seed0 and the other runs, and writes all cards
python -m benchmarks.pretrained           writes the cards again
python -m benchmarks.pretrained --check   exits 1 where a card is not what would be written
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

from rimlit.integrations import export_task
from rimlit.integrations.cards import model_card
from rimlit.integrations.shipped import FOLDER

MOST_BYTES = 3_000_000
"""Size of a model's files together: they are in every wheel."""


BESIDE = "The training time was measured beside other processes."


class ShippedModel(NamedTuple):
    """A model that ships with the package."""

    run: str
    title: str
    about: str
    limits: str
    shown: str
    """Pattern of the test scores that the card shows."""


MODELS = {
    "copying": ShippedModel(
        "copying/rim-seed0",
        "Copying 10 symbols with a RIM",
        "A RIM of 6 mechanisms (`preset: sparse`) that recalls 10 symbols after a span of blanks. It is the "
        "run of `make train`: spans of 1 to 50 in training, up to 400 in the test.",
        "Exactly 10 symbols of 8 kinds, a marker and blanks. Spans beyond 400 were not tested.",
        r"span_\d+/(cross_entropy|sequence_accuracy|symbol_accuracy)$",
    ),
    "bouncing_balls": ShippedModel(
        "bouncing_balls/small_tested",
        "Bouncing balls with a small RIM",
        "A RIM of 6 mechanisms, 4 of them active (the paper's rule), that predicts the next frame of 4 bouncing "
        "balls, 64 × 64 pixels, as the motion of cells. Its encoder and head are smaller than those of "
        "`configs/bouncing_balls/rim.yaml`, so that the file is small.",
        "Trained in 1,200 steps of 8 sequences, not to the paper's budget. On 4 balls the F1 of its own frames "
        "falls from .93 in the first to .40 in the tenth. By then it places 6 to 8 balls little better, and balls "
        "behind a curtain no better, than a copy of the last true frame does.",
        r"(balls_4|balls_6-8|curtain)/(bce|f1|position_error)_at_(1|5|10)$",
    ),
    "cartpole": ShippedModel(
        "cartpole/rim-seed0",
        "CartPole without velocities with a RIM",
        "A RIM of 6 mechanisms, 4 of them active, trained by recurrent PPO to balance a pole of which it sees "
        "place and angle only: the velocities must be remembered.",
        "CartPole-v1 with `observed: [0, 2]` alone; observations are scaled by what was seen in training.",
        r".*",
    ),
}


def write_model(name: str, runs: Path) -> None:
    """Export a run into the package, with its results.

    Raises:
        SystemExit: The run is not from a clean commit, or its files are too large.
    """
    run = runs / MODELS[name].run
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    if results["commit"] == "unknown" or results["commit"].endswith("+"):
        raise SystemExit(f"{run} was not run from a clean commit; got commit={results['commit']}.")
    folder = FOLDER / name
    for path in folder.glob("*"):
        path.unlink()
    export_task(run, folder)
    results = {key: value for key, value in results.items() if key not in ("floor", "warnings")}
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.iterdir())
    if size > MOST_BYTES:
        raise SystemExit(f"{folder} has {size:,} bytes, more than {MOST_BYTES:,}.")


def card_of(name: str) -> str:
    """Return the card of a model from its files."""
    config, results = (
        json.loads((FOLDER / name / file).read_text(encoding="utf-8")) for file in ("config.json", "results.json")
    )
    model = MODELS[name]
    chosen = {key: value for key, value in results["test"].items() if re.match(model.shown, key)}
    return model_card(
        config,
        {**results, "test": chosen},
        title=model.title,
        about=f"{model.about} {BESIDE}",
        limits=model.limits,
        license="mit",
        load=f'import rimlit\n\ntask = rimlit.from_pretrained("{name}")',
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="?", type=Path, help="folder of the runs")
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    if arguments.runs is not None:
        for name in MODELS:
            write_model(name, arguments.runs)
    cards = {FOLDER / name / "README.md": card_of(name) for name in MODELS}
    if arguments.check:
        stale = [path for path, card in cards.items() if path.read_text(encoding="utf-8") != card]
        print(*stale, sep="\n")
        sys.exit(bool(stale))
    for path, card in cards.items():
        path.write_text(card, encoding="utf-8")
        print(path)
