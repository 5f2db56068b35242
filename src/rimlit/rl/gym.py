"""Environments of gymnasium: any registered id, or a class of one's own."""

import importlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import Env, Wrapper, spaces
from gymnasium.envs.registration import EnvSpec, registry
from gymnasium.wrappers import ClipAction, DtypeObservation, FlattenObservation, RescaleAction

from rimlit.errors import ConfigError, DataError
from rimlit.rl.environments import Array, Environments, Step, require_installed
from rimlit.spec import Spec, check_trusted, find_class, to_spec

KINDS = frozenset("biuf")
"""Kinds of numbers that an observation may be of, as numpy calls them."""

LARGEST = float(np.finfo(np.float32).max)
"""The largest reward."""

PROVIDERS = {"MiniGrid": "minigrid", "BabyAI": "minigrid", "popgym": "popgym"}
"""First part of an id → package that registers such ids; each is in the extra ``rl``."""


class GymEnvironments(Environments):
    """E environments of gymnasium in this process; see :func:`rimlit.rl.make_environments` for the arguments.

    They are stepped in a plain loop, as by gymnasium's own vector environment in its mode SAME_STEP, which takes
    longer and does not say which environment raised.

    Observations that are not arrays (one of a set, tuples, dictionaries) are flattened to a vector, choices as
    one-hot vectors. Bounded continuous actions are scaled from −1 to 1 to their bounds and clipped there.
    """

    def __init__(
        self,
        environment: str,
        num_environments: int,
        *,
        options: Mapping[str, Any],
        wrappers: Sequence[str | Mapping[str, Any]],
        observed: Sequence[int] | None,
        info_keys: Sequence[str] = (),
        has_slots: bool = False,
        can_render: bool = False,
    ) -> None:
        self.name = environment
        self.num_environments = num_environments
        spec = _find(environment)
        if can_render:
            options = {**options, "render_mode": "rgb_array"}
        self._envs = [_make(spec, options, wrappers, has_slots=has_slots) for _ in range(num_environments)]
        self.info_keys = tuple(info_keys)
        observations, actions = self._envs[0].observation_space, self._envs[0].action_space
        assert isinstance(observations, spaces.Box)
        self._shape, self._observed = take_observations(self, observations, observed)
        self._dtype = np.dtype(self.observation_type)
        self._is_float = self._dtype.kind == "f"
        self._first_action: Any = take_actions(self, actions)
        self._has_first = bool(np.any(self._first_action))
        self._part_shape = actions.shape if self.num_choices is not None else None
        self._steps = 0
        self._none: Array = np.zeros(num_environments, bool)
        self._none.flags.writeable = False

    def reset(self, seed: int) -> Array:
        """Start an episode in each environment, from ``seed``, ``seed + 1``, …."""
        self._steps = 0
        observations = np.empty((self.num_environments, *self._shape), self.observation_type)
        for index in range(self.num_environments):
            observations[index] = self._begin(index, seed=seed + index)
        return self._shown(observations)

    def step(self, actions: Array) -> Step:
        """Act; see :meth:`Environments.step`."""
        self._steps += 1
        number, shape, dtype = self.num_environments, self._shape, self._dtype
        observations = np.empty((number, *shape), dtype)
        rewards = np.empty(number, np.float32)
        terminated = truncated = ended = self._none
        finals: list[tuple[int, Array, bool, bool]] = []
        if self._has_first:
            actions = actions + self._first_action
        if self._part_shape is not None:
            actions = actions.reshape(-1, *self._part_shape)
        if self.action_size is not None:
            actions = actions.copy()  # an environment may write to what it is given
        infos = np.full((number, len(self.info_keys)), np.nan, np.float32) if self.info_keys else None
        observation: Any
        reward: Any
        info: Any
        for index, env in enumerate(self._envs):
            try:
                observation, reward, is_over, is_cut, info = env.step(actions[index])
            except Exception as error:
                raise self._fault(index, "raised at", error) from error
            try:
                # what is not a number compares with none, and NaN is within no bounds
                plain = reward if type(reward) is float else _plain(reward)
                if not -LARGEST <= plain <= LARGEST:
                    raise ValueError("a reward must be a finite number of 32 bits")
                rewards[index] = plain
            except Exception as error:
                raise self._no_reward(index, reward) from error
            # the usual kind of observation is recognised by these three checks
            if type(observation) is not np.ndarray or observation.dtype is not dtype or observation.shape != shape:
                self._require_fit(index, observation)
            if type(is_over) is not bool or type(is_cut) is not bool:
                is_over, is_cut = self._flag(index, "terminated", is_over), self._flag(index, "truncated", is_cut)
            if is_over or is_cut:
                # an environment may reuse its array
                finals.append((index, np.array(observation), is_over, is_cut))
                if infos is not None:
                    infos[index] = [self._info(index, info, key) for key in self.info_keys]
                observation = self._begin(index)
            observations[index] = observation
        shown = final_shown = self._shown(observations)
        if finals:
            terminated, truncated, ended = np.zeros((3, number), bool)
            led_to = observations.copy()
            for index, observation, is_over, is_cut in finals:
                led_to[index], terminated[index], truncated[index], ended[index] = (
                    observation,
                    is_over,
                    is_cut,
                    True,
                )
            final_shown = self._shown(led_to)
        return Step(shown, rewards, rewards, terminated, truncated, ended, final_shown, infos)

    def _info(self, index: int, info: Any, key: str) -> float:
        """Return a value of ``info`` in the step that ended an episode."""
        try:
            return number_in(info, key)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.name}: environment {index} ended an episode at step {self._steps} without a number "
                f"{key!r} in its info, which has {', '.join(map(str, info)) or 'nothing'}."
            ) from error

    def _begin(self, index: int, **options: Any) -> Array:
        """Start an episode in one environment and return its first observation."""
        try:
            observation: Array = self._envs[index].reset(**options)[0]
        except Exception as error:
            raise self._fault(index, "raised in its reset after", error) from error
        self._require_fit(index, observation)
        return observation

    def _shown(self, observations: Array) -> Array:
        """Return the places that are shown; they must be finite."""
        shown: Array = observations if self._observed is None else observations[:, self._observed]
        # checking the whole array is faster than checking some places
        if self._is_float and 0 in np.isfinite(observations).tobytes():
            self.require_finite(shown, self._steps)
        return shown

    def _fault(self, index: int, when: str, error: Exception) -> DataError:
        return DataError(f"{self.name}: environment {index} {when} step {self._steps}: {reason_of(error)}.")

    def _flag(self, index: int, name: str, value: Any) -> bool:
        """Return whether an episode has ended; numpy's kinds of True and False are taken, and 0 and 1."""
        if isinstance(value, bool | int | np.bool_ | np.integer) or (
            isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind in "bui"
        ):
            return bool(value)
        raise DataError(
            f"{self.name}: environment {index} returned {name} as {_one_line(repr(value))} at step "
            f"{self._steps}; it must be True or False."
        )

    def _no_reward(self, index: int, reward: Any) -> DataError:
        written = str(reward) if isinstance(reward, (float, np.number)) else _one_line(repr(reward))
        return DataError(
            f"{self.name}: environment {index} returned a reward of {written} at step {self._steps}; it must be a "
            "finite number."
        )

    def _require_fit(self, index: int, observation: Any) -> None:
        """Raise a DataError unless ``observation`` is an array of numbers as declared, no tensor of torch."""
        shape = getattr(observation, "shape", None)
        dtype = getattr(observation, "dtype", None)
        if getattr(dtype, "kind", None) in KINDS and shape == self._shape:
            return
        what = type(observation).__name__ if None in (shape, dtype) else f"shape {shape} and type {dtype}"
        raise DataError(
            f"{self.name}: environment {index} returned an observation of {what} at step {self._steps}; it "
            f"declares an array of numbers of shape {self._shape}."
        )

    def render(self) -> Array | None:
        """Return a picture of the first environment."""
        picture = self._envs[0].render()
        return picture if isinstance(picture, np.ndarray) else None

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs:
            env.close()


