"""Atari: each trap of the vector environment, in games that are really played."""

import itertools
import sys
from typing import Any

import numpy as np
import pytest
import torch

from rimlit.errors import ConfigError
from rimlit.rl import PPOTask, Step, make_environments
from rimlit.rl.environments import Environments
from rimlit.rl.rollouts import Player
from tests.rl.corridor import BACKBONES


def make(game: str = "Breakout", number: int = 2, **options: Any) -> Environments:
    return make_environments(f"ALE/{game}-v5", number, options={"repeat_action_probability": 0, **options})


def play(environments: Environments, steps: int, *, seed: int = 3) -> list[Step]:
    """Steps of the same random actions whatever is played, after a reset."""
    environments.reset(seed)
    assert environments.num_actions is not None
    choose = np.random.default_rng(0)
    shape = environments.num_environments
    return [environments.step(choose.integers(0, environments.num_actions, shape)) for _ in range(steps)]


def test_screens_are_bytes_and_actions_those_of_the_game() -> None:
    breakout, pong = make("Breakout", 1), make("Pong", 2)
    assert (breakout.num_actions, pong.num_actions) == (4, 6)
    for environments in (breakout, pong):
        observations = environments.reset(0)
        assert observations.dtype == environments.observation_type == np.uint8
        assert observations.shape == (environments.num_environments, 4, 84, 84)
        assert environments.observation_shape == (4, 84, 84)


def test_a_lost_life_terminates_and_the_game_continues() -> None:
    steps = play(make(), 130)
    terminated, ended = (np.stack([getattr(step, name) for step in steps]) for name in ("terminated", "ended"))
    # five lives: four are lost before the one with which the game ends
    first_end = int(ended[:, 0].argmax())
    assert ended[:, 0].sum() == 1
    assert terminated[: first_end + 1, 0].sum() == 5
    assert terminated[first_end, 0]
    assert not np.stack([step.truncated for step in steps]).any()


def test_what_follows_a_lost_life_is_the_next_screen_of_the_same_game() -> None:
    import ale_py.vector_env
    from gymnasium.vector import AutoresetMode

    without = ale_py.vector_env.AtariVectorEnv(
        "breakout", 2, autoreset_mode=AutoresetMode.SAME_STEP, reward_clipping=False, num_threads=1
    )
    without.reset(seed=3)
    choose = np.random.default_rng(0)
    lost = 0
    for step in play(make(), 130):
        observations, rewards, game_over, *_ = without.step(choose.integers(0, 4, 2))
        assert np.array_equal(step.observations, observations)
        assert np.array_equal(step.scores, rewards)
        assert np.array_equal(step.ended, game_over)
        lives = step.terminated & ~step.ended
        lost += int(lives.sum())
        # not what happened to be in memory
        assert np.array_equal(step.final_observations[lives], step.observations[lives])
    assert lost > 4
    without.close()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_replaying_a_rollout_over_a_lost_life_gives_the_same_log_probabilities_and_values(backbone: str) -> None:
    encoder = {"class_path": "rimlit.encoders.ScreenEncoder", "init_args": {"output_size": 16}}
    environments = make()
    arguments = (BACKBONES[backbone], environments.observation_shape, environments.num_actions)
    task = PPOTask(*arguments, encoder=encoder)
    player = Player(environments, 3)
    with task.playing(2):
        rollout = player.collect(task, 60)
    # a life ends, and the state is kept
    lost = rollout.breaks[:, :-1] & ~rollout.inputs.starts[:, 1:]
    assert lost.any()
    assert not rollout.next_values[:, :-1][lost].any()
    outputs, _ = task(rollout.inputs, rollout.state)
    log_probs = task.policy.log_prob(outputs[..., :-1], rollout.actions)
    assert (log_probs - rollout.log_probs).abs().max() < 1e-5
    assert (outputs[..., -1] - rollout.values).abs().max() < 1e-5


def test_a_truncated_game_returns_its_last_screen_and_restarts_in_the_same_step() -> None:
    whole, cut = play(make(), 12), play(make(max_episode_steps=10), 12)
    ended = np.stack([step.ended for step in cut])
    assert np.array_equal(ended, np.stack([step.truncated for step in cut]))
    assert ended.any(axis=1).nonzero()[0].tolist() == [9] and ended[9].all(), "no-ops at the start do not count"
    final, began, uncut = cut[9].final_observations, cut[9].observations, whole[9].observations
    assert np.array_equal(final[:, :3], uncut[:, :3])
    # ale-py does not pool the very last screen, in which a flickering ball differs
    assert (final != uncut).mean() < 0.001 < 0.1 < (began != uncut).mean()
    # no step of an episode is a dummy: each returns a new screen
    assert all(not np.array_equal(a.observations, b.observations) for a, b in itertools.pairwise(cut))


