"""Train one variation of a variant on one task of the screen, and keep the result whatever it is.

Trials say where to look; what is promising becomes a variant and is run by the screen. They are in
benchmarks/results/screen/trials.json and in the table of docs/research/screen.md.

python -m benchmarks.screen.trial VARIANT TASK [--change '{"num_active": 5}'] [--rate 0.01] [--seed 0]
"""

import argparse
import json
from typing import Any

from benchmarks.screen.runs import RESULTS, Run, locked, tasks, variants
from benchmarks.screen.training import train

from rimlit.files import write_json

PATH = RESULTS / "trials.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=list(variants()))
    parser.add_argument("task", choices=list(tasks()))
    parser.add_argument("--change", type=json.loads, default={}, help="arguments of the backbone, as JSON")
    parser.add_argument("--rate", type=float, help="learning rate; by default the middle one of the task")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rate = given.rate or tasks()[given.task]["rates"][1]
    _, result = train(Run(given.task, given.variant, rate, given.seed), given.change)
    trial = {
        "variant": given.variant,
        "task": given.task,
        "change": given.change,
        "rate": rate,
        "seed": given.seed,
    }
    with locked("trials"):
        write_json(PATH, [*read_trials(), {**trial, **result}])
    task = tasks()[given.task]
    scores = {key: result["scores"].get(key) for key in (*task["inside"], *task["outside"])}
    print(f"{trial}: validation {result['val']}, {scores}")


def read_trials() -> list[dict[str, Any]]:
    """Return all trials so far, in the order in which they ended."""
    found: list[dict[str, Any]] = json.loads(PATH.read_text()) if PATH.exists() else []
    return found


if __name__ == "__main__":
    main()
