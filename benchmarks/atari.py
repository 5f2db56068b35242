"""Steps a second in Atari: of the emulator alone, of collecting, and of training as a whole.

In turns, in one process, eight games as in the config: ale-py's own vector environment with random actions, which
is the limit; rimlit's environments with the same actions; collecting, with the network; collecting and learning
from what was collected, as training does. A step is of one environment, four frames of the game. Read the ratios
to the limit; all are medians over the turns.

python benchmarks/atari.py [--rounds 6] [--json benchmarks/results/atari_speed.json]
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from gymnasium.vector import AutoresetMode
from origin import origin, write
from torch.nn.utils import clip_grad_norm_

from rimlit.cli.configs import find_config
from rimlit.cli.settings import build_data, build_task
from rimlit.rl import Experience, PPOTask
from rimlit.rl.experience import select_environments
from rimlit.rl.rollouts import Player

CONFIGS = ("atari/rim", "atari/lstm")


def learn(task: PPOTask, data: Experience, optimizer: torch.optim.Optimizer, rollout: Any, order: Any) -> None:
    """Learn from a rollout as often as training does."""
    whole = task.prepare(rollout)
    for rows in torch.split(torch.from_numpy(order), data.batch_size):
        batch = select_environments(whole, rows)
        optimizer.zero_grad()
        task.losses(task(batch.inputs, batch.state)[0], batch).loss.backward()
        clip_grad_norm_(task.parameters(), 0.5)
        optimizer.step()


def measure(config: str, rounds: int) -> dict[str, Any]:
    from ale_py.vector_env import AtariVectorEnv

    settings = yaml.safe_load(find_config(config).read_text())
    settings["model"]["init_args"].pop("scheduler")
    data = build_data(settings)
    task = build_task(settings, data)
    assert isinstance(data, Experience) and isinstance(task, PPOTask)
    optimizer = cast(torch.optim.Optimizer, task.configure_optimizers())
    number, length = data.num_environments, data.rollout_length
    emulator = AtariVectorEnv(
        "pong", number, num_threads=torch.get_num_threads(), autoreset_mode=AutoresetMode.SAME_STEP
    )
    emulator.reset(seed=0)
    environments = data.make(data.environment, number)
    environments.reset(0)
    player = Player(data.make(data.environment, number), 0)
    generator = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {"emulator": [], "environments": [], "collecting": [], "training": []}
    for _ in range(rounds):
        actions = generator.integers(0, emulator.single_action_space.n, (length, number))
        start = time.perf_counter()
        for step in range(length):
            emulator.step(actions[step])
        emulated = time.perf_counter()
        for step in range(length):
            environments.step(actions[step])
        wrapped = time.perf_counter()
        with task.playing(number):
            rollout = player.collect(task, length)
        collected = time.perf_counter()
        order = np.concatenate([generator.permutation(number) for _ in range(data.num_passes)])
        learn(task, data, optimizer, rollout, order)
        learned = time.perf_counter()
        seconds["emulator"].append(emulated - start)
        seconds["environments"].append(wrapped - emulated)
        seconds["collecting"].append(collected - wrapped)
        seconds["training"].append(learned - wrapped)
    per_second = {name: number * length / statistics.median(times) for name, times in seconds.items()}
    ratios = {
        name: statistics.median(own / limit for own, limit in zip(times, seconds["emulator"], strict=True))
        for name, times in seconds.items()
    }
    parameters = sum(parameter.numel() for parameter in task.parameters())
    return {"parameters": parameters, "steps_per_second": per_second, "time_over_emulator": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    content = {**origin(rounds=arguments.rounds), "configs": (results := {})}
    for config in CONFIGS:
        results[config] = result = measure(config, arguments.rounds)
        shown = ", ".join(
            f"{name} {rate:,.0f} ({result['time_over_emulator'][name]:.2f})"
            for name, rate in result["steps_per_second"].items()
        )
        print(f"{config}: steps a second (time over the emulator's): {shown}")
    write(arguments.json, content)


if __name__ == "__main__":
    main()
