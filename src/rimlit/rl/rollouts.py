"""Run a policy in environments: collect rollouts for training and score episodes for evaluation."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from rimlit.errors import DataError
from rimlit.rl.environments import Array, Environments, Step
from rimlit.rl.observations import PolicyInput
from rimlit.rl.policies import Policy
from rimlit.types import State, map_state, replace_state

LONGEST = 200_000
"""Steps of an evaluation without the end of an episode after which it is refused."""


class Actor(Protocol):
    """A recurrent policy and its value."""

    policy: Policy

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    def initial_state(self, batch_size: int) -> State:
        """Return the state an episode starts from."""

    def step(self, inputs: PolicyInput, state: State) -> tuple[Tensor, State]:
        """Return the policy's outputs and, last, the value (E, size + 1), and the state after a step.

        ``inputs`` (E, 1, …) are on the CPU and will be overwritten: no returned tensor may share their memory.
        """


class Rollout(NamedTuple):
    """T steps of E environments; minibatches are rows of it."""

    inputs: PolicyInput  # (E, T, …)
    state: State  # before the first step, where no episode starts
    actions: Tensor  # (E, T) or (E, T, size)
    log_probs: Tensor  # (E, T): of the actions, as they were drawn
    values: Tensor  # (E, T)
    next_values: Tensor  # (E, T): after each step; 0 where an episode terminated
    rewards: Tensor  # (E, T): those that are trained on
    breaks: Tensor  # (E, T) bool: an episode ended in this step, or terminated without an end (a lost life)


class Episode(NamedTuple):
    """An episode that has ended."""

    environment: int
    score: float  # the sum of its scores
    length: int  # steps
    infos: tuple[float, ...] = ()  # values of info in its last step


class Collected(NamedTuple):
    """Cost and yield of collecting a rollout."""

    env_steps: int  # of all environments of all processes since the run began
    new_steps: int  # of these in this rollout
    seconds: float
    episodes: list[Episode]  # that ended in it, of this process


class PlayedStep(NamedTuple):
    """One step of E environments. Its arrays are not overwritten later."""

    outputs: Tensor  # (E, size + 1): the policy's and, last, the value
    actions: Array  # (E,) or (E, size)
    step: Step


class StepBuffer:
    """Up to T consecutive steps of E environments: the policy's input before each step and after the last.

    The arrays are filled in place, step by step, and the policy reads views of them: creating and joining arrays
    of single steps takes longer.

    Args:
        environments: Environments, E of them.
        num_steps: Steps T, at least 1.
    """

    def __init__(self, environments: Environments, num_steps: int) -> None:
        rows = (num_steps + 1, environments.num_environments)
        self.num_steps = num_steps
        # row t is the input of step t: its action, reward and ends are those of step t − 1
        self.observations = np.zeros((*rows, *environments.observation_shape), environments.observation_type)
        self.actions: Array = np.zeros((*rows, *environments.action_shape), environments.action_type)
        self.rewards = np.zeros(rows, np.float32)
        self.scores = np.zeros(rows, np.float32)
        self._ends = np.zeros((3, *rows), bool)
        self.starts, self.terminated, self.truncated = self._ends
        self.parts = self.observations, self.actions, self.rewards, self.starts
        with torch.inference_mode(False):
            views = (torch.from_numpy(part).unsqueeze(2).unbind() for part in self.parts)
            self.inputs = [PolicyInput(*parts) for parts in zip(*views, strict=True)]
            """Each row as the policy's input, (E, 1, …)."""

    def begin(self, first: Sequence[Array]) -> None:
        """Copy ``first``, a row of the ``parts`` of this or another buffer, to row 0 and clear the ends."""
        for part, row in zip(self.parts, first, strict=True):
            part[0] = row
        self._ends[:, 1:] = False

    def write(self, row: int, actions: Array, step: Step) -> bool:
        """Write ``actions`` and their results to a row; return whether an episode ended."""
        self.observations[row] = step.observations
        self.actions[row] = actions
        self.rewards[row] = step.rewards
        self.scores[row] = step.scores
        has_ended = bool(np.count_nonzero(step.ended))
        if has_ended or np.count_nonzero(step.terminated):  # reading is faster than writing
            self.starts[row] = step.ended
            self.terminated[row] = step.terminated
            self.truncated[row] = step.truncated
        return has_ended

    def first_inputs(self, num_steps: int) -> PolicyInput:
        """Return a copy of the inputs of the first steps, (E, T, …)."""
        return PolicyInput(*(environments_first(part[:num_steps]) for part in self.parts))


def environments_first(array: Array) -> Tensor:
    """Return a copy of an array (T, E, …) as a tensor (E, T, …)."""
    return torch.from_numpy(array.swapaxes(0, 1).copy())


