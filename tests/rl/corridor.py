"""An environment of which every number is known, and tasks for it."""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from rimlit.rl import Experience, PPOTask
from rimlit.spec import trust
from tests.tasks.running import SMALL_LSTM, SMALL_RIM

trust("tests")


FAULTY_REWARDS = {
    "reward": np.inf,
    "reward of 16 bits": np.float16(np.inf),
    "no number": np.float32(np.nan),
    "large reward": -1e300,
    "reward in a list": [4.0],
    "reward in an array": np.array([4.0]),
    "no reward": None,
    "reward in words": "4",
    "complex reward": np.complex64(4),
    "complex reward in an array": np.array(4 + 0j),
}


class Corridor(gymnasium.Env[Any, Any]):
    """Shows how many steps of the episode, and in all, are done; ends after ``length`` steps, or is cut off there.

    The reward is the number of steps in all. ``fault`` names what goes wrong at the step ``at``. What it shows is
    one array, written over in each step.
    """

    def __init__(
        self, length: int = 3, is_cut: bool = False, is_continuous: bool = False, fault: str = "", at: int = 4
    ) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Box(-2, 2, (2,), np.float32) if is_continuous else spaces.Discrete(2, start=5)
        self.length, self.is_cut, self.fault, self.at = length, is_cut, fault, at
        self.steps = self.total = 0
        self.shown = np.zeros(2, dtype=np.float32)
        self.actions: list[Any] = []

    def _observation(self) -> Any:
        self.shown[:] = self.steps, self.total
        return self.shown

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.total += 1
        self.actions.append(action.tolist())
        is_over = self.steps == self.length
        observation: Any = self._observation()
        reward: Any = float(self.total)
        if self.fault and self.total == self.at:
            if self.fault == "raises":
                raise RuntimeError("the motor is hot")
            if self.fault == "shape":
                observation = np.zeros(3, dtype=np.float32)
            if self.fault == "words":
                observation = np.array(["far", "near"])
            if self.fault == "list":
                observation = [0.0, 0.0]
            if self.fault == "tensor":
                observation = torch.zeros(2)
            if self.fault == "nan":
                observation[1] = np.nan
            reward = FAULTY_REWARDS.get(self.fault, reward)
        return observation, reward, is_over and not self.is_cut, is_over and self.is_cut, {}


CORRIDOR = f"{__name__}.Corridor"
BACKBONES: dict[str, dict[str, Any]] = {
    "RIM": {
        **SMALL_RIM,
        "init_args": {**SMALL_RIM["init_args"], "input_dropout": 0.0, "communication_dropout": 0.0},
    },
    "LSTM": SMALL_LSTM,
}


def make_experience(environment: str = CORRIDOR, **arguments: Any) -> Experience:
    """A small data module: rollouts of 4 environments and 10 steps."""
    defaults: dict[str, Any] = {
        "total_steps": 80,
        "num_environments": 4,
        "rollout_length": 10,
        "batch_size": 2,
        "num_passes": 2,
        "val_episodes": 3,
        "test_episodes": 5,
        "predict_episodes": 3,
        "floor_episodes": 2,
        "seed": 1,
    }
    return Experience(environment, **{**defaults, **arguments})


def make_task(data: Experience, backbone: Any = "RIM", **arguments: Any) -> PPOTask:
    """A task for :func:`make_experience`."""
    return PPOTask(
        BACKBONES.get(backbone, backbone) if isinstance(backbone, str) else backbone,
        data.observation_shape,
        data.num_actions,
        data.action_size,
        **arguments,
    )
