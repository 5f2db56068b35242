"""The PPO task: its inputs, its loss, and when training on a rollout stops."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from rimlit.encoders import Identity
from rimlit.errors import ConfigError
from rimlit.rl import PPOTask, VectorEncoder
from rimlit.rl.observations import Normalization, PolicyEncoder, PolicyInput
from rimlit.rl.policies import Categorical, Gaussian
from rimlit.rl.ppo import Minibatch
from rimlit.rl.rollouts import Player
from tests.conftest import counting_tensor, random_tensor
from tests.rl.corridor import make_experience, make_task
from tests.tasks.running import SMALL_LSTM, SMALL_RIM, make_trainer, quiet

pytestmark = quiet


def make(**arguments: Any) -> PPOTask:
    return PPOTask(SMALL_LSTM, **{"observation_shape": [2], "num_actions": 2, **arguments})


def inputs_of(observations: torch.Tensor) -> PolicyInput:
    """Inputs (B, T, …) in the middle of an episode, after the action 1 and the reward 1 in every step."""
    ones = torch.ones(observations.shape[:2])
    return PolicyInput(observations, ones.long(), ones, torch.zeros_like(ones).bool())


def minibatch(**parts: Any) -> Minibatch:
    """One environment of two steps, in which everything is equal to the old policy's."""
    whole = {
        "inputs": None,
        "state": None,
        "actions": torch.tensor([[0, 1]]),
        "log_probs": torch.tensor([[math.log(0.5), math.log(0.5)]]),
        "values": torch.tensor([[1.0, 1.0]]),
        "advantages": torch.tensor([[1.0, -1.0]]),
        "returns": torch.tensor([[2.0, 4.0]]),
    }
    return Minibatch(**{**whole, **parts})


def outputs_for(probability: float, value: float) -> torch.Tensor:
    """Outputs with a probability of the first of two actions, in both steps."""
    logits = [math.log(probability), math.log(1 - probability)]
    return torch.tensor([[[*logits, value], [*logits, value]]])


def test_the_loss_is_that_of_the_paper() -> None:
    losses = make(clip=0.2, value_weight=0.5, entropy_weight=0.1).losses(outputs_for(0.7, 3.0), minibatch())
    # ratios .7/.5 = 1.4 with a gain of 1, clipped to 1.2; .3/.5 = .6 with a gain of −1, clipped to −.8
    entropy = -0.7 * math.log(0.7) - 0.3 * math.log(0.3)
    assert losses.policy_loss.item() == pytest.approx(-(1.2 - 0.8) / 2)
    assert losses.value_loss.item() == pytest.approx((1 + 1) / 2 / 2)
    assert losses.entropy.item() == pytest.approx(entropy)
    assert losses.clip_fraction.item() == 1
    assert losses.kl.item() == pytest.approx(((0.4 - math.log(1.4)) + (-0.4 - math.log(0.6))) / 2)
    expected = losses.policy_loss + 0.5 * losses.value_loss - 0.1 * losses.entropy
    assert losses.loss.item() == pytest.approx(expected.item())


def test_a_ratio_beyond_the_clip_has_no_gradient_where_it_gained() -> None:
    outputs = outputs_for(0.7, 3.0).requires_grad_()
    make(clip=0.2, value_weight=0, entropy_weight=0).loss(outputs, minibatch()).backward()
    assert outputs.grad is not None
    assert not outputs.grad.any()
    outputs = outputs_for(0.55, 3.0).requires_grad_()
    make(clip=0.2, value_weight=0, entropy_weight=0).loss(outputs, minibatch()).backward()
    assert outputs.grad is not None
    assert outputs.grad[..., :2].all()


@pytest.mark.parametrize(("value_clip", "error"), [(None, (1 + 1) / 2), (0.5, (1 + 6.25) / 2)])
def test_a_value_gains_nothing_from_leaving_the_old_one_too_far(value_clip: float | None, error: float) -> None:
    losses = make(value_clip=value_clip).losses(outputs_for(0.5, 3.0), minibatch())
    # without: (3 − 2)² and (3 − 4)²; with: 1 + .5 is what counts, (1.5 − 2)² < 1 and (1.5 − 4)² = 6.25
    assert 2 * losses.value_loss.item() == pytest.approx(error)


