"""Actions of several parts, dictionaries as slots, values of info, wrappers with arguments, own vectors."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Categorical as Reference

from rimlit.errors import ConfigError, DataError
from rimlit.rl import Experience, SlotEncoder, make_environments
from rimlit.rl.environments import Environments
from rimlit.rl.experience import mean_return_of_random_actions
from rimlit.rl.gym import take_actions
from rimlit.rl.policies import MultiCategorical
from rimlit.tasks import Task
from tests.rl.corridor import CORRIDOR, make_experience, make_task
from tests.rl.quadrants import COUNTERS, OWN, QUADRANTS, SCALED
from tests.tasks.running import make_trainer, quiet

pytestmark = quiet


def make(environment: str = QUADRANTS, number: int = 2, **arguments: Any) -> Environments:
    return make_environments(environment, number, **arguments)


# Actions of several parts


def test_a_policy_of_several_parts_is_one_of_independent_choices() -> None:
    policy, logits = (
        MultiCategorical([2, 3]),
        torch.tensor([[0.0, 1.0, 0.5, -1.0, 2.0], [1.0, 0.0, 3.0, 0.0, 0.0]]),
    )
    actions = torch.tensor([[1, 2], [0, 1]])
    parts = [Reference(logits=logits[:, :2]), Reference(logits=logits[:, 2:])]
    expected = sum(part.log_prob(each) for part, each in zip(parts, actions.unbind(-1), strict=True))
    assert torch.allclose(policy.log_prob(logits, actions), torch.as_tensor(expected))
    assert torch.allclose(policy.entropy(logits), torch.as_tensor(sum(part.entropy() for part in parts)))
    drawn = policy.sample(logits.repeat(4000, 1), torch.Generator().manual_seed(0))
    assert drawn.shape == (8000, 2)
    share = (drawn[::2, 1] == 2).float().mean().item()
    assert share == pytest.approx(parts[1].probs[0, 2].item(), abs=0.03)
    assert policy.mode(logits).tolist() == [[1, 2], [0, 0]]


def test_parts_are_counted_from_0_whatever_the_environment_counts_from() -> None:
    environments = make()
    assert (environments.num_choices, environments.num_actions, environments.action_shape) == ((2, 3), None, (2,))
    environments.reset(0)
    environments.step(np.array([[0, 1], [1, 2]]))
    assert [each.unwrapped.actions for each in environments._envs] == [[[0, 5]], [[1, 6]]]  # type: ignore[attr-defined]
    drawn = np.stack([environments.random_actions(np.random.default_rng(seed)) for seed in range(50)])
    assert drawn.max(axis=(0, 1)).tolist() == [1, 2] and drawn.min() == 0


def test_switches_are_parts_of_two_choices() -> None:
    environments = make()
    environments.num_choices = None
    assert take_actions(environments, spaces.MultiBinary([2, 3])) == 0
    assert environments.num_choices == (2,) * 6
    with pytest.raises(ConfigError, match=r"takes actions of a kind that PPOTask does not support: Text"):
        take_actions(environments, spaces.Text(3))


# Values of info


def test_values_of_info_are_read_where_an_episode_ends() -> None:
    environments = make(info_keys=["is_success", "nested.right"])
    environments.reset(0)
    steps = [environments.step(np.array([[0, 0], [1, 1]])) for _ in range(3)]
    assert all(np.isnan(step.infos).all() for step in steps[:2])  # type: ignore[arg-type]
    assert steps[2].infos is not None and steps[2].infos[:, 1].tolist() == [
        sum(step.rewards[index] for step in steps) for index in range(2)
    ]


def test_info_that_lacks_a_value_ends_the_run_by_name() -> None:
    environments = make(info_keys=["is_success"], options={"lacks_info": True})
    environments.reset(0)
    actions = np.zeros((2, 2), np.int64)
    environments.step(actions)
    environments.step(actions)
    with pytest.raises(DataError, match=r"environment 0 ended an episode at step 3 without a number 'is_success'"):
        environments.step(actions)


def test_a_run_logs_the_share_of_successes_and_learns_from_actions_of_several_parts(tmp_path: Path) -> None:
    options: dict[str, Any] = {"info_keys": ["is_success", "nested.right"], "total_steps": 160}
    data = make_experience(QUADRANTS, **options)
    assert (data.num_choices, data.num_actions, data.observation_shape) == ([2, 3], None, [5])
    torch.manual_seed(0)
    task = make_task(data, num_choices=data.num_choices, info_keys=data.info_keys)
    trainer = make_trainer(tmp_path, max_epochs=-1, max_steps=-1)
    trainer.fit(task, datamodule=data)
    logged = trainer.callback_metrics
    for stage in ("train", "val"):
        assert 0 <= logged[f"{stage}/is_success"] <= 1
        assert logged[f"{stage}/nested_right"] == pytest.approx(logged[f"{stage}/episode_return"].item())
    trainer.test(task, datamodule=data, verbose=False)
    assert "test/is_success" in trainer.callback_metrics
    batch = next(iter(data.train_dataloader()))
    assert batch.actions.shape == (2, 10, 2)
    again = task.policy.log_prob(task(batch.inputs, batch.state)[0][..., :-1], batch.actions)
    assert torch.allclose(again, batch.log_probs, atol=1e-5)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded: Any = Task.load_from_checkpoint(tmp_path / "a.ckpt")
    assert list(loaded.metrics()) == ["episode_return", "episode_length", "is_success", "nested_right"]


# Dictionaries as slots


def test_the_entries_of_a_dictionary_become_slots(tmp_path: Path) -> None:
    environments = make(has_slots=True)
    assert environments.observation_shape == (2, 3)
    shown = environments.reset(0)
    assert np.abs(shown[:, 0, :2]).tolist() == [[1, 1]] * 2 and (shown[:, 0, 2] == 0).all()
    assert shown[:, 1].tolist() == [[1, 0, 0]] * 2
    data = make_experience(QUADRANTS, has_slots=True)
    torch.manual_seed(0)
    task = make_task(
        data, num_choices=data.num_choices, encoder=partial(SlotEncoder, output_size=6), previous="slot"
    )
    with torch.no_grad():
        seen = next(iter(_batches(task, data, tmp_path))).inputs
        assert task.encoder(seen).shape == (2, 10, 3, 6)


def _batches(task: Any, data: Experience, folder: Path) -> Any:
    trainer = make_trainer(folder, max_epochs=-1, limit_val_batches=0)
    trainer.fit(task, datamodule=data)
    return data.train_dataloader()


def test_slots_need_a_dictionary_and_their_encoder_needs_slots() -> None:
    with pytest.raises(
        ConfigError, match=r"has_slots=True needs a dictionary or tuple of observations; there is Box"
    ):
        make(CORRIDOR, has_slots=True)
    with pytest.raises(ConfigError, match=r"SlotEncoder reads slots .* got observation_shape=\[4\]"):
        SlotEncoder([4])


# Wrappers with arguments


def test_a_wrapper_takes_arguments() -> None:
    scaled = {"class_path": SCALED, "init_args": {"factor": 3.0}}
    environments = make(wrappers=[scaled, "gymnasium.wrappers.RecordEpisodeStatistics"])
    environments.reset(0)
    rewards = [environments.step(np.array([[row, column]] * 2)).rewards for row in (0, 1) for column in (0, 1, 0)]
    assert {float(reward) for step in rewards for reward in step} == {0.0, 3.0}
    limited = make(CORRIDOR, wrappers=[{"class_path": "TimeLimit", "init_args": {"max_episode_steps": 2}}])
    limited.reset(0)
    limited.step(np.zeros(2, np.int64))
    assert limited.step(np.zeros(2, np.int64)).truncated.all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"class_path": SCALED, "init_args": {"size": 3}}, r"wrappers: Scaled\(size=3\): .*unexpected keyword"),
        ({"class_path": "os.system"}, "outside the trusted packages"),
        ({"name": SCALED}, r"wrappers must have the keys class_path and init_args; got \['name'\]"),
        ({"class_path": "TimeLimits"}, "is not a wrapper of gymnasium. Did you mean TimeLimit"),
    ],
)
def test_a_wrapper_that_does_not_exist_or_takes_other_arguments_is_one_line(
    given: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make(wrappers=[given])


def test_wrappers_with_arguments_are_kept_in_a_checkpoint(tmp_path: Path) -> None:
    scaled = {"class_path": "gymnasium.wrappers.ClipReward", "init_args": {"min_reward": 0.0, "max_reward": 2.0}}
    data = make_experience(wrappers=[scaled])
    task = make_task(data)
    trainer = make_trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    trainer.fit(task, datamodule=data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    Task.load_from_checkpoint(tmp_path / "a.ckpt")
    assert data.spec["init_args"]["wrappers"] == [scaled]


# A user's vector


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_a_vector_of_a_user_s_begins_the_next_episode_in_the_step_that_ends_one(mode: str) -> None:
    environments = make(COUNTERS, 2, options={"autoreset_mode": mode}, info_keys=["length"])
    assert environments.reset(3).tolist() == [[0, 0], [0, 1]]
    steps = [environments.step(np.array([0, 1])) for _ in range(4)]
    assert [step.observations[:, 0].tolist() for step in steps] == [[1, 1], [0, 2], [1, 0], [0, 1]]
    assert [step.final_observations[:, 0].tolist() for step in steps] == [[1, 1], [2, 2], [1, 3], [2, 1]]
    assert [step.ended.tolist() for step in steps] == [[False] * 2, [True, False], [False, True], [True, False]]
    assert [step.rewards.tolist() for step in steps] == [[1, 1], [2, 2], [1, 3], [2, 1]]
    assert steps[1].infos is not None and np.nan_to_num(steps[1].infos)[:, 0].tolist() == [2, 0]
    assert steps[2].infos is not None and np.nan_to_num(steps[2].infos)[:, 0].tolist() == [0, 3]


def test_actions_of_a_vector_are_scaled_to_their_bounds() -> None:
    environments = make(COUNTERS, 3, options={"is_continuous": True}, observed=[1])
    assert environments.reset(0).tolist() == [[0], [1], [2]]
    environments.step(np.array([[-1.0], [0.5], [9.0]], np.float32))
    assert environments._vector.actions == [[[-3.0], [0.0], [1.0]]]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        (
            {"autoreset_mode": "NextStep"},
            ConfigError,
            "must begin the next episode in the step that ends one.*NEXT_STEP",
        ),
        ({"speed": 3}, ConfigError, "Counters with num_envs=2.*speed=3: .*unexpected keyword"),
        ({"fault": "rewards"}, DataError, r"rewards at step 2 must be float32 of shape \(2,\)"),
        ({"fault": "nan"}, DataError, "environment 1 returned rewards that are not finite at step 2"),
        ({"fault": "raises"}, DataError, "raised at step 2: RuntimeError: the motor is hot"),
        ({"fault": "no finals"}, DataError, "environment 0 ended an episode at step 2 without final_obs"),
    ],
)
def test_a_vector_that_does_not_fit_is_one_line(
    options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    def run() -> None:
        environments = make(COUNTERS, 2, options={key: value for key, value in options.items() if key != "fault"})
        environments.reset(0)
        environments.step(np.zeros(2, np.int64))
        environments._vector.fault = options.get("fault", "")  # type: ignore[attr-defined]
        environments.step(np.zeros(2, np.int64))

    with pytest.raises(kind, match=words):
        run()


def test_environments_of_rimlit_s_contract_may_be_a_user_s() -> None:
    environments = make(OWN, 3, options={"length": 4}, info_keys=["right"])
    assert environments.num_environments == 3 and environments.reset(0).shape == (3, 1)
    assert mean_return_of_random_actions(make(OWN, 1, info_keys=["right"]), 0, 3) > 0
    with pytest.raises(
        ConfigError, match=r"takes no wrappers, observed and has_slots; got wrappers=\[\], observed=\[0\]"
    ):
        make(OWN, observed=[0])
    with pytest.raises(
        ConfigError, match=r"has the info_keys \['right'\], which its class sets; got info_keys=\[\]"
    ):
        make(OWN)


def test_a_run_learns_in_a_user_s_vector(tmp_path: Path) -> None:
    data = make_experience(COUNTERS, info_keys=["length"], test_episodes=4)
    task = make_task(data, "LSTM", info_keys=data.info_keys)
    trainer = make_trainer(tmp_path, max_epochs=-1, max_steps=-1, limit_val_batches=0)
    trainer.fit(task, datamodule=data)
    trainer.test(task, datamodule=data, verbose=False)
    scores = trainer.callback_metrics
    assert scores["test/length"] == scores["test/episode_length"]
