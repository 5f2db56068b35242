"""Every fast time loop agrees with the reference: outputs, final state, activity and every gradient."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from rimlit import RIM
from rimlit.errors import ConfigError
from rimlit.kernels import BACKENDS, Activity, run_layer
from rimlit.types import State, map_state
from tests.conftest import random_tensor
from tests.laws.backbone_cases import SMALL, nested

FAST = ("eager", "function", "cpu")
D, M, SIZE = 3, 4, 3
CPU = torch.device("cpu")

# by hand, for graphs, Triton, single precision and memory too; fuzz.py draws and compares many more
CASES: dict[str, dict[str, Any]] = {
    "paper_lstm": {},
    "paper_lstm_slots": {"slots": 3, "input_heads": 2},
    "paper_tanh_gru": {"communication.output": "tanh", "cell": "gru", "dropped": True},
    "official_lstm": {"preset": "official", "input_heads": 2},
    "official_gru": {"preset": "official", "cell": "gru"},
    "official_gru_slots": {"preset": "official", "cell": "gru", "slots": 3, "input_heads": 2},
    "resets": {"resets": True},
    "separate_projections_slots": {"input_sharing": "independent", "slots": 3, "input_heads": 2},
    "across_mechanisms": {"selection": "across_mechanisms"},
    "across_mechanisms_slots": {"selection": "across_mechanisms", "slots": 2, "input_heads": 2},
    "silent_gru_slots": {"communication": "none", "cell": "gru", "slots": 2},
    "without_input_attention_tokens": {
        "input_attention": False,
        "num_active": M,
        "tokens": True,
        "input_heads": 2,
        "preset": "official",
        "num_layers": 2,
    },
    "one_step_of_one_sample_slots": {"batch": 1, "steps": 1, "slots": 2},
    "two_layers": {"num_layers": 2, "resets": True},
    "dropout": {"dropped": True},
    "dropout_everywhere": {"dropped": True, "input_heads": 2, "slots": 3, "num_layers": 2, "resets": True},
    "dropout_official_gru": {"dropped": True, "preset": "official", "cell": "gru", "input_heads": 2},
    "tokens_two_heads": {"tokens": True, "input_heads": 2, "dropped": True, "num_layers": 2},
    "tokens_separate_projections": {"tokens": True, "input_sharing": "independent"},
    "wide_values": {"input_value_size": 40, "steps": 2, "batch": 1},  # the other order of the folded products
}


class Run(NamedTuple):
    features: Tensor
    state: State
    activities: list[Activity]
    gradients: dict[str, Tensor]


def run(backend: str, case: dict[str, Any], dtype: torch.dtype, device: torch.device = CPU, draw: int = 0) -> Run:
    """Run forward and backward from states, inputs and weights that depend on the case and ``draw`` only."""
    case = {"slots": None, "batch": 3, "steps": 4, "resets": False, "dropped": False, "tokens": False, **case}
    slots, batch, steps, has_resets, dropped, has_tokens = (
        case.pop(name) for name in ("slots", "batch", "steps", "resets", "dropped", "tokens")
    )
    dropout = 0.4 if dropped else 0.0
    arguments = {
        "hidden_size": M * SIZE,
        "num_mechanisms": M,
        "num_active": 2,
        "learn_initial_state": True,
        "input_dropout": dropout,
        "communication_dropout": dropout,
        "dropout": dropout,
        **SMALL,
        **case,
    }
    torch.manual_seed(5 + draw)
    rim = RIM(D, backend=backend, **nested(arguments)).to(device, dtype).train()
    with torch.no_grad():
        for parameter in rim.parameters():
            parameter.mul_(1.5)
    shape = (batch, steps, D) if slots is None else (batch, steps, slots, D)
    if has_tokens:
        shape = (5, D)  # fewer than the 3 · 4 tokens, so that the table is projected
        tokens = (torch.arange(batch * steps, device=device) + draw).view(batch, steps) ** 2 % 5

    def numbers(*shape: int, seed: int) -> Tensor:
        return random_tensor(*shape, seed=10 * draw + seed, dtype=dtype).to(device)

    inputs = numbers(*shape, seed=1).requires_grad_()
    state = map_state(lambda tensor: numbers(*tensor.shape, seed=2).requires_grad_(), rim.initial_state(batch))
    resets = (numbers(batch, steps, seed=6) > 0.5) if has_resets else None
    torch.manual_seed(6 + draw)  # the same dropout factors for all loops
    with rim.record_activity() as activities:
        if has_tokens:
            features, last = rim.forward_tokens(tokens, inputs, state, resets)
        else:
            features, last = rim(inputs, state, resets)
    loss = (features * numbers(*features.shape, seed=3)).sum()
    loss = loss + sum((tensor * numbers(*tensor.shape, seed=4)).sum() for tensor in last)
    named = {
        **dict(rim.named_parameters()),
        "inputs": inputs,
        **{f"state.{name}": tensor for name, tensor in state._asdict().items()},
    }
    gradients = torch.autograd.grad(loss, list(named.values()))
    return Run(features, last, activities, dict(zip(named, gradients, strict=True)))


def assert_agree(run: Run, expected: Run, **tolerance: float) -> None:
    for layer, reference in zip(run.activities, expected.activities, strict=True):
        assert torch.equal(layer.active, reference.active)
        for name in ("null_attention", "slot_attention", "communication"):
            torch.testing.assert_close(getattr(layer, name), getattr(reference, name), **tolerance, msg=name)
    torch.testing.assert_close(run.features, expected.features, **tolerance)
    assert type(run.state) is type(expected.state)
    for name, tensor in run.state._asdict().items():
        torch.testing.assert_close(tensor, getattr(expected.state, name), **tolerance)
    assert run.gradients.keys() == expected.gradients.keys()
    for name, gradient in run.gradients.items():
        torch.testing.assert_close(
            gradient, expected.gradients[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_fast_loop_agrees_with_the_reference_in_everything(case: dict[str, Any], backend: str) -> None:
    expected = run("reference", case, torch.float64)
    if case.get("steps") != 1 and case.get("num_active") != M:
        mask = torch.cat([layer.active.flatten(0, 1) for layer in expected.activities])
        assert len(mask.unique(dim=0)) > 1  # else the case would not distinguish two selections
    assert_agree(run(backend, case, torch.float64), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("case", ["paper_lstm", "official_gru_slots", "dropout"])
def test_a_fast_loop_agrees_with_the_reference_in_single_precision(case: str, backend: str) -> None:
    expected = run("reference", CASES[case], torch.float32)
    assert_agree(run(backend, CASES[case], torch.float32), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("slots", [None, 4])
@pytest.mark.parametrize("heads", [1, 3])
def test_loops_agree_where_attention_is_saturated(
    heads: int, slots: int | None, dtype: torch.dtype, backend: str
) -> None:
    # the null probability is then far below the precision of 1, and 1 − the rest is noise
    def activity(name: str) -> Activity:
        torch.manual_seed(0)
        rim = RIM(8, 24, num_mechanisms=6, num_active=3, input_heads=heads, backend=name).to(dtype).eval()
        with torch.no_grad():
            rim.layers[0].input_query.weight.mul_(12)
            rim.layers[0].input_key.weight.mul_(12)
        state = map_state(lambda part: random_tensor(*part.shape, dtype=dtype), rim.initial_state(64))
        shape = (64, 1, 8) if slots is None else (64, 1, slots, 8)
        with rim.record_activity() as activities:
            rim(random_tensor(*shape, seed=1, dtype=dtype), state)
        return activities[0]

    found, expected = activity(backend), activity("reference")
    assert (expected.null_attention < torch.finfo(dtype).eps).any()
    assert torch.equal(found.active, expected.active)
    torch.testing.assert_close(found.null_attention, expected.null_attention, rtol=1e-3, atol=1e-30)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("num_mechanisms", [1, M * SIZE])  # features that lie alike in several orders
def test_dropout_between_layers_does_not_depend_on_how_a_loop_lays_features_out(
    num_mechanisms: int, backend: str
) -> None:
    def features(name: str) -> Tensor:
        torch.manual_seed(0)
        rim = RIM(
            D,
            M * SIZE,
            num_mechanisms=num_mechanisms,
            num_active=1,
            num_layers=2,
            input_dropout=0.0,
            communication_dropout=0.0,
            dropout=0.5,
            backend=name,
        )
        return rim(random_tensor(3, 4, D))[0]

    torch.testing.assert_close(features(backend), features("reference"), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["cell", "selection", "communication.inactive", "communication.output"])
def test_a_loop_is_never_given_a_choice_that_it_does_not_know(name: str) -> None:
    key = name.rpartition(".")[2]
    with pytest.raises(ConfigError, match=rf"{key} must be one of .*; got {key}='loudest'\."):
        RIM(D, M * SIZE, num_mechanisms=M, num_active=2, **nested({name: "loudest"}))


def test_a_layer_is_run_by_a_loop_that_exists() -> None:
    layer = RIM(D, M * SIZE, num_mechanisms=M, num_active=2).layers[0]
    with pytest.raises(
        ValueError, match=r"backend must be one of cpu, function, eager, .*; got backend='quick'\."
    ):
        run_layer("quick", layer, layer.weights(), None)


def test_dropout_changes_what_the_loops_agree_on() -> None:
    dropped = run("reference", CASES["dropout"], torch.float64)
    plain = run("reference", {}, torch.float64)
    assert not torch.allclose(dropped.features, plain.features)


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("slots", [1, 2])
def test_gradients_are_those_of_finite_differences(backend: str, cell: str, slots: int) -> None:
    # with all mechanisms active nothing jumps, so that differences exist everywhere
    rim = RIM(
        2,
        4,
        num_mechanisms=2,
        num_active=2,
        cell=cell,
        input_key_size=2,
        input_value_size=2,
        communication={"heads": 2, "key_size": 2, "value_size": 1},
        learn_initial_state=True,
        backend=backend,
    )
    rim = rim.double().eval()
    names = [name for name, _ in rim.named_parameters()]
    resets = torch.tensor([[False, True]])

    def function(inputs: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        parameters, state = dict(zip(names, tensors, strict=False)), rim.state_type(*tensors[len(names) :])
        features, last = torch.func.functional_call(rim, parameters, (inputs, state, resets))
        return (features, *last)

    inputs = random_tensor(1, 2, slots, 2, dtype=torch.float64).requires_grad_()
    state = [
        random_tensor(*tensor.shape, seed=1, dtype=torch.float64).requires_grad_()
        for tensor in rim.initial_state(1)
    ]
    parameters = [parameter.detach().clone().requires_grad_() for parameter in rim.parameters()]
    assert torch.autograd.gradcheck(function, (inputs, *parameters, *state), fast_mode=True)


@pytest.mark.parametrize("backend", ["function", "cpu"])
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("preset", ["paper", "official"])
def test_what_is_kept_for_the_backward_serves_twice(preset: str, slots: int, backend: str) -> None:
    rim = RIM(D, M * SIZE, num_mechanisms=M, num_active=2, preset=preset, backend=backend, **nested(SMALL))
    features, _ = rim(random_tensor(2, 4, slots, D))
    first = torch.autograd.grad(features.sum(), list(rim.parameters()), retain_graph=True)
    second = torch.autograd.grad(features.sum(), list(rim.parameters()))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["function", "cpu"])
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("every", [None, 2])
def test_a_derivative_can_be_differentiated_again(every: int | None, backend: str, slots: int) -> None:
    gradients = {}
    for name, checkpoint_every in (("eager", None), (backend, every)):
        torch.manual_seed(0)
        rim = RIM(
            D,
            M * SIZE,
            num_mechanisms=M,
            num_active=2,
            learn_initial_state=True,
            backend=name,
            checkpoint_every=checkpoint_every,
            **nested(SMALL),
        )
        rim = rim.double().eval()
        inputs = random_tensor(2, 3, slots, D, dtype=torch.float64).requires_grad_()
        features, _ = rim(inputs)
        (slope,) = torch.autograd.grad(features.square().sum(), inputs, create_graph=True)
        gradients[name] = torch.autograd.grad(slope.square().sum(), list(rim.parameters()))
    for a, b in zip(gradients["eager"], gradients[backend], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("case", ["resets", "tokens_two_heads", "dropout_everywhere", "official_gru"])
def test_steps_that_are_computed_again_change_nothing(case: str, every: int, backend: str) -> None:
    kept = run(backend, CASES[case], torch.float64)
    assert_agree(
        run(backend, CASES[case] | {"checkpoint_every": every}, torch.float64), kept, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("backend", FAST)
def test_steps_that_are_computed_again_are_not_kept(backend: str) -> None:
    def saved(checkpoint_every: int | None) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        rim = RIM(8, 32, num_mechanisms=4, num_active=2, backend=backend, checkpoint_every=checkpoint_every)
        inputs = torch.ones(4, 64, 8)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            features, _ = rim.eval()(inputs)
        weights = sum(parameter.nbytes for parameter in rim.parameters())
        return sum(sizes.values()) - weights - inputs.nbytes - features.nbytes

    assert saved(8) < saved(None) / 4


@pytest.mark.parametrize("backend", ["function", "cpu"])
def test_a_derivative_under_autocast_is_that_of_the_recurrence_in_full(backend: str) -> None:
    rim = RIM(
        D, M * SIZE, num_mechanisms=M, num_active=2, backend=backend, learn_initial_state=True, **nested(SMALL)
    )
    inputs = random_tensor(2, 4, D)

    def gradients(is_mixed: bool) -> tuple[Tensor, ...]:
        features, _ = rim.eval()(inputs)
        loss = features.square().sum()
        wanted = [
            rim.layers[0].dynamics.hidden.weight,
            rim.layers[0].communication.projection.weight,
        ]  # met in the loop alone
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_mixed):
            return torch.autograd.grad(loss, wanted)

    for mixed, full in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(mixed, full)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("input_size", [16, 100])
@pytest.mark.parametrize("every", [None, 2])
def test_projections_in_bf16_stay_near_and_leave_the_recurrence_in_the_weights_type(
    every: int | None, input_size: int, backend: str
) -> None:
    torch.manual_seed(0)
    options = {"num_mechanisms": 4, "num_active": 4, "backend": backend, "checkpoint_every": every}
    exact = RIM(input_size, 32, **options).eval()
    near = RIM(input_size, 32, project_in_bf16=True, **options).eval()
    near.load_state_dict(exact.state_dict())
    inputs = random_tensor(2, 5, input_size)
    expected, _ = exact(inputs)
    features, state = near(inputs)
    assert features.dtype == state.hidden.dtype == torch.float32
    assert not torch.equal(features, expected)
    torch.testing.assert_close(features, expected, rtol=0.05, atol=0.01)
    features.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in near.parameters())


def loop_of(backend: str, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> tuple[str, str]:
    return (
        RIM(D, M * SIZE, num_mechanisms=M, num_active=2, backend=backend).to(dtype).resolve_backend(device=device)
    )


def test_auto_takes_a_loop_that_exists_and_says_why() -> None:
    name, reason = loop_of("auto")
    assert name in BACKENDS
    assert name != "auto"
    assert reason


def test_a_loop_that_is_asked_for_is_taken() -> None:
    assert loop_of("reference") == ("reference", "asked for")


def test_the_c_loop_refuses_what_it_cannot_run() -> None:
    message = r"backend='cpu': this loop runs float32 and float64 on the CPU; got .*bfloat16.* here: 'auto', 'fun"
    with pytest.raises(ConfigError, match=message):
        loop_of("cpu", dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match=r"backend='cpu': this loop runs .* on the CPU; got .* on cuda"):
        loop_of("cpu", torch.device("cuda"))
    name, reason = loop_of("auto", dtype=torch.bfloat16)
    assert name == "function"
    assert reason.startswith("cpu: runs float32 and float64 on the CPU; got weights of torch.bfloat16")


def test_the_environment_wins_over_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIMLIT_BACKEND", "reference")
    assert loop_of("eager") == ("reference", "RIMLIT_BACKEND")
    monkeypatch.setenv("RIMLIT_BACKEND", "quick")
    with pytest.raises(ValueError, match=r"RIMLIT_BACKEND must be one of auto, .*; got RIMLIT_BACKEND='quick'\."):
        loop_of("eager")
