"""Backbones in TorchRL: a loss computes again what was collected, TorchRL's LSTM agrees, its PPO trains a RIM."""

import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rimlit import GRU, LSTM, RIM, Backbone, Transformer
from rimlit.errors import ConfigError, MissingExtraError
from rimlit.types import flat_state
from tests.conftest import random_tensor
from tests.laws.backbone_cases import backbone_cases, nested

pytest.importorskip("torchrl", reason="an extra")

import gymnasium
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.envs import Compose, GymWrapper, InitTracker, SerialEnv, TransformedEnv
from torchrl.modules import LSTMModule, OneHotCategorical, ProbabilisticActor, set_recurrent_mode
from torchrl.modules.utils import get_primers_from_module
from torchrl.objectives.value import GAE

from rimlit.integrations.torchrl import BackboneModule

PAGE = (Path(__file__).parents[2] / "docs/torchrl.md").read_text(encoding="utf-8")
OBSERVATION_SIZE, HIDDEN_SIZE, STEPS = 4, 24, 24


def build(cls: type[Backbone], arguments: dict[str, Any], input_size: int = OBSERVATION_SIZE) -> Backbone:
    names = ("input_dropout", "communication_dropout", "dropout")
    dropouts = {name: 0.0 for name in names if name in (cls.__init__.__kwdefaults__ or {})}
    return cls(input_size, HIDDEN_SIZE, **nested({**arguments, **dropouts}))  # type: ignore[call-arg]


def actor_of(module: BackboneModule) -> ProbabilisticActor:
    logits = TensorDictModule(nn.Linear(module.backbone.output_size, 2), in_keys=["features"], out_keys=["logits"])
    return ProbabilisticActor(
        TensorDictSequential(module, logits),
        in_keys=["logits"],
        distribution_class=OneHotCategorical,
        return_log_prob=True,
    )


@torch.no_grad()
def collect(actor: ProbabilisticActor, module: BackboneModule, *, most: int = 9, steps: int = STEPS) -> TensorDict:
    """Steps of three poles: they begin in the middle of an episode, and others begin in them."""
    torch.manual_seed(0)
    poles = SerialEnv(3, lambda: GymWrapper(gymnasium.make("CartPole-v1", max_episode_steps=most)))
    env = TransformedEnv(poles, Compose(InitTracker(), module.make_tensordict_primer()))
    env.set_seed(0)
    batch = env.rollout(5 + steps, actor, break_when_any_done=False)[:, 5:]
    env.close()
    assert batch["is_init"][:, 1:].any(dim=1).all() and not batch["is_init"][:, 0].all()
    return batch


def log_probs_of(actor: ProbabilisticActor, batch: TensorDict) -> Tensor:
    with set_recurrent_mode(True):
        found: Tensor = actor.get_dist(batch.clone()).log_prob(batch["action"])
    return found


@pytest.mark.parametrize(("cls", "arguments"), backbone_cases())
def test_a_loss_computes_the_probabilities_that_were_collected(
    cls: type[Backbone], arguments: dict[str, Any]
) -> None:
    module = BackboneModule(build(cls, arguments))
    actor = actor_of(module)
    batch = collect(actor, module)
    assert batch.shape == (3, STEPS)
    assert (log_probs_of(actor, batch) - batch["action_log_prob"]).abs().max() < 1e-5


def test_without_the_resets_of_a_sequence_the_probabilities_are_others() -> None:
    module = BackboneModule(build(LSTM, {}))
    actor = actor_of(module)
    batch = collect(actor, module)
    batch["is_init"] = torch.zeros_like(batch["is_init"])
    assert (log_probs_of(actor, batch) - batch["action_log_prob"]).abs().max() > 1e-5


def sequences_of(module: BackboneModule, *batch: int) -> TensorDict:
    """Sequences in whose middle an episode begins, and whose state is not the initial one."""
    starts = torch.zeros(*batch, 1, dtype=torch.bool)
    starts.view(-1, batch[-1])[0, 2] = starts.view(-1, batch[-1])[1, 4] = True
    inputs = random_tensor(*batch, module.backbone.input_size)
    given = {"observation": inputs, "is_init": starts}
    for key, part in zip(module.state_keys, flat_state(module.backbone.initial_state(1)), strict=True):
        given[key] = 0.1 * random_tensor(*batch, *part.shape[1:])
    return TensorDict(given, batch_size=batch)