def test_log_probabilities_and_entropies_are_torch_s() -> None:
    logits, means = random_tensor(3, 4, 5), random_tensor(3, 4, 5)
    actions = torch.arange(12).view(3, 4) % 5
    categorical = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(Categorical(5).log_prob(logits, actions), categorical.log_prob(actions))
    torch.testing.assert_close(Categorical(5).entropy(logits), categorical.entropy())
    gaussian = Gaussian(5)
    nn.init.constant_(gaussian.log_deviation, 0.3)
    normal = torch.distributions.Normal(means, math.exp(0.3))
    taken = random_tensor(3, 4, 5, seed=2)
    torch.testing.assert_close(gaussian.log_prob(means, taken), normal.log_prob(taken).sum(-1))
    torch.testing.assert_close(gaussian.entropy(means), normal.entropy().sum(-1))


@pytest.mark.parametrize(("policy", "outputs"), [(Categorical(2), [[2.0, 0.0]]), (Gaussian(2), [[1.0, -1.0]])])
def test_actions_are_drawn_as_often_as_they_are_likely(policy: Any, outputs: list[list[float]]) -> None:
    rows = torch.tensor(outputs).expand(4000, -1)
    with torch.no_grad():
        drawn = policy.sample(rows, torch.Generator().manual_seed(0))
    expected = rows[0].softmax(-1) if isinstance(policy, Categorical) else rows[0]
    assert policy.encode(drawn).mean(dim=0).tolist() == pytest.approx(expected.tolist(), abs=0.05)


def test_the_scale_is_constant_while_a_rollout_is_trained_on() -> None:
    scale = Normalization([2])
    observations = counting_tensor(3, 4, 2) * 10
    scale.add(observations)
    assert torch.equal(scale(observations), observations)
    scale.update_scale()
    rows = scale(observations).flatten(0, 1)
    assert rows.mean(dim=0).tolist() == pytest.approx([0, 0], abs=1e-5)
    assert rows.std(dim=0, correction=0).tolist() == pytest.approx([1, 1], abs=1e-5)
    scale.add(observations + 100)  # two batches count as one
    scale.update_scale()
    both = scale(torch.cat([observations, observations + 100])).flatten(0, 1)
    assert both.std(dim=0, correction=0).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert scale(torch.full((1, 1, 2), 1e6)).flatten().tolist() == [10, 10]


@pytest.mark.parametrize("previous", ["hidden", "concatenated", "slot"])
def test_the_previous_action_and_reward_are_read_except_where_an_episode_starts(previous: Any) -> None:
    encoder = PolicyEncoder(Identity(2), Categorical(3), previous, None)
    inputs = PolicyInput(
        counting_tensor(1, 2, 2), torch.tensor([[1, 2]]), torch.tensor([[5.0, 7.0]]), torch.tensor([[True, False]])
    )
    encoded = encoder(inputs)
    if previous == "hidden":
        assert torch.equal(encoded, inputs.observations)
    if previous == "concatenated":
        assert encoder.output_size == 2 + 3 + 1
        assert encoded[0, :, 2:].tolist() == [[0, 0, 0, 0], [0, 0, 1, 7]]
    if previous == "slot":
        assert encoder.output_size == 2
        assert torch.equal(encoded[:, :, 0], inputs.observations)
        assert encoder.slot is not None
        torch.testing.assert_close(encoded[0, 0, 1], encoder.slot.bias)
        read = encoder.slot(torch.tensor([0.0, 0, 1, 7]))
        torch.testing.assert_close(encoded[0, 1, 1], read)


def test_whole_numbers_are_read_as_they_are() -> None:
    encoder = VectorEncoder([2, 3], hidden_sizes=[4])
    bytes_seen = torch.arange(12, dtype=torch.uint8).view(1, 2, 2, 3)
    torch.testing.assert_close(encoder(bytes_seen), encoder(bytes_seen.float()))


