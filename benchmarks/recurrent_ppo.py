"""An outside check: sb3-contrib's RecurrentPPO on CartPole without velocities, with our budget and settings.

It sees what our configs see, is validated and tested as they are (20 episodes every 15 rollouts, 100 at the end,
most likely actions, the best policy kept), and has an LSTM of as many features. Where our settings have no name in
it, its own stand: it encodes observations by nothing and puts two dense layers behind the LSTM.

pip install --no-deps --target build/sb3 sb3-contrib==2.9.2 stable-baselines3==2.9.2
PYTHONPATH=build/sb3 python benchmarks/recurrent_ppo.py --seeds 3 --json benchmarks/results/sb3.json
PYTHONPATH=build/sb3 python benchmarks/recurrent_ppo.py --speed --json benchmarks/results/sb3_speed.json

The second measures processor time a step of an environment, ours and its, in turns, without any evaluation.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import gymnasium
import lightning as L
import numpy as np
import torch
import yaml
from gymnasium.wrappers import TransformObservation, TransformReward
from origin import origin, write
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rimlit.cli.configs import find_config
from rimlit.cli.settings import build_data, build_task

SETTINGS: dict[str, Any] = yaml.safe_load(find_config("cartpole/lstm").read_text())
TASK, DATA = SETTINGS["model"]["init_args"], SETTINGS["data"]["init_args"]
NUMBER, LENGTH = DATA["num_environments"], DATA["rollout_length"]
ROLLOUTS = 8
"""What is timed."""


def make(reward_scale: float = 1.0) -> gymnasium.Env[Any, Any]:
    env: gymnasium.Env[Any, Any] = gymnasium.make(DATA["environment"])
    space = gymnasium.spaces.Box(-np.inf, np.inf, (len(DATA["observed"]),), np.float32)
    env = TransformObservation(env, lambda vector: vector[DATA["observed"]], space)
    return TransformReward(env, lambda reward: reward * reward_scale)


def model_for(seed: int) -> RecurrentPPO:
    environments = VecNormalize(DummyVecEnv([lambda: make(TASK["reward_scale"])] * NUMBER), norm_reward=False)
    rate = TASK["optimizer"]["init_args"]["lr"]
    return RecurrentPPO(
        "MlpLstmPolicy",
        environments,
        learning_rate=lambda left: rate * left,
        n_steps=LENGTH,
        batch_size=LENGTH * DATA["batch_size"],
        n_epochs=DATA["num_passes"],
        gamma=TASK["discount"],
        gae_lambda=0.95,
        clip_range=TASK["clip"],
        ent_coef=0.01,
        vf_coef=0.25,  # its squared error is not halved, ours is
        max_grad_norm=SETTINGS["trainer"]["gradient_clip_val"],
        policy_kwargs={
            "lstm_hidden_size": TASK["backbone"]["init_args"]["hidden_size"],
            "shared_lstm": True,
            "enable_critic_lstm": False,
            "optimizer_kwargs": {"eps": 1e-5},
        },
        seed=seed,
        device="cpu",
    )


def returns(model: RecurrentPPO, episodes: int, seed: int) -> float:
    """Return the mean return of episodes, each in an environment of its own."""
    environments = DummyVecEnv([make] * episodes)
    environments.seed(seed)
    observations = environments.reset()
    state, starts = None, np.ones(episodes, bool)
    totals, is_open = np.zeros(episodes), np.ones(episodes, bool)
    scale = model.get_vec_normalize_env()
    while is_open.any():
        actions, state = model.predict(
            scale.normalize_obs(observations), state=state, episode_start=starts, deterministic=True
        )
        observations, rewards, starts, _ = environments.step(actions)
        totals += rewards * is_open
        is_open &= ~starts
    return float(totals.mean())


class Validation(BaseCallback):
    """Score the policy every so many rollouts, and keep the best, of equal ones the latest."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[tuple[int, float]] = []
        self.best: dict[str, Any] = {}
        self.seconds = 0.0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        rollouts = self.num_timesteps // (NUMBER * LENGTH)
        if rollouts and rollouts % SETTINGS["trainer"]["check_val_every_n_epoch"] == 0:
            start = time.process_time()
            score = returns(self.model, 20, 10_000)
            if score >= max((before for _, before in self.scores), default=0.0):
                self.best = {name: value.clone() for name, value in self.model.policy.state_dict().items()}
                self.scale = self.model.get_vec_normalize_env().obs_rms.copy()
            self.scores.append((self.num_timesteps, score))
            self.seconds += time.process_time() - start


def train(seed: int) -> dict[str, Any]:
    model, validation = model_for(seed), Validation()
    start = time.process_time()
    model.learn(DATA["total_steps"], callback=validation)
    seconds = time.process_time() - start - validation.seconds
    model.policy.load_state_dict(validation.best)
    model.get_vec_normalize_env().obs_rms = validation.scale
    return {
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.policy.parameters()),
        "env_steps": model.num_timesteps,
        "val": validation.scores,
        "test": {"episode_return": returns(model, 100, 20_000)},
        "cpu_seconds": seconds,
    }


def seconds_of_rimlit(name: str) -> float:
    settings = yaml.safe_load(find_config(f"cartpole/{name}").read_text())
    settings["data"]["init_args"]["total_steps"] = ROLLOUTS * NUMBER * LENGTH
    data = build_data(settings)
    task = build_task(settings, data)
    trainer = L.Trainer(
        max_epochs=ROLLOUTS,
        accelerator="cpu",
        gradient_clip_val=settings["trainer"]["gradient_clip_val"],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.process_time()
    trainer.fit(task, datamodule=data)
    return time.process_time() - start


def seconds_of_theirs() -> float:
    model = model_for(0)
    start = time.process_time()
    model.learn(ROLLOUTS * NUMBER * LENGTH)
    return time.process_time() - start


def speed(rounds: int) -> dict[str, Any]:
    arms = {
        "rimlit, RIM": lambda: seconds_of_rimlit("rim"),
        "rimlit, LSTM": lambda: seconds_of_rimlit("lstm"),
        "sb3-contrib, LSTM": seconds_of_theirs,
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, run in arms.items():
            seconds[name].append(run())
    micro = {
        name: 1e6 * statistics.median(times) / (ROLLOUTS * NUMBER * LENGTH) for name, times in seconds.items()
    }
    return {"cpu_microseconds_per_env_step": micro}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    whence = {
        **origin(**({"speed": True} if arguments.speed else {"seeds": arguments.seeds})),
        "versions": versions(),
    }
    if arguments.speed:
        result = speed(5)
    else:
        runs = []
        for seed in range(arguments.seeds):
            runs.append(train(seed))
            print(json.dumps(runs[-1]), flush=True)
        result = {"runs": runs}
    print(json.dumps(result, indent=2))
    write(arguments.json, {**whence, **result})


def versions() -> dict[str, str]:
    import sb3_contrib
    import stable_baselines3

    return {
        "sb3-contrib": sb3_contrib.__version__,
        "stable-baselines3": stable_baselines3.__version__,
        "gymnasium": gymnasium.__version__,
        "torch": str(torch.__version__),
    }


if __name__ == "__main__":
    main()
