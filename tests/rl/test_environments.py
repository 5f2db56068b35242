"""Environments stepped together: episodes follow each other without a gap, and a fault is named."""

import re
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest

from rimlit.errors import ConfigError, DataError
from rimlit.rl import make_environments
from rimlit.rl.environments import Environments
from tests.rl.corridor import CORRIDOR, FAULTY_REWARDS


def make(environment: str = CORRIDOR, number: int = 2, **options: Any) -> Environments:
    return make_environments(environment, number, options=options)


def test_the_next_episode_begins_in_the_step_that_ends_one() -> None:
    environments = make(length=3)
    assert environments.reset(0).tolist() == [[0, 0], [0, 0]]
    steps = [environments.step(np.array([0, 1])) for _ in range(4)]
    assert [step.observations[0].tolist() for step in steps] == [[1, 1], [2, 2], [0, 3], [1, 4]]
    assert [step.final_observations[0].tolist() for step in steps] == [[1, 1], [2, 2], [3, 3], [1, 4]]
    assert [step.ended.tolist() for step in steps] == [[False] * 2, [False] * 2, [True] * 2, [False] * 2]
    assert [step.scores[0] for step in steps] == [1, 2, 3, 4]


@pytest.mark.parametrize("is_cut", [False, True])
def test_termination_and_truncation_are_distinguished(is_cut: bool) -> None:
    environments = make(length=1, is_cut=is_cut)
    environments.reset(0)
    step = environments.step(np.array([0, 0]))
    assert step.truncated.tolist() == [is_cut] * 2
    assert step.terminated.tolist() == [not is_cut] * 2
    assert step.ended.all()


def test_choices_are_counted_from_0_whatever_the_environment_counts_from() -> None:
    environments = make()
    assert environments.num_actions == 2
    environments.reset(0)
    environments.step(np.array([0, 1]))
    assert [each.unwrapped.actions for each in environments._envs] == [[5], [6]]  # type: ignore[attr-defined]


def test_an_environment_is_limited_by_its_options() -> None:
    environments = make(length=100, max_episode_steps=2)
    environments.reset(0)
    steps = [environments.step(np.array([0, 0])) for _ in range(2)]
    assert [step.truncated.any() for step in steps] == [False, True]


def test_one_seed_repeats_and_two_differ() -> None:
    def play(seed: int) -> np.ndarray[Any, Any]:
        environments = make_environments("CartPole-v1", 3)
        first = environments.reset(seed)
        rest = [environments.step(np.array([1, 1, 0])).observations for _ in range(30)]  # over an end
        return np.stack([first, *rest])

    assert np.array_equal(play(1), play(1))
    assert not np.array_equal(play(1), play(10))
    assert len(np.unique(play(1)[0], axis=0)) == 3


def test_places_that_are_not_observed_are_left_out() -> None:
    whole, some = make_environments("CartPole-v1", 2), make_environments("CartPole-v1", 2, observed=[0, 2])
    assert some.observation_shape == (2,)
    assert np.array_equal(whole.reset(4)[:, [0, 2]], some.reset(4))
    for _ in range(20):
        full, part = (each.step(np.array([1, 0])) for each in (whole, some))
        assert np.array_equal(full.observations[:, [0, 2]], part.observations)
        assert np.array_equal(full.final_observations[:, [0, 2]], part.final_observations)


@pytest.mark.parametrize("observed", [[0], [0, 0]])
def test_what_is_left_out_may_be_anything(observed: list[int]) -> None:
    environments = make_environments(CORRIDOR, 2, observed=observed, options={"fault": "nan", "length": 4})
    environments.reset(0)
    for _ in range(5):  # over an end, at which the faulty observation is the final one
        step = environments.step(np.array([0, 0]))
    assert np.isfinite(step.observations).all()


@pytest.mark.parametrize("length", [4, 5])
def test_what_is_shown_must_be_finite(length: int) -> None:
    environments = make_environments(CORRIDOR, 2, observed=[1], options={"fault": "nan", "length": length})
    environments.reset(0)
    for _ in range(3):
        environments.step(np.array([0, 0]))
    with pytest.raises(DataError, match="environment 0 returned an observation of nan at step 4"):
        environments.step(np.array([0, 0]))


