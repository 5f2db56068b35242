"""The data module: budgets, quotas of episodes, floors, checkpoints."""

import itertools
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from rimlit.errors import CheckpointError, ConfigError, DataError
from rimlit.pictures import MechanismActivity
from rimlit.rl import PPOTask
from rimlit.rl.acting import ActingTask
from rimlit.rl.experience import Episodes, Learner
from rimlit.rl.rollouts import Player, Rollout, evaluate, record_episodes
from tests.rl.corridor import CORRIDOR, make_experience, make_task
from tests.tasks.running import SMALL_LSTM, make_copying, make_copying_task, make_trainer, quiet

pytestmark = quiet


class Seeing(L.Callback):
    """Keep the batches, and what is logged after the last epoch."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.logged: dict[str, float] = {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.logged = {name: float(value) for name, value in trainer.callback_metrics.items()}


def fit(folder: Path, task: ActingTask, data: Any, **options: Any) -> tuple[L.Trainer, Seeing]:
    seeing = Seeing()
    defaults = {"max_steps": -1, "max_epochs": -1, "limit_val_batches": 0, "callbacks": [seeing]}
    trainer = make_trainer(folder, **{**defaults, **options})
    trainer.fit(task, datamodule=data)
    return trainer, seeing


def test_an_epoch_is_a_rollout_and_training_ends_with_the_budget(tmp_path: Path) -> None:
    data = make_experience(total_steps=100)  # 2½ rollouts: 3
    task = make_task(data)
    trainer, seeing = fit(tmp_path, task, data)
    assert data.env_steps == 120
    assert trainer.current_epoch == 3
    assert trainer.global_step == 3 * 2 * 2
    assert [len(batch.returns) for batch in seeing.batches] == [2] * 12
    assert seeing.batches[0].returns.shape == (2, 10)
    assert seeing.logged["train/env_steps"] == 120
    assert data.progress == (120, 120)


def test_every_environment_is_trained_on_once_in_a_pass(tmp_path: Path) -> None:
    data = make_experience("CartPole-v1", total_steps=40, num_passes=3)
    _, seeing = fit(tmp_path, make_task(data), data)
    firsts = [tuple(row) for batch in seeing.batches for row in batch.inputs.observations[:, 0].tolist()]
    passes = [set(firsts[start : start + 4]) for start in (0, 4, 8)]
    assert passes[0] == passes[1] == passes[2]
    assert len(passes[0]) == 4


def test_episodes_continue_from_a_rollout_to_the_next(tmp_path: Path) -> None:
    data = make_experience(options={"length": 7}, num_passes=1, batch_size=4)
    _, seeing = fit(tmp_path, make_task(data), data)
    shown = torch.cat([batch.inputs.observations[0, :, 0] for batch in seeing.batches])
    assert shown.tolist() == [step % 7 for step in range(20)]


def test_returns_and_times_of_a_rollout_are_logged(tmp_path: Path) -> None:
    data = make_experience(options={"length": 4}, total_steps=40)
    _, seeing = fit(tmp_path, make_task(data), data)
    logged = seeing.logged
    # two episodes of each environment: 1 + 2 + 3 + 4 and 5 + 6 + 7 + 8
    assert logged["train/episode_return"] == (10 + 26) / 2
    assert logged["train/episode_length"] == 4
    assert logged["train/env_steps"] == 40
    assert {"policy_loss", "value_loss", "entropy", "kl", "clip_fraction", "explained_variance"} <= {
        name.removeprefix("train/") for name in logged
    }


def test_steps_per_second_are_over_all_the_time_of_a_rollout(tmp_path: Path) -> None:
    class Dawdling(L.Callback):
        """Takes its time before each of the four batches, and counts it with neither collecting nor learning."""

        def on_train_batch_start(self, *_: Any) -> None:
            time.sleep(0.05)

    data = make_experience(total_steps=80)
    task = make_task(data)
    seeing = Seeing()
    began = time.perf_counter()
    fit(tmp_path, task, data, callbacks=[seeing, Dawdling()])
    whole = time.perf_counter() - began
    seconds = 40 / seeing.logged["train/env_steps_per_second"]  # of the second rollout
    parts = seeing.logged["train/collect_seconds"] + seeing.logged["train/learn_seconds"]
    assert parts + 4 * 0.05 <= seconds <= whole - 4 * 0.05


def test_one_seed_repeats_a_training_and_two_differ(tmp_path: Path) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(0)
        data = make_experience("CartPole-v1", seed=seed)
        task = make_task(data)
        fit(tmp_path, task, data)
        return torch.nn.utils.parameters_to_vector(task.parameters()).detach()

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_evaluation_plays_a_quota_of_each_environment_so_that_long_episodes_count(tmp_path: Path) -> None:
    data = make_experience("CartPole-v1", val_episodes=7, num_environments=4)
    task = make_task(data)
    player = Player(data.make("CartPole-v1", 4), 3)
    pieces = list(evaluate(player, task, [2, 2, 2, 1], 10))
    lengths = torch.cat([piece.lengths for piece in pieces])
    assert len(lengths) == 7
    assert torch.equal(torch.cat([piece.scores for piece in pieces]), lengths.float())  # a point for each step
    assert all(piece.mask.shape == piece.inputs.starts.shape for piece in pieces)
    assert sum(int(piece.mask.sum()) for piece in pieces) == lengths.sum()
    starts = sum(int((piece.inputs.starts & piece.mask).sum()) for piece in pieces)
    assert starts == 7


def test_replaying_the_steps_of_an_evaluation_gives_the_same_actions() -> None:
    data = make_experience("CartPole-v1")
    task = make_task(data)
    player = Player(data.make("CartPole-v1", 2), 3, greedy=True)
    pieces = list(evaluate(player, task, [1, 1], 4))
    assert len(pieces) > 1
    for piece, following in itertools.pairwise(pieces):
        outputs, state = task(piece.inputs, piece.state)
        chosen = task.policy.mode(outputs[..., :-1])
        assert torch.equal(chosen[:, :-1], piece.inputs.actions[:, 1:])
        torch.testing.assert_close(state, following.state)


def test_validation_is_scored_once_per_episode_and_shows_the_mechanisms(tmp_path: Path) -> None:
    data = make_experience(options={"length": 4}, val_episodes=5)
    task = make_task(data)
    activity = MechanismActivity(figure=False)
    trainer, _ = fit(tmp_path, task, data, limit_val_batches=1.0, callbacks=[Seeing(), activity])
    # 5 episodes in 4 environments made again: one of them has a second one
    assert trainer.callback_metrics["val/episode_length"] == 4
    assert trainer.callback_metrics["val/episode_return"] > 0
    shares = [float(trainer.callback_metrics[f"mechanisms/usage_{m}"]) for m in range(3)]
    assert sum(shares) == pytest.approx(2)
    assert int(activity._counters[""][0].steps) == 5 * 4


def test_returns_and_lengths_stay_apart_when_no_episode_ends_in_the_first_piece(tmp_path: Path) -> None:
    data = make_experience(options={"length": 15})  # pieces of 10 steps
    (scores,) = make_trainer(tmp_path).test(make_task(data), data, verbose=False)
    # four environments begin with 1 + … + 15, one continues with 16 + … + 30
    assert scores == {"test/episode_return": (4 * 120 + 345) / 5, "test/episode_length": 15}


def test_the_same_episodes_are_evaluated_each_time(tmp_path: Path) -> None:
    data = make_experience("CartPole-v1")
    task = make_task(data)
    trainer = make_trainer(tmp_path)
    scores = [trainer.validate(task, datamodule=data, verbose=False)[0]["val/episode_return"] for _ in range(2)]
    assert scores[0] == scores[1]


def test_an_evaluation_draws_actions_where_it_is_to(tmp_path: Path) -> None:
    def actions(*, greedily: bool) -> list[Any]:
        torch.manual_seed(0)
        data = make_experience(options={"length": 30})
        task = make_task(data, evaluate_greedily=greedily)
        answers = make_trainer(tmp_path).predict(task, datamodule=data)
        assert answers is not None
        drawn = []
        for line in (each for batch in answers for each in batch):
            with np.load(line["file"]) as episode:
                drawn.extend(episode["actions"].tolist())
        return drawn

    greedy, drawn = actions(greedily=True), actions(greedily=False)
    assert len(drawn) == 90
    assert 0.35 < np.mean(drawn) < 0.65  # a fresh policy has no preference
    assert drawn != greedy
    assert actions(greedily=False) == drawn


def test_several_environments_are_tested_by_name(tmp_path: Path) -> None:
    names = ["CartPole-v0", "CartPole-v1"]
    data = make_experience("CartPole-v1", test_environments=names, options={"max_episode_steps": 8})
    trainer = make_trainer(tmp_path, callbacks=[MechanismActivity(figure=False)])
    scores = trainer.test(make_task(data), datamodule=data, verbose=False)
    found = {name for each in scores for name in each}
    for name in names:
        shares = [float(trainer.callback_metrics[f"mechanisms/{name}/usage_{m}"]) for m in range(3)]
        assert sum(shares) == pytest.approx(2)
    assert {f"test/{name}/episode_return" for name in names} <= found
    assert set(data.floors()) == {f"{name}/episode_return" for name in names}


def test_the_floor_is_the_return_of_random_actions() -> None:
    data = make_experience(options={"length": 4}, floor_episodes=2)
    assert data.floors() == {"episode_return": (10 + 26) / 2}
    assert make_experience(floor_episodes=0).floors() == {}


def test_an_environment_of_another_kind_cannot_be_tested() -> None:
    data = make_experience("CartPole-v1", test_environments=["Pendulum-v1"])
    with pytest.raises(
        ConfigError, match=r"Pendulum-v1 is of another kind than CartPole-v1: .*\[\[3\], None, 1, None\]"
    ):
        data.setup("test")


def test_whole_episodes_are_recorded() -> None:
    data = make_experience(options={"length": 3})
    records = list(record_episodes(Player(data.make(CORRIDOR, 2), 0), make_task(data), [2, 1]))
    assert [each.number for each in records] == [0, 1, 2]
    first = records[0]
    assert first.observations.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert first.final_observation.tolist() == [3, 3]
    assert first.scores.tolist() == [1, 2, 3]
    assert len(first.actions) == 3
    assert not first.is_cut


def test_prediction_writes_episodes(tmp_path: Path) -> None:
    data = make_experience(options={"length": 3, "is_cut": True})
    answers = make_trainer(tmp_path).predict(make_task(data), datamodule=data)
    assert answers is not None
    records = [record for batch in answers for record in batch]
    assert [each["length"] for each in records] == [3, 3, 3]
    assert all(each["is_cut"] for each in records)
    assert Path(records[0]["file"]).parent == tmp_path / "episodes"
    with np.load(records[0]["file"]) as episode:
        assert episode["rewards"].sum() == records[0]["return"] == 6
        assert episode["observations"].shape == (3, 2)
        assert episode["final_observation"].tolist() == [3, 3]


def test_steps_are_counted_on_from_a_checkpoint() -> None:
    data = make_experience()
    data.load_state_dict({"env_steps": 120})
    assert data.state_dict() == {"env_steps": 120}
    first = make_experience().seed_for(split="train", count=0)
    assert data.seed_for(split="train", count=data.env_steps) != first


@pytest.mark.parametrize("state", [{}, {"env_steps": "many"}, {"env_steps": -1}, None])
def test_a_damaged_count_is_refused(state: Any) -> None:
    with pytest.raises(CheckpointError, match="Experience holds something else"):
        make_experience().load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"num_environments": 4, "batch_size": 3}, "num_environments=4, batch_size=3"),
        ({"num_environments": 0}, "num_environments must be at least 1; got num_environments=0"),
        ({"rollout_length": 0}, "rollout_length must be at least 1; got rollout_length=0"),
        ({"total_steps": 39}, "total_steps must be at least 40; got total_steps=39"),
        ({"val_episodes": 0}, "val_episodes must be at least 1"),
    ],
)
def test_a_value_out_of_its_range_is_named(arguments: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_experience(**arguments)


def test_environments_must_be_shared_evenly_by_processes() -> None:
    make_experience(batch_size=2).check_shares(2)
    with pytest.raises(ConfigError, match="got batch_size=2 with 4 processes"):
        make_experience(batch_size=2).check_shares(4)


def test_experience_is_for_policies_and_policies_for_experience(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Experience supplies a PPOTask.*; got CopyingTask"):
        make_trainer(tmp_path).fit(make_copying_task(), datamodule=make_experience())
    with pytest.raises(
        ConfigError, match="PPOTask needs observation_shape, which the data module does not declare"
    ):
        PPOTask(make_task(make_experience()).spec["init_args"]["backbone"], observation_shape=None)  # type: ignore
    assert not hasattr(make_copying(), "observation_shape")


class Reinforce(ActingTask):
    """Another algorithm: the log-probability of each action, weighted by its reward."""

    def __init__(self, backbone: Any, observation_shape: Any, num_actions: int) -> None:
        super().__init__(backbone, observation_shape, num_actions)
        self.has_trained = False
        self.collected: Any = None
        self.accepts_minibatches = True

    def begin_rollout(self) -> None:
        self.has_trained = False

    def prepare(self, rollout: Rollout) -> Rollout:
        return rollout

    def loss(self, outputs: torch.Tensor, batch: Rollout) -> torch.Tensor:
        return -(self.policy.log_prob(outputs[..., :-1], batch.actions) * batch.rewards).mean()

    def training_step(self, batch: Rollout, batch_index: int) -> torch.Tensor:
        self.has_trained = True
        return self.loss(self(batch.inputs, batch.state)[0], batch)


def test_experience_supplies_a_task_of_another_algorithm(tmp_path: Path) -> None:
    data = make_experience()
    task = Reinforce(SMALL_LSTM, data.observation_shape, 2)
    assert isinstance(task, Learner)
    before = next(task.backbone.parameters()).clone()
    _, seeing = fit(tmp_path, task, data)
    assert data.env_steps == 80
    assert [batch.rewards.shape for batch in seeing.batches] == [(2, 10)] * 8
    assert not torch.equal(next(task.backbone.parameters()), before)


def test_evaluation_says_which_split_it_is_of() -> None:
    data = make_experience()
    (dataset,) = data.datasets("test").values()
    assert isinstance(dataset, Episodes)
    assert (dataset.split, dataset.environment) == ("test", CORRIDOR)
    assert data.size_of(dataset) == 5


def test_an_evaluation_whose_episodes_never_end_asks_for_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rimlit.rl.rollouts.LONGEST", 50)
    data = make_experience(options={"length": 51})
    with pytest.raises(DataError, match=r"Corridor: no episode has ended in 50 steps .*max_episode_steps"):
        data.floors()
    data = make_experience(options={"length": 51}, floor_episodes=0)
    player = Player(data.make(CORRIDOR, 2), 0)
    with pytest.raises(DataError, match="no episode has ended"):
        list(evaluate(player, make_task(data), [1, 1], 10))
    assert make_experience(options={"length": 50}).floors() == {"episode_return": 1275 + 50 * 50 / 2}
