"""The data of reinforcement learning: rollouts to train on, and episodes that score the policy."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from rimlit.checks import require_at_least
from rimlit.data.base import SPLITS, DataModule, Split, TrainingLoader
from rimlit.data.sampling import rank_and_world_size, share_of
from rimlit.errors import CheckpointError, ConfigError
from rimlit.rl.environments import Environments, make_environments
from rimlit.rl.rollouts import (
    Actor,
    Collected,
    Evaluated,
    PlayedEpisode,
    Player,
    Rollout,
    evaluate,
    record_episodes,
    require_end,
)
from rimlit.types import State, map_state


@runtime_checkable
class Learner(Actor, Protocol):
    """What :class:`Experience` asks of a task: it acts in environments and turns rollouts into batches.

    :class:`rimlit.rl.PPOTask` has all of it, and so may a task of another algorithm.
    """

    evaluate_greedily: bool
    """Whether evaluation takes the most likely actions instead of drawing them."""
    has_trained: bool
    """Whether a minibatch of the last rollout was trained on."""
    collected: Collected | None
    """Cost and yield of the rollout that is being trained on; set by :class:`Experience`."""

    @property
    def accepts_minibatches(self) -> bool:
        """Whether the rollout is still trained on."""

    def playing(self, num_environments: int) -> AbstractContextManager[None]:
        """Return a context in which the weights stay as they are and steps of ``num_environments`` are fast."""

    def begin_rollout(self) -> None:
        """Called before a rollout is collected."""

    def prepare(self, rollout: Rollout) -> State:
        """Return what the training step takes: nested tuples of tensors (E, …) of all environments."""


class Experience(DataModule):
    """Rollouts and episodes in environments that are stepped together.

    An epoch is one rollout: ``rollout_length`` steps of every environment, trained on ``num_passes`` times in
    minibatches of whole environments. Training ends after ``total_steps`` steps of all environments, rounded up to
    whole rollouts, or earlier by the trainer's own limits: pass ``max_epochs=-1`` to a ``Trainer`` made in Python,
    as Lightning's default ends training after 1,000 epochs. In a resumed run the environments begin new
    episodes; the untrained part of a rollout is replaced by as much of a new one.

    Validation and test play episodes in separate environments, the same episodes each time.

    Args:
        environment: An id registered with gymnasium, or the dotted path of your own class: a ``gymnasium.Env``, a
            ``gymnasium.vector.VectorEnv`` or a :class:`rimlit.rl.Environments`.
        options: Arguments of the environment; ``max_episode_steps`` cuts episodes off.
        wrappers: Wrappers of gymnasium, the innermost first: dotted paths, or ``class_path`` and ``init_args``.
        observed: Places of the observation vector that are shown, and must be finite; None for all.
        info_keys: Keys of numbers that ``info`` has in the last step of an episode; their means are metrics.
        has_slots: Whether each entry of a dictionary that is observed becomes a slot; see
            :class:`rimlit.rl.observations.SlotEncoder`.
        total_steps: Steps of all environments together, at least those of one rollout.
        num_environments: Environments over all processes, at least 1 and a multiple of ``batch_size``.
        rollout_length: Steps of each environment in a rollout, at least 1.
        batch_size: Environments in a minibatch over all processes, at least 1 and a multiple of their number.
        num_passes: How often a rollout is trained on, at least 1.
        val_episodes: Episodes of a validation, at least 1.
        test_episodes: Episodes of a test, for each environment, at least 1.
        predict_episodes: Episodes that prediction writes, at least 1.
        test_environments: Environments that are tested, each a group by its name; by default the one trained on.
        floor_episodes: Episodes of random actions whose mean return is the floor, 0 for no floor.
        seed: Seed of environments and actions; None takes the run's ``seed_everything``, or 0.

    Raises:
        ConfigError: A value is out of its range, an environment is unknown, or what it needs is not installed.
        DataError: The environment cannot be made.

    Example:
        >>> data = Experience("CartPole-v1", observed=[0, 2])
        >>> data.observation_shape, data.num_actions, data.action_size
        ([2], 2, None)
        >>> data.num_epochs  # 1,000,000 steps in rollouts of 8 × 128
        977
    """

    name = "experience"

    def __init__(
        self,
        environment: str,
        *,
        options: dict[str, Any] | None = None,
        wrappers: Sequence[str | dict[str, Any]] = (),
        observed: Sequence[int] | None = None,
        info_keys: Sequence[str] = (),
        has_slots: bool = False,
        total_steps: int = 1_000_000,
        num_environments: int = 8,
        rollout_length: int = 128,
        batch_size: int = 2,
        num_passes: int = 4,
        val_episodes: int = 20,
        test_episodes: int = 100,
        predict_episodes: int = 5,
        test_environments: Sequence[str] = (),
        floor_episodes: int = 10,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=0, seed=seed)
        require_at_least(
            1,
            num_environments=num_environments,
            rollout_length=rollout_length,
            num_passes=num_passes,
            val_episodes=val_episodes,
            test_episodes=test_episodes,
            predict_episodes=predict_episodes,
        )
        require_at_least(0, floor_episodes=floor_episodes)
        require_at_least(num_environments * rollout_length, total_steps=total_steps)
        if num_environments % batch_size:
            raise ConfigError(
                "A minibatch is of whole environments: num_environments must be a multiple of batch_size; got "
                f"num_environments={num_environments}, batch_size={batch_size}."
            )
        self.environment = environment
        self.options = options
        self.wrappers = tuple(wrappers)
        self.observed = observed
        self.info_keys = list(info_keys)
        self.has_slots = has_slots
        self.total_steps = total_steps
        self.num_environments = num_environments
        self.rollout_length = rollout_length
        self.num_passes = num_passes
        self.test_environments = tuple(dict.fromkeys(test_environments))
        self.env_steps = 0
        """Steps of all environments of all processes that were trained on so far."""
        self._episodes = {"val": val_episodes, "test": test_episodes, "predict": predict_episodes}
        self._floor_episodes = floor_episodes
        self._floors: dict[str, float] | None = None
        self._open: dict[tuple[str, str], Environments] = {}
        probe = self.make(environment, 1)
        self.observation_shape = list(probe.observation_shape)
        self.num_actions = probe.num_actions
        self.num_choices = None if probe.num_choices is None else list(probe.num_choices)
        self.action_size = probe.action_size
        probe.close()

    def make(self, environment: str, number: int, *, can_render: bool = False) -> Environments:
        """Return ``number`` environments, made as this data module's are."""
        return make_environments(
            environment,
            number,
            options=self.options,
            wrappers=self.wrappers,
            observed=self.observed,
            info_keys=self.info_keys,
            has_slots=self.has_slots,
            can_render=can_render,
        )

    @property
    def num_epochs(self) -> int:
        """Rollouts in ``total_steps``, the last one whole."""
        return math.ceil(self.total_steps / (self.num_environments * self.rollout_length))

    @property
    def progress(self) -> tuple[int, int]:
        """Steps of all environments so far, and those of all rollouts."""
        return self.env_steps, self.num_epochs * self.num_environments * self.rollout_length

    def setup(self, stage: str) -> None:
        """End training with the budget, and refuse environments to test that are of another kind."""
        for name in self.test_environments:
            probe = self.make(name, 1)
            choices = None if probe.num_choices is None else list(probe.num_choices)
            kind = [list(probe.observation_shape), probe.num_actions, probe.action_size, choices]
            probe.close()
            expected = [self.observation_shape, self.num_actions, self.action_size, self.num_choices]
            if kind != expected:
                raise ConfigError(
                    f"test_environments: {name} is of another kind than {self.environment}: observation_shape, "
                    f"num_actions, action_size and num_choices are {kind}, not {expected}."
                )
        trainer = self.trainer
        if stage == "fit" and trainer is not None:
            limit = trainer.fit_loop.max_epochs
            trainer.fit_loop.max_epochs = self.num_epochs if limit in (None, -1) else min(limit, self.num_epochs)

    def teardown(self, stage: str) -> None:
        """Close the environments."""
        for environments in self._open.values():
            environments.close()
        self._open.clear()

    @property
    def actor(self) -> Learner:
        """The task that is trained, tested or predicts."""
        task = None if self.trainer is None else self.trainer.lightning_module
        if not isinstance(task, Learner):
            raise ConfigError(
                "Experience supplies a PPOTask, or a task with the methods of rimlit.rl.experience.Learner; got "
                f"{type(task).__name__}."
            )
        return task

    def datasets(self, split: Split) -> Mapping[str, Dataset[Any]]:
        """Return the datasets of a split by group: the environment trained on, or those to be tested."""
        if split == "train":
            return {"": Rollouts(self)}
        if split in ("val", "predict") or not self.test_environments:
            return {"": Episodes(self, split, self.environment)}
        return {name.replace("/", "_"): Episodes(self, split, name) for name in self.test_environments}

    def example(self, split: Split) -> None:
        """Return nothing: there are no data before an agent acts."""

    def size_of(self, dataset: Dataset[Any]) -> int | None:
        """Return the episodes that are played, or the environments that are trained on."""
        return self._episodes[dataset.split] if isinstance(dataset, Episodes) else self.num_environments

    def floors(self) -> dict[str, float]:
        """Return the mean return of random actions in each environment that is tested."""
        if self._floors is None:
            self._floors = {}
            for index, (name, dataset) in enumerate(self.datasets("test").items()):
                assert isinstance(dataset, Episodes)
                if self._floor_episodes:
                    environments = self.make(dataset.environment, 1)
                    key = f"{name}/episode_return" if name else "episode_return"
                    seed = self.seed_for(split="test", group=index, count=1)
                    self._floors[key] = mean_return_of_random_actions(environments, seed, self._floor_episodes)
                    environments.close()
        return self._floors

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the rollouts; a resumed run starts at the minibatch of the checkpoint."""
        (_, batch), self._start = self._start, (0, 0)
        return TrainingLoader(Rollouts(self, batch), batch_size=None)

    def loader(self, dataset: Dataset[Any], split: Split, **options: Any) -> DataLoader[Any]:
        """Return a loader that passes on what ``dataset`` yields, without batching."""
        return DataLoader(dataset, batch_size=None)

    def environments_for(self, split: Split, environment: str, number: int) -> Environments:
        """Return environments, created once and kept until :meth:`teardown`."""
        key = split, environment
        if key not in self._open or self._open[key].num_environments != number:
            self._open[key] = self.make(environment, number)
        return self._open[key]

    def seed_for(self, *, split: Split, group: int = 0, count: int = 0) -> int:
        """Return the seed of this process's environments, distinct for each split, group, process and count."""
        rank, _ = rank_and_world_size()
        sequence = np.random.SeedSequence((self.seed, SPLITS.index(split), group, rank, count))
        return int(sequence.generate_state(1)[0] % 2**31)

    def state_dict(self) -> dict[str, Any]:
        """Return how many steps were trained on; those of a rollout that was only collected do not count."""
        task = None if self.trainer is None else self.trainer.lightning_module
        waiting = task.collected if isinstance(task, Learner) and not task.has_trained else None
        return {"env_steps": self.env_steps - (0 if waiting is None else waiting.new_steps)}

    def sample_name(self, split: Split, group: str, index: int) -> None:
        """Return nothing: the record of an episode has its number."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the count of a checkpoint.

        Raises:
            CheckpointError: It is not what :meth:`state_dict` returns.
        """
        env_steps = state_dict.get("env_steps") if isinstance(state_dict, dict) else None
        if type(env_steps) is not int or env_steps < 0:
            raise CheckpointError("The checkpoint is not one that rimlit wrote: Experience holds something else.")
        self.env_steps = env_steps


