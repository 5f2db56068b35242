"""Schemata trained on 4 balls with 4 states, then tested with 4, 6 and 8 states on 4, 6 and 8 balls.

python benchmarks/more_states.py                         trains, or resumes, and tests; prints a table
python benchmarks/more_states.py --json benchmarks/results/more_states.json
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from origin import origin, write

CONFIG = "bouncing_balls/schemata"
FRAMES = (1, 5, 10, 20)
METRICS = ("f1", "position_error")


def rimlit(*words: str) -> None:
    """Run a command of rimlit; raise where it fails."""
    if subprocess.run([sys.executable, "-m", "rimlit", *words], check=False).returncode:
        raise SystemExit(f"rimlit {' '.join(words)} failed.")


def test(run: Path, states: int, balls: list[str], options: list[str]) -> dict[str, dict[str, list[float]]]:
    """Return the scores by frame ahead of a test with ``states`` states, by set of balls and metric."""
    folder = run.with_name(f"{run.name}-{states}-states")
    rimlit(
        *("test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")),
        *("--trainer.default_root_dir", str(folder)),
        *(f"--model.backbone.num_mechanisms={states}", f"--data.test_balls=[{', '.join(balls)}]", *options),
    )
    numbers: dict[str, Any] = json.loads((folder / "rollout.json").read_text())
    return {
        name: {metric: of["model"][metric][: max(FRAMES)] for metric in METRICS} for name, of in numbers.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/bouncing_balls/schemata-seed0"), help="its folder")
    parser.add_argument("--states", type=int, nargs="+", default=[4, 6, 8])
    parser.add_argument("--balls", nargs="+", default=["4", "6", "8"])
    parser.add_argument("--json", type=Path, help="a file for the result")
    parser.add_argument("--fit", nargs="*", default=[], help="further options of rimlit fit, without their dashes")
    parser.add_argument(
        "--test", nargs="*", default=[], help="further options of rimlit test, without their dashes"
    )
    given = parser.parse_args()
    begun = origin(states=" ".join(map(str, given.states)), balls=" ".join(given.balls))
    own = [f"--{option}" for option in given.fit]
    rimlit("fit", "--config", CONFIG, "--trainer.default_root_dir", str(given.run), *own)
    results = json.loads((given.run / "results.json").read_text())
    tests = {
        states: test(given.run, states, given.balls, [f"--{option}" for option in given.test])
        for states in given.states
    }
    trained = {
        key: results[key] for key in ("command", "commit", "machine", "parameters", "steps") if key in results
    }
    write(given.json, {**begun, "trained": trained, "tests": tests})
    for metric in METRICS:
        print(f"\n{metric} at frame {', '.join(map(str, FRAMES))}")
        for states, scores in tests.items():
            for name, of in scores.items():
                shown = "  ".join(f"{of[metric][frame - 1]:7.3f}" for frame in FRAMES if frame <= len(of[metric]))
                print(f"{states} states, {name.replace('_', ' ')}: {shown}")


if __name__ == "__main__":
    main()