class Player:
    """Steps environments with an actor and keeps the score of every running episode.

    Args:
        environments: Environments, E of them.
        seed: Of the environments and of the actions that are drawn, at least 0.
        greedy: Whether the most likely actions are taken instead of drawing them.
    """

    def __init__(self, environments: Environments, seed: int, *, greedy: bool = False) -> None:
        self.environments = environments
        self.greedy = greedy
        self.ended: list[Episode] = []
        """Episodes in the order in which they ended; the caller clears it."""
        self.state: State = None
        self._seed = seed
        self._generator: torch.Generator | None = None
        self._buffer = StepBuffer(environments, 1)
        self._buffer.observations[0] = environments.reset(seed)
        self._buffer.starts[0] = True
        self._row = 0
        self._has_new_episodes = False
        # of each running episode: the row it starts in, and its score and length before this buffer
        self._firsts = [0] * environments.num_environments
        self._scores = [0.0] * environments.num_environments
        self._lengths = [0] * environments.num_environments

    def begin(self, num_steps: int) -> None:
        """Start a new buffer of ``num_steps`` steps with the current inputs."""
        old, row = self._buffer, self._row
        for index in range(self.environments.num_environments):
            self._scores[index], self._lengths[index] = self._running_totals(index)
            self._firsts[index] = 0
        if num_steps != old.num_steps:
            self._buffer = StepBuffer(self.environments, num_steps)
        self._buffer.begin([part[row] for part in old.parts])
        self._row = 0

    def _running_totals(self, index: int) -> tuple[float, int]:
        """Return the score and the length of the running episode of an environment."""
        first, row = self._firsts[index], self._row
        scores = self._buffer.scores[first + 1 : row + 1, index].tolist()
        return sum(scores, self._scores[index]), self._lengths[index] + row - first

    @property
    def observations(self) -> Array:
        """Current observations, (E, …)."""
        now: Array = self._buffer.observations[self._row].copy()
        return now

    @property
    def inputs(self) -> PolicyInput:
        """Inputs of the steps in the buffer, (E, T, …)."""
        return self._buffer.first_inputs(self._row)

    @torch.no_grad()
    def play(self, actor: Actor) -> PlayedStep:
        """Take one step in every environment, in a new buffer where this one is full."""
        if self._row == self._buffer.num_steps:
            self.begin(self._buffer.num_steps)
        return self._play(actor, actor.policy)

    def _play(self, actor: Actor, policy: Policy) -> PlayedStep:
        if self._generator is None:
            self._generator = torch.Generator(actor.device).manual_seed(self._seed)
        if self._has_new_episodes or self.state is None:
            self._reset_states(actor)
        outputs, self.state = actor.step(self._buffer.inputs[self._row], self.state)
        numbers = outputs.narrow(1, 0, policy.size)
        drawn = policy.mode(numbers) if self.greedy else policy.sample(numbers, self._generator)
        actions = drawn.numpy(force=True)
        step = self.environments.step(actions)
        self._row += 1
        if self._buffer.write(self._row, actions, step):
            self._has_new_episodes = True
            self._record_ends(step)
        return PlayedStep(outputs, actions, step)

    def _reset_states(self, actor: Actor) -> None:
        """Replace the state by the initial one where an episode starts."""
        initial = actor.initial_state(self.environments.num_environments)
        if self.state is None:
            self.state = initial
        elif self._has_new_episodes:
            starts = self._buffer.inputs[self._row].starts.to(actor.device)
            self.state = replace_state(self.state, initial, starts)
        self._has_new_episodes = False

    def _record_ends(self, step: Step) -> None:
        for index in step.ended.nonzero()[0].tolist():
            infos = () if step.infos is None else tuple(step.infos[index].tolist())
            self.ended.append(Episode(index, *self._running_totals(index), infos))
            self._firsts[index], self._scores[index], self._lengths[index] = self._row, 0.0, 0

    @torch.no_grad()
    def collect(self, actor: Actor, num_steps: int) -> Rollout:
        """Play ``num_steps`` steps, at least 1, and return them as a rollout."""
        self.begin(num_steps)
        self._reset_states(actor)
        policy, state = actor.policy, self.state
        outputs: list[Tensor] = []
        final_values: list[tuple[int, Tensor]] = []
        for index in range(num_steps):
            played = self._play(actor, policy)
            outputs.append(played.outputs)
            if self._has_new_episodes and np.count_nonzero(played.step.truncated):
                final_values.append((index, self._final_values(actor, played.step)))
        self._reset_states(actor)
        last = actor.step(self._buffer.inputs[num_steps], self.state)[0][:, -1]
        with torch.inference_mode(False), torch.no_grad():  # it is trained on
            return build_rollout(self._buffer, outputs, final_values, last, state, policy)

    def _final_values(self, actor: Actor, step: Step) -> Tensor:
        """Return the values of the final observations of the last step, before any new episode."""
        begun = self._buffer.inputs[self._row]
        final = torch.from_numpy(step.final_observations.copy()).unsqueeze(1)  # the array may be read-only
        inputs = begun._replace(observations=final, starts=torch.zeros_like(begun.starts))
        return actor.step(inputs, self.state)[0][:, -1]


