"""Copy a finished run's results into benchmarks/results, where tables and the command line read them.

python benchmarks/record.py runs/copying/rim-seed0            → benchmarks/results/copying/rim.json
python benchmarks/record.py runs/copying/compare-small        → benchmarks/results/comparison/copying-small.json
python benchmarks/record.py --paper runs/copying/lstm-seed0   → benchmarks/results/paper/copying-lstm.json
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
USAGE = ("dead_share", "turnover", "usage_entropy")
"""What is recorded of mechanisms, for each group of the test."""


def record(
    run: Path, *, is_of_paper_size: bool = False, path: Path | None = None, commits: Sequence[str] = ()
) -> Path:
    """Copy ``results.json`` of ``run``; refuse one that cannot be traced to a commit.

    Runs at the paper's size are stored separately, with the curve of their validation: the command line shows
    results next to a config only if they have its size.

    Args:
        run: The run's folder.
        is_of_paper_size: Whether it is at the paper's size.
        path: Where the results go; by default where tables and the command line look for them.
        commits: The clean commit at each start of the run, where they are known. The first one is recorded as the
            run's, later ones that differ beside it.
    """
    result = json.loads((run / "results.json").read_text())
    if "models" in result:
        return record_comparison(run, result)
    if commits:
        result["commit"] = commits[0]
        if later := [commit for commit in dict.fromkeys(commits) if commit != commits[0]]:
            result["resumed_at_commits"] = later
    missing = {"command", "commit", "seed", "machine", "steps", "data", "test"} - set(result)
    if missing:
        raise SystemExit(f"{run} is not finished: its results.json lacks {', '.join(sorted(missing))}.")
    if result["data"]["init_args"].get("path") and result["data"]["digest"] is None:
        raise SystemExit(f"{run} was trained on files without a digest: nothing could be compared with it.")
    if result["commit"] == "unknown" or result["commit"].endswith("+"):
        raise SystemExit(f"{run} was not run from a clean commit; got commit={result['commit']}.")
    if not result.get("tested", {}).get("after_fit", True):
        raise SystemExit(
            f"{run} was tested again by {result['tested']['command']!r}; its own command tests it as before."
        )
    if (run / "rollout.json").is_file():  # scores frame by frame
        result["rollout"] = json.loads((run / "rollout.json").read_text())
    if (run / "mechanisms.json").is_file():
        usage = json.loads((run / "mechanisms.json").read_text())
        result["mechanisms"] = {name: value for name, value in usage.items() if name.split("/")[-1] in USAGE}
    if curve := returns_by_env_steps(run / "metrics.csv"):
        result["val_curve"] = curve
    if is_of_paper_size:
        result["val_curve"] = validations(run / "metrics.csv")
    path = path or _place(run, is_of_paper_size=is_of_paper_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path


def _place(run: Path, *, is_of_paper_size: bool) -> Path:
    """Return where tables and the command line look for a run's results."""
    name = run.name.removesuffix("-seed0")
    if is_of_paper_size:
        return RESULTS / "paper" / f"{run.parent.name}-{name}.json"
    # seeds other than 0 are stored separately: the command line shows one recorded run per config
    is_first = run.name.endswith("-seed0") or "-seed" not in run.name
    folder = RESULTS / run.parent.name
    return folder / f"{name}.json" if is_first else folder / "seeds" / f"{run.name}.json"


def validations(path: Path) -> list[list[float]]:
    """Return step, cross-entropy and share of sequences copied whole of each validation."""
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val/cross_entropy"]]
    return [
        [
            int(row["step"]),
            *(round(float(row[f"val/{name}"]), 4) for name in ("cross_entropy", "sequence_accuracy")),
        ]
        for row in rows
    ]


def returns_by_env_steps(path: Path) -> list[list[float]]:
    """Return the validations of a policy, each beside the steps of all environments before it."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    env_steps = {row["step"]: float(row["train/env_steps"]) for row in rows if row.get("train/env_steps")}
    return [
        [env_steps[row["step"]], float(row["val/episode_return"])]
        for row in rows
        if row.get("val/episode_return") and row["step"] in env_steps
    ]


def record_comparison(folder: Path, result: dict[str, Any]) -> Path:
    """Write the results of a comparison; refuse runs of several commits or of one that cannot be found again."""
    commits = {run["commit"] for model in result["models"].values() for run in model["runs"]}
    if len(commits) != 1 or commits & {"unknown"} or any(commit.endswith("+") for commit in commits):
        raise SystemExit(f"The runs in {folder} are not from one clean commit; got {', '.join(sorted(commits))}.")
    name = folder.name.removeprefix("compare").strip("-")
    path = RESULTS / "comparison" / f"{'-'.join(filter(None, (result['dataset'], name)))}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**result, "commit": commits.pop()}, indent=2) + "\n")
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders under runs/")
    parser.add_argument("--paper", action="store_true", help="they are at the paper's size")
    arguments = parser.parse_args()
    for folder in arguments.runs:
        print(record(folder, is_of_paper_size=arguments.paper))