def test_a_slot_needs_a_backbone_that_reads_slots() -> None:
    inputs = inputs_of(torch.zeros(1, 3, 2))
    with pytest.raises(ConfigError, match="reads one vector per step"):
        make(previous="slot")(inputs)


@pytest.mark.parametrize("previous", ["hidden", "concatenated"])
@pytest.mark.parametrize(
    "name", ["encoder", "encoder.observations", "encoder.observations.layers.0", "encoder.normalization", "head"]
)
def test_hooks_of_a_module_are_called_in_every_step_that_is_collected(name: str, previous: Any) -> None:
    data = make_experience("CartPole-v1")
    task = make_task(data, normalize_observations=True, previous=previous)
    heard: list[Any] = []
    task.get_submodule(name).register_forward_hook(lambda *_: heard.append(name))
    with task.playing(4):
        Player(data.make("CartPole-v1", 4), 0).collect(task, 10)
    assert len(heard) == 10 + 1  # the value after the last step too


def test_a_policy_starts_without_a_preference() -> None:
    task = make()
    inputs = inputs_of(random_tensor(5, 3, 2))
    outputs, _ = task(inputs)
    assert (outputs[..., :-1].softmax(-1) - 0.5).abs().max() < 0.01


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"num_actions": None}, "num_actions=None, num_choices=None, action_size=None"),
        ({"action_size": 2}, "num_actions=2, num_choices=None, action_size=2"),
        ({"discount": 1.5}, "discount must be between 0 and 1; got discount=1.5"),
        ({"trace": -0.5}, "trace must be between 0 and 1; got trace=-0.5"),
        ({"clip": 0.0}, "clip must be above 0; got clip=0.0"),
        ({"value_clip": -1.0}, "value_clip must be above 0; got value_clip=-1.0"),
        ({"max_kl": 0.0}, "max_kl must be above 0; got max_kl=0.0"),
        ({"reward_scale": 0.0}, "reward_scale must be above 0; got reward_scale=0.0"),
        ({"entropy_weight": -1.0}, "entropy_weight must be at least 0; got entropy_weight=-1.0"),
        ({"value_weight": -1.0}, "value_weight must be at least 0; got value_weight=-1.0"),
    ],
)
def test_a_value_out_of_its_range_is_named(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make(**arguments)


def test_an_unknown_value_of_previous_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="previous must be one of hidden, concatenated, slot; got previous='x'"):
        make(previous="x")


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ({**SMALL_RIM, "init_args": {**SMALL_RIM["init_args"], "communication_dropout": 0.0}}, "input_dropout"),
        ({"class_path": "rimlit.backbones.Transformer", "init_args": {"hidden_size": 8}}, "dropout"),
        ({"class_path": "rimlit.backbones.LSTM", "init_args": {**SMALL_LSTM["init_args"], "num_layers": 2,
                                                                "dropout": 0.1}}, "dropout"),
    ],
)  # fmt: skip
def test_dropout_is_refused_because_a_rollout_could_not_be_replayed(backbone: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"PPOTask needs {name}=0: .*got {name}=0\.1 in backbone"):
        PPOTask(backbone, [2], num_actions=2)


def test_training_on_a_rollout_stops_where_the_policy_has_moved_too_far(tmp_path: Path) -> None:
    def updates_with(max_kl: float | None) -> list[int]:
        torch.manual_seed(0)
        data = make_experience("CartPole-v1", num_passes=5)
        optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.05}}
        task = make_task(data, max_kl=max_kl, optimizer=optimizer)
        trainer = make_trainer(tmp_path, max_steps=-1, max_epochs=2, limit_val_batches=0)
        updates, before = [0, 0], [next(task.backbone.parameters()).clone()]

        def count(*_: Any) -> None:
            weight = next(task.backbone.parameters())
            updates[trainer.current_epoch] += not torch.equal(weight, before[0])
            before[0] = weight.clone()

        task.on_train_batch_end = count  # type: ignore[method-assign]
        trainer.fit(task, datamodule=data)
        assert data.env_steps == 80
        return updates

    assert updates_with(None) == [5 * 2, 5 * 2]
    assert updates_with(1e9) == [5 * 2, 5 * 2]
    # the first minibatch has no divergence; that of the second, after an update, is too large
    assert updates_with(1e-4) == [2, 2]


