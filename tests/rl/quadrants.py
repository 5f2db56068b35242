"""Environments with actions of several parts, dictionaries, info, and a vector of them."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from rimlit.rl import Environments, Step
from rimlit.spec import trust

trust("tests")


class Quadrants(gymnasium.Env[Any, Any]):
    """Shows the corner that both parts of an action must name; three rounds are an episode.

    ``info`` says at the end whether all rounds were right, and in ``nested`` how many.
    """

    def __init__(self, lacks_info: bool = False, is_nested: bool = False) -> None:
        self.observation_space = spaces.Dict(
            {"corner": spaces.Box(-1, 1, (2,), np.float32), "round": spaces.Discrete(3)}
        )
        self.action_space = spaces.MultiDiscrete([2, 3], start=[0, 4])
        self.lacks_info = lacks_info
        self.round = self.right = 0
        self.actions: list[list[int]] = []

    def _observation(self) -> Any:
        self.corner = self.np_random.integers(0, 2, 2)
        return {"corner": (2 * self.corner - 1).astype(np.float32), "round": np.int64(min(self.round, 2))}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.round = self.right = 0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.actions.append(action.tolist())
        is_right = action[0] == self.corner[0] and action[1] - 4 == self.corner[1]
        self.round, self.right = self.round + 1, self.right + int(is_right)
        is_over = self.round == 3
        info = {"is_success": self.right == 3, "nested": {"right": self.right}}
        return self._observation(), float(is_right), is_over, False, {} if self.lacks_info else info


class Strange(gymnasium.Env[Any, Any]):
    """Takes actions of a kind that no policy of rimlit has."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Dict({"arm": spaces.Discrete(2)})


class Scaled(gymnasium.RewardWrapper[Any, Any]):
    """Multiplies rewards."""

    def __init__(self, env: Any, factor: float) -> None:
        super().__init__(env)
        self.factor = factor

    def reward(self, reward: Any) -> Any:
        return self.factor * reward


class Counters(VectorEnv[Any, Any, Any]):
    """Environment i counts from 0 and ends after i + 2 steps; what it shows is one array, written over."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        is_continuous: bool = False,
        fault: str = "",
    ) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode(autoreset_mode)}
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.single_action_space = spaces.Box(-3, 1, (1,), np.float32) if is_continuous else spaces.Discrete(2)
        self.fault = fault
        self.shown = np.zeros((num_envs, 2), np.float32)
        self.counts = np.zeros(num_envs, np.int64)
        self.actions: list[Any] = []

    def _observe(self) -> Any:
        self.shown[:, 0] = self.counts
        self.shown[:, 1] = np.arange(self.num_envs)
        return self.shown

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        mask = np.ones(self.num_envs, bool) if options is None else options["reset_mask"]
        self.counts[mask] = 0
        return self._observe(), {}

    def step(self, actions: Any) -> Any:
        self.actions.append(actions.tolist())
        self.counts += 1
        ended = self.counts == np.arange(self.num_envs) + 2
        observations, info = (
            self._observe(),
            {"length": self.counts.copy(), "_length": np.ones(self.num_envs, bool)},
        )
        rewards = self.counts.astype(np.float64)
        if ended.any() and self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
            finals = np.array(
                [row.copy() if over else None for row, over in zip(observations, ended, strict=True)], dtype=object
            )
            info = {"final_info": info} if self.fault == "no finals" else {"final_obs": finals, "final_info": info}
            self.counts[ended] = 0
            observations = self._observe()
        if self.fault == "rewards":
            rewards = rewards[:1]
        if self.fault == "nan":
            rewards[1] = np.nan
        if self.fault == "raises":
            raise RuntimeError("the motor is hot")
        return observations, rewards, ended, np.zeros(self.num_envs, bool), info


class OwnEnvironments(Environments):
    """An implementation of rimlit's own contract."""

    name = "own"
    observation_shape = (1,)
    num_choices = (2, 2)
    info_keys = ("right",)

    def __init__(self, num_environments: int, length: int = 2) -> None:
        self.num_environments, self.length = num_environments, length
        self.steps = 0

    def reset(self, seed: int) -> Any:
        return np.zeros((self.num_environments, 1), np.float32)

    def step(self, actions: Any) -> Step:
        self.steps += 1
        number = self.num_environments
        ended = np.full(number, self.steps % self.length == 0)
        shown = np.full((number, 1), self.steps % self.length, np.float32)
        rewards = actions.sum(axis=1).astype(np.float32)
        return Step(shown, rewards, rewards, ended, ~ended & False, ended, shown, rewards[:, None])

    def render(self) -> None:
        return None

    def close(self) -> None:
        pass


QUADRANTS, COUNTERS, OWN, SCALED = (
    f"{__name__}.{name}" for name in ("Quadrants", "Counters", "OwnEnvironments", "Scaled")
)
