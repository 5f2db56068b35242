"""Atari games of the Arcade Learning Environment, stepped together by its own C++ code.

ale-py is the extra ``atari``; it is GPL-2.0-only and imported here only, where a game is asked for.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from gymnasium.envs.registration import registry
from gymnasium.vector import AutoresetMode

from rimlit.errors import ConfigError
from rimlit.rl.environments import Array, Environments, Step, require_installed

OPTIONS = (
    "repeat_action_probability",
    "frameskip",
    "stack_num",
    "img_height",
    "img_width",
    "maxpool",
    "noop_max",
    "use_fire_reset",
    "max_episode_steps",
    "full_action_space",
    "num_threads",
)
"""Arguments of ale-py's vector environment that may be given (the others are fixed here), and
``max_episode_steps``, which counts actions as elsewhere."""

LARGEST_SEED = 2**31


class AtariEnvironments(Environments):
    """E games of one kind; see :func:`rimlit.rl.make_environments` for the arguments.

    An id is one of ``ALE/…-v5`` and has the settings it is registered with: an action lasts for 4 frames, in each
    of which, with a probability of .25, the previous action is taken instead (``repeat_action_probability``).
    Observations are the last four screens, grey, 84 × 84. A lost life terminates without an end: no later reward
    counts for the steps before it, and the game continues. Rewards are clipped at ±1, scores are not.
    """

    observation_type = np.uint8

    def __init__(
        self,
        environment: str,
        num_environments: int,
        *,
        options: Mapping[str, Any],
        wrappers: Sequence[str | Mapping[str, Any]] = (),
        observed: Sequence[int] | None = None,
        info_keys: Sequence[str] = (),
        has_slots: bool = False,
        can_render: bool = False,
    ) -> None:
        require_installed("ale_py", "atari")
        from ale_py.vector_env import AtariVectorEnv

        if wrappers or observed is not None:
            raise ConfigError(
                f"{environment} is stepped by ale-py: it takes no wrappers and shows whole screens; got "
                f"wrappers={list(wrappers)}, observed={observed}."
            )
        if info_keys or has_slots:
            raise ConfigError(
                f"{environment} is stepped by ale-py: its games have no info to score and show no dictionary; got "
                f"info_keys={list(info_keys)}, has_slots={has_slots}."
            )
        for name in options:
            if name not in OPTIONS:
                near = get_close_matches(name, OPTIONS, n=1)
                hint = f" Did you mean {near[0]}?" if near else f" Known: {', '.join(OPTIONS)}."
                raise ConfigError(f"{environment} has no option {name!r}.{hint}")
        self.name = environment
        self.num_environments = num_environments
        # as many threads as torch uses, not all cores
        settings = {"num_threads": torch.get_num_threads(), **_registered(environment), **options}
        limit = settings.pop("max_episode_steps", None)
        if limit is not None:
            settings["max_num_frames_per_episode"] = limit * settings["frameskip"]
        try:
            self._vector = AtariVectorEnv(
                num_envs=num_environments,
                autoreset_mode=AutoresetMode.SAME_STEP,  # else the first step of an episode ignores the action
                life_loss_info=True,  # episodic_life would restart the whole game
                reward_clipping=False,
                **settings,
            )
        except Exception as error:
            given = ", ".join(f"{name}={value!r}" for name, value in options.items())
            raise ConfigError(f"{environment}{f' with {given}' if given else ''}: {error}") from error
        self.observation_shape = self._vector.single_observation_space.shape or ()
        self.num_actions = len(self._vector.ale.get_action_set())
        self._begun: Array = np.zeros(num_environments, np.int64)
        self._screen: Array | None = None

    def reset(self, seed: int) -> Array:
        """Start a game in each environment, from ``seed``, ``seed + 1``, …."""
        # ale-py takes 31 bits
        seeds = (seed + np.arange(self.num_environments)) % LARGEST_SEED
        observations, info = self._vector.reset(seed=seeds)
        self._begun = _first_frames(info)
        self._screen = observations[0, -1]
        screens: Array = observations
        return screens

    def step(self, actions: Array) -> Step:
        """Act; see :meth:`Environments.step`."""
        assert actions.min() >= 0 and actions.max() < self.num_actions, "ale-py would wait forever"
        observations, scores, terminated, truncated, info = self._vector.step(actions)
        begun = _first_frames(info)
        ended, self._begun = begun != self._begun, begun
        finals = observations
        if ended.any():
            # where a life was lost and the game continues, ale-py leaves uninitialised memory
            finals = np.where(ended[:, None, None, None], info["final_obs"], observations)
        self._screen = observations[0, -1]
        scores = scores.astype(np.float32)
        return Step(observations, scores.clip(-1, 1), scores, terminated, truncated, ended, finals)

    def render(self) -> Array | None:
        """Return the last screen of the first game, grey as it is shown to the network."""
        return None if self._screen is None else np.repeat(self._screen[..., None], 3, axis=2)

    def close(self) -> None:
        """Close the games."""
        self._vector.close()


def _first_frames(info: Mapping[str, Array]) -> Array:
    """Return the frame in which each game began, (E,): it changes when a game begins and not with a lost life."""
    first: Array = info["frame_number"].astype(np.int64) - info["episode_frame_number"]
    return first


def _registered(environment: str) -> dict[str, Any]:
    """Return the settings an id is registered with."""
    import ale_py
    import gymnasium

    gymnasium.register_envs(ale_py)
    ids = {name: spec for name, spec in registry.items() if name.startswith("ALE/")}
    if environment not in ids:
        near = get_close_matches(environment, ids, n=3, cutoff=0.75)  # all begin and end alike
        hint = f"Did you mean {', '.join(near)}?" if near else f"There are {len(ids)}, such as ALE/Pong-v5."
        raise ConfigError(f"environment={environment!r} is not a game of ale-py. {hint}")
    return dict(ids[environment].kwargs)