class Rollouts(IterableDataset[State]):
    """A rollout each time it is iterated over, in minibatches of whole environments.

    Args:
        data: The data module.
        first: Minibatches to skip in the first rollout.
    """

    def __init__(self, data: Experience, first: int = 0) -> None:
        self.data = data
        self.first = first
        self._player: Player | None = None
        self._batch: State | None = None
        self._skipped = 0

    def __iter__(self) -> Iterator[State]:
        """Collect a rollout and yield its minibatches, while the task accepts them."""
        data, actor = self.data, self.data.actor
        first, self.first = self.first, 0
        if self._batch is None or actor.has_trained:  # Lightning may ask twice for the batches of an epoch
            self._batch = self._collect(actor)
            self._skipped = first
        generator = np.random.default_rng((data.seed, rank_and_world_size()[0], data.env_steps))
        number = share_of(data.num_environments)
        order = np.concatenate([generator.permutation(number) for _ in range(data.num_passes)])
        minibatches = torch.split(torch.from_numpy(order), share_of(data.batch_size))
        for rows in minibatches[self._skipped :]:
            if not actor.accepts_minibatches:
                return
            yield select_environments(self._batch, rows)

    def _collect(self, actor: Learner) -> State:
        """Collect a rollout, count its steps, and return it as the task prepares it."""
        data = self.data
        if self._player is None:
            environments = data.environments_for("train", data.environment, share_of(data.num_environments))
            self._player = Player(environments, data.seed_for(split="train", count=data.env_steps))
        actor.begin_rollout()
        began = time.perf_counter()
        with actor.playing(share_of(data.num_environments)):
            rollout = self._player.collect(actor, data.rollout_length)
        seconds = time.perf_counter() - began
        new_steps = data.num_environments * data.rollout_length
        data.env_steps += new_steps
        actor.collected = Collected(data.env_steps, new_steps, seconds, list(self._player.ended))
        self._player.ended.clear()
        return actor.prepare(rollout)