def build_rollout(
    buffer: StepBuffer,
    outputs: list[Tensor],
    final_values: list[tuple[int, Tensor]],
    last: Tensor,
    state: State,
    policy: Policy,
) -> Rollout:
    """Make a rollout, on the CPU, of a full buffer.

    Args:
        buffer: Inputs, actions and their results.
        outputs: Outputs of the actor at each step, (E, size + 1) each.
        final_values: Steps in which episodes were truncated, and the values (E,) of their final observations.
        last: Values (E,) after the last step.
        state: State before the first step.
        policy: Policy that drew the actions.
    """
    actions, rewards = environments_first(buffer.actions[1:]), environments_first(buffer.rewards[1:])
    terminated, truncated = environments_first(buffer.terminated[1:]), environments_first(buffer.truncated[1:])
    whole = torch.stack(outputs, dim=1)
    log_probs = policy.log_prob(whole[..., :-1], actions.to(whole.device)).cpu()
    values = whole[..., -1].cpu()
    next_values = torch.cat([values[:, 1:], last.cpu()[:, None]], dim=1)
    for index, finals in final_values:
        next_values[:, index] = torch.where(truncated[:, index], finals.cpu(), next_values[:, index])
    return Rollout(
        inputs=buffer.first_inputs(buffer.num_steps),
        state=map_state(lambda part: part.clone().cpu(), state),
        actions=actions,
        log_probs=log_probs,
        values=values,
        next_values=next_values.masked_fill(terminated, 0),
        rewards=rewards,
        breaks=terminated | truncated,
    )


class Evaluated(NamedTuple):
    """Consecutive steps of the episodes of an evaluation."""

    inputs: PolicyInput  # (E, T, …)
    state: State  # before the first step, where no episode starts
    mask: Tensor  # (E, T) bool: steps of episodes that count
    scores: Tensor  # (n,): of the episodes that ended in these steps
    lengths: Tensor  # (n,): number of their steps
    infos: Tensor  # (n, I): values of info in their last steps


class PlayedEpisode(NamedTuple):
    """A whole episode, T steps."""

    environment: str
    number: int
    observations: Tensor  # (T, …): before each action
    actions: Tensor  # (T,) or (T, size)
    scores: Tensor  # (T,)
    final_observation: Tensor  # (…): after the last action
    is_cut: bool  # the episode was truncated before its end


def require_end(environments: Environments, steps: int) -> None:
    """Raise a DataError where none of the evaluated episodes has ended in ``LONGEST`` steps."""
    if steps > LONGEST:
        raise DataError(
            f"{environments.name}: no episode has ended in {LONGEST:,} steps of an evaluation. Cut episodes off "
            "by options.max_episode_steps."
        )


def play_quotas(
    player: Player, actor: Actor, quotas: list[int]
) -> Iterator[tuple[PlayedStep, Array, list[Episode]]]:
    """Play until each environment has finished its quota of episodes.

    Counting the first episodes that end, of whatever environment, would favour short ones.

    Yields:
        Each step, the environments (E,) whose quota was still open, and the episodes of them that ended in it.
    """
    left = np.array(quotas)
    steps = 0
    while (left > 0).any():
        counts = left > 0
        steps += 1
        require_end(player.environments, steps)
        player.ended.clear()
        played = player.play(actor)
        ended = [episode for episode in player.ended if counts[episode.environment]]
        for episode in ended:
            left[episode.environment] -= 1
            steps = 0
        yield played, counts, ended


def evaluate(player: Player, actor: Actor, quotas: list[int], num_steps: int) -> Iterator[Evaluated]:
    """Play each environment's quota of episodes.

    Yields:
        At most ``num_steps`` steps at a time.
    """
    steps = play_quotas(player, actor, quotas)
    while True:
        state = actor.initial_state(len(quotas)) if player.state is None else player.state
        state = map_state(torch.clone, state)
        player.begin(num_steps)
        piece = list(itertools.islice(steps, num_steps))
        if not piece:
            return
        ended = [episode for _, _, episodes in piece for episode in episodes]
        yield Evaluated(
            player.inputs,
            state,
            environments_first(np.stack([counts for _, counts, _ in piece])),
            torch.tensor([episode.score for episode in ended]),
            torch.tensor([episode.length for episode in ended]),
            torch.tensor([episode.infos for episode in ended]).view(
                len(ended), len(player.environments.info_keys)
            ),
        )


def record_episodes(player: Player, actor: Actor, quotas: list[int]) -> Iterator[PlayedEpisode]:
    """Play each environment's quota of episodes.

    Yields:
        Whole episodes, in the order in which they end.
    """
    name, number = player.environments.name, 0
    open_steps: list[list[tuple[Array, Array, float]]] = [[] for _ in quotas]
    before = player.observations
    for played, counts, ended in play_quotas(player, actor, quotas):
        for index in counts.nonzero()[0].tolist():
            acted = before[index], played.actions[index]
            open_steps[index].append((*acted, float(played.step.scores[index])))
        before = played.step.observations
        for episode in ended:
            index = episode.environment
            observations, actions, scores = zip(*open_steps[index], strict=True)
            yield PlayedEpisode(
                name,
                number,
                torch.from_numpy(np.stack(observations)),
                torch.from_numpy(np.stack(actions)),
                torch.tensor(scores),
                torch.from_numpy(np.array(played.step.final_observations[index])),
                bool(played.step.truncated[index] and not played.step.terminated[index]),
            )
            open_steps[index] = []
            number += 1