def test_an_lstm_agrees_with_torchrl_s_own() -> None:
    theirs = LSTMModule(OBSERVATION_SIZE, HIDDEN_SIZE, num_layers=2, in_key="observation", out_key="features")
    module = BackboneModule(LSTM(OBSERVATION_SIZE, HIDDEN_SIZE, num_layers=2))
    module.backbone.recurrent.load_state_dict(theirs.lstm.state_dict())
    batch = sequences_of(module, 2, 6)
    batch["is_init"][1] = (
        False  # theirs starts an episode from what the tensordict holds, ours from the initial state
    )
    own = batch.clone().update(
        {
            "recurrent_state_h": batch["recurrent_state_hidden"].clone(),
            "recurrent_state_c": batch["recurrent_state_memory"].clone(),
        }
    )
    for name in ("recurrent_state_h", "recurrent_state_c"):
        own[name][0, 2] = 0
    with set_recurrent_mode(True):
        found, expected = module(batch), theirs(own)
    torch.testing.assert_close(found["features"], expected["features"])
    for name, other in (("hidden", "h"), ("memory", "c")):
        last = expected["next", f"recurrent_state_{other}"][:, -1]
        torch.testing.assert_close(found["next", f"recurrent_state_{name}"][:, -1], last)
    step, own_step = batch[:, 2].clone(), own[:, 2].clone()
    torch.testing.assert_close(module(step)["features"], theirs(own_step)["features"])


@pytest.mark.parametrize("cls", [RIM, LSTM, GRU])
def test_single_steps_are_a_sequence_and_batches_may_have_any_shape(cls: type[Backbone]) -> None:
    module = BackboneModule(build(cls, {}).eval())
    batch = sequences_of(module, 2, 3, 6)
    with set_recurrent_mode(True):
        whole = module(batch.clone())
    carried = {key: batch[key][:, :, 0] for key in module.state_keys}
    for step in range(6):
        now = module(batch[:, :, step].clone().update(carried))
        torch.testing.assert_close(now["features"], whole["features"][:, :, step])
        carried = {key: now["next", key] for key in module.state_keys}
    for key in module.state_keys:
        torch.testing.assert_close(carried[key], whole["next", key][:, :, -1])
        assert not whole["next", key][:, :, :-1].any()
    with set_recurrent_mode(True):
        torch.testing.assert_close(module(batch[0, 0].clone())["features"], whole["features"][0, 0])
    torch.testing.assert_close(module(batch[0, 0, 0].clone())["features"], whole["features"][0, 0, 0])


@pytest.mark.parametrize("cls", [RIM, LSTM])
def test_a_value_estimator_may_map_over_a_batch(cls: type[Backbone]) -> None:
    """GAE runs its value network under torch.vmap unless it is told not to."""
    module = BackboneModule(build(cls, {}).eval())
    batch = torch.stack([sequences_of(module, 2, 6), sequences_of(module, 2, 6).apply(lambda part: part.flip(0))])
    with set_recurrent_mode(True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)  # torch's, of vmap
        mapped = torch.vmap(module)(batch.clone())
        expected = module(batch.clone())
    torch.testing.assert_close(mapped["features"], expected["features"])


