"""What collecting costs beyond the environments and the network, and how its time is shared.

In turns, in one process: a bare loop of ``env.step`` (and ``env.reset`` where an episode ends) and of the network
(encoder, the backbone's fastest single step, head, ``torch.multinomial``) without gradients, which keeps nothing,
checks nothing and starts no state anew; and the package's own, which keeps what is learnt from. Each is timed over
as many steps of all environments as a rollout has; medians over the rounds, so that a busy machine matters little.

python benchmarks/collecting.py [--rounds 100] [--json benchmarks/results/collecting.json]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import yaml

from rimlit.cli.configs import find_config
from rimlit.cli.settings import build_data, build_task
from rimlit.rl import PPOTask
from rimlit.rl.experience import Experience
from rimlit.rl.rollouts import Player
from rimlit.training.recording import git_commit, machine

CONFIGS = ("cartpole/rim", "cartpole/lstm")
STEPS = 128


def bare_loop(task: PPOTask, data: Experience) -> Callable[[], tuple[float, float]]:
    """Return what takes a step of the network and one of the environments, and tells the seconds of each."""
    number = data.num_environments
    envs = [gymnasium.make(data.environment, disable_env_checker=True) for _ in range(number)]
    observations = np.stack([env.reset(seed=index)[0] for index, env in enumerate(envs)])
    encoder: Any = task.encoder
    backbone: Any = task.backbone
    head: Any = task.head
    state = task.initial_state(number)
    generator = torch.Generator().manual_seed(0)
    step = backbone.stepping(number)

    def run() -> tuple[float, float]:
        nonlocal state, observations
        start = time.perf_counter()
        seen = torch.from_numpy(observations if data.observed is None else observations[:, data.observed])
        encoded = encoder.observations(encoder.normalization(seen.unsqueeze(1)))
        features, state = step(encoded.squeeze(1), state)
        outputs = head.linear(features)
        actions = torch.multinomial(outputs[:, :-1].softmax(dim=-1), 1, generator=generator).squeeze(1).numpy()
        middle = time.perf_counter()
        for index, env in enumerate(envs):
            observations[index], _, is_over, is_cut, _ = env.step(actions[index])
            if is_over or is_cut:
                observations[index], _ = env.reset()
        return middle - start, time.perf_counter() - middle

    return run


def measure(config: str, rounds: int) -> dict[str, Any]:
    settings = yaml.safe_load(find_config(config).read_text())
    data = build_data(settings)
    task = build_task(settings, data)
    assert isinstance(data, Experience) and isinstance(task, PPOTask)
    player = Player(data.make(data.environment, data.num_environments), 0)
    seconds: dict[str, list[float]] = {"network": [], "environments": [], "bare": [], "package": []}
    with task.playing(data.num_environments):
        bare = bare_loop(task, data)
        for _ in range(rounds):
            network, environments = (sum(times) for times in zip(*(bare() for _ in range(STEPS)), strict=True))
            start = time.perf_counter()
            player.collect(task, STEPS)
            seconds["package"].append(time.perf_counter() - start)
            seconds["network"].append(network)
            seconds["environments"].append(environments)
            seconds["bare"].append(network + environments)
    env_steps = STEPS * data.num_environments
    ratios = [package / bare for package, bare in zip(seconds["package"], seconds["bare"], strict=True)]
    return {
        "microseconds_per_env_step": {
            name: 1e6 * statistics.median(times) / env_steps for name, times in seconds.items()
        },
        "overhead": statistics.median(ratios) - 1,
        "quartiles_of_overhead": [ratio - 1 for ratio in statistics.quantiles(ratios)[::2]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for config in CONFIGS:
        results[config] = result = measure(config, arguments.rounds)
        micro = result["microseconds_per_env_step"]
        print(
            f"{config:<16}network {micro['network']:.1f} + environments {micro['environments']:.1f} µs a step, "
            f"the package {micro['package']:.1f}: {100 * result['overhead']:+.1f} %"
        )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        command = f"python benchmarks/collecting.py --rounds {arguments.rounds}"
        origin = {"command": command, "commit": git_commit(), "machine": machine()}
        arguments.json.write_text(json.dumps({**origin, "configs": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