def test_continuous_actions_are_scaled_from_minus_1_and_1_and_clipped() -> None:
    environments = make_environments("Pendulum-v1", 3)
    assert (environments.action_size, environments.num_actions) == (1, None)
    environments.reset(0)
    environments.step(np.array([[0.25], [1.0], [7.0]], dtype=np.float32))
    torques = [each.unwrapped.last_u for each in environments._envs]  # type: ignore[attr-defined]
    assert torques == [0.5, 2.0, 2.0]


def test_choices_that_are_observed_become_vectors() -> None:
    environments = make_environments("Taxi-v4" if "Taxi-v4" in gymnasium.registry else "Taxi-v3", 2)
    observations = environments.reset(0)
    assert environments.observation_shape == (500,)
    assert observations.dtype == np.float32
    assert observations.sum(axis=1).tolist() == [1, 1]


class Careless(gymnasium.Env[Any, Any]):
    """Takes any numbers, and writes to the array it is given."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        action *= 10
        return action, 0.0, False, False, {}


def test_an_environment_that_writes_to_its_action_leaves_the_caller_s_as_it_is() -> None:
    environments = make(f"{__name__}.Careless")
    environments.reset(0)
    actions = np.array([[1], [2]], dtype=np.float32)
    assert environments.step(actions).observations.tolist() == [[10], [20]]
    assert actions.tolist() == [[1], [2]]


class Thermometer(gymnasium.Env[Any, Any]):
    """Shows a single number, in whole degrees."""

    observation_space = gymnasium.spaces.Box(0, 100, (), np.int64)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.array(7), {}

    def step(self, action: Any) -> Any:
        return np.array(8), 0.0, False, False, {}


def test_a_single_number_is_a_vector_of_one() -> None:
    environments = make(f"{__name__}.Thermometer")
    assert environments.reset(0).tolist() == [[7], [7]]
    assert environments.step(np.array([0, 1])).observations.dtype == np.float32


def test_an_unknown_id_is_answered_with_the_nearest_ones() -> None:
    with pytest.raises(ConfigError, match=r"environment='CartPol-v1' is neither .* Did you mean CartPole-v1"):
        make("CartPol-v1")


@pytest.mark.parametrize("name", ["os.path:CartPole-v1", "shutil.Class"])
def test_nothing_untrusted_is_imported(name: str) -> None:
    with pytest.raises(ConfigError, match="outside the trusted packages"):
        make(name)


def test_an_untrusted_wrapper_is_not_imported() -> None:
    with pytest.raises(ConfigError, match="outside the trusted packages"):
        make_environments("CartPole-v1", 1, wrappers=["os.path"])
    with pytest.raises(ConfigError, match=r"'gymnasium\.make' is not a wrapper"):
        make_environments("CartPole-v1", 1, wrappers=["gymnasium.make"])
    with pytest.raises(ConfigError, match=r"'gymnasium\.nowhere\.Wrapper' is not a wrapper"):
        make_environments("CartPole-v1", 1, wrappers=["gymnasium.nowhere.Wrapper"])


def test_a_wrapper_changes_what_is_observed() -> None:
    made = make_environments(
        "MiniGrid-DoorKey-5x5-v0", 1, wrappers=["minigrid.wrappers.ImgObsWrapper"], options={"max_steps": 9}
    )
    assert (made.observation_shape, made.observation_type) == ((7, 7, 3), np.uint8)


def test_an_option_that_is_not_one_is_named() -> None:
    with pytest.raises(ConfigError, match=r"CartPole-v1 with gravity=3: .*unexpected keyword"):
        make("CartPole-v1", gravity=3)


def test_observations_that_cannot_be_flattened_need_a_wrapper() -> None:
    with pytest.raises(ConfigError, match=r"cannot be flattened .*mission.* Name in wrappers"):
        make("MiniGrid-DoorKey-5x5-v0")


@pytest.mark.parametrize("observed", [[], [4], [-1]])
def test_a_place_that_is_none_is_refused(observed: list[int]) -> None:
    says = f"places of what CartPole-v1 shows, 0 to 3; got observed={observed}"
    with pytest.raises(ConfigError, match=re.escape(says)):
        make_environments("CartPole-v1", 1, observed=observed)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("raises", r"environment 1 raised at step 4: RuntimeError: the motor is hot\.$"),
        (
            "shape",
            r"environment 1 returned an observation of shape \(3,\) and type float32 at step 4; it .* \(2,\)",
        ),
        ("words", r"environment 1 returned an observation of shape \(2,\) and type <U4 at step 4; .* of numbers"),
        ("list", "environment 1 returned an observation of list at step 4"),
        ("tensor", r"environment 1 returned an observation of shape .* and type torch\.float32 at step 4"),
        ("nan", "environment 1 returned an observation of nan at step 4"),
        ("reward", "environment 1 returned a reward of inf at step 4"),
        ("reward of 16 bits", "environment 1 returned a reward of inf at step 4"),
        ("no number", "environment 1 returned a reward of nan at step 4"),
        ("large reward", r"environment 1 returned a reward of -1e\+300 at step 4"),
        (
            "reward in a list",
            r"environment 1 returned a reward of \[4\.0\] at step 4; it must be a finite number\.$",
        ),
        ("reward in an array", r"environment 1 returned a reward of array\(\[4\.\]\) at step 4; it must be"),
        ("no reward", "environment 1 returned a reward of None at step 4; it must be a finite number"),
        ("reward in words", "environment 1 returned a reward of '4' at step 4; it must be a finite number"),
        ("complex reward", r"environment 1 returned a reward of \(4\+0j\) at step 4; it must be a finite number"),
        (
            "complex reward in an array",
            r"environment 1 returned a reward of array\(4\.\+0\.j\) at step 4; it must be",
        ),
    ],
)
def test_a_fault_is_named_with_its_environment_and_step(fault: str, says: str) -> None:
    environments = make()
    environments._envs[1].unwrapped.fault = fault  # type: ignore[attr-defined]
    environments.reset(0)
    for _ in range(3):
        environments.step(np.array([0, 0]))
    with pytest.raises(DataError, match=says):
        environments.step(np.array([0, 0]))


@pytest.mark.parametrize(
    "reward",
    [4, np.int8(4), np.float16(4), np.float32(4), np.longdouble(4), np.array(4), np.array(4, np.float16)],
    ids=repr,
)
def test_a_reward_is_a_number_of_any_real_type(reward: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAULTY_REWARDS, "another type", reward)
    environments = make(fault="another type", at=1)
    environments.reset(0)
    assert environments.step(np.array([0, 0])).rewards.tolist() == [4, 4]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_one_number_that_is_not_finite_is_found_among_the_largest(kind: Any, value: float) -> None:
    environments = make()
    largest = np.full((2, 3), np.finfo(kind).max, kind)
    environments.require_finite(largest, 1)  # nor does numpy warn
    environments.require_finite(np.full((2, 3), 255, np.uint8), 1)
    for index in range(2):
        observations = largest.copy()
        observations[index, 2] = value
        with pytest.raises(DataError, match=f"environment {index} returned an observation of {value} at step 1"):
            environments.require_finite(observations, 1)


class Stuck(gymnasium.Env[Any, Any]):
    """Cannot be reset, nor made with ``is_broken``."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, is_broken: bool = False) -> None:
        if is_broken:
            raise RuntimeError("No motor.")

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        raise RuntimeError("No power.")


def test_a_reason_that_is_a_sentence_gets_no_second_full_stop() -> None:
    with pytest.raises(DataError, match=r"Stuck cannot be made: RuntimeError: No motor\.$"):
        make(f"{__name__}.Stuck", is_broken=True)
    with pytest.raises(DataError, match=r"environment 0 raised in its reset after step 0: .*: No power\.$"):
        make(f"{__name__}.Stuck").reset(0)


def test_a_missing_extra_is_answered_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ConfigError, match=r"needs gymnasium: pip install 'gymnasium.*pip install '\.\[rl\]'"):
        make("CartPole-v1")