def test_advantages_are_those_of_single_steps_with_shifted_values_where_episodes_end() -> None:
    module = BackboneModule(build(RIM, {}))
    actor = actor_of(module)
    value = TensorDictModule(nn.Linear(HIDDEN_SIZE, 1), in_keys=["features"], out_keys=["state_value"])
    critic = TensorDictSequential(module, value)
    batch = collect(actor, module, most=500, steps=60)
    after = batch["next"].select("observation", "is_init", *module.state_keys)
    with torch.no_grad():
        values, next_values = critic(batch.clone())["state_value"], critic(after)["state_value"]
    ends = batch["next", "terminated"]
    assert ends.any() and not batch["next", "truncated"].any()
    expected, carried = torch.zeros_like(values), torch.zeros(3, 1)
    for step in reversed(range(60)):
        target = batch["next", "reward"][:, step] + 0.9 * next_values[:, step] * ~ends[:, step]
        carried = target - values[:, step] + 0.9 * 0.8 * carried * ~ends[:, step]
        expected[:, step] = carried
    found = GAE(gamma=0.9, lmbda=0.8, value_network=critic, shifted=True)(batch)["advantage"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_mode_is_the_context_s_or_the_default() -> None:
    module = BackboneModule(GRU(3, 8), default_recurrent_mode=True)
    assert module.recurrent_mode and not BackboneModule(GRU(3, 8)).recurrent_mode
    with set_recurrent_mode(False):
        assert not module.recurrent_mode


def test_slots_and_whole_numbers_are_read() -> None:
    rim = RIM(3, 24, input_dropout=0.0, communication_dropout=0.0)
    module = BackboneModule(rim, in_key=("agent", "seen"), out_key=("agent", "features"), state_key="memory")
    assert module.state_keys == ["memory_hidden", "memory_memory"]
    seen = torch.randint(0, 2, (2, 5, 4, 3))
    starts = torch.tensor([True, False, False, True, False]).expand(2, 5)[..., None]
    batch = TensorDict({("agent", "seen"): seen, "is_init": starts}, batch_size=[2, 5])
    with set_recurrent_mode(True):
        found = module(batch)
    expected, _ = rim(seen.float(), resets=starts[..., 0])
    torch.testing.assert_close(found["agent", "features"], expected)


def test_the_primer_of_a_policy_is_found_and_has_the_types_of_the_state() -> None:
    module = BackboneModule(Transformer(4, 24, context=5, dropout=0.0))
    primer = get_primers_from_module(actor_of(module))
    state = dict(zip(module.state_keys, flat_state(module.backbone.initial_state(1)), strict=True))
    assert {key: (spec.shape, spec.dtype) for key, spec in primer.primers.items()} == {
        key: (part.shape[1:], part.dtype) for key, part in state.items()
    }
    assert torch.bool in {part.dtype for part in state.values()}


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "two directions": (
        lambda: BackboneModule(LSTM(3, 8, bidirectional=True)),
        r"backbone needs bidirectional=False; got Bidirectional with bidirectional=True\.$",
    ),
    "no is_init": (
        lambda: BackboneModule(LSTM(3, 8))(TensorDict({"observation": torch.ones(2, 3)}, batch_size=[2])),
        r"^'is_init' is not in the tensordict, .* add torchrl\.envs\.InitTracker\(\)",
    ),
    "no state": (
        lambda: BackboneModule(LSTM(3, 8))(
            TensorDict(
                {"observation": torch.ones(2, 3), "is_init": torch.tensor([[True], [False]])}, batch_size=[2]
            )
        ),
        r"^'recurrent_state_hidden' is not in the tensordict, .* add make_tensordict_primer\(\)",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_forget_is_refused_in_one_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_dropout_is_a_warning_that_names_it() -> None:
    with pytest.warns(
        UserWarning, match=r"^RIM is random in training \(input_dropout=0\.1 in layers\.0\): probabilities"
    ):
        BackboneModule(RIM(3, 24))


def test_a_missing_extra_is_answered_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "rimlit.integrations.torchrl")
    monkeypatch.setitem(sys.modules, "torchrl.envs", None)
    with pytest.raises(MissingExtraError, match=r"needs TorchRL: pip install .*torchrl") as caught:
        import rimlit.integrations.torchrl  # noqa: F401
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Creating .*WeightUpdater:DeprecationWarning")  # TorchRL's own
def test_the_example_of_the_page_trains(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("popgym", reason="the example's environment")
    (code,) = re.findall(r"^```python\n# repeat_previous.py\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len([line for line in code.splitlines() if line]) <= 45
    small = code.replace("STEPS, UPDATES = 16, 128, 100", "STEPS, UPDATES = 8, 16, 2")
    assert small != code
    names: dict[str, Any] = {}
    exec(small, names)
    assert len(re.findall(r"mean reward of a step [+-]0\.\d{4}", capsys.readouterr().out)) == 2
    gradients = [weight.grad is None for weight in names["rim"].parameters()]
    assert all(gradients)  # zeroed after the last step
    for name, state in names["optimizer"].state.items():
        assert state["exp_avg"].count_nonzero(), name.shape
