"""What the look at losses, gradients and weights before each update costs, as a share of a training step.

The task of a config takes steps of forward, backward, clipping and optimiser, every other one with the guard. What
is compared is the time from the end of the backward pass to the end of the update: the guard is the first to read
the gradients and the weights, which clipping and optimiser then find in the cache.

python benchmarks/guard.py [--steps 60] [--json benchmarks/results/guard.json]
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import torch
import yaml
from origin import origin, write

from rimlit.cli.configs import find_config
from rimlit.cli.settings import build_data, build_task
from rimlit.training import FiniteGuard

CONFIGS = ("copying/rim", "copying/lstm", "language/rim", "language/lstm")
WARMUP = 10


def measure(config: str, steps: int) -> dict[str, Any]:
    settings = yaml.safe_load(find_config(config).read_text())
    settings["model"]["init_args"].pop("scheduler", None)
    data = build_data(settings)
    data.setup("fit")
    task = build_task(settings, data)
    task.train()
    task.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    optimizer = cast(torch.optim.Optimizer, task.configure_optimizers())
    guard, trainer = FiniteGuard(), cast(L.Trainer, SimpleNamespace(world_size=1, precision_plugin=None))
    batches = iter(data.train_dataloader())
    whole: list[float] = []
    updates: dict[bool, list[float]] = {False: [], True: []}
    for index in range(steps):
        batch = next(batches)
        is_guarded = index % 2 == 1
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = task.training_step(batch, index)
        if is_guarded:
            guard.on_before_backward(trainer, task, loss)
        loss.backward()
        before = time.perf_counter()
        if is_guarded:
            guard.on_before_optimizer_step(trainer, task, optimizer)
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        end = time.perf_counter()
        if index >= WARMUP:
            whole.append(end - start)
            updates[is_guarded].append(end - before)
    step = statistics.median(whole)
    look = statistics.median(updates[True]) - statistics.median(updates[False])
    return {"milliseconds": 1000 * step, "guard_milliseconds": 1000 * look, "share": look / step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    content = {**origin(steps=arguments.steps), "configs": (results := {})}
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for config in CONFIGS:
            results[config] = result = measure(config, arguments.steps)
            print(
                f"{config:<16}{result['milliseconds']:9.2f} ms a step, of it the guard "
                f"{result['guard_milliseconds']:.3f} ms: {100 * result['share']:.2f} %"
            )
        os.chdir(here)
    write(arguments.json, content)


if __name__ == "__main__":
    main()