def _plain(reward: Any) -> Any:
    """Return a reward as it is, one of numpy's as Python's: in 16 bits there are no bounds to compare with."""
    if not isinstance(reward, (np.generic, np.ndarray)):
        return reward
    if reward.dtype.kind not in KINDS or reward.shape:
        raise TypeError("a reward must be a number")
    return reward.item()


def _one_line(text: str) -> str:
    return " ".join(text.split())[:100]


def reason_of(error: Exception) -> str:
    """Return in a line, without a full stop, what an environment raised."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].removesuffix(".")


def _find(environment: str) -> EnvSpec:
    """Return the specification of an id or of a dotted path."""
    module, colon, name = environment.rpartition(":")
    if colon:
        check_trusted(module)
        importlib.import_module(module)
    provider = PROVIDERS.get(name.split("-")[0].split("/")[0])
    if provider is not None:
        require_installed(provider, "rl")
    if name in registry:
        return registry[name]
    if "." in name and "/" not in name and all(part.isidentifier() for part in name.split(".")):
        return EnvSpec(name, entry_point=cast(Any, find_class(name, Env)))
    near = _atari_game(name) or get_close_matches(name, registry, n=3, cutoff=0.5)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    raise ConfigError(
        f"environment={environment!r} is neither registered with gymnasium nor the dotted path of a class.{hint}"
    )


def _atari_game(name: str) -> list[str]:
    """Return the id of an Atari game that is named in another way (Pong, PongNoFrameskip-v4), if ale-py has it."""
    package = find_spec("ale_py")  # not imported: no game has been asked for yet
    roms = Path(package.origin).parent.glob("roms/*.bin") if package and package.origin else ()
    asked = name.split("-")[0].removesuffix("NoFrameskip").removesuffix("Deterministic").lower()
    games = (rom.stem.title().replace("_", "") for rom in roms)
    return [f"ALE/{game}-v5" for game in games if game.lower() == asked]


def _make(
    spec: EnvSpec,
    options: Mapping[str, Any],
    wrappers: Sequence[str | Mapping[str, Any]],
    *,
    has_slots: bool = False,
) -> Env[Any, Any]:
    """Make one environment whose observations are arrays."""
    try:
        spec = replace(spec, order_enforce=False)  # nothing here steps before it resets: what asks is left out
        env: Env[Any, Any] = gymnasium.make(spec, disable_env_checker=True, **options)
        for given in wrappers:
            env = wrapped(env, given, Wrapper)
        if has_slots:
            env = DictionarySlots(env)
        shown, actions = env.observation_space, env.action_space
    except ConfigError:
        raise
    except (gymnasium.error.Error, TypeError, ImportError) as error:
        named = ", ".join(f"{name}={value!r}" for name, value in options.items() if name != "render_mode")
        raise ConfigError(f"{spec.id}{f' with {named}' if named else ''}: {error}") from error
    except Exception as error:
        raise DataError(f"{spec.id} cannot be made: {reason_of(error)}.") from error
    if not isinstance(shown, spaces.Box) or shown.shape == ():
        try:
            env = FlattenObservation(env)
            shown = env.observation_space
        except NotImplementedError:  # a space of another package
            pass
        if not isinstance(shown, spaces.Box):  # a sequence or a graph stays one
            raise ConfigError(
                f"{spec.id} shows what cannot be flattened to a vector: {shown}. Name in wrappers "
                "one that takes a part of it."
            )
    if env.observation_space.dtype not in (np.uint8, np.float32):
        with warnings.catch_warnings(action="ignore"):  # about bounds of 64 bits
            env = DtypeObservation(env, np.float32)
    if isinstance(actions, spaces.Box) and np.isfinite(actions.low).all() and np.isfinite(actions.high).all():
        env = ClipAction(RescaleAction(env, np.float32(-1), np.float32(1)))
    return env


def take_observations(
    environments: Environments, space: Any, observed: Sequence[int] | None
) -> tuple[tuple[int, ...], Array | slice | None]:
    """Set what ``environments`` show of arrays of ``space``; return their shape, and the places if not all.

    Raises:
        ConfigError: ``observed`` names no places of them.
    """
    shape: tuple[int, ...] = space.shape or ()
    environments.observation_type = np.uint8 if space.dtype == np.uint8 else np.float32
    if observed is None:
        environments.observation_shape = shape
        return shape, None
    places = environments.places(observed, shape)
    environments.observation_shape = (len(observed),)
    return shape, places


def take_actions(environments: Environments, actions: Any) -> Any:
    """Set what actions ``environments`` take; return the first choice, or that of each part.

    Raises:
        ConfigError: They are of an unknown kind.
    """
    if isinstance(actions, spaces.Discrete):
        environments.num_actions = int(actions.n)
        return int(actions.start)
    if isinstance(actions, spaces.MultiDiscrete):
        environments.num_choices = tuple(actions.nvec.flatten().tolist())
        return actions.start.flatten()
    if isinstance(actions, spaces.MultiBinary):
        environments.num_choices = (2,) * math.prod(actions.shape)
        return 0
    if isinstance(actions, spaces.Box) and len(actions.shape) == 1:
        environments.action_size = actions.shape[0]
        return 0
    raise ConfigError(
        f"{environments.name} takes actions of a kind that PPOTask does not support: {actions}; supported are "
        "Discrete, MultiDiscrete, MultiBinary and Box of one dimension."
    )


def number_in(info: Any, key: str) -> float:
    """Return a number of nested mappings; ``a.b`` is ``info["a"]["b"]``, unless ``a.b`` itself is a key."""
    value = info.get(key)
    if value is None:
        value = info
        for part in key.split("."):
            value = value[part]
    number: float = np.asarray(value).astype(np.float64).item()
    return number


class DictionarySlots(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Make each entry of a dictionary (or tuple) that is observed a slot, padded with zeros to the widest.

    Args:
        env: An environment that observes a dictionary or a tuple.

    Raises:
        ConfigError: It observes something else, or an entry that cannot be flattened.
    """

    def __init__(self, env: Env[Any, Any]) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Dict | spaces.Tuple):
            raise ConfigError(f"has_slots=True needs a dictionary or tuple of observations; there is {space}.")
        self._entries = list(space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces))
        try:
            self._widest = max(spaces.flatdim(entry) for _, entry in self._entries)
        except (NotImplementedError, ValueError) as error:
            raise ConfigError(f"has_slots=True needs entries that can be flattened; there is {space}.") from error
        shape = (len(self._entries), self._widest)
        self.observation_space = spaces.Box(-np.inf, np.inf, shape, np.float32)

    def observation(self, observation: Any) -> Array:
        """Return the slots (N, D)."""
        slots = np.zeros(self.observation_space.shape or (), np.float32)
        for row, (name, entry) in enumerate(self._entries):
            flat: Any = spaces.flatten(entry, observation[name])
            slots[row, : len(flat)] = flat
        return slots