def test_rewards_are_cut_for_learning_and_scores_are_not() -> None:
    scores, rewards = (
        np.stack([getattr(step, name) for step in play(make("BeamRider", 2), 112)])
        for name in ("scores", "rewards")
    )
    assert scores.max() == 44  # a ship
    assert rewards.max() == 1
    assert np.array_equal(rewards, np.sign(scores))
    assert rewards.dtype == scores.dtype == np.float32


def test_one_seed_repeats_and_two_differ() -> None:
    def screens(environments: Environments, seed: int) -> np.ndarray[Any, Any]:
        environments.reset(seed)
        return np.stack([environments.step(np.full(2, 2 + i % 2)).observations for i in range(8)])

    one, other, sticky = make(), make(), make(repeat_action_probability=0.25)
    fives = screens(one, 5)
    assert np.array_equal(fives, screens(other, 5))
    sixes = screens(one, 6)
    assert not np.array_equal(fives, sixes)
    assert np.array_equal(fives[:, 1], sixes[:, 0]), "seed + 1"
    assert np.array_equal(fives, screens(one, 5)), "whatever was played before"
    assert np.array_equal(screens(sticky, 5), screens(sticky, 5))
    assert not np.array_equal(screens(sticky, 5), fives)


def test_a_seed_may_be_larger_than_ale_py_takes() -> None:
    environments = make("Pong", 1)
    assert np.array_equal(environments.reset(2**31 + 4), environments.reset(4))


def test_an_id_means_what_it_is_registered_with() -> None:
    def last(**options: Any) -> np.ndarray[Any, Any]:
        environments = make_environments("ALE/Pong-v5", 1, options=options)
        return play(environments, 8)[-1].observations

    as_registered = last()
    assert np.array_equal(as_registered, last(repeat_action_probability=0.25))
    assert not np.array_equal(as_registered, last(repeat_action_probability=0))


def test_the_screen_of_the_first_game_can_be_shown() -> None:
    environments = make("Pong", 1)
    assert environments.render() is None
    (*_, last) = play(environments, 3)
    picture = environments.render()
    assert picture is not None and picture.shape == (84, 84, 3)
    assert np.array_equal(picture[..., 1], last.observations[0, -1])
    environments.close()


def test_games_take_as_many_threads_as_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    import ale_py.vector_env

    given: list[int] = []
    made = ale_py.vector_env.AtariVectorEnv

    def spy(**options: Any) -> Any:
        given.append(options["num_threads"])
        return made(**options)

    monkeypatch.setattr(ale_py.vector_env, "AtariVectorEnv", spy)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    make(number=1)
    make(number=1, num_threads=2)
    assert given == [3, 2]


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        ("ALE/Pongg-v5", {}, r"environment='ALE/Pongg-v5' is not a game .* Did you mean ALE/Pong-v5"),
        ("ALE/?", {}, r"There are 1\d\d, such as ALE/Pong-v5"),
        ("ALE/Pong-v5", {"frame_skip": 4}, "ALE/Pong-v5 has no option 'frame_skip'. Did you mean frameskip"),
        ("ALE/Pong-v5", {"episodic_life": True}, "has no option 'episodic_life'"),
        ("ALE/Pong-v5", {"frameskip": 0}, "ALE/Pong-v5 with frameskip=0: .*must be positive"),
    ],
)
def test_an_unknown_game_or_option_is_answered_with_known_ones(
    environment: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_environments(environment, 2, options=options)


@pytest.mark.parametrize(
    ("environment", "game"),
    [("Pong", "Pong"), ("PongNoFrameskip-v4", "Pong"), ("spaceinvadersDeterministic-v0", "SpaceInvaders")],
)
def test_a_game_by_a_name_of_old_is_answered_with_its_id(
    monkeypatch: pytest.MonkeyPatch, environment: str, game: str
) -> None:
    monkeypatch.setattr("rimlit.rl.gym.registry", {})  # ale-py knows these names once it is imported
    with pytest.raises(
        ConfigError, match=rf"environment='{environment}' is neither .* Did you mean ALE/{game}-v5\?"
    ):
        make_environments(environment, 1)
    monkeypatch.setattr("rimlit.rl.gym.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"nor the dotted path of a class\.$"):
        make_environments(environment, 1)


def test_wrappers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"takes no wrappers .*got wrappers=\['a.B'\], observed=None"):
        make_environments("ALE/Pong-v5", 2, wrappers=["a.B"])


def test_a_missing_extra_is_answered_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ConfigError, match=r"needs ale_py: pip install .*'ale-py.*pip install '\.\[atari\]'"):
        make_environments("ALE/Pong-v5", 2)
