"""What collecting costs beyond the environments and the network, over a whole training.

Between two rollouts of a real training the weights of the moment play as many steps in a bare loop of ``env.step``
(and ``env.reset`` where an episode ends) and of the network (encoder, the backbone's fastest single step, head,
drawing an action, by the package's own functions) without gradients, which keeps nothing and checks nothing; that
states are reset where episodes do is not in its time. Compared with it is all that the package takes for a
rollout, with what it keeps for learning. The bare loop plays before every second rollout, and the others are
compared with it: both then begin in the same place of a training, when learning has taken the processor's caches.
Medians over rollouts, so that a busy machine matters little. Short episodes cost most: the first rollouts are
shown apart. With ``--shortcuts`` the bare loop takes the package's two: it asks modules for no hooks and makes
environments without gymnasium's check of the order of calls.

python benchmarks/collecting.py [--steps 150000] [--json benchmarks/results/collecting.json]
python benchmarks/collecting.py --shortcuts [--json benchmarks/results/collecting-shortcuts.json]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import yaml
from lightning import Callback, Trainer, seed_everything
from origin import origin, write

from rimlit.cli.configs import find_config
from rimlit.cli.settings import build_data, build_task
from rimlit.nn import direct
from rimlit.rl import PPOTask
from rimlit.rl.experience import Experience
from rimlit.types import replace_state

CONFIGS = ("cartpole/rim", "cartpole/lstm")
FIRST = 10


def bare_loop(task: PPOTask, data: Experience, shortcuts: bool) -> Callable[[int], tuple[float, float]]:
    """Return what takes steps of the network and of the environments, and tells the seconds of each."""
    number = data.num_environments
    spec = gymnasium.spec(data.environment)
    spec = replace(spec, order_enforce=spec.order_enforce and not shortcuts)
    envs = [gymnasium.make(spec, disable_env_checker=True) for _ in range(number)]
    observations = np.stack([env.reset(seed=index)[0] for index, env in enumerate(envs)])
    encoder: Any = task.encoder
    backbone: Any = task.backbone
    head: Any = task.head
    normalize, encode, answer = (
        direct(module) if shortcuts else module
        for module in (encoder.normalization, encoder.observations, head.linear)
    )
    state = task.initial_state(number)
    generator = torch.Generator().manual_seed(0)

    def run(num_steps: int) -> tuple[float, float]:
        nonlocal state, observations
        step = backbone.stepper(number)
        network = environments = 0.0
        for _ in range(num_steps):
            begun = []
            start = time.perf_counter()
            inputs = torch.from_numpy(observations if data.observed is None else observations[:, data.observed])
            encoded = encode(normalize(inputs.unsqueeze(1)))
            features, state = step(encoded.squeeze(1), state)
            outputs = answer(features)
            actions = task.policy.sample(outputs[:, :-1], generator).numpy()
            middle = time.perf_counter()
            for index, env in enumerate(envs):
                observations[index], _, is_over, is_cut, _ = env.step(actions[index])
                if is_over or is_cut:
                    observations[index], _ = env.reset()
                    begun.append(index)
            network += middle - start
            environments += time.perf_counter() - middle
            if begun:  # not in its time, but the policy would fail on states of episodes that are over
                where = torch.tensor([index in begun for index in range(number)])
                state = replace_state(state, task.initial_state(number), where)
        return network, environments

    return run


class Bare(Callback):
    """Plays as many steps as a rollout has in the bare loop, with the weights of the moment; keeps the times."""

    def __init__(self, shortcuts: bool) -> None:
        self.shortcuts = shortcuts
        self.seconds: dict[str, list[float]] = {"network": [], "environments": [], "package": [], "learning": []}
        self._loop: Callable[[int], tuple[float, float]] | None = None
        self._learning = 0.0

    def on_train_epoch_end(self, trainer: Trainer, task: Any) -> None:
        self._learning = task._train_seconds

    def on_train_epoch_start(self, trainer: Trainer, task: Any) -> None:
        if trainer.current_epoch % 2 == 0:  # a rollout to compare with
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        with task.playing(data.num_environments):
            loop = bare_loop(task, data, self.shortcuts) if self._loop is None else self._loop
            times = loop(data.rollout_length)
        self._loop = loop
        for name, each in zip(self.seconds, (*times, task.collected.seconds, self._learning), strict=True):
            self.seconds[name].append(each)


def measure(config: str, steps: int, shortcuts: bool) -> dict[str, Any]:
    settings = yaml.safe_load(find_config(config).read_text())
    settings["data"]["init_args"]["total_steps"] = steps
    seed_everything(0, verbose=False)
    data = build_data(settings)
    task = build_task(settings, data)
    assert isinstance(data, Experience)
    bare = Bare(shortcuts)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        gradient_clip_val=settings["trainer"]["gradient_clip_val"],
        limit_val_batches=0,
        callbacks=[bare],
    )
    trainer.fit(task, data)
    env_steps = data.rollout_length * data.num_environments
    seconds = bare.seconds
    ratios = [
        package / (network + environments)
        for package, network, environments in zip(
            seconds["package"], seconds["network"], seconds["environments"], strict=True
        )
    ]
    return {
        "microseconds_per_env_step": {
            name: 1e6 * statistics.median(times) / env_steps for name, times in seconds.items()
        },
        "rollouts": trainer.current_epoch,
        "overhead": statistics.median(ratios) - 1,
        "overhead_of_first_rollouts": statistics.median(ratios[: FIRST // 2]) - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150_000, help="of all environments, of each training")
    parser.add_argument("--shortcuts", action="store_true", help="taken by the bare loop, too")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    switches = {"shortcuts": True} if arguments.shortcuts else {}
    content = {**origin(steps=arguments.steps, **switches), "configs": (results := {})}
    for config in CONFIGS:
        results[config] = result = measure(config, arguments.steps, arguments.shortcuts)
        micro = result["microseconds_per_env_step"]
        print(
            f"{config:<16}network {micro['network']:.1f} + environments {micro['environments']:.1f} µs a step, "
            f"the package {micro['package']:.1f}: {100 * result['overhead']:+.1f} % over {result['rollouts']} "
            f"rollouts, {100 * result['overhead_of_first_rollouts']:+.1f} % over the first {FIRST}"
        )
    write(arguments.json, content)


if __name__ == "__main__":
    main()