def wrapped(env: Any, given: str | Mapping[str, Any], base: type[Any]) -> Any:
    """Return ``env`` in a wrapper.

    Args:
        env: An environment, or a vector of them.
        given: The wrapper's dotted path, or ``class_path`` and ``init_args``.
        base: What it must be a subclass of.

    Raises:
        ConfigError: There is no such wrapper, or it does not take the arguments.
    """
    spec: Spec = {"class_path": given, "init_args": {}}
    if not isinstance(given, str):
        spec = to_spec(given, "wrappers")
    cls = _find_wrapper(spec["class_path"], base)
    try:
        return cls(env, **spec["init_args"])
    except TypeError as error:
        named = ", ".join(f"{name}={value!r}" for name, value in spec["init_args"].items())
        raise ConfigError(f"wrappers: {cls.__name__}({named}): {error}.") from error


def _find_wrapper(path: str, base: type[Any]) -> type[Any]:
    """Return a wrapper of gymnasium, also by its short name, or of a trusted package."""
    home = "gymnasium.wrappers" if base is Wrapper else "gymnasium.wrappers.vector"
    path = path if "." in path else f"{home}.{path}"
    if path.partition(".")[0] not in ("gymnasium", *PROVIDERS.values()):
        return find_class(path, base)
    module, _, name = path.rpartition(".")
    require_installed(path.partition(".")[0], "rl")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        found = None
    if not (isinstance(found, type) and issubclass(found, base)):
        near = get_close_matches(path.rpartition(".")[2], dir(gymnasium.wrappers), n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise ConfigError(f"wrappers: {path!r} is not a wrapper of gymnasium.{hint}")
    return found
