"""Environments that a user steps together, by class path: a ``VectorEnv`` of gymnasium, or an ``Environments``."""

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.wrappers.vector import FlattenObservation

from rimlit.errors import ConfigError, DataError, SpecError
from rimlit.rl.environments import Array, Environments, Step
from rimlit.rl.gym import KINDS, GymEnvironments, number_in, reason_of, take_actions, take_observations, wrapped
from rimlit.spec import find_class

MODES = (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)
"""Ways to begin the next episode that put no step without a meaning between two."""


def builder_of(path: str) -> Callable[..., Environments]:
    """Return what makes environments of the class at a dotted path; see :func:`rimlit.rl.make_environments`."""
    for base, builder in ((Environments, _own_environments), (VectorEnv, VectorEnvironments)):
        try:
            find_class(path, base)
        except SpecError as error:
            if "must be a subclass" not in str(error):
                raise
        else:
            return builder
    return GymEnvironments


def _own_environments(
    environment: str,
    num_environments: int,
    *,
    options: Mapping[str, Any],
    wrappers: Sequence[Any],
    observed: Sequence[int] | None,
    info_keys: Sequence[str],
    has_slots: bool,
    can_render: bool,
) -> Environments:
    """Make environments of a user's :class:`Environments`, which does all of it itself."""
    if wrappers or observed is not None or has_slots:
        given = None if observed is None else list(observed)
        raise ConfigError(
            f"{environment} makes its observations itself: it takes no wrappers, observed and has_slots; got "
            f"wrappers={list(wrappers)}, observed={given}, has_slots={has_slots}."
        )
    cls = find_class(environment, Environments)
    made: Environments = _made(cls, environment, {"num_environments": num_environments}, options)
    if tuple(made.info_keys) != tuple(info_keys):
        raise ConfigError(
            f"{environment} has the info_keys {list(made.info_keys)}, which its class sets; got "
            f"info_keys={list(info_keys)}."
        )
    return made