class Episodes(IterableDataset[Evaluated | PlayedEpisode]):
    """Episodes in environments that training does not use, the same each time.

    Args:
        data: The data module.
        split: ``val``, ``test`` or ``predict``, which yields whole episodes.
        environment: The environment's id.
    """

    def __init__(self, data: Experience, split: Split, environment: str) -> None:
        self.data = data
        self.split = split
        self.environment = environment

    def __iter__(self) -> Iterator[Evaluated | PlayedEpisode]:
        """Play this process's share of the episodes."""
        data, actor = self.data, self.data.actor
        rank, world_size = rank_and_world_size()
        episodes = len(range(rank, data._episodes[self.split], world_size))
        if episodes == 0:
            return
        number = min(episodes, data.num_environments)
        quotas = [len(range(index, episodes, number)) for index in range(number)]
        group = (
            data.test_environments.index(self.environment)
            if self.split == "test" and data.test_environments
            else 0
        )
        environments = data.environments_for(self.split, self.environment, number)
        player = Player(environments, data.seed_for(split=self.split, group=group), greedy=actor.evaluate_greedily)
        played: Iterator[Evaluated | PlayedEpisode]
        if self.split == "predict":
            played = record_episodes(player, actor, quotas)
        else:
            played = evaluate(player, actor, quotas, data.rollout_length)
        while True:
            with actor.playing(number):
                piece = next(played, None)
            if piece is None:
                return
            yield piece


def select_environments(batch: State, rows: Tensor) -> State:
    """Return the rows (environments) of a batch at the indices ``rows``."""
    return map_state(lambda part: part[rows], batch)


def mean_return_of_random_actions(environments: Environments, seed: int, episodes: int) -> float:
    """Return the mean score of episodes of random actions in a single environment."""
    generator = np.random.default_rng(seed)
    environments.reset(seed)
    total, ended, steps = 0.0, 0, 0
    while ended < episodes:
        steps += 1
        require_end(environments, steps)
        step = environments.step(environments.random_actions(generator))
        total += float(step.scores[0])
        if step.ended[0]:
            ended, steps = ended + 1, 0
    return total / episodes
