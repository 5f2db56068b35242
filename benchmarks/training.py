"""Whole training steps of the shipped configs, and what of a step is not the model.

Each config is trained by the command line with everything it brings: bar, logs, MLflow, checkpoints, activity. Its
steps are timed between two batches. Then the same task takes the same batches in a bare loop of forward, backward,
clipping and optimiser, in the same process. What the first takes longer than the second is the share of all else.
Steps of validation are left out; the bare loop runs after the other one.

python benchmarks/training.py [--steps 60] [--json benchmarks/results/training.json]
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loops import training_epoch_loop

from rimlit.cli import main as rimlit
from rimlit.training.recording import git_commit, machine

CONFIGS = (
    "copying/rim",
    "copying/lstm",
    "language/rim",
    "language/lstm",
    "bouncing_balls/rim",
    "bouncing_balls/lstm",
)
WARMUP = 10


def fit(config: str, steps: int) -> tuple[L.LightningModule, L.LightningDataModule, list[float]]:
    """Train for ``steps``; return the task, its data and the seconds from each step's start to the next."""
    starts: list[float] = []
    seen: dict[str, Any] = {}
    advance = training_epoch_loop._TrainingEpochLoop.advance

    def timed(loop: Any, *args: Any) -> None:
        starts.append(time.perf_counter())
        seen["trainer"] = loop.trainer
        advance(loop, *args)

    options = ("--trainer.limit_val_batches", "0", "--test_after_fit", "false", "--trainer.max_steps", str(steps))
    training_epoch_loop._TrainingEpochLoop.advance = timed  # type: ignore[method-assign]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            rimlit(["fit", "--config", config, *options])
    finally:
        training_epoch_loop._TrainingEpochLoop.advance = advance  # type: ignore[method-assign]
    trainer = seen["trainer"]
    pairs = zip(starts[WARMUP:], starts[WARMUP + 1 :], strict=False)
    return trainer.lightning_module, trainer.datamodule, [after - before for before, after in pairs]


def bare(task: L.LightningModule, data: L.LightningDataModule, steps: int) -> list[float]:
    """Return the seconds of each step of a loop that does nothing but train."""
    task.train()
    task.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    optimizer = task.configure_optimizers()["optimizer"]
    batches = iter(data.train_dataloader())
    seconds = []
    for index in range(steps):
        batch = next(batches)
        start = time.perf_counter()
        optimizer.zero_grad()
        task.training_step(batch, index).backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return seconds[WARMUP:]


def measure(config: str, steps: int) -> dict[str, Any]:
    task, data, whole = fit(config, steps)
    alone = bare(task, data, steps)
    # means: batches differ in length, and both loops saw the same ones
    step, model = statistics.mean(whole), statistics.mean(alone)
    return {
        "steps": steps,
        "steps_per_second": 1 / step,
        "milliseconds": 1000 * step,
        "bare_milliseconds": 1000 * model,
        "share_outside_the_model": 1 - model / step,
        "backend": getattr(task.backbone, "backend", None) and task.backbone.resolve_backend()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    target = arguments.json and arguments.json.resolve()
    origin = {"commit": git_commit(), "machine": machine(), "threads": torch.get_num_threads()}
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        fit(CONFIGS[0], 20)  # the first run of a folder has MLflow make its database beside the training
        for config in CONFIGS:
            results[config] = result = measure(config, arguments.steps)
            print(
                f"{config:<16}{result['steps_per_second']:8.2f} steps a second, "
                f"{100 * result['share_outside_the_model']:5.1f} % of a step outside the model"
            )
        os.chdir("/")
    for config in CONFIGS:
        twin = results[config.replace("/rim", "/lstm")]
        results[config]["time_over_lstm"] = results[config]["milliseconds"] / twin["milliseconds"]
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        command = f"python benchmarks/training.py --steps {arguments.steps}"
        target.write_text(json.dumps({"command": command, **origin, "configs": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
