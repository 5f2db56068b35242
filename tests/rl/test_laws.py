"""The laws of recurrent reinforcement learning, on every backbone where a law concerns one."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rimlit.backbones import RIM, Backbone
from rimlit.rl import PPOTask, Step, VectorEncoder, make_environments
from rimlit.rl.advantages import estimate_advantages
from rimlit.rl.observations import PolicyInput
from rimlit.rl.policies import Categorical
from rimlit.rl.rollouts import Episode, Player, Rollout
from rimlit.spec import path_of
from rimlit.types import GRUState, State, flat_state, map_state
from tests.conftest import random_tensor
from tests.laws.backbone_cases import HIDDEN_SIZE, VARIANTS, backbone_classes, nested
from tests.rl.corridor import CORRIDOR, make_experience, make_task

STEPS = 24


def without_dropout(cls: type[Backbone], arguments: dict[str, Any]) -> dict[str, Any]:
    names = ("input_dropout", "communication_dropout", "dropout")
    taken = cls.__init__.__kwdefaults__ or {}
    dropouts = {name: 0.0 for name in names if name in taken}
    return {"class_path": path_of(cls), "init_args": {"hidden_size": HIDDEN_SIZE, **nested(arguments), **dropouts}}


CASES = [
    pytest.param(without_dropout(cls, arguments), id=f"{cls.__name__}-{name}")
    for cls in backbone_classes()
    for name, arguments in {"default": {}, **VARIANTS.get(cls.__name__, {})}.items()
    if name != "unattended" or cls is not RIM  # reads one vector of a width that does not matter here
]
RIMS = [case for case in CASES if str(case.id).startswith("RIM")]


def rollout_of(task: PPOTask, environment: str = "CartPole-v1", seed: int = 3, **options: Any) -> Rollout:
    """A rollout in which episodes end, by a fall or a cut."""
    options.setdefault("options", {"max_episode_steps": 20})
    player = Player(make_environments(environment, 3, **options), seed)
    with task.playing(3):  # as training collects
        player.collect(task, 5)  # so that the next rollout begins in the middle of episodes
        return player.collect(task, STEPS)


def task_for(backbone: Any, environment: str = "CartPole-v1", **arguments: Any) -> PPOTask:
    return make_task(make_experience(environment), backbone, **{"normalize_observations": True, **arguments})


def replay(task: PPOTask, rollout: Rollout) -> tuple[Tensor, Tensor]:
    outputs, _ = task(rollout.inputs, rollout.state)
    return task.policy.log_prob(outputs[..., :-1], rollout.actions), outputs[..., -1]


@pytest.mark.parametrize("backbone", CASES)
def test_replaying_a_rollout_gives_the_same_log_probabilities_and_values(backbone: Any) -> None:
    task = task_for(backbone)
    rollout = rollout_of(task)
    assert rollout.breaks.any(dim=1).all()
    assert not rollout.inputs.starts[:, 0].all()
    log_probs, values = replay(task, rollout)
    assert (log_probs - rollout.log_probs).abs().max() < 1e-5
    assert (values - rollout.values).abs().max() < 1e-5


class Keeper(Backbone):
    """Gives the input before, which it keeps as it is."""

    def __init__(self, input_size: int, *, hidden_size: int) -> None:
        super().__init__()
        self.input_size = self.output_size = input_size

    def initial_state(self, batch_size: int) -> State:
        return GRUState(torch.zeros(batch_size, self.input_size))

    def forward(
        self, inputs: Tensor, state: State | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, State]:
        first = self.initial_state(len(inputs)) if state is None else state
        before = torch.cat([first.hidden.unsqueeze(1), inputs[:, :-1]], dim=1)
        if resets is not None:
            before = before.masked_fill(resets.unsqueeze(-1), 0)
        return before, GRUState(inputs[:, -1])


def test_a_backbone_may_keep_the_observation_it_reads() -> None:
    plain = partial(VectorEncoder, hidden_sizes=())
    task = task_for(without_dropout(Keeper, {}), normalize_observations=False, encoder=plain)
    rollout = rollout_of(task)
    log_probs, values = replay(task, rollout)
    assert (log_probs - rollout.log_probs).abs().max() < 1e-5
    assert (values - rollout.values).abs().max() < 1e-5


@pytest.mark.parametrize("previous", ["concatenated", "slot"])
@pytest.mark.parametrize("environment", ["CartPole-v1", "Pendulum-v1"])
def test_replaying_gives_the_same_with_the_previous_action_and_reward(environment: str, previous: str) -> None:
    task = task_for("RIM", environment, previous=previous)
    rollout = rollout_of(task, environment, options={"max_episode_steps": 7})
    log_probs, values = replay(task, rollout)
    assert (log_probs - rollout.log_probs).abs().max() < 1e-5
    assert (values - rollout.values).abs().max() < 1e-5


def test_replaying_is_no_law_where_the_state_is_not_replaced() -> None:
    task = task_for("LSTM")
    rollout = rollout_of(task)
    never = rollout.inputs._replace(starts=torch.zeros_like(rollout.inputs.starts))
    log_probs, _ = replay(task, rollout._replace(inputs=never))
    assert (log_probs - rollout.log_probs).abs().max() > 1e-5


@pytest.mark.parametrize("all_active", [False, True])
@pytest.mark.parametrize("backbone", RIMS)
def test_every_active_mechanism_gets_a_gradient(backbone: Any, all_active: bool) -> None:
    arguments = backbone["init_args"]
    if all_active:
        arguments = {**arguments, "num_active": arguments.get("num_mechanisms", 6)}
    task = task_for({**backbone, "init_args": arguments})
    rim = task.backbone
    assert isinstance(rim, RIM)
    batch = task.prepare(rollout_of(task))
    with rim.record_activity() as activities:
        outputs, _ = task(batch.inputs, batch.state)
    task.loss(outputs, batch).backward()
    for layer, activity in enumerate(activities):
        active = activity.active.flatten(0, 1).any(dim=0)
        assert active.sum() >= rim.num_active
        for name, parameter in rim.layers[layer].named_parameters():
            assert parameter.grad is not None, name
            if parameter.shape[0] == rim.num_mechanisms > 1:
                moves = parameter.grad.reshape(rim.num_mechanisms, -1).abs().amax(dim=1) > 0
                assert moves[active].all(), f"{name} of mechanism {(~moves & active).nonzero().flatten().tolist()}"
        if all_active:
            assert active.all()
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name


class Counter:
    """An actor whose state counts the steps since an episode began, and whose value is that count."""

    policy = Categorical(2)
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.met: list[Tensor] = []

    def initial_state(self, batch_size: int) -> State:
        return (torch.zeros(batch_size, 1),)

    def step(self, inputs: PolicyInput, state: State) -> tuple[Tensor, State]:
        self.met.append(inputs.observations[:, 0, 0] - state[0][:, 0])
        return torch.cat([torch.zeros(len(state[0]), 2), state[0] + 100], dim=1), (state[0] + 1,)


@pytest.mark.parametrize("is_cut", [False, True])
def test_states_are_reset_exactly_where_episodes_start(is_cut: bool) -> None:
    player = Player(make_experience(options={"length": 3, "is_cut": is_cut}).make(CORRIDOR, 2), 0)
    actor = Counter()
    rollouts = [player.collect(actor, steps) for steps in (4, 5)]
    # the corridor shows how many steps of the episode are done: what the state counts
    assert all((difference == 0).all() for difference in actor.met)
    starts = torch.cat([rollout.inputs.starts for rollout in rollouts], dim=1)
    assert starts[0].tolist() == [step % 3 == 0 for step in range(9)]
    assert rollouts[1].state[0].flatten().tolist() == [1, 1]


def test_a_rollout_stays_as_it_is_while_the_next_one_is_collected() -> None:
    task = task_for("LSTM")
    player = Player(make_environments("CartPole-v1", 3), 3)
    with task.playing(3):
        rollout = player.collect(task, STEPS)
        before = map_state(torch.clone, rollout)
        player.collect(task, STEPS)
    assert all(torch.equal(a, b) for a, b in zip(flat_state(rollout), flat_state(before), strict=True))


def test_arrays_of_environments_may_be_read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    environments = make_experience(options={"length": 3, "is_cut": True}).make(CORRIDOR, 2)
    answer = environments.step

    def step(actions: Any) -> Step:
        answered = answer(actions)
        for array in answered[:-1]:  # there are no values of info
            array.flags.writeable = False
        return answered

    monkeypatch.setattr(environments, "step", step)
    rollout = Player(environments, 0).collect(Counter(), 7)
    assert rollout.breaks[0].nonzero().flatten().tolist() == [2, 5]
    assert rollout.next_values[0].tolist() == [101, 102, 103, 101, 102, 103, 101]


def test_scores_and_lengths_are_of_whole_episodes_however_short_the_rollouts() -> None:
    player = Player(make_experience(options={"length": 7}).make(CORRIDOR, 2), 0)
    for steps in (4, 1, 1, 9, 3, 3):  # the last one ends with an episode
        player.collect(Counter(), steps)
    scores = [sum(range(first, first + 7)) for first in (1, 8, 15)]  # the reward is the number of steps in all
    assert player.ended == [Episode(index, score, 7) for score in scores for index in range(2)]


def test_training_resets_states_where_collecting_did() -> None:
    task = task_for("LSTM")
    rollout = rollout_of(task)
    first = rollout.breaks[0].nonzero()[0].item() + 1
    assert rollout.inputs.starts[0, first]
    outputs, _ = task(rollout.inputs, rollout.state)
    rest, _ = task(PolicyInput(*(part[:1, first:] for part in rollout.inputs)), task.initial_state(1))
    torch.testing.assert_close(outputs[:1, first:], rest)


def test_a_truncated_episode_bootstraps_and_a_terminated_one_does_not() -> None:
    found = {}
    for is_cut in (False, True):
        player = Player(make_experience(options={"length": 3, "is_cut": is_cut}).make(CORRIDOR, 1), 0)
        found[is_cut] = player.collect(Counter(), 7).next_values[0].tolist()
    # values are 100 and the steps of the episode that are done: the final observation of 3 has 103
    assert found[False] == [101, 102, 0, 101, 102, 0, 101]
    assert found[True] == [101, 102, 103, 101, 102, 103, 101]


def test_advantages_equal_a_slow_reference() -> None:
    rewards, values, next_values = (random_tensor(3, 17, seed=seed, dtype=torch.float64) for seed in range(3))
    breaks = random_tensor(3, 17, seed=3) > 1
    assert breaks.any(dim=1).all()
    discount, trace = 0.9, 0.7
    expected = torch.zeros_like(rewards)
    for row in range(3):
        for step in range(17):
            weight = 1.0
            for later in range(step, 17):
                error = rewards[row, later] + discount * next_values[row, later] - values[row, later]
                expected[row, step] += weight * error
                weight *= discount * trace
                if breaks[row, later]:
                    break
    found = estimate_advantages(rewards, values, next_values, breaks, discount=discount, trace=trace)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_advantages_of_whole_traces_are_returns_less_values() -> None:
    player = Player(make_experience(options={"length": 3}).make(CORRIDOR, 1), 0)
    rollout = player.collect(Counter(), 6)
    found = estimate_advantages(
        rollout.rewards, rollout.values, rollout.next_values, rollout.breaks, discount=1.0, trace=1.0
    )
    returns = (found + rollout.values)[0].tolist()
    assert returns == [1 + 2 + 3, 2 + 3, 3, 4 + 5 + 6, 5 + 6, 6]


def test_one_seed_repeats_a_rollout_and_two_differ() -> None:
    task = task_for("RIM")
    first, again, other = (rollout_of(task, seed=seed) for seed in (1, 1, 8))
    assert torch.equal(first.inputs.observations, again.inputs.observations)
    assert torch.equal(first.actions, again.actions)
    assert not torch.equal(first.inputs.observations, other.inputs.observations)
    assert not torch.equal(first.actions, other.actions)


def test_environments_do_not_share_their_episodes() -> None:
    rollout = rollout_of(task_for("RIM"))
    observations = rollout.inputs.observations.flatten(1).numpy()
    assert len(np.unique(observations, axis=0)) == 3


def test_rows_of_a_rollout_are_trained_on_as_they_were_collected() -> None:
    task = task_for("RIM")
    rollout = rollout_of(task)
    batch = task.prepare(rollout)
    row = map_state(lambda part: part[1:2], batch)
    outputs, _ = task(row.inputs, row.state)
    log_probs = task.policy.log_prob(outputs[..., :-1], row.actions)
    assert (log_probs - rollout.log_probs[1:2]).abs().max() < 1e-5
