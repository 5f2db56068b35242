"""Several environments stepped together: the contract between environments and agents.

gymnasium is an extra (``rl``) and imported where environments are made, not here.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rimlit.checks import require_positive
from rimlit.errors import ConfigError, DataError, install_command

Array: TypeAlias = NDArray[Any]

BUILDERS: dict[str, str] = {"ALE": "rimlit.rl.atari.AtariEnvironments"}
"""First part of an id → class of rimlit that makes such environments, where it is not gymnasium's registry."""


class Step(NamedTuple):
    """The result of an action in each of E environments.

    Where an episode ended, the environment has begun its next one in the same step. The arrays are not overwritten
    later; they may be read-only, and the same array may be used twice.
    """

    observations: Array  # (E, …): before the next action; the first one of an episode where one has begun
    rewards: Array  # (E,) float32: those the policy is trained on
    scores: Array  # (E,) float32: those that are reported; the rewards, unless these are clipped
    terminated: Array  # (E,) bool: no later reward counts: the value after this step is 0
    truncated: Array  # (E,) bool: ended by a cut: the value after this step is that of the final observation
    ended: Array  # (E,) bool: an episode ended and the next one has begun: states are reset here
    final_observations: Array  # (E, …): after this step; differs from observations where an episode ended
    infos: Array | None = None  # (E, I): values of info by key, read where an episode ended; None without keys


class Environments(ABC):
    """E environments of one kind, stepped together; each resets itself at the end of an episode.

    A subclass sets the attributes and implements the abstract methods. Exactly one of ``num_actions``,
    ``num_choices`` and ``action_size`` is not None. In most environments ``ended`` is ``terminated | truncated``;
    a game that continues after a lost life may terminate without an end.
    """

    name: str
    """Name of the environment in messages."""
    num_environments: int
    observation_shape: tuple[int, ...]
    """Of one environment: (D,) for vectors, (channels, height, width) for frames."""
    observation_type: type[np.generic] = np.float32
    """``numpy.float32``, or ``numpy.uint8`` for frames of 0 to 255."""
    num_actions: int | None = None
    """Choices where actions are discrete, 0 to ``num_actions`` − 1."""
    num_choices: tuple[int, ...] | None = None
    """Choices of each part where an action has several parts, each from 0."""
    action_size: int | None = None
    """Numbers of an action where actions are continuous; −1 to 1 is the range the environment takes."""

    info_keys: tuple[str, ...] = ()
    """Keys of the values in :attr:`Step.infos`."""

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of an action: () for one choice."""
        if self.num_choices is not None:
            return (len(self.num_choices),)
        return () if self.action_size is None else (self.action_size,)

    @property
    def action_type(self) -> type[np.generic]:
        """Type of an action's numbers."""
        return np.int64 if self.action_size is None else np.float32

    def random_actions(self, generator: np.random.Generator) -> Array:
        """Draw an action (E, …) for each environment, each alike."""
        shape = (self.num_environments, *self.action_shape)
        if self.action_size is not None:
            return generator.uniform(-1, 1, size=shape).astype(np.float32)
        return generator.integers(self.num_choices or self.num_actions or 1, size=shape)

    @abstractmethod
    def reset(self, seed: int) -> Array:
        """Start an episode in each environment.

        Args:
            seed: At least 0; the environments take ``seed``, ``seed + 1``, …, or what follows from it.

        Returns:
            Observations (E, …).
        """

    @abstractmethod
    def step(self, actions: Array) -> Step:
        """Act.

        Args:
            actions: (E,) int64, (E, parts) int64, or (E, action_size) float32.

        Raises:
            DataError: An environment raised, or returned values of another kind than it declares.
        """

    @abstractmethod
    def render(self) -> Array | None:
        """Return a picture (height, width, 3) uint8 of the first environment, None where there is none."""

    @abstractmethod
    def close(self) -> None:
        """Free the environments' resources."""

    def places(self, observed: Sequence[int], shape: tuple[int, ...]) -> Array | slice:
        """Return the places of an observation vector that are shown.

        Raises:
            ConfigError: Observations are not vectors, or have no such place.
        """
        if len(shape) != 1:
            raise ConfigError(
                f"observed needs vectors, and {self.name} shows {shape}; got observed={list(observed)}."
            )
        if not observed or not all(0 <= place < shape[0] for place in observed):
            raise ConfigError(
                f"observed must name places of what {self.name} shows, 0 to {shape[0] - 1}; got "
                f"observed={list(observed)}."
            )
        gaps = set(np.diff(observed).tolist())
        if len(gaps) == 1 and min(gaps) > 0:  # numpy takes places at even distances without a copy
            return slice(observed[0], observed[-1] + 1, gaps.pop())
        return np.array(observed)

    def require_finite(self, observations: Array, step: int) -> None:
        """Raise a DataError that names the first environment whose observation is not finite."""
        # the quickest check of every number, for few as for many; a sum could overflow
        if observations.dtype.kind != "f" or 0 not in np.isfinite(observations).tobytes():
            return
        for index, observation in enumerate(observations):
            if not np.isfinite(observation).all():
                value = observation[~np.isfinite(observation)][0]
                raise DataError(
                    f"{self.name}: environment {index} returned an observation of {value} at step {step}."
                )


def make_environments(
    environment: str,
    num_environments: int,
    *,
    options: Mapping[str, Any] | None = None,
    wrappers: Sequence[str | Mapping[str, Any]] = (),
    observed: Sequence[int] | None = None,
    info_keys: Sequence[str] = (),
    has_slots: bool = False,
    can_render: bool = False,
) -> Environments:
    """Make environments of one kind.

    Args:
        environment: An id registered with gymnasium, or the dotted path of your own class, which must be in a
            trusted package: a ``gymnasium.Env``, a ``gymnasium.vector.VectorEnv`` or an :class:`Environments`,
            which is called with ``num_environments`` and the options.
        num_environments: Environments E, at least 1.
        options: Arguments of the environment.
        wrappers: Wrappers of gymnasium, the innermost first: dotted paths, or ``class_path`` and ``init_args``.
        observed: Places of the observation vector that are shown, and must be finite; None for all. Leaving some
            out makes an environment partially observed.
        info_keys: Keys of numbers that ``info`` has at the end of an episode; ``a.b`` is ``info["a"]["b"]``.
        has_slots: Whether each entry of a dictionary that is observed becomes a slot, padded with zeros to the
            widest, and not a part of one vector.
        can_render: Whether pictures will be asked for.

    Raises:
        ConfigError: There is no such environment, what it needs is not installed, it does not take the options,
            or its observations or actions are of an unsupported kind.
        DataError: It could not be made.
    """
    require_positive(num_environments=num_environments)
    path = BUILDERS.get(environment.partition("/")[0], "rimlit.rl.gym.GymEnvironments")
    require_installed("gymnasium", "rl")
    builder: Callable[..., Environments]
    if "." in environment and all(part.isidentifier() for part in environment.split(".")):
        builder = importlib.import_module("rimlit.rl.vector").builder_of(environment)
    else:
        module, _, name = path.rpartition(".")
        builder = getattr(importlib.import_module(module), name)
    made: Environments = builder(
        environment,
        num_environments,
        options=dict(options or {}),
        wrappers=tuple(wrappers),
        observed=None if observed is None else tuple(observed),
        info_keys=tuple(info_keys),
        has_slots=has_slots,
        can_render=can_render,
    )
    return made


def require_installed(module: str, extra: str) -> None:
    """Import ``module``; where it is missing raise a ConfigError that names the command which installs it."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"This needs {module}: {install_command(extra)}. {error}.") from error
