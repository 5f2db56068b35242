"""Playing a policy in environments: what training collects and what evaluation scores."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from rimlit.errors import DataError
from rimlit.rl.environments import Array, Environments, Step
from rimlit.rl.observations import Seen
from rimlit.rl.policies import Policy
from rimlit.types import State, map_state, replace_state

LONGEST = 200_000
"""Steps of an evaluation in which an episode must have ended."""


class Actor(Protocol):
    """What is played: a recurrent policy with a value beside its outputs."""

    policy: Policy

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def initial_state(self, batch_size: int) -> State:
        """Return the state an episode starts from."""

    def step(self, seen: Seen, state: State) -> tuple[Tensor, State]:
        """Return outputs and, last, the value (E, size + 1), and the state after a step, ``seen`` (E, 1, …).

        The next step writes over ``seen``: nothing that is returned may lie in its memory.
        """


class Rollout(NamedTuple):
    """What E environments gave in T steps; batches of training are rows of it."""

    seen: Seen  # (E, T, …)
    state: State  # before the first step, where no episode starts
    actions: Tensor  # (E, T) or (E, T, size)
    log_probs: Tensor  # (E, T): of the actions, as they were drawn
    values: Tensor  # (E, T)
    next_values: Tensor  # (E, T): after each step; 0 where an episode terminated
    rewards: Tensor  # (E, T): what is learnt from
    breaks: Tensor  # (E, T) bool: an episode, or what counts as one, ended in this step


class Episode(NamedTuple):
    """An episode that has ended."""

    environment: int
    score: float  # the sum of its scores
    length: int  # steps


class Played(NamedTuple):
    """One step of E environments. Nothing writes to it later."""

    seen: tuple[Array, ...]  # the parts of Seen, (E, …) each
    outputs: Tensor  # (E, size + 1): the policy's and, last, the value
    actions: Array  # (E,) or (E, size)
    step: Step


class Player:
    """Plays in environments and remembers how each episode stands.

    Args:
        environments: Environments, E of them.
        seed: Of the environments and of the actions that are drawn, at least 0.
        greedy: Whether it takes the likeliest actions instead of drawing them.
    """

    def __init__(self, environments: Environments, seed: int, *, greedy: bool = False) -> None:
        self.environments = environments
        self.greedy = greedy
        self.ended: list[Episode] = []
        """Episodes in the order in which they ended; for the caller to empty."""
        self.state: State = None
        number = environments.num_environments
        self._seed = seed
        self._generator: torch.Generator | None = None
        size = environments.action_size
        actions: Array = np.zeros(number, np.int64) if size is None else np.zeros((number, size), np.float32)
        self._seen = environments.reset(seed), actions, np.zeros(number, np.float32), np.ones(number, bool)
        # written anew in every step: new tensors would cost more than a layer does
        self._tensors = Seen(*(torch.from_numpy(part[:, None].copy()) for part in self._seen))
        self._written = [tensor.numpy()[:, 0] for tensor in self._tensors]
        self._starts_anew = False
        self._scores: Array = np.zeros(number)
        self._steps = 0
        self._began: Array = np.zeros(number, np.int64)

    @torch.no_grad()
    def play(self, actor: Actor) -> Played:
        """Take one step in every environment."""
        return self._play(actor)

    def _play(self, actor: Actor) -> Played:
        if self._generator is None:
            self._generator = torch.Generator(actor.device).manual_seed(self._seed)
        self._begin(actor)
        seen = self._seen
        outputs, self.state = actor.step(self._shown(actor, seen), self.state)
        policy = actor.policy
        numbers = outputs.narrow(1, 0, policy.size)
        drawn = policy.mode(numbers) if self.greedy else policy.sample(numbers, self._generator)
        actions = drawn.numpy(force=True)
        step = self.environments.step(actions)
        self._seen = step.observations, actions, step.rewards, step.ended
        self._scores += step.scores
        self._steps += 1
        if np.count_nonzero(step.ended):
            self._starts_anew = True
            self._note_ends(step.ended)
        return Played(seen, outputs, actions, step)

    def _begin(self, actor: Actor) -> None:
        """Put the initial state where an episode starts."""
        if self.state is None:
            self.state = actor.initial_state(self.environments.num_environments)
        elif self._starts_anew:
            self._starts_anew = False
            initial = actor.initial_state(self.environments.num_environments)
            self.state = replace_state(self.state, initial, torch.from_numpy(self._seen[3]).to(actor.device))

    def _shown(self, actor: Actor, seen: tuple[Array, ...]) -> Seen:
        """Return ``seen`` as the actor takes it, (E, 1, …), until the next call."""
        for written, part in zip(self._written, seen, strict=True):
            written[...] = part
        device = actor.device
        return self._tensors if device.type == "cpu" else Seen(*(part.to(device) for part in self._tensors))

    def _note_ends(self, ended: Array) -> None:
        for index in ended.nonzero()[0].tolist():
            self.ended.append(Episode(index, float(self._scores[index]), self._steps - int(self._began[index])))
            self._scores[index], self._began[index] = 0, self._steps

    @torch.no_grad()
    def collect(self, actor: Actor, num_steps: int) -> Rollout:
        """Play ``num_steps`` steps, at least 1, and keep what can be learnt from them."""
        self._begin(actor)
        state = self.state
        plays = []
        next_values: list[Tensor | None] = []
        for _ in range(num_steps):
            played = self._play(actor)
            plays.append(played)
            is_cut = np.count_nonzero(played.step.truncated)
            next_values.append(self._final_values(actor, played.step) if is_cut else None)
        self._begin(actor)
        last = actor.step(self._shown(actor, self._seen), self.state)[0][:, -1]
        with torch.inference_mode(False), torch.no_grad():  # it is learnt from
            return joined(plays, next_values, last, state, actor.policy)

    def _final_values(self, actor: Actor, step: Step) -> Tensor:
        """Return the values of what the last step led to, before any new episode."""
        _, actions, rewards, ended = self._seen
        seen = step.final_observations, actions, rewards, np.zeros_like(ended)
        return actor.step(self._shown(actor, seen), self.state)[0][:, -1]


def joined(
    plays: list[Played], final_values: list[Tensor | None], last: Tensor, state: State, policy: Policy
) -> Rollout:
    """Put the steps of a rollout side by side, on the CPU."""
    seen = seen_in(plays)
    steps = [played.step for played in plays]
    outputs = torch.cat([played.outputs for played in plays]).view(len(plays), len(last), -1).transpose(0, 1)
    actions = side_by_side([played.actions for played in plays])
    log_probs = policy.log_prob(outputs[..., :-1], actions.to(outputs.device)).cpu()
    values = outputs[..., -1].cpu()
    terminated = side_by_side([step.terminated for step in steps])
    truncated = side_by_side([step.truncated for step in steps])
    next_values = torch.cat([values[:, 1:], last.cpu()[:, None]], dim=1)
    for index, finals in enumerate(final_values):
        if finals is not None:
            next_values[:, index] = torch.where(truncated[:, index], finals.cpu(), next_values[:, index])
    return Rollout(
        seen=seen,
        state=map_state(lambda part: part.clone().cpu(), state),
        actions=actions,
        log_probs=log_probs,
        values=values,
        next_values=next_values.masked_fill(terminated, 0),
        rewards=side_by_side([step.rewards for step in steps]),
        breaks=terminated | truncated,
    )


def seen_in(plays: list[Played]) -> Seen:
    """Return what was seen in steps, (E, T, …), on the CPU."""
    return Seen(*(side_by_side(parts) for parts in zip(*(played.seen for played in plays), strict=True)))


def side_by_side(arrays: Sequence[Array]) -> Tensor:
    """Return arrays (E, …) of T steps as a tensor (E, T, …)."""
    joint = np.concatenate(arrays).reshape(len(arrays), *arrays[0].shape)
    return torch.from_numpy(np.ascontiguousarray(joint.swapaxes(0, 1)))


class Evaluated(NamedTuple):
    """A piece of the episodes that are evaluated."""

    seen: Seen  # (E, T, …)
    state: State  # before the first step, where no episode starts
    mask: Tensor  # (E, T) bool: steps of episodes that count
    scores: Tensor  # (n,): of the episodes that ended in it
    lengths: Tensor  # (n,): their steps


class Record(NamedTuple):
    """A whole episode, T steps."""

    environment: str
    number: int
    observations: Tensor  # (T, …): what was acted on
    actions: Tensor  # (T,) or (T, size)
    scores: Tensor  # (T,)
    final_observation: Tensor  # (…): what the last step led to
    is_cut: bool  # the episode was truncated and had not ended


def require_end(environments: Environments, steps: int) -> None:
    """Raise a DataError where none of the evaluated episodes has ended in ``LONGEST`` steps."""
    if steps > LONGEST:
        raise DataError(
            f"{environments.name}: no episode has ended in {LONGEST:,} steps of an evaluation. Cut episodes off "
            "by options.max_episode_steps."
        )


def play_quotas(player: Player, actor: Actor, quotas: list[int]) -> Iterator[tuple[Played, Array, list[Episode]]]:
    """Play until each environment has ended its quota of episodes, so that short episodes count no more than long.

    Yields:
        Each step, which environments it counts in (E,), and the episodes that count and ended in it.
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
        Pieces of at most ``num_steps`` steps.
    """
    steps = play_quotas(player, actor, quotas)
    while True:
        state = actor.initial_state(len(quotas)) if player.state is None else player.state
        state = map_state(torch.clone, state)
        piece = list(itertools.islice(steps, num_steps))
        if not piece:
            return
        ended = [episode for _, _, episodes in piece for episode in episodes]
        yield Evaluated(
            seen_in([played for played, _, _ in piece]),
            state,
            side_by_side([counts for _, counts, _ in piece]),
            torch.tensor([episode.score for episode in ended]),
            torch.tensor([episode.length for episode in ended]),
        )


def record(player: Player, actor: Actor, quotas: list[int]) -> Iterator[Record]:
    """Play each environment's quota of episodes.

    Yields:
        Each whole, in the order in which they end.
    """
    name, number = player.environments.name, 0
    open_steps: list[list[tuple[Array, Array, float]]] = [[] for _ in quotas]
    for played, counts, ended in play_quotas(player, actor, quotas):
        for index in counts.nonzero()[0].tolist():
            acted = played.seen[0][index], played.actions[index]
            open_steps[index].append((*acted, float(played.step.scores[index])))
        for episode in ended:
            index = episode.environment
            observations, actions, scores = zip(*open_steps[index], strict=True)
            yield Record(
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