def _made(cls: type[Any], name: str, sizes: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Call a user's class; what it raises becomes one line."""
    try:
        return cls(**sizes, **options)
    except ConfigError:
        raise
    except TypeError as error:
        named = ", ".join(f"{key}={value!r}" for key, value in {**sizes, **options}.items())
        raise ConfigError(f"{name} with {named}: {error}") from error
    except Exception as error:
        raise DataError(f"{name} cannot be made: {reason_of(error)}.") from error


class VectorEnvironments(Environments):
    """E environments in one ``VectorEnv`` of a user; see :func:`rimlit.rl.make_environments` for the arguments.

    Its class is called with ``num_envs`` and the options. It begins the next episode in the step that ends one
    (``SAME_STEP``), or is reset where an episode ended (``DISABLED``, ``reset`` with a ``reset_mask``);
    its ``metadata["autoreset_mode"]`` says which. Where it takes an ``autoreset_mode``, ``SAME_STEP`` is given.

    Observations that are not arrays are flattened to a vector. Bounded continuous actions are scaled from −1 to 1
    to their bounds and clipped there.
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
        self.info_keys = tuple(info_keys)
        if has_slots:
            raise ConfigError(
                f"{environment} is a VectorEnv: has_slots is for single environments; let it show (N, D) itself."
            )
        cls = find_class(environment, VectorEnv)
        taken = inspect.signature(cls).parameters
        added = {"autoreset_mode": AutoresetMode.SAME_STEP} | ({"render_mode": "rgb_array"} if can_render else {})
        options = {**{name: value for name, value in added.items() if name in taken}, **options}
        vector: VectorEnv[Any, Any, Any] = _made(cls, environment, {"num_envs": num_environments}, options)
        self._mode = AutoresetMode(vector.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        if self._mode not in MODES:
            raise ConfigError(
                f"{environment} must begin the next episode in the step that ends one, or let itself be reset: "
                "metadata['autoreset_mode'] must be AutoresetMode.SAME_STEP or DISABLED; got "
                f"{self._mode.name}."
            )
        if vector.num_envs != num_environments:
            raise ConfigError(
                f"{environment} has {vector.num_envs} environments; asked for were {num_environments}."
            )
        for given in wrappers:
            vector = wrapped(vector, given, VectorWrapper)
        if (
            not isinstance(vector.single_observation_space, spaces.Box)
            or not vector.single_observation_space.shape
        ):
            try:
                vector = FlattenObservation(vector)
            except NotImplementedError as error:
                raise ConfigError(
                    f"{environment} shows what cannot be flattened to a vector: {vector.single_observation_space}."
                ) from error
        self._vector = vector
        self._shape, self._observed = take_observations(self, vector.single_observation_space, observed)
        actions = vector.single_action_space
        self._first_action = take_actions(self, actions)
        self._bounds: tuple[Array, Array] | None = None
        if isinstance(actions, spaces.Box) and np.isfinite(actions.low).all() and np.isfinite(actions.high).all():
            self._bounds = actions.low, actions.high
        self._action_shape = actions.shape or ()
        self._steps = 0

    def reset(self, seed: int) -> Array:
        """Start an episode in each environment; the vector takes ``seed``."""
        self._steps = 0
        return self._shown(self._call("raised in its reset after", lambda: self._vector.reset(seed=seed)[0]))

    def step(self, actions: Array) -> Step:
        """Act; see :meth:`Environments.step`."""
        self._steps += 1
        actions = self._own(actions)
        observations, rewards, terminated, truncated, info = self._call(
            "raised at", lambda: self._vector.step(actions)
        )
        rewards = self._numbers(rewards, "rewards", np.float32)
        terminated = self._numbers(terminated, "terminated", np.bool_)
        truncated = self._numbers(truncated, "truncated", np.bool_)
        ended = terminated | truncated
        observations = finals = self._array(observations)
        final_info = info
        if ended.any() and self._mode is AutoresetMode.SAME_STEP:
            finals = observations.copy()
            for index in ended.nonzero()[0].tolist():
                finals[index] = self._final(info, index)
            final_info = info.get("final_info", {})
        elif ended.any():
            # a copy: it may write the first observations into the array of the last ones
            finals, mask = observations.copy(), ended.copy()
            observations = self._array(
                self._call(
                    "raised in its reset after", lambda: self._vector.reset(options={"reset_mask": mask})[0]
                )
            )
        infos = self._infos(final_info, ended) if self.info_keys else None
        return Step(
            self._part(observations), rewards, rewards, terminated, truncated, ended, self._part(finals), infos
        )

    def _own(self, actions: Array) -> Array:
        """Return actions as the vector takes them."""
        if self._bounds is not None:
            low, high = self._bounds
            scaled: Array = low + (actions.clip(-1, 1) + 1) / 2 * (high - low)
            return scaled.astype(low.dtype)
        own: Array = (actions + self._first_action).reshape(self.num_environments, *self._action_shape)
        return own

    def _call(self, when: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            raise DataError(f"{self.name}: {when} step {self._steps}: {reason_of(error)}.") from error

    def _final(self, info: Mapping[str, Any], index: int) -> Array:
        """Return the last observation of an episode that ended."""
        found = info.get("final_obs")
        if found is None or found[index] is None:
            raise DataError(
                f"{self.name}: environment {index} ended an episode at step {self._steps} without final_obs in "
                "its info, which AutoresetMode.SAME_STEP needs."
            )
        final: Array = np.asarray(found[index], self.observation_type)
        return final

    def _infos(self, info: Mapping[str, Any], ended: Array) -> Array:
        """Return the values of ``info`` of the episodes that ended, (E, I); NaN for the others."""
        infos = np.full((self.num_environments, len(self.info_keys)), np.nan, np.float32)
        for index in ended.nonzero()[0].tolist():
            for place, key in enumerate(self.info_keys):
                try:
                    infos[index, place] = number_in(_row(info, index), key)
                except (KeyError, TypeError, ValueError, IndexError) as error:
                    raise DataError(
                        f"{self.name}: environment {index} ended an episode at step {self._steps} without a "
                        f"number {key!r} in its info, which has {', '.join(map(str, info)) or 'nothing'}."
                    ) from error
        return infos

    def _numbers(self, values: Any, name: str, dtype: type[np.generic]) -> Array:
        array = np.asarray(values)
        kinds = "b" if dtype is np.bool_ else "biuf"
        if array.shape != (self.num_environments,) or array.dtype.kind not in kinds:
            raise DataError(
                f"{self.name}: {name} at step {self._steps} must be {np.dtype(dtype)} of shape "
                f"({self.num_environments},); got {array.dtype} of shape {array.shape}."
            )
        found: Array = array.astype(dtype)
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise DataError(
                f"{self.name}: environment {int((~np.isfinite(found)).argmax())} returned {name} that are not "
                f"finite at step {self._steps}."
            )
        return found

    def _array(self, observations: Any) -> Array:
        shape = (self.num_environments, *self._shape)
        if (
            not isinstance(observations, np.ndarray)
            or observations.shape != shape
            or observations.dtype.kind not in KINDS
        ):
            what = getattr(observations, "shape", type(observations).__name__)
            raise DataError(
                f"{self.name}: observations at step {self._steps} must be an array of numbers of shape {shape}; "
                f"got {what}."
            )
        # an environment may reuse its array
        array: Array = observations.astype(self.observation_type, copy=True)
        return array

    def _part(self, observations: Array) -> Array:
        """Return the places that are shown; they must be finite."""
        shown: Array = observations if self._observed is None else observations[:, self._observed]
        self.require_finite(shown, self._steps)
        return shown

    def _shown(self, observations: Any) -> Array:
        return self._part(self._array(observations))

    def render(self) -> Array | None:
        """Return a picture of the first environment."""
        pictures = self._vector.render()
        picture = pictures[0] if isinstance(pictures, tuple | list) and pictures else pictures
        return picture if isinstance(picture, np.ndarray) and picture.ndim == 3 else None

    def close(self) -> None:
        """Close the environments."""
        with contextlib.suppress(gymnasium.error.Error):  # it was closed before
            self._vector.close()


def _row(info: Any, index: int) -> Any:
    """Return one environment's part of the info of a vector: arrays and nested mappings of arrays."""
    if isinstance(info, Mapping):
        return {key: _row(value, index) for key, value in info.items()}
    return info[index] if isinstance(info, np.ndarray | list | tuple) else info
