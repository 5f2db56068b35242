"""The figure of docs/competition.md: loss curves on copying, and the gates of a trained RIM over one sequence.

python benchmarks/competition.py --runs runs/copying    reads finished runs, writes results/competition.json, draws
python benchmarks/competition.py                        draws from results/competition.json
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from origin import origin, write

from rimlit.comparison.figures import COLOURS
from rimlit.data.copying import copying_sequence
from rimlit.tasks import load_checkpoint

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "competition.json"
FIGURE = ROOT / "docs" / "images" / "competition.png"
RUNS = {
    "RIM, dynamic": "rim-seed0",
    "RIM, the paper's rule": "rim_paper",
    "GRU": "gru",
    "LSTM": "lstm",
}
"""Names in the figure, and folders of runs; several runs that begin alike differ in their learning rate."""
SPAN = 50


def read(runs: Path) -> dict[str, Any]:
    """Return the losses of all runs, the best rate of each model first, and the gates of the first."""
    curves = {}
    for name, stem in RUNS.items():
        found = [folder for folder in sorted(runs.glob(f"{stem}*")) if (folder / "results.json").is_file()]
        if not found:
            raise SystemExit(f"{runs} has no finished run whose name begins with {stem!r}.")
        best = min(found, key=lambda folder: min(value for _, value in column(folder, "val/cross_entropy")))
        result = json.loads((best / "results.json").read_text())
        kept = {key: result[key] for key in ("command", "commit", "machine", "parameters", "test")}
        curves[name] = {**kept, "loss": column(best, "train/loss")}
    return {"curves": curves, "gates": gates(runs / RUNS["RIM, dynamic"] / "checkpoints" / "best.ckpt")}


def column(run: Path, name: str) -> list[list[float]]:
    """Return ``[step, value]`` of a metric of a run."""
    with (run / "metrics.csv").open(newline="") as file:
        return [[int(row["step"]), float(row[name])] for row in csv.DictReader(file) if row[name]]


@torch.no_grad()
def gates(checkpoint: Path) -> list[list[float]]:
    """Return how far each mechanism moved in each step of one sequence: (M, T)."""
    task: Any = load_checkpoint(checkpoint)
    symbols = torch.randint(1, 9, (1, 10), generator=torch.Generator().manual_seed(0))
    inputs, _ = copying_sequence(symbols, SPAN, 9)
    with task.backbone.record_activity() as activities:
        task(inputs)
    found: list[list[float]] = activities[0].gate[0].T.tolist()
    return found


def draw(found: dict[str, Any]) -> Figure:
    """Return the figure."""
    figure = Figure(figsize=(10.4, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, curve), colour in zip(found["curves"].items(), COLOURS, strict=False):
        left.plot(*zip(*curve["loss"], strict=True), label=name, color=colour)
    left.set(
        yscale="log",
        xlabel="training step",
        ylabel="cross-entropy, all steps (nats)",
        title="copying, training loss",
    )
    left.legend(frameon=False)
    image = right.imshow(torch.tensor(found["gates"]), aspect="auto", cmap="viridis", vmin=0, vmax=1)
    right.set(
        xlabel="step: 10 symbols, 50 blanks, 10 to recall", ylabel="mechanism", title="gate of a trained RIM"
    )
    figure.colorbar(image, ax=right)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="a folder of finished runs")
    given = parser.parse_args()
    if given.runs:
        write(RESULTS, {**origin(), **read(given.runs)})
    draw(json.loads(RESULTS.read_text())).savefig(FIGURE, dpi=130)


if __name__ == "__main__":
    main()