def test_a_schedule_advances_once_a_rollout_and_ends_with_the_last(tmp_path: Path) -> None:
    data = make_experience(total_steps=160)
    schedule = {"class_path": "rimlit.training.LinearDecay", "init_args": {}}
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1.0e-3}}
    task = make_task(data, optimizer=optimizer, scheduler=schedule)
    rates: list[float] = []
    task.on_train_batch_end = lambda *_: rates.append(task.optimizers().param_groups[0]["lr"])  # type: ignore
    make_trainer(tmp_path, max_steps=-1, max_epochs=-1, limit_val_batches=0).fit(task, datamodule=data)
    assert sorted({round(rate, 6) for rate in rates}, reverse=True) == [1e-3, 7.5e-4, 5e-4, 2.5e-4, 0]
    assert len(rates) == 4 * 4


def test_a_plateau_of_a_return_is_where_it_grows_no_more(tmp_path: Path) -> None:
    data = make_experience(total_steps=160)
    task = make_task(data, scheduler=partial(ReduceLROnPlateau, patience=0))
    trainer = make_trainer(tmp_path, max_steps=-1, max_epochs=-1, check_val_every_n_epoch=2)
    trainer.fit(task, datamodule=data)
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert (scheduler.mode, scheduler.last_epoch) == ("max", 2)
    # the same episodes, whose rewards keep growing
    assert scheduler.num_bad_epochs == 0 and scheduler.best > 0


def test_a_task_is_loaded_from_its_checkpoint_with_its_scale(tmp_path: Path) -> None:
    data = make_experience("CartPole-v1")
    task = make_task(data, normalize_observations=True, previous="concatenated")
    trainer = make_trainer(tmp_path, max_steps=4, limit_val_batches=0)
    trainer.fit(task, datamodule=data)
    trainer.save_checkpoint(tmp_path / "some.ckpt")
    loaded = PPOTask.load_from_checkpoint(tmp_path / "some.ckpt")
    assert loaded.spec == task.spec
    inputs = inputs_of(random_tensor(1, 3, 4))
    assert torch.equal(loaded(inputs)[0], task(inputs)[0])
    assert isinstance(loaded.encoder, PolicyEncoder)
    assert loaded.encoder.normalization is not None
    assert loaded.encoder.normalization.count == 40


def test_a_balance_of_mechanisms_is_part_of_the_loss_and_moves(tmp_path: Path) -> None:
    balance = [{"z_loss": {"coefficient": 1.0}}, {"loss_free_bias": {"step": 0.1}}]
    still = {"input_dropout": 0.0, "communication_dropout": 0.0}
    backbone = {**SMALL_RIM, "init_args": {**SMALL_RIM["init_args"], **still, "balance": balance}}
    data = make_experience()
    task = make_task(data, backbone)
    trainer = make_trainer(tmp_path, max_steps=1, limit_val_batches=0, num_sanity_val_steps=0)
    trainer.fit(task, datamodule=data)
    assert trainer.callback_metrics["train/penalty"] > 0
    assert task.backbone.layers[0].balance.parts[1].bias.any()


@pytest.mark.parametrize(
    ("part", "name"),
    [({"selection": "gumbel_top_k"}, "GumbelTopK"), ({"balance": ["random_activation"]}, "CombinedBalance")],
)
def test_mechanisms_with_noise_are_refused(part: dict[str, Any], name: str) -> None:
    still = {"input_dropout": 0.0, "communication_dropout": 0.0}
    backbone = {**SMALL_RIM, "init_args": {**SMALL_RIM["init_args"], **still, **part}}
    with pytest.raises(ConfigError, match=rf"^PPOTask needs mechanisms without noise: .*; got {name} in backbone"):
        PPOTask(backbone, observation_shape=[2], num_actions=2)
